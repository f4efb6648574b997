"""Before/after tables, for the terminal and for Markdown. Obedience and looks stand side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from ..evaluation import HEADLINE, THRESHOLDS

Summary = Mapping[str, Any]


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _with_interval(summary: Summary, name: str) -> str:
    interval = summary.get(f"{name}_interval")
    text = _share(summary.get(name))
    return f"{text} [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else text


def summary_rows(summaries: Mapping[str, Summary]) -> list[list[str]]:
    """Rows of a table with one column per policy: `[measure, value of the first policy, value of the second, ...]`.

    Args:
        summaries: name of a policy -> what `evaluation.summarize` returned.
    """
    names = [*(f"S@{tau}" for tau in THRESHOLDS), "dsr_mean", "invalid_rate"]
    columns = list(summaries.values())
    rows = [[name, *(_with_interval(summary, name) for summary in columns)] for name in names]
    types = dict.fromkeys(t for summary in columns for t in summary.get("by_type", {}))
    for type in types:
        values = [summary.get("by_type", {}).get(type, {}).get(HEADLINE) for summary in columns]
        rows.append([f"{HEADLINE} {type}", *map(_share, values)])
    for group in ("components", "quality"):
        for measure in dict.fromkeys(name for summary in columns for name in summary.get(group, {})):
            rows.append([measure, *(_share(summary.get(group, {}).get(measure)) for summary in columns)])
    return rows


def rich_table(summaries: Mapping[str, Summary], title: str | None = None) -> Table:
    """The rows of `summary_rows` for a terminal; the headline measure stands out."""
    table = Table(title=title, title_style="bold")
    table.add_column("measure")
    for name in summaries:
        table.add_column(name, justify="right")
    for row in summary_rows(summaries):
        table.add_row(*row, style="bold" if row[0] == HEADLINE else None)
    return table


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A GitHub-flavoured Markdown table.

    Raises:
        ValueError: for a row that is longer or shorter than the header.
    """
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"a row has {len(row)} cells under {len(header)} headers: {list(row)}")
    lines = [" | ".join(cell.replace("|", "\\|") for cell in cells) for cells in (header, *rows)]
    return "\n".join([f"| {lines[0]} |", "|" + "---|" * len(header), *(f"| {line} |" for line in lines[1:])])
