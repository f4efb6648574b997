"""The colour tracker sees pixels only; here its boxes are held against the renderer's exact ones."""

import numpy as np
import pytest

from spatialalign_rewards.dsr_score import score_tracks
from spatialalign_trl.prompts import DSR_TYPES
from spatialalign_trl.tiny_world.clips import sample_scene
from spatialalign_trl.tiny_world.color_segmentation import ColorSegmentationTracker
from spatialalign_trl.tiny_world.renderer import NUM_FRAMES, render


def drawn_scenes(count: int, obedient: bool = False):
    rng = np.random.default_rng(3)
    return [sample_scene(rng, obedient=obedient) for _ in range(count)]


def tracked(scenes):
    return ColorSegmentationTracker().track(
        [render(s).video for s in scenes],
        animal=[s.animal for s in scenes],
        object=[s.object for s in scenes],
        attribute=[s.color for s in scenes],
    )


def test_every_rendered_clip_is_valid_and_boxes_are_within_two_pixels():
    scenes = [drawn.scene for drawn in drawn_scenes(150)]
    worst = []
    for scene, tracks in zip(scenes, tracked(scenes), strict=True):
        assert tracks.reason is None, scene
        exact = render(scene).animal_boxes
        worst.append(max(np.abs(boxes[0] - exact[frame]).max() for frame, _, boxes in tracks))
    # a border pixel that is less than half covered takes the background's colour
    assert np.mean(worst) < 1.5
    assert np.max(worst) <= 4.0


def test_scores_from_pixels_agree_with_scores_from_exact_boxes():
    scenes = [drawn.scene for drawn in drawn_scenes(150)]
    differences = []
    for scene, tracks in zip(scenes, tracked(scenes), strict=True):
        clip = render(scene)
        exact = [
            (k, ("a", "o"), np.stack(pair))
            for k, pair in enumerate(zip(clip.animal_boxes, clip.object_boxes, strict=True))
        ]
        reference = score_tracks(exact, "a", "o", scene.type, num_frames=NUM_FRAMES).score
        seen = score_tracks(tracks, scene.animal, scene.object, scene.type, num_frames=NUM_FRAMES).score
        differences.append(abs(reference - seen))
    assert np.mean(differences) < 0.03
    assert np.quantile(differences, 0.95) < 0.08


def test_every_obedient_clip_passes_the_threshold():
    drawn = drawn_scenes(120, obedient=True)
    assert {one.scene.type for one in drawn} == set(DSR_TYPES)
    for one, tracks in zip(drawn, tracked([one.scene for one in drawn]), strict=True):
        result = score_tracks(tracks, one.scene.animal, one.scene.object, one.caption.type, num_frames=NUM_FRAMES)
        assert result.score >= 0.7, (one.scene, result)


@pytest.mark.parametrize("spoil", ["blank", "noise", "no_object", "two_animals"])
def test_spoilt_videos_are_invalid_and_say_why(spoil):
    scene = drawn_scenes(1)[0].scene
    video = render(scene).video.copy()
    if spoil == "blank":
        video[:] = video[0, 0, 0]
    elif spoil == "noise":
        video = np.random.default_rng(0).integers(0, 256, video.shape, dtype=np.uint8)
    elif spoil == "no_object":
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


def test_words_of_other_worlds_are_refused_with_the_near_miss():
    video = np.zeros((17, 32, 48, 3), np.uint8)
    with pytest.raises(ValueError, match="fixx.*fox"):
        ColorSegmentationTracker().track([video], animal=["fixx"], object=["stump"], attribute=["red"])
    with pytest.raises(ValueError, match="attribute"):
        ColorSegmentationTracker().track([video], animal=["fox"], object=["stump"])
