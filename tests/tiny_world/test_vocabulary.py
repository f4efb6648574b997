import hashlib
from itertools import combinations as pairs

import numpy as np
import pytest

from spatialalign_trl.tiny_world import vocabulary
from spatialalign_trl.tiny_world.sprites import DARK_COLOR, SHADE_FACTOR, SIZES
from spatialalign_trl.tiny_world.vocabulary import (
    ANIMAL_COLORS,
    ANIMALS,
    HELD_OUT_SHARE,
    OBJECT_COLORS,
    OBJECTS,
    SCENES,
    VERBS,
    is_held_out,
    split_combinations,
)

SPRITES = {**ANIMAL_COLORS, **OBJECT_COLORS}
BACKGROUNDS = {(scene, layer): both[layer] for scene, both in SCENES.items() for layer in (0, 1)}


def distance(first, second):
    return float(np.linalg.norm(np.subtract(first, second, dtype=float)))


def test_colours_that_segmentation_must_distinguish_are_well_separated():
    for (name, color), (other, other_color) in pairs(SPRITES.items(), 2):
        assert distance(color, other_color) > 60, (name, other)
    for name, color in SPRITES.items():
        for place, background in BACKGROUNDS.items():
            assert distance(color, background) > 60, (name, place)
        assert distance(color, DARK_COLOR) > 60, name


def test_an_objects_shade_is_nearest_to_its_own_colours():
    palette = {**SPRITES, **BACKGROUNDS, "dark": DARK_COLOR}
    for name, color in OBJECT_COLORS.items():
        to_shade = {entry: distance(other, np.multiply(color, SHADE_FACTOR)) for entry, other in palette.items()}
        assert min(to_shade, key=to_shade.get) == name


def test_the_words_are_different_and_every_sprite_has_a_size():
    words = (*ANIMALS, *OBJECTS, *ANIMAL_COLORS, *VERBS, *SCENES)
    assert len(set(words)) == len(words)
    assert set(SIZES) == {*ANIMALS, *OBJECTS}


def test_about_a_tenth_of_the_combinations_is_held_out():
    pretraining, held_out = split_combinations()
    everything = vocabulary.combinations()
    assert sorted(pretraining + held_out) == sorted(everything)
    assert len(set(everything)) == len(everything) == 6 * 5 * 5 * 5
    assert len(held_out) / len(everything) == pytest.approx(HELD_OUT_SHARE, abs=0.02)
    assert all(is_held_out(*words) for words in held_out)
    assert not any(is_held_out(*words) for words in pretraining)


def test_every_word_occurs_in_pretraining_and_among_the_held_out():
    for combinations in split_combinations():
        for position, known in enumerate((SCENES, ANIMAL_COLORS, ANIMALS, OBJECTS)):
            assert {words[position] for words in combinations} == set(known)


def test_the_held_out_combinations_never_change():
    # The embedded model was pretrained without them. Another choice would turn test prompts into training prompts.
    _, held_out = split_combinations()
    digest = hashlib.sha256(repr(sorted(held_out)).encode()).hexdigest()
    assert (len(held_out), digest[:16]) == (76, "991d30eac4d24097")
