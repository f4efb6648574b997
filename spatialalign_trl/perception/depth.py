"""
How near things are to the camera: depth maps of frames, and the nearness of two boxes read off them.

Ours, not the paper's, whose relations all lie in the picture's plane; "in front of" and "behind" need this. What the
numbers cannot tell:

- Nearness is relative. A monocular estimator knows no metres, and from frame to frame its scale may flicker.
- A box is measured by its median. Where a thing fills less than half of its box, the background is measured.
- Differences are shares of the whole clip's depth range, so that the same step behind a bench counts less in front of
  a wide landscape than in front of a wall. "Fully in front" does not exist as "fully left of" does: scores of these
  relations stay closer to the middle, and thresholds tuned on left and right do not carry over.
- A thing that is hidden has no nearness of its own: what hides it is measured.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from spatialalign_trl.perception.checkpoints import PretrainedModel, RunsPretrained
from spatialalign_trl.perception.tracks import Tracks, make_named

if TYPE_CHECKING:
    import torch

    from spatialalign_trl.video import Video

# Name -> "module:class", as TRACKERS.
DEPTH_ESTIMATORS: dict[str, str] = {
    "depth_anything": "spatialalign_trl.perception.depth:DepthAnythingEstimator",
}
DEFAULT_CHECKPOINT = "depth-anything/Depth-Anything-V2-Small-hf"
_CLASSES = {"depth_anything": ("AutoModelForDepthEstimation", "AutoImageProcessor")}
# The clip's depth range: what lies outside counts as the nearest or the farthest.
RANGE_PERCENTILES = (5, 95)
# Pixels of a clip that its range is measured on, evenly spread.
RANGE_SAMPLES = 1 << 20
# Of a box that another one overlaps, the free part is measured if it is at least this share of the box.
MIN_FREE_SHARE = 0.25


@runtime_checkable
class DepthEstimator(Protocol):
    """
    Estimates how near every pixel of a clip is.

    `nearness` takes a clip (`uint8`, `(T, height, width, 3)`) and returns `float32` `(T, height, width)` in any unit
    that is one for the whole clip, larger = nearer. Two more methods are used where they are there: `prepare()`
    refuses, before any work, what could not be loaded, and `release()` frees the model.
    """

    def nearness(self, video: Video) -> np.ndarray: ...


def get_depth_estimator(estimator: str | DepthEstimator, **options: Any) -> DepthEstimator:
    """
    Give back a depth estimator, looking it up when it is named. No model is loaded.

    Args:
        estimator (`str` or `DepthEstimator`):
            A name in `DEPTH_ESTIMATORS`, or an object with a `nearness` method, which is returned as it is.
        options:
            Arguments of the named estimator's constructor.

    Raises:
        `ValueError`: when no estimator has that name.
        `TypeError`: for an option it does not take, or an object that has no `nearness` method.
    """
    if isinstance(estimator, str):
        return make_named(estimator, DEPTH_ESTIMATORS, kind="depth estimator", options=options)
    if isinstance(estimator, type) or not callable(getattr(estimator, "nearness", None)):
        raise TypeError(
            f"A depth estimator needs a method nearness(video); {estimator!r} has none, or is a class. Pass an object "
            f"that has it or one of the names {', '.join(sorted(DEPTH_ESTIMATORS))}."
        )
    if options:
        raise TypeError(f"The options {', '.join(options)} are for a depth estimator given by name.")
    return estimator


class DepthAnythingEstimator(RunsPretrained):
    """
    Depth Anything (arXiv 2401.10891, 2406.09414), a monocular estimator, through transformers.

    The default checkpoint gives relative inverse depth, which is nearness up to scale and shift. Of a metric
    checkpoint (`depth_estimation_type: metric` in its config) the inverse of the depth is taken.

    Args:
        checkpoint (`str` or `os.PathLike`, *optional*, defaults to `"depth-anything/Depth-Anything-V2-Small-hf"`):
            A Hub id or a local folder. It is loaded when the first clip comes, once.
        batch_size (`int`, *optional*):
            Frames that go through the model at once; by default 8 on CUDA and 1 on the CPU, where more gain nothing.
        device, revision (*optional*):
            As of [`~spatialalign_trl.perception.checkpoints.PretrainedModel`].
        dtype (`str` or `torch.dtype`, *optional*, defaults to `"float32"`):
            Not bfloat16 on CUDA, as elsewhere: its 8 bits are few for the difference of two depths.
    """

    name = "depth_anything"

    def __init__(
        self,
        checkpoint: str | os.PathLike = DEFAULT_CHECKPOINT,
        batch_size: int | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = "float32",
        revision: str | None = None,
    ) -> None:
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1, or None to choose by the device.")
        self.batch_size = batch_size
        self.pretrained = PretrainedModel(checkpoint, _CLASSES, device=device, dtype=dtype, revision=revision)

    def nearness(self, video: Video) -> np.ndarray:
        """
        How near every pixel is, larger = nearer, in the model's own unit.

        Args:
            video (`np.ndarray` of shape `(T, height, width, 3)`, `uint8`):
                The clip.

        Returns:
            `np.ndarray` of shape `(T, height, width)`, `float32`.
        """
        return np.concatenate([maps.cpu().numpy() for maps in self._maps(video)])

    def _maps(self, video: Video) -> Iterator[torch.Tensor]:
        import torch

        model, processor = self.pretrained.load()
        device = self.pretrained.device
        size = self.batch_size or (8 if device.type == "cuda" else 1)
        metric = getattr(model.config, "depth_estimation_type", "relative") == "metric"
        for start in range(0, len(video), size):
            inputs = processor(images=list(video[start : start + size]), return_tensors="pt").to(device)
            with torch.inference_mode(), self.pretrained.autocast():
                maps = model(**inputs).predicted_depth.float()
                if metric:
                    maps = 1 / maps.clamp(min=1e-3)
                yield torch.nn.functional.interpolate(maps[:, None], video.shape[1:3], mode="bilinear")[:, 0]


def add_nearness(tracks: Tracks, video: Video, estimator: DepthEstimator, animal: str, object: str) -> Tracks:
    """
    Tracks with the nearness of the animal and the object on the frames that show exactly these two.

    Args:
        tracks ([`~spatialalign_trl.perception.tracks.Tracks`]):
            Boxes of the clip; left as they are.
        video (`np.ndarray` of shape `(T, height, width, 3)`, `uint8`):
            The clip.
        estimator ([`DepthEstimator`]):
            What measures it.
        animal, object (`str`):
            Their labels.

    Raises:
        `ValueError`: when the estimator returns anything but finite maps, one for each frame.
    """
    boxes = np.full((len(video), 2, 4), np.nan)
    for frame in tracks:
        inside = 0 <= frame.frame_index < len(video)  # the score names the frame that is not
        if inside and len(frame.labels) == 2 and set(frame.labels) == {animal, object}:
            boxes[frame.frame_index] = frame.boxes[:: 1 if frame.labels[0] == animal else -1]
    return replace(tracks, nearness=box_nearness(estimator.nearness(video), boxes))


def box_nearness(maps: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """
    Nearness of two boxes on every frame: the median inside each box, as a share of the clip's depth range.

    The part of a box that lies in the other one is left out, because it shows whichever of the two is in front; where
    less than a quarter of the box would be left, all of it is taken. The range is that between the 5th and the 95th
    percentile of all pixels of the clip, so that the difference of the two lies in [-1, 1] and a stray pixel does not
    set the scale. A clip of one depth has nearness 0.5 everywhere.

    Args:
        maps (`np.ndarray` of shape `(T, height, width)`):
            A clip's depth maps, larger = nearer.
        boxes (`np.ndarray` of shape `(T, 2, 4)`):
            `x1, y1, x2, y2` in pixels; NaN, empty or outside the picture where there is none.

    Returns:
        `np.ndarray` of shape `(T, 2)`: in [0, 1]; NaN where a box is none.

    Raises:
        `ValueError`: when the maps are not finite, or not one for each frame.
    """
    maps, boxes = np.asarray(maps), np.asarray(boxes, np.float64)
    if maps.ndim != 3 or len(maps) != len(boxes):
        raise ValueError(f"depth maps must have the shape ({len(boxes)}, height, width), got {maps.shape}.")
    if not np.isfinite(maps).all():
        bad = int(np.argmin(np.isfinite(maps).all(axis=(1, 2))))
        raise ValueError(f"depth maps must be finite; the one of frame {bad} is not.")
    medians = np.full(boxes.shape[:2], np.nan)
    for frame, (depth, pair) in enumerate(zip(maps, boxes, strict=True)):
        for one in range(2):
            seen = _seen(depth, pair[one], pair[1 - one])
            if seen.size:
                medians[frame, one] = np.median(seen)
    step = max(1, maps.size // RANGE_SAMPLES)
    far, near = np.percentile(maps.reshape(-1)[::step].astype(np.float64), RANGE_PERCENTILES)
    if near <= far:
        return np.where(np.isnan(medians), np.nan, 0.5)
    return np.clip((medians - far) / (near - far), 0, 1)


def _seen(depth: np.ndarray, box: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The depths inside `box`, those inside `other` left out if enough remain; empty when it is no box."""
    own = _pixels(box, depth.shape)
    if own is None:
        return depth[:0]
    rows, columns = own
    free = np.ones(depth[rows, columns].shape, bool)
    hidden = _pixels(other, depth.shape)
    if hidden is not None:
        down, right = (
            slice(max(theirs.start - mine.start, 0), max(theirs.stop - mine.start, 0))
            for theirs, mine in zip(hidden, own, strict=True)
        )
        free[down, right] = False
    inside = depth[rows, columns]
    return inside[free] if free.mean() >= MIN_FREE_SHARE else inside


def _pixels(box: np.ndarray, size: tuple[int, int]) -> tuple[slice, slice] | None:
    """Rows and columns of the pixels that a box touches inside the picture; `None` when there are none."""
    if np.isnan(box).any() or box[2] <= box[0] or box[3] <= box[1]:
        return None
    left, top = np.floor(np.maximum(box[:2], 0)).astype(int)
    right, bottom = np.ceil(np.minimum(box[2:], size[::-1])).astype(int)
    return (slice(top, bottom), slice(left, right)) if left < right and top < bottom else None
