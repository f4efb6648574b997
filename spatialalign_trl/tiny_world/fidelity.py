"""Does a generated video still look like the tiny world? The quality measures beside the score.

A policy can learn to please DSR-Score with blobs. These measures say what it did to the picture: is the sprite still
of the right kind, shape and colour, does anything move, and how far are the videos from clips that the renderer makes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
from scipy import linalg

from spatialalign_trl.tiny_world.clips import scene_for
from spatialalign_trl.tiny_world.color_segmentation import CLASS_NAMES, classify, largest_blobs
from spatialalign_trl.tiny_world.renderer import render
from spatialalign_trl.tiny_world.sprites import stamp
from spatialalign_trl.tiny_world.vocabulary import ANIMAL_COLORS, ANIMALS
from spatialalign_trl.video import Video

_MARGIN = 2


@cache
def _templates(animal: str) -> tuple[np.ndarray, ...]:
    """Binary silhouettes of an animal, facing right and left."""
    return tuple(stamp(animal, mirrored).alpha[:-1, :-1] > 0.5 for mirrored in (False, True))


def _best_overlap(crop: np.ndarray, template: np.ndarray) -> float:
    """Largest intersection over union of a silhouette with a template over all placements inside the crop."""
    height, width = template.shape
    best, area = 0.0, crop.sum() + template.sum()
    for top in range(max(crop.shape[0] - height, 0) + 1):
        for left in range(max(crop.shape[1] - width, 0) + 1):
            window = crop[top : top + height, left : left + width]
            common = np.logical_and(window, template[: window.shape[0], : window.shape[1]]).sum()
            best = max(best, common / (area - common))
    return float(best)


def _silhouette_scores(blob: np.ndarray, box: np.ndarray) -> dict[str, float]:
    """Overlap of one blob with every kind of animal."""
    x0, y0, x1, y1 = box.astype(int)
    crop = np.pad(blob[y0:y1, x0:x1], _MARGIN)
    return {kind: max(_best_overlap(crop, template) for template in _templates(kind)) for kind in ANIMALS}


def sprite_fidelity(video: Video, animal: str, color: str, every: int = 4) -> dict[str, float]:
    """How well the animal of one video is drawn.

    Args:
        video: uint8 `(frames, height, width, 3)`.
        animal, color: what the prompt asked for.
        every: every how many frames are looked at.

    Returns:
        - `sprite_shape` in [0, 1]: mean overlap of the silhouette with the right animal's (0 where there is none);
        - `sprite_kind` in [0, 1]: share of frames on which the right animal fits best of all kinds;
        - `sprite_color` in [0, 1]: 1 minus the distance of the blob's median colour from the palette, over 255;
        - `motion`: pixels between the animal's extreme positions.
    """
    boxes, blobs = largest_blobs(classify(video) == CLASS_NAMES.index(color))
    shapes, kinds, colors = [], [], []
    for frame in range(0, len(video), every):
        if np.isnan(boxes[frame, 0]):
            shapes.append(0.0), kinds.append(0.0), colors.append(0.0)
            continue
        scores = _silhouette_scores(blobs[frame], boxes[frame])
        shapes.append(scores[animal])
        kinds.append(float(max(scores, key=scores.get) == animal))
        median = np.median(video[frame][blobs[frame]], axis=0)
        colors.append(1.0 - float(np.linalg.norm(median - ANIMAL_COLORS[color])) / 255.0)
    centres = (boxes[:, :2] + boxes[:, 2:])[~np.isnan(boxes[:, 0])] / 2
    motion = float(np.linalg.norm(np.ptp(centres, axis=0))) if len(centres) else 0.0
    return {
        "sprite_shape": float(np.mean(shapes)),
        "sprite_kind": float(np.mean(kinds)),
        "sprite_color": float(np.mean(colors)),
        "motion": motion,
    }


def video_features(video: Video, rows: int = 4, columns: int = 6, moments: int = 5) -> np.ndarray:
    """A small description of a clip for `frechet_distance`: mean and spread of colour on a coarse grid."""
    frames = np.linspace(0, len(video) - 1, moments).round().astype(int)
    pixels = video[frames].astype(np.float64) / 255.0
    height, width = pixels.shape[1] // rows * rows, pixels.shape[2] // columns * columns
    blocks = pixels[:, :height, :width].reshape(moments, rows, height // rows, columns, width // columns, 3)
    return np.concatenate([blocks.mean((2, 4)).mean(0).ravel(), blocks.std((2, 4)).mean(0).ravel()])


def frechet_distance(features: np.ndarray, reference: np.ndarray) -> float:
    """Frechet distance between two sets of features, each fitted by a Gaussian: `(n, d)` arrays, n well above d.

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))     (Dowson & Landau 1982; used on video features as FVD)

    Raises:
        ValueError: when a set has fewer than two rows, which have no spread.
    """
    if min(len(features), len(reference)) < 2:
        raise ValueError(
            f"a Frechet distance needs at least 2 rows on both sides, got {len(features)} and {len(reference)}"
        )
    means = features.mean(0) - reference.mean(0)
    first, second = np.cov(features, rowvar=False), np.cov(reference, rowvar=False)
    trace = np.sqrt(np.clip(linalg.eigvals(first @ second).real, 0, None)).sum()
    return float(max(means @ means + np.trace(first) + np.trace(second) - 2 * trace, 0.0))


def tiny_world_guard(
    videos: Sequence[Video], rows: Sequence[Mapping[str, str]]
) -> dict[str, list[float] | float | None]:
    """The quality guard `"tiny_world"`: `sprite_fidelity` of every video, and one distance for all of them.

    Returns:
        The per-video measures of `sprite_fidelity`, and `distance_to_real`: the Frechet distance between the features
        of the videos and of clips rendered for the same prompts, obediently and with placements drawn from the prompt;
        `None` for a single video.

    Raises:
        ValueError: when there are no videos, or a prompt has words which are not of the tiny world.
    """
    if not len(videos):
        raise ValueError("the tiny_world guard has no videos to look at")
    rng = np.random.default_rng(0)
    rendered = [render(scene_for(row, rng)).video for row in rows]  # first: it names words that it does not know
    measured = [sprite_fidelity(v, row["animal"], row["attribute"]) for v, row in zip(videos, rows, strict=True)]
    measures: dict[str, list[float] | float | None] = {name: [one[name] for one in measured] for name in measured[0]}
    features, reference = (np.stack([video_features(video) for video in group]) for group in (videos, rendered))
    distance = frechet_distance(features, reference) if len(videos) > 1 else None
    return measures | {"distance_to_real": distance}
