"""What a reward returned and logged, read with suspicion: rewards are anybody's code."""

import asyncio
import functools
import inspect
import math
import threading
import weakref
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from typing import Any


class CallLog:
    """The two hooks of one call: per-video columns, and numbers that are averaged."""

    def __init__(self, count: int, columns: dict[str, list], metrics: dict[str, list[float]]) -> None:
        self._count, self._columns, self._metrics, self._owner = count, columns, metrics, {}

    def extra(self, name: str, column: str, values: Sequence[Any]) -> None:
        values = [_plain(value) for value in values]
        if len(values) != self._count:
            raise ValueError(f"log_extra({column!r}) got {len(values)} values for {self._count} videos")
        if self._owner.setdefault(column, name) != name:
            raise ValueError(f"log_extra({column!r}): the column is already written by {self._owner[column]!r}")
        self._columns[column] = values

    def metric(self, name: str, value: float) -> None:
        value = float(value)
        if math.isfinite(value):
            self._metrics.setdefault(name, []).append(value)


def _plain(value: Any) -> Any:
    """NumPy and torch scalars as Python numbers, and NaN as None: what is logged ends up in JSON."""
    if getattr(value, "ndim", None) == 0:
        value = value.item()
    return None if isinstance(value, float) and math.isnan(value) else value


def read_answer(answer: Any, count: int) -> tuple[list[float | None], list[str | None]]:
    """What a reward returned as `count` values, and `count` problems where a value is unusable."""
    problem = None
    if isinstance(answer, BaseException):
        problem = f"{type(answer).__name__}: {answer}"
    elif hasattr(answer, "tolist"):  # an array or a tensor
        answer = answer.tolist()
    if problem is None and not isinstance(answer, (list, tuple)):
        problem = f"returned {type(answer).__name__} instead of a list with one value per video"
    elif problem is None and len(answer) != count:
        problem = f"returned {len(answer)} values for {count} videos"
    if problem is not None:
        return [None] * count, [problem] * count
    values, problems = [], []
    for value in answer:
        number, problem = _as_number(value)
        values.append(number)
        problems.append(problem)
    return values, problems


def _as_number(value: Any) -> tuple[float | None, str | None]:
    if value is None:
        return None, None
    try:
        number = float("nan") if isinstance(value, (str, bytes)) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    return (number, None) if math.isfinite(number) else (None, f"returned {value!r}, which is no finite number")


def is_async(reward: Callable[..., Any]) -> bool:
    """Whether calling a reward gives something to wait for, as far as that can be told without calling it."""
    while isinstance(reward, functools.partial):
        reward = reward.func
    return inspect.iscoroutinefunction(reward) or inspect.iscoroutinefunction(type(reward).__call__)


class AsyncLoop:
    """
    One loop for the life of whoever holds it, since rewards may keep a client that is bound to it. Its thread starts
    with the first awaitable and ends with this object; the caller may be inside a loop of its own (a notebook is).
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self, awaitable: Awaitable[Any]) -> Future:
        """Sets an awaitable off. The future holds what it returned, or the exception it raised as a value."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=_run, args=[self._loop], name="async-rewards", daemon=True).start()
            weakref.finalize(self, self._loop.call_soon_threadsafe, self._loop.stop)
        return asyncio.run_coroutine_threadsafe(_outcome(awaitable), self._loop)


async def _outcome(awaitable: Awaitable[Any]) -> Any:
    (outcome,) = await asyncio.gather(awaitable, return_exceptions=True)
    return outcome


def _run(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    loop.close()
