"""The pretraining recipe of the context model with a few steps per stage."""

import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from spatialalign_trl.models import load_video_model
from spatialalign_trl.tiny_world.rooms import SPLIT_SEEDS
from spatialalign_trl.tiny_world.rooms.tasks import make_row, render_row

ROOT = Path(__file__).parents[2]
FLAT = {"style": "flat", "held_out_rooms": "2", "rays": "fourier", "width": "64", "head_size": "64"}


def command_words(folder: Path, **settings: str) -> list[str]:
    flags = {
        "output_dir": str(folder), "rooms": "1", "variants": "1", "vae_steps": "2 1 1", "vae_batch_size": "2",
        "decoder_steps": "1", "denoiser_steps": "3", "denoiser_batch_size": "4", "save_steps": "2", **settings,
    }  # fmt: skip
    return [word for name, value in flags.items() for word in (f"--{name}", *value.split())]


def run(folder: Path, **settings: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "recipes/pretrain_tiny_rooms.py", *command_words(folder, **settings)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"style": "indoor"},
        {"style": "flat", "held_out_rooms": "2", "rays": "fourier", "width": "64", "head_size": "64"},
    ],
    ids=["indoor", "flat"],
)
def test_all_stages_end_in_a_context_model_that_samples(tmp_path, settings):
    process = run(tmp_path, **settings)
    assert process.returncode == 0, process.stderr[-3000:]
    model = load_video_model(str(tmp_path / "pipeline"), variant="context", device="cpu", context_frames=3)
    assert model.sees_cameras, "the camera projection was not exported"
    assert model.rays == settings.get("rays", "pluecker")
    row = make_row(SPLIT_SEEDS["test"].start, "navigation", settings["style"])
    conditioning = model.encode_rows([render_row(row, (32, 48), 17, 1).columns()])
    latents = model.sample(conditioning, model.encode_prompts([""]), [0], model.default_settings())
    assert latents.isfinite().all()
    (video,) = model.decode_latents(latents)
    assert video.shape == (17, 32, 48, 3)
    assert torch.isfinite(torch.as_tensor(video)).all()
    if settings["style"] == "flat":
        (measured,) = [json.loads(line) for line in (tmp_path / "denoiser.jsonl").read_text().splitlines()]
        assert measured["step"] == 3
        assert {"psnr_told", "psnr_untold", "psnr_no_context", "through_vae", "still_camera"} <= set(measured)
        assert (tmp_path / "vae.jsonl").exists() and (tmp_path / "decoder.jsonl").exists()


def test_a_resumed_denoiser_equals_an_uninterrupted_one(tmp_path):
    """Stop after two of four steps; a compiled or measured run draws the same numbers."""
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    common = {**FLAT, "obeyed_steps": "2", "denoiser_steps": "4"}
    assert run(straight, **common).returncode == 0
    shutil.copytree(straight, resumed)
    recipe_stop = "import sys, importlib; sys.path.insert(0, 'recipes'); " + textwrap.dedent(
        """
        import spatialalign_trl.tiny_world.training_loop as loops
        save = loops.TrainingLoop._save
        def stop(loop, done):
            save(loop, done)
            if done == 2:
                raise SystemExit(3)
        loops.TrainingLoop._save = stop
        """
    )
    (resumed / "denoiser.safetensors").unlink()
    words = command_words(resumed, stages="denoiser", **common)
    code = recipe_stop + "import runpy; sys.argv = ['recipe', *sys.argv[1:]]\n"
    code += "runpy.run_path('recipes/pretrain_tiny_rooms.py', run_name='__main__')"
    stopped = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True)
    assert stopped.returncode == 3, stopped.stderr[-2000:]
    assert int(load_file(resumed / "denoiser.safetensors")["done"]) == 2
    assert run(resumed, stages="denoiser", **common).returncode == 0
    expected, actual = (load_file(folder / "denoiser.safetensors") for folder in (straight, resumed))
    assert set(expected) == set(actual)
    for name, tensor in expected.items():
        assert torch.equal(tensor, actual[name]), name
    assert any("camera_projection" in name for name in expected)


def test_an_unknown_stage_is_named(tmp_path):
    process = run(tmp_path, stages="rendr")
    assert process.returncode != 0 and "stages=['rendr']: unknown" in process.stderr and "denoiser" in process.stderr
