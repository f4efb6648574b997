"""What a person looks at, in the trackers that record a run: pictures, videos, tables and numbers.

A trainer's own logs get there through its callbacks. What does not fit into a log goes through here: the looks at the
policy while it trains (`LogSamples`), and the outcome, when the trainers have ended and closed what they wrote to.
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
"""Where TensorBoard's files of the outcome go, in the run's folder, unless `TENSORBOARD_LOGGING_DIR` says it."""


@dataclass(frozen=True)
class Table:
    """Columns, and rows of as many cells."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Shown:
    """
    What a tracker is handed for one step.

    Args:
        pictures (`dict[str, Path]`): Name -> a PNG or an mp4.
        tables (`dict[str, Table]`): Name -> a table.
        numbers (`dict[str, float]`): Name -> a value.
    """

    pictures: Mapping[str, Path] = field(default_factory=dict)
    tables: Mapping[str, Table] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)


class Tracker(Protocol):
    """Somewhere to show things."""

    def show(self, step: int, shown: Shown) -> None: ...


@dataclass(frozen=True)
class TensorBoard:
    """Writes with a `SummaryWriter`; no videos, which need another package there, and are GIFs."""

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
    """Logs to `wandb` or `trackio`, whose functions have the same names."""

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
        import pandas  # which trackio brings

        return self.module.Table(dataframe=pandas.DataFrame(rows, columns=columns))


def trackers_of(callbacks: Sequence[TrainerCallback]) -> list[Tracker]:
    """Those that record a training which is under way."""
    writers = [getattr(callback, "tb_writer", None) for callback in callbacks]
    found: list[Tracker] = [TensorBoard(writer) for writer in writers if writer is not None]
    for name in ("wandb", "trackio"):
        module = sys.modules.get(name)
        if module is not None and any(type(one).__name__.lower() == f"{name}callback" for one in callbacks):
            found.append(Module(module))
    return found


@contextlib.contextmanager
def trackers_of_run(args: OnlineSpatialAlignConfig) -> Iterator[list[Tracker]]:
    """Those that recorded the run's trainings, open once more. wandb's run goes on until the process ends; without one
    (nothing was trained this time) wandb is left out.
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
    """The evaluation's numbers, a step a round (0 is the base), and at the last one the table of before and after.

    Args:
        trackers: where to.
        results: as `results.json` holds them.
        pictures: what the run left to look at.
    """
    evaluated = {0: results["base"]} | {one["round"]: one.get("evaluation") for one in results["rounds"]}
    last = max(evaluated)
    for number, summary in evaluated.items():
        shown = Shown(numbers=_numbers(summary) | {"evaluation/round": float(number)}) if summary else Shown()
        if number == last:
            shown = Shown(pictures, _tables(results), shown.numbers)
        for tracker in trackers:
            tracker.show(number, shown)


def _numbers(summary: Mapping[str, Any]) -> dict[str, float]:
    own = {
        name: value for name, value in summary.items() if name.startswith("S@") or name.endswith(("_mean", "_rate"))
    }
    groups = {**summary.get("components", {}), **summary.get("quality", {})}
    headline = headline_of(summary)
    types = {f"{headline} {kind}": one[headline] for kind, one in summary.get("by_type", {}).items()}
    numbers = {f"evaluation/{name}": value for name, value in {**own, **types, **groups}.items()}
    return {name: float(value) for name, value in numbers.items() if isinstance(value, (int, float))}


def _tables(results: Mapping[str, Any]) -> dict[str, Table]:
    summaries = {name: results[name] for name in ("base", "aligned") if results.get(name)}
    if not summaries:
        return {}
    tables = {"evaluation/before_and_after": Table(["measure", *summaries], summary_rows(summaries))}
    differences = {**(results.get("difference") or {}), **(results.get("quality_difference") or {})}
    if differences:
        rows = [
            [name, f"{one['difference']:+.3f}", "[{:+.3f}, {:+.3f}]".format(*one["interval"])]
            for name, one in differences.items()
        ]
        tables["evaluation/difference"] = Table(["measure", "aligned - base", "95 % interval, paired"], rows)
    return tables
