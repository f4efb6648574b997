"""Test what only HunyuanVideo has: guidance, prompt templates, masks, batches of its VAE.

test_contract.py tests the rest.
"""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from tiny_cogvideox_hunyuan import HEIGHT, NUM_FRAMES, WIDTH, hunyuan_video_15_pipeline, hunyuan_video_pipeline

from spatialalign_trl.models import HunyuanVideo15Model, HunyuanVideoModel, SamplingSettings
from spatialalign_trl.online.config import OnlineSpatialAlignConfig
from spatialalign_trl.online.trainer import OnlineSpatialAlignTrainer
from spatialalign_trl.trainer.reference_cache import reference_fingerprint

SETTINGS = SamplingSettings(NUM_FRAMES, HEIGHT, WIDTH, num_inference_steps=2, guidance_scale=6.0)
PROMPTS = ["a fox is on the left of a stump", "the meadow"]


@pytest.fixture(scope="module")
def model() -> HunyuanVideoModel:
    return HunyuanVideoModel(hunyuan_video_pipeline())


@pytest.fixture(scope="module")
def model_15() -> HunyuanVideo15Model:
    return HunyuanVideo15Model(hunyuan_video_15_pipeline())


def noisy(model, batch: int = 2) -> torch.Tensor:
    shape = model.latent_shape(NUM_FRAMES, HEIGHT, WIDTH)
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(0))


def calls_of(network: torch.nn.Module) -> tuple[list[dict], SimpleNamespace]:
    """Record the arguments of a transformer's calls, until `.remove()` of the hook."""
    calls: list[dict] = []
    hook = network.register_forward_pre_hook(lambda _, args, kwargs: calls.append(kwargs), with_kwargs=True)
    return calls, hook


# HunyuanVideo: embedded guidance


def test_training_uses_the_guidance_of_sampling(model):
    conditioning = model.encode_prompts(PROMPTS)
    calls, hook = calls_of(model.transformer)
    model.sample(conditioning, None, [1, 2], SETTINGS)
    assert len(calls) == SETTINGS.num_inference_steps  # no second, unconditional pass
    with torch.no_grad():
        model.predict(noisy(model), torch.tensor([0.5, 0.5]), conditioning)
    hook.remove()
    assert torch.equal(calls[-1]["guidance"], calls[0]["guidance"]) and calls[0]["guidance"].tolist() == [6000, 6000]


def test_the_embedded_guidance_can_be_set_and_has_an_effect():
    other = HunyuanVideoModel(hunyuan_video_pipeline(), embedded_guidance=1)
    model = HunyuanVideoModel(hunyuan_video_pipeline())
    assert (other.embedded_guidance, model.embedded_guidance) == (1.0, 6.0)
    arguments = noisy(model), torch.tensor([0.5, 0.5]), model.encode_prompts(PROMPTS)
    with torch.no_grad():
        assert not torch.allclose(other.predict(*arguments), model.predict(*arguments))


def test_the_guidance_in_training_is_that_of_the_samples():
    model = HunyuanVideoModel(hunyuan_video_pipeline())
    at_6 = reference_fingerprint(model)
    model.train_as_sampled(replace(SETTINGS, guidance_scale=3.0))
    assert model.embedded_guidance == 3.0
    assert reference_fingerprint(model) != at_6  # predictions at another scale are not reused
    assert model.computation == {"embedded_guidance": 3.0}
    conditioning = model.encode_prompts(PROMPTS)
    calls, hook = calls_of(model.transformer)
    model.sample(conditioning, None, [1, 2], replace(SETTINGS, guidance_scale=3.0))
    with torch.no_grad():
        model.predict(noisy(model), torch.tensor([0.5, 0.5]), conditioning)
    hook.remove()
    assert {tuple(call["guidance"].tolist()) for call in calls} == {(3000.0, 3000.0)}
    model.train_as_sampled(SETTINGS)
    assert model.embedded_guidance == 6.0 and model.computation == {} and reference_fingerprint(model) == at_6


def test_a_given_guidance_that_differs_from_sampling_is_refused():
    model = HunyuanVideoModel(hunyuan_video_pipeline(), embedded_guidance=1)
    with pytest.raises(ValueError, match="embedded_guidance=1.0: .* guidance_scale 6.0.*Leave embedded"):
        model.train_as_sampled(SETTINGS)
    model.train_as_sampled(replace(SETTINGS, guidance_scale=1.0))
    plain = HunyuanVideoModel(hunyuan_video_pipeline(guidance_embeds=False), embedded_guidance=1)
    plain.train_as_sampled(SETTINGS)  # its transformer takes no scale


def test_the_loop_sets_the_guidance_at_which_it_samples(tmp_path):
    model = HunyuanVideoModel(hunyuan_video_pipeline(), name_or_path="tiny-hunyuan")
    size = {"num_frames": NUM_FRAMES, "height": HEIGHT, "width": WIDTH}
    args = OnlineSpatialAlignConfig(str(tmp_path), guidance_scale=2.5, use_cpu=True, report_to="none", **size)
    rows = Dataset.from_list([{"prompt_id": "a", "prompt": PROMPTS[0]}])
    OnlineSpatialAlignTrainer(model, lambda prompts, completions, **_: [0.0] * len(prompts), args, rows)
    assert model.embedded_guidance == 2.5


def test_a_model_without_guidance_embedding_needs_a_negative_prompt():
    model = HunyuanVideoModel(hunyuan_video_pipeline(guidance_embeds=False))
    conditioning, negative = model.encode_prompts(PROMPTS[:1]), model.encode_prompts([""])
    with pytest.raises(ValueError, match="needs the negative prompt"):
        model.sample(conditioning, None, [1], SETTINGS)
    calls, hook = calls_of(model.transformer)
    guided = model.sample(conditioning, negative, [1], SETTINGS)
    hook.remove()
    assert len(calls) == 2 * SETTINGS.num_inference_steps
    plain = SamplingSettings(NUM_FRAMES, HEIGHT, WIDTH, 2, guidance_scale=1.0)
    assert not torch.allclose(guided, model.sample(conditioning, None, [1], plain))


def test_the_flow_shift_is_that_of_the_checkpoint(model, model_15):
    assert (model.flow_shift, model_15.flow_shift) == (7.0, 5.0)
    assert model.default_settings().flow_shift is None and model_15.default_settings().flow_shift is None


# Prompts


@pytest.mark.parametrize("which", ["model", "model_15"])
def test_embeddings_equal_those_of_the_pipelines_call(which, request):
    model = request.getfixturevalue(which)
    prompt = PROMPTS[0] + ' says "left"'
    calls, hook = calls_of(model.transformer)
    model.pipeline(prompt=prompt, num_frames=1, height=16, width=16, num_inference_steps=1, output_type="latent")
    with torch.no_grad():
        model.predict(noisy(model, 1), torch.tensor([0.5]), model.encode_prompts([prompt]))
    hook.remove()
    names = {"encoder_hidden_states", "encoder_attention_mask"}
    names |= {name + "_2" for name in names} if which == "model_15" else {"pooled_projections"}
    for name in names:
        assert torch.equal(calls[0][name], calls[-1][name]), name


def test_the_template_is_cut_off_and_padding_is_masked(model, model_15):
    """The tiny tokenizers split the published templates into exactly as many tokens as the pipelines cut off."""
    mask = model.encode_prompts(["fox"])["prompt_attention_mask"]
    letters = len(model.pipeline.tokenizer("fox", add_special_tokens=False).input_ids)
    assert mask.shape == (1, 256) and letters <= mask.sum() <= letters + 1  # plus the end of the user's turn
    short, long = (model_15.encode_prompts([p])["prompt_embeds_mask"].sum() for p in ("fox", "foxes"))
    assert long - short == 2
    quoted = model_15.encode_prompts(['a sign "A"', "a sign"])["prompt_embeds_mask_2"].sum(1)
    assert quoted[0] > 0 and quoted[1] == 0


@pytest.mark.parametrize("which", ["model", "model_15"])
def test_masked_tokens_have_no_effect(which, request):
    model = request.getfixturevalue(which)
    conditioning = model.encode_prompts(PROMPTS)
    arguments = noisy(model), torch.tensor([0.3, 0.9])
    with torch.no_grad():
        expected = model.predict(*arguments, conditioning)
        mask_name = "prompt_attention_mask" if which == "model" else "prompt_embeds_mask"
        padding = conditioning[mask_name] == 0
        assert padding.any()
        garbled = conditioning["prompt_embeds"].masked_fill(padding[..., None], 7.0)
        torch.testing.assert_close(
            model.predict(*arguments, {**conditioning, "prompt_embeds": garbled}), expected, rtol=1e-4, atol=1e-5
        )
        dropped = {**conditioning, mask_name: conditioning[mask_name] * (torch.arange(padding.shape[1]) < 2)}
        assert not torch.allclose(model.predict(*arguments, dropped), expected, atol=1e-4)


# HunyuanVideo 1.5


def test_guidance_15_is_set_in_the_guider_and_restored(model_15):
    assert model_15.default_settings().guidance_scale == 6.0
    guider = model_15.pipeline.guider
    conditioning, negative = model_15.encode_prompts(PROMPTS[:1]), model_15.encode_prompts([""])
    samples = {}
    for scale, passes in ((1.0, 2), (3.0, 4)):
        settings = SamplingSettings(NUM_FRAMES, HEIGHT, WIDTH, 2, guidance_scale=scale)
        calls, hook = calls_of(model_15.transformer)
        samples[scale] = model_15.sample(conditioning, negative if scale > 1 else None, [1], settings)
        hook.remove()
        assert len(calls) == passes
        assert model_15.pipeline.guider is guider
    assert not torch.allclose(samples[1.0], samples[3.0])
    with pytest.raises(ValueError, match="needs the negative prompt"):
        model_15.sample(conditioning, None, [1], SETTINGS)


def test_timesteps_15_stay_distinct_in_bf16():
    model = HunyuanVideo15Model(hunyuan_video_15_pipeline().to(dtype=torch.bfloat16))
    embedder = model.transformer.time_embed
    seen = []
    embedder.time_proj.register_forward_hook(lambda _, args, output: seen.append((args[0], output)))
    conditioning = {name: tensor.expand(8, *tensor.shape[1:]) for name, tensor in model.encode_prompts(["a"]).items()}
    sigma = torch.arange(993, 1001) / 1000  # bf16 can represent two of these timesteps
    with torch.no_grad():
        prediction = model.predict(noisy(model, 8), sigma, conditioning)
    timesteps, embedded = seen[0]
    assert prediction.dtype == torch.bfloat16 and prediction.isfinite().all()
    assert timesteps.dtype == torch.float32 and len(embedded.unique(dim=0)) == 8
    assert not embedder.timestep_embedder._forward_pre_hooks


def test_the_vae_15_takes_several_videos(model_15):
    latents = noisy(model_15, 3)
    videos = model_15.decode_latents(latents, batch_size=3)
    assert len(videos) == 3 and videos[0].shape == (NUM_FRAMES, HEIGHT, WIDTH, 3)
    together = model_15.encode_video(videos, batch_size=3)
    torch.testing.assert_close(together[1:2], model_15.encode_video(videos[1:2]), rtol=1e-4, atol=1e-4)


def test_gradients_15_are_finite_although_whole_rows_are_masked():
    model = HunyuanVideo15Model(hunyuan_video_15_pipeline())
    config = LoraConfig(r=2, target_modules=list(model.default_lora_targets), init_lora_weights=False)
    model.transformer = get_peft_model(model.transformer, config)
    model.predict(noisy(model), torch.tensor([0.3, 0.9]), model.encode_prompts(PROMPTS)).square().mean().backward()
    gradients = [p.grad for p in model.transformer.parameters() if p.requires_grad]
    assert gradients and all(grad is not None and grad.isfinite().all() for grad in gradients)


def test_a_lora_15_loads_through_its_pipeline(tmp_path):
    model = HunyuanVideo15Model(hunyuan_video_15_pipeline())
    targets = list(model.default_lora_targets)
    config = LoraConfig(r=2, lora_alpha=8, target_modules=targets, init_lora_weights=False)
    model.transformer = get_peft_model(model.transformer, config)
    model.save_lora(tmp_path)
    arguments = noisy(model), torch.tensor([0.3, 0.9]), model.encode_prompts(PROMPTS)
    fresh = HunyuanVideo15Model(hunyuan_video_15_pipeline())
    with torch.no_grad():
        base = fresh.predict(*arguments)
        fresh.pipeline.load_lora_weights(str(tmp_path))
        assert fresh.pipeline.get_active_adapters()
        assert torch.equal(fresh.predict(*arguments), model.predict(*arguments))
        assert not torch.allclose(fresh.predict(*arguments), base)


def test_a_lora_in_the_original_layout_is_split_into_queries_keys_and_values(tmp_path):
    model = HunyuanVideoModel(hunyuan_video_pipeline())
    layer = model.base_transformer.transformer_blocks[0].attn.to_q
    width = layer.in_features
    factor_a, factor_b = torch.randn(2, width), torch.randn(3 * width, 2)
    name = "double_blocks.0.img_attn_qkv"
    original = {f"{name}.lora_A.weight": factor_a, f"{name}.lora_B.weight": factor_b}
    save_file(original, tmp_path / "original.safetensors")
    model.load_lora(tmp_path / "original.safetensors")
    loaded = model.lora_state_dict()
    assert model.lora_fit.unplaced == () and len(loaded) == 6
    for letter, part in zip("qkv", factor_b.chunk(3), strict=True):
        assert torch.equal(loaded[f"transformer_blocks.0.attn.to_{letter}.lora_A.weight"], factor_a)
        assert torch.equal(loaded[f"transformer_blocks.0.attn.to_{letter}.lora_B.weight"], part)
    model.unload_lora()
    save_file({**original, f"{name}.alpha": torch.tensor(1.0)}, tmp_path / "alpha.safetensors")
    with pytest.raises(ValueError, match="diffusers cannot translate its names, such as 'double_blocks"):
        model.load_lora(tmp_path / "alpha.safetensors")
    save_file({**original, f"{name}.dora_scale": torch.ones(3 * width)}, tmp_path / "dora.safetensors")
    with pytest.raises(ValueError, match="dora_scale"):  # diffusers leaves these keys out
        model.load_lora(tmp_path / "dora.safetensors")
