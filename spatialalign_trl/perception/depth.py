"""
Estimate depth maps of frames, and measure on them how near two boxes are to the camera.

The relations "in front of" and "behind" need this. It is our addition: all relations of the paper lie in the image
plane. Limits of the measurement:

- Nearness is relative. A monocular estimator does not know metres, and its scale may flicker from frame to frame.
- The nearness of a box is the median inside it. If an object fills less than half of its box, this is the background.
- Differences are shares of the whole clip's depth range, so the same step behind a bench counts less in front of a
  wide landscape than in front of a wall. There is no "fully in front" as there is a "fully left of": scores of these
  relations stay closer to the middle, and thresholds tuned on left and right do not carry over.
- A hidden object cannot be measured: its box shows whatever hides it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from spatialalign_trl.perception.checkpoints import PretrainedModel, RunsPretrained
from spatialalign_trl.perception.tracks import Tracks, get_named

if TYPE_CHECKING:
    import torch

    from spatialalign_trl.video import Video

# Name -> "module:class", in the form of TRACKERS.
DEPTH_ESTIMATORS: dict[str, str] = {
    "depth_anything": "spatialalign_trl.perception.depth:DepthAnythingEstimator",
}
DEFAULT_CHECKPOINT = "depth-anything/Depth-Anything-V2-Small-hf"
_CLASSES = {"depth_anything": ("AutoModelForDepthEstimation", "AutoImageProcessor")}
# Percentiles that bound the clip's depth range. Values outside it are clipped to the nearest or the farthest.
RANGE_PERCENTILES = (5, 95)
# Number of evenly spaced pixels of a clip on which the range is measured.
RANGE_SAMPLES = 1 << 20
# Where two boxes overlap, only the free part of a box is measured if it is at least this share of the box.
MIN_FREE_SHARE = 0.25


@runtime_checkable
class DepthEstimator(Protocol):
    """
    Estimates how near every pixel of a clip is to the camera.

    `nearness` takes a clip (`uint8`, `(T, height, width, 3)`) and returns `float32` `(T, height, width)`, larger =
    nearer, in any unit that is the same for the whole clip. Two more methods are optional: `prepare()` raises, before
    anything is sampled, when the model cannot be loaded, and `release()` frees the model.
    """

    def nearness(self, video: Video) -> np.ndarray: ...


def get_depth_estimator(estimator: str | DepthEstimator, **options: Any) -> DepthEstimator:
    """
    Return a depth estimator, looking it up if it is given by name. No model is loaded.

    Args:
        estimator (`str` or `DepthEstimator`):
            A name in `DEPTH_ESTIMATORS`, or an object with a `nearness` method, which is returned unchanged.
        options:
            Arguments of the named estimator's constructor.

    Raises:
        `ValueError`: when no estimator has that name.
        `TypeError`: for an option it does not take, options passed with an object, a class instead of an instance, or
            an object without a `nearness` method.
    """
    return get_named(estimator, DEPTH_ESTIMATORS, kind="depth estimator", method="nearness(video)", options=options)


class DepthAnythingEstimator(RunsPretrained):
    """
    Depth Anything (arXiv 2401.10891, 2406.09414), a monocular depth estimator, run with transformers.

    The default checkpoint predicts relative inverse depth, which is nearness up to scale and shift. For a metric
    checkpoint (`depth_estimation_type: metric` in its config), nearness is the inverse of the predicted depth.

    Args:
        checkpoint (`str` or `os.PathLike`, *optional*, defaults to `"depth-anything/Depth-Anything-V2-Small-hf"`):
            A Hub id or a local folder. It is loaded once, for the first clip.
        batch_size (`int`, *optional*):
            Frames per batch. Defaults to 8 on CUDA and to 1 on the CPU, where larger batches are not faster.
        device, revision (*optional*):
            See [`~spatialalign_trl.perception.checkpoints.PretrainedModel`].
        dtype (`str` or `torch.dtype`, *optional*, defaults to `"float32"`):
            Precision of the computation. Unlike the other models, it is not bfloat16 on CUDA: 8 bits are too few for
            the difference of two depths.
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
        Estimate how near every pixel is.

        Args:
            video (`np.ndarray` of shape `(T, height, width, 3)`, `uint8`):
                The clip.

        Returns:
            `np.ndarray` of shape `(T, height, width)`, `float32`: larger = nearer, in the model's unit.
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
    Add the nearness of the animal and the object, on the frames that show exactly these two, to the tracks of a clip.

    Args:
        tracks ([`~spatialalign_trl.perception.tracks.Tracks`]):
            Boxes of the clip. They are not modified.
        video (`np.ndarray` of shape `(T, height, width, 3)`, `uint8`):
            The clip.
        estimator ([`DepthEstimator`]):
            Estimates the depth maps.
        animal, object (`str`):
            Their labels in the tracks.

    Returns:
        [`~spatialalign_trl.perception.tracks.Tracks`]: a copy with `nearness`.

    Raises:
        `ValueError`: when the estimator does not return one finite map per frame.
    """
    boxes = np.full((len(video), 2, 4), np.nan)
    for frame in tracks:
        inside = 0 <= frame.frame_index < len(video)  # the score raises for a frame outside the clip
        if inside and len(frame.labels) == 2 and set(frame.labels) == {animal, object}:
            boxes[frame.frame_index] = frame.boxes[:: 1 if frame.labels[0] == animal else -1]
    return replace(tracks, nearness=box_nearness(estimator.nearness(video), boxes))


def box_nearness(maps: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """
    Measure the nearness of two boxes on every frame: the median inside each box, as a share of the clip's depth range.

    The intersection of the two boxes is left out, because it shows whichever object is in front. If less than a
    quarter of a box would be left, the whole box is measured. The range lies between the 5th and the 95th percentile
    of all pixels of the clip, so that the difference of two boxes lies in [-1, 1] and a stray pixel does not set the
    scale. In a clip of constant depth, nearness is 0.5 everywhere.

    Args:
        maps (`np.ndarray` of shape `(T, height, width)`):
            Depth maps of a clip, larger = nearer.
        boxes (`np.ndarray` of shape `(T, 2, 4)`):
            `x1, y1, x2, y2` in pixels; NaN, empty or outside the frame where an object was not found.

    Returns:
        `np.ndarray` of shape `(T, 2)`: in [0, 1]; NaN where an object was not found.

    Raises:
        `ValueError`: when the maps are not finite, or their number is not that of the frames.
    """
    maps, boxes = np.asarray(maps), np.asarray(boxes, np.float64)
    if maps.ndim != 3 or len(maps) != len(boxes):
        raise ValueError(f"depth maps must have the shape ({len(boxes)}, height, width), got {maps.shape}.")
    if not np.isfinite(maps).all():
        bad = int(np.argmin(np.isfinite(maps).all(axis=(1, 2))))
        raise ValueError(f"depth maps must be finite; the one of frame {bad} is not. Check the depth estimator.")
    medians = np.full(boxes.shape[:2], np.nan)
    for frame, (depth, pair) in enumerate(zip(maps, boxes, strict=True)):
        for index in range(2):
            visible = _visible_depths(depth, pair[index], pair[1 - index])
            if visible.size:
                medians[frame, index] = np.median(visible)
    step = max(1, maps.size // RANGE_SAMPLES)
    far, near = np.percentile(maps.reshape(-1)[::step].astype(np.float64), RANGE_PERCENTILES)
    if near <= far:
        return np.where(np.isnan(medians), np.nan, 0.5)
    return np.clip((medians - far) / (near - far), 0, 1)


def _visible_depths(depth: np.ndarray, box: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the depths inside `box`, without those inside `other` if enough remain; empty if `box` is no box."""
    window = _pixels(box, depth.shape)
    if window is None:
        return depth[:0]
    rows, columns = window
    free = np.ones(depth[rows, columns].shape, bool)
    other_window = _pixels(other, depth.shape)
    if other_window is not None:
        overlap_rows, overlap_columns = (
            slice(max(theirs.start - ours.start, 0), max(theirs.stop - ours.start, 0))
            for theirs, ours in zip(other_window, window, strict=True)
        )
        free[overlap_rows, overlap_columns] = False
    inside = depth[rows, columns]
    return inside[free] if free.mean() >= MIN_FREE_SHARE else inside


def _pixels(box: np.ndarray, size: tuple[int, int]) -> tuple[slice, slice] | None:
    """Return the rows and columns of the pixels that a box touches inside the frame; `None` if there are none."""
    if np.isnan(box).any() or box[2] <= box[0] or box[3] <= box[1]:
        return None
    left, top = np.floor(np.maximum(box[:2], 0)).astype(int)
    right, bottom = np.ceil(np.minimum(box[2:], size[::-1])).astype(int)
    return (slice(top, bottom), slice(left, right)) if left < right and top < bottom else None
