"""Real recordings with known cameras: one class, whatever layout they come in (see `scenes/recording_formats.py`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from spatialalign_trl.video import Video

_SAME_FOCAL = 0.02
"""Focal lengths and principal points of one recording may differ by this share: autofocus breathes, zooming does not
pass."""


@dataclass(frozen=True, eq=False)
class PosedVideo:
    """A recording of a scene. Frames are read when they are asked for.

    Attributes:
        name (`str`): What to call it in errors and ids.
        poses (`np.ndarray` of shape `(n, 4, 4)`): Camera to world, OpenCV's axes, in any unit of length.
        intrinsics (`np.ndarray` of shape `(3, 3)`): Without distortion, in pixels of `size` whose middles are at whole
            numbers.
        size (tuple of 2 `int`): Height and width of the recorded frames.
        indices (`np.ndarray` of shape `(n,)`): Frame numbers in the recording, increasing.
        read: Positions among the n frames -> the frames, each `uint8` `(height, width, 3)`.
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
            raise ValueError(f"{self.name}: some poses mirror; their axes are not those of the layout.")
        if not np.isfinite(self.intrinsics).all() or self.intrinsics[0, 0] <= 0 or self.intrinsics[1, 1] <= 0:
            raise ValueError(f"{self.name}: intrinsics {self.intrinsics.tolist()} are those of no camera.")
        if len(self.indices) != number or (np.diff(self.indices) <= 0).any():
            raise ValueError(f"{self.name}: {len(self.indices)} frame numbers for {number} poses; they must increase.")

    def __len__(self) -> int:
        return len(self.poses)

    def frames(self, positions: Sequence[int] | np.ndarray, size: tuple[int, int] | None = None) -> Video:
        """Some of the frames.

        Args:
            positions (sequence of `int`): Which of the n frames.
            size (tuple of 2 `int`, *optional*): Height and width: frames are scaled to cover it, and their middle is
                cut out. As recorded without.

        Raises:
            ValueError: when a frame is not as large as the others.
        """
        found = self.read([int(position) for position in positions])
        for position, frame in zip(positions, found, strict=True):
            if frame.shape != (*self.size, 3):
                raise ValueError(
                    f"{self.name}: frame {self.indices[position]} is {frame.shape[1]}x{frame.shape[0]}, but its "
                    f"camera is for {self.size[1]}x{self.size[0]}; take frames of the size that was calibrated."
                )
        return np.stack([fit_frame(frame, size) for frame in found] if size else found)

    def camera(self, size: tuple[int, int] | None = None) -> np.ndarray:
        """The 3x3 intrinsics of frames of that size."""
        return fit_intrinsics(self.intrinsics, self.size, size) if size else self.intrinsics.copy()


def fit_frame(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A frame scaled to cover a size, with its middle cut out."""
    from PIL import Image

    scale, (top, left) = _cover(frame.shape[:2], size)
    height, width = (round(side * scale) for side in frame.shape[:2])
    scaled = np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS))
    return scaled[top : top + size[0], left : left + size[1]]


def fit_intrinsics(intrinsics: np.ndarray, size: tuple[int, int], wanted: tuple[int, int]) -> np.ndarray:
    """The camera of frames that went through `fit_frame`."""
    scale, (top, left) = _cover(size, wanted)
    fitted = intrinsics.copy()
    for axis, side, offset in ((0, size[1], left), (1, size[0], top)):
        exact = round(side * scale) / side  # what rounding to whole pixels made of the scale
        fitted[axis, axis] *= exact
        fitted[axis, 2] = (fitted[axis, 2] + 0.5) * exact - 0.5 - offset
    return fitted


def _cover(size: tuple[int, int], wanted: tuple[int, int]) -> tuple[float, tuple[int, int]]:
    scale = max(wanted[0] / size[0], wanted[1] / size[1])
    return scale, tuple((round(side * scale) - goal) // 2 for side, goal in zip(size, wanted, strict=True))


def one_camera(name: str, matrices: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The camera of a recording from those of its frames: their median, if they agree.

    Raises:
        ValueError: when they do not.
    """
    middle = np.median(matrices, axis=0)
    off = np.abs(matrices - middle)[:, [0, 1, 0, 1], [0, 1, 2, 2]] / np.array([size[1], size[0], size[1], size[0]])
    worst = int(off.max(axis=1).argmax())
    if off[worst].max() > _SAME_FOCAL:
        raise ValueError(
            f"{name}: the camera of frame {worst} differs from the others' by {off[worst].max():.0%} of the picture's "
            "side; a recording that zooms has to be cut into parts."
        )
    return middle
