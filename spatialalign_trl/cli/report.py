"""`spatialalign report`: rebuild the HTML report of a run or an evaluation from the files in its folder."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from spatialalign_trl.cli.parsing import Parser
from spatialalign_trl.errors import printable

DESCRIPTION = """\
Write report.html into the folder of a finished run or evaluation: one file that works offline, with the numbers, the
videos side by side with their curves and boxes, and the training logs.

  spatialalign report runs/tiny
  spatialalign report runs/tiny --megabytes 50

Curves and boxes are read from report.json in the same folder. For videos that the report did not show before, the
rewards that scored them compute the curves and boxes.

A folder of somebody else is safe to open: files outside of it are not read, and rewards are made without its local
checkpoints and its code. --trust_folder allows both.

exit code: 0 = done, 1 = done, but the page is without something that cannot be read, which is listed, 2 = there is no
page: the command line is wrong, or the folder is not that of a run or an evaluation."""


def build_parser() -> Parser:
    """Build the parser of `spatialalign report`."""
    from spatialalign_trl.report.write import MEGABYTES

    parser = Parser(prog="spatialalign report", description=DESCRIPTION)
    parser.add_argument(
        "folder", metavar="RUN_DIR", help="a folder that recipes/spatialalign.py or spatialalign evaluate wrote"
    )
    parser.add_argument(
        "--megabytes",
        type=_size,
        default=MEGABYTES,
        metavar="N",
        help=f"largest size of the page; videos that do not fit are left out, with a note (default: {MEGABYTES:g})",
    )
    parser.add_argument(
        "--trust_folder",
        action="store_true",
        help="the folder is yours: also read the videos that it names elsewhere, and make its rewards with all of "
        "their settings (local checkpoints, trust_remote_code)",
    )
    return parser


def main(words: Sequence[str]) -> int:
    """Run the command, and return its exit code."""
    parser = build_parser()
    args = parser.read(words)
    from spatialalign_trl.report.write import write_report

    problems: list[str] = []
    try:
        file = write_report(
            Path(args.folder), max_megabytes=args.megabytes, trusted=args.trust_folder, problems=problems
        )
    except (OSError, ValueError) as error:
        parser.error(str(error))
    for problem in problems:
        print(printable(problem), file=sys.stderr)
    print(printable(f"{file} ({file.stat().st_size / 1e6:.1f} MB)"))
    return 1 if problems else 0


def _size(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a size above 0")
    return value
