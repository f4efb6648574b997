"""The colour tracker, which sees pixels only: its boxes are compared with the exact ones of the renderer."""

import numpy as np
import pytest

from spatialalign_rewards.dsr_score import score_tracks
from spatialalign_trl.prompts import DSR_TYPES
from spatialalign_trl.tiny_world.clips import sample_scene
from spatialalign_trl.tiny_world.color_segmentation import ColorSegmentationTracker
from spatialalign_trl.tiny_world.renderer import NUM_FRAMES, render


def captioned_scenes(count: int, obedient: bool = False):
    rng = np.random.default_rng(3)
    return [sample_scene(rng, obedient=obedient) for _ in range(count)]


def tracked(scenes):
    return ColorSegmentationTracker().track(
        [render(scene).video for scene in scenes],
        animal=[scene.animal for scene in scenes],
        object=[scene.object for scene in scenes],
        attribute=[scene.color for scene in scenes],
    )


def test_every_rendered_clip_is_valid_and_boxes_are_within_two_pixels():
    scenes = [clip.scene for clip in captioned_scenes(150)]
    worst = []
    for scene, tracks in zip(scenes, tracked(scenes), strict=True):
        assert tracks.reason is None, scene
        exact = render(scene).animal_boxes
        worst.append(max(np.abs(boxes[0] - exact[frame]).max() for frame, _, boxes in tracks))
    # A border pixel that the sprite covers by less than half is nearer to the background's colour.
    assert np.mean(worst) < 1.5
    assert np.max(worst) <= 4.0


def test_scores_from_pixels_agree_with_scores_from_exact_boxes():
    scenes = [clip.scene for clip in captioned_scenes(150)]
    differences = []
    for scene, tracks in zip(scenes, tracked(scenes), strict=True):
        clip = render(scene)
        exact = [
            (k, ("a", "o"), np.stack(pair))
            for k, pair in enumerate(zip(clip.animal_boxes, clip.object_boxes, strict=True))
        ]
        reference = score_tracks(exact, "a", "o", scene.type, num_frames=NUM_FRAMES).score
        tracked_score = score_tracks(tracks, scene.animal, scene.object, scene.type, num_frames=NUM_FRAMES).score
        differences.append(abs(reference - tracked_score))
    assert np.mean(differences) < 0.03
    assert np.quantile(differences, 0.95) < 0.08


def test_every_obedient_clip_passes_the_threshold():
    clips = captioned_scenes(120, obedient=True)
    scenes = [clip.scene for clip in clips]
    assert {scene.type for scene in scenes} == set(DSR_TYPES)
    for clip, scene, tracks in zip(clips, scenes, tracked(scenes), strict=True):
        result = score_tracks(tracks, scene.animal, scene.object, clip.caption.type, num_frames=NUM_FRAMES)
        assert result.score >= 0.7, (scene, result)


@pytest.mark.parametrize("damage", ["blank", "noise", "no_object", "two_animals"])
def test_damaged_videos_are_invalid_with_a_reason(damage):
    scene = captioned_scenes(1)[0].scene
    video = render(scene).video.copy()
    if damage == "blank":
        video[:] = video[0, 0, 0]
    elif damage == "noise":
        video = np.random.default_rng(0).integers(0, 256, video.shape, dtype=np.uint8)
    elif damage == "no_object":
        video[:, 18:, 12:36] = video[0, 31, 0]
    else:
        video[:, :14, :16] = video[0, 0, 0]
        from spatialalign_trl.tiny_world.vocabulary import ANIMAL_COLORS

        video[:, 2:12, 2:14] = ANIMAL_COLORS[scene.color]
    (tracks,) = ColorSegmentationTracker().track(
        [video], animal=[scene.animal], object=[scene.object], attribute=[scene.color]
    )
    assert tracks.reason is not None and "of 17 frames" in tracks.reason
    assert scene.animal in tracks.reason and scene.object in tracks.reason


def test_unknown_words_are_refused_with_the_nearest_known_word():
    video = np.zeros((17, 32, 48, 3), np.uint8)
    with pytest.raises(ValueError, match="animal='fixx' is not in the tiny world.*fox"):
        ColorSegmentationTracker().track([video], animal=["fixx"], object=["stump"], attribute=["red"])
    with pytest.raises(ValueError, match="needs the column `attribute`"):
        ColorSegmentationTracker().track([video], animal=["fox"], object=["stump"])
