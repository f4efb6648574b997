"""Load a video model with the adapter that runs its pipeline class."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from spatialalign_trl.errors import near_miss
from spatialalign_trl.models.sources import read_model_index, resolve_source

if TYPE_CHECKING:
    from spatialalign_trl.models.base import VideoModel


ADAPTERS: dict[str, str] = {
    "WanPipeline": "spatialalign_trl.models.wan:WanVideoModel",
    "LTXPipeline": "spatialalign_trl.models.ltx:LTXVideoModel",
    "CogVideoXPipeline": "spatialalign_trl.models.cogvideox:CogVideoXVideoModel",
    "HunyuanVideoPipeline": "spatialalign_trl.models.hunyuan_video:HunyuanVideoModel",
    "HunyuanVideo15Pipeline": "spatialalign_trl.models.hunyuan_video:HunyuanVideo15Model",
}
"""Pipeline class in `model_index.json` -> `"module:class"` of the adapter that runs it."""

VARIANTS: dict[str, dict[str, str]] = {
    "context": {"WanPipeline": "spatialalign_trl.models.wan_context:WanContextVideoModel"},
}
"""Variant -> the adapters that add it, as in `ADAPTERS`. A variant conditions the model on more than its prompt."""


def load_video_model(name_or_path: str = "tiny", variant: str | None = None, **kwargs: Any) -> VideoModel:
    """
    Load a text-to-video model with the adapter that runs its pipeline class.

    Args:
        name_or_path (`str`, *optional*, defaults to `"tiny"`):
            `"tiny"` or `"tiny_rooms"` for the models embedded in this package, a folder with a diffusers pipeline, or
            a Hub id such as `"Wan-AI/Wan2.1-T2V-1.3B-Diffusers"`.
        variant (`"context"`, *optional*):
            What conditions the model in addition to its prompt. `"context"`: a recording of a scene and a camera
            trajectory ([`WanContextVideoModel`]). `None`: nothing.
        kwargs:
            Passed to [`VideoModel.from_pretrained`]: `torch_dtype`, `device`, `revision`, and the options of the
            family, such as `expert` for Wan 2.2 A14B.

    Returns:
        [`VideoModel`]: the loaded model.

    Raises:
        FileNotFoundError: if there is no such folder or Hub repository.
        ConnectionError: if the Hub cannot be reached and the model is not in the cache.
        ValueError: if no adapter runs the pipeline, or the variant is unknown or does not exist for it.
    """
    class_name = read_model_index(resolve_source(name_or_path), kwargs.get("revision")).get("_class_name")
    if class_name not in ADAPTERS:
        raise ValueError(
            f"{name_or_path!r} is a pipeline of class {class_name!r}, and no adapter runs text-to-video pipelines of "
            f"that class. {near_miss(str(class_name), ADAPTERS)}"
        )
    adapters = ADAPTERS
    if variant is not None:
        if variant not in VARIANTS:
            raise ValueError(f"there is no variant {variant!r}. {near_miss(variant, VARIANTS)}")
        adapters = VARIANTS[variant]
        if class_name not in adapters:
            raise ValueError(
                f"variant={variant!r}: {name_or_path!r} is a {class_name}, and the variant exists only for "
                f"{', '.join(sorted(adapters))}. Leave variant out, or use another model."
            )
    module, adapter = adapters[class_name].split(":")
    return getattr(import_module(module), adapter).from_pretrained(name_or_path, **kwargs)
