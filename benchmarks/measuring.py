"""Shared tools of the benchmarks: clocks, alternating measurements, medians with quartiles, and peak memory.

A *way* is one of the implementations that a benchmark compares.
"""

from __future__ import annotations

import ctypes
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any

PEAK_RESET = Path("/proc/self/clear_refs")
"""Linux only: writing a 5 to this file resets the peak memory of the process."""


def clock(device: str) -> Callable[[], float]:
    """Return a function that reads the clock for a device.

    On a CPU it is the processor time of this process, which does not include other jobs. On an accelerator it is the
    wall time after synchronisation.
    """
    if device == "cpu":
        return time.process_time

    import torch

    def now() -> float:
        torch.accelerator.synchronize()
        return time.perf_counter()

    return now


def timed(work: Callable[[], Any], now: Callable[[], float]) -> Callable[[], float]:
    """Wrap some work into a function that does it and returns the seconds it took, for `in_turns`."""

    def seconds() -> float:
        start = now()
        work()
        return now() - start

    return seconds


def in_turns(ways: dict[Any, Callable[[], float]], turns: int) -> dict[Any, list[float]]:
    """Run all ways alternately, so that a change of the machine's speed affects all of them.

    Args:
        ways (`dict`):
            Name of a way -> function that runs it and returns its seconds.
        turns (`int`):
            Number of times each way runs.

    Returns:
        `dict`: name of a way -> its seconds in every turn.
    """
    seconds: dict[Any, list[float]] = {name: [] for name in ways}
    for _ in range(turns):
        for name, way in ways.items():
            seconds[name].append(way())
    return seconds


def ratio(above: list[float], below: list[float]) -> str:
    """Format the median and the quartiles of the ratio in each turn."""
    return with_quartiles([numerator / denominator for numerator, denominator in zip(above, below, strict=True)])


def with_quartiles(values: list[float]) -> str:
    """Format the median of some values, followed by the quartiles in brackets."""
    if len(values) == 1:
        return f"{values[0]:7.2f} [one turn]"
    low, _, high = quantiles(values, n=4)
    return f"{median(values):7.2f} [{low:.2f}, {high:.2f}]"


# Peak memory


def can_measure_peak(device: str) -> bool:
    """Return whether peak memory can be measured. On a CPU this needs Linux."""
    return device != "cpu" or PEAK_RESET.exists()


def added_peak(work: Callable[[], Any], device: str) -> int:
    """Measure how much memory some work needs at its peak, in addition to the memory in use before it.

    Run the work once before, because some buffers are allocated only once.

    Args:
        work (callable):
            The work to measure.
        device (`str`):
            `"cpu"` or an accelerator.

    Returns:
        `int`: bytes.
    """
    gc.collect()
    if device != "cpu":
        import torch

        torch.accelerator.memory.reset_peak_memory_stats()
        before = torch.accelerator.memory.memory_allocated()
        work()
        return torch.accelerator.memory.max_memory_allocated() - before
    if hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)  # otherwise freed memory that malloc keeps counts as in use
    PEAK_RESET.write_text("5")
    before = memory("VmRSS")
    work()
    return memory("VmHWM") - before


def memory(field: str) -> int:
    """Read a memory field of `/proc/self/status`, in bytes.

    `getrusage` is no alternative, because its peak includes the parent process before the start of this one.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{field}:")).split()[1])


def peak_in_own_process(way: str) -> int:
    """Run this script in a new process with `--peak_of way`, and return the bytes that `report_peak` prints there."""
    command = [sys.executable, *sys.argv, "--peak_of", way]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{process.stderr}")
    return json.loads(process.stdout.splitlines()[-1])["peak_bytes"]


def report_peak(peak: int) -> None:
    """Print the peak for [`peak_in_own_process`]."""
    print(json.dumps({"peak_bytes": peak}))
