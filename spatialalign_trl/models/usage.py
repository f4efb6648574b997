"""
Write the code that draws a video with a trained LoRA, for the card, the report page and the README.

The code repeats what the run did: the base's components and types, the size and steps, guidance, the length of the
embedded prompt, and the noise. With an evaluation prompt it draws the run's own video again.
"""

from __future__ import annotations

import dataclasses
import json
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from spatialalign_trl.errors import near_miss
from spatialalign_trl.models.lora_files import LORA_FILE
from spatialalign_trl.models.tiny import EMBEDDED_MODELS, TINY_MODEL

_TEXT_WIDTH = 88
"""Longest part of a text that takes several lines."""

NoiseArgument = Literal["generator", "latents", "latents_frames_first"]
"""How a pipeline's call gets the noise of [`~SamplingMixin.initial_noise`]: from a generator with the same seed, or as
latents, if the pipeline itself would draw other numbers."""


@dataclass(frozen=True)
class LoraUsage:
    """
    The facts that the code needs, as plain values that JSON can store.

    Args:
        model (`str`):
            The base: the name of an embedded model, a folder or a Hub id.
        revision (`str`, *optional*):
            Its revision on the Hub.
        dtype (`str`):
            Type of the base's weights. The VAE is in float32.
        prompt (`str`):
            The prompt.
        noise_seed (`int`):
            Seed of the noise ([`~rollout.sampler.noise_seed`]).
        drawn_by_run (`str`):
            What the run drew from this prompt and noise, for a comment; empty if nothing.
        call (`dict`):
            The other arguments of the pipeline's call.
        fps (`float`):
            Frames per second of the written video.
        scheduler, guider (`dict`):
            Settings in which the run's scheduler and guider differ from the pipeline's.
        noise (`NoiseArgument`):
            How the noise is passed.
        latent_shape (list of `int`):
            Channels, frames, height and width of the noise.
        load_options (`dict`):
            Arguments of `load_lora_weights` in addition to the file.
        loads_into_transformer (`bool`):
            Whether the LoRA is loaded into the transformer, because the pipeline has no `load_lora_weights`.
        quantization (`str`):
            How the run's base was quantised; empty if it was not.
        context (`dict`, *optional*):
            For a model with context: its options. The code then uses this library.
        columns (list of `str`):
            For a model with context: the columns that condition it in addition to the prompt.
    """

    model: str
    dtype: str
    prompt: str
    noise_seed: int
    call: Mapping[str, Any]
    fps: float
    drawn_by_run: str = ""
    revision: str | None = None
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    guider: Mapping[str, Any] = field(default_factory=dict)
    noise: NoiseArgument = "generator"
    latent_shape: list[int] = field(default_factory=list)
    load_options: Mapping[str, Any] = field(default_factory=dict)
    loads_into_transformer: bool = False
    quantization: str = ""
    context: Mapping[str, Any] | None = None
    columns: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Refuse whatever would become other code than it should: the facts may come from a folder of somebody else's.

        Raises:
            ValueError: for a name that is no name, a comment of several lines, or a number that is none.
        """
        mappings = (self.call, self.scheduler, self.guider, self.load_options, self.context or {})
        for name in (self.dtype, *self.columns, *(option for mapping in mappings for option in mapping)):
            if not (isinstance(name, str) and name.isidentifier()):
                raise ValueError(f"on how to use a LoRA: {name!r} is no name of a type, an option or a column")
        for comment in (self.drawn_by_run, self.quantization):
            if not comment.isprintable():
                raise ValueError(f"on how to use a LoRA: {comment!r} is no text on one line")
        for name, value in (("noise_seed", self.noise_seed), *(("latent_shape", size) for size in self.latent_shape)):
            if not isinstance(value, int) or value < 0:
                raise ValueError(f"on how to use a LoRA: {name}={value!r} is no whole number of at least 0")
        if not (isinstance(self.fps, (int, float)) and self.fps > 0):
            raise ValueError(f"on how to use a LoRA: fps={self.fps!r} is no number above 0")

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as a dict that JSON can store."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """
        Build the facts from a dict.

        Args:
            values (`dict`):
                Fact -> value, as [`~LoraUsage.to_dict`] returns them.

        Raises:
            ValueError: for an unknown, a missing or a malformed fact.
        """
        known = {fact.name: fact for fact in dataclasses.fields(cls)}
        for name in values:
            if name not in known:
                raise ValueError(f"unknown fact {name!r} on how to use a LoRA. {near_miss(name, known)}")
        needed = [name for name in ("model", "dtype", "prompt", "noise_seed", "call", "fps") if name not in values]
        if needed:
            raise ValueError(f"on how to use a LoRA, {', '.join(needed)} is missing")
        return cls(**values)

    def code(self, lora: str, model: str | None = None) -> str:
        """
        Write the code, which ends with a newline.

        Args:
            lora (`str`):
                Where the LoRA is: a folder or a Hub id.
            model (`str`, *optional*):
                Where the base is, if it is not where the run found it.
        """
        model = self.model if model is None else model
        return self._context_code(lora, model) if self.context is not None else self._diffusers_code(lora, model)

    def _diffusers_code(self, lora: str, model: str) -> str:
        is_embedded = model in EMBEDDED_MODELS
        save = "from spatialalign_trl.video import write_video" if is_embedded else ""
        lines = ["import torch", "from diffusers import DiffusionPipeline"]
        if is_embedded:
            lines += ["", "from spatialalign_trl.models import tiny_model_path", save]
        else:
            lines.append("from diffusers.utils import export_to_video")

        # 1. The base and the LoRA
        lines.append("")
        if self.quantization:
            lines.append(f"# The run's base was quantised ({self.quantization}); this one is not.")
        name = "" if model == TINY_MODEL else _literal(model)
        source = f"tiny_model_path({name})" if is_embedded else _literal(model)
        revision = "" if self.revision is None else f", revision={_literal(self.revision)}"
        if self.dtype == "float32":
            dtype = "torch.float32"
        else:
            dtype = f'{{"default": torch.{self.dtype}, "vae": torch.float32}}'
        lines.append(f"pipe = DiffusionPipeline.from_pretrained({source}{revision}, dtype={dtype})")
        if not is_embedded:
            lines.append('pipe.to("cuda" if torch.cuda.is_available() else "cpu")')
        load = "transformer.load_lora_adapter" if self.loads_into_transformer else "load_lora_weights"
        options = dict(self.load_options) | ({"use_safetensors": True} if self.loads_into_transformer else {})
        words = "".join(f", {option}={_literal(value)}" for option, value in options.items())
        lines.append(f"pipe.{load}({_literal(lora)}, weight_name={_literal(LORA_FILE)}{words})")
        for component, changes in (("scheduler", self.scheduler), ("guider", self.guider)):
            if changes:
                words = ", ".join(f"{option}={_literal(value)}" for option, value in changes.items())
                made = "scheduler.from_config(pipe.scheduler.config, " if component == "scheduler" else "guider.new("
                lines.append(f"pipe.{component} = pipe.{made}{words})")

        # 2. The call
        lines.append("")
        if self.drawn_by_run:
            lines.append(f"# The noise of {self.drawn_by_run}.")
        generator = f"torch.Generator().manual_seed({self.noise_seed})"
        noise = [f"    generator={generator},"]
        if self.noise != "generator":
            lines.append(f"generator = {generator}")
            lines.append(f"noise = torch.randn({tuple(self.latent_shape)}, generator=generator)")
            moved = "noise.transpose(0, 1)[None]" if self.noise == "latents_frames_first" else "noise[None]"
            noise = [f"    latents={moved}.to(pipe.device, pipe.transformer.dtype),", "    generator=generator,"]
        arguments = {"prompt": self.prompt, **self.call, "output_type": "np"}
        lines.append("video = pipe(")
        lines += [line for option, value in arguments.items() for line in _argument(option, value)]
        lines += [*noise, ").frames[0]"]

        # 3. The file
        fps = f"{self.fps:g}"
        if is_embedded:  # lossless, as the run's own videos
            lines.append(f'write_video("video.mp4", (video * 255).round().astype("uint8"), fps={fps}, crf=0)')
        else:
            lines.append(f'export_to_video(video, "video.mp4", fps={fps})')
        return "\n".join(lines) + "\n"

    def _context_code(self, lora: str, model: str) -> str:
        """Write the code for a model with context, which is not a plain diffusers pipeline."""
        options = {"variant": "context", **self.context, **({"revision": self.revision} if self.revision else {})}
        words = "".join(f", {option}={_literal(value)}" for option, value in options.items())
        settings = dict(self.call) | {"fps": self.fps}
        lines = [
            "import torch",
            "",
            "from spatialalign_trl import load_video_model",
            "from spatialalign_trl.models import SamplingSettings",
            "from spatialalign_trl.video import write_video",
            "",
            f"model = load_video_model({_literal(model)}{words}, torch_dtype=torch.{self.dtype})",
            f"model.load_lora({_literal(lora)})",
            "",
            "settings = SamplingSettings(",
            *(line for option, value in settings.items() for line in _argument(option, value)),
            ")",
            f"# Add the columns that condition the model: {', '.join(self.columns)}.",
            f'row = {{"prompt": {_literal(self.prompt)}, "context": "path/to/the/recording.mp4"}}',
            "negative = model.encode_prompts([settings.negative_prompt])",
        ]
        if self.drawn_by_run:
            lines.append(f"# The noise of {self.drawn_by_run}.")
        lines += [
            f"latents = model.sample(model.encode_rows([row]), negative, [{self.noise_seed}], settings)",
            'write_video("video.mp4", model.decode_latents(latents)[0], fps=settings.fps)',
        ]
        return "\n".join(lines) + "\n"


def _literal(value: Any) -> str:
    """Write a value as Python code; a text gets double quotes and stays on one line."""
    return json.dumps(value, ensure_ascii=not str(value).isprintable()) if isinstance(value, str) else repr(value)


def _argument(name: str, value: Any) -> list[str]:
    """Write an argument on one line, or a long text on several."""
    if not isinstance(value, str) or len(value) <= _TEXT_WIDTH + 20:
        return [f"    {name}={_literal(value)},"]
    parts = textwrap.wrap(value, _TEXT_WIDTH, drop_whitespace=False, break_on_hyphens=False, replace_whitespace=False)
    return [f"    {name}=(", *(f"        {_literal(part)}" for part in parts), "    ),"]
