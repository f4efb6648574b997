import importlib.util
import json
from collections import Counter

import datasets
import pytest

from spatialalign_trl.prompts import DSR_TYPES, PROMPT_COLUMNS, load_prompts, parse_prompt
from spatialalign_trl.tiny_world.vocabulary import ANIMAL_COLORS, ANIMALS, OBJECTS, SCENES, VERBS, is_held_out

SIZES = {"train": 240, "validation": 60, "test": 60}
WORDS = {"scene": SCENES, "attribute": ANIMAL_COLORS, "animal": ANIMALS, "object": OBJECTS, "verb": VERBS}


def combination(row):
    return tuple(row[column] for column in ("scene", "attribute", "animal", "object"))


@pytest.fixture(scope="module")
def folder(repo_root):
    return repo_root / "datasets" / "tiny_world_prompts"


@pytest.fixture(scope="module")
def recipe(repo_root):
    path = repo_root / "recipes" / "make_tiny_world_prompts.py"
    spec = importlib.util.spec_from_file_location("make_tiny_world_prompts", path)
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


def test_every_prompt_parses_back_and_ids_and_texts_are_unique(folder, splits):
    for split, rows in splits.items():
        assert load_prompts(folder / f"{split}.jsonl").to_list() == rows.to_list()
        assert all(parse_prompt(row["prompt"], row["prompt_id"]).to_row() == row for row in rows)
        assert all(row["prompt_id"].startswith(f"tiny-{split}-{row['type']}-") for row in rows)
    for column in ("prompt_id", "prompt"):
        values = [value for rows in splits.values() for value in rows[column]]
        assert len(set(values)) == len(values)


def test_every_word_is_in_the_tiny_world_and_used_in_every_split(splits):
    for rows in splits.values():
        for column, known in WORDS.items():
            assert set(rows[column]) == set(known)


def test_types_and_verbs_are_balanced_also_at_the_head_of_a_split(splits):
    for rows in splits.values():
        for head in (12, 24, len(rows)):
            first = rows.select(range(head))
            assert Counter(first["type"]) == dict.fromkeys(DSR_TYPES, head // len(DSR_TYPES))
            assert Counter(first["verb"]) == dict.fromkeys(VERBS, head // len(VERBS))
        assert len(set(zip(rows["type"], rows["verb"], strict=True))) == len(DSR_TYPES) * len(VERBS)


def test_validation_and_test_use_different_held_out_combinations_and_train_none(splits):
    used = {split: {combination(row) for row in rows} for split, rows in splits.items()}
    assert not any(is_held_out(*words) for words in used["train"])
    assert all(is_held_out(*words) for split in ("validation", "test") for words in used[split])
    assert not used["validation"] & used["test"]
    assert len(used["train"]) == SIZES["train"]
    for split in ("validation", "test"):
        repeated = Counter((combination(row), row["type"]) for row in splits[split])
        assert set(repeated.values()) == {1}


def test_the_cards_example_is_a_prompt_of_the_set(folder, splits):
    card = (folder / "README.md").read_text(encoding="utf-8")
    (example,) = [line[2:] for line in card.splitlines() if line.startswith("> ")]
    assert example == splits["test"][0]["prompt"]
    for split, size in SIZES.items():
        combinations = len({combination(row) for row in splits[split]})
        assert f"| {split} | {size} | {size // 6} | {size // 4} | {combinations} |" in card


def test_running_again_gives_the_same_bytes(recipe, folder, tmp_path, capsys):
    recipe.main(["--output", str(tmp_path)])
    printed = capsys.readouterr().out
    for split, size in SIZES.items():
        assert (tmp_path / f"{split}.jsonl").read_bytes() == (folder / f"{split}.jsonl").read_bytes()
        assert f"{split}.jsonl: {size} prompts" in printed


def test_seed_and_sizes(recipe, folder, tmp_path):
    recipe.main(["--output", str(tmp_path), "--num_train", "12", "--num_test", "222"])
    assert (folder / "train.jsonl").read_bytes().startswith((tmp_path / "train.jsonl").read_bytes())
    texts = [json.loads(line)["prompt"] for line in (tmp_path / "test.jsonl").read_text().splitlines()]
    assert len(set(texts)) == 222
    recipe.main(["--output", str(tmp_path), "--seed", "1"])
    assert (tmp_path / "test.jsonl").read_bytes() != (folder / "test.jsonl").read_bytes()
    with pytest.raises(ValueError, match="num_validation is 7: it must be a positive multiple of the 6 types"):
        recipe.main(["--output", str(tmp_path), "--num_validation", "7"])
    with pytest.raises(ValueError, match="num_test=228: 37 combinations in 6 types give at most 222"):
        recipe.main(["--output", str(tmp_path), "--num_test", "228"])
