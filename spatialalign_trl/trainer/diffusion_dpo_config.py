"""Configuration of [`DiffusionDPOTrainer`]."""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from ._trl_base import BaseConfig
from .flow_matching import TimestepSampling, sigma_bounds


@dataclass
class DiffusionDPOConfig(BaseConfig):
    r"""
    Arguments of [`DiffusionDPOTrainer`]: those of [`~transformers.TrainingArguments`] and what follows.

    Differences from `TrainingArguments`: `learning_rate` is 1e-4, `gradient_checkpointing` is on, `logging_steps` is
    10 (both as everywhere in TRL), `remove_unused_columns` and `ddp_find_unused_parameters` are off, `data_seed` is
    `seed` unless given (so that the order of the pairs depends on the arguments alone), memory is pinned only where
    there is an accelerator, and `bf16` is on by default on
    accelerators that compute in it, and off on the CPU: the margin is a difference of errors smaller than bf16's
    rounding noise on short latents, and bf16 is no faster there.

    Args:
        model_init_kwargs (`dict[str, Any]`, *optional*):
            Keyword arguments of [`load_video_model`] when the trainer's `model` is a string, such as
            `{"torch_dtype": "bfloat16"}`.
        beta (`float`, *optional*, defaults to `1.0`):
            `m = clip(beta * (score(chosen) - score(rejected)), -c, c)`, `L_dpo = -log sigmoid(m)`, with
            `score(y) = MSE_ref(y) - MSE_theta(y)` on *mean* squared errors (SpatialAlign's convention; code that
            writes `0.5*beta*T` needs values in the thousands for the same strength).
        margin_clip (`float`, *optional*, defaults to `5.0`):
            `c` above. Pairs beyond it give no preference gradient. `None`: no clipping.
        loss_type (`"sigmoid"` or `"sft"`, *optional*, defaults to `"sigmoid"`):
            `"sigmoid"`: the loss above. `"sft"`: `MSE_theta(chosen)` alone, the supervised baseline.
        shared_noise (`bool`, *optional*, defaults to `False`):
            Whether chosen and rejected are noised with the same `eps` (lower variance). `False` is the paper's recipe.
        flow_shift (`float`, *optional*):
            `k` of `s = k*u/(1 + (k-1)*u)`. `None`: the one the model samples with.
        timestep_sampling (`str`, *optional*, defaults to `"uniform_shifted"`):
            Distribution of `s`: `"uniform_shifted"`, `"logit_normal"`, `"logit_normal_shifted"`
            ([`~flow_matching.sample_sigmas`] has the formulas).
        min_sigma, max_sigma (`float`, *optional*, default to `0.0` and `1.0`):
            `s` is drawn conditioned on `[min_sigma, max_sigma]`.
        num_train_timesteps (`int`, *optional*, defaults to `1000`):
            `u` lies on the grid `{1/N, ..., 1}`. `None`: continuous.
        separate_forward (`bool`, *optional*, defaults to `False`):
            Run chosen and rejected through the network one after the other instead of as one batch. Lowers the
            reference's peak memory, costs time; policy and reference always do the same.
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
    beta: float = field(
        default=1.0,
        metadata={
            "help": "Strength of the preference: L_dpo = -log sigmoid(clip(beta*(score(chosen) - score(rejected)), "
            "-c, c)), score(y) = MSE_ref(y) - MSE_theta(y). Convention: beta multiplies a difference of MEAN squared "
            "errors (SpatialAlign: 1.0). Code that writes 0.5*beta*T uses values in the thousands; do not copy those "
            "here."
        },
    )
    margin_clip: float | None = field(
        default=5.0,
        metadata={
            "help": "c in L_dpo = -log sigmoid(clip(beta*(score(chosen) - score(rejected)), -c, c)); pairs beyond it "
            "give no preference gradient. None: no clipping."
        },
    )
    loss_type: Literal["sigmoid", "sft"] = field(
        default="sigmoid",
        metadata={
            "help": "'sigmoid': L = -log sigmoid(clip(beta*(score(chosen) - score(rejected)), -c, c)). 'sft': L = "
            "MSE_theta(chosen), the baseline that learns from the chosen videos alone."
        },
    )
    shared_noise: bool = field(
        default=False,
        metadata={
            "help": "Whether chosen and rejected are noised with the same eps in x_s = (1-s)*x0 + s*eps (lower "
            "variance of the margin). False is the paper's recipe. Both always share s."
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
    separate_forward: bool = field(
        default=False,
        metadata={
            "help": "Run chosen and rejected through the network one after the other instead of as one batch [chosen, "
            "rejected]; less memory for the reference, slower. Policy and reference always do the same."
        },
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
        if not self.beta > 0:
            raise ValueError(f"beta={self.beta}: must be positive (SpatialAlign: 1.0, on mean squared errors)")
        if self.margin_clip is not None and not self.margin_clip > 0:
            raise ValueError(f"margin_clip={self.margin_clip}: must be positive, or None for no clipping")
        if self.loss_type not in ("sigmoid", "sft"):
            raise ValueError(f"loss_type={self.loss_type!r}: expected 'sigmoid' or 'sft'")
        if self.flow_shift is not None and not self.flow_shift > 0:
            raise ValueError(f"flow_shift={self.flow_shift}: must be positive, or None for the model's own")
        if self.num_train_timesteps is not None and self.num_train_timesteps < 1:
            raise ValueError(f"num_train_timesteps={self.num_train_timesteps}: must be at least 1, or None")
        # The grid itself is checked by the trainer, which knows the model's flow shift.
        sigma_bounds(self.flow_shift or 1.0, self.timestep_sampling, self.min_sigma, self.max_sigma, None)


def _accelerator_computes_in_bf16() -> bool:
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return device is not None and device.type in ("cuda", "xpu", "npu")
