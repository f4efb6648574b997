"""A reference that follows the policy, for online rounds: every N steps the policy is mixed into it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file
from safetensors.torch import save as save_safetensors
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from spatialalign_trl.files import write_atomic

if TYPE_CHECKING:
    from spatialalign_trl.models.base import VideoModel


REFERENCE_FILE = "reference_adapter.safetensors"
"""A checkpoint holds the reference's adapter in this file, once it is another than at the start."""


class SyncReference(TrainerCallback):
    """
    `reference = alpha*policy + (1 - alpha)*reference`, on the adapter's weights, after every `steps` optimizer steps.

    Args:
        model ([`VideoModel`]):
            Whose reference it is.
        steps (`int`):
            Optimizer steps between two updates.
        alpha (`float`):
            In (0, 1]; 1 copies the policy.
    """

    def __init__(self, model: "VideoModel", steps: int, alpha: float) -> None:
        self.model = model
        self.steps = steps
        self.alpha = alpha

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Updates the reference when it is due; before the step's checkpoint is written."""
        if state.global_step % self.steps == 0:
            self.model.update_reference(self.alpha)


def save_reference(model: "VideoModel", folder: Path) -> None:
    """Writes the reference's adapter to a checkpoint folder; nothing where the reference is the base."""
    if model.reference_weights is not None:
        weights = {name: tensor.cpu().contiguous() for name, tensor in model.reference_weights.items()}
        write_atomic(folder / REFERENCE_FILE, save_safetensors(weights))


def load_reference(model: "VideoModel", folder: Path) -> None:
    """Takes the reference over from a checkpoint; one without the file was written against the base."""
    file = folder / REFERENCE_FILE
    if file.is_file():
        model.set_reference_weights({name: tensor.to(model.device) for name, tensor in load_file(file).items()})
    else:
        model.set_reference_to_base()
