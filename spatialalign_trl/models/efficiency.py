"""Speed up a model with attention kernels and compiled blocks.

Each setting is checked before a model is loaded or a video sampled, and refused with a reason if it cannot work."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import torch

from spatialalign_trl.errors import near_miss

if TYPE_CHECKING:
    from spatialalign_trl.models.base import VideoModel

ATTENTION_BACKENDS: dict[str, tuple[str | None, bool]] = {
    "native": (None, False),
    "_native_math": (None, False),
    "_native_flash": (None, False),
    "_native_efficient": (None, True),
    "_native_cudnn": (None, True),
    "xformers": ("xformers", True),
    "flash": ("flash_attn", True),
    "_flash_3": ("flash_attn_interface", True),
    "flash_hub": ("kernels", True),
    "sage": ("sageattention", True),
}
"""Name in diffusers -> (package that it needs, whether it needs a CUDA GPU).

diffusers has more backends; they need a GPU too."""

INSTALL_INSTRUCTIONS = {
    "xformers": "pip install 'spatialalign-trl[xformers]' (its wheel must fit your torch)",
    "flash_attn": "pip install flash-attn --no-build-isolation",
    "flash_attn_interface": "build FlashAttention 3 from source",
    "kernels": "pip install kernels",
    "sageattention": "pip install sageattention",
}


def check_attention_backend(name: str, device: torch.device, *, needs_gradients: bool = True) -> None:
    """
    Refuse an attention backend that cannot work here, before anything is loaded.

    Args:
        name (`str`):
            The backend's name in diffusers, one of `ATTENTION_BACKENDS`.
        device (`torch.device`):
            The device that the transformer will be on.
        needs_gradients (`bool`, *optional*, defaults to `True`):
            Whether the model is trained as well as sampled from.

    Raises:
        ValueError: if the name is unknown, the GPU is missing, or the backend computes no gradients.
        ImportError: if its package is not installed.
    """
    if name not in ATTENTION_BACKENDS:
        raise ValueError(f"attention_backend={name!r}: unknown. {near_miss(name, ATTENTION_BACKENDS)}")
    package, needs_cuda = ATTENTION_BACKENDS[name]
    if needs_cuda and device.type != "cuda":
        raise ValueError(
            f"attention_backend={name!r}: computes on CUDA GPUs, but the model is on {device.type}. Use native."
        )
    if package is not None and importlib.util.find_spec(package) is None:
        raise ImportError(
            f"attention_backend={name!r}: needs {package}, which is not installed. To install it: "
            f"{INSTALL_INSTRUCTIONS[package]}."
        )
    if needs_gradients and name == "sage":
        raise ValueError(
            "attention_backend='sage': computes no gradients, so it cannot be used for training. Use native, flash or "
            "xformers."
        )


def set_attention_backend(model: VideoModel, name: str) -> None:
    """
    Try an attention backend, and let the transformer compute with it if it works.

    Args:
        model ([`VideoModel`]):
            The model.
        name (`str`):
            One of `ATTENTION_BACKENDS`.

    Raises:
        ValueError, ImportError: see [`check_attention_backend`].
        RuntimeError: if the backend fails in the trial, in the forward or backward pass. The transformer is not
            changed then.
    """
    from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

    check_attention_backend(name, model.device)
    _try_attention(name, model.device, model.dtype)
    # diffusers also makes the backend the default of every model created later in the process: restore the default.
    before, _ = _AttentionBackendRegistry.get_active_backend()
    try:
        model.base_transformer.set_attention_backend(name)
    finally:
        _AttentionBackendRegistry.set_active_backend(AttentionBackendName(before))
    if name == "native":  # also the default, so not worth noting
        model.computation.pop("attention_backend", None)
    else:
        model.computation["attention_backend"] = name


def _try_attention(name: str, device: torch.device, dtype: torch.dtype) -> None:
    """Run a forward and a backward pass on a few tokens: some backends lack a kernel only when they are called."""
    from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn

    query, key, value = (
        torch.ones(1, 16, 2, 64, device=device, dtype=dtype, requires_grad=True) for _ in range(3)
    )  # (batch, tokens, heads, channels)
    try:
        dispatch_attention_fn(query, key, value, backend=AttentionBackendName(name)).sum().backward()
    except Exception as error:  # a third-party kernel may raise anything
        raise RuntimeError(
            f"attention_backend={name!r}: was found, but fails on {device} in {dtype} with {type(error).__name__}: "
            f"{error}. Use native."
        ) from error


def check_compile(backend: str) -> None:
    """
    Check the name of a torch compiler.

    Args:
        backend (`str`):
            The compiler's name.

    Raises:
        ValueError: if torch has no compiler of that name; the message suggests the nearest one.
    """
    known = ["inductor", *torch._dynamo.list_backends(exclude_tags=()), "aot_eager", "eager"]
    if backend not in known:
        raise ValueError(f"compile_blocks={backend!r}: unknown. {near_miss(backend, known)}")


def compile_blocks(model: VideoModel, backend: str = "inductor") -> None:
    """
    Compile one of the transformer's repeated blocks for all of them, in a fraction of the time of the whole network.

    The compilation happens at the first use, once for the policy and once for the reference.

    Args:
        model ([`VideoModel`]):
            The model.
        backend (`str`, *optional*, defaults to `"inductor"`):
            The name of a torch compiler.

    Raises:
        ValueError: if the compiler is unknown, or the transformer does not name its repeated blocks.
    """
    check_compile(backend)
    network = model.base_transformer
    if not getattr(network, "_repeated_blocks", None):
        raise ValueError(
            f"compile_blocks={backend!r}: {type(network).__name__} does not name its repeated blocks. Leave it out."
        )
    network.compile_repeated_blocks(backend=backend)
    model.computation["compile_blocks"] = backend
