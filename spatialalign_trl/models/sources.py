"""Find a pipeline's files: in the package, in a folder, or on the Hub."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

from spatialalign_trl.errors import explain_hub_errors, near_miss
from spatialalign_trl.files import read_json
from spatialalign_trl.models.tiny import EMBEDDED_MODELS, tiny_model_path

logger = logging.getLogger(__name__)


_HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")


def resolve_source(name_or_path: str | os.PathLike) -> str:
    """Where the weights come from: an embedded model's folder for its name, else the name or path as it is."""
    if name_or_path in EMBEDDED_MODELS:
        return str(tiny_model_path(name_or_path))
    return os.path.expanduser(os.fspath(name_or_path))


def optional_file(source: str, name: str, revision: str | None = None) -> Path | None:
    """
    A file of a pipeline's folder or repository that not every one has.

    Args:
        source (`str`):
            A folder or a Hub id; anything else has no files.
        name (`str`):
            The file.
        revision (`str`, *optional*):
            Branch, tag or commit on the Hub.

    Returns:
        `Path`: `None` where there is none, or where the Hub cannot be asked and the cache does not hold it.
    """
    if os.path.isdir(source):
        path = Path(source) / name
        return path if path.is_file() else None
    if not _HUB_ID.match(source):
        return None
    try:
        return Path(hf_hub_download(source, name, revision=revision))
    except LocalEntryNotFoundError:
        logger.warning("the Hub could not be asked whether %s holds %s; it is taken to hold none.", source, name)
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
        FileNotFoundError: when there is no such folder, repository or revision.
        PermissionError: when the repository is gated.
        ConnectionError: when the Hub cannot be reached and the index is not in the cache.
        ValueError: when it is not a diffusers pipeline.
    """
    not_a_pipeline = (
        "it has no model_index.json, so it is not a diffusers pipeline. Pass the pipeline's own folder or repository "
        "(checkpoints in the authors' format usually have a sister repository ending in '-Diffusers')."
    )
    if os.path.isdir(source):
        path = Path(source) / "model_index.json"
        if not path.is_file():
            raise ValueError(f"{source!r} cannot be loaded: {not_a_pipeline}")
        return read_json(path)
    if os.path.exists(source):
        raise ValueError(f"{source!r} is a file; pass the folder of a diffusers pipeline.")
    if not _HUB_ID.match(source):
        raise FileNotFoundError(
            f"there is no folder {source!r}, it is no Hub id (owner/name) either, and of the embedded models none is "
            f"called so. {near_miss(source, EMBEDDED_MODELS)}"
        )
    with explain_hub_errors(source, revision):
        try:
            return read_json(hf_hub_download(source, "model_index.json", revision=revision))
        except LocalEntryNotFoundError:  # the Hub was not asked
            raise
        except EntryNotFoundError as error:
            raise ValueError(f"{source!r} cannot be loaded: {not_a_pipeline}") from error


def hub_id(name_or_path: str) -> str | None:
    """`name_or_path` if it can be a Hub repository (`owner/name`, and no folder of that name here), else `None`."""
    looks_like_id = name_or_path.count("/") == 1 and not name_or_path.startswith((".", "/", "~"))
    return name_or_path if looks_like_id and not os.path.exists(name_or_path) else None
