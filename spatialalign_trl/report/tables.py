"""Make tables of several policies' measures for the terminal, Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from spatialalign_trl.errors import printable
from spatialalign_trl.evaluation import MEANS, THRESHOLDS, headline_of
from spatialalign_trl.safe_text import terminal_text

Summary = Mapping[str, Any]


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _with_interval(summary: Summary, name: str) -> str:
    interval = summary.get(f"{name}_interval")
    text = _share(summary.get(name))
    return f"{text} [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else text


def obedience_measures(summaries: Mapping[str, Summary]) -> list[str]:
    """List the measures of obedience: S@tau, the mean score under its name in the summaries, and the INVALID rate.

    If the headline measure is the mean score, it comes first, followed only by those S@tau that are not 0 everywhere.

    Args:
        summaries (`dict`): Policy -> what `evaluation.summarize` returned.
    """
    means = [name for name in MEANS if any(name in summary for summary in summaries.values())]
    rates = [f"S@{tau}" for tau in THRESHOLDS]
    if headline_of_all(summaries) in rates:
        return [*rates, *means, "invalid_rate"]
    return [
        *means,
        *(name for name in rates if any(summary.get(name) for summary in summaries.values())),
        "invalid_rate",
    ]


def headline_of_all(summaries: Mapping[str, Summary]) -> str:
    """Return the headline measure, which is that of the first policy."""
    return headline_of(next(iter(summaries.values()), {}))


def all_differences(difference: Mapping[str, Any]) -> dict[str, Any]:
    """Collect the differences of all measures that a policy was compared in, by the measure's name."""
    groups = ("rewards", "components", "quality")
    return {name: value for group in groups for name, value in difference.get(group, {}).items()}


def summary_rows(summaries: Mapping[str, Summary]) -> list[list[str]]:
    """Make the rows of a table with one column per policy: `[measure, value of the first policy, ...]`.

    Args:
        summaries (`dict`): Policy -> what `evaluation.summarize` returned.
    """
    names, headline = obedience_measures(summaries), headline_of_all(summaries)
    columns = list(summaries.values())
    rows = [[name, *(_with_interval(summary, name) for summary in columns)] for name in names]
    types = dict.fromkeys(t for summary in columns for t in summary.get("by_type", {}))
    for type in types:
        values = [summary.get("by_type", {}).get(type, {}).get(headline) for summary in columns]
        rows.append([f"{headline} {type}", *map(_share, values)])
    for group, prefix in (("rewards", "mean "), ("components", ""), ("quality", "")):
        for measure in dict.fromkeys(name for summary in columns for name in summary.get(group, {})):
            rows.append([prefix + measure, *(_share(summary.get(group, {}).get(measure)) for summary in columns)])
    return rows


def rich_table(summaries: Mapping[str, Summary], title: str | None = None) -> Table:
    """Make a table of [`summary_rows`] for a terminal, with the headline measure in bold.

    Args:
        summaries (`dict`): Policy -> what `evaluation.summarize` returned.
        title (`str`, *optional*): The heading.
    """
    table = Table(title=None if title is None else terminal_text(title), title_style="bold")
    table.add_column("measure")
    for name in summaries:
        table.add_column(terminal_text(name), justify="right")
    headline = headline_of_all(summaries)
    for row in summary_rows(summaries):
        table.add_row(*map(terminal_text, row), style="bold" if row[0] == headline else None)
    return table


def markdown_cell(text: str) -> str:
    """Escape a text from data for a cell of a Markdown table: HTML is shown as text, and nothing ends the cell.

    Args:
        text (`str`): The text. Markdown's own marks stay, because cards format cells with them.
    """
    line = text.replace("\r", " ").replace("\n", " ")
    return printable(line).replace("<", "&lt;").replace("|", "\\|")


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Make a GitHub-flavoured Markdown table.

    Args:
        header (sequence of `str`): The names of the columns.
        rows (sequence of sequences of `str`): The cells, as Markdown; `|` and `<` are escaped.

    Raises:
        ValueError: when a row is longer or shorter than the header.
    """
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"a row has {len(row)} cells under {len(header)} headers: {list(row)}")
    lines = [" | ".join(map(markdown_cell, cells)) for cells in (header, *rows)]
    return "\n".join([f"| {lines[0]} |", "|" + "---|" * len(header), *(f"| {line} |" for line in lines[1:])])


def latex_table(
    header: Sequence[str], names: Sequence[str], values: Sequence[Sequence[float | None]], better: Sequence[int]
) -> str:
    """Make a LaTeX `tabular` with the rules of the package booktabs: a column of names, then columns of numbers.

    Args:
        header (sequence of `str`): The names of all columns.
        names (sequence of `str`): The first cell of each row.
        values (sequence of sequences of `float`): The numbers of each row; `None` becomes a dash.
        better (sequence of `int`): For each column of numbers, 1 if the highest is best, -1 if the lowest is, 0 if
            neither. The best of several rows is bold.

    Raises:
        ValueError: when a row is longer or shorter than the header.
    """
    rows = []
    for name, row in zip(names, values, strict=True):
        cells = [_escaped(name)]
        for column, (value, sign) in enumerate(zip(row, better, strict=True)):
            text = "--" if value is None else f"{value:.3f}"
            known = [other[column] for other in values if other[column] is not None]
            can_win = sign and value is not None and len(known) > 1
            is_best = can_win and sign * value == max(sign * other for other in known)
            cells.append(f"\\textbf{{{text}}}" if is_best else text)
        if len(cells) != len(header):
            raise ValueError(f"a row has {len(cells)} cells under {len(header)} headers: {cells}")
        rows.append(" & ".join(cells) + r" \\")
    top = " & ".join(map(_escaped, header)) + r" \\"
    lines = [rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}", r"\toprule", top, r"\midrule", *rows, r"\bottomrule"]
    return "\n".join([*lines, r"\end{tabular}"]) + "\n"


def _escaped(text: str) -> str:
    """Escape the characters that LaTeX would interpret."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {letter: f"\\{letter}" for letter in "&%$#_{}"}
    return "".join(special.get(letter, letter) for letter in text)
