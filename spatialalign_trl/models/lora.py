"""LoRA on a diffusers transformer, whichever way it got there.

`peft.get_peft_model` and diffusers' `add_adapter` both put PEFT's layers into the transformer in place, but each has
its own switches, which do not work for the other. What is here works on the layers themselves, so for both, and does
nothing on a transformer without adapters.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper

from spatialalign_trl.errors import explain_hub_errors

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


LORA_FILE = "pytorch_lora_weights.safetensors"


def base_network(network: torch.nn.Module) -> torch.nn.Module:
    """The transformer inside a `PeftModel` (which PEFT changed in place), or the transformer itself."""
    return network.get_base_model() if isinstance(network, PeftModel) else network


def _adapter_layers(network: torch.nn.Module) -> list[torch.nn.Module]:
    return [m for m in network.modules() if isinstance(m, (BaseTunerLayer, AuxiliaryTrainingWrapper))]


def active_adapters(network: torch.nn.Module) -> list[str]:
    """Names of the adapters whose effect the network's output shows."""
    names: dict[str, None] = {}
    for layer in _adapter_layers(network):
        if not layer.disable_adapters:
            names.update(dict.fromkeys(layer.active_adapters))
    return list(names)


@contextmanager
def adapter_weights(network: torch.nn.Module, weights: dict[str, torch.Tensor]) -> Iterator[None]:
    """
    Let the network compute with other weights of its adapter for the length of the block.

    Args:
        network (`torch.nn.Module`):
            The transformer, wrapped in a `PeftModel` or not; it has one active adapter.
        weights (`dict[str, torch.Tensor]`):
            As [`lora_state_dict`] names them.

    The storage is swapped, not copied: nothing is allocated, and what autograd recorded before stays valid as long as
    the block runs without gradients.
    """
    base = base_network(network)
    infix = f".{_single_adapter(base)}."
    swapped = [(p, weights[n.replace(infix, ".")]) for n, p in base.named_parameters() if infix in n]
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
    Switch all adapters off for the length of the block: the network computes what its base computes, bit for bit.

    PEFT's switches also freeze the adapters, and switching on again makes every active adapter trainable, even one
    that was loaded frozen. So what was trainable is noted and put back.
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
    names = active_adapters(network)
    if len(names) != 1:
        raise RuntimeError(
            f"the transformer has {len(names)} active adapters ({', '.join(names) or 'none'}), and one was expected. "
            "Add one with peft.get_peft_model or transformer.add_adapter, or activate one with set_adapter."
        )
    return names[0]


def lora_state_dict(network: torch.nn.Module, state_dict: dict[str, Any] | None = None) -> dict[str, torch.Tensor]:
    """
    The LoRA's weights under diffusers' names (`blocks.0.attn2.to_k.lora_A.weight`).

    Args:
        network (`torch.nn.Module`):
            The transformer, wrapped in a `PeftModel` or not.
        state_dict (`dict`, *optional*):
            A state dict gathered elsewhere (FSDP gathers it from the ranks), of the `PeftModel` or of the transformer.
    """
    base = base_network(network)
    if state_dict is not None:
        state_dict = {key.removeprefix("base_model.model."): value for key, value in state_dict.items()}
    # "auto" would look for the base model's config on the Hub; a video transformer has no word embeddings.
    return get_peft_model_state_dict(
        base, state_dict=state_dict, adapter_name=_single_adapter(base), save_embedding_layers=False
    )


def lora_fingerprint(weights: Mapping[str, torch.Tensor]) -> str:
    """
    Names a policy by its LoRA's weights, so that samples of two policies never meet.

    The file's own bytes will not do: safetensors writes its metadata in no fixed order.

    Args:
        weights (`dict[str, torch.Tensor]`):
            As [`lora_state_dict`] names them, or as a saved file does, with the transformer's name before each.
    """
    digest = hashlib.sha256()
    named = {f"transformer.{name.removeprefix('transformer.')}": tensor for name, tensor in weights.items()}
    for name, tensor in sorted(named.items()):
        digest.update(name.encode() + tensor.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    # Sets have no JSON form and no fixed order.
    return sorted(value) if isinstance(value, (set, frozenset)) else value


def lora_metadata(network: torch.nn.Module, base_model: str | None = None) -> dict[str, Any]:
    """
    The LoRA's configuration as JSON can hold it. Without it in the file, a loader takes alpha to be the rank.

    Settings at their default are left out: PEFT adds new ones with every version, and an older PEFT that meets one it
    does not know cannot load the file at all.

    Args:
        network (`torch.nn.Module`):
            The transformer, wrapped in a `PeftModel` or not.
        base_model (`str`, *optional*):
            Name of the model the LoRA belongs to. PEFT's own guess is a local path of the machine it was trained on.
    """
    base = base_network(network)
    config = base.peft_config[_single_adapter(base)]
    defaults = type(config)().to_dict()
    always = {"r", "lora_alpha", "target_modules"}
    # auto_mapping names a Python class of the training machine; of no use to a loader.
    never = {"auto_mapping", "base_model_name_or_path", "inference_mode", "task_type"}
    kept = {
        key: _plain(value)
        for key, value in config.to_dict().items()
        if key not in never and (key in always or value != defaults.get(key))
    }
    return kept if base_model is None else {**kept, "base_model_name_or_path": base_model}


class LoraMixin:
    """Reference, saving and loading of the transformer's LoRA."""

    lora_load_options: Mapping[str, Any] = MappingProxyType({})
    """What `pipe.load_lora_weights` of diffusers needs beside the file, to load this model's LoRA."""

    pipeline: DiffusionPipeline
    transformer: torch.nn.Module
    name_or_path: str
    base_transformer: torch.nn.Module
    _network: torch.nn.Module
    _reference_weights: dict[str, torch.Tensor] | None = None

    def reference(self) -> AbstractContextManager[None]:
        """
        A context in which the network computes as the reference: exactly what its base does, whatever adapters it
        carries, or the policy that [`~LoraMixin.set_reference_to_policy`] kept.
        """
        if self._reference_weights is None:
            return adapters_off(self.transformer)
        return adapter_weights(self.transformer, self._reference_weights)

    def set_reference_to_base(self) -> None:
        """The reference is the base without its adapter (the default)."""
        self._reference_weights = None

    def set_reference_to_policy(self) -> None:
        """The reference is the policy as it is now: a copy of the adapter is kept, the base is shared."""
        self._reference_weights = {name: value.detach().clone() for name, value in self.lora_state_dict().items()}

    @property
    def reference_weights(self) -> dict[str, torch.Tensor] | None:
        """The reference's adapter under diffusers' names; `None` while the reference is the base."""
        return self._reference_weights

    def set_reference_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        """The reference is the base with an adapter of these weights, named as [`~LoraMixin.lora_state_dict`] does."""
        names = set(self.lora_state_dict())
        if names != set(weights):
            odd = sorted(names ^ set(weights))
            raise ValueError(f"the reference's adapter is another one than the policy's: they differ in {odd[:3]}.")
        self._reference_weights = {name: value.detach().clone() for name, value in weights.items()}

    def update_reference(self, alpha: float) -> None:
        """
        Mix the policy into the reference: `reference = alpha * policy + (1 - alpha) * reference`.

        The adapter's factors A and B are mixed, as every moving average of a LoRA does; that is the average of the
        weights as long as the two lie close together. The base, from which the first mix starts, is `B = 0`, and that
        mix is exact.

        Args:
            alpha (`float`):
                In (0, 1]; 1 is [`~LoraMixin.set_reference_to_policy`].
        """
        if alpha == 1:
            self.set_reference_to_policy()
            return
        policy = {name: value.detach() for name, value in self.lora_state_dict().items()}
        reference = self._reference_weights
        if reference is None:
            odd = [name for name in policy if "lora_A" not in name and "lora_B" not in name]
            if odd:
                raise ValueError(
                    f"{odd[0]!r} is not a plain LoRA's weight, so the base cannot be mixed in: use alpha=1."
                )
            reference = {
                name: torch.zeros_like(value) if "lora_B" in name else value for name, value in policy.items()
            }
        self._reference_weights = {
            name: alpha * value + (1 - alpha) * reference[name].to(value) for name, value in policy.items()
        }

    def lora_state_dict(self, state_dict: dict[str, Any] | None = None) -> dict[str, torch.Tensor]:
        """The LoRA's weights under diffusers' names; `state_dict` is one gathered elsewhere (FSDP)."""
        return lora_state_dict(self.transformer, state_dict)

    def save_lora(self, directory: str | os.PathLike, state_dict: dict[str, Any] | None = None) -> Path:
        """
        Save the LoRA as `pipe.load_lora_weights` reads it, with its configuration in the file's metadata: a file
        without it loses alpha.

        Args:
            directory (`str` or `os.PathLike`):
                Gets the file `pytorch_lora_weights.safetensors`.
            state_dict (`dict`, *optional*):
                A state dict gathered elsewhere (FSDP).

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
        return (directory / temporary).replace(directory / LORA_FILE)

    def load_lora(self, source: str | os.PathLike) -> None:
        """
        Load a LoRA into the transformer.

        Args:
            source (`str` or `os.PathLike`):
                A folder with `pytorch_lora_weights.safetensors`, a safetensors file, or a Hub id.

        Raises:
            FileNotFoundError: when there is no such file or repository.
            ConnectionError: when the Hub cannot be asked for it, and the cache does not hold it.
            RuntimeError: when the transformer already carries an adapter.
            ValueError: when nothing in the file fits the transformer.
        """
        present = active_adapters(self.transformer)
        if present:
            raise RuntimeError(
                f"the transformer already carries the adapter {present[0]!r}; call unload_lora() first."
            )
        path: str | Path = Path(source)
        if path.is_file():
            path, name = path.parent, path.name
        elif path.is_dir():
            name = LORA_FILE
            if not (path / name).is_file():
                raise FileNotFoundError(
                    f"{path} holds no {LORA_FILE}, but "
                    f"{', '.join(sorted(p.name for p in path.iterdir())) or 'nothing'}. "
                    "A file named adapter_model.safetensors is PEFT's, for resuming; save_lora writes the other kind."
                )
        elif len(path.parts) == 2 and not path.is_absolute():
            path, name = _published_lora(os.fspath(source))
        else:
            raise FileNotFoundError(f"there is no LoRA file or folder {os.fspath(source)!r}.")
        misfit = f"nothing in {os.fspath(source)!r} fits the transformer: its keys are not this model's."
        try:
            self.pipeline.load_lora_weights(str(path), weight_name=name, **self.lora_load_options)
        except ValueError as error:  # PEFT's, which names no file
            raise ValueError(f"{misfit} {error}") from error
        # Keys under other names are only warned about by diffusers, and the base would be taken for the aligned model.
        if not active_adapters(self.transformer):
            raise ValueError(misfit)

    def unload_lora(self) -> None:
        """Take all adapters out of the transformer, which is then the base again, and the reference too."""
        self.set_reference_to_base()
        self._network = self.base_transformer
        self.base_transformer.unload_lora()


def _published_lora(name: str) -> tuple[str | Path, str | None]:
    """Where diffusers finds a repository's LoRA, and the file; `None`: the only safetensors file that is there."""
    with explain_hub_errors(name):
        try:
            file = Path(hf_hub_download(name, LORA_FILE))
        except LocalEntryNotFoundError:  # the Hub was not asked
            raise
        except EntryNotFoundError:  # another trainer's repository
            return name, None
    return file.parent, file.name
