"""Finding a pipeline and reading its index, with errors that say what to do."""

from __future__ import annotations

import logging
import os
import re
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

from spatialalign_trl.errors import near_miss
from spatialalign_trl.files import read_json
from spatialalign_trl.hub_errors import explain_hub_errors
from spatialalign_trl.models.tiny import EMBEDDED_MODELS, tiny_model_path

if TYPE_CHECKING:
    from spatialalign_trl.models.base import VideoModel

logger = logging.getLogger(__name__)

# Pipeline class named by model_index.json -> "module:class" of the adapter that runs it.
ADAPTERS: dict[str, str] = {
    "WanPipeline": "spatialalign_trl.models.wan:WanVideoModel",
    "LTXPipeline": "spatialalign_trl.models.ltx:LTXVideoModel",
    "CogVideoXPipeline": "spatialalign_trl.models.cogvideox:CogVideoXVideoModel",
    "HunyuanVideoPipeline": "spatialalign_trl.models.hunyuan_video:HunyuanVideoModel",
    "HunyuanVideo15Pipeline": "spatialalign_trl.models.hunyuan_video:HunyuanVideo15Model",
}

# What conditions a model beside its prompt -> the adapters that add it.
VARIANTS: dict[str, dict[str, str]] = {
    "context": {"WanPipeline": "spatialalign_trl.models.wan_context:WanContextVideoModel"},
}

_HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")


def load_video_model(name_or_path: str = "tiny", variant: str | None = None, **kwargs: Any) -> VideoModel:
    """
    Load a text-to-video model with the adapter its pipeline class asks for.

    Args:
        name_or_path (`str`, *optional*, defaults to `"tiny"`):
            `"tiny"` or `"tiny_rooms"` for the models embedded in this package, a folder holding a diffusers pipeline,
            or a Hub id such as `"Wan-AI/Wan2.1-T2V-1.3B-Diffusers"`.
        variant (`"context"`, *optional*):
            What conditions the model beside its prompt: `"context"` is a recording of a scene and a camera trajectory
            ([`WanContextVideoModel`]). `None`: nothing.
        kwargs:
            Passed to [`VideoModel.from_pretrained`]: `torch_dtype`, `device`, `revision`, and what the family alone
            knows, such as `expert` of Wan 2.2 A14B.

    Returns:
        [`VideoModel`]: the loaded model.

    Raises:
        FileNotFoundError: when there is no such folder or Hub repository.
        ConnectionError: when the Hub cannot be reached and the model is not in the cache.
        ValueError: when it is not a pipeline that an adapter knows.
    """
    class_name = read_model_index(resolve_source(name_or_path), kwargs.get("revision")).get("_class_name")
    if class_name not in ADAPTERS:
        raise ValueError(
            f"{name_or_path!r} is a pipeline of class {class_name!r}, and no adapter for a text-to-video pipeline "
            f"of that class exists here. {near_miss(str(class_name), ADAPTERS)}"
        )
    adapters = ADAPTERS
    if variant is not None:
        if variant not in VARIANTS:
            raise ValueError(f"there is no variant {variant!r}. {near_miss(variant, VARIANTS)}")
        adapters = VARIANTS[variant]
        if class_name not in adapters:
            raise ValueError(f"{name_or_path!r} is a {class_name}; variant {variant!r} exists of {sorted(adapters)}.")
    module, adapter = adapters[class_name].split(":")
    return getattr(import_module(module), adapter).from_pretrained(name_or_path, **kwargs)


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
