"""Define the boxes of a single frame, and the protocols of the two parts of a tracker: a detector and a follower."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

import numpy as np

if TYPE_CHECKING:
    from spatialalign_trl.video import Video


class Detections(NamedTuple):
    """
    The boxes that a detector found on one frame.

    Args:
        boxes (`np.ndarray` of shape `(n, 4)`):
            Corners `x1, y1, x2, y2` in pixels, y pointing down; float64.
        scores (`np.ndarray` of shape `(n,)`):
            Confidence in [0, 1]; float64.
        labels (`tuple[str, ...]`):
            The `n` labels in the detector's wording, in the order of `boxes`.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: tuple[str, ...]


@runtime_checkable
class Detector(Protocol):
    """
    Detects named objects on single frames.

    `detect` takes a clip (`uint8`, `(frames, height, width, 3)`) and the names to look for, and returns one
    [`Detections`] per frame. `fingerprint()` returns a string that changes whenever the same clip could give other
    boxes (weights, thresholds, label matching); it must not load the weights. `release()` frees the model's memory.
    """

    def detect(self, video: Video, names: Sequence[str]) -> list[Detections]: ...

    def fingerprint(self) -> str: ...

    def release(self) -> None: ...


@runtime_checkable
class BoxFollower(Protocol):
    """
    Follows boxes given on one frame through the whole clip, in both directions.

    `follow` takes a clip, the boxes `(n, 4)` and the index of their frame, and returns `(frames, n, 4)`: the boxes
    around the masks on every frame, `0, 0, 0, 0` where a mask is empty. Corners are inclusive pixels (a mask one pixel
    wide has `x2 - x1 = 0`), as in the SpatialAlign authors' code. For `fingerprint` and `release` see [`Detector`].
    """

    def follow(self, video: Video, boxes: np.ndarray, frame: int) -> np.ndarray: ...

    def fingerprint(self) -> str: ...

    def release(self) -> None: ...
