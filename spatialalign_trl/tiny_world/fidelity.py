"""Quality measures for videos of the tiny world, reported in addition to the score.

A policy can learn to satisfy DSR-Score with shapeless blobs. These measures show what happened to the picture: whether
the sprite still has the right kind, shape and colour, whether anything moves, and how far the videos are from clips of
the renderer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
from scipy import linalg

from spatialalign_trl.tiny_world.clips import scene_for
from spatialalign_trl.tiny_world.color_segmentation import CLASS_NAMES, classify, largest_blobs
from spatialalign_trl.tiny_world.renderer import check_words, render
from spatialalign_trl.tiny_world.sprites import stamp
from spatialalign_trl.tiny_world.vocabulary import ANIMAL_COLORS, ANIMALS
from spatialalign_trl.video import Video

_MARGIN = 2  # pixels around a blob, so that a template may overhang it


@cache
def _templates(animal: str) -> tuple[np.ndarray, ...]:
    """Return the binary silhouettes of an animal, facing right and left."""
    return tuple(stamp(animal, mirrored).alpha[:-1, :-1] > 0.5 for mirrored in (False, True))


def _best_overlap(crop: np.ndarray, template: np.ndarray) -> float:
    """Return the largest intersection over union of a silhouette and a template over all placements in the crop."""
    height, width = template.shape
    best, area = 0.0, crop.sum() + template.sum()
    for top in range(max(crop.shape[0] - height, 0) + 1):
        for left in range(max(crop.shape[1] - width, 0) + 1):
            window = crop[top : top + height, left : left + width]
            common = np.logical_and(window, template[: window.shape[0], : window.shape[1]]).sum()
            best = max(best, common / (area - common))
    return float(best)


def _silhouette_scores(blob: np.ndarray, box: np.ndarray) -> dict[str, float]:
    """Return the overlap of one blob with every kind of animal."""
    x0, y0, x1, y1 = box.astype(int)
    crop = np.pad(blob[y0:y1, x0:x1], _MARGIN)
    return {kind: max(_best_overlap(crop, template) for template in _templates(kind)) for kind in ANIMALS}


def sprite_fidelity(video: Video, animal: str, color: str, every: int = 4) -> dict[str, float]:
    """Measure how well the animal of one video is drawn.

    Args:
        video (`np.ndarray` of shape `(frames, height, width, 3)`, `uint8`):
            The video.
        animal, color (`str`):
            Animal and colour in the prompt.
        every (`int`, *optional*, defaults to `4`):
            Measure the sprite on every n-th frame only.

    Returns:
        `dict[str, float]`:

        - `sprite_shape` in [0, 1]: mean intersection over union of the blob and the animal's silhouette; frames
          without a blob count as 0;
        - `sprite_kind` in [0, 1]: share of the frames on which the right animal fits better than all other kinds;
        - `sprite_color` in [0, 1]: 1 minus the distance between the blob's median colour and the palette's, divided
          by 255;
        - `motion`: pixels between the extreme positions of the animal, over all frames.
    """
    boxes, blobs = largest_blobs(classify(video) == CLASS_NAMES.index(color))
    shapes, kinds, colors = [], [], []
    for frame in range(0, len(video), every):
        if np.isnan(boxes[frame, 0]):
            for measured in (shapes, kinds, colors):
                measured.append(0.0)
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
    """Compute a short feature vector of a clip for `frechet_distance`: mean and spread of colour on a coarse grid.

    Args:
        video (`np.ndarray` of shape `(frames, height, width, 3)`, `uint8`):
            The clip.
        rows, columns (`int`, *optional*, defaults to `4` and `6`):
            Cells of the grid. Remaining pixels at the lower and right borders are ignored.
        moments (`int`, *optional*, defaults to `5`):
            Number of frames, at equal distances, to average over.

    Returns:
        `np.ndarray` of shape `(2 * rows * columns * 3,)`, `float64`: means, then standard deviations, in [0, 1].
    """
    frames = np.linspace(0, len(video) - 1, moments).round().astype(int)
    pixels = video[frames].astype(np.float64) / 255.0
    height, width = pixels.shape[1] // rows * rows, pixels.shape[2] // columns * columns
    blocks = pixels[:, :height, :width].reshape(moments, rows, height // rows, columns, width // columns, 3)
    return np.concatenate([blocks.mean((2, 4)).mean(0).ravel(), blocks.std((2, 4)).mean(0).ravel()])


def frechet_distance(features: np.ndarray, reference: np.ndarray) -> float:
    """Compute the Frechet distance between two sets of features, each fitted by a Gaussian.

        |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))

    Args:
        features, reference (`np.ndarray` of shape `(n, d)`):
            One row per video; n should be well above d.

    Returns:
        `float`: the distance, at least 0.

    Raises:
        ValueError: If a set has fewer than two rows and thus no covariance.

    Source: Dowson & Landau (1982). On features of videos it is known as FVD.
    """
    if min(len(features), len(reference)) < 2:
        raise ValueError(
            f"a Frechet distance needs at least 2 rows on both sides, got {len(features)} and {len(reference)}."
        )
    shift = features.mean(0) - reference.mean(0)
    first, second = np.cov(features, rowvar=False), np.cov(reference, rowvar=False)
    # The trace of the matrix root is the sum of the roots of the eigenvalues.
    trace = np.sqrt(np.clip(linalg.eigvals(first @ second).real, 0, None)).sum()
    return float(max(shift @ shift + np.trace(first) + np.trace(second) - 2 * trace, 0.0))


def tiny_world_guard(
    videos: Sequence[Video], rows: Sequence[Mapping[str, str]]
) -> dict[str, list[float] | float | None]:
    """Measure the quality of videos: the guard `"tiny_world"`.

    Args:
        videos (sequence of `np.ndarray` of shape `(frames, height, width, 3)`, `uint8`):
            Generated videos.
        rows (sequence of `Mapping[str, str]`):
            Their prompt rows.

    Returns:
        `dict`: the measures of `sprite_fidelity`, as lists with one value per video; and `distance_to_real`, the
        Frechet distance between the features of the videos and those of clips rendered for the same prompts, or `None`
        for a single video.

    Raises:
        ValueError: If there are no videos, or if a prompt has a word that is not in the tiny world.
    """
    if not len(videos):
        raise ValueError("videos=[]: the tiny_world guard needs at least one video.")
    # Render the reference clips first: the renderer checks the words and names the unknown ones.
    rng = np.random.default_rng(0)
    rendered = [render(scene_for(row, rng)).video for row in rows]
    per_video = [sprite_fidelity(v, row["animal"], row["attribute"]) for v, row in zip(videos, rows, strict=True)]
    measures: dict[str, list[float] | float | None] = {
        name: [values[name] for values in per_video] for name in per_video[0]
    }
    features, reference = (np.stack([video_features(video) for video in group]) for group in (videos, rendered))
    distance = frechet_distance(features, reference) if len(videos) > 1 else None
    return measures | {"distance_to_real": distance}


def _check_prompts(rows: Sequence[Mapping[str, str]]) -> None:
    """Check, before any video is sampled, that the reference clips of the guard can be rendered for these rows."""
    rng = np.random.default_rng(0)
    for row in rows:
        try:
            check_words(scene_for(row, rng))
        except ValueError as error:
            prompt = row.get("prompt_id") or row.get("prompt")
            remedy = "Leave the guard 'tiny_world' out of quality_guards, or use words of the tiny world."
            raise ValueError(f"prompt {prompt!r}: {error} {remedy}") from error


tiny_world_guard.check_prompts = _check_prompts
