"""Cards by name and size; numbers of videos, pairs and steps; what they take on disk."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from planned_run import RUN

from spatialalign_trl.planning.cards import CARDS, find_card
from spatialalign_trl.planning.workload import expected_pairs
from spatialalign_trl.preferences import make_pairs
from spatialalign_trl.rollout.store import Sample


@pytest.mark.parametrize("name", CARDS)
@pytest.mark.parametrize(
    "spelling", [str, str.lower, lambda name: f"NVIDIA {name}", lambda name: name.replace("-", " ")]
)
def test_cards_have_many_spellings(name, spelling):
    assert find_card(spelling(name)) == CARDS[name]


@given(st.floats(4, 1024))
def test_a_size_leaves_room_for_cuda_and_fragmentation(size):
    card = find_card(f"{size:.2f}GB")
    assert 0 < card.usable < card.memory - 2 < size
    assert find_card(f"{size:.2f}gib").memory > card.memory


@pytest.mark.parametrize(
    "text", ["H1000", "80", "GB", "", "0GB", "2GB", "5000GB", "-80GB", "nan", "80TB", "80GB "[:0]]
)
def test_an_unknown_card_or_size_is_one_clear_line(text):
    with pytest.raises(ValueError) as error:
        find_card(text)
    assert f"gpu={text!r}" in str(error.value) and "\n" not in str(error.value)


def test_a_misspelt_card_names_the_nearest():
    with pytest.raises(ValueError, match="H100"):
        find_card("H10O")


def pairs_of(wins: tuple[bool, ...], limit: int | None) -> int:
    samples = [
        Sample(f"{k:020x}", "p", {"prompt": "x"}, k, {}, "base", reward=0.9 if win else 0.1 + k / 1000)
        for k, win in enumerate(wins)
    ]
    return len(make_pairs(samples, "threshold", 0.7, 0.0, limit, 0).pairs)


@pytest.mark.parametrize("limit", [None, 1, 4])
@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_expected_pairs_are_the_average_over_all_outcomes(limit, rate):
    """Against the product's own pairing, for every way in which 5 videos can win or lose."""
    average = sum(
        math.prod(rate if win else 1 - rate for win in wins) * pairs_of(wins, limit)
        for wins in itertools.product((False, True), repeat=5)
    )
    assert expected_pairs(5, "threshold", rate, limit) == pytest.approx(average)


@given(
    st.integers(2, 30), st.floats(0, 1), st.sampled_from(["threshold", "best_vs_worst", "min_gap"]), st.integers(1, 9)
)
def test_pairs_are_bounded(samples, rate, strategy, limit):
    every = samples * (samples - 1) / 2
    unlimited = expected_pairs(samples, strategy, rate, None)
    limited = expected_pairs(samples, strategy, rate, limit)
    assert 0 <= limited <= min(limit, unlimited) + 1e-9
    assert unlimited <= every + 1e-9


def test_the_papers_recipe():
    assert RUN.training_videos == 12_000 and RUN.evaluation_videos == 1200
    assert 17_000 < RUN.most_pairs < 17_500
    assert RUN.forwards == 18_000  # of each process
    assert RUN.visits == pytest.approx(3000 * 48 / RUN.most_pairs) == pytest.approx(8.3, abs=0.1)
    assert RUN.disk()["pairs"] == pytest.approx(2 * RUN.memory())
    assert 300 < RUN.memory() < 360


def test_rounds_that_are_pooled_have_more_pairs():
    two = dataclasses.replace(RUN, rounds=2)
    alone = dataclasses.replace(two, pools_rounds=False)
    assert two.most_pairs > alone.most_pairs == RUN.most_pairs
    assert two.training_videos == 2 * RUN.training_videos and two.forwards == 2 * RUN.forwards


def test_epochs_count_the_pairs():
    run = dataclasses.replace(RUN, steps=None, epochs=2.0)
    assert run.forwards == math.ceil(2 * run.most_pairs / 8)


def test_a_precomputed_reference_takes_disk():
    run = dataclasses.replace(RUN, fixed_draws=8)
    # 8.4 MB per pair and draw at this size, as the help of precompute_reference says
    assert run.disk()["reference"] * 2**30 == pytest.approx(run.most_pairs * 8 * 8.4e6, rel=0.01)
