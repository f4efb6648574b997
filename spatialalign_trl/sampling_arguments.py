"""How videos are sampled, as command-line arguments that several commands share."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spatialalign_trl.models.settings import SamplingSettings


@dataclass
class SamplingArguments:
    """What every model is sampled with; what is not set is the model's own."""

    num_frames: int | None = field(default=None, metadata={"help": "Frames of a video. None: the model's default."})
    height: int | None = field(default=None, metadata={"help": "Pixels. None: the model's default."})
    width: int | None = field(default=None, metadata={"help": "Pixels. None: the model's default."})
    num_inference_steps: int | None = field(
        default=None, metadata={"help": "Steps of the sampler. None: the model's default."}
    )
    guidance_scale: float | None = field(
        default=None, metadata={"help": "w of uncond + w*(cond - uncond). None: the model's default."}
    )

    def sampling_settings(self, default: SamplingSettings) -> SamplingSettings:
        """The model's default settings with what is set here."""
        return default.updated({one.name: getattr(self, one.name) for one in dataclasses.fields(SamplingArguments)})
