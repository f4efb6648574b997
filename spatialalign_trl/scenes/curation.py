"""Tasks out of real recordings: clips to be made again from the rest of the recording, and clips that find something.

Source: Video4Spatial (arXiv 2512.03040): the context is frames of the same recording, sampled non-contiguously; clips
for grounding end on a target that an open-vocabulary detector sees. The thresholds are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from spatialalign_trl.scenes.recordings import PosedVideo
from spatialalign_trl.scenes.tasks import SceneTask, TaskName, draw_context_indices

if TYPE_CHECKING:
    from spatialalign_trl.perception.detections import Detections, Detector


@dataclass(frozen=True)
class Curation:
    """What makes a good clip.

    Attributes:
        size: Height and width of all frames, pixels.
        num_frames: Frames of a clip, at least 2.
        stride: Frames of the recording from one frame of the clip to the next.
        num_context: Context frames.
        gap: Frames of the recording, on both sides of a clip, that no context frame is taken from.
        min_score: A detection counts from this score on.
        min_area: Share of the frame that a target fills at the end of its clip, at least.
        max_offset: How far its middle may be from the frame's, as a share of half a side.
    """

    size: tuple[int, int] = (480, 832)
    num_frames: int = 81
    stride: int = 1
    num_context: int = 12
    gap: int = 4
    min_score: float = 0.4
    min_area: float = 0.01
    max_offset: float = 0.6

    def __post_init__(self) -> None:
        for name in ("num_frames", "stride", "num_context"):
            if getattr(self, name) < (2 if name == "num_frames" else 1):
                raise ValueError(f"{name} is {getattr(self, name)}; it is too small for a clip.")

    @property
    def span(self) -> int:
        """Frames of the recording from a clip's first to its last, both counted."""
        return (self.num_frames - 1) * self.stride + 1


def navigation_task(video: PosedVideo, rng: np.random.Generator, curation: Curation | None = None) -> SceneTask:
    """A clip from anywhere in a recording, to be made again from its trajectory and frames of the rest.

    Raises:
        ValueError: when the recording is too short.
    """
    curation = curation or Curation()
    _check_length(video, curation)
    start = int(rng.integers(len(video) - curation.span + 1))
    clip = np.arange(start, start + curation.span, curation.stride)
    context = draw_context_indices(_outside(video, clip, curation), curation.num_context, rng)
    boxes = np.full((len(clip), 4), np.nan)
    return _task(video, "navigation", "Follow the camera trajectory.", "", context, clip, boxes, curation)


def grounding_tasks(video: PosedVideo, detector: Detector, names: Sequence[str], rng: np.random.Generator,
                    curation: Curation | None = None, every: int = 8) -> list[SceneTask]:  # fmt: skip
    """Clips that begin without an object, end on it, and come from a recording that shows it elsewhere too.

    Args:
        video (`PosedVideo`): The recording.
        detector (`Detector`): Such as [`~spatialalign_trl.perception.grounding_dino.GroundingDINODetector`].
        names (sequence of `str`): What to look for.
        rng: Source of all randomness.
        curation (`Curation`, *optional*): What makes a good clip.
        every (`int`, *optional*, defaults to `8`): Frames from one that is looked at to the next.

    Returns:
        `list[SceneTask]`: for each name that has one, the clip that ends on the surest detection.

    Raises:
        ValueError: when the recording is too short.
    """
    curation = curation or Curation()
    _check_length(video, curation)
    looked_at = np.arange(0, len(video), every)
    found = detector.detect(video.frames(looked_at, curation.size), names)
    tasks = []
    for name in names:
        seen = np.array([_best(one, name, curation.min_score) is not None for one in found])
        task = _grounding_task(video, name, looked_at, seen, found, detector, rng, curation)
        tasks += [task] if task else []
    return tasks


def _grounding_task(video: PosedVideo, name: str, looked_at: np.ndarray, seen: np.ndarray, found: list[Detections],
                    detector: Detector, rng: np.random.Generator, curation: Curation) -> SceneTask | None:  # fmt: skip
    ends = []
    for place, one in enumerate(found):
        start = looked_at[place] - curation.span + 1
        if start < 0 or not _is_good_end(one, name, curation):
            continue
        if not seen[np.abs(looked_at - start).argmin()]:
            ends.append((_best(one, name, curation.min_score)[1], int(looked_at[place])))
    for _, end in sorted(ends, reverse=True):
        clip = np.arange(end - curation.span + 1, end + 1, curation.stride)
        outside = _outside(video, clip, curation)
        shown = np.intersect1d(looked_at[seen], outside)
        if not len(shown):
            continue  # nobody could know where it is
        context = draw_context_indices(outside, curation.num_context, rng)
        if not np.isin(context, shown).any():
            nearest = np.abs(context[:, None] - shown[None]).min(axis=1).argmin()
            context[nearest] = shown[np.abs(shown - context[nearest]).argmin()]
            context = np.unique(context)
        boxes = np.full((len(clip), 4), np.nan)
        for frame, one in enumerate(detector.detect(video.frames(clip, curation.size), [name])):
            best = _best(one, name, curation.min_score)
            if best is not None:
                boxes[frame] = best[0]
        return _task(video, "grounding", f"Find the {name}.", name, context, clip, boxes, curation)
    return None


def _best(found: Detections, name: str, min_score: float) -> tuple[np.ndarray, float] | None:
    """The surest box of a name."""
    mine = [i for i, label in enumerate(found.labels) if label == name and found.scores[i] >= min_score]
    if not mine:
        return None
    best = max(mine, key=lambda i: found.scores[i])
    return found.boxes[best], float(found.scores[best])


def _is_good_end(found: Detections, name: str, curation: Curation) -> bool:
    """One such thing, large enough and near the middle; of two nobody knows which was meant."""
    sure = found.scores >= curation.min_score
    if sum(label == name for label, kept in zip(found.labels, sure, strict=True) if kept) != 1:
        return False
    (x1, y1, x2, y2), _ = _best(found, name, curation.min_score)
    height, width = curation.size
    offset = max(abs((x1 + x2) / width - 1), abs((y1 + y2) / height - 1))
    return (x2 - x1) * (y2 - y1) >= curation.min_area * height * width and offset <= curation.max_offset


def _outside(video: PosedVideo, clip: np.ndarray, curation: Curation) -> np.ndarray:
    everything = np.arange(len(video))
    return everything[(everything < clip[0] - curation.gap) | (everything > clip[-1] + curation.gap)]


def _check_length(video: PosedVideo, curation: Curation) -> None:
    needed = curation.span + 2 * curation.gap + curation.num_context
    if len(video) < needed:
        raise ValueError(
            f"{video.name} has {len(video)} frames; a clip of {curation.num_frames} with stride {curation.stride} and "
            f"{curation.num_context} context frames need {needed}."
        )


def _task(video: PosedVideo, task: TaskName, prompt: str, name: str, context: np.ndarray, clip: np.ndarray,
          boxes: np.ndarray, curation: Curation) -> SceneTask:  # fmt: skip
    return SceneTask(
        f"{task}-{video.name}-{video.indices[clip[0]]}", task, prompt, video.frames(context, curation.size),
        video.indices[context], video.poses[context], video.frames(clip, curation.size), video.poses[clip],
        video.camera(curation.size), name, boxes,
    )  # fmt: skip
