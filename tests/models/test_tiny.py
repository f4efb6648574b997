"""Test the embedded models: small, of real classes, loaded by the same code as any other checkpoint."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel
from safetensors import safe_open
from transformers import UMT5EncoderModel

from spatialalign_trl.models import WanVideoModel, load_video_model
from spatialalign_trl.models.tiny import EMBEDDED_MODELS, tiny_model_path
from spatialalign_trl.models.wan_context import CONTEXT_MODULES_FILE, WanContextVideoModel
from spatialalign_trl.prompts import load_prompts
from spatialalign_trl.tiny_world.renderer import FPS, HEIGHT, NUM_FRAMES, WIDTH
from spatialalign_trl.tiny_world.rooms import SPLIT_SEEDS
from spatialalign_trl.tiny_world.rooms.examples import room_phrases
from spatialalign_trl.tiny_world.rooms.tasks import make_row, render_row
from spatialalign_trl.tiny_world.vocabulary import ANIMAL_COLORS, ANIMALS, OBJECTS, SCENES, VERBS

PROMPTS = Path(__file__).parents[2] / "datasets" / "tiny_world_prompts"


@pytest.fixture(scope="module")
def model():
    return load_video_model("tiny", device="cpu")


@pytest.fixture(params=sorted(EMBEDDED_MODELS))
def folder(request):
    return tiny_model_path(request.param)


def test_its_files_are_small_and_contain_no_pickle_and_no_local_path(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 8 * 2**20
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".txt"}
    assert not [path for path in folder.rglob("config.json") if "_name_or_path" in json.loads(path.read_text())]


def test_weights_are_half_precision(folder):
    for path in folder.rglob("*.safetensors"):
        if path.name == CONTEXT_MODULES_FILE:
            continue  # only a few thousand weights
        with safe_open(path, "pt") as weights:
            dtypes = {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
        assert dtypes <= {"F16", "BF16"}, path


def test_it_has_the_real_classes_and_loads_like_any_pipeline(model):
    assert type(model) is WanVideoModel
    pipe = WanPipeline.from_pretrained(tiny_model_path())
    assert isinstance(pipe.transformer, WanTransformer3DModel)
    assert isinstance(pipe.vae, AutoencoderKLWan)
    assert isinstance(pipe.text_encoder, UMT5EncoderModel)
    assert model.name_or_path == "tiny"


def test_its_settings_are_those_of_the_tiny_world(model):
    settings = model.default_settings()
    assert (settings.num_frames, settings.height, settings.width) == (NUM_FRAMES, HEIGHT, WIDTH)
    assert settings.fps == FPS
    index = json.loads((tiny_model_path() / "model_index.json").read_text())
    assert index["_class_name"] == "WanPipeline"


def test_every_word_of_the_world_is_a_token(model):
    tokenizer = model.pipeline.tokenizer
    words = " ".join([*SCENES, *ANIMALS, *ANIMAL_COLORS, *OBJECTS, *VERBS]).split()
    for word in words:
        assert len(tokenizer(word).input_ids) == 2, word  # the word and the end token
    for split in ("train", "validation", "test"):
        for row in load_prompts(PROMPTS, split):
            assert len(tokenizer(row["prompt"]).input_ids) <= tokenizer.model_max_length == 32


def test_its_vae_amplifies_no_dead_channels(model):
    std = torch.tensor(model.pipeline.vae.config.latents_std)
    assert (std > std.median() / 8).all()


def test_the_rooms_model_uses_the_recording_that_it_continues():
    model = load_video_model("tiny_rooms", variant="context", device="cpu", context_frames=8)
    assert type(model) is WanContextVideoModel and model.sees_cameras
    settings = model.default_settings()
    task = render_row(make_row(SPLIT_SEEDS["test"].start, "navigation"), (settings.height, settings.width), 17, 3)
    latents = model.encode_video(task.target_frames[None])
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.6])

    def error(row: dict) -> float:
        predicted = model.predict(model.add_noise(latents, noise, sigma), sigma, model.encode_rows([row]))
        return float((predicted - model.target(latents, noise, sigma)).square().mean())

    row = task.columns()
    with torch.no_grad():
        seen, mirrored = error(row), error(row | {"context": task.context_frames[:, :, ::-1].copy()})
        blind = error({name: row[name] for name in ("prompt_id", "prompt")})
    assert seen < 0.95 * mirrored and seen < 0.8 * blind


def test_every_word_of_the_rooms_is_a_token():
    tokenizer = load_video_model("tiny_rooms", variant="context", device="cpu").pipeline.tokenizer
    for word in " ".join(room_phrases()).split():
        assert len(tokenizer(word).input_ids) == 2, word  # the word and the end token
