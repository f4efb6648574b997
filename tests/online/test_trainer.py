"""The loop on a random pipeline, with a reward that any video has: what is stored, skipped and refused."""

import fcntl
import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from diffusers import WanPipeline
from safetensors.torch import load_file, save_file
from tiny_loop import config, loop, luck, prompts
from tiny_pipelines import HEIGHT, NUM_FRAMES, WIDTH, saved_wan

from spatialalign_trl import files
from spatialalign_trl.models import load_video_model
from spatialalign_trl.online import trainer as online_trainer
from spatialalign_trl.online.trainer import OnlineSpatialAlignTrainer
from spatialalign_trl.trainer.lora import attach_lora, default_lora_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return saved_wan(tmp_path_factory.mktemp("wan"))


def test_a_round_leaves_everything_that_was_promised(folder, tmp_path):
    results = loop(folder, tmp_path).train()
    written = json.loads((tmp_path / "results.json").read_text())
    assert written == json.loads(json.dumps(results))
    for policy in ("base", "aligned"):
        assert {f"S@{tau}" for tau in (0.5, 0.6, 0.7, 0.8, 0.9)} <= set(written[policy])
        assert written[policy]["num_videos"] == 6
        assert len(written[policy]["S@0.7_interval"]) == 2
        assert set(written[policy]["by_type"]) == {"LR", "LT", "RL"}
        assert {"frame_change", "sharpness"} <= set(written[policy]["quality"])
    assert {"frame_change", "sharpness"} <= set(written["quality_difference"])
    assert set(written["verdict"]["judged"]) <= set(written["quality_difference"]) and written["verdict"]["message"]
    assert (tmp_path / "contact_sheet.png").read_bytes().startswith(b"\x89PNG")
    pairs = Dataset.from_parquet(str(tmp_path / "preferences" / "train-00000-of-00001.parquet"))
    assert len(pairs) == 6 and min(np.subtract(pairs["score_chosen"], pairs["score_rejected"])) > 0
    assert not list(tmp_path.rglob("*.pkl"))

    pipe = WanPipeline.from_pretrained(folder)
    pipe.load_lora_weights(str(tmp_path))
    ours = load_video_model(folder, device="cpu")
    ours.load_lora(tmp_path / "rounds" / "01" / "policy")
    shape = (1, *ours.latent_shape(NUM_FRAMES, HEIGHT, WIDTH))
    noisy, sigma = torch.randn(shape, generator=torch.Generator().manual_seed(0)), torch.tensor([0.5])
    conditioning = ours.encode_prompts(["a fox"])
    with torch.no_grad():
        loaded = ours.predict(noisy, sigma, conditioning, transformer=pipe.transformer)
        assert torch.equal(ours.predict(noisy, sigma, conditioning), loaded)
        with ours.reference():
            assert not torch.equal(ours.predict(noisy, sigma, conditioning), loaded)


def test_a_rerun_computes_nothing_and_gives_the_same_results(folder, tmp_path, monkeypatch):
    first = loop(folder, tmp_path).train()
    second = loop(folder, tmp_path)
    monkeypatch.setattr(type(second.model), "sample", lambda *a, **k: pytest.fail("sampled again"))
    monkeypatch.setattr(second.runner, "_call_all", lambda *a, **k: pytest.fail("scored again"))
    monkeypatch.setattr(second, "_train_policy", lambda *a, **k: pytest.fail("trained again"))
    assert json.loads(json.dumps(second.train())) == json.loads(json.dumps(first))


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("stage", ["sample_and_score", "store_pairs", "_train_policy", "_evaluate"])
def test_an_interrupted_loop_ends_where_an_uninterrupted_one_does(folder, tmp_path, monkeypatch, stage):
    expected = loop(folder, tmp_path / "whole").train()
    broken = loop(folder, tmp_path / "broken")
    owner = broken if hasattr(broken, stage) else online_trainer
    original, calls = getattr(owner, stage), []

    def fail_after(*args, **kwargs):
        result = original(*args, **kwargs)
        calls.append(stage)
        if len(calls) == (2 if stage in ("sample_and_score", "_evaluate") else 1):
            raise Interrupted
        return result

    monkeypatch.setattr(owner, stage, fail_after)
    with pytest.raises(Interrupted):
        broken.train()
    monkeypatch.undo()
    resumed = loop(folder, tmp_path / "broken").train()
    assert resumed["aligned"] == expected["aligned"]
    whole, broken = (load_file(tmp_path / run / "pytorch_lora_weights.safetensors") for run in ("whole", "broken"))
    assert whole.keys() == broken.keys() and all(torch.equal(whole[name], broken[name]) for name in whole)


@pytest.mark.parametrize(
    "overrides", [{}, {"pool_rounds": False}, {"refresh_reference": True}, {"continue_adapter": False}]
)
def test_two_rounds(folder, tmp_path, overrides):
    results = loop(folder, tmp_path, num_rounds=2, **overrides).train()
    first, second = results["rounds"]
    assert first["sampled_from"] == f"{folder}@base"
    assert second["sampled_from"] == first["policy_revision"] != second["policy_revision"]
    pooled = overrides.get("pool_rounds", True)
    assert second["preferences"]["samples"] == (2 if pooled else 1) * first["preferences"]["samples"]
    again = loop(folder, tmp_path, num_rounds=2, **overrides).train()
    assert again["aligned"] == results["aligned"]


def test_other_settings_in_the_same_folder_are_refused(folder, tmp_path):
    loop(folder, tmp_path).train()
    with pytest.raises(ValueError, match=r"learning_rate: 0.01 there, 0.5 now"):
        loop(folder, tmp_path, learning_rate=0.5).train()


def test_a_folder_where_another_job_is_at_work_is_refused(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PATIENCE", 0.1)
    one = loop(folder, tmp_path / "run")
    (one.output_dir / files.HOLDER_FILE).write_text("process 77 on here")
    with open(one.output_dir / files.LOCK_FILE, "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(RuntimeError, match="process 77 on here is using .*run"):
            one.train()
    assert not (one.output_dir / "run.json").exists()


def test_nothing_to_learn_says_so_and_keeps_the_samples(folder, tmp_path):
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


def test_a_lora_is_gone_on_from_and_is_what_the_run_starts_from(folder, tmp_path):
    first = loop(folder, tmp_path / "first").train()
    lora = tmp_path / "first" / "pytorch_lora_weights.safetensors"

    def going_on(**overrides):
        run = loop(folder, tmp_path / "second", **overrides)
        run.model.load_lora(lora)
        return OnlineSpatialAlignTrainer(run.model, luck, run.args, prompts("train", "red"), prompts("eval", "blue"))

    second = going_on().train()
    assert second["base"] == first["aligned"]
    assert second["rounds"][0]["sampled_from"] == first["rounds"][0]["policy_revision"]
    assert second["settings"]["starting_policy"] == first["rounds"][0]["policy_revision"]
    trained = load_file(tmp_path / "second" / "pytorch_lora_weights.safetensors")
    assert any(not torch.equal(value, trained[name]) for name, value in load_file(lora).items())
    with pytest.raises(ValueError, match="starting_policy: .* there, None now"):
        loop(folder, tmp_path / "second").train()


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


def test_a_lora_and_a_configuration_for_another_are_refused(folder, tmp_path):
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
