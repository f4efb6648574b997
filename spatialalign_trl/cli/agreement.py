"""`spatialalign agreement`: how far rewards agree with people's labels, and people with each other."""

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
from spatialalign_trl.cli.score_files import REWARD_PREFIX, ScoreTable, number, read_scores, unique_names
from spatialalign_trl.evaluation.agreement import PARTS, labeller_agreement, reward_agreement
from spatialalign_trl.evaluation.labels import Judged, LabelFile, consensus, read_labels
from spatialalign_trl.files import write_atomic, write_json
from spatialalign_trl.report.tables import markdown_table

DONE = 0
DSR_NAMES = ("dsr_score", "score")
"""What DSR-Score, whose components can be compared too, is called."""
REWARD_HEADER = (
    "reward", "clips", "INVALID", "tau-b", "tau-b, valid", "tau-b, looks", "at", "accuracy", "always", "kappa",
)  # fmt: skip
PART_HEADER = ("reward", "component", "question", "clips", "tau-b")
LABELLER_HEADER = ("labellers", "clips", "kappa", "accuracy", "tau-b")
NOTES = """\
tau-b: Kendall's, with how far people say the animal starts and ends where the prompt says (INVALID ranks lowest;
"valid": without INVALID; "looks": with how far it looks fine). accuracy, kappa: "reward >= the threshold" against
"starts and ends right", without clips on which labellers are split; always: the accuracy of always giving the more
frequent answer. In brackets: 95 % intervals, bootstrapped over prompts.
"""

EXAMPLES = """\
examples:
  spatialalign agreement --labels labels-ada.json labels-bob.json --scores runs/tiny
  spatialalign agreement --labels labels-ada.json --scores scores.csv judge.csv --reward score --reward vlm=3 --json agreement.json
"""  # noqa: E501


def build_parser() -> Parser:
    parser = Parser(
        prog="spatialalign agreement",
        description="How far do DSR-Score and other rewards agree with people's labels, and people with each other?",
        epilog=EXAMPLES,
    )
    parser.add_argument(
        "--labels", nargs="+", required=True, metavar="FILE", help="what people exported from `spatialalign label`"
    )
    parser.add_argument(
        "--scores", nargs="+", required=True, metavar="FILE_OR_RUN",
        help="what `spatialalign score` or an evaluation wrote, a run's folder, or a table with a column 'file'",
    )  # fmt: skip
    parser.add_argument(
        "--reward", type=_reward, action="append", default=[], metavar="NAME[=TAU]", dest="rewards",
        help="a column to compare, and its threshold; may be repeated (default: DSR-Score, or all rewards of a run)",
    )  # fmt: skip
    parser.add_argument("--threshold", type=share, default=0.7, metavar="TAU", help="where no other is given (0.7)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the numbers")
    parser.add_argument("--markdown", metavar="FILE", help="write the tables")
    return parser


def _reward(text: str) -> tuple[str, float | None]:
    name, equals, tau = text.partition("=")
    try:
        return name, float(tau) if equals else None
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME or NAME=TAU") from None


def main(words: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    parser = build_parser()
    args = parser.read(words)
    try:
        for option in ("json", "markdown"):
            name = getattr(args, option)
            if name is not None and Path(name).resolve() in {Path(one).resolve() for one in args.labels + args.scores}:
                raise UsageError(f"--{option} {name} would overwrite what is to be read")
        files = _read_label_files(args.labels)
        results = agreement([read_scores(name) for name in args.scores], files, args)
    except UsageError as error:
        parser.error(str(error))
    tables = _tables(results)
    console = console_for(sys.stdout)
    for title, (header, rows) in tables.items():
        console.print(_rich(title, header, rows))
    console.print(NOTES, markup=False, soft_wrap=True)
    for name, count in results["unscored"].items():
        if count:
            console.print(f"{name} has no score of {count} labelled clips; they are left out there.", markup=False)
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
    twice = next((name for name in labellers if labellers.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"--labels: two files are of {twice!r}; give one file a labeller, with different names")
    return files


def agreement(tables: Sequence[ScoreTable], files: Sequence[LabelFile], args: argparse.Namespace) -> dict[str, Any]:
    """The numbers, ready for JSON.

    Raises:
        UsageError: for a reward that is nowhere, or when no labelled clip has a score.
    """
    humans = consensus(files)
    chosen = _chosen(tables, args.rewards)
    names = unique_names((table.path.stem, column.removeprefix(REWARD_PREFIX)) for table, column, _ in chosen)
    rewards, unscored = {}, {}
    for name, (table, column, tau) in zip(names, chosen, strict=True):
        rows = table.of_files([one.file for one in humans])
        both = [(one, row) for one, row in zip(humans, rows, strict=True) if row is not None]
        unscored[name] = len(humans) - len(both)
        if not both:
            raise UsageError(f"{table.path} has no score of any labelled clip, such as {humans[0].file}")
        rewards[name] = _of_reward(both, column, args.threshold if tau is None else tau, tau is not None, args.seed)
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
            "prompts": len({one.prompt_id for one in humans}),
            "obeys": sum(one.obeys is True for one in humans) / len(humans),
            "absent": sum(one.absent for one in humans) / len(humans),
        },
        "rewards": rewards,
        "labellers": labeller_agreement(files, args.seed),
        "unscored": unscored,
        "bootstrap_seed": args.seed,
    }


def _chosen(
    tables: Sequence[ScoreTable], asked: Sequence[tuple[str, float | None]]
) -> list[tuple[ScoreTable, str, float | None]]:
    """The rewards to compare: table, column, threshold."""
    if not asked:
        found = [(table, column, None) for table in tables for column in table.rewards()]
        if not found:
            known = ", ".join(name for table in tables for name in table.numbers()) or "none"
            raise UsageError(f"which column is a reward? Name it with --reward. Columns of numbers: {known}")
        return found
    chosen = []
    for name, tau in asked:
        having = [table for table in tables if {name, f"{REWARD_PREFIX}{name}"} & set(table.numbers())]
        chosen += [(table, table.column(name), tau) for table in having or tables[:1]]
    return chosen


def _of_reward(
    both: Sequence[tuple[Judged, Mapping[str, Any]]], column: str, tau: float, told: bool, seed: int
) -> dict[str, Any]:
    """Raises `UsageError` where the default threshold, which is DSR-Score's, cannot be that of the values."""
    humans, rows = zip(*both, strict=True)
    scores = [number(row.get(column)) for row in rows]
    outside = next((score for score in scores if score is not None and not 0 <= score <= 1), None)
    if outside is not None and not told:
        name = column.removeprefix(REWARD_PREFIX)
        raise UsageError(f"{column} is {outside:g} of {humans[0].file}, not in 0 to 1; say --reward {name}=TAU")
    is_dsr = column.removeprefix(REWARD_PREFIX) in DSR_NAMES
    components = {name: _component(rows, name) for name in PARTS} if is_dsr else {}
    known = {name: values for name, values in components.items() if any(value is not None for value in values)}
    return reward_agreement(humans, scores, tau, known, seed)


def _component(rows: Sequence[Mapping[str, Any]], name: str) -> list[float | None]:
    """A component under the name of `spatialalign score`, or under that of the training logs."""
    return [number(row.get(name, row.get(f"dsr_{name}"))) for row in rows]


# What is printed -----------------------------------------------------------------------------------------------------


def _tables(results: Mapping[str, Any]) -> dict[str, tuple[Sequence[str], list[list[str]]]]:
    """Title -> header and rows; tables without rows are left out."""
    rewards = [
        [
            name,
            str(one["clips"]),
            str(one["invalid"]["clips"]),
            *(_text(one[key]) for key in ("tau_b", "tau_b_valid", "tau_b_looks")),
            f"{one['threshold']:g}",
            _text(one["accuracy"]),
            "-" if one["always"] is None else f"{one['always']:.3f}",
            _text(one["kappa"]),
        ]
        for name, one in results["rewards"].items()
    ]
    parts = [
        [name, component, PARTS[component], str(value["n"]), _text(value)]
        for name, one in results["rewards"].items()
        for component, value in one["parts"].items()
    ]
    labellers = [
        [
            " and ".join(pair["labellers"]),
            str(pair["clips"]),
            *(_text(pair[key]) for key in ("kappa", "accuracy", "tau_b")),
        ]
        for pair in results["labellers"]
    ]
    humans = results["humans"]
    people = f"{len(results['labels'])} labellers" if len(results["labels"]) > 1 else results["labels"][0]["labeller"]
    title = f"Agreement with {people}, {humans['clips']} clips of {humans['prompts']} prompts"
    tables = {title: (REWARD_HEADER, rewards), "Components of DSR-Score": (PART_HEADER, parts)}
    tables["Between labellers"] = (LABELLER_HEADER, labellers)
    return {title: table for title, table in tables.items() if table[1]}


def _text(estimate: Mapping[str, Any]) -> str:
    if estimate["value"] is None:
        return "-"
    interval = estimate["interval"]
    return f"{estimate['value']:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def _rich(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    from rich.text import Text

    table = Table(title=Text(title), title_style="bold", title_justify="left")
    for place, name in enumerate(header):
        table.add_column(name, justify="left" if place == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))  # a name in square brackets is no markup
    return table
