"""The store returns samples as they were added, and detects and repairs damaged files."""

import json
import os
import warnings
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spatialalign_trl.rollout import Sample, SampleStore

ROW = {"prompt_id": "p0", "prompt": "In a meadow, a fox is on the left of a stump.", "type": "LR", "animal": "fox"}
SETTINGS = {"num_frames": 5, "height": 16, "width": 16, "guidance_scale": 3.0, "flow_shift": None}
VIDEO = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
LATENTS = torch.randn(4, 2, 2, 2, generator=torch.Generator().manual_seed(0))
FILES = [".json", ".mp4", ".safetensors"]


@contextmanager
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture
def store(tmp_path):
    return SampleStore(tmp_path / "samples")


def add(store, seed=0):
    return store.add(store.new_sample(ROW, seed, SETTINGS, "base"), VIDEO, LATENTS, fps=8, crf=0)


def test_a_sample_is_loaded_as_it_was_added(store):
    sample = add(store)
    reopened = SampleStore(store.directory)
    assert reopened.has(sample.sample_id)
    assert reopened.load(sample.sample_id) == sample == Sample(sample.sample_id, "p0", ROW, 0, SETTINGS, "base")
    np.testing.assert_array_equal(reopened.video(sample.sample_id), VIDEO)
    assert torch.equal(reopened.latents(sample.sample_id), LATENTS)
    assert reopened.video_bytes(sample.sample_id) == (store.directory / f"{sample.sample_id}.mp4").read_bytes()
    assert reopened.latents_bytes(sample.sample_id)
    assert sorted(os.listdir(store.directory)) == sorted(sample.sample_id + suffix for suffix in FILES)


def test_latents_that_are_a_slice_of_a_batch_are_stored_alone(store):
    batch = torch.randn(8, 4, 2, 2, 2)
    sample = store.add(store.new_sample(ROW, 0, SETTINGS, "base"), VIDEO, batch[3], fps=8, crf=0)
    assert torch.equal(store.latents(sample.sample_id), batch[3])
    assert len(store.latents_bytes(sample.sample_id)) < 4 * batch[3].numel() + 500


def test_ids_differ_when_any_input_differs():
    ids = {
        SampleStore.sample_id(row, seed, sampling, revision)
        for row in (ROW, {**ROW, "type": "LT"}, {**ROW, "extra": ""})
        for seed in (0, 1)
        for sampling in (SETTINGS, {**SETTINGS, "flow_shift": 3.0}, {**SETTINGS, "num_frames": 9})
        for revision in ("base", "round-1")
    }
    assert len(ids) == 3 * 2 * 3 * 2
    assert all(len(sample_id) == 20 and int(sample_id, 16) >= 0 for sample_id in ids)


def test_the_id_is_a_fixed_function_of_the_inputs():
    """An id that changed with a version would make every stored sample worthless."""
    # sha256sum of {"policy_revision":"base","row":{"prompt":"é","prompt_id":"a"},"seed":3,"settings":{"x":1.5}}
    assert SampleStore.sample_id({"prompt_id": "a", "prompt": "é"}, 3, {"x": 1.5}, "base") == "de339aebf261f3b9ce4e"


@given(
    st.dictionaries(st.text(max_size=5), st.one_of(st.text(max_size=5), st.integers(), st.none()), max_size=4),
    st.integers(0, 2**31),
)
@settings(max_examples=50, deadline=None)
def test_the_id_does_not_depend_on_the_order_of_columns(row, seed):
    backwards = dict(reversed(list(row.items())))
    assert SampleStore.sample_id(row, seed, SETTINGS, "base") == SampleStore.sample_id(
        backwards, np.int64(seed), SETTINGS, "base"
    )


def test_inputs_without_a_json_form_name_the_prompt():
    with pytest.raises(TypeError, match="prompt 'p0' has no id"):
        SampleStore.sample_id({**ROW, "video": object()}, 0, SETTINGS, "base")
    with pytest.raises(ValueError, match="prompt 'p0' has no id"):
        SampleStore.sample_id(ROW, 0, {**SETTINGS, "guidance_scale": float("nan")}, "base")


def test_a_sample_under_a_false_id_is_refused(store):
    sample = store.new_sample(ROW, 0, SETTINGS, "base")
    sample.seed = 1
    with pytest.raises(ValueError, match="have the id .* Make samples with new_sample"):
        store.add(sample, VIDEO, LATENTS, fps=8)


@pytest.mark.parametrize("sample_id", ["", "../../etc/passwd", "0" * 19, "G" * 20, "0" * 20 + "\n", None])
def test_ids_are_checked_before_they_become_file_names(store, sample_id):
    for call in (store.has, store.load, store.video, store.latents):
        with pytest.raises(ValueError, match="is not a sample id"):
            call(sample_id)


def test_a_whole_sample_is_never_overwritten(store):
    sample = add(store)
    before = {path.name: path.read_bytes() for path in store.directory.iterdir()}
    store.add(sample, 255 - VIDEO, -LATENTS, fps=8)
    assert {path.name: path.read_bytes() for path in store.directory.iterdir()} == before


@pytest.mark.parametrize("suffix", FILES)
@pytest.mark.parametrize("damage", ["gone", "empty", "cut", "flipped"])
def test_damage_is_detected_reported_and_repaired(store, suffix, damage):
    sample = add(store)
    store.write_scores(sample.sample_id, {"dsr_score": 0.5}, 0.5)
    path = store.path(sample.sample_id, suffix)
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        half = len(data) // 2
        flipped = data[:half] + bytes([data[half] ^ 255]) + data[half + 1 :]
        path.write_bytes({"empty": b"", "cut": data[:half], "flipped": flipped}[damage])
    reopened = SampleStore(store.directory)
    if (suffix, damage) == (".json", "gone"):
        assert not reopened.has(sample.sample_id)
    else:
        with pytest.warns(UserWarning, match="missing"):
            assert not reopened.has(sample.sample_id)
    if damage != "flipped":
        with no_warnings(), pytest.raises(FileNotFoundError, match="no intact sample"):
            reopened.load(sample.sample_id)
    with warnings.catch_warnings():  # the damage was reported when it was found
        warnings.simplefilter("error")
        reopened.add(sample, VIDEO, LATENTS, fps=8, crf=0)
    assert SampleStore(store.directory).has(sample.sample_id)
    assert torch.equal(reopened.latents(sample.sample_id), LATENTS)
    assert not reopened.load(sample.sample_id).scored  # the scores belonged to the damaged video


def test_a_file_with_flipped_bits_is_never_returned(store):
    sample = add(store)
    for suffix, read in ((".mp4", store.video), (".safetensors", store.latents)):
        path = store.path(sample.sample_id, suffix)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 255
        path.write_bytes(data)
        with pytest.raises(ValueError, match=f"{sample.sample_id}{suffix} is damaged"):
            read(sample.sample_id)


def test_a_record_under_another_samples_name_does_not_count(store):
    first, second = add(store, 0), add(store, 1)
    store.path(second.sample_id).write_bytes(store.path(first.sample_id).read_bytes())
    with pytest.warns(UserWarning, match="describes another sample"):
        assert not SampleStore(store.directory).has(second.sample_id)


@pytest.mark.parametrize("writes", [0, 1, 2])
def test_an_interruption_between_the_files_leaves_a_usable_store(store, monkeypatch, writes):
    """Ctrl-C at every point between a sample's three files."""
    first = add(store, 0)
    replace, done = os.replace, []

    def interrupted(source, target):
        if len(done) == writes:
            raise KeyboardInterrupt
        done.append(target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        add(store, 1)
    monkeypatch.undo()
    reopened = SampleStore(store.directory)
    assert [sample.sample_id for sample in reopened.samples()] == [first.sample_id]
    second = add(reopened, 1)
    assert [sample.seed for sample in reopened.samples()] == [0, 1]
    assert torch.equal(reopened.latents(second.sample_id), LATENTS)
    assert not list(store.directory.glob(".*"))


def test_scores_come_back_and_nan_is_invalid(store):
    sample = add(store)
    assert not store.load(sample.sample_id).scored
    scored = store.write_scores(
        sample.sample_id,
        {"dsr_score": np.float64(0.75), "other": None, "third": float("nan"), "fourth": float("inf")},
        np.float32(0.5),
        {"dsr_reason": None, "dsr_initial_gap": float("nan"), "curve": [*(np.arange(3) / 2), -np.inf]},
    )
    assert scored == SampleStore(store.directory).load(sample.sample_id)
    assert scored.scored
    assert scored.rewards == {"dsr_score": 0.75, "other": None, "third": None, "fourth": None}
    assert scored.reward == 0.5
    assert scored.components == {"dsr_reason": None, "dsr_initial_gap": None, "curve": [0.0, 0.5, 1.0, None]}
    store.write_scores(sample.sample_id, {"dsr_score": None}, None)
    invalid = store.load(sample.sample_id)
    assert invalid.scored
    assert invalid.reward is None


def test_damaged_scores_count_as_not_scored(store):
    sample = add(store)
    store.write_scores(sample.sample_id, {"dsr_score": 0.5}, 0.5)
    store.path(sample.sample_id, ".scores.json").write_bytes(b'{"rewards": {"dsr')
    with pytest.warns(UserWarning, match="counts as not scored"):
        loaded = store.load(sample.sample_id)
    assert not loaded.scored
    assert store.has(sample.sample_id)


def test_scores_of_an_unknown_sample_are_refused(store):
    with pytest.raises(FileNotFoundError, match="no intact sample"):
        store.write_scores("0" * 20, {}, None)
    assert not list(store.directory.iterdir())


def test_samples_are_listed_in_order_and_other_files_ignored(store):
    for seed in (3, 1, 2):
        add(store, seed)
    (store.directory / "notes.json").write_text("{}")
    (store.directory / "0123456789abcdef0123.mp4").write_bytes(b"half")
    assert [sample.seed for sample in store.samples()] == [1, 2, 3]


def test_nothing_is_pickled(store):
    sample = add(store)
    store.write_scores(sample.sample_id, {"dsr_score": 0.5}, 0.5)
    assert {path.suffix for path in store.directory.iterdir()} == {".mp4", ".safetensors", ".json"}
    for path in store.directory.glob("*.json"):
        json.loads(path.read_text())
    for path in store.directory.iterdir():
        assert b"\x80\x04\x95" not in path.read_bytes()[:16]
