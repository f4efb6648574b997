"""Test the two experts of Wan 2.2 A14B."""

import dataclasses
import json
import shutil

import pytest
import tiny_pipelines
import torch
from diffusers import WanPipeline
from safetensors.torch import save_file
from tiny_pairs import spatialalign_trainer
from tiny_pipelines import HEIGHT, NUM_FRAMES, WIDTH
from tiny_wan import PROMPTS, SETTINGS, add_lora, inputs, random_videos, randomise_lora

from spatialalign_trl.models import SamplingSettings, WanVideoModel, load_video_model
from spatialalign_trl.models.wan import _take_turn


def without_weights(folder, *components):
    """Delete the weights of some components (all by default) from a pipeline folder, and return the folder."""
    for weights in folder.glob("**/*.safetensors"):
        if not components or weights.parent.name in components:
            weights.unlink()
    return str(folder)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"boundary_ratio": None}, "has boundary_ratio None.*one transformer.*or with two"),
        ({"transformer_2": [None, None]}, "has boundary_ratio 0.875 and no transformer_2"),
    ],
)
def test_half_a_pair_of_experts_is_refused_before_weights_are_read(index, message, tmp_path):
    tiny_pipelines.two_expert_pipeline().save_pretrained(tmp_path)
    file = tmp_path / "model_index.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **index}))
    with pytest.raises(ValueError, match=message):
        load_video_model(without_weights(tmp_path))


# Wan 2.2 A14B: two experts

EXPERT_SETTINGS = SamplingSettings(NUM_FRAMES, HEIGHT, WIDTH, 4, 3.0, guidance_scale_2=2.0)


@pytest.fixture(scope="module")
def two_experts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experts")
    tiny_pipelines.two_expert_pipeline().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(("expert", "trained"), [("high_noise", "transformer"), ("low_noise", "transformer_2")])
def test_the_other_expert_is_loaded_at_the_first_sampling(expert, trained, two_experts, tmp_path):
    other = {"transformer": "transformer_2", "transformer_2": "transformer"}[trained]
    shutil.copytree(two_experts, tmp_path, dirs_exist_ok=True)
    without_weights(tmp_path, other)
    model = load_video_model(str(tmp_path), device="cpu", expert=expert)
    assert model.base_transformer is getattr(model.pipeline, trained)
    assert getattr(model.pipeline, other) is None
    noisy, sigma, conditioning = inputs(model)
    assert model.predict(noisy, sigma, conditioning).shape == noisy.shape
    model.encode_video(random_videos())
    model.release_encoders()
    model.reload_encoders()
    with pytest.raises(OSError, match=other):
        model.sample(conditioning, conditioning, [1, 2], EXPERT_SETTINGS)

    whole = load_video_model(two_experts, device="cpu", expert=expert)
    sampled = whole.sample(conditioning, conditioning, [1, 2], EXPERT_SETTINGS)
    in_memory = WanVideoModel(WanPipeline.from_pretrained(two_experts), expert=expert)
    assert torch.equal(in_memory.sample(conditioning, conditioning, [1, 2], EXPERT_SETTINGS), sampled)
    assert getattr(whole.pipeline, other) is not None


def test_experts_are_on_the_device_one_at_a_time(two_experts):
    """`to` is recorded, because there is no GPU. After sampling, the trained expert is back on its device."""
    model = load_video_model(two_experts, device="cpu", expert="low_noise")
    conditioning, negative = model.encode_prompts(PROMPTS[:1]), model.encode_prompts([""])
    model.sample(conditioning, negative, [1], EXPERT_SETTINGS)
    where = {"transformer": "cpu", "transformer_2": "gpu"}
    counts_on_gpu = []

    def move(component):
        def to(device):
            where[component] = "cpu" if device == "cpu" else "gpu"
            counts_on_gpu.append(sum(place == "gpu" for place in where.values()))

        return to

    pipeline = model.pipeline
    watched = {name: Placed(where, name, move(name)) for name in where}
    for name, other in (("transformer", "transformer_2"), ("transformer_2", "transformer")):
        _take_turn(watched[name], (), partner=watched[other], device="gpu")
        assert where == {name: "gpu", other: "cpu"}
        _take_turn(watched[name], (), partner=watched[other], device="gpu")  # already on the device
    assert max(counts_on_gpu) == 1 and len(counts_on_gpu) == 4
    assert not pipeline.transformer._forward_pre_hooks and not pipeline.transformer_2._forward_pre_hooks


class Placed:
    def __init__(self, where, name, to):
        self.where, self.name, self.to = where, name, to

    @property
    def device(self):
        return self.where[self.name]


def test_each_expert_is_trained_on_its_side_of_the_boundary(two_experts):
    high = load_video_model(two_experts, device="cpu", expert="high_noise")
    low = load_video_model(two_experts, device="cpu", expert="low_noise")
    default = load_video_model(two_experts, device="cpu")
    assert high.sigma_range == default.sigma_range == (0.875, 1.0)
    assert low.sigma_range == (0.0, pytest.approx(0.875, abs=1e-5))
    assert low.sigma_range[1] < 0.875
    assert (high.trained_component, low.trained_component) == ("transformer", "transformer_2")
    assert WanVideoModel(tiny_pipelines.wan_pipeline()).sigma_range == (0.0, 1.0)


@pytest.mark.parametrize("expert", ["high_noise", "low_noise"])
def test_training_draws_the_noise_levels_of_the_trained_expert(expert, two_experts, tmp_path, monkeypatch):
    model = load_video_model(two_experts, device="cpu", expert=expert)
    drawn = []
    predict = model.predict
    monkeypatch.setattr(
        model,
        "predict",
        lambda noisy, sigma, *args, **kwargs: drawn.append(sigma) or predict(noisy, sigma, *args, **kwargs),
    )
    other = model.pipeline.transformer_2 if expert == "high_noise" else model.pipeline.transformer
    spatialalign_trainer(tmp_path, model=model, max_steps=8).train()
    sigmas = torch.cat(drawn)
    assert (sigmas >= 0.875).all() if expert == "high_noise" else (sigmas < 0.875).all()
    assert len(sigmas.unique()) > 8
    assert other is None  # training needs, and loads, only one expert
    with pytest.raises(ValueError, match="these bounds exclude all of them"):
        bounds = {"max_sigma": 0.5} if expert == "high_noise" else {"min_sigma": 0.9}
        spatialalign_trainer(tmp_path, model=model, **bounds)


def test_a_lora_of_the_low_noise_expert_loads_without_the_other_expert(two_experts, tmp_path):
    model = load_video_model(two_experts, device="cpu", expert="low_noise")
    noisy, sigma, conditioning = inputs(model)
    add_lora(model, "wrapped and set")
    randomise_lora(model.transformer)
    model.save_lora(tmp_path)
    again = load_video_model(two_experts, device="cpu", expert="low_noise")
    again.load_lora(tmp_path)
    assert again.pipeline.transformer is None
    with torch.no_grad():
        assert torch.equal(again.predict(noisy, sigma, conditioning), model.predict(noisy, sigma, conditioning))


def test_a_file_for_both_experts_is_loaded_for_the_one_that_is_trained(two_experts, tmp_path, caplog):
    def weights(component, value):
        name = f"{component}.blocks.0.attn2.to_k"
        return {f"{name}.lora_A.weight": torch.full((2, 24), value), f"{name}.lora_B.weight": torch.ones(24, 2)}

    save_file(weights("transformer", 1.0) | weights("transformer_2", 2.0), tmp_path / "both.safetensors")
    save_file(weights("transformer_2", 2.0), tmp_path / "low.safetensors")
    for expert, value in (("high_noise", 1.0), ("low_noise", 2.0)):
        model = load_video_model(two_experts, device="cpu", expert=expert)
        caplog.clear()
        model.load_lora(tmp_path / "both.safetensors")
        (factor_a,) = (tensor for name, tensor in model.lora_state_dict().items() if "lora_A" in name)
        assert (factor_a == value).all() and len(model.lora_fit.unplaced) == 2
        assert "2 of 4 keys fit nothing in this transformer" in caplog.text
        model.unload_lora()
        if expert == "low_noise":
            model.load_lora(tmp_path / "low.safetensors")
            assert model.lora_fit.unplaced == ()
            continue
        with pytest.raises(ValueError, match='model_init_kwargs {"expert": "low_noise"}'):
            model.load_lora(tmp_path / "low.safetensors")
        remedy = {"expert": "low_noise"}
        load_video_model(two_experts, device="cpu", **remedy).load_lora(tmp_path / "low.safetensors")


def test_unknown_experts_are_refused(two_experts, folder):
    with pytest.raises(ValueError, match="no expert 'low'.*low_noise"):
        load_video_model(two_experts, device="cpu", expert="low")
    with pytest.raises(ValueError, match="expert='low_noise': .* has only one transformer"):
        load_video_model(folder, device="cpu", expert="low_noise")
    with pytest.raises(ValueError, match="no option 'experts'. Did you mean 'expert'"):
        load_video_model(two_experts, device="cpu", experts="low_noise")


def test_the_second_guidance_scale_has_an_effect_and_needs_two_experts(model, two_experts):
    experts = load_video_model(two_experts, device="cpu")
    conditioning, negative = experts.encode_prompts(PROMPTS[:1]), experts.encode_prompts([""])
    both = [
        experts.sample(conditioning, negative, [1], dataclasses.replace(EXPERT_SETTINGS, guidance_scale_2=scale))
        for scale in (None, 3.0, 2.0)
    ]
    assert torch.equal(both[0], both[1])
    assert not torch.allclose(both[0], both[2])
    with pytest.raises(ValueError, match="guidance_scale_2=2.0: this model has only one guidance scale"):
        model.sample(conditioning, negative, [1], EXPERT_SETTINGS)
    with pytest.raises(ValueError, match="switches guidance off"):
        SamplingSettings(NUM_FRAMES, HEIGHT, WIDTH, 4, 1.0, guidance_scale_2=2.0)
    assert "guidance_scale_2" not in SETTINGS.to_dict()  # so that samples of models with one expert keep their ids
    assert SamplingSettings.from_dict(EXPERT_SETTINGS.to_dict()) == EXPERT_SETTINGS
