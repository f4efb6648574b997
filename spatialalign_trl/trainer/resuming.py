"""Continue a training as if it had not been interrupted: what Trainer's checkpoints leave out."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import TrainingArguments

from spatialalign_trl.files import read_json, write_json
from spatialalign_trl.trainer.checkpoints import TRAINING_STATE, last_whole_checkpoint

logger = logging.getLogger(__name__)

LOG_STATE_FILE = "log_state.json"
"""File of a checkpoint with the losses and metrics that were not logged yet when it was written."""

_OPTIMIZER_SETTINGS = (
    "learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "optim_args",
    "max_steps", "num_train_epochs", "warmup_steps", "warmup_ratio", "lr_scheduler_type", "lr_scheduler_kwargs",
)  # fmt: skip


@dataclass(frozen=True)
class LogState:
    """
    What a training has measured since its last log.

    Args:
        last_logged_step (`int`):
            The optimizer step of the last log.
        losses (`list[float]`):
            The sum of the losses since then, of every process.
        logged_loss (`float`):
            The sum of the losses of all steps up to the last log.
        metrics (`dict[str, list[float]]`):
            The metrics of every example since then, of all processes.
    """

    last_logged_step: int
    losses: list[float]
    logged_loss: float
    metrics: dict[str, list[float]]

    def write(self, checkpoint: Path) -> None:
        """Write the state to a checkpoint's folder."""
        # JSON has no NaN; a metric of a user's own loss may be undefined for some examples.
        metrics = {name: [v if math.isfinite(v) else str(v) for v in values] for name, values in self.metrics.items()}
        write_json(checkpoint / LOG_STATE_FILE, {**asdict(self), "metrics": metrics})

    @classmethod
    def read(cls, checkpoint: Path, world_size: int) -> LogState | None:
        """
        Read the state from a checkpoint's folder; `None`, with a warning, if it cannot be continued.

        Raises:
            ValueError: if the file is not what [`write`] has written.
        """
        file = checkpoint / LOG_STATE_FILE
        if not file.is_file():
            reason = f"{file} is missing (a checkpoint of an older version)"
        else:
            try:
                state = cls(**read_json(file))
                metrics = {name: [float(value) for value in values] for name, values in state.metrics.items()}
                state = replace(state, metrics=metrics)
            except (TypeError, ValueError, AttributeError) as error:
                raise ValueError(
                    f"{file} is not the state of a log ({error}): resume from another checkpoint"
                ) from None
            if len(state.losses) == world_size:
                return state
            reason = f"{file} is of {len(state.losses)} processes, and this run has {world_size}"
        logger.warning("%s: the next logged loss averages only the steps after %s", reason, checkpoint.name)
        return None


def refuse_save_only_model(args: TrainingArguments) -> None:
    """
    Refuse `save_only_model` in a job that promises to continue after it was stopped.

    Raises:
        ValueError: if it is set.
    """
    if args.save_only_model:
        raise ValueError(
            "save_only_model=True writes checkpoints without the optimizer, from which a stopped run cannot continue. "
            "Leave it off; save_total_limit=1 keeps a single checkpoint."
        )


def refuse_model_only(checkpoint: Path) -> None:
    """
    Refuse a checkpoint without the optimizer: Trainer would silently start with a new one, and another schedule.

    Args:
        checkpoint (`Path`):
            The folder to resume from.

    Raises:
        ValueError: if a file of [`~checkpoints.TRAINING_STATE`] is missing.
    """
    missing = [name for name in TRAINING_STATE if not (checkpoint / name).is_file()]
    if missing:
        raise ValueError(
            f"{checkpoint} cannot be resumed from: {', '.join(missing)} is missing, as in a checkpoint of a run with "
            "save_only_model=True or of one that was killed while it saved. Resume from another checkpoint, or load "
            "its LoRA (model.load_lora) and start a new training."
        )


def apply_changed_settings(
    args: TrainingArguments,
    checkpoint: Path,
    optimizer: Optimizer,
    scheduler: LRScheduler,
    created_groups: list[dict[str, Any]],
) -> None:
    """
    Let the settings of this run, not those in the checkpoint, decide the learning rate and the optimizer.

    The states of the optimizer and of the schedule contain the settings that they were saved with, so a smaller
    learning rate would have no effect. Nothing is touched if the settings are the checkpoint's.

    Args:
        args ([`~transformers.TrainingArguments`]):
            The settings of this run.
        checkpoint (`Path`):
            The checkpoint that was loaded; its `training_args.json` has the settings it was saved with.
        optimizer (`torch.optim.Optimizer`), scheduler (`torch.optim.lr_scheduler.LRScheduler`):
            As they are after the checkpoint was loaded.
        created_groups (`list[dict]`):
            The optimizer's groups, without their parameters, before the checkpoint was loaded.

    Raises:
        ValueError: if the settings differ and the schedule is none that can be computed again at a step.
    """
    file = checkpoint / "training_args.json"
    recorded = read_json(file) if file.is_file() else {}
    changed = _changed_settings(recorded, args.to_dict())
    if not changed:
        return
    logger.warning("continuing %s with other settings: %s", checkpoint, changed)
    if not isinstance(scheduler, LambdaLR):
        raise ValueError(
            f"{checkpoint} was saved with other settings ({changed}), and the schedule {type(scheduler).__name__} "
            "cannot be computed again at a step. Keep the settings, or start the training from its beginning."
        )
    for group, created in zip(optimizer.param_groups, created_groups, strict=True):
        group.update(created)
    scheduler.base_lrs = [group["initial_lr"] for group in created_groups]
    rates = [
        base * rate(scheduler.last_epoch) for base, rate in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    ]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    scheduler._last_lr = rates


def _changed_settings(recorded: Mapping[str, Any], current: Mapping[str, Any]) -> str:
    """Return the settings of the optimizer and the schedule that differ from those of a checkpoint, as text."""
    current = json.loads(json.dumps(dict(current), default=str))
    pairs = [(name, recorded.get(name), current.get(name)) for name in _OPTIMIZER_SETTINGS]
    return ", ".join(f"{name} {old!r} -> {new!r}" for name, old, new in pairs if old != new)


class Resuming:
    """Continues a training so that its weights and logs equal an uninterrupted one's; overrides Trainer's methods."""

    _metrics: dict[str, dict[str, list[float]]]
    _log_state_folder: Path | None = None
    """The checkpoint whose log is to be continued."""
    _first_loss_step: int = 0
    """The losses of all steps since this one are known."""

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """
        Train, or continue a training; see [`~transformers.Trainer.train`].

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*):
                A checkpoint's folder. `True`: the newest checkpoint in `output_dir` that is complete and finite. If
                settings of the optimizer or the schedule have changed, the new ones count.

        Raises:
            NonFiniteError: if a loss or a gradient is not finite; names step, examples and the last checkpoint.
            ValueError: if there is no checkpoint to resume from, or it has no optimizer.
        """
        if resume_from_checkpoint and not (self.is_fsdp_enabled or self.is_deepspeed_enabled):  # they have other files
            resume_from_checkpoint = self._checkpoint_to_resume(resume_from_checkpoint)
        self._first_loss_step = 0
        self._log_state_folder = None
        if resume_from_checkpoint and resume_from_checkpoint is not True:
            self._log_state_folder = Path(resume_from_checkpoint)
        output = super().train(resume_from_checkpoint, *args, **kwargs)
        return output._replace(training_loss=output.metrics["train_loss"])

    def _checkpoint_to_resume(self, checkpoint: str | bool) -> str:
        if checkpoint is True:
            checkpoint = last_whole_checkpoint(Path(self.args.output_dir), self.args.world_size)
            if checkpoint is None:
                raise ValueError(
                    f"{self.args.output_dir} has no checkpoint to resume from: none is complete, has an optimizer "
                    "(save_only_model=False) and finite weights. Train without resume_from_checkpoint to start over."
                )
        refuse_model_only(Path(checkpoint))
        return str(checkpoint)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Train for an epoch, but no step more than `max_steps`: Trainer compares them only after a step."""
        self._continue_log()
        if self.state.global_step >= self.state.max_steps:  # resumed from the last checkpoint
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        """Check the last step's weights, which no loss has seen, before anything is made of them."""
        self._continue_log()
        self._check_weights()
        return super()._finalize_training(*args, **kwargs)

    def _continue_log(self) -> None:
        """Continue the averages that the resumed checkpoint had begun; Trainer starts new ones."""
        if self._log_state_folder is None:
            return
        state, self._log_state_folder = LogState.read(self._log_state_folder, self.args.world_size), None
        if state is None:
            self._first_loss_step = self.state.global_step
            return
        self._tr_loss += state.losses[self.args.process_index]
        self._total_loss_scalar = state.logged_loss
        self._globalstep_last_logged = state.last_logged_step
        self._metrics["train"].update(state.metrics)

    def _mean_loss(self) -> float:
        """Return the mean loss of all steps; Trainer's own `train_loss` is of the steps since the resume."""
        return self._total_loss_scalar / max(self.state.global_step - self._first_loss_step, 1)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Save a checkpoint of weights that can be used, in place of an older one of the same step."""
        self._check_weights()
        folder = Path(self._get_output_dir(trial=trial), f"checkpoint-{self.state.global_step}")
        if self.args.should_save and folder.is_dir():
            # A training that went back to an earlier checkpoint. Files of two trainings must not be mixed; the first
            # to go is the one that makes a checkpoint complete.
            (folder / "trainer_state.json").unlink(missing_ok=True)
            shutil.rmtree(folder)
        self.accelerator.wait_for_everyone()
        super()._save_checkpoint(model, trial)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Return whether to save; Trainer would drop a checkpoint that Ctrl-C has asked for if it is not the best."""
        is_requested = self.control.should_save
        return super()._determine_best_metric(metrics, trial) or is_requested

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Save these states, and what was measured since the last log; `trainer_state.json` is written after them."""
        super()._save_optimizer_and_scheduler(output_dir)
        losses = self.accelerator.gather(self._tr_loss.reshape(1)).tolist()
        if self.args.should_save:
            metrics = dict(self._metrics["train"])
            LogState(self._globalstep_last_logged, losses, self._total_loss_scalar, metrics).write(Path(output_dir))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load these states; where settings have changed since they were saved, the new ones count."""
        if checkpoint is None or self.is_deepspeed_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        created = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        super()._load_optimizer_and_scheduler(checkpoint)
        apply_changed_settings(self.args, Path(checkpoint), self.optimizer, self.lr_scheduler, created)
