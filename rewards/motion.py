"""
Motion: how fast things move, by optical flow. Made for a gate, or a small weight beside a reward that a still picture
could please.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from spatialalign_trl.perception.optical_flow import fastest_speed, flow_fields, opencv
from spatialalign_trl.video import Video, check_completions

USER = "The reward 'motion'"
DEFAULT_FPS = 16.0


class Motion:
    """
    Reward in [0, 1]: `clip((v - floor) / (ceiling - floor), 0, 1)`, where `v` is the speed of the fastest 5 % of the
    pixels of a frame, averaged over the clip, in diagonals of the frame a second. A still clip has 0.

    A clip of one frame is INVALID. Speed is a share of the diagonal per second, so that it does not depend on the size
    of the frames or on their number a second. A camera that moves, moves everything: this measure cannot tell.

    Args:
        floor (`float`, *optional*, defaults to `0.005`):
            Speed up to which a clip counts as still; above what compression leaves in a still one.
        ceiling (`float`, *optional*, defaults to `0.1`):
            Speed above which more gains nothing.
        fps (`float`, *optional*, defaults to `16.0`):
            Frames a second of clips that come without the column `fps`, which self-improvement adds.
    """

    required_columns: tuple[str, ...] = ()

    def __init__(self, floor: float = 0.005, ceiling: float = 0.1, fps: float = DEFAULT_FPS) -> None:
        if not 0 <= floor < ceiling:
            raise ValueError(f"floor={floor} and ceiling={ceiling}: 0 <= floor < ceiling is needed.")
        if not fps > 0:
            raise ValueError(f"fps is {fps}; it must be above 0.")
        self.__name__ = "motion"
        self.floor, self.ceiling, self.fps = floor, ceiling, fps

    def check_prompts(self, **columns: Any) -> None:
        """Raises an `ImportError` when OpenCV is missing."""
        opencv(USER)

    def describe(self) -> dict[str, Any]:
        """What this reward was made with."""
        return {"floor": self.floor, "ceiling": self.ceiling, "fps": self.fps}

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[Video],
        fps: Sequence[float] | None = None,
        log_extra: Callable[[str, list], None] | None = None,
        **kwargs: Any,
    ) -> list[float | None]:
        """
        Measure `N` videos.

        Args:
            prompts (sequence of `N` `str`):
                Not read.
            completions (sequence of `N` videos):
                `uint8` arrays of shape `(frames, height, width, 3)`.
            fps (sequence of `N` `float`, *optional*):
                Their frames a second.
            log_extra (callable, *optional*):
                Gets `motion_speed`: `v`, in diagonals a second.
        """
        rates = fps or [self.fps] * len(completions)
        check_completions(completions)
        speeds = [motion_speed(*one) for one in zip(completions, rates, strict=True)]
        if log_extra is not None:
            log_extra("motion_speed", speeds)
        span = self.ceiling - self.floor
        return [None if v is None else float(np.clip((v - self.floor) / span, 0.0, 1.0)) for v in speeds]


def motion_speed(video: Video, fps: float) -> float | None:
    """
    Speed of the fastest 5 % of the pixels between consecutive frames, averaged over the clip.

    Args:
        video (`np.ndarray` of shape `(frames, height, width, 3)`, `uint8`):
            The clip.
        fps (`float`):
            Its frames a second.

    Returns:
        `float` or `None`: diagonals of the frame a second; `None` for a single frame.

    Raises:
        `ImportError`: when OpenCV is missing.
    """
    if len(video) < 2:
        return None
    return float(np.mean([fastest_speed(field) for field in flow_fields(video, USER)])) * fps
