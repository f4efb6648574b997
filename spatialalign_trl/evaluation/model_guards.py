"""Quality guards that need an extra package or a checkpoint: optical flow, drift by DINOv2, and any reward."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from spatialalign_trl.perception.checkpoints import PretrainedModel, RunsPretrained
from spatialalign_trl.perception.optical_flow import fastest_speed, flow_fields, opencv, smoothness
from spatialalign_trl.rewards.calling import AsyncLoop, CallLog, call_rewards, read_answer
from spatialalign_trl.rewards.convention import RewardFunc, reward_name
from spatialalign_trl.video import Video

logger = logging.getLogger(__name__)

Row = Mapping[str, Any]


class FlowGuard:
    """
    Guard that measures how fast and how steadily things move. Needs the extra `[motion]` (OpenCV).

    Measures:
        - `flow_speed`: Speed of the fastest 5 % of the pixels, in diagonals of the frame per frame (0 for a still).
        - `flow_smoothness`: In [0, 1]: 1 for uniform motion, 0 for trembling on the spot (see
          `perception.optical_flow.smoothness`). `None` if nothing moves.
    """

    def prepare(self) -> None:
        """Raise an `ImportError` if OpenCV is missing."""
        opencv("The quality guard 'flow'")

    def __call__(self, videos: Sequence[Video], rows: Sequence[Row]) -> dict[str, list[float | None]]:
        speeds, smoothnesses = [], []
        for video in videos:
            fields = flow_fields(video, "The quality guard 'flow'")
            speeds.append(float(np.mean([fastest_speed(field) for field in fields])) if fields else None)
            smoothnesses.append(smoothness(fields))
        return {"flow_speed": speeds, "flow_smoothness": smoothnesses}


class DriftGuard(RunsPretrained):
    """
    Guard that measures how far the content of videos has moved away from the baseline's videos of the same prompts and
    seeds.

    Measures:
        `drift`: 1 - cosine of the DINOv2 features of two frames at the same time, averaged over `num_frames` times, in
        [0, 2]. A policy that follows its prompts better has to drift, so the measure is shown but not judged.

    Args:
        checkpoint (`str`, *optional*, defaults to `"facebook/dinov2-base"`):
            A DINOv2 model: a Hub id or a local folder.
        num_frames (`int`, *optional*, defaults to `8`):
            Number of frames that are compared, spread evenly from the first to the last.

    Raises:
        ValueError: If `num_frames` is less than 1.
    """

    def __init__(self, checkpoint: str = "facebook/dinov2-base", num_frames: int = 8) -> None:
        if num_frames < 1:
            raise ValueError(f"num_frames={num_frames}: must be at least 1.")
        self.num_frames = num_frames
        self.pretrained = PretrainedModel(checkpoint, {"dinov2": ("Dinov2Model", "AutoImageProcessor")})

    def __call__(
        self, videos: Sequence[Video], rows: Sequence[Row], base_videos: Sequence[Video]
    ) -> dict[str, list[float | None]]:
        values: list[float | None] = []
        for video, base in zip(videos, base_videos, strict=True):
            features, base_features = self._features(video), self._features(base)
            values.append(float(1 - (features * base_features).sum(1).mean()))
        return {"drift": values}

    def _features(self, video: Video) -> np.ndarray:
        """Return features of length 1, shape (num_frames, width)."""
        import torch

        model, processor = self.pretrained.load()
        indices = np.linspace(0, len(video) - 1, self.num_frames).round().astype(int)
        # Squeeze the whole frame instead of cropping it: what moves may be at its edge.
        size = dict(processor.crop_size)
        inputs = processor(images=list(video[indices]), size=size, do_center_crop=False, return_tensors="pt")
        with torch.inference_mode(), self.pretrained.autocast():
            features = model(**inputs.to(model.device)).pooler_output.float().cpu().numpy()
        return features / np.linalg.norm(features, axis=1, keepdims=True)


class RewardGuard:
    """
    Guard that runs a reward which is not trained on: identity consistency, CLIP-IQA, or a judge of your own.

    Measures:
        `<reward>_score`, where higher is better and `None` is INVALID, and the numbers that the reward logs with
        `log_extra`.

    Args:
        reward (callable):
            A reward in the convention of `rewards/convention.py`.
    """

    def __init__(self, reward: RewardFunc) -> None:
        self.reward = reward
        self.name = reward_name(reward)
        self._loop = AsyncLoop()

    def check_prompts(self, rows: Sequence[Row]) -> None:
        """
        Let the reward check the prompts, and the packages and checkpoints that it needs.

        Args:
            rows (sequence of `dict`):
                The prompts. Without any nothing is checked.

        Raises:
            Exception: Whatever the reward raises.
        """
        if rows and hasattr(self.reward, "check_prompts"):
            self.reward.check_prompts(**_columns(rows))

    def release(self) -> None:
        """Free the reward's models."""
        if hasattr(self.reward, "release"):
            self.reward.release()

    def __call__(self, videos: Sequence[Video], rows: Sequence[Row]) -> dict[str, list[float | None]]:
        measures: dict[str, list[float | None]] = {}
        for index, row in enumerate(rows):  # one at a time: a Wan clip takes 97 MB
            for name, value in self._measure_video(videos[index], row).items():
                measures.setdefault(name, [None] * len(rows))[index] = value
        return measures

    def _measure_video(self, video: Video, row: Row) -> dict[str, float | None]:
        """Return one video's score and the numbers that the reward logs for it."""
        log = CallLog(1)
        arguments = {"prompts": [row["prompt"]], "completions": [video], **_columns([row])}
        answer = call_rewards({self.name: self.reward}, arguments, None, log, self._loop)[self.name]
        if isinstance(answer, Exception):
            raise answer
        (value,), (problem,) = read_answer(answer, 1)
        if problem is not None:
            logger.warning("The quality guard %r has no score of a video: it %s.", self.name, problem)
        numbers = {column: values[0] for column, values in log.columns.items()}
        logged = {column: float(number) for column, number in numbers.items() if isinstance(number, (int, float))}
        return {f"{self.name}_score": value, **logged}


def _columns(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Turn prompt rows into the columns that rewards take."""
    return {name: [row[name] for row in rows] for name in rows[0] if name != "prompt"}
