"""Tasks made from recordings: contexts never show the clip, and clips for grounding end on the object to find."""

from __future__ import annotations

import numpy as np
import pytest

from spatialalign_trl.perception.detections import Detections
from spatialalign_trl.scenes.curation import Curation, grounding_tasks, navigation_task
from spatialalign_trl.scenes.recordings import PosedVideo
from spatialalign_trl.scenes.tasks import draw_context_indices

SIZE, NUMBER = (20, 30), 80
CURATION = Curation(size=SIZE, num_frames=9, stride=2, num_context=6, gap=3)


def recording(number: int = NUMBER) -> PosedVideo:
    """Make a recording in which all pixels of a frame equal its number."""
    frames = np.zeros((number, *SIZE, 3), np.uint8)
    frames[:] = np.arange(number)[:, None, None, None]
    poses = np.tile(np.eye(4), (number, 1, 1))
    poses[:, 0, 3] = np.arange(number)
    camera = np.array([[20.0, 0, 14.5], [0, 20, 9.5], [0, 0, 1]])
    return PosedVideo("scan", poses, camera, SIZE, np.arange(number), lambda indices: [frames[i] for i in indices])


class Script:
    """A detector with scripted detections: name -> frame -> boxes."""

    def __init__(self, boxes: dict[str, dict[int, list]], score: float = 0.9) -> None:
        self.boxes, self.score = boxes, score

    def detect(self, video, names):
        detections = []
        for frame in video:
            number = int(frame[0, 0, 0])
            named_boxes = [(name, box) for name in names for box in self.boxes.get(name, {}).get(number, [])]
            boxes = np.array([box for _, box in named_boxes], float).reshape(-1, 4)
            labels = tuple(name for name, _ in named_boxes)
            detections.append(Detections(boxes, np.full(len(labels), self.score), labels))
        return detections


MIDDLE, SMALL, ASIDE = [12, 6, 20, 14], [14, 9, 15, 10], [0, 0, 6, 6]


def test_context_frames_are_spread_irregularly_and_reproducibly():
    first, second = (draw_context_indices(np.arange(100), 8, np.random.default_rng(1)) for _ in range(2))
    assert np.array_equal(first, second)
    assert (np.diff(first) > 0).all() and len(set(np.diff(first))) > 1
    assert all(12.5 * i - 1 < index < 12.5 * (i + 1) for i, index in enumerate(first))
    assert draw_context_indices(np.array([3, 9]), 2, np.random.default_rng(0)).tolist() == [3, 9]


def test_more_context_frames_than_there_are_frames_are_refused():
    with pytest.raises(ValueError, match="number=9: cannot draw that many context frames from 8"):
        draw_context_indices(np.arange(8), 9, np.random.default_rng(0))


@pytest.mark.parametrize("seed", range(5))
def test_navigation_keeps_clip_and_context_apart(seed):
    video = recording()
    task = navigation_task(video, np.random.default_rng(seed), CURATION)
    context, clip = task.context_frames[:, 0, 0, 0], task.target_frames[:, 0, 0, 0].astype(int)
    assert np.array_equal(context, task.context_indices) and len(context) == 6
    assert np.array_equal(np.diff(clip), [2] * 8)
    assert all(index < clip[0] - 3 or index > clip[-1] + 3 for index in task.context_indices)
    assert np.array_equal(task.target_poses[:, 0, 3], clip)
    row = task.columns()
    assert set(row) >= {"prompt", "context", "context_indices", "context_poses", "intrinsics", "camera_poses", "video"}
    assert "object" not in row


def test_a_recording_that_is_too_short_is_refused():
    with pytest.raises(ValueError, match="scan has 20 frames, .* need 29"):
        navigation_task(recording(20), np.random.default_rng(0), CURATION)


def test_grounding_ends_on_the_object_and_the_context_shows_it():
    plant = {frame: [MIDDLE] for frame in range(40, 50)} | {70: [ASIDE]}
    video = recording()
    (task,) = grounding_tasks(
        video, Script({"plant": plant}), ["plant", "chair"], np.random.default_rng(0), CURATION, 2
    )
    clip = task.target_frames[:, 0, 0, 0].astype(int)
    assert task.object == "plant" and task.prompt == "Find the plant."
    assert 40 <= clip[-1] < 50 and clip[0] < 40
    assert np.isnan(task.boxes[0]).all() and task.boxes[-1].tolist() == MIDDLE
    assert set(task.context_indices) & set(plant)
    assert not set(task.context_indices) & set(range(clip[0] - 3, clip[-1] + 4))
    row = task.columns()
    assert row["object"] == "plant" and row["boxes"][0] is None and row["boxes"][-1] == MIDDLE
    assert "camera_poses" not in row  # the task is to find the way to the object


@pytest.mark.parametrize(
    ("boxes", "why"),
    [
        ({f: [SMALL] for f in (44, 70)}, "too small"),
        ({f: [ASIDE] for f in (44, 70)}, "too far from the middle"),
        ({f: [MIDDLE, ASIDE] for f in (44, 70)}, "two of a kind"),
        ({f: [MIDDLE] for f in range(80)}, "in view from the start"),
        ({44: [MIDDLE]}, "the context does not show it"),
    ],
)
def test_objects_that_need_no_search_give_no_task(boxes, why):
    assert not grounding_tasks(
        recording(), Script({"plant": boxes}), ["plant"], np.random.default_rng(0), CURATION, 2
    ), why


def test_unsure_detections_do_not_count():
    boxes = {f: [MIDDLE] for f in (44, 70)}
    for score, expected in ((0.9, 1), (0.3, 0)):
        tasks = grounding_tasks(
            recording(), Script({"plant": boxes}, score), ["plant"], np.random.default_rng(0), CURATION, 2
        )
        assert len(tasks) == expected


@pytest.mark.parametrize("change", [{"num_frames": 1}, {"stride": 0}, {"num_context": 0}])
def test_impossible_clip_settings_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        Curation(**change)
