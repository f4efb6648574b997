"""Define a real recording with known cameras. `scenes/recording_formats.py` reads one from various file layouts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from spatialalign_trl.video import Video

_MAX_INTRINSICS_CHANGE = 0.02
"""Largest difference of focal lengths and principal points within a recording, as a share of the frame's side. It
accepts the small changes of autofocus and rejects zooming."""


@dataclass(frozen=True, eq=False)
class PosedVideo:
    """A recording of a scene with known cameras. Frames are read lazily.

    Attributes:
        name (`str`): The name, for errors and ids.
        poses (`np.ndarray` of shape `(n, 4, 4)`): Camera-to-world matrices in OpenCV's axes, in any unit of length.
        intrinsics (`np.ndarray` of shape `(3, 3)`): The intrinsics, without distortion, in pixels of `size` with their
            centres at whole numbers.
        size (tuple of 2 `int`): Height and width of the recorded frames.
        indices (`np.ndarray` of shape `(n,)`): Frame numbers in the recording, increasing.
        read (`Callable[[Sequence[int]], list[np.ndarray]]`): Function from positions among the n frames to the frames,
            each `uint8` of shape `(height, width, 3)`.
    """

    name: str
    poses: np.ndarray
    intrinsics: np.ndarray
    size: tuple[int, int]
    indices: np.ndarray
    read: Callable[[Sequence[int]], list[np.ndarray]]

    def __post_init__(self) -> None:
        number = len(self.poses)
        if self.poses.shape != (number, 4, 4) or not number:
            raise ValueError(f"{self.name}: poses have shape {self.poses.shape}; expected (frames, 4, 4), not empty.")
        rotation = self.poses[:, :3, :3]
        if not np.isfinite(self.poses).all() or not np.allclose(
            rotation @ rotation.transpose(0, 2, 1), np.eye(3), atol=1e-2
        ):
            raise ValueError(f"{self.name}: some poses are not finite rotations and translations.")
        if (np.linalg.det(rotation) < 0).any():
            raise ValueError(f"{self.name}: some poses mirror the scene. Their axes are not those of the layout.")
        if not np.isfinite(self.intrinsics).all() or self.intrinsics[0, 0] <= 0 or self.intrinsics[1, 1] <= 0:
            raise ValueError(f"{self.name}: intrinsics {self.intrinsics.tolist()} are not those of a camera.")
        if len(self.indices) != number or (np.diff(self.indices) <= 0).any():
            raise ValueError(
                f"{self.name}: {len(self.indices)} frame numbers for {number} poses. There must be one per pose, "
                "and they must increase."
            )

    def __len__(self) -> int:
        return len(self.poses)

    def frames(self, positions: Sequence[int] | np.ndarray, size: tuple[int, int] | None = None) -> Video:
        """Read some of the frames.

        Args:
            positions (sequence of `int`): Positions among the n frames.
            size (tuple of 2 `int`, *optional*): Height and width. Frames are scaled to cover it and cropped at the
                centre. By default they keep the recorded size.

        Returns:
            `np.ndarray` of shape `(len(positions), height, width, 3)`, `uint8`: the frames.

        Raises:
            ValueError: if a frame does not have the recording's size.
        """
        frames = self.read([int(position) for position in positions])
        for position, frame in zip(positions, frames, strict=True):
            if frame.shape != (*self.size, 3):
                raise ValueError(
                    f"{self.name}: frame {self.indices[position]} is {frame.shape[1]}x{frame.shape[0]}, but its "
                    f"camera is for {self.size[1]}x{self.size[0]}. Use frames of the calibrated size."
                )
        return np.stack([fit_frame(frame, size) for frame in frames] if size else frames)

    def camera(self, size: tuple[int, int] | None = None) -> np.ndarray:
        """Return the 3x3 intrinsics of frames of this size, by default of the recorded size."""
        return fit_intrinsics(self.intrinsics, self.size, size) if size else self.intrinsics.copy()


def fit_frame(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scale a frame to cover a size (height, width), and crop it at the centre."""
    from PIL import Image

    scale, (top, left) = _scale_and_offset(frame.shape[:2], size)
    height, width = (round(side * scale) for side in frame.shape[:2])
    scaled = np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS))
    return scaled[top : top + size[0], left : left + size[1]]


def fit_intrinsics(intrinsics: np.ndarray, size: tuple[int, int], wanted: tuple[int, int]) -> np.ndarray:
    """Return the intrinsics of frames of `size` that were resized to `wanted` by [`fit_frame`]."""
    scale, (top, left) = _scale_and_offset(size, wanted)
    fitted = intrinsics.copy()
    for axis, side, offset in ((0, size[1], left), (1, size[0], top)):
        exact_scale = round(side * scale) / side  # the scaled side was rounded to whole pixels
        fitted[axis, axis] *= exact_scale
        fitted[axis, 2] = (fitted[axis, 2] + 0.5) * exact_scale - 0.5 - offset
    return fitted


def _scale_and_offset(size: tuple[int, int], wanted: tuple[int, int]) -> tuple[float, tuple[int, int]]:
    """Return the scale at which `size` covers `wanted`, and the top left corner of the crop."""
    scale = max(wanted[0] / size[0], wanted[1] / size[1])
    return scale, tuple((round(side * scale) - goal) // 2 for side, goal in zip(size, wanted, strict=True))


def shared_intrinsics(name: str, matrices: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the intrinsics of a recording: the median over its frames, if they agree.

    Args:
        name (`str`): The name of the recording, for the error.
        matrices (`np.ndarray` of shape `(n, 3, 3)`): The intrinsics of each frame.
        size (tuple of 2 `int`): Height and width of the frames.

    Raises:
        ValueError: if the frames differ too much.
    """
    median = np.median(matrices, axis=0)
    sides = np.array([size[1], size[0], size[1], size[0]])
    change = np.abs(matrices - median)[:, [0, 1, 0, 1], [0, 1, 2, 2]] / sides  # of fx, fy, cx, cy
    worst = int(change.max(axis=1).argmax())
    if change[worst].max() > _MAX_INTRINSICS_CHANGE:
        raise ValueError(
            f"{name}: the camera of frame {worst} differs from the others' by {change[worst].max():.0%} of the "
            "frame's side. Split a recording that zooms into parts."
        )
    return median
