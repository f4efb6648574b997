"""The preference dataset on the Hub: what is pushed when, what comes back, and that no failure stops the run."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from datasets import Video, load_dataset
from huggingface_hub import DatasetCard, HfApi
from loopback_hub import TOKEN
from tiny_loop import config, loop, prompts
from tiny_pipelines import saved_wan

from spatialalign_trl.cli import main as spatialalign
from spatialalign_trl.hub import pushing
from spatialalign_trl.online.preference_repo import PreferenceRepo
from spatialalign_trl.preferences import PairingResult

REPO = "tester/prefs"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return saved_wan(tmp_path_factory.mktemp("wan"))


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch) -> list[float]:
    pauses: list[float] = []
    monkeypatch.setattr(pushing.time, "sleep", pauses.append)  # the client's own pauses too: it is one module
    return pauses


def run(folder: str, output: Path, **overrides):
    settings = {"push_preferences_to_hub": REPO, "max_steps": 1, "evaluation_seeds": 1, **overrides}
    trainer = loop(folder, output, **settings)
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def ran_without_the_hub(folder, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("finished") / "run"
    run(folder, output, push_preferences_to_hub=None)
    return output


@pytest.fixture
def finished(ran_without_the_hub, tmp_path) -> Path:
    """The folder of a run that is done and has pushed nothing."""
    return Path(shutil.copytree(ran_without_the_hub, tmp_path / "run"))


def loaded(config_name: str, **kwargs):
    dataset = load_dataset(REPO, config_name, split="train", **kwargs)
    for column in ("chosen", "rejected") if config_name == "preferences" else ("video",):
        dataset = dataset.cast_column(column, Video(decode=False))
    return dataset


FRESH = """\
import hashlib, json, sys
from datasets import Video, load_dataset
out = {}
for streaming in (False, True):
    for name, columns in (("preferences", ("chosen", "rejected")), ("samples", ("video",))):
        dataset = load_dataset("tester/prefs", name, split="train", streaming=streaming)
        for column in columns:
            dataset = dataset.cast_column(column, Video(decode=False))
        out[f"{name}{streaming}"] = [
            [row[c]["path"] + hashlib.sha256(row[c]["bytes"]).hexdigest() for c in columns] for row in dataset]
json.dump(out, open(sys.argv[1], "w"))
from spatialalign_trl.models import load_video_model
from spatialalign_trl.trainer import DiffusionDPOConfig, DiffusionDPOTrainer
pairs = load_dataset("tester/prefs", "preferences", split="train")
args = DiffusionDPOConfig(output_dir=sys.argv[3], max_steps=1, per_device_train_batch_size=2, use_cpu=True, bf16=False,
    report_to="none", gradient_checkpointing=False, logging_steps=1, disable_tqdm=True, save_strategy="no")
trainer = DiffusionDPOTrainer(model=load_video_model(sys.argv[2], device="cpu"), args=args, train_dataset=pairs)
trainer.train()
print("loss", trainer.state.log_history[0]["loss"])
"""


def test_two_rounds_arrive_and_a_fresh_process_loads_the_same_bytes_and_trains(loopback_client, folder, tmp_path):
    import hashlib

    trainer = run(folder, tmp_path / "run", num_rounds=2, push_preferences_every=4, pair_strategy="min_gap",
                  min_pair_gap=1e-6)  # fmt: skip
    hub = loopback_client
    assert hub.repo("dataset", REPO).private
    names = set(hub.files("dataset", REPO))
    assert names == {
        ".gitattributes", "README.md", "preview.png",
        *(f"{c}/round-0{n}-00000.parquet" for c in ("preferences", "samples") for n in (1, 2)),
    }  # fmt: skip
    titles = [commit.title for commit in HfApi().list_repo_commits(REPO, repo_type="dataset")]
    assert titles[::-1] == ["initial commit", *["Round 1: sampling"] * 2, "Round 1: sampled",
                            *["Round 2: sampling"] * 2, "Round 2: sampled", "Round 2: trained"]  # fmt: skip

    samples = loaded("samples")
    assert len(samples) == 24 and samples["round"][:] == [1] * 12 + [2] * 12
    pairs = loaded("preferences")
    last = json.loads((tmp_path / "run/rounds/02/round.json").read_text())
    assert pairs["round"][:].count(2) == last["preferences"]["pairs"]
    row = pairs[0]
    assert row["score_chosen"] == row["rewards_chosen"]["luck"] > row["score_rejected"]
    assert json.loads(row["sampling_settings_chosen"]) == trainer.settings.to_dict()
    assert row["policy_revision_chosen"].endswith("@base") and str(tmp_path) not in json.dumps(str(row))
    assert {"seed_chosen", "chosen_noise_seed", "components_rejected", "chosen_sample_id"} <= set(row)

    environment = hub.environment(tmp_path / "home")
    words = [sys.executable, "-c", FRESH, str(tmp_path / "out.json"), folder, str(tmp_path / "trained")]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "loss 0.69" in done.stdout, done.stderr
    seen = json.loads((tmp_path / "out.json").read_text())
    name_of = lambda sample_id: (  # noqa: E731
        f"{sample_id}.mp4" + hashlib.sha256(trainer.store.video_bytes(sample_id)).hexdigest()
    )
    expected = [[name_of(row["sample_id"])] for row in samples]
    assert seen["samplesFalse"] == seen["samplesTrue"] == expected
    expected = [[name_of(row[f"{side}_sample_id"]) for side in ("chosen", "rejected")] for row in pairs]
    assert seen["preferencesFalse"] == seen["preferencesTrue"] == expected
    check_card(hub, tmp_path / "run")
    code = hub.files("dataset", REPO)["README.md"].decode().split("```python\n")[1].split("```")[0]
    shown: dict = {}
    exec(code, shown)
    assert shown["pairs"][0]["chosen"] == pairs[0]["chosen"] and next(iter(shown["samples"]))["prompt"]


def check_card(hub, output: Path) -> None:
    card = DatasetCard(hub.files("dataset", REPO)["README.md"].decode())
    assert card.data.license == "apache-2.0" and {"dpo", "spatialalign"} <= set(card.data.tags)
    assert [c["config_name"] for c in card.data.to_dict()["configs"]] == ["preferences", "samples"]
    for words in ("S@0.7", "INVALID", "█", "arXiv", "2602.22745", "| round 2 |", "before and after", "preview.png",
                  "In a meadow", "`luck`", "24 sampled videos"):  # fmt: skip
        assert words in card.text, words
    assert str(output) not in card.text and TOKEN not in card.text
    assert hub.files("dataset", REPO)["preview.png"].startswith(b"\x89PNG")


def test_pushing_again_replaces_a_round_and_leaves_no_stale_files(loopback_client, folder, finished):
    assert not (finished / "hub_preferences").exists()  # it ran without the Hub; a rerun pushes what it finds
    run(folder, finished)
    before = loopback_client.files("dataset", REPO)
    samples = loaded("samples")
    assert len(samples) == 12 and not set(samples["prompt"][:]) & set(prompts("eval", "blue")["prompt"][:])
    api = HfApi()
    for name in ("samples/round-01-00001.parquet", "preferences/round-07-00000.parquet", "notes.txt"):
        api.upload_file(path_or_fileobj=b"stale", path_in_repo=name, repo_id=REPO, repo_type="dataset")
    commits = len(loopback_client.repo("dataset", REPO).branches["main"])
    for _ in range(2):  # the second time nothing has changed, so there is nothing to commit
        run(folder, finished)
        assert loopback_client.files("dataset", REPO) == {**before, "notes.txt": b"stale"}
        assert len(loopback_client.repo("dataset", REPO).branches["main"]) == commits + 1


def kept(caught, output: Path) -> list[str]:
    """The words of the command that a warning gives."""
    (message,) = {str(one.message) for one in caught if "not on the Hub" in str(one.message)}
    assert TOKEN not in message and "The run goes on" in message
    words = message.splitlines()[-1].split()
    assert words == ["spatialalign", "push-preferences", str(output), "--repo", REPO]
    return words[1:]


@pytest.mark.parametrize(
    ("where", "status"),
    [("/commit/", 401), ("/commit/", 409), ("/repos/create", 429), ("/lfs-storage/", 500), ("/preupload/", None)],
)
def test_a_run_outlives_a_failed_push_and_says_how_to_push_later(
    loopback_client, folder, finished, where, status, capsys
):
    if where == "/repos/create":
        HfApi().create_repo(REPO, repo_type="dataset")
    fault = loopback_client.fail("*", where, status, times=10_000)
    with pytest.warns(UserWarning) as caught:
        assert run(folder, finished).results["rounds"]
    assert fault.hits
    loopback_client.faults.clear()
    assert spatialalign(kept(caught, finished)) == 0
    assert "/commit/" in capsys.readouterr().out and len(loaded("samples")) == 12


def test_a_push_that_fails_while_sampling_stops_neither_sampling_nor_training(loopback_client, folder, tmp_path):
    fault = loopback_client.fail("POST", "/commit/", 403, times=2)  # among the samples, and after them
    with pytest.warns(UserWarning) as caught:
        run(folder, tmp_path / "run", push_preferences_every=8)
    assert fault.hits == 2 and kept(caught, tmp_path / "run")
    assert len(loaded("samples")) == 12  # the push at the end held it all


@pytest.mark.parametrize("name", ["prefs", "a/b/c", "me/with space", "me/..", "datasets/me/x", ""])
def test_an_impossible_name_is_refused_at_once(tmp_path, name):
    with pytest.raises(ValueError, match="push_preferences_to_hub"):
        config(tmp_path, push_preferences_to_hub=name)


def test_a_missing_or_wrong_token_is_heard_before_anything_is_sampled(loopback_client, folder, tmp_path, monkeypatch):
    with pytest.raises(PermissionError, match="403"):
        run(folder, tmp_path / "a", push_preferences_to_hub="stranger/prefs")
    with pytest.raises(PermissionError, match="401") as caught:
        run(folder, tmp_path / "b", hub_token="hf_wrongwrong")
    assert "hf_wrong" not in str(caught.value)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(PermissionError, match="needs a token"):
        run(folder, tmp_path / "c")
    assert not list(tmp_path.glob("?/samples/*"))


def test_a_hub_that_is_down_at_the_start_stops_nothing(loopback_client, folder, finished):
    loopback_client.fail("POST", "/api/repos/create", 503)
    with pytest.warns(UserWarning, match="pushes when it can"):
        run(folder, finished, push_preferences_public=True)
    assert len(loaded("samples")) == 12 and not loopback_client.repo("dataset", REPO).private


def test_only_the_main_process_pushes(loopback_client, folder, tmp_path):
    trainer = loop(folder, tmp_path, push_preferences_to_hub=REPO)
    waited = []
    other = SimpleNamespace(is_main_process=False, wait_for_everyone=lambda: waited.append(1))
    repo = PreferenceRepo(dataclasses.replace(trainer.parts, accelerator=other))
    repo.push_round(1, [], PairingResult([], {}, {}))
    repo.push_finished({})
    assert len(waited) == 2 and not loopback_client.requests
