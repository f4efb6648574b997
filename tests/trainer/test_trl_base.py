"""The one import of TRL's private base classes, and what stands in for them."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import spatialalign_trl.trainer._trl_base as trl_base


def test_trl_s_own_classes_are_used() -> None:
    assert trl_base.IS_TRL_BASE
    assert trl_base.BaseTrainer.__module__.startswith("trl.")


def test_stands_on_transformers_should_they_move(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("trl.trainer.base_config", "trl.trainer.base_trainer"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it raises ImportError
    spec = importlib.util.spec_from_file_location("stand_in", trl_base.__file__)
    stand_in = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "stand_in", stand_in)
    spec.loader.exec_module(stand_in)
    assert not stand_in.IS_TRL_BASE
    ours = stand_in.BaseConfig(output_dir=str(tmp_path), use_cpu=True, fp16=False, bf16=False)
    theirs = trl_base.BaseConfig(output_dir=str(tmp_path), use_cpu=True, fp16=False, bf16=False)
    assert (ours.logging_steps, ours.gradient_checkpointing) == (theirs.logging_steps, theirs.gradient_checkpointing)
    for name in ("loss_is_scaled_for_ga", "_tag_names", "_name", "_paper", "_template_file"):
        assert getattr(stand_in.BaseTrainer, name) == getattr(trl_base.BaseTrainer, name)


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, spatialalign_trl.trainer; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
