"""Read a LoRA file under any trainer's names: recognise its format, and bring its keys to diffusers' names.

Trainers agree on what a LoRA is (`B @ (A @ x)`, times `alpha / r`), but not on the keys. What is read here:

    diffusers            transformer.blocks.0.attn2.to_k.lora_A.weight                alpha in the file's metadata
    diffusers, bare      blocks.0.attn2.to_k.lora_A.weight
    PEFT                 base_model.model.blocks.0.attn2.to_k.lora_A.weight           alpha in adapter_config.json
    ComfyUI              diffusion_model.blocks.0.cross_attn.k.lora_down.weight       alpha in keys, or folded in
    original, DiffSynth  blocks.0.cross_attn.k.lora_A.default.weight
    kohya                lora_unet_blocks_0_cross_attn_k.lora_down.weight             alpha in keys

Anything else is refused by what it is. Files are only read as safetensors: a pickle can run code.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft.utils.other import get_pattern_key

from spatialalign_trl.models.lora_files import read_safetensors, read_settings
from spatialalign_trl.models.lora_names import diffusers_name, is_wan_module

TRANSFORMERS = ("transformer", "transformer_2")
LORA_A, LORA_B, LORA_BIAS, MAGNITUDE = "lora_A.weight", "lora_B.weight", "lora_B.bias", "lora_magnitude_vector"

# Prefix -> the format that writes it. Prefixes can follow one another (diffusion_model.base_model.model.).
_PREFIXES = {
    "transformer.": "diffusers",
    "transformer_2.": "diffusers",
    "base_model.model.": "PEFT",
    "model.diffusion_model.": "ComfyUI",
    "diffusion_model.": "ComfyUI",
    "lora_unet_": "kohya",
    "lora_transformer_": "OneTrainer",
    "lycoris_": "LyCORIS",
    "_orig_mod.": "torch.compile",
    "module.": "DistributedDataParallel",
}
_WEIGHT = re.compile(
    r"^(?P<module>.+?)\.(?:"
    r"lora[_.](?P<side>A|B|down|up)(?:\.(?P<adapter>[^.]+))?\.(?P<kind>weight|bias)"
    r"|lora_magnitude_vector(?:\.(?!weight$)(?P<adapter_of_magnitude>[^.]+))?(?:\.weight)?"
    r"|(?P<alpha>alpha))$"
)
_PARTS = {
    **{(side, "weight"): LORA_A for side in ("A", "down")},
    **{(side, "weight"): LORA_B for side in ("B", "up")},
    ("B", "bias"): LORA_BIAS,
}

# What a key that is no LoRA weight belongs to: (pattern, name, why it cannot be loaded).
_OTHER_KINDS = (
    (
        r"\.(diff|diff_b|w_norm|b_norm|set_weight|reshape_weight)$",
        "changes of whole weights, biases or norms",
        "A LoRA adapter has no place for them, and without them the model would be another one. Use a file without "
        "them, or merge this one into the base with the program that made it.",
    ),
    (
        r"\.dora_scale$",
        "magnitudes of DoRA as kohya and ComfyUI write them (dora_scale)",
        "Programs normalise them differently, so their effect is not known. Train or export it as a plain LoRA.",
    ),
    (r"(^|[._])lokr_", "LoKr weights", "Extract a LoRA from it with the program that made it (LyCORIS)."),
    (r"(^|[._])(hada|loha)_", "LoHa weights", "Extract a LoRA from it with the program that made it (LyCORIS)."),
    (r"(^|[._])(oft|boft)_", "OFT weights", "Extract a LoRA from it with the program that made it."),
    (r"\.lora_(mid|t1|t2)\b", "a Tucker decomposition (lora_mid)", "Extract a plain LoRA from it."),
    (r"\.lora_embedding_", "a LoRA of an embedding", "Video transformers have none that could carry it."),
    (r"lora_[A-Za-z]+", "LoRA weights of a kind that is unknown here", "Export it as a plain LoRA."),
    (
        r"\.(weight|bias|scale_shift_table|modulation)$",
        "whole weights",
        "A full model is no LoRA: pass a pipeline's folder as --model_name_or_path. Modules that were trained in full "
        "beside a LoRA (modules_to_save) cannot be loaded with it.",
    ),
)

_READABLE = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class _Weight(NamedTuple):
    """A key without its prefixes: the module, which of its weights this is, and PEFT's name of the adapter."""

    module: str
    part: str
    adapter: str | None


Converter = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]


@dataclass
class LoraModule:
    """
    The weights of one adapted module.

    Args:
        parts (`dict[str, torch.Tensor]`):
            `lora_A.weight` (r, in), `lora_B.weight` (out, r), and if there are any `lora_B.bias` and
            `lora_magnitude_vector` (DoRA).
        alpha (`float`, *optional*):
            From the file's keys; `None` if it has none for the module.
        keys (`list[str]`):
            The keys of the file that these came from.
    """

    parts: dict[str, torch.Tensor] = field(default_factory=dict)
    alpha: float | None = None
    keys: list[str] = field(default_factory=list)

    @property
    def rank(self) -> int:
        return self.parts[LORA_A].shape[0]


@dataclass(frozen=True)
class LoraFile:
    """
    A LoRA file whose every key was understood.

    Args:
        path (`Path`):
            The file.
        format (`str`):
            Its format in words, for messages.
        modules (`dict[str, LoraModule]`):
            Adapted module -> its weights. The names are diffusers' where they are known; a name with underscores that
            belongs to no Wan module stays as it is.
        config (`dict`, *optional*):
            PEFT's settings, from the file's metadata or the `adapter_config.json` beside it.
        other_expert_keys (`tuple[str, ...]`):
            Keys for the expert that was not asked for.
        has_diffusers_names (`bool`):
            Whether diffusers reads the file as it is.
    """

    path: Path
    format: str
    modules: dict[str, LoraModule]
    config: dict[str, Any] | None
    other_expert_keys: tuple[str, ...] = ()
    has_diffusers_names: bool = False

    @property
    def has_alpha_keys(self) -> bool:
        return any(module.alpha is not None for module in self.modules.values())

    def scale(self, name: str) -> float:
        """Return `alpha / r` of a module: by the keys, else by the settings, else 1 as every program reads it."""
        module = self.modules[name]
        if self.has_alpha_keys or self.config is None:
            return 1.0 if module.alpha is None else module.alpha / module.rank
        patterns = self.config.get("alpha_pattern") or {}
        alpha = patterns.get(get_pattern_key(patterns, name), self.config.get("lora_alpha", module.rank))
        return alpha / (math.sqrt(module.rank) if self.config.get("use_rslora") else module.rank)


def parse_lora(path: Path, component: str | None = None, convert: Converter | None = None) -> LoraFile:
    """
    Read a LoRA file.

    Args:
        path (`Path`):
            The file.
        component (`str`, *optional*):
            `"transformer"` or `"transformer_2"`: which expert's weights to take if the file has several.
        convert (`Callable`, *optional*):
            Translates the tensors of a file in another family's original names, which are unknown here.

    Returns:
        [`LoraFile`]: the weights under diffusers' names.

    Raises:
        ValueError: if it is not a safetensors file, or has keys or values that are no LoRA's.
    """
    # 1. Read it, and check that every key belongs to a LoRA
    tensors, metadata = read_safetensors(path)
    if not tensors:
        raise ValueError(f"{path} contains no LoRA weights, but nothing. It was probably not written to its end.")
    _refuse_other_kinds(path, list(tensors))
    if convert is not None and not any(key.startswith("transformer.") for key in tensors):
        tensors = _converted(path, tensors, convert)
        _refuse_other_kinds(path, list(tensors))
    keys = {key: _split_prefix(key) for key in tensors}

    # 2. Choose the expert
    experts = {key: _expert(prefixes) for key, (prefixes, _) in keys.items()}
    expert = _choose_expert(path, set(experts.values()) - {None}, component)
    other_keys = tuple(key for key, named in experts.items() if named not in (None, expert))

    # 3. Group the weights by module
    modules: dict[str, LoraModule] = {}
    adapters: set[str] = set()
    is_plain = True
    for key, (_, rest) in keys.items():
        if key in other_keys:
            continue
        weight = _split_weight(rest)
        name, part = diffusers_name(weight.module), weight.part
        module = modules.setdefault(name, LoraModule())
        adapters |= {weight.adapter} - {None}
        if part in module.parts or (part == "alpha" and module.alpha is not None):
            raise ValueError(f"{path} has {part} of {name} twice, in {key!r} and under another name.")
        _check_values(path, key, tensors[key])
        if part == "alpha":
            module.alpha = _read_alpha(path, key, tensors[key])
        else:
            module.parts[part] = tensors[key]
        module.keys.append(key)
        is_plain &= key == f"transformer.{name}.{part}"
    if len(adapters) > 1:
        raise ValueError(
            f"{path} holds several adapters ({', '.join(sorted(adapters))}), which add up. Save the one to load alone."
        )
    for name, module in modules.items():
        _check_module(path, name, module)

    # 4. Find the settings
    is_peft = any("base_model.model." in prefixes for prefixes, _ in keys.values())
    config = read_settings(path, metadata, expert or "transformer", is_peft=is_peft)
    return LoraFile(path, _format_name(*next(iter(keys.values()))), modules, config, other_keys, is_plain)


def _converted(path: Path, tensors: dict[str, torch.Tensor], convert: Converter) -> dict[str, torch.Tensor]:
    try:
        return convert(dict(tensors))
    except Exception as error:  # any error: these translations are written for complete files of one trainer
        raise ValueError(
            f"{path}: diffusers cannot translate its names, such as {next(iter(tensors))!r} ({error}). Export it "
            "under diffusers' names with the program that made it."
        ) from error


def _split_prefix(key: str) -> tuple[tuple[str, ...], str]:
    """Split a key into the prefixes of trainers, and the rest."""
    prefixes: list[str] = []
    while prefix := next((prefix for prefix in _PREFIXES if key.startswith(prefix)), None):
        prefixes.append(prefix)
        key = key.removeprefix(prefix)
    return tuple(prefixes), key


def _expert(prefixes: tuple[str, ...]) -> str | None:
    return next((prefix[:-1] for prefix in prefixes if prefix[:-1] in TRANSFORMERS), None)


def _split_weight(rest: str) -> _Weight | None:
    """Split a key without its prefixes; `None` if it is no LoRA weight."""
    match = _WEIGHT.match(rest)
    if match is None:
        return None
    if match["alpha"]:
        return _Weight(match["module"], "alpha", None)
    if match["side"] is None:
        return _Weight(match["module"], MAGNITUDE, match["adapter_of_magnitude"])
    part = _PARTS.get((match["side"], match["kind"]))
    return part and _Weight(match["module"], part, match["adapter"])


def _refuse_other_kinds(path: Path, all_keys: list[str]) -> None:
    """Refuse a file with keys that are no LoRA weights, by the rarest kind of them."""
    keys, total = [key for key in all_keys if _split_weight(_split_prefix(key)[1]) is None], len(all_keys)
    if not keys:
        return
    for pattern, kind, remedy in _OTHER_KINDS:
        found = [key for key in keys if re.search(pattern, key)]
        if found:
            none = " contains no LoRA weights" if len(keys) == total else ""
            shown = ", ".join(repr(key) for key in found[:3])
            raise ValueError(f"{path}{none}: {len(found)} of its {total} keys are {kind} ({shown}). {remedy}")
    raise ValueError(f"{path}: {len(keys)} of its {total} keys are no LoRA weights, such as {keys[0]!r}.")


def _choose_expert(path: Path, experts: set[str], component: str | None) -> str | None:
    if len(experts) > 1:
        if component is None:
            raise ValueError(
                f"{path} contains LoRAs of {' and '.join(sorted(experts))}. Other programs need one file per expert: "
                "save them separately."
            )
        return component
    expert = next(iter(experts), None)
    if component == "transformer" and expert == "transformer_2":
        raise ValueError(
            f"{path} is a LoRA of transformer_2, the low-noise expert of a model with two, and the model that is "
            'loaded trains its transformer. Load the other one: model_init_kwargs {"expert": "low_noise"}.'
        )
    return expert


def _check_values(path: Path, key: str, tensor: torch.Tensor) -> None:
    if tensor.dtype not in _READABLE and not key.endswith(".alpha"):
        name = str(tensor.dtype).removeprefix("torch.")
        raise ValueError(f"{path}: {key!r} is of type {name}. Save the LoRA in float32, bfloat16 or float16.")
    wrong = int((~torch.isfinite(tensor.float())).sum())
    if wrong:
        raise ValueError(
            f"{path}: {wrong} of the {tensor.numel()} values of {key!r} are NaN or infinite, so every video would be "
            "broken. Use a checkpoint from before the training diverged."
        )


def _read_alpha(path: Path, key: str, tensor: torch.Tensor) -> float:
    if tensor.numel() != 1 or tensor.item() == 0:
        value = "0, which switches the LoRA off" if tensor.numel() == 1 else f"of shape {tuple(tensor.shape)}"
        raise ValueError(f"{path}: {key!r} is {value}. It must be one number that is not 0.")
    return float(tensor.item())


def _check_module(path: Path, name: str, module: LoraModule) -> None:
    """Check that a module has both factors, and that they fit each other."""
    if not {LORA_A, LORA_B} <= set(module.parts):
        present = [part.split(".")[0].removeprefix("lora_") for part in module.parts]
        present += ["alpha"] if module.alpha is not None else []
        raise ValueError(
            f"{path}: {name} has {' and '.join(sorted(present))}, but a LoRA has lora_A and lora_B. The file is "
            "incomplete."
        )
    factor_a, factor_b = module.parts[LORA_A], module.parts[LORA_B]
    if factor_a.ndim < 2 or factor_b.ndim < 2 or not 0 < factor_a.shape[0] == factor_b.shape[1]:
        raise ValueError(
            f"{path}: {name} has lora_A of shape {tuple(factor_a.shape)} and lora_B of shape {tuple(factor_b.shape)}. "
            "They must be (rank, inputs) and (outputs, rank) with the same rank of at least 1."
        )
    for part in (LORA_BIAS, MAGNITUDE):
        if part in module.parts and module.parts[part].numel() != factor_b.shape[0]:
            raise ValueError(
                f"{path}: {name}.{part} has {module.parts[part].numel()} values, not {factor_b.shape[0]}."
            )


def _format_name(prefixes: tuple[str, ...], rest: str) -> str:
    """Name the format in words, by a key."""
    if prefixes:
        return f"{_PREFIXES[prefixes[0]]} ({prefixes[0]})"
    weight = _split_weight(rest)
    is_diffusers = weight is not None and is_wan_module(weight.module)
    return "diffusers, without its prefix" if is_diffusers else "without a prefix, as in the original code"
