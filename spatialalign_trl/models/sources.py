"""Find a pipeline's files: in the package, in a folder, or on the Hub."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

from spatialalign_trl.errors import explain_hub_errors, near_miss
from spatialalign_trl.files import read_json
from spatialalign_trl.models.tiny import EMBEDDED_MODELS, tiny_model_path

logger = logging.getLogger(__name__)


_HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")


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
