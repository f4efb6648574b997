"""Configuration of [`ContextSFTTrainer`]."""

from dataclasses import dataclass, field
from typing import Annotated

from spatialalign_trl.models.ranges import SHARE
from spatialalign_trl.trainer.video_trainer_config import VideoTrainerConfig


@dataclass
class ContextSFTConfig(VideoTrainerConfig):
    r"""
    Arguments of [`ContextSFTTrainer`]: those of [`VideoTrainerConfig`] and the arguments below.

    `{"variant": "context"}` is added to `model_init_kwargs` unless they set a variant.

    Args:
        context_dropout (`float`, *optional*, defaults to `0.1`):
            Share of the examples, in [0, 1], that are trained without instruction *and* without context, `v(null, z)`
            with z pure noise at diffusion time 1: the null branch of joint guidance,
            `v = v(null, z) + w*(v(g, x) - v(null, z))`. The paper does not give the share; 0.1 is usual.
        instruction_dropout (`float`, *optional*, defaults to `0.0`):
            Share of the examples, in [0, 1], that are trained without instruction but with their context,
            `v(null, x)`: the null branch of guidance on the instruction alone,
            `v = v(null, x) + w*(v(g, x) - v(null, x))`.
        null_prompt (`str`, *optional*):
            The prompt of the null instruction, which has no cameras either. `None`: the negative prompt of the
            model's sampling settings, which is the null prompt in sampling.
        auxiliary_box (`bool`, *optional*, defaults to `True`):
            Whether the boxes of the column `boxes`, if there is one, are drawn into the videos
            ([`~models.context.draw_boxes`]).
    """

    context_dropout: Annotated[float, SHARE] = field(
        default=0.1,
        metadata={
            "help": "Share of the examples trained without instruction and without context, v(null, z) with z pure "
            "noise: the null branch of joint guidance, v = v(null, z) + w*(v(g, x) - v(null, z))."
        },
    )
    instruction_dropout: Annotated[float, SHARE] = field(
        default=0.0,
        metadata={
            "help": "Share of the examples trained without instruction but with their context, v(null, x): the null "
            "branch of guidance on the instruction alone, v = v(null, x) + w*(v(g, x) - v(null, x))."
        },
    )
    null_prompt: str | None = field(
        default=None,
        metadata={
            "help": "Prompt of the null instruction (g = null). None: the negative prompt of the model's sampling "
            "settings, which is the null prompt in sampling."
        },
    )
    auxiliary_box: bool = field(
        default=True,
        metadata={
            "help": "Whether the boxes in the dataset's column boxes are drawn into the target videos (object "
            "grounding: the model then draws a box around the object it has found). No effect without that column."
        },
    )

    def _check(self) -> None:
        super()._check()
        if self.context_dropout + self.instruction_dropout > 1:
            raise ValueError(
                f"context_dropout={self.context_dropout} and instruction_dropout={self.instruction_dropout} are "
                "shares of the same examples: their sum must be at most 1. Lower one of them."
            )
        self.model_init_kwargs = {"variant": "context", **(self.model_init_kwargs or {})}
