"""Test the quantised base: which components are quantised, and what is refused without bitsandbytes or a GPU."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from diffusers import PipelineQuantizationConfig, WanPipeline
from tiny_pipelines import two_expert_pipeline

from spatialalign_trl.models import load_video_model, quantization


def test_missing_bitsandbytes_is_named_before_any_work(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setattr(quantization.importlib.util, "find_spec", lambda package: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ImportError, match=r"quantization='bitsandbytes_8bit': needs bitsandbytes.*\[bitsandbytes\]"):
        quantization.quantization_config("bitsandbytes_8bit")
    for optim in ("adamw_8bit", "adamw_bnb_8bit", "paged_adamw_32bit"):
        with pytest.raises(ImportError, match=f"optim='{optim}': needs bitsandbytes"):
            quantization.check_optimizer(optim)
    for optim in ("adamw_torch", "adamw_torch_fused", "sgd"):
        quantization.check_optimizer(optim)


def four_bits(monkeypatch) -> PipelineQuantizationConfig:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(quantization.importlib.util, "find_spec", lambda package: object())
    config = quantization.quantization_config("bitsandbytes_4bit")
    monkeypatch.undo()
    return config


@pytest.mark.parametrize("expert", ["high_noise", "low_noise"])
def test_both_experts_and_reloaded_components_are_quantised(monkeypatch, tmp_path, expert):
    """Check which components diffusers loads quantised. bitsandbytes itself needs a GPU."""
    two_expert_pipeline().save_pretrained(tmp_path)
    config, load, quantised = four_bits(monkeypatch), WanPipeline.from_pretrained, []

    def from_pretrained(*args, quantization_config, **options):
        quantised.append(
            {name for name in quantization_config.components_to_quantize if options.get(name, name) == name}
        )
        return load(*args, **options)

    monkeypatch.setattr(WanPipeline, "from_pretrained", from_pretrained)
    model = load_video_model(str(tmp_path), device="cpu", quantization_config=config, expert=expert)
    trained = model.trained_component
    other = "transformer_2" if trained == "transformer" else "transformer"
    assert quantised == [{trained, "text_encoder"}]
    model._load_other_expert()
    assert quantised[1:] == [{other}] and getattr(model.pipeline, other) is not None
    model.release_encoders()
    model.reload_encoders()
    assert quantised[2:] == [{"text_encoder"}] and model.has_encoders
    assert model.computation["quantization"] == {
        "backend": "bitsandbytes_4bit",
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_compute_dtype": "torch.bfloat16",
        "components": ["transformer", "transformer_2", "text_encoder"],
    }
    json.dumps(model.computation)


def test_only_components_of_the_pipeline_are_quantised(monkeypatch):
    config = four_bits(monkeypatch)
    index = {"transformer": ["diffusers", "X"], "text_encoder": ["transformers", "Y"], "transformer_2": [None, None]}
    assert quantization.select_components(config, index).components_to_quantize == ["transformer", "text_encoder"]
    assert "transformer_2" in config.components_to_quantize  # the caller's config is not changed
