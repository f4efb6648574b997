"""Test the reference, and saving and loading of a LoRA, on Wan."""

import copy
import json

import pytest
import torch
from diffusers import WanPipeline
from safetensors import safe_open
from tiny_wan import PROMPTS, SETTINGS, add_lora, inputs, randomise_lora

from spatialalign_trl.models import load_video_model

WAYS = ["wrapped and set", "wrapped in place", "add_adapter"]


@pytest.mark.parametrize("how", WAYS)
def test_reference_is_the_base_bit_for_bit(model, how):
    noisy, sigma, conditioning = inputs(model)
    with torch.no_grad():
        base = model.predict(noisy, sigma, conditioning)
        add_lora(model, how)
        assert torch.equal(model.predict(noisy, sigma, conditioning), base)
        randomise_lora(model.transformer)
        policy = model.predict(noisy, sigma, conditioning)
        with model.reference():
            assert torch.equal(model.predict(noisy, sigma, conditioning), base)
            with model.reference():
                assert torch.equal(model.predict(noisy, sigma, conditioning), base)
            assert torch.equal(model.predict(noisy, sigma, conditioning), base)
        assert torch.equal(model.predict(noisy, sigma, conditioning), policy)
    assert not torch.allclose(policy, base)


def test_reference_without_adapters_changes_nothing(model):
    noisy, sigma, conditioning = inputs(model)
    with torch.no_grad(), model.reference():
        inside = model.predict(noisy, sigma, conditioning)
    assert torch.equal(inside, model.predict(noisy, sigma, conditioning))


def test_reference_keeps_gradients_and_trainable_parameters(model):
    add_lora(model, "wrapped and set")
    randomise_lora(model.transformer)
    frozen = next(p for name, p in model.transformer.named_parameters() if "lora_A" in name)
    frozen.requires_grad_(False)
    before = {name: p.requires_grad for name, p in model.transformer.named_parameters()}
    noisy, sigma, conditioning = inputs(model)
    policy = model.predict(noisy, sigma, conditioning)
    with pytest.raises(KeyError), model.reference():
        raise KeyError  # an error in the block leaves the adapters on
    with model.reference(), torch.no_grad():
        reference = model.predict(noisy, sigma, conditioning)
    (policy - reference).square().mean().backward()
    assert {name: p.requires_grad for name, p in model.transformer.named_parameters()} == before
    with_gradient = {name for name, p in model.transformer.named_parameters() if p.grad is not None}
    assert with_gradient == {name for name, trainable in before.items() if trainable}


@pytest.mark.parametrize("how", WAYS)
def test_a_kept_policy_can_be_the_reference(model, how):
    noisy, sigma, conditioning = inputs(model)
    add_lora(model, how)
    randomise_lora(model.transformer)
    with torch.no_grad():
        kept = model.predict(noisy, sigma, conditioning)
        model.set_reference_to_policy()
        randomise_lora(model.transformer, seed=2)
        policy = model.predict(noisy, sigma, conditioning)
        with model.reference():
            assert torch.equal(model.predict(noisy, sigma, conditioning), kept)
        assert torch.equal(model.predict(noisy, sigma, conditioning), policy)
        model.set_reference_to_base()
        with model.reference():
            assert not torch.allclose(model.predict(noisy, sigma, conditioning), kept)
    assert not torch.allclose(policy, kept)


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize(("r", "alpha", "use_rslora"), [(2, 2, False), (2, 8, False), (4, 1, False), (4, 8, True)])
def test_lora_round_trip_is_bitwise(folder, tmp_path, how, r, alpha, use_rslora):
    model = load_video_model(folder, device="cpu")
    noisy, sigma, conditioning = inputs(model)
    add_lora(model, how, r, alpha, use_rslora)
    randomise_lora(model.transformer)
    path = model.save_lora(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["pytorch_lora_weights.safetensors"] == [path.name]
    with torch.no_grad():
        expected = model.predict(noisy, sigma, conditioning)

    fresh = WanPipeline.from_pretrained(folder)
    fresh.load_lora_weights(str(tmp_path))
    assert fresh.get_active_adapters()
    with torch.no_grad():
        prediction = fresh.transformer(
            hidden_states=noisy, timestep=1000 * sigma, encoder_hidden_states=conditioning["prompt_embeds"]
        ).sample
    assert torch.equal(prediction, expected)

    for source in (tmp_path, path):
        again = load_video_model(folder, device="cpu")
        with torch.no_grad():
            base = again.predict(noisy, sigma, conditioning)
            again.load_lora(source)
            assert torch.equal(again.predict(noisy, sigma, conditioning), expected)
            with again.reference():
                assert torch.equal(again.predict(noisy, sigma, conditioning), base)
            again.unload_lora()
            assert torch.equal(again.predict(noisy, sigma, conditioning), base)


def test_lora_sampling_through_the_saved_file_is_bitwise(folder, tmp_path):
    model = load_video_model(folder, device="cpu")
    add_lora(model, "wrapped and set")
    randomise_lora(model.transformer)
    model.save_lora(tmp_path)
    conditioning, negative = model.encode_prompts(PROMPTS), model.encode_prompts([""])
    sampled = model.sample(conditioning, negative, [1, 2], SETTINGS)
    again = load_video_model(folder, device="cpu")
    base = again.sample(conditioning, negative, [1, 2], SETTINGS)
    again.load_lora(tmp_path)
    assert torch.equal(again.sample(conditioning, negative, [1, 2], SETTINGS), sampled)
    assert not torch.allclose(base, sampled)


def test_lora_metadata_names_the_model_but_no_local_path(folder, tmp_path):
    model = load_video_model(folder, device="cpu")
    model.name_or_path = "owner/base"
    add_lora(model, "wrapped and set", r=2, alpha=6)
    with safe_open(model.save_lora(tmp_path), "pt") as file:
        metadata = json.loads(file.metadata()["lora_adapter_metadata"])
        keys = list(file.keys())
    assert metadata == {
        "transformer.r": 2,
        "transformer.lora_alpha": 6,
        "transformer.target_modules": sorted(model.default_lora_targets),
        "transformer.base_model_name_or_path": "owner/base",
    }
    assert "transformer.blocks.0.attn2.to_k.lora_A.weight" in keys
    assert len(keys) == 2 * (2 + 2 * 2)


def test_lora_from_a_gathered_state_dict(model):
    add_lora(model, "wrapped and set")
    randomise_lora(model.transformer)
    expected = model.lora_state_dict()
    gathered = {name: value.clone() for name, value in model.transformer.state_dict().items()}
    again = model.lora_state_dict(gathered)
    assert again.keys() == expected.keys()
    assert all(torch.equal(again[name], expected[name]) for name in expected)


def test_saving_without_an_adapter_is_refused(model, tmp_path):
    with pytest.raises(RuntimeError, match="0 active adapters"):
        model.save_lora(tmp_path)


def test_loading_refuses_a_missing_file_and_a_second_adapter(model, tmp_path):
    with pytest.raises(FileNotFoundError, match="no LoRA file or folder"):
        model.load_lora(tmp_path / "none" / "such")
    (tmp_path / "optimizer.pt").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="contains no pytorch_lora_weights.safetensors, but optimizer.pt"):
        model.load_lora(tmp_path)
    add_lora(model, "wrapped and set")
    with pytest.raises(RuntimeError, match="already carries the adapter 'default'"):
        model.load_lora(tmp_path)


def test_what_peft_and_diffusers_save_of_the_network_alone_is_loaded(model, tmp_path):
    add_lora(model, "wrapped and set")
    randomise_lora(model.transformer)
    expected = model.lora_state_dict()
    model.transformer.save_pretrained(tmp_path / "peft")
    model.unload_lora()
    model.load_lora(tmp_path / "peft")
    assert all(torch.equal(value, expected[name]) for name, value in model.lora_state_dict().items())
    model.base_transformer.save_lora_adapter(str(tmp_path / "bare"), adapter_name="default_0")
    model.unload_lora()
    model.load_lora(tmp_path / "bare")
    assert all(torch.equal(value, expected[name]) for name, value in model.lora_state_dict().items())
    (config,) = model.transformer.peft_config.values()
    assert (config.r, config.lora_alpha) == (2, 8)


def test_unloading_nothing_is_no_error_and_a_lora_can_follow_another(folder, tmp_path):
    model = load_video_model(folder, device="cpu")
    model.unload_lora()
    noisy, sigma, conditioning = inputs(model)
    add_lora(model, "wrapped and set")
    randomise_lora(model.transformer)
    with torch.no_grad():
        expected = model.predict(noisy, sigma, conditioning)
    model.save_lora(tmp_path)
    for _ in range(2):
        model.unload_lora()
        model.load_lora(tmp_path)
        with torch.no_grad():
            assert torch.equal(model.predict(noisy, sigma, conditioning), expected)
    trainable = [name for name, p in model.transformer.named_parameters() if p.requires_grad]
    assert trainable and all("lora_" in name for name in trainable)


def test_the_transformer_must_keep_its_class(model):
    with pytest.raises(TypeError, match="must be a WanTransformer3DModel"):
        model.transformer = torch.nn.Linear(2, 2)


def test_dtype_is_that_of_the_base_with_an_fp32_lora(folder):
    model = load_video_model(folder, torch_dtype=torch.bfloat16, device="cpu")
    add_lora(model, "wrapped and set")
    assert {p.dtype for name, p in model.transformer.named_parameters() if "lora_" in name} == {torch.float32}
    assert model.dtype == torch.bfloat16


def test_dtype_follows_a_cast(folder):
    model = load_video_model(folder, torch_dtype=torch.bfloat16, device="cpu")
    assert model.dtype == model.base_transformer.dtype == torch.bfloat16
    model.base_transformer.to(torch.float32)  # the type before the cast must not be remembered
    assert model.dtype == model.base_transformer.dtype == torch.float32
    model.transformer = copy.deepcopy(model.base_transformer).to(torch.float16)
    assert model.dtype == torch.float16
