"""How videos are sampled: the part of a sample's identity that is not its prompt or its seed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from spatialalign_trl.errors import near_miss


@dataclasses.dataclass(frozen=True)
class SamplingSettings:
    """
    How videos are sampled. Part of a sample's identity: two samples with different settings are different samples.

    Args:
        num_frames (`int`):
            Frames of the video.
        height (`int`):
            Height in pixels.
        width (`int`):
            Width in pixels.
        num_inference_steps (`int`):
            Steps of the sampler.
        guidance_scale (`float`):
            Weight w of classifier-free guidance, `uncond + w * (cond - uncond)`; 1 or less runs without guidance.
        flow_shift (`float`, *optional*):
            k in `sigma = k * u / (1 + (k - 1) * u)`, the shift of the sampler's noise levels. `None` = the pipeline's
            own.
        negative_prompt (`str`, *optional*, defaults to `""`):
            The text of the unconditional branch.
        fps (`float`, *optional*, defaults to `16.0`):
            Frames per second of the written video.
        guidance_scale_2 (`float`, *optional*):
            Weight of the guidance at low noise, for a model with two experts (Wan 2.2 A14B). `None` =
            `guidance_scale`.

    Raises:
        ValueError: when a value is out of range.
    """

    num_frames: int
    height: int
    width: int
    num_inference_steps: int
    guidance_scale: float
    flow_shift: float | None = None
    negative_prompt: str = ""
    fps: float = 16.0
    guidance_scale_2: float | None = None

    def __post_init__(self) -> None:
        for name in ("num_frames", "height", "width", "num_inference_steps"):
            value = getattr(self, name)
            if int(value) != value or value < 1:
                raise ValueError(f"{name} is {value!r}; it must be a whole number of at least 1.")
            object.__setattr__(self, name, int(value))
        # 3 and 3.0 are the same setting, and must give the same sample id.
        for name in ("guidance_scale", "guidance_scale_2", "flow_shift", "fps"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, float(value))
        for name in ("flow_shift", "fps"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value}; it must be above 0.")
        if self.guidance_scale <= 1 < (self.guidance_scale_2 or 0):
            raise ValueError(
                f"guidance_scale is {self.guidance_scale}, which switches guidance off altogether, and "
                f"guidance_scale_2 is {self.guidance_scale_2}; set both above 1, or leave guidance_scale_2 out."
            )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SamplingSettings:
        """Build settings from a dict; an unknown name is an error that says which name is near."""
        known = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                raise ValueError(f"unknown sampling setting {name!r}. {near_miss(name, known)}")
        return cls(**values)

    def updated(self, values: dict[str, Any]) -> SamplingSettings:
        """The same settings with those of `values` that are not `None`."""
        return self.from_dict(self.to_dict() | {name: value for name, value in values.items() if value is not None})

    def to_dict(self) -> dict[str, Any]:
        """The settings as a dict that JSON can hold; what one model alone has is left out where it is not set."""
        values = dataclasses.asdict(self)
        # Samples are told apart by this dict: those of before this setting existed keep their names.
        return {name: value for name, value in values.items() if (name, value) != ("guidance_scale_2", None)}


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
