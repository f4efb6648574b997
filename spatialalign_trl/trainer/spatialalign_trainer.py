"""Train with SpatialAlign: Diffusion-DPO with the zeroth-order regulariser."""

from torch import Tensor

from spatialalign_trl.trainer.diffusion_dpo_trainer import DiffusionDPOTrainer
from spatialalign_trl.trainer.losses import Pair, zeroth_order_dpo_loss
from spatialalign_trl.trainer.spatialalign_config import SpatialAlignConfig


class SpatialAlignTrainer(DiffusionDPOTrainer):
    """
    [`DiffusionDPOTrainer`] whose loss also anchors the policy's outputs to the reference's:
    `L = L_dpo + zeroth_order_weight * L_zo` (SpatialAlign, arXiv 2602.22745).

    Takes the arguments of [`DiffusionDPOTrainer`], with a [`SpatialAlignConfig`] as `args`.
    """

    config_class = SpatialAlignConfig
    _tag_names = [*DiffusionDPOTrainer._tag_names, "spatialalign"]
    _name = "SpatialAlign"
    _paper = {"id": "2602.22745"}

    def pair_loss(self, policy: Pair, reference: Pair, target: Pair) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the zeroth-order regularised loss of every pair; see [`DiffusionDPOTrainer.pair_loss`]."""
        weight = self.args.zeroth_order_weight
        return zeroth_order_dpo_loss(policy, reference, target, zeroth_order_weight=weight, **self._loss_options())

    def _formula(self) -> str:
        formula = super()._formula()
        if self.args.loss_type == "sft":
            return formula
        anchor = "0.5 * (mean|v_theta - v_ref|^2 on the chosen + the same on the rejected)"
        return f"{formula}\nL_zo     = {anchor}\nL        = L_dpo + {self.args.zeroth_order_weight} * L_zo"
