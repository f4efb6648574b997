"""Test LoRAs on the Hub: under our file name or another, from the cache without a network, and the errors."""

import pytest
import tiny_pipelines
import torch
from huggingface_hub import HfApi, constants
from peft import LoraConfig

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
