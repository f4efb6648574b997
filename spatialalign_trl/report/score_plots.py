"""Plot the relations' curves of a video over time, and mark the frames that its score averages."""

from __future__ import annotations

import io
import os
import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spatialalign_trl.files import write_atomic
from spatialalign_trl.prompts.relations import END_FRAMES

# Distinguishable for most colour-blind readers, and in grey. The last colours are for long sequences.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#7a6a00", "#444444")
_SHADE, _INK, _FAINT = "#f0c419", "#1f2328", "#57606a"
_TITLE_LETTERS, _NOTE_LETTERS = 62, 104


@dataclass(frozen=True)
class RelationCurve:
    """One relation over the counted frames of a video.

    Args:
        name (`str`): The name in the legend, such as `"on the left of (start)"`.
        values (`np.ndarray` of shape `(n,)`): SSR in [-1, 1], one per counted frame, in time order.
    """

    name: str
    values: np.ndarray


def plot_curves(
    path: str | os.PathLike,
    curves: Sequence[RelationCurve],
    frame_indices: np.ndarray,
    num_frames: int,
    *,
    title: str,
    note: str | None = None,
    visits: Sequence[int] = (),
) -> Path:
    """Write the relations' curves of one video to a PNG.

    The frames that the score averages, such as the first and the last three counted ones, are shaded. Curves are
    interrupted where frames are not counted, and a grey line at the bottom marks these frames.

    Args:
        path (`str` or `os.PathLike`): The `.png` file. Missing folders are created.
        curves (sequence of [`RelationCurve`]): The relations in order; at least one.
        frame_indices (`np.ndarray` of shape `(n,)`): The positions of the counted frames in the clip, ascending.
        num_frames (`int`): The length of the clip in frames.
        title (`str`): The heading, such as the score and the two things.
        note (`str`, *optional*): A second, smaller heading, such as the prompt or why the video is INVALID.
        visits (sequence of `int`, *optional*): Frames at which the visits of the middle relations begin. The three
            counted frames from there on are averaged, and shaded, as well.

    Returns:
        `Path`: the file written.

    Raises:
        ValueError: when there are no curves, or a curve does not have one value per counted frame.
    """
    frame_indices = np.asarray(frame_indices, dtype=np.int64)
    if not curves:
        raise ValueError("there are no curves to draw. Give at least one relation")
    for curve in curves:
        if np.shape(curve.values) != frame_indices.shape:
            raise ValueError(
                f"the curve {curve.name!r} has shape {np.shape(curve.values)}, but {len(frame_indices)} frames are "
                "counted. Give one value per counted frame"
            )
    # Not pyplot, which keeps figures in global state and opens windows if there is a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _draw_curves(axes, curves, frame_indices, num_frames)
    _shade_averaged(axes, frame_indices, visits)
    _mark_uncounted(axes, frame_indices, num_frames)
    _label(axes, num_frames, title, note)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # A letter that the font lacks becomes a box. File names and prompts may contain any, so do not warn.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return write_atomic(path, buffer.getvalue())


def _draw_curves(axes, curves: Sequence[RelationCurve], frame_indices: np.ndarray, num_frames: int) -> None:
    few = num_frames <= 33  # so that single points can be distinguished
    for number, curve in enumerate(curves):
        over_time = np.full(num_frames, np.nan)  # matplotlib breaks a line at NaN
        over_time[frame_indices] = curve.values
        color = _COLORS[number % len(_COLORS)]
        # Draw the first curve wider, so that it stays visible where another one covers it.
        width = 3.0 if number == 0 else 1.8
        axes.plot(over_time, color=color, linewidth=width, marker="o", markersize=5 if few else 2.2, label=curve.name)


def _shade_averaged(axes, frame_indices: np.ndarray, visits: Sequence[int]) -> None:
    if not len(frame_indices):
        axes.text(0.5, 0.55, "no frame shows both", transform=axes.transAxes, ha="center", color=_FAINT, fontsize=14)
        return
    between = [frame_indices[frame_indices >= begin][:END_FRAMES] for begin in visits]
    label = f"averaged: the first and the last {END_FRAMES} counted frames" + (", and each visit's" if between else "")
    for frames in (frame_indices[:END_FRAMES], *between, frame_indices[-END_FRAMES:]):
        axes.axvspan(frames[0] - 0.5, frames[-1] + 0.5, color=_SHADE, alpha=0.28, linewidth=0, zorder=0, label=label)
        label = None


def _mark_uncounted(axes, frame_indices: np.ndarray, num_frames: int) -> None:
    """Draw a line along the bottom under the frames that are not counted."""
    missing = np.setdiff1d(np.arange(num_frames), frame_indices)
    if not len(missing):
        return
    stretches = np.split(missing, np.flatnonzero(np.diff(missing) > 1) + 1)
    label = f"not counted ({len(missing)} of {num_frames} frames)"
    for stretch in stretches:
        ends = [stretch[0] - 0.5, stretch[-1] + 0.5]
        axes.plot(ends, [-1.13, -1.13], color="#8c959f", linewidth=5, solid_capstyle="butt", label=label)
        label = None


def _label(axes, num_frames: int, title: str, note: str | None) -> None:
    # File names and prompts may contain dollar signs, which matplotlib would parse as formulas.
    heading = textwrap.fill(title, _TITLE_LETTERS).replace("$", r"\$")
    small = textwrap.fill(note or "", _NOTE_LETTERS).replace("$", r"\$")
    lines = small.count("\n") + 1 if small else 0
    axes.set_title(heading, loc="left", fontsize=13, color=_INK, fontweight="bold", pad=8 + 13 * lines)
    if small:
        axes.annotate(
            small, (0, 1), (0, 5), xycoords="axes fraction", textcoords="offset points", fontsize=9, color=_FAINT,
            va="bottom",
        )  # fmt: skip
    axes.set_xlim(-0.5 - 0.01 * num_frames, num_frames - 0.5 + 0.01 * num_frames)
    axes.set_ylim(-1.2, 1.1)
    axes.set_yticks([-1, -0.5, 0, 0.5, 1])
    axes.set_xlabel("frame", color=_INK)
    axes.set_ylabel("SSR: how well the relation holds, -1 to 1", color=_INK)
    axes.locator_params(axis="x", integer=True)
    axes.axhline(0, color="#8c959f", linewidth=0.8, zorder=0)
    axes.grid(color="#d8dee4", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    # Below the axes, because the curves fill all of their area.
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False, fontsize=9.5)
