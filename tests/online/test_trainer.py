"""The loop stores its results, continues where it was interrupted, and refuses mistakes."""

import fcntl
import json
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from datasets import Dataset
from diffusers import WanPipeline
from safetensors.torch import load_file, save_file
from tiny_loop import config, loop, luck, prompts
from tiny_pipelines import HEIGHT, NUM_FRAMES, WIDTH, saved_wan

from spatialalign_trl import files
from spatialalign_trl.evaluation import EVALUATION_SEED
from spatialalign_trl.models import load_video_model
from spatialalign_trl.online import trainer as online_trainer
from spatialalign_trl.online.trainer import OnlineSpatialAlignTrainer
from spatialalign_trl.rewards.runner import RewardRunner
from spatialalign_trl.rollout.store import SampleStore
from spatialalign_trl.trainer.lora import attach_lora, default_lora_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return saved_wan(tmp_path_factory.mktemp("wan"))


# A run of one round


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory) -> Path:
    """Return the folder of a run that has ended."""
    output = tmp_path_factory.mktemp("run")
    results = loop(folder, output).train()
    assert json.loads((output / "results.json").read_text()) == json.loads(json.dumps(results))
    return output


@pytest.mark.parametrize("policy", ["base", "aligned"])
def test_the_results_have_scores_by_threshold_and_type_and_quality_of_both_policies(finished, policy):
    summary = json.loads((finished / "results.json").read_text())[policy]
    assert {f"S@{tau}" for tau in (0.5, 0.6, 0.7, 0.8, 0.9)} <= set(summary)
    assert summary["num_videos"] == 6
    assert len(summary["S@0.7_interval"]) == 2
    assert set(summary["by_type"]) == {"LR", "LT", "RL"}
    assert {"frame_change", "sharpness"} <= set(summary["quality"])


def test_the_verdict_judges_the_difference_in_quality(finished):
    written = json.loads((finished / "results.json").read_text())
    assert {"frame_change", "sharpness"} <= set(written["quality_difference"])
    assert set(written["verdict"]["judged"]) <= set(written["quality_difference"]) and written["verdict"]["message"]


def test_every_difference_is_aligned_minus_base_and_lies_in_its_interval(finished):
    results = json.loads((finished / "results.json").read_text())
    base, aligned = results["base"], results["aligned"]
    differences = {**results["difference"], **results["quality_difference"]}
    assert {"S@0.5", "reward_mean", "frame_change", "sharpness"} <= set(differences)
    for name, change in differences.items():
        before, after = (side[name] if name in side else side["quality"][name] for side in (base, aligned))
        assert change["difference"] == pytest.approx(after - before, abs=1e-9), name
        assert change["interval"][0] - 1e-9 <= change["difference"] <= change["interval"][1] + 1e-9, name
    assert any(change["difference"] for change in results["difference"].values())
    assert all(change["difference"] for change in results["quality_difference"].values())


def test_each_policy_is_summarised_from_its_own_videos(folder, finished):
    results = json.loads((finished / "results.json").read_text())
    store = SampleStore(finished / "samples")
    revisions = {"base": f"{folder}@base", "aligned": results["rounds"][-1]["policy_revision"]}
    for name, revision in revisions.items():
        samples = [s for s in store.samples() if s.policy_revision == revision and s.seed >= EVALUATION_SEED]
        assert len(samples) == results[name]["num_videos"] == 6
        assert results[name]["reward_mean"] == pytest.approx(np.mean([s.reward for s in samples]))


def test_the_videos_are_stored_as_the_settings_say(finished):
    """Lossless, because `video_crf` is 0 here and 18 by default, and with the frames per second of the settings."""
    for video in (finished / "samples").glob("*.mp4"):
        with av.open(str(video)) as container:
            stream = container.streams.video[0]
            assert stream.average_rate == 8 and stream.codec_context.pix_fmt == "gbrp"


def test_the_run_draws_a_contact_sheet(finished):
    assert (finished / "contact_sheet.png").read_bytes().startswith(b"\x89PNG")


def test_in_every_stored_pair_the_winner_scores_higher(finished):
    pairs = Dataset.from_parquet(str(finished / "preferences" / "train-00000-of-00001.parquet"))
    assert len(pairs) == 6 and min(np.subtract(pairs["score_chosen"], pairs["score_rejected"])) > 0


def test_nothing_is_pickled(finished):
    assert not list(finished.rglob("*.pkl"))


def test_diffusers_loads_the_lora_that_the_library_loads(folder, finished):
    pipe = WanPipeline.from_pretrained(folder)
    pipe.load_lora_weights(str(finished))
    ours = load_video_model(folder, device="cpu")
    ours.load_lora(finished / "rounds" / "01" / "policy")
    shape = (1, *ours.latent_shape(NUM_FRAMES, HEIGHT, WIDTH))
    noisy, sigma = torch.randn(shape, generator=torch.Generator().manual_seed(0)), torch.tensor([0.5])
    conditioning = ours.encode_prompts(["a fox"])
    with torch.no_grad():
        expected = ours.predict(noisy, sigma, conditioning, transformer=pipe.transformer)
        assert torch.equal(ours.predict(noisy, sigma, conditioning), expected)
        with ours.reference():
            assert not torch.equal(ours.predict(noisy, sigma, conditioning), expected)


def test_a_rerun_computes_nothing_and_gives_the_same_results(folder, finished, monkeypatch):
    expected = json.loads((finished / "results.json").read_text())
    second = loop(folder, finished)
    monkeypatch.setattr(type(second.model), "sample", lambda *a, **k: pytest.fail("sampled again"))
    monkeypatch.setattr(RewardRunner, "__call__", lambda *a, **k: pytest.fail("scored again"))
    monkeypatch.setattr(second, "_train_policy", lambda *a, **k: pytest.fail("trained again"))
    assert json.loads(json.dumps(second.train())) == expected


def test_other_settings_in_the_same_folder_are_refused(folder, finished):
    with pytest.raises(ValueError, match=r"learning_rate: 0.01 there, 0.5 now"):
        loop(folder, finished, learning_rate=0.5).train()


# Interruptions


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("stage", ["sample_and_score", "store_pairs", "_train_policy", "_evaluate"])
def test_an_interrupted_loop_ends_where_an_uninterrupted_one_does(folder, finished, tmp_path, monkeypatch, stage):
    expected = json.loads((finished / "results.json").read_text())
    interrupted = loop(folder, tmp_path)
    owner = interrupted if hasattr(interrupted, stage) else online_trainer
    original, calls = getattr(owner, stage), []

    def fail_after(*args, **kwargs):
        result = original(*args, **kwargs)
        calls.append(stage)
        if len(calls) == (2 if stage in ("sample_and_score", "_evaluate") else 1):
            raise Interrupted
        return result

    monkeypatch.setattr(owner, stage, fail_after)
    with pytest.raises(Interrupted):
        interrupted.train()
    monkeypatch.undo()
    resumed = loop(folder, tmp_path).train()
    assert json.loads(json.dumps(resumed["aligned"])) == expected["aligned"]
    expected_lora, lora = (load_file(run / "pytorch_lora_weights.safetensors") for run in (finished, tmp_path))
    assert lora.keys() == expected_lora.keys()
    assert all(torch.equal(lora[name], expected_lora[name]) for name in expected_lora)


# Refusals


def test_a_folder_that_another_job_is_using_is_refused(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PATIENCE", 0.1)
    trainer = loop(folder, tmp_path / "run")
    (trainer.output_dir / files.HOLDER_FILE).write_text("process 77 on here")
    with open(trainer.output_dir / files.LOCK_FILE, "w") as lock_file:
        fcntl.flock(lock_file, fcntl.LOCK_EX)
        with pytest.raises(RuntimeError, match="process 77 on here is using .*run"):
            trainer.train()
    assert not (trainer.output_dir / "run.json").exists()


def test_equal_scores_are_reported_as_nothing_to_learn_and_the_samples_are_kept(folder, tmp_path):
    def flat(prompts, completions, **kwargs):
        return [0.5] * len(completions)

    with pytest.raises(ValueError, match=r"nothing to learn: none of 3 prompts.*between 0.500 and 0.500"):
        loop(folder, tmp_path, reward=flat).train()
    assert len(list((tmp_path / "samples").glob("*.mp4"))) == 6 + 12


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"num_frames": 8}, "num_frames"),
        ({"quality_guards": ["tiny_word"]}, "tiny_world"),
        ({"num_generations": 1}, "num_generations"),
        ({"refresh_reference": True, "continue_adapter": False}, "continue_adapter"),
        ({"video_crf": 60}, "video_crf"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_sampled(folder, tmp_path, overrides, message):
    with pytest.raises(ValueError, match=message):
        loop(folder, tmp_path, **overrides)
    assert not tmp_path.joinpath("samples").exists() or not any(tmp_path.joinpath("samples").iterdir())


def test_evaluating_on_training_prompts_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="3 prompts are in the training and in the evaluation set"):
        OnlineSpatialAlignTrainer(
            load_video_model(folder, device="cpu"), luck, config(tmp_path), prompts("a", "red"), prompts("b", "red")
        )


# A run that starts from a LoRA


@pytest.fixture(scope="module")
def continued(folder, finished, tmp_path_factory) -> tuple[Path, dict]:
    """Train a model that has loaded the LoRA of the finished run; return the folder and the results."""
    output = tmp_path_factory.mktemp("continued")
    run = loop(folder, output)
    run.model.load_lora(finished / "pytorch_lora_weights.safetensors")
    trainer = OnlineSpatialAlignTrainer(run.model, luck, run.args, prompts("train", "red"), prompts("eval", "blue"))
    return output, json.loads(json.dumps(trainer.train()))


def test_a_run_from_a_lora_compares_with_it_and_samples_from_it(finished, continued):
    first, (_, second) = json.loads((finished / "results.json").read_text()), continued
    assert second["base"] == first["aligned"]
    assert second["rounds"][0]["sampled_from"] == first["rounds"][0]["policy_revision"]
    assert second["settings"]["starting_policy"] == first["rounds"][0]["policy_revision"]


def test_a_run_from_a_lora_trains_it_further(finished, continued):
    start, trained = (load_file(run / "pytorch_lora_weights.safetensors") for run in (finished, continued[0]))
    assert any(not torch.equal(value, trained[name]) for name, value in start.items())


def test_a_run_from_a_lora_is_not_continued_without_it(folder, continued):
    with pytest.raises(ValueError, match="starting_policy: .* there, None now"):
        loop(folder, continued[0]).train()


def test_a_lora_that_fits_in_part_says_so_in_run_json_and_on_the_card(folder, tmp_path):
    run = loop(folder, tmp_path / "run", num_rounds=2)
    name = "transformer.blocks.{}.attn2.to_k.lora_{}.weight"
    sizes = (("A", (2, 24)), ("B", (24, 2)))
    lora = {name.format(block, side): torch.ones(size) for block in (0, 30) for side, size in sizes}
    save_file(lora, tmp_path / "half.safetensors")
    run.model.load_lora(tmp_path / "half.safetensors")
    run = OnlineSpatialAlignTrainer(run.model, luck, run.args, prompts("train", "red"), prompts("eval", "blue"))
    run.train()
    expected = "2 of 4 keys fit nothing in this transformer and were left out (transformer.blocks.30."
    for file in ("run.json", "results.json", "README.md", "rounds/01/policy/README.md"):
        assert expected in (run.output_dir / file).read_text(), file


def test_a_model_with_a_lora_and_a_configuration_for_another_one_are_refused(folder, tmp_path):
    model = load_video_model(folder, device="cpu")
    attach_lora(model)
    with pytest.raises(ValueError, match="already carries a LoRA: pass peft_config=None"):
        OnlineSpatialAlignTrainer(
            model,
            luck,
            config(tmp_path),
            prompts("train", "red"),
            prompts("eval", "blue"),
            peft_config=default_lora_config(model),
        )
