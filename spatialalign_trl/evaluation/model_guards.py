"""Quality guards that need an extra package or a checkpoint: optical flow, drift by DINOv2, and any reward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from spatialalign_trl.perception.checkpoints import PretrainedModel, RunsPretrained
from spatialalign_trl.perception.optical_flow import fastest_speed, flow_fields, opencv, smoothness
from spatialalign_trl.rewards.convention import RewardFunc, reward_name
from spatialalign_trl.video import Video

Row = Mapping[str, Any]


class FlowGuard:
    """
    Guard for any video: how much moves and how steadily. Needs the extra `[motion]` (OpenCV).

    Measures:
        - `flow_speed`: speed of the fastest 5 % of the pixels, in diagonals of the frame per frame (0 = a still);
        - `flow_smoothness` in [0, 1]: 1 for uniform motion, 0 for what trembles on the spot; see
          `perception.optical_flow.smoothness`. `None` where nothing moves.
    """

    def prepare(self) -> None:
        """Raises an `ImportError` when OpenCV is missing."""
        opencv("The quality guard 'flow'")

    def __call__(self, videos: Sequence[Video], rows: Sequence[Row]) -> dict[str, list[float | None]]:
        speeds, steady = [], []
        for video in videos:
            fields = flow_fields(video, "The quality guard 'flow'")
            speeds.append(float(np.mean([fastest_speed(field) for field in fields])) if fields else None)
            steady.append(smoothness(fields))
        return {"flow_speed": speeds, "flow_smoothness": steady}


class DriftGuard(RunsPretrained):
    """
    Guard that compares with the baseline: how far a policy has moved what is seen, on the same prompt and seed.

    Measures:
        `drift` in [0, 2]: 1 - cosine of DINOv2's features of two frames at the same time of the clips, averaged over
        `num_frames` times. Obedience needs some drift, so it is shown and not judged.

    Args:
        checkpoint (`str`, *optional*, defaults to `"facebook/dinov2-base"`):
            A DINOv2 model: a Hub id or a local folder.
        num_frames (`int`, *optional*, defaults to `8`):
            Times looked at, from the first frame to the last.
    """

    def __init__(self, checkpoint: str = "facebook/dinov2-base", num_frames: int = 8) -> None:
        if num_frames < 1:
            raise ValueError(f"num_frames is {num_frames}; it must be at least 1.")
        self.num_frames = num_frames
        self.pretrained = PretrainedModel(checkpoint, {"dinov2": ("Dinov2Model", "AutoImageProcessor")})

    def __call__(
        self, videos: Sequence[Video], rows: Sequence[Row], base_videos: Sequence[Video]
    ) -> dict[str, list[float | None]]:
        values: list[float | None] = []
        for video, base in zip(videos, base_videos, strict=True):
            ours, theirs = (self._features(one) for one in (video, base))
            values.append(float(1 - (ours * theirs).sum(1).mean()))
        return {"drift": values}

    def _features(self, video: Video) -> np.ndarray:
        """`(num_frames, width)`: features of length 1."""
        import torch

        model, processor = self.pretrained.load()
        times = np.linspace(0, len(video) - 1, self.num_frames).round().astype(int)
        size = dict(processor.crop_size)  # the whole frame, squeezed: what moves may stand at its edge
        inputs = processor(images=list(video[times]), size=size, do_center_crop=False, return_tensors="pt")
        with torch.inference_mode(), self.pretrained.autocast():
            features = model(**inputs.to(model.device)).pooler_output.float().cpu().numpy()
        return features / np.linalg.norm(features, axis=1, keepdims=True)


class RewardGuard:
    """
    A reward that is looked at and not trained on: identity consistency, CLIP-IQA, a judge of one's own.

    Measures:
        `<reward>_score`, where more is better and `None` is INVALID, and the numbers that it logs under `log_extra`.

    Args:
        reward (callable): In the convention of `rewards.py`.
    """

    def __init__(self, reward: RewardFunc) -> None:
        self.reward = reward
        self.name = reward_name(reward)

    def check_prompts(self, rows: Sequence[Row]) -> None:
        """Raises what the reward raises for prompts it cannot judge, and for packages and checkpoints it lacks."""
        if rows and hasattr(self.reward, "check_prompts"):
            self.reward.check_prompts(**_columns(rows))

    def release(self) -> None:
        """Frees the reward's models."""
        if hasattr(self.reward, "release"):
            self.reward.release()

    def __call__(self, videos: Sequence[Video], rows: Sequence[Row]) -> dict[str, list[float | None]]:
        measures: dict[str, list[float | None]] = {}
        for place, row in enumerate(rows):  # one at a time: a Wan clip takes 97 MB
            for name, value in self._judge(videos[place], row).items():
                measures.setdefault(name, [None] * len(rows))[place] = value
        return measures

    def _judge(self, video: Video, row: Row) -> dict[str, float | None]:
        found: dict[str, float | None] = {}

        def log_extra(column: str, values: Sequence[Any]) -> None:
            if isinstance(values[0], (int, float)):
                found[column] = float(values[0])

        value = self.reward(
            prompts=[row["prompt"]],
            completions=[video],
            **_columns([row]),
            trainer_state=None,
            log_extra=log_extra,
            log_metric=lambda name, value: None,
        )[0]
        return {f"{self.name}_score": None if value is None else float(value), **found}


def _columns(rows: Sequence[Row]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0] if name != "prompt"}
