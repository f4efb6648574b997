"""Configuration that all trainers share: TRL's base config, flow matching, and the cache of latents."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from transformers.trainer_pt_utils import AcceleratorConfig
from trl.trainer.base_config import _BaseConfig as BaseConfig

from spatialalign_trl.models.ranges import Range, check_fields
from spatialalign_trl.models.settings import FLOW_SHIFT
from spatialalign_trl.safe_text import mask_secrets
from spatialalign_trl.trainer.flow_matching import TimestepSampling, sigma_bounds
from spatialalign_trl.trainer.training_arguments import (
    TRAINING_RANGES,
    check_mappings,
    check_mixed_precision,
    check_schedule,
    check_steps,
    explain_training_arguments,
)

LAUNCHED_PRECISION = "ACCELERATE_MIXED_PRECISION"
"""Environment variable in which `accelerate launch` passes on its precision: no, bf16, fp16 or fp8."""


@dataclass
class VideoTrainerConfig(BaseConfig):
    r"""
    Arguments of [`VideoTrainer`]: those of [`~transformers.TrainingArguments`] and the arguments below.

    These defaults differ from `TrainingArguments`:

    - `learning_rate` is 1e-4; `gradient_checkpointing` is on and `logging_steps` is 10, as in all of TRL.
    - `remove_unused_columns` and `ddp_find_unused_parameters` are off, and so is
      `logging_nan_inf_filter`, which would hide a loss that is not finite.
    - `data_seed` is `seed`, so that the order of the examples depends on the arguments alone.
    - Memory is pinned only if there is an accelerator.
    - `bf16` is on if the accelerator computes in bf16, and off on the CPU, where bf16 is no faster and, on short
      latents, its rounding noise is larger than the differences of errors that make up the margin. The precision that
      `accelerate launch` was given applies where neither `bf16` nor `fp16` is set.

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

    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={"help": "Keep this off: it would replace losses that are not finite by the average of the others."},
    )

    model_init_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Keyword arguments of `load_video_model` when the trainer's `model` is a string, such as "
            '\'{"torch_dtype": "bfloat16"}\'.'
        },
    )
    flow_shift: Annotated[float | None, FLOW_SHIFT] = field(
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
        if isinstance(self.accelerator_config, AcceleratorConfig):  # of settings that `dataclasses.replace` copies
            self.accelerator_config = self.accelerator_config.to_dict()
        check_fields(self, TRAINING_RANGES)

        # 1. Choose the precision: these arguments, then the launcher's, then what suits the device. (TRL would switch
        # bf16 on, even on the CPU.)
        launched = os.environ.get(LAUNCHED_PRECISION, "no")
        if self.bf16 is None and not self.fp16 and launched in ("bf16", "fp16"):
            self.bf16, self.fp16 = launched == "bf16", launched == "fp16"
        elif self.bf16 is None:
            self.bf16 = not self.fp16 and launched == "no" and not self.use_cpu and _accelerator_computes_in_bf16()
        check_mixed_precision(self)

        # 2. Set the other defaults
        if self.activation_checkpointing is None:  # new name of the same field; setting only the old one warns
            self.activation_checkpointing = self.gradient_checkpointing
        if not torch.accelerator.is_available():  # torch would warn that there is nothing to pin memory for
            self.dataloader_pin_memory = False
        if self.data_seed is None:
            self.data_seed = self.seed
        # Both flags hold the launched precision now.
        launched = "no" if launched in ("bf16", "fp16") else launched
        with explain_training_arguments(self), _launched_precision(launched):
            super().__post_init__()
        self._check()

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as trackers, checkpoints and cards get them: with secrets masked."""
        return mask_secrets(super().to_dict())

    def _check(self) -> None:
        if self.logging_nan_inf_filter:
            raise ValueError(
                "logging_nan_inf_filter=True would hide losses that are not finite: leave it off. Training stops at "
                "the first of them anyway."
            )
        check_mappings(self, self._VALID_DICT_FIELDS)
        check_steps(self)
        check_schedule(self)
        # Checks the bounds. The trainer, which knows the model's flow shift, checks the grid.
        sigma_bounds(self.flow_shift or 1.0, self.timestep_sampling, self.min_sigma, self.max_sigma, None)


@contextmanager
def _launched_precision(value: str) -> Iterator[None]:
    """Replace the precision that `accelerate launch` was given, which `TrainingArguments` reads."""
    original = os.environ.get(LAUNCHED_PRECISION)
    os.environ[LAUNCHED_PRECISION] = value
    try:
        yield
    finally:
        if original is None:
            del os.environ[LAUNCHED_PRECISION]
        else:
            os.environ[LAUNCHED_PRECISION] = original


def _accelerator_computes_in_bf16() -> bool:
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return device is not None and device.type in ("cuda", "xpu", "npu")
