"""
Run a reward's or a quality guard's code so that it can neither end nor change the run: it is third-party code.

Whatever it sets for the whole process (working directory, random state, torch's gradient mode and default dtype,
...) is as before when its code returns, and `sys.exit` becomes an error. Not restored: environment variables and
imported modules, which it may need to set when it loads its models.
"""

from __future__ import annotations

import gc
import logging
import os
import random
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

logger = logging.getLogger(__name__)

_logged: set[tuple[str, str]] = set()


class RewardExit(RuntimeError):
    """A reward, or a quality guard, tried to end the process with `sys.exit(code)`."""

    def __init__(self, code: Any) -> None:
        super().__init__(f"called sys.exit({code!r}). Raise an exception instead, or return None for INVALID")


@contextmanager
def contained(name: str, kind: str = "reward") -> Iterator[None]:
    """
    Run third-party code: restore the state of the process afterwards, and turn `sys.exit` into an error.

    A change, other than of random states, is logged once per name.

    Args:
        name (`str`):
            The reward, for messages.
        kind (`str`, *optional*, defaults to `"reward"`):
            What it is, if it is no reward.

    Raises:
        `RewardExit`: if the code raises `SystemExit`. `KeyboardInterrupt` passes, because it comes from the user.
    """
    settings = [(setting, setting.read()) for setting in _settings()]
    states = [(state, state.read()) for state in _random_states()]
    error_filters = _error_filters()
    try:
        yield
    except SystemExit as error:
        raise RewardExit(error.code) from error
    finally:
        for setting, value in settings:
            if setting.read() != value:
                setting.write(value)
                _log_change(kind, name, setting.name)
        for state, value in states:  # drawing random numbers is normal, so it is not logged
            state.write(value)
        if new := [entry for entry in _error_filters() if entry not in error_filters]:
            warnings.filters[:] = [entry for entry in warnings.filters if entry not in new]
            with warnings.catch_warnings():  # its end makes Python forget what it cached about the filters
                pass
            _log_change(kind, name, "warnings into errors")


def _log_change(kind: str, name: str, what: str) -> None:
    if (name, what) not in _logged:
        _logged.add((name, what))
        logger.warning("The %s %r changed %s, which holds for the whole process. It was restored.", kind, name, what)


class _Setting(NamedTuple):
    """Something that holds for the process or the thread, and how to read and write it."""

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], Any]


def _settings() -> list[_Setting]:
    settings = [
        _Setting("the working directory", _working_directory, os.chdir),
        _Setting("NumPy's handling of errors", np.geterr, lambda value: np.seterr(**value)),
        _Setting("the garbage collection", gc.isenabled, lambda value: gc.enable() if value else gc.disable()),
        _Setting("the recursion limit", sys.getrecursionlimit, sys.setrecursionlimit),
        _Setting("the timeout of sockets", socket.getdefaulttimeout, socket.setdefaulttimeout),
        _Setting("stdout", lambda: sys.stdout, lambda value: setattr(sys, "stdout", value)),
        _Setting("stderr", lambda: sys.stderr, lambda value: setattr(sys, "stderr", value)),
        _Setting("the level of logging", lambda: logging.root.manager.disable, logging.disable),
    ]
    if threading.current_thread() is threading.main_thread():  # no other thread may set them
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not None:  # None: not set by Python, so it cannot be set again
                settings.append(_signal_handler(number))
    if "torch" in sys.modules:
        settings += _torch_settings()
    return settings


def _working_directory() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:  # it was deleted
        return "/"


def _signal_handler(number: signal.Signals) -> _Setting:
    return _Setting(
        f"the handler of {number.name}",
        lambda: signal.getsignal(number),
        lambda handler: signal.signal(number, handler),
    )


def _torch_settings() -> list[_Setting]:
    import torch

    def set_device(device: torch.device) -> None:
        # "cpu" set explicitly would slow down every call, so the default is restored by taking the setting back.
        torch.set_default_device(None if device.type == "cpu" else device)

    def deterministic() -> tuple[bool, bool]:
        return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()

    cudnn = torch.backends.cudnn
    return [
        _Setting("torch's gradient mode", torch.is_grad_enabled, torch.set_grad_enabled),
        _Setting("torch's default dtype", torch.get_default_dtype, torch.set_default_dtype),
        _Setting("torch's default device", torch.get_default_device, set_device),
        _Setting("torch's number of threads", torch.get_num_threads, torch.set_num_threads),
        _Setting(
            "torch's deterministic algorithms",
            deterministic,
            lambda value: torch.use_deterministic_algorithms(value[0], warn_only=value[1]),
        ),
        _Setting(
            "torch's precision of matrix products",
            torch.get_float32_matmul_precision,
            torch.set_float32_matmul_precision,
        ),
        _Setting("torch's anomaly detection", torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
        _Setting("cudnn.benchmark", lambda: cudnn.benchmark, lambda value: setattr(cudnn, "benchmark", value)),
        _Setting(
            "cudnn.deterministic", lambda: cudnn.deterministic, lambda value: setattr(cudnn, "deterministic", value)
        ),
    ]


def _random_states() -> list[_Setting]:
    states = [
        _Setting("Python's random state", random.getstate, random.setstate),
        _Setting("NumPy's random state", np.random.get_state, np.random.set_state),
    ]
    if "torch" in sys.modules:
        import torch

        states.append(_Setting("torch's random state", torch.get_rng_state, torch.set_rng_state))
        if torch.cuda.is_available() and torch.cuda.is_initialized():  # reading would initialise it
            states.append(_Setting("CUDA's", torch.cuda.get_rng_state_all, torch.cuda.set_rng_state_all))
    return states


def _error_filters() -> list[tuple]:
    return [entry for entry in warnings.filters if entry[0] == "error"]
