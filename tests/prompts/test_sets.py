"""Prompt sets have a fixed random order, splits that are balanced by type, and files that load again."""

import json

import pytest

from spatialalign_trl.prompts import build_prompt
from spatialalign_trl.prompts.sets import check_balanced, hash_order, to_jsonl, write_splits

WORDS = [("fox", "stump"), ("hen", "crate"), ("goat", "rock"), ("fox", "rock")]


def prompt(scene):
    return build_prompt(scene=scene, animal="fox", object="stump", type="LR", verb="jumps")


def test_the_order_depends_on_the_words_and_the_seed_only():
    ordered = hash_order(WORDS, seed=0)
    assert ordered == hash_order(reversed(WORDS), seed=0)
    assert sorted(words for _, words in ordered) == sorted(WORDS)
    assert any(hash_order(WORDS, seed=seed) != ordered for seed in range(1, 4))
    assert all(len(digest) == 32 for digest, _ in ordered)


@pytest.mark.parametrize("number", [0, -6, 7])
def test_a_split_that_cannot_be_balanced_is_named(number):
    check_balanced({"num_train": 6})
    with pytest.raises(ValueError, match=f"num_test is {number}: .* positive multiple of the 6 types"):
        check_balanced({"num_train": 6, "num_test": number})


def test_rows_are_written_as_readable_json():
    prompts = [prompt("In a café"), prompt("In a meadow")]
    lines = to_jsonl(prompts).decode("utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [prompt.to_row() for prompt in prompts]
    assert "café" in lines[0]


def test_a_file_is_written_for_every_split(tmp_path, capsys):
    prompts = [prompt("In a café"), prompt("In a meadow")]
    write_splits(tmp_path / "new", {"train": prompts, "test": prompts[:1]})
    assert (tmp_path / "new" / "train.jsonl").read_bytes() == to_jsonl(prompts)
    assert (tmp_path / "new" / "test.jsonl").read_bytes() == to_jsonl(prompts[:1])
    assert "test.jsonl: 1 prompts" in capsys.readouterr().out
