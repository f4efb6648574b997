"""Test that checkpoints are found, checked and fingerprinted without loading, with a clear error for missing parts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from tiny_perception import saved_grounding_dino, saved_sam2

from spatialalign_trl.files import read_json, write_json
from spatialalign_trl.perception.checkpoints import (
    PretrainedModel,
    checkpoint_fingerprint,
    find_checkpoint,
    pick_dtype,
    require_torchvision,
)

CLASSES = {"sam2_video": ("Sam2VideoModel", "Sam2VideoProcessor")}


@pytest.fixture(scope="module")
def sam2(tmp_path_factory):
    return saved_sam2(tmp_path_factory.mktemp("sam2"))


@pytest.fixture
def empty_hub(tmp_path, monkeypatch):
    """Use an empty local cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def test_a_local_folder_is_a_checkpoint(sam2):
    assert find_checkpoint(sam2) == Path(sam2)


def test_a_hub_id_without_a_network_says_what_to_download(empty_hub):
    with pytest.raises(ConnectionError) as caught:
        find_checkpoint("facebook/sam2.1-hiera-large", revision="v1")
    for part in (
        "'facebook/sam2.1-hiera-large'",
        "'v1'",
        "`hf download facebook/sam2.1-hiera-large --revision v1`",
        "local folder",
    ):
        assert part in str(caught.value)


def test_a_hub_that_does_not_answer_is_no_network(empty_hub, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConnectionError, match="'owner/name'.*no network"):
        find_checkpoint("owner/name")


@pytest.mark.parametrize("name", ["/no/such/folder", "sam2", "a/b/c", "../x"])
def test_a_missing_folder_is_named(name):
    with pytest.raises(FileNotFoundError, match=f"no checkpoint folder {name!r}.*hf download"):
        find_checkpoint(name)


def test_a_checkpoint_in_the_cache_is_found_without_a_network(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--owner--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    folder = repository / "snapshots" / commit
    saved_sam2(folder)
    assert find_checkpoint("owner/name") == folder
    assert checkpoint_fingerprint(folder) == f"models--owner--name@{commit}"
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="lacks model.safetensors.*hf download owner/name"):
        find_checkpoint("owner/name")


def test_weights_that_would_be_unpickled_are_ignored(tmp_path):
    write_json(tmp_path / "config.json", {})
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(FileNotFoundError, match="lacks model.safetensors; weights are read from safetensors only"):
        find_checkpoint(tmp_path)


def test_a_missing_shard_is_named(tmp_path):
    write_json(tmp_path / "config.json", {})
    write_json(
        tmp_path / "model.safetensors.index.json", {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    )
    (tmp_path / "one.safetensors").write_bytes(b"x")
    with pytest.raises(FileNotFoundError, match="lacks two.safetensors"):
        find_checkpoint(tmp_path)


def test_the_fingerprint_changes_with_the_files(tmp_path):
    folder = Path(saved_sam2(tmp_path))
    before = checkpoint_fingerprint(folder)
    assert checkpoint_fingerprint(folder) == before
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", {**config, "num_maskmem": 3})
    assert checkpoint_fingerprint(folder) != before


def test_missing_torchvision_is_reported_before_the_checkpoint_is_searched(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ImportError, match="'owner/name' needs the package torchvision.*pip install torchvision"):
        PretrainedModel("owner/name", CLASSES).prepare()
    with pytest.raises(ImportError, match="the test needs"):
        require_torchvision("the test")


def test_models_that_need_no_torchvision_do_not_check_for_it(monkeypatch, sam2):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert PretrainedModel(sam2, CLASSES, needs_torchvision=False).prepare() == Path(sam2)


def test_another_kind_of_model_is_refused_unless_its_code_is_trusted(tmp_path):
    folder = saved_grounding_dino(tmp_path)
    with pytest.raises(ValueError, match="of the kind 'grounding-dino', but here sam2_video is needed"):
        PretrainedModel(folder, CLASSES).prepare()
    assert PretrainedModel(folder, CLASSES, trust_remote_code=True).prepare() == Path(folder)


def test_code_is_trusted_only_on_request(sam2, monkeypatch):
    import transformers

    calls = []

    class Spy:
        @classmethod
        def from_pretrained(cls, folder, **options):
            calls.append(options)
            return torch.nn.Linear(1, 1)

    monkeypatch.setattr(transformers, "Sam2VideoModel", Spy)
    monkeypatch.setattr(transformers, "Sam2VideoProcessor", Spy)
    PretrainedModel(sam2, CLASSES, device="cpu").load()
    assert not any("trust_remote_code" in options for options in calls)
    assert calls[-1]["use_safetensors"] is True
    PretrainedModel(sam2, CLASSES, device="cpu", trust_remote_code=True).load()
    assert all(options["trust_remote_code"] is True for options in calls[2:])


def test_bfloat16_is_for_cuda():
    assert pick_dtype(None, torch.device("cuda")) is torch.bfloat16
    assert pick_dtype(None, torch.device("cpu")) is torch.float32
    assert pick_dtype("float32", torch.device("cuda")) is torch.float32
    assert pick_dtype(torch.float16, torch.device("cuda")) is torch.float16
    with pytest.raises(ValueError, match="autocast is for CUDA only"):
        pick_dtype("bfloat16", torch.device("cpu"))
    with pytest.raises(ValueError, match="'int8'; it must be one of"):
        pick_dtype("int8", torch.device("cuda"))


def test_precision_is_part_of_the_fingerprint(sam2):
    cpu, gpu = (PretrainedModel(sam2, CLASSES, device=device).fingerprint() for device in ("cpu", "cuda"))
    assert cpu != gpu and cpu.split()[0] == gpu.split()[0]
