"""Switch, save and load the LoRA of a diffusers transformer, whichever library added it.

`peft.get_peft_model` and diffusers' `add_adapter` both put PEFT's layers into the transformer in place, but each has
its own switches, which do not work for the other. The functions here work on the layers themselves, so they work for
both, and do nothing on a transformer without adapters.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper

from spatialalign_trl.files import check_intact, has_checksum, seal_file
from spatialalign_trl.models.lora_files import LORA_FILE, find_lora
from spatialalign_trl.models.lora_formats import parse_lora
from spatialalign_trl.models.lora_loading import LoraFit, place_lora

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def base_network(network: torch.nn.Module) -> torch.nn.Module:
    """Return the transformer inside a `PeftModel` (which PEFT changed in place), or the transformer itself."""
    return network.get_base_model() if isinstance(network, PeftModel) else network


def _adapter_layers(network: torch.nn.Module) -> list[torch.nn.Module]:
    return [layer for layer in network.modules() if isinstance(layer, (BaseTunerLayer, AuxiliaryTrainingWrapper))]


def active_adapters(network: torch.nn.Module) -> list[str]:
    """Return the names of the adapters that affect the output of the network, wrapped in a `PeftModel` or not."""
    names: dict[str, None] = {}
    for layer in _adapter_layers(network):
        if not layer.disable_adapters:
            names.update(dict.fromkeys(layer.active_adapters))
    return list(names)


@contextmanager
def adapter_weights(network: torch.nn.Module, weights: dict[str, torch.Tensor]) -> Iterator[None]:
    """
    Replace the weights of the network's adapter for the length of the block.

    The storage is swapped, not copied: nothing is allocated, and a graph that autograd recorded before stays valid as
    long as the block runs without gradients.

    Args:
        network (`torch.nn.Module`):
            The transformer, wrapped in a `PeftModel` or not, with one active adapter.
        weights (`dict[str, torch.Tensor]`):
            The other weights, named as by [`lora_state_dict`].

    Raises:
        RuntimeError: if the transformer does not have exactly one active adapter.
    """
    base = base_network(network)
    infix = f".{_single_adapter(base)}."
    swapped = [
        (parameter, weights[name.replace(infix, ".")]) for name, parameter in base.named_parameters() if infix in name
    ]
    originals = [parameter.data for parameter, _ in swapped]
    for parameter, value in swapped:
        parameter.data = value.to(parameter.data)
    try:
        yield
    finally:
        for (parameter, _), original in zip(swapped, originals, strict=True):
            parameter.data = original


@contextmanager
def adapters_off(network: torch.nn.Module) -> Iterator[None]:
    """
    Switch all adapters off for the length of the block, so that the network equals its base bit for bit.

    PEFT's switches also freeze the adapters, and switching them on again makes every active adapter trainable, even
    one that was loaded frozen. Therefore this restores which parameters were trainable.

    Args:
        network (`torch.nn.Module`):
            The transformer, wrapped in a `PeftModel` or not.
    """
    layers = [layer for layer in _adapter_layers(network) if not layer.disable_adapters]
    trainable = [(parameter, parameter.requires_grad) for layer in layers for parameter in layer.parameters()]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        for parameter, requires_grad in trainable:
            parameter.requires_grad_(requires_grad)


def _single_adapter(network: torch.nn.Module) -> str:
    """Return the name of the only active adapter, or raise a `RuntimeError`."""
    names = active_adapters(network)
    if len(names) != 1:
        raise RuntimeError(
            f"the transformer has {len(names)} active adapters ({', '.join(names) or 'none'}), but it must have one. "
            "Add one with peft.get_peft_model or transformer.add_adapter, or activate one with set_adapter."
        )
    return names[0]


def lora_state_dict(network: torch.nn.Module, state_dict: dict[str, Any] | None = None) -> dict[str, torch.Tensor]:
    """
    Return the LoRA's weights under diffusers' names (`blocks.0.attn2.to_k.lora_A.weight`).

    Args:
        network (`torch.nn.Module`):
            The transformer, wrapped in a `PeftModel` or not.
        state_dict (`dict`, *optional*):
            A state dict of the `PeftModel` or of the transformer, if it was gathered already (FSDP gathers it from the
            ranks).

    Raises:
        RuntimeError: if the transformer does not have exactly one active adapter.
    """
    base = base_network(network)
    if state_dict is not None:
        state_dict = {key.removeprefix("base_model.model."): value for key, value in state_dict.items()}
    # The default, "auto", looks for the base model's config on the Hub. Video transformers have no word embeddings.
    return get_peft_model_state_dict(
        base, state_dict=state_dict, adapter_name=_single_adapter(base), save_embedding_layers=False
    )


def lora_fingerprint(weights: Mapping[str, torch.Tensor]) -> str:
    """
    Return a hash of a LoRA's weights that identifies the policy, so that samples of two policies are never mixed.

    A hash of the file's bytes would not do, because safetensors writes its metadata in no fixed order.

    Args:
        weights (`dict[str, torch.Tensor]`):
            The weights, named as by [`lora_state_dict`] or as in a saved file (prefixed with `transformer.`).

    Returns:
        `str`: 16 hexadecimal digits.
    """
    digest = hashlib.sha256()
    named = {f"transformer.{name.removeprefix('transformer.')}": tensor for name, tensor in weights.items()}
    for name, tensor in sorted(named.items()):
        digest.update(name.encode() + tensor.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _jsonable(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    # Sets have no JSON form and no fixed order.
    return sorted(value) if isinstance(value, (set, frozenset)) else value


def lora_metadata(network: torch.nn.Module, base_model: str | None = None) -> dict[str, Any]:
    """
    Return the LoRA's configuration in values that JSON can store. A file without it loads with the rank as alpha.

    Settings with their default value are left out: every version of PEFT adds some, and an older PEFT cannot load a
    file with a setting that it does not know.

    Args:
        network (`torch.nn.Module`):
            The transformer, wrapped in a `PeftModel` or not.
        base_model (`str`, *optional*):
            Name of the model that the LoRA belongs to. PEFT's guess is a local path on the training machine.

    Raises:
        RuntimeError: if the transformer does not have exactly one active adapter.
    """
    base = base_network(network)
    config = base.peft_config[_single_adapter(base)]
    defaults = type(config)().to_dict()
    always = {"r", "lora_alpha", "target_modules"}
    # auto_mapping names a Python class on the training machine, which is of no use to a loader.
    never = {"auto_mapping", "base_model_name_or_path", "inference_mode", "task_type"}
    kept = {
        key: _jsonable(value)
        for key, value in config.to_dict().items()
        if key not in never and (key in always or value != defaults.get(key))
    }
    return kept if base_model is None else {**kept, "base_model_name_or_path": base_model}


class LoraMixin:
    """The reference, and saving and loading of the transformer's LoRA."""

    lora_load_options: Mapping[str, Any] = MappingProxyType({})
    """Arguments, in addition to the file, with which diffusers' `pipe.load_lora_weights` loads this model's LoRA."""
    lora_loads_into_transformer: bool = False
    """Whether diffusers' pipeline has no `load_lora_weights`, so that the LoRA is loaded into its transformer."""

    pipeline: DiffusionPipeline
    transformer: torch.nn.Module
    name_or_path: str
    trained_component: str
    base_transformer: torch.nn.Module
    lora_fit: LoraFit | None = None
    """Which keys of the file that [`~LoraMixin.load_lora`] loaded have a place; `None` if none was loaded."""
    _network: torch.nn.Module
    _reference_weights: dict[str, torch.Tensor] | None = None

    def reference(self) -> AbstractContextManager[None]:
        """
        Return a context in which the network computes as the reference.

        The reference is the base, bit for bit and whatever adapters it has, or the policy that
        [`~LoraMixin.set_reference_to_policy`] has kept.
        """
        if self._reference_weights is None:
            return adapters_off(self.transformer)
        return adapter_weights(self.transformer, self._reference_weights)

    def set_reference_to_base(self) -> None:
        """Make the base without its adapter the reference. This is the default."""
        self._reference_weights = None

    def set_reference_to_policy(self) -> None:
        """Make the present policy the reference. It keeps a copy of the adapter and shares the base."""
        self._reference_weights = {name: value.detach().clone() for name, value in self.lora_state_dict().items()}

    @property
    def reference_weights(self) -> dict[str, torch.Tensor] | None:
        """The adapter weights of the reference under diffusers' names; `None` while the reference is the base."""
        return self._reference_weights

    def set_reference_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        """
        Make the base with the given adapter weights the reference.

        Args:
            weights (`dict[str, torch.Tensor]`):
                Adapter weights, named as by [`~LoraMixin.lora_state_dict`].

        Raises:
            ValueError: if the names are not those of the policy's adapter.
        """
        names = set(self.lora_state_dict())
        if names != set(weights):
            differing = sorted(names ^ set(weights))
            raise ValueError(
                f"the reference's adapter does not match the policy's: they differ in {differing[:3]}. Load weights "
                "of an adapter with the same targets."
            )
        self._reference_weights = {name: value.detach().clone() for name, value in weights.items()}

    def update_reference(self, alpha: float) -> None:
        """
        Mix the policy into the reference: `reference = alpha * policy + (1 - alpha) * reference`.

        It mixes the adapter's factors A and B, as moving averages of a LoRA commonly do. That approximates the average
        of the weights while the two adapters are close. The first mix starts from the base (`B = 0`) and is exact.

        Args:
            alpha (`float`):
                Weight of the policy, in (0, 1]. 1 is the same as [`~LoraMixin.set_reference_to_policy`].

        Raises:
            ValueError: if the reference is the base, and the adapter is not a plain LoRA.
        """
        if alpha == 1:
            self.set_reference_to_policy()
            return
        policy = {name: value.detach() for name, value in self.lora_state_dict().items()}
        reference = self._reference_weights
        if reference is None:
            unsupported = [name for name in policy if "lora_A" not in name and "lora_B" not in name]
            if unsupported:
                raise ValueError(
                    f"alpha={alpha}: {unsupported[0]!r} is not a weight of a plain LoRA, so the base cannot be mixed "
                    "in. Use alpha=1."
                )
            reference = {
                name: torch.zeros_like(value) if "lora_B" in name else value for name, value in policy.items()
            }
        self._reference_weights = {
            name: alpha * value + (1 - alpha) * reference[name].to(value) for name, value in policy.items()
        }

    def lora_state_dict(self, state_dict: dict[str, Any] | None = None) -> dict[str, torch.Tensor]:
        """
        Return the LoRA's weights under diffusers' names.

        Args:
            state_dict (`dict`, *optional*):
                A state dict that was gathered already (FSDP).
        """
        return lora_state_dict(self.transformer, state_dict)

    def save_lora(self, directory: str | os.PathLike, state_dict: dict[str, Any] | None = None) -> Path:
        """
        Save the LoRA in the format that `pipe.load_lora_weights` reads.

        The file's metadata holds the LoRA's configuration. A file without it loses alpha.

        Args:
            directory (`str` or `os.PathLike`):
                The folder for the file `pytorch_lora_weights.safetensors`.
            state_dict (`dict`, *optional*):
                A state dict that was gathered already (FSDP).

        Returns:
            `Path`: the file.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        temporary = f".{LORA_FILE}.{os.getpid()}.safetensors"
        type(self.pipeline).save_lora_weights(
            directory,
            transformer_lora_layers={
                key: value.contiguous() for key, value in self.lora_state_dict(state_dict).items()
            },
            transformer_lora_adapter_metadata=lora_metadata(self.transformer, self.name_or_path or None),
            weight_name=temporary,
        )
        return seal_file(directory / temporary).replace(directory / LORA_FILE)

    def load_lora(self, source: str | os.PathLike) -> None:
        """
        Load a LoRA into the transformer, under the key names of any trainer (`lora_formats` lists them).

        Every weight of the file that fits a module is placed, and `lora_fit` says how many keys fit none. If loading
        fails, the model stays as it was.

        Args:
            source (`str` or `os.PathLike`):
                A folder with `pytorch_lora_weights.safetensors` or PEFT's `adapter_model.safetensors`, a safetensors
                file, or a Hub id.

        Raises:
            FileNotFoundError: if there is no such file or repository.
            ConnectionError: if the Hub cannot be reached and the file is not in the cache.
            RuntimeError: if the transformer already carries an adapter.
            ValueError: if the file is no LoRA, has parts that no adapter can hold, belongs to a model of another size,
                or fits the transformer nowhere.
        """
        present = list(getattr(self.base_transformer, "peft_config", None) or {})
        if present:
            raise RuntimeError(
                f"the transformer already carries the adapter {present[0]!r}. Call unload_lora() first."
            )
        file = find_lora(source)
        if has_checksum(file):  # what another trainer wrote has none, and is refused by what it is
            check_intact(file, "Copy it again from where it is sound, such as a checkpoint of its run.")
        lora = parse_lora(file, self.trained_component, self._lora_converter())
        self.lora_fit = place_lora(self.base_transformer, lora, self.pipeline)

    def _lora_converter(self) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]] | None:
        """Return what translates a file in the family's original layout, if renaming its keys is not enough."""
        return None

    def unload_lora(self) -> None:
        """Remove all adapters from the transformer. Both the policy and the reference are then the base."""
        self.set_reference_to_base()
        self.lora_fit = None
        self._network = self.base_transformer
        self.base_transformer.unload_lora()
