"""Convert LoRA files between the key names of diffusers, of the original Wan code, and of ComfyUI.

The three formats of a LoRA, shown for one module:

    diffusers   transformer.blocks.0.attn2.to_k.lora_A.weight        alpha in the file's metadata
    original    blocks.0.cross_attn.k.lora_A.weight                  alpha folded into lora_B
    comfyui     diffusion_model.blocks.0.cross_attn.k.lora_A.weight  alpha folded into lora_B

`alpha / r` is multiplied into `lora_B`, because programs disagree on where such a file stores alpha (diffusers refuses
`text_embedding.0.alpha`, for example). That is exact if `alpha / r` is a power of two, and rounds once otherwise.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from spatialalign_trl.errors import near_miss
from spatialalign_trl.files import write_atomic
from spatialalign_trl.models.lora import LORA_FILE

FORMATS = ("original", "comfyui", "diffusers")
"""The formats that can be read and written."""

COMFYUI_PREFIX = "diffusion_model."

_METADATA = "lora_adapter_metadata"
_TRANSFORMERS = ("transformer", "transformer_2")

# Module names in diffusers -> in the original code, outside the transformer blocks and inside a block.
_OUTSIDE = {
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "proj_out": "head.head",
}
_INSIDE = {
    **{
        f"{attention}.{projection}": f"{original_attention}.{letter}"
        for attention, original_attention in (("attn1", "self_attn"), ("attn2", "cross_attn"))
        for projection, letter in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "o"))
    },
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
}
_TO_ORIGINAL = {**_OUTSIDE, **_INSIDE}
_TO_DIFFUSERS = {original: name for name, original in _TO_ORIGINAL.items()}

_BLOCK = re.compile(r"^(blocks\.\d+\.)(.+)$")
# DiffSynth keeps PEFT's adapter name in the key. kohya's trainers write down and up.
_WEIGHT = re.compile(r"^(?P<module>.+)\.(?:lora_(?P<side>A|B|down|up)(?:\.default)?\.weight|(?P<alpha>alpha))$")
_SIDES = {"A": "A", "down": "A", "B": "B", "up": "B"}


@dataclass(frozen=True)
class LoraWeights:
    """
    The weights of a LoRA, which adds `B @ (A @ x)` to the output of a module.

    Args:
        modules (`dict[str, tuple[torch.Tensor, torch.Tensor]]`):
            Adapted module, under diffusers' name -> `A` of shape (r, in), and `B` of shape (out, r) already multiplied
            by `alpha / r`.
        format (`str`):
            The file's format, one of `FORMATS`.
    """

    modules: dict[str, tuple[torch.Tensor, torch.Tensor]]
    format: str


def lora_file(source: str | os.PathLike) -> Path:
    """
    Find the LoRA file of a path.

    Args:
        source (`str` or `os.PathLike`):
            The file itself, or the folder of a trainer or a run that contains it.

    Returns:
        `Path`: the file.

    Raises:
        FileNotFoundError: if there is no such file.
    """
    path = Path(source)
    if path.is_dir():
        if not (path / LORA_FILE).is_file():
            raise FileNotFoundError(
                f"{path} contains no {LORA_FILE}. Pass the folder that training wrote, or the file itself."
            )
        return path / LORA_FILE
    if not path.is_file():
        raise FileNotFoundError(f"there is no LoRA file or folder {path}.")
    return path


def read_lora(source: str | os.PathLike) -> LoraWeights:
    """
    Read a LoRA of a Wan transformer in any of the three formats.

    Args:
        source (`str` or `os.PathLike`):
            A folder with `pytorch_lora_weights.safetensors`, or a safetensors file.

    Returns:
        [`LoraWeights`]: the weights under diffusers' module names, and the file's format.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a LoRA of a Wan transformer, or has parts that programs read differently (DoRA,
            biases).
    """
    path = lora_file(source)
    try:
        with safe_open(path, "pt") as file:
            metadata = json.loads((file.metadata() or {}).get(_METADATA, "{}"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    lora_format = _format_of(tensors, path)
    prefix = _prefix_of(tensors, lora_format, path)

    # 1. Group the tensors by module, under diffusers' names
    sides: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        match = _WEIGHT.match(key.removeprefix(prefix))
        if match is None:
            raise ValueError(
                f"{path}: the key {key!r} is not a plain LoRA weight. Only lora_A and lora_B can be converted: DoRA "
                "and LoRA biases have no form that all programs share."
            )
        module = match["module"] if lora_format == "diffusers" else _renamed(match["module"], _TO_DIFFUSERS, path)
        sides.setdefault(module, {})[_SIDES.get(match["side"], "alpha")] = tensor

    # 2. Multiply alpha / r into B
    config = {key.partition(".")[2]: value for key, value in metadata.items()}
    modules = {}
    for module, tensors_of_module in sides.items():
        if not {"A", "B"} <= set(tensors_of_module):
            raise ValueError(
                f"{path}: {module} has {' and '.join(sorted(tensors_of_module))}, but a LoRA has lora_A and lora_B."
            )
        scale = _scale(module, tensors_of_module, config)
        factor_a, factor_b = tensors_of_module["A"], tensors_of_module["B"]
        modules[module] = (factor_a, factor_b if scale == 1 else factor_b * scale)
    return LoraWeights(modules, lora_format)


def to_keys(lora: LoraWeights, lora_format: str) -> dict[str, torch.Tensor]:
    """
    Return the LoRA's tensors under the keys of a format.

    Args:
        lora ([`LoraWeights`]):
            From [`read_lora`].
        lora_format (`str`):
            `"original"`, `"comfyui"` or `"diffusers"`.

    Raises:
        ValueError: if the format is unknown, a module does not exist in the original Wan code, or the LoRA adapts no
            module in a block, so that diffusers could not read it back.
    """
    _check_format(lora_format)
    if lora_format == "diffusers":
        names = {module: f"transformer.{module}" for module in lora.modules}
    else:
        prefix = COMFYUI_PREFIX if lora_format == "comfyui" else ""
        names = {module: prefix + _renamed(module, _TO_ORIGINAL) for module in lora.modules}
        if not any(_BLOCK.match(module) for module in lora.modules):
            raise ValueError(
                f"this LoRA adapts {', '.join(sorted(lora.modules))} and no transformer block. Programs that read the "
                f"{lora_format} format, including diffusers, fail on such a file. Keep it in the diffusers format."
            )
    return {
        f"{name}.lora_{side}.weight": tensor.contiguous()
        for module, name in names.items()
        for side, tensor in zip("AB", lora.modules[module], strict=True)
    }


def export_lora(source: str | os.PathLike, output: str | os.PathLike, lora_format: str = "comfyui") -> Path:
    """
    Convert a LoRA file to another format.

    Args:
        source (`str` or `os.PathLike`):
            A folder with `pytorch_lora_weights.safetensors`, or a safetensors file, in any format.
        output (`str` or `os.PathLike`):
            The file to write.
        lora_format (`str`, *optional*, defaults to `"comfyui"`):
            `"original"`, `"comfyui"` or `"diffusers"`.

    Returns:
        `Path`: the file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if `output` does not end in `.safetensors`; see also [`read_lora`] and [`to_keys`].
    """
    _check_format(lora_format)
    output = Path(output)
    if output.suffix != ".safetensors":
        raise ValueError(f"{output}: the file name must end in .safetensors, or other programs will not recognise it.")
    lora = read_lora(source)
    if lora.format == lora_format == "diffusers":  # copy the file, so that alpha stays in its metadata
        return write_atomic(output, lora_file(source).read_bytes())
    return write_atomic(output, save(to_keys(lora, lora_format), metadata={"format": "pt"}))


def refuse_other_names(source: str | os.PathLike) -> None:
    """
    Refuse a local LoRA in the original format, which a pipeline cannot load.

    Args:
        source (`str` or `os.PathLike`):
            A LoRA file, a folder, or a Hub id (which is not checked).

    Raises:
        ValueError: if the LoRA has the key names of the original Wan code, or the file is damaged.
    """
    path = Path(source)
    if not path.exists() or (path.is_dir() and not (path / LORA_FILE).is_file()):
        return  # a Hub id, or a path for which loading raises its own error
    path = lora_file(path)
    try:
        with safe_open(path, "pt") as file:
            lora_format = _format_of(dict.fromkeys(file.keys()), path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    if lora_format == "original":
        raise ValueError(
            f"{path} has the key names of the original Wan code, which diffusers cannot load. Convert it with "
            f"spatialalign export-lora {path} --format diffusers -o {LORA_FILE}"
        )


def _check_format(lora_format: str) -> None:
    if lora_format not in FORMATS:
        raise ValueError(f"there is no LoRA format {lora_format!r}. {near_miss(lora_format, FORMATS)}")


def _format_of(keys: Mapping[str, Any], path: Path) -> str:
    """Recognise the format by the prefix that all keys share."""
    if not any(_WEIGHT.match(key) for key in keys):
        raise ValueError(f"{path} contains no LoRA weights, but {', '.join(sorted(keys)[:3]) or 'nothing'}.")
    if all(key.startswith(tuple(f"{name}." for name in _TRANSFORMERS)) for key in keys):
        return "diffusers"
    return "comfyui" if all(key.startswith(COMFYUI_PREFIX) for key in keys) else "original"


def _prefix_of(keys: Mapping[str, Any], lora_format: str, path: Path) -> str:
    if lora_format != "diffusers":
        return COMFYUI_PREFIX if lora_format == "comfyui" else ""
    transformers = sorted({key.partition(".")[0] for key in keys})
    if len(transformers) > 1:
        raise ValueError(
            f"{path} contains LoRAs of {' and '.join(transformers)}. Other programs need one file per expert: save "
            "them separately."
        )
    return f"{transformers[0]}."


def _renamed(module: str, names: Mapping[str, str], path: Path | None = None) -> str:
    """Translate a module's name; `path` is for errors."""
    match = _BLOCK.match(module)
    block, layer = match.groups() if match else ("", module)
    if layer not in names or (layer in _INSIDE or layer in _INSIDE.values()) != bool(block):
        where = f"{path}: " if path else ""
        raise ValueError(
            f"{where}{module!r} is not a linear layer of a Wan transformer, and the names in other families' original "
            "code are unknown here. Keep such a LoRA in the diffusers format."
        )
    return block + names[layer]


def _scale(module: str, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> float:
    """Return `alpha / r` of a module, from its alpha key or the metadata. Without either it is 1, as for loaders."""
    rank = tensors["A"].shape[0]
    if "alpha" in tensors:
        return tensors["alpha"].item() / rank
    if not config:
        return 1.0
    alpha = config.get("lora_alpha", rank)
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):  # PEFT's matching
            alpha = value
            break
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
