"""Measure what code costs on tensors that have shapes and no values: its peak memory and its FLOPs.

The tensors are torch's fake tensors on the CPU. A trace of 81 frames of 480x832 takes seconds and no memory. It sees
what PyTorch allocates: not the CUDA context, the workspaces of kernels, nor the fragmentation of the allocator.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count, shape_wrapper

aten = torch.ops.aten


@dataclass(frozen=True)
class Cost:
    """
    What a piece of code takes.

    Args:
        memory (`float`):
            Largest number of bytes that were alive at once, above what was alive before.
        flops (`float`):
            Operations of matrix products, convolutions and attention; a multiplication and an addition are two.
    """

    memory: float
    flops: float

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.memory + other.memory, self.flops + other.flops)

    def __sub__(self, other: Cost) -> Cost:
        return self + other * -1

    def __mul__(self, factor: float) -> Cost:
        return Cost(self.memory * factor, self.flops * factor)


@contextmanager
def fake_tensors() -> Iterator[None]:
    """Let every tensor that is made in the block have a shape and no values."""
    # torch moves and casts a module by swapping its tensors' data, which fake tensors do not allow.
    original = nn.Module._apply
    nn.Module._apply = _apply_by_replacing
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), _AssumedValues():
            yield
    finally:
        nn.Module._apply = original


def _apply_by_replacing(
    self: nn.Module, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True
) -> nn.Module:
    """Do what `nn.Module._apply` does, with new parameters in the place of the old."""
    for child in self.children() if recurse else ():
        child._apply(fn)
    for name, parameter in self._parameters.items():
        if parameter is not None:
            with torch.no_grad():
                changed = fn(parameter)
            if changed is not parameter:
                self._parameters[name] = nn.Parameter(changed.detach(), requires_grad=parameter.requires_grad)
    for name, buffer in self._buffers.items():
        if buffer is not None:
            self._buffers[name] = fn(buffer)
    return self


def measure(code: Callable[[], Any], alive: Callable[[], list[torch.Tensor]] = list, repeat: int = 1) -> Cost:
    """
    Trace code inside of [`fake_tensors`].

    Args:
        code (callable):
            The code. What it returns counts as alive until the end.
        alive (callable, *optional*):
            Returns the tensors that exist before, so that they are not counted when the code sees them.
        repeat (`int`, *optional*, defaults to `1`):
            How often the code runs; the last time is measured. An optimizer has its state after the first step.

    Returns:
        [`Cost`]: memory above the tensors of `alive`.
    """
    meter = Meter()
    for tensor in alive():
        meter.add(tensor)
    before = meter.current
    with meter, cuda_kernels():
        for _ in range(repeat):
            meter.restart()
            kept = code()
        del kept
    return Cost(meter.peak - before, meter.flops)


def extrapolate(layers: Mapping[str, int], cost_of: Callable[[dict[str, int]], Cost]) -> Cost:
    """
    Return the cost of a network of equal blocks from the costs of networks with 2 and 3 of them.

    One block alone is not on the line: its memory peaks elsewhere.

    Args:
        layers (`dict[str, int]`):
            The number of blocks, by kind.
        cost_of (callable):
            Returns the cost for other numbers of blocks.
    """
    base = {name: min(count, 2) for name, count in layers.items()}
    cost = start = cost_of(base)
    for name, count in layers.items():
        if count > base[name]:
            cost += (cost_of({**base, name: base[name] + 1}) - start) * (count - base[name])
    return cost


class Meter(TorchDispatchMode):
    """
    Counts the bytes of all storages that operators return and that are still alive, and the operations.

    torch's `FlopCounterMode` counts the same operations, but it also follows the modules, which takes longer and keeps
    the activations that checkpointing frees.
    """

    def __init__(self) -> None:
        super().__init__()
        self.current = self.peak = 0
        self.flops = 0
        self._alive: dict[int, int] = {}
        self._formulas = {**flop_registry, **{op: shape_wrapper(f) for op, f in CPU_ATTENTION.items()}}

    def restart(self) -> None:
        """Forget the peak and the operations; what is alive stays counted."""
        self.peak, self.flops = self.current, 0

    def add(self, tensor: torch.Tensor) -> None:
        """Count a tensor's storage until it is freed; views share one."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return
        self._alive[key] = size
        self.current += size
        self.peak = max(self.peak, self.current)
        weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.current -= self._alive.pop(key, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        formula = self._formulas.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=result)
        for leaf in (result,) if isinstance(result, torch.Tensor) else tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.add(leaf)
        return result


class _AssumedValues(TorchDispatchMode):
    """
    Answers the few questions about values that the traced code asks.

    Conditions on tensors hold (latents are finite, there is no start image). A mask selects everything, and its
    negation nothing: prompts are as long as they can be.
    """

    def __init__(self) -> None:
        super().__init__()
        self._negations: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is aten._local_scalar_dense.default and args[0].dtype == torch.bool:
            return True
        if func is aten.index.Tensor and len(args[1]) == 1 and args[1][0].dtype == torch.bool:
            tensor, mask = args[0], args[1][0]
            count = 0 if mask.untyped_storage() in self._negations else mask.numel()
            return tensor.new_empty((count, *tensor.shape[mask.ndim :]))
        result = func(*args, **(kwargs or {}))
        if func is aten.bitwise_not.default:
            self._negations.add(result.untyped_storage())
        return result


@contextmanager
def cuda_kernels() -> Iterator[None]:
    """
    Let normalisations take the memory that they take on CUDA, where it differs from the CPU's.

    Autocast on CUDA computes them in fp32; on the CPU it does not. The CPU's `rms_norm` keeps intermediate results for
    its gradient, CUDA's kernel only the inverse deviations. (Functions are replaced, because a mode of torch would be
    off while checkpointed blocks run again in the backward pass.)
    """
    originals = {name: getattr(F, name) for name in ("layer_norm", "group_norm", "rms_norm")}

    def replacement(name: str) -> Callable[..., torch.Tensor]:
        function = _fused_rms_norm if name == "rms_norm" else originals[name]

        def compute(*args: Any, **kwargs: Any) -> torch.Tensor:
            if torch.is_autocast_enabled("cpu"):
                args, kwargs = tree_map(_in_fp32, args), tree_map(_in_fp32, kwargs)
            return function(*args, **kwargs)

        return compute

    for name in originals:
        setattr(F, name, replacement(name))
    try:
        yield
    finally:
        for name, function in originals.items():
            setattr(F, name, function)


def _in_fp32(value: Any) -> Any:
    is_half = isinstance(value, torch.Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if is_half else value


class _RmsNorm(torch.autograd.Function):
    """What CUDA's kernel allocates: the result, and one inverse deviation per row for the gradient."""

    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
        deviations = torch.empty(*input.shape[:-1], 1, dtype=torch.float32)
        ctx.save_for_backward(input, weight, deviations)
        return torch.empty_like(input)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        input, weight, _ = ctx.saved_tensors
        wants_weight = weight is not None and ctx.needs_input_grad[1]
        return torch.empty_like(input), torch.empty_like(weight) if wants_weight else None


def _fused_rms_norm(
    input: torch.Tensor, normalized_shape: Any, weight: torch.Tensor | None = None, eps: float | None = None
) -> torch.Tensor:
    return _RmsNorm.apply(input, weight)


def _cpu_attention(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _cpu_attention_backward(
    grad: Any, query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any
) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


CPU_ATTENTION = {
    aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _cpu_attention_backward,
}
"""Formulas for the attention of the CPU; torch has those of the GPUs."""
