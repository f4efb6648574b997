"""Give every video one frame rate: find it from the time stamps, and repeat frames where a file leaves some out.

Files with a variable frame rate, and gifs that merge equal frames, store a frame once and show it for longer. What is
computed from frames (curves, speeds, models) takes each for one step in time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DEFAULT_FPS = 16.0
"""The frame rate of the paper's videos, for files that have none."""

_SLOWEST, _FASTEST = 1, 120
"""Frames per second that players keep up with."""

_EXACT, _JITTER = 0.1, 0.3
"""Largest distance of a time stamp from its place on the grid of frames, as a share of the grid's step: containers
round time stamps (mkv to milliseconds, gif to hundredths of a second), and cameras are not exact."""

_SAME_RATE = 0.01
"""Largest relative difference of the rate in a file's header from the one of its time stamps."""


def playable_fps(fps: float) -> float:
    """Return the frames per second to show a video at: its own, or the default if players cannot keep up with it."""
    return fps if _SLOWEST <= fps <= _FASTEST else DEFAULT_FPS


@dataclass(frozen=True)
class Timing:
    """
    When the frames of a video are shown.

    Attributes:
        fps (`float`): Frames per second, above 0.
        indices (`np.ndarray` of `int`, *optional*): For each frame at that rate, the stored frame that is shown then.
            `None` if these are all stored frames in order.
    """

    fps: float
    indices: np.ndarray | None = None


def find_timing(times: Sequence[float] | None, end: float | None, rates: Sequence[float]) -> Timing:
    """
    Find the frame rate of a video and the frames that it shows at that rate.

    Args:
        times (sequence of `float`, *optional*):
            The second at which each stored frame is shown, in order; `None` if the file has no time stamps.
        end (`float`, *optional*):
            The second at which the last frame ends, if it is known.
        rates (sequence of `float`):
            The frame rates that the header names, in the order of trust; may be empty.

    Returns:
        [`Timing`]: the nominal frame rate, which is that of the finest regular grid on which all time stamps lie, or
        without one the usual distance of two frames; and the stored frame that is shown in the middle of each step.
    """
    rates = [rate for rate in rates if rate > 0]
    declared = rates[0] if rates else DEFAULT_FPS
    steps = np.diff(np.asarray(times if times is not None else (), float))
    if len(steps) == 0 or not (steps > 0).all():
        return Timing(declared)

    # Distances that may be the grid's step. The smallest one may be several steps long.
    usual, shortest = float(np.median(steps)), float(steps.min())
    named = [1 / rate for rate in rates if 1 / rate > 0.3 * shortest]  # 1000 fps fit all stamps in milliseconds
    likely = [usual, *named, shortest]
    tries = [(step, _EXACT) for step in likely] + [(step, _JITTER) for step in likely]
    tries += [(shortest / 2, _EXACT), (shortest / 3, _EXACT)]  # last: all stamps lie on a fine enough grid
    grids = (_grid(steps, step, tolerance) for step, tolerance in tries)
    places, step = next((grid for grid in grids if grid is not None), (None, usual))
    if places is None:
        places = np.concatenate([[0.0], np.cumsum(steps)]) / step
    fps = next((rate for rate in rates if abs(rate * step - 1) < _SAME_RATE), 1 / step)

    # Each frame is shown until the next one, and the last one until its end.
    hold = 1.0 if end is None else max(1.0, (end - times[-1]) / step)
    count = round(places[-1] + hold)
    moments = np.arange(count) + 0.5
    moments[0] = 0.0  # how a movement starts is never left out
    indices = np.searchsorted(places, moments, side="right") - 1
    is_constant = count == len(times) and (indices == np.arange(count)).all()
    return Timing(fps, None if is_constant else indices)


def _grid(steps: np.ndarray, step: float, tolerance: float) -> tuple[np.ndarray, float] | None:
    """Return the whole-numbered places of the frames on a grid of about this step, and the exact step, if they fit."""
    for _ in range(3):  # the step gets exact enough to count long gaps
        counts = np.round(steps / step)
        if counts.min() < 1:
            return None
        single = steps[counts == 1]
        step = float((single if len(single) else steps / counts).mean())
    places = np.concatenate([[0.0], np.cumsum(counts)])
    times = np.concatenate([[0.0], np.cumsum(steps)])
    step, start = np.polyfit(places, times, 1)
    distance = np.abs(times - start - step * places).max()
    return (places, float(step)) if distance <= tolerance * step else None
