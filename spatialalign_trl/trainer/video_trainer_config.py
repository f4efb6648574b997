"""Configuration that all trainers share: TRL's base config, flow matching, and the cache of latents."""

from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from trl.trainer.base_config import _BaseConfig as BaseConfig

from spatialalign_trl.models.ranges import Range, check_fields
from spatialalign_trl.trainer.flow_matching import TimestepSampling, sigma_bounds
from spatialalign_trl.trainer.training_arguments import (
    TRAINING_RANGES,
    check_mappings,
    check_mixed_precision,
    check_schedule,
    check_steps,
    explain_training_arguments,
)


@dataclass
class VideoTrainerConfig(BaseConfig):
    r"""
    Arguments of [`VideoTrainer`]: those of [`~transformers.TrainingArguments`] and the arguments below.

    These defaults differ from `TrainingArguments`:

    - `learning_rate` is 1e-4; `gradient_checkpointing` is on and `logging_steps` is 10, as in all of TRL.
    - `remove_unused_columns` and `ddp_find_unused_parameters` are off.
    - `data_seed` is `seed`, so that the order of the examples depends on the arguments alone.
    - Memory is pinned only if there is an accelerator.
    - `bf16` is on if the accelerator computes in bf16, and off on the CPU, where bf16 is no faster and, on short
      latents, its rounding noise is larger than the differences of errors that make up the margin.

    Args:
        model_init_kwargs (`dict[str, Any]`, *optional*):
            Keyword arguments of [`load_video_model`] when the trainer's `model` is a string, such as
            `{"torch_dtype": "bfloat16"}`.
        flow_shift (`float`, *optional*):
            `k` in `s = k*u/(1 + (k-1)*u)`, the noise level of training. `None`: the shift that the model samples with.
        timestep_sampling (`str`, *optional*, defaults to `"uniform_shifted"`):
            Distribution of `s`: `"uniform_shifted"`, `"logit_normal"` or `"logit_normal_shifted"`. See
            [`~flow_matching.sample_sigmas`] for the formulas.
        min_sigma, max_sigma (`float`, *optional*, default to `0.0` and `1.0`):
            `s` is drawn conditioned on `[min_sigma, max_sigma]`.
        num_train_timesteps (`int`, *optional*, defaults to `1000`):
            `N` of the grid `{1/N, ..., 1}` that `u` is drawn from. `None`: `u` is continuous.
        latent_cache_dir (`str`, *optional*):
            Folder of encoded latents and prompt embeddings, shared by runs and visible to all processes. `None`:
            `_latent_cache` in `output_dir`; the underscore keeps it out of pushes to the Hub.
    """

    _VALID_DICT_FIELDS = BaseConfig._VALID_DICT_FIELDS + ["model_init_kwargs"]

    # Defaults of TrainingArguments that differ here.
    learning_rate: Annotated[float, TRAINING_RANGES["learning_rate"]] = field(
        default=1e-4, metadata={"help": "The initial learning rate of AdamW."}
    )
    remove_unused_columns: bool = field(
        default=False,
        metadata={"help": "Keep this off: the keys of a batch are not arguments of the network's forward method."},
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False,
        metadata={
            "help": "Off, because every LoRA weight is used in every step and a search for unused ones costs time."
        },
    )

    model_init_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Keyword arguments of `load_video_model` when the trainer's `model` is a string, such as "
            '\'{"torch_dtype": "bfloat16"}\'.'
        },
    )
    flow_shift: Annotated[float | None, Range(above=0, note="Set None to use the model's shift.")] = field(
        default=None,
        metadata={
            "help": "k in s = k*u/(1 + (k-1)*u), the noise level of training. None: the shift that the model samples "
            "with."
        },
    )
    timestep_sampling: TimestepSampling = field(
        default="uniform_shifted",
        metadata={
            "help": "Distribution of the noise level s. 'uniform_shifted': u uniform on {1/N, ..., 1}, s = k*u/(1 + "
            "(k-1)*u) (the paper). 'logit_normal': s = sigmoid(n), n ~ N(0, 1). 'logit_normal_shifted': u = "
            "sigmoid(n), s = k*u/(1 + (k-1)*u)."
        },
    )
    min_sigma: Annotated[float, Range(at_least=0, below=1)] = field(
        default=0.0,
        metadata={"help": "Lower bound of the noise level s, which is drawn conditioned on [min_sigma, max_sigma]."},
    )
    max_sigma: Annotated[float, Range(above=0, at_most=1)] = field(
        default=1.0,
        metadata={"help": "Upper bound of the noise level s, which is drawn conditioned on [min_sigma, max_sigma]."},
    )
    num_train_timesteps: Annotated[int | None, Range(at_least=1, at_most=1_000_000)] = field(
        default=1000, metadata={"help": "N of the grid {1/N, ..., 1} that u is drawn from. None: u is continuous."}
    )
    latent_cache_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder of the cached latents and prompt embeddings; it must be visible to all processes. None: "
            "`_latent_cache` in output_dir."
        },
    )

    def __post_init__(self) -> None:
        if self.debug is None:  # what TRL's parser makes of the default
            self.debug = ""
        check_fields(self, TRAINING_RANGES)
        check_mixed_precision(self)
        if self.bf16 is None:  # TRL would switch it on, even on the CPU
            self.bf16 = not self.fp16 and not self.use_cpu and _accelerator_computes_in_bf16()
        if self.activation_checkpointing is None:  # new name of the same field; setting only the old one warns
            self.activation_checkpointing = self.gradient_checkpointing
        if not torch.accelerator.is_available():  # torch would warn that there is nothing to pin memory for
            self.dataloader_pin_memory = False
        if self.data_seed is None:
            self.data_seed = self.seed
        with explain_training_arguments(self):
            super().__post_init__()
        self._check()

    def _check(self) -> None:
        check_mappings(self, self._VALID_DICT_FIELDS)
        check_steps(self)
        check_schedule(self)
        # Checks the bounds. The trainer, which knows the model's flow shift, checks the grid.
        sigma_bounds(self.flow_shift or 1.0, self.timestep_sampling, self.min_sigma, self.max_sigma, None)


def _accelerator_computes_in_bf16() -> bool:
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return device is not None and device.type in ("cuda", "xpu", "npu")
