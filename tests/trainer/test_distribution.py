"""Test that unsupported ways of distributing a run are refused, with the reason and an alternative."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from spatialalign_trl.trainer.distribution import refuse_unsupported_distribution


def arguments(**options) -> SimpleNamespace:
    return SimpleNamespace(**{"n_gpu": 0, "use_cpu": False, "fsdp": [], "deepspeed_plugin": None, **options})


@pytest.mark.parametrize(
    ("options", "environment", "samples", "message"),
    [
        ({"n_gpu": 2}, {}, False, "2 GPUs are visible to one process.*DataParallel"),
        ({"deepspeed_plugin": SimpleNamespace(zero_stage=3)}, {}, False, "ZeRO-3 is not supported.*deepspeed_zero2"),
        ({}, {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, False, "ZeRO-3"),
        ({}, {"ACCELERATE_USE_FSDP": "true"}, True, "FSDP cannot be used where.*ddp.yaml.*SpatialAlignTrainer"),
        ({"fsdp": ["full_shard"]}, {}, True, "FSDP"),
    ],
)
def test_refused(monkeypatch, options, environment, samples, message):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        refuse_unsupported_distribution(arguments(**options), samples=samples)


@pytest.mark.parametrize(
    ("options", "environment", "samples"),
    [
        ({"n_gpu": 1}, {}, True),
        ({"deepspeed_plugin": SimpleNamespace(zero_stage=2)}, {}, True),
        ({}, {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}, True),
        ({}, {"ACCELERATE_USE_FSDP": "true"}, False),
        ({"use_cpu": True}, {"ACCELERATE_USE_FSDP": "true"}, True),  # accelerate falls back to DDP
    ],
)
def test_allowed(monkeypatch, options, environment, samples):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    refuse_unsupported_distribution(arguments(**options), samples=samples)
