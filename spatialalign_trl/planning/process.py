"""Forecast the memory of a process that trains on the CPU, from what its libraries take in this one."""

from __future__ import annotations

import psutil

from spatialalign_trl.planning.cards import GIB
from spatialalign_trl.planning.forecast import Forecast
from spatialalign_trl.planning.stages import StageTracer


def resident_memory() -> float:
    """Return the GiB of memory that this process holds now: Python, torch and the other libraries of a run."""
    return psutil.Process().memory_info().rss / GIB


def memory_of_process(plan: Forecast, tracer: StageTracer, libraries: float) -> dict[str, float]:
    """
    Return the GiB of a run's process at its peak, by what takes them.

    On the CPU all networks stay in memory in the same process. What a stage frees, the C library keeps for the next
    allocation of the same size, so the stages add up.

    Args:
        plan ([`Forecast`]):
            The stages.
        tracer ([`StageTracer`]):
            The model.
        libraries (`float`):
            [`resident_memory`] of a process that has imported what a run imports, before it traced anything.
    """
    stages = [stage for stage in plan.stages if stage.count and not stage.name.startswith("evaluation")]
    return {
        "libraries": libraries,
        "weights": sum(tracer.weights.values()) / GIB,
        **{stage.name: stage.memory - stage.weights for stage in stages if stage.memory > stage.weights},
        "pairs": plan.ram,
    }
