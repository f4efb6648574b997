"""Reruns with something changed: what is used again, what is done anew, and what is refused with a way to go on."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_loop import config, loop, luck, prompts
from tiny_pipelines import saved_wan
from transformers import TrainerCallback

from spatialalign_trl.evaluation.evaluator import Evaluation, Policy, PolicySampling
from spatialalign_trl.models import load_video_model
from spatialalign_trl.models.lora import LORA_FILE
from spatialalign_trl.online.trainer import OnlineSpatialAlignTrainer
from spatialalign_trl.rewards.runner import RewardRunner
from spatialalign_trl.rollout.origin import check_origin
from spatialalign_trl.trainer.lora import default_lora_config


class Interrupted(Exception):
    pass


class StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise Interrupted


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return saved_wan(tmp_path_factory.mktemp("wan"))


@pytest.fixture(scope="module")
def broken(folder, tmp_path_factory) -> Path:
    """A run that ended after checkpoint-2 of 3 steps."""
    output = tmp_path_factory.mktemp("broken") / "run"
    run = loop(folder, output)
    run.callbacks = [StopAt(3)]
    with pytest.raises(Interrupted):
        run.train()
    assert (output / "rounds" / "01" / "policy" / "checkpoint-2").is_dir()
    return output


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("finished") / "run"
    loop(folder, output).train()
    return output


def copied(source: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(source, tmp_path / "run"))


def weights(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / LORA_FILE)


def assert_same(first: Path, second: Path) -> None:
    one, other = weights(first), weights(second)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def with_lora(run: OnlineSpatialAlignTrainer, **shape: int) -> OnlineSpatialAlignTrainer:
    run.peft_config = default_lora_config(run.model, **shape)
    return run


def count_sampled(monkeypatch, run: OnlineSpatialAlignTrainer) -> list[str]:
    """Record which policy every new sample is of."""
    added, original = [], run.store.add

    def add(sample, *args, **kwargs):
        added.append(sample.policy_revision)
        return original(sample, *args, **kwargs)

    monkeypatch.setattr(run.store, "add", add)
    return added


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [{"learning_rate": 1e-3}, {"pairs_per_prompt": 1}, {"lora_alpha": 64}, {"lora_r": 8}],
    ids=lambda change: next(iter(change)),
)
def test_an_unfinished_round_takes_other_settings_and_ends_as_a_run_that_always_had_them(
    folder, broken, tmp_path, monkeypatch, capsys, change
):
    shape = {name.removeprefix("lora_"): change[name] for name in change if name.startswith("lora_")}
    settings = {name: change[name] for name in change if not name.startswith("lora_")}

    def make(output: Path) -> OnlineSpatialAlignTrainer:
        run = loop(folder, output, **settings)
        return with_lora(run, **shape) if shape else run

    make(tmp_path / "clean").train()
    output = copied(broken, tmp_path)
    run = make(output)
    added = count_sampled(monkeypatch, run)
    run.train()
    assert set(added) == {run.revision}  # the new policy's evaluation alone
    assert "starts again from step 0" in capsys.readouterr().out
    assert (output / "rounds" / "01" / "policy" / "replaced-1" / "checkpoint-2").is_dir()
    assert_same(output, tmp_path / "clean")


def test_saving_memory_continues_from_the_checkpoint(folder, broken, tmp_path, capsys):
    output = copied(broken, tmp_path)
    loop(folder, output, gradient_checkpointing=True).train()
    assert "A training continues from its last checkpoint" in capsys.readouterr().out
    policy = output / "rounds" / "01" / "policy"
    assert (policy / "checkpoint-2").is_dir() and not (policy / "replaced-1").exists()


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"learning_rate": 1e-3}, {"lora_r": 8}, {"lora_alpha": 64}])
def test_a_finished_run_refuses_and_prints_a_line_that_reuses_its_samples(
    folder, finished, tmp_path, monkeypatch, change
):
    output = copied(finished, tmp_path)
    shape = {name.removeprefix("lora_"): change[name] for name in change if name.startswith("lora_")}
    settings = {} if shape else change
    run = loop(folder, output, **settings)
    before = {path: path.read_bytes() for path in output.rglob("*.json")}
    with pytest.raises(ValueError, match="holds a run with other settings:\ntraining settings:\n") as stop:
        (with_lora(run, **shape) if shape else run).train()
    assert before == {path: path.read_bytes() for path in output.rglob("*.json")}
    samples_dir, other = re.search(r"^--samples_dir (\S+) --output_dir (\S+)$", str(stop.value), re.M).groups()

    again = loop(folder, Path(other), samples_dir=samples_dir, **settings)
    again = with_lora(again, **shape) if shape else again
    added = count_sampled(monkeypatch, again)
    again.train()
    assert set(added) == {again.revision} and len(added) == 6
    assert any(not torch.equal(value, weights(output).get(name)) for name, value in weights(Path(other)).items())


def test_more_evaluation_seeds_sample_only_what_is_missing(folder, finished, tmp_path, monkeypatch):
    output = copied(finished, tmp_path)
    run = loop(folder, output, evaluation_seeds=3)
    added = count_sampled(monkeypatch, run)
    results = run.train()
    assert len(added) == 2 * 3 and results["base"]["num_videos"] == 9


def test_an_edited_reward_scores_the_samples_again(folder, tmp_path, monkeypatch):
    file = tmp_path / "mine.py"

    def code(power: int) -> str:
        return (
            "def mine(prompts, completions, **kwargs):\n"
            f"    return [float(video.mean() / 255) ** {power} for video in completions]\n"
        )

    def make(output: Path, power: int, **overrides) -> OnlineSpatialAlignTrainer:
        file.write_text(code(power))
        return loop(folder, output, reward=f"{file}:mine", **overrides)

    run = make(tmp_path / "run", 1)
    run.callbacks = [StopAt(3)]
    with pytest.raises(Interrupted):
        run.train()
    expected = make(tmp_path / "clean", 3).train()

    changed = make(tmp_path / "run", 3)
    added = count_sampled(monkeypatch, changed)
    results = changed.train()
    assert set(added) == {changed.revision}
    for name in ("base", "aligned"):
        assert results[name] == expected[name]
    assert results["rounds"][0]["preferences"] == expected["rounds"][0]["preferences"]
    assert_same(tmp_path / "run", tmp_path / "clean")
    with pytest.raises(
        ValueError, match="scoring settings:\n  reward_sources: .*\n.*which are scored again by what changed"
    ) as stop:
        make(tmp_path / "run", 2).train()
    assert "--samples_dir" in str(stop.value)


def retrained(folder: str, tmp_path: Path) -> str:
    """A copy of the model that `retrain` changes."""
    return str(shutil.copytree(folder, tmp_path / "model"))


def retrain(model: str) -> None:
    file = next((Path(model) / "transformer").glob("*.safetensors"))
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    name = max(tensors, key=lambda name: tensors[name].numel())
    tensors[name] += 0.01
    save_file(tensors, file, metadata={"format": "pt"})


def test_weights_that_change_in_their_folder_are_noticed(folder, tmp_path):
    model = retrained(folder, tmp_path)
    loop(model, tmp_path / "run").train()
    loop(model, tmp_path / "run").train()
    retrain(model)
    with pytest.raises(
        ValueError, match="model settings:\n  model_files: 'sha256 .*\n.*needs samples of its own"
    ) as stop:
        loop(model, tmp_path / "run").train()
    assert "--samples_dir" not in str(stop.value)
    with pytest.raises(
        ValueError, match=r"run/samples holds samples of .* sampled otherwise:\n  model_files: 'sha256"
    ):
        loop(model, tmp_path / "other", samples_dir=str(tmp_path / "run" / "samples")).train()
    loop(model, tmp_path / "other").train()


def test_the_evaluation_does_not_mix_samples_of_changed_weights_either(folder, tmp_path):
    model = retrained(folder, tmp_path)
    run = loop(model, tmp_path / "unused")
    check_origin(run.store, run.model)
    retrain(model)
    settings = config(tmp_path / "unused").sampling_settings(run.model.default_settings())
    evaluation = Evaluation(
        [Policy("base", model=model)],
        list(prompts("eval", "blue")),
        RewardRunner(luck),
        tmp_path / "evaluation",
        PolicySampling(
            load_model=lambda name: load_video_model(name, device="cpu"),
            settings=settings.to_dict(),
            samples_dir=run.store.directory,
        ),
    )
    with pytest.raises(ValueError, match="sampled otherwise:\n  model_files"):
        evaluation.run()


# Damage


def flip(path: Path, position: int = -3) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("has_seal", [True, False])
def test_a_damaged_lora_of_a_round_is_refused_and_the_copy_that_is_named_mends_it(
    folder, finished, tmp_path, has_seal
):
    output = copied(finished, tmp_path)
    file = output / "rounds" / "01" / "policy" / LORA_FILE
    if not has_seal:  # of an earlier version
        save_file(load_file(file), file.with_suffix(".new"), metadata={"format": "pt"})
        file.with_suffix(".new").replace(file)
    flip(file)
    with pytest.raises(ValueError, match=f"{file} is missing or damaged.*An intact copy of it is ") as stop:
        loop(folder, output).train()
    copy, target = re.search(r"cp (\S+) (\S+)$", str(stop.value)).groups()
    shutil.copyfile(copy, target)
    assert loop(folder, output).train()["aligned"] == json.loads((finished / "results.json").read_text())["aligned"]


def test_a_damaged_lora_without_a_copy_is_trained_again_from_what_is_sound(folder, finished, tmp_path):
    output = copied(finished, tmp_path)
    for file in (output / LORA_FILE, *output.glob(f"rounds/01/policy/**/{LORA_FILE}")):
        flip(file)
    record = output / "rounds" / "01" / "round.json"
    with pytest.raises(ValueError, match=f"There is no intact copy. Rename {record} and run the same command"):
        loop(folder, output).train()
    record.rename(record.with_suffix(".old"))
    with pytest.warns(UserWarning, match="cannot continue from checkpoint-3 .*, checkpoint-2 .*starting from step 0"):
        loop(folder, output).train()
    assert_same(output, finished)


def test_damaged_latents_of_a_sample_are_found_and_made_again(folder, broken, finished, tmp_path):
    output = copied(broken, tmp_path)
    flip(min((output / "samples").glob("*.safetensors")))
    with pytest.warns(UserWarning, match="It counts as missing and will be made again: .*safetensors is damaged"):
        loop(folder, output).train()
    assert_same(output, finished)
