"""Measure how pixels move from frame to frame: optical flow by OpenCV's DIS (arXiv 1603.03590)."""

from __future__ import annotations

from typing import Any

import numpy as np

from spatialalign_trl.video import Video

# Longer side in pixels of the frames on which flow is measured: enough for a walking animal, and fast.
FLOW_SIDE = 256
# Share of pixels to average over. The moving animal is small: the mean over all pixels would measure its size.
FASTEST_SHARE = 0.05


def opencv(user: str) -> Any:
    """Import `cv2`. Raises an `ImportError` that names the component that needs it, and the extra to install."""
    try:
        import cv2
    except ImportError as error:
        raise ImportError(f"{user} needs OpenCV: pip install 'spatialalign-trl[motion]'") from error
    return cv2


def flow_fields(video: Video, user: str = "optical flow") -> list[np.ndarray]:
    """
    Compute the flow from each frame to the next, on frames resized to a longer side of `FLOW_SIDE`.

    Args:
        video (`np.ndarray` of shape `(frames, height, width, 3)`, `uint8`):
            The clip.
        user (`str`, *optional*):
            Name of the component for the error message when OpenCV is missing.

    Returns:
        `list[np.ndarray]`: `frames - 1` arrays of shape `(height, width, 2)`, in pixels of the scaled frame.

    Raises:
        `ImportError`: when OpenCV is missing.
    """
    cv2 = opencv(user)
    scale = FLOW_SIDE / max(video.shape[1:3])
    size = [max(round(side * scale), 32) for side in video.shape[1:3]]
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    gray = [
        cv2.resize(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), size[::-1], interpolation=interpolation) for frame in video
    ]
    flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    return [flow.calc(before, after, None) for before, after in zip(gray, gray[1:], strict=False)]


def fastest_speed(field: np.ndarray) -> float:
    """Return the mean length of the fastest 5 % of a flow field's vectors, in diagonals of the frame."""
    lengths = np.linalg.norm(field, axis=-1).ravel()
    count = max(int(FASTEST_SHARE * lengths.size), 1)
    return float(np.partition(lengths, -count)[-count:].mean() / np.hypot(*field.shape[:2]))


def smoothness(fields: list[np.ndarray]) -> float | None:
    """
    Measure how steady the motion is: `1 - sum |b - a| / sum (|a| + |b|)` over the fastest 5 % of the pixels of each
    frame, where `a` is a pixel's step to the next frame and `b` the step that follows from its new position.

    Args:
        fields (`list[np.ndarray]`):
            The result of [`flow_fields`].

    Returns:
        `float` or `None`: in [0, 1]; 1 for uniform motion, 0 for trembling on the spot. `None` when these pixels move
        by less than a tenth of a pixel per frame, or there are fewer than two steps.

    Raises:
        `ImportError`: when OpenCV is missing.
    """
    cv2 = opencv("smoothness")
    jerk, total, count = 0.0, 0.0, 0
    for first, second in zip(fields, fields[1:], strict=False):
        lengths = np.linalg.norm(first, axis=-1)
        rows, columns = np.indices(lengths.shape, dtype=np.float32)
        arrived = cv2.remap(second, columns + first[..., 0], rows + first[..., 1], cv2.INTER_LINEAR)
        fastest = lengths >= np.quantile(lengths, 1 - FASTEST_SHARE)
        jerk += float(np.linalg.norm(arrived - first, axis=-1)[fastest].sum())
        total += float((np.linalg.norm(arrived, axis=-1) + lengths)[fastest].sum())
        count += int(fastest.sum())
    if not count or total / (2 * count) < 0.1:
        return None
    return float(np.clip(1 - jerk / total, 0.0, 1.0))
