"""`spatialalign push-prompts`: push a prompt set to the Hub, unchanged."""

from __future__ import annotations

from collections.abc import Sequence

from spatialalign_trl.cli.parsing import Parser
from spatialalign_trl.errors import printable

DESCRIPTION = """\
Check that every split of a folder of prompts loads, and push the folder to the Hub unchanged.

  spatialalign push-prompts datasets/dsr_prompts --repo me/dsr-prompts
  accelerate launch recipes/spatialalign.py --train_prompts me/dsr-prompts

A new repository is private unless --public is given. Log in first with `hf auth login`, or set HF_TOKEN."""


def build_parser() -> Parser:
    """Build the parser of `spatialalign push-prompts`."""
    parser = Parser(prog="spatialalign push-prompts", description=DESCRIPTION)
    parser.add_argument(
        "folder", metavar="FOLDER", help="a folder with a card (README.md) and the files that it names"
    )
    parser.add_argument(
        "--repo", required=True, metavar="OWNER/NAME", help="the dataset repository; created if missing"
    )
    parser.add_argument("--public", action="store_true", help="make the repository public if it is created now")
    return parser


def main(words: Sequence[str]) -> int:
    """Run the command, and return its exit code."""
    parser = build_parser()
    args = parser.read(words)
    from spatialalign_trl.prompts.publishing import push_prompts

    try:
        url, counts = push_prompts(args.folder, args.repo, private=not args.public)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    splits = ", ".join(f"{count} {split}" for split, count in counts.items())
    print(printable(f"{splits} prompts: {url}"))
    return 0
