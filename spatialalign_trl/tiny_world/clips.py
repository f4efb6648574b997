"""Captioned training clips whose motion only partly obeys the caption.

A text-to-video model is imperfect because its data is. Here a caption's relation is shown fully in `OBEY_SHARE` of
the clips; in the others the animal stays where it is, turns back half-way, or ends somewhere else. A model trained on
these renders well and obeys partly, which is what alignment needs to have something to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from spatialalign_trl.prompts import DSR_TYPES, DSRPrompt, build_prompt
from spatialalign_trl.tiny_world.renderer import Scene
from spatialalign_trl.tiny_world.vocabulary import VERBS, split_combinations

OBEY_SHARE = 0.37
"""Models that were trained from nothing with 0.44 obey in 0.47 of the videos (S@0.7), with 0.37 in 0.38."""
DISOBEDIENCE: dict[str, float] = {"other": 0.5, "static": 0.3, "half": 0.2}
"""What the disobedient clips show, as shares of them."""

OTHER_TYPES: dict[str, tuple[str, ...]] = {
    "LR": ("RL", "TL", "RT"),
    "RL": ("LR", "TR", "LT"),
    "LT": ("TL", "TR", "RT"),
    "RT": ("TR", "TL", "LT"),
    "TL": ("LT", "LR", "TR"),
    "TR": ("RT", "RL", "TL"),
}
"""Wrong types that a clip may show under a caption's type: those which DSR-Score grades below 0.7."""


@dataclass(frozen=True)
class CaptionedScene:
    """A caption and the scene that is shown under it (which may disobey)."""

    caption: DSRPrompt
    scene: Scene


def caption_for(scene: Scene, type: str | None = None) -> DSRPrompt:
    """The prompt which describes a scene, or which asks for another `type` in it."""
    return build_prompt(
        scene=scene.scene, animal=scene.animal, object=scene.object, type=type or scene.type, verb=scene.verb,
        attribute=scene.color,
    )  # fmt: skip


def _shown(type: str, rng: np.random.Generator) -> tuple[str, str]:
    """`(type, motion)` that a clip shows under a caption of `type`."""
    if rng.random() < OBEY_SHARE:
        return type, "complete"
    kind = rng.choice(list(DISOBEDIENCE), p=list(DISOBEDIENCE.values()))
    if kind == "other":
        return str(rng.choice(OTHER_TYPES[type])), "complete"
    return type, str(kind)


def place(words: Mapping[str, str], type: str, motion: str, rng: np.random.Generator) -> Scene:
    """A scene of given words with everything the words leave open drawn: where things are and when it starts."""
    return Scene(
        **words, type=type, motion=motion, object_x=rng.uniform(22.0, 26.0),
        gaps=(rng.uniform(0.0, 2.0), rng.uniform(0.0, 2.0)), start=rng.uniform(0.1, 0.3),
    )  # fmt: skip


def scene_for(row: Mapping[str, str], rng: np.random.Generator) -> Scene:
    """A scene which does what a prompt row says: `scene, attribute, animal, object, verb, type` as in `prompts.py`."""
    words = {name: row[name] for name in ("scene", "animal", "object", "verb")}
    return place({**words, "color": row["attribute"]}, row["type"], "complete", rng)


def sample_scene(rng: np.random.Generator, *, obedient: bool = False) -> CaptionedScene:
    """Draws a captioned scene from the combinations which are not held out.

    Args:
        rng: source of all randomness.
        obedient: show exactly what the caption says (clean clips, for measuring).
    """
    pretraining, _ = split_combinations()
    scene, color, animal, object = pretraining[rng.integers(len(pretraining))]
    type = str(rng.choice(DSR_TYPES))
    shown, motion = (type, "complete") if obedient else _shown(type, rng)
    words = {"scene": scene, "color": color, "animal": animal, "object": object, "verb": str(rng.choice(VERBS))}
    drawn = place(words, shown, motion, rng)
    return CaptionedScene(caption_for(drawn, type), drawn)
