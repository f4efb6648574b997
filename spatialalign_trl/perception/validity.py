"""When boxes on single frames are enough to score a clip: the SpatialAlign authors' rules, and stricter ones.

The authors' rules (`assess`) look at the detector's boxes, before anything is followed:

    a frame is VALID      with exactly two boxes, one labelled exactly as the animal, one exactly as the object
                  MISSED     with fewer than two boxes
                  REDUNDANT  otherwise: more boxes, or two with other labels
    the clip is INVALID   when more than 16 frames are redundant, fewer than 20 are valid, or no 4 consecutive ones are
                          valid; else the first frame of the FIRST such run is where the follower is prompted

Source: the authors' released code for arXiv 2602.22745. It counts 81 frames whatever the clip's length; here every
clip is read to its end. The strict rules (`strict_reason`) are ours: they look at the followed boxes and refuse clips
that the score, which reads only a curve's ends, would reward for the wrong reason. They are off unless asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from enum import IntEnum

import numpy as np

from spatialalign_trl.perception.detections import Detections
from spatialalign_trl.video import Video

PAPER_NUM_FRAMES = 81
MAX_BRIDGED_FRAMES = 4
"""A thing that was out of sight for longer may not have got further than steady motion takes it in so many frames."""
BLOCKS_ALONG_SHORTER_SIDE = 30
"""Frames are compared block by block: coarse enough to average compression noise away, fine enough for an animal."""


class FrameState(IntEnum):
    """What the detector's boxes on one frame amount to."""

    MISSED = 0
    VALID = 1
    REDUNDANT = 2


@dataclass(frozen=True)
class StrictRules:
    """What a clip must show beyond the authors' rules. All of it is ours, none of it the paper's.

    Args:
        end_share (`float`, *optional*, defaults to `0.1`):
            Share of the clip, in (0, 0.5], that counts as its beginning and as its end.
        end_frames (`int`, *optional*, defaults to `3`):
            Frames with both things that the beginning and the end must hold each (all frames, where an end has fewer).
            The score averages three at either end, which otherwise may lie far inside the clip.
        min_change (`float`, *optional*, defaults to `2.0`):
            In grey levels, 0 to 255: two frames are distinct when the mean of some small block of pixels differs by
            more. Compression noise stays below, a moving thing does not.
        min_motion (`float`, *optional*, defaults to `0.5`):
            How far the animal must get, seen from the object, in sizes of the animal (mean of width and height).
        min_frame_motion (`float`, *optional*, defaults to `0.02`):
            The same as a share of the frame's diagonal, so that a small box's jitter is no motion. Both must be met.
        max_step (`float`, *optional*, defaults to `0.5`):
            From one frame to the next, in sizes of the thing that moves; a longer step must be like those around it.
        max_step_ratio (`float`, *optional*, defaults to `4.0`):
            A step longer than `max_step` may be this many times the median of the four steps around it.

    Raises:
        ValueError: for a value outside its range.
    """

    end_share: float = 0.1
    end_frames: int = 3
    min_change: float = 2.0
    min_motion: float = 0.5
    min_frame_motion: float = 0.02
    max_step: float = 0.5
    max_step_ratio: float = 4.0

    def __post_init__(self) -> None:
        if not 0 < self.end_share <= 0.5:
            raise ValueError(f"end_share is {self.end_share}; it must be above 0 and at most 0.5.")
        for field in fields(self)[1:]:
            value = getattr(self, field.name)
            if not value >= 0:
                raise ValueError(f"{field.name} is {value}; it must be 0 or more.")


@dataclass(frozen=True)
class ValidityRules:
    """Which clips are scored. The defaults are the authors'.

    Args:
        max_redundant (`int`, *optional*, defaults to `16`):
            More redundant frames make the clip INVALID.
        min_valid (`int`, *optional*, defaults to `20`):
            Fewer valid frames make the clip INVALID.
        min_run (`int`, *optional*, defaults to `4`):
            Consecutive valid frames that must occur somewhere; the first such run gives the prompt frame.
        scale_to_length (`bool`, *optional*, defaults to `False`):
            `False`: the numbers above hold whatever the clip's length, as in the authors' code. `True`: the first two
            are of 81 frames and are scaled to the clip's length, to the stricter side (16 rounded down, 20 rounded up,
            as [`spatialalign_rewards.dsr_score.required_frames`] does).
        strict ([`StrictRules`], *optional*):
            Further demands on the followed boxes; `None` for parity with the authors.

    Raises:
        ValueError: for a threshold out of its range.
    """

    max_redundant: int = 16
    min_valid: int = 20
    min_run: int = 4
    scale_to_length: bool = False
    strict: StrictRules | None = None

    def __post_init__(self) -> None:
        for name, lowest in (("max_redundant", 0), ("min_valid", 0), ("min_run", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
                raise ValueError(f"{name} is {value!r}; it must be a whole number, {lowest} or more.")

    def for_length(self, num_frames: int) -> ValidityRules:
        """The same rules with the thresholds that hold for a clip of `num_frames` frames."""
        if not self.scale_to_length:
            return self
        return replace(
            self,
            max_redundant=self.max_redundant * num_frames // PAPER_NUM_FRAMES,
            min_valid=-(-self.min_valid * num_frames // PAPER_NUM_FRAMES),
            scale_to_length=False,
        )


@dataclass(frozen=True, eq=False)
class Validity:
    """What the rules say of one clip.

    Args:
        states (`np.ndarray` of shape `(T,)`, `int8`):
            A [`FrameState`] per frame.
        valid, missed, redundant (`int`):
            How many frames are in each state; together `T`.
        prompt_frame (`int`, *optional*):
            First frame of the first run that is long enough, also in an INVALID clip; `None` without such a run.
        reason (`str`, *optional*):
            Why the clip is INVALID; `None` when it is not, and then there is a prompt frame.
    """

    states: np.ndarray
    valid: int
    missed: int
    redundant: int
    prompt_frame: int | None
    reason: str | None


def classify_frames(detections: Sequence[Detections], animal: str, object: str) -> np.ndarray:
    """
    The state of every frame.

    Args:
        detections (`Sequence[Detections]` of length `T`):
            One a frame, in the order of time.
        animal, object (`str`):
            The two words as they stand in the labels; compared letter by letter.

    Returns:
        `np.ndarray` of shape `(T,)`, `int8`: [`FrameState`] values.

    Raises:
        ValueError: when animal and object are the same word, whose boxes cannot be told apart.
    """
    if animal == object:
        raise ValueError(f"animal and object are both {animal!r}: their boxes cannot be told apart. Use two nouns.")
    wanted = sorted((animal, object))
    states = np.empty(len(detections), np.int8)
    for frame, (_, _, labels) in enumerate(detections):
        if len(labels) < 2:
            states[frame] = FrameState.MISSED
        else:
            exact = len(labels) == 2 and sorted(labels) == wanted
            states[frame] = FrameState.VALID if exact else FrameState.REDUNDANT
    return states


def assess(detections: Sequence[Detections], animal: str, object: str, rules: ValidityRules | None = None) -> Validity:
    """
    Applies the authors' rules to the boxes of one clip.

    Args:
        detections, animal, object:
            As in [`classify_frames`].
        rules ([`ValidityRules`], *optional*):
            Thresholds; the authors' when not given. `rules.strict` is not read here: see [`strict_reason`].

    Raises:
        ValueError: when animal and object are the same word.
    """
    states = classify_frames(detections, animal, object)
    missed, valid, redundant = np.bincount(states, minlength=3).tolist()
    rules = (rules or ValidityRules()).for_length(len(states))
    prompt_frame = _first_run(states == FrameState.VALID, rules.min_run)

    of_all, reasons = f"of {len(states)} frames", []
    if valid < rules.min_valid:
        missing = _what_was_missing(detections, animal, object)
        short = ""
        if rules.min_valid > len(states):
            short = ", more than the clip has (scale_to_length=True scales the thresholds)"
        reasons.append(
            f"the {animal} and the {object} were found together in {valid} {of_all}{missing}; "
            f"at least {rules.min_valid} are needed{short}"
        )
    elif prompt_frame is None:
        reasons.append(
            f"the {animal} and the {object} were found together in {valid} {of_all}, but nowhere in "
            f"{rules.min_run} consecutive ones"
        )
    if redundant > rules.max_redundant:
        reasons.append(
            f"{redundant} {of_all} show more than one {animal} and one {object}, or other labels; "
            f"at most {rules.max_redundant} may"
        )
    return Validity(states, valid, missed, redundant, prompt_frame, " - and ".join(reasons) or None)


def strict_reason(
    video: Video,
    boxes: np.ndarray,
    rules: ValidityRules,
    *,
    animal: str = "animal",
    object: str = "object",
) -> str | None:
    """
    Why the strict rules refuse a clip, the first reason of four: the ends, distinct frames, the motion floor, smooth
    motion.

    Args:
        video (`np.ndarray` of shape `(T, height, width, 3)`, `uint8`):
            The clip.
        boxes (`np.ndarray` of shape `(T, 2, 4)`):
            The followed boxes of animal and object, `x1, y1, x2, y2` in pixels; empty (zero wide) or NaN where lost.
        rules ([`ValidityRules`]):
            `rules.strict` says what is asked, `min_valid` how many distinct frames are needed.
        animal, object (`str`, *optional*):
            What to call the two in the reason.

    Returns:
        `str | None`: the reason; `None` when the clip passes, or when `rules.strict` is `None`.

    Raises:
        ValueError: when the boxes are not `(T, 2, 4)`.
    """
    strict, boxes = rules.strict, np.asarray(boxes, np.float64)
    if strict is None:
        return None
    if boxes.shape != (len(video), 2, 4):
        raise ValueError(f"boxes have shape {boxes.shape}; a clip of {len(video)} frames needs ({len(video)}, 2, 4).")
    sizes = boxes[:, :, 2:] - boxes[:, :, :2]
    # As the score counts: an inclusive box one pixel wide is empty, a zero height beside a positive one is not.
    kept = (sizes[:, :, 0] > 0).all(axis=1) & (sizes[:, :, 1] > 0).any(axis=1) & np.isfinite(boxes).all(axis=(1, 2))
    frames = np.flatnonzero(kept)
    both = f"the {animal} and the {object}"
    return (
        _ends_reason(kept, strict, both)
        or _distinct_reason(video, frames, rules.for_length(len(video)).min_valid, strict.min_change, both)
        or _motion_reason(boxes[frames], np.hypot(*video.shape[1:3]), strict, animal, object)
        or _step_reason(boxes[frames, 0], frames, strict, animal)
        or _step_reason(boxes[frames, 1], frames, strict, object)
    )


def distinct_frames(video: Video, min_change: float = StrictRules.min_change) -> int:
    """
    How many different pictures a clip holds: frames that repeat an earlier one, however far back, do not count.

    Args:
        video (`np.ndarray` of shape `(T, height, width, 3)`, `uint8`):
            The clip; may be empty.
        min_change (`float`, *optional*):
            As in [`StrictRules`].
    """
    if not len(video):
        return 0
    side = max(1, min(video.shape[1:3]) // BLOCKS_ALONG_SHORTER_SIDE)
    rows, columns = (np.arange(0, length, side) for length in video.shape[1:3])
    seen: list[np.ndarray] = []
    for frame in video:
        sums = np.add.reduceat(np.add.reduceat(frame, rows, axis=0, dtype=np.float32), columns, axis=1)
        counts = np.add.reduceat(np.ones(frame.shape[0]), rows)[:, None] * np.add.reduceat(
            np.ones(frame.shape[1]), columns
        )
        blocks = sums / counts[:, :, None]
        if all(np.abs(blocks - other).max() > min_change for other in reversed(seen)):
            seen.append(blocks)
    return len(seen)


def _first_run(hits: np.ndarray, length: int) -> int | None:
    """Where the first run of at least `length` true values begins."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], hits, [False]]).astype(np.int8)))
    starts, ends = edges[::2], edges[1::2]
    long = starts[ends - starts >= length]
    return int(long[0]) if len(long) else None


def _what_was_missing(detections: Sequence[Detections], animal: str, object: str) -> str:
    """` (no bench in 70, no cat in 4)`: the word that was missing more often first; empty when neither was."""
    absent = [(sum(word not in found.labels for found in detections), word) for word in (animal, object)]
    told = [f"no {word} in {count}" for count, word in sorted(absent, key=lambda one: -one[0]) if count]
    return f" ({', '.join(told)})" if told else ""


def _ends_reason(kept: np.ndarray, strict: StrictRules, both: str) -> str | None:
    length = int(np.ceil(strict.end_share * len(kept) - 1e-9))
    needed = min(strict.end_frames, length)
    for place, stretch in (("first", kept[:length]), ("last", kept[-length:])):
        if stretch.sum() < needed:
            return (
                f"{both} are seen together in {stretch.sum()} of the {place} {length} frames of {len(kept)}; "
                f"strict rules need {needed}"
            )
    return None


def _distinct_reason(video: Video, frames: np.ndarray, min_valid: int, min_change: float, both: str) -> str | None:
    found = distinct_frames(video[frames], min_change)
    if found >= min_valid:
        return None
    return (
        f"only {found} of the {len(frames)} frames that show {both} differ from each other; "
        f"strict rules need {min_valid} distinct frames"
    )


def _motion_reason(boxes: np.ndarray, diagonal: float, strict: StrictRules, animal: str, object: str) -> str | None:
    """`boxes`: the kept frames'. Seen from the object, because a camera that pans moves nothing."""
    centers = (boxes[:, 1, :2] + boxes[:, 1, 2:]) / 2
    edges = _median_of_three(boxes[:, 0].reshape(-1, 2, 2) - centers[:, None])  # frame, (low, high), (x, y)
    # The mean over both edges: an animal that comes nearer (grows) moves too, a wagging tail moves one edge only.
    path = float(np.hypot(*np.ptp(edges, axis=0).mean(axis=0))) if len(edges) else 0.0
    size = float(np.median(_size(boxes[:, 0]))) if len(boxes) else 0.0
    needed = max(strict.min_motion * size, strict.min_frame_motion * diagonal)
    if path >= needed:
        return None
    return (
        f"the {animal} moves only {path:.1f} pixels as seen from the {object}; strict rules need {needed:.1f} "
        f"({strict.min_motion:g} of its size and {strict.min_frame_motion:g} of the frame's diagonal)"
    )


def _step_reason(boxes: np.ndarray, frames: np.ndarray, strict: StrictRules, name: str) -> str | None:
    """`boxes (n, 4)`: one thing's on the kept `frames`. A step is long only beside the steps around it."""
    if len(boxes) < 2:
        return None
    centers, sizes = (boxes[:, :2] + boxes[:, 2:]) / 2, _size(boxes)
    gaps = np.minimum(np.diff(frames), MAX_BRIDGED_FRAMES)
    # The larger size: a thing that is half hidden for a moment has a small box and a centre that seems to move.
    steps = np.hypot(*np.diff(centers, axis=0).T) / gaps / np.maximum(sizes[1:], sizes[:-1])
    for k in np.flatnonzero(steps > strict.max_step):
        around = np.concatenate([steps[max(0, k - 2) : k], steps[k + 1 : k + 3]])
        usual = float(np.median(around)) if len(around) else 0.0
        if steps[k] > strict.max_step_ratio * usual:
            return (
                f"the {name} leaps {steps[k]:.2f} times its own size a frame between frames {frames[k]} and "
                f"{frames[k + 1]}, where it otherwise moves {usual:.2f}; strict rules refuse more than "
                f"{strict.max_step:g} unless the motion around is as fast"
            )
    return None


def _size(boxes: np.ndarray) -> np.ndarray:
    """Mean of width and height; unlike the root of the area it is above 0 for a flat box."""
    return (boxes[..., 2:] - boxes[..., :2]).mean(axis=-1)


def _median_of_three(values: np.ndarray) -> np.ndarray:
    """Each entry's median with its two neighbours in time, so that one wrong frame is no motion."""
    if len(values) < 3:
        return values
    return np.median(np.stack([values[:-2], values[1:-1], values[2:]]), axis=0)
