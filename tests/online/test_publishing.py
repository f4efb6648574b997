"""A run writes a model card and pushes its LoRA to the Hub, evaluates on demand, and runs without evaluation too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from datasets import Dataset
from huggingface_hub import ModelCard
from tiny_loop import config, loop, luck, prompts
from tiny_pipelines import NUM_FRAMES, saved_wan

from spatialalign_trl.models import load_video_model
from spatialalign_trl.models.lora import LORA_FILE
from spatialalign_trl.online.trainer import OnlineSpatialAlignTrainer
from spatialalign_trl.video import read_video


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return saved_wan(tmp_path_factory.mktemp("wan"))


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory) -> OnlineSpatialAlignTrainer:
    trainer = loop(folder, tmp_path_factory.mktemp("runs") / "mine", push_to_hub=False)
    trainer.train()
    return trainer


# The card


@pytest.fixture(scope="module")
def card(finished) -> ModelCard:
    return ModelCard.load(finished.output_dir / "README.md")


def test_the_card_declares_library_and_tags(card):
    tags = {"text-to-video", "lora", "diffusers", "template:sd-lora", "spatialalign", "online-dpo"}
    assert tags <= set(card.data.tags) and card.data.library_name == "diffusers"


@pytest.mark.parametrize(
    "words",
    ["# mine", 'load_lora_weights("mine", ', "| Rounds | 1 |", "| Pairs | 6 |", "| reward_mean, base |", "L_zo"],
)
def test_the_card_says_how_to_load_the_lora_and_how_it_was_trained(card, words):
    assert words in card.text


def test_the_card_is_named_after_the_run_and_not_after_the_folder_of_the_policy(card):
    assert "policy" not in card.text.split("## How it was trained")[0]


def test_the_card_declares_the_metrics_of_the_aligned_policy(finished, card):
    metrics = {result.metric_type: result.metric_value for result in card.data.eval_results}
    aligned = finished.results["aligned"]
    assert metrics == {"reward_mean": round(aligned["reward_mean"], 4), "invalid_rate": aligned["invalid_rate"]}
    assert "On 3 held-out prompts x 2 seeds" in card.text and "|  | base | aligned |" in card.text


def test_the_card_shows_videos_before_and_after(card):
    assert card.text.count("<video ") == 6 and 'videos/1_base.mp4" controls' in card.text
    assert card.data.to_dict()["widget"][0]["output"] == {"url": "videos/1_aligned.mp4"}


@pytest.mark.parametrize("name", ["1_base", "1_aligned"])
def test_the_videos_of_the_card_are_enlarged(finished, name):
    video = read_video(finished.output_dir / "videos" / f"{name}.mp4")
    assert video.shape[0] == NUM_FRAMES and video.shape[1] >= 240


def test_the_card_cites_the_papers_of_its_method_only(card):
    assert "{2602.22745}" in card.text and "{2311.12908}" in card.text and "2512.03040" not in card.text


# The report


@pytest.fixture(scope="module")
def two_rewards(folder, tmp_path_factory) -> tuple[Path, dict]:
    """Run the loop with a second reward that adds 10 to every score; return the folder and the results."""

    def ten(prompts, completions, **kwargs):
        return [10.0] * len(prompts)

    output = tmp_path_factory.mktemp("two rewards")
    return output, loop(folder, output, [luck, ten], report_megabytes=1).train()


def test_the_page_shows_the_value_of_the_first_reward_as_the_tables_do(two_rewards):
    output, results = two_rewards
    notes = json.loads((output / "report.json").read_text())
    scores = [clip["reward"] for clip in notes["clips"] if clip["policy"] == "base"]
    assert sum(scores) / len(scores) == pytest.approx(results["base"]["reward_mean"]) and max(scores) < 1
    assert max(notes["round_scores"][0]) < 1


def test_pairs_are_made_of_the_sum_of_the_rewards(two_rewards):
    pairs = Dataset.from_parquet(str(two_rewards[0] / "preferences" / "train-00000-of-00001.parquet"))
    assert min(pairs["score_chosen"]) > 10


# Pushes to the Hub


@pytest.fixture
def pushed_files(finished, loopback_client) -> dict[str, bytes]:
    """Push the finished run and return the files on the Hub."""
    url = finished.push_to_hub(dataset_name="me/pairs", tags="extra")
    assert url.endswith(loopback_client.repo("model", "tester/mine").at("main").oid)
    return {name: data for name, data in loopback_client.files("model", "tester/mine").items() if name[0] != "."}


def test_a_push_contains_lora_card_results_and_videos(pushed_files):
    videos = {f"videos/{k}_{policy}.mp4" for k in (1, 2, 3) for policy in ("base", "aligned")}
    assert set(pushed_files) == {
        "pytorch_lora_weights.safetensors", "README.md", "results.json", "contact_sheet.png", "report.html",
        "run.json", *videos
    }  # fmt: skip


def test_pushed_files_are_those_of_the_run_without_its_path_and_token(finished, pushed_files, loopback_client):
    path = str(finished.output_dir).encode()
    for name, data in pushed_files.items():
        local = (finished.output_dir / name).read_bytes()
        assert data == (local.replace(path, b"mine") if name == "report.html" else local)
        assert loopback_client.token.encode() not in data and path not in data


def test_the_pushed_card_names_the_repository_the_dataset_and_further_tags(pushed_files):
    card = ModelCard(pushed_files["README.md"].decode())
    assert 'load_lora_weights("tester/mine", ' in card.text and card.data.datasets == ["me/pairs"]
    assert "extra" in card.data.tags


def commits(hub, name: str) -> list[str]:
    return [commit.message for commit in hub.repo("model", name).branches["main"]]


@pytest.mark.parametrize("strategy", ["every_save", "end"])
def test_a_run_pushes_every_save_of_every_round_or_only_the_end(folder, tmp_path, loopback_client, strategy):
    arguments = {"push_to_hub": True, "hub_model_id": "org/name", "hub_always_push": True, "hub_strategy": strategy}
    trainer = loop(folder, tmp_path, max_steps=2, num_rounds=2, **arguments)
    trainer.train()
    saves = {f"Round {k}: {save}" for k in (1, 2) for save in ("Training in progress, step 2", "Model save")}
    messages = commits(loopback_client, "org/name")
    # Unchanged files make no commit: the save at the last step already is the round's policy.
    assert messages[0] == "initial commit" and messages[-1] == "End of training"
    assert set(messages[1:-1]) <= saves
    states = loopback_client.repo("model", "org/name").branches["main"]
    for k in (1, 2):
        weights = (tmp_path / "rounds" / f"{k:02d}" / "policy" / LORA_FILE).read_bytes()
        pushed = any(state.files.get(LORA_FILE) == weights for state in states if state.message[:7] == f"Round {k}")
        assert pushed == (strategy == "every_save")
    loop(folder, tmp_path, max_steps=2, num_rounds=2, **arguments).train()  # a rerun finds everything done
    later = commits(loopback_client, "org/name")[len(messages) :]
    assert not [message for message in later if message.startswith("Round")]


def test_a_run_survives_a_push_that_fails_for_good_and_prints_how_to_push_later(
    folder, tmp_path, loopback_client, monkeypatch, capsys, caplog
):
    monkeypatch.setattr("spatialalign_trl.hub.pushing.FIRST_PAUSE", 0.0)
    loopback_client.fail("POST", "/commit/", status=500, times=999)
    results = loop(folder, tmp_path, push_to_hub=True, hub_model_id="tester/mine", max_steps=1).train()
    assert results["aligned"] and (tmp_path / "results.json").is_file()
    output = capsys.readouterr().out
    assert f"hf upload tester/mine {tmp_path} . --include {LORA_FILE} README.md" in output and "answered 500" in output
    assert "hf upload tester/mine" in caplog.text  # of the round
    assert loopback_client.token not in output + caplog.text


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_of_the_hub_stops_the_run_before_anything_is_sampled(folder, tmp_path, loopback_client, status):
    loopback_client.fail("POST", "/api/repos/create", status=status)
    with pytest.raises(PermissionError, match=f"answered {status}"):
        loop(folder, tmp_path, push_to_hub=True).train()
    assert not list((tmp_path / "samples").glob("*.mp4"))


def test_a_run_that_has_not_ended_cannot_be_pushed(folder, tmp_path, loopback_client):
    with pytest.raises(FileNotFoundError, match="run train\\(\\) to its end first"):
        loop(folder, tmp_path).push_to_hub()
    assert not loopback_client.repos


# Evaluation


def test_evaluate_measures_the_trained_policy(finished):
    assert finished.evaluate() == finished.results["aligned"]


def test_evaluate_measures_other_prompts(finished):
    assert finished.evaluate(prompts("other", "green", 2))["num_prompts"] == 2


def test_evaluate_before_training_measures_the_base(folder, finished):
    assert loop(folder, finished.output_dir).evaluate() == finished.results["base"]


def test_without_evaluation_prompts_the_loop_trains_and_evaluates_nothing(folder, tmp_path, monkeypatch):
    model = load_video_model(folder, device="cpu")
    trainer = OnlineSpatialAlignTrainer(model, luck, config(tmp_path, max_steps=1), prompts("train", "red"))
    monkeypatch.setattr(trainer, "_evaluate", lambda *a, **k: pytest.fail("evaluated"))
    results = trainer.train()
    assert results["base"] is results["aligned"] is results["difference"] is None and len(results["rounds"]) == 1
    assert (tmp_path / "pytorch_lora_weights.safetensors").is_file() and (tmp_path / "README.md").is_file()
    assert not (Path(tmp_path) / "contact_sheet.png").exists()
    with pytest.raises(ValueError, match="no prompts to evaluate on"):
        trainer.evaluate()


SECRET = "sesame-Open-0123456789"


class Keyed:
    """A reward with a key, which fails on some videos with an error that quotes it."""

    __name__ = "keyed"

    def __init__(self, api_key: str):
        self.api_key = api_key

    def describe(self):
        return {"api_key": self.api_key, "headers": {"X-Pass": self.api_key}, "size": 3}

    def __call__(self, prompts, completions, **kwargs):
        assert self.api_key == SECRET, "the run must get the real key"
        if getattr(self, "has_failed", False):
            return luck(prompts, completions)
        self.has_failed = True
        raise OSError(f"401 for {self.api_key}, sent to https://me:{self.api_key}@host/?token={self.api_key}")


def test_a_rewards_key_is_written_shown_and_pushed_nowhere(folder, tmp_path, loopback_client, capsys, caplog):
    from spatialalign_trl.arguments.parsing import describe_recipe, parse_recipe
    from spatialalign_trl.arguments.rewards import RewardArguments
    from spatialalign_trl.online.config import OnlineSpatialAlignConfig

    options = json.dumps({"mine.py:Keyed": {"api_key": SECRET}})
    line = ["--reward_funcs", "mine.py:Keyed", "--reward_options", options, "--output_dir", str(tmp_path / "run")]
    kinds = (RewardArguments, OnlineSpatialAlignConfig)
    parsed = parse_recipe(kinds, arguments=[*line, "--use_cpu"])
    assert parsed[0].options_for("mine.py:Keyed") == {"api_key": SECRET}

    pushes = {"push_to_hub": True, "hub_model_id": "tester/mine", "push_preferences_to_hub": "tester/prefs"}
    trainer = loop(
        folder, tmp_path / "run", Keyed(SECRET), rollout_batch_size=2, max_failure_share=0.9, report_megabytes=1,
        report_to="tensorboard", **pushes,
    )  # fmt: skip
    trainer.recipe = describe_recipe(parsed, arguments=[*line, "--use_cpu"])
    trainer.train()
    printed = capsys.readouterr()
    assert "401 for ***" in caplog.text and "Traceback" in caplog.text

    pushed = [loopback_client.files("model", "tester/mine"), loopback_client.files("dataset", "tester/prefs")]
    assert "recipe.yaml" in pushed[0] and b"api_key: '***'" in pushed[0]["recipe.yaml"]
    assert b'"api_key": "***"' in pushed[0]["run.json"] and b'"api_key": "***"' in pushed[0]["results.json"]
    local = {str(file): file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}
    everything = {"printed": (printed.out + printed.err + caplog.text).encode(), **pushed[0], **pushed[1], **local}
    assert [name for name, data in everything.items() if SECRET.encode() in data] == []

    # The list of files comes before the push.
    out = printed.out
    assert out.index("to be pushed to tester/mine") < out.index("round 1 of 1")
    (listed,) = (said for said in out.splitlines() if said.startswith("pushing to tester/mine: "))
    assert set(listed.removeprefix("pushing to tester/mine: ").split(", ")) == {n for n in pushed[0] if n[0] != "."}
    assert out.index("to be pushed to tester/mine") < out.index("pushed to http")
    assert out.index(listed) < out.rindex("pushed to http")
    (last,) = [said for said in out.splitlines() if said.startswith("pushing to the dataset tester/prefs: ")][-1:]
    assert set(last.split(": ")[1].split(", ")) == {n for n in pushed[1] if n[0] != "."}

    # A rerun goes on with the same key, and notices another; a recipe without the key is refused.
    loop(folder, tmp_path / "run", Keyed(SECRET), rollout_batch_size=2, max_failure_share=0.9, **pushes).train()
    with pytest.raises(ValueError, match="other settings:\nscoring settings:\n  rewards: ") as refusal:
        loop(folder, tmp_path / "run", Keyed("another-Key-0123456789"), **pushes).train()
    assert SECRET not in str(refusal.value) and "another-Key" not in str(refusal.value)
    (tmp_path / "recipe.yaml").write_bytes(pushed[0]["recipe.yaml"])
    with pytest.raises(SystemExit):
        parse_recipe(kinds, arguments=["--config", str(tmp_path / "recipe.yaml")])
    error = capsys.readouterr().err
    assert "reward_options of 'mine.py:Keyed': *** stands in the place of a secret" in error and "recipe.yaml" in error
