"""Tell how much longer a run takes: its forecast's work, at the speed of what was measured."""

from __future__ import annotations

from spatialalign_trl.planning.forecast import Forecast


class Pace:
    """
    The time that a run has left, calibrated by its first sampled batch and every later one.

    It says nothing until it is given a forecast.
    """

    def __init__(self) -> None:
        self._work = self._per_video = self._done = self._seconds = 0.0

    def start(self, plan: Forecast) -> None:
        """Begin to measure a run that has a forecast and has not sampled anything yet."""
        stages = {stage.name: stage for stage in plan.stages}
        self._work = sum(stage.work * stage.count for stage in plan.stages) / plan.gpus
        self._per_video = stages["rollout: denoising"].work + stages["rollout: decode"].work
        self._done = self._seconds = 0.0

    def sampled(self, videos: int, seconds: float) -> str:
        """
        Count a batch of videos that this process sampled.

        Args:
            videos (`int`):
                Number of videos.
            seconds (`float`):
                The time that they took.

        Returns:
            `str`: the time left, for a progress bar; empty without a forecast.
        """
        if not self._work:
            return ""
        self._done += videos * self._per_video
        self._seconds += seconds
        left = max(self._work - self._done, 0.0) * self._seconds / self._done / 3600
        return f"run: about {left:,.0f} h left" if left >= 10 else f"run: about {left:.1f} h left"
