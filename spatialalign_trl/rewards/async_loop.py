"""Where async rewards run: an event loop in a thread of its own."""

import asyncio
import functools
import inspect
import threading
import weakref
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any


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
