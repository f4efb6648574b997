"""Test the losses against the authors' released code, formulas written out by hand, and known mistakes."""

import json
import math

import pytest
import torch
from loss_tensors import mapped, plain_dpo_loss, random_pairs
from safetensors import safe_open
from torch import Tensor

from spatialalign_trl.trainer.losses import Pair, per_sample_mse, sft_loss, zeroth_order_dpo_loss

SHAPE = (3, 4, 2, 5, 6)  # (batch, channels, frames, height, width)


def at_step_zero(seed: int = 0) -> dict[str, Pair]:
    pairs = random_pairs(SHAPE, seed)
    return pairs | {"policy": Pair(*(tensor.clone() for tensor in pairs["reference"]))}


def test_losses_and_lora_gradients_equal_the_authors_code(golden_data) -> None:
    """Compare a whole training step (real transformer, PEFT LoRA, our loss) with the numbers of the released code."""
    from diffusers import WanTransformer3DModel
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    with safe_open(golden_data / "dpo_golden_step.safetensors", "pt") as file:
        config = json.loads(file.metadata()["config"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}

    def group(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    transformer = WanTransformer3DModel(**config)
    transformer.load_state_dict(group("base."))
    targets = ["attn2.to_k", "attn2.to_v", "text_embedder.linear_1", "text_embedder.linear_2"]
    model = get_peft_model(transformer, LoraConfig(r=8, lora_alpha=8, target_modules=targets))
    loaded = set_peft_model_state_dict(model, {f"base_model.model.{k}": v for k, v in group("lora.").items()})
    assert not loaded.unexpected_keys

    inputs = group("in.")
    sigma = inputs["sigma"]

    def predict(side: str) -> Tensor:
        noisy = (1 - sigma) * inputs[f"latents_{side}"] + sigma * inputs[f"noise_{side}"]
        timestep = inputs["timestep"].expand(len(noisy))
        return model(noisy, timestep, inputs["prompt_embeds"], return_dict=False)[0]

    with torch.no_grad(), model.disable_adapter():
        reference = Pair(predict("chosen"), predict("rejected"))
    policy = Pair(predict("chosen"), predict("rejected"))
    target = Pair(*(inputs[f"noise_{side}"] - inputs[f"latents_{side}"] for side in Pair._fields))
    loss, metrics = zeroth_order_dpo_loss(
        policy, reference, target, beta=1.0, zeroth_order_weight=0.5, margin_clip=5.0
    )
    loss.backward()

    out = group("out.")
    assert loss.item() == pytest.approx(out["loss_total"].item(), abs=1e-6)
    names = {"loss_dpo": "loss_dpo", "loss_zeroth_order": "loss_reg", "margin": "score_margin"}
    names |= {"score_chosen": "score_pos", "score_rejected": "score_neg"}
    for ours, theirs in names.items():
        assert float(metrics[ours]) == pytest.approx(out[theirs].item(), abs=1e-6), ours

    expected = group("lora_grad.")
    gradients = {
        name.removeprefix("base_model.model.").replace(".default", ""): parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        assert (gradient - expected[name]).abs().max() < 1e-8, name
    assert max(g.abs().max() for g in expected.values()) > 1e-5  # otherwise the comparison would be between zeros


def test_agrees_with_the_formula_written_out_per_pair() -> None:
    pairs = random_pairs(SHAPE)
    beta, weight, clip = 0.7, 0.3, 0.25
    loss, metrics = zeroth_order_dpo_loss(**pairs, beta=beta, zeroth_order_weight=weight, margin_clip=clip)
    margins, preference, anchor = [], [], []
    for i in range(SHAPE[0]):
        policy, reference, target = mapped(lambda tensor, i=i: tensor[i].double(), pairs).values()
        score = [
            ((r - t) ** 2).mean() - ((p - t) ** 2).mean() for p, r, t in zip(policy, reference, target, strict=True)
        ]
        margins.append(max(-clip, min(clip, float(beta * (score[0] - score[1])))))
        preference.append(-math.log(1 / (1 + math.exp(-margins[-1]))))
        distance = [((p - r) ** 2).mean() for p, r in zip(policy, reference, strict=True)]
        anchor.append(float(distance[0] + distance[1]) / 2)
    mean = [sum(values) / len(values) for values in (margins, preference, anchor)]
    assert float(metrics["margin"]) == pytest.approx(mean[0], abs=1e-6)
    assert float(metrics["loss_dpo"]) == pytest.approx(mean[1], abs=1e-6)
    assert float(metrics["loss_zeroth_order"]) == pytest.approx(mean[2], abs=1e-6)
    assert float(loss) == pytest.approx(mean[1] + weight * mean[2], abs=1e-6)
    assert float(metrics["saturation"]) == pytest.approx(sum(abs(m) == clip for m in margins) / len(margins))


def test_every_dimension_but_the_batch_is_reduced_before_the_logit() -> None:
    """Another implementation averaged a 5-D latent over two axes only and applied log-sigmoid per column."""
    loss, metrics = zeroth_order_dpo_loss(**random_pairs(SHAPE), reduction="none")
    assert loss.shape == (SHAPE[0],)
    assert all(value.shape == (SHAPE[0],) for value in metrics.values())


def test_a_pair_does_not_depend_on_its_batch() -> None:
    pairs = random_pairs(SHAPE)
    whole, _ = zeroth_order_dpo_loss(**pairs, reduction="none")
    for i in range(SHAPE[0]):
        alone, _ = zeroth_order_dpo_loss(**mapped(lambda tensor, i=i: tensor[i : i + 1], pairs))
        assert float(alone) == pytest.approx(float(whole[i]), abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_before_the_first_step_the_margin_is_zero_and_the_loss_ln_2(dtype: torch.dtype) -> None:
    loss, metrics = zeroth_order_dpo_loss(**mapped(lambda tensor: tensor.to(dtype), at_step_zero()))
    assert metrics["margin"] == 0 and metrics["loss_zeroth_order"] == 0
    assert loss == -torch.nn.functional.logsigmoid(torch.zeros(()))
    assert float(loss) == pytest.approx(math.log(2), abs=1e-7)


def test_beyond_the_clip_a_pair_gives_no_preference_gradient() -> None:
    pairs = random_pairs(SHAPE, scale=30.0)
    for tensor in pairs["policy"]:
        tensor.requires_grad_()
    loss, metrics = plain_dpo_loss(**pairs, beta=100.0, margin_clip=5.0)
    loss.backward()
    assert metrics["saturation"] == 1
    assert not pairs["policy"].chosen.grad.any()
    # Without the clip the same pairs do give a gradient wherever the policy is wrong about them.
    free, unclipped = plain_dpo_loss(**pairs, beta=100.0, margin_clip=None)
    free.backward()
    assert unclipped["saturation"] == 0 and unclipped["margin"].abs() > 5
    assert pairs["policy"].chosen.grad.any()


def test_the_anchor_still_pulls_a_saturated_pair_back() -> None:
    pairs = random_pairs(SHAPE, scale=30.0)
    chosen = pairs["policy"].chosen.requires_grad_()
    loss, _ = zeroth_order_dpo_loss(**pairs, beta=100.0, zeroth_order_weight=0.5)
    loss.backward()
    pull = (chosen - pairs["reference"].chosen).detach()
    assert (chosen.grad * pull).sum() > 0  # descending shrinks the distance


def test_a_better_chosen_prediction_raises_the_margin() -> None:
    pairs = at_step_zero()
    pairs["policy"] = pairs["policy"]._replace(chosen=pairs["target"].chosen.clone())
    loss, metrics = plain_dpo_loss(**pairs)
    assert metrics["score_chosen"] > 0 and metrics["score_rejected"] == 0
    assert metrics["margin"] > 0 and metrics["accuracy"] == 1 and loss < math.log(2)


def test_swapping_the_pair_negates_the_margin() -> None:
    pairs = random_pairs(SHAPE)
    swapped = {name: Pair(chosen=pair.rejected, rejected=pair.chosen) for name, pair in pairs.items()}
    _, metrics = plain_dpo_loss(**pairs, margin_clip=None, reduction="none")
    _, swapped_metrics = plain_dpo_loss(**swapped, margin_clip=None, reduction="none")
    torch.testing.assert_close(metrics["margin"], -swapped_metrics["margin"])


def test_weight_zero_is_plain_diffusion_dpo() -> None:
    """The loss is then its preference term alone, and the anchor gives no gradient."""
    pairs = random_pairs(SHAPE, scale=30.0)
    chosen = pairs["policy"].chosen.requires_grad_()
    loss, metrics = zeroth_order_dpo_loss(**pairs, beta=100.0, zeroth_order_weight=0.0)
    loss.backward()
    assert loss == metrics["loss_dpo"]
    assert metrics["saturation"] == 1 and not chosen.grad.any()  # only the anchor reaches beyond the clip


def test_metrics_are_detached_and_the_loss_is_not() -> None:
    for options in ({}, {"zeroth_order_weight": 0}, {"sft_weight": 0.1, "winner_safe_mu": 0.2}):
        pairs = random_pairs(SHAPE)
        pairs["policy"].rejected.requires_grad_()
        loss, metrics = zeroth_order_dpo_loss(**pairs, **options)
        assert loss.requires_grad and not any(value.requires_grad for value in metrics.values())


def test_sft_is_the_error_on_the_chosen_alone() -> None:
    pairs = random_pairs(SHAPE)
    prediction, target = pairs["policy"].chosen, pairs["target"].chosen
    loss, metrics = sft_loss(prediction, target)
    assert float(loss) == pytest.approx(float((prediction - target).pow(2).mean()))
    assert metrics["mse_chosen"] == loss


def test_errors_are_computed_in_fp32() -> None:
    prediction, target = torch.full((1, 4), 256.0), torch.full((1, 4), 255.0)
    assert per_sample_mse(prediction.bfloat16(), target.bfloat16()) == 1
    assert per_sample_mse(prediction.bfloat16(), target.bfloat16()).dtype == torch.float32


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match=r"\(3, 4\).*\(3, 1\)"):
        per_sample_mse(torch.zeros(3, 4), torch.zeros(3, 1))
    with pytest.raises(ValueError, match=r"\(batch, \.\.\.\)"):
        per_sample_mse(torch.zeros(3), torch.zeros(3))
    with pytest.raises(ValueError, match="reduction='sum'"):
        zeroth_order_dpo_loss(**random_pairs(SHAPE), reduction="sum")
