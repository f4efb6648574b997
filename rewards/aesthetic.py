"""Aesthetic quality: CLIP-IQA with the question whether the picture is beautiful."""

import os
from collections.abc import Sequence
from typing import Any

from spatialalign_rewards.clip_iqa import CLIPIQA
from spatialalign_rewards.clip_similarity import DEFAULT_CHECKPOINT


class Aesthetic(CLIPIQA):
    """
    Reward in [0, 1]: [`CLIPIQA`] with the texts "Beautiful photo." and "Ugly photo.". This is not the LAION aesthetic
    predictor, because its weights are only published as a pickle.

    Args:
        checkpoint, prompts, and all other arguments (*optional*):
            See [`CLIPIQA`].
    """

    name = "aesthetic"

    def __init__(
        self,
        checkpoint: str | os.PathLike = DEFAULT_CHECKPOINT,
        prompts: Sequence[str | Sequence[str]] = ("beautiful",),
        **options: Any,
    ) -> None:
        super().__init__(checkpoint, prompts, **options)
