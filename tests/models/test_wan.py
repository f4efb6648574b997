import copy
import dataclasses
import gc
import json
import shutil
import weakref

import numpy as np
import pytest
import tiny_pipelines
import torch
from diffusers import WanPipeline
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from tiny_pairs import spatialalign_trainer
from tiny_pipelines import HEIGHT, NUM_FRAMES, WIDTH
from tiny_text import T5_TOKENS

from spatialalign_trl.models import SamplingSettings, WanVideoModel, load_video_model
from spatialalign_trl.models.wan import _take_turn

SETTINGS = SamplingSettings(NUM_FRAMES, HEIGHT, WIDTH, num_inference_steps=3, guidance_scale=3.0)
PROMPTS = ["In a meadow, a fox is on the left of a stump", "then the fox jumps to the right of the stump"]


@pytest.fixture
def model():
    return WanVideoModel(tiny_pipelines.wan_pipeline())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_pipelines.saved_wan(tmp_path_factory.mktemp("wan"))


def random_videos(count=2, frames=NUM_FRAMES, height=HEIGHT, width=WIDTH):
    return list(np.random.default_rng(0).integers(0, 256, (count, frames, height, width, 3), dtype=np.uint8))


def inputs(model, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, *model.latent_shape(NUM_FRAMES, HEIGHT, WIDTH))
    noisy = torch.randn(shape, generator=generator)
    sigma = torch.rand(batch, generator=generator)
    return noisy, sigma, model.encode_prompts(PROMPTS[:batch])


def randomise_lora(network, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3


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


def test_decode_is_the_pipelines_own(model):
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
    for video, own in zip(videos, frames, strict=True):
        assert np.abs(video / 255.0 - own).max() <= 0.5 / 255 + 1e-4


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
    ("size", "said"),
    [
        ((8, 16, 32), "num_frames is 8.*use 5 or 9"),
        ((0, 16, 32), "num_frames is 0.*use 1"),
        ((9, 24, 32), "height is 24.*use 16 or 32"),
        ((9, 16, 8), "width is 8.*use 16"),
        ((9, 16, 16 * 33), "positions for 32"),
    ],
)
def test_size_errors_name_the_nearest_legal_values(model, size, said):
    with pytest.raises(ValueError, match=said):
        model.check_size(*size)
    settings = SamplingSettings(max(size[0], 2), *size[1:], num_inference_steps=1, guidance_scale=1.0)
    with pytest.raises(ValueError):
        model.sample(model.encode_prompts(PROMPTS[:1]), None, [0], settings)


@pytest.mark.parametrize("size", [(1, 16, 16), (9, 16, 32), (17, 32, 48)])
def test_legal_sizes_pass(model, size):
    model.check_size(*size)


def test_encode_checks_the_size(model):
    with pytest.raises(ValueError, match="num_frames is 8"):
        model.encode_video(random_videos(frames=8))


def test_prompt_embeds_are_those_of_the_pipelines_call(model):
    """The length, the cleaning and the zeros behind the prompt all have to agree with the pipeline's own call."""
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


def test_an_embedding_does_not_depend_on_its_company(model):
    together = model.encode_prompts(PROMPTS)["prompt_embeds"]
    assert torch.equal(together[1:], model.encode_prompts(PROMPTS[1:])["prompt_embeds"])


@pytest.mark.parametrize("prompts", ["a fox", [], [None]])
def test_prompts_have_to_be_a_list_of_strings(model, prompts):
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
    # One Euler step from the noised latents along the target leads back to the clean ones.
    torch.testing.assert_close(noisy - sigma.view(-1, 1, 1, 1, 1) * target, x0)


def test_noise_is_drawn_in_fp32_from_bf16_latents(model):
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


def test_initial_noise_depends_on_the_seed_alone(model):
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


def test_guidance_acts_and_needs_its_negative_prompt(model):
    conditioning, negative = model.encode_prompts(PROMPTS[:1]), model.encode_prompts(["blurry"])
    without = SamplingSettings(NUM_FRAMES, HEIGHT, WIDTH, 3, guidance_scale=1.0)
    plain = model.sample(conditioning, None, [1], without)
    assert torch.equal(plain, model.sample(conditioning, negative, [1], without))
    assert not torch.allclose(plain, model.sample(conditioning, negative, [1], SETTINGS))
    with pytest.raises(ValueError, match="needs the negative prompt"):
        model.sample(conditioning, None, [1], SETTINGS)


def test_one_seed_a_prompt(model):
    with pytest.raises(ValueError, match="holds 2 prompts, but there are 3 seeds"):
        model.sample(model.encode_prompts(PROMPTS), None, [1, 2, 3], SETTINGS)


@pytest.mark.parametrize("kind", ["euler", "unipc"])
def test_flow_shift_is_the_schedulers_and_can_be_set_for_a_call(kind):
    model = WanVideoModel(tiny_pipelines.wan_pipeline(kind=kind, shift=3.0))
    shifted = WanVideoModel(tiny_pipelines.wan_pipeline(kind=kind, shift=7.0))
    assert (model.flow_shift, shifted.flow_shift) == (3.0, 7.0)
    conditioning = model.encode_prompts(PROMPTS)
    own = SamplingSettings(NUM_FRAMES, HEIGHT, WIDTH, 4, guidance_scale=1.0)
    other = SamplingSettings(NUM_FRAMES, HEIGHT, WIDTH, 4, guidance_scale=1.0, flow_shift=7.0)
    before = model.pipeline.scheduler
    sampled = model.sample(conditioning, None, [1, 2], other)
    assert torch.equal(sampled, shifted.sample(conditioning, None, [1, 2], own))
    assert not torch.allclose(sampled, model.sample(conditioning, None, [1, 2], own))
    assert model.pipeline.scheduler is before
    assert model.flow_shift == 3.0


def test_dropout_does_not_act_while_sampling(model):
    config = LoraConfig(r=2, target_modules=list(model.default_lora_targets), lora_dropout=0.9)
    model.transformer = get_peft_model(model.transformer, config).train()
    randomise_lora(model.transformer)
    conditioning, negative = model.encode_prompts(PROMPTS), model.encode_prompts([""])
    first = model.sample(conditioning, negative, [1, 2], SETTINGS)
    assert torch.equal(first, model.sample(conditioning, negative, [1, 2], SETTINGS))
    assert model.transformer.training


# Reference and LoRA


def add_lora(model, how, r=2, alpha=8, use_rslora=False):
    config = LoraConfig(
        r=r, lora_alpha=alpha, target_modules=list(model.default_lora_targets), use_rslora=use_rslora, task_type=None
    )
    if how == "wrapped and set":
        model.transformer = get_peft_model(model.transformer, config)
    elif how == "wrapped in place":
        get_peft_model(model.transformer, config)
    else:
        model.transformer.add_adapter(config)
    return config


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


def test_reference_keeps_gradients_and_what_was_trainable(model):
    add_lora(model, "wrapped and set")
    randomise_lora(model.transformer)
    frozen = next(p for name, p in model.transformer.named_parameters() if "lora_A" in name)
    frozen.requires_grad_(False)
    before = {name: p.requires_grad for name, p in model.transformer.named_parameters()}
    noisy, sigma, conditioning = inputs(model)
    policy = model.predict(noisy, sigma, conditioning)
    with pytest.raises(KeyError), model.reference():
        raise KeyError  # an error inside leaves the adapters on, too
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


def test_lora_metadata_names_the_model_and_nothing_of_this_machine(folder, tmp_path):
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


def test_saving_without_an_adapter_says_so(model, tmp_path):
    with pytest.raises(RuntimeError, match="0 active adapters"):
        model.save_lora(tmp_path)


def test_loading_refuses_what_is_no_lora_of_this_model(model, tmp_path):
    with pytest.raises(FileNotFoundError, match="no LoRA file or folder"):
        model.load_lora(tmp_path / "none" / "such")
    add_lora(model, "wrapped and set")
    model.transformer.save_pretrained(tmp_path / "peft")
    with pytest.raises(RuntimeError, match="already carries the adapter 'default'"):
        model.load_lora(tmp_path)
    model.unload_lora()
    with pytest.raises(FileNotFoundError, match="adapter_model.safetensors is PEFT's"):
        model.load_lora(tmp_path / "peft")
    # Keys without diffusers' prefix are only warned about by diffusers: the base would be taken for the LoRA.
    model.transformer.add_adapter(LoraConfig(r=2, target_modules=["attn2.to_k"]))
    model.transformer.save_lora_adapter(str(tmp_path / "bare"))
    model.unload_lora()
    with pytest.raises(ValueError, match="fits the transformer"):
        model.load_lora(tmp_path / "bare")


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


def test_the_transformer_can_only_be_one_of_its_kind(model):
    with pytest.raises(TypeError, match="must be a WanTransformer3DModel"):
        model.transformer = torch.nn.Linear(2, 2)


def test_dtype_is_the_bases_under_an_fp32_lora(folder):
    model = load_video_model(folder, torch_dtype=torch.bfloat16, device="cpu")
    add_lora(model, "wrapped and set")
    assert {p.dtype for name, p in model.transformer.named_parameters() if "lora_" in name} == {torch.float32}
    assert model.dtype == torch.bfloat16


def test_dtype_follows_a_cast(folder):
    model = load_video_model(folder, torch_dtype=torch.bfloat16, device="cpu")
    assert model.dtype == model.base_transformer.dtype == torch.bfloat16
    model.base_transformer.to(torch.float32)  # what was found before must not be remembered
    assert model.dtype == model.base_transformer.dtype == torch.float32
    model.transformer = copy.deepcopy(model.base_transformer).to(torch.float16)
    assert model.dtype == torch.float16


# Releasing and loading


def test_release_frees_the_encoders_and_sampling_goes_on(folder):
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


def without_weights(folder, *parts):
    """The pipeline folder, with the weights of some parts (all by default) taken out."""
    for weights in folder.glob("**/*.safetensors"):
        if not parts or weights.parent.name in parts:
            weights.unlink()
    return str(folder)


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ({"boundary_ratio": None}, "has boundary_ratio None.*one transformer.*or with two"),
        ({"transformer_2": [None, None]}, "has boundary_ratio 0.875 and no transformer_2"),
    ],
)
def test_half_a_pair_of_experts_is_refused_before_weights_are_read(index, said, tmp_path):
    tiny_pipelines.two_expert_pipeline().save_pretrained(tmp_path)
    file = tmp_path / "model_index.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **index}))
    with pytest.raises(ValueError, match=said):
        load_video_model(without_weights(tmp_path))


# Wan 2.2 A14B: two experts

EXPERT_SETTINGS = SamplingSettings(NUM_FRAMES, HEIGHT, WIDTH, 4, 3.0, guidance_scale_2=2.0)


@pytest.fixture(scope="module")
def two_experts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experts")
    tiny_pipelines.two_expert_pipeline().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(("expert", "trained"), [("high_noise", "transformer"), ("low_noise", "transformer_2")])
def test_the_other_expert_is_read_when_something_is_sampled_and_not_before(expert, trained, two_experts, tmp_path):
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
    """On a machine without a GPU, `to` is watched; the trained expert is where it was when sampling is over."""
    model = load_video_model(two_experts, device="cpu", expert="low_noise")
    conditioning, negative = model.encode_prompts(PROMPTS[:1]), model.encode_prompts([""])
    model.sample(conditioning, negative, [1], EXPERT_SETTINGS)
    where = {"transformer": "cpu", "transformer_2": "gpu"}
    most = []

    def move(component):
        def to(device):
            where[component] = "cpu" if device == "cpu" else "gpu"
            most.append(sum(place == "gpu" for place in where.values()))

        return to

    pipeline = model.pipeline
    watched = {name: Placed(where, name, move(name)) for name in where}
    for name, other in (("transformer", "transformer_2"), ("transformer_2", "transformer")):
        _take_turn(watched[name], (), partner=watched[other], device="gpu")
        assert where == {name: "gpu", other: "cpu"}
        _take_turn(watched[name], (), partner=watched[other], device="gpu")  # stays
    assert max(most) == 1 and len(most) == 4
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
    assert other is None  # training needs one expert and reads one
    with pytest.raises(ValueError, match="none of yours is among them"):
        bounds = {"max_sigma": 0.5} if expert == "high_noise" else {"min_sigma": 0.9}
        spatialalign_trainer(tmp_path, model=model, **bounds)


def test_a_lora_of_the_low_noise_expert_loads_where_the_other_one_is_not_in_memory(two_experts, tmp_path):
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


def test_experts_that_are_not_there(two_experts, folder):
    with pytest.raises(ValueError, match="no expert 'low'.*low_noise"):
        load_video_model(two_experts, device="cpu", expert="low")
    with pytest.raises(ValueError, match="expert is 'low_noise', but .* has one transformer"):
        load_video_model(folder, device="cpu", expert="low_noise")
    with pytest.raises(ValueError, match="no option 'experts'. Did you mean 'expert'"):
        load_video_model(two_experts, device="cpu", experts="low_noise")


def test_guidance_of_the_second_expert_acts_and_needs_one(model, two_experts):
    experts = load_video_model(two_experts, device="cpu")
    conditioning, negative = experts.encode_prompts(PROMPTS[:1]), experts.encode_prompts([""])
    both = [
        experts.sample(conditioning, negative, [1], dataclasses.replace(EXPERT_SETTINGS, guidance_scale_2=scale))
        for scale in (None, 3.0, 2.0)
    ]
    assert torch.equal(both[0], both[1])
    assert not torch.allclose(both[0], both[2])
    with pytest.raises(ValueError, match="guidance_scale_2 is 2.0, but this model has one guidance scale"):
        model.sample(conditioning, negative, [1], EXPERT_SETTINGS)
    with pytest.raises(ValueError, match="switches guidance off"):
        SamplingSettings(NUM_FRAMES, HEIGHT, WIDTH, 4, 1.0, guidance_scale_2=2.0)
    assert "guidance_scale_2" not in SETTINGS.to_dict()  # samples of one-expert models keep their identity
    assert SamplingSettings.from_dict(EXPERT_SETTINGS.to_dict()) == EXPERT_SETTINGS


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (tiny_pipelines.two_expert_pipeline, (81, 720, 1280, 40, 4.0, 3.0, 12.0, 16)),
        (tiny_pipelines.token_timestep_pipeline, (121, 704, 1280, 50, 5.0, None, 5.0, 24)),
    ],
)
def test_wan_22_defaults_are_its_authors(build, expected):
    found = WanVideoModel(build()).default_settings()
    names = "num_frames height width num_inference_steps guidance_scale guidance_scale_2 flow_shift fps".split()
    assert tuple(getattr(found, name) for name in names) == expected


def test_defaults_are_the_papers_unless_the_folder_has_its_own(tmp_path):
    folder = tiny_pipelines.saved_wan(tmp_path)
    settings = load_video_model(folder, device="cpu").default_settings()
    assert (settings.num_frames, settings.height, settings.width) == (81, 480, 832)
    assert (settings.num_inference_steps, settings.guidance_scale, settings.flow_shift) == (50, 5.0, 5.0)
    assert settings.fps == 16
    assert settings.negative_prompt
    own = {
        "num_frames": 17,
        "height": 32,
        "width": 48,
        "num_inference_steps": 10,
        "guidance_scale": 3.0,
        "fps": 8,
        "negative_prompt": "",
    }
    (tmp_path / "spatialalign.json").write_text(json.dumps(own))
    assert load_video_model(folder, device="cpu").default_settings() == SamplingSettings(**own)
    (tmp_path / "spatialalign.json").write_text(json.dumps({**own, "guidance": 3.0}))
    with pytest.raises(ValueError, match="guidance_scale"):
        load_video_model(folder, device="cpu").default_settings()
