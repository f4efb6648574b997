"""A folder belongs to one run: a rerun with other settings is refused, and the error names every difference."""

from __future__ import annotations

import json
import re
from dataclasses import fields, replace
from types import SimpleNamespace

import pytest
import torch

from spatialalign_trl.models.lora_loading import LoraFit
from spatialalign_trl.models.settings import SamplingSettings
from spatialalign_trl.online.config import SAMPLING_FIELDS, OnlineSpatialAlignConfig
from spatialalign_trl.online.run_settings import (
    EVALUATION,
    FREE,
    MEMORY,
    MODEL,
    PACKAGES,
    PAIRING,
    SCORING,
    check_same_run,
    describe_versions,
)
from spatialalign_trl.online.run_settings import (
    SAMPLING as SAMPLING_SETTINGS,
)
from spatialalign_trl.trainer.spatialalign_config import SpatialAlignConfig

SAMPLING = SamplingSettings(17, 32, 48, num_inference_steps=10, guidance_scale=3.0, negative_prompt="blurry")
REWARDS = {"dsr_score": None}
SOURCES = {"dsr_score": "a"}
LORA = {"r": 16, "lora_alpha": 16, "target_modules": ["to_k"]}
PROMPTS = [{"prompt_id": "a", "prompt": "A fox."}, {"prompt_id": "b", "prompt": "A cat."}]


def check(
    folder, *, model="tiny", dtype=torch.float32, computation=None, rewards=REWARDS, sampling=SAMPLING,
    prompts=PROMPTS, fit=None, lora=LORA, reward_sources=SOURCES, **overrides,
):  # fmt: skip
    args = OnlineSpatialAlignConfig(**{"output_dir": str(folder), "use_cpu": True, "report_to": "none", **overrides})
    model = SimpleNamespace(name_or_path=model, dtype=dtype, computation=computation or {})
    return check_same_run(
        folder, args, sampling, model, rewards, prompts, starting_fit=fit, lora=lora, reward_sources=reward_sources
    )


def test_the_first_start_writes_the_settings(tmp_path):
    settings = check(tmp_path, learning_rate=3e-4)
    written = json.loads((tmp_path / "run.json").read_text())
    assert written == settings
    assert (
        written["model"] == "tiny" and written["rewards"] == {"dsr_score": None} and written["learning_rate"] == 3e-4
    )
    assert written["sampling"] == SAMPLING.to_dict() and written["prompts"].startswith("2 prompts, sha256 ")
    assert not FREE & set(written)


def test_the_same_settings_continue_the_run(tmp_path):
    assert check(tmp_path) == check(tmp_path)


def test_a_run_from_before_a_setting_existed_continues_with_its_default(tmp_path):
    settings = check(tmp_path)
    del settings["sft_weight"], settings["winner_safe_mu"]
    (tmp_path / "run.json").write_text(json.dumps(settings))
    finish_round(tmp_path)
    with pytest.raises(ValueError, match="  sft_weight: 0.0 there, 0.5 now"):
        check(tmp_path, sft_weight=0.5)
    assert check(tmp_path)["sft_weight"] == 0.0


def test_secrets_are_compared_by_their_hashes(tmp_path):
    def rewards(key: str) -> dict:
        return {"mine": {"api_key": key, "url": f"https://me:{key}@host/", "n": 1}}

    wanted = check(tmp_path, rewards=rewards("first secret"))
    assert "first secret" not in (tmp_path / "run.json").read_text() and wanted["rewards"]["mine"]["n"] == 1
    assert check(tmp_path, rewards=rewards("first secret")) == wanted
    with pytest.raises(ValueError, match="rewards: ") as refusal:
        finish_round(tmp_path)
        check(tmp_path, rewards=rewards("other secret"))
    assert " secret" not in str(refusal.value)

    # An older run recorded the secret itself: it goes on, and the file is cleaned.
    (tmp_path / "run.json").write_text(json.dumps({**wanted, "rewards": rewards("first secret")}))
    assert check(tmp_path, rewards=rewards("first secret")) == wanted
    assert "first secret" not in (tmp_path / "run.json").read_text()


def test_a_run_from_before_the_dtype_was_written_continues_with_any(tmp_path):
    settings = check(tmp_path)
    del settings["dtype"]
    (tmp_path / "run.json").write_text(json.dumps(settings))
    assert check(tmp_path, dtype=torch.bfloat16)["dtype"] == "bfloat16"
    with pytest.raises(ValueError, match="  dtype: 'bfloat16' there, 'float32' now"):
        check(tmp_path)


CHANGES = [
    ("model", {"model": "other"}, "model: 'tiny' there, 'other' now"),
    ("scoring", {"rewards": {"dsr_score": None, "mine": None}}, "rewards: {'dsr_score': None} there, .*'mine': None}"),
    ("scoring", {"rewards": {"dsr_score": {"tracker": "sam3"}}}, "rewards: {'dsr_score': None} there, .*sam3"),
    ("scoring", {"reward_sources": {"dsr_score": "b"}}, "reward_sources: {'dsr_score': 'a'} there, .*'b'} now"),
    ("sampling", {"prompts": PROMPTS[:1]}, "prompts: '2 prompts, sha256 .*' there, '1 prompts, sha256 .*' now"),
    ("sampling", {"prompts": [PROMPTS[0], {**PROMPTS[1], "prompt": "A dog."}]}, "prompts: '2 .* there, '2 prompts"),
    ("sampling", {"sampling": replace(SAMPLING, num_inference_steps=20)}, "sampling: .*num_inference_steps.: 10"),
    ("sampling", {"num_generations": 6}, "num_generations: 5 there, 6 now"),
    ("training", {"zeroth_order_weight": 0.25}, "zeroth_order_weight: 0.5 there, 0.25 now"),
    ("training", {"margin_clip": None}, "margin_clip: 5.0 there, None now"),
    ("training", {"lora": {**LORA, "lora_alpha": 64}}, "lora: .*'lora_alpha': 16.* there, .*'lora_alpha': 64.* now"),
    ("training", {"lora": {**LORA, "r": 8}}, "lora: .*'r': 16.* there, .*'r': 8.* now"),
    ("pairing", {"reward_weights": [2.0]}, r"reward_weights: None there, \[2.0\] now"),
    ("pairing", {"seed": 1}, "seed: 42 there, 1 now"),
    ("pairing", {"score_threshold": 0.5}, "score_threshold: 0.7 there, 0.5 now"),
    ("model", {"dtype": torch.bfloat16}, "dtype: 'float32' there, 'bfloat16' now"),
    ("model", {"video_crf": 0}, "video_crf: 18 there, 0 now"),
    ("model", {"computation": {"attention_backend": "flash"}}, "attention_backend: None there, 'flash' now"),
    ("model", {"computation": {"vae_tiling": True}}, "vae_tiling: None there, True now"),
    ("model", {"computation": {"quantization": {"backend": "bitsandbytes_4bit"}}}, "quantization: None there, {'back"),
]  # fmt: skip


def finish_round(folder) -> None:
    (folder / "rounds" / "01").mkdir(parents=True)
    (folder / "rounds" / "01" / "round.json").write_text("{}")


@pytest.mark.parametrize(("stage", "change", "message"), CHANGES)
@pytest.mark.parametrize("is_finished", [False, True])
def test_a_change_is_accepted_or_refused_by_its_stage(tmp_path, capsys, stage, change, message, is_finished):
    folder = tmp_path / "run"
    folder.mkdir()
    check(folder)
    if is_finished:
        finish_round(folder)
    before = (folder / "run.json").read_bytes()
    stage = "sampling" if change == {"model": "other"} else stage  # part of the samples' names
    if not is_finished and stage in ("scoring", "pairing", "training"):
        wanted = check(folder, **change)
        assert re.search(
            f"run continues with other settings:\n{stage} settings:\n  {message}", capsys.readouterr().out
        )
        assert json.loads((folder / "run.json").read_text()) == wanted == check(folder, **change)
        return
    with pytest.raises(ValueError, match=f"{folder} holds a run with other settings:\n(.*\n)*  {message}") as stop:
        check(folder, **change)
    error = str(stop.value)
    reuse = f"--samples_dir {folder}/samples --output_dir {folder}-2"
    assert error.endswith(f"\n--output_dir {folder}-2" if stage == "model" else f"\n{reuse}")
    assert "remove" not in error and "delete" not in error
    assert (folder / "run.json").read_bytes() == before


def test_the_line_that_reuses_samples_names_the_folder_in_use_and_a_free_one(tmp_path):
    check(tmp_path / "run", samples_dir="other samples")
    finish_round(tmp_path / "run")
    (tmp_path / "run-2").mkdir()
    with pytest.raises(ValueError, match=f"--samples_dir 'other samples' --output_dir {tmp_path}/run-3$"):
        check(tmp_path / "run", samples_dir="other samples", beta=3.0)


@pytest.mark.parametrize("is_finished", [False, True])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"evaluation_seeds": 6}, "The evaluation uses the videos that exist"),
        ({"gradient_checkpointing": False}, "A training continues from its last checkpoint"),
    ],
)
def test_evaluation_and_memory_may_change_at_any_time(tmp_path, capsys, change, message, is_finished):
    check(tmp_path)
    if is_finished:
        finish_round(tmp_path)
    checkpoint = tmp_path / "rounds" / "01" / "policy" / "checkpoint-3"
    checkpoint.mkdir(parents=True)
    check(tmp_path, **change)
    assert message in capsys.readouterr().out and checkpoint.is_dir()


@pytest.mark.parametrize("change", [{"beta": 2.0}, {"score_threshold": 0.5}, {"reward_sources": {"dsr_score": "b"}}])
def test_a_training_that_has_begun_starts_again_and_its_checkpoints_are_kept(tmp_path, capsys, change):
    check(tmp_path)
    policy = tmp_path / "rounds" / "01" / "policy"
    (policy / "checkpoint-3").mkdir(parents=True)
    check(tmp_path, **change)
    assert f"starts again from step 0; its checkpoints are kept in {policy}/replaced-1" in capsys.readouterr().out
    assert (policy / "replaced-1" / "checkpoint-3").is_dir() and not (policy / "checkpoint-3").exists()


def test_a_default_that_is_named_is_no_other_setting(tmp_path, capsys):
    check(tmp_path)
    check(tmp_path, num_frames=SAMPLING.num_frames, guidance_scale=SAMPLING.guidance_scale)
    assert not capsys.readouterr().out


def test_an_older_run_continues_and_its_gaps_are_filled(tmp_path):
    wanted = check(tmp_path)
    finish_round(tmp_path)
    for name in ("lora", "reward_sources", "model_files"):
        del wanted[name]
    (tmp_path / "run.json").write_text(json.dumps(wanted))
    again = check(tmp_path, lora={**LORA, "r": 8}, reward_sources={"dsr_score": "b"})
    assert again["lora"]["r"] == 8 and again["reward_sources"] == {"dsr_score": "b"}
    with pytest.raises(ValueError, match="lora: .*'r': 8.* there, .*'r': 16.* now"):
        check(tmp_path, reward_sources={"dsr_score": "b"})


def test_the_code_of_a_reward_that_is_not_told_is_recorded_as_unknown_and_that_is_said(tmp_path, capsys):
    settings = check(tmp_path, rewards={"judge": None}, reward_sources={"judge": None})
    assert settings["reward_sources"] == {"judge": "unknown"}
    assert "The code of the reward judge is unknown" in capsys.readouterr().out
    finish_round(tmp_path)
    # What is unknown, there or now, counts as unchanged, and what is known once stays known.
    for source, kept in ((None, "unknown"), ("a", "a"), (None, "a"), ("a", "a")):
        again = check(tmp_path, rewards={"judge": None}, reward_sources={"judge": source})
        assert again["reward_sources"] == {"judge": kept}
    with pytest.raises(ValueError, match="scoring settings:\n  reward_sources: .*'a'.* there, .*'b'.* now"):
        check(tmp_path, rewards={"judge": None}, reward_sources={"judge": "b"})


def test_a_fingerprint_that_an_older_version_did_not_record_counts_as_unchanged_beside_one_that_it_did(tmp_path):
    rewards = {"mine": None, "judge": None}
    check(tmp_path, rewards=rewards, reward_sources={"mine": "a"})
    finish_round(tmp_path)
    both = {"mine": "a", "judge": "b"}
    assert check(tmp_path, rewards=rewards, reward_sources=both)["reward_sources"] == both
    with pytest.raises(ValueError, match="reward_sources"):
        check(tmp_path, rewards=rewards, reward_sources={"mine": "a", "judge": "c"})


def test_the_alpha_of_an_older_run_is_read_from_its_checkpoint(tmp_path, capsys):
    wanted = check(tmp_path)
    del wanted["lora"]
    (tmp_path / "run.json").write_text(json.dumps(wanted))
    for step, alpha in ((3, 99), (12, 16)):
        checkpoint = tmp_path / "rounds" / "01" / "policy" / f"checkpoint-{step}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "adapter_config.json").write_text(json.dumps({"r": 16, "lora_alpha": alpha}))
    check(tmp_path, lora={**LORA, "lora_alpha": 64})
    assert "'lora_alpha': 16" in capsys.readouterr().out and not checkpoint.exists()


def test_every_difference_is_listed_and_nothing_else(tmp_path, capsys):
    check(tmp_path)
    check(tmp_path, beta=2.0, max_steps=7)
    lines = [line.strip().split(":")[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert lines == ["beta", "max_steps"]


def test_every_setting_of_the_loop_has_a_stage():
    """The trainer's own settings belong to the training; those of the loop's other stages must be listed."""
    own = {f.name for f in fields(OnlineSpatialAlignConfig)} - {f.name for f in fields(SpatialAlignConfig)}
    of_training = {"continue_adapter", "refresh_reference", "ema_decay"}
    listed = (
        FREE | MEMORY | EVALUATION | SCORING | PAIRING | SAMPLING_SETTINGS | MODEL | of_training | set(SAMPLING_FIELDS)
    )
    assert not own - listed
    groups = [FREE, MEMORY, EVALUATION, SCORING, PAIRING, SAMPLING_SETTINGS, MODEL]
    assert sum(map(len, groups)) == len(set.union(*groups))


def test_settings_that_change_no_number_may_change(tmp_path):
    check(tmp_path)
    check(
        tmp_path, num_rounds=3, logging_steps=1, save_steps=5, rollout_batch_size=2, contact_sheet_prompts=0,
        disable_tqdm=True, quality_guards=["frames", "tiny_world"], latent_cache_dir="elsewhere",
    )  # fmt: skip


def test_a_run_whose_folder_was_moved_continues(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    check(first)
    first.rename(second)
    check(second)


def test_the_settings_that_may_change_exist():
    """A misspelt name would make the setting that it means unchangeable."""
    assert not (FREE | MEMORY | EVALUATION | PAIRING) - {f.name for f in fields(OnlineSpatialAlignConfig)}


def test_no_secret_is_written(tmp_path):
    check(tmp_path, hub_token="hf_secret")
    assert "hf_secret" not in (tmp_path / "run.json").read_text()


def test_a_damaged_run_file_is_named(tmp_path):
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match="run.json is not a JSON file"):
        check(tmp_path)


def test_versions_name_every_package():
    versions = describe_versions()
    assert set(versions) == {"python", *PACKAGES} and "not installed" not in versions.values()


def test_a_missing_package_has_no_version(monkeypatch):
    monkeypatch.setattr("spatialalign_trl.online.run_settings.PACKAGES", ("no-such-package",))
    assert describe_versions()["no-such-package"] == "not installed"


def test_keys_of_the_starting_lora_without_a_place_are_recorded(tmp_path):
    assert "starting_policy_keys" not in check(tmp_path, fit=LoraFit(84))
    fit = LoraFit(84, ("blocks.30.attn2.to_k.lora_A.weight", "blocks.30.attn2.to_k.lora_B.weight"))
    recorded = check(tmp_path, fit=fit)["starting_policy_keys"]  # a run of before it was recorded goes on
    assert recorded == json.loads((tmp_path / "run.json").read_text())["starting_policy_keys"]
    assert recorded.startswith("2 of 84 keys fit nothing") and "blocks.30.attn2.to_k.lora_A.weight" in recorded
    with pytest.raises(ValueError, match="starting_policy_keys: '2 of 84 .*' there, '1 of 84 .*' now"):
        check(tmp_path, fit=LoraFit(84, ("a",)))
