"""Attention backends, compiled blocks, a quantised base, a VAE in parts, waiting encoders: what works here computes
the same, and what cannot is refused before anything is loaded."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from diffusers import PipelineQuantizationConfig, WanPipeline
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from tiny_pipelines import HEIGHT, NUM_FRAMES, WIDTH, saved_wan, two_expert_pipeline, wan_pipeline

from spatialalign_trl.arguments.model import ModelArguments
from spatialalign_trl.models import SamplingSettings, efficiency, load_video_model
from spatialalign_trl.models.wan import WanVideoModel
from spatialalign_trl.rollout import SampleStore, roll_out

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def model() -> WanVideoModel:
    return WanVideoModel(wan_pipeline(), "tiny-random-wan")


def prediction(model: WanVideoModel) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn((1, *model.latent_shape(NUM_FRAMES, HEIGHT, WIDTH)), generator=generator)
    embeds = {"prompt_embeds": torch.randn((1, 16, 16), generator=generator)}
    return model.predict(noisy, torch.tensor([0.5]), embeds)


@pytest.mark.parametrize("name", ["native", "_native_math"])
def test_a_backend_that_works_here_computes_the_same_and_stays_with_its_model(name):
    before, _ = _AttentionBackendRegistry.get_active_backend()
    one = model()
    expected = prediction(one).detach()
    efficiency.set_attention_backend(one, name)
    torch.testing.assert_close(prediction(one), expected, rtol=0, atol=1e-5)
    assert {block.attn1.processor._attention_backend for block in one.pipeline.transformer.blocks} == {name}
    assert _AttentionBackendRegistry.get_active_backend()[0] == before  # models made later are not touched
    assert model().pipeline.transformer.blocks[0].attn1.processor._attention_backend is None
    assert one.computation == ({} if name == "native" else {"attention_backend": name})
    efficiency.set_attention_backend(one, "native")
    assert one.computation == {}


@pytest.mark.parametrize(
    ("name", "device", "error", "message"),
    [
        ("flsh", CPU, ValueError, "Did you mean 'flash'"),
        ("xformers", CPU, ValueError, "computes on CUDA GPUs, and the model is on cpu: use native"),
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
    one = model()
    with pytest.raises(RuntimeError, match="'_native_cudnn' was found, but fails on cpu in torch.float32.*Use native"):
        efficiency.set_attention_backend(one, "_native_cudnn")
    assert one.pipeline.transformer.blocks[0].attn1.processor._attention_backend is None


def test_compiled_blocks_compute_the_same():
    one = model()
    expected = prediction(one).detach()
    efficiency.compile_blocks(one, "eager")
    assert all(block._compiled_call_impl is not None for block in one.pipeline.transformer.blocks)
    torch.testing.assert_close(prediction(one), expected, rtol=0, atol=1e-5)
    assert one.computation == {"compile_blocks": "eager"}
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


def test_bitsandbytes_that_is_missing_is_named_before_any_work(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setattr(efficiency.importlib.util, "find_spec", lambda package: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ImportError, match=r"quantization='bitsandbytes_8bit' needs bitsandbytes.*\[bitsandbytes\]"):
        efficiency.quantization_config("bitsandbytes_8bit")
    for optim in ("adamw_8bit", "adamw_bnb_8bit", "paged_adamw_32bit"):
        with pytest.raises(ImportError, match=f"optim='{optim}' needs bitsandbytes"):
            efficiency.check_optimizer(optim)
    for optim in ("adamw_torch", "adamw_torch_fused", "sgd"):
        efficiency.check_optimizer(optim)


def test_a_vae_in_parts_decodes_the_same_and_stays_so_when_it_is_loaded_again(tmp_path):
    arguments = ModelArguments(model_name_or_path=saved_wan(tmp_path), vae_tiling=True, vae_slicing=True)
    one = arguments.load()
    assert one.computation == {"vae_tiling": True}
    latents = torch.randn(
        (2, *one.latent_shape(NUM_FRAMES, HEIGHT, WIDTH)), generator=torch.Generator().manual_seed(0)
    )
    plain = ModelArguments(model_name_or_path=str(tmp_path)).load().decode_latents(latents)
    for _ in range(2):
        assert one.pipeline.vae.use_tiling and one.pipeline.vae.use_slicing
        assert all((a == b).all() for a, b in zip(one.decode_latents(latents), plain, strict=True))  # one tile
        one.release_encoders()
        one.reload_encoders()


def four_bits(monkeypatch) -> PipelineQuantizationConfig:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(efficiency.importlib.util, "find_spec", lambda package: object())
    config = efficiency.quantization_config("bitsandbytes_4bit")
    monkeypatch.undo()
    return config


@pytest.mark.parametrize("expert", ["high_noise", "low_noise"])
def test_both_experts_and_what_is_loaded_again_are_quantised(monkeypatch, tmp_path, expert):
    """Which components diffusers is asked to quantise, and loads; bitsandbytes itself needs a GPU."""
    two_expert_pipeline().save_pretrained(tmp_path)
    config, load, quantised = four_bits(monkeypatch), WanPipeline.from_pretrained, []

    def from_pretrained(*args, quantization_config, **options):
        quantised.append({n for n in quantization_config.components_to_quantize if options.get(n, n) == n})
        return load(*args, **options)

    monkeypatch.setattr(WanPipeline, "from_pretrained", from_pretrained)
    one = load_video_model(str(tmp_path), device="cpu", quantization_config=config, expert=expert)
    trained, other = one.trained_component, {"transformer": "transformer_2"}.get(one.trained_component, "transformer")
    assert quantised == [{trained, "text_encoder"}]
    one._load_other_expert()
    assert quantised[1:] == [{other}] and getattr(one.pipeline, other) is not None
    one.release_encoders()
    one.reload_encoders()
    assert quantised[2:] == [{"text_encoder"}] and one.has_encoders
    assert one.computation["quantization"] == {
        "backend": "bitsandbytes_4bit",
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_compute_dtype": "torch.bfloat16",
        "components": ["transformer", "transformer_2", "text_encoder"],
    }
    json.dumps(one.computation)


def test_components_that_a_pipeline_has_not_are_not_asked_to_be_quantised(monkeypatch):
    config = four_bits(monkeypatch)
    index = {"transformer": ["diffusers", "X"], "text_encoder": ["transformers", "Y"], "transformer_2": [None, None]}
    assert efficiency.for_pipeline(config, index).components_to_quantize == ["transformer", "text_encoder"]
    assert "transformer_2" in config.components_to_quantize  # the caller's own


@pytest.mark.parametrize("offload", [False, True])
def test_text_encoders_wait_while_videos_are_sampled_and_decoded(tmp_path, monkeypatch, offload):
    one, seen = model(), []
    one.offload_encoders = offload
    encoder = one.pipeline.text_encoder
    for stage in ("sample", "decode_latents"):
        call = getattr(one, stage)
        monkeypatch.setattr(
            one,
            stage,
            lambda *a, f=call, n=stage: seen.append((n, one.pipeline.text_encoder, one.pipeline.vae)) or f(*a),
        )
    settings = SamplingSettings(NUM_FRAMES, HEIGHT, WIDTH, num_inference_steps=1, guidance_scale=1.0)
    roll_out(one, [{"prompt_id": "a", "prompt": "the meadow"}], [0], settings, SampleStore(tmp_path))
    there = None if offload else encoder
    assert seen == [("sample", there, one.pipeline.vae), ("decode_latents", there, one.pipeline.vae)]
    assert one.pipeline.text_encoder is encoder and one.has_encoders
    if offload:
        one.rest_text_encoders()
        with pytest.raises(RuntimeError, match=r"cannot embed prompts.*reload_encoders\(\)"):
            one.encode_prompts(["the meadow"])


def test_waiting_encoders_are_the_same_objects_and_need_no_disk(tmp_path):
    one = model()
    one.offload_encoders = True
    encoders = one.pipeline.vae, one.pipeline.text_encoder
    one.release_encoders()
    assert not one.has_encoders and one.pipeline.vae is None
    one.reload_encoders()  # built in memory: without offloading there would be nowhere to load from
    assert one.has_encoders and (one.pipeline.vae, one.pipeline.text_encoder) == encoders
    one.offload_encoders = False
    one.release_encoders()
    one._source = ""
    with pytest.raises(RuntimeError, match="built in memory"):
        one.reload_encoders()
