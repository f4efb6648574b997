"""
Boxes over time, and the protocol every tracker follows.

A tracker looks at pixels alone and says where the two named things are on each frame. Rewards read its `Tracks` and
never ask how they were found, so the tiny world's colour segmentation and a real open-vocabulary tracker are
interchangeable.
"""

import importlib
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from spatialalign_trl.errors import near_miss

if TYPE_CHECKING:
    from spatialalign_trl.video import Video


# Name -> "module:class". Imported on first use, so that naming a light tracker never loads a heavy one.
TRACKERS: dict[str, str] = {
    "color_segmentation": "spatialalign_trl.tiny_world.color_segmentation:ColorSegmentationTracker",
    "grounded_sam": "spatialalign_trl.perception.grounded_sam:GroundedSAMTracker",
    "sam3": "spatialalign_trl.perception.sam3:SAM3Tracker",
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
        nearness (`np.ndarray` of shape `(num_frames, 2)`, *optional*):
            How near the animal and the object are to the camera, larger = nearer, in [0, 1] of the clip's depth range;
            NaN where unknown. A tracker leaves it out: whoever asks for "in front of" or "behind" adds it, see
            `depth.py`.
        details (`dict`, *optional*):
            What the tracker has to tell about its work, in values that JSON can hold: `{"valid": 60, "missed": 15}`.
    """

    frames: list[FrameBoxes]
    num_frames: int
    reason: str | None = None
    nearness: np.ndarray | None = field(default=None, compare=False)
    details: dict[str, Any] = field(default_factory=dict)

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

    Two more methods are used where they are there: `check_prompts(*, animal, object, attribute=None)` refuses, before
    any work, words or surroundings (a missing checkpoint) it could not track with, and `release()` frees its models.
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


def get_tracker(tracker: str | Tracker, **options: Any) -> Tracker:
    """
    Give back a tracker, looking it up when it is named.

    Args:
        tracker (`str` or `Tracker`):
            A name in `TRACKERS`, or an object with a `track` method, which is returned as it is.
        options:
            Arguments of the named tracker's constructor.

    Raises:
        `ValueError`: when no tracker has that name.
        `TypeError`: when the named tracker has no such option, when options come with an object, or when the object
            has no `track` method or is a class instead of an instance.
    """
    if isinstance(tracker, str):
        return make_named(tracker, TRACKERS, kind="tracker", options=options)
    if isinstance(tracker, type):
        raise TypeError(f"A tracker must be an instance, got the class {tracker.__name__}: pass {tracker.__name__}().")
    if not callable(getattr(tracker, "track", None)):
        raise TypeError(
            f"A tracker needs a method track(videos, *, animal, object, attribute=None); {tracker!r} has none. "
            f"Pass such an object or one of the names {', '.join(sorted(TRACKERS))}."
        )
    if options:
        raise TypeError(
            f"The options {', '.join(options)} are for a tracker given by name; {tracker!r} is already made: "
            "set them where you make it."
        )
    return tracker


def make_named(name: str, known: dict[str, str], *, kind: str, options: dict[str, Any]) -> Any:
    """
    Import the class that `name` stands for and make an instance.

    Args:
        name (`str`):
            A key of `known`.
        known (`dict[str, str]`):
            Name -> `"module:class"`.
        kind (`str`):
            What it is, for messages: `"tracker"`.
        options (`dict`):
            Keyword arguments of the class.

    Raises:
        `ValueError`: for an unknown name.
        `TypeError`: for an option that the class does not take.
    """
    if name not in known:
        raise ValueError(f"There is no {kind} named {name!r}. {near_miss(name, known)}")
    module_name, class_name = known[name].split(":")
    found = getattr(importlib.import_module(module_name), class_name)
    parameters = inspect.signature(found).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for option in options:
        if option not in parameters and not takes_any:
            raise TypeError(f"The {kind} {name!r} has no option {option!r}. {near_miss(option, parameters)}")
    return found(**options)
