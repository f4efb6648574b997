"""A dataset that was read from files, perhaps of somebody else, names no video outside of its folders."""

from __future__ import annotations

import os
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets import Dataset, Features, Value, Video, load_dataset, load_from_disk

from spatialalign_trl.trainer.dataset_files import check_video_files
from spatialalign_trl.trainer.pair_columns import check_pairs
from spatialalign_trl.video import encode_video, write_video

FRAMES = np.random.default_rng(0).integers(0, 256, (3, 136, 144, 3), dtype=np.uint8)
CELLS = Features({"prompt": Value("string"), "chosen": Video(decode=False), "rejected": Video(decode=False)})
PATHS = Features({name: Value("string") for name in ("prompt", "chosen", "rejected")})


@pytest.fixture
def work(tmp_path, monkeypatch) -> Path:
    """A working directory with a video of its own, next to the user's private one."""
    folder = tmp_path / "work"
    write_video(folder / "videos" / "own.mp4", FRAMES, fps=8, crf=0)
    write_video(tmp_path / "private.mp4", FRAMES, fps=8, crf=0)
    (folder / "videos" / "link.mp4").symlink_to(tmp_path / "private.mp4")
    monkeypatch.chdir(folder)
    return folder


def pairs(rejected: str, as_cell: bool, rows: int = 3) -> Dataset:
    """Return pairs, the last of which names a file as its rejected video."""
    own = "videos/own.mp4"
    names = [(own, own)] * (rows - 1) + [(own, rejected)]
    cells = [{"bytes": None, "path": name} if as_cell else name for pair in names for name in pair]
    content = {"prompt": ["p"] * rows, "chosen": cells[::2], "rejected": cells[1::2]}
    return Dataset.from_dict(content, features=CELLS if as_cell else PATHS)


def from_parquet(dataset: Dataset, folder: Path) -> Dataset:
    file = folder / f"{dataset._fingerprint}.parquet"
    dataset.to_parquet(file)
    return load_dataset("parquet", data_files=str(file), split="train", cache_dir=str(folder / "hub"))


def from_json(dataset: Dataset, folder: Path) -> Dataset:
    dataset.to_json(folder / "pairs.jsonl")
    return load_dataset("json", data_files=str(folder / "pairs.jsonl"), split="train", cache_dir=str(folder / "hub"))


def from_disk(dataset: Dataset, folder: Path) -> Dataset:
    dataset.save_to_disk(folder / "saved")
    return load_from_disk(folder / "saved")


def in_memory(dataset: Dataset, folder: Path) -> Dataset:
    file = folder / "pairs.parquet"
    dataset.to_parquet(file)
    return Dataset.from_parquet(str(file), cache_dir=str(folder / "hub"), keep_in_memory=True)


READERS = [(read, as_cell) for read in (from_parquet, from_json, in_memory) for as_cell in (True, False)]
READERS.append((from_disk, False))  # of cells, save_to_disk stores the content


def outside(tmp_path: Path, how: str) -> str:
    return {"absolute": str(tmp_path / "private.mp4"), "dots": "../private.mp4", "link": "videos/link.mp4"}[how]


@pytest.mark.parametrize("how", ["absolute", "dots", "link"])
@pytest.mark.parametrize(("read", "as_cell"), READERS)
def test_a_path_that_leads_out_is_refused_with_its_row_and_column(tmp_path, work, read, how, as_cell):
    path = outside(tmp_path, how)
    message = rf"pairs row 2, column 'rejected': '{path}' lies outside of .*'bytes'"
    for dataset in (read(pairs(path, as_cell), tmp_path), read(pairs(path, as_cell), tmp_path).select([2, 1])):
        row = 2 if len(dataset) == 3 else 0
        with pytest.raises(ValueError, match=message.replace("row 2", f"row {row}")):
            check_pairs(dataset, "pairs")


@pytest.mark.parametrize(("read", "as_cell"), READERS)
def test_files_of_the_working_directory_are_read(tmp_path, work, read, as_cell):
    for path in ("videos/own.mp4", str(work / "videos" / "own.mp4")):
        columns = check_pairs(read(pairs(path, as_cell), tmp_path), "pairs")
        assert np.array_equal(columns.video(2, "rejected"), FRAMES)


@pytest.mark.parametrize("as_cell", [True, False])
def test_paths_of_a_dataset_made_in_python_are_the_user_s_own(tmp_path, work, as_cell):
    made = pairs(str(tmp_path / "private.mp4"), as_cell)
    again = from_parquet(made, tmp_path)
    generated = Dataset.from_generator(lambda: iter(made), cache_dir=str(tmp_path / "hub"), features=made.features)
    for dataset in (made, made.map(lambda row: {"more": 1}), Dataset.from_list(again.to_list()), generated):
        assert np.array_equal(check_pairs(dataset, "pairs").video(2, "rejected"), FRAMES)


def test_a_cell_with_its_content_may_have_any_name(tmp_path, work):
    content = encode_video(FRAMES, 8, 0)
    cell = {"bytes": content, "path": str(tmp_path / "gone.mp4")}
    made = Dataset.from_dict({"prompt": ["p"], "chosen": [cell], "rejected": [cell]}, features=CELLS)
    assert np.array_equal(check_pairs(from_parquet(made, tmp_path), "pairs").video(0, "chosen"), FRAMES)
    raw = Dataset.from_dict({"prompt": ["p"], "chosen": [content], "rejected": [content]})
    assert np.array_equal(check_pairs(from_parquet(raw, tmp_path), "pairs").video(0, "chosen"), FRAMES)


def test_a_folder_of_videos_may_lie_anywhere_and_so_may_the_hub_s_cache(tmp_path, work, monkeypatch):
    folder = tmp_path / "elsewhere"
    write_video(folder / "a.mp4", FRAMES, fps=8, crf=0)
    (folder / "metadata.jsonl").write_text('{"chosen_file_name": "a.mp4", "prompt": "p"}\n')
    dataset = load_dataset("videofolder", data_dir=str(folder), split="train", cache_dir=str(tmp_path / "hub"))
    check_video_files(dataset, ["chosen"], "videos")

    cached = pairs(str(folder / "a.mp4"), False)
    with pytest.raises(ValueError, match="lies outside"):
        check_video_files(from_parquet(cached, tmp_path), ["rejected"], "pairs")
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", folder)
    check_video_files(from_parquet(cached, tmp_path), ["rejected"], "pairs")


def test_thousands_of_rows_are_all_checked(tmp_path, work):
    dataset = from_parquet(pairs("../private.mp4", True, rows=3000), tmp_path)
    with pytest.raises(ValueError, match="pairs row 2999, column 'rejected'"):
        check_video_files(dataset, ["chosen", "rejected"], "pairs")
    check_video_files(dataset.select(range(2999)), ["chosen", "rejected"], "pairs")


def test_other_columns_are_left_alone(tmp_path, work):
    made = Dataset.from_dict({"frames": [np.zeros((1, 2, 2, 3)).tolist()], "boxes": [None], "note": [None]})
    check_video_files(from_parquet(made, tmp_path), made.column_names, "rows")
    assert os.listdir(work) == ["videos"]
