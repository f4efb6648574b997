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
"""About three standard errors of a share of 4000."""


@pytest.fixture(scope="module")
def drawn():
    rng = np.random.default_rng(0)
    return [sample_scene(rng) for _ in range(DRAWS)]


def what_is_shown(one):
    if one.scene.motion != "complete":
        return one.scene.motion
    return "obeys" if one.scene.type == one.caption.type else "other"


def test_held_out_combinations_are_never_drawn(drawn):
    shown = {(one.scene.scene, one.scene.color, one.scene.animal, one.scene.object) for one in drawn}
    assert not any(is_held_out(*combination) for combination in shown)
    assert len(shown) > 600  # of the 674 that may be drawn


def test_the_caption_names_what_is_shown_but_for_the_relation(drawn):
    for one in drawn[:500]:
        caption, scene = one.caption, one.scene
        for name in ("scene", "animal", "object", "verb"):
            assert getattr(caption, name) == getattr(scene, name)
        assert caption.attribute == scene.color


def test_every_caption_parses_back(drawn):
    for one in drawn[:500]:
        assert parse_prompt(one.caption.prompt, one.caption.prompt_id) == one.caption


def test_the_shares_of_obedience_are_what_the_module_says(drawn):
    counts = Counter(what_is_shown(one) for one in drawn)
    assert counts["obeys"] / DRAWS == pytest.approx(OBEY_SHARE, abs=SHARE_TOLERANCE)
    assert sum(DISOBEDIENCE.values()) == pytest.approx(1)
    for kind, share in DISOBEDIENCE.items():
        assert counts[kind] / DRAWS == pytest.approx((1 - OBEY_SHARE) * share, abs=SHARE_TOLERANCE)
    assert set(counts) == {"obeys", *DISOBEDIENCE}


def test_disobedience_is_the_same_for_every_type(drawn):
    for dsr_type in DSR_TYPES:
        of_type = [one for one in drawn if one.caption.type == dsr_type]
        assert len(of_type) / DRAWS == pytest.approx(1 / 6, abs=SHARE_TOLERANCE)
        obeyed = np.mean([what_is_shown(one) == "obeys" for one in of_type])
        assert obeyed == pytest.approx(OBEY_SHARE, abs=0.06)
        wrong = {one.scene.type for one in of_type if what_is_shown(one) == "other"}
        assert wrong == set(OTHER_TYPES[dsr_type])


def test_words_and_placements_vary(drawn):
    for name, known in {"scene": SCENES, "color": ANIMAL_COLORS, "animal": ANIMALS, "object": OBJECTS}.items():
        assert {getattr(one.scene, name) for one in drawn} == set(known)
    verbs = Counter(one.scene.verb for one in drawn)
    assert set(verbs) == set(VERBS) and min(verbs.values()) > 0.8 * DRAWS / len(VERBS)
    for values, low, high in (
        ([one.scene.object_x for one in drawn], 22.0, 26.0),
        ([one.scene.start for one in drawn], 0.1, 0.3),
        ([gap for one in drawn for gap in one.scene.gaps], 0.0, 2.0),
    ):
        assert low <= min(values) < low + 0.02 * (high - low)
        assert high - 0.02 * (high - low) < max(values) <= high


def test_clean_clips_obey():
    rng = np.random.default_rng(1)
    assert {what_is_shown(sample_scene(rng, obedient=True)) for _ in range(200)} == {"obeys"}


def test_a_seed_gives_the_same_clips(drawn):
    rng = np.random.default_rng(0)
    assert [sample_scene(rng) for _ in range(50)] == drawn[:50]
    assert (render(drawn[7].scene).video == render(sample_scene_at(7)).video).all()


def sample_scene_at(index):
    rng = np.random.default_rng(0)
    return [sample_scene(rng) for _ in range(index + 1)][index].scene


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
