"""A folder holds one run: a rerun that asks for something else is told what differs."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from types import SimpleNamespace

import pytest
import torch

from spatialalign_trl.models.settings import SamplingSettings
from spatialalign_trl.online.config import OnlineSpatialAlignConfig
from spatialalign_trl.online.run_settings import FREE, PACKAGES, check_same_run, describe_versions

SAMPLING = SamplingSettings(17, 32, 48, num_inference_steps=10, guidance_scale=3.0, negative_prompt="blurry")
REWARDS = {"dsr_score": None}
PROMPTS = [{"prompt_id": "a", "prompt": "A fox."}, {"prompt_id": "b", "prompt": "A cat."}]


def check(
    folder, *, model="tiny", dtype=torch.float32, computation=None, rewards=REWARDS, sampling=SAMPLING,
    prompts=PROMPTS, **overrides,
):  # fmt: skip
    args = OnlineSpatialAlignConfig(**{"output_dir": str(folder), "use_cpu": True, "report_to": "none", **overrides})
    model = SimpleNamespace(name_or_path=model, dtype=dtype, computation=computation or {})
    return check_same_run(folder, args, sampling, model, rewards, prompts)


def test_the_first_start_writes_what_was_asked_for(tmp_path):
    wanted = check(tmp_path, learning_rate=3e-4)
    written = json.loads((tmp_path / "run.json").read_text())
    assert written == wanted
    assert (
        written["model"] == "tiny" and written["rewards"] == {"dsr_score": None} and written["learning_rate"] == 3e-4
    )
    assert written["sampling"] == SAMPLING.to_dict() and written["prompts"].startswith("2 prompts, sha256 ")
    assert not FREE & set(written)


def test_the_same_again_goes_on(tmp_path):
    assert check(tmp_path) == check(tmp_path)


def test_a_run_of_before_a_setting_existed_goes_on_with_its_default(tmp_path):
    wanted = check(tmp_path)
    del wanted["sft_weight"], wanted["winner_safe_mu"]
    (tmp_path / "run.json").write_text(json.dumps(wanted))
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
        check(tmp_path, rewards=rewards("other secret"))
    assert " secret" not in str(refusal.value)

    # An older run recorded the secret itself: it goes on, and the file is cleaned.
    (tmp_path / "run.json").write_text(json.dumps({**wanted, "rewards": rewards("first secret")}))
    assert check(tmp_path, rewards=rewards("first secret")) == wanted
    assert "first secret" not in (tmp_path / "run.json").read_text()


def test_a_run_of_before_the_type_was_written_goes_on_in_any(tmp_path):
    wanted = check(tmp_path)
    del wanted["dtype"]
    (tmp_path / "run.json").write_text(json.dumps(wanted))
    assert check(tmp_path, dtype=torch.bfloat16)["dtype"] == "bfloat16"
    with pytest.raises(ValueError, match="  dtype: 'bfloat16' there, 'float32' now"):
        check(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "other"}, "model: 'tiny' there, 'other' now"),
        ({"rewards": {"dsr_score": None, "mine": None}}, "rewards: {'dsr_score': None} there, {.*'mine': None} now"),
        ({"rewards": {"dsr_score": {"tracker": "sam3"}}}, "rewards: {'dsr_score': None} there, .*sam3"),
        ({"prompts": PROMPTS[:1]}, "prompts: '2 prompts, sha256 .*' there, '1 prompts, sha256 .*' now"),
        ({"prompts": [PROMPTS[0], {**PROMPTS[1], "prompt": "A dog."}]}, "prompts: '2 prompts.* there, '2 prompts"),
        ({"sampling": replace(SAMPLING, num_inference_steps=20)}, "sampling: .*num_inference_steps.: 10"),
        ({"zeroth_order_weight": 0.25}, "zeroth_order_weight: 0.5 there, 0.25 now"),
        ({"margin_clip": None}, "margin_clip: 5.0 there, None now"),
        ({"reward_weights": [2.0]}, r"reward_weights: None there, \[2.0\] now"),
        ({"seed": 1}, "seed: 42 there, 1 now"),
        ({"dtype": torch.bfloat16}, "dtype: 'float32' there, 'bfloat16' now"),
        ({"computation": {"attention_backend": "flash"}}, "attention_backend: None there, 'flash' now"),
        ({"computation": {"vae_tiling": True}}, "vae_tiling: None there, True now"),
        ({"computation": {"quantization": {"backend": "bitsandbytes_4bit"}}}, "quantization: None there, {'backend'"),
    ],
)
def test_other_settings_are_refused_naming_both_values_and_a_way_out(tmp_path, change, message):
    check(tmp_path)
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(ValueError, match=f"{tmp_path} holds a run with other settings:\n(.*\n)*  {message}") as stop:
        check(tmp_path, **change)
    assert "another --output_dir" in str(stop.value)
    assert (tmp_path / "run.json").read_bytes() == before


def test_every_difference_is_listed_and_nothing_else(tmp_path):
    check(tmp_path)
    with pytest.raises(ValueError) as stop:
        check(tmp_path, beta=2.0, max_steps=7)
    lines = [line.strip().split(":")[0] for line in str(stop.value).splitlines() if line.startswith("  ")]
    assert lines == ["beta", "max_steps"]


def test_settings_that_change_no_number_may_change(tmp_path):
    check(tmp_path)
    check(
        tmp_path, num_rounds=3, logging_steps=1, save_steps=5, rollout_batch_size=2, contact_sheet_prompts=0,
        disable_tqdm=True, quality_guards=["frames", "tiny_world"], latent_cache_dir="elsewhere",
    )  # fmt: skip


def test_a_run_may_be_moved(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    check(first)
    first.rename(second)
    check(second)


def test_free_settings_exist():
    """A misspelt one would bind what was meant to be free."""
    assert not FREE - {field.name for field in fields(OnlineSpatialAlignConfig)}


def test_no_secret_is_written(tmp_path):
    check(tmp_path, hub_token="hf_secret")
    assert "hf_secret" not in (tmp_path / "run.json").read_text()


def test_a_damaged_run_file_is_named(tmp_path):
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match="run.json is not a JSON file"):
        check(tmp_path)


def test_versions_name_every_package_and_say_when_one_is_missing(monkeypatch):
    versions = describe_versions()
    assert set(versions) == {"python", *PACKAGES} and "not installed" not in versions.values()
    monkeypatch.setattr("spatialalign_trl.online.run_settings.PACKAGES", ("no-such-package",))
    assert describe_versions()["no-such-package"] == "not installed"
