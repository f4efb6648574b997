"""Let the reference follow the policy, for online rounds: every N steps the policy is mixed into it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from spatialalign_trl.files import check_intact, seal_tensors, write_atomic

if TYPE_CHECKING:
    from spatialalign_trl.models.base import VideoModel


REFERENCE_FILE = "reference_adapter.safetensors"
"""File of the reference's adapter in a checkpoint; missing while the reference is the base."""


class SyncReference(TrainerCallback):
    """
    Updates the reference to `alpha*policy + (1 - alpha)*reference`, on the adapter's weights, every `steps` steps.

    Args:
        model ([`VideoModel`]):
            The model that is trained.
        steps (`int`):
            Optimizer steps between two updates.
        alpha (`float`):
            Weight of the policy, in (0, 1]; 1 copies the policy.
    """

    def __init__(self, model: "VideoModel", steps: int, alpha: float) -> None:
        self.model = model
        self.steps = steps
        self.alpha = alpha

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Update the reference if it is due; Trainer calls this before it writes the step's checkpoint."""
        if state.global_step % self.steps == 0:
            self.model.update_reference(self.alpha)


def save_reference(model: "VideoModel", folder: Path) -> None:
    """Write the reference's adapter to a checkpoint folder; write nothing if the reference is the base."""
    if model.reference_weights is not None:
        weights = {name: tensor.cpu().contiguous() for name, tensor in model.reference_weights.items()}
        write_atomic(folder / REFERENCE_FILE, seal_tensors(save_safetensors(weights)))


def load_reference(model: "VideoModel", folder: Path) -> None:
    """Restore the reference from a checkpoint; without the file, the reference was the base."""
    file = folder / REFERENCE_FILE
    if file.is_file():
        check_intact(file, "Resume from an earlier checkpoint.")
        weights = load_safetensors(file.read_bytes())
        model.set_reference_weights({name: tensor.to(model.device) for name, tensor in weights.items()})
    else:
        model.set_reference_to_base()
