"""Test what a run saves: a LoRA that diffusers loads bit for bit, a checkpoint without our own pickles, a card."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard, snapshot_download
from loopback_hub import Commit, LoopbackHub
from safetensors import safe_open
from tiny_pairs import LATENT_SHAPE, assert_same_weights, latent_pairs, lora_of, spatialalign_trainer, wan_model
from tiny_pipelines import wan_pipeline

from spatialalign_trl.hub.pushing import PushFailed
from spatialalign_trl.models.sources import hub_id
from spatialalign_trl.trainer import SpatialAlignTrainer
from spatialalign_trl.trainer.lora import default_lora_config


def output(network: torch.nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    noisy = torch.randn((1, *LATENT_SHAPE), generator=generator)
    embeds = torch.randn((1, 16, 16), generator=generator)
    with torch.no_grad():
        return network(noisy, torch.tensor([500.0]), embeds, return_dict=False)[0]


@pytest.mark.parametrize("where", ["checkpoint-3", "."])
def test_diffusers_loads_what_was_trained_bit_for_bit(tmp_path: Path, where: str) -> None:
    model = wan_model()
    config = default_lora_config(model, r=4, alpha=12)  # alpha != r would be lost if the metadata were not saved
    trainer = spatialalign_trainer(tmp_path, model=model, peft_config=config, save_strategy="steps", save_steps=3)
    trainer.train()
    trainer.save_model()
    fresh = wan_pipeline()
    base = output(fresh.transformer)
    fresh.load_lora_weights(tmp_path / where)
    assert fresh.get_active_adapters()
    assert torch.equal(output(fresh.transformer), output(trainer.model))
    assert not torch.equal(output(fresh.transformer), base)


def test_a_checkpoint_holds_these_files(tmp_path: Path) -> None:
    trainer = spatialalign_trainer(tmp_path, save_strategy="steps", save_steps=3)
    trainer.train()
    files = {path.name for path in (tmp_path / "checkpoint-3").iterdir()}
    resume = {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}
    ours = {"adapter_model.safetensors", "adapter_config.json", "pytorch_lora_weights.safetensors"}
    assert files == resume | ours | {"README.md", "training_args.json", "log_state.json", "checksums.json"}
    args = json.loads((tmp_path / "checkpoint-3" / "training_args.json").read_text())
    assert args["zeroth_order_weight"] == 0.5 and args["seed"] == 7
    with safe_open(tmp_path / "checkpoint-3" / "pytorch_lora_weights.safetensors", "pt") as file:
        assert all(key.startswith("transformer.") for key in file.keys())


def test_the_card_says_what_it_is_and_how_to_load_it(tmp_path: Path) -> None:
    model = wan_model()
    model.name_or_path = "owner/some-video-model"
    trainer = spatialalign_trainer(tmp_path / "my-lora", model=model, hub_model_id="me/my-lora", shared_noise=True)
    trainer.train()
    trainer.create_model_card(model_name="My LoRA", dataset_name="me/pairs", tags="extra")
    card = ModelCard.load(tmp_path / "my-lora" / "README.md")
    assert card.data.library_name == "diffusers" and card.data.pipeline_tag == "text-to-video"
    assert card.data.base_model == "owner/some-video-model" and card.data.datasets == ["me/pairs"]
    assert {"text-to-video", "lora", "diffusers", "template:sd-lora", "trl", "spatialalign", "extra"} <= set(
        card.data.tags
    )
    text = card.text
    assert 'from_pretrained("owner/some-video-model"' in text and 'load_lora_weights("me/my-lora", ' in text
    assert f'prompt="{latent_pairs(1)[0]["prompt"]}"' in text and "max_sequence_length=16" in text
    assert "on pairs of a chosen and a rejected video of the same prompt" in text
    assert "L        = L_dpo + 0.5 * L_zo" in text and "| Noise within a pair | shared |" in text
    assert "shift 5.0 |" in text and "| rewards/margins |" in text
    assert "2602.22745" in text and "{self" not in text and "{{" not in text
    assert "transformers import pipeline" not in text


def test_a_local_base_model_stays_out_of_the_card_s_metadata(tmp_path: Path) -> None:
    (tmp_path / "models" / "mine").mkdir(parents=True)
    assert hub_id("owner/name") == "owner/name"
    assert [hub_id(name) for name in ("tiny", str(tmp_path / "models" / "mine"), "./a/b", "/a/b")] == [None] * 4
    model = wan_model()
    model.name_or_path = str(tmp_path / "models" / "mine")
    trainer = spatialalign_trainer(tmp_path / "out", model=model, train_dataset=latent_pairs(2))
    trainer.create_model_card()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "base_model" not in card and str(tmp_path) not in card


def pushing(output_dir: Path, **overrides) -> SpatialAlignTrainer:
    options = {"push_to_hub": True, "hub_always_push": True, "save_strategy": "steps", "save_steps": 1}
    return spatialalign_trainer(output_dir / "my-lora", **{**options, **overrides})


def pushed_commits(hub: LoopbackHub) -> list[Commit]:
    return hub.repo("model", "tester/my-lora").branches["main"][1:]


def test_every_save_is_pushed_and_diffusers_loads_it_back(tmp_path: Path, loopback_client: LoopbackHub) -> None:
    trainer = pushing(tmp_path)
    trainer.train()
    trainer._finish_current_push()
    assert [commit.message for commit in pushed_commits(loopback_client)] == [
        f"Training in progress, step {step}" for step in (1, 2, 3)
    ]
    for step, commit in enumerate(pushed_commits(loopback_client), start=1):
        names = {name for name in commit.files if not name.startswith(".")}
        assert names == {"pytorch_lora_weights.safetensors", "README.md"}
        for name in names:
            assert commit.files[name] == (tmp_path / "my-lora" / f"checkpoint-{step}" / name).read_bytes()
            assert loopback_client.token.encode() not in commit.files[name]
    assert not list((tmp_path / "my-lora").glob("*.bin"))  # Trainer's push would pickle the arguments
    fresh = wan_pipeline()
    fresh.load_lora_weights("tester/my-lora")
    assert torch.equal(output(fresh.transformer), output(trainer.model))


def test_the_end_alone_is_pushed_on_demand(tmp_path: Path, loopback_client: LoopbackHub) -> None:
    trainer = pushing(tmp_path, hub_strategy="end", hub_private_repo=True)
    trainer.train()
    assert not pushed_commits(loopback_client)
    pushed = trainer.push_to_hub(tags="extra")
    (commit,) = pushed_commits(loopback_client)
    assert commit.message == "End of training" and commit.oid == pushed.oid
    assert loopback_client.repo("model", "tester/my-lora").private
    assert "extra" in ModelCard(commit.files["README.md"].decode()).data.tags


def test_a_checkpoint_on_the_hub_can_be_resumed_from(tmp_path: Path, loopback_client: LoopbackHub) -> None:
    pushing(tmp_path, hub_strategy="checkpoint", max_steps=2)  # creates the repository
    first = pushing(tmp_path, hub_strategy="checkpoint", max_steps=2)
    first.train()
    first._finish_current_push()
    snapshot = snapshot_download("tester/my-lora", allow_patterns="last-checkpoint/*")
    uninterrupted = pushing(tmp_path / "uninterrupted", push_to_hub=False, max_steps=3)
    uninterrupted.train()
    resumed = pushing(tmp_path / "resumed", push_to_hub=False, max_steps=3)
    resumed.train(resume_from_checkpoint=str(Path(snapshot) / "last-checkpoint"))
    assert_same_weights(lora_of(resumed), lora_of(uninterrupted))


@pytest.mark.parametrize("status", [401, 429, 500, None])
def test_a_failed_push_does_not_stop_the_training(
    tmp_path: Path, loopback_client: LoopbackHub, monkeypatch: pytest.MonkeyPatch, caplog: Any, status: int | None
) -> None:
    monkeypatch.setattr("spatialalign_trl.hub.pushing.FIRST_PAUSE", 0.0)
    trainer = pushing(tmp_path, save_steps=3)
    loopback_client.fail("POST", "/commit/", status=status, times=999)
    trainer.train()
    trainer.save_model()
    assert not pushed_commits(loopback_client)
    assert (tmp_path / "my-lora" / "pytorch_lora_weights.safetensors").is_file()
    command = f"hf upload tester/my-lora {tmp_path / 'my-lora'} . --include pytorch_lora_weights.safetensors README.md"
    assert command in caplog.text and loopback_client.token not in caplog.text
    with pytest.raises(PushFailed) as failure:
        trainer.push_to_hub()
    assert loopback_client.token not in str(failure.value)


def test_a_push_is_repeated_until_it_succeeds(
    tmp_path: Path, loopback_client: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spatialalign_trl.hub.pushing.FIRST_PAUSE", 0.0)
    trainer = pushing(tmp_path, save_steps=3)
    loopback_client.fail("POST", "/commit/", status=503, times=2)
    trainer.train()
    trainer._finish_current_push()
    assert [commit.message for commit in pushed_commits(loopback_client)] == ["Training in progress, step 3"]


def test_a_token_that_the_hub_does_not_know_is_refused_before_training(
    tmp_path: Path, loopback_client: LoopbackHub
) -> None:
    with pytest.raises(PermissionError, match="the token is not valid") as refusal:
        pushing(tmp_path, hub_token="hf_wrongToken")
    assert "hf_wrongToken" not in str(refusal.value)
