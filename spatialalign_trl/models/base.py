"""Define the interface that every family of video models implements, and what all families share.

Rollouts and trainers use a model through this interface: it encodes prompts, encodes and decodes videos, computes a
noised input and its target, predicts, samples, names its legal sizes and its LoRA targets, saves and loads its LoRA,
and computes as the reference. Only one transformer is in memory: the reference is the same network with its adapters
off. The shared parts are in the files next to this one, by subject (encoding, sampling, sizes, LoRA). A family
implements the abstract methods.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import diffusers
import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from spatialalign_trl.devices import default_device
from spatialalign_trl.errors import near_miss
from spatialalign_trl.files import read_json
from spatialalign_trl.models.encoding import Conditioning, EncodingMixin
from spatialalign_trl.models.lora import LoraMixin, base_network
from spatialalign_trl.models.quantization import describe_quantization, select_components
from spatialalign_trl.models.sampling import SamplingMixin
from spatialalign_trl.models.settings import SamplingSettings
from spatialalign_trl.models.sizes import SizesMixin
from spatialalign_trl.models.sources import optional_file, read_model_index, resolve_source

__all__ = ["Conditioning", "SamplingSettings", "VideoModel"]

SETTINGS_FILE = "spatialalign.json"
"""Optional file of a pipeline's folder or repository with its default sampling settings."""


class VideoModel(EncodingMixin, SamplingMixin, SizesMixin, LoraMixin, ABC):
    """
    A text-to-video pipeline behind the interface that rollouts and trainers use.

    Args:
        pipeline (`DiffusionPipeline`):
            The loaded pipeline. Its progress bar is switched off.
        name_or_path (`str`, *optional*):
            The model's name in cards, caches and LoRA metadata. Defaults to the pipeline's own name.
        source (`str`, *optional*):
            Folder or Hub id from which components can be loaded again. Defaults to `name_or_path`.
        revision (`str`, *optional*):
            Revision of `source`.
        quantization_config (`PipelineQuantizationConfig`, *optional*):
            The configuration with which the pipeline was quantised. Components that are loaded later use it too.
    """

    family: ClassVar[str]
    """Short name of the family, used in errors and configurations."""
    pipeline_class: ClassVar[str]
    """Name of the diffusers class that the family runs, as in `model_index.json`."""
    default_lora_targets: ClassVar[tuple[str, ...]]
    """Names of the modules that get an adapter by default: those where the prompt enters the transformer."""
    lora_full_rank: Mapping[str, int] = MappingProxyType({})
    """Module -> rank, for small modules that a task added: by default their adapter has full rank."""
    options: ClassVar[tuple[str, ...]] = ()
    """Keyword arguments of the class that [`load_video_model`] passes on."""
    num_train_timesteps: ClassVar[int] = 1000
    trained_component: str = "transformer"
    """The component of the pipeline that is trained. A family with several transformers trains one of them per run."""

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
        """Settings that change the numbers the model computes, under the names of `ModelArguments`."""
        if quantization_config is not None:
            self.computation["quantization"] = describe_quantization(quantization_config)
        if revision is not None:
            self.computation["model_revision"] = revision
        self.name_or_path = name_or_path or str(pipeline.config.get("_name_or_path") or "")
        self.revision = revision
        self._source = source or self.name_or_path
        self._network: nn.Module = self.base_transformer
        self._offloaded: dict[str, nn.Module] = {}
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
                Type of the transformer and of the text encoder. Defaults to bfloat16 on a GPU and float32 on the CPU.
                The VAE always computes in float32.
            device (`str` or `torch.device`, *optional*):
                Where the model computes. Defaults to this process's GPU if there is one.
            revision (`str`, *optional*):
                Branch, tag or commit on the Hub.
            quantization_config (`PipelineQuantizationConfig`, *optional*):
                diffusers' configuration of a quantised base; see [`quantization.quantization_config`].
            options:
                Keyword arguments that only this family's class accepts.

        Returns:
            [`VideoModel`]: the loaded model.

        Raises:
            FileNotFoundError: if there is no such folder or repository.
            ConnectionError: if the Hub cannot be reached and the model is not in the cache.
            OSError: if the folder or repository has an index, but its weights cannot be loaded.
            ValueError: if the pipeline does not belong to this family, or the family has no such option.
        """
        # 1. Check the options and the index, before any weights are loaded
        cls._check_options(options)
        source = resolve_source(name_or_path)
        index = read_model_index(source, revision)
        if index.get("_class_name") != cls.pipeline_class:
            raise ValueError(
                f"{name_or_path!r} is a {index.get('_class_name')}, but {cls.__name__} runs a {cls.pipeline_class}. "
                "Use load_video_model, which picks the adapter."
            )
        cls._check_index(index, str(name_or_path))

        # 2. Load the pipeline
        if quantization_config is not None:
            quantization_config = select_components(quantization_config, index)
        device = torch.device(device) if device is not None else default_device()
        dtype = torch_dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
        try:
            # The family's own class: DiffusionPipeline does not know which components its subclasses can do without.
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

        # 3. Wrap it in the adapter
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
        """Refuse a variant of the family that the adapter cannot run, before any weights are loaded."""

    @classmethod
    def _loaded_later(cls, index: dict, options: dict[str, Any]) -> tuple[str, ...]:
        """Return the components that are loaded when they are first needed instead of with the pipeline."""
        return ()

    # The network and its defaults

    @property
    def transformer(self) -> nn.Module:
        """The network that is trained: the pipeline's transformer, or the `PeftModel` around it once that is set."""
        return self._network

    @property
    def base_transformer(self) -> nn.Module:
        """The trained transformer as the pipeline holds it, without a `PeftModel` around it."""
        return getattr(self.pipeline, self.trained_component)

    @transformer.setter
    def transformer(self, network: nn.Module) -> None:
        base = base_network(network)
        expected = type(self.base_transformer)
        if not isinstance(base, expected):
            raise TypeError(
                f"transformer must be a {expected.__name__} or a PeftModel around one, got {type(base).__name__}. "
                "Unwrap it first (accelerator.unwrap_model)."
            )
        if base is not self.base_transformer:
            setattr(self.pipeline, self.trained_component, base)
        self._network = network

    @property
    def device(self) -> torch.device:
        """The device that the transformer is on."""
        return self.base_transformer.device

    @property
    def dtype(self) -> torch.dtype:
        """
        The floating point type of the base transformer, whatever the types of its adapters and of the layers that
        stay in float32.

        diffusers walks through all modules of the network to find it (about 5 ms for 30 blocks), so read it once per
        prediction.
        """
        return self.base_transformer.dtype

    def default_settings(self) -> SamplingSettings:
        """
        Return the sampling settings that come with the pipeline (`spatialalign.json`), or else the family's.

        Raises:
            ValueError: if the file has settings that do not exist or are out of range.
        """
        path = self._settings_file
        if path is None:
            return self._family_settings()
        try:
            settings = read_json(path)
            if not isinstance(settings, dict):
                raise ValueError(f"expected settings by name, not a {type(settings).__name__}.")
            return SamplingSettings.from_dict(settings)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error

    @cached_property
    def _settings_file(self) -> Path | None:
        """The pipeline's `spatialalign.json`, in its folder or on the Hub, where it is looked for once."""
        return optional_file(self._source, SETTINGS_FILE, self.revision)

    @abstractmethod
    def _family_settings(self) -> SamplingSettings:
        """Return the sampling settings of the family's published checkpoints."""

    # Flow matching

    def train_as_sampled(self, settings: SamplingSettings) -> None:  # noqa: B027 (most families need nothing here)
        """
        Train at the settings with which videos are sampled. Only a family with a transformer that takes a sampling
        setting as an input (such as the guidance scale) needs this.

        Args:
            settings ([`SamplingSettings`]):
                The settings with which the training videos are sampled.

        Raises:
            ValueError: if the model was loaded with another value of that setting.
        """

    @property
    def sigma_range(self) -> tuple[float, float]:
        """
        Noise levels in `[low, high]` that the trained transformer sees in sampling. Training on others is wasted.
        """
        return 0.0, 1.0

    def add_noise(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """
        Return `x_s = (1 - s) * x0 + s * noise` (rectified flow), in fp32.

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

    def target(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """
        Return `u = noise - x0`, which the transformer learns to predict, in fp32. For the arguments see
        [`~VideoModel.add_noise`].
        """
        return noise.float() - x0.float()

    @abstractmethod
    def predict(
        self, noisy: Tensor, sigma: Tensor, conditioning: Conditioning, transformer: nn.Module | None = None
    ) -> Tensor:
        """
        Return the transformer's prediction of the target.

        Args:
            noisy (`torch.Tensor` of shape (batch, channels, frames, height, width)):
                Noised latents; cast to the transformer's type.
            sigma (`torch.Tensor` of shape (batch,)):
                Noise levels in [0, 1]. The timestep 1000 * sigma reaches the transformer in fp32: bf16 can represent
                only 294 of 1000 timesteps.
            conditioning (`dict[str, torch.Tensor]`):
                From [`~VideoModel.encode_prompts`].
            transformer (`torch.nn.Module`, *optional*):
                The module to call, if a trainer has wrapped it. Defaults to the model's own.

        Returns:
            `torch.Tensor` of the shape of `noisy`, in the transformer's type.
        """
