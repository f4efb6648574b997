"""`spatialalign push-prompts` uploads a folder unchanged that loads again, and refuses one that does not load."""

from __future__ import annotations

import json

import pytest

from spatialalign_trl.arguments.prompts import PromptArguments
from spatialalign_trl.cli import main
from spatialalign_trl.prompts import load_prompts

CARD = """\
---
configs:
  - config_name: default
    data_files:
      - split: train
        path: train.jsonl
      - split: test
        path: test.jsonl
---
# Mine
"""
PROMPT = "In a meadow, a {} is on the left of a box, then the {} jumps to the right of the box."


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "README.md").write_text(CARD)
    for split, animal in (("train", "cat"), ("test", "dog")):
        row = {"prompt_id": split, "prompt": PROMPT.format(animal, animal)}
        (folder / f"{split}.jsonl").write_text(json.dumps(row) + "\n")
    return folder


def push(folder, *more: str) -> int:
    return main(["push-prompts", str(folder), "--repo", "tester/mine", *more])


def test_a_folder_is_pushed_unchanged_and_loads_again(folder, loopback_client, capsys):
    (folder / ".secret").write_text("private")
    assert push(folder) == 0
    output = capsys.readouterr().out
    assert "1 train, 1 test prompts: " in output and loopback_client.token not in output
    files = loopback_client.files("dataset", "tester/mine")
    assert {name: data for name, data in files.items() if name != ".gitattributes"} == {
        name: (folder / name).read_bytes() for name in ("README.md", "train.jsonl", "test.jsonl")
    }
    assert loopback_client.repo("dataset", "tester/mine").private
    for split in ("train", "test"):
        assert load_prompts("tester/mine", split).to_list() == load_prompts(folder, split).to_list()
    train, test = PromptArguments(train_prompts="tester/mine").load()
    assert train["animal"][0] == "cat" and test["animal"][0] == "dog"


def test_ids_that_the_hub_would_read_as_other_ids_are_refused(folder, loopback_client, capsys):
    (folder / "README.md").write_text(CARD.replace(".jsonl", ".csv"))
    for split in ("train", "test"):
        (folder / f"{split}.csv").write_text(f'prompt_id,prompt\n007,"{PROMPT.format("cat", "cat")}"\n')
    with pytest.raises(SystemExit):
        push(folder)
    assert "the id '007' would be read as '7' from the Hub" in capsys.readouterr().err


def test_pushing_again_replaces_files_and_keeps_the_repository_public(folder, loopback_client):
    assert push(folder, "--public") == 0
    row = {"prompt_id": "train", "prompt": PROMPT.format("fox", "fox")}
    (folder / "train.jsonl").write_text(json.dumps(row) + "\n")
    assert push(folder) == 0
    assert not loopback_client.repo("dataset", "tester/mine").private
    assert load_prompts("tester/mine", "train")["animal"][0] == "fox"


def test_the_prompts_in_this_repository_can_be_pushed(loopback_client, repo_root):
    assert push(repo_root / "datasets" / "tiny_world_prompts") == 0
    for split in ("train", "validation", "test"):
        pushed = load_prompts("tester/mine", split)
        assert pushed.to_list() == load_prompts(repo_root / "datasets" / "tiny_world_prompts", split).to_list()


def refused(capsys, *words: str) -> str:
    """Push what must be refused, and return the error."""
    with pytest.raises(SystemExit) as stop:
        push(*words)
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_a_folder_that_does_not_load_is_not_pushed(folder, loopback_client, capsys):
    good = (folder / "test.jsonl").read_text()
    (folder / "test.jsonl").write_text(json.dumps({"prompt_id": "x", "prompt": "a cat sleeps", "more": 1}) + "\n")
    assert "does not load: Couldn't cast" in refused(capsys, folder)  # the splits' columns differ
    (folder / "test.jsonl").write_text(json.dumps({"prompt_id": "test", "prompt": "a cat sleeps"}) + "\n")
    assert "split test: row 0 of the dataset" in refused(capsys, folder)
    (folder / "test.jsonl").write_text(good + good)
    assert "prompt_id 'test' was already used" in refused(capsys, folder)
    (folder / "README.md").unlink()
    assert "has no README.md" in refused(capsys, folder)
    assert "there is no folder" in refused(capsys, folder / "absent")
    assert not loopback_client.repos


@pytest.mark.parametrize("status", [401, 403, 500])
def test_an_error_of_the_hub_is_one_line_without_the_token(folder, loopback_client, capsys, status):
    loopback_client.fail("POST", "/api/repos/create", status=status, times=99)
    error = refused(capsys, folder)
    assert "tester/mine" in error and loopback_client.token not in error and "Traceback" not in error
