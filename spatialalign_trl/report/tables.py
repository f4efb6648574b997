"""Before/after tables, for the terminal, Markdown and LaTeX. Obedience and looks stand side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from spatialalign_trl.evaluation import MEANS, THRESHOLDS, headline_of

Summary = Mapping[str, Any]


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _with_interval(summary: Summary, name: str) -> str:
    interval = summary.get(f"{name}_interval")
    text = _share(summary.get(name))
    return f"{text} [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else text


def obedience_measures(summaries: Mapping[str, Summary]) -> list[str]:
    """S@tau, the mean score by the name it has in these summaries, and the share of INVALID videos. Of a score that is
    told by its mean, that stands first, and only those of S@tau that anything reaches."""
    means = [name for name in MEANS if any(name in summary for summary in summaries.values())]
    rates = [f"S@{tau}" for tau in THRESHOLDS]
    if headline_of_all(summaries) in rates:
        return [*rates, *means, "invalid_rate"]
    return [*means, *(name for name in rates if any(one.get(name) for one in summaries.values())), "invalid_rate"]


def headline_of_all(summaries: Mapping[str, Summary]) -> str:
    """The measure that stands out: that of the first policy."""
    return headline_of(next(iter(summaries.values()), {}))


def all_differences(difference: Mapping[str, Any]) -> dict[str, Any]:
    """Measure -> difference, of all that a policy was compared in."""
    groups = ("rewards", "components", "quality")
    return {name: one for group in groups for name, one in difference.get(group, {}).items()}


def summary_rows(summaries: Mapping[str, Summary]) -> list[list[str]]:
    """Rows of a table with one column per policy: `[measure, value of the first policy, value of the second, ...]`.

    Args:
        summaries: name of a policy -> what `evaluation.summarize` returned.
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
    """The rows of `summary_rows` for a terminal; the headline measure stands out."""
    table = Table(title=title, title_style="bold")
    table.add_column("measure")
    for name in summaries:
        table.add_column(name, justify="right")
    headline = headline_of_all(summaries)
    for row in summary_rows(summaries):
        table.add_row(*row, style="bold" if row[0] == headline else None)
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


def latex_table(
    header: Sequence[str], names: Sequence[str], values: Sequence[Sequence[float | None]], better: Sequence[int]
) -> str:
    """A `tabular` with the rules of the package booktabs, its first column text and the others numbers.

    Args:
        header: of all columns.
        names: of the rows.
        values: of the rows; `None` is a dash.
        better: of each column of numbers: 1 where the highest is best, -1 where the lowest is, 0 where neither; the
            best of several rows is bold.

    Raises:
        ValueError: for a row that is longer or shorter than the header.
    """
    rows = []
    for name, row in zip(names, values, strict=True):
        cells = [_escaped(name)]
        for column, (value, sign) in enumerate(zip(row, better, strict=True)):
            text = "--" if value is None else f"{value:.3f}"
            others = [one[column] for one in values if one[column] is not None]
            compared = sign and value is not None and len(others) > 1
            best = compared and sign * value == max(sign * other for other in others)
            cells.append(f"\\textbf{{{text}}}" if best else text)
        if len(cells) != len(header):
            raise ValueError(f"a row has {len(cells)} cells under {len(header)} headers: {cells}")
        rows.append(" & ".join(cells) + r" \\")
    top = " & ".join(map(_escaped, header)) + r" \\"
    lines = [rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}", r"\toprule", top, r"\midrule", *rows, r"\bottomrule"]
    return "\n".join([*lines, r"\end{tabular}"]) + "\n"


def _escaped(text: str) -> str:
    """Text that LaTeX prints as it is."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {letter: f"\\{letter}" for letter in "&%$#_{}"}
    return "".join(special.get(letter, letter) for letter in text)
