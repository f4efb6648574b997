"""Costs on fake tensors: exact for code whose cost is known, equal to real runs, linear in the number of blocks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from spatialalign_trl.planning.tracing import Cost, Meter, extrapolate, fake_tensors, measure

KB = 1024


@given(st.integers(1, 64), st.integers(1, 64), st.integers(1, 64))
@settings(max_examples=25, deadline=None)
def test_a_product_takes_its_result_and_two_operations_per_multiplication(rows, inner, columns):
    with fake_tensors(), torch.no_grad():
        left, right = torch.empty(rows, inner), torch.empty(inner, columns)
        cost = measure(lambda: left @ right, lambda: [left, right])
    assert cost == Cost(4 * rows * columns, 2 * rows * inner * columns)


def test_freed_tensors_do_not_count_and_views_count_once():
    with fake_tensors(), torch.no_grad():
        start = torch.empty(KB, dtype=torch.uint8)

        def chain() -> torch.Tensor:
            value = start
            for _ in range(5):
                value = (value + 1).view(32, 32)[:16].reshape(-1).repeat(2)
            return value

        cost = measure(chain, lambda: [start])
    # A step holds its input, the sum, and the repetition of a half.
    assert 2 * KB <= cost.memory <= 3 * KB


@pytest.mark.parametrize("backward", [False, True])
def test_real_tensors_have_the_same_peak(backward):
    """The meter sees the same storages of an MLP, whether its tensors have values or not."""

    def peak(fake: bool) -> float:
        network = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 8)).requires_grad_(backward)
        inputs, memory = torch.ones(16, 32), Meter()
        with memory, torch.set_grad_enabled(backward):
            result = network(inputs)
            if backward:
                result.sum().backward()
        return memory.peak

    with fake_tensors():
        fake = peak(True)
    assert fake == peak(False) > 16 * 64 * 4


def test_checkpointing_lowers_the_peak_and_costs_a_second_forward():
    """torch's own counter of operations would keep what checkpointing frees."""

    def step(blocks: nn.ModuleList, inputs: torch.Tensor, with_checkpoints: bool) -> None:
        value = inputs
        for block in blocks:
            value = checkpoint(block, value, use_reentrant=False) if with_checkpoints else block(value)
        value.sum().backward()

    costs = {}
    for with_checkpoints in (False, True):
        with fake_tensors():
            blocks = nn.ModuleList(
                nn.Sequential(nn.Linear(64, 512), nn.GELU(), nn.Linear(512, 64)).requires_grad_(False)
                for _ in range(8)
            )
            inputs = torch.empty(128, 64, requires_grad=True)
            costs[with_checkpoints] = measure(
                lambda blocks=blocks, inputs=inputs, on=with_checkpoints: step(blocks, inputs, on),
                lambda blocks=blocks, inputs=inputs: [*blocks.parameters(), inputs],
            )
    forward = 8 * 2 * 2 * 128 * 64 * 512
    assert costs[False].flops == 2 * forward
    assert 2 * forward < costs[True].flops <= 3 * forward  # the last product of a block may not be needed again
    assert costs[True].memory < costs[False].memory / 2


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 99), st.integers(1, 99), st.integers(1, 99))
@settings(deadline=None)
def test_extrapolation_is_exact_on_a_line(first, second, base, a, b):
    traced = []

    def cost_of(layers: dict[str, int]) -> Cost:
        traced.append(layers)
        return Cost(base + a * layers["x"] + b * layers["y"], a * layers["x"])

    cost = extrapolate({"x": first, "y": second}, cost_of)
    assert cost == Cost(base + a * first + b * second, a * first)
    assert len(traced) <= 3 and all(count <= 3 for layers in traced for count in layers.values())


def test_modules_are_cast_and_moved_on_fake_tensors_and_torch_is_left_as_it_was():
    original = nn.Module._apply
    with fake_tensors():
        layer = nn.Linear(4, 4).to(torch.bfloat16)
        assert layer.weight.dtype == torch.bfloat16 and isinstance(layer.weight, nn.Parameter)
        with pytest.raises(RuntimeError):
            raise RuntimeError
    assert nn.Module._apply is original


def test_questions_about_values_are_answered():
    with fake_tensors(), torch.no_grad():
        value, mask = torch.empty(3, 5), torch.ones(3, dtype=torch.bool)
        assert bool(torch.isfinite(value).all())
        assert value[mask].shape == (3, 5)
        assert value[~mask].shape == (0, 5)
