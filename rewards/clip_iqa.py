"""CLIP-IQA, computed by torchmetrics: does a frame look more like "Good photo." than like "Bad photo."?"""

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from spatialalign_rewards._sampled_frames import check_counts, evenly_spaced, in_batches
from spatialalign_rewards.clip_similarity import CLASSES, DEFAULT_CHECKPOINT, squeezed
from spatialalign_trl.perception.checkpoints import PretrainedModel, RunsPretrained
from spatialalign_trl.video import Video, check_completions

if TYPE_CHECKING:
    import torch

EXTRA = "pip install 'spatialalign-trl[clip-iqa]'"


class CLIPIQA(RunsPretrained):
    """
    Reward in [0, 1]: CLIP-IQA (arXiv 2207.12396), the mean over frames and prompts of
    `softmax(100 cos(frame, text))` of the good text against the bad one.

    torchmetrics supplies the texts and the formula. The model is a CLIP checkpoint of transformers, read from
    safetensors. The paper's own network, a ResNet without position embeddings, is only published as a pickle, so the
    values differ from published ones.

    Args:
        checkpoint (`str` or `os.PathLike`, *optional*, defaults to `"openai/clip-vit-large-patch14"`):
            A CLIP model: a Hub id or a local folder.
        prompts (sequence of `str` or of pairs of `str`, *optional*, defaults to `("natural", "quality")`):
            Names that torchmetrics knows, or pairs of a good and a bad text.
        num_frames (`int`, *optional*):
            Number of frames to score, evenly spaced; all by default.
        batch_size (`int`, *optional*, defaults to `16`):
            Frames per forward pass of the model.
        device, dtype, revision (*optional*):
            See [`~spatialalign_trl.perception.checkpoints.PretrainedModel`].
    """

    required_columns: tuple[str, ...] = ()
    name = "clip_iqa"

    def __init__(
        self,
        checkpoint: str | os.PathLike = DEFAULT_CHECKPOINT,
        prompts: Sequence[str | Sequence[str]] = ("natural", "quality"),
        num_frames: int | None = None,
        batch_size: int = 16,
        device: "str | torch.device | None" = None,
        dtype: "str | torch.dtype | None" = None,
        revision: str | None = None,
    ) -> None:
        check_counts(num_frames=num_frames, batch_size=batch_size)
        if isinstance(prompts, str) or not prompts:
            raise ValueError(f"prompts is {prompts!r}; it must be a list such as ['natural', 'quality'].")
        self.__name__ = self.name
        self.prompts = tuple(prompt if isinstance(prompt, str) else tuple(prompt) for prompt in prompts)
        self.num_frames, self.batch_size = num_frames, batch_size
        self.pretrained = PretrainedModel(checkpoint, CLASSES, device=device, dtype=dtype, revision=revision)
        self._metric: Any = None

    def check_prompts(self, **columns: Any) -> None:
        """Load the model before anything is sampled, so that a missing package or checkpoint is reported early."""
        _metric_class(self.name)
        self.prepare()

    def describe(self) -> dict[str, Any]:
        """Return the settings that determine this reward's values."""
        return {
            "checkpoint": self.pretrained.checkpoint,
            "revision": self.pretrained.revision,
            "prompts": [prompt if isinstance(prompt, str) else list(prompt) for prompt in self.prompts],
            "num_frames": self.num_frames,
        }

    def release(self) -> None:
        """Free the model's memory; the next video loads it again."""
        self._metric = None
        super().release()

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[Video],
        log_extra: Callable[[str, list], None] | None = None,
        **kwargs: Any,
    ) -> list[float | None]:
        """
        Score `N` videos.

        Args:
            prompts (sequence of `N` `str`):
                Not used.
            completions (sequence of `N` videos):
                `uint8` arrays of shape `(frames, height, width, 3)`.
            log_extra (callable, *optional*):
                Receives `<reward>_<prompt>`, the score of each single prompt, if there are several.

        Returns:
            `list[float]`: one reward in [0, 1] per video.
        """
        check_completions(completions)
        scores = [self._score_by_prompt(video) for video in completions]
        if log_extra is not None and len(self.prompts) > 1:
            for name in scores[0] if scores else ():
                log_extra(f"{self.name}_{name}", [by_prompt[name] for by_prompt in scores])
        return [sum(by_prompt.values()) / len(by_prompt) for by_prompt in scores]

    def _score_by_prompt(self, video: Video) -> dict[str, float]:
        """Return the mean over frames for each prompt."""
        import torch

        metric = self._load()
        metric.reset()
        with torch.inference_mode(), self.pretrained.autocast():
            for frames in in_batches(evenly_spaced(video, self.num_frames), self.batch_size):
                metric.update(torch.stack([torch.from_numpy(frame.copy()).permute(2, 0, 1) for frame in frames]))
            values = metric.compute()
        values = values if isinstance(values, dict) else {metric.prompts_name[0]: values}
        return {name: float(value.float().mean()) for name, value in values.items()}

    def _load(self) -> Any:
        if self._metric is None:
            metric_class = _metric_class(self.name)
            source = (_Features(*self.pretrained.load()), _Inputs(*self.pretrained.load()))
            # The processor already divides by 255, hence data_range=1. Every process scores its own videos, so nothing
            # is synchronised.
            self._metric = metric_class(lambda: source, data_range=1.0, prompts=self.prompts, sync_on_compute=False)
        return self._metric


class _Features:
    """CLIP with the interface torchmetrics expects: plain feature tensors (transformers 5 wraps them), on the CPU."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.model = model

    def get_text_features(self, input_ids: "torch.Tensor", attention_mask: "torch.Tensor") -> "torch.Tensor":
        device = self.model.device
        output = self.model.get_text_features(input_ids.to(device), attention_mask=attention_mask.to(device))
        return output.pooler_output.float().cpu()

    def get_image_features(self, pixel_values: "torch.Tensor") -> "torch.Tensor":
        return self.model.get_image_features(pixel_values.to(self.model.device)).pooler_output.float().cpu()


class _Inputs:
    """CLIP's processor with the interface torchmetrics expects; frames are squeezed to a square, not cropped."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model, processor

    def __call__(self, text: list[str] | None = None, images: list | None = None, **kwargs: Any) -> Any:
        if images is None:
            return self.processor(text=text, **kwargs)
        # torchmetrics converts the frames to float. The processor would then resize without rounding, and the pixels
        # would differ from CLIP's own preprocessing.
        return squeezed(self.processor, [image.byte() for image in images], self.model)


def _metric_class(name: str) -> type:
    try:
        from torchmetrics.multimodal import CLIPImageQualityAssessment
    except ImportError as error:
        raise ImportError(f"The reward {name!r} needs torchmetrics: {EXTRA}") from error
    return CLIPImageQualityAssessment
