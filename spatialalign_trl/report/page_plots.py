"""Draw the page's plots as inline SVG, in the page's colours, so that they follow its dark and light themes."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_INK, _FAINT, _LINE = "#010203", "#010204", "#010205"
_SERIES = ("#010206", "#010207", "#010208")
_VARIABLES = {
    _INK: "var(--ink)",
    _FAINT: "var(--faint)",
    _LINE: "var(--line)",
    _SERIES[0]: "var(--first)",
    _SERIES[1]: "var(--second)",
    _SERIES[2]: "var(--third)",
}
"""Maps placeholder colours, which nothing else uses, to the page's colours, which replace them in the SVG."""

_CLEANING = (
    (r"<metadata>.*?</metadata>", ""),
    (r"<style.*?</style>", ""),  # would apply to the whole page
    (r'^<svg([^>]*?) width="[^"]*"', r"<svg\1"),  # the page sets the size
    (r'^<svg([^>]*?) height="[^"]*"', r"<svg\1"),
    (r'<g id="[^"]*"', "<g"),  # ids would be repeated in every plot
    (r"font-family: [^;\"]*;?", ""),
    (r"\n\s*", "\n"),
)
"""Patterns of what matplotlib writes for a separate file, and their replacements inside a page."""

_NUMBER_OF_BINS = 20


@dataclass(frozen=True)
class Plot:
    """A plot for the page.

    Args:
        title (`str`): The heading.
        alt (`str`): A description of the plot in words and numbers.
        svg (`str`): The `<svg>` element.
    """

    title: str
    alt: str
    svg: str


Points = Sequence[tuple[float, float]]


def training_plots(rounds: Sequence[Mapping[str, Any]]) -> list[Plot]:
    """Plot the margin, the errors, the distance to the reference, and the share of prompts without a pair.

    Args:
        rounds (sequence of `dict`): The records of the rounds (`round.json`). Their training logs are joined along the
            axis of steps.
    """
    starts, logs = _consecutive(rounds)
    plots = []
    for title, series in (
        ("Margin of winner over loser", {"rewards/margins": "margin"}),
        ("Prediction error (MSE)", {"mse/chosen": "winner", "mse/rejected": "loser"}),
        ("Distance to the reference", {"distance_to_reference": "distance"}),
    ):
        lines = {
            label: [(step, log[name]) for step, log in logs if _is_finite(log.get(name))]
            for name, label in series.items()
        }
        if any(lines.values()):
            plots.append(_line_plot(title, lines, starts))
    stats = [(int(record["round"]), record.get("preferences") or {}) for record in rounds]
    shares = [(number, values["share_without_pair"]) for number, values in stats if "share_without_pair" in values]
    if shares:
        plots.append(_share_plot("Prompts without a pair", shares))
    return plots


def score_histograms(groups: Mapping[str, Sequence[float | None]]) -> list[Plot]:
    """Plot one histogram per group, all to the same scale.

    Args:
        groups (`dict`): Name -> scores; `None` = INVALID, which the title counts.
    """
    valid = {name: [score for score in scores if score is not None] for name, scores in groups.items()}
    known = [score for scores in valid.values() for score in scores]
    bins = np.linspace(min([0.0, *known]), max([1.0, *known]), _NUMBER_OF_BINS + 1)
    shares = {name: np.histogram(scores, bins)[0] / max(1, len(groups[name])) for name, scores in valid.items()}
    top = max((share.max() for share in shares.values()), default=0) or 1
    return [_histogram(name, groups[name], valid[name], shares[name], bins, top) for name in groups if groups[name]]


def _consecutive(rounds: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[tuple[float, Mapping[str, Any]]]]:
    """Return the step at which each round begins, and all logs with steps counted across the rounds."""
    starts, logs, passed = [], [], 0.0
    for record in rounds:
        starts.append(passed)
        training = record.get("training") or []
        logs += [(passed + log["step"], log) for log in training]
        passed += max((log["step"] for log in training), default=0)
    return starts, logs


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _line_plot(title: str, lines: Mapping[str, Points], starts: Sequence[float]) -> Plot:
    figure, axes = _axes()
    for (label, points), color in zip(lines.items(), _SERIES, strict=False):
        if not points:
            continue
        few = len(points) <= 30
        axes.plot(*zip(*points, strict=True), color=color, linewidth=1.8, marker="o" if few else None, markersize=3,
                  label=label)  # fmt: skip
    for start in starts[1:]:
        axes.axvline(start, color=_FAINT, linewidth=0.8, linestyle=(0, (2, 3)))
    axes.set_xlabel("step" + (" (dotted: a round begins)" if len(starts) > 1 else ""))
    if len(lines) > 1:
        axes.legend(frameon=False, fontsize=8.5, labelcolor=_INK)
    changes = [f"{label} from {points[0][1]:.3g} to {points[-1][1]:.3g}" for label, points in lines.items() if points]
    last = max(points[-1][0] for points in lines.values() if points)
    return Plot(title, f"{title} over {last:g} steps: {', '.join(changes)}.", _svg(figure, title))


def _share_plot(title: str, shares: Points) -> Plot:
    figure, axes = _axes()
    numbers, values = zip(*shares, strict=True)
    axes.bar(numbers, values, color=_SERIES[0], width=0.55)
    for number, value in shares:
        axes.annotate(f"{value:.0%}", (number, value), (0, 3), textcoords="offset points", ha="center", color=_INK,
                      fontsize=9)  # fmt: skip
    axes.set_ylim(0, max(0.1, *values) * 1.2)
    axes.set_xlim(min(numbers) - 1, max(numbers) + 1)
    axes.set_xticks(numbers)
    axes.set_xlabel("round")
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g}%")
    values_text = ", ".join(f"round {number:g} {value:.0%}" for number, value in shares)
    return Plot(title, f"{title}: {values_text}.", _svg(figure, title))


def _histogram(
    name: str,
    scores: Sequence[float | None],
    valid: Sequence[float],
    shares: np.ndarray,
    bins: np.ndarray,
    top: float,
) -> Plot:
    figure, axes = _axes()
    axes.stairs(shares, bins, fill=True, color=_SERIES[0])
    margin = 0.01 * (bins[-1] - bins[0])
    axes.set_xlim(bins[0] - margin, bins[-1] + margin)
    axes.set_ylim(0, top * 1.12)
    axes.set_xlabel("score")
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g}%")
    note = f"{len(scores)} videos"
    if len(valid) < len(scores):
        note += f", {len(scores) - len(valid)} INVALID"
    description = note
    if valid:
        middle = float(np.median(valid))
        axes.axvline(middle, color=_SERIES[1], linewidth=1.5)
        axes.annotate(f"median {middle:.2f}", (middle, top * 1.06), (-5 if middle > 0.5 else 5, 0),
                      textcoords="offset points", ha="right" if middle > 0.5 else "left", va="center", color=_INK,
                      fontsize=8.5)  # fmt: skip
        low, high = np.quantile(valid, (0.25, 0.75))
        description += f"; median {middle:.2f}, the middle half between {low:.2f} and {high:.2f}"
    return Plot(f"{name} ({note})", f"Histogram of the scores, {name}: {description}.", _svg(figure, name))


def _axes() -> tuple[Any, Any]:
    # Not pyplot, which keeps figures in global state and opens windows if there is a display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 2.7), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.tick_params(colors=_FAINT, labelsize=8.5)
    axes.xaxis.label.set(color=_FAINT, fontsize=9)
    axes.grid(axis="y", color=_LINE, linewidth=0.7)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set(color=_LINE, visible=side in ("left", "bottom"))
    return figure, axes


def _svg(figure: Any, salt: str) -> str:
    import matplotlib

    buffer = io.StringIO()
    # Keep text as text, in the page's font. The salt makes the ids differ between plots, and repeatable.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt, "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    for pattern, replacement in _CLEANING:
        svg = re.sub(pattern, replacement, svg, flags=re.DOTALL)
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, variable)
    return svg.strip()
