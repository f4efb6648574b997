from collections import Counter

import numpy as np
import pytest

from spatialalign_trl.prompts import DSR_TYPES, parse_prompt
from spatialalign_trl.tiny_world.clips import (
    DISOBEDIENCE,
    OBEY_SHARE,
    OTHER_TYPES,
    caption_for,
    sample_scene,
    scene_for,
)
from spatialalign_trl.tiny_world.renderer import Scene, render
from spatialalign_trl.tiny_world.vocabulary import ANIMAL_COLORS, ANIMALS, OBJECTS, SCENES, VERBS, is_held_out

DRAWS = 4000
SHARE_TOLERANCE = 0.025
"""About three standard errors of a share of 4000 draws."""


@pytest.fixture(scope="module")
def clips():
    rng = np.random.default_rng(0)
    return [sample_scene(rng) for _ in range(DRAWS)]


def behaviour(clip):
    """Return "obeys" or the kind of disobedience."""
    if clip.scene.motion != "complete":
        return clip.scene.motion
    return "obeys" if clip.scene.type == clip.caption.type else "other"


def test_held_out_combinations_are_never_drawn(clips):
    scenes = [clip.scene for clip in clips]
    combinations = {(scene.scene, scene.color, scene.animal, scene.object) for scene in scenes}
    assert not any(is_held_out(*combination) for combination in combinations)
    assert len(combinations) > 600  # of the 674 that may be drawn


def test_the_caption_matches_the_scene_except_for_the_relation(clips):
    for clip in clips[:500]:
        caption, scene = clip.caption, clip.scene
        for name in ("scene", "animal", "object", "verb"):
            assert getattr(caption, name) == getattr(scene, name)
        assert caption.attribute == scene.color


def test_every_caption_parses_back(clips):
    for clip in clips[:500]:
        assert parse_prompt(clip.caption.prompt, clip.caption.prompt_id) == clip.caption


def test_obedience_and_disobedience_have_their_shares(clips):
    counts = Counter(behaviour(clip) for clip in clips)
    assert counts["obeys"] / DRAWS == pytest.approx(OBEY_SHARE, abs=SHARE_TOLERANCE)
    assert sum(DISOBEDIENCE.values()) == pytest.approx(1)
    for kind, share in DISOBEDIENCE.items():
        assert counts[kind] / DRAWS == pytest.approx((1 - OBEY_SHARE) * share, abs=SHARE_TOLERANCE)
    assert set(counts) == {"obeys", *DISOBEDIENCE}


def test_disobedience_is_the_same_for_every_type(clips):
    for dsr_type in DSR_TYPES:
        of_type = [clip for clip in clips if clip.caption.type == dsr_type]
        assert len(of_type) / DRAWS == pytest.approx(1 / 6, abs=SHARE_TOLERANCE)
        obey_share = np.mean([behaviour(clip) == "obeys" for clip in of_type])
        assert obey_share == pytest.approx(OBEY_SHARE, abs=0.06)
        wrong = {clip.scene.type for clip in of_type if behaviour(clip) == "other"}
        assert wrong == set(OTHER_TYPES[dsr_type])


def test_words_and_placements_vary(clips):
    scenes = [clip.scene for clip in clips]
    for name, known in {"scene": SCENES, "color": ANIMAL_COLORS, "animal": ANIMALS, "object": OBJECTS}.items():
        assert {getattr(scene, name) for scene in scenes} == set(known)
    verbs = Counter(scene.verb for scene in scenes)
    assert set(verbs) == set(VERBS) and min(verbs.values()) > 0.8 * DRAWS / len(VERBS)
    for values, low, high in (
        ([scene.object_x for scene in scenes], 22.0, 26.0),
        ([scene.start for scene in scenes], 0.1, 0.3),
        ([gap for scene in scenes for gap in scene.gaps], 0.0, 2.0),
    ):
        assert low <= min(values) < low + 0.02 * (high - low)
        assert high - 0.02 * (high - low) < max(values) <= high


def test_clean_clips_obey():
    rng = np.random.default_rng(1)
    assert {behaviour(sample_scene(rng, obedient=True)) for _ in range(200)} == {"obeys"}


def test_a_seed_gives_the_same_clips(clips):
    rng = np.random.default_rng(0)
    again = [sample_scene(rng) for _ in range(50)]
    assert again == clips[:50]
    assert (render(clips[7].scene).video == render(again[7].scene).video).all()


def test_a_caption_may_ask_for_another_type():
    scene = Scene("In a kitchen", "white", "elephant", "bucket", "hops", "TL")
    assert caption_for(scene).prompt == (
        "In a kitchen, a white elephant is on the top of a bucket, then the elephant hops to the left of the bucket."
    )
    assert caption_for(scene, "LR").type == "LR"


def test_a_prompt_row_becomes_a_scene_that_obeys_it():
    row = parse_prompt("On a beach, a pink duck is on the left of a rock, then the duck leaps to the top of the rock.")
    first, second = (scene_for(row.to_row(), np.random.default_rng(seed)) for seed in (0, 1))
    assert caption_for(first).prompt == row.prompt
    assert (first.type, first.motion) == ("LT", "complete")
    assert first != second and first == scene_for(row.to_row(), np.random.default_rng(0))
