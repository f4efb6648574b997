"""Convert LoRA files between the key names of diffusers, of the original Wan code, and of ComfyUI.

The three formats that are written, shown for one module:

    diffusers   transformer.blocks.0.attn2.to_k.lora_A.weight
    original    blocks.0.cross_attn.k.lora_A.weight
    comfyui     diffusion_model.blocks.0.cross_attn.k.lora_A.weight

`alpha / r` is multiplied into `lora_B`, because programs disagree on where such a file stores alpha (diffusers refuses
`text_embedding.0.alpha`, for example). That is exact if `alpha / r` is a power of two, and rounds once otherwise.
`lora_formats` lists the formats that are read.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save

from spatialalign_trl.errors import near_miss
from spatialalign_trl.files import write_atomic
from spatialalign_trl.models.lora_files import LORA_FILE, PEFT_FILE, local_lora_file
from spatialalign_trl.models.lora_formats import (
    LORA_A,
    LORA_B,
    LORA_BIAS,
    MAGNITUDE,
    LoraFile,
    parse_lora,
)
from spatialalign_trl.models.lora_names import BLOCK, TO_ORIGINAL, is_wan_module, renamed

FORMATS = ("original", "comfyui", "diffusers")
"""The formats that can be written."""

COMFYUI_PREFIX = "diffusion_model."


@dataclass(frozen=True)
class LoraWeights:
    """
    The weights of a LoRA, which adds `B @ (A @ x)` to the output of a module.

    Args:
        modules (`dict[str, tuple[torch.Tensor, torch.Tensor]]`):
            Adapted module, under diffusers' name -> `A` of shape (r, in), and `B` of shape (out, r) already multiplied
            by `alpha / r`.
        format (`str`):
            The file's format, in words.
        extras (`dict[str, torch.Tensor]`):
            Weights beside A and B under PEFT's names: magnitudes of DoRA, and biases already multiplied by
            `alpha / r`.
    """

    modules: dict[str, tuple[torch.Tensor, torch.Tensor]]
    format: str
    extras: dict[str, torch.Tensor] = field(default_factory=dict)


def read_lora(source: str | os.PathLike) -> LoraWeights:
    """
    Read a LoRA file in any format.

    Args:
        source (`str` or `os.PathLike`):
            A folder with `pytorch_lora_weights.safetensors`, or a safetensors file.

    Returns:
        [`LoraWeights`]: the weights under diffusers' module names, and the file's format.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a LoRA, or has parts that no LoRA holds; see [`lora_formats.parse_lora`].
    """
    return _scaled(parse_lora(local_lora_file(source)))


def _scaled(lora: LoraFile) -> LoraWeights:
    modules, extras = {}, {}
    for name, module in lora.modules.items():
        scale = lora.scale(name)
        factor_b = module.parts[LORA_B]
        modules[name] = (module.parts[LORA_A], factor_b if scale == 1 else factor_b * scale)
        if MAGNITUDE in module.parts:
            extras[f"{name}.{MAGNITUDE}"] = module.parts[MAGNITUDE]
        if LORA_BIAS in module.parts:
            extras[f"{name}.{LORA_BIAS}"] = module.parts[LORA_BIAS] * scale
    return LoraWeights(modules, lora.format, extras)


def to_keys(lora: LoraWeights, lora_format: str) -> dict[str, torch.Tensor]:
    """
    Return the LoRA's tensors under the keys of a format.

    Args:
        lora ([`LoraWeights`]):
            From [`read_lora`].
        lora_format (`str`):
            `"original"`, `"comfyui"` or `"diffusers"`.

    Raises:
        ValueError: if the format is unknown, a module's name in it is unknown, the format has no place for DoRA or
            biases, or the LoRA adapts no module in a block, so that diffusers could not read it back.
    """
    _check_format(lora_format)
    if lora_format == "diffusers":
        _check_diffusers_names(lora)
        names = {module: f"transformer.{module}" for module in lora.modules}
    else:
        prefix = COMFYUI_PREFIX if lora_format == "comfyui" else ""
        names = {module: prefix + renamed(module) for module in lora.modules}
        if lora.extras:
            raise ValueError(
                f"the {lora_format} format has no place for {next(iter(lora.extras))!r} that all programs read alike "
                "(ComfyUI divides DoRA's magnitudes by the norms of the base, training by those of base + LoRA). "
                "Only lora_A and lora_B can be converted: use --format diffusers, or train a plain LoRA."
            )
        if not any(BLOCK.match(module) for module in lora.modules):
            raise ValueError(
                f"this LoRA adapts {', '.join(sorted(lora.modules))} and no transformer block. Programs that read the "
                f"{lora_format} format, including diffusers, fail on such a file. Keep it in the diffusers format."
            )
    factors = {
        f"{name}.lora_{side}.weight": tensor.contiguous()
        for module, name in names.items()
        for side, tensor in zip("AB", lora.modules[module], strict=True)
    }
    return factors | {f"transformer.{name}": tensor.contiguous() for name, tensor in lora.extras.items()}


def _check_diffusers_names(lora: LoraWeights) -> None:
    """Refuse names of which it is not known that they are diffusers'."""
    unknown = [module for module in lora.modules if not is_wan_module(module)]
    if unknown and not lora.format.startswith(("diffusers", "PEFT")):
        raise ValueError(
            f"{unknown[0]!r} (format: {lora.format}) is not a linear layer of a Wan transformer, and the names in "
            "other families' original code are unknown here. Pass such a file to --lora_path as it is: the loaded "
            "model knows its own names."
        )


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
    lora = parse_lora(local_lora_file(source))
    if lora_format == "diffusers" and lora.has_diffusers_names:  # copy the file, so that alpha stays in its metadata
        return write_atomic(output, lora.path.read_bytes())
    return write_atomic(output, save(to_keys(_scaled(lora), lora_format), metadata={"format": "pt"}))


def refuse_unreadable_lora(source: str | os.PathLike) -> None:
    """
    Refuse a local LoRA that no model can load, before one is loaded.

    Args:
        source (`str` or `os.PathLike`):
            A LoRA file, a folder, or a Hub id (which is not checked).

    Raises:
        ValueError: see [`lora_formats.parse_lora`].
    """
    path = Path(source).expanduser()
    if path.is_file() or any((path / name).is_file() for name in (LORA_FILE, PEFT_FILE)):
        # Which expert is loaded is not known yet, and either will do.
        parse_lora(local_lora_file(path), "transformer_2")


def _check_format(lora_format: str) -> None:
    if lora_format not in FORMATS:
        raise ValueError(f"there is no LoRA format {lora_format!r}. {near_miss(lora_format, FORMATS)}")


# Scripts that make LoRA files for trials use these names.
_TO_ORIGINAL, _renamed = TO_ORIGINAL, renamed
