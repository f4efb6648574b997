"""What an evaluation leaves: `results.json`, `table.md`, `table.tex`, `samples.parquet`, and what it prints.

`results.json`:

    kind, format        "evaluation", 1
    baseline            the name of the policy that the others are compared with
    policies            name -> model, lora, folder (where it comes from), revision (the samples' `policy_revision`),
                        sampling (settings; null of videos that existed), summary (`statistics.summarize`)
    differences         name -> rewards (S@tau; of a reward that is not the DSR-Score `reward_mean`; `reward`, the mean
                        of the weighted sum; means are over videos that are valid on both sides), components (what
                        rewards measured of a video) and quality (what guards did): difference to the baseline, 95 %
                        paired interval; verdict (`verdict.reward_hacking_verdict`); num_prompts, num_pairs, paired_by
                        (seed or prompt)
    rewards             name -> what the reward was made with
    quality_guards, seeds, problems (texts), settings, versions

`samples.parquet`, one row a video:

    policy, sample_id, prompt_id, seed, video (its file; relative to the folder of `samples.parquet` if it lies there),
    policy_revision, the prompt's columns (prompt, type, animal, ...), reward (null: INVALID), invalid_reason,
    reward/NAME (of each reward), quality/MEASURE (of each guard), components (JSON: all that rewards logged)
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from spatialalign_trl.evaluation.guards import better_side
from spatialalign_trl.evaluation.statistics import headline_of, invalid_reason
from spatialalign_trl.evaluation.verdict import difference_text
from spatialalign_trl.files import write_atomic, write_json
from spatialalign_trl.report.tables import (
    all_differences,
    latex_table,
    markdown_table,
    obedience_measures,
    rich_table,
    summary_rows,
)
from spatialalign_trl.report.write import REPORT_FILE

if TYPE_CHECKING:
    from spatialalign_trl.evaluation.comparison import Evaluated

RESULTS_FILE = "results.json"
SAMPLES_FILE = "samples.parquet"
MARKDOWN_FILE = "table.md"
LATEX_FILE = "table.tex"

Results = Mapping[str, Any]


def write_results(folder: Path, results: Results, evaluated: Mapping[str, Evaluated]) -> None:
    """Writes the four files, each in one step."""
    write_json(folder / RESULTS_FILE, results)
    write_atomic(folder / MARKDOWN_FILE, markdown(results).encode())
    write_atomic(folder / LATEX_FILE, latex(results).encode())
    write_samples(folder / SAMPLES_FILE, evaluated)


# Tables


def summaries(results: Results) -> dict[str, Mapping[str, Any]]:
    """Name of a policy -> its summary."""
    return {name: policy["summary"] for name, policy in results["policies"].items()}


def difference_rows(results: Results) -> list[list[str]]:
    """`[measure, difference and interval of the first policy that is no baseline, ...]`."""
    columns = [all_differences(one) for one in results["differences"].values()]
    names = dict.fromkeys(name for column in columns for name in column)
    return [
        [name, *(difference_text(column[name]) if name in column else "-" for column in columns)] for name in names
    ]


def verdict_lines(results: Results) -> dict[str, str]:
    """Name of a policy -> what the verdict on it says."""
    return {
        name: one["verdict"]["message"] if "verdict" in one else "no prompt in common with the baseline"
        for name, one in results["differences"].items()
    }


def markdown(results: Results) -> str:
    """The tables, the reasons why videos are INVALID, and the verdicts."""
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
    """A row a policy, as papers print it; the best of a column is bold. Needs the package booktabs."""
    columns = summaries(results)
    names = obedience_measures(columns)
    looks = dict.fromkeys(name for summary in columns.values() for name in summary["quality"])
    better = dict.fromkeys(names, 1) | {"invalid_rate": -1} | {name: better_side(name) for name in looks}
    values = [[summary.get(name) for name in names] for summary in columns.values()]
    for row, summary in zip(values, columns.values(), strict=True):
        row += [summary["quality"].get(name) for name in looks]
    header = ["", *names, *looks]
    cells = latex_table(header, list(columns), values, [better[name] for name in header[1:]])
    notes = [_headline(results)]
    for name, one in results["differences"].items():
        if "rewards" in one:
            headline = headline_of(one["rewards"])
            text = difference_text(one["rewards"][headline])
            notes.append(f"{name} - {results['baseline']}, {headline}: {text} (paired)")
    return "\n".join(f"% {note}" for note in notes) + "\n" + cells


def _headline(results: Results) -> str:
    first = summaries(results)[results["baseline"]]
    rewards = ", ".join(results["rewards"])
    return (
        f"{first['num_prompts']} prompts, {first['num_videos']} videos a policy, judged by {rewards}. S@tau is the "
        "share of all videos that score tau or more; INVALID counts as a failure."
    )


def print_results(console: Console, results: Results, folder: Path) -> None:
    """The tables, the verdicts, the problems, and where the files are."""
    console.print(rich_table(summaries(results)))
    if results["differences"]:
        table = Table(title=f"differences to {results['baseline']}, paired 95 % intervals", title_justify="left")
        table.add_column("measure")
        for name in results["differences"]:
            table.add_column(name, justify="right")
        headline = headline_of(summaries(results)[results["baseline"]])
        for row in difference_rows(results):
            table.add_row(*row, style="bold" if row[0] == headline else None)
        console.print(table)
    for name, line in verdict_lines(results).items():
        warns = results["differences"][name].get("verdict", {}).get("warning", False)
        console.print(Text(f"{'WARNING: ' if warns else ''}{name}: {line}.", "bold yellow" if warns else ""))
    for problem in results["problems"]:
        console.print(problem, markup=False, soft_wrap=True)
    files = ", ".join((RESULTS_FILE, MARKDOWN_FILE, LATEX_FILE, SAMPLES_FILE, REPORT_FILE))
    console.print(f"written to {folder}: {files}", markup=False, soft_wrap=True)


# Samples


def write_samples(file: Path, evaluated: Mapping[str, Evaluated]) -> None:
    """Writes `samples.parquet`."""
    from datasets import Dataset

    rows = [row for name, one in evaluated.items() for row in _sample_rows(file.parent, name, one)]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    temporary = file.with_name(f".{file.name}.partial")
    Dataset.from_dict({key: [row.get(key) for row in rows] for key in columns}).to_parquet(temporary)
    temporary.replace(file)


def _sample_rows(folder: Path, name: str, one: Evaluated) -> list[dict[str, Any]]:
    rows = []
    for place, sample in enumerate(one.samples):
        own = {
            "policy": name,
            "sample_id": sample.sample_id,
            "prompt_id": sample.prompt_id,
            "seed": sample.seed,
            "video": _relative(one.video_path(sample), folder),
            "policy_revision": sample.policy_revision,
        }
        reason = None if sample.reward is not None else invalid_reason(sample)
        prompt = {key: value for key, value in sample.row.items() if key not in own}
        judged = {"reward": sample.reward, "invalid_reason": reason}
        rows.append(
            {
                **own,
                **prompt,
                **judged,
                **_columns("reward", sample.rewards),
                **_columns("quality", {measure: values[place] for measure, values in one.quality_per_video.items()}),
                "components": json.dumps(sample.components, ensure_ascii=False),
            }
        )
    return rows


def _columns(group: str, values: Mapping[str, float | None]) -> dict[str, float | None]:
    return {f"{group}/{name}": None if value is None else float(value) for name, value in values.items()}


def _relative(path: Path, folder: Path) -> str:
    inside: Sequence[Path] = path.resolve().parents
    return os.path.relpath(path, folder) if folder.resolve() in inside else str(path.resolve())
