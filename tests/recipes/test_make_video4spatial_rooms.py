"""The task sets of rooms: they load, the recipe reproduces them, and splits share no room or layout."""

from __future__ import annotations

import importlib.util
import json

import datasets
import pytest

from spatialalign_trl.scenes.tasks import TASKS
from spatialalign_trl.tiny_world.rooms import split_of
from spatialalign_trl.tiny_world.rooms.layout import sample_layout

SIZES = {
    "indoor": {"train": 64, "validation": 16, "test": 32, "outdoor": 16},
    "flat": {"train": 128, "validation": 64, "test": 64, "outdoor": 32},
}
SETS = [(task, style) for style in SIZES for task in TASKS]


@pytest.fixture(scope="module")
def recipe(repo_root):
    path = repo_root / "recipes" / "make_video4spatial_rooms.py"
    spec = importlib.util.spec_from_file_location("make_video4spatial_rooms", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", params=SETS, ids=["-".join(names) for names in SETS])
def task_and_style(request):
    return request.param


@pytest.fixture(scope="module")
def folder(task_and_style, repo_root):
    task, style = task_and_style
    return repo_root / "datasets" / (f"video4spatial_{task}" + ("_flat" if style == "flat" else ""))


@pytest.fixture(scope="module")
def sizes(task_and_style):
    return SIZES[task_and_style[1]]


@pytest.fixture(scope="module")
def splits(folder, sizes):
    return {
        split: [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()] for split in sizes
    }


def test_the_folder_loads_as_a_dataset(folder, sizes, splits, tmp_path):
    loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path))
    assert {split: len(rows) for split, rows in loaded.items()} == sizes
    for split, rows in loaded.items():
        assert rows[0] == splits[split][0] and rows[-1] == splits[split][-1]
    card = (folder / "README.md").read_text(encoding="utf-8")
    for column in loaded["train"].column_names:
        assert f"| `{column}` |" in card
    for split, size in sizes.items():
        assert f"| {split} | {size} |" in card
    assert f"> {splits['test'][0]['prompt']}\n" in card


def test_splits_share_neither_rooms_nor_layouts_and_only_outdoor_is_outdoors(task_and_style, splits):
    layouts = {}
    for split, rows in splits.items():
        inside = task_and_style[1]
        outside = {"indoor": "outdoor", "flat": "flat_outdoor"}[inside]
        style = outside if split == "outdoor" else inside
        assert {row["style"] for row in rows} == {style}
        assert {split_of(row["room_seed"]) for row in rows} == {"test" if split == "outdoor" else split}
        layouts[split] = {sample_layout(row["room_seed"], style).signature() for row in rows}
    names = list(layouts)
    assert not any(layouts[a] & layouts[b] for i, a in enumerate(names) for b in names[:i])
    ids = [row["task_id"] for rows in splits.values() for row in rows]
    assert len(set(ids)) == len(ids)


def test_the_recipe_makes_the_same_rows_again(recipe, folder, task_and_style, sizes, tmp_path):
    task, style = task_and_style
    few = [f"--num_{split}=2" for split in sizes]
    recipe.main(["--output", str(tmp_path), "--tasks", task, "--style", style, *few])
    for split in sizes:
        made = (tmp_path / folder.name / f"{split}.jsonl").read_bytes()
        assert made.count(b"\n") == 2 and (folder / f"{split}.jsonl").read_bytes().startswith(made)


def test_the_sets_are_small(folder):
    assert sum(file.stat().st_size for file in folder.iterdir()) < 600_000
