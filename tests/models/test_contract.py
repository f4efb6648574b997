"""Test what every family of video models must do, on a tiny random pipeline of its real classes.

A new family joins with a [`TinyFamily`] in `FAMILIES`. Its own test file tests what only this family has.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import datasets
import numpy as np
import pytest
import tiny_cogvideox_hunyuan
import tiny_ltx
import tiny_pipelines
import tiny_text
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save
from tiny_family import TinyFamily
from tiny_pairs import spatialalign_config

from spatialalign_trl.models import SamplingSettings, VideoModel, load_video_model
from spatialalign_trl.rollout import SampleStore, roll_out
from spatialalign_trl.rollout.sampler import noise_seed
from spatialalign_trl.trainer import SpatialAlignTrainer

FAMILIES: list[TinyFamily] = [*tiny_pipelines.FAMILIES, *tiny_ltx.FAMILIES, *tiny_cogvideox_hunyuan.FAMILIES]

PROMPT = "a fox is on the left of a stump"
LN_2 = -float(torch.nn.functional.logsigmoid(torch.zeros(())))


@dataclass
class Loaded:
    family: TinyFamily
    folder: str

    def model(self) -> VideoModel:
        return load_video_model(self.folder, device="cpu", **self.family.options)

    def settings(self, **changes) -> SamplingSettings:
        common = {"num_inference_steps": 3, "guidance_scale": 3.0, "fps": self.model().default_settings().fps}
        return SamplingSettings(*self.family.size, **{**common, **self.family.settings, **changes})


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.name)
def loaded(request, tmp_path_factory) -> Loaded:
    folder = tmp_path_factory.mktemp(request.param.name)
    request.param.build().save_pretrained(folder)
    return Loaded(request.param, str(folder))


def sample(model: VideoModel, settings: SamplingSettings, seed: int = 1) -> np.ndarray:
    negative = model.encode_prompts([settings.negative_prompt])
    return model.decode_latents(model.sample(model.encode_prompts([PROMPT]), negative, [seed], settings))[0]


def plain_call(pipe: DiffusionPipeline, loaded: Loaded, settings: SamplingSettings, seed: int = 1) -> np.ndarray:
    """Call the pipeline as a user without this library would, from the noise that the seed gives here."""
    model = loaded.model()
    pipe.set_progress_bar_config(disable=True)
    arguments = {
        "prompt": PROMPT,
        "negative_prompt": settings.negative_prompt,
        "latents": loaded.family.pack(model, model.initial_noise([seed], settings)),
        "num_frames": settings.num_frames,
        "height": settings.height,
        "width": settings.width,
        "num_inference_steps": settings.num_inference_steps,
        "guidance_scale": settings.guidance_scale,
        "max_sequence_length": tiny_text.T5_TOKENS,
        **loaded.family.settings,
        **{name: value() if callable(value) else value for name, value in loaded.family.call.items()},
    }
    frames = pipe(**{name: value for name, value in arguments.items() if value is not None}).frames[0]
    return (frames * 255).round().astype(np.uint8)


def test_rollout_training_and_a_lora_that_loads_without_this_library(loaded, tmp_path: Path):
    """Rollout -> pairs -> two steps -> LoRA -> the same video bit for bit, through our adapter and without it."""
    settings = loaded.settings()
    model = loaded.model()
    base = sample(model, settings)
    store = SampleStore(tmp_path / "samples")
    rollout = roll_out(model, [{"prompt_id": "p", "prompt": PROMPT}], [0, 1], settings, store, batch_size=2)
    chosen, rejected = (save({"latents": store.latents(rolled_out.sample_id).contiguous()}) for rolled_out in rollout)
    alone = model.sample(model.encode_prompts([PROMPT]), model.encode_prompts([""]), [noise_seed(0, "p")], settings)
    torch.testing.assert_close(store.latents(rollout[0].sample_id), alone[0], rtol=1e-3, atol=1e-3)

    features = {"prompt": datasets.Value("string")}
    features |= {f"{side}_latents": datasets.Value("binary") for side in ("chosen", "rejected")}
    pairs = datasets.Dataset.from_dict(
        {"prompt": [PROMPT], "chosen_latents": [chosen], "rejected_latents": [rejected]},
        features=datasets.Features(features),
    )
    config = spatialalign_config(tmp_path / "run", max_steps=2, per_device_train_batch_size=1)
    trainer = SpatialAlignTrainer(model, args=config, train_dataset=pairs)
    trainer.train()
    first = trainer.state.log_history[0]
    assert first["rewards/margins"] == 0 == first["loss/zeroth_order"]
    assert first["loss"] == LN_2 == pytest.approx(math.log(2), abs=1e-7)
    trainer.save_model()

    model.reload_encoders()
    aligned = sample(model, settings)
    assert not np.array_equal(aligned, base)
    with model.reference():
        np.testing.assert_array_equal(sample(model, settings), base)

    again = loaded.model()
    again.load_lora(tmp_path / "run")
    np.testing.assert_array_equal(sample(again, settings), aligned)

    pipe = DiffusionPipeline.from_pretrained(loaded.folder)
    np.testing.assert_array_equal(plain_call(pipe, loaded, settings), base)
    loaded.family.load_lora(pipe, tmp_path / "run", **model.lora_load_options)
    np.testing.assert_array_equal(plain_call(pipe, loaded, settings), aligned)


def test_illegal_sizes_are_refused_with_the_nearest_legal_ones(loaded):
    model = loaded.model()
    model.check_size(*loaded.family.size)
    assert loaded.family.illegal_sizes
    for size, message in loaded.family.illegal_sizes.items():
        with pytest.raises(ValueError, match=message):
            model.check_size(*size)
        with pytest.raises(ValueError, match=message):
            model.sample(model.encode_prompts([PROMPT]), None, [0], SamplingSettings(*size, 1, 1.0))


def test_a_video_is_encoded_and_decoded_to_its_size(loaded):
    model = loaded.model()
    size = loaded.family.size
    video = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    latents = model.encode_video([video])
    assert latents.shape == (1, *model.latent_shape(*size))
    assert latents.dtype == torch.float32
    assert torch.equal(latents, model.encode_video([video]))
    assert model.decode_latents(latents)[0].shape == video.shape
    # The default size must be legal too.
    settings = model.default_settings()
    model.latent_shape(settings.num_frames, settings.height, settings.width)


def test_sampling_with_a_perfect_prediction_gives_the_clean_latents(loaded):
    """Noise and target match the pipeline's scheduler: a perfect prediction leads to the clean latents."""
    model = loaded.model()
    settings = loaded.settings(num_inference_steps=4, guidance_scale=1.0, guidance_scale_2=None)
    noise = model.initial_noise([3], settings)
    x0 = torch.randn(noise.shape, generator=torch.Generator().manual_seed(0))
    seen = []

    def perfect(*args, hidden_states, timestep, **kwargs):
        sigma = loaded.family.sigma_of(model, timestep.flatten()[:1].float())
        seen.append((sigma, loaded.family.latents_of(hidden_states).clone()))
        return (loaded.family.pack(model, model.target(x0, noise, sigma)),)

    network = type(model.base_transformer)
    with patch.object(network, "forward", lambda self, *args, **kwargs: perfect(*args, **kwargs)):
        latents = model.sample(model.encode_prompts([PROMPT]), None, [3], settings)
    assert len(seen) == 4
    torch.testing.assert_close(latents, x0, rtol=1e-4, atol=1e-4)
    for sigma, noisy in seen:  # the tolerance is for samplers that round the timestep down
        expected = loaded.family.pack(model, model.add_noise(x0, noise, sigma))
        torch.testing.assert_close(noisy, expected, rtol=0, atol=5e-3)


def test_training_calls_the_transformer_as_sampling_does(loaded):
    model = loaded.model()
    settings = loaded.settings(num_inference_steps=2, guidance_scale=1.0, guidance_scale_2=None)
    conditioning = model.encode_prompts([PROMPT])
    calls = []

    def record(module, args, kwargs, output):
        calls.append((kwargs, output[0]))

    hook = model.transformer.register_forward_hook(record, with_kwargs=True)
    model.sample(conditioning, None, [5], settings)
    sampled, calls = calls, []
    low, high = model.sigma_range
    assert sampled
    with torch.no_grad():
        for kwargs, output in sampled:
            sigma = loaded.family.sigma_of(model, kwargs["timestep"].flatten()[:1].float())
            assert low <= sigma <= high
            model.predict(model.initial_noise([5], settings), sigma, conditioning)
            training_arguments, _ = calls[-1]
            assert training_arguments["timestep"].shape == kwargs["timestep"].shape
            repeated = model.transformer(**{**training_arguments, "hidden_states": kwargs["hidden_states"]})[0]
            torch.testing.assert_close(repeated, output, rtol=1e-4, atol=1e-5)
    hook.remove()


def test_all_default_lora_targets_exist(loaded):
    """A LoRA must not be smaller than its recipe says."""
    model = loaded.model()
    names = [name for name, _ in model.transformer.named_modules()]
    for target in model.default_lora_targets:
        assert any(name == target or name.endswith(f".{target}") for name in names), target
