"""
Define the boxes of a clip over time and the protocol of a tracker, and look up trackers by name.

A tracker reads the pixels alone and returns the boxes of the two named objects on each frame. Rewards read only its
`Tracks`, so the tiny world's colour segmentation and a real open-vocabulary tracker are interchangeable.
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
    The boxes found on one frame.

    Args:
        frame_index (`int`):
            Position of the frame in the clip, from 0.
        labels (`tuple[str, ...]`):
            The `n` labels, in the order of `boxes`.
        boxes (`np.ndarray` of shape `(n, 4)`):
            Corners `x1, y1, x2, y2` in pixels, y pointing down.
    """

    frame_index: int
    labels: tuple[str, ...]
    boxes: np.ndarray


@dataclass
class Tracks:
    """
    The boxes of one clip. Iterating yields its frames.

    Args:
        frames (`list[FrameBoxes]`):
            The frames with at least one box, in any order.
        num_frames (`int`):
            Length of the clip, including the frames without boxes.
        reason (`str`, *optional*):
            Why the tracker rejects the whole video as INVALID; `None` when it does not.
        nearness (`np.ndarray` of shape `(num_frames, 2)`, *optional*):
            How near the animal and the object are to the camera, as a share of the clip's depth range in [0, 1],
            larger = nearer; NaN where unknown. Trackers leave it out: the reward adds it for the relations "in front
            of" and "behind", see [`~spatialalign_trl.perception.depth.add_nearness`].
        details (`dict`, *optional*):
            Statistics of the tracker, JSON-serialisable: `{"valid": 60, "missed": 15}`.
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
    those nouns. A tracker that needs the adjectives declares `required_columns = ("attribute",)`.

    Two more methods are optional: `check_prompts(*, animal, object, attribute=None)` raises, before anything is
    sampled, for words it cannot track and for a missing checkpoint; `release()` frees its models.
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
    Return a tracker, looking it up if it is given by name.

    Args:
        tracker (`str` or `Tracker`):
            A name in `TRACKERS`, or an object with a `track` method, which is returned unchanged.
        options:
            Options of the named tracker: the arguments of its constructor, or of its `from_options`.

    Raises:
        `ValueError`: when no tracker has that name.
        `TypeError`: when the named tracker has no such option, when options are passed with an object, or when the
            object has no `track` method or is a class instead of an instance.
    """
    method = "track(videos, *, animal, object, attribute=None)"
    return get_named(tracker, TRACKERS, kind="tracker", method=method, options=options)


def get_named(
    candidate: Any,
    known: dict[str, str],
    *,
    kind: str,
    method: str,
    options: dict[str, Any],
    accepted: str = "an object that has it",
) -> Any:
    """
    Return an object unchanged, or make the one that a name stands for.

    Args:
        candidate:
            A name in `known`, or an object that has the method.
        known (`dict[str, str]`):
            Name -> `"module:class"`.
        kind (`str`):
            What the object is, for error messages: `"tracker"`.
        method (`str`):
            Signature of the method that the object must have: `"nearness(video)"`.
        options (`dict`):
            Options of the named class.
        accepted (`str`, *optional*, defaults to `"an object that has it"`):
            What can be passed instead of a name, for error messages.

    Raises:
        `ValueError`: for an unknown name.
        `TypeError`: for an option that the class does not take, options passed with an object, a class instead of an
            instance, or an object without the method.
    """
    if isinstance(candidate, str):
        return make_named(candidate, known, kind=kind, options=options)
    if isinstance(candidate, type):
        raise TypeError(
            f"A {kind} must be an instance, got the class {candidate.__name__}: pass {candidate.__name__}()."
        )
    if not callable(getattr(candidate, method.partition("(")[0], None)):
        raise TypeError(
            f"A {kind} needs a method {method}; {candidate!r} has none. Pass {accepted} or one of the names "
            f"{', '.join(sorted(known))}."
        )
    if options:
        raise TypeError(
            f"The options {', '.join(options)} are for a {kind} given by name, but {candidate!r} is an object. "
            "Set them where you make it."
        )
    return candidate


def make_named(name: str, known: dict[str, str], *, kind: str, options: dict[str, Any]) -> Any:
    """
    Import the class that a name stands for and make an instance of it.

    A class whose constructor groups its arguments accepts them flat, as a YAML file has them, in a classmethod
    `from_options(**options)`, and lists their names in `option_names`.

    Args:
        name (`str`):
            A key of `known`.
        known (`dict[str, str]`):
            Name -> `"module:class"`.
        kind (`str`):
            What the class makes, for error messages: `"tracker"`.
        options (`dict`):
            Keyword arguments of the constructor or of `from_options`.

    Raises:
        `ValueError`: for an unknown name.
        `TypeError`: for an option that the class does not take.
    """
    if name not in known:
        raise ValueError(f"There is no {kind} named {name!r}. {near_miss(name, known)}")
    module_name, class_name = known[name].split(":")
    named_class = getattr(importlib.import_module(module_name), class_name)

    # Check the options here, so that a misspelt one gets the nearest known name.
    if hasattr(named_class, "from_options"):
        make, option_names, takes_any = named_class.from_options, named_class.option_names, False
    else:
        make, option_names = named_class, inspect.signature(named_class).parameters
        takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in option_names.values())
    for option in options:
        if option not in option_names and not takes_any:
            raise TypeError(f"The {kind} {name!r} has no option {option!r}. {near_miss(option, option_names)}")
    return make(**options)
