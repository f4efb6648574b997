"""Callbacks of the trainers: metrics on the progress bar, saving on Ctrl-C, early warnings, an average of the LoRA."""

from __future__ import annotations

import signal
import sys
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from transformers import ProgressCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from spatialalign_trl.models.lora import LORA_FILE, adapter_weights
from spatialalign_trl.trainer.finiteness import refuse_non_finite

if TYPE_CHECKING:
    from spatialalign_trl.models.base import VideoModel

EMA_FOLDER = "ema"

BAR_METRICS = {
    "loss": "loss",
    "rewards/accuracies": "accuracy",
    "rewards/margins": "margin",
    "distance_to_reference": "distance",
}
"""Maps the name of a logged metric to its name on the progress bar."""


class MetricsOnTheBar(ProgressCallback):
    """
    Shows the newest metrics on the progress bar, instead of printing a dictionary at every log.

    All metrics still go to the trackers and to the trainer's log history.
    """

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if state.is_world_process_zero and self.training_bar is not None and logs:
            metrics = {name: f"{float(logs[key]):.3g}" for key, name in BAR_METRICS.items() if key in logs}
            if metrics:
                self.training_bar.set_postfix(metrics)


class SaveOnInterrupt(TrainerCallback):
    """
    Saves a checkpoint on Ctrl-C.

    The first Ctrl-C finishes the current step, writes a checkpoint, prints how to continue, and raises
    `KeyboardInterrupt` from `train`. A second Ctrl-C raises it at once. If there are several processes, it is enough
    that one of them is interrupted: they agree at the end of every step. The checkpoint is complete whatever
    `save_strategy` and `save_only_model` say.

    Args:
        remedy (`str`, *optional*):
            How to continue the run; the last part of the message.
    """

    def __init__(self, remedy: str = "trainer.train(resume_from_checkpoint=True) continues from there") -> None:
        self.remedy = remedy
        self.interrupted = False
        self.stopped = False
        self._previous_handler: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.interrupted = self.stopped = False
        if threading.current_thread() is threading.main_thread():  # Python allows handlers in this thread only
            self._previous_handler = signal.signal(signal.SIGINT, self._on_sigint)

    def _on_sigint(self, number: int, frame: Any) -> None:
        if self.interrupted:
            self.restore()
            raise KeyboardInterrupt
        self.interrupted = True
        print("\nfinishing the step, then saving; Ctrl-C again stops at once", file=sys.stderr, flush=True)

    def restore(self) -> None:
        """Restore the handler of Ctrl-C that was installed before the training."""
        if self._previous_handler is not None:
            signal.signal(signal.SIGINT, self._previous_handler)
            self._previous_handler = None

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        interrupted = self.interrupted
        if args.world_size > 1:  # all processes have to stop after the same step
            flag = torch.tensor(int(interrupted), device=args.device)
            torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
            interrupted = bool(flag.item())
        if interrupted:
            args.save_only_model = False  # a checkpoint without the optimizer could not be continued from
            control.should_save = control.should_training_stop = self.stopped = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.restore()
        if self.stopped:
            step = state.global_step
            checkpoint = Path(args.output_dir) / f"checkpoint-{step}"
            raise KeyboardInterrupt(f"interrupted at step {step}; {checkpoint} was written: {self.remedy}")


class EarlyWarnings(TrainerCallback):
    """
    Warns, once per symptom, that a training is going wrong, and says what helps.

    The default limits were measured on the embedded model. In 52 trainings whose videos kept their quality, the
    policy's error was at most 3.1 times the reference's on rejected videos and at most 1.4 times on chosen ones.
    Trainings without the zeroth-order term, which collapsed, exceeded 4 and 2.7 before step 40 of 180 and ended above
    23 and 8.

    Args:
        max_saturation (`float`, *optional*, defaults to `0.5`):
            Largest share of pairs, in [0, 1], whose margin may be at the clip.
        max_loser_inflation (`float`, *optional*, defaults to `4.0`):
            Largest ratio of the policy's error to the reference's on rejected videos.
        max_winner_inflation (`float`, *optional*, defaults to `1.5`):
            Largest such ratio on chosen videos, where training should lower it.
    """

    def __init__(
        self, max_saturation: float = 0.5, max_loser_inflation: float = 4.0, max_winner_inflation: float = 1.5
    ) -> None:
        self.max_saturation = max_saturation
        self.max_inflation = {"rejected": max_loser_inflation, "chosen": max_winner_inflation}
        self._warned: set[str] = set()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero or not logs:
            return
        saturation = logs.get("margin_saturation", 0.0)
        if saturation > self.max_saturation:
            self._warn_once(
                "saturation",
                f"step {state.global_step}: {saturation:.0%} of the pairs have a margin at margin_clip and no longer "
                "give a preference gradient. Stop here (earlier checkpoints are kept), lower learning_rate or beta, "
                "or raise margin_clip.",
            )
        for side, limit in self.max_inflation.items():
            inflation = error_inflation(logs, side)
            if inflation is not None and inflation > limit:
                self._warn_once(
                    side,
                    f"step {state.global_step}: the policy's error on {side} videos is {inflation:.2f} times the "
                    f"reference's (the limit is {limit}), so the margin grows at the expense of video quality. Raise "
                    "zeroth_order_weight, lower learning_rate or beta, and look at the samples.",
                )

    def _warn_once(self, symptom: str, message: str) -> None:
        if symptom not in self._warned:
            self._warned.add(symptom)
            warnings.warn(message, stacklevel=3)


def error_inflation(logs: dict[str, Any], side: str) -> float | None:
    """
    Compute `MSE_theta / MSE_ref` on one side of the pairs.

    The logs hold the means of `MSE_theta` and of `score = MSE_ref - MSE_theta`. Both errors were measured with the
    same noise, so the ratio is exactly 1 while the policy equals the reference.

    Args:
        logs (`dict[str, Any]`):
            Logged metrics.
        side (`"chosen"` or `"rejected"`):
            The side of the pairs.

    Returns:
        `float`; `None` if the metrics are missing or the reference's error is not positive.
    """
    error, score = logs.get(f"mse/{side}"), logs.get(f"rewards/{side}")
    if error is None or score is None or not error + score > 0:
        return None
    return error / (error + score)


class LoraEMA(TrainerCallback):
    """
    Keeps an exponential moving average of the LoRA: `phi <- decay*phi + (1 - decay)*theta` after every step.

    The average is saved as `ema/pytorch_lora_weights.safetensors` next to the LoRA, in every checkpoint (a resumed run
    continues it) and at the end.

    Args:
        model ([`VideoModel`]):
            The model that is trained (`trainer.video_model`).
        decay (`float`):
            In (0, 1), for example 0.99 for a few hundred steps.

    Raises:
        ValueError: if `decay` is out of range.
    """

    def __init__(self, model: VideoModel, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"decay={decay}: the decay of the LoRA's average must be in (0, 1). Try 0.99.")
        self.model = model
        self.decay = decay
        self.average: dict[str, torch.Tensor] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        current = self._weights()
        self.average = {name: value.clone() for name, value in current.items()}
        if state.global_step:  # a resumed run
            file = Path(args.output_dir) / f"checkpoint-{state.global_step}" / EMA_FOLDER / LORA_FILE
            if not file.is_file():
                raise FileNotFoundError(
                    f"{file} is missing: the run to resume kept no average of its LoRA. Switch the average off, or "
                    "start the training again from the beginning."
                )
            saved = load_file(file)
            self.average = {name: saved[f"transformer.{name}"].to(value) for name, value in current.items()}

    def _weights(self) -> dict[str, torch.Tensor]:
        return {name: value.detach().float() for name, value in self.model.lora_state_dict().items()}

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for name, value in self._weights().items():
            self.average[name].lerp_(value, 1.0 - self.decay)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._save(args, Path(args.output_dir) / f"checkpoint-{state.global_step}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._save(args, Path(args.output_dir))

    def _save(self, args: TrainingArguments, folder: Path) -> None:
        refuse_non_finite(self.average, f"the LoRA's average for {folder / EMA_FOLDER}")
        if args.should_save:
            with adapter_weights(self.model.transformer, self.average):
                self.model.save_lora(folder / EMA_FOLDER)
