"""Test attaching the LoRA: targets, the reference, continuing from a loaded LoRA."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel
from tiny_pairs import LATENT_SHAPE, wan_model

from spatialalign_trl.models.wan import WanVideoModel
from spatialalign_trl.trainer.lora import attach_lora, default_lora_config


def output(model: WanVideoModel) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    noisy = torch.randn((2, *LATENT_SHAPE), generator=generator)
    conditioning = {"prompt_embeds": torch.randn((2, 16, 16), generator=generator)}
    with torch.no_grad():
        return model.predict(noisy, torch.tensor([0.3, 0.8]), conditioning)


def shake(model: WanVideoModel, seed: int = 2) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.transformer.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn(parameter.shape, generator=generator)


def adapted_modules(network: PeftModel) -> set[str]:
    names = (name for name, _ in network.get_base_model().named_parameters() if ".lora_A." in name)
    return {name.split(".lora_A.")[0] for name in names}


def test_the_paper_s_targets_rank_and_scale() -> None:
    model = wan_model()
    network = attach_lora(model)
    blocks = {f"blocks.{i}.attn2.{name}" for i in range(2) for name in ("to_k", "to_v")}
    text = {f"condition_embedder.text_embedder.linear_{i}" for i in (1, 2)}
    assert adapted_modules(network) == blocks | text
    config = network.active_peft_config
    assert (config.r, config.lora_alpha, config.lora_dropout) == (16, 16, 0.0)
    assert config.base_model_name_or_path == "tiny-random-wan"
    assert all(p.requires_grad == (".lora_" in name) for name, p in network.named_parameters())


def test_all_linear_adds_every_linear_layer_of_the_blocks_and_not_the_output() -> None:
    model = wan_model()
    modules = adapted_modules(attach_lora(model, default_lora_config(model, r=4, alpha=8, targets="all-linear")))
    assert {"blocks.0.attn1.to_q", "blocks.1.attn1.to_out.0", "blocks.0.ffn.net.2"} <= modules
    assert "condition_embedder.text_embedder.linear_1" in modules
    assert "proj_out" not in modules
    with pytest.raises(ValueError, match="targets='everything'"):
        default_lora_config(wan_model(), targets="everything")


def test_an_adapter_changes_nothing_when_it_is_new_or_switched_off() -> None:
    model = wan_model()
    base = output(model)
    attach_lora(model)
    assert torch.equal(output(model), base)
    shake(model)
    assert not torch.equal(output(model), base)
    with model.reference():
        assert torch.equal(output(model), base)


def test_initialisation_depends_on_the_seed_alone() -> None:
    states = []
    for seed, noise in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(noise)
        model = wan_model()
        attach_lora(model, seed=seed)
        states.append(torch.cat([value.flatten() for value in model.lora_state_dict().values()]))
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])


def test_adapter_of_a_bf16_model_is_fp32() -> None:
    model = wan_model()
    model.pipeline.transformer.to(torch.bfloat16)
    network = attach_lora(model)
    assert {p.dtype for p in network.parameters() if p.requires_grad} == {torch.float32}


def test_training_continues_from_a_loaded_lora(tmp_path: Path) -> None:
    first = wan_model()
    base = output(first)
    attach_lora(first, default_lora_config(first, r=4, alpha=12))
    shake(first)
    trained = output(first)
    first.save_lora(tmp_path)

    second = wan_model()
    second.load_lora(tmp_path)
    network = attach_lora(second)
    assert isinstance(network, PeftModel)
    assert network.active_peft_config.lora_alpha == 12  # would become r if the file did not store it
    assert torch.equal(output(second), trained)
    assert sum(p.requires_grad for p in network.parameters()) == 2 * 6
    with second.reference():
        assert torch.equal(output(second), base)


def test_a_reference_set_to_the_loaded_policy_stays(tmp_path: Path) -> None:
    """A round may use the policy of the previous round as its reference instead of the base."""
    first = wan_model()
    attach_lora(first)
    shake(first)
    trained = output(first)
    first.save_lora(tmp_path)

    second = wan_model()
    second.load_lora(tmp_path)
    second.set_reference_to_policy()
    attach_lora(second)
    shake(second, seed=3)
    moved = output(second)
    assert not torch.equal(moved, trained)
    with second.reference():
        assert torch.equal(output(second), trained)
    assert torch.equal(output(second), moved)


def test_training_continues_from_an_earlier_trainer_s_adapter() -> None:
    model = wan_model()
    first = attach_lora(model)
    shake(model)
    trained = output(model)
    assert attach_lora(model) is first
    assert torch.equal(output(model), trained)


def test_a_second_adapter_is_refused() -> None:
    model = wan_model()
    attach_lora(model)
    with pytest.raises(ValueError, match="already carries the adapter 'default'.*peft_config=None"):
        attach_lora(model, default_lora_config(model))


def test_the_changes_of_trl_s_command_line_to_a_lora_config_are_undone() -> None:
    """TRL sets a language-model task, and turns a one-element list into a string, which PEFT uses as a regex."""
    model = wan_model()
    network = attach_lora(model, LoraConfig(r=4, target_modules="to_k", task_type="CAUSAL_LM"))
    assert adapted_modules(network) == {f"blocks.{i}.attn{j}.to_k" for i in range(2) for j in (1, 2)}
