"""One prompt with two scenes is two conditionings wherever embeddings are shared: rollouts, the cache, run checks."""

from typing import Any

import datasets
import numpy as np
import pytest
import torch
from safetensors.torch import save
from tiny_pairs import LATENT_SHAPE
from tiny_pipelines import NUM_FRAMES
from tiny_scenes import context_model, scene_row, walk

from spatialalign_trl.models import SamplingSettings, WanContextVideoModel
from spatialalign_trl.online.run_settings import check_disjoint
from spatialalign_trl.rollout import SampleStore, roll_out
from spatialalign_trl.trainer.latents import prepare_pairs
from spatialalign_trl.video import encode_video

# Column -> another value of it, and the tensor of the conditioning that it changes.
CHANGES = {
    "context": (scene_row(1)["context"], "context_latents"),
    "context_indices": ([0, 1, 2, 3, 4], "context_positions"),
    "camera_poses": (walk(NUM_FRAMES), "cameras"),
    "intrinsics": ([20.0, 20.0, 15.0, 7.0], "cameras"),
    "context_poses": (walk(5, first=2.0), "cameras"),
    "prompt": ("a fox is on top of a stump", "prompt_embeds"),
}
SETTINGS = SamplingSettings(NUM_FRAMES, 16, 32, num_inference_steps=1, guidance_scale=1.0)


@pytest.fixture(scope="module")
def model() -> WanContextVideoModel:
    return context_model()


def two_rows(column: str, as_bytes: bool = False) -> list[dict[str, Any]]:
    """Return two rows that differ in one column, and a third that is equal to the first."""
    rows = [scene_row(), scene_row(**{column: CHANGES[column][0]}), scene_row()]
    if as_bytes:  # as datasets store them
        rows = [{**row, "context": encode_video(np.asarray(row["context"]), fps=8, crf=0)} for row in rows]
    return [{"prompt_id": str(k), **row} for k, row in enumerate(rows)]


@pytest.mark.parametrize("column", CHANGES)
def test_rows_that_differ_in_one_column_have_two_identities_and_two_encodings(model, column):
    first, second, third = two_rows(column)
    assert model.row_content(first) == model.row_content(third) != model.row_content(second)
    one, other = (model.encode_rows([row])[CHANGES[column][1]] for row in (first, second))
    assert not torch.equal(one, other)


@pytest.mark.parametrize("column", CHANGES)
def test_a_rollout_samples_each_row_with_its_own_scene(model, column, tmp_path, monkeypatch):
    rows = [{**row, "context": encode_video(row["context"], fps=8, crf=0)} for row in two_rows(column)]
    files = []
    for row in rows:  # a sample records its row, so the context is a file
        files.append(tmp_path / f"{row['prompt_id']}.mp4")
        files[-1].write_bytes(row["context"])
        row["context"] = str(files[-1])
    seen, encoded = {}, []
    sample, encode = model.sample, model.encode_rows

    def record(conditioning, negative, seeds, settings):
        (name,) = (CHANGES[column][1],)
        seen.update({len(seen) + k: tensor for k, tensor in enumerate(conditioning[name])})
        return sample(conditioning, negative, seeds, settings)

    monkeypatch.setattr(model, "sample", record)
    monkeypatch.setattr(model, "encode_rows", lambda rows: encoded.extend(rows) or encode(rows))
    roll_out(model, rows, [0], SETTINGS, SampleStore(tmp_path / "samples"), batch_size=2)
    assert len(encoded) == 2  # the third row is the first again
    assert torch.equal(seen[0], seen[2]) and not torch.equal(seen[0], seen[1])
    expected = encode([rows[1]])[CHANGES[column][1]][0]
    torch.testing.assert_close(seen[1].cpu(), expected.cpu(), rtol=0, atol=0)


@pytest.mark.parametrize("column", CHANGES)
def test_the_cache_of_a_preference_dataset_keeps_one_file_for_each_scene(model, column, tmp_path):
    latents = save({"latents": torch.zeros(LATENT_SHAPE)})
    rows = two_rows(column, as_bytes=True)
    pairs = datasets.Dataset.from_list(
        [{**row, "chosen_latents": latents, "rejected_latents": latents} for row in rows]
    )
    prepared = prepare_pairs(pairs, model, tmp_path, show_progress=False)
    assert prepared.prompt_files[0] == prepared.prompt_files[2] != prepared.prompt_files[1]
    assert len(list(tmp_path.glob("prompt-*"))) == 2
    for k in range(3):
        conditioning, expected = prepared[k]["conditioning"], model.encode_rows([rows[k]])
        assert set(conditioning) == set(expected)
        for name, tensor in expected.items():
            torch.testing.assert_close(conditioning[name], tensor[0].cpu(), rtol=0, atol=0)
    assert prepared.fingerprint(0) == prepared.fingerprint(2) != prepared.fingerprint(1)


@pytest.mark.parametrize("column", CHANGES)
def test_a_scene_that_is_not_trained_on_may_be_evaluated_though_its_prompt_is(model, column):
    first, second, third = two_rows(column)
    check_disjoint(model, [first], [second])
    with pytest.raises(ValueError, match="1 prompts are in the training and in the evaluation set"):
        check_disjoint(model, [first, second], [third])


@pytest.mark.parametrize("options", [{"context_frames": 3}, {"context_layout": "none"}, {"context_cameras": True}])
def test_models_with_other_options_do_not_share_encodings(model, options):
    assert context_model(**options).row_content(scene_row()) != model.row_content(scene_row())
