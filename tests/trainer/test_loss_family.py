"""Test the other losses of the family against formulas written out here, pair by pair, in float64."""

import math

import pytest
import torch
from loss_tensors import mapped, plain_dpo_loss, random_pairs
from torch import Tensor

from spatialalign_trl.trainer.losses import Pair, preference_loss, winner_safe_scale

SHAPE = (4, 3, 2, 3, 5)  # (batch, channels, frames, height, width)
BETA = 0.7


def mse(prediction: Tensor, target: Tensor) -> float:
    return float(((prediction.double() - target.double()) ** 2).mean())


def difference(pairs: dict[str, Pair], i: int) -> float:
    """Compute score(chosen) - score(rejected) of pair i."""
    policy, reference, target = mapped(lambda tensor: tensor[i], pairs).values()
    scores = [mse(r, t) - mse(p, t) for p, r, t in zip(policy, reference, target, strict=True)]
    return scores[0] - scores[1]


FORMULAS = {
    "sigmoid": lambda d: math.log(1 + math.exp(-BETA * d)),
    "hinge": lambda d: max(0.0, 1 - BETA * d),
    "ipo": lambda d: (d - 1 / (2 * BETA)) ** 2,
}


@pytest.mark.parametrize("loss_type", FORMULAS)
def test_preference_losses_are_their_formulas(loss_type: str) -> None:
    pairs = random_pairs(SHAPE)
    losses, metrics = plain_dpo_loss(**pairs, beta=BETA, margin_clip=None, loss_type=loss_type, reduction="none")
    assert losses.shape == (SHAPE[0],)
    for i, loss in enumerate(losses.tolist()):
        assert loss == pytest.approx(FORMULAS[loss_type](difference(pairs, i)), abs=1e-6)
        assert float(metrics["margin"][i]) == pytest.approx(BETA * difference(pairs, i), abs=1e-6)
    assert metrics["loss_dpo"].tolist() == losses.tolist()


def test_the_clip_holds_for_the_hinge_too() -> None:
    clipped, metrics = plain_dpo_loss(**random_pairs(SHAPE), beta=100.0, margin_clip=0.5, loss_type="hinge")
    assert metrics["saturation"] == 1
    assert 0.5 <= float(clipped) <= 1.5


def test_ipo_pulls_a_pair_to_its_target_from_both_sides() -> None:
    for gap, direction in ((0.1, -1), (0.5, 0), (2.0, 1)):  # the target is 1/(2*beta) = 0.5 at beta 1
        margin = torch.tensor([gap], requires_grad=True)
        preference_loss(margin, "ipo", beta=1.0).sum().backward()
        assert torch.sign(margin.grad).item() == direction


def test_sft_regularisation_adds_the_winner_s_error() -> None:
    pairs = random_pairs(SHAPE)
    plain, _ = plain_dpo_loss(**pairs, beta=BETA, reduction="none")
    losses, metrics = plain_dpo_loss(**pairs, beta=BETA, sft_weight=0.3, reduction="none")
    for i in range(SHAPE[0]):
        error = mse(pairs["policy"].chosen[i], pairs["target"].chosen[i])
        assert float(losses[i]) == pytest.approx(float(plain[i]) + 0.3 * error, abs=1e-6)
        assert float(metrics["loss_sft"][i]) == pytest.approx(error, abs=1e-6)
    assert metrics["loss_dpo"].tolist() == plain.tolist()


# Winner-safe scaling


def correlated_pairs() -> dict[str, Pair]:
    """Make pairs whose losers err in the direction of their winners (rows 0 and 1), against it, or independently."""
    pairs = random_pairs(SHAPE)
    policy, target = pairs["policy"], pairs["target"]
    error = policy.chosen - target.chosen
    factors = torch.tensor([2.0, 1.2, -1.0, 0.0]).view(-1, 1, 1, 1, 1)
    noise = 0.01 * random_pairs(SHAPE, seed=1)["target"].chosen
    return pairs | {"policy": policy._replace(rejected=target.rejected + factors * error + noise)}


@pytest.mark.parametrize("mu", [0.0, 0.4, 1.0])
def test_the_safe_scale_is_its_formula(mu: float) -> None:
    pairs = correlated_pairs()
    policy, target = pairs["policy"], pairs["target"]
    scales = winner_safe_scale(policy, target, mu=mu).tolist()
    for i, scale in enumerate(scales):
        chosen = (policy.chosen[i] - target.chosen[i]).double().flatten()
        rejected = (policy.rejected[i] - target.rejected[i]).double().flatten()
        overlap = float(chosen @ rejected)
        expected = 1.0 if overlap <= 0 else min(1.0, (1 - mu) * float(chosen @ chosen) / overlap)
        assert scale == pytest.approx(expected, abs=1e-5)
        # To first order, the winner's error decreases at least as much as the bound guarantees.
        fall = float((-chosen + scale * rejected) @ chosen)
        assert fall <= -mu * float(chosen @ chosen) + 1e-3
    assert scales[2] == 1.0 and (mu == 0 or scales[0] < 1)


def test_the_safe_scale_changes_the_loser_s_gradient_and_no_value() -> None:
    results = []
    for mu in (None, 0.4):
        pairs = correlated_pairs()
        for tensor in pairs["policy"]:
            tensor.requires_grad_()
        losses, metrics = plain_dpo_loss(**pairs, winner_safe_mu=mu, reduction="none")
        losses.sum().backward()
        results.append((losses, metrics, pairs["policy"].chosen.grad, pairs["policy"].rejected.grad))
    (plain, _, chosen, rejected), (safe, metrics, safe_chosen, safe_rejected) = results
    assert plain.shape == safe.shape == metrics["loser_gradient_scale"].shape
    scale = metrics["loser_gradient_scale"].view(-1, 1, 1, 1, 1)
    assert torch.equal(plain, safe) and torch.equal(chosen, safe_chosen)
    torch.testing.assert_close(safe_rejected, scale * rejected)
    assert not torch.equal(safe_rejected, rejected)


def test_a_pair_s_safe_scale_does_not_depend_on_its_batch() -> None:
    pairs = correlated_pairs()
    whole, metrics = plain_dpo_loss(**pairs, winner_safe_mu=0.2, reduction="none")
    for i in range(SHAPE[0]):
        alone, alone_metrics = plain_dpo_loss(
            **mapped(lambda tensor, i=i: tensor[i : i + 1], pairs), winner_safe_mu=0.2
        )
        assert float(alone) == pytest.approx(float(whole[i]), abs=1e-6)
        scale = float(metrics["loser_gradient_scale"][i])
        assert float(alone_metrics["loser_gradient_scale"]) == pytest.approx(scale, abs=1e-6)


def test_an_unknown_loss_is_named() -> None:
    with pytest.raises(ValueError, match="loss_type='dpo'.*sigmoid, hinge, ipo"):
        preference_loss(torch.zeros(1), "dpo")
