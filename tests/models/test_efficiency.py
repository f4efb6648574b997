"""Test attention backends, compiled blocks, a VAE that works in parts, and encoders that wait on the CPU.

What works on this machine computes the same, and what cannot work is refused before anything is loaded."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from tiny_pipelines import HEIGHT, NUM_FRAMES, WIDTH, saved_wan, wan_pipeline

from spatialalign_trl.arguments.model import ModelArguments
from spatialalign_trl.models import SamplingSettings, efficiency
from spatialalign_trl.models.wan import WanVideoModel
from spatialalign_trl.rollout import SampleStore, roll_out

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def tiny_model() -> WanVideoModel:
    return WanVideoModel(wan_pipeline(), "tiny-random-wan")


def prediction(model: WanVideoModel) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn((1, *model.latent_shape(NUM_FRAMES, HEIGHT, WIDTH)), generator=generator)
    embeds = {"prompt_embeds": torch.randn((1, 16, 16), generator=generator)}
    return model.predict(noisy, torch.tensor([0.5]), embeds)


@pytest.mark.parametrize("name", ["native", "_native_math"])
def test_a_backend_that_works_here_computes_the_same_and_stays_with_its_model(name):
    before, _ = _AttentionBackendRegistry.get_active_backend()
    model = tiny_model()
    expected = prediction(model).detach()
    efficiency.set_attention_backend(model, name)
    torch.testing.assert_close(prediction(model), expected, rtol=0, atol=1e-5)
    assert {block.attn1.processor._attention_backend for block in model.pipeline.transformer.blocks} == {name}
    assert _AttentionBackendRegistry.get_active_backend()[0] == before  # the default of later models is not changed
    assert tiny_model().pipeline.transformer.blocks[0].attn1.processor._attention_backend is None
    assert model.computation == ({} if name == "native" else {"attention_backend": name})
    efficiency.set_attention_backend(model, "native")
    assert model.computation == {}


@pytest.mark.parametrize(
    ("name", "device", "error", "message"),
    [
        ("flsh", CPU, ValueError, "Did you mean 'flash'"),
        ("xformers", CPU, ValueError, "computes on CUDA GPUs, but the model is on cpu. Use native"),
        ("flash", CPU, ValueError, "CUDA"),
        ("sage", CPU, ValueError, "CUDA"),
        ("xformers", GPU, ImportError, r"pip install 'spatialalign-trl\[xformers\]'"),
        ("flash", GPU, ImportError, "pip install flash-attn"),
        ("flash_hub", GPU, ImportError, "pip install kernels"),
    ],
)
def test_a_backend_that_cannot_work_is_refused(monkeypatch, name, device, error, message):
    monkeypatch.setattr(efficiency.importlib.util, "find_spec", lambda package: None)
    with pytest.raises(error, match=message):
        efficiency.check_attention_backend(name, device)


def test_a_backend_without_gradients_is_refused_for_training(monkeypatch):
    monkeypatch.setattr(efficiency.importlib.util, "find_spec", lambda package: object())
    with pytest.raises(ValueError, match="computes no gradients"):
        efficiency.check_attention_backend("sage", GPU)
    efficiency.check_attention_backend("sage", GPU, needs_gradients=False)


def test_a_backend_that_fails_in_the_trial_leaves_the_model_as_it_was(monkeypatch):
    monkeypatch.setitem(efficiency.ATTENTION_BACKENDS, "_native_cudnn", (None, False))
    model = tiny_model()
    message = "'_native_cudnn': was found, but fails on cpu in torch.float32.*Use native"
    with pytest.raises(RuntimeError, match=message):
        efficiency.set_attention_backend(model, "_native_cudnn")
    assert model.pipeline.transformer.blocks[0].attn1.processor._attention_backend is None


def test_compiled_blocks_compute_the_same():
    model = tiny_model()
    expected = prediction(model).detach()
    efficiency.compile_blocks(model, "eager")
    assert all(block._compiled_call_impl is not None for block in model.pipeline.transformer.blocks)
    torch.testing.assert_close(prediction(model), expected, rtol=0, atol=1e-5)
    assert model.computation == {"compile_blocks": "eager"}
    torch._dynamo.reset()


def test_bad_names_are_refused_before_anything_is_loaded(monkeypatch):
    monkeypatch.setattr("spatialalign_trl.models.load_video_model", lambda *a, **k: pytest.fail("loaded"))
    for options, message in (
        ({"compile_blocks": "inducto"}, "Did you mean 'inductor'"),
        ({"attention_backend": "natve"}, "Did you mean 'native'"),
        ({"quantization": "bitsandbytes_4bits"}, "Did you mean 'bitsandbytes_4bit'"),
        ({"quantization": "bitsandbytes_4bit"}, "needs a CUDA GPU"),
    ):
        with pytest.raises(ValueError, match=message):
            ModelArguments(**options).load()


def test_a_vae_in_parts_decodes_the_same_also_after_it_is_loaded_again(tmp_path):
    arguments = ModelArguments(model_name_or_path=saved_wan(tmp_path), vae_tiling=True, vae_slicing=True)
    model = arguments.load()
    assert model.computation == {"vae_tiling": True}
    latents = torch.randn(
        (2, *model.latent_shape(NUM_FRAMES, HEIGHT, WIDTH)), generator=torch.Generator().manual_seed(0)
    )
    plain = ModelArguments(model_name_or_path=str(tmp_path)).load().decode_latents(latents)
    for _ in range(2):
        assert model.pipeline.vae.use_tiling and model.pipeline.vae.use_slicing
        assert all((a == b).all() for a, b in zip(model.decode_latents(latents), plain, strict=True))  # one tile
        model.release_encoders()
        model.reload_encoders()


@pytest.mark.parametrize("offload", [False, True])
def test_text_encoders_wait_while_videos_are_sampled_and_decoded(tmp_path, monkeypatch, offload):
    model, seen = tiny_model(), []
    model.offload_encoders = offload
    encoder = model.pipeline.text_encoder
    for stage in ("sample", "decode_latents"):
        call = getattr(model, stage)
        monkeypatch.setattr(
            model,
            stage,
            lambda *a, f=call, n=stage: seen.append((n, model.pipeline.text_encoder, model.pipeline.vae)) or f(*a),
        )
    settings = SamplingSettings(NUM_FRAMES, HEIGHT, WIDTH, num_inference_steps=1, guidance_scale=1.0)
    roll_out(model, [{"prompt_id": "a", "prompt": "the meadow"}], [0], settings, SampleStore(tmp_path))
    expected = None if offload else encoder
    assert seen == [("sample", expected, model.pipeline.vae), ("decode_latents", expected, model.pipeline.vae)]
    assert model.pipeline.text_encoder is encoder and model.has_encoders
    if offload:
        model.rest_text_encoders()
        with pytest.raises(RuntimeError, match=r"cannot embed prompts.*reload_encoders\(\)"):
            model.encode_prompts(["the meadow"])


def test_waiting_encoders_are_the_same_objects_and_need_no_disk(tmp_path):
    model = tiny_model()
    model.offload_encoders = True
    encoders = model.pipeline.vae, model.pipeline.text_encoder
    model.release_encoders()
    assert not model.has_encoders and model.pipeline.vae is None
    model.reload_encoders()  # built in memory: without offloading they could not be loaded again
    assert model.has_encoders and (model.pipeline.vae, model.pipeline.text_encoder) == encoders
    model.offload_encoders = False
    model.release_encoders()
    model._source = ""
    with pytest.raises(RuntimeError, match="built in memory"):
        model.reload_encoders()
