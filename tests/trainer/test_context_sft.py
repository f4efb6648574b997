"""Test supervised training with a context on random scenes: the loss, what is learned, and resuming."""

import dataclasses
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from safetensors.torch import save
from tiny_pairs import LATENT_SHAPE, assert_same_weights, logged, lora_of, random_mp4, spatialalign_config, wan_model
from tiny_pipelines import NUM_FRAMES
from tiny_scenes import PROMPT, context_model, scene_row, walk

from spatialalign_trl.models import SamplingSettings
from spatialalign_trl.models.context_rows import LATENTS
from spatialalign_trl.rollout import SampleStore, noise_seed, roll_out
from spatialalign_trl.trainer import ContextSFTConfig, ContextSFTTrainer, SpatialAlignTrainer
from spatialalign_trl.trainer.lora import attach_lora, default_lora_config
from spatialalign_trl.trainer.video_trainer_config import VideoTrainerConfig
from spatialalign_trl.video import encode_video, read_video, write_video

CAMERA_LORA_B = "base_model.model.camera_projection.lora_B.default.weight"


def scenes(count: int = 3, **changes: Any) -> datasets.Dataset:
    rows = []
    for i in range(count):
        row = scene_row(i, frames=3, prompt=f"{PROMPT} {i}", **changes)
        row["context"] = encode_video(row["context"], fps=8, crf=0)
        rows.append({**row, "video": random_mp4(i)})
    return datasets.Dataset.from_list(rows)


def trainer_on(output_dir: Path, dataset: datasets.Dataset | None = None, **overrides: Any) -> ContextSFTTrainer:
    arguments = {name: overrides.pop(name) for name in ("model", "eval_dataset", "peft_config") if name in overrides}
    options = {
        "per_device_train_batch_size": 3, "max_steps": 3, "logging_steps": 1, "learning_rate": 1e-2,
        "lr_scheduler_type": "constant", "save_strategy": "no", "gradient_checkpointing": False, "use_cpu": True,
        "disable_tqdm": True, "seed": 7, "latent_cache_dir": str(output_dir / "cache"),
    }  # fmt: skip
    args = ContextSFTConfig(output_dir=str(output_dir), **{**options, **overrides})
    arguments.setdefault("model", context_model())
    return ContextSFTTrainer(args=args, train_dataset=scenes() if dataset is None else dataset, **arguments)


def test_it_learns_from_all_conditioning_and_saves_the_lora(tmp_path: Path) -> None:
    trainer = trainer_on(tmp_path, max_steps=40, min_sigma=0.3, eval_dataset=scenes(2))
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.95 * before
    assert lora_of(trainer)["camera_projection.lora_B.weight"].any()
    trainer.save_model()
    card = (tmp_path / "README.md").read_text()
    assert "2512.03040" in card and "Scenes" in card and "mean over target frames" in card
    assert 'variant="context"' in card and "camera_poses" in card and "DiffusionPipeline" not in card
    assert f'"prompt": "{scenes(1)[0]["prompt"]}"' in card  # of the evaluation's rows
    assert "chosen" not in card and "preference" not in card and "The loss, on scenes" in card

    again = context_model()
    again.load_lora(tmp_path)
    assert_same_weights(again.lora_state_dict(), lora_of(trainer))
    row = again.encode_rows([scene_row(0, 3)])
    negative = again.encode_prompts([""])
    settings = SamplingSettings(NUM_FRAMES, 16, 32, num_inference_steps=2, guidance_scale=2.0)
    trainer.video_model.transformer.eval()
    expected = trainer.video_model.sample(row, negative, [1], settings)
    assert torch.equal(again.sample(row, negative, [1], settings), expected)


def test_the_loss_is_that_of_the_targets_alone(tmp_path: Path) -> None:
    trainer = trainer_on(tmp_path, context_dropout=0.0)
    model, batch = trainer.video_model, next(iter(trainer.get_train_dataloader()))
    assert batch["latents"].shape == (3, *LATENT_SHAPE) and batch["conditioning"][LATENTS].shape == (3, 4, 3, 2, 4)
    trainer.model.train()
    outputs: list[torch.Tensor] = []
    hook = trainer.model.register_forward_hook(lambda module, args, output: outputs.append(output[0]))
    losses, _ = trainer._example_losses(trainer.model, batch)
    hook.remove()
    (gradient,) = torch.autograd.grad(losses.sum(), outputs)
    assert gradient.shape[2] == 6 and not gradient[:, :, :3].any() and gradient[:, :, 3:].any()

    trainer._micro_step = (-1, -1)  # repeat the same draws
    sigma, noise, conditioning = trainer._draw(batch)
    with torch.no_grad():
        answer = model.predict(model.add_noise(batch["latents"], noise, sigma), sigma, conditioning)
    expected = (answer - (noise - batch["latents"])).pow(2).flatten(1).mean(1)
    torch.testing.assert_close(losses.detach(), expected)


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_every_weight_gets_a_gradient_whatever_columns_the_rows_have(
    tmp_path: Path, gradient_checkpointing: bool
) -> None:
    """DDP would wait forever for the gradient of a weight that does not."""
    for left_out in ([], ["camera_poses"], ["camera_poses", "context"]):
        trainer = trainer_on(
            tmp_path, scenes(2).remove_columns(left_out), gradient_checkpointing=gradient_checkpointing
        )
        batch = next(iter(trainer.get_train_dataloader()))
        trainer._example_losses(trainer.model.train(), batch)[0].mean().backward()
        trained = {name: p.grad for name, p in trainer.model.named_parameters() if p.requires_grad}
        assert trained and all(gradient is not None for gradient in trained.values())
        assert bool(trained[CAMERA_LORA_B].any()) == (not left_out)


def test_dropout_makes_both_null_branches(tmp_path: Path) -> None:
    trainer = trainer_on(tmp_path, context_dropout=0.4, instruction_dropout=0.3, null_prompt="blurry")
    trainer.model.train()
    batch = next(iter(trainer.get_train_dataloader()))
    null = context_model().encode_prompts(["blurry"])["prompt_embeds"][0]
    kinds = []
    for _ in range(40):
        _, _, conditioning = trainer._draw(batch)
        for i in range(3):
            clean = torch.equal(conditioning[LATENTS][i], batch["conditioning"][LATENTS][i])
            has_cameras = bool(conditioning["cameras"][i].any())
            assert clean == (not conditioning["context_sigma"][i].any())
            assert has_cameras == (not torch.equal(conditioning["prompt_embeds"][i], null))
            kinds.append((clean, has_cameras))
    shares = {kind: kinds.count(kind) / len(kinds) for kind in set(kinds)}
    assert shares.keys() == {(True, True), (True, False), (False, False)}
    assert abs(shares[False, False] - 0.4) < 0.15 and abs(shares[True, False] - 0.3) < 0.15
    trainer.model.eval()
    assert trainer._draw(batch)[2] is batch["conditioning"]  # evaluation drops nothing


def test_a_resumed_run_is_an_uninterrupted_one(tmp_path: Path) -> None:
    uninterrupted = trainer_on(
        tmp_path / "uninterrupted", max_steps=4, per_device_train_batch_size=2, context_dropout=0.5
    )
    uninterrupted.train()
    options = {"per_device_train_batch_size": 2, "context_dropout": 0.5, "max_steps": 4, "save_strategy": "steps"}
    first = trainer_on(tmp_path / "run", **options, save_steps=2)
    first.train()
    second = trainer_on(tmp_path / "run", **options, save_steps=2)
    second.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert second.state.global_step == 4
    assert_same_weights(lora_of(second), lora_of(uninterrupted))
    assert logged(second, "loss")[-2:] == logged(uninterrupted, "loss")[-2:]


def test_boxes_are_drawn_into_the_targets_unless_switched_off(tmp_path: Path) -> None:
    boxes = [None] * 5 + [[4.0, 2.0, 20.0, 14.0]] * 4
    plain, drawn = scenes(2), scenes(2).add_column("boxes", [boxes, boxes])
    latents = {
        name: trainer_on(tmp_path, dataset, auxiliary_box=on).train_dataset[0]["latents"]
        for name, dataset, on in (("plain", plain, True), ("off", drawn, False), ("on", drawn, True))
    }
    assert torch.equal(latents["plain"], latents["off"]) and not torch.equal(latents["plain"], latents["on"])


def test_frames_give_the_same_examples_as_files(tmp_path: Path) -> None:
    files = scenes(1)
    frames = {name: read_video(files[0][name]).tolist() for name in ("context", "video")}
    as_lists = datasets.Dataset.from_list([{**files[0], **frames}])
    from_files, from_lists = (trainer_on(tmp_path, dataset).train_dataset[0] for dataset in (files, as_lists))
    assert torch.equal(from_files["latents"], from_lists["latents"])
    assert_same_weights(from_files["conditioning"], from_lists["conditioning"])


def test_datasets_that_cannot_be_learned_from_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="variant='context'"):
        trainer_on(tmp_path, model=wan_model())
    with pytest.raises(ValueError, match="no column 'video'"):
        trainer_on(tmp_path, scenes().remove_columns("video"))
    with pytest.raises(ValueError, match="train_dataset row 0: camera_poses without intrinsics"):
        trainer_on(tmp_path, scenes().remove_columns("intrinsics"))
    mixed = scenes(2)
    longer = encode_video(np.zeros((4, 16, 32, 3), np.uint8), fps=8)
    rows = [mixed[0], {**mixed[1], "context": longer, "context_indices": [0, 1, 2, 3], "context_poses": walk(4)}]
    with pytest.raises(ValueError, match="row 1 conditions the model differently from row 0.*context_frames"):
        trainer_on(tmp_path, datasets.Dataset.from_list(rows))
    model = context_model()
    lora = default_lora_config(model, targets=["attn1.to_q"])
    with pytest.raises(ValueError, match="leaves out camera_projection"):
        trainer_on(tmp_path, model=model, peft_config=lora)


def test_the_config_s_help_and_bounds(tmp_path: Path) -> None:
    fields = {f.name: f.metadata["help"] for f in dataclasses.fields(ContextSFTConfig)}
    fields = {name: fields[name] for name in fields.keys() - {f.name for f in dataclasses.fields(VideoTrainerConfig)}}
    assert fields.keys() == {"context_dropout", "instruction_dropout", "null_prompt", "auxiliary_box"}
    assert (
        all(f"{name} (`" in ContextSFTConfig.__doc__ for name in fields) and "v(null, z)" in fields["context_dropout"]
    )
    config = ContextSFTConfig(output_dir=str(tmp_path), use_cpu=True, model_init_kwargs='{"context_frames": 4}')
    assert config.model_init_kwargs == {"variant": "context", "context_frames": 4}
    for options, message in (
        ({"context_dropout": -0.1}, "context_dropout=-0.1"),
        ({"context_dropout": 0.7, "instruction_dropout": 0.5}, "at most 1"),
    ):
        with pytest.raises(ValueError, match=message):
            ContextSFTConfig(output_dir=str(tmp_path), use_cpu=True, **options)


def test_rollouts_and_preference_training_pass_the_context_on(tmp_path: Path) -> None:
    """The supervised model is the reference: the margin at step 0 is exactly 0, and the model saw the rows' scenes."""
    rows = []
    for i in range(2):
        row = scene_row(i, frames=3, prompt=PROMPT)
        file = write_video(tmp_path / f"{i}.mp4", row["context"], fps=8, crf=0)
        rows.append({"prompt_id": str(i), **row, "context": str(file)})
    model = context_model()
    attach_lora(model)
    torch.nn.init.normal_(model.transformer.get_parameter(CAMERA_LORA_B), std=0.1)
    model.set_reference_to_policy()

    settings = SamplingSettings(NUM_FRAMES, 16, 32, num_inference_steps=2, guidance_scale=2.0)
    store = SampleStore(tmp_path / "samples")
    samples = roll_out(model, rows, [0, 1], settings, store)
    latents = [store.latents(sample.sample_id) for sample in samples]
    alone = model.sample(model.encode_rows(rows[1:]), model.encode_prompts([""]), [noise_seed(1, "1")], settings)
    torch.testing.assert_close(latents[3], alone[0], rtol=1e-3, atol=1e-3)

    sides = [save({"latents": tensor.contiguous()}) for tensor in latents]
    pairs = datasets.Dataset.from_list(
        [{**row, "chosen_latents": sides[2 * i], "rejected_latents": sides[2 * i + 1]} for i, row in enumerate(rows)]
    )
    seen = []
    predict = model.predict
    model.predict = lambda *args, **kwargs: seen.append(args[2]) or predict(*args, **kwargs)
    trainer = SpatialAlignTrainer(model, args=spatialalign_config(tmp_path / "run", max_steps=2), train_dataset=pairs)
    trainer.train()
    assert logged(trainer, "rewards/margins")[0] == 0 == logged(trainer, "distance_to_reference")[0]
    assert logged(trainer, "distance_to_reference")[1] > 0
    assert all({LATENTS, "cameras"} <= conditioning.keys() for conditioning in seen)
    assert len(seen) == 5  # the reference's and the policy's of two steps, and one that checks the last weights
    assert not torch.equal(seen[0][LATENTS][0], seen[0][LATENTS][1])  # the contexts of two rows with the same prompt
