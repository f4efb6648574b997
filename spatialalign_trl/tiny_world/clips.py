"""Draws captioned training clips; only in some of them the motion follows the caption.

The embedded model must leave alignment something to improve, so its training data is imperfect on purpose. A share of
`OBEY_SHARE` of the clips shows the relation in the caption; in the others the animal does not move, turns back
half-way, or ends somewhere else. A model trained on these clips draws well but follows only part of its prompts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from spatialalign_trl.prompts import DSR_TYPES, DSRPrompt, build_prompt
from spatialalign_trl.tiny_world.renderer import Scene
from spatialalign_trl.tiny_world.vocabulary import SCENES, VERBS, split_combinations

OBEY_SHARE = 0.37
"""Models trained from scratch with a share of 0.44 reach S@0.7 = 0.47; with 0.37 they reach 0.38."""
DISOBEDIENCE: dict[str, float] = {"other": 0.5, "static": 0.3, "half": 0.2}
"""Kind of disobedience -> its share of the disobedient clips."""

OTHER_TYPES: dict[str, tuple[str, ...]] = {
    "LR": ("RL", "TL", "RT"),
    "RL": ("LR", "TR", "LT"),
    "LT": ("TL", "TR", "RT"),
    "RT": ("TR", "TL", "LT"),
    "TL": ("LT", "LR", "TR"),
    "TR": ("RT", "RL", "TL"),
}
"""Type in the caption -> wrong types that a clip may show instead: DSR-Score gives each of them less than 0.7."""


@dataclass(frozen=True)
class CaptionedScene:
    """A caption and the scene shown with it, which may contradict the caption."""

    caption: DSRPrompt
    scene: Scene


def caption_for(scene: Scene, type: str | None = None) -> DSRPrompt:
    """Return the prompt that describes a scene.

    Args:
        scene (`Scene`):
            The scene to describe.
        type (`str`, *optional*, defaults to the scene's own):
            DSR type that the prompt asks for instead.

    Returns:
        `DSRPrompt`: the prompt, without an id.
    """
    return build_prompt(
        scene=scene.scene, animal=scene.animal, object=scene.object, type=type or scene.type, verb=scene.verb,
        attribute=scene.color,
    )  # fmt: skip


def _draw_behaviour(type: str, rng: np.random.Generator) -> tuple[str, str]:
    """Draw `(type, motion)` that a clip shows under a caption of `type`."""
    if rng.random() < OBEY_SHARE:
        return type, "complete"
    kind = rng.choice(list(DISOBEDIENCE), p=list(DISOBEDIENCE.values()))
    if kind == "other":
        return str(rng.choice(OTHER_TYPES[type])), "complete"
    return type, str(kind)


def place(words: Mapping[str, str], type: str, motion: str, rng: np.random.Generator) -> Scene:
    """Draw what the words of a scene leave open: the placements and the moment when the motion starts.

    Args:
        words (`Mapping[str, str]`):
            `scene`, `color`, `animal`, `object` and `verb`, all from `vocabulary.py`.
        type (`str`):
            DSR type to show, such as `"LR"`.
        motion (`str`):
            One of `renderer.MOTIONS`.
        rng (`np.random.Generator`):
            Source of all randomness.

    Returns:
        `Scene`: the complete scene.
    """
    return Scene(
        **words, type=type, motion=motion, object_x=rng.uniform(22.0, 26.0),
        gaps=(rng.uniform(0.0, 2.0), rng.uniform(0.0, 2.0)), start=rng.uniform(0.1, 0.3),
    )  # fmt: skip


def scene_for(row: Mapping[str, str], rng: np.random.Generator) -> Scene:
    """Draw a scene that shows exactly what a prompt row asks for. A place that it does not name is drawn.

    Args:
        row (`Mapping[str, str]`):
            Prompt columns `scene`, `attribute`, `animal`, `object`, `verb` and `type`.
        rng (`np.random.Generator`):
            Source of all randomness.

    Returns:
        `Scene`: the scene, with complete motion.
    """
    words = {name: row[name] for name in ("scene", "animal", "object", "verb")}
    if not words["scene"]:
        words["scene"] = str(rng.choice(list(SCENES)))
    return place({**words, "color": row["attribute"]}, row["type"], "complete", rng)


def sample_scene(rng: np.random.Generator, *, obedient: bool = False) -> CaptionedScene:
    """Draw a captioned scene from the combinations that are not held out.

    Args:
        rng (`np.random.Generator`):
            Source of all randomness.
        obedient (`bool`, *optional*, defaults to `False`):
            Show exactly what the caption says. Use it for clean reference clips.

    Returns:
        `CaptionedScene`: the caption and the scene.
    """
    # The order of the draws is part of the data: another order gives other clips for the same seed.
    pretraining, _ = split_combinations()
    scene, color, animal, object = pretraining[rng.integers(len(pretraining))]
    type = str(rng.choice(DSR_TYPES))
    shown_type, motion = (type, "complete") if obedient else _draw_behaviour(type, rng)
    words = {"scene": scene, "color": color, "animal": animal, "object": object, "verb": str(rng.choice(VERBS))}
    shown_scene = place(words, shown_type, motion, rng)
    return CaptionedScene(caption_for(shown_scene, type), shown_scene)
