"""A run pushes its samples and pairs to the Hub as a dataset for others, and no failure of the Hub stops the run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from datasets import Dataset, Video, load_dataset
from fresh_process import run_program
from huggingface_hub import DatasetCard, HfApi
from loopback_hub import TOKEN, LoopbackHub, redirect_clients
from tiny_loop import config, loop, prompts
from tiny_pipelines import saved_wan

from spatialalign_trl.cli import main as spatialalign
from spatialalign_trl.hub import pushing
from spatialalign_trl.online.preference_repo import PreferenceRepo
from spatialalign_trl.online.trainer import OnlineSpatialAlignTrainer
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


def run(folder: str, output: Path, **overrides) -> OnlineSpatialAlignTrainer:
    """Run a loop of one short round that pushes its preferences."""
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
    """Return the folder of a run that has ended and has pushed nothing."""
    return Path(shutil.copytree(ran_without_the_hub, tmp_path / "run"))


def loaded(config_name: str) -> Dataset:
    """Return a configuration of the dataset, with videos as bytes."""
    dataset = load_dataset(REPO, config_name, split="train")
    for column in ("chosen", "rejected") if config_name == "preferences" else ("video",):
        dataset = dataset.cast_column(column, Video(decode=False))
    return dataset


# A run of two rounds


@dataclasses.dataclass
class PushedRun:
    """A run that has pushed two rounds, and its dataset as it was loaded from the Hub."""

    hub: LoopbackHub
    trainer: OnlineSpatialAlignTrainer
    output: Path
    samples: Dataset
    pairs: Dataset

    @property
    def card(self) -> DatasetCard:
        return DatasetCard(self.hub.files("dataset", REPO)["README.md"].decode())

    def video(self, sample_id: str) -> str:
        """Return the file name and the SHA-256 of a sample's video, as `use_preference_dataset.py` writes them."""
        return f"{sample_id}.mp4 {hashlib.sha256(self.trainer.store.video_bytes(sample_id)).hexdigest()}"


@pytest.fixture(scope="module")
def pushed(folder, tmp_path_factory) -> Iterator[PushedRun]:
    output, home = tmp_path_factory.mktemp("two rounds") / "run", tmp_path_factory.mktemp("home")
    with LoopbackHub() as hub:
        with pytest.MonkeyPatch.context() as patch:
            redirect_clients(hub, home, patch)
            trainer = run(folder, output, num_rounds=2, push_preferences_every=4, pair_strategy="min_gap",
                          min_pair_gap=1e-6)  # fmt: skip
            result = PushedRun(hub, trainer, output, loaded("samples"), loaded("preferences"))
        yield result


@pytest.fixture
def client_of_pushed(pushed, tmp_path, monkeypatch) -> PushedRun:
    """Return the run, and let the clients of this process use its Hub."""
    redirect_clients(pushed.hub, tmp_path / "hf_home", monkeypatch)
    return pushed


def test_the_dataset_is_private_and_has_a_file_for_every_round(pushed):
    assert pushed.hub.repo("dataset", REPO).private
    assert set(pushed.hub.files("dataset", REPO)) == {
        ".gitattributes", "README.md", "preview.png",
        *(f"{config}/round-0{n}-00000.parquet" for config in ("preferences", "samples") for n in (1, 2)),
    }  # fmt: skip


def test_commits_name_the_round_and_its_progress(client_of_pushed):
    titles = [commit.title for commit in HfApi().list_repo_commits(REPO, repo_type="dataset")]
    assert titles[::-1] == ["initial commit", *["Round 1: sampling"] * 2, "Round 1: sampled",
                            *["Round 2: sampling"] * 2, "Round 2: sampled", "Round 2: trained"]  # fmt: skip


def test_the_samples_of_both_rounds_are_in_the_dataset(pushed):
    assert len(pushed.samples) == 24 and pushed.samples["round"][:] == [1] * 12 + [2] * 12


def test_the_pairs_of_the_last_round_are_in_the_dataset(pushed):
    last = json.loads((pushed.output / "rounds/02/round.json").read_text())
    assert pushed.pairs["round"][:].count(2) == last["preferences"]["pairs"]


def test_a_pair_says_how_its_videos_were_made_and_scored(pushed):
    row = pushed.pairs[0]
    assert row["score_chosen"] == row["rewards_chosen"]["luck"] > row["score_rejected"]
    assert json.loads(row["sampling_settings_chosen"]) == pushed.trainer.settings.to_dict()
    assert row["policy_revision_chosen"].endswith("@base")
    assert {"seed_chosen", "chosen_noise_seed", "components_rejected", "chosen_sample_id"} <= set(row)


def test_a_pair_names_no_path_of_this_machine(pushed):
    assert str(pushed.output.parent) not in json.dumps(str(pushed.pairs[0]))


@pytest.fixture(scope="module")
def stranger(pushed, folder, tmp_path_factory) -> SimpleNamespace:
    """Use the dataset in a fresh process; `videos` is what it loaded, `output` what it printed."""
    place = tmp_path_factory.mktemp("stranger")
    environment = pushed.hub.environment(place / "home")
    done = run_program("use_preference_dataset.py", REPO, folder, place / "trained", env=environment)
    return SimpleNamespace(videos=json.loads((place / "trained" / "videos.json").read_text()), output=done.stdout)


def test_a_fresh_process_loads_the_bytes_of_the_sampled_videos(pushed, stranger):
    expected = [[pushed.video(row["sample_id"])] for row in pushed.samples]
    assert stranger.videos["downloaded"]["samples"] == stranger.videos["streamed"]["samples"] == expected


def test_a_fresh_process_loads_the_bytes_of_both_videos_of_a_pair(pushed, stranger):
    expected = [[pushed.video(row[f"{side}_sample_id"]) for side in ("chosen", "rejected")] for row in pushed.pairs]
    assert stranger.videos["downloaded"]["preferences"] == stranger.videos["streamed"]["preferences"] == expected


def test_a_fresh_process_trains_on_the_pairs(stranger):
    assert "loss 0.69" in stranger.output  # ln 2: nothing has been learned before the first step


def test_the_card_declares_license_tags_and_configurations(pushed):
    data = pushed.card.data
    assert data.license == "apache-2.0" and {"dpo", "spatialalign"} <= set(data.tags)
    assert [config["config_name"] for config in data.to_dict()["configs"]] == ["preferences", "samples"]


@pytest.mark.parametrize(
    "words",
    ["S@0.7", "INVALID", "█", "arXiv", "2602.22745", "| round 2 |", "before and after", "preview.png", "In a meadow",
     "`luck`", "24 sampled videos"],
)  # fmt: skip
def test_the_card_describes_the_run(pushed, words):
    assert words in pushed.card.text


def test_the_card_shows_a_preview(pushed):
    assert pushed.hub.files("dataset", REPO)["preview.png"].startswith(b"\x89PNG")


def test_the_card_holds_no_path_of_this_machine_and_no_token(pushed):
    assert str(pushed.output) not in pushed.card.text and TOKEN not in pushed.card.text


def test_the_code_on_the_card_loads_the_dataset(client_of_pushed):
    code = client_of_pushed.hub.files("dataset", REPO)["README.md"].decode().split("```python\n")[1].split("```")[0]
    names: dict = {}
    exec(code, names)
    assert names["pairs"][0]["chosen"] == client_of_pushed.pairs[0]["chosen"]
    assert next(iter(names["samples"]))["prompt"]


# Runs that are pushed again, and a Hub that fails


def test_running_again_pushes_what_is_missing_and_removes_stale_files(loopback_client, folder, finished):
    assert not (finished / "hub_preferences").exists()  # the first run did not push; the second pushes its samples
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


def push_command(warned, output: Path) -> list[str]:
    """Return the arguments of the `spatialalign` command that a warning of a failed push recommends."""
    (message,) = {str(warning.message) for warning in warned if "not on the Hub" in str(warning.message)}
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
    with pytest.warns(UserWarning) as warned:
        assert run(folder, finished).results["rounds"]
    assert fault.hits
    loopback_client.faults.clear()
    assert spatialalign(push_command(warned, finished)) == 0
    assert "/commit/" in capsys.readouterr().out and len(loaded("samples")) == 12


def test_a_push_that_fails_while_sampling_stops_neither_sampling_nor_training(loopback_client, folder, tmp_path):
    fault = loopback_client.fail("POST", "/commit/", 403, times=2)  # among the samples, and after them
    with pytest.warns(UserWarning) as warned:
        run(folder, tmp_path / "run", push_preferences_every=8)
    assert fault.hits == 2 and push_command(warned, tmp_path / "run")
    assert len(loaded("samples")) == 12  # the push at the end contains everything


@pytest.mark.parametrize("name", ["prefs", "a/b/c", "me/with space", "me/..", "datasets/me/x", ""])
def test_an_impossible_name_is_refused_at_once(tmp_path, name):
    with pytest.raises(ValueError, match="push_preferences_to_hub"):
        config(tmp_path, push_preferences_to_hub=name)


def test_a_namespace_of_others_is_refused_before_anything_is_sampled(loopback_client, folder, tmp_path):
    with pytest.raises(PermissionError, match="403"):
        run(folder, tmp_path, push_preferences_to_hub="stranger/prefs")
    assert not list(tmp_path.glob("samples/*.mp4"))


def test_a_wrong_token_is_refused_before_anything_is_sampled_and_not_shown(loopback_client, folder, tmp_path):
    with pytest.raises(PermissionError, match="401") as caught:
        run(folder, tmp_path, hub_token="hf_wrongwrong")
    assert "hf_wrong" not in str(caught.value)
    assert not list(tmp_path.glob("samples/*.mp4"))


def test_a_missing_token_is_reported_before_anything_is_sampled(loopback_client, folder, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(PermissionError, match="needs a token"):
        run(folder, tmp_path)
    assert not list(tmp_path.glob("samples/*.mp4"))


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
