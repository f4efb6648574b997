"""Check the sizes of videos, with errors that name the nearest legal size, and compute the sizes of latents."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline


class Rule(NamedTuple):
    """
    A value and the rule that it must follow.

    Legal values are those of `offset`, `offset + stride`, `offset + 2 * stride`, ... that are at least 1.

    Args:
        value (`int`):
            The requested value.
        stride (`int`):
            Distance between two legal values.
        offset (`int`, *optional*, defaults to 0):
            0 for multiples of `stride`, 1 for "a multiple plus 1".
    """

    value: int
    stride: int
    offset: int = 0


def check_strides(model: str, **rules: Rule) -> None:
    """
    Check sizes against strides.

    Args:
        model (`str`):
            The model's name in errors.
        rules ([`Rule`]):
            The values to check, by the name of the setting: `num_frames=Rule(48, 8, 1)`.

    Raises:
        ValueError: if a value is not legal; the message names the setting, the rule and the nearest legal values.
    """
    for name, (value, stride, offset) in rules.items():
        if value >= 1 and value % stride == offset % stride:
            continue
        below = (value - offset) // stride * stride + offset
        nearest = [str(legal) for legal in (below, below + stride) if legal >= 1] or [str(offset or stride)]
        rule = f"a multiple of {stride}" + (f" plus {offset}" if offset else "")
        raise ValueError(f"{name}={value}: must be {rule} for {model}. Use {' or '.join(nearest)}.")


class SizesMixin:
    """The sizes of videos and of their latents. A family defines what its sizes must be multiples of."""

    pipeline: DiffusionPipeline
    name_or_path: str

    @abstractmethod
    def _size_multiples(self) -> tuple[int, int, int]:
        """Return what `num_frames - 1`, height and width must be multiples of."""

    def _vae_strides(self) -> tuple[int, int]:
        """Return the VAE's strides in time and in space."""
        return self.pipeline.vae_scale_factor_temporal, self.pipeline.vae_scale_factor_spatial

    def _latent_channels(self) -> int:
        return self.base_transformer.config.in_channels

    def check_size(self, num_frames: int, height: int, width: int) -> None:
        """
        Check that the model can generate videos of a size.

        Args:
            num_frames (`int`):
                Number of frames.
            height, width (`int`):
                Size in pixels.

        Raises:
            ValueError: if it cannot; the message names the nearest legal values.
        """
        frames, rows, columns = self._size_multiples()
        check_strides(
            self.name_or_path or "this model",
            num_frames=Rule(num_frames, frames, 1),
            height=Rule(height, rows),
            width=Rule(width, columns),
        )

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Return the shape (channels, frames, height, width) of the latents of one video of this size in pixels."""
        time, space = self._vae_strides()
        return self._latent_channels(), (num_frames - 1) // time + 1, height // space, width // space

    def _pixel_shape(self, latents: torch.Tensor) -> tuple[int, int, int]:
        """Return the size (frames, height, width) in pixels of the videos that the latents decode to."""
        time, space = self._vae_strides()
        frames, rows, columns = latents.shape[2:]
        return (frames - 1) * time + 1, rows * space, columns * space
