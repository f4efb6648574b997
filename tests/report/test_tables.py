"""Tables of several policies have a row per measure and a cell per policy, in the terminal, Markdown and LaTeX."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from spatialalign_trl.errors import printable
from spatialalign_trl.report.evaluation_files import print_results
from spatialalign_trl.report.tables import latex_table, markdown_cell, markdown_table, rich_table, summary_rows

BASE = {
    "S@0.5": 0.5, "S@0.6": 0.4, "S@0.7": 0.3, "S@0.8": 0.2, "S@0.9": 0.1, "S@0.7_interval": [0.25, 0.35],
    "dsr_mean": 0.61, "invalid_rate": 0.05,
    "components": {"dsr_initial_score": 0.5, "dsr_final_gap": -0.25},
    "by_type": {"LR": {"S@0.7": 0.4}, "TL": {"S@0.7": 0.2}},
    "quality": {"sharpness": 0.11, "distance_to_real": None},
}  # fmt: skip
ALIGNED = {
    **{f"S@{tau}": 0.9 for tau in (0.5, 0.6, 0.7, 0.8, 0.9)}, "S@0.7_interval": [0.85, 0.95],
    "dsr_mean": None, "invalid_rate": 0.0, "by_type": {"LR": {"S@0.7": 1.0}}, "quality": {"motion": 12.0},
}  # fmt: skip


def test_rows_hold_every_measure_once_with_a_cell_for_every_policy():
    rows = summary_rows({"base": BASE, "aligned": ALIGNED})
    assert rows == [
        ["S@0.5", "0.500", "0.900"],
        ["S@0.6", "0.400", "0.900"],
        ["S@0.7", "0.300 [0.250, 0.350]", "0.900 [0.850, 0.950]"],
        ["S@0.8", "0.200", "0.900"],
        ["S@0.9", "0.100", "0.900"],
        ["dsr_mean", "0.610", "-"],
        ["invalid_rate", "0.050", "0.000"],
        ["S@0.7 LR", "0.400", "1.000"],
        ["S@0.7 TL", "0.200", "-"],
        ["dsr_initial_score", "0.500", "-"],
        ["dsr_final_gap", "-0.250", "-"],
        ["sharpness", "0.110", "-"],
        ["distance_to_real", "-", "-"],
        ["motion", "-", "12.000"],
    ]


def test_the_mean_has_the_name_that_the_summaries_have():
    other = {name: value for name, value in BASE.items() if name != "dsr_mean"} | {"reward_mean": 0.4}
    rows = dict((row[0], row[1:]) for row in summary_rows({"base": other}))
    assert rows["reward_mean"] == ["0.400"] and "dsr_mean" not in rows


def test_a_mean_as_headline_comes_first_without_thresholds_that_nothing_reaches():
    low = {**{f"S@{tau}": 0.0 for tau in (0.5, 0.6, 0.7, 0.8, 0.9)}, "reward_mean": 0.02, "invalid_rate": 0.0}
    high = {**low, "S@0.5": 0.25, "reward_mean": 0.3}
    assert [row[0] for row in summary_rows({"base": low})] == ["reward_mean", "invalid_rate"]
    rows = summary_rows({"base": low, "aligned": high})
    assert [row[0] for row in rows] == ["reward_mean", "S@0.5", "invalid_rate"]


def test_a_summary_without_types_and_quality_leaves_gaps_and_no_error():
    short = {"S@0.7": 0.3}
    rows = dict((row[0], row[1:]) for row in summary_rows({"base": BASE, "short": short}))
    assert rows["S@0.7 LR"] == ["0.400", "-"] and rows["sharpness"] == ["0.110", "-"]
    assert rows["S@0.7"][1] == "0.300" and rows["S@0.5"][1] == "-"


def test_the_terminal_shows_intervals_and_a_bold_headline():
    out = StringIO()
    table = rich_table({"base": BASE, "aligned": ALIGNED}, title="60 prompts")
    Console(file=out, width=100).print(table)  # square brackets are markup to rich, if they can be
    text = out.getvalue()
    assert "60 prompts" in text and "0.300 [0.250, 0.350]" in text and "aligned" in text
    bold = [str(table.columns[0]._cells[k]) for k, row in enumerate(table.rows) if row.style == "bold"]
    assert bold == ["S@0.7"]


def test_the_mean_is_bold_if_a_reward_has_no_threshold():
    other = {name: value for name, value in BASE.items() if name != "dsr_mean"}
    other |= {"reward_mean": 0.4, "reward_mean_interval": [0.3, 0.5], "by_type": {"LR": {"reward_mean": 0.45}}}
    rows = dict((row[0], row[1:]) for row in summary_rows({"base": other}))
    assert rows["reward_mean"] == ["0.400 [0.300, 0.500]"] and rows["reward_mean LR"] == ["0.450"]
    table = rich_table({"base": other})
    bold = [str(table.columns[0]._cells[k]) for k, row in enumerate(table.rows) if row.style == "bold"]
    assert bold == ["reward_mean"]


def test_a_markdown_table_escapes_bars():
    table = markdown_table(["measure", "base"], [["S@0.7", "0.3"], ["a|b", "1"]])
    assert table == "| measure | base |\n|---|---|\n| S@0.7 | 0.3 |\n| a\\|b | 1 |"
    assert markdown_table(["only"], []) == "| only |\n|---|"


HOSTILE = (
    "[/x]",
    "[red]no[/red]",
    "\x1b[31mred\x1b[0m",
    "a\nb",
    "<img src=x>",
    "a|b",
    "[link=http://x]y[/link]",
    "\u202ea",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_names_from_data_are_neither_markup_nor_codes_in_the_terminal(text):
    summary = {"S@0.7": 0.3, "by_type": {text: {"S@0.7": 0.4}}, "quality": {text: 0.1}}
    results = {
        "baseline": text,
        "policies": {text: {"summary": summary}, "other": {"summary": summary}},
        "differences": {
            "other": {
                "quality": {text: {"difference": 0.1, "interval": [0.0, 0.2]}},
                "verdict": {"message": text, "warning": True},
            }
        },
        "problems": [text],
    }
    out = StringIO()
    console = Console(file=out, width=200, force_terminal=False)
    print_results(console, results, Path("out"))
    console.print(rich_table({text: summary}, title=text))
    shown = printable(text)
    assert out.getvalue().count(shown) >= 8 and "\x1b" not in out.getvalue() and "\u202e" not in out.getvalue()


@pytest.mark.parametrize("text", HOSTILE)
def test_a_markdown_cell_is_one_cell_without_html(text):
    table = markdown_table(["a", text], [[text, "1"]])
    lines = table.splitlines()
    assert len(lines) == 3 and "<" not in table and table.replace("\n", "").isprintable()
    assert all(line.replace("\\|", "").count("|") == 3 for line in lines)


def test_a_reason_with_placeholders_is_shown_in_markdown():
    assert markdown_cell("only N frames show the <animal>") == "only N frames show the &lt;animal>"


def test_other_spaces_and_scripts_stay_readable():
    assert printable("一\u3000二\xa0ü") == "一 二 ü"


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match=r"a row has 1 cells under 2 headers: \['S@0.7'\]"):
        markdown_table(["measure", "base"], [["S@0.7"]])


def test_a_latex_table_escapes_its_words_and_prints_the_best_of_a_column_bold():
    text = latex_table(
        ["", "S@0.7", "invalid_rate", "drift"],
        ["50% & base", "ours_2"],
        [[0.25, 0.1, 1.0], [0.5, None, 2.0]],
        [1, -1, 0],
    )
    assert text.splitlines() == [
        r"\begin{tabular}{lrrr}",
        r"\toprule",
        r" & S@0.7 & invalid\_rate & drift \\",
        r"\midrule",
        r"50\% \& base & 0.250 & 0.100 & 1.000 \\",
        r"ours\_2 & \textbf{0.500} & -- & 2.000 \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


def test_the_lowest_value_is_bold_where_it_is_the_best():
    text = latex_table(["", "x"], ["a", "b"], [[0.2], [0.1]], [-1])
    assert r"b & \textbf{0.100}" in text and "a & 0.200" in text


def test_a_row_of_a_latex_table_with_another_length_is_refused():
    with pytest.raises(ValueError, match="2 cells under 3 headers"):
        latex_table(["", "x", "y"], ["a"], [[0.2]], [1])
