"""The errors of `spatialalign push-preferences`. The tests of the online loop show that it pushes."""

from __future__ import annotations

import pytest

from spatialalign_trl.cli import main as spatialalign

REPO = "tester/prefs"


def test_errors_name_the_reason(loopback_client, tmp_path, capsys, monkeypatch):
    def answer(*words):
        with pytest.raises(SystemExit) as exit:
            spatialalign(["push-preferences", *words])
        assert exit.value.code == 2
        return capsys.readouterr().err

    assert "holds no preference dataset" in answer(str(tmp_path), "--repo", REPO)
    assert "must be owner/name" in answer(str(tmp_path), "--repo", "prefs")
    assert "403" in answer(str(tmp_path), "--repo", "stranger/prefs")
    monkeypatch.delenv("HF_TOKEN")
    assert "hf auth login" in answer(str(tmp_path), "--repo", REPO)
