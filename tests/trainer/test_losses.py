"""The losses against the authors' released code, against formulas written out by hand, and against known traps."""

import json
import math

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from spatialalign_trl.trainer.losses import (
    diffusion_dpo_loss,
    implicit_scores,
    per_sample_mse,
    sft_loss,
    zeroth_order_dpo_loss,
)

SHAPE = (3, 4, 2, 5, 6)  # (batch, channels, frames, height, width)


def six_tensors(seed: int = 0, scale: float = 1.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    names = ("policy_chosen", "policy_rejected", "reference_chosen", "reference_rejected")
    names += ("target_chosen", "target_rejected")
    return {name: scale * torch.randn(SHAPE, generator=generator) for name in names}


def at_step_zero(seed: int = 0) -> dict[str, Tensor]:
    tensors = six_tensors(seed)
    for side in ("chosen", "rejected"):
        tensors[f"policy_{side}"] = tensors[f"reference_{side}"].clone()
    return tensors


def test_losses_and_lora_gradients_equal_the_authors_code(shared_data) -> None:
    """A whole training step: the real transformer, a PEFT LoRA and our loss, against the released code's numbers."""
    from diffusers import WanTransformer3DModel
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    with safe_open(shared_data / "dpo_golden_step.safetensors", "pt") as file:
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

    sides = ("chosen", "rejected")
    with torch.no_grad(), model.disable_adapter():
        reference = {f"reference_{side}": predict(side) for side in sides}
    policy = {f"policy_{side}": predict(side) for side in sides}
    target = {f"target_{side}": inputs[f"noise_{side}"] - inputs[f"latents_{side}"] for side in sides}
    loss, metrics = zeroth_order_dpo_loss(
        **policy, **reference, **target, beta=1.0, zeroth_order_weight=0.5, margin_clip=5.0
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
    assert max(g.abs().max() for g in expected.values()) > 1e-5  # the comparison is not one of zeros


def test_agrees_with_the_formula_written_out_per_pair() -> None:
    tensors = six_tensors()
    beta, weight, clip = 0.7, 0.3, 0.25
    loss, metrics = zeroth_order_dpo_loss(**tensors, beta=beta, zeroth_order_weight=weight, margin_clip=clip)
    margins, preference, anchor = [], [], []
    for i in range(SHAPE[0]):
        one = {name: value[i].double() for name, value in tensors.items()}
        score = {
            side: ((one[f"reference_{side}"] - one[f"target_{side}"]) ** 2).mean()
            - ((one[f"policy_{side}"] - one[f"target_{side}"]) ** 2).mean()
            for side in ("chosen", "rejected")
        }
        margins.append(max(-clip, min(clip, float(beta * (score["chosen"] - score["rejected"])))))
        preference.append(-math.log(1 / (1 + math.exp(-margins[-1]))))
        distance = [((one[f"policy_{s}"] - one[f"reference_{s}"]) ** 2).mean() for s in ("chosen", "rejected")]
        anchor.append(float(distance[0] + distance[1]) / 2)
    mean = [sum(values) / len(values) for values in (margins, preference, anchor)]
    assert float(metrics["margin"]) == pytest.approx(mean[0], abs=1e-6)
    assert float(metrics["loss_dpo"]) == pytest.approx(mean[1], abs=1e-6)
    assert float(metrics["loss_zeroth_order"]) == pytest.approx(mean[2], abs=1e-6)
    assert float(loss) == pytest.approx(mean[1] + weight * mean[2], abs=1e-6)
    assert float(metrics["saturation"]) == pytest.approx(sum(abs(m) == clip for m in margins) / len(margins))


def test_every_dimension_but_the_batch_is_reduced_before_the_logit() -> None:
    """A peer's loss reduced a 5-D latent over two axes and applied log-sigmoid per column."""
    _, metrics = diffusion_dpo_loss(**six_tensors(), reduction="none")
    assert all(value.shape == (SHAPE[0],) for value in metrics.values())
    loss, _ = diffusion_dpo_loss(**six_tensors(), reduction="none")
    assert loss.shape == (SHAPE[0],)


def test_a_pair_does_not_depend_on_its_batch() -> None:
    tensors = six_tensors()
    whole, _ = zeroth_order_dpo_loss(**tensors, reduction="none")
    for i in range(SHAPE[0]):
        alone, _ = zeroth_order_dpo_loss(**{k: v[i : i + 1] for k, v in tensors.items()})
        assert float(alone) == pytest.approx(float(whole[i]), abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_before_the_first_step_the_margin_is_zero_and_the_loss_ln_2(dtype: torch.dtype) -> None:
    tensors = {name: value.to(dtype) for name, value in at_step_zero().items()}
    loss, metrics = zeroth_order_dpo_loss(**tensors)
    assert metrics["margin"] == 0 and metrics["loss_zeroth_order"] == 0
    assert loss == -torch.nn.functional.logsigmoid(torch.zeros(()))
    assert float(loss) == pytest.approx(math.log(2), abs=1e-7)


def test_beyond_the_clip_a_pair_gives_no_preference_gradient() -> None:
    tensors = six_tensors(scale=30.0)
    for name in ("policy_chosen", "policy_rejected"):
        tensors[name].requires_grad_()
    loss, metrics = diffusion_dpo_loss(**tensors, beta=100.0, margin_clip=5.0)
    loss.backward()
    assert metrics["saturation"] == 1
    assert not tensors["policy_chosen"].grad.any()
    # Without the clip the same pairs do give a gradient wherever the policy is wrong about them.
    free, unclipped = diffusion_dpo_loss(**tensors, beta=100.0, margin_clip=None)
    free.backward()
    assert unclipped["saturation"] == 0 and unclipped["margin"].abs() > 5
    assert tensors["policy_chosen"].grad.any()


def test_the_anchor_still_pulls_a_saturated_pair_back() -> None:
    tensors = six_tensors(scale=30.0)
    tensors["policy_chosen"].requires_grad_()
    loss, _ = zeroth_order_dpo_loss(**tensors, beta=100.0, zeroth_order_weight=0.5)
    loss.backward()
    pull = (tensors["policy_chosen"] - tensors["reference_chosen"]).detach()
    assert (tensors["policy_chosen"].grad * pull).sum() > 0  # descending shrinks the distance


def test_a_better_chosen_prediction_raises_the_margin() -> None:
    tensors = at_step_zero()
    tensors["policy_chosen"] = tensors["target_chosen"].clone()
    loss, metrics = diffusion_dpo_loss(**tensors)
    assert metrics["score_chosen"] > 0 and metrics["score_rejected"] == 0
    assert metrics["margin"] > 0 and metrics["accuracy"] == 1 and loss < math.log(2)


def test_swapping_the_pair_negates_the_margin() -> None:
    tensors = six_tensors()
    swapped = {
        k: tensors[k.replace("chosen", "?").replace("rejected", "chosen").replace("?", "rejected")] for k in tensors
    }
    _, one = diffusion_dpo_loss(**tensors, margin_clip=None, reduction="none")
    _, other = diffusion_dpo_loss(**swapped, margin_clip=None, reduction="none")
    torch.testing.assert_close(one["margin"], -other["margin"])


def test_weight_zero_is_plain_diffusion_dpo() -> None:
    tensors = six_tensors()
    assert zeroth_order_dpo_loss(**tensors, zeroth_order_weight=0.0)[0] == diffusion_dpo_loss(**tensors)[0]


def test_metrics_are_detached_and_the_loss_is_not() -> None:
    for loss_function in (diffusion_dpo_loss, zeroth_order_dpo_loss):
        tensors = six_tensors()
        tensors["policy_rejected"].requires_grad_()
        loss, metrics = loss_function(**tensors)
        assert loss.requires_grad and not any(value.requires_grad for value in metrics.values())


def test_sft_is_the_error_on_the_chosen_alone() -> None:
    tensors = six_tensors()
    loss, metrics = sft_loss(tensors["policy_chosen"], tensors["target_chosen"])
    assert float(loss) == pytest.approx(float((tensors["policy_chosen"] - tensors["target_chosen"]).pow(2).mean()))
    assert metrics["mse_chosen"] == loss


def test_errors_are_computed_in_fp32() -> None:
    prediction, target = torch.full((1, 4), 256.0), torch.full((1, 4), 255.0)
    assert per_sample_mse(prediction.bfloat16(), target.bfloat16()) == 1
    assert per_sample_mse(prediction.bfloat16(), target.bfloat16()).dtype == torch.float32
    assert implicit_scores(target, prediction, target) == 1


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match=r"\(3, 4\).*\(3, 1\)"):
        per_sample_mse(torch.zeros(3, 4), torch.zeros(3, 1))
    with pytest.raises(ValueError, match=r"\(batch, \.\.\.\)"):
        per_sample_mse(torch.zeros(3), torch.zeros(3))
    with pytest.raises(ValueError, match="reduction='sum'"):
        diffusion_dpo_loss(**six_tensors(), reduction="sum")
