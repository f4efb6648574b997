"""How pixels move from frame to frame: optical flow by OpenCV's DIS (arXiv 1603.03590)."""

from __future__ import annotations

from typing import Any

import numpy as np

from spatialalign_trl.video import Video

# The longer side of the frames that flow is measured on: enough for a walking animal, and quick.
FLOW_SIDE = 256
# What moves is small: an animal in a landscape. The mean over all pixels would measure its size.
FASTEST_SHARE = 0.05


def opencv(user: str) -> Any:
    """The module `cv2`. Raises an `ImportError` that names who needs it, and the extra that brings it."""
    try:
        import cv2
    except ImportError as error:
        raise ImportError(f"{user} needs OpenCV: pip install 'spatialalign-trl[motion]'") from error
    return cv2


def flow_fields(video: Video, user: str = "optical flow") -> list[np.ndarray]:
    """
    Flow from each frame to the next, on frames whose longer side is `FLOW_SIDE`.

    Args:
        video (`np.ndarray` of shape `(frames, height, width, 3)`, `uint8`):
            The clip.
        user (`str`, *optional*):
            Who is named where OpenCV is missing.

    Returns:
        `list[np.ndarray]`: `frames - 1` arrays of shape `(height, width, 2)`, in pixels of the scaled frame.

    Raises:
        `ImportError`: when OpenCV is missing.
    """
    cv2 = opencv(user)
    scale = FLOW_SIDE / max(video.shape[1:3])
    size = [max(round(side * scale), 32) for side in video.shape[1:3]]
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    gray = [cv2.resize(cv2.cvtColor(f, cv2.COLOR_RGB2GRAY), size[::-1], interpolation=way) for f in video]
    flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    return [flow.calc(before, after, None) for before, after in zip(gray, gray[1:], strict=False)]


def fastest_speed(field: np.ndarray) -> float:
    """Mean length of the fastest 5 % of a flow field's vectors, in diagonals of the frame."""
    lengths = np.linalg.norm(field, axis=-1).ravel()
    fastest = max(int(FASTEST_SHARE * lengths.size), 1)
    return float(np.partition(lengths, -fastest)[-fastest:].mean() / np.hypot(*field.shape[:2]))


def smoothness(fields: list[np.ndarray]) -> float | None:
    """
    How steadily things move, in [0, 1]: `1 - sum |b - a| / sum (|a| + |b|)` over the fastest 5 % of the pixels of each
    frame, where `a` is a pixel's step to the next frame and `b` the step that follows from where it arrived. 1 for
    uniform motion, 0 for what trembles on the spot.

    Args:
        fields (`list[np.ndarray]`):
            What [`flow_fields`] returned.

    Returns:
        `float` or `None`: `None` where nothing moves by a tenth of a pixel a frame, or there are fewer than two steps.

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
