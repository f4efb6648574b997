import importlib.util
import re
from collections import Counter

import datasets
import pytest
import yaml

from spatialalign_trl.prompts import DSR_TYPES, PROMPT_COLUMNS, load_prompts, parse_prompt

SIZES = {"train": 1200, "test": 120}


@pytest.fixture(scope="module")
def folder(repo_root):
    return repo_root / "datasets" / "dsr_prompts"


@pytest.fixture(scope="module")
def recipe(repo_root):
    spec = importlib.util.spec_from_file_location("make_dsr_prompts", repo_root / "recipes" / "make_dsr_prompts.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def splits(folder, tmp_path_factory):
    cache = tmp_path_factory.mktemp("datasets_cache")
    return datasets.load_dataset(str(folder), cache_dir=str(cache))


def test_the_folder_loads_as_a_dataset(splits):
    assert {split: len(rows) for split, rows in splits.items()} == SIZES
    for rows in splits.values():
        assert rows.features == datasets.Features({column: datasets.Value("string") for column in PROMPT_COLUMNS})


def test_every_prompt_follows_the_grammar_and_ids_are_unique(folder, splits):
    for split, rows in splits.items():
        assert load_prompts(folder / f"{split}.jsonl").to_list() == rows.to_list()
        assert all(parse_prompt(row["prompt"], row["prompt_id"]).to_row() == row for row in rows)
    ids = [row["prompt_id"] for rows in splits.values() for row in rows]
    assert len(set(ids)) == len(ids)


def test_types_are_balanced_and_no_combination_comes_twice(splits):
    combinations = []
    for split, rows in splits.items():
        assert Counter(rows["type"]) == {dsr_type: SIZES[split] // 6 for dsr_type in DSR_TYPES}
        combinations += [(row["scene"], row["animal"], row["object"]) for row in rows]
    assert len(set(combinations)) == len(combinations)


def test_the_word_lists_are_large_enough_and_all_used(folder, splits):
    words = yaml.safe_load((folder / "words.yaml").read_text(encoding="utf-8"))
    lists = {
        "animal": list(words["animals"]),
        "object": sum(words["objects"].values(), []),
        "scene": sum(words["scenes"].values(), []),
    }
    for column, at_least in {"animal": 9, "object": 15, "scene": 120}.items():
        assert len(set(lists[column])) == len(lists[column]) >= at_least
        assert set(splits["train"][column]) == set(lists[column])
    for scene in lists["scene"]:
        # If the scene mentioned another bench, the prompt would be ambiguous.
        nouns = {word for noun in (*lists["object"], *lists["animal"]) for word in (noun, noun + "s", noun + "es")}
        assert not [word for word in nouns if re.search(rf"\b{word}\b", scene)], scene


def test_no_prompt_or_scene_is_taken_from_the_authors(shared_data, splits):
    for name in ("dsr_eval30.csv", "dsr_eval120.csv"):
        authors = load_prompts(shared_data / name)
        for rows in splits.values():
            assert not set(authors["prompt"]) & set(rows["prompt"])
            assert not set(authors["scene"]) & set(rows["scene"])


def test_running_again_gives_the_same_bytes(recipe, folder, tmp_path, capsys):
    recipe.main(["--output", str(tmp_path)])
    printed = capsys.readouterr().out
    for split, size in SIZES.items():
        assert (tmp_path / f"{split}.jsonl").read_bytes() == (folder / f"{split}.jsonl").read_bytes()
        assert f"{split}.jsonl: {size} prompts" in printed


def test_seed_and_size(recipe, folder, tmp_path):
    recipe.main(["--output", str(tmp_path), "--num_train", "12", "--num_test", "120"])
    assert (folder / "train.jsonl").read_bytes().startswith((tmp_path / "train.jsonl").read_bytes())
    recipe.main(["--output", str(tmp_path), "--seed", "1"])
    assert (tmp_path / "test.jsonl").read_bytes() != (folder / "test.jsonl").read_bytes()
    with pytest.raises(ValueError, match="num_test is 7: it must be a positive multiple of the 6 types"):
        recipe.main(["--output", str(tmp_path), "--num_test", "7"])
    with pytest.raises(ValueError, match="num_train=600000, num_test=120: the words give only"):
        recipe.main(["--output", str(tmp_path), "--num_train", "600000"])
