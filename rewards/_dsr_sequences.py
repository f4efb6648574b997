"""
DSR-Score of sequences of more than two relations, such as left, then top, then right. This is ours, not the paper's.

The formulas are at the top of `_dsr_geometry.py`.
"""

import numpy as np

from spatialalign_trl.prompts import END_FRAMES


def sequence_components(
    components: np.ndarray, curves: np.ndarray, starts: np.ndarray, sizes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """
    Compute the scores and gaps of `V` videos with `R` > 2 relations each.

    Args:
        components (`np.ndarray` of shape `(V, R, 2)`):
            The components of the two ends; their scores are kept.
        curves (`np.ndarray` of shape `(R, n)`):
            SSR of the relations over the counted frames of all videos.
        starts, sizes (`np.ndarray` of shape `(V,)`):
            The counted frames of each video: `sizes[k]` >= 3 R, beginning at `starts[k]`.

    Returns:
        `(np.ndarray, np.ndarray)`: the components of all relations, of shape `(V, R, 2)`, and the first frame of each
        visit, counted from `starts`, of shape `(V, R - 2)`.
    """
    relations, rows = len(curves), np.arange(len(starts))
    # (V, R, longest): clipping only keeps the index inside the array.
    step = np.minimum(np.arange(sizes.max()), sizes[:, None] - 1)
    each = curves[:, starts[:, None] + step].swapaxes(0, 1)
    means = sum(each[:, :, k : each.shape[2] - END_FRAMES + 1 + k] for k in range(END_FRAMES)) / END_FRAMES
    visits = place_visits(means[:, 1:-1], sizes)

    stages = np.empty((len(starts), relations, relations))  # curve k at stage j
    stages[:, :, 0] = each[:, :, 0]
    stages[:, :, -1] = each[rows, :, sizes - 1]
    for k in range(relations - 2):
        stages[:, :, k + 1] = means[rows, :, visits[:, k]]
    components = components.copy()
    for k in range(relations):
        neighbours = [j for j in (k - 1, k + 1) if 0 <= j < relations]
        components[:, k, 1] = (stages[:, k, k] - stages[:, k, neighbours].mean(axis=1)) / 2
        if 0 < k < relations - 1:
            components[:, k, 0] = stages[:, k, k]
    return components, visits


def place_visits(means: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """
    Find the ordered, disjoint visits with the largest sum of means; the earliest ones among equals.

    Args:
        means (`np.ndarray` of shape `(V, M, S)`):
            Means of the `M` middle relations' curves over three frames, starting at each of `S` frames.
        sizes (`np.ndarray` of shape `(V,)`):
            Counted frames of each video, at least `3 (M + 2)`: the first and the last three belong to the ends.

    Returns:
        `np.ndarray` of shape `(V, M)`: the first frame of each visit.
    """
    videos, count, places = means.shape
    start = np.arange(places)
    # Dynamic programming: the best sum of the visits up to the k-th, if the k-th starts at this frame
    totals = np.empty_like(means)
    for k in range(count):
        latest = sizes[:, None] - (count + 1 - k) * END_FRAMES  # leaves room for later visits and the end
        totals[:, k] = np.where((start >= (k + 1) * END_FRAMES) & (start <= latest), means[:, k], -np.inf)
        if k > 0:
            totals[:, k, END_FRAMES:] += np.maximum.accumulate(totals[:, k - 1], axis=1)[:, :-END_FRAMES]
    # Read the visits off backwards, each ending before the next begins
    visits = np.empty((videos, count), np.int64)
    limit = np.full((videos, 1), places)
    for k in reversed(range(count)):
        visits[:, k] = np.where(start <= limit, totals[:, k], -np.inf).argmax(axis=1)
        limit = visits[:, k, None] - END_FRAMES
    return visits
