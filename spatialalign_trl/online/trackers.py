"""Show pictures, videos, tables and numbers in the trackers that record a run.

A trainer's own logs reach the trackers through its callbacks. This module handles what does not fit into such a log:
the samples of the policy while it trains (`LogSamples`), and the outcome, which exists only after the trainers have
closed their trackers.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL import Image

from spatialalign_trl.evaluation import headline_of
from spatialalign_trl.report.tables import markdown_table, summary_rows

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from spatialalign_trl.online.config import OnlineSpatialAlignConfig

OUTCOME_FOLDER = "runs/outcome"
"""Folder of TensorBoard's files of the outcome, in the run's folder, unless `TENSORBOARD_LOGGING_DIR` is set."""


@dataclass(frozen=True)
class Table:
    """A table of texts; every row has as many cells as the header."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Shown:
    """
    The things that a tracker shows for one step.

    Args:
        pictures (`dict[str, Path]`): Name -> a PNG or an mp4.
        tables (`dict[str, Table]`): Name -> a table.
        numbers (`dict[str, float]`): Name -> a value.
    """

    pictures: Mapping[str, Path] = field(default_factory=dict)
    tables: Mapping[str, Table] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)


class Tracker(Protocol):
    """A tool that records runs."""

    def show(self, step: int, shown: Shown) -> None: ...


@dataclass(frozen=True)
class TensorBoard:
    """Writes to a `SummaryWriter`. Videos are left out: they would need another package and become GIFs."""

    writer: Any

    def show(self, step: int, shown: Shown) -> None:
        for name, path in shown.pictures.items():
            if path.suffix == ".png":
                pixels = np.asarray(Image.open(path).convert("RGB"))
                self.writer.add_image(name, pixels, step, dataformats="HWC")
        for name, table in shown.tables.items():
            self.writer.add_text(name, markdown_table(table.header, table.rows), step)
        for name, value in shown.numbers.items():
            self.writer.add_scalar(name, value, step)


@dataclass(frozen=True)
class Module:
    """Logs to the module `wandb` or `trackio`, whose functions have the same names."""

    module: Any

    def show(self, step: int, shown: Shown) -> None:
        logged: dict[str, Any] = {
            name: (self.module.Image if path.suffix == ".png" else self.module.Video)(str(path))
            for name, path in shown.pictures.items()
        }
        logged |= {name: self._table(table) for name, table in shown.tables.items()}
        logged |= shown.numbers
        if logged:
            self.module.log(logged)

    def _table(self, table: Table) -> Any:
        columns, rows = list(table.header), [list(row) for row in table.rows]
        if self.module.__name__ != "trackio":
            return self.module.Table(columns=columns, data=rows)
        import pandas  # installed with trackio

        return self.module.Table(dataframe=pandas.DataFrame(rows, columns=columns))


def trackers_of(callbacks: Sequence[TrainerCallback]) -> list[Tracker]:
    """Return the trackers that record a running training."""
    writers = [getattr(callback, "tb_writer", None) for callback in callbacks]
    found: list[Tracker] = [TensorBoard(writer) for writer in writers if writer is not None]
    for name in ("wandb", "trackio"):
        module = sys.modules.get(name)
        if module is not None and any(type(callback).__name__.lower() == f"{name}callback" for callback in callbacks):
            found.append(Module(module))
    return found


@contextlib.contextmanager
def trackers_of_run(args: OnlineSpatialAlignConfig) -> Iterator[list[Tracker]]:
    """
    Open the trackers that recorded the run's trainings once more.

    wandb's run stays open until the process ends; if this process has none (nothing was trained), wandb is left out.
    """
    found: list[Tracker] = []
    with contextlib.ExitStack() as stack:
        if "tensorboard" in args.report_to:
            from torch.utils.tensorboard import SummaryWriter

            place = os.getenv("TENSORBOARD_LOGGING_DIR") or Path(args.output_dir) / OUTCOME_FOLDER
            writer = SummaryWriter(log_dir=str(Path(place).expanduser()))
            stack.callback(writer.close)
            found.append(TensorBoard(writer))
        wandb = sys.modules.get("wandb")
        if "wandb" in args.report_to and wandb is not None and wandb.run is not None:
            found.append(Module(wandb))
        trackio = sys.modules.get("trackio")
        if "trackio" in args.report_to and trackio is not None:
            trackio.init(
                project=args.project,
                name=args.run_name or f"{Path(args.output_dir).resolve().name}-outcome",
                space_id=args.trackio_space_id,
                resume="allow",
                private=args.hub_private_repo,
                bucket_id=args.trackio_bucket_id,
            )
            stack.callback(trackio.finish)
            found.append(Module(trackio))
        yield found


def show_outcome(trackers: Sequence[Tracker], results: Mapping[str, Any], pictures: Mapping[str, Path]) -> None:
    """
    Show the evaluation's numbers, one step per round (0 is the base), and the tables and pictures at the last step.

    Args:
        trackers (sequence of [`Tracker`]): The trackers.
        results (`dict`): The content of `results.json`.
        pictures (`dict[str, Path]`): Name -> PNG or mp4.
    """
    evaluated = {0: results["base"]} | {record["round"]: record.get("evaluation") for record in results["rounds"]}
    last = max(evaluated)
    for number, summary in evaluated.items():
        shown = Shown(numbers=_numbers(summary) | {"evaluation/round": float(number)}) if summary else Shown()
        if number == last:
            shown = Shown(pictures, _tables(results), shown.numbers)
        for tracker in trackers:
            tracker.show(number, shown)


def _numbers(summary: Mapping[str, Any]) -> dict[str, float]:
    rates = {
        name: value for name, value in summary.items() if name.startswith("S@") or name.endswith(("_mean", "_rate"))
    }
    groups = {**summary.get("components", {}), **summary.get("quality", {})}
    headline = headline_of(summary)
    types = {f"{headline} {kind}": values[headline] for kind, values in summary.get("by_type", {}).items()}
    numbers = {f"evaluation/{name}": value for name, value in {**rates, **types, **groups}.items()}
    return {name: float(value) for name, value in numbers.items() if isinstance(value, (int, float))}


def _tables(results: Mapping[str, Any]) -> dict[str, Table]:
    summaries = {name: results[name] for name in ("base", "aligned") if results.get(name)}
    if not summaries:
        return {}
    tables = {"evaluation/before_and_after": Table(["measure", *summaries], summary_rows(summaries))}
    differences = {**(results.get("difference") or {}), **(results.get("quality_difference") or {})}
    if differences:
        rows = [
            [name, f"{change['difference']:+.3f}", "[{:+.3f}, {:+.3f}]".format(*change["interval"])]
            for name, change in differences.items()
        ]
        tables["evaluation/difference"] = Table(["measure", "aligned - base", "95 % interval, paired"], rows)
    return tables
