"""A push is retried after temporary failures only, and its final error has the reason but no token."""

from __future__ import annotations

from pathlib import Path

import pytest
from loopback_hub import TOKEN

from spatialalign_trl.hub import pushing

REPO = "tester/prefs"


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch) -> list[float]:
    pauses: list[float] = []
    # This also patches the pauses of the Hub's client, because `time` is the same module there.
    monkeypatch.setattr(pushing.time, "sleep", pauses.append)
    return pauses


@pytest.fixture
def data(tmp_path) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.parquet").write_bytes(b"x")
    return tmp_path / "data"


@pytest.mark.parametrize("status", [409, 412, 429, 500, 503, None])
def test_temporary_failures_are_retried(loopback_client, data, no_pauses, status):
    fault = loopback_client.fail("POST", "/commit/", status, times=3, headers={"Retry-After": "7"})
    url = pushing.push_dataset_folder(data, REPO, message="m")
    assert fault.hits == 3 and "/datasets/tester/prefs/commit/" in url
    assert no_pauses[:3] == ([2, 4, 8] if status is None else [7, 7, 8])
    assert loopback_client.files("dataset", REPO)["a.parquet"] == b"x"


def test_an_answer_that_is_lost_after_the_commit_makes_no_second_one(loopback_client, data, no_pauses):
    loopback_client.fail("POST", "/commit/", after=True)
    pushing.push_dataset_folder(data, REPO, message="m")
    assert len(loopback_client.repo("dataset", REPO).branches["main"]) == 2


def test_silence_counts_as_a_failure(loopback_client, data, monkeypatch, no_pauses):
    monkeypatch.setattr(pushing, "SILENCE", 0.3)
    loopback_client.fail("POST", "/commit/", delay=30)
    assert pushing.push_dataset_folder(data, REPO, message="m") and len(no_pauses) == 1


FOR_GOOD = [(401, 1), (403, 1), (404, 1), (409, 5), (429, 5), (500, 5), (None, 5)]


@pytest.mark.parametrize(("status", "tries"), FOR_GOOD)
def test_a_push_that_fails_for_good_says_why_without_a_token(loopback_client, data, status, tries):
    fault = loopback_client.fail("POST", "/commit/", status, times=99)
    with pytest.raises(pushing.PushFailed) as caught:
        pushing.push_dataset_folder(data, REPO, message="m", token=TOKEN)
    assert fault.hits == caught.value.attempts == tries
    assert TOKEN not in str(caught.value) and (str(status) if status else "connection") in str(caught.value)
    assert caught.value.__cause__ is None and caught.value.__suppress_context__


def test_the_description_of_a_failure_contains_no_token():
    error = RuntimeError(f"request with Bearer {TOKEN} failed")
    assert TOKEN not in pushing.describe_failure(error) and "hf_***" in pushing.describe_failure(error)


@pytest.mark.parametrize("name", ["prefs", "a/b/c", "me/with space", "me/..", "datasets/me/x", "", "-me/x"])
def test_impossible_names_are_refused(name):
    with pytest.raises(ValueError, match="^--repo="):
        pushing.check_repo_name(name, "--repo")
