"""Compute the preference losses of rectified-flow models: pure functions of predictions and targets.

A prediction is the velocity `v` at a noised latent `x_s = (1-s)*x0 + s*eps`; its target is `u = eps - x0`. All tensors
are `(batch, ...)`. Every dimension after the batch (channels, frames, height, width) is averaged *before* any
non-linear function is applied, so the logit of the preference loss has shape `(batch,)`.

`beta` multiplies a difference of *mean* squared errors (SpatialAlign, arXiv 2602.22745). Other code multiplies by
`0.5*beta*T` with beta in the thousands, so a value of beta means nothing without its formula. `docs/losses.md`
compares the conventions.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

Reduction = Literal["mean", "none"]
PreferenceLoss = Literal["sigmoid", "hinge", "ipo"]


class Pair(NamedTuple):
    """
    Tensors of the two videos of every pair in a batch.

    Args:
        chosen, rejected (`torch.Tensor` of shape `(batch, ...)`):
            Predictions, targets, noise or latents of the winners and of the losers, row by row.
    """

    chosen: Tensor
    rejected: Tensor


def per_sample_mse(prediction: Tensor, target: Tensor) -> Tensor:
    """
    Compute the mean squared error of every sample over all its dimensions, in fp32 or wider.

    Args:
        prediction (`torch.Tensor` of shape `(batch, ...)`):
            Any floating dtype. Half precisions are widened before the subtraction, because the losses depend on
            differences of errors that bf16 cannot resolve.
        target (`torch.Tensor` of the same shape):
            The values to compare with.

    Returns:
        `torch.Tensor` of shape `(batch,)`.

    Raises:
        ValueError: if the shapes differ (broadcasting would hide a mistake) or there is only a batch dimension.
    """
    if prediction.shape != target.shape:
        raise ValueError(f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} differ in shape")
    if prediction.ndim < 2:
        raise ValueError(f"expected (batch, ...) tensors, got shape {tuple(prediction.shape)}")
    wide = torch.promote_types(torch.promote_types(prediction.dtype, target.dtype), torch.float32)
    return (prediction.to(wide) - target.to(wide)).square().flatten(1).mean(1)


def preference_loss(margin: Tensor, loss_type: PreferenceLoss = "sigmoid", *, beta: float = 1.0) -> Tensor:
    """
    Compute the loss of a margin.

        sigmoid:  -log sigmoid(m)                     (Diffusion-DPO, arXiv 2311.12908)
        hinge:    max(0, 1 - m)                       (SLiC, arXiv 2305.10425, as in TRL)
        ipo:      (m/beta - 1/(2*beta))^2             (IPO, arXiv 2310.12036, as in TRL)

    Args:
        margin (`torch.Tensor` of shape `(batch,)`):
            `m = beta * (score(chosen) - score(rejected))`, clipped or not.
        loss_type (`"sigmoid"`, `"hinge"` or `"ipo"`, *optional*, defaults to `"sigmoid"`):
            One of the three formulas above.
        beta (`float`, *optional*, defaults to `1.0`):
            The `beta` in `m`. Only IPO uses it again: its target is a score difference of exactly `1/(2*beta)`, so a
            *larger* beta asks for a smaller difference.

    Returns:
        `torch.Tensor` of shape `(batch,)`.

    Raises:
        ValueError: if the loss type is unknown.
    """
    if loss_type == "sigmoid":
        return -F.logsigmoid(margin)
    if loss_type == "hinge":
        return F.relu(1 - margin)
    if loss_type == "ipo":
        return (margin / beta - 1 / (2 * beta)).square()
    raise ValueError(f"loss_type={loss_type!r}: expected one of {', '.join(get_args(PreferenceLoss))}")


def winner_safe_scale(policy: Pair, target: Pair, *, mu: float) -> Tensor:
    """
    Compute how much of the loser's gradient can be applied without making the winner worse, to first order.

        e     = v_theta - u                                       (the direction of the gradient of the MSE)
        scale = 1                                                 where <e_chosen, e_rejected> <= 0
                min(1, (1 - mu)*|e_chosen|^2 / <e_chosen, e_rejected>)     elsewhere

    The step along `-e_chosen + scale*e_rejected` then lowers the winner's error by at least `mu` times what
    `-e_chosen` alone would. The scale is computed in the space of outputs, where the gradients are known, rather than
    in the space of weights.

    Args:
        policy, target ([`Pair`]):
            See [`zeroth_order_dpo_loss`].
        mu (`float`):
            In [0, 1]. 0: the winner's error must not grow; 1: the loser's gradient is dropped wherever it conflicts
            with the winner's.

    Returns:
        `torch.Tensor` of shape `(batch,)` in [0, 1], without a gradient.

    Source: Diffusion-SDPO (arXiv 2511.03317). The authors' code uses one scale for a whole batch; here every pair has
    its own, so that a pair's gradient does not depend on its batch.
    """
    chosen, rejected = ((p.float() - t.float()).detach().flatten(1) for p, t in zip(policy, target, strict=True))
    overlap = (chosen * rejected).sum(1)
    bound = (1 - mu) * chosen.square().sum(1) / overlap.where(overlap > 0, 1.0)
    return bound.clamp(max=1.0).where(overlap > 0, 1.0)


def zeroth_order_dpo_loss(
    policy: Pair,
    reference: Pair,
    target: Pair,
    *,
    beta: float = 1.0,
    zeroth_order_weight: float = 0.5,
    margin_clip: float | None = 5.0,
    loss_type: PreferenceLoss = "sigmoid",
    sft_weight: float = 0.0,
    winner_safe_mu: float | None = None,
    reduction: Reduction = "mean",
) -> tuple[Tensor, dict[str, Tensor]]:
    """
    Compute the Diffusion-DPO loss with an anchor on the *values* that the policy predicts.

        score(y) = MSE_ref(y) - MSE_theta(y)
        m        = clip(beta * (score(chosen) - score(rejected)), -margin_clip, margin_clip)
        L_dpo    = -log sigmoid(m) + sft_weight * MSE_theta(chosen)
        L_zo     = 0.5 * (mean|v_theta - v_ref|^2 on the chosen + the same on the rejected)
        L        = L_dpo + zeroth_order_weight * L_zo

    `zeroth_order_weight=0` is plain Diffusion-DPO. "Zeroth-order" means that values are anchored; no gradient is
    estimated.

    Args:
        policy ([`Pair`]):
            Velocities of the policy, `(batch, ...)` each.
        reference ([`Pair`]):
            Velocities of the frozen reference at the same noised latents.
        target ([`Pair`]):
            `eps - x0`.
        beta (`float`, *optional*, defaults to `1.0`):
            Factor of the difference of *mean* squared errors.
        zeroth_order_weight (`float`, *optional*, defaults to `0.5`):
            Weight of `L_zo` (the paper's lambda), at least 0.
        margin_clip (`float`, *optional*, defaults to `5.0`):
            Bound of the margin; a pair beyond it gives no preference gradient. `None` turns clipping off.
        loss_type (`"sigmoid"`, `"hinge"` or `"ipo"`, *optional*, defaults to `"sigmoid"`):
            Replaces `-log sigmoid(m)`; see [`preference_loss`].
        sft_weight (`float`, *optional*, defaults to `0.0`):
            Weight of the winner's own error (Reg-DPO, arXiv 2511.01450), at least 0.
        winner_safe_mu (`float`, *optional*):
            Scales the gradient of the loser's error in `m`, but no value, by [`winner_safe_scale`]. `None` turns it
            off.
        reduction (`"mean"` or `"none"`, *optional*, defaults to `"mean"`):
            Whether the loss and the metrics are averaged over the batch or returned per pair.

    Returns:
        `(loss, metrics)`: a scalar and detached scalars, or, with `reduction="none"`, tensors of shape `(batch,)`.
        Metrics: `loss_dpo`, `score_chosen`, `score_rejected`, `margin` (clipped), `accuracy` (share of margins
        above 0), `saturation` (share of margins at the clip), `mse_chosen`, `mse_rejected` (of the policy),
        `loss_zeroth_order` (`L_zo`, before the weight) and `distance_to_reference` (the same number, whatever the
        loss); with `sft_weight` also `loss_sft` (before the weight), with `winner_safe_mu` also
        `loser_gradient_scale`.

    Source: SpatialAlign (arXiv 2602.22745); where the released code differs from the text, this follows the code.
    """
    policy_mse = Pair(*(per_sample_mse(p, t) for p, t in zip(policy, target, strict=True)))
    reference_mse = Pair(*(per_sample_mse(r, t) for r, t in zip(reference, target, strict=True)))
    optional_metrics: dict[str, Tensor] = {}

    # The preference: by how much more the policy improves on the winner than on the loser.
    loser_mse = policy_mse.rejected
    if winner_safe_mu is not None:
        scale = winner_safe_scale(policy, target, mu=winner_safe_mu)
        constant = loser_mse.detach()
        loser_mse = constant + scale * (loser_mse - constant)  # same value, scaled gradient
        optional_metrics["loser_gradient_scale"] = scale
    score = Pair(reference_mse.chosen - policy_mse.chosen, reference_mse.rejected - loser_mse)
    unclipped = beta * (score.chosen - score.rejected)
    if margin_clip is None:
        margin, saturation = unclipped, torch.zeros_like(unclipped)
    else:
        margin = unclipped.clamp(-margin_clip, margin_clip)
        saturation = (unclipped.abs() >= margin_clip).to(unclipped.dtype)
    loss_dpo = loss = preference_loss(margin, loss_type, beta=beta)

    if sft_weight:
        loss = loss + sft_weight * policy_mse.chosen
        optional_metrics["loss_sft"] = policy_mse.chosen

    # The zeroth-order term: keep the predicted values close to the reference's, which preserves the quality.
    distances = Pair(*(per_sample_mse(p, r) for p, r in zip(policy, reference, strict=True)))
    distance_to_reference = 0.5 * (distances.chosen + distances.rejected)
    if zeroth_order_weight:
        loss = loss + zeroth_order_weight * distance_to_reference

    metrics = {
        "loss_dpo": loss_dpo,
        "score_chosen": score.chosen,
        "score_rejected": score.rejected,
        "margin": margin,
        "accuracy": (margin > 0).to(margin.dtype),
        "saturation": saturation,
        "mse_chosen": policy_mse.chosen,
        "mse_rejected": policy_mse.rejected,
        **optional_metrics,
        "distance_to_reference": distance_to_reference,
        "loss_zeroth_order": distance_to_reference,
    }
    return _reduce(loss, {name: value.detach() for name, value in metrics.items()}, reduction)


def sft_loss(
    policy_chosen: Tensor, target_chosen: Tensor, *, reduction: Reduction = "mean"
) -> tuple[Tensor, dict[str, Tensor]]:
    """
    Compute the loss of supervised fine-tuning on the chosen samples alone: `L = MSE_theta(chosen)`.

    Args:
        policy_chosen, target_chosen (`torch.Tensor` of shape `(batch, ...)`):
            The policy's velocity and `eps - x0`.
        reduction (`"mean"` or `"none"`, *optional*, defaults to `"mean"`):
            See [`zeroth_order_dpo_loss`].

    Returns:
        `(loss, metrics)` with the metrics `loss_sft` and `mse_chosen`.
    """
    loss = per_sample_mse(policy_chosen, target_chosen)
    return _reduce(loss, {"loss_sft": loss.detach(), "mse_chosen": loss.detach()}, reduction)


def _reduce(loss: Tensor, metrics: Mapping[str, Tensor], reduction: Reduction) -> tuple[Tensor, dict[str, Tensor]]:
    if reduction == "none":
        return loss, dict(metrics)
    if reduction != "mean":
        raise ValueError(f'reduction={reduction!r}: expected "mean" or "none"')
    return loss.mean(), {name: value.mean() for name, value in metrics.items()}
