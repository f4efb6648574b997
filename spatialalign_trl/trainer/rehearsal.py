"""Rehearse a training before the work that it waits for: what only a trainer would refuse is refused now.

A loop samples for hours or days before its trainer exists. A rehearsal builds that trainer with the real model and
settings on a few examples - LoRA, optimizer, schedule, trackers, data collator -, runs one step without gradients, and
puts everything back, so that the results of the run do not depend on it.
"""

from __future__ import annotations

import contextlib
import copy
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers.integrations import get_reporting_integration_callbacks

from spatialalign_trl.models.base import VideoModel
from spatialalign_trl.models.lora import active_adapters
from spatialalign_trl.trainer.video_trainer import VideoTrainer

if TYPE_CHECKING:
    import datasets
    from peft import LoraConfig

    from spatialalign_trl.trainer.video_trainer_config import VideoTrainerConfig


def check_trackers(args: VideoTrainerConfig) -> None:
    """
    Create the trackers that `report_to` names, without starting them.

    Raises:
        ImportError: if a tracker's package is not installed.
        ValueError: for a name that is no tracker, or one that cannot be created.
    """
    for name in args.report_to:
        try:
            for callback in get_reporting_integration_callbacks([name]):
                callback()
        except (ImportError, RuntimeError) as error:  # transformers raises either for a missing package
            raise ImportError(f"report_to={name!r}: {_line(error)} Or leave it out of report_to.") from error
        except Exception as error:  # whatever a tracker's package raises
            raise ValueError(f"report_to={name!r}: {_line(error)}") from error


def rehearse(
    trainer_class: type[VideoTrainer],
    model: VideoModel,
    args: VideoTrainerConfig,
    examples: datasets.Dataset,
    peft_config: LoraConfig | None = None,
) -> None:
    """
    Build a trainer on a few examples, and run one step without gradients.

    Neither the model nor the random generators are changed, nothing is left on disk, and no tracker or Hub is reached.
    The encoders stay loaded.

    Args:
        trainer_class (`type[VideoTrainer]`):
            The trainer.
        model ([`VideoModel`]):
            The model, with the LoRA to continue, or without one.
        args ([`VideoTrainerConfig`]):
            The settings.
        examples (`datasets.Dataset`):
            A few rows as the trainer will get them, in the shape that they will have.
        peft_config ([`~peft.LoraConfig`], *optional*):
            The new LoRA.

    Raises:
        ValueError, ImportError: if the trainer cannot be built, or the step fails.
    """
    with (
        _shared_folder(args) as folder,
        tempfile.TemporaryDirectory() as own_folder,
        _unchanged(model, Path(own_folder)),
        _same_random_numbers(),
    ):
        try:
            trainer = trainer_class(
                model, _rehearsal_args(args, folder), train_dataset=examples, peft_config=peft_config
            )
            trainer.create_optimizer_and_scheduler(max(args.max_steps, 1))
            batch = next(iter(trainer.get_train_dataloader()))
            _check_step(trainer, batch)
        except (ValueError, ImportError) as error:
            raise type(error)(_line(error)) from error
        except Exception as error:  # of any library; it would have ended the run after all sampling
            raise ValueError(
                f"the training cannot run with these settings, which was tried before sampling: "
                f"{type(error).__name__}: {_line(error)}"
            ) from error


def _rehearsal_args(args: VideoTrainerConfig, folder: str) -> VideoTrainerConfig:
    """Return the settings without what reaches out of the rehearsal, or needs more than a few examples."""
    changed = copy.copy(args)
    changed.output_dir = changed.latent_cache_dir = folder
    changed.push_to_hub = changed.enable_jit_checkpoint = changed.full_determinism = False
    changed.dataloader_drop_last = False  # there are fewer examples than a batch
    changed.disable_tqdm = True
    if hasattr(changed, "precompute_reference"):
        changed.precompute_reference = False  # says where predictions are kept
    return changed


def _check_step(trainer: VideoTrainer, batch: dict[str, Any]) -> None:
    """Compute the loss of the first example of a batch, as a training step does."""
    one = {name: value[:1] for name, value in batch.items() if name != "conditioning"}
    one["conditioning"] = {name: value[:1] for name, value in batch["conditioning"].items()}
    network = trainer.model
    was_training = network.training
    network.train()
    try:
        with torch.no_grad(), trainer.accelerator.autocast():
            losses, _ = trainer._example_losses(network, trainer._prepare_inputs(one))
    finally:
        network.train(was_training)
    if not losses.isfinite().all():
        raise ValueError(
            f"the loss of the first step is {losses.tolist()}, not a finite number, before anything was trained. "
            "Compute in another dtype (bf16 or float32), or check the model's weights."
        )


@contextlib.contextmanager
def _shared_folder(args: VideoTrainerConfig) -> Iterator[str]:
    """Yield a temporary folder that all processes see: they divide the encoding of the examples."""
    if args.world_size == 1:
        with tempfile.TemporaryDirectory() as folder:
            yield folder
        return
    shared: list[str | None] = [None]
    if args.process_index == 0:
        # The output folder is on a disk that all nodes see; it need not exist yet.
        parent = next(path for path in Path(args.output_dir).absolute().parents if path.is_dir())
        shared = [tempfile.mkdtemp(prefix=".rehearsal-", dir=parent)]
    folder = broadcast_object_list(shared)[0]
    try:
        yield folder
        PartialState().wait_for_everyone()  # not after an error: the others fail, too, or are ended by the launcher
    finally:
        if args.process_index == 0:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _unchanged(model: VideoModel, folder: Path) -> Iterator[None]:
    """Restore the model afterwards: its network, adapter, reference, gradients, checkpointing, and encoders."""
    network = model.base_transformer
    adapters, wrapped = active_adapters(model.transformer), model.transformer is not network
    reference, fit = model.reference_weights, model.lora_fit
    modes = [(module, module.training) for module in network.modules()]
    trainable = {name: parameter.requires_grad for name, parameter in network.named_parameters()}
    weights = [(parameter, parameter.data) for parameter in network.parameters()]
    checkpointing = getattr(network, "is_gradient_checkpointing", False)
    if adapters and not wrapped:  # the trainer would move it into a PeftModel, in float32
        model.save_lora(folder / "adapter")
    model.release_encoders = lambda: None  # sampling needs them next
    try:
        yield
    finally:
        del model.release_encoders
        if not wrapped and active_adapters(model.transformer):
            model.unload_lora()
            if adapters:
                model.load_lora(folder / "adapter")
                model.lora_fit = fit  # of the file that the adapter came from
        if adapters and reference is not None:
            model.set_reference_weights(reference)
        if checkpointing:
            network.enable_gradient_checkpointing()
        else:
            network.disable_gradient_checkpointing()
        for parameter, data in weights:
            # Several processes on CPUs get copies, elsewhere in memory, and sums on CPUs depend on the alignment.
            if parameter.device == data.device:
                parameter.data = data
        for name, parameter in network.named_parameters():
            if name in trainable:
                parameter.requires_grad_(trainable[name])
        for module, mode in modes:
            module.training = mode


@contextlib.contextmanager
def _same_random_numbers() -> Iterator[None]:
    """Restore the global random generators, which a trainer seeds when it is built."""
    states = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
