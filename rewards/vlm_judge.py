"""
A vision-language model as judge: it is shown frames and asked for a grade. The old way, which DSR-Score is compared
with: such judges are known to miss who stands where.
"""

import os
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from spatialalign_rewards._sampled_frames import check_counts, evenly_spaced
from spatialalign_trl.perception.checkpoints import PretrainedModel, RunsPretrained
from spatialalign_trl.video import Video, check_completions

if TYPE_CHECKING:
    import torch

DEFAULT_CHECKPOINT = "HuggingFaceTB/SmolVLM2-2.2B-Instruct"
BEST = 10
QUESTION = (
    "These are {count} frames of a video, in order. It was made for this description:\n\n{prompt}\n\n"
    "How well do the things in the video, where they are at the start, where they are at the end, and what moves in "
    "between, follow the description? Answer with one whole number from 0 (not at all) to {best} (exactly), and "
    "nothing else."
)
_ANSWER = re.compile(r"\s*(?P<grade>\d{1,3})\s*(/\s*10)?\s*\.?\s*")


class VLMJudge(RunsPretrained):
    """
    Reward in [0, 1]: the grade from 0 to 10 that a vision-language model gives, over 10. INVALID where its answer is
    anything but such a number.

    Decoding is greedy, one video at a time. Frames go in as images of one message through the model's own chat
    template, so any image-text-to-text model of transformers that takes several images will do.

    Args:
        checkpoint (`str` or `os.PathLike`, *optional*, defaults to `"HuggingFaceTB/SmolVLM2-2.2B-Instruct"`):
            A Hub id or a local folder.
        question (`str`, *optional*):
            What is asked; `{prompt}`, `{count}` (frames) and `{best}` (10) are filled in.
        num_frames (`int`, *optional*, defaults to `8`):
            Frames shown, evenly spread.
        max_new_tokens (`int`, *optional*, defaults to `16`):
            Length of the answer.
        device, dtype, revision (*optional*):
            As of [`~spatialalign_trl.perception.checkpoints.PretrainedModel`].
    """

    required_columns: tuple[str, ...] = ()

    def __init__(
        self,
        checkpoint: str | os.PathLike = DEFAULT_CHECKPOINT,
        question: str = QUESTION,
        num_frames: int = 8,
        max_new_tokens: int = 16,
        device: "str | torch.device | None" = None,
        dtype: "str | torch.dtype | None" = None,
        revision: str | None = None,
    ) -> None:
        check_counts(num_frames=num_frames, max_new_tokens=max_new_tokens)
        if "{prompt}" not in question:
            raise ValueError(f"question is {question!r}; it must hold {{prompt}}, where the prompt is filled in.")
        self.__name__ = "vlm_judge"
        self.question, self.num_frames, self.max_new_tokens = question, num_frames, max_new_tokens
        self.pretrained = PretrainedModel(checkpoint, _judges(), device=device, dtype=dtype, revision=revision)

    def check_prompts(self, **columns: Any) -> None:
        """Refuse a checkpoint that cannot be loaded, before anything is sampled."""
        self.prepare()

    def describe(self) -> dict[str, Any]:
        """What this reward was made with."""
        return {
            "checkpoint": self.pretrained.checkpoint,
            "revision": self.pretrained.revision,
            "question": self.question,
            "num_frames": self.num_frames,
        }

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[Video],
        log_extra: Callable[[str, list], None] | None = None,
        **kwargs: Any,
    ) -> list[float | None]:
        """
        Grade `N` videos (`uint8`, `(frames, height, width, 3)`) for their `N` prompts. `log_extra` gets
        `vlm_judge_reason`: the answer where it is no grade.
        """
        check_completions(completions)
        answers = [self.ask(*one) for one in zip(prompts, completions, strict=True)]
        grades = [read_grade(answer) for answer in answers]
        if log_extra is not None:
            told = zip(answers, grades, strict=True)
            log_extra(
                "vlm_judge_reason",
                [f"the judge answered {answer[:80]!r}, no grade" if grade is None else None for answer, grade in told],
            )
        return grades

    def ask(self, prompt: str, video: Video) -> str:
        """The model's answer about one video, as it gave it."""
        import torch
        from PIL import Image

        model, processor = self.pretrained.load()
        frames = [Image.fromarray(frame) for frame in evenly_spaced(video, self.num_frames)]
        # Not str.format: a prompt or a question may hold braces of its own.
        text = self.question.replace("{count}", str(len(frames))).replace("{best}", str(BEST))
        text = text.replace("{prompt}", prompt)
        content = [*({"type": "image", "image": frame} for frame in frames), {"type": "text", "text": text}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(model.device)
        with torch.inference_mode(), self.pretrained.autocast():
            tokens = model.generate(**inputs, do_sample=False, max_new_tokens=self.max_new_tokens)
        return processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def _judges() -> dict[str, tuple[str, str]]:
    """Every kind of model that transformers itself can run as image-text-to-text."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    return dict.fromkeys(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, ("AutoModelForImageTextToText", "AutoProcessor"))


def read_grade(answer: str) -> float | None:
    """The grade in [0, 1] of an answer that is a whole number from 0 to 10 (or "7/10", "7."); `None` of any other."""
    found = _ANSWER.fullmatch(answer)
    grade = int(found["grade"]) if found else BEST + 1
    return grade / BEST if grade <= BEST else None
