"""
Sharpness: how much neighbouring pixels differ. Made for a small weight beside a reward that blurred pictures earn more
easily, such as one for a camera that moves: what a model has not copied it draws less sharply, so that the winners of
that reward alone are blurred, and training on them teaches the blur.
"""

import math
from collections.abc import Sequence
from typing import Any

from spatialalign_trl.perception.sharpness import video_sharpness
from spatialalign_trl.video import Video, check_completions


class Sharpness:
    """
    Reward in [0, 1]: `min(v, ceiling)`, where `v` is the root mean square difference of neighbouring pixels of a frame
    ([`~spatialalign_trl.perception.sharpness.video_sharpness`]; the guard `frames` measures the same, so that it is no
    independent witness of a run with this reward).

    Noise is sharp, too: alone, or with a large weight, this reward teaches it. What `v` is depends on what is shown
    and on the number of pixels; 0.03 to 0.08 is usual.

    Args:
        ceiling (`float`, *optional*, defaults to `1.0`):
            Sharpness above which more gains nothing, in (0, 1]; that of good videos of the same kind and size.
    """

    required_columns: tuple[str, ...] = ()

    def __init__(self, ceiling: float = 1.0) -> None:
        if not (math.isfinite(ceiling) and 0 < ceiling <= 1):
            raise ValueError(f"ceiling is {ceiling}; it must be above 0 and at most 1.")
        self.__name__ = "sharpness"
        self.ceiling = ceiling

    def describe(self) -> dict[str, Any]:
        """What this reward was made with."""
        return {"ceiling": self.ceiling}

    def __call__(self, prompts: Sequence[str], completions: Sequence[Video], **kwargs: Any) -> list[float]:
        """
        Measure `N` videos.

        Args:
            prompts (sequence of `N` `str`):
                Not read.
            completions (sequence of `N` videos):
                `uint8` arrays of shape `(frames, height, width, 3)`.
        """
        check_completions(completions)
        return [min(video_sharpness(video), self.ceiling) for video in completions]
