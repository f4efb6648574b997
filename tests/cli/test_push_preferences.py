"""`spatialalign push-preferences` names its mistakes. The tests of the online loop show that it pushes."""

from __future__ import annotations

import pytest

from spatialalign_trl.cli import main as spatialalign

REPO = "tester/prefs"


def test_each_error_names_its_reason(loopback_client, tmp_path, capsys, monkeypatch):
    def error_of(*words):
        with pytest.raises(SystemExit) as exit:
            spatialalign(["push-preferences", *words])
        assert exit.value.code == 2
        return capsys.readouterr().err

    assert "has no preference dataset" in error_of(str(tmp_path), "--repo", REPO)
    assert "must be owner/name" in error_of(str(tmp_path), "--repo", "prefs")
    assert "403" in error_of(str(tmp_path), "--repo", "stranger/prefs")
    monkeypatch.delenv("HF_TOKEN")
    assert "hf auth login" in error_of(str(tmp_path), "--repo", REPO)
