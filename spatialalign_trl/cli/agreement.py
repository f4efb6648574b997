"""`spatialalign agreement`: measure how well rewards agree with people's labels, and people with each other."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from spatialalign_trl import __version__
from spatialalign_trl.cli.display import console_for
from spatialalign_trl.cli.parsing import Parser, UsageError, share
from spatialalign_trl.cli.score_files import REWARD_PREFIX, ScoreTable, is_text, number, read_scores, unique_names
from spatialalign_trl.evaluation.agreement import PARTS, labeller_agreement, reward_agreement
from spatialalign_trl.evaluation.labels import Judged, LabelFile, consensus, read_labels
from spatialalign_trl.files import write_atomic, write_json
from spatialalign_trl.report.tables import markdown_table
from spatialalign_trl.safe_text import terminal_text

DONE = 0
DSR_NAMES = ("dsr_score", "score")
"""Names of DSR-Score, whose components can be compared as well."""
REWARD_HEADER = (
    "reward", "clips", "INVALID", "tau-b", "tau-b, valid", "tau-b, looks", "at", "accuracy", "always", "kappa",
)  # fmt: skip
PART_HEADER = ("reward", "component", "question", "clips", "tau-b")
LABELLER_HEADER = ("labellers", "clips", "kappa", "accuracy", "tau-b")
NOTES = """\
tau-b: Kendall's rank correlation of the reward with the answers on where the animal starts and ends (INVALID ranks
lowest; "valid": without INVALID clips; "looks": with the answers on how good the clip looks). accuracy, kappa: "reward
>= the threshold" against "starts and ends right", without clips on which the labellers disagree. always: the accuracy
of always giving the more frequent answer. In brackets: 95 % intervals, bootstrapped over prompts.
"""

EXAMPLES = """\
examples:
  spatialalign agreement --labels labels-ada.json labels-bob.json --scores runs/tiny
  spatialalign agreement --labels labels-ada.json --scores scores.csv judge.csv --reward score --reward vlm=3 --json agreement.json
"""  # noqa: E501


def build_parser() -> Parser:
    """Build the parser of `spatialalign agreement`."""
    parser = Parser(
        prog="spatialalign agreement",
        description="Measure how well DSR-Score and other rewards agree with people's labels, and people with each "
        "other.",
        epilog=EXAMPLES,
    )
    parser.add_argument(
        "--labels",
        nargs="+",
        required=True,
        metavar="FILE",
        help="the files that people exported from the page of `spatialalign label`",
    )
    parser.add_argument(
        "--scores", nargs="+", required=True, metavar="FILE_OR_RUN",
        help="a file of `spatialalign score` or of an evaluation, a run's folder, or a table with a column 'file'",
    )  # fmt: skip
    parser.add_argument(
        "--reward", type=_reward, action="append", default=[], metavar="NAME[=TAU]", dest="rewards",
        help="a column to compare, and its threshold; may be repeated (default: DSR-Score, or all rewards of a run)",
    )  # fmt: skip
    parser.add_argument(
        "--threshold",
        type=share,
        default=0.7,
        metavar="TAU",
        help="the threshold of rewards without =TAU (default: 0.7)",
    )
    parser.add_argument("--seed", type=int, default=0, help="the seed of the bootstrap (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the numbers as JSON")
    parser.add_argument("--markdown", metavar="FILE", help="write the tables as Markdown")
    return parser


def _reward(text: str) -> tuple[str, float | None]:
    """Parse `NAME` or `NAME=TAU`."""
    name, equals, tau = text.partition("=")
    try:
        return name, float(tau) if equals else None
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME or NAME=TAU") from None


def main(words: Sequence[str]) -> int:
    """Run the command, and return its exit code."""
    parser = build_parser()
    args = parser.read(words)
    try:
        inputs = {Path(file).resolve() for file in args.labels + args.scores}
        for option in ("json", "markdown"):
            name = getattr(args, option)
            if name is not None and Path(name).resolve() in inputs:
                raise UsageError(f"--{option} {name} would overwrite an input file. Give another path")
        files = _read_label_files(args.labels)
        results = agreement([read_scores(name) for name in args.scores], files, args)
    except UsageError as error:
        parser.error(str(error))
    tables = _tables(results)
    console = console_for(sys.stdout)
    for title, (header, rows) in tables.items():
        console.print(_rich_table(title, header, rows))
    console.print(*map(terminal_text, NOTES.splitlines()), sep="\n", soft_wrap=True)
    for name, reasons in results["unscored_reasons"].items():
        if reasons:
            message = f"{name} has no score for {len(reasons)} labelled clips, which are left out of its row, such as "
            console.print(terminal_text(f"{message}{reasons[0]}."), soft_wrap=True)
    for name, count in results["matched_by_name"].items():
        if count:
            message = (
                f"{name}: {count} scores are of videos that are named without their folder. Make sure that they are "
                "of the labelled folder: its videos may have the names of another model's."
            )
            console.print(terminal_text(message), soft_wrap=True)
    if args.json:
        write_json(args.json, results)
    if args.markdown:
        parts = [f"**{title}**\n\n{markdown_table(header, rows)}" for title, (header, rows) in tables.items()]
        write_atomic(args.markdown, ("\n\n".join([*parts, NOTES.strip()]) + "\n").encode())
    return DONE


def _read_label_files(names: Sequence[str]) -> list[LabelFile]:
    try:
        files = [read_labels(name) for name in names]
    except (OSError, ValueError) as error:
        raise UsageError(f"--labels: {error}") from error
    labellers = [file.labeller for file in files]
    duplicate = next((name for name in labellers if labellers.count(name) > 1), None)
    if duplicate is not None:
        raise UsageError(f"--labels: two files are from the labeller {duplicate!r}. Give one file per labeller")
    return files


def agreement(tables: Sequence[ScoreTable], files: Sequence[LabelFile], args: argparse.Namespace) -> dict[str, Any]:
    """Compute the agreement of rewards with labels, and of labellers with each other.

    Args:
        tables (sequence of [`ScoreTable`]): The scores.
        files (sequence of [`LabelFile`]): The labels, one file per labeller.
        args (`argparse.Namespace`): The command's options `rewards`, `threshold` and `seed`.

    Returns:
        `dict`: what `--json` writes.

    Raises:
        UsageError: for a reward that no table has, or when no labelled clip has a score.
    """
    try:
        humans = consensus(files)
    except ValueError as error:
        raise UsageError(f"--labels: {error}") from error
    chosen = _choose_rewards(tables, args.rewards)
    names = unique_names((table.path.stem, column.removeprefix(REWARD_PREFIX)) for table, column, _ in chosen)
    rewards, reasons, by_name = {}, {}, {}
    for name, (table, column, tau) in zip(names, chosen, strict=True):
        rows = table.of_files([clip.file for clip in humans])
        pairs, reasons[name] = [], []
        for clip, row in zip(humans, rows, strict=True):
            reason = _why_unscored(table, clip.file, row, column)
            if reason:
                reasons[name].append(reason)
            else:
                pairs.append((clip, row))
        if not pairs:
            raise UsageError(
                f"{table.path} has no score for any labelled clip: {reasons[name][0]}. Give the scores of the videos "
                "that were labelled"
            )
        by_name[name] = table.matched_by_name([row for _, row in pairs])
        rewards[name] = _agreement_of_reward(pairs, column, tau, args.threshold, args.seed)
    labellers = [
        {
            "file": str(file.path),
            "labeller": file.labeller,
            "clips": len(file.labels),
            "skipped": file.skipped,
            "median_seconds": file.median_seconds,
        }
        for file in files
    ]
    return {
        "kind": "agreement",
        "format": 1,
        "version": __version__,
        "labels": labellers,
        "scores": [str(table.path) for table in tables],
        "humans": {
            "clips": len(humans),
            "prompts": len({clip.prompt_id for clip in humans}),
            "obeys": sum(clip.obeys is True for clip in humans) / len(humans),
            "absent": sum(clip.absent for clip in humans) / len(humans),
        },
        "rewards": rewards,
        "labellers": labeller_agreement(files, args.seed),
        "unscored": {name: len(found) for name, found in reasons.items()},
        "unscored_reasons": reasons,
        "matched_by_name": by_name,
        "bootstrap_seed": args.seed,
    }


def _why_unscored(table: ScoreTable, file: str, row: Mapping[str, Any] | None, column: str) -> str | None:
    """Say why a clip has no score: the table lacks it, or has its name in another folder, or a cell is a text."""
    if row is None:
        other = table.namesake(file)
        return f"{file} is not in the table" + (f", only {other}, which is in another folder" if other else "")
    parts = _component_columns(row) if column.removeprefix(REWARD_PREFIX) in DSR_NAMES else {}
    text = next((name for name in (column, *parts.values()) if is_text(row.get(name))), None)
    return None if text is None else f"{file}: {text}={row[text]!r} is not a number"


def _component_columns(row: Mapping[str, Any]) -> dict[str, str]:
    """Return the columns of the components, named as in `spatialalign score` or as in the training logs."""
    return {part: part if part in row else f"dsr_{part}" for part in PARTS}


def _choose_rewards(
    tables: Sequence[ScoreTable], names: Sequence[tuple[str, float | None]]
) -> list[tuple[ScoreTable, str, float | None]]:
    """Return the table, column and threshold of each reward to compare: the named ones, or all that are found."""
    if not names:
        found = [(table, column, None) for table in tables for column in table.rewards()]
        if not found:
            known = ", ".join(name for table in tables for name in table.numbers()) or "none"
            raise UsageError(f"no column is known to be a reward. Name one with --reward. Columns of numbers: {known}")
        return found
    chosen = []
    for name, tau in names:
        found = [table for table in tables if {name, f"{REWARD_PREFIX}{name}"} & set(table.numbers())]
        chosen += [(table, table.column(name), tau) for table in found or tables[:1]]
    return chosen


def _agreement_of_reward(
    pairs: Sequence[tuple[Judged, Mapping[str, Any]]],
    column: str,
    tau: float | None,
    default_threshold: float,
    seed: int,
) -> dict[str, Any]:
    """Compare one reward with the labels; its scores must lie in [0, 1] unless it has its own threshold `tau`."""
    humans, rows = zip(*pairs, strict=True)
    scores = [number(row.get(column)) for row in rows]
    name = column.removeprefix(REWARD_PREFIX)
    if tau is None:  # the default is a threshold of DSR-Score, which means nothing on another scale
        for clip, score in zip(humans, scores, strict=True):
            if score is not None and not 0 <= score <= 1:
                raise UsageError(
                    f"{column}={score:g} of {clip.file}: not in 0 to 1. Give a threshold: --reward {name}=TAU"
                )
    components = {}
    if name in DSR_NAMES:
        for part in PARTS:
            values = [number(row.get(_component_columns(row)[part])) for row in rows]
            if any(value is not None for value in values):
                components[part] = values
    return reward_agreement(humans, scores, default_threshold if tau is None else tau, components, seed)


# Output -------------------------------------------------------------------------------------------------------------


def _tables(results: Mapping[str, Any]) -> dict[str, tuple[Sequence[str], list[list[str]]]]:
    """Return the header and rows of each table by its title; tables without rows are left out."""
    rewards = [
        [
            name,
            str(reward["clips"]),
            str(reward["invalid"]["clips"]),
            *(_format_estimate(reward[key]) for key in ("tau_b", "tau_b_valid", "tau_b_looks")),
            f"{reward['threshold']:g}",
            _format_estimate(reward["accuracy"]),
            "-" if reward["always"] is None else f"{reward['always']:.3f}",
            _format_estimate(reward["kappa"]),
        ]
        for name, reward in results["rewards"].items()
    ]
    parts = [
        [name, component, PARTS[component], str(value["n"]), _format_estimate(value)]
        for name, reward in results["rewards"].items()
        for component, value in reward["parts"].items()
    ]
    labellers = [
        [
            " and ".join(pair["labellers"]),
            str(pair["clips"]),
            *(_format_estimate(pair[key]) for key in ("kappa", "accuracy", "tau_b")),
        ]
        for pair in results["labellers"]
    ]
    humans = results["humans"]
    people = f"{len(results['labels'])} labellers" if len(results["labels"]) > 1 else results["labels"][0]["labeller"]
    title = f"Agreement with {people}, {humans['clips']} clips of {humans['prompts']} prompts"
    tables = {title: (REWARD_HEADER, rewards), "Components of DSR-Score": (PART_HEADER, parts)}
    tables["Between labellers"] = (LABELLER_HEADER, labellers)
    return {title: table for title, table in tables.items() if table[1]}


def _format_estimate(estimate: Mapping[str, Any]) -> str:
    if estimate["value"] is None:
        return "-"
    interval = estimate["interval"]
    return f"{estimate['value']:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def _rich_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=terminal_text(title), title_style="bold", title_justify="left")
    for place, name in enumerate(header):
        table.add_column(terminal_text(name), justify="left" if place == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(terminal_text, row))
    return table
