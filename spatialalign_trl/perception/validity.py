"""Decide whether a clip can be scored: the SpatialAlign authors' rules, and stricter ones of our own.

The authors' rules (`assess`) look at the detector's boxes, before anything is followed:

    a frame is   VALID      if it has exactly two boxes, one labelled exactly as the animal, one exactly as the object
                 MISSED     if it has fewer than two boxes
                 REDUNDANT  otherwise: more boxes, or two with other labels
    the clip is  INVALID    if more than 16 frames are redundant, fewer than 20 are valid, or no 4 consecutive frames
                            are valid. Otherwise the first frame of the FIRST such run prompts the follower.

Source: the authors' released code for arXiv 2602.22745. It counts 81 frames whatever the clip's length; here every
clip is read to its end. The strict rules (`strict_reason`) are our addition. They look at the followed boxes and
reject clips that would get a high score for the wrong reason, because the score reads only the ends of a curve. They
are off by default.
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
"""Largest gap in frames by which a step is divided: an object out of sight for longer may not have moved farther."""
BLOCKS_ALONG_SHORTER_SIDE = 30
"""Size of the blocks that are compared: large enough to average out compression noise, small enough for an animal."""


class FrameState(IntEnum):
    """The state of one frame, by its detections."""

    MISSED = 0
    VALID = 1
    REDUNDANT = 2


@dataclass(frozen=True)
class StrictRules:
    """
    Requirements beyond the authors' rules. None of them is from the paper.

    Args:
        end_share (`float`, *optional*, defaults to `0.1`):
            Share of the clip, in (0, 0.5], that counts as its beginning and as its end.
        end_frames (`int`, *optional*, defaults to `3`):
            Number of frames at the beginning, and at the end, that must show both objects (all frames, if an end has
            fewer). The score averages three frames at either end, which otherwise may lie far inside the clip.
        min_change (`float`, *optional*, defaults to `2.0`):
            In grey levels, 0 to 255: two frames are distinct if the mean of some small block of pixels differs by
            more. Compression noise stays below this, motion does not.
        min_motion (`float`, *optional*, defaults to `0.5`):
            Distance that the animal must move relative to the object, in sizes of the animal (mean of width and
            height).
        min_frame_motion (`float`, *optional*, defaults to `0.02`):
            The same as a share of the frame's diagonal, so that the jitter of a small box does not count as motion.
            Both minima apply.
        max_step (`float`, *optional*, defaults to `0.5`):
            Longest step from one frame to the next, in sizes of the moving object. A longer step must be similar to
            the steps around it.
        max_step_ratio (`float`, *optional*, defaults to `4.0`):
            Largest ratio of a step longer than `max_step` to the median of the four steps around it.

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
    """
    Thresholds that decide which clips are scored. The defaults are the authors'.

    Args:
        max_redundant (`int`, *optional*, defaults to `16`):
            Largest number of redundant frames in a valid clip.
        min_valid (`int`, *optional*, defaults to `20`):
            Smallest number of valid frames in a valid clip.
        min_run (`int`, *optional*, defaults to `4`):
            Number of consecutive valid frames that must occur somewhere. The first such run gives the prompt frame.
        scale_to_length (`bool`, *optional*, defaults to `False`):
            `False`: the thresholds apply to clips of any length, as in the authors' code. `True`: the first two are
            for 81 frames and are scaled to the clip's length, rounded to the stricter side (`max_redundant` down,
            `min_valid` up, as in [`spatialalign_rewards.dsr_score.required_frames`]).
        strict ([`StrictRules`], *optional*):
            Further requirements on the followed boxes; `None` for parity with the authors.

    Raises:
        ValueError: for a threshold outside its range.
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
        """Return the rules with the thresholds for a clip of `num_frames` frames."""
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
    """
    The result of the authors' rules for one clip.

    Args:
        states (`np.ndarray` of shape `(T,)`, `int8`):
            A [`FrameState`] per frame.
        valid, missed, redundant (`int`):
            Number of frames in each state; their sum is `T`.
        prompt_frame (`int`, *optional*):
            First frame of the first run that is long enough, also in an INVALID clip; `None` without such a run.
        reason (`str`, *optional*):
            Why the clip is INVALID; `None` if it is valid, and then there is a prompt frame.
    """

    states: np.ndarray
    valid: int
    missed: int
    redundant: int
    prompt_frame: int | None
    reason: str | None


def classify_frames(detections: Sequence[Detections], animal: str, object: str) -> np.ndarray:
    """
    Classify every frame as valid, missed or redundant.

    Args:
        detections (`Sequence[Detections]` of length `T`):
            The detections of each frame, in order.
        animal, object (`str`):
            Their labels, which must match exactly.

    Returns:
        `np.ndarray` of shape `(T,)`, `int8`: [`FrameState`] values.

    Raises:
        ValueError: when animal and object are the same word, because their boxes cannot be told apart.
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
    Apply the authors' rules to the detections of one clip.

    Args:
        detections, animal, object:
            See [`classify_frames`].
        rules ([`ValidityRules`], *optional*):
            Thresholds; defaults to the authors'. `rules.strict` is not used here: see [`strict_reason`].

    Returns:
        [`Validity`].

    Raises:
        ValueError: when animal and object are the same word.
    """
    states = classify_frames(detections, animal, object)
    missed, valid, redundant = np.bincount(states, minlength=3).tolist()
    rules = (rules or ValidityRules()).for_length(len(states))
    prompt_frame = _first_run(states == FrameState.VALID, rules.min_run)

    of_all, reasons = f"of {len(states)} frames", []
    if valid < rules.min_valid:
        missing = _missing_words(detections, animal, object)
        too_short = ""
        if rules.min_valid > len(states):
            too_short = ", more than the clip has (scale_to_length=True scales the thresholds)"
        reasons.append(
            f"the {animal} and the {object} were found together in {valid} {of_all}{missing}; "
            f"at least {rules.min_valid} are needed{too_short}"
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
    Apply the strict rules to the followed boxes of one clip, in this order: both ends show the objects, frames are
    distinct, the animal moves, the motion is smooth.

    Args:
        video (`np.ndarray` of shape `(T, height, width, 3)`, `uint8`):
            The clip.
        boxes (`np.ndarray` of shape `(T, 2, 4)`):
            The followed boxes of animal and object, `x1, y1, x2, y2` in pixels; empty (zero width) or NaN where lost.
        rules ([`ValidityRules`]):
            Contains the requirements in `strict`, and the number of distinct frames in `min_valid`.
        animal, object (`str`, *optional*):
            Their names in the reason.

    Returns:
        `str | None`: the first reason to reject the clip; `None` if it passes, or if `rules.strict` is `None`.

    Raises:
        ValueError: when the boxes do not have the shape `(T, 2, 4)`.
    """
    strict, boxes = rules.strict, np.asarray(boxes, np.float64)
    if strict is None:
        return None
    if boxes.shape != (len(video), 2, 4):
        raise ValueError(f"boxes have shape {boxes.shape}; a clip of {len(video)} frames needs ({len(video)}, 2, 4).")
    sizes = boxes[:, :, 2:] - boxes[:, :, :2]
    # Select the frames that the score uses. There, a box one pixel wide is empty (corners are inclusive), but one of
    # the two boxes may have zero height.
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
    Count the distinct frames of a clip. A frame that repeats any earlier one does not count.

    Args:
        video (`np.ndarray` of shape `(T, height, width, 3)`, `uint8`):
            The clip; may be empty.
        min_change (`float`, *optional*):
            See [`StrictRules`].

    Returns:
        `int`: at most `T`.
    """
    if not len(video):
        return 0
    side = max(1, min(video.shape[1:3]) // BLOCKS_ALONG_SHORTER_SIDE)
    rows, columns = (np.arange(0, length, side) for length in video.shape[1:3])
    distinct: list[np.ndarray] = []  # block means of the distinct frames so far
    for frame in video:
        sums = np.add.reduceat(np.add.reduceat(frame, rows, axis=0, dtype=np.float32), columns, axis=1)
        counts = np.add.reduceat(np.ones(frame.shape[0]), rows)[:, None] * np.add.reduceat(
            np.ones(frame.shape[1]), columns
        )
        blocks = sums / counts[:, :, None]
        # The latest frames first: a repeated frame is most likely one of them.
        if all(np.abs(blocks - other).max() > min_change for other in reversed(distinct)):
            distinct.append(blocks)
    return len(distinct)


def _first_run(hits: np.ndarray, length: int) -> int | None:
    """Return the start of the first run of at least `length` true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], hits, [False]]).astype(np.int8)))
    starts, ends = edges[::2], edges[1::2]
    long = starts[ends - starts >= length]
    return int(long[0]) if len(long) else None


def _missing_words(detections: Sequence[Detections], animal: str, object: str) -> str:
    """Return ` (no bench in 70, no cat in 4)`, the more frequent first; empty if neither is ever missing."""
    absences = [(sum(word not in frame.labels for frame in detections), word) for word in (animal, object)]
    parts = [f"no {word} in {count}" for count, word in sorted(absences, key=lambda absence: -absence[0]) if count]
    return f" ({', '.join(parts)})" if parts else ""


def _ends_reason(kept: np.ndarray, strict: StrictRules, both: str) -> str | None:
    """Reject a clip that does not show both objects at its beginning and at its end."""
    length = int(np.ceil(strict.end_share * len(kept) - 1e-9))
    needed = min(strict.end_frames, length)
    for place, end in (("first", kept[:length]), ("last", kept[-length:])):
        if end.sum() < needed:
            return (
                f"{both} are seen together in {end.sum()} of the {place} {length} frames of {len(kept)}; "
                f"strict rules need {needed}"
            )
    return None


def _distinct_reason(video: Video, frames: np.ndarray, min_valid: int, min_change: float, both: str) -> str | None:
    """Reject a clip with too few distinct frames."""
    count = distinct_frames(video[frames], min_change)
    if count >= min_valid:
        return None
    return (
        f"only {count} of the {len(frames)} frames that show {both} differ from each other; "
        f"strict rules need {min_valid} distinct frames"
    )


def _motion_reason(boxes: np.ndarray, diagonal: float, strict: StrictRules, animal: str, object: str) -> str | None:
    """Reject a clip whose animal moves too little, by the boxes `(n, 2, 4)` of the kept frames."""
    # Measure relative to the object, so that a panning camera does not count as motion.
    centers = (boxes[:, 1, :2] + boxes[:, 1, 2:]) / 2
    edges = _median_of_three(boxes[:, 0].reshape(-1, 2, 2) - centers[:, None])  # frame, (low, high), (x, y)
    # Average the motion of both edges: an approaching animal (a growing box) moves too, and a wagging tail, which
    # moves only one edge, counts half.
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
    """Reject a clip in which an object with these boxes `(n, 4)` on the kept `frames` leaps."""
    if len(boxes) < 2:
        return None
    centers, sizes = (boxes[:, :2] + boxes[:, 2:]) / 2, _size(boxes)
    gaps = np.minimum(np.diff(frames), MAX_BRIDGED_FRAMES)
    # Divide by the larger size: an object that is half hidden for a moment has a small box whose centre seems to move.
    steps = np.hypot(*np.diff(centers, axis=0).T) / gaps / np.maximum(sizes[1:], sizes[:-1])
    # A long step is a leap only if the steps around it are much shorter.
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
    """Return the mean of width and height, which is above 0 for a flat box, unlike the root of the area."""
    return (boxes[..., 2:] - boxes[..., :2]).mean(axis=-1)


def _median_of_three(values: np.ndarray) -> np.ndarray:
    """Return each value's median with its two neighbours in time, so that a single wrong frame is not motion."""
    if len(values) < 3:
        return values
    return np.median(np.stack([values[:-2], values[1:-1], values[2:]]), axis=0)
