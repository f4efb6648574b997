"""Test the latent cache: what is encoded, what is reused, and what is refused, by row and column."""

from pathlib import Path

import datasets
import pytest
import torch
from safetensors.torch import save
from tiny_pairs import LATENT_SHAPE, PROMPTS, latent_pairs, random_mp4, video_pairs, wan_model

from spatialalign_trl.trainer.latents import Share, collate_pairs, encoder_fingerprint, prepare_pairs
from spatialalign_trl.video import read_video


def replace_cell(dataset: datasets.Dataset, row: int, column: str, value: object) -> datasets.Dataset:
    values = dataset[column][:]
    values[row] = value
    return datasets.Dataset.from_dict({**dataset.to_dict(), column: values}, features=dataset.features)


def test_videos_become_the_model_s_latents_and_prompts_its_embeddings(tmp_path: Path) -> None:
    model, dataset = wan_model(), video_pairs(3)
    pairs = prepare_pairs(dataset, model, tmp_path, show_progress=False)
    assert len(pairs) == 3 and pairs.latent_shape == LATENT_SHAPE
    expected = model.encode_video([read_video(dataset[1]["rejected"]["bytes"])])[0]
    assert torch.equal(pairs[1]["rejected"], expected)
    embeds = model.encode_prompts([PROMPTS[2]])["prompt_embeds"][0]
    assert torch.equal(pairs[2]["conditioning"]["prompt_embeds"], embeds)
    batch = collate_pairs([pairs[0], pairs[1]])
    assert batch["chosen"].shape == (2, *LATENT_SHAPE) == batch["rejected"].shape
    assert batch["conditioning"]["prompt_embeds"].shape == (2, *embeds.shape)


def test_cached_files_are_not_encoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepare_pairs(video_pairs(3), wan_model(), tmp_path, show_progress=False)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(files) == 2 * 3 + 3
    model = wan_model()
    monkeypatch.setattr(model, "encode_video", lambda *_: pytest.fail("encoded a video again"))
    monkeypatch.setattr(model, "encode_prompts", lambda *_: pytest.fail("embedded a prompt again"))
    second = prepare_pairs(video_pairs(3), model, tmp_path, show_progress=False)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == files
    assert torch.equal(first[2]["chosen"], second[2]["chosen"])


def test_a_different_model_with_the_same_name_does_not_reuse_latents(tmp_path: Path) -> None:
    first, second = wan_model(seed=0), wan_model(seed=1)
    assert encoder_fingerprint(first) == encoder_fingerprint(wan_model(seed=0)) != encoder_fingerprint(second)
    pairs = [prepare_pairs(video_pairs(1), model, tmp_path, show_progress=False) for model in (first, second)]
    assert not torch.equal(pairs[0][0]["chosen"], pairs[1][0]["chosen"])


def test_an_incomplete_cache_file_is_encoded_again(tmp_path: Path) -> None:
    pairs = prepare_pairs(video_pairs(1), wan_model(), tmp_path, show_progress=False)
    expected, path = pairs[0]["chosen"], pairs.latent_files[0, "chosen"]
    path.write_bytes(path.read_bytes()[:100])
    again = prepare_pairs(video_pairs(1), wan_model(), tmp_path, show_progress=False)
    assert torch.equal(again[0]["chosen"], expected)


def test_processes_share_the_encoding(tmp_path: Path) -> None:
    """Both processes list the missing files before either writes (the barrier), so that they divide the same list."""
    made = []
    for rank in range(2):
        folder = tmp_path / str(rank)
        share = Share(rank=rank, world_size=2)
        with pytest.raises(FileNotFoundError):  # the files of the other process are missing: it did not run
            prepare_pairs(video_pairs(3), wan_model(), folder, share=share, show_progress=False)
        made.append({path.name for path in folder.iterdir() if path.name.startswith("video")})
    assert not made[0] & made[1] and len(made[0] | made[1]) == 6


def test_paths_and_bytes_are_videos_too(tmp_path: Path) -> None:
    content = random_mp4(3)
    file = tmp_path / "a.mp4"
    file.write_bytes(content)
    rows = {"prompt": ["the fox"], "chosen": [str(file)], "rejected": [str(file)]}
    by_path = prepare_pairs(datasets.Dataset.from_dict(rows), wan_model(), tmp_path / "c", show_progress=False)
    rows["chosen"] = rows["rejected"] = [content]
    by_bytes = prepare_pairs(datasets.Dataset.from_dict(rows), wan_model(), tmp_path / "c", show_progress=False)
    assert by_path.latent_files == by_bytes.latent_files
    assert len(list((tmp_path / "c").iterdir())) == 2  # one video, one prompt


def test_latents_in_the_dataset_need_no_video(tmp_path: Path) -> None:
    dataset = latent_pairs(2).with_format("torch")
    pairs = prepare_pairs(dataset, wan_model(), tmp_path, show_progress=False)
    assert pairs[1]["chosen"].shape == LATENT_SHAPE and pairs[1]["chosen"].dtype == torch.float32
    assert {path.name.split("-")[0] for path in tmp_path.iterdir()} == {"prompt"}


def test_columns_prompts_and_kind_are_checked(tmp_path: Path) -> None:
    def prepare(dataset: object) -> None:
        prepare_pairs(dataset, wan_model(), tmp_path, name="train_dataset", show_progress=False)

    with pytest.raises(ValueError, match="train_dataset has no column 'rejected'; it has chosen, prompt"):
        prepare(video_pairs(1).remove_columns("rejected"))
    with pytest.raises(ValueError, match="has 'chosen_latents' but no 'rejected_latents'"):
        prepare(latent_pairs(1).remove_columns("rejected_latents"))
    with pytest.raises(ValueError, match="train_dataset is empty"):
        prepare(latent_pairs(2).select([]))
    with pytest.raises(ValueError, match="train_dataset row 1, column 'prompt': expected a text, got ' '"):
        prepare(replace_cell(latent_pairs(3), 1, "prompt", " "))
    with pytest.raises(TypeError, match="train_dataset is a DatasetDict.*one split"):
        prepare(datasets.DatasetDict(train=latent_pairs(1)))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            save({"latents": torch.zeros(4, 2, 2, 4)}),
            r"shape \(4, 2, 2, 4\), but .* 'chosen_latents' has \(4, 3, 2, 4\)",
        ),
        (save({"latents": torch.zeros(1, 4, 3, 2, 4)}), r"got shape \(1, 4, 3, 2, 4\)"),
        (save({"latents": torch.full(LATENT_SHAPE, torch.nan)}), "not finite"),
        (save({"x": torch.zeros(LATENT_SHAPE)}), "one tensor 'latents'.*KeyError"),
        (b"\x08\0\0\0\0\0\0\0not json", "something else"),
        (save({"latents": torch.zeros(LATENT_SHAPE)})[:-4], "not a whole safetensors file"),
        (None, "got None"),
    ],
)
def test_bad_latents_are_named_before_training(tmp_path: Path, value: bytes | None, message: str) -> None:
    dataset = replace_cell(latent_pairs(3), 2, "rejected_latents", value)
    with pytest.raises(ValueError, match=f"row 2, column 'rejected_latents': .*{message}"):
        prepare_pairs(dataset, wan_model(), tmp_path, show_progress=False)


def test_latents_of_another_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="row 0, column 'chosen_latents': latents with 5 channels.*has 4"):
        prepare_pairs(latent_pairs(2, shape=(5, 3, 2, 4)), wan_model(), tmp_path, show_progress=False)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"bytes": random_mp4(0, num_frames=8), "path": "a.mp4"}, "num_frames=8:.*5 or 9"),
        (
            {"bytes": random_mp4(0, num_frames=5), "path": "a.mp4"},
            r"shape \(4, 2, 2, 4\).*same number of frames and the same size",
        ),
        ({"bytes": b"no video", "path": "a.mp4"}, "not a readable video"),
        ({"bytes": None, "path": "/nowhere/a.mp4"}, "cannot be read: .*nowhere"),
        (None, "expected a video as bytes or a path, got None"),
    ],
)
def test_bad_videos_are_named_before_training(tmp_path: Path, value: dict | None, message: str) -> None:
    dataset = replace_cell(video_pairs(3), 1, "rejected", value)
    with pytest.raises(ValueError, match=f"row 1, column 'rejected': .*{message}"):
        prepare_pairs(dataset, wan_model(), tmp_path, show_progress=False)
