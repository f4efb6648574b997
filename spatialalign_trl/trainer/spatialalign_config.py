"""Configuration of [`SpatialAlignTrainer`]."""

from dataclasses import dataclass, field
from typing import Annotated

from spatialalign_trl.models.ranges import Range
from spatialalign_trl.trainer.diffusion_dpo_config import DiffusionDPOConfig


@dataclass
class SpatialAlignConfig(DiffusionDPOConfig):
    r"""
    Arguments of [`SpatialAlignTrainer`]: those of [`DiffusionDPOConfig`] and the one below.

    Args:
        zeroth_order_weight (`float`, *optional*, defaults to `0.5`):
            `lambda` in `L = L_dpo + lambda*L_zo` with
            `L_zo = 0.5*(mean|v_theta - v_ref|^2 on the chosen + the same on the rejected)`. It anchors the values that
            the policy predicts to the reference's. 0 is plain Diffusion-DPO.
    """

    zeroth_order_weight: Annotated[float, Range(at_least=0)] = field(
        default=0.5,
        metadata={
            "help": "lambda in L = L_dpo + lambda*L_zo, L_zo = 0.5*(mean|v_theta - v_ref|^2 on the chosen + the same "
            "on the rejected), which anchors the values that the policy predicts to the reference's. 0: plain "
            "Diffusion-DPO."
        },
    )

    def _check(self) -> None:
        super()._check()
        if self.loss_type == "sft" and self.zeroth_order_weight != 0:
            raise ValueError(
                f"loss_type='sft' with zeroth_order_weight={self.zeroth_order_weight}: this loss has no zeroth-order "
                "term. Set zeroth_order_weight=0, or loss_type='sigmoid'."
            )
