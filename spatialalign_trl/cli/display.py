"""Format the output of `spatialalign score`: the table, the summary line, and the list of problems."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import IO

from rich.console import Console
from rich.table import Table

from spatialalign_trl.cli.results import ScoredVideo, component_names
from spatialalign_trl.cli.work import Problem
from spatialalign_trl.errors import printable
from spatialalign_trl.evaluation import success_rate
from spatialalign_trl.safe_text import terminal_text

PIPED_WIDTH = 160
"""Width of the table in characters when it is written to a file or a pipe, which have no width of their own."""


def console_for(stream: IO[str]) -> Console:
    """Return a console that writes to `stream`: as wide as the terminal, or `PIPED_WIDTH` if there is none."""
    width = None if stream.isatty() or "COLUMNS" in os.environ else PIPED_WIDTH
    return Console(file=stream, width=width, highlight=False)


def score_table(scored: Sequence[ScoredVideo], threshold: float) -> Table:
    """Make a table with one row per video. Scores from `threshold` on are green, lower ones red, INVALID ones grey."""
    names = component_names(scored)
    table = Table(title="DSR-Score", title_style="bold", title_justify="left")
    table.add_column("file", overflow="fold", min_width=12)
    table.add_column("type", no_wrap=True)
    table.add_column("score", justify="right", no_wrap=True)
    for name in names:
        table.add_column(terminal_text(name.replace("_", " ")), justify="right", max_width=8)
    table.add_column("frames", justify="right", no_wrap=True)
    table.add_column("reason", overflow="fold", min_width=6)
    # File names, or whole paths if two videos have the same file name.
    files = [printable(video.job.path.name) for video in scored]
    if len(set(files)) < len(files):
        files = [printable(video.job.path) for video in scored]
    for video, file in zip(scored, files, strict=True):
        cells = [file, video.job.question.type, score_text(video.reward)]
        components = [video.scores.get(name) for name in names]
        cells += ["" if value is None else f"{value:+.3f}" for value in components]
        cells += [f"{video.counted_frames}/{video.tracks.num_frames}", video.result.reason or ""]
        style = "dim"
        if video.reward is not None:
            style = "bold green" if success_rate([video.reward], threshold) else "red"
        table.add_row(*map(terminal_text, cells[:2]), terminal_text(cells[2], style), *map(terminal_text, cells[3:]))
    return table


def score_text(score: float | None) -> str:
    """Format a score, rounded down so that a score just below a threshold does not look as if it had reached it."""
    return "INVALID" if score is None else f"{math.floor(score * 1000 + 1e-6) / 1000:.3f}"


def summary_line(scored: Sequence[ScoredVideo], thresholds: Sequence[float]) -> str:
    """Summarise all scored videos: S@tau, the rate of INVALID ones, and the mean score of the valid ones."""
    rewards = [video.reward for video in scored]
    valid = [reward for reward in rewards if reward is not None]
    numbers = [f"S@{tau:g} {success_rate(rewards, tau):.3f}" for tau in thresholds]
    numbers.append(f"invalid {rewards.count(None) / len(rewards):.3f} ({rewards.count(None)})")
    if valid:
        numbers.append(f"mean of the valid videos {sum(valid) / len(valid):.3f}")
    return f"{_count(len(rewards), 'video')}: {', '.join(numbers)}. INVALID counts as a failure in S@tau."


def problem_lines(problems: Sequence[Problem], outcome: str = "could not be scored") -> list[str]:
    """List the inputs that could not be scored (or what else `outcome` says), grouped by the reason."""
    by_reason: dict[str, list[str]] = {}
    for problem in problems:
        by_reason.setdefault(problem.why, []).append(problem.what)
    lines = [f"{_count(len(problems), 'input')} {outcome}:"]
    for why, inputs in by_reason.items():
        # Inputs with the same reason, such as all prompts without a video, share a line.
        lines.append(f"  {inputs[0]}: {why}" if len(inputs) == 1 else f"  {why} ({len(inputs)}): {', '.join(inputs)}")
    return lines


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
