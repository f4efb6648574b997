"""The strict rules: reject clips that would get a high DSR-Score for the wrong reason.

They look at the followed boxes of a clip, because the score reads only the ends of a curve. They are our addition to
the authors' rules (`validity.py`), and off by default.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from spatialalign_trl.video import Video

MAX_BRIDGED_FRAMES = 4
"""Largest gap in frames by which a step is divided: an object out of sight for longer may not have moved farther."""
BLOCKS_ALONG_SHORTER_SIDE = 30
"""Size of the blocks that are compared: large enough to average out compression noise, small enough for an animal."""


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
        max_cover (`float`, *optional*, defaults to `0.8`):
            Largest share of the frame's area that a box may cover. The centre of a larger one is the frame's.
        max_area_ratio (`float`, *optional*, defaults to `3.0`):
            Largest ratio of a box's areas at most four frames apart. A larger one is refused if the change also
            exceeds `max_area_change`, or if it comes from one frame to the next and exceeds `flood_share`.
        max_area_change (`float`, *optional*, defaults to `3.0`):
            Largest change of a box's area in medians of its areas: an object that comes into sight changes by about 1.
        flood_share (`float`, *optional*, defaults to `0.2`):
            Share of the frame's area from which on a box that has jumped is one whose mask floods the frame.

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
    max_cover: float = 0.8
    max_area_ratio: float = 3.0
    max_area_change: float = 3.0
    flood_share: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.end_share <= 0.5:
            raise ValueError(f"end_share is {self.end_share}; it must be above 0 and at most 0.5.")
        for field in fields(self)[1:]:
            value = getattr(self, field.name)
            if not value >= 0:
                raise ValueError(f"{field.name} is {value}; it must be 0 or more.")


def first_violation(
    video: Video, boxes: np.ndarray, strict: StrictRules, min_distinct: int, animal: str, object: str
) -> str | None:
    """
    Apply the strict rules to the followed boxes of one clip.

    Args:
        video, boxes, animal, object:
            See [`~spatialalign_trl.perception.validity.strict_reason`].
        strict ([`StrictRules`]):
            The requirements.
        min_distinct (`int`):
            Number of distinct frames that must show both objects.

    Returns:
        `str | None`: the first reason to reject the clip; `None` if it passes.

    Raises:
        ValueError: when the boxes do not have the shape `(T, 2, 4)`.
    """
    boxes = np.asarray(boxes, np.float64)
    if boxes.shape != (len(video), 2, 4):
        raise ValueError(f"boxes have shape {boxes.shape}; a clip of {len(video)} frames needs ({len(video)}, 2, 4).")
    sizes = boxes[:, :, 2:] - boxes[:, :, :2]
    # Select the frames that the score uses. There, a box one pixel wide is empty (corners are inclusive), but one of
    # the two boxes may have zero height.
    kept = (sizes[:, :, 0] > 0).all(axis=1) & (sizes[:, :, 1] > 0).any(axis=1) & np.isfinite(boxes).all(axis=(1, 2))
    frames, kept_boxes = np.flatnonzero(kept), boxes[kept]
    both, frame_size = f"the {animal} and the {object}", video.shape[1:3]
    of_animal, of_object = (kept_boxes[:, 0], frames, strict, animal), (kept_boxes[:, 1], frames, strict, object)
    return (
        _ends_reason(kept, strict, both)
        or _cover_reason(*of_animal, frame_size)
        or _cover_reason(*of_object, frame_size)
        or _area_reason(*of_animal, frame_size)
        or _area_reason(*of_object, frame_size)
        or _distinct_reason(video, frames, min_distinct, strict.min_change, both)
        or _motion_reason(kept_boxes, np.hypot(*frame_size), strict, animal, object)
        or _step_reason(*of_animal)
        or _step_reason(*of_object)
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


def _cover_reason(
    boxes: np.ndarray, frames: np.ndarray, strict: StrictRules, name: str, frame_size: tuple[int, int]
) -> str | None:
    """Reject a clip in which a box covers the frame: its centre is that of the frame, wherever the object is."""
    shares = _areas(boxes) / np.prod(frame_size)
    for k in np.flatnonzero(shares > strict.max_cover)[:1]:
        return (
            f"the box of the {name} covers {shares[k]:.0%} of frame {frames[k]}; strict rules allow "
            f"{strict.max_cover:.0%}"
        )
    return None


def _area_reason(
    boxes: np.ndarray, frames: np.ndarray, strict: StrictRules, name: str, frame_size: tuple[int, int]
) -> str | None:
    """Reject a clip in which the area of a box jumps, because its mask spreads over other things for some frames."""
    areas, jumps = _areas(boxes), []
    usual = float(np.median(areas)) if len(areas) else 0.0
    for lag in range(1, min(MAX_BRIDGED_FRAMES, len(areas) - 1) + 1):
        larger, smaller = np.maximum(areas[lag:], areas[:-lag]), np.minimum(areas[lag:], areas[:-lag])
        near = frames[lag:] - frames[:-lag] <= MAX_BRIDGED_FRAMES
        # By more than an object's area changes that comes into sight or goes out of it, however quickly.
        spreads = (near | (lag == 1)) & (larger - smaller > strict.max_area_change * usual)
        if lag == 1:
            # Where the mask is spread on most frames, its area is the usual one. It is large and comes at once.
            spreads |= near & (larger > strict.flood_share * np.prod(frame_size))
            smaller = np.maximum(smaller, usual / 4)
        leaps = spreads & (larger > strict.max_area_ratio * smaller)
        jumps += [(k, k + lag) for k in np.flatnonzero(leaps)[:1]]
    for first, second in jumps[:1]:  # the jump in the fewest frames
        return (
            f"the box of the {name} jumps from {areas[first]:.0f} to {areas[second]:.0f} pixels of area between "
            f"frames {frames[first]} and {frames[second]}; strict rules refuse changes by more than a factor of "
            f"{strict.max_area_ratio:g} unless it comes into sight or goes out of it"
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


def _areas(boxes: np.ndarray) -> np.ndarray:
    """Return the areas `(n,)` of boxes `(n, 4)` in pixels. The corners are inclusive, so that none is zero."""
    return (boxes[:, 2:] - boxes[:, :2] + 1).prod(axis=1)


def _median_of_three(values: np.ndarray) -> np.ndarray:
    """Return each value's median with its two neighbours in time, so that a single wrong frame is not motion."""
    if len(values) < 3:
        return values
    return np.median(np.stack([values[:-2], values[1:-1], values[2:]]), axis=0)
