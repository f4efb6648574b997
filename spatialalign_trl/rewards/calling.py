"""
Call rewards and read what they return.

Rewards are third-party code, plain or async: whatever one raises, returns or logs must neither end the run nor spoil
the values of another reward.
"""

import asyncio
import functools
import inspect
import math
import threading
import weakref
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from spatialalign_trl.safe_text import mask_text


def call_rewards(
    rewards: Mapping[str, Callable[..., Any]],
    arguments: Mapping[str, Sequence[Any]],
    trainer_state: Any,
    log: "CallLog",
    loop: "AsyncLoop",
) -> dict[str, Any]:
    """
    Call every reward and collect the answers. Async rewards are started first and all wait at the same time, while the
    plain ones run one after the other.

    Args:
        rewards (mapping of `str` to callables):
            The rewards by name.
        arguments (mapping of `str` to sequences of `N`):
            `prompts`, `completions`, and the other columns of the prompts.
        trainer_state:
            Passed on to the rewards.
        log ([`CallLog`]):
            Receives what the rewards log.
        loop ([`AsyncLoop`]):
            Runs the async rewards.

    Returns:
        `dict[str, Any]`: what each reward returned, or the exception it raised.
    """
    answers: dict[str, Any] = {}
    waiting: dict[str, Future] = {}
    try:
        for name in sorted(rewards, key=lambda name: not is_async(rewards[name])):
            columns = {column: list(values) for column, values in arguments.items()}
            hooks = {"log_extra": functools.partial(log.extra, name), "log_metric": log.metric}
            try:
                answer = rewards[name](**columns, trainer_state=trainer_state, **hooks)
            except Exception as error:  # a reward may raise anything
                answer = error
            if inspect.isawaitable(answer):
                waiting[name] = loop.start(answer)
            else:
                answers[name] = answer
        answers |= {name: future.result() for name, future in waiting.items()}
    finally:
        for future in waiting.values():  # after Ctrl-C nothing reads their results
            future.cancel()
    return answers


def read_answer(answer: Any, count: int) -> tuple[list[float | None], list[str | None]]:
    """
    Read one reward's answer.

    Args:
        answer:
            What the reward returned, or the exception it raised.
        count (`int`):
            The number of videos.

    Returns:
        `(values, problems)`: one finite number or `None` per video, and the reason why a value is unusable or `None`.
    """
    problem = None
    if isinstance(answer, BaseException):
        problem = mask_text(f"{type(answer).__name__}: {answer}")  # it may quote the request, and with it a key
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
        number = None
        if value is not None:
            try:
                number = math.nan if isinstance(value, (str, bytes)) else float(value)
            except (TypeError, ValueError):
                number = math.nan
        is_usable = number is None or math.isfinite(number)
        values.append(number if is_usable else None)
        problems.append(None if is_usable else f"returned {value!r}, which is no finite number")
    return values, problems


class CallLog:
    """
    What the rewards log during one call, through the hooks `log_extra` and `log_metric`.

    Args:
        count (`int`):
            The number of videos.

    Attributes:
        columns (`dict[str, list]`):
            From `log_extra`: one value per video.
        metrics (`dict[str, list[float]]`):
            From `log_metric`: the finite numbers logged under each name.
    """

    def __init__(self, count: int) -> None:
        self.columns: dict[str, list] = {}
        self.metrics: dict[str, list[float]] = {}
        self._count = count
        self._writers: dict[str, str] = {}

    def extra(self, reward: str, column: str, values: Sequence[Any]) -> None:
        """
        Log one value per video.

        Args:
            reward (`str`):
                The reward that logs.
            column (`str`):
                The column's name.
            values (sequence of `N`):
                The values; NumPy and torch scalars become Python numbers.

        Raises:
            `ValueError`: for another number of values than videos, or a column that another reward writes.
        """
        values = [_plain(value) for value in values]
        if len(values) != self._count:
            raise ValueError(f"log_extra({column!r}) got {len(values)} values for {self._count} videos")
        if self._writers.setdefault(column, reward) != reward:
            raise ValueError(f"log_extra({column!r}): the column is already written by {self._writers[column]!r}")
        self.columns[column] = values

    def metric(self, name: str, value: float) -> None:
        """Log a number, which is averaged with the others of that name; one that is not finite is dropped."""
        value = float(value)
        if math.isfinite(value):
            self.metrics.setdefault(name, []).append(value)


def _plain(value: Any) -> Any:
    """Convert NumPy and torch scalars to Python numbers, and NaN to None, because columns are stored as JSON."""
    if getattr(value, "ndim", None) == 0:
        value = value.item()
    return None if isinstance(value, float) and math.isnan(value) else value


def is_async(reward: Callable[..., Any]) -> bool:
    """Return whether calling a reward returns an awaitable, as far as this can be known without calling it."""
    while isinstance(reward, functools.partial):
        reward = reward.func
    return inspect.iscoroutinefunction(reward) or inspect.iscoroutinefunction(type(reward).__call__)


class AsyncLoop:
    """
    An event loop in its own thread, which works even if the caller is inside a running loop, as in a notebook.

    The loop lives as long as this object, because async rewards may keep a client that is bound to it. Its thread
    starts with the first awaitable.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self, awaitable: Awaitable[Any]) -> Future:
        """Start an awaitable. The future's result is what it returns, or the exception it raises as a value."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=_run, args=[self._loop], name="async-rewards", daemon=True).start()
            weakref.finalize(self, self._loop.call_soon_threadsafe, self._loop.stop)
        return asyncio.run_coroutine_threadsafe(_result_or_exception(awaitable), self._loop)


async def _result_or_exception(awaitable: Awaitable[Any]) -> Any:
    (result,) = await asyncio.gather(awaitable, return_exceptions=True)
    return result


def _run(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    loop.close()
