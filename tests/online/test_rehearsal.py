"""What only a trainer would refuse is refused before the first video, and the rehearsal itself leaves no trace."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_loop import config, loop, luck, prompts
from tiny_pipelines import saved_wan

from spatialalign_trl.models import load_video_model
from spatialalign_trl.online.rehearsal import rehearse_training
from spatialalign_trl.online.trainer import OnlineSpatialAlignTrainer
from spatialalign_trl.trainer.lora import attach_lora, default_lora_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return saved_wan(tmp_path_factory.mktemp("wan"))


def refusal(folder: str, output: Path, monkeypatch, **overrides) -> str:
    """The one line with which a run is refused, before anything is sampled, recorded or left behind."""
    with pytest.raises((ValueError, ImportError)) as refused:
        run = loop(folder, output, **overrides)
        monkeypatch.setattr(type(run.model), "sample", lambda *a, **k: pytest.fail("a video was sampled"))
        run.train()
    assert not list(output.rglob("*.mp4")) and not (output / "run.json").exists()
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"report_to": "wandb_of_tomorrow"}, "report_to='wandb_of_tomorrow'"),
        ({"report_to": ["tensorboard", "clearml"]}, "report_to='clearml': .*clearml"),
        ({"optim": "galore_adamw"}, "optim"),
        ({"eval_strategy": "steps", "eval_steps": 2}, "eval_dataset"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "lr_scheduler_type='cosine_with_min_lr', .*min_lr"),
        ({"lr_scheduler_kwargs": {"num_cycle": 3}, "lr_scheduler_type": "cosine"}, "lr_scheduler_kwargs=.*num_cycle"),
        ({"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": "1e-5"}}, "min_lr.*cannot be"),
        ({"reward_weights": [0]}, r"reward_weights=\[0\]: no reward counts"),
        ({"reward_gates": {"luck": 0.1}}, "luck has weight 0"),
        ({"warmup_steps": 4}, "warmup_steps=4 is past the end of the training, which has at most 3 steps"),
        ({"warmup_steps": 400, "max_steps": -1}, "warmup_steps=400 is past the end"),
        ({"dataloader_drop_last": True, "per_device_train_batch_size": 64}, "dataloader_drop_last=True: .*at most 6"),
        ({"pair_strategy": "min_gap"}, "min_gap=0.0"),
        ({"dataloader_multiprocessing_context": "tread", "dataloader_num_workers": 1}, "tread"),
        ({"fp16": True}, "fp16=True: .*CPU"),
    ],
)
def test_a_training_that_cannot_run_is_refused_before_the_first_video(
    folder, tmp_path, monkeypatch, overrides, message
):
    import re

    assert re.search(message, refusal(folder, tmp_path, monkeypatch, **overrides))


def test_a_lora_that_cannot_be_attached_is_refused_before_the_first_video(folder, tmp_path, monkeypatch):
    model = load_video_model(folder, device="cpu")
    lora = default_lora_config(model)
    lora.target_modules = {"attn2.to_k", "attn2.to_vv"}
    monkeypatch.setattr(type(model), "sample", lambda *a, **k: pytest.fail("a video was sampled"))
    run = OnlineSpatialAlignTrainer(
        model, luck, config(tmp_path), prompts("train", "red"), prompts("eval", "blue"), peft_config=lora
    )
    with pytest.raises(ValueError, match=r"has no module 'attn2.to_vv'. Did you mean 'attn2.to_v'\?"):
        run.train()


def state(model) -> dict:
    network = model.base_transformer
    return {
        "weights": {name: value.clone() for name, value in network.state_dict().items()},
        "trainable": {name: p.requires_grad for name, p in network.named_parameters()},
        "modes": [module.training for module in network.modules()],
        "types": [type(module).__name__ for module in network.modules()],
        "checkpointing": network.is_gradient_checkpointing,
        "encoders": {name: id(getattr(model.pipeline, name)) for name in model.encoder_names},
        "wrapped": type(model.transformer).__name__,
        "fit": model.lora_fit,
    }


def assert_same(before: dict, after: dict) -> None:
    assert before["weights"].keys() == after["weights"].keys()
    for name, value in before.pop("weights").items():
        other = after["weights"][name]
        assert value.dtype == other.dtype and torch.equal(value, other), name
    del after["weights"]
    assert before == after


@pytest.mark.parametrize("start", ["base", "loaded", "wrapped"])
@pytest.mark.parametrize("overrides", [{}, {"gradient_checkpointing": True, "num_fixed_draws": 2}])
def test_a_rehearsal_leaves_the_model_and_the_random_numbers_as_they_were(folder, tmp_path, start, overrides):
    run = loop(folder, tmp_path / "run", precompute_reference="num_fixed_draws" in overrides, **overrides)
    if start != "base":
        other = load_video_model(folder, device="cpu")
        for name, parameter in attach_lora(other).named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(generator=torch.Generator().manual_seed(1))
        other.save_lora(tmp_path / "lora")
        if start == "loaded":
            run.model.load_lora(tmp_path / "lora")
        else:
            run.model.load_lora(tmp_path / "lora")
            attach_lora(run.model)
    before, numbers = state(run.model), (random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state())
    rehearse_training(run.parts, None)
    assert_same(before, state(run.model))
    assert random.getstate() == numbers[0] and np.array_equal(np.random.get_state()[1], numbers[1])
    assert torch.equal(torch.get_rng_state(), numbers[2])
    assert not list((tmp_path / "run").rglob("*.safetensors"))


def test_a_finished_run_rehearses_nothing(folder, tmp_path, monkeypatch):
    loop(folder, tmp_path, max_steps=1).train()
    again = loop(folder, tmp_path, max_steps=1)
    monkeypatch.setattr("spatialalign_trl.online.rehearsal.rehearse", lambda *a: pytest.fail("rehearsed"))
    again.train()
