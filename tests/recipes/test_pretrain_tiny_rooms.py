"""The pretraining recipe of the context model with a few steps per stage."""

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from spatialalign_trl.models import load_video_model
from spatialalign_trl.tiny_world.rooms import SPLIT_SEEDS
from spatialalign_trl.tiny_world.rooms.tasks import make_row, render_row
from spatialalign_trl.tiny_world.training_loop import TrainingLoop

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


@pytest.fixture
def recipe(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    return importlib.import_module("pretrain_tiny_rooms")


def arguments(recipe, folder: Path, **settings):
    few = {"rooms": 1, "variants": 1, "vae_steps": [1, 1, 1], "vae_batch_size": 1, "vae_channels": 4,
           "latent_channels": 4, "decoder_steps": 1, "denoiser_steps": 4, "denoiser_batch_size": 4, "save_steps": 2,
           "style": "flat", "rays": "fourier", "width": 64, "head_size": 64, "layers": 1, "held_out_rooms": 1,
           "denoiser_eval_steps": 1, "held_out_videos": 1, "obeyed_steps": 2}  # fmt: skip
    return recipe.PretrainTinyRoomsArguments(output_dir=str(folder), **{**few, **settings})


def test_a_resumed_denoiser_equals_an_uninterrupted_one(tmp_path, recipe, monkeypatch):
    """Stop after two of four steps. A run that is measured after every step draws the same numbers, too."""
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    recipe.main(arguments(recipe, straight, denoiser_eval_steps=100))
    shutil.copytree(straight, resumed)
    (resumed / "denoiser.safetensors").unlink()
    run_again = arguments(recipe, resumed, stages=["denoiser"])

    class Interruption(Exception):
        pass

    def save_and_stop(loop: TrainingLoop, done: int) -> None:
        save(loop, done)
        if done == 2:
            raise Interruption

    save = TrainingLoop._save
    with monkeypatch.context() as patch, pytest.raises(Interruption):
        patch.setattr(TrainingLoop, "_save", save_and_stop)
        recipe.main(run_again)
    assert int(load_file(resumed / "denoiser.safetensors")["done"]) == 2
    recipe.main(run_again)
    expected, actual = (load_file(folder / "denoiser.safetensors") for folder in (straight, resumed))
    assert set(expected) == set(actual)
    for name, tensor in expected.items():
        assert torch.equal(tensor, actual[name]), name
    # The step trained the text encoder, the blocks and the map of the rays.
    first = load_file(straight / "denoiser.safetensors")
    for part in ("text_encoder", "blocks.0.attn1.to_q", "camera_projection", "patch_embedding"):
        moments = [tensor for name, tensor in first.items() if name.startswith("exp_avg.") and part in name]
        assert moments and any(tensor.any() for tensor in moments), part
    measured = [json.loads(line) for line in (resumed / "denoiser.jsonl").read_text().splitlines()]
    assert [row["step"] for row in measured] == [4, 1, 3, 4]
    assert {"psnr_told", "psnr_untold", "psnr_no_context", "through_vae", "still_camera"} <= set(measured[-1])


def test_bf16_and_fp32_train_alike_and_unknown_hardware_is_named(tmp_path, recipe):
    recipe.main(arguments(recipe, tmp_path, stages=["render", "vae", "compress", "decoder"]))
    losses = {}
    for precision in ("fp32", "bf16"):
        recipe.main(arguments(recipe, tmp_path, stages=["denoiser"], precision=precision, denoiser_steps=1,
                              denoiser_eval_steps=1, obey_share=1.0))  # fmt: skip
        row = json.loads((tmp_path / "denoiser.jsonl").read_text().splitlines()[-1])
        losses[precision] = row["loss"]
        weights = load_file(tmp_path / "denoiser.safetensors")
        assert {tensor.dtype for name, tensor in weights.items() if name.startswith("parameter.")} == {torch.float32}
        (tmp_path / "denoiser.safetensors").unlink()
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.02) and losses["bf16"] != losses["fp32"]
    with pytest.raises(ValueError, match="device='gpu': unknown"):
        recipe.main(arguments(recipe, tmp_path, device="gpu"))
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device='cuda': PyTorch finds no GPU"):
            recipe.main(arguments(recipe, tmp_path, device="cuda"))


def test_an_unknown_stage_is_named(tmp_path):
    process = run(tmp_path, stages="rendr")
    assert process.returncode != 0 and "stages=['rendr']: unknown" in process.stderr and "denoiser" in process.stderr
