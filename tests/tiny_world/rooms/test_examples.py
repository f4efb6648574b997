"""Examples for pretraining: the parts of a task that a context model sees, and their mirror images."""

import numpy as np
import pytest
import torch

from spatialalign_trl.models.context import pluecker_rays
from spatialalign_trl.tiny_world.networks import MAX_TOKENS, new_tokenizer
from spatialalign_trl.tiny_world.rooms import SPLIT_SEEDS
from spatialalign_trl.tiny_world.rooms.examples import (
    ExampleSettings,
    example_of,
    load_examples,
    mirrored,
    render_examples,
    room_phrases,
    seen_context,
)
from spatialalign_trl.tiny_world.rooms.tasks import make_row, render_row

SIZE, FRAMES, CONTEXT = (16, 24), 5, 4


@pytest.fixture(scope="module")
def rows():
    rows = {}
    for task in ("navigation", "grounding"):
        for seed in SPLIT_SEEDS["train"]:
            try:
                rows[task] = seen_context(make_row(seed, task), CONTEXT)
                break
            except RuntimeError:
                continue
    return rows


@pytest.fixture(scope="module")
def examples(rows):
    return {task: example_of(render_row(row, SIZE, FRAMES, 1)) for task, row in rows.items()}


def test_a_context_is_reduced_to_the_seen_frames_and_keeps_its_last_frame(rows):
    for row in rows.values():
        assert len(row["context_indices"]) == CONTEXT
        assert row["context_indices"][-1] == row["context_length"] - 1


def test_cameras_are_relative_to_the_last_context_camera_where_the_video_begins(examples):
    navigation, grounding = examples["navigation"], examples["grounding"]
    first = navigation.cameras[0, :12]
    assert torch.allclose(first, torch.tensor([1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0.0]), atol=2e-3)
    assert torch.allclose(navigation.context_cameras[-1, :12], first, atol=2e-3)
    assert not grounding.cameras.any(), "in grounding the path is not known in advance"


def test_grounding_shows_its_box(rows, examples):
    plain = render_row(rows["grounding"], SIZE, FRAMES, 1)
    assert (examples["grounding"].video != plain.target_frames).any()
    assert (examples["grounding"].context == plain.context_frames).all()


def test_a_mirror_image_of_a_mirror_image_is_the_example(examples):
    for example in examples.values():
        twice = mirrored(mirrored(example))
        assert twice.prompt == example.prompt
        assert np.array_equal(twice.video, example.video) and np.array_equal(twice.context, example.context)
        assert torch.equal(twice.cameras, example.cameras)


def test_cameras_in_a_mirror_look_along_the_mirrored_rays(examples):
    example = examples["navigation"]
    rays, turned = (pluecker_rays(version.cameras, 4, 6) for version in (example, mirrored(example)))
    mirror = torch.tensor([-1.0, 1.0, 1.0])
    expected = torch.cat([rays[..., :3] * mirror, -rays[..., 3:] * mirror], dim=-1)  # o x d is an axial vector
    assert torch.allclose(turned, expected.flip(-2), atol=1e-5)


def test_left_is_right_in_a_mirror(examples):
    words = {"left": "right", "right": "left"}
    prompt = "Circle the red box to the left by 40 degrees, looking at it."
    example = examples["navigation"]
    example = type(example)(prompt, example.context, example.numbers, example.video, example.cameras,
                            example.context_cameras)  # fmt: skip
    assert mirrored(example).prompt.split() == [words.get(word, word) for word in prompt.split()]


def test_instructions_are_words_of_the_vocabulary(rows):
    tokenizer = new_tokenizer(room_phrases())
    for row in rows.values():
        tokens = tokenizer.tokenize(row["prompt"])
        assert len(tokens) < MAX_TOKENS and tokenizer.unk_token not in tokens
        letters = [token for token in tokens if len(token.strip("▁")) == 1 and token.strip("▁").isalpha()]
        assert not letters, f"{row['prompt']} is tokenised into letters: {tokens}"


def test_examples_are_rendered_once(tmp_path):
    settings = ExampleSettings("indoor", 1, CONTEXT, SIZE, FRAMES)
    assert list(render_examples(tmp_path, range(1), settings)) == [1]
    (file,) = tmp_path.iterdir()
    before = file.stat().st_mtime_ns
    assert list(render_examples(tmp_path, range(1), settings)) == [1]
    assert file.stat().st_mtime_ns == before
    examples = load_examples(tmp_path)
    assert examples
    assert all(example.video.shape == (FRAMES, *SIZE, 3) for example in examples)
    assert all(len(example.numbers) == CONTEXT for example in examples)
