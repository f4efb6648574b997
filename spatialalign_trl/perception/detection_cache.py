"""Cache the detections of a clip on disk, so that scoring it again loads no model.

An entry is one safetensors file named by its key: a hash of the clip's digest and of everything else the result
depends on (models, thresholds, words). It contains arrays, a JSON object in the file's metadata, and a checksum over
both. An entry that cannot be trusted causes a warning and counts as missing, so it is computed again and replaced.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from spatialalign_trl.files import remove_leftovers, write_atomic
from spatialalign_trl.perception.detections import Detections
from spatialalign_trl.video import Video, check_video

SCHEMA = "spatialalign_trl.detections/1"
"""Increase the number when the meaning of an entry changes: older entries are then computed again."""

_KEY = re.compile(r"[0-9a-f]{64}")


class CacheEntry(NamedTuple):
    """
    The content stored under a key.

    Args:
        arrays (`dict[str, np.ndarray]`): The arrays, bit for bit.
        meta (`dict`): The JSON object stored with them.
    """

    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]


class DetectionCache:
    """
    A folder of entries, which any number of processes may read and write at the same time.

    Args:
        directory (`str` or `os.PathLike`):
            The folder; created when the first entry is stored.
    """

    def __init__(self, directory: str | os.PathLike) -> None:
        self.directory = Path(directory)
        if self.directory.is_dir():
            remove_leftovers(self.directory)

    @staticmethod
    def digest(video: Video) -> str:
        """
        Hash the shape and the pixels of a clip, once for all keys of its entries.

        Args:
            video (`np.ndarray` of shape `(frames, height, width, 3)`, `uint8`):
                The clip.

        Returns:
            `str`: 64 hexadecimal digits (SHA-256).

        Raises:
            TypeError, ValueError: when the array is not a video.
        """
        check_video(video)
        digest = hashlib.sha256(_canonical(video.shape, what="the shape of a clip"))
        digest.update(np.ascontiguousarray(video))
        return digest.hexdigest()

    @staticmethod
    def key(clip: str, **parts: Any) -> str:
        """
        Make the key of a clip and of everything else the result depends on.

        Args:
            clip (`str`):
                The clip's [`~DetectionCache.digest`].
            parts:
                JSON-serialisable values. The order of names, also inside dicts, does not matter.

        Returns:
            `str`: 64 hexadecimal digits (SHA-256).

        Raises:
            TypeError, ValueError: for a part that is not JSON-serialisable.
        """
        whole = {"schema": SCHEMA, "clip": clip, "parts": parts}
        return hashlib.sha256(_canonical(whole, what="the parts of a cache key")).hexdigest()

    def path(self, key: str) -> Path:
        """Return the file of an entry. Raises a `ValueError` for a malformed key, so that it never becomes a path."""
        if not isinstance(key, str) or not _KEY.fullmatch(key):
            raise ValueError(f"{key!r} is no cache key (64 hexadecimal digits). Make one with DetectionCache.key.")
        return self.directory / f"{key}.safetensors"

    def load(self, key: str) -> CacheEntry | None:
        """
        Load an entry, or return `None` if there is none that can be trusted.

        A file that is damaged, or has another schema or key, is ignored with a warning that names it. Storing the
        result again replaces it.
        """
        path = self.path(key)
        try:
            with safe_open(path, framework="np") as file:
                metadata = file.metadata() or {}
                if metadata.get("schema") != SCHEMA:
                    raise ValueError(f"its schema is {metadata.get('schema')!r}, not {SCHEMA!r}")
                if metadata.get("key") != key:
                    raise ValueError(f"it was stored under another key, {metadata.get('key')!r}")
                arrays = {name: file.get_tensor(name) for name in file.keys()}
            if metadata.get("sha256") != _checksum(key, arrays, metadata["meta"]):
                raise ValueError("its content does not match its checksum")
            return CacheEntry(arrays, json.loads(metadata["meta"]))
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            warnings.warn(f"{path} is no usable cache entry and will be computed again: {error}", stacklevel=2)
            return None

    def store(self, key: str, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any] | None = None) -> Path:
        """
        Store an entry atomically, replacing any earlier one.

        Args:
            key (`str`):
                Made by [`~DetectionCache.key`].
            arrays (`Mapping[str, np.ndarray]`):
                Arrays of numbers or bools, of any shape.
            meta (`Mapping`, *optional*):
                A JSON object.

        Returns:
            `Path`: the file of the entry.

        Raises:
            TypeError: for an array that is not of numbers or bools, or a `meta` that is not JSON-serialisable.
            ValueError: for a malformed key, or a NaN in `meta`.
        """
        path = self.path(key)
        arrays = {name: np.ascontiguousarray(array).reshape(np.shape(array)) for name, array in arrays.items()}
        for name, array in arrays.items():
            if array.dtype.kind not in "biuf":
                raise TypeError(
                    f"the array {name!r} has dtype {array.dtype}; the cache stores numbers and bools only."
                )
        text = _canonical(dict(meta or {}), what="the meta of a cache entry").decode()
        metadata = {"schema": SCHEMA, "key": key, "meta": text, "sha256": _checksum(key, arrays, text)}
        return write_atomic(path, save(arrays, metadata=metadata))


def pack_detections(detections: Sequence[Detections]) -> dict[str, np.ndarray]:
    """
    Pack detections into arrays for the cache. [`unpack_detections`] restores them bit for bit.

    Args:
        detections (`Sequence[Detections]` of length `T`):
            One per frame, with `n` boxes in total.

    Returns:
        `dict[str, np.ndarray]`: `boxes (n, 4)` and `scores (n,)` in float64, `boxes_per_frame (T,)` in int64, and
        `labels`, the UTF-8 bytes of a JSON list of `n` strings.
    """
    labels = [label for frame in detections for label in frame.labels]
    return {
        "boxes": np.concatenate([np.empty((0, 4)), *(np.reshape(frame.boxes, (-1, 4)) for frame in detections)]),
        "scores": np.concatenate([np.empty(0), *(np.reshape(frame.scores, -1) for frame in detections)]),
        "boxes_per_frame": np.array([len(frame.labels) for frame in detections], np.int64),
        "labels": np.frombuffer(json.dumps(labels).encode(), np.uint8),
    }


def unpack_detections(arrays: Mapping[str, np.ndarray]) -> list[Detections]:
    """
    Unpack the arrays of [`pack_detections`] into one [`Detections`] per frame. Other arrays are ignored.

    Raises:
        ValueError: when an array is missing, or their lengths do not match.
    """
    try:
        counts, labels = arrays["boxes_per_frame"].tolist(), json.loads(arrays["labels"].tobytes())
        boxes, scores = arrays["boxes"], arrays["scores"]
    except KeyError as error:
        raise ValueError(f"the arrays {sorted(arrays)} are not packed detections: {error} is missing.") from error
    if not len(boxes) == len(scores) == len(labels) == sum(counts):
        raise ValueError(
            f"the lengths of packed detections do not match: {len(boxes)} boxes, {len(scores)} scores, {len(labels)} "
            f"labels, and {sum(counts)} boxes over all frames."
        )
    detections, start = [], 0
    for count in counts:
        in_frame = slice(start, start + count)
        detections.append(Detections(boxes[in_frame], scores[in_frame], tuple(labels[in_frame])))
        start += count
    return detections


def _canonical(value: Any, *, what: str) -> bytes:
    """Return the canonical JSON of a value (names sorted, no NaN), or raise with `what` in the message."""
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise type(error)(f"{what}: {error}. Use strings, finite numbers, bools, None, lists and dicts.") from error


def _checksum(key: str, arrays: Mapping[str, np.ndarray], meta: str) -> str:
    shapes = {name: [array.dtype.str, array.shape] for name, array in arrays.items()}
    digest = hashlib.sha256(_canonical([key, meta, shapes], what="a cache entry"))
    for name in sorted(arrays):
        digest.update(arrays[name].tobytes())
    return digest.hexdigest()
