"""CLIP similarity: does the picture match the prompt's words? CLIP recognises things, but hardly their positions."""

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from spatialalign_rewards._sampled_frames import check_counts, evenly_spaced, in_batches
from spatialalign_trl.perception.checkpoints import PretrainedModel, RunsPretrained
from spatialalign_trl.video import Video, check_completions

if TYPE_CHECKING:
    import torch

DEFAULT_CHECKPOINT = "openai/clip-vit-large-patch14"
CLASSES = {"clip": ("CLIPModel", "CLIPProcessor")}


class CLIPSimilarity(RunsPretrained):
    """
    Reward in [-1, 1], in practice about 0.15 to 0.35: the cosine of CLIP's embeddings (arXiv 2103.00020) of frame and
    prompt, averaged over frames. Frames are squeezed to CLIP's square input, because cropping would lose their sides.
    A prompt is truncated to CLIP's 77 tokens.

    Args:
        checkpoint (`str` or `os.PathLike`, *optional*, defaults to `"openai/clip-vit-large-patch14"`):
            A CLIP model: a Hub id or a local folder. It is loaded once, when the first video is scored.
        num_frames (`int`, *optional*, defaults to `8`):
            Number of frames to score, evenly spaced; `None` for all.
        batch_size (`int`, *optional*, defaults to `16`):
            Frames per forward pass of the model.
        device, dtype, revision (*optional*):
            See [`~spatialalign_trl.perception.checkpoints.PretrainedModel`].
    """

    required_columns: tuple[str, ...] = ()

    def __init__(
        self,
        checkpoint: str | os.PathLike = DEFAULT_CHECKPOINT,
        num_frames: int | None = 8,
        batch_size: int = 16,
        device: "str | torch.device | None" = None,
        dtype: "str | torch.dtype | None" = None,
        revision: str | None = None,
    ) -> None:
        check_counts(num_frames=num_frames, batch_size=batch_size)
        self.__name__ = "clip_similarity"
        self.num_frames, self.batch_size = num_frames, batch_size
        self.pretrained = PretrainedModel(checkpoint, CLASSES, device=device, dtype=dtype, revision=revision)

    def check_prompts(self, **columns: Any) -> None:
        """Load the checkpoint before anything is sampled, so that a missing one is reported early."""
        self.prepare()

    def describe(self) -> dict[str, Any]:
        """Return the settings that determine this reward's values."""
        checkpoint, revision = self.pretrained.checkpoint, self.pretrained.revision
        return {"checkpoint": checkpoint, "revision": revision, "num_frames": self.num_frames}

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
                The text that each video is compared with.
            completions (sequence of `N` videos):
                `uint8` arrays of shape `(frames, height, width, 3)`.
            log_extra (callable, *optional*):
                Not used.

        Returns:
            `list[float]`: one reward per video.
        """
        check_completions(completions)
        return [self._similarity(prompt, video) for prompt, video in zip(prompts, completions, strict=True)]

    def _similarity(self, prompt: str, video: Video) -> float:
        import torch

        model, processor = self.pretrained.load()
        tokens = processor.tokenizer([prompt], truncation=True, return_tensors="pt").to(self.pretrained.device)
        with torch.inference_mode(), self.pretrained.autocast():
            text = _unit(model.get_text_features(**tokens).pooler_output)
            images = [
                _unit(model.get_image_features(**squeezed(processor, frames, model)).pooler_output)
                for frames in in_batches(evenly_spaced(video, self.num_frames), self.batch_size)
            ]
        return float((torch.cat(images) @ text[0]).mean())


def squeezed(processor: Any, frames: list, model: Any) -> Any:
    """Return the inputs of CLIP's vision tower for whole frames; by default the processor would crop them."""
    side = model.config.vision_config.image_size
    size = {"height": side, "width": side}
    inputs = processor.image_processor(images=frames, size=size, do_center_crop=False, return_tensors="pt")
    return inputs.to(model.device)


def _unit(features: "torch.Tensor") -> "torch.Tensor":
    features = features.float()
    return features / features.norm(dim=-1, keepdim=True)
