"""Stop a training whose loss, gradient or predictions are no longer finite, and say where it can be continued."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import torch
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import Dataset

from spatialalign_trl.trainer.checkpoints import NON_FINITE_FILE, last_whole_checkpoint, mark_non_finite
from spatialalign_trl.trainer.finiteness import NonFiniteError, first_non_finite, list_examples, refuse_non_finite
from spatialalign_trl.trainer.publishing import METRIC_NAMES

if TYPE_CHECKING:
    from spatialalign_trl.models.base import VideoModel


class FiniteTraining:
    """
    Stops all processes of a training with a [`NonFiniteError`], before anything that is not finite is used or saved.

    - A loss stops before its gradient is computed, a gradient before the optimizer's step.
    - Weights stop before they are saved, if they or a prediction made with them are not finite.
    - With fp16, a gradient stops only if it is not finite at a loss scale below 1: larger scales are lowered by
      GradScaler, which skips the step.

    With DeepSpeed, the gradient is not checked: its engine makes the step together with the backward pass.
    """

    video_model: VideoModel
    sigma_bounds: tuple[float, float]
    _step_rows: tuple[int, list[Any]]
    _eval_examples: Dataset | None
    _latents_key: ClassVar[str] = "latents"
    """The key of a batch whose latents the model can make a prediction for."""

    def _stop_at_loss(self, name: str, inputs: dict[str, Any], mask: Tensor) -> NoReturn:
        """Stop because of a loss or one of its metrics; `mask` is of the examples of this process's batch."""
        quantity = "loss" if name == "loss" else f"metric {METRIC_NAMES[name]}"
        rows = inputs["row"][mask.to(inputs["row"].device)].tolist() if "row" in inputs else []
        if self.model.training:
            self._stop(f"the {quantity}", self._describe(self.train_dataset, rows), inputs)
        self._stop(f"the {quantity} in the evaluation", self._describe(self._eval_examples, rows), inputs)

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        """Compute the norm of the gradient, and stop before the optimizer's step if it is not finite."""
        grad_norm = super()._get_grad_norm(model, grad_norm)
        value = grad_norm.item() if isinstance(grad_norm, Tensor) else grad_norm
        is_finite = value is None or math.isfinite(value)  # DeepSpeed has no norm before its first step
        if self._is_true_anywhere(not is_finite) and not self.is_deepspeed_enabled:
            scaler = getattr(self.accelerator, "scaler", None)
            if scaler is None or scaler.get_scale() < 1:
                rows = [row for batch in self._step_rows[1] if batch is not None for row in batch.tolist()]
                self._stop("the gradient", self._describe(self.train_dataset, rows), {})
        return grad_norm

    def _check_weights(self) -> None:
        """Stop if a prediction with the present weights is not finite."""
        inputs = self._prepare_inputs(self.data_collator([self.train_dataset[0]]))
        latents = inputs[self._latents_key]
        sigma = torch.full((1,), self.sigma_bounds[1], device=latents.device)
        # Not the unwrapped network, of which FSDP has only a part; and without dropout, whose draws would change the
        # training.
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad(), self.accelerator.autocast():
                prediction = self.video_model.predict(latents, sigma, inputs["conditioning"], transformer=self.model)
        finally:
            self.model.train(was_training)
        is_finite = prediction.float().square().mean().isfinite().item()
        if self._is_true_anywhere(not is_finite):
            self._stop("the prediction with the new weights", self._describe(self.train_dataset, [0]), inputs)

    def _refuse_non_finite_weights(self, output_dir: str, state_dict: dict[str, Any] | None) -> None:
        """Refuse to save a LoRA that is not finite, in all processes."""
        what = f"the LoRA for {output_dir} (after step {self.state.global_step})"
        if state_dict is None:  # every process has the same weights, and a caller may save in one of them only
            refuse_non_finite(self.video_model.lora_state_dict(), what)
            return
        # FSDP gathers the weights in one process.
        has_weights = self.args.should_save
        name = first_non_finite(self.video_model.lora_state_dict(state_dict)) if has_weights else None
        if self._is_true_anywhere(name is not None):
            raise NonFiniteError(f"{what}: {name or 'a weight'} is not finite, so nothing was written.")

    def _stop(self, what: str, examples: list[str], inputs: dict[str, Any]) -> NoReturn:
        """Raise the error in all processes, which must all call this, with the examples and inputs of each."""
        # 1. Collect what every process knows, and find out whether an input or the weights are at fault.
        args, step = self.args, self.state.global_step
        examples = gather_object(examples)
        broken_inputs = [name for name in gather_object([first_non_finite(inputs)]) if name is not None]
        problem = f"{what} is not finite" + (f" for {list_examples(examples)}" if examples else "")
        if not self.is_in_train:
            raise NonFiniteError(f"{problem}. The weights or these examples are broken.")

        # 2. From a checkpoint of these weights the step would fail again, whatever the learning rate: pass it over.
        folder = Path(args.output_dir)
        current = folder / f"checkpoint-{step}"
        is_marked = current.is_dir() and not broken_inputs
        self.accelerator.wait_for_everyone()
        if is_marked and self.is_world_process_zero():
            reason = {"step": step, "problem": problem, "examples": examples, "learning_rate": args.learning_rate}
            mark_non_finite(current, reason)
        self.accelerator.wait_for_everyone()
        checkpoint = last_whole_checkpoint(folder, args.world_size)

        # 3. Say what happened, what is kept, and what helps.
        kept = "There is no checkpoint to continue from" if checkpoint is None else f"{checkpoint} is sound"
        start = "its beginning" if checkpoint is None else "there"
        if is_marked:
            kept += f"; {current.name} is kept too, but has the weights that failed ({NON_FINITE_FILE} in it)"
        if broken_inputs:
            remedy = f"The input {broken_inputs[0]!r} itself is not finite: repair or drop the example"
        else:
            remedy = f"Start again in the same folder with a smaller learning_rate than {args.learning_rate:g}"
            remedy += " or with bf16 instead of fp16" if args.fp16 else ""
            remedy += f": the training continues from {start}"
        raise NonFiniteError(
            f"after {step} of {self.state.max_steps} steps, {problem}. Training was stopped before another step. "
            f"{kept}. {remedy}."
        )

    def _describe(self, examples: Dataset | None, rows: list[int]) -> list[str]:
        """Describe rows of a dataset by its name, their numbers and their prompts."""
        columns = getattr(examples, "columns", None)
        return [f"row {row}" if columns is None else columns.describe(row) for row in rows]

    def _is_true_anywhere(self, flag: bool) -> bool:
        """Return whether a flag is set in any process; all processes must call this."""
        if self.args.world_size == 1:
            return flag
        return bool(self.accelerator.gather(torch.tensor([float(flag)], device=self.args.device)).any())
