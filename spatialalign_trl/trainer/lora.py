"""The LoRA that is trained: a PEFT adapter around the model's transformer, whose base stays the reference."""

import copy
import json
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict

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
    The LoRA of SpatialAlign's recipe: `W + (alpha/r)*B*A`, no dropout (it would add noise to the policy alone).

    Args:
        model ([`VideoModel`]):
            Says which modules are adapted by default.
        r (`int`, *optional*, defaults to `16`):
            Rank.
        alpha (`int`, *optional*, defaults to `16`):
            Scale numerator.
        targets (`list[str]` or `"all-linear"`, *optional*):
            Names of modules, matched at the end of their full names. `None`: the model's `default_lora_targets` (Wan:
            the text projection and the cross-attention's keys and values). `"all-linear"`: these and every linear
            layer of the transformer's blocks.

    Source: SpatialAlign (arXiv 2602.22745), training details.
    """
    if targets is None:
        targets = list(model.default_lora_targets)
    elif targets == ALL_LINEAR:
        targets = sorted({*model.default_lora_targets, *_block_linears(model.transformer)})
    elif isinstance(targets, str):
        raise ValueError(f"targets={targets!r}: expected a list of module names, {ALL_LINEAR!r} or None")
    return LoraConfig(
        r=r,
        lora_alpha=alpha,
        lora_dropout=0.0,
        target_modules=targets,
        rank_pattern=dict(model.lora_full_rank),
        alpha_pattern=dict(model.lora_full_rank),  # a scale of 1
    )


def attach_lora(model: "VideoModel", peft_config: LoraConfig | None = None, *, seed: int = 0) -> PeftModel:
    """
    Makes the model's transformer a [`~peft.PeftModel`] with exactly one adapter, the one to be trained.

    A transformer without an adapter gets a new one (`B = 0`, so that it computes what its base does). One that already
    carries an adapter - from `model.load_lora`, or an earlier trainer - keeps it and goes on from there; the
    reference is the base without any adapter in either case.

    Args:
        model ([`VideoModel`]):
            Its `transformer` is replaced by the returned wrapper (the layers inside are the same objects).
        peft_config ([`~peft.LoraConfig`], *optional*):
            The new adapter; `None` is [`default_lora_config`].
        seed (`int`, *optional*, defaults to `0`):
            Seed of the new adapter's `A`: alike on every rank, independent of what was drawn before.

    Raises:
        ValueError: an adapter is there and `peft_config` is given too, several adapters are there, or one is merged
            into the base.
    """
    network = model.transformer
    refuse_merged(network)
    names = list(getattr(network, "peft_config", None) or {})
    if len(names) > 1:
        raise ValueError(f"the transformer carries {len(names)} adapters ({', '.join(names)}): keep one to train")
    if names and peft_config is not None:
        raise ValueError(
            f"the transformer already carries the adapter {names[0]!r}: pass peft_config=None to go on training it, "
            "or unload it first to train a new one"
        )
    if names:
        wrapped = network if isinstance(network, PeftModel) else _rewrap(model, names[0])
    else:
        config = _checked(peft_config or default_lora_config(model), network)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            wrapped = get_peft_model(network, config)
    # PEFT's own guess is the folder the weights were read from.
    wrapped.active_peft_config.base_model_name_or_path = model.name_or_path or None
    wrapped.set_adapter(wrapped.active_adapter)  # an adapter loaded for inference is frozen
    for parameter in wrapped.parameters():
        if parameter.requires_grad:  # half-precision weights would lose small updates
            parameter.data = parameter.data.float()
    wrapped.config = ReadableConfig(wrapped.config)
    model.transformer = wrapped
    return wrapped


class ReadableConfig(dict):
    """A diffusers network's configuration with the methods by which transformers' trackers read a language model's."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the network's configuration has no {name!r}") from None

    def to_dict(self) -> dict[str, Any]:
        """A copy."""
        return dict(self)

    def to_json_string(self) -> str:
        """The configuration as JSON; what has no JSON form as its text."""
        return json.dumps(self, indent=2, sort_keys=True, default=str)


def refuse_merged(network: torch.nn.Module) -> None:
    """
    Raises:
        ValueError: an adapter is merged into the base (`fuse_lora`, `merge_adapter`). The reference would no longer be
            the base: switching the adapter off takes it out again, and rounding leaves other weights behind.
    """
    for name, layer in network.named_modules():
        merged = getattr(layer, "merged_adapters", None)
        if merged:
            raise ValueError(
                f"the adapter {merged[0]!r} is merged into the base's weights ({name}): taking it out again does not "
                "give back the same bits, so the reference would be another model. Load the base anew, and the LoRA "
                "with load_lora (--lora_path), which keeps the two apart."
            )


def _rewrap(model: "VideoModel", name: str) -> PeftModel:
    """Turns an adapter that diffusers loaded into the transformer into a `PeftModel`'s, weights and scale kept."""
    network = model.transformer
    config = _checked(network.peft_config[name], network)
    config.inference_mode = False
    weights = {f"base_model.model.{key}": value.clone() for key, value in model.lora_state_dict().items()}
    network.unload_lora()  # not the model's, which would forget a reference set to this policy
    wrapped = get_peft_model(network, config)
    result = set_peft_model_state_dict(wrapped, weights)
    if result.unexpected_keys:
        raise RuntimeError(f"the adapter {name!r} could not be taken over; left over: {result.unexpected_keys[:3]}")
    return wrapped


def _checked(config: LoraConfig, network: torch.nn.Module) -> LoraConfig:
    """A copy without what TRL's command line puts in for language models."""
    config = copy.deepcopy(config)
    config.base_model_name_or_path = None  # set below; PEFT warns when it overwrites one
    config.task_type = None  # "CAUSAL_LM" would look for a language model's methods
    targets = config.target_modules
    # PEFT takes a string for a regular expression over full names; TRL makes one out of a one-element list.
    if isinstance(targets, str) and any(name.endswith(f".{targets}") for name, _ in network.named_modules()):
        config.target_modules = {targets}
    return config


def _block_linears(network: torch.nn.Module) -> set[str]:
    """Names, counted from the block on, of the linear layers that lie inside a numbered block."""
    names = set()
    for name, module in network.named_modules():
        parts = name.split(".")
        numbered = [i for i, part in enumerate(parts) if part.isdigit()]
        if isinstance(module, torch.nn.Linear) and numbered and numbered[0] + 1 < len(parts):
            names.add(".".join(parts[numbered[0] + 1 :]))
    return names
