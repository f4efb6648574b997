"""Decide whether a clip can be scored: the SpatialAlign authors' rules, and stricter ones of our own.

The authors' rules (`assess`) look at the detector's boxes, before anything is followed:

    a frame is   VALID      if it has exactly two boxes, one labelled exactly as the animal, one exactly as the object
                 MISSED     if it has fewer than two boxes
                 REDUNDANT  otherwise: more boxes, or two with other labels
    the clip is  INVALID    if more than 16 frames are redundant, fewer than 20 are valid, or no 4 consecutive frames
                            are valid. Otherwise the first frame of the FIRST such run prompts the follower.

Source: the authors' released code for arXiv 2602.22745. It counts 81 frames whatever the clip's length; here every
clip is read to its end. The strict rules (`strict_reason`, in `strict_rules.py`) are our addition. They look at the
followed boxes and reject clips that would get a high score for the wrong reason. They are off by default.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np

from spatialalign_trl.perception.detections import Detections
from spatialalign_trl.perception.strict_rules import StrictRules, distinct_frames, first_violation
from spatialalign_trl.video import Video

__all__ = [
    "FrameState",
    "StrictRules",
    "Validity",
    "ValidityRules",
    "assess",
    "classify_frames",
    "distinct_frames",
    "strict_reason",
]

PAPER_NUM_FRAMES = 81


class FrameState(IntEnum):
    """The state of one frame, by its detections."""

    MISSED = 0
    VALID = 1
    REDUNDANT = 2


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
    Apply the strict rules to the followed boxes of one clip, in this order: both ends show the objects, no box covers
    the frame, no box's area jumps, frames are distinct, the animal moves, the motion is smooth.

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
    if rules.strict is None:
        return None
    min_distinct = rules.for_length(len(video)).min_valid
    return first_violation(video, boxes, rules.strict, min_distinct, animal, object)


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
