"""The fingerprint of a model's files: it notices weights that changed, and takes seconds whatever their size."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save_file
from tiny_pipelines import saved_wan

from spatialalign_trl.models import sources
from spatialalign_trl.models.sources import model_fingerprint


@pytest.fixture
def folder(tmp_path) -> Path:
    return Path(saved_wan(tmp_path / "model"))


def change_tensor(file: Path, index: int) -> None:
    tensors = load(file.read_bytes())
    name = sorted(tensors)[index % len(tensors)]
    tensors[name] = tensors[name] + 1
    save_file(tensors, file, metadata={"format": "pt"})


def test_equal_folders_have_equal_fingerprints_wherever_they_are(folder, tmp_path):
    first = model_fingerprint(str(folder))
    assert first.startswith("sha256 ") and first == model_fingerprint(str(folder))
    assert first == model_fingerprint(str(shutil.copytree(folder, tmp_path / "elsewhere")))
    assert model_fingerprint("tiny").startswith("sha256 ")


@pytest.mark.parametrize("whole", [1 << 20, 0])  # 0: every file is sampled, as large ones are
@pytest.mark.parametrize("index", range(0, 60, 7))
def test_any_changed_tensor_is_noticed(folder, monkeypatch, whole, index):
    monkeypatch.setattr(sources, "_WHOLE", whole)
    monkeypatch.setattr(sources, "_BLOCK", 1)
    first = model_fingerprint(str(folder))
    change_tensor(next((folder / "transformer").glob("*.safetensors")), index)
    assert model_fingerprint(str(folder)) != first


def test_files_beside_the_components_do_not_count(folder):
    first = model_fingerprint(str(folder))
    (folder / "README.md").write_text("x")
    (folder / "runs").mkdir()
    (folder / "runs" / "x.safetensors").write_text("x")
    (folder / "vae" / ".cache").write_text("x")
    assert model_fingerprint(str(folder)) == first
    config = folder / "vae" / "config.json"
    config.write_text(config.read_text() + " ")
    assert model_fingerprint(str(folder)) != first


@pytest.mark.parametrize("header", [b"{", b"[]", json.dumps({"x": {"data_offsets": [-5, "a"]}}).encode()])
def test_a_damaged_header_is_left_to_the_loader(folder, monkeypatch, header):
    monkeypatch.setattr(sources, "_WHOLE", 0)
    file = next((folder / "transformer").glob("*.safetensors"))
    file.write_bytes(len(header).to_bytes(8, "little") + header + b"x" * 10000)
    assert model_fingerprint(str(folder)).startswith("sha256 ")


def test_28_gigabytes_take_seconds(folder):
    file = next((folder / "transformer").glob("*.safetensors"))
    header, end = {}, 0
    for k in range(1000):
        header[f"blocks.{k}.weight"] = {"dtype": "BF16", "shape": [14 << 20], "data_offsets": [end, end + (28 << 20)]}
        end += 28 << 20
    text = json.dumps(header).encode()
    with open(file, "wb") as sparse:
        sparse.write(len(text).to_bytes(8, "little") + text)
        sparse.truncate(8 + len(text) + end)
    assert file.stat().st_size > 29e9
    started = time.monotonic()
    first = model_fingerprint(str(folder))
    assert time.monotonic() - started < 20
    with open(file, "r+b") as sparse:
        sparse.seek(8 + len(text) + end // 2)
        sparse.write(torch.ones(64).numpy().tobytes())
    assert model_fingerprint(str(folder)) != first


def test_a_repository_is_its_commit(tmp_path, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    paths = {"main": f"/cache/snapshots/{commit}/model_index.json", None: None, "gone": object()}
    monkeypatch.setattr(sources, "try_to_load_from_cache", lambda repo, name, revision: paths[revision])
    assert model_fingerprint("owner/name", "main") == f"commit {commit}"
    assert model_fingerprint("owner/name") is None and model_fingerprint("owner/name", "gone") is None
    assert model_fingerprint("") is None and model_fingerprint("in memory") is None
