"""What the configurations of all trainers here share: TRL's base config, flow matching, and the cache of latents."""

from dataclasses import dataclass, field
from typing import Any

import torch
from trl.trainer.base_config import _BaseConfig as BaseConfig

from spatialalign_trl.trainer.flow_matching import TimestepSampling, sigma_bounds


@dataclass
class VideoTrainerConfig(BaseConfig):
    r"""
    Arguments of [`VideoTrainer`]: those of [`~transformers.TrainingArguments`] and what follows.

    Differences from `TrainingArguments`: `learning_rate` is 1e-4, `gradient_checkpointing` is on, `logging_steps` is
    10 (both as everywhere in TRL), `remove_unused_columns` and `ddp_find_unused_parameters` are off, `data_seed` is
    `seed` unless given (so that the order of the examples depends on the arguments alone), memory is pinned only where
    there is an accelerator, and `bf16` is on by default on
    accelerators that compute in it, and off on the CPU: the margin is a difference of errors smaller than bf16's
    rounding noise on short latents, and bf16 is no faster there.

    Args:
        model_init_kwargs (`dict[str, Any]`, *optional*):
            Keyword arguments of [`load_video_model`] when the trainer's `model` is a string, such as
            `{"torch_dtype": "bfloat16"}`.
        flow_shift (`float`, *optional*):
            `k` of `s = k*u/(1 + (k-1)*u)`. `None`: the one the model samples with.
        timestep_sampling (`str`, *optional*, defaults to `"uniform_shifted"`):
            Distribution of `s`: `"uniform_shifted"`, `"logit_normal"`, `"logit_normal_shifted"`
            ([`~flow_matching.sample_sigmas`] has the formulas).
        min_sigma, max_sigma (`float`, *optional*, default to `0.0` and `1.0`):
            `s` is drawn conditioned on `[min_sigma, max_sigma]`.
        num_train_timesteps (`int`, *optional*, defaults to `1000`):
            `u` lies on the grid `{1/N, ..., 1}`. `None`: continuous.
        latent_cache_dir (`str`, *optional*):
            Folder of encoded latents and prompt embeddings, shared by runs and visible to all processes. `None`:
            `_latent_cache` in `output_dir` (the underscore keeps it out of pushes to the Hub).
    """

    _VALID_DICT_FIELDS = BaseConfig._VALID_DICT_FIELDS + ["model_init_kwargs"]

    # Defaults of TrainingArguments that differ here.
    learning_rate: float = field(default=1e-4, metadata={"help": "The initial learning rate of AdamW."})
    remove_unused_columns: bool = field(
        default=False,
        metadata={"help": "Keep off: the batches' keys are not arguments of the network's forward."},
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False,
        metadata={"help": "Off: every LoRA weight takes part in every step, so looking for unused ones is lost time."},
    )

    model_init_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Keyword arguments of `load_video_model` when the trainer's `model` is a string, such as "
            '\'{"torch_dtype": "bfloat16"}\'.'
        },
    )
    flow_shift: float | None = field(
        default=None,
        metadata={
            "help": "k in s = k*u/(1 + (k-1)*u), the noise level of training. None: the one the model samples with."
        },
    )
    timestep_sampling: TimestepSampling = field(
        default="uniform_shifted",
        metadata={
            "help": "Distribution of s. 'uniform_shifted': u uniform on {1/N, ..., 1}, s = k*u/(1 + (k-1)*u) (the "
            "paper). 'logit_normal': s = sigmoid(n), n ~ N(0, 1). 'logit_normal_shifted': the same as u, then "
            "shifted by k."
        },
    )
    min_sigma: float = field(
        default=0.0, metadata={"help": "Lower bound of s; s is drawn conditioned on [min_sigma, max_sigma]."}
    )
    max_sigma: float = field(
        default=1.0, metadata={"help": "Upper bound of s; s is drawn conditioned on [min_sigma, max_sigma]."}
    )
    num_train_timesteps: int | None = field(
        default=1000, metadata={"help": "N of the grid {1/N, ..., 1} on which u lies. None: continuous."}
    )
    latent_cache_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder of cached latents and prompt embeddings; all processes must see it. None: "
            "`_latent_cache` in output_dir."
        },
    )

    def __post_init__(self) -> None:
        if self.bf16 is None:  # TRL would turn it on, on the CPU too
            self.bf16 = not self.fp16 and not self.use_cpu and _accelerator_computes_in_bf16()
        if self.activation_checkpointing is None:  # the newer name of the same field; setting only the old one warns
            self.activation_checkpointing = self.gradient_checkpointing
        if not torch.accelerator.is_available():  # there is nothing to pin memory for, and torch warns
            self.dataloader_pin_memory = False
        if self.data_seed is None:
            self.data_seed = self.seed
        super().__post_init__()
        self._check()

    def _check(self) -> None:
        if self.flow_shift is not None and not self.flow_shift > 0:
            raise ValueError(f"flow_shift={self.flow_shift}: must be positive, or None for the model's own")
        if self.num_train_timesteps is not None and self.num_train_timesteps < 1:
            raise ValueError(f"num_train_timesteps={self.num_train_timesteps}: must be at least 1, or None")
        # The grid itself is checked by the trainer, which knows the model's flow shift.
        sigma_bounds(self.flow_shift or 1.0, self.timestep_sampling, self.min_sigma, self.max_sigma, None)


def _accelerator_computes_in_bf16() -> bool:
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return device is not None and device.type in ("cuda", "xpu", "npu")
