"""Names of the face that moved to another room stay importable."""

import pytest

import spatialalign_trl.hub as hub


@pytest.mark.parametrize("name", ["RoundSummary", "preference_card", "write_pairs", "write_samples"])
def test_the_names_that_moved_to_online_are_still_found(name):
    assert getattr(hub, name).__module__.startswith("spatialalign_trl.online.")


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="absent"):
        hub.absent  # noqa: B018
