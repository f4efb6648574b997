"""Callbacks of the trainers: what stands on the bar, stopping without loss, early warnings, an average of the LoRA."""

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

if TYPE_CHECKING:
    from spatialalign_trl.models.base import VideoModel

EMA_FOLDER = "ema"

SHOWN = {
    "loss": "loss",
    "rewards/accuracies": "accuracy",
    "rewards/margins": "margin",
    "distance_to_reference": "distance",
}
"""Logged metric -> its name on the progress bar."""


class MetricsOnTheBar(ProgressCallback):
    """A progress bar which carries the newest metrics, instead of a printed dictionary at every log.

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
            shown = {name: f"{float(logs[key]):.3g}" for key, name in SHOWN.items() if key in logs}
            if shown:
                self.training_bar.set_postfix(shown)


class SaveOnInterrupt(TrainerCallback):
    """
    Ctrl-C finishes the step, writes a checkpoint, says how to go on, and then ends as Ctrl-C does. A second Ctrl-C
    ends at once.

    Of several processes one that was asked is enough: they agree at the end of every step.

    Args:
        remedy (`str`, *optional*):
            How to go on, for the message.

    Raises (from `train`):
        KeyboardInterrupt: after the checkpoint was written.
    """

    def __init__(self, remedy: str = "trainer.train(resume_from_checkpoint=True) goes on from there") -> None:
        self.remedy = remedy
        self.asked = False
        self.stopped = False
        self._previous: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.asked = self.stopped = False
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            self._previous = signal.signal(signal.SIGINT, self._ask)

    def _ask(self, number: int, frame: Any) -> None:
        if self.asked:
            self.restore()
            raise KeyboardInterrupt
        self.asked = True
        print("\nfinishing the step, then saving; Ctrl-C again stops at once", file=sys.stderr, flush=True)

    def restore(self) -> None:
        """Puts back what Ctrl-C did before."""
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if _on_any_process(self.asked, args):
            control.should_save = control.should_training_stop = self.stopped = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.restore()
        if self.stopped:
            saved = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            raise KeyboardInterrupt(f"interrupted at step {state.global_step}; {saved} was written: {self.remedy}")


def _on_any_process(flag: bool, args: TrainingArguments) -> bool:
    if args.world_size == 1:
        return flag
    told = torch.tensor(int(flag), device=args.device)
    torch.distributed.all_reduce(told, op=torch.distributed.ReduceOp.MAX)
    return bool(told.item())


class EarlyWarnings(TrainerCallback):
    """
    Says once, while there is time, that a training is going wrong, and what helps.

    The defaults come from the embedded model: 52 trainings whose pictures stayed well had at most 3.1 times the
    reference's error on rejected videos and 1.4 times on chosen ones; those without the zeroth-order term, which
    collapsed, passed 4 and 2.7 before step 40 of 180 and ended beyond 23 and 8.

    Args:
        max_saturation (`float`, *optional*, defaults to `0.5`):
            Share of pairs, in [0, 1], whose margin may be at the clip.
        max_loser_inflation (`float`, *optional*, defaults to `4.0`):
            How many times the reference's error the policy's may be on rejected videos.
        max_winner_inflation (`float`, *optional*, defaults to `1.5`):
            The same for chosen videos, on which it should fall.
    """

    def __init__(
        self, max_saturation: float = 0.5, max_loser_inflation: float = 4.0, max_winner_inflation: float = 1.5
    ) -> None:
        self.max_saturation = max_saturation
        self.most = {"rejected": max_loser_inflation, "chosen": max_winner_inflation}
        self._said: set[str] = set()

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
            self._say(
                "saturation",
                f"step {state.global_step}: {saturation:.0%} of the pairs have a margin at margin_clip and give no "
                "preference gradient any more. Stop here (earlier checkpoints are kept), lower learning_rate or beta, "
                "or raise margin_clip.",
            )
        for side, most in self.most.items():
            inflation = error_inflation(logs, side)
            if inflation is not None and inflation > most:
                self._say(
                    side,
                    f"step {state.global_step}: the policy's error on {side} videos is {inflation:.2f} times the "
                    f"reference's (warned about above {most}): the margin is being bought with worse pictures. Raise "
                    "zeroth_order_weight, lower learning_rate or beta, and look at the samples.",
                )

    def _say(self, what: str, message: str) -> None:
        if what not in self._said:
            self._said.add(what)
            warnings.warn(message, stacklevel=3)


def error_inflation(logs: dict[str, Any], side: str) -> float | None:
    """`MSE_theta / MSE_ref` on one side of the pairs, from the logged means: `score = MSE_ref - MSE_theta`. Both were
    measured with the same noise, so 1 is the reference exactly."""
    error, score = logs.get(f"mse/{side}"), logs.get(f"rewards/{side}")
    if error is None or score is None or not error + score > 0:
        return None
    return error / (error + score)


class LoraEMA(TrainerCallback):
    """
    Keeps `phi <- decay*phi + (1 - decay)*theta` of the LoRA after every step, and saves it beside the LoRA as
    `ema/pytorch_lora_weights.safetensors`, in checkpoints (a resumed run goes on with it) and at the end.

    Args:
        model ([`VideoModel`]):
            The model that is trained (`trainer.video_model`).
        decay (`float`):
            In (0, 1), such as 0.99 for some hundred steps.

    Raises:
        ValueError: `decay` is out of range.
    """

    def __init__(self, model: VideoModel, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"the decay of the LoRA's average is {decay}: must be in (0, 1), such as 0.99")
        self.model = model
        self.decay = decay
        self.average: dict[str, torch.Tensor] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        now = self._weights()
        self.average = {name: value.clone() for name, value in now.items()}
        if state.global_step:
            file = Path(args.output_dir) / f"checkpoint-{state.global_step}" / EMA_FOLDER / LORA_FILE
            if not file.is_file():
                raise FileNotFoundError(
                    f"{file} is missing: the run that is resumed kept no average of its LoRA. Leave the average out, "
                    "or start the training anew."
                )
            saved = load_file(file)
            self.average = {name: saved[f"transformer.{name}"].to(value) for name, value in now.items()}

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
        if args.should_save:
            with adapter_weights(self.model.transformer, self.average):
                self.model.save_lora(folder / EMA_FOLDER)
