"""Find a pipeline's files: in the package, in a folder, or on the Hub."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

from spatialalign_trl.errors import explain_hub_errors, near_miss
from spatialalign_trl.files import read_json
from spatialalign_trl.models.tiny import EMBEDDED_MODELS, tiny_model_path

logger = logging.getLogger(__name__)


_HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_WHOLE, _BLOCK, _BLOCKS = 1 << 20, 1 << 12, 64
"""Bytes up to which a file is read as a whole; size and number of the blocks that are read of a larger one."""


def resolve_source(name_or_path: str | os.PathLike) -> str:
    """
    Return where to load a model from: the folder of an embedded model, else the name or path itself.

    Args:
        name_or_path (`str` or `os.PathLike`):
            The name of an embedded model, a folder (`~` is expanded) or a Hub id.
    """
    if name_or_path in EMBEDDED_MODELS:
        return str(tiny_model_path(name_or_path))
    return os.path.expanduser(os.fspath(name_or_path))


def optional_file(source: str, name: str, revision: str | None = None) -> Path | None:
    """
    Find a file that a pipeline's folder or repository may have.

    Args:
        source (`str`):
            A folder or a Hub id; anything else has no files.
        name (`str`):
            The file's name.
        revision (`str`, *optional*):
            Branch, tag or commit on the Hub.

    Returns:
        `Path`: the local file. `None` if there is no such file, or if the Hub cannot be reached and the file is not in
        the cache.
    """
    if os.path.isdir(source):
        path = Path(source) / name
        return path if path.is_file() else None
    if not _HUB_ID.match(source):
        return None
    try:
        return Path(hf_hub_download(source, name, revision=revision))
    except LocalEntryNotFoundError:
        if try_to_load_from_cache(source, name, revision=revision) is _CACHED_NO_EXIST:
            return None  # the Hub has said so before
        logger.warning(
            "The Hub could not be reached to look for %s in %s. Going on as if the file did not exist.", name, source
        )
    except (EntryNotFoundError, RepositoryNotFoundError):
        pass
    return None


def read_model_index(source: str, revision: str | None = None) -> dict:
    """
    Read a pipeline's `model_index.json`, from a folder or from the Hub, before any weights are loaded.

    Args:
        source (`str`):
            A folder or a Hub id.
        revision (`str`, *optional*):
            Branch, tag or commit on the Hub.

    Returns:
        `dict`: the index.

    Raises:
        FileNotFoundError: if there is no such folder, repository or revision.
        PermissionError: if the repository is gated.
        ConnectionError: if the Hub cannot be reached and the index is not in the cache.
        ValueError: if it is not a diffusers pipeline.
    """
    not_a_pipeline = (
        "it has no model_index.json, so it is not a diffusers pipeline. Pass the pipeline's own folder or repository "
        "(checkpoints in the authors' format usually have a sister repository with a name ending in '-Diffusers')."
    )
    if os.path.isdir(source):
        path = Path(source) / "model_index.json"
        if not path.is_file():
            raise ValueError(f"{source!r} cannot be loaded: {not_a_pipeline}")
        return read_json(path)
    if os.path.exists(source):
        raise ValueError(f"{source!r} is a file. Pass the folder of a diffusers pipeline.")
    if not _HUB_ID.match(source):
        raise FileNotFoundError(
            f"there is no folder {source!r}, and it is neither a Hub id (owner/name) nor the name of an embedded "
            f"model. {near_miss(source, EMBEDDED_MODELS)}"
        )
    with explain_hub_errors(source, revision):
        try:
            return read_json(hf_hub_download(source, "model_index.json", revision=revision))
        except LocalEntryNotFoundError:  # a subclass of EntryNotFoundError, but it means that the Hub was not reached
            raise
        except EntryNotFoundError as error:
            raise ValueError(f"{source!r} cannot be loaded: {not_a_pipeline}") from error


def hub_id(name_or_path: str) -> str | None:
    """
    Return `name_or_path` if it can be a Hub repository, else `None`.

    Args:
        name_or_path (`str`):
            A model's name or path. It can be a repository if it has the form `owner/name` and no such folder exists.
    """
    looks_like_id = name_or_path.count("/") == 1 and not name_or_path.startswith((".", "/", "~"))
    return name_or_path if looks_like_id and not os.path.exists(name_or_path) else None


def model_fingerprint(name_or_path: str, revision: str | None = None) -> str | None:
    """
    Return a fingerprint of the files of a pipeline, which changes if they are replaced by those of another model.

    It is made of the names and sizes of the files of all components, of the whole content of small files, and of a few
    bytes of every tensor: seconds for 28 GB. It notices weights that were trained further, not a single damaged byte.

    Args:
        name_or_path (`str`):
            The name of an embedded model, a folder or a Hub id.
        revision (`str`, *optional*):
            Branch, tag or commit on the Hub.

    Returns:
        `str`: `"sha256 ..."` for a folder, `"commit ..."` for a repository on the Hub, whose commits never change.
        `None` if there are no files, as for a pipeline that was built in memory.
    """
    source = resolve_source(name_or_path)
    if os.path.isdir(source):
        index = optional_file(source, "model_index.json")
        return None if index is None else f"sha256 {_folder_fingerprint(index)}"
    if not _HUB_ID.match(source):
        return None
    cached = try_to_load_from_cache(source, "model_index.json", revision=revision)  # the model was just loaded
    commit = Path(cached).parent.name if isinstance(cached, str) else ""
    return f"commit {commit}" if _COMMIT.fullmatch(commit) else None


def _folder_fingerprint(index: Path) -> str:
    """Return 16 digits of the hash of `model_index.json` and of the files of the components that it names."""
    content = read_json(index)
    components = [name for name, value in content.items() if isinstance(value, list) and value[:1] != [None]]
    files = [
        path
        for name in sorted(components)
        for path in sorted((index.parent / name).rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(index.parent).parts)
    ]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.relative_to(index.parent).as_posix()} {size}\n".encode())
        with open(path, "rb") as file:
            for start, length in _samples(file, size, path.suffix == ".safetensors"):
                digest.update(os.pread(file.fileno(), length, start))
    return digest.hexdigest()[:16]


def _samples(file: BinaryIO, size: int, has_tensors: bool) -> Iterator[tuple[int, int]]:
    """Choose what to read of a file, as (position, length): all of it, or blocks and a few bytes of every tensor."""
    if size <= _WHOLE:
        yield 0, size
        return
    for number in range(_BLOCKS):
        yield number * max(size - _BLOCK, 0) // (_BLOCKS - 1), _BLOCK
    header_size = int.from_bytes(os.pread(file.fileno(), 8, 0), "little")
    if not has_tensors or header_size > min(size, 100 << 20):
        return
    yield 0, header_size + 8
    try:
        header = json.loads(os.pread(file.fileno(), header_size, 8))
        tensors = [tuple(map(int, entry["data_offsets"])) for name, entry in header.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, AttributeError):
        return  # loading the model says what is wrong with the file
    for start, end in tensors:
        for position in (start, (start + end) // 2):
            if 0 <= position < min(end, size):
                yield 8 + header_size + position, min(64, end - position)
