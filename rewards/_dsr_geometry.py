"""
The geometry of DSR-Score: from arrays of boxes over time to how well clips start in one relation and end in another.

Source: SpatialAlign, arXiv 2602.22745, in the form its authors' released code computes it (the printed formula can
exceed 1). This file is pure NumPy on the boxes of many videos at once; `_dsr_tracks.py` collects them from trackers'
frames, and `dsr_score.py` defines the reward.

Per frame, with centres c, widths w and heights h of animal a and object o (pixels, y down):

    v = c_a - c_o     W = (w_a + w_o)/2     H = (h_a + h_o)/2
    cos = v/|v|       (0 when |v| = 0)
    d_x = clip(|v_x|/W, 0, 1)               d_y = clip(|v_y|/H, 0, 1)
    SSR_L = -cos_x*d_x     SSR_R = +cos_x*d_x     SSR_T = -cos_y*d_y              each in [-1, 1]

Over the counted frames in time order, i = curve of the initial relation, f = curve of the final one:

    initial_score = mean(i[:3])      initial_gap = (i[0]  - i[-1])/2
    final_score   = mean(f[-3:])     final_gap   = (f[-1] - f[0])/2
    DSR = (initial_score + initial_gap + final_score + final_gap)/8 + 1/2                  in [0, 1]

Three more relations are OURS, not the paper's,

    SSR_U = +cos_y*d_y     SSR_F = n_a - n_o     SSR_B = n_o - n_a

(n: nearness to the camera in [0, 1] of the clip's depth range, see `spatialalign_trl.perception.depth`), and so are
sequences of N > 2 relations. Every relation in the middle is *visited* at three counted frames in a row. The visits
are in order, disjoint from one another and from the first and last three frames, and placed where their means have the
largest sum. Every relation k has a score and a gap: the score is the mean over its three frames; the gap is how far
its curve rises there above the stages before and after it,

    gap_k = (A_k(k) - mean of A_k(k - 1) and A_k(k + 1), as far as they exist)/2
    A_k(j) = curve k at stage j: on the first frame (j = 0), on the last (j = N - 1), else its mean over visit j
    DSR = (sum of all 2 N scores and gaps)/(4 N) + 1/2

which is exactly the paper's formula for N = 2.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spatialalign_rewards._dsr_sequences import sequence_components
from spatialalign_trl.prompts import END_FRAMES, split_type

# The paper's clips have 81 frames, of which at least 20 must show both animal and object.
PAPER_NUM_FRAMES = 81
PAPER_MIN_FRAMES = 20
# SSR of a relation as weights of (cos_x*d_x, cos_y*d_y, n_a - n_o); y points down.
DIRECTIONS: dict[str, tuple[int, int, int]] = {
    "L": (-1, 0, 0),
    "R": (1, 0, 0),
    "T": (0, -1, 0),
    "U": (0, 1, 0),
    "F": (0, 0, 1),
    "B": (0, 0, -1),
}


@dataclass(frozen=True, eq=False)
class BoxScores:
    """
    DSR-Scores of `N` videos with at most `R` relations each; the `n` counted frames of all videos are concatenated.

    Args:
        scores (`np.ndarray` of shape `(N,)`):
            DSR-Score in [0, 1]; NaN where the video is INVALID.
        components (`np.ndarray` of shape `(N, R, 2)`):
            Score and gap of each relation in order, in [-1, 1]; NaN where INVALID or past the video's last relation.
        curves (`np.ndarray` of shape `(R, n)`):
            SSR of each video's relations over its counted frames, in [-1, 1].
        frame_indices (`np.ndarray` of shape `(n,)`):
            Position of each counted frame in its clip, ascending within a video.
        starts, sizes (`np.ndarray` of shape `(N,)`):
            Video `k` owns the counted frames `starts[k] : starts[k] + sizes[k]`.
        needed (`np.ndarray` of shape `(N,)`):
            Counted frames below which a video is INVALID.
        visits (`np.ndarray` of shape `(N, R - 2)`):
            First counted frame of each middle relation's visit, counted from `starts`; -1 where there is none.
    """

    scores: np.ndarray
    components: np.ndarray
    curves: np.ndarray
    frame_indices: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray
    needed: np.ndarray
    visits: np.ndarray


def required_frames(num_frames: int | np.ndarray) -> int | np.ndarray:
    """
    Return the number of counted frames that a clip needs: the paper's share of 20 in 81, rounded up, and at least the
    three frames that are averaged at each end. 81 -> 20, 49 -> 13, 33 -> 9, 13 -> 4, 9 -> 3.

    Args:
        num_frames (`int`, or `np.ndarray` of several):
            Length of the clip in frames.

    Raises:
        `ValueError`: if `num_frames` is not positive.
    """
    if np.any(np.less(num_frames, 1)):
        raise ValueError(f"num_frames must be at least 1, got {num_frames}.")
    needed = np.maximum(END_FRAMES, -(-PAPER_MIN_FRAMES * np.asarray(num_frames) // PAPER_NUM_FRAMES))
    return needed if needed.ndim else int(needed)


def score_box_arrays(
    boxes: np.ndarray,
    dsr_types: str | Sequence[str],
    *,
    counted: np.ndarray | None = None,
    nearness: np.ndarray | None = None,
    num_frames: int | Sequence[int] | None = None,
    min_frames: int | None = None,
) -> BoxScores:
    """
    Compute the DSR-Scores of many videos from arrays, without a Python loop over videos or frames.

    Args:
        boxes (`np.ndarray` of shape `(N, T, 2, 4)`):
            Corners `x1, y1, x2, y2` in pixels of the animal's and the object's box on every frame in time order. A
            frame counts if both boxes are known (not NaN), neither has zero width, and not both have zero height.
        dsr_types (`str` or sequence of `N`):
            The relations in order, such as `"LR"`: one type for all videos, or one each.
        counted (`np.ndarray` of shape `(N, T)`, *optional*):
            `False` where a frame must not count, whatever its boxes are.
        nearness (`np.ndarray` of shape `(N, T, 2)`, *optional*):
            Nearness of animal and object in [0, 1] of the clip's depth range, NaN where unknown. Types with F or B
            need it, and count only frames where both are known.
        num_frames (`int` or sequence of `N`, *optional*, defaults to `T`):
            Lengths of the clips; the frames after them are padding and do not count.
        min_frames (`int`, *optional*):
            Counted frames below which a video is INVALID. Defaults to `required_frames(num_frames)`. A sequence of
            R > 2 relations needs at least 3 R.

    Raises:
        `ValueError`: for arrays of the wrong shape, an unknown type, or malformed boxes.
    """
    if min_frames is not None and min_frames < 1:
        raise ValueError(f"min_frames must be at least 1, got {min_frames}.")
    boxes = np.asarray(boxes, dtype=np.float64)
    if boxes.ndim != 4 or boxes.shape[2:] != (2, 4):
        raise ValueError(f"boxes must have the shape (videos, frames, 2, 4), got {boxes.shape}.")
    count, longest = boxes.shape[:2]
    types = [dsr_types] * count if isinstance(dsr_types, str) else dsr_types
    lengths = np.broadcast_to(longest if num_frames is None else np.asarray(num_frames), (count,))
    if len(types) != count:
        raise ValueError(f"dsr_types must be one type or one for each of the {count} videos, got {len(types)}.")
    if count and not (1 <= lengths.min() and lengths.max() <= longest):
        raise ValueError(f"num_frames must lie in 1 .. {longest}, the frames of the array, got {num_frames}.")
    within = np.ones((count, longest), bool) if counted is None else np.asarray(counted, bool)
    if within.shape != (count, longest):
        raise ValueError(f"counted must have the shape {(count, longest)}, got {within.shape}.")
    if num_frames is not None:
        within = within & (np.arange(longest) < lengths[:, None])
    if nearness is not None and np.shape(nearness) != (count, longest, 2):
        raise ValueError(f"nearness must have the shape {(count, longest, 2)}, got {np.shape(nearness)}.")

    depth = None if nearness is None else np.subtract(nearness[..., 0], nearness[..., 1]).ravel()
    return score_flat(
        boxes.reshape(-1, 2, 4),
        np.tile(np.arange(longest), count),
        np.full(count, longest),
        types,
        needed=np.broadcast_to(required_frames(lengths) if min_frames is None else min_frames, (count,)),
        usable=within.ravel(),
        depth=depth,
    )


def score_flat(
    boxes: np.ndarray,
    frame_indices: np.ndarray,
    sizes: np.ndarray,
    dsr_types: Sequence[str],
    *,
    needed: np.ndarray,
    usable: np.ndarray | None = None,
    depth: np.ndarray | None = None,
) -> BoxScores:
    """
    Compute the DSR-Scores of videos of any lengths, with the `n` frames of all videos concatenated.

    Args:
        boxes (`np.ndarray` of shape `(n, 2, 4)`):
            Boxes of animal and object, by video and in time order.
        frame_indices (`np.ndarray` of shape `(n,)`):
            Position of each frame in its clip.
        sizes (`np.ndarray` of shape `(N,)`):
            Number of frames of each video.
        dsr_types (sequence of `N` `str`):
            The relations of each video, in order.
        needed (`np.ndarray` of shape `(N,)`):
            Counted frames below which a video is INVALID.
        usable (`np.ndarray` of shape `(n,)`, *optional*):
            Frames that may count.
        depth (`np.ndarray` of shape `(n,)`, *optional*):
            Nearness of the animal minus nearness of the object, NaN where unknown.

    Raises:
        `ValueError`: for an unknown type, for F or B without `depth`, and for malformed boxes.
    """
    # 1. Offsets of the animal from the object on every frame
    directions, lengths = _directions(dsr_types)
    asks_depth = directions[:, :, 2].any(axis=1)
    if depth is None and asks_depth.any():
        k = int(asks_depth.argmax())
        raise ValueError(f"video {k}: the type {dsr_types[k]!r} asks for depth, but no nearness was given.")
    with np.errstate(invalid="ignore", divide="ignore"):  # on frames that do not count
        offset_x, offset_y, sides = _offsets(boxes)

    # 2. Keep the frames that count
    usable = np.ones(len(boxes), bool) if usable is None else usable
    _refuse_bad_boxes(sides, usable, boxes, frame_indices, sizes)
    width_a, width_o, height_a, height_o = sides
    counts = usable & (width_a > 0) & (width_o > 0) & ((height_a > 0) | (height_o > 0))
    if asks_depth.any():
        counts &= ~(np.isnan(depth) & np.repeat(asks_depth, sizes))
    if not counts.all():
        total, ends = np.concatenate([[0], np.cumsum(counts)]), np.cumsum(sizes)
        sizes = total[ends] - total[ends - sizes]
        offset_x, offset_y, frame_indices = offset_x[counts], offset_y[counts], frame_indices[counts]
        depth = None if depth is None else depth[counts]

    # 3. The curve of each relation
    curves = np.empty((directions.shape[1], len(frame_indices)))
    for curve, direction in zip(curves, directions.swapaxes(0, 1), strict=True):
        x, y, z = direction.T
        curve[:] = offset_x * np.repeat(x, sizes) + offset_y * np.repeat(y, sizes)
        if asks_depth.any():
            curve += np.nan_to_num(depth) * np.repeat(z, sizes)
    curves += 0.0  # turns the negative zeros of a multiplication by -1 into zeros

    # 4. Components and scores
    starts = np.cumsum(sizes) - sizes
    components, visits = _components(curves, starts, sizes, lengths)
    needed = np.where(lengths > 2, np.maximum(needed, END_FRAMES * lengths), needed)
    components[sizes < needed] = np.nan
    visits[sizes < needed] = -1
    # Rows past a video's last relation are NaN and must not enter its sum.
    sums = np.where(np.arange(directions.shape[1])[:, None] < lengths[:, None, None], components, 0)
    scores = sums.reshape(len(sizes), 2 * len(curves)).sum(axis=1) / (4 * lengths) + 0.5
    return BoxScores(scores, components, curves, frame_indices, starts, sizes, needed, visits)


def spatial_offsets(boxes: np.ndarray) -> np.ndarray:
    """
    Return the direction from the object to the animal on each frame: `(cos_x*d_x, cos_y*d_y)`, y down.

    Args:
        boxes (`np.ndarray` of shape `(n, 2, 4)`):
            The animal's and the object's box; the mean width and the mean height must not be 0.

    Returns:
        `np.ndarray` of shape `(n, 2)`: in [-1, 1].
    """
    return np.stack(_offsets(np.asarray(boxes, dtype=np.float64))[:2], axis=1)


def _offsets(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, ...]]:
    """Return `cos_x*d_x`, `cos_y*d_y` and the sides `(w_a, w_o, h_a, h_o)` of boxes `(n, 2, 4)`, each `(n,)`."""
    left_a, top_a, right_a, bottom_a, left_o, top_o, right_o, bottom_o = boxes.reshape(-1, 8).T
    sides = (right_a - left_a, right_o - left_o, bottom_a - top_a, bottom_o - top_o)
    x = (left_a + right_a) / 2 - (left_o + right_o) / 2
    y = (top_a + bottom_a) / 2 - (top_o + bottom_o) / 2
    distance = np.sqrt(x * x + y * y)
    distance[distance == 0] = 1  # x and y are 0 there, so the cosines become 0
    reach_x, reach_y = (sides[0] + sides[1]) / 2, (sides[2] + sides[3]) / 2
    return (
        x / distance * np.minimum(np.abs(x) / reach_x, 1),
        y / distance * np.minimum(np.abs(y) / reach_y, 1),
        sides,
    )


def _refuse_bad_boxes(
    sides: tuple[np.ndarray, ...], usable: np.ndarray, boxes: np.ndarray, frame_indices: np.ndarray, sizes: np.ndarray
) -> None:
    """Raise a `ValueError` for the first usable frame with a negative or infinite side."""
    smallest, largest = np.minimum.reduce(sides), np.maximum.reduce(sides)
    bad = usable & ((smallest < 0) | np.isinf(largest))
    if bad.any():
        n = int(bad.argmax())
        video = int(np.searchsorted(np.cumsum(sizes), n, side="right"))
        raise ValueError(f"video {video}, frame {frame_indices[n]}: {bad_box_message(boxes[n])}")


def bad_box_message(boxes: np.ndarray) -> str:
    """Return the error message for malformed boxes of shape `(2, 4)`."""
    return f"boxes must be finite with x1 <= x2 and y1 <= y2, in pixels; got {boxes.tolist()}."


def _directions(dsr_types: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the weights `(N, R, 3)` of the videos' relations, zero past the last, and their number of relations."""
    table_rows: dict[str, int] = {}
    for k, dsr_type in enumerate(dsr_types):
        if dsr_type not in table_rows:
            try:
                split_type(dsr_type)
            except ValueError as error:
                raise ValueError(f"video {k}: {error}.") from error
            table_rows[dsr_type] = len(table_rows)
    table = np.zeros((len(table_rows), max(map(len, table_rows), default=2), 3))
    for dsr_type, row in table_rows.items():
        table[row, : len(dsr_type)] = [DIRECTIONS[code] for code in dsr_type]
    lengths = np.array([len(dsr_type) for dsr_type in table_rows], dtype=np.int64)
    index = np.array([table_rows[dsr_type] for dsr_type in dsr_types], dtype=np.int64)
    return table[index], lengths[index]


def _components(
    curves: np.ndarray, starts: np.ndarray, sizes: np.ndarray, lengths: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return components `(N, R, 2)` and visits `(N, R - 2)` as in [`BoxScores`]; NaN and -1 for too few frames."""
    count, most = len(sizes), len(curves)
    components, visits = np.full((count, most, 2), np.nan), np.full((count, most - 2), -1)
    filled = np.flatnonzero(sizes > 0)
    first, size, final = starts[filled], sizes[filled], lengths[filled] - 1
    last = first + size - 1
    step = np.arange(END_FRAMES)
    within = step < size[:, None]
    share = within / within.sum(axis=1, keepdims=True)
    # Steps outside a video have weight 0; clipping only keeps their index inside the array.
    head = curves[0, np.minimum(first[:, None] + step, last[:, None])]
    tail = curves[final[:, None], np.maximum(last[:, None] - step, first[:, None])]
    components[filled, 0, 0] = (head * share).sum(axis=1)
    components[filled, final, 0] = (tail * share).sum(axis=1)
    components[filled, 0, 1] = (curves[0, first] - curves[0, last]) / 2
    components[filled, final, 1] = (curves[final, last] - curves[final, first]) / 2
    for length in range(3, most + 1):
        rows = np.flatnonzero((lengths == length) & (sizes >= END_FRAMES * length))
        if len(rows):
            components[rows, :length], visits[rows, : length - 2] = sequence_components(
                components[rows, :length], curves[:length], starts[rows], sizes[rows]
            )
    return components, visits
