"""Speed up a model: attention kernels and compiled blocks. Each setting is checked, and refused with its reason,
before a model is loaded or a video sampled."""

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
"""Name in diffusers -> (package it needs, whether it needs a CUDA GPU). Others of diffusers' need a GPU too."""

INSTALL_COMMANDS = {
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
            As diffusers calls it.
        device (`torch.device`):
            Where the transformer will be.
        needs_gradients (`bool`, *optional*, defaults to `True`):
            Whether the model is trained, and not only sampled from.

    Raises:
        ValueError: an unknown name, a missing GPU, or a backend without gradients.
        ImportError: a missing package.
    """
    if name not in ATTENTION_BACKENDS:
        raise ValueError(f"attention_backend={name!r}. {near_miss(name, ATTENTION_BACKENDS)}")
    package, needs_cuda = ATTENTION_BACKENDS[name]
    if needs_cuda and device.type != "cuda":
        raise ValueError(
            f"attention_backend={name!r} computes on CUDA GPUs, and the model is on {device.type}: use native."
        )
    if package is not None and importlib.util.find_spec(package) is None:
        raise ImportError(
            f"attention_backend={name!r} needs {package}, which is not installed: {INSTALL_COMMANDS[package]}"
        )
    if needs_gradients and name == "sage":
        raise ValueError(
            "attention_backend='sage' computes no gradients, so nothing can be trained through it: use native, flash "
            "or xformers."
        )


def set_attention_backend(model: VideoModel, name: str) -> None:
    """
    Let the transformer compute its attention with another backend, after a trial of it.

    Args:
        model ([`VideoModel`]):
            The model.
        name (`str`):
            One of `ATTENTION_BACKENDS`.

    Raises:
        ValueError, ImportError: see [`check_attention_backend`].
        RuntimeError: the backend fails in the trial, forwards or backwards; the transformer is left as it was.
    """
    from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

    check_attention_backend(name, model.device)
    _try_attention(name, model.device, model.dtype)
    # diffusers also makes the name the default of every model made later, in the whole process.
    before, _ = _AttentionBackendRegistry.get_active_backend()
    try:
        model.base_transformer.set_attention_backend(name)
    finally:
        _AttentionBackendRegistry.set_active_backend(AttentionBackendName(before))
    if name == "native":  # what is used unasked, too
        model.computation.pop("attention_backend", None)
    else:
        model.computation["attention_backend"] = name


def _try_attention(name: str, device: torch.device, dtype: torch.dtype) -> None:
    """A few tokens there and back: some backends are found missing a kernel only when they are called."""
    from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn

    query, key, value = (
        torch.ones(1, 16, 2, 64, device=device, dtype=dtype, requires_grad=True) for _ in range(3)
    )  # (batch, tokens, heads, channels)
    try:
        dispatch_attention_fn(query, key, value, backend=AttentionBackendName(name)).sum().backward()
    except Exception as error:  # whatever a foreign kernel raises
        raise RuntimeError(
            f"attention_backend={name!r} was found, but fails on {device} in {dtype}: {type(error).__name__}: "
            f"{error}. Use native."
        ) from error


def check_compile(backend: str) -> None:
    """
    Raises:
        ValueError: torch knows no compiler of that name; names the near miss.
    """
    known = ["inductor", *torch._dynamo.list_backends(exclude_tags=()), "aot_eager", "eager"]
    if backend not in known:
        raise ValueError(f"compile_blocks={backend!r}. {near_miss(backend, known)}")


def compile_blocks(model: VideoModel, backend: str = "inductor") -> None:
    """
    Compile the transformer's repeated blocks, one for all: a fraction of the time that compiling the whole takes. It
    happens at their first use, once for the policy and once for the reference.

    Args:
        model ([`VideoModel`]):
            The model.
        backend (`str`, *optional*, defaults to `"inductor"`):
            torch's compiler.

    Raises:
        ValueError: an unknown compiler, or a transformer that names no repeated blocks.
    """
    check_compile(backend)
    network = model.base_transformer
    if not getattr(network, "_repeated_blocks", None):
        raise ValueError(f"compile_blocks: {type(network).__name__} names no repeated blocks. Leave it out.")
    network.compile_repeated_blocks(backend=backend)
    model.computation["compile_blocks"] = backend
