"""Write and print the results of an evaluation: `results.json`, `table.md`, `table.tex` and `samples.parquet`.

`results.json`:

    kind, format        "evaluation", 1
    baseline            the name of the policy that the others are compared with
    policies            name -> model, lora, folder (its source), revision (the samples' `policy_revision`), sampling
                        (settings; null for videos that existed before), summary (`statistics.summarize`)
    differences         name -> rewards, components and quality, each measure -> difference to the baseline and its
                        paired 95 % interval; verdict (`verdict.reward_hacking_verdict`); num_prompts, num_pairs,
                        paired_by (seed or prompt).
                        rewards: S@tau, or `reward_mean` for a reward other than DSR-Score; and `reward`, the mean of
                        the weighted sum. Means are over videos that are valid on both sides.
                        components: what rewards measured in a video. quality: what the quality guards measured.
    rewards             name -> the reward's arguments
    quality_guards, seeds, problems (texts), settings, versions

`samples.parquet`, one row per video:

    policy, sample_id, prompt_id, seed, video (its file; relative to the folder of `samples.parquet` if inside of it),
    policy_revision, the prompt's columns (prompt, type, animal, ...), reward (null: INVALID), invalid_reason,
    reward/NAME (for each reward), quality/MEASURE (for each guard), components (JSON: everything that rewards logged)
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from spatialalign_trl.evaluation.guards import better_side
from spatialalign_trl.evaluation.statistics import headline_of, invalid_reason
from spatialalign_trl.evaluation.verdict import difference_text
from spatialalign_trl.files import write_atomic, write_json
from spatialalign_trl.report.contents import RESULTS_FILE, SAMPLES_FILE
from spatialalign_trl.report.tables import (
    all_differences,
    latex_table,
    markdown_table,
    obedience_measures,
    rich_table,
    summary_rows,
)
from spatialalign_trl.report.write import REPORT_FILE
from spatialalign_trl.safe_text import terminal_text

if TYPE_CHECKING:
    from spatialalign_trl.evaluation.comparison import Evaluated

MARKDOWN_FILE = "table.md"
LATEX_FILE = "table.tex"

Results = Mapping[str, Any]


def write_results(folder: Path, results: Results, evaluated: Mapping[str, Evaluated]) -> None:
    """Write the four files, each of them atomically.

    Args:
        folder (`Path`): The folder of the evaluation.
        results (`dict`): What `results.json` contains.
        evaluated (`dict`): Policy -> its scored videos.
    """
    write_json(folder / RESULTS_FILE, results)
    write_atomic(folder / MARKDOWN_FILE, markdown(results).encode())
    write_atomic(folder / LATEX_FILE, latex(results).encode())
    write_samples(folder / SAMPLES_FILE, evaluated)


# Tables -------------------------------------------------------------------------------------------------------------


def summaries(results: Results) -> dict[str, Mapping[str, Any]]:
    """Return each policy's summary."""
    return {name: policy["summary"] for name, policy in results["policies"].items()}


def difference_rows(results: Results) -> list[list[str]]:
    """Make a row per measure: its name, then each compared policy's difference to the baseline with its interval."""
    columns = [all_differences(differences) for differences in results["differences"].values()]
    names = dict.fromkeys(name for column in columns for name in column)
    return [
        [name, *(difference_text(column[name]) if name in column else "-" for column in columns)] for name in names
    ]


def verdict_lines(results: Results) -> dict[str, str]:
    """Return the message of each compared policy's verdict on reward hacking."""
    return {
        name: comparison["verdict"]["message"] if "verdict" in comparison else "no prompt in common with the baseline"
        for name, comparison in results["differences"].items()
    }


def markdown(results: Results) -> str:
    """Write the tables, the verdicts and the reasons why videos are INVALID as Markdown."""
    columns = summaries(results)
    parts = [_headline(results), markdown_table(["measure", *columns], summary_rows(columns))]
    if results["differences"]:
        parts += [
            f"Differences to {results['baseline']}, with paired 95 % intervals over prompts:",
            markdown_table(["measure", *results["differences"]], difference_rows(results)),
            "\n".join(f"- {name}: {line}." for name, line in verdict_lines(results).items()),
        ]
    reasons = [
        [name, reason, str(count)]
        for name, summary in columns.items()
        for reason, count in summary["invalid_reasons"].items()
    ]
    if reasons:
        parts += ["Why videos are INVALID:", markdown_table(["policy", "reason", "videos"], reasons)]
    return "\n\n".join(parts) + "\n"


def latex(results: Results) -> str:
    """Write a LaTeX table with one row per policy and the best value of a column in bold. It needs booktabs."""
    columns = summaries(results)
    names = obedience_measures(columns)
    quality = dict.fromkeys(name for summary in columns.values() for name in summary["quality"])
    better = dict.fromkeys(names, 1) | {"invalid_rate": -1} | {name: better_side(name) for name in quality}
    values = [[summary.get(name) for name in names] for summary in columns.values()]
    for row, summary in zip(values, columns.values(), strict=True):
        row += [summary["quality"].get(name) for name in quality]
    header = ["", *names, *quality]
    cells = latex_table(header, list(columns), values, [better[name] for name in header[1:]])
    notes = [_headline(results)]
    for name, comparison in results["differences"].items():
        if "rewards" in comparison:
            headline = headline_of(comparison["rewards"])
            text = difference_text(comparison["rewards"][headline])
            notes.append(f"{name} - {results['baseline']}, {headline}: {text} (paired)")
    return "\n".join(f"% {note}" for note in notes) + "\n" + cells


def _headline(results: Results) -> str:
    first = summaries(results)[results["baseline"]]
    rewards = ", ".join(results["rewards"])
    return (
        f"{first['num_prompts']} prompts, {first['num_videos']} videos per policy, scored by {rewards}. S@tau is the "
        "share of all videos that score tau or more. INVALID counts as a failure."
    )


def print_results(console: Console, results: Results, folder: Path) -> None:
    """Print the tables, the verdicts, the problems and the names of the files.

    Args:
        console (`Console`): Where to print.
        results (`dict`): What `results.json` contains.
        folder (`Path`): The folder of the evaluation.
    """
    console.print(rich_table(summaries(results)))
    if results["differences"]:
        title = f"differences to {results['baseline']}, paired 95 % intervals"
        table = Table(title=terminal_text(title), title_justify="left")
        table.add_column("measure")
        for name in results["differences"]:
            table.add_column(terminal_text(name), justify="right")
        headline = headline_of(summaries(results)[results["baseline"]])
        for row in difference_rows(results):
            table.add_row(*map(terminal_text, row), style="bold" if row[0] == headline else None)
        console.print(table)
    for name, line in verdict_lines(results).items():
        warns = results["differences"][name].get("verdict", {}).get("warning", False)
        text = f"{'WARNING: ' if warns else ''}{name}: {line}."
        console.print(terminal_text(text, "bold yellow" if warns else ""))
    for problem in results["problems"]:
        console.print(terminal_text(problem), soft_wrap=True)
    files = ", ".join((RESULTS_FILE, MARKDOWN_FILE, LATEX_FILE, SAMPLES_FILE, REPORT_FILE))
    console.print(terminal_text(f"written to {folder}: {files}"), soft_wrap=True)


# Samples ------------------------------------------------------------------------------------------------------------


def write_samples(file: Path, evaluated: Mapping[str, Evaluated]) -> None:
    """Write `samples.parquet`.

    Args:
        file (`Path`): The file.
        evaluated (`dict`): Policy -> its scored videos.
    """
    from datasets import Dataset

    rows = [row for name, policy in evaluated.items() for row in _sample_rows(file.parent, name, policy)]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    temporary = file.with_name(f".{file.name}.partial")
    Dataset.from_dict({key: [row.get(key) for row in rows] for key in columns}).to_parquet(temporary)
    temporary.replace(file)


def _sample_rows(folder: Path, name: str, evaluated: Evaluated) -> list[dict[str, Any]]:
    rows = []
    for place, sample in enumerate(evaluated.samples):
        identity = {
            "policy": name,
            "sample_id": sample.sample_id,
            "prompt_id": sample.prompt_id,
            "seed": sample.seed,
            "video": _relative(evaluated.video_path(sample), folder),
            "policy_revision": sample.policy_revision,
        }
        reason = None if sample.reward is not None else invalid_reason(sample)
        prompt = {key: value for key, value in sample.row.items() if key not in identity}
        score = {"reward": sample.reward, "invalid_reason": reason}
        rows.append(
            {
                **identity,
                **prompt,
                **score,
                **_columns("reward", sample.rewards),
                **_columns(
                    "quality", {measure: values[place] for measure, values in evaluated.quality_per_video.items()}
                ),
                "components": json.dumps(sample.components, ensure_ascii=False),
            }
        )
    return rows


def _columns(group: str, values: Mapping[str, float | None]) -> dict[str, float | None]:
    return {f"{group}/{name}": None if value is None else float(value) for name, value in values.items()}


def _relative(path: Path, folder: Path) -> str:
    inside: Sequence[Path] = path.resolve().parents
    return os.path.relpath(path, folder) if folder.resolve() in inside else str(path.resolve())
