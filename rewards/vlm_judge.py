"""
A vision-language model as judge: it is shown frames of a video and asked for a grade. This is the common baseline for
DSR-Score. Such judges are known to overlook where things are.
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
    Reward in [0, 1]: the grade from 0 to 10 that a vision-language model gives, divided by 10. INVALID if its answer
    is anything but such a number.

    Decoding is greedy, one video at a time. The frames are the images of one message in the model's own chat template,
    so any image-text-to-text model of transformers that takes several images works.

    Args:
        checkpoint (`str` or `os.PathLike`, *optional*, defaults to `"HuggingFaceTB/SmolVLM2-2.2B-Instruct"`):
            A Hub id or a local folder.
        question (`str`, *optional*):
            The question for the model; `{prompt}`, `{count}` (number of frames) and `{best}` (10) are filled in.
        num_frames (`int`, *optional*, defaults to `8`):
            Number of frames shown, evenly spaced.
        max_new_tokens (`int`, *optional*, defaults to `16`):
            Maximum length of the answer, in tokens.
        device, dtype, revision (*optional*):
            See [`~spatialalign_trl.perception.checkpoints.PretrainedModel`].

    Raises:
        `ValueError`: for a count below 1, or a question without `{prompt}`.
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
            raise ValueError(f"question is {question!r}; it must contain {{prompt}}, which is replaced by the prompt.")
        self.__name__ = "vlm_judge"
        self.question, self.num_frames, self.max_new_tokens = question, num_frames, max_new_tokens
        self.pretrained = PretrainedModel(checkpoint, _judge_classes(), device=device, dtype=dtype, revision=revision)

    def check_prompts(self, **columns: Any) -> None:
        """Load the checkpoint before anything is sampled, so that a missing one is reported early."""
        self.prepare()

    def describe(self) -> dict[str, Any]:
        """Return the settings that determine this reward's values."""
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
        Grade `N` videos.

        Args:
            prompts (sequence of `N` `str`):
                The descriptions that the videos were made for.
            completions (sequence of `N` videos):
                `uint8` arrays of shape `(frames, height, width, 3)`.
            log_extra (callable, *optional*):
                Receives `vlm_judge_reason`: the model's answer if it is not a grade.

        Returns:
            `list[float | None]`: one grade per video, `None` when INVALID.
        """
        check_completions(completions)
        answers = [self.ask(prompt, video) for prompt, video in zip(prompts, completions, strict=True)]
        grades = [read_grade(answer) for answer in answers]
        if log_extra is not None:
            reasons = [
                f"the judge answered {answer[:80]!r}, no grade" if grade is None else None
                for answer, grade in zip(answers, grades, strict=True)
            ]
            log_extra("vlm_judge_reason", reasons)
        return grades

    def ask(self, prompt: str, video: Video) -> str:
        """Return the model's unparsed answer about one video (`uint8`, shape `(frames, height, width, 3)`)."""
        import torch
        from PIL import Image

        model, processor = self.pretrained.load()
        frames = [Image.fromarray(frame) for frame in evenly_spaced(video, self.num_frames)]
        # Not str.format: the prompt and the question may contain other braces.
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


def _judge_classes() -> dict[str, tuple[str, str]]:
    """Return the classes for every model type that transformers can run as image-text-to-text."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    return dict.fromkeys(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, ("AutoModelForImageTextToText", "AutoProcessor"))


def read_grade(answer: str) -> float | None:
    """Return the grade in [0, 1] of an answer such as "7", "7." or "7/10"; `None` for any other answer."""
    match = _ANSWER.fullmatch(answer)
    grade = int(match["grade"]) if match else BEST + 1
    return grade / BEST if grade <= BEST else None
