"""The denoiser's data: latents of examples and mirror images, disobedient videos, and a conditioning with gaps."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan

from spatialalign_trl.models.context_rows import CAMERAS, CONTEXT_CAMERAS, LATENTS, POSITIONS, SIGMA
from spatialalign_trl.models.encoding import batch_to_pixels
from spatialalign_trl.tiny_world.rooms.denoising import Dropout, drop_conditioning, select_videos
from spatialalign_trl.tiny_world.rooms.examples import (
    ExampleSettings,
    load_examples,
    load_videos,
    mirrored,
    render_examples,
)
from spatialalign_trl.tiny_world.rooms.latents import (
    IDLE,
    VIDEO,
    encode_examples,
    encode_idle,
    idle_video,
    load_latents,
)
from spatialalign_trl.tiny_world.vae_training import VAEArguments, new_vae

SIZE, FRAMES, CONTEXT = (32, 48), 5, 3


@pytest.fixture(scope="module")
def vae() -> AutoencoderKLWan:
    torch.manual_seed(0)
    return new_vae(VAEArguments(vae_channels=4)).eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory, vae):
    folder = tmp_path_factory.mktemp("rooms")
    settings = ExampleSettings("flat", 2, CONTEXT, SIZE, FRAMES)
    assert list(render_examples(folder / "examples", range(12), settings)) == [10, 12]
    assert list(encode_examples(folder / "examples", folder / "latents", vae, 4)) == [1, 2]
    assert list(encode_idle(folder / "examples", folder / "idle", vae)) == [1, 2]
    return folder


def test_latents_are_those_of_the_examples_and_of_their_mirror_images(folders, vae):
    data, prompts = load_latents(folders / "latents")
    assert {len(tensor) for tensor in data.values()} == {len(prompts)}
    examples = load_examples(folders / "examples")
    assert len(prompts) == 2 * len(examples)
    for example in (examples[0], examples[-1]):
        for version in (example, mirrored(example)):
            (row,) = [
                i for i in range(len(prompts))
                if prompts[i] == version.prompt and torch.equal(data[CONTEXT_CAMERAS][i], version.context_cameras)
            ]  # fmt: skip
            assert torch.equal(data[CAMERAS][row], version.cameras)
            with torch.no_grad():
                video = vae.encode(batch_to_pixels([version.video])).latent_dist.mode()[0]
                frame = vae.encode(batch_to_pixels([version.context[1:2]])).latent_dist.mode()[0, :, 0]
            assert torch.allclose(data[VIDEO][row].float(), video, atol=2e-3)
            assert torch.allclose(data[LATENTS][row, :, 1].float(), frame, atol=2e-3)
            assert data[POSITIONS][row, -1] == -1 and (data[POSITIONS][row].diff() > 0).all()


def test_latents_are_encoded_once(folders, vae):
    files = {path: path.stat().st_mtime_ns for path in (folders / "latents").iterdir()}
    assert list(encode_examples(folders / "examples", folders / "latents", vae, 4)) == [1, 2]
    assert {path: path.stat().st_mtime_ns for path in (folders / "latents").iterdir()} == files
    with pytest.raises(FileNotFoundError, match="Encode the examples first"):
        load_latents(folders / "nothing")


def test_the_videos_of_the_first_rooms_can_be_loaded_alone(folders):
    everything = load_videos(folders / "examples")
    first = load_videos(folders / "examples", rooms=10)
    assert 0 < len(first) < len(everything) and np.array_equal(first, everything[: len(first)])
    assert np.array_equal(everything, np.stack([example.video for example in load_examples(folders / "examples")]))
    with pytest.raises(FileNotFoundError, match="Run the stage render first"):
        load_videos(folders / "nothing")


@pytest.mark.slow
def test_several_processes_render_the_same_examples(folders, tmp_path):
    settings = ExampleSettings("flat", 2, CONTEXT, SIZE, FRAMES)
    assert list(render_examples(tmp_path, range(12), settings, workers=2)) == [10, 12]
    for path in (folders / "examples").iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_an_idle_camera_does_not_move_or_stops_half_way_in_grounding(folders):
    examples = load_examples(folders / "examples")
    grounding = next(example for example in examples if not example.cameras.any())
    navigation = next(example for example in examples if example.cameras.any())
    for example, stops in ((grounding, False), (navigation, False), (navigation, True)):
        video = idle_video(example, stops)
        assert all(np.array_equal(frame, example.video[0]) for frame in video) and len(video) == FRAMES
    stopped = idle_video(grounding, True)
    assert np.array_equal(stopped[:3], grounding.video[:3])
    assert all(np.array_equal(frame, grounding.video[FRAMES // 2]) for frame in stopped[2:])
    data, prompts = load_latents(folders / "idle")
    obeying, same = load_latents(folders / "latents")
    assert prompts == same and data[IDLE].shape == obeying[VIDEO].shape
    # The first latent frame is the same, and a later one differs.
    assert torch.equal(data[IDLE][:, :, 0], obeying[VIDEO][:, :, 0])
    assert (data[IDLE][:, :, -1] - obeying[VIDEO][:, :, -1]).abs().amax((1, 2, 3)).min() > 0


def test_obey_share_of_the_videos_follow_their_instruction():
    number = 4000
    batch = {VIDEO: torch.zeros(number, 1, 1, 1, 1), IDLE: torch.ones(number, 1, 1, 1, 1)}
    for share in (0.6, 0.0, 1.0):
        chosen = select_videos(batch, share, torch.Generator().manual_seed(0))
        assert float(chosen.mean()) == pytest.approx(1 - share, abs=0.03)
    assert not batch[VIDEO].any(), "the batch was changed in place"
    assert not select_videos({VIDEO: batch[VIDEO]}, 1.0, torch.Generator()).any()


class Nulling:
    """The part of a context model that drops the instruction and the context."""

    from spatialalign_trl.models.context_rows import SceneRowsMixin

    nulled = SceneRowsMixin.nulled


def test_each_part_of_the_conditioning_is_dropped_in_its_share_of_the_examples():
    number = 6000
    ones = {LATENTS: (2, 3, 1, 1), POSITIONS: (3,), CAMERAS: (5, 16), CONTEXT_CAMERAS: (3, 16)}
    batch = {name: torch.ones(number, *shape) for name, shape in ones.items()}
    embeddings = torch.cat([torch.ones(number, 1, 1), torch.zeros(1, 1, 1)])
    dropped = drop_conditioning(
        Nulling(), batch, embeddings, Dropout(0.1, 0.05, 0.75), torch.Generator().manual_seed(0)
    )
    seen = {name: tensor.flatten(1).eq(1).all(1) for name, tensor in dropped.items()}
    share = {name: float(rows.float().mean()) for name, rows in seen.items()}
    assert share["prompt_embeds"] == share[CAMERAS] == pytest.approx(0.85, abs=0.02)
    assert share[LATENTS] == pytest.approx(0.9, abs=0.02)
    assert share[CONTEXT_CAMERAS] == pytest.approx(0.9 * 0.75, abs=0.02)
    assert torch.equal(dropped[SIGMA].eq(1).all(1), ~seen[LATENTS]), "noise as context has diffusion time 1"
    assert not (seen["prompt_embeds"] & ~seen[LATENTS]).any(), "without context there is no instruction"
    assert torch.equal(dropped["prompt_embeds"].flatten() == 1, seen[CAMERAS])
