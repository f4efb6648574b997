"""
Sharpness: how much neighbouring pixels differ. Meant with a small weight in addition to a reward that blurred videos
get more easily, such as one for camera motion: a model draws what it invents less sharply than what it copies from its
context, so the winners of that reward alone are blurred, and training on them teaches the model to blur.
"""

import math
from collections.abc import Sequence
from typing import Any

from spatialalign_trl.perception.sharpness import video_sharpness
from spatialalign_trl.video import Video, check_completions


class Sharpness:
    """
    Reward in [0, 1]: `min(v, ceiling)`, where `v` is the root mean square difference of neighbouring pixels of a frame
    ([`~spatialalign_trl.perception.sharpness.video_sharpness`]). The guard `frames` measures the same quantity, so it
    is not independent evidence about a run that trains with this reward.

    Noise is sharp, too: used alone or with a large weight, this reward teaches the model to add noise. `v` depends on
    the content and on the number of pixels; 0.03 to 0.08 is usual.

    Args:
        ceiling (`float`, *optional*, defaults to `1.0`):
            Sharpness above which the reward does not grow, in (0, 1]. Choose the sharpness of good videos of the same
            kind and size.

    Raises:
        `ValueError`: if `ceiling` is out of range.
    """

    required_columns: tuple[str, ...] = ()

    def __init__(self, ceiling: float = 1.0) -> None:
        if not (math.isfinite(ceiling) and 0 < ceiling <= 1):
            raise ValueError(f"ceiling is {ceiling}; it must be above 0 and at most 1.")
        self.__name__ = "sharpness"
        self.ceiling = ceiling

    def describe(self) -> dict[str, Any]:
        """Return the settings that determine this reward's values."""
        return {"ceiling": self.ceiling}

    def __call__(self, prompts: Sequence[str], completions: Sequence[Video], **kwargs: Any) -> list[float]:
        """
        Measure `N` videos.

        Args:
            prompts (sequence of `N` `str`):
                Not used.
            completions (sequence of `N` videos):
                `uint8` arrays of shape `(frames, height, width, 3)`.

        Returns:
            `list[float]`: one reward per video.
        """
        check_completions(completions)
        return [min(video_sharpness(video), self.ceiling) for video in completions]
