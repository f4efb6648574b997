"""Test what only LTX-Video has. test_contract.py tests the contract that all families keep."""

import math

import numpy as np
import pytest
import tiny_ltx
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors.torch import save_file

from spatialalign_trl.models import SamplingSettings
from spatialalign_trl.models.ltx import LTXVideoModel

PROMPTS = ["a fox is on the left of a stump", "the meadow"]


@pytest.fixture(scope="module")
def model():
    return LTXVideoModel(tiny_ltx.ltx_pipeline(), "tiny-random-ltx")


def settings(**changes):
    return SamplingSettings(
        *tiny_ltx.SIZE, **{"num_inference_steps": 3, "guidance_scale": 1.0, "fps": 25.0, **changes}
    )


def test_the_prompt_is_embedded_with_its_mask(model):
    conditioning = model.encode_prompts(PROMPTS)
    assert set(conditioning) == {"prompt_embeds", "prompt_attention_mask"}
    assert conditioning["prompt_attention_mask"].sum(1).tolist() == [10, 3]  # words and the end token
    noisy = torch.randn(2, *model.latent_shape(*tiny_ltx.SIZE), generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.3, 0.9])
    with torch.no_grad():
        before = model.predict(noisy, sigma, conditioning)
        hidden = conditioning["prompt_embeds"].clone()
        hidden[~conditioning["prompt_attention_mask"]] = 7.0
        assert torch.equal(model.predict(noisy, sigma, {**conditioning, "prompt_embeds": hidden}), before)
    assert before.shape == noisy.shape


def test_positions_depend_on_the_frame_rate_of_the_model(model):
    other = LTXVideoModel(model.pipeline, frame_rate=8)
    assert (model.frame_rate, other.frame_rate) == (25.0, 8.0)
    assert other.default_settings().fps == 8.0
    conditioning = model.encode_prompts(PROMPTS[:1])
    noisy = torch.randn(1, *model.latent_shape(*tiny_ltx.SIZE), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        at_25, at_8 = (m.predict(noisy, torch.tensor([0.5]), conditioning) for m in (model, other))
    assert not torch.allclose(at_25, at_8)
    with pytest.raises(ValueError, match="fps=8.0: .* frame rate of 25.0.*frame_rate=8"):
        model.sample(conditioning, None, [0], settings(fps=8.0))


def test_the_shift_is_the_schedulers_own_at_the_size(model):
    """`sigma = k * u / (1 + (k - 1) * u)` with our k equals the scheduler's shift by exp(mu), before the stretch."""
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(model.pipeline.scheduler.config, shift_terminal=None)
    _, frames, rows, columns = model.latent_shape(161, 512, 704)
    slope = (2.05 - 0.95) / (4096 - 1024)
    mu = 0.95 + slope * (frames * rows * columns - 1024)
    u = np.linspace(1.0, 1 / 7, 7)
    scheduler.set_timesteps(sigmas=u, mu=mu)
    k = model.shift_at(161, 512, 704)
    assert k == pytest.approx(math.exp(mu)) == pytest.approx(model.flow_shift)
    torch.testing.assert_close(scheduler.sigmas[:-1], torch.tensor(k * u / (1 + (k - 1) * u)).float())


def test_a_shift_in_the_settings_replaces_the_dynamic_one(model):
    conditioning = model.encode_prompts(PROMPTS[:1])
    k = model.shift_at(*tiny_ltx.SIZE)
    dynamic = model.sample(conditioning, None, [0], settings())
    torch.testing.assert_close(
        model.sample(conditioning, None, [0], settings(flow_shift=k)), dynamic, rtol=0, atol=1e-4
    )
    assert not torch.allclose(model.sample(conditioning, None, [0], settings(flow_shift=9.0)), dynamic, atol=1e-4)
    assert model.pipeline.scheduler.config.use_dynamic_shifting


def test_a_video_from_a_denoising_vae_does_not_depend_on_its_batch():
    model = LTXVideoModel(tiny_ltx.ltx_pipeline(timestep_conditioning=True))
    latents = torch.randn(2, *model.latent_shape(*tiny_ltx.SIZE), generator=torch.Generator().manual_seed(0))
    alone = model.decode_latents(latents[1:])[0].astype(int)
    assert np.abs(model.decode_latents(latents, batch_size=2)[1] - alone).max() <= 1
    np.testing.assert_array_equal(model.decode_latents(latents[1:])[0], alone)


def test_defaults_are_those_of_the_authors(model):
    found = model.default_settings()
    model.check_size(found.num_frames, found.height, found.width)
    assert (found.num_frames, found.height, found.width, found.fps) == (161, 512, 704, 25.0)
    assert (found.num_inference_steps, found.guidance_scale, found.flow_shift) == (50, 3.0, None)


@pytest.mark.parametrize(
    ("pattern", "sides"),
    [
        ("diffusion_model.{}.lora_{}.weight", "AB"),
        ("base_model.model.{}.lora_{}.default.weight", "AB"),
        ("{}.lora_{}.weight", ("down", "up")),
        ("lora_unet_{}.lora_{}.weight", ("down", "up")),
    ],
)
def test_other_trainers_names_are_looked_up_in_the_transformer(model, tmp_path, pattern, sides):
    name = "transformer_blocks.0.attn2.to_k"
    layer = model.base_transformer.get_submodule(name)
    factors = torch.randn(2, layer.in_features), torch.randn(layer.out_features, 2)
    spelled = name.replace(".", "_") if "unet" in pattern else name
    file = tmp_path / "lora.safetensors"
    save_file({pattern.format(spelled, side): value for side, value in zip(sides, factors, strict=True)}, file)
    model.load_lora(file)
    try:
        loaded = model.lora_state_dict()
        assert list(loaded) == [f"{name}.lora_A.weight", f"{name}.lora_B.weight"]
        assert all(torch.equal(found, factor) for found, factor in zip(loaded.values(), factors, strict=True))
    finally:
        model.unload_lora()
