"""
Motion: how fast things move, measured by optical flow. Meant as a gate, or with a small weight in addition to a reward
that a still picture could satisfy.
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
    pixels of a frame, averaged over the clip, in frame diagonals per second. A still clip gets 0.

    A clip of one frame is INVALID. Speed is a share of the diagonal per second, so it depends neither on the size of
    the frames nor on the frame rate. A moving camera moves every pixel: this measure cannot distinguish camera motion
    from object motion.

    Args:
        floor (`float`, *optional*, defaults to `0.005`):
            Speed up to which a clip counts as still. It is above the motion that compression adds to a still clip.
        ceiling (`float`, *optional*, defaults to `0.1`):
            Speed above which the reward stays 1.
        fps (`float`, *optional*, defaults to `16.0`):
            Frame rate of clips without the column `fps`. Self-improvement, evaluations and the reward server add it,
            from the settings of the samples or the files themselves.

    Raises:
        `ValueError`: if not `0 <= floor < ceiling`, or if `fps` is not positive.
    """

    required_columns: tuple[str, ...] = ()

    def __init__(self, floor: float = 0.005, ceiling: float = 0.1, fps: float = DEFAULT_FPS) -> None:
        if not 0 <= floor < ceiling:
            raise ValueError(f"floor={floor} and ceiling={ceiling}: they must satisfy 0 <= floor < ceiling.")
        if not fps > 0:
            raise ValueError(f"fps is {fps}; it must be above 0.")
        self.__name__ = "motion"
        self.floor, self.ceiling, self.fps = floor, ceiling, fps

    def check_prompts(self, **columns: Any) -> None:
        """Raise an `ImportError` if OpenCV is missing."""
        opencv(USER)

    def describe(self) -> dict[str, Any]:
        """Return the settings that determine this reward's values."""
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
                Not used.
            completions (sequence of `N` videos):
                `uint8` arrays of shape `(frames, height, width, 3)`.
            fps (sequence of `N` `float`, *optional*):
                Their frame rates; by default the setting `fps` for all.
            log_extra (callable, *optional*):
                Receives `motion_speed`: `v`, in diagonals per second.

        Returns:
            `list[float | None]`: one reward per video; `None` for a video of one frame.
        """
        rates = fps or [self.fps] * len(completions)
        check_completions(completions)
        speeds = [motion_speed(video, rate) for video, rate in zip(completions, rates, strict=True)]
        if log_extra is not None:
            log_extra("motion_speed", speeds)
        span = self.ceiling - self.floor
        return [None if speed is None else float(np.clip((speed - self.floor) / span, 0.0, 1.0)) for speed in speeds]


def motion_speed(video: Video, fps: float) -> float | None:
    """
    Measure the speed of the fastest 5 % of the pixels between consecutive frames, averaged over the clip.

    Args:
        video (`np.ndarray` of shape `(frames, height, width, 3)`, `uint8`):
            The clip.
        fps (`float`):
            Its frame rate.

    Returns:
        `float` or `None`: frame diagonals per second; `None` for a single frame.

    Raises:
        `ImportError`: if OpenCV is missing.
    """
    if len(video) < 2:
        return None
    return float(np.mean([fastest_speed(field) for field in flow_fields(video, USER)])) * fps
