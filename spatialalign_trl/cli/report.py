"""`spatialalign report`: the page of a run or an evaluation, made again from what lies in its folder."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from spatialalign_trl.cli.parsing import Parser

DESCRIPTION = """\
Write report.html into the folder of a finished run or evaluation: the numbers, the videos side by side with curves and
boxes, the training, in one file that needs no network.

  spatialalign report runs/tiny
  spatialalign report runs/tiny --megabytes 50

Curves and boxes are kept in report.json beside it; those of videos that were not shown before are made by the rewards
that scored them."""


def build_parser() -> Parser:
    """The command's options."""
    from spatialalign_trl.report.write import MEGABYTES

    parser = Parser(prog="spatialalign report", description=DESCRIPTION)
    parser.add_argument(
        "folder", metavar="RUN_DIR", help="what recipes/spatialalign.py or spatialalign evaluate wrote"
    )
    parser.add_argument(
        "--megabytes",
        type=_size,
        default=MEGABYTES,
        metavar="N",
        help=f"size of the page; videos that do not fit are left out, with a note (default: {MEGABYTES:g})",
    )
    return parser


def main(words: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    parser = build_parser()
    args = parser.read(words)
    from spatialalign_trl.report.write import write_report

    try:
        file = write_report(Path(args.folder), max_megabytes=args.megabytes)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(f"{file} ({file.stat().st_size / 1e6:.1f} MB)")
    return 0


def _size(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a size above 0")
    return value
