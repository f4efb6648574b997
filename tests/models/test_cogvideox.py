"""Test what only CogVideoX has: its schedule, v, positions and padded latents. test_contract.py tests the rest."""

import numpy as np
import pytest
import torch
from tiny_cogvideox_hunyuan import HEIGHT, NUM_FRAMES, WIDTH, cogvideox_pipeline

from spatialalign_trl.models import CogVideoXVideoModel, SamplingSettings
from spatialalign_trl.trainer.flow_matching import sample_sigmas
from spatialalign_trl.trainer.losses import Pair, per_sample_mse, zeroth_order_dpo_loss

SETTINGS = SamplingSettings(NUM_FRAMES, HEIGHT, WIDTH, num_inference_steps=3, guidance_scale=3.0)
GRID = torch.arange(1, 1001, dtype=torch.float32) / 1000
KINDS = {"2b": {}, "5b": {"rotary": True}, "1.5": {"rotary": True, "patch_size_t": 2}}


@pytest.fixture(scope="module", params=KINDS.values(), ids=KINDS.keys())
def model(request) -> CogVideoXVideoModel:
    return CogVideoXVideoModel(cogvideox_pipeline(**request.param))


@pytest.fixture(scope="module")
def model_2b() -> CogVideoXVideoModel:
    return CogVideoXVideoModel(cogvideox_pipeline())


def pair(count: int = 1000) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, count, 2, 1, 2, 2, generator=generator)
    return x0, noise


def coefficients(model: CogVideoXVideoModel) -> tuple[torch.Tensor, torch.Tensor]:
    alphas = model.pipeline.scheduler.alphas_cumprod.view(-1, 1, 1, 1, 1)
    return alphas.sqrt(), (1 - alphas).sqrt()


# The schedule


def test_a_sigma_of_the_trainers_grid_is_one_timestep(model_2b):
    assert torch.equal(model_2b.timesteps(GRID), torch.arange(1000))
    between = torch.tensor([0.0, 1e-4, 0.00101, 0.49951, 0.9999, 1.0])
    assert model_2b.timesteps(between).tolist() == [0, 0, 1, 499, 999, 999]


def test_without_a_shift_timesteps_are_drawn_as_the_model_was_trained(model_2b):
    assert model_2b.flow_shift == 1.0 and model_2b.default_settings().flow_shift is None
    drawn = sample_sigmas(20_000, shift=model_2b.flow_shift, generator=torch.Generator().manual_seed(0))
    counts = torch.bincount(model_2b.timesteps(drawn), minlength=1000).view(10, 100).sum(1)
    assert len(counts) == 10 and (counts - 2000).abs().max() < 200


def test_noise_and_v_are_the_schedulers_bit_for_bit(model):
    x0, noise = pair()
    scheduler, timesteps = model.pipeline.scheduler, torch.arange(1000)
    assert torch.equal(model.add_noise(x0, noise, GRID), scheduler.add_noise(x0, noise, timesteps))
    assert torch.equal(model.target(x0, noise, GRID), scheduler.get_velocity(x0, noise, timesteps))


def test_noise_and_v_are_the_plain_formulas(model):
    x0, noise = pair()
    signal, spread = coefficients(model)
    noisy, target = model.add_noise(x0, noise, GRID), model.target(x0, noise, GRID)
    torch.testing.assert_close(noisy, (signal * x0 + spread * noise).float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(target, (signal * noise - spread * x0).float(), rtol=1e-4, atol=1e-5)
    # Together they determine the clean latents and the noise. At the last timestep only noise is left.
    torch.testing.assert_close((signal * noisy - spread * target).float(), x0, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close((spread * noisy + signal * target).float(), noise, rtol=1e-4, atol=1e-4)
    assert torch.equal(noisy[-1], noise[-1]) and torch.equal(target[-1], -x0[-1])


def test_noise_and_v_are_fp32_whatever_the_latents_are(model_2b):
    x0, noise = (tensor.bfloat16() for tensor in pair(2))
    sigma = torch.tensor([0.3, 1.0])
    assert model_2b.add_noise(x0, noise, sigma).dtype == model_2b.target(x0, noise, sigma).dtype == torch.float32


def test_snr_shifts_differ_between_2b_and_5b(model_2b):
    other = CogVideoXVideoModel(cogvideox_pipeline(rotary=True))
    x0, noise = pair(2)
    sigma = torch.tensor([0.5, 0.5])
    assert not torch.allclose(model_2b.add_noise(x0, noise, sigma), other.add_noise(x0, noise, sigma), atol=0.05)


def test_the_error_of_v_is_the_sum_of_the_errors_of_noise_and_clean_latents(model_2b):
    """Check the meaning of the loss that the module's docstring derives."""
    x0, noise = pair()
    signal, spread = coefficients(model_2b)
    noisy, target = model_2b.add_noise(x0, noise, GRID).double(), model_2b.target(x0, noise, GRID).double()
    predicted = target + 0.1 * torch.randn(target.shape, generator=torch.Generator().manual_seed(1)).double()
    error = per_sample_mse(predicted, target)
    clean_error = per_sample_mse(signal * noisy - spread * predicted, signal * noisy - spread * target)
    noise_error = per_sample_mse(spread * noisy + signal * predicted, spread * noisy + signal * target)
    torch.testing.assert_close(clean_error + noise_error, error)
    torch.testing.assert_close(clean_error, spread.flatten() ** 2 * error)
    # The same error of the clean latents, in units of a flow model's velocity at the same SNR.
    sigma = (spread / (signal + spread)).flatten()
    ratio = clean_error / sigma**2 / error
    torch.testing.assert_close(ratio, (signal + spread).flatten() ** 2)
    assert 1 <= ratio.min() and ratio.max() <= 2 + 1e-6


def test_the_preference_loss_works_on_v(model):
    shape = model.latent_shape(NUM_FRAMES, HEIGHT, WIDTH)
    chosen, rejected, noise = torch.randn(3, 2, *shape, generator=torch.Generator().manual_seed(0))
    sigma, conditioning = torch.tensor([0.25, 1.0]), model.encode_prompts(["a fox", "the meadow"])
    target = Pair(model.target(chosen, noise, sigma), model.target(rejected, noise, sigma))
    noisy = Pair(model.add_noise(chosen, noise, sigma), model.add_noise(rejected, noise, sigma))
    with torch.no_grad():
        reference = Pair(*(model.predict(latents, sigma, conditioning) for latents in noisy))
    loss, metrics = zeroth_order_dpo_loss(reference, reference, target)
    assert loss == -torch.nn.functional.logsigmoid(torch.zeros(())) and metrics["margin"] == 0
    better = reference._replace(chosen=torch.lerp(reference.chosen, target.chosen, 0.5))
    loss_better, metrics = zeroth_order_dpo_loss(better, reference, target, zeroth_order_weight=0)
    assert loss_better < loss and metrics["margin"] > 0


@pytest.mark.parametrize("predicts", ["epsilon", "sample"])
def test_another_prediction_type_is_refused(predicts):
    pipeline = cogvideox_pipeline()
    pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, prediction_type=predicts)
    with pytest.raises(ValueError, match=f"prediction_type='{predicts}'.*predicts v"):
        CogVideoXVideoModel(pipeline)


def test_a_flow_shift_is_refused(model_2b):
    settings = SamplingSettings(NUM_FRAMES, HEIGHT, WIDTH, 1, guidance_scale=1.0, flow_shift=5.0)
    with pytest.raises(ValueError, match="flow_shift=5.0: CogVideoX is not a flow model"):
        model_2b.sample(model_2b.encode_prompts(["a fox"]), None, [0], settings)


# Sampling


def test_a_sample_does_not_depend_on_its_batch_even_where_the_sampler_draws_noise():
    """CogVideoXDPMScheduler adds noise at every step. It must come from the sample's seed as well."""
    model = CogVideoXVideoModel(cogvideox_pipeline(rotary=True, dpm=True))
    conditioning, negative = model.encode_prompts(["a fox", "the meadow"]), model.encode_prompts([""])
    together = model.sample(conditioning, negative, [5, 6], SETTINGS)
    assert torch.equal(together, model.sample(conditioning, negative, [5, 6], SETTINGS))
    alone = model.sample({"prompt_embeds": conditioning["prompt_embeds"][1:]}, negative, [6], SETTINGS)
    torch.testing.assert_close(together[1:], alone, rtol=1e-4, atol=1e-4)
    ddim = CogVideoXVideoModel(cogvideox_pipeline(rotary=True))
    assert not torch.allclose(together, ddim.sample(conditioning, negative, [5, 6], SETTINGS))


def test_a_bf16_model_samples_and_predicts():
    model = CogVideoXVideoModel(cogvideox_pipeline(rotary=True).to(dtype=torch.bfloat16))
    conditioning, negative = model.encode_prompts(["a fox"]), model.encode_prompts([""])
    latents = model.sample(conditioning, negative, [1], SETTINGS)
    assert latents.dtype == torch.float32 and latents.isfinite().all()
    assert model.predict(latents, torch.tensor([0.5]), conditioning).dtype == torch.bfloat16


# Sizes and latents


def test_every_legal_number_of_frames_survives_decoding(model):
    """The VAE's stride of 4 would allow more lengths, but an even number of latent frames decodes to another."""
    for frames in (1, 9, 17):
        model.check_size(frames, 16, 16)
        latents = torch.zeros(1, *model.latent_shape(frames, 16, 16))
        assert len(model.decode_latents(latents)[0]) == frames
    latents = torch.zeros(1, 4, 4, 2, 2)
    assert model.pipeline.vae.decode(latents).sample.shape[2] == 16  # and not 13


def test_the_default_size_is_the_checkpoints_own(model):
    settings = model.default_settings()
    is_version_15 = model.pipeline.transformer.config.patch_size_t is not None
    expected = (81, 768, 1360, 16) if is_version_15 else (49, 480, 720, 8)
    assert (settings.num_frames, settings.height, settings.width, settings.fps) == expected
    model.check_size(*expected[:3])
    assert model.latent_shape(*expected[:3]) == ((4, 22, 96, 170) if is_version_15 else (4, 13, 60, 90))


def test_latents_are_scaled_and_padded_as_the_pipeline_reads_them(model):
    video = np.random.default_rng(0).integers(0, 256, (NUM_FRAMES, HEIGHT, WIDTH, 3), dtype=np.uint8)
    latents = model.encode_video([video])
    vae = model.pipeline.vae
    pixels = torch.from_numpy(video).permute(3, 0, 1, 2)[None] / 127.5 - 1
    with torch.no_grad():
        plain = vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor
    padding = latents.shape[2] - plain.shape[2]
    assert padding == (1 if model.pipeline.transformer.config.patch_size_t else 0)
    torch.testing.assert_close(latents[:, :, padding:], plain)
    assert torch.equal(latents[:, :, :padding], latents[:, :, padding : 2 * padding])
