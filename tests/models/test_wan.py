"""Test what only Wan has: its encoders, flow matching, sampling, defaults. test_contract.py tests the rest."""

import gc
import json
import weakref

import numpy as np
import pytest
import tiny_pipelines
import torch
from peft import LoraConfig, get_peft_model
from tiny_pipelines import HEIGHT, NUM_FRAMES, WIDTH
from tiny_text import T5_TOKENS
from tiny_wan import PROMPTS, SETTINGS, add_lora, inputs, random_videos, randomise_lora

from spatialalign_trl.models import SamplingSettings, WanVideoModel, load_video_model

# Encoders


@pytest.mark.parametrize("as_array", [False, True])
def test_encode_shape_and_type(model, as_array):
    videos = random_videos()
    latents = model.encode_video(np.stack(videos) if as_array else videos)
    assert latents.shape == (2, *model.latent_shape(NUM_FRAMES, HEIGHT, WIDTH)) == (2, 4, 3, 2, 4)
    assert latents.dtype == torch.float32
    assert not latents.requires_grad


def test_encode_is_deterministic_and_normalised(model):
    videos = random_videos()
    latents = model.encode_video(videos, batch_size=1)
    assert torch.equal(latents, model.encode_video(videos, batch_size=1))
    vae = model.pipeline.vae
    pixels = torch.from_numpy(np.stack(videos)).permute(0, 4, 1, 2, 3) / 127.5 - 1
    with torch.no_grad():
        raw = vae.encode(pixels).latent_dist.mode()
    mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1, 1)
    std = torch.tensor(vae.config.latents_std).view(1, -1, 1, 1, 1)
    torch.testing.assert_close(latents, (raw - mean) / std, rtol=1e-5, atol=1e-5)


def test_decoding_equals_the_pipelines(model):
    conditioning = model.encode_prompts(PROMPTS)
    negative = model.encode_prompts([""])
    latents = model.sample(conditioning, negative, [1, 2], SETTINGS)
    videos = model.decode_latents(latents, batch_size=2)
    frames = model.pipeline(
        prompt=PROMPTS,
        latents=model.initial_noise([1, 2], SETTINGS),
        num_frames=NUM_FRAMES,
        height=HEIGHT,
        width=WIDTH,
        num_inference_steps=3,
        guidance_scale=3.0,
        max_sequence_length=T5_TOKENS,
    ).frames
    assert len(videos) == 2
    assert videos[0].shape == (NUM_FRAMES, HEIGHT, WIDTH, 3)
    assert videos[0].dtype == np.uint8
    for video, expected in zip(videos, frames, strict=True):
        assert np.abs(video / 255.0 - expected).max() <= 0.5 / 255 + 1e-4


@pytest.mark.parametrize("batch_size", [1, 2, None])
def test_decode_batches_give_the_same_videos(model, batch_size):
    shape = model.latent_shape(NUM_FRAMES, HEIGHT, WIDTH)
    latents = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    videos = np.stack(model.decode_latents(latents, batch_size=batch_size)).astype(int)
    assert np.abs(videos - np.stack(model.decode_latents(latents, batch_size=3))).max() <= 1


def test_latents_that_diverged_are_refused(model):
    latents = torch.full((1, *model.latent_shape(NUM_FRAMES, HEIGHT, WIDTH)), float("nan"))
    with pytest.raises(ValueError, match="NaN"):
        model.decode_latents(latents)


def test_videos_of_two_sizes_are_refused(model):
    videos = [random_videos(1)[0], random_videos(1, frames=5)[0]]
    with pytest.raises(ValueError, match=r"videos\[1\] has shape \(5, 16, 32, 3\)"):
        model.encode_video(videos)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((8, 16, 32), "num_frames=8:.*Use 5 or 9"),
        ((0, 16, 32), "num_frames=0:.*Use 1"),
        ((9, 24, 32), "height=24:.*Use 16 or 32"),
        ((9, 16, 8), "width=8:.*Use 16"),
        ((9, 16, 16 * 33), "positions for 32"),
    ],
)
def test_size_errors_name_the_nearest_legal_values(model, size, message):
    with pytest.raises(ValueError, match=message):
        model.check_size(*size)
    settings = SamplingSettings(max(size[0], 2), *size[1:], num_inference_steps=1, guidance_scale=1.0)
    with pytest.raises(ValueError):
        model.sample(model.encode_prompts(PROMPTS[:1]), None, [0], settings)


@pytest.mark.parametrize("size", [(1, 16, 16), (9, 16, 32), (17, 32, 48)])
def test_legal_sizes_pass(model, size):
    model.check_size(*size)


def test_encode_checks_the_size(model):
    with pytest.raises(ValueError, match="num_frames=8:"):
        model.encode_video(random_videos(frames=8))


def test_prompt_embeds_equal_those_of_the_pipelines_call(model):
    """The length, the cleaning and the zeros after the prompt must be those of the pipeline's call."""
    prompts = ["  A fox &amp; a\n stump  ", PROMPTS[0]]
    seen = []
    original = model.pipeline.transformer.forward

    def spy(*args, **kwargs):
        seen.append(kwargs["encoder_hidden_states"].clone())
        return original(*args, **kwargs)

    for prompt in prompts:
        seen.clear()
        model.pipeline.transformer.forward = spy
        model.pipeline(
            prompt=prompt,
            negative_prompt="blurry",
            num_frames=NUM_FRAMES,
            height=HEIGHT,
            width=WIDTH,
            num_inference_steps=1,
            guidance_scale=2.0,
            max_sequence_length=T5_TOKENS,
            output_type="latent",
        )
        model.pipeline.transformer.forward = original
        embeds = model.encode_prompts([prompt, "blurry"])["prompt_embeds"]
        assert embeds.shape == (2, T5_TOKENS, 16)
        assert torch.equal(seen[0], embeds[:1])
        assert torch.equal(seen[1], embeds[1:])


def test_the_prompt_length_is_the_tokenizers_or_512(model):
    assert model.max_sequence_length == T5_TOKENS
    model.pipeline.tokenizer.model_max_length = int(1e30)
    assert model.max_sequence_length == 512
    assert model.encode_prompts(["a fox"])["prompt_embeds"].shape[1] == 512


def test_an_embedding_does_not_depend_on_its_batch(model):
    together = model.encode_prompts(PROMPTS)["prompt_embeds"]
    assert torch.equal(together[1:], model.encode_prompts(PROMPTS[1:])["prompt_embeds"])


@pytest.mark.parametrize("prompts", ["a fox", [], [None]])
def test_prompts_must_be_a_list_of_strings(model, prompts):
    with pytest.raises(TypeError, match="non-empty list of strings"):
        model.encode_prompts(prompts)


# Flow matching


def test_noise_and_target_are_the_plain_formulas(model):
    x0, noise = torch.randn(2, 3, 4, 5, 2, 2)
    sigma = torch.tensor([0.0, 0.25, 1.0])
    noisy, target = model.add_noise(x0, noise, sigma), model.target(x0, noise, sigma)
    for i, s in enumerate(sigma):
        assert torch.equal(noisy[i], (1 - s) * x0[i] + s * noise[i])
    assert torch.equal(target, noise - x0)
    # One Euler step from the noised latents along the target gives the clean ones.
    torch.testing.assert_close(noisy - sigma.view(-1, 1, 1, 1, 1) * target, x0)


def test_noise_and_target_of_bf16_latents_are_fp32(model):
    x0 = torch.randn(1, 2, 3, 2, 2).bfloat16()
    assert model.add_noise(x0, torch.randn_like(x0), torch.tensor([0.3])).dtype == torch.float32
    assert model.target(x0, torch.randn_like(x0), torch.tensor([0.3])).dtype == torch.float32


def test_predict_is_the_transformers_output(model):
    noisy, sigma, conditioning = inputs(model)
    with torch.no_grad():
        expected = model.transformer(
            hidden_states=noisy, timestep=1000 * sigma, encoder_hidden_states=conditioning["prompt_embeds"]
        ).sample
        assert torch.equal(model.predict(noisy, sigma, conditioning), expected)
        assert torch.equal(model.predict(noisy, sigma, conditioning, transformer=model.transformer), expected)


def test_timesteps_stay_fp32_under_a_bf16_transformer(folder):
    model = load_video_model(folder, torch_dtype=torch.bfloat16, device="cpu")
    assert model.dtype == torch.bfloat16
    assert model.pipeline.vae.dtype == torch.float32
    seen = []
    model.transformer.condition_embedder.timesteps_proj.register_forward_hook(
        lambda module, args, output: seen.append((args[0], output))
    )
    sigma = (torch.arange(1000) + 1) / 1000
    noisy = torch.zeros(1000, *model.latent_shape(1, 16, 16))
    embeds = {"prompt_embeds": model.encode_prompts(["a fox"])["prompt_embeds"].expand(1000, -1, -1)}
    with torch.no_grad():
        prediction = model.predict(noisy, sigma, embeds)
    timesteps, embedded = seen[0]
    assert prediction.dtype == torch.bfloat16
    assert timesteps.dtype == torch.float32
    assert len(timesteps.unique()) == len(embedded.unique(dim=0)) == 1000


# Sampling


def test_initial_noise_depends_only_on_the_seed(model):
    alone = model.initial_noise([7], SETTINGS)
    together = model.initial_noise([3, 7, 7, 2**62], SETTINGS)
    assert torch.equal(alone[0], together[1])
    assert torch.equal(together[1], together[2])
    assert not torch.equal(together[0], together[1])
    assert together.dtype == torch.float32


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_a_sample_does_not_depend_on_its_batch(model, guidance_scale):
    settings = SamplingSettings(NUM_FRAMES, HEIGHT, WIDTH, 4, guidance_scale)
    negative = model.encode_prompts([""])
    prompts = model.encode_prompts([*PROMPTS, "a stump"])["prompt_embeds"]
    together = model.sample({"prompt_embeds": prompts}, negative, [5, 6, 7], settings)
    for i, seed in enumerate([5, 6, 7]):
        alone = model.sample({"prompt_embeds": prompts[i : i + 1]}, negative, [seed], settings)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-4)
    assert together.dtype == torch.float32


def test_guidance_has_an_effect_and_needs_the_negative_prompt(model):
    conditioning, negative = model.encode_prompts(PROMPTS[:1]), model.encode_prompts(["blurry"])
    without = SamplingSettings(NUM_FRAMES, HEIGHT, WIDTH, 3, guidance_scale=1.0)
    plain = model.sample(conditioning, None, [1], without)
    assert torch.equal(plain, model.sample(conditioning, negative, [1], without))
    assert not torch.allclose(plain, model.sample(conditioning, negative, [1], SETTINGS))
    with pytest.raises(ValueError, match="needs the negative prompt"):
        model.sample(conditioning, None, [1], SETTINGS)


def test_every_prompt_needs_a_seed(model):
    with pytest.raises(ValueError, match="holds 2 prompts, but there are 3 seeds"):
        model.sample(model.encode_prompts(PROMPTS), None, [1, 2, 3], SETTINGS)


@pytest.mark.parametrize("kind", ["euler", "unipc"])
def test_flow_shift_comes_from_the_scheduler_or_the_settings(kind):
    model = WanVideoModel(tiny_pipelines.wan_pipeline(kind=kind, shift=3.0))
    shifted = WanVideoModel(tiny_pipelines.wan_pipeline(kind=kind, shift=7.0))
    assert (model.flow_shift, shifted.flow_shift) == (3.0, 7.0)
    conditioning = model.encode_prompts(PROMPTS)
    unshifted = SamplingSettings(NUM_FRAMES, HEIGHT, WIDTH, 4, guidance_scale=1.0)
    other = SamplingSettings(NUM_FRAMES, HEIGHT, WIDTH, 4, guidance_scale=1.0, flow_shift=7.0)
    before = model.pipeline.scheduler
    sampled = model.sample(conditioning, None, [1, 2], other)
    assert torch.equal(sampled, shifted.sample(conditioning, None, [1, 2], unshifted))
    assert not torch.allclose(sampled, model.sample(conditioning, None, [1, 2], unshifted))
    assert model.pipeline.scheduler is before
    assert model.flow_shift == 3.0


def test_dropout_is_off_while_sampling(model):
    config = LoraConfig(r=2, target_modules=list(model.default_lora_targets), lora_dropout=0.9)
    model.transformer = get_peft_model(model.transformer, config).train()
    randomise_lora(model.transformer)
    conditioning, negative = model.encode_prompts(PROMPTS), model.encode_prompts([""])
    first = model.sample(conditioning, negative, [1, 2], SETTINGS)
    assert torch.equal(first, model.sample(conditioning, negative, [1, 2], SETTINGS))
    assert model.transformer.training


# Releasing and loading


def test_release_frees_the_encoders_and_sampling_still_works(folder):
    model = load_video_model(folder, device="cpu")
    conditioning, negative = model.encode_prompts(PROMPTS), model.encode_prompts([""])
    before = model.sample(conditioning, negative, [1, 2], SETTINGS)
    videos = model.decode_latents(before)
    watched = [weakref.ref(model.pipeline.vae), weakref.ref(model.pipeline.text_encoder)]
    add_lora(model, "wrapped and set")
    assert model.has_encoders
    model.release_encoders()
    gc.collect()
    assert [ref() for ref in watched] == [None, None]
    assert not model.has_encoders
    model.release_encoders()
    assert torch.equal(model.sample(conditioning, negative, [1, 2], SETTINGS), before)
    for call in (
        lambda: model.encode_prompts(PROMPTS),
        lambda: model.encode_video(random_videos()),
        lambda: model.decode_latents(before),
    ):
        with pytest.raises(RuntimeError, match=r"reload_encoders\(\)"):
            call()
    transformer = model.transformer
    model.reload_encoders()
    assert model.has_encoders
    assert model.transformer is transformer
    assert torch.equal(model.encode_prompts(PROMPTS)["prompt_embeds"], conditioning["prompt_embeds"])
    np.testing.assert_array_equal(model.decode_latents(before), videos)


def test_reload_keeps_the_types(folder):
    model = load_video_model(folder, torch_dtype=torch.bfloat16, device="cpu")
    model.release_encoders()
    model.reload_encoders()
    assert model.pipeline.vae.dtype == torch.float32
    assert model.pipeline.text_encoder.dtype == torch.bfloat16


def test_a_pipeline_built_in_memory_cannot_reload(model):
    model.release_encoders()
    with pytest.raises(RuntimeError, match="built in memory"):
        model.reload_encoders()


# Defaults


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (tiny_pipelines.two_expert_pipeline, (81, 720, 1280, 40, 4.0, 3.0, 12.0, 16)),
        (tiny_pipelines.token_timestep_pipeline, (121, 704, 1280, 50, 5.0, None, 5.0, 24)),
    ],
)
def test_defaults_of_wan_22_are_those_of_its_authors(build, expected):
    found = WanVideoModel(build()).default_settings()
    names = "num_frames height width num_inference_steps guidance_scale guidance_scale_2 flow_shift fps".split()
    assert tuple(getattr(found, name) for name in names) == expected


def test_defaults_are_those_of_the_paper_unless_the_folder_has_others(tmp_path):
    folder = tiny_pipelines.saved_wan(tmp_path)
    settings = load_video_model(folder, device="cpu").default_settings()
    assert (settings.num_frames, settings.height, settings.width) == (81, 480, 832)
    assert (settings.num_inference_steps, settings.guidance_scale, settings.flow_shift) == (50, 5.0, 5.0)
    assert settings.fps == 16
    assert settings.negative_prompt
    in_folder = {
        "num_frames": 17,
        "height": 32,
        "width": 48,
        "num_inference_steps": 10,
        "guidance_scale": 3.0,
        "fps": 8,
        "negative_prompt": "",
    }
    (tmp_path / "spatialalign.json").write_text(json.dumps(in_folder))
    assert load_video_model(folder, device="cpu").default_settings() == SamplingSettings(**in_folder)
    (tmp_path / "spatialalign.json").write_text(json.dumps({**in_folder, "guidance": 3.0}))
    with pytest.raises(ValueError, match="guidance_scale"):
        load_video_model(folder, device="cpu").default_settings()
