"""Cut tasks out of real recordings: clips to reproduce from the rest of the recording, and clips that find an object.

Source: Video4Spatial (arXiv 2512.03040). The context consists of frames of the same recording, sampled
non-contiguously. Clips for grounding end on a target that an open-vocabulary detector sees. The thresholds are ours.
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
    """Settings for cutting clips.

    Attributes:
        size (tuple of 2 `int`, *optional*, defaults to `(480, 832)`): Height and width of all frames in pixels.
        num_frames (`int`, *optional*, defaults to `81`): Frames per clip, at least 2.
        stride (`int`, *optional*, defaults to `1`): Frames of the recording from one frame of the clip to the next.
        num_context (`int`, *optional*, defaults to `12`): Number of context frames.
        gap (`int`, *optional*, defaults to `4`): Frames of the recording before and after a clip from which no context
            frame is taken.
        min_score (`float`, *optional*, defaults to `0.4`): Lowest score of a detection that counts.
        min_area (`float`, *optional*, defaults to `0.01`): Smallest share of the frame that a target fills at the end
            of its clip.
        max_offset (`float`, *optional*, defaults to `0.6`): Largest distance of the target's centre from the frame's
            centre, as a share of half a side.
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
            smallest = 2 if name == "num_frames" else 1
            if getattr(self, name) < smallest:
                raise ValueError(
                    f"{name}={getattr(self, name)}: too small for a clip. It must be at least {smallest}."
                )

    @property
    def span(self) -> int:
        """The number of frames of the recording from a clip's first frame to its last, inclusive."""
        return (self.num_frames - 1) * self.stride + 1


def navigation_task(video: PosedVideo, rng: np.random.Generator, curation: Curation | None = None) -> SceneTask:
    """Cut a clip from a random place, to be reproduced from its trajectory and frames of the rest of the recording.

    Args:
        video (`PosedVideo`): The recording.
        rng (`np.random.Generator`): Source of all randomness.
        curation (`Curation`, *optional*): Settings for cutting clips.

    Returns:
        `SceneTask`: the task.

    Raises:
        ValueError: if the recording is too short.
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
    """Cut clips that begin without an object and end on it, from a recording that also shows it outside of the clip.

    Args:
        video (`PosedVideo`): The recording.
        detector (`Detector`): The detector, such as
            [`~spatialalign_trl.perception.grounding_dino.GroundingDINODetector`].
        names (sequence of `str`): The objects to look for.
        rng (`np.random.Generator`): Source of all randomness.
        curation (`Curation`, *optional*): Settings for cutting clips.
        every (`int`, *optional*, defaults to `8`): Distance in frames between the frames that the detector searches.

    Returns:
        `list[SceneTask]`: for each name with a suitable clip, the clip that ends on the detection with the highest
        score.

    Raises:
        ValueError: if the recording is too short.
    """
    curation = curation or Curation()
    _check_length(video, curation)
    searched = np.arange(0, len(video), every)
    detections = detector.detect(video.frames(searched, curation.size), names)
    tasks = []
    for name in names:
        seen = np.array([_best_box(frame, name, curation.min_score) is not None for frame in detections])
        task = _grounding_task(video, name, searched, seen, detections, detector, rng, curation)
        tasks += [task] if task else []
    return tasks


def _grounding_task(video: PosedVideo, name: str, searched: np.ndarray, seen: np.ndarray, detections: list[Detections],
                    detector: Detector, rng: np.random.Generator, curation: Curation) -> SceneTask | None:  # fmt: skip
    """Cut the best clip that finds an object, or return `None` if there is none."""
    # 1. Find the frames on which a clip can end, where its start does not show the object
    ends = []
    for index, frame_detections in enumerate(detections):
        start = searched[index] - curation.span + 1
        if start < 0 or not _is_good_end(frame_detections, name, curation):
            continue
        if not seen[np.abs(searched - start).argmin()]:
            ends.append((_best_box(frame_detections, name, curation.min_score)[1], int(searched[index])))

    for _, end in sorted(ends, reverse=True):
        clip = np.arange(end - curation.span + 1, end + 1, curation.stride)

        # 2. Draw a context that shows the object: otherwise its place could not be known
        outside = _outside(video, clip, curation)
        shown = np.intersect1d(searched[seen], outside)
        if not len(shown):
            continue
        context = draw_context_indices(outside, curation.num_context, rng)
        if not np.isin(context, shown).any():
            # Move the nearest context frame to one that shows the object.
            nearest = np.abs(context[:, None] - shown[None]).min(axis=1).argmin()
            context[nearest] = shown[np.abs(shown - context[nearest]).argmin()]
            context = np.unique(context)

        # 3. Find the object in every frame of the clip
        boxes = np.full((len(clip), 4), np.nan)
        for frame, frame_detections in enumerate(detector.detect(video.frames(clip, curation.size), [name])):
            best = _best_box(frame_detections, name, curation.min_score)
            if best is not None:
                boxes[frame] = best[0]
        return _task(video, "grounding", f"Find the {name}.", name, context, clip, boxes, curation)
    return None


def _best_box(detections: Detections, name: str, min_score: float) -> tuple[np.ndarray, float] | None:
    """Return the box of a name with the highest score, and the score."""
    matches = [i for i, label in enumerate(detections.labels) if label == name and detections.scores[i] >= min_score]
    if not matches:
        return None
    best = max(matches, key=lambda i: detections.scores[i])
    return detections.boxes[best], float(detections.scores[best])


def _is_good_end(detections: Detections, name: str, curation: Curation) -> bool:
    """Return whether a frame shows exactly one such object, large enough and near the centre."""
    # With two of a kind, the instruction would be ambiguous.
    counted = detections.scores >= curation.min_score
    if sum(label == name for label, counts in zip(detections.labels, counted, strict=True) if counts) != 1:
        return False
    (x1, y1, x2, y2), _ = _best_box(detections, name, curation.min_score)
    height, width = curation.size
    offset = max(abs((x1 + x2) / width - 1), abs((y1 + y2) / height - 1))
    return (x2 - x1) * (y2 - y1) >= curation.min_area * height * width and offset <= curation.max_offset


def _outside(video: PosedVideo, clip: np.ndarray, curation: Curation) -> np.ndarray:
    """Return the frames that the context may be drawn from."""
    frames = np.arange(len(video))
    return frames[(frames < clip[0] - curation.gap) | (frames > clip[-1] + curation.gap)]


def _check_length(video: PosedVideo, curation: Curation) -> None:
    """Check that a recording is long enough for a clip and its context."""
    needed = curation.span + 2 * curation.gap + curation.num_context
    if len(video) < needed:
        raise ValueError(
            f"{video.name} has {len(video)} frames, but a clip of {curation.num_frames} frames with stride "
            f"{curation.stride} and {curation.num_context} context frames need {needed}."
        )


def _task(video: PosedVideo, task: TaskName, prompt: str, name: str, context: np.ndarray, clip: np.ndarray,
          boxes: np.ndarray, curation: Curation) -> SceneTask:  # fmt: skip
    """Make the task of a clip and its context frames."""
    return SceneTask(
        f"{task}-{video.name}-{video.indices[clip[0]]}", task, prompt, video.frames(context, curation.size),
        video.indices[context], video.poses[context], video.frames(clip, curation.size), video.poses[clip],
        video.camera(curation.size), name, boxes,
    )  # fmt: skip
