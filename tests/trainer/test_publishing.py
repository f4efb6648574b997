"""What a run leaves behind: a LoRA that diffusers loads bit for bit, a checkpoint without pickles of ours, a card."""

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors import safe_open
from tiny_pairs import LATENT_SHAPE, latent_pairs, spatialalign_trainer, wan_model
from tiny_pipelines import wan_pipeline

from spatialalign_trl.trainer._trl_base import BaseTrainer
from spatialalign_trl.trainer.lora import default_lora_config
from spatialalign_trl.trainer.model_card import hub_id


def output(network: torch.nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    noisy = torch.randn((1, *LATENT_SHAPE), generator=generator)
    embeds = torch.randn((1, 16, 16), generator=generator)
    with torch.no_grad():
        return network(noisy, torch.tensor([500.0]), embeds, return_dict=False)[0]


@pytest.mark.parametrize("where", ["checkpoint-3", "."])
def test_diffusers_loads_what_was_trained_bit_for_bit(tmp_path: Path, where: str) -> None:
    model = wan_model()
    config = default_lora_config(model, r=4, alpha=12)  # alpha != r: lost when the metadata is not saved
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
    assert files == resume | ours | {"README.md", "training_args.json"}
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
    assert 'from_pretrained("owner/some-video-model"' in text and 'load_lora_weights("me/my-lora")' in text
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


def test_a_push_while_training_takes_the_lora_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainer copies a fixed list of files from the checkpoint, and diffusers' LoRA file is not on it."""
    trainer = spatialalign_trainer(tmp_path, save_strategy="steps", save_steps=3)
    trainer.train()
    pushed: list[set[str]] = []

    def note(self: BaseTrainer, checkpoint_folder: str) -> None:
        pushed.append({path.name for path in tmp_path.iterdir() if path.is_file()})

    monkeypatch.setattr(BaseTrainer, "_push_from_checkpoint", note)
    trainer._push_from_checkpoint(str(tmp_path / "checkpoint-3"))
    assert pushed == [{"pytorch_lora_weights.safetensors", "README.md"}]
