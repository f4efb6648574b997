"""
Call rewards and read what they return.

Rewards are third-party code, plain or async: whatever one raises, returns or logs must neither end the run nor spoil
the values of another reward.
"""

import asyncio
import functools
import inspect
import logging
import math
import threading
import weakref
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np

from spatialalign_trl.rewards.containment import RewardExit, contained
from spatialalign_trl.safe_text import mask_text

logger = logging.getLogger(__name__)

LARGEST = 1e30
"""Largest magnitude of a number: sums and squares of larger ones are infinite, which no file or mean can hold."""


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

    Raises:
        `KeyboardInterrupt`: if a reward raises it.
    """
    answers: dict[str, Any] = {}
    waiting: dict[str, Future] = {}
    with contained(
        ", ".join(rewards)
    ):  # async rewards change the state while others run, so it is restored at the end
        try:
            for name in sorted(rewards, key=lambda name: not is_async(rewards[name])):
                columns = {column: [_copy(value) for value in values] for column, values in arguments.items()}
                hooks = {"log_extra": functools.partial(log.extra, name), "log_metric": log.metric}
                try:
                    with contained(name):
                        answer = rewards[name](**columns, trainer_state=trainer_state, **hooks)
                except (Exception, asyncio.CancelledError, GeneratorExit) as error:  # a reward may raise anything
                    answer = error
                if inspect.isawaitable(answer):
                    waiting[name] = loop.start(answer)
                else:
                    answers[name] = answer
            answers |= {name: future.result() for name, future in waiting.items()}
        finally:
            for future in waiting.values():  # after Ctrl-C nothing reads their results
                future.cancel()
    for answer in answers.values():
        if isinstance(answer, KeyboardInterrupt):
            raise answer
    return answers


def _copy(value: Any) -> Any:
    """Copy what a reward could change in place: each reward has its own videos and cells."""
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, dict):
        return {name: _copy(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_copy(item) for item in value]
    return value


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
        problem = mask_text(error_text(answer))  # it may quote the request, and with it a key
    elif hasattr(answer, "tolist"):  # an array or a tensor
        try:
            answer = answer.tolist()
        except Exception as error:
            problem = f"returned a {type(answer).__name__} that cannot be read: {error_text(error)}"
    if problem is None and not isinstance(answer, (list, tuple)):
        problem = f"returned {type(answer).__name__} instead of a list with one value per video"
    elif problem is None and len(answer) != count:
        problem = f"returned {len(answer)} values for {count} videos"
    if problem is not None:
        return [None] * count, [problem] * count

    values, problems = [], []
    for value in answer:
        value, problem = read_number(value)
        values.append(value)
        problems.append(problem)
    return values, problems


def read_number(value: Any) -> tuple[float | None, str | None]:
    """Return a value as a number and no problem, or no number and the reason; `None` is neither."""
    if value is None:
        return None, None
    try:
        number = math.nan if isinstance(value, (str, bytes)) else float(value)
    except Exception:  # __float__ is the reward's code; a whole number may be too large
        number = math.nan
    if abs(number) <= LARGEST:
        return number, None
    reason = f"is beyond {LARGEST:g} in magnitude" if math.isfinite(number) else "is no finite number"
    try:
        shown = repr(value)
    except Exception:  # a whole number of more than 4300 digits; __repr__ is the reward's code
        shown = f"a {type(value).__name__}"
    return None, f"returned {shown[:100]}, which {reason}"


def error_text(error: BaseException) -> str:
    """Return the type and the message of an exception, on a line of text that every file can hold."""
    try:
        message = str(error)
    except Exception:  # __str__ is the reward's code
        message = "(it has no readable message)"
    return f"{type(error).__name__}: {message}".encode("utf-8", "replace").decode()


class CallLog:
    """
    What the rewards log during one call, through the hooks `log_extra` and `log_metric`.

    Args:
        count (`int`):
            The number of videos.
        reserved (collection of `str`, *optional*):
            Columns that no reward may write.

    Attributes:
        columns (`dict[str, list]`):
            From `log_extra`: one value per video.
        metrics (`dict[str, list[float]]`):
            From `log_metric`: the finite numbers logged under each name.
    """

    def __init__(self, count: int, reserved: Collection[str] = ()) -> None:
        self.columns: dict[str, list] = {}
        self.metrics: dict[str, list[float]] = {}
        self._count = count
        self._reserved = reserved
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
                The values: texts, numbers, and lists and mappings of them. Arrays and tensors become Python numbers,
                and numbers that are not finite, or beyond `LARGEST`, become `None`.

        Raises:
            `ValueError`: for another number of values than videos, a column that another reward or the library
                writes, or a whole number of more than 64 bits.
            `TypeError`: for a value or a name without a JSON form, because columns are stored as JSON.
        """
        if not isinstance(column, str):
            raise TypeError(f"log_extra({column!r}): the name of a column must be a text")
        if column in self._reserved:
            raise ValueError(f"log_extra({column!r}): the library writes a column of this name. Rename yours")
        column, dropped = _storable_text(column), []
        values = [_json_form(value, column, dropped) for value in values]
        if dropped:
            logger.warning(
                "log_extra(%r) of the reward %r got numbers beyond %g in magnitude, such as %r, which become None.",
                column, reward, LARGEST, dropped[0],
            )  # fmt: skip
        if len(values) != self._count:
            raise ValueError(f"log_extra({column!r}) got {len(values)} values for {self._count} videos")
        if self._writers.setdefault(column, reward) != reward:
            raise ValueError(f"log_extra({column!r}): the column is already written by {self._writers[column]!r}")
        self.columns[column] = values

    def metric(self, name: str, value: float) -> None:
        """Log a number, which is averaged with the others of that name; one that is not finite, or is beyond
        `LARGEST`, is dropped."""
        if not isinstance(name, str):
            raise TypeError(f"log_metric({name!r}): the name of a metric must be a text")
        value = float(value)
        if abs(value) <= LARGEST:
            self.metrics.setdefault(_storable_text(name), []).append(value)


def _json_form(value: Any, column: str, dropped: list[float]) -> Any:
    """Convert a logged value to plain Python with a JSON form; collect the huge numbers that become `None`."""
    if hasattr(value, "tolist"):  # NumPy's and torch's scalars, arrays and tensors
        value = value.tolist()
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _storable_text(value)
    if isinstance(value, int):
        if value.bit_length() > 64:
            raise ValueError(f"log_extra({column!r}): a whole number of {value.bit_length()} bits; 64 are possible")
        return value
    if isinstance(value, float):
        if abs(value) <= LARGEST:
            return value
        if math.isfinite(value):
            dropped.append(value)
        return None
    if isinstance(value, Mapping):
        return {_storable_text(str(key)): _json_form(item, column, dropped) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_form(item, column, dropped) for item in value]
    raise TypeError(
        f"log_extra({column!r}): a value of type {type(value).__name__} has no JSON form. Log texts, numbers, and "
        "lists and dicts of them"
    )


def _storable_text(text: str) -> str:
    """Replace lone surrogates, which UTF-8 files cannot hold."""
    return text.encode("utf-8", "replace").decode()


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
    (result,) = await asyncio.gather(_without_exit(awaitable), return_exceptions=True)
    return result


async def _without_exit(awaitable: Awaitable[Any]) -> Any:
    """Return what would end the thread of the loop, and leave everybody waiting, as a value."""
    try:
        return await awaitable
    except SystemExit as error:
        return RewardExit(error.code)
    except KeyboardInterrupt as error:
        return error


def _run(loop: asyncio.AbstractEventLoop) -> None:
    while True:
        try:
            loop.run_forever()
        except (SystemExit, KeyboardInterrupt):  # of a task that a reward started by itself; who waits for it is told
            continue
        break
    loop.close()
