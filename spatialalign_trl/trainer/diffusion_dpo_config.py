"""Configuration of [`DiffusionDPOTrainer`]."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from spatialalign_trl.models.ranges import COUNT, SHARE, Range
from spatialalign_trl.trainer.video_trainer_config import VideoTrainerConfig


@dataclass
class DiffusionDPOConfig(VideoTrainerConfig):
    r"""
    Arguments of [`DiffusionDPOTrainer`]: those of [`VideoTrainerConfig`] and the arguments below.

    Args:
        beta (`float`, *optional*, defaults to `1.0`):
            Strength of the preference: `L_dpo = -log sigmoid(m)` with
            `m = clip(beta * (score(chosen) - score(rejected)), -c, c)` and `score(y) = MSE_ref(y) - MSE_theta(y)`.
            `beta` multiplies a difference of *mean* squared errors, as in SpatialAlign; code that writes `0.5*beta*T`
            needs values in the thousands for the same strength.
        margin_clip (`float`, *optional*, defaults to `5.0`):
            `c` above. A pair whose margin exceeds it gives no preference gradient. `None`: no clipping.
        loss_type (`"sigmoid"`, `"hinge"`, `"ipo"` or `"sft"`, *optional*, defaults to `"sigmoid"`):
            `"sigmoid"`: the loss above. `"hinge"`: `max(0, 1 - m)`. `"ipo"`: `(m/beta - 1/(2*beta))^2`, which needs
            `margin_clip=None`. `"sft"`: `MSE_theta(chosen)` alone, the supervised baseline. `docs/losses.md` compares
            all of them in a table, and converts the beta of other code.
        sft_weight (`float`, *optional*, defaults to `0.0`):
            `w` in `L = L_dpo + w*MSE_theta(chosen)`, which keeps the winner's error low (Reg-DPO).
        winner_safe_mu (`float`, *optional*):
            `mu` in [0, 1] of Diffusion-SDPO: the gradient of the loser's error is scaled so that, to first order, the
            winner's error decreases by at least `mu` times what the winner's gradient alone would achieve. `None`:
            off.
        shared_noise (`bool`, *optional*, defaults to `False`):
            Whether the chosen and the rejected video are noised with the same `eps`, which lowers the variance of the
            margin. `False` is the paper's recipe.
        rollout_noise (`bool`, *optional*, defaults to `False`):
            Whether the `eps` of a video is the noise that the video was sampled from (PNAPO). The dataset needs the
            columns `chosen_noise_seed` and `rejected_noise_seed`.
        num_noise_draws (`int`, *optional*, defaults to `1`):
            `K`, the number of draws of `(eps, s)` per pair and step; the loss is the mean over them.
        num_fixed_draws (`int`, *optional*):
            `F`, the number of draws of `(eps, s)` that a pair has in the whole run; a step picks `num_noise_draws` of
            them at random. `None`: every step makes new draws.
        precompute_reference (`bool`, *optional*, defaults to `False`):
            Whether to compute the reference's predictions at the `num_fixed_draws` draws of all pairs before the
            first step and store them in `latent_cache_dir`, instead of running the reference in every step. It saves
            time if a pair is visited more often than it has draws (`spatialalign plan` says how often).
        sync_reference (`bool`, *optional*, defaults to `False`):
            Whether to update the reference every `reference_sync_steps` steps:
            `reference = a*policy + (1-a)*reference`, `a = reference_mixup_alpha`.
        reference_sync_steps (`int`, *optional*, defaults to `512`):
            Optimizer steps between two updates of the reference.
        reference_mixup_alpha (`float`, *optional*, defaults to `0.6`):
            `a` above, in (0, 1]; 1 copies the policy. With `reference_sync_steps=1` the reference is a moving average
            with decay `1 - a`.
        separate_forward (`bool`, *optional*, defaults to `False`):
            Whether the chosen and the rejected videos go through the network one after the other instead of in one
            batch. This lowers the peak memory of a checkpointed step, the policy's as well as the reference's (Wan 2.1
            1.3B at 81x480x832: 12.0 instead of 15.2 GiB), and takes longer on small videos. Policy and reference are
            always batched in the same way.
    """

    beta: Annotated[float, Range(above=0, note="SpatialAlign uses 1.0, on mean squared errors.")] = field(
        default=1.0,
        metadata={
            "help": "Strength of the preference: L_dpo = -log sigmoid(clip(beta*(score(chosen) - score(rejected)), "
            "-c, c)), score(y) = MSE_ref(y) - MSE_theta(y). beta multiplies a difference of MEAN squared errors "
            "(SpatialAlign: 1.0). Code that writes 0.5*beta*T uses values in the thousands; do not copy those here."
        },
    )
    margin_clip: Annotated[float | None, Range(above=0, note="Set None to switch clipping off.")] = field(
        default=5.0,
        metadata={
            "help": "c in L_dpo = -log sigmoid(clip(beta*(score(chosen) - score(rejected)), -c, c)). A pair whose "
            "margin exceeds it gives no preference gradient. None: no clipping."
        },
    )
    loss_type: Literal["sigmoid", "hinge", "ipo", "sft"] = field(
        default="sigmoid",
        metadata={
            "help": "With m = clip(beta*(score(chosen) - score(rejected)), -c, c): 'sigmoid': L = -log sigmoid(m) "
            "(Diffusion-DPO, SpatialAlign). 'hinge': L = max(0, 1 - m) (SLiC). 'ipo': L = (m/beta - 1/(2*beta))^2 "
            "(IPO; needs margin_clip=None; a larger beta asks for a smaller difference). 'sft': L = "
            "MSE_theta(chosen), the baseline that learns from the chosen videos alone."
        },
    )
    sft_weight: Annotated[float, Range(at_least=0)] = field(
        default=0.0,
        metadata={
            "help": "w in L = L_dpo + w*MSE_theta(chosen), which keeps the winner's error low (Reg-DPO). 0: off."
        },
    )
    winner_safe_mu: Annotated[float | None, SHARE] = field(
        default=None,
        metadata={
            "help": "mu in [0, 1] of Diffusion-SDPO. With e = v_theta - u, the gradient of the loser's error is "
            "multiplied by min(1, (1-mu)*|e_chosen|^2 / <e_chosen, e_rejected>) where that product is positive, and "
            "by 1 elsewhere, so that to first order the winner's error does not grow. The value of the loss does not "
            "change. Designed for shared_noise=True. None: off."
        },
    )
    shared_noise: bool = field(
        default=False,
        metadata={
            "help": "Whether chosen and rejected are noised with the same eps in x_s = (1-s)*x0 + s*eps, which lowers "
            "the variance of the margin. False is the paper's recipe. Both always share s."
        },
    )
    rollout_noise: bool = field(
        default=False,
        metadata={
            "help": "Whether eps in x_s = (1-s)*x0 + s*eps is the noise that the video was sampled from (PNAPO) "
            "instead of new noise: torch.randn from a CPU generator with the seed in the dataset's columns "
            "chosen_noise_seed and rejected_noise_seed, which preference datasets made from rollouts have."
        },
    )
    num_noise_draws: Annotated[int, Range(at_least=1, at_most=10_000)] = field(
        default=1,
        metadata={
            "help": "K in L = 1/K * sum_k L(pair; eps_k, s_k): the number of draws of (eps, s) per pair and step. "
            "More draws lower the variance of the gradient without more videos, and cost the time and memory of a K "
            "times larger batch."
        },
    )
    num_fixed_draws: Annotated[int | None, COUNT] = field(
        default=None,
        metadata={
            "help": "F: every pair has F draws of (eps, s) for the whole run, and a step picks num_noise_draws of "
            "them at random. None: every step makes new draws. precompute_reference needs it."
        },
    )
    precompute_reference: bool = field(
        default=False,
        metadata={
            "help": "Whether to compute v_ref once, at the F = num_fixed_draws draws of all pairs, before the first "
            "step, and store it on disk, so that no step runs it. It pays if a pair is visited more often than it has "
            "draws: 8.3 times in the paper's recipe, so that F=8 gains nothing. Takes pairs*F*2*C*frames*height*width "
            "numbers on disk, in latent_cache_dir (bf16, 81x480x832: 8.4 MB per pair and draw)."
        },
    )
    sync_reference: bool = field(
        default=False,
        metadata={
            "help": "Whether to update the reference every reference_sync_steps steps: reference = a*policy + "
            "(1-a)*reference on the LoRA's weights, a = reference_mixup_alpha; the base stays shared. False: the "
            "reference is the base, or what was set before the training."
        },
    )
    reference_sync_steps: Annotated[int, Range(at_least=1)] = field(
        default=512,
        metadata={"help": "N: number of optimizer steps between two updates of the reference (sync_reference)."},
    )
    reference_mixup_alpha: Annotated[
        float, Range(above=0, at_most=1, note="At 0 the reference would never change; 1 copies the policy.")
    ] = field(
        default=0.6,
        metadata={
            "help": "a in reference = a*policy + (1-a)*reference (sync_reference), in (0, 1]. 1 copies the policy. "
            "With reference_sync_steps=1 the reference is a moving average with decay 1-a."
        },
    )
    separate_forward: bool = field(
        default=False,
        metadata={
            "help": "Whether chosen and rejected go through the network one after the other instead of as one batch "
            "[chosen, rejected]: a lower peak of policy and reference (Wan 2.1 1.3B at 81x480x832: 12.0 instead of "
            "15.2 GiB), but slower on small videos. Policy and reference are always batched in the same way."
        },
    )

    def _check(self) -> None:
        super()._check()
        self._check_loss()
        self._check_draws()
        self._check_reference()

    def _check_loss(self) -> None:
        if self.loss_type == "ipo" and self.margin_clip is not None:
            raise ValueError(
                f"loss_type='ipo' with margin_clip={self.margin_clip}: IPO pulls a pair back that has passed its "
                "target, and clipping would remove that gradient. Set margin_clip=None."
            )
        if self.loss_type != "sft":
            return
        for name, off in (("sft_weight", 0), ("winner_safe_mu", None), ("precompute_reference", False)):
            if getattr(self, name) != off:
                raise ValueError(
                    f"loss_type='sft' with {name}={getattr(self, name)}: this loss has no preference term, no loser "
                    f"and no reference. Set {name}={off}, or choose another loss_type."
                )
        if self.sync_reference:
            raise ValueError(
                "loss_type='sft' with sync_reference=True: this loss has no reference. Set sync_reference=False."
            )

    def _check_draws(self) -> None:
        if self.rollout_noise and self.shared_noise:
            raise ValueError(
                "rollout_noise=True with shared_noise=True: the two videos of a pair were sampled from two noises, so "
                "they cannot share one. Switch one of the two off."
            )
        if self.num_fixed_draws is not None and self.num_fixed_draws < self.num_noise_draws:
            raise ValueError(
                f"num_fixed_draws={self.num_fixed_draws} is less than num_noise_draws={self.num_noise_draws}: a step "
                "picks that many different draws. Raise num_fixed_draws, or set it to None to make new draws in every "
                "step."
            )

    def _check_reference(self) -> None:
        if self.precompute_reference and self.num_fixed_draws is None:
            raise ValueError(
                "precompute_reference=True needs num_fixed_draws: if every step draws new noise, nothing can be "
                "computed in advance. Start with 8; every pair and draw stores 2 predictions on disk."
            )
        if self.sync_reference and self.precompute_reference:
            raise ValueError(
                "sync_reference=True with precompute_reference=True: the reference changes during the run, so "
                "predictions computed in advance would be out of date. Switch one of the two off."
            )
