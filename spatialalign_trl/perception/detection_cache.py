"""What was found in a clip, on disk, so that scoring it again loads no model.

An entry is one safetensors file named by its key: a hash of the clip's digest and of everything else the result
depends on (models, thresholds, words). It holds arrays, a JSON object in the file's metadata, and a checksum over
both. An entry that cannot be trusted is reported and counts as missing, so that it is made again and replaced.
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
"""Raise the number when the meaning of an entry changes: older entries are then made again."""

_KEY = re.compile(r"[0-9a-f]{64}")


class CacheEntry(NamedTuple):
    """What was stored under a key.

    Args:
        arrays (`dict[str, np.ndarray]`): The arrays, bit for bit.
        meta (`dict`): The JSON object beside them.
    """

    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]


class DetectionCache:
    """A folder of entries. Any number of processes may read and write it at the same time.

    Args:
        directory (`str` or `os.PathLike`):
            The folder; made when the first entry is stored.
    """

    def __init__(self, directory: str | os.PathLike) -> None:
        self.directory = Path(directory)
        if self.directory.is_dir():
            remove_leftovers(self.directory)

    @staticmethod
    def digest(video: Video) -> str:
        """
        A hash of a clip, for all keys of what is kept about it: a large clip is not hashed for each of them.

        Args:
            video (`np.ndarray` of shape `(frames, height, width, 3)`, `uint8`):
                The clip; its shape and its pixels count.

        Returns:
            `str`: 64 hexadecimal digits (SHA-256).

        Raises:
            TypeError, ValueError: for something that is no video.
        """
        check_video(video)
        digest = hashlib.sha256(_canonical(video.shape, what="the shape of a clip"))
        digest.update(np.ascontiguousarray(video))
        return digest.hexdigest()

    @staticmethod
    def key(clip: str, **parts: Any) -> str:
        """
        The key of a clip and of what else the result depends on.

        Args:
            clip (`str`):
                From [`~DetectionCache.digest`].
            parts:
                Anything JSON can hold. The order of names, also inside dicts, does not matter.

        Returns:
            `str`: 64 hexadecimal digits (SHA-256).

        Raises:
            TypeError, ValueError: for a part that JSON cannot hold.
        """
        whole = {"schema": SCHEMA, "clip": clip, "parts": parts}
        return hashlib.sha256(_canonical(whole, what="the parts of a cache key")).hexdigest()

    def path(self, key: str) -> Path:
        """The entry's file. A key that is none is refused before it becomes a file name."""
        if not isinstance(key, str) or not _KEY.fullmatch(key):
            raise ValueError(f"{key!r} is no cache key (64 hexadecimal digits); make one with DetectionCache.key.")
        return self.directory / f"{key}.safetensors"

    def load(self, key: str) -> CacheEntry | None:
        """
        An entry, or `None` when there is none that can be trusted.

        A file that is damaged, of another schema or of another key is ignored with a warning that names it; storing
        the result anew replaces it.
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
            warnings.warn(f"{path} is no usable cache entry and will be made again: {error}", stacklevel=2)
            return None

    def store(self, key: str, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any] | None = None) -> Path:
        """
        Store an entry in one step, replacing what was there.

        Args:
            key (`str`):
                From [`~DetectionCache.key`].
            arrays (`Mapping[str, np.ndarray]`):
                Arrays of numbers or bools, of any shape.
            meta (`Mapping`, *optional*):
                A JSON object.

        Returns:
            `Path`: the file.

        Raises:
            TypeError: for an array that is not of numbers or bools, or a `meta` that JSON cannot hold.
            ValueError: for a malformed key, or a NaN in `meta`.
        """
        path = self.path(key)
        arrays = {name: np.ascontiguousarray(array).reshape(np.shape(array)) for name, array in arrays.items()}
        for name, array in arrays.items():
            if array.dtype.kind not in "biuf":
                raise TypeError(f"the array {name!r} has dtype {array.dtype}; the cache holds numbers and bools only.")
        text = _canonical(dict(meta or {}), what="the meta of a cache entry").decode()
        metadata = {"schema": SCHEMA, "key": key, "meta": text, "sha256": _checksum(key, arrays, text)}
        return write_atomic(path, save(arrays, metadata=metadata))


def pack_detections(detections: Sequence[Detections]) -> dict[str, np.ndarray]:
    """
    Detections as arrays for the cache; [`unpack_detections`] gives them back bit for bit.

    Args:
        detections (`Sequence[Detections]` of length `T`):
            One a frame, with `n` boxes altogether.

    Returns:
        `dict[str, np.ndarray]`: `boxes (n, 4)` and `scores (n,)` in float64, `boxes_per_frame (T,)` in int64, and
        `labels`, the UTF-8 bytes of a JSON list of `n` strings.
    """
    labels = [label for found in detections for label in found.labels]
    return {
        "boxes": np.concatenate([np.empty((0, 4)), *(np.reshape(found.boxes, (-1, 4)) for found in detections)]),
        "scores": np.concatenate([np.empty(0), *(np.reshape(found.scores, -1) for found in detections)]),
        "boxes_per_frame": np.array([len(found.labels) for found in detections], np.int64),
        "labels": np.frombuffer(json.dumps(labels).encode(), np.uint8),
    }


def unpack_detections(arrays: Mapping[str, np.ndarray]) -> list[Detections]:
    """
    Detections from the arrays of [`pack_detections`]; further arrays are not read.

    Raises:
        ValueError: when an array is missing or the arrays do not fit each other.
    """
    try:
        counts, labels = arrays["boxes_per_frame"].tolist(), json.loads(arrays["labels"].tobytes())
        boxes, scores = arrays["boxes"], arrays["scores"]
    except KeyError as error:
        raise ValueError(f"the arrays {sorted(arrays)} hold no detections: {error} is missing.") from error
    if not len(boxes) == len(scores) == len(labels) == sum(counts):
        raise ValueError(
            f"detections that do not fit: {len(boxes)} boxes, {len(scores)} scores, {len(labels)} labels, and "
            f"{sum(counts)} boxes over all frames."
        )
    detections, start = [], 0
    for count in counts:
        stretch = slice(start, start + count)
        detections.append(Detections(boxes[stretch], scores[stretch], tuple(labels[stretch])))
        start += count
    return detections


def _canonical(value: Any, *, what: str) -> bytes:
    """The one JSON form of a value: names sorted, nothing that is not JSON."""
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
