"""Hold the settings with which videos are sampled: a sample's identity is these, its prompt and its seed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Any

from spatialalign_trl.errors import near_miss
from spatialalign_trl.models.ranges import FINITE, Range, check_fields

SIDE = Range(at_least=1, at_most=16_384)  # what x264 can encode
FRAMES = Range(at_least=1, at_most=100_000)
SAMPLER_STEPS = Range(at_least=1, at_most=10_000)
FLOW_SHIFT = Range(at_least=1e-3, at_most=1000, note="Leave it out for the model's shift.")
FPS = Range(above=0, at_most=1000)


@dataclasses.dataclass(frozen=True)
class SamplingSettings:
    """
    The settings with which videos are sampled.

    They are part of a sample's identity: two samples with different settings are different samples.

    Args:
        num_frames (`int`):
            Number of frames of the video.
        height (`int`):
            Height in pixels.
        width (`int`):
            Width in pixels.
        num_inference_steps (`int`):
            Number of steps of the sampler.
        guidance_scale (`float`):
            Weight w of classifier-free guidance, `uncond + w * (cond - uncond)`. At 1 or less there is no guidance.
        flow_shift (`float`, *optional*):
            k in `sigma = k * u / (1 + (k - 1) * u)`, the shift of the sampler's noise levels. `None`: the shift of the
            pipeline's scheduler.
        negative_prompt (`str`, *optional*, defaults to `""`):
            The text of the unconditional branch.
        fps (`float`, *optional*, defaults to `16.0`):
            Frames per second of the written video.
        guidance_scale_2 (`float`, *optional*):
            Weight of the guidance at low noise, for a model with two experts (Wan 2.2 A14B). `None`: the same as
            `guidance_scale`.

    Raises:
        ValueError: if a value is out of range.
    """

    num_frames: Annotated[int, FRAMES]
    height: Annotated[int, SIDE]
    width: Annotated[int, SIDE]
    num_inference_steps: Annotated[int, SAMPLER_STEPS]
    guidance_scale: Annotated[float, FINITE]
    flow_shift: Annotated[float | None, FLOW_SHIFT] = None
    negative_prompt: str = ""
    fps: Annotated[float, FPS] = 16.0
    guidance_scale_2: Annotated[float | None, FINITE] = None

    def __post_init__(self) -> None:
        check_fields(self)
        # 3 and 3.0 are the same setting and must give the same sample id.
        for name in ("guidance_scale", "guidance_scale_2", "flow_shift", "fps"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, float(value))
        if self.guidance_scale <= 1 < (self.guidance_scale_2 or 0):
            raise ValueError(
                f"guidance_scale={self.guidance_scale}: switches guidance off for both experts, but guidance_scale_2 "
                f"is {self.guidance_scale_2}. Set both above 1, or leave guidance_scale_2 out."
            )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SamplingSettings:
        """
        Build settings from a dict.

        Args:
            values (`dict`):
                Setting -> value, as [`~SamplingSettings.to_dict`] returns them.

        Raises:
            ValueError: if a setting is unknown (the message suggests the nearest name) or out of range.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                raise ValueError(f"unknown sampling setting {name!r}. {near_miss(name, known)}")
        return cls(**values)

    def updated(self, values: dict[str, Any]) -> SamplingSettings:
        """
        Return a copy with some settings changed.

        Args:
            values (`dict`):
                Setting -> new value; `None` keeps the present value.
        """
        return self.from_dict(self.to_dict() | {name: value for name, value in values.items() if value is not None})

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as a dict that JSON can store. `guidance_scale_2` is left out if it is not set."""
        values = dataclasses.asdict(self)
        # Sample ids are made from this dict: samples from before guidance_scale_2 existed must keep their ids.
        return {name: value for name, value in values.items() if (name, value) != ("guidance_scale_2", None)}


@dataclass
class SamplingArguments:
    """The sampling settings that exist for every model, as arguments. An unset one takes the model's default."""

    num_frames: Annotated[int | None, FRAMES] = field(
        default=None, metadata={"help": "Number of frames of a video. None: the model's default."}
    )
    height: Annotated[int | None, SIDE] = field(
        default=None, metadata={"help": "Height in pixels. None: the model's default."}
    )
    width: Annotated[int | None, SIDE] = field(
        default=None, metadata={"help": "Width in pixels. None: the model's default."}
    )
    num_inference_steps: Annotated[int | None, SAMPLER_STEPS] = field(
        default=None, metadata={"help": "Number of steps of the sampler. None: the model's default."}
    )
    guidance_scale: Annotated[float | None, FINITE] = field(
        default=None,
        metadata={"help": "Weight w of the guidance, uncond + w*(cond - uncond). None: the model's default."},
    )

    def sampling_settings(self, default: SamplingSettings) -> SamplingSettings:
        """
        Return the model's settings with the arguments that are set.

        Args:
            default ([`SamplingSettings`]):
                The model's default settings.
        """
        names = [argument.name for argument in dataclasses.fields(SamplingArguments)]
        return default.updated({name: getattr(self, name) for name in names})
