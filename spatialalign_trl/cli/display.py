"""What `spatialalign score` prints: the table, the line below it, and the list of what could not be scored."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import IO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from spatialalign_trl.cli.results import ScoredVideo, component_names
from spatialalign_trl.cli.work import Problem, shown
from spatialalign_trl.evaluation import success_rate

PIPED_WIDTH = 160
"""Columns of the table where it goes to a file or a pipe: a file has no width to fit into."""


def console_for(stream: IO[str]) -> Console:
    """A console that writes to `stream`, as wide as the terminal, or wide enough for the table where there is none."""
    width = None if stream.isatty() or "COLUMNS" in os.environ else PIPED_WIDTH
    return Console(file=stream, width=width, highlight=False)


def score_table(scored: Sequence[ScoredVideo], threshold: float) -> Table:
    """One row a video; scores from `threshold` on are green, those below red, INVALID ones grey."""
    names = component_names(scored)
    table = Table(title="DSR-Score", title_style="bold", title_justify="left")
    table.add_column("file", overflow="fold", min_width=12)
    table.add_column("type", no_wrap=True)
    table.add_column("score", justify="right", no_wrap=True)
    for name in names:
        table.add_column(name.replace("_", " "), justify="right", max_width=8)
    table.add_column("frames", justify="right", no_wrap=True)
    table.add_column("reason", overflow="fold", min_width=6)
    short = _short_names(scored)
    for one, file in zip(scored, short, strict=True):
        cells = [file, one.job.question.type, score_text(one.reward)]
        cells += [_signed(one.scores.get(name)) for name in names]
        cells += [f"{one.counted_frames}/{one.tracks.num_frames}", one.result.reason or ""]
        # Text, not str: rich reads square brackets in a str, such as a file's name, as markup.
        texts = [Text(cell) for cell in cells]
        texts[2].stylize(_style(one.reward, threshold))
        table.add_row(*texts)
    return table


def score_text(score: float | None) -> str:
    """Rounded down: a score just below a threshold must not read as if it had reached it."""
    return "INVALID" if score is None else f"{math.floor(score * 1000 + 1e-6) / 1000:.3f}"


def summary_line(scored: Sequence[ScoredVideo], thresholds: Sequence[float]) -> str:
    """S@tau of all scored videos, the invalid rate, and the mean of the valid ones."""
    rewards = [one.reward for one in scored]
    valid = [reward for reward in rewards if reward is not None]
    shares = [f"S@{tau:g} {success_rate(rewards, tau):.3f}" for tau in thresholds]
    shares.append(f"invalid {rewards.count(None) / len(rewards):.3f} ({rewards.count(None)})")
    if valid:
        shares.append(f"mean of the valid {sum(valid) / len(valid):.3f}")
    return f"{_count(len(rewards), 'video')}: {', '.join(shares)}. INVALID counts as a failure in S@tau."


def problem_lines(problems: Sequence[Problem]) -> list[str]:
    """What could not be scored, grouped by why."""
    by_reason: dict[str, list[str]] = {}
    for problem in problems:
        by_reason.setdefault(problem.why, []).append(problem.what)
    lines = [f"{_count(len(problems), 'thing')} could not be scored:"]
    for why, things in by_reason.items():
        # Many of a kind, such as all prompts without a video, stand together.
        lines.append(f"  {things[0]}: {why}" if len(things) == 1 else f"  {why} ({len(things)}): {', '.join(things)}")
    return lines


def _short_names(scored: Sequence[ScoredVideo]) -> list[str]:
    """The files' names, or their paths where two have one name."""
    names = [shown(one.job.path.name) for one in scored]
    unique = len(set(names)) == len(names)
    return names if unique else [shown(one.job.path) for one in scored]


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.3f}"


def _style(score: float | None, threshold: float) -> str:
    if score is None:
        return "dim"
    return "bold green" if success_rate([score], threshold) else "red"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
