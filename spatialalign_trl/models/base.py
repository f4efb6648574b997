"""The interface that a family of video models fills in, and what all families share.

The library asks a model to encode prompts, encode and decode videos, draw a noised input and its target, predict,
sample, name its legal sizes and its LoRA targets, save and load its LoRA, and compute as the reference. There is one
transformer in memory: the reference is the same network with its adapters off. What all families share lies beside
this file by subject (encoding, sampling, sizes, LoRA); a family fills in the methods that are abstract.
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import diffusers
import torch
from diffusers import DiffusionPipeline

from spatialalign_trl.devices import default_device
from spatialalign_trl.errors import near_miss
from spatialalign_trl.files import read_json
from spatialalign_trl.models.encoding import Conditioning, EncodingMixin
from spatialalign_trl.models.lora import LoraMixin, base_network
from spatialalign_trl.models.quantization import describe_quantization, for_pipeline
from spatialalign_trl.models.sampling import SamplingMixin
from spatialalign_trl.models.settings import SamplingSettings
from spatialalign_trl.models.sizes import SizesMixin
from spatialalign_trl.models.sources import read_model_index, resolve_source

__all__ = ["Conditioning", "SamplingSettings", "VideoModel"]

SETTINGS_FILE = "spatialalign.json"
"""A pipeline folder may hold its default sampling settings in this file."""


class VideoModel(EncodingMixin, SamplingMixin, SizesMixin, LoraMixin, ABC):
    """
    A text-to-video pipeline behind the interface that rollouts and trainers use.

    Args:
        pipeline (`DiffusionPipeline`):
            The loaded pipeline. Its progress bar is switched off.
        name_or_path (`str`, *optional*):
            The model's name for cards, caches and LoRA metadata; the pipeline's own by default.
        source (`str`, *optional*):
            Folder or Hub id from which the encoders can be loaded again; `name_or_path` by default.
        revision (`str`, *optional*):
            Revision of `source`.
        quantization_config (`PipelineQuantizationConfig`, *optional*):
            What the pipeline was quantised with, for the parts of it that are loaded later or again.
    """

    family: ClassVar[str]
    pipeline_class: ClassVar[str]
    default_lora_targets: ClassVar[tuple[str, ...]]
    lora_full_rank: Mapping[str, int] = MappingProxyType({})
    """Modules whose adapter by default is the whole layer, by their rank: small ones that only a task brought in."""
    options: ClassVar[tuple[str, ...]] = ()
    """Keyword arguments of the class that [`load_video_model`] passes on."""
    num_train_timesteps: ClassVar[int] = 1000
    trained_component: str = "transformer"
    """The pipeline's component that is trained; a family with several transformers picks one a run."""

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        name_or_path: str | None = None,
        *,
        source: str | None = None,
        revision: str | None = None,
        quantization_config: diffusers.PipelineQuantizationConfig | None = None,
    ) -> None:
        self.pipeline = pipeline
        self.quantization_config = quantization_config
        self.computation: dict[str, Any] = {}
        """What was set of how the model computes, where it changes numbers, under the names of `ModelArguments`."""
        if quantization_config is not None:
            self.computation["quantization"] = describe_quantization(quantization_config)
        if revision is not None:
            self.computation["model_revision"] = revision
        self.name_or_path = name_or_path or str(pipeline.config.get("_name_or_path") or "")
        self.revision = revision
        self._source = source or self.name_or_path
        self._network: torch.nn.Module = self.base_transformer
        self._dtype_witness: tuple[Callable[[], Any], Callable[[], Any]] = (lambda: None, lambda: None)
        self._offloaded: dict[str, torch.nn.Module] = {}
        self._encoder_dtypes = {
            name: getattr(pipeline, name).dtype for name in self.encoder_names if getattr(pipeline, name) is not None
        }
        pipeline.set_progress_bar_config(disable=True)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str,
        *,
        torch_dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
        revision: str | None = None,
        quantization_config: diffusers.PipelineQuantizationConfig | None = None,
        **options: Any,
    ) -> VideoModel:
        """
        Load a model.

        Args:
            name_or_path (`str`):
                `"tiny"`, a pipeline folder or a Hub id.
            torch_dtype (`torch.dtype`, *optional*):
                Of the transformer and the text encoder; bfloat16 on a GPU, float32 on the CPU. The VAE always computes
                in float32.
            device (`str` or `torch.device`, *optional*):
                This process's GPU if there is one.
            revision (`str`, *optional*):
                Branch, tag or commit on the Hub.
            quantization_config (`PipelineQuantizationConfig`, *optional*):
                diffusers' configuration of a quantised base; see [`efficiency.quantization_config`].
            options:
                What this family alone knows: the keyword arguments of its class.

        Raises:
            FileNotFoundError: when there is no such folder or repository.
            ConnectionError: when the Hub cannot be reached and the model is not in the cache.
            ValueError: when the pipeline is not one of this family, or the family has no such option.
        """
        cls._check_options(options)
        source = resolve_source(name_or_path)
        index = read_model_index(source, revision)
        if index.get("_class_name") != cls.pipeline_class:
            raise ValueError(
                f"{name_or_path!r} is a {index.get('_class_name')}, and {cls.__name__} runs a {cls.pipeline_class}; "
                "use "
                "load_video_model, which picks the adapter."
            )
        cls._check_index(index, str(name_or_path))
        if quantization_config is not None:
            quantization_config = for_pipeline(quantization_config, index)
        device = torch.device(device) if device is not None else default_device()
        dtype = torch_dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
        try:
            # The class itself: DiffusionPipeline does not know which components its subclasses can do without.
            pipeline = getattr(diffusers, cls.pipeline_class).from_pretrained(
                source,
                revision=revision,
                dtype={"default": dtype, "vae": torch.float32},
                use_safetensors=True,
                **dict.fromkeys(cls._loaded_later(index, options)),
                **({} if quantization_config is None else {"quantization_config": quantization_config}),
            )
        except OSError as error:
            raise OSError(f"{name_or_path!r} has an index, but its weights could not be loaded: {error}") from error
        return cls(
            pipeline.to(device),
            str(name_or_path),
            source=source,
            revision=revision,
            quantization_config=quantization_config,
            **options,
        )

    @classmethod
    def _check_options(cls, options: dict[str, Any]) -> None:
        for name in options:
            if name not in cls.options:
                known = near_miss(name, cls.options) if cls.options else "It has none."
                raise ValueError(f"a {cls.family} model has no option {name!r}. {known}")

    @classmethod
    def _check_index(cls, index: dict, name: str) -> None:
        """Refuse a variant of the family that the adapter does not run, before any weights are loaded."""

    @classmethod
    def _loaded_later(cls, index: dict, options: dict[str, Any]) -> tuple[str, ...]:
        """Components of the pipeline that are read when they are first needed, and not with the others."""
        return ()

    # What the model is

    @property
    def transformer(self) -> torch.nn.Module:
        """The network that is trained: the pipeline's transformer, or the `PeftModel` around it once that was set."""
        return self._network

    @property
    def base_transformer(self) -> torch.nn.Module:
        """The transformer that is trained, as the pipeline holds it: without the `PeftModel` around it."""
        return getattr(self.pipeline, self.trained_component)

    @transformer.setter
    def transformer(self, network: torch.nn.Module) -> None:
        base = base_network(network)
        expected = type(self.base_transformer)
        if not isinstance(base, expected):
            raise TypeError(
                f"transformer must be a {expected.__name__} or a PeftModel around one, got {type(base).__name__}; "
                "unwrap it "
                "first (accelerator.unwrap_model)."
            )
        if base is not self.base_transformer:
            setattr(self.pipeline, self.trained_component, base)
        self._network = network

    @property
    def device(self) -> torch.device:
        """Where the transformer is."""
        return self.base_transformer.device

    @property
    def dtype(self) -> torch.dtype:
        """The base transformer's floating point type; adapters and the layers that stay in float32 are not asked."""
        # diffusers walks the whole network to say it, 3 ms for one of 30 blocks, and a training step asks four times.
        # Where a cast changes it, it changes the type of the tensor that is asked here instead, too.
        network = self.base_transformer
        of, witness = (reference() for reference in self._dtype_witness)
        if of is network and witness is not None:
            return witness.dtype
        dtype = network.dtype
        same = [parameter for parameter in network.parameters() if parameter.dtype == dtype]
        if same:  # else hooks cast the layers, and no tensor says it; what is kept in float32, or adapts, is small
            largest = max(same, key=torch.Tensor.numel)
            self._dtype_witness = weakref.ref(network), weakref.ref(largest)
        return dtype

    def default_settings(self) -> SamplingSettings:
        """The sampling settings the pipeline's folder carries (spatialalign.json), else the family's."""
        path = Path(self._source) / SETTINGS_FILE
        if self._source and path.is_file():
            return SamplingSettings.from_dict(read_json(path))
        return self._family_settings()

    @abstractmethod
    def _family_settings(self) -> SamplingSettings:
        """The sampling settings of the family's published checkpoints."""

    # Flow matching

    def train_as_sampled(self, settings: SamplingSettings) -> None:  # noqa: B027 (most families have nothing to do)
        """
        Let training ask the transformer for what sampling with these settings asks it for: a family whose transformer
        is told a sampling setting takes it from here.

        Raises:
            ValueError: when the model was told otherwise when it was loaded.
        """

    @property
    def sigma_range(self) -> tuple[float, float]:
        """Noise levels in `[low, high]` that the trained transformer sees in sampling; training on others is lost."""
        return 0.0, 1.0

    def add_noise(self, x0: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """
        `x_s = (1 - s) * x0 + s * noise` (rectified flow), in fp32.

        Args:
            x0 (`torch.Tensor` of shape (batch, ...)):
                Clean latents.
            noise (`torch.Tensor` of the same shape):
                Standard normal noise.
            sigma (`torch.Tensor` of shape (batch,)):
                Noise levels in [0, 1].
        """
        sigma = sigma.float().reshape(-1, *[1] * (x0.ndim - 1))
        return (1.0 - sigma) * x0.float() + sigma * noise.float()

    def target(self, x0: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """`u = noise - x0`, what the transformer is to predict, in fp32. Arguments as in [`~VideoModel.add_noise`]."""
        return noise.float() - x0.float()

    @abstractmethod
    def predict(
        self,
        noisy: torch.Tensor,
        sigma: torch.Tensor,
        conditioning: Conditioning,
        transformer: torch.nn.Module | None = None,
    ) -> torch.Tensor:
        """
        The transformer's prediction of the target.

        Args:
            noisy (`torch.Tensor` of shape (batch, channels, frames, height, width)):
                Noised latents; cast to the transformer's type.
            sigma (`torch.Tensor` of shape (batch,)):
                Noise levels in [0, 1]. The timestep 1000 * sigma reaches the transformer in fp32: bf16 holds only 294
                of 1000 timesteps.
            conditioning (`dict[str, torch.Tensor]`):
                From [`~VideoModel.encode_prompts`].
            transformer (`torch.nn.Module`, *optional*):
                The module to call, for one that a trainer has wrapped; the model's own by default.
        """
