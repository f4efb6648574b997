"""Video models: one file per family behind one small interface ([`VideoModel`]).

Names are resolved when they are first used, so that importing this package needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .base import VideoModel

# Pipeline class named by model_index.json -> "module:class" of the adapter that runs it.
ADAPTERS: dict[str, str] = {"WanPipeline": "spatialalign_trl.models.wan:WanVideoModel"}

_PUBLIC_NAMES = {
    "Conditioning": "encoding",
    "SamplingSettings": "settings",
    "VideoModel": "base",
    "WanVideoModel": "wan",
    "TINY_MODEL": "tiny",
    "tiny_model_path": "tiny",
}

__all__ = ["ADAPTERS", "load_video_model", *_PUBLIC_NAMES]


def load_video_model(name_or_path: str = "tiny", **kwargs: Any) -> "VideoModel":
    """
    Load a text-to-video model with the adapter its pipeline class asks for.

    Args:
        name_or_path (`str`, *optional*, defaults to `"tiny"`):
            `"tiny"` for the model embedded in this package, a folder holding a diffusers pipeline, or a Hub id such as
            `"Wan-AI/Wan2.1-T2V-1.3B-Diffusers"`.
        kwargs:
            Passed to [`VideoModel.from_pretrained`]: `torch_dtype`, `device`, `revision`.

    Returns:
        [`VideoModel`]: the loaded model.

    Raises:
        FileNotFoundError: when there is no such folder or Hub repository.
        ConnectionError: when the Hub cannot be reached and the model is not in the cache.
        ValueError: when it is not a pipeline that an adapter knows.
    """
    from ..near_miss import near_miss
    from .loading import read_model_index, resolve_source

    class_name = read_model_index(resolve_source(name_or_path), kwargs.get("revision")).get("_class_name")
    if class_name not in ADAPTERS:
        raise ValueError(
            f"{name_or_path!r} is a pipeline of class {class_name!r}, and no adapter for a text-to-video pipeline "
            "of that "
            f"class exists here. {near_miss(str(class_name), ADAPTERS)}"
        )
    module, adapter = ADAPTERS[class_name].split(":")
    return getattr(import_module(module), adapter).from_pretrained(name_or_path, **kwargs)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC_NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_PUBLIC_NAMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
