"""Test LoRAs on the Hub: under our file name or another, from the cache without a network, and the errors."""

import re
import shlex
import subprocess
import sys

import pytest
import tiny_pipelines
import torch
from huggingface_hub import HfApi, constants
from peft import LoraConfig, get_peft_model

from spatialalign_trl.models import WanVideoModel


@pytest.fixture(scope="module")
def trained() -> WanVideoModel:
    """A model with a LoRA that changes its output."""
    model = WanVideoModel(tiny_pipelines.wan_pipeline())
    model.transformer.add_adapter(LoraConfig(r=2, target_modules=["attn2.to_k"], init_lora_weights=False))
    return model


@pytest.fixture
def plain() -> WanVideoModel:
    return WanVideoModel(tiny_pipelines.wan_pipeline())


def publish(model: WanVideoModel, folder, name: str = "pytorch_lora_weights.safetensors") -> None:
    HfApi().create_repo("tester/lora")
    HfApi().upload_file(path_or_fileobj=model.save_lora(folder), path_in_repo=name, repo_id="tester/lora")


@pytest.mark.parametrize("name", ["pytorch_lora_weights.safetensors", "another_trainers.safetensors"])
def test_the_published_lora_is_loaded(trained, plain, tmp_path, loopback_client, name):
    publish(trained, tmp_path / "lora", name)
    plain.load_lora("tester/lora")
    published, expected = plain.lora_state_dict(), trained.lora_state_dict()
    assert published.keys() == expected.keys()
    assert all(torch.equal(published[key], expected[key]) for key in expected)


def test_a_cached_lora_needs_no_network(trained, plain, tmp_path, loopback_client, monkeypatch):
    publish(trained, tmp_path / "lora")
    plain.load_lora("tester/lora")
    plain.unload_lora()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    plain.load_lora("tester/lora")
    assert plain.lora_state_dict()
    plain.unload_lora()
    with pytest.raises(ConnectionError, match=r"'tester/other'.* not in the local cache.*hf download tester/other"):
        plain.load_lora("tester/other")


def test_a_missing_repository_is_named(plain, loopback_client):
    with pytest.raises(FileNotFoundError, match="no folder 'tester/none', and no repository with that id on the Hub"):
        plain.load_lora("tester/none")


def upload(files: dict[str, bytes]) -> None:
    HfApi().create_repo("tester/several")
    for name, data in files.items():
        HfApi().upload_file(path_or_fileobj=data, path_in_repo=name, repo_id="tester/several")


def test_a_repository_with_several_files_is_refused_with_a_command_that_works(
    trained, plain, tmp_path, loopback_client
):
    data = trained.save_lora(tmp_path / "lora").read_bytes()
    upload({"high.safetensors": data, "low.safetensors": data, "checkpoint-1/high.safetensors": data})
    with pytest.raises(ValueError, match="has 2 LoRA files: high.safetensors, low.safetensors") as refused:
        plain.load_lora("tester/several")
    command, path = re.search(r"`(.+?)` .* pass (\S+)\.$", str(refused.value)).groups()
    environment = loopback_client.environment(tmp_path / "home")
    program = [sys.executable, "-m", "huggingface_hub.cli.hf", *shlex.split(command)[1:]]
    subprocess.run(program, cwd=tmp_path, env=environment, check=True, timeout=120)
    plain.load_lora(tmp_path / path)
    assert plain.lora_fit.unplaced == ()


def test_a_file_in_a_folder_is_loaded_if_it_is_the_only_one(trained, plain, tmp_path, loopback_client):
    upload({"weights/mine.safetensors": trained.save_lora(tmp_path / "lora").read_bytes(), "old.pt": b"PK"})
    plain.load_lora("tester/several")
    assert plain.lora_fit.unplaced == ()


def test_pickles_on_the_hub_are_never_fetched(plain, loopback_client):
    upload({"pytorch_lora_weights.bin": b"\x80\x02}.", "lora.pt": b"PK"})
    with pytest.raises(ValueError, match="has no .safetensors file. Pickles .* are never loaded"):
        plain.load_lora("tester/several")
    assert not [path for _, path in loopback_client.requests if path.endswith((".bin", ".pt"))]


def test_what_peft_pushed_is_loaded_with_its_alpha(plain, tmp_path, loopback_client):
    model = WanVideoModel(tiny_pipelines.wan_pipeline())
    config = LoraConfig(r=2, lora_alpha=8, target_modules=["attn2.to_k"], init_lora_weights=False)
    model.transformer = get_peft_model(model.transformer, config)
    model.transformer.save_pretrained(tmp_path)
    upload({path.name: path.read_bytes() for path in tmp_path.iterdir() if path.suffix in (".json", ".safetensors")})
    plain.load_lora("tester/several")
    (config,) = plain.transformer.peft_config.values()
    assert (config.r, config.lora_alpha) == (2, 8)
    assert all(torch.equal(value, model.lora_state_dict()[name]) for name, value in plain.lora_state_dict().items())
