"""
Boxes over time, and the protocol every tracker follows.

A tracker looks at pixels alone and says where the two named things are on each frame. Rewards read its `Tracks` and
never ask how they were found, so the tiny world's colour segmentation and a real open-vocabulary tracker are
interchangeable.
"""

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

import numpy as np

from ..near_miss import near_miss

if TYPE_CHECKING:
    from ..video import Video


# Name -> "module:class". Imported on first use, so that naming a light tracker never loads a heavy one.
TRACKERS: dict[str, str] = {
    "color_segmentation": "spatialalign_trl.perception.color_segmentation:ColorSegmentationTracker",
}


class FrameBoxes(NamedTuple):
    """
    What was found on one frame.

    Args:
        frame_index (`int`):
            Position of the frame in the clip, from 0.
        labels (`tuple[str, ...]`):
            The `n` names of what was found, in the order of `boxes`.
        boxes (`np.ndarray` of shape `(n, 4)`):
            Corners `x1, y1, x2, y2` in pixels, y pointing down.
    """

    frame_index: int
    labels: tuple[str, ...]
    boxes: np.ndarray


@dataclass
class Tracks:
    """
    Boxes over one clip. Iterating yields its frames.

    Args:
        frames (`list[FrameBoxes]`):
            The frames on which something was found, in any order.
        num_frames (`int`):
            Length of the clip, counting the frames on which nothing was found.
        reason (`str`, *optional*):
            Why the tracker calls the whole video invalid; `None` when it does not.
    """

    frames: list[FrameBoxes]
    num_frames: int
    reason: str | None = None

    def __iter__(self) -> Iterator[FrameBoxes]:
        return iter(self.frames)

    def __len__(self) -> int:
        return len(self.frames)


@runtime_checkable
class Tracker(Protocol):
    """
    Finds one animal and one object on every frame of each video.

    `track` takes `N` videos (`uint8`, `(frames, height, width, 3)`), the `N` nouns of animal and object, and
    optionally `N` adjectives of the animal (`""` for none), and returns one [`Tracks`] per video whose labels are
    those nouns. A tracker that cannot do without the adjectives says so in `required_columns = ("attribute",)`.
    """

    name: str

    def track(
        self,
        videos: "Sequence[Video]",
        *,
        animal: Sequence[str],
        object: Sequence[str],
        attribute: Sequence[str] | None = None,
    ) -> list[Tracks]: ...


def get_tracker(tracker: str | Tracker) -> Tracker:
    """
    Give back a tracker, looking it up when it is named.

    Args:
        tracker (`str` or `Tracker`):
            A name in `TRACKERS`, or an object with a `track` method, which is returned as it is.

    Raises:
        `ValueError`: when no tracker has that name.
        `TypeError`: when the object has no `track` method, or is a class instead of an instance.
    """
    if isinstance(tracker, str):
        if tracker not in TRACKERS:
            raise ValueError(f"There is no tracker named {tracker!r}. {near_miss(tracker, TRACKERS)}")
        module_name, class_name = TRACKERS[tracker].split(":")
        return getattr(importlib.import_module(module_name), class_name)()
    if isinstance(tracker, type):
        raise TypeError(f"A tracker must be an instance, got the class {tracker.__name__}: pass {tracker.__name__}().")
    if not callable(getattr(tracker, "track", None)):
        raise TypeError(
            f"A tracker needs a method track(videos, *, animal, object, attribute=None); {tracker!r} has none. "
            f"Pass such an object or one of the names {', '.join(sorted(TRACKERS))}."
        )
    return tracker
