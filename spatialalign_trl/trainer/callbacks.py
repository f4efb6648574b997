"""Callbacks of the trainers."""

from __future__ import annotations

from typing import Any

from transformers import ProgressCallback, TrainerControl, TrainerState, TrainingArguments

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
