"""What the benchmarks measure with: a clock, ways that take turns, medians with quartiles, peaks of memory."""

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
"""Linux: a 5 written to it makes the process's peak memory begin anew."""


def clock(device: str) -> Callable[[], float]:
    """On a CPU the processor time of this process, which other jobs do not add to; else the time, synchronised."""
    if device == "cpu":
        return time.process_time

    import torch

    def now() -> float:
        torch.accelerator.synchronize()
        return time.perf_counter()

    return now


def timed(work: Callable[[], Any], now: Callable[[], float]) -> Callable[[], float]:
    """A way for `in_turns`: does the work and returns the seconds it took."""

    def seconds() -> float:
        start = now()
        work()
        return now() - start

    return seconds


def in_turns(ways: dict[Any, Callable[[], float]], turns: int) -> dict[Any, list[float]]:
    """The seconds that every way returns, `turns` times, the ways taking turns."""
    seconds: dict[Any, list[float]] = {name: [] for name in ways}
    for _ in range(turns):
        for name, way in ways.items():
            seconds[name].append(way())
    return seconds


def ratio(above: list[float], below: list[float]) -> str:
    """Median and quartiles of the ratio in each turn."""
    return with_quartiles([one / other for one, other in zip(above, below, strict=True)])


def with_quartiles(values: list[float]) -> str:
    """Their median, and their quartiles in brackets; of a single one, itself."""
    if len(values) == 1:
        return f"{values[0]:7.2f} [one turn]"
    low, _, high = quantiles(values, n=4)
    return f"{median(values):7.2f} [{low:.2f}, {high:.2f}]"


# Peak memory


def can_measure_peak(device: str) -> bool:
    """On a CPU it takes Linux."""
    return device != "cpu" or PEAK_RESET.exists()


def added_peak(work: Callable[[], Any], device: str) -> int:
    """Bytes that some work adds at its peak to what is in use before it. Warm up first: some buffers are made once."""
    gc.collect()
    if device != "cpu":
        import torch

        torch.accelerator.memory.reset_peak_memory_stats()
        before = torch.accelerator.memory.memory_allocated()
        work()
        return torch.accelerator.memory.max_memory_allocated() - before
    if hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)  # else what was freed, and is kept, counts as in use before
    PEAK_RESET.write_text("5")
    before = memory("VmRSS")
    work()
    return memory("VmHWM") - before


def memory(field: str) -> int:
    """A line of Linux's account of this process, in bytes. Not getrusage: that counts the parent before the start."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{field}:")).split()[1])


def peak_in_own_process(way: str) -> int:
    """Runs this script again with `--peak_of way`, which prints what [`added_peak`] returned as JSON."""
    command = [sys.executable, *sys.argv, "--peak_of", way]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])["peak_bytes"]


def report_peak(peak: int) -> None:
    """What [`peak_in_own_process`] reads."""
    print(json.dumps({"peak_bytes": peak}))
