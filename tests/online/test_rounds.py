"""Several rounds: each starts where the one before ended, also after a kill, and the run ends with the last one's."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from tiny_loop import config, luck, prompts
from tiny_pipelines import saved_wan
from transformers import TrainerCallback

from spatialalign_trl.evaluation import EVALUATION_SEED
from spatialalign_trl.files import read_json
from spatialalign_trl.models import load_video_model
from spatialalign_trl.models.lora import LORA_FILE, lora_fingerprint
from spatialalign_trl.online.rounds import PREFERENCES_FILE
from spatialalign_trl.online.trainer import OnlineSpatialAlignTrainer
from spatialalign_trl.rollout.store import SampleStore
from spatialalign_trl.video import browser_mp4

RANK = 3
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "unpooled": {"pool_rounds": False},
    "refreshed": {"refresh_reference": True},
    "new adapter": {"continue_adapter": False},
}


class Interrupted(Exception):
    pass


class Steps(TrainerCallback):
    """Record the step at which every optimizer step begins; stop at the end of the `stop`-th of them."""

    def __init__(self, stop: int | None = None) -> None:
        self.begun: list[int] = []
        self.stop = stop

    def on_step_begin(self, args, state, control, **kwargs):
        self.begun.append(state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        if len(self.begun) == self.stop:
            raise Interrupted


def make(folder: str, output: Path, steps: Steps, **overrides: Any) -> OnlineSpatialAlignTrainer:
    """Make a run of two rounds whose LoRA has another shape than the default one."""
    return OnlineSpatialAlignTrainer(
        load_video_model(folder, device="cpu"),
        luck,
        config(output, num_rounds=2, ema_decay=0.5, report_megabytes=0, contact_sheet_prompts=0, **overrides),
        prompts("train", "red"),
        prompts("eval", "blue"),
        peft_config=LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=["attn2.to_k"], lora_dropout=0.0),
        callbacks=[steps],
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return saved_wan(tmp_path_factory.mktemp("wan"))


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory) -> Callable[[str], tuple[Path, dict[str, Any]]]:
    """A function that runs a variant to its end, once: the folder and the results."""

    @functools.cache
    def run(variant: str) -> tuple[Path, dict[str, Any]]:
        steps, output = Steps(), tmp_path_factory.mktemp("run")
        results = make(folder, output, steps, **VARIANTS[variant]).train()
        assert steps.begun == [0, 1, 2, 0, 1, 2], "the caller's callbacks see the steps of both rounds"
        return output, json.loads(json.dumps(results))

    return run


def policy(output: Path, number: int) -> Path:
    return output / "rounds" / f"{number:02d}" / "policy"


def first_log(results: dict[str, Any], number: int) -> dict[str, float]:
    return results["rounds"][number - 1]["training"][0]


# What each variant is for


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_second_round_samples_from_the_first_policy(finished, folder, variant):
    output, results = finished(variant)
    first, second = results["rounds"]
    assert first["sampled_from"] == f"{folder}@base"
    assert second["sampled_from"] == first["policy_revision"] != second["policy_revision"]
    for number, record in enumerate(results["rounds"], start=1):
        weights = load_file(policy(output, number) / LORA_FILE)
        assert record["policy_revision"] == f"{folder}@{lora_fingerprint(weights)}"


@pytest.mark.parametrize("variant", VARIANTS)
def test_rounds_draw_different_seeds_and_the_evaluation_always_the_same(finished, folder, variant):
    output, results = finished(variant)
    first, second = (record["policy_revision"] for record in results["rounds"])
    evaluated = {EVALUATION_SEED, EVALUATION_SEED + 1}
    seeds = {f"{folder}@base": {0, 1, 2, 3} | evaluated, first: {4, 5, 6, 7} | evaluated, second: evaluated}
    samples = SampleStore(output / "samples").samples()
    assert {r: {s.seed for s in samples if s.policy_revision == r} for r in seeds} == seeds
    assert {sample.policy_revision for sample in samples} == set(seeds)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_second_round_pairs_the_samples_of_both_unless_told_otherwise(finished, variant):
    first, second = (record["preferences"]["samples"] for record in finished(variant)[1]["rounds"])
    assert first == 12 and second == (12 if variant == "unpooled" else 24)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_second_round_starts_with_the_policy_and_the_reference_of_its_variant(finished, variant):
    """The distance at step 0 is 0 before anything was trained, and where the reference is the policy itself."""
    results = finished(variant)[1]
    assert first_log(results, 1)["distance_to_reference"] == 0 == first_log(results, 1)["rewards/margins"]
    second = first_log(results, 2)
    if variant in ("refreshed", "new adapter"):
        assert second["distance_to_reference"] == 0 == second["rewards/margins"]
    else:
        assert second["distance_to_reference"] > 1e-6 and second["rewards/margins"] != 0
    # The policies of the first two have the same weights and see the same pairs; a new adapter has others.
    errors = second["mse/chosen"], first_log(finished("default")[1], 2)["mse/chosen"]
    if variant == "refreshed":
        assert errors[0] == errors[1]
    if variant == "new adapter":
        assert errors[0] != errors[1]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_lora_has_the_shape_of_peft_config_in_every_round(finished, variant):
    output, results = finished(variant)
    for file in (output / LORA_FILE, *(policy(output, number) / LORA_FILE for number in (1, 2))):
        shapes = {name.split(".")[-2]: tuple(tensor.shape) for name, tensor in load_file(file).items()}
        assert shapes["lora_A"][0] == shapes["lora_B"][1] == RANK
        assert all(".attn2.to_k." in name for name in load_file(file))
    for number in (1, 2):
        saved = read_json(policy(output, number) / "adapter_config.json")
        assert (saved["r"], saved["lora_alpha"]) == (RANK, 2 * RANK)
    assert results["settings"]["lora"]["r"] == RANK


# What the run ends with


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_run_publishes_the_last_round(finished, variant):
    output, results = finished(variant)
    last, first = policy(output, 2), policy(output, 1)
    for name in (LORA_FILE, f"ema/{LORA_FILE}"):
        published = (output / name).read_bytes()
        assert published == (last / name).read_bytes() != (first / name).read_bytes()
    assert (output / LORA_FILE).read_bytes() != (output / "ema" / LORA_FILE).read_bytes()
    pairs = [folder / "preferences" / PREFERENCES_FILE for folder in (output, last.parent, first.parent)]
    assert pairs[0].read_bytes() == pairs[1].read_bytes() != pairs[2].read_bytes()
    assert results["aligned"] == results["rounds"][-1]["evaluation"] != results["rounds"][0]["evaluation"]


def test_the_videos_before_and_after_are_of_the_same_prompts(finished, folder):
    output, results = finished("default")
    store = SampleStore(output / "samples")
    revisions = {"base": f"{folder}@base", "aligned": results["rounds"][-1]["policy_revision"]}
    shown: dict[str, list[str]] = {}
    for name, revision in revisions.items():
        samples = [s for s in store.samples() if s.policy_revision == revision and s.seed == EVALUATION_SEED]
        videos = {browser_mp4(store.video(s.sample_id), 8): s.prompt_id for s in samples}
        assert len(videos) == 3
        files = sorted((output / "videos").glob(f"*_{name}.mp4"))
        shown[name] = [videos[file.read_bytes()] for file in files]
    assert shown["base"] == shown["aligned"] and sorted(shown["base"]) == ["eval0", "eval1", "eval2"]


# Killed in the second round


def test_a_run_killed_in_its_second_round_ends_as_an_uninterrupted_one(finished, folder, tmp_path, monkeypatch):
    expected, results = finished("default")

    # 1. It is killed while it samples from the first round's policy.
    run = make(folder, tmp_path, Steps())
    added = run.store.add
    monkeypatch.setattr(run.store, "add", lambda sample, *a, **k: _killed_at_seed(added, 6, sample, *a, **k))
    with pytest.raises(Interrupted):
        run.train()
    assert (tmp_path / "rounds" / "01" / "round.json").exists() and not policy(tmp_path, 2).exists()

    # 2. It finds the first round done, loads its policy, samples the rest, and is killed at the end of step 3, before
    # that step's checkpoint.
    steps = Steps(stop=3)
    with pytest.raises(Interrupted):
        make(folder, tmp_path, steps).train()
    assert steps.begun == [0, 1, 2]
    assert sorted(path.name for path in policy(tmp_path, 2).glob("checkpoint-*")) == ["checkpoint-2"]

    # 3. It continues at the checkpoint's step, and computes nothing else again.
    steps = Steps()
    resumed = json.loads(json.dumps(make(folder, tmp_path, steps).train()))
    assert steps.begun == [2]
    for name in (LORA_FILE, f"ema/{LORA_FILE}"):
        whole, killed = load_file(expected / name), load_file(tmp_path / name)
        assert whole.keys() == killed.keys() and all(torch.equal(whole[key], killed[key]) for key in whole), name
    for name in ("base", "aligned", "difference", "quality_difference", "verdict"):
        assert resumed[name] == results[name], name
    for record, other in zip(resumed["rounds"], results["rounds"], strict=True):
        assert record["preferences"] == other["preferences"] and record["rollouts"] == other["rollouts"]
        assert record["policy_revision"] == other["policy_revision"]
        losses = [[(entry["step"], entry["loss"]) for entry in r["training"]] for r in (record, other)]
        assert losses[0] == losses[1]

    # 4. Another start finds both rounds done, and ends with the last one's policy in memory.
    again = make(folder, tmp_path, Steps(stop=1))
    monkeypatch.setattr(type(again.model), "sample", lambda *a, **k: pytest.fail("sampled again"))
    assert json.loads(json.dumps(again.train()))["aligned"] == results["aligned"]
    weights = again.model.lora_state_dict()
    assert f"{folder}@{lora_fingerprint(weights)}" == results["rounds"][-1]["policy_revision"] == again.revision


def _killed_at_seed(add, seed: int, sample, *args: Any, **kwargs: Any):
    if sample.seed == seed:
        raise Interrupted
    return add(sample, *args, **kwargs)
