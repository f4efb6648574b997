"""
DSR-Score of trackers' output: from boxes on frames to a result with curves and, if INVALID, a reason.

The formulas are in `_dsr_geometry.py`. The code here handles whole videos at a time, because loops over frames are
slow; it looks at single frames only to explain what is wrong with them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import compress

import numpy as np

from spatialalign_rewards._dsr_geometry import (
    PAPER_MIN_FRAMES,
    BoxScores,
    bad_box_message,
    required_frames,
    score_flat,
)
from spatialalign_trl.perception.tracks import Tracks
from spatialalign_trl.prompts import DEPTH_RELATIONS, check_dsr_type, check_one_thing, is_same_noun

Frames = Iterable[tuple[int, Sequence[str], np.ndarray]]


@dataclass(frozen=True, eq=False)
class DSRResult:
    """
    The DSR-Score of one video.

    Args:
        score (`float`, *optional*):
            DSR-Score in [0, 1]; `None` if the video is INVALID (a third state: neither 0 nor left out of shares).
        initial_score, initial_gap, final_score, final_gap (`float`, *optional*):
            The four components, each in [-1, 1]; `None` when INVALID.
        initial_curve, final_curve (`np.ndarray` of shape `(n,)`):
            SSR of the initial and of the final relation over the `n` counted frames, in time order.
        frame_indices (`np.ndarray` of shape `(n,)`):
            The counted frames' positions in the clip, ascending.
        reason (`str`, *optional*):
            Why the video is INVALID; `None` when it has a score.
        visit_scores, visit_gaps (`tuple[float, ...]`):
            Components of the relations in the middle of a sequence, in order; empty for two relations.
        visit_frames (`tuple[int, ...]`):
            The frame of the clip at which each visit of these relations begins.
        visit_curves (`np.ndarray` of shape `(m, n)`):
            SSR of the `m` relations in the middle.
    """

    score: float | None = None
    initial_score: float | None = None
    initial_gap: float | None = None
    final_score: float | None = None
    final_gap: float | None = None
    initial_curve: np.ndarray = field(default_factory=lambda: np.empty(0))
    final_curve: np.ndarray = field(default_factory=lambda: np.empty(0))
    frame_indices: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    reason: str | None = None
    visit_scores: tuple[float, ...] = ()
    visit_gaps: tuple[float, ...] = ()
    visit_frames: tuple[int, ...] = ()
    visit_curves: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))


def check_question(dsr_type: str, animal: str, object: str, where: str) -> None:
    """
    Check that a question can be scored: one animal, one static object, and relations that change.

    Args:
        dsr_type, animal, object (`str`):
            As in [`score_tracks`].
        where (`str`):
            The beginning of the error message: `"prompt 3"`.

    Raises:
        `ValueError`: for an unknown type, several animals or objects, or an animal that is also the object.
    """
    try:
        check_dsr_type(dsr_type)
        check_one_thing("animal", animal)
        check_one_thing("object", object)
    except ValueError as error:
        raise ValueError(f"{where}: {error}.") from error
    if is_same_noun(animal, object):
        raise ValueError(
            f"{where}: animal and object are both {animal!r}; their boxes cannot be told apart, so there is "
            "no spatial relation to score. Use two different nouns."
        )


def score_tracks(
    frames: Frames,
    animal: str,
    object: str,
    dsr_type: str,
    *,
    num_frames: int | None = None,
    min_frames: int | None = None,
) -> DSRResult:
    """
    Compute the DSR-Score of one video from its boxes.

    Args:
        frames (iterable of `(frame_index, labels, boxes_xyxy)`):
            In any order, each index once; `boxes_xyxy` of shape `(n, 4)` in pixels. A frame counts if its labels are
            exactly the animal and the object, neither box has zero width, and not both have zero height (an empty
            mask). A [`~spatialalign_trl.perception.tracks.Tracks`] contains `num_frames` and `reason`, and `nearness`
            for types with F or B.
        animal, object (`str`):
            The two nouns, exactly as in the labels.
        dsr_type (`str`):
            The relations in order, such as `"LR"` or `"LTR"`.
        num_frames (`int`, *optional*):
            Length of the clip, which determines the default of `min_frames` (see [`required_frames`]).
        min_frames (`int`, *optional*):
            Counted frames below which the video is INVALID. Defaults to `required_frames(num_frames)`, or to the
            paper's 20 if the length is unknown. A sequence of R > 2 relations needs at least 3 R.

    Raises:
        `ValueError`: for an unknown type, an animal that equals the object, or malformed boxes.
    """
    limits = {"num_frames": num_frames, "min_frames": min_frames}
    return score_tracks_batch([frames], [animal], [object], [dsr_type], **limits)[0]


def score_tracks_batch(
    tracks: Sequence[Frames],
    animals: Sequence[str],
    objects: Sequence[str],
    dsr_types: Sequence[str],
    *,
    num_frames: int | Sequence[int | None] | None = None,
    min_frames: int | None = None,
) -> list[DSRResult]:
    """
    Compute the DSR-Scores of many videos at once, with the frames of all videos in one array.

    Args:
        tracks, animals, objects, dsr_types (sequences of length `N`):
            As in [`score_tracks`].
        num_frames (`int` or sequence of `N`, *optional*):
            One length for all videos, or one for each.
        min_frames (`int`, *optional*):
            As in [`score_tracks`].

    Raises:
        `ValueError`: as in [`score_tracks`], naming the video; also if the sequences have different lengths.
    """
    # 1. Check the arguments
    count = len(tracks)
    for name, values in (("animals", animals), ("objects", objects), ("dsr_types", dsr_types)):
        if isinstance(values, str) or len(values) != count:
            raise ValueError(f"{name} must be a list with one entry for each of the {count} videos, got {values!r}.")
    lengths = [num_frames] * count if num_frames is None or isinstance(num_frames, int) else list(num_frames)
    if len(lengths) != count:
        raise ValueError(f"num_frames must be one number or one for each of the {count} videos, got {len(lengths)}.")
    if min_frames is not None and min_frames < 1:
        raise ValueError(f"min_frames must be at least 1, got {min_frames}.")

    questions = list(zip(dsr_types, animals, objects, strict=True))
    for question in dict.fromkeys(questions):
        check_question(*question, where=f"video {questions.index(question)}")

    # 2. Find out how many frames each video has, and how many it needs
    tracks = [frames if isinstance(frames, Tracks) else list(frames) for frames in tracks]
    for k, frames in enumerate(tracks):
        if lengths[k] is None and isinstance(frames, Tracks):
            lengths[k] = frames.num_frames
    needed_by_length = {n: PAPER_MIN_FRAMES if n is None else required_frames(n) for n in set(lengths)}
    needed = np.array([min_frames or needed_by_length[length] for length in lengths], dtype=np.int64)

    # 3. Score the boxes of all videos
    boxes, indices, sizes = _gather(tracks, animals, objects, lengths)
    depth = None
    if any(asks_depth(dsr_type) for dsr_type in set(dsr_types)):
        depth = _depth(tracks, dsr_types, indices, sizes)
    scored = score_flat(boxes, indices, sizes, dsr_types, needed=needed, depth=depth)

    # 4. Split the result by video, and explain INVALID ones
    results = []
    for k, (dsr_type, animal, object) in enumerate(questions):
        reason = tracks[k].reason if isinstance(tracks[k], Tracks) else None
        if reason is None and scored.sizes[k] < scored.needed[k]:
            reason = _too_few(tracks[k], animal, object, dsr_type, lengths[k], scored.sizes[k], scored.needed[k])
        results.append(_result(scored, k, len(dsr_type), reason))
    return results


def asks_depth(dsr_type: str) -> bool:
    """Return whether a type contains a relation that needs depth: in front or behind."""
    return any(code in dsr_type for code in DEPTH_RELATIONS)


def _result(scored: BoxScores, k: int, relations: int, reason: str | None) -> DSRResult:
    """Return the result of video `k` with its curves; without scores if there is a reason why it is INVALID."""
    start, size = scored.starts[k], scored.sizes[k]
    frames = slice(start, start + size)
    curves, indices = scored.curves[:relations, frames], scored.frame_indices[frames]
    fields = {"initial_curve": curves[0], "final_curve": curves[-1], "frame_indices": indices}
    if relations > 2:
        fields["visit_curves"] = curves[1:-1]
    if reason is not None:
        return DSRResult(**fields, reason=reason)
    components = scored.components[k, :relations].tolist()
    if relations > 2:
        fields["visit_scores"], fields["visit_gaps"] = zip(*components[1:-1], strict=True)
        fields["visit_frames"] = tuple(indices[scored.visits[k, : relations - 2]].tolist())
    (initial_score, initial_gap), (final_score, final_gap) = components[0], components[-1]
    return DSRResult(float(scored.scores[k]), initial_score, initial_gap, final_score, final_gap, **fields)


def _too_few(
    frames: Frames, animal: str, object: str, dsr_type: str, num_frames: int | None, counted: int, needed: int
) -> str:
    """Explain why too few frames count: how often animal and object were found, and what else excluded frames."""
    _, labels, boxes = zip(*frames, strict=True) if len(frames) else ((), (), ())
    names = np.array([label for frame_labels in labels for label in frame_labels], dtype=str)
    corners = np.concatenate([np.empty((0, 4)), *(frame_boxes for frame_boxes in boxes if len(frame_boxes))])
    not_empty = corners[:, 2] > corners[:, 0]
    number = np.array([len(frame_labels) for frame_labels in labels], dtype=np.int64)
    frame_of_box = np.repeat(np.arange(len(labels)), number)
    shown = np.zeros((2, len(labels)), bool)  # animal, object
    for row, noun in zip(shown, (animal, object), strict=True):
        row[frame_of_box[not_empty & (names == noun)]] = True
    together = shown.all(axis=0)
    crowded, unknown_depth = int((together & (number > 2)).sum()), 0
    if asks_depth(dsr_type):
        unknown_depth = int(together.sum()) - crowded - counted
    of = f" of {num_frames}" if num_frames is not None else ""
    in_animal, in_object = shown.sum(axis=1)
    reason = (
        f"the {animal} and the {object} were found together in {counted}{of} frames "
        f"(the {animal} in {in_animal}, the {object} in {in_object}"
    )
    if crowded:
        reason += f", something more beside them in {crowded}"
    if unknown_depth > 0:
        reason += f", their depth unknown in {unknown_depth}"
    relations = f" for the {len(dsr_type)} relations of {dsr_type}" if len(dsr_type) > 2 else ""
    return f"{reason}); at least {needed} are needed{relations}"


def _depth(tracks: Sequence[Frames], dsr_types: Sequence[str], indices: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return the animal's nearness minus the object's on each frame; NaN where it is not needed or unknown."""
    depth, start = np.full(len(indices), np.nan), 0
    for k, frames in enumerate(tracks):
        of_video = slice(start, start := start + sizes[k])
        if not asks_depth(dsr_types[k]) or (isinstance(frames, Tracks) and frames.reason is not None):
            continue
        nearness = frames.nearness if isinstance(frames, Tracks) else None
        if nearness is None or np.shape(nearness) != (frames.num_frames, 2):
            raise ValueError(
                f"video {k}: the type {dsr_types[k]!r} asks for depth, so its tracks must have nearness of the shape "
                "(num_frames, 2). The reward dsr_score measures it, see spatialalign_trl/perception/depth.py."
            )
        depth[of_video] = nearness[indices[of_video], 0] - nearness[indices[of_video], 1]
    return depth


def _gather(
    tracks: Sequence[Frames], animals: Sequence[str], objects: Sequence[str], lengths: Sequence[int | None]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Collect the frames labelled exactly {animal, object}, by video and then by time: boxes `(n, 2, 4)` with the animal
    first, frame index `(n,)`, and the number of frames of each video `(N,)`.
    """
    # 1. Select the frames of each video
    all_boxes, all_indices, object_first, sizes = [], [], [], []
    for k, frames in enumerate(tracks):
        pair = (animals[k], objects[k])
        indices, labels, boxes = zip(*frames, strict=True) if len(frames) else ((), (), ())
        if not _are_well_formed(indices, labels, boxes, lengths[k]):
            _raise_for_malformed_frame(k, indices, labels, boxes, lengths[k])
        if labels.count(pair) != len(labels):
            kinds = list(map({pair: 1, pair[::-1]: 2}.get, map(tuple, labels)))  # 2: the object first
            object_first += [len(all_boxes) + n for n, kind in enumerate(filter(None, kinds)) if kind == 2]
            indices, boxes = list(compress(indices, kinds)), list(compress(boxes, kinds))
        all_boxes.extend(boxes)
        all_indices.extend(indices)
        sizes.append(len(boxes))
    sizes, indices = np.asarray(sizes, dtype=np.int64), np.asarray(all_indices, dtype=np.int64)

    # 2. Join their boxes, with the animal first
    boxes = _join(all_boxes, indices, sizes)
    boxes[object_first] = boxes[object_first, ::-1]
    finite = np.isfinite(boxes).all(axis=(1, 2))
    if not finite.all():
        n = int(finite.argmin())
        raise ValueError(f"{_place(n, indices, sizes)}: {bad_box_message(boxes[n])}")

    # 3. Sort by time, but only if needed: sorting would double the run time
    falls = indices[1:] < indices[:-1]
    ends = np.cumsum(sizes)[:-1]
    falls[ends[(ends > 0) & (ends < len(indices))] - 1] = False  # where the next video begins
    if falls.any():
        order = np.lexsort((indices, np.repeat(np.arange(len(sizes)), sizes)))
        boxes, indices = boxes[order], indices[order]
    return boxes, indices, sizes


def _join(boxes: list[np.ndarray], indices: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return the boxes of all frames in one array `(n, 2, 4)`, or name the first frame with malformed ones."""
    if not boxes:
        return np.empty((0, 2, 4))
    try:
        joined = np.concatenate(boxes).astype(np.float64, copy=False)
    except ValueError:  # not all of one shape
        joined = None
    if joined is None or joined.shape != (2 * len(boxes), 4):
        n = next((n for n, pair in enumerate(boxes) if any(np.size(box) != 4 for box in pair)), 0)
        place = _place(n, indices, sizes)
        raise ValueError(f"{place}: a box must be four numbers x1, y1, x2, y2; got {boxes[n]!r}.")
    return joined.reshape(-1, 2, 4)


def _place(n: int, indices: np.ndarray, sizes: np.ndarray) -> str:
    """Return the name of the `n`-th selected frame for an error message."""
    return f"video {np.searchsorted(np.cumsum(sizes), n, side='right')}, frame {indices[n]}"


def _are_well_formed(indices: Sequence[int], labels: Sequence, boxes: Sequence, num_frames: int | None) -> bool:
    """Return whether every frame is inside the clip, appears once, and has a box for each label (no Python loop)."""
    if not indices:
        return True
    inside = min(indices) >= 0 and (num_frames is None or max(indices) < num_frames)
    return inside and len(set(indices)) == len(indices) and list(map(len, labels)) == list(map(len, boxes))


def _raise_for_malformed_frame(
    k: int, indices: Sequence[int], labels: Sequence, boxes: Sequence, num_frames: int | None
) -> None:
    """Raise a `ValueError` for the first frame of video `k` that is not well-formed."""
    seen = set()
    for index, names, found in zip(indices, labels, boxes, strict=True):
        problem = None
        if index < 0 or (num_frames is not None and index >= num_frames):
            problem = "the index is outside the clip" + ("" if num_frames is None else f" of {num_frames} frames")
        elif len(names) != len(found):
            problem = f"{len(names)} labels but {len(found)} boxes"
        elif index in seen:
            problem = "the frame index appears twice; give every frame once"
        if problem is not None:
            raise ValueError(f"video {k}, frame {index}: {problem}.")
        seen.add(index)
