"""LoRA files under other programs' names: the original Wan code's, and ComfyUI's, which are the same with a prefix.

Three formats of one LoRA, here of one module:

    diffusers   transformer.blocks.0.attn2.to_k.lora_A.weight        alpha in the file's metadata
    original    blocks.0.cross_attn.k.lora_A.weight                  alpha folded into lora_B
    comfyui     diffusion_model.blocks.0.cross_attn.k.lora_A.weight  alpha folded into lora_B

`alpha / r` is multiplied into `lora_B`, because nobody agrees on where alpha stands in such a file (diffusers refuses
`text_embedding.0.alpha`, for one); that is exact when `alpha / r` is a power of two, and else rounds once.
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

COMFYUI_PREFIX = "diffusion_model."

_METADATA = "lora_adapter_metadata"
_TRANSFORMERS = ("transformer", "transformer_2")

# diffusers -> original, of modules outside the blocks and of those inside one.
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
        f"{attention}.{ours}": f"{theirs}.{letter}"
        for attention, theirs in (("attn1", "self_attn"), ("attn2", "cross_attn"))
        for ours, letter in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "o"))
    },
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
}
_TO_ORIGINAL = {**_OUTSIDE, **_INSIDE}
_TO_DIFFUSERS = {theirs: ours for ours, theirs in _TO_ORIGINAL.items()}

_BLOCK = re.compile(r"^(blocks\.\d+\.)(.+)$")
# DiffSynth keeps PEFT's adapter name in the key; kohya's trainers say down and up.
_WEIGHT = re.compile(r"^(?P<module>.+)\.(?:lora_(?P<side>A|B|down|up)(?:\.default)?\.weight|(?P<alpha>alpha))$")
_SIDES = {"A": "A", "down": "A", "B": "B", "up": "B"}


@dataclass(frozen=True)
class LoraWeights:
    """
    A LoRA as numbers: the module's output gains `B @ (A @ x)`.

    Args:
        modules (`dict[str, tuple[torch.Tensor, torch.Tensor]]`):
            For every adapted module, under diffusers' name, `A` of shape (r, in) and `B` of shape (out, r) with
            `alpha / r` already in it.
        format (`str`):
            Which of `FORMATS` the file had.
    """

    modules: dict[str, tuple[torch.Tensor, torch.Tensor]]
    format: str


def lora_file(source: str | os.PathLike) -> Path:
    """
    The LoRA file that a path means: the file itself, or the one in a trainer's or a run's folder.

    Raises:
        FileNotFoundError: there is none.
    """
    path = Path(source)
    if path.is_dir():
        if not (path / LORA_FILE).is_file():
            raise FileNotFoundError(f"{path} holds no {LORA_FILE}: name the folder that training wrote, or the file.")
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

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a LoRA, not one of a Wan transformer, or one with parts that other programs read differently
            (DoRA, biases).
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
    sides: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        match = _WEIGHT.match(key.removeprefix(prefix))
        if match is None:
            raise ValueError(
                f"{path}: the key {key!r} is no plain LoRA weight (DoRA and LoRA biases have no form that all readers "
                "share); only lora_A and lora_B can be converted."
            )
        module = match["module"] if lora_format == "diffusers" else _renamed(match["module"], _TO_DIFFUSERS, path)
        sides.setdefault(module, {})[_SIDES.get(match["side"], "alpha")] = tensor
    config = {key.partition(".")[2]: value for key, value in metadata.items()}
    modules = {}
    for module, found in sides.items():
        if not {"A", "B"} <= set(found):
            raise ValueError(f"{path}: {module} has {' and '.join(sorted(found))}, but a LoRA has lora_A and lora_B.")
        scale = _scale(module, found, config)
        modules[module] = (found["A"], found["B"] if scale == 1 else found["B"] * scale)
    return LoraWeights(modules, lora_format)


def to_keys(lora: LoraWeights, lora_format: str) -> dict[str, torch.Tensor]:
    """
    The LoRA's tensors under the keys of a format.

    Args:
        lora ([`LoraWeights`]):
            From [`read_lora`].
        lora_format (`str`):
            `"original"`, `"comfyui"` or `"diffusers"`.

    Raises:
        ValueError: an unknown format; a module that the original Wan code does not have; or a LoRA without a module in
            a block, which diffusers cannot read back.
    """
    _check_format(lora_format)
    if lora_format == "diffusers":
        names = {module: f"transformer.{module}" for module in lora.modules}
    else:
        prefix = COMFYUI_PREFIX if lora_format == "comfyui" else ""
        names = {module: prefix + _renamed(module, _TO_ORIGINAL) for module in lora.modules}
        if not any(_BLOCK.match(module) for module in lora.modules):
            raise ValueError(
                f"this LoRA adapts {', '.join(sorted(lora.modules))} and no transformer block: readers of the "
                f"{lora_format} format, diffusers among them, fail on such a file. Keep it in the diffusers format."
            )
    return {
        f"{name}.lora_{side}.weight": tensor.contiguous()
        for module, name in names.items()
        for side, tensor in zip("AB", lora.modules[module], strict=True)
    }


def export_lora(source: str | os.PathLike, output: str | os.PathLike, lora_format: str = "comfyui") -> Path:
    """
    Write a LoRA in another format.

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
        FileNotFoundError, ValueError: see [`read_lora`] and [`to_keys`]; `output` does not end in `.safetensors`.
    """
    _check_format(lora_format)
    output = Path(output)
    if output.suffix != ".safetensors":
        raise ValueError(f"{output}: the file must end in .safetensors, or its readers will not take it for one.")
    lora = read_lora(source)
    if lora.format == lora_format == "diffusers":  # nothing to convert, and alpha stays where it was
        return write_atomic(output, lora_file(source).read_bytes())
    return write_atomic(output, save(to_keys(lora, lora_format), metadata={"format": "pt"}))


def refuse_other_names(source: str | os.PathLike) -> None:
    """
    Raises:
        ValueError: `source` is a file or folder on this machine whose LoRA a pipeline cannot load under its names.
    """
    path = Path(source)
    if not path.exists() or (path.is_dir() and not (path / LORA_FILE).is_file()):
        return  # a Hub id, or something that loading has an error for
    path = lora_file(path)
    try:
        with safe_open(path, "pt") as file:
            lora_format = _format_of(dict.fromkeys(file.keys()), path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    if lora_format == "original":
        raise ValueError(
            f"{path} holds a LoRA under the names of the original Wan code, which diffusers cannot load. Convert it: "
            f"spatialalign export-lora {path} --format diffusers -o {LORA_FILE}"
        )


def _check_format(lora_format: str) -> None:
    if lora_format not in FORMATS:
        raise ValueError(f"there is no LoRA format {lora_format!r}. {near_miss(lora_format, FORMATS)}")


def _format_of(keys: Mapping[str, Any], path: Path) -> str:
    if not any(_WEIGHT.match(key) for key in keys):
        raise ValueError(f"{path} holds no LoRA weights, but {', '.join(sorted(keys)[:3]) or 'nothing'}.")
    if all(key.startswith(tuple(f"{name}." for name in _TRANSFORMERS)) for key in keys):
        return "diffusers"
    return "comfyui" if all(key.startswith(COMFYUI_PREFIX) for key in keys) else "original"


def _prefix_of(keys: Mapping[str, Any], lora_format: str, path: Path) -> str:
    if lora_format != "diffusers":
        return COMFYUI_PREFIX if lora_format == "comfyui" else ""
    owners = sorted({key.partition(".")[0] for key in keys})
    if len(owners) > 1:
        raise ValueError(f"{path} holds LoRAs of {' and '.join(owners)}: other programs take one file an expert.")
    return f"{owners[0]}."


def _renamed(module: str, names: Mapping[str, str], path: Path | None = None) -> str:
    match = _BLOCK.match(module)
    block, rest = match.groups() if match else ("", module)
    if rest not in names or (rest in _INSIDE or rest in _INSIDE.values()) != bool(block):
        where = f"{path}: " if path else ""
        raise ValueError(
            f"{where}{module!r} is no linear layer of a Wan transformer, and names of other families' original code "
            "are not known here. Keep such a LoRA in the diffusers format."
        )
    return block + names[rest]


def _scale(module: str, found: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> float:
    """`alpha / r` of a module: from a key beside its weights, from the metadata, or 1 as loaders take it then."""
    rank = found["A"].shape[0]
    if "alpha" in found:
        return found["alpha"].item() / rank
    if not config:
        return 1.0
    alpha = config.get("lora_alpha", rank)
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):  # as PEFT matches them
            alpha = value
            break
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
