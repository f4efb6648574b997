"""Attach the LoRA that is trained: a PEFT adapter of the model's transformer; the base without it is the reference."""

import copy
import json
import re
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict

from spatialalign_trl.errors import near_miss, nearest

if TYPE_CHECKING:
    from spatialalign_trl.models.base import VideoModel


ALL_LINEAR = "all-linear"


def default_lora_config(
    model: "VideoModel",
    r: int = 16,
    alpha: int = 16,
    targets: list[str] | str | None = None,
) -> LoraConfig:
    """
    Return the LoRA configuration of SpatialAlign's recipe: `W + (alpha/r)*B*A`.

    There is no dropout, because it would add noise to the policy but not to the reference.

    Args:
        model ([`VideoModel`]):
            The model to adapt.
        r (`int`, *optional*, defaults to `16`):
            Rank of `A` and `B`.
        alpha (`int`, *optional*, defaults to `16`):
            Numerator of the scale.
        targets (`list[str]` or `"all-linear"`, *optional*):
            Names of the modules to adapt, matched at the end of their full names. `None`: the model's
            `default_lora_targets` (Wan: the text projection and the cross-attention's keys and values).
            `"all-linear"`: these and every linear layer of the transformer's blocks.

    Returns:
        [`~peft.LoraConfig`].

    Raises:
        ValueError: if `targets` is another string, or names a module that the transformer does not have.

    Source: SpatialAlign (arXiv 2602.22745), training details.
    """
    if targets is None:
        targets = list(model.default_lora_targets)
    elif targets == ALL_LINEAR:
        targets = sorted({*model.default_lora_targets, *_block_linears(model.transformer)})
    elif isinstance(targets, str):
        raise ValueError(f"targets={targets!r}: expected a list of module names, {ALL_LINEAR!r} or None")
    check_targets(targets, model.transformer)
    return LoraConfig(
        r=r,
        lora_alpha=alpha,
        lora_dropout=0.0,
        target_modules=targets,
        rank_pattern=dict(model.lora_full_rank),
        alpha_pattern=dict(model.lora_full_rank),  # a scale of 1
    )


def check_targets(targets: Collection[str], network: torch.nn.Module) -> None:
    """
    Check that every target of a LoRA is a module of the network. PEFT only asks whether any of them is.

    Args:
        targets (collection of `str`):
            Names of modules, matched at the end of their full names.
        network (`torch.nn.Module`):
            The transformer.

    Raises:
        ValueError: for the first target that matches no module; the message has the nearest name.
    """
    names = [name.replace(".base_layer", "") for name, _ in network.named_modules()]
    for target in targets:
        if any(name == target or name.endswith(f".{target}") for name in names):
            continue
        # The nearest among the names as they would be written: relative to their block.
        relative = {re.sub(r"^.*?\.\d+\.", "", name) for name in names if name}
        if nearest(target, relative):
            hint = near_miss(target, relative).split(" Known:")[0]
        else:
            hint = f"The linear layers of its blocks are {', '.join(sorted(_block_linears(network))) or 'none'}."
        raise ValueError(
            f"lora_target_modules: the transformer has no module {target!r}. {hint} A target is the end of a module's "
            "name; leave lora_target_modules out for the model's default targets."
        )


def attach_lora(model: "VideoModel", peft_config: LoraConfig | None = None, *, seed: int = 0) -> PeftModel:
    """
    Wrap the model's transformer in a [`~peft.PeftModel`] with exactly one adapter, which is trained.

    A transformer without an adapter gets a new one (`B = 0`, so that it computes the same as its base). A transformer
    that already has an adapter, from `model.load_lora` or from an earlier trainer, keeps it, and training continues
    from it. In both cases the reference is the base without any adapter.

    Args:
        model ([`VideoModel`]):
            The model to adapt. Its `transformer` is replaced by the wrapper; the layers inside are the same objects.
        peft_config ([`~peft.LoraConfig`], *optional*):
            Configuration of the new adapter; by default [`default_lora_config`].
        seed (`int`, *optional*, defaults to `0`):
            Seed of the new adapter's `A`, which is then the same on every rank and does not depend on earlier draws.

    Returns:
        [`~peft.PeftModel`]: the wrapper.

    Raises:
        ValueError: if the transformer already has an adapter and `peft_config` is passed, if it has several adapters,
            or if one is merged into the base.
    """
    network = model.transformer
    refuse_merged(network)
    names = list(getattr(network, "peft_config", None) or {})
    if len(names) > 1:
        raise ValueError(f"the transformer has {len(names)} adapters ({', '.join(names)}). Keep the one to train.")
    if names and peft_config is not None:
        raise ValueError(
            f"the transformer already carries the adapter {names[0]!r}. Pass peft_config=None to continue training "
            "it, or unload it first to train a new one."
        )
    if names:
        wrapped = network if isinstance(network, PeftModel) else _rewrap(model, names[0])
    else:
        config = _checked(peft_config or default_lora_config(model), network)
        if isinstance(config.target_modules, (list, set)):  # a string is a regular expression, or PEFT's all-linear
            check_targets(sorted(config.target_modules), network)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            wrapped = get_peft_model(network, config)
    # PEFT would store the folder that the weights were read from.
    wrapped.active_peft_config.base_model_name_or_path = model.name_or_path or None
    wrapped.set_adapter(wrapped.active_adapter)  # an adapter that was loaded for inference is frozen
    for parameter in wrapped.parameters():
        if parameter.requires_grad:  # in half precision small updates would be lost
            parameter.data = parameter.data.float()
    wrapped.config = ReadableConfig(wrapped.config)
    model.transformer = wrapped
    return wrapped


class ReadableConfig(dict):
    """A diffusers network's configuration, with the methods that transformers' trackers call on a configuration."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the network's configuration has no {name!r}") from None

    def to_dict(self) -> dict[str, Any]:
        """Return a copy as a plain dictionary."""
        return dict(self)

    def to_json_string(self) -> str:
        """Return the configuration as JSON; values without a JSON form become strings."""
        return json.dumps(self, indent=2, sort_keys=True, default=str)


def refuse_merged(network: torch.nn.Module) -> None:
    """
    Refuse a network with an adapter merged into its base (`fuse_lora`, `merge_adapter`).

    Its reference would not be the base: switching the adapter off subtracts it again, and rounding leaves different
    weights.

    Args:
        network (`torch.nn.Module`):
            The transformer.

    Raises:
        ValueError: if an adapter is merged.
    """
    for name, layer in network.named_modules():
        merged = getattr(layer, "merged_adapters", None)
        if merged:
            raise ValueError(
                f"the adapter {merged[0]!r} is merged into the base's weights ({name}). Subtracting it does not "
                "restore the same bits, so the reference would be a different model. Load the base again, and load "
                "the LoRA with load_lora (--lora_path), which keeps the two separate."
            )


def _rewrap(model: "VideoModel", name: str) -> PeftModel:
    """Move an adapter that diffusers loaded into a `PeftModel`, with its weights and scale."""
    network = model.transformer
    config = _checked(network.peft_config[name], network)
    config.inference_mode = False
    weights = {f"base_model.model.{key}": value.clone() for key, value in model.lora_state_dict().items()}
    network.unload_lora()  # not `model.unload_lora`, which would also forget a reference set to this policy
    wrapped = get_peft_model(network, config)
    result = set_peft_model_state_dict(wrapped, weights)
    if result.unexpected_keys:
        raise RuntimeError(f"the adapter {name!r} could not be moved; unexpected keys: {result.unexpected_keys[:3]}")
    return wrapped


def _checked(config: LoraConfig, network: torch.nn.Module) -> LoraConfig:
    """Return a copy without the settings that TRL's command line adds for language models."""
    config = copy.deepcopy(config)
    config.base_model_name_or_path = None  # attach_lora sets it; PEFT warns when it overwrites one
    config.task_type = None  # "CAUSAL_LM" would look for a language model's methods
    targets = config.target_modules
    # TRL turns a one-element list into a string, which PEFT would use as a regular expression on full names.
    if isinstance(targets, str) and any(name.endswith(f".{targets}") for name, _ in network.named_modules()):
        config.target_modules = {targets}
    return config


def _block_linears(network: torch.nn.Module) -> set[str]:
    """Return the names, relative to their block, of the linear layers inside numbered blocks."""
    names = set()
    for name, module in network.named_modules():
        parts = name.split(".")
        numbered = [i for i, part in enumerate(parts) if part.isdigit()]
        if isinstance(module, torch.nn.Linear) and numbered and numbered[0] + 1 < len(parts):
            names.add(".".join(parts[numbered[0] + 1 :]))
    return names
