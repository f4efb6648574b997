"""The pretraining recipe of the context model with a few steps per stage."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from spatialalign_trl.models import load_video_model
from spatialalign_trl.tiny_world.rooms import SPLIT_SEEDS
from spatialalign_trl.tiny_world.rooms.tasks import make_row, render_row

ROOT = Path(__file__).parents[2]


def run(folder: Path, **settings: str) -> subprocess.CompletedProcess:
    flags = {
        "output_dir": str(folder), "rooms": "1", "variants": "1", "vae_steps": "2 1 1", "vae_batch_size": "2",
        "decoder_steps": "1", "denoiser_steps": "3", "denoiser_batch_size": "4", "save_steps": "2", **settings,
    }  # fmt: skip
    words = [word for name, value in flags.items() for word in (f"--{name}", *value.split())]
    command = [sys.executable, "recipes/pretrain_tiny_rooms.py", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
def test_all_stages_end_in_a_context_model_that_samples(tmp_path):
    process = run(tmp_path)
    assert process.returncode == 0, process.stderr[-3000:]
    model = load_video_model(str(tmp_path / "pipeline"), variant="context", device="cpu", context_frames=3)
    assert model.sees_cameras, "the camera projection was not exported"
    row = make_row(SPLIT_SEEDS["test"].start, "navigation")
    conditioning = model.encode_rows([render_row(row, (32, 48), 17, 1).columns()])
    latents = model.sample(conditioning, model.encode_prompts([""]), [0], model.default_settings())
    assert latents.isfinite().all()
    (video,) = model.decode_latents(latents)
    assert video.shape == (17, 32, 48, 3)
    assert torch.isfinite(torch.as_tensor(video)).all()


def test_obey_share_of_the_videos_follow_their_instruction(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    recipe = importlib.import_module("pretrain_tiny_rooms")
    number = 4000
    names = {"video": 0.0, "still": 1.0, "stopped": 2.0}
    batch = {name: torch.full((number, 1, 1, 1, 1), value) for name, value in names.items()}
    batch["cameras"] = torch.zeros(number, 17, 16)
    batch["cameras"][: number // 2] = 1.0  # navigation; the others are grounding
    args = recipe.PretrainTinyRoomsArguments(obey_share=0.6, obeyed_steps=3)
    videos = recipe.select_videos(args, batch, torch.Generator().manual_seed(0), step=3).flatten()
    for part, expected in ((videos[: number // 2], [0.6, 0.4, 0.0]), (videos[number // 2 :], [0.6, 0.2, 0.2])):
        shares = [float((part == value).float().mean()) for value in names.values()]
        assert shares == pytest.approx(expected, abs=0.03)
    assert not batch["video"].any(), "the batch was changed in place"
    assert not recipe.select_videos(args, batch, torch.Generator(), step=2).any()
    all_obey = recipe.PretrainTinyRoomsArguments(obey_share=1.0)
    assert not recipe.select_videos(all_obey, batch, torch.Generator(), 0).any()


def test_an_unknown_stage_is_named(tmp_path):
    process = run(tmp_path, stages="rendr")
    assert process.returncode != 0 and "stages=['rendr']: unknown" in process.stderr and "denoiser" in process.stderr
