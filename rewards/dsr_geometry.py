"""
DSR-Score, the geometry: boxes over time -> how well a clip obeys "starts in one relation, ends in another".

Source: SpatialAlign, arXiv 2602.22745, in the form its authors' released code computes it (the printed formula can
exceed 1). Pure NumPy on boxes, no video and no model; `dsr_score.py` puts the reward callable on top.

Per frame, with centres c, widths w and heights h of animal a and object o (pixels, y down):

    v = c_a - c_o     W = (w_a + w_o)/2     H = (h_a + h_o)/2
    cos = v/|v|       (0 when |v| = 0)
    d_x = clip(|v_x|/W, 0, 1)               d_y = clip(|v_y|/H, 0, 1)
    SSR_L = -cos_x*d_x     SSR_R = +cos_x*d_x     SSR_T = -cos_y*d_y              each in [-1, 1]

Over the counted frames in time order, i = curve of the initial relation, f = curve of the final one:

    initial_score = mean(i[:3])      initial_gap = (i[0]  - i[-1])/2
    final_score   = mean(f[-3:])     final_gap   = (f[-1] - f[0])/2
    DSR = (initial_score + initial_gap + final_score + final_gap)/8 + 1/2                  in [0, 1]
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from spatialalign_trl.perception.tracks import Tracks
from spatialalign_trl.prompts import split_type

# The paper's clips have 81 frames, of which at least 20 must show both animal and object.
PAPER_NUM_FRAMES = 81
PAPER_MIN_FRAMES = 20
# Frames averaged at either end of a curve.
END_FRAMES = 3
# The direction (x, y; y down) in which the animal lies from the object. SSR is the projection onto it.
DIRECTIONS: dict[str, tuple[int, int]] = {"L": (-1, 0), "R": (1, 0), "T": (0, -1)}

Frames = Iterable[tuple[int, Sequence[str], np.ndarray]]


@dataclass(frozen=True, eq=False)
class DSRResult:
    """
    DSR-Score of one video.

    Args:
        score (`float`, *optional*):
            DSR-Score in [0, 1]; `None` when the video is INVALID (a third state: neither 0 nor left out of a share).
        initial_score, initial_gap, final_score, final_gap (`float`, *optional*):
            The four components, each in [-1, 1]; `None` when INVALID.
        initial_curve, final_curve (`np.ndarray` of shape `(n,)`):
            SSR of the initial and of the final relation over the `n` counted frames, in time order.
        frame_indices (`np.ndarray` of shape `(n,)`):
            The counted frames' positions in the clip, ascending.
        reason (`str`, *optional*):
            Why the video is INVALID; `None` when it has a score.
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


def required_frames(num_frames: int) -> int:
    """
    The number of counted frames a clip needs: the paper's share of 20 in 81, rounded up, and never fewer than the
    three that are averaged at an end. 81 -> 20, 49 -> 13, 33 -> 9, 13 -> 4, 9 -> 3.

    Args:
        num_frames (`int`):
            Length of the clip in frames.

    Raises:
        `ValueError`: when `num_frames` is not positive.
    """
    if num_frames < 1:
        raise ValueError(f"num_frames must be at least 1, got {num_frames}.")
    return max(END_FRAMES, -(-PAPER_MIN_FRAMES * num_frames // PAPER_NUM_FRAMES))


def relation_directions(dsr_type: str, animal: str, object: str, where: str) -> list[tuple[int, int]]:
    """
    Image directions `(x, y)` of the initial and the final relation, y down, of a question that can be asked.

    Raises:
        `ValueError`: for an unknown type, or when animal and object are the same word; `where` opens the message.
    """
    if animal.strip().lower() == object.strip().lower():
        raise ValueError(
            f"{where}: animal and object are both {animal!r}; their boxes cannot be told apart, so there is "
            "no spatial relation to score. Use two different nouns."
        )
    return [DIRECTIONS[code] for code in split_type(dsr_type)]


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
    DSR-Score of one video from its boxes.

    Args:
        frames (iterable of `(frame_index, labels, boxes_xyxy)`):
            In any order, each index once; `boxes_xyxy` of shape `(n, 4)` in pixels. A frame counts when its labels are
            exactly the animal and the object and neither box has zero width, nor both zero height (an empty mask). A
            [`~spatialalign_trl.perception.tracks.Tracks`] brings its own `num_frames` and `reason`.
        animal, object (`str`):
            The two nouns, as they stand in the labels.
        dsr_type (`str`):
            Initial and final relation, such as `"LR"`.
        num_frames (`int`, *optional*):
            Length of the clip, from which `min_frames` follows (see [`required_frames`]).
        min_frames (`int`, *optional*):
            Counted frames below which the video is INVALID. Defaults to `required_frames(num_frames)`, and to the
            paper's 20 when the length is not known.

    Raises:
        `ValueError`: for an unknown type, an animal that equals the object, or boxes that are no boxes.
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
    DSR-Score of many videos at once: the frames of all videos lie in one array, a video is a stretch of it.

    Args:
        tracks, animals, objects, dsr_types (sequences of length `N`):
            As in [`score_tracks`].
        num_frames (`int` or sequence of `N`, *optional*):
            One length for all, or one each.
        min_frames (`int`, *optional*):
            As in [`score_tracks`].

    Raises:
        `ValueError`: as [`score_tracks`], naming the video; also when the lengths differ.
    """
    count = len(tracks)
    for name, values in (("animals", animals), ("objects", objects), ("dsr_types", dsr_types)):
        if isinstance(values, str) or len(values) != count:
            raise ValueError(f"{name} must be a list with one entry for each of the {count} videos, got {values!r}.")
    lengths = [num_frames] * count if num_frames is None or isinstance(num_frames, int) else list(num_frames)
    if len(lengths) != count:
        raise ValueError(f"num_frames must be one number or one for each of the {count} videos, got {len(lengths)}.")
    if min_frames is not None and min_frames < 1:
        raise ValueError(f"min_frames must be at least 1, got {min_frames}.")
    if count == 0:
        return []

    directions = np.empty((count, 2, 2))  # video, (initial, final), (x, y)
    for k, dsr_type in enumerate(dsr_types):
        directions[k] = relation_directions(dsr_type, animals[k], objects[k], where=f"video {k}")
    needed, reasons = [], []
    for k, frames in enumerate(tracks):
        own = frames if isinstance(frames, Tracks) else None
        if lengths[k] is None and own is not None:
            lengths[k] = own.num_frames
        reasons.append(own.reason if own is not None else None)
        needed.append(min_frames or (PAPER_MIN_FRAMES if lengths[k] is None else required_frames(lengths[k])))

    video, index, boxes = _gather(tracks, animals, objects, lengths)
    width, height = boxes[:, :, 2] - boxes[:, :, 0], boxes[:, :, 3] - boxes[:, :, 1]
    counted = (width > 0).all(axis=1) & (height > 0).any(axis=1)
    video, index, boxes = video[counted], index[counted], boxes[counted]
    # (frames, (initial, final)): the projection of each frame's offset onto its video's two directions.
    curves = np.einsum("nrd,nd->nr", directions[video], spatial_offsets(boxes))

    sizes = np.bincount(video, minlength=count)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    components = _components(curves, starts, sizes)
    scores = components.sum(axis=1) / 8 + 0.5

    results = []
    for k in range(count):
        stretch = slice(starts[k], starts[k] + sizes[k])
        shown = {
            "initial_curve": curves[stretch, 0],
            "final_curve": curves[stretch, 1],
            "frame_indices": index[stretch],
        }
        reason = reasons[k]
        if reason is None and sizes[k] < needed[k]:
            of = f" of {lengths[k]}" if lengths[k] is not None else ""
            reason = (
                f"only {sizes[k]}{of} frames show exactly one {animals[k]} and one {objects[k]}; "
                f"at least {needed[k]} are needed"
            )
        if reason is None:
            names = ("initial_score", "initial_gap", "final_score", "final_gap")
            shown |= dict(zip(names, components[k].tolist(), strict=True)) | {"score": float(scores[k])}
        results.append(DSRResult(**shown, reason=reason))
    return results


def spatial_offsets(boxes: np.ndarray) -> np.ndarray:
    """
    Where the animal lies from the object, per frame: `(cos_x*d_x, cos_y*d_y)`, y down.

    Args:
        boxes (`np.ndarray` of shape `(n, 2, 4)`):
            Animal's and object's box; the mean width and the mean height must not be 0.

    Returns:
        `np.ndarray` of shape `(n, 2)`: in [-1, 1].
    """
    offset = (boxes[:, 0, :2] + boxes[:, 0, 2:]) / 2 - (boxes[:, 1, :2] + boxes[:, 1, 2:]) / 2
    reach = (boxes[:, :, 2:] - boxes[:, :, :2]).mean(axis=1)
    distance = np.linalg.norm(offset, axis=1, keepdims=True)
    cosine = np.divide(offset, distance, out=np.zeros_like(offset), where=distance > 0)
    return cosine * np.clip(np.abs(offset) / reach, 0, 1)


def _components(curves: np.ndarray, starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The four components of each stretch of `sizes[k]` frames from `starts[k]`, shape `(N, 4)`; NaN where empty."""
    components = np.full((len(sizes), 4), np.nan)
    filled = sizes > 0
    first, size = starts[filled], sizes[filled]
    last = first + size - 1
    step = np.arange(END_FRAMES)
    within = step < size[:, None]
    share = within / within.sum(axis=1, keepdims=True)
    # Steps outside a stretch carry weight 0; clipping only keeps their index inside the array.
    head = curves[np.minimum(first[:, None] + step, last[:, None]), 0]
    tail = curves[np.maximum(last[:, None] - step, first[:, None]), 1]
    components[filled] = np.stack(
        [
            (head * share).sum(axis=1),
            (curves[first, 0] - curves[last, 0]) / 2,
            (tail * share).sum(axis=1),
            (curves[last, 1] - curves[first, 1]) / 2,
        ],
        axis=1,
    )
    return components


def _gather(
    tracks: Sequence[Frames], animals: Sequence[str], objects: Sequence[str], lengths: Sequence[int | None]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    The frames labelled exactly {animal, object}, of all videos, by video and then by time: video `(n,)`, frame index
    `(n,)`, boxes `(n, 2, 4)` with the animal first.
    """
    video, index, boxes, object_first = [], [], [], []
    for k, frames in enumerate(tracks):
        nouns, seen = {animals[k], objects[k]}, set()
        for frame_index, labels, frame_boxes in frames:
            counts = len(labels) == 2 and set(labels) == nouns
            problem = _problem(frame_index, labels, frame_boxes, lengths[k], counts)
            if problem is None and frame_index in seen:
                problem = "the frame index appears twice; give every frame once"
            if problem is not None:
                raise ValueError(f"video {k}, frame {frame_index}: {problem}.")
            seen.add(frame_index)
            if not counts:
                continue
            video.append(k)
            index.append(frame_index)
            object_first.append(labels[0] == objects[k])
            boxes.append(frame_boxes)
    video, index = np.asarray(video, dtype=np.int64), np.asarray(index, dtype=np.int64)
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 2, 4)
    object_first = np.asarray(object_first, dtype=bool)
    boxes[object_first] = boxes[object_first, ::-1]
    bad = ~np.isfinite(boxes).all(axis=(1, 2)) | (boxes[:, :, 2:] < boxes[:, :, :2]).any(axis=(1, 2))
    if bad.any():
        n = int(np.flatnonzero(bad)[0])
        raise ValueError(
            f"video {video[n]}, frame {index[n]}: boxes must be finite with x1 <= x2 and y1 <= y2, in pixels; "
            f"got {boxes[n].tolist()}."
        )
    order = np.lexsort((index, video))
    return video[order], index[order], boxes[order]


def _problem(
    frame_index: int, labels: Sequence[str], boxes: np.ndarray, num_frames: int | None, counts: bool
) -> str | None:
    """What is wrong with one frame's entry, if anything."""
    if frame_index < 0 or (num_frames is not None and frame_index >= num_frames):
        return "the index lies outside the clip" + ("" if num_frames is None else f" of {num_frames} frames")
    if len(labels) != len(boxes):
        return f"{len(labels)} labels but {len(boxes)} boxes"
    if counts and np.shape(boxes) != (2, 4):
        return f"a box must be four numbers x1, y1, x2, y2; got {boxes!r}"
    return None
