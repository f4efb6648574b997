"""Test the cache of detections: its keys and entries, damaged files, concurrent use, and packed detections."""

import json
import threading
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from spatialalign_trl.perception.detection_cache import SCHEMA, DetectionCache, pack_detections, unpack_detections
from spatialalign_trl.perception.detections import Detections

ARRAYS = {
    "boxes": np.array([[0.1, np.nan, -0.0, np.inf]]),
    "counts": np.array([3, 1], np.int64),
    "found": np.array([True, False]),
    "none": np.empty((0, 4), np.float32),
    "scalar": np.array(2.5),
}
META = {"prompt_frame": 12, "words": ["cat", "bänk"], "reason": None}


def clip(seed: int = 0, shape: tuple = (3, 4, 5, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype
        and first[name].shape == second[name].shape
        and first[name].tobytes() == second[name].tobytes()
        for name in first
    )


@pytest.fixture
def cache(tmp_path) -> DetectionCache:
    return DetectionCache(tmp_path / "created" / "when needed")


def key_of(video: np.ndarray, **parts) -> str:
    return DetectionCache.key(DetectionCache.digest(video), **parts)


@pytest.fixture
def key() -> str:
    return key_of(clip(), model="tiny")


@pytest.fixture(autouse=True)
def unexpected_warnings_are_errors():
    """Fail a test on any warning that it does not expect."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# Keys


def test_key_does_not_depend_on_the_order_of_parts_or_on_the_memory_layout():
    video = clip()
    key = key_of(video, a=1, b={"x": [1.5, None], "y": "cat"})
    assert key == key_of(np.asfortranarray(video), b={"y": "cat", "x": (1.5, None)}, a=1)


def test_key_covers_shape_pixels_and_every_part():
    video = clip(shape=(4, 6, 2, 3))
    other_pixel = video.copy()
    other_pixel[-1, -1, -1, -1] ^= 1
    keys = [
        key_of(video),
        key_of(other_pixel),
        key_of(video.reshape(4, 2, 6, 3)),
        key_of(video.reshape(2, 12, 2, 3)),
        key_of(video, threshold=0.4),
        key_of(video, threshold=0.3),
        key_of(video, text_threshold=0.4),
        key_of(video, threshold="0.4"),
        key_of(video, words=["cat", "bench"]),
        key_of(video, words=["bench", "cat"]),
    ]
    assert len(set(keys)) == len(keys)


def test_key_refuses_parts_that_are_not_json():
    with pytest.raises(TypeError, match="cache key.*ndarray"):
        key_of(clip(), boxes=np.zeros(3))
    with pytest.raises(ValueError, match="cache key"):
        key_of(clip(), threshold=float("nan"))
    with pytest.raises(TypeError, match="float"):
        key_of(clip().astype(float))


@pytest.mark.parametrize("wrong", ["../../etc/passwd", "", "A" * 64, "a" * 63, None])
def test_only_keys_become_file_names(cache, wrong):
    with pytest.raises(ValueError, match="no cache key"):
        cache.load(wrong)
    with pytest.raises(ValueError, match="no cache key"):
        cache.store(wrong, {})


# Entries


def test_an_entry_is_restored_bit_for_bit_from_one_file(cache, key):
    assert cache.load(key) is None
    path = cache.store(key, ARRAYS, META)
    arrays, meta = DetectionCache(cache.directory).load(key)
    assert same(arrays, ARRAYS) and meta == META
    assert [file.name for file in cache.directory.iterdir()] == [path.name]


def test_views_are_stored_in_their_logical_order(cache, key):
    grid = np.arange(24.0).reshape(4, 6)
    cache.store(key, {"columns": grid.T[::2], "back": grid[::-1]})
    arrays, meta = cache.load(key)
    assert (arrays["columns"] == grid.T[::2]).all() and (arrays["back"] == grid[::-1]).all() and meta == {}


def test_storing_again_replaces_the_entry(cache, key):
    cache.store(key, ARRAYS, META)
    cache.store(key, {"other": np.arange(3)}, {"second": True})
    arrays, meta = cache.load(key)
    assert list(arrays) == ["other"] and meta == {"second": True}


def test_unsupported_arrays_and_metadata_are_refused(cache, key):
    with pytest.raises(TypeError, match="'labels' has dtype <U3"):
        cache.store(key, {"labels": np.array(["cat"])})
    with pytest.raises(TypeError, match="meta"):
        cache.store(key, {}, {"a": np.float32(1)})
    with pytest.raises(ValueError, match="meta"):
        cache.store(key, {}, {"a": float("inf")})
    assert cache.load(key) is None


# Damage


def check_reported_and_replaced(cache: DetectionCache, key: str, reason: str = "") -> None:
    with pytest.warns(UserWarning, match=f"{key}.safetensors is no usable cache entry.*{reason}"):
        assert cache.load(key) is None
    cache.store(key, ARRAYS, META)
    assert same(cache.load(key).arrays, ARRAYS)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_flipped_byte_goes_unnoticed(tmp_path_factory, data):
    cache, key = DetectionCache(tmp_path_factory.mktemp("cache")), key_of(clip())
    path = cache.store(key, ARRAYS, META)
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        entry = cache.load(key)
    if entry is None:
        assert len(caught) == 1 and str(path) in str(caught[0].message)
    else:  # the flipped byte does not change the meaning, such as white space in JSON
        assert same(entry.arrays, ARRAYS) and entry.meta == META


@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.9, 0.999])
def test_a_truncated_entry_is_computed_again(cache, key, share):
    path = cache.store(key, ARRAYS, META)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    check_reported_and_replaced(cache, key)


def test_an_entry_of_another_key_is_computed_again(cache, key):
    other = key_of(clip(1))
    cache.store(other, ARRAYS, META).rename(cache.path(key))
    check_reported_and_replaced(cache, key, f"another key, '{other}'")


@pytest.mark.parametrize("metadata", [None, {}, {"schema": "someone else's"}, {"schema": SCHEMA}])
def test_a_foreign_file_is_replaced(cache, key, metadata):
    cache.directory.mkdir(parents=True)
    cache.path(key).write_bytes(save(ARRAYS, metadata=metadata))
    check_reported_and_replaced(cache, key)


def test_an_entry_of_an_older_schema_is_computed_again(cache, key, monkeypatch):
    monkeypatch.setattr("spatialalign_trl.perception.detection_cache.SCHEMA", "spatialalign_trl.detections/0")
    cache.store(key, ARRAYS, META)
    monkeypatch.undo()
    check_reported_and_replaced(cache, key, "its schema is 'spatialalign_trl.detections/0'")


def test_a_file_that_is_not_safetensors_is_replaced(cache, key):
    cache.directory.mkdir(parents=True)
    cache.path(key).write_text(json.dumps(META))
    check_reported_and_replaced(cache, key)


# Concurrent use


def test_concurrent_readers_see_only_complete_entries(cache, key):
    versions = [{"version": np.full((200, 4), value)} for value in range(4)]
    cache.store(key, versions[0])
    failures: list[BaseException] = []

    def guarded(work):
        def run() -> None:
            try:
                for turn in range(40):
                    work(turn)
            except BaseException as error:  # an exception in a thread would be lost
                failures.append(error)

        return run

    def read(_) -> None:
        entry = DetectionCache(cache.directory).load(key)  # an incomplete entry would warn, which is an error here
        assert entry is not None and len(np.unique(entry.arrays["version"])) == 1

    def write(number: int):
        return lambda turn: DetectionCache(cache.directory).store(key, versions[(turn + number) % 4])

    threads = [threading.Thread(target=guarded(work)) for work in (read, read, write(0), write(1), write(2))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
    assert [file.name for file in cache.directory.iterdir()] == [f"{key}.safetensors"]  # no temporary file remains


# Detections as arrays

frames = st.lists(
    st.lists(
        st.tuples(
            st.tuples(*[st.floats(-1e6, 1e6)] * 4), st.floats(0, 1), st.sampled_from(["cat", "bench", "", "kočka ."])
        ),
        max_size=4,
    ),
    max_size=6,
)


@settings(max_examples=60, deadline=None)
@given(frames)
def test_detections_are_restored_bit_for_bit_from_the_cache(tmp_path_factory, rows):
    detections = [
        Detections(
            np.array([box for box, _, _ in frame]).reshape(-1, 4),
            np.array([score for _, score, _ in frame]),
            tuple(label for _, _, label in frame),
        )
        for frame in rows
    ]
    cache, key = DetectionCache(tmp_path_factory.mktemp("cache")), key_of(clip())
    cache.store(key, {**pack_detections(detections), "something_else": np.zeros(2)})
    restored = unpack_detections(cache.load(key).arrays)
    assert len(restored) == len(detections)
    for new, old in zip(restored, detections, strict=True):
        assert new.labels == old.labels and new.boxes.shape == (len(new.labels), 4)
        assert new.boxes.tobytes() == old.boxes.tobytes() and new.scores.tobytes() == old.scores.tobytes()


def test_arrays_that_are_not_detections_are_refused():
    packed = pack_detections([Detections(np.zeros((2, 4)), np.zeros(2), ("cat", "bench"))])
    with pytest.raises(ValueError, match="'labels' is missing"):
        unpack_detections({name: array for name, array in packed.items() if name != "labels"})
    with pytest.raises(ValueError, match="1 scores, 2 labels"):
        unpack_detections({**packed, "scores": np.zeros(1)})
