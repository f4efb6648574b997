"""Test that the code on how to use a LoRA, run as it is printed, draws what the library samples."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_cogvideox_hunyuan
import tiny_ltx
import tiny_pipelines
import torch
from peft import LoraConfig
from tiny_family import TinyFamily

from spatialalign_trl.models import SamplingSettings, VideoModel, load_video_model
from spatialalign_trl.models.usage import LoraUsage
from spatialalign_trl.rollout.sampler import noise_seed

FAMILIES = [*tiny_pipelines.FAMILIES, *tiny_ltx.FAMILIES, *tiny_cogvideox_hunyuan.FAMILIES]
PROMPT = 'a "fox" is on the left\nof a stump'
SEED = noise_seed(0, "p1")


def model_with_lora(family: TinyFamily, folder: Path) -> tuple[VideoModel, SamplingSettings]:
    """Build a family's pipeline with a random LoRA that changes its videos; both are saved to `folder`."""
    family.build().save_pretrained(folder / "base")
    model = load_video_model(str(folder / "base"), device="cpu", **family.options)
    targets = [target for target in model.default_lora_targets if target != "camera_projection"]
    model.base_transformer.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=targets))
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.base_transformer.named_parameters():
        if "lora_" in name:
            weight.data = torch.randn(weight.shape, generator=generator)
    model.save_lora(folder / "lora")
    settings = {"num_inference_steps": 2, "guidance_scale": 3.5, "negative_prompt": "blurry", "fps": 8.0}
    if family.name.startswith("ltx"):
        settings["fps"] = model.default_settings().fps
    if "cogvideox" not in family.name:
        settings["flow_shift"] = 2.5  # not that of any of the pipelines
    return model, SamplingSettings(*family.size, **{**settings, **family.settings})


def sampled(model: VideoModel, settings: SamplingSettings) -> np.ndarray:
    negative = model.encode_prompts([settings.negative_prompt])
    return model.decode_latents(model.sample(model.encode_prompts([PROMPT]), negative, [SEED], settings))[0]


def run_code(code: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run the code; what it would write to a video file is in `written`."""
    names: dict[str, Any] = {}
    monkeypatch.setattr(
        "diffusers.utils.export_to_video", lambda *args, **kwargs: names.update(written=(args, kwargs))
    )
    exec(compile(code, "usage", "exec"), names)
    return names


@pytest.mark.parametrize(
    "family", [family for family in FAMILIES if family.options.get("variant") is None], ids=lambda family: family.name
)
def test_the_code_of_every_family_draws_what_the_library_samples(family, tmp_path, monkeypatch):
    model, settings = model_with_lora(family, tmp_path)
    expected = sampled(model, settings)
    usage = model.lora_usage(settings, prompt=PROMPT, noise_seed=SEED, drawn_by_run="the run's video, seed 0")
    usage = LoraUsage.from_dict(json.loads(json.dumps(usage.to_dict())))  # as it is kept in report.json
    names = run_code(usage.code(str(tmp_path / "lora")), monkeypatch)
    drawn = (names["video"] * 255).round().astype(np.uint8)
    if family.name == "ltx_091":  # its VAE adds noise of its own: the pipeline draws it from the same generator
        assert np.abs(drawn.astype(int) - expected).mean() < 2
    else:
        np.testing.assert_array_equal(drawn, expected)
    assert names["written"][1] == {"fps": settings.fps}

    model.unload_lora()
    assert not np.array_equal(drawn, sampled(model, settings)), "the LoRA changes nothing, so the test shows nothing"


def test_a_model_with_context_is_loaded_with_its_options_and_settings(tmp_path):
    (family,) = (family for family in FAMILIES if family.options.get("variant") == "context")
    family.build().save_pretrained(tmp_path)
    model = load_video_model(str(tmp_path), variant="context", context_frames=3, guidance="instruction", device="cpu")
    settings = SamplingSettings(*family.size, num_inference_steps=2, guidance_scale=2.0, negative_prompt="blurry")
    usage = model.lora_usage(settings, prompt="Find the plant.", noise_seed=5)
    code = usage.code("runs/x").replace('"context": "path/to/the/recording.mp4"', "")
    loaded: dict[str, Any] = {}

    def load(name: str, **options: Any) -> VideoModel:
        loaded.update(options, name=name)
        return model

    model.load_lora = lambda source: loaded.update(lora=source)
    sample = type(model).sample
    model.sample = lambda *args: loaded.update(seeds=args[2], settings=args[3]) or sample(model, *args)
    code = code.replace("from spatialalign_trl import load_video_model", "")
    exec(code.replace('"video.mp4"', repr(str(tmp_path / "video.mp4"))), {"load_video_model": load})
    assert loaded["settings"] == settings and loaded["seeds"] == [5] and loaded["lora"] == "runs/x"
    assert loaded["name"] == str(tmp_path) and loaded["variant"] == "context"
    assert (loaded["context_frames"], loaded["guidance"]) == (3, "instruction")
    assert loaded["torch_dtype"] is torch.float32


def usage(**changes: Any) -> LoraUsage:
    facts = {"model": "tiny", "dtype": "float32", "prompt": "p", "noise_seed": 1, "call": {}, "fps": 8.0}
    return LoraUsage(**{**facts, **changes})


EVIL = '"); import os\nos.remove("x")  # \\" \u2028 {0} \'\'\' \ud800'


def test_texts_stay_texts():
    """A prompt, a path or a name from a run's files cannot become code."""
    call = {"negative_prompt": EVIL * 5, "num_frames": 17, "nested": [EVIL, {EVIL: EVIL}]}
    code = usage(model=EVIL, prompt=EVIL, revision=EVIL, call=call, dtype="bfloat16").code(EVIL)
    tree = ast.parse(code)
    imported = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert {getattr(node, "module", None) or node.names[0].name for node in imported} == {
        "torch", "diffusers", "diffusers.utils",
    }  # fmt: skip
    assert EVIL in {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": "float32); import os #"}, {"drawn_by_run": "a\nimport os"}, {"quantization": "a\nimport os"},
        {"noise_seed": "1); import os #"}, {"call": {"a=1); import os #": 1}}, {"columns": ["a\nimport os"]},
        {"scheduler": {EVIL: 1}}, {"guider": {EVIL: 1}}, {"load_options": {EVIL: 1}}, {"context": {EVIL: 1}},
        {"latent_shape": [EVIL]}, {"fps": EVIL}, {"fps": 0}, {"noise_seed": -1},
    ],
    ids=str,
)  # fmt: skip
def test_names_and_numbers_that_would_become_code_are_refused(changes):
    with pytest.raises(ValueError, match="on how to use a LoRA"):
        usage(**changes)


def test_a_long_text_takes_several_lines_and_stays_the_same():
    words = "blurry, low resolution, " * 20
    code = usage(call={"negative_prompt": words}).code("x")
    assert max(map(len, code.splitlines())) < 119
    (call,) = (part for part in code.split("video = ")[1:])
    names: dict[str, Any] = {}
    exec("got = dict(" + call.split("pipe(")[1].split("generator=")[0] + ")", names)
    assert names["got"]["negative_prompt"] == words


def test_unknown_and_missing_facts_are_refused():
    with pytest.raises(ValueError, match="unknown fact 'modle'.*Did you mean 'model'"):
        LoraUsage.from_dict({**usage().to_dict(), "modle": "x"})
    with pytest.raises(ValueError, match="noise_seed, call is missing"):
        LoraUsage.from_dict({"model": "tiny", "dtype": "float32", "prompt": "p", "fps": 8.0})
