"""Place a LoRA file's weights in a transformer: compare the file with the network, load it, and check the result."""

from __future__ import annotations

import logging
import re
from collections import Counter
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, get_peft_model_state_dict
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key

from spatialalign_trl.models.lora_files import PEFT_CONFIG_FILE
from spatialalign_trl.models.lora_formats import LORA_A, LORA_B, LORA_BIAS, MAGNITUDE, LoraFile, LoraModule

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

logger = logging.getLogger(__name__)

# PEFT's settings that say how the weights are used. They are kept.
_KEPT = {
    "r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "lora_bias",
    "lora_dropout", "exclude_modules", "layers_to_transform", "layers_pattern", "base_model_name_or_path",
}  # fmt: skip
# Settings that only say how training started, or where. Initialising again would even change the base (PiSSA).
_IRRELEVANT = {
    "auto_mapping", "peft_type", "peft_version", "task_type", "revision", "inference_mode", "megatron_core",
    "megatron_config", "loftq_config", "eva_config", "corda_config", "lora_ga_config", "init_lora_weights",
    "qalora_group_size", "ensure_weight_tying",
}  # fmt: skip
_INITIALISATIONS = (True, False, "gaussian", "orthogonal", "eva")
"""`init_lora_weights` of adapters that start from the published base."""


@dataclass(frozen=True)
class LoraFit:
    """
    How much of a LoRA file has a place in the transformer.

    Args:
        keys (`int`):
            Number of keys in the file.
        unplaced (`tuple[str, ...]`):
            The keys without a place, in the order of the file.
    """

    keys: int
    unplaced: tuple[str, ...] = ()

    def describe(self) -> str:
        """Return a sentence for logs and cards."""
        if not self.unplaced:
            return f"all {self.keys} keys were placed"
        examples = ", ".join(self.unplaced[:3])
        return (
            f"{len(self.unplaced)} of {self.keys} keys fit nothing in this transformer and were left out ({examples})"
        )


def place_lora(network: torch.nn.Module, lora: LoraFile, pipeline: DiffusionPipeline) -> LoraFit:
    """
    Load a LoRA into a network without adapters, and check that every weight arrived.

    Args:
        network (`torch.nn.Module`):
            The transformer. If this fails, it stays as it was.
        lora ([`LoraFile`]):
            The file.
        pipeline (`DiffusionPipeline`):
            The pipeline of the transformer, whose offloading is suspended while the LoRA is added.

    Returns:
        [`LoraFit`]: which keys of the file have no place in the network.

    Raises:
        ValueError: if nothing in the file fits the network, if a module has another size there, or if the file's
            settings contradict its weights.
    """
    # 1. Compare the file with the network
    modules, unplaced = _find_modules(network, lora)
    config = _peft_settings(network, lora, modules)
    # A copy of each weight: a mapped file is not aligned in memory, and BLAS then rounds differently.
    weights = {
        f"{name}.{part}": module.parts[part].clone()
        for name, module in modules.items()
        for part in (LORA_A, LORA_B, LORA_BIAS, MAGNITUDE)
        if part in module.parts
    }

    # 2. Load it
    trainable = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    try:
        network.load_lora_adapter(
            dict(weights), prefix=None, metadata=config, _pipeline=pipeline, low_cpu_mem_usage=True
        )
        _check_arrival(network, lora, weights)
    except BaseException:
        network.unload_lora()
        for parameter, requires_grad in trainable:
            parameter.requires_grad_(requires_grad)
        raise

    # 3. Say what was left out
    keys = sum(len(module.keys) for module in lora.modules.values()) + len(lora.other_expert_keys)
    fit = LoraFit(keys, (*unplaced, *lora.other_expert_keys))
    if fit.unplaced:
        logger.warning("%s: %s.", lora.path, fit.describe())
    return fit


def _find_modules(network: torch.nn.Module, lora: LoraFile) -> tuple[dict[str, LoraModule], list[str]]:
    """Return the weights by the network's modules, and the keys of modules that the network does not have."""
    sizes = {name: size for name, module in network.named_modules() if (size := _size(module)) is not None}
    underscored = {name.replace(".", "_"): name for name in sizes}
    placed: dict[str, LoraModule] = {}
    unplaced: list[str] = []
    for name, module in lora.modules.items():
        known = name if name in sizes else underscored.get(name)
        if known is None:
            unplaced += module.keys
        elif known in placed:
            raise ValueError(
                f"{lora.path} has weights of {known} twice, under {placed[known].keys[0]!r} and {name!r}."
            )
        else:
            placed[known] = module
    if not placed:
        raise ValueError(
            f"nothing in {str(lora.path)!r} fits the transformer: the file adapts {', '.join(list(lora.modules)[:2])} "
            f"(format: {lora.format}), and this {type(network).__name__} has modules such as "
            f"{', '.join(list(sizes)[:2])}. It was made for another model."
        )
    for name, module in placed.items():
        inputs, outputs = sizes[name]
        found = tuple(module.parts[LORA_A].shape[1:]), module.parts[LORA_B].shape[0]
        if found != (inputs, outputs):
            shown = [*found[0], found[1]], [*inputs, outputs]
            raise ValueError(
                f"{lora.path} was made for a model of another size: its {name} has {shown[0][0]} inputs and "
                f"{shown[0][-1]} outputs, this model's has {shown[1][0]} and {shown[1][-1]}. Load the model that the "
                "LoRA belongs to."
            )
    return placed, unplaced


def _size(module: torch.nn.Module) -> tuple[tuple[int, ...], int] | None:
    """Return the shape of a module's input as `lora_A` sees it, and the number of its outputs; quantised or not."""
    if isinstance(module, (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)):
        return (module.in_channels // module.groups, *module.kernel_size), module.out_channels
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return (module.in_features,), module.out_features
    return None


def _peft_settings(network: torch.nn.Module, lora: LoraFile, modules: dict[str, LoraModule]) -> dict[str, Any]:
    """Return the arguments of a `LoraConfig` that has exactly the placed modules, with their ranks and scales."""
    if lora.config is None or lora.has_alpha_keys:
        return _settings_of_weights(lora, modules)
    settings = _checked_settings(lora)
    patterns = settings.get("rank_pattern") or {}
    for name, module in modules.items():
        rank = patterns.get(get_pattern_key(patterns, name), settings.get("r", 8))
        if rank != module.rank:
            raise ValueError(
                f"{lora.path}: its settings say rank {rank}, but the weights of {name} have rank {module.rank}. The "
                "file was changed after training: get the original."
            )
    # Targets that mean other modules here would add modules without weights.
    try:
        config = LoraConfig(**settings)
        sizes = (name for name, module in network.named_modules() if _size(module) is not None)
        targeted = {name for name in sizes if check_target_module_exists(config, name)}
    except (TypeError, ValueError, re.error) as error:
        raise ValueError(f"{lora.path}: PEFT cannot read its settings ({error}). Get the original file.") from error
    if targeted != set(modules):
        selection = ("exclude_modules", "layers_to_transform", "layers_pattern")
        settings = {name: value for name, value in settings.items() if name not in selection}
        settings["target_modules"] = sorted(modules)
    settings["use_dora"] = any(MAGNITUDE in module.parts for module in modules.values())
    settings["lora_bias"] = any(LORA_BIAS in module.parts for module in modules.values())
    return {name: value for name, value in settings.items() if value is not False}


def _settings_of_weights(lora: LoraFile, modules: dict[str, LoraModule]) -> dict[str, Any]:
    """Return settings made of the weights and the alpha keys; the scale is 1 where nothing says otherwise."""
    if lora.format.startswith("PEFT"):
        logger.warning(
            "%s has no %s beside it, which holds alpha: alpha / rank is taken to be 1.", lora.path, PEFT_CONFIG_FILE
        )
    names = {id(module): name for name, module in lora.modules.items()}
    ranks = {name: module.rank for name, module in modules.items()}
    # Whole numbers as whole numbers, as every trainer writes them.
    alphas = {name: lora.scale(names[id(module)]) * module.rank for name, module in modules.items()}
    alphas = {name: int(alpha) if float(alpha).is_integer() else alpha for name, alpha in alphas.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {f"^{name}": value for name, value in ranks.items() if value != rank},
        "alpha_pattern": {f"^{name}": value for name, value in alphas.items() if value != alpha},
        "target_modules": sorted(modules),
        "use_dora": any(MAGNITUDE in module.parts for module in modules.values()),
        "lora_bias": any(LORA_BIAS in module.parts for module in modules.values()),
    }


def _checked_settings(lora: LoraFile) -> dict[str, Any]:
    """Return the settings that a loader needs; refuse those that change what the weights mean."""
    settings = lora.config or {}
    defaults = {field.name for field in fields(LoraConfig)}
    plain = LoraConfig().to_dict()
    if str(settings.get("peft_type", "LORA")).rpartition(".")[2] != "LORA":
        raise ValueError(f"{lora.path} is an adapter of type {settings['peft_type']}, not a LoRA.")
    if (start := settings.get("init_lora_weights", True)) not in _INITIALISATIONS:
        raise ValueError(
            f"{lora.path} was trained from init_lora_weights={start!r}, which changed the base, so its weights do not "
            "belong to the published one. Convert it with PEFT (path_initial_model_for_weight_conversion)."
        )
    for name, value in settings.items():
        is_default = value in (None, False, plain.get(name)) or value == {} or value == []
        if name not in _KEPT | _IRRELEVANT and not is_default:
            known = "" if name in defaults else " (unknown to the PEFT that is installed)"
            raise ValueError(
                f"{lora.path} was trained with {name}={value!r}{known}, which a plain LoRA cannot repeat. Train it "
                "without."
            )
    return {name: value for name, value in settings.items() if name in _KEPT and value is not None}


def _check_arrival(network: torch.nn.Module, lora: LoraFile, weights: dict[str, torch.Tensor]) -> None:
    """Check that the network's adapter has these weights and no others, and that nothing is without memory."""
    (adapter,) = network.peft_config
    arrived = get_peft_model_state_dict(network, adapter_name=adapter, save_embedding_layers=False)
    wrong = [name for name, parameter in network.named_parameters() if parameter.is_meta]
    wrong = wrong or sorted(arrived.keys() ^ weights.keys())
    wrong = wrong or [
        name for name, value in weights.items() if not torch.equal(arrived[name], value.to(arrived[name]))
    ]
    if wrong:
        raise ValueError(
            f"{lora.path} could not be loaded: {len(wrong)} weights did not arrive in the transformer, such as "
            f"{wrong[0]!r}."
        )
