"""`spatialalign push-prompts`: a prompt set to the Hub, as it is."""

from __future__ import annotations

from collections.abc import Sequence

from spatialalign_trl.cli.parsing import Parser

DESCRIPTION = """\
Push a folder of prompts to the Hub as it is, after every split was found to load.

  spatialalign push-prompts datasets/dsr_prompts --repo me/dsr-prompts
  accelerate launch recipes/spatialalign.py --train_prompts me/dsr-prompts

The repository is private unless --public makes a new one public. Log in first: `hf auth login`, or HF_TOKEN."""


def build_parser() -> Parser:
    """The command's options."""
    parser = Parser(prog="spatialalign push-prompts", description=DESCRIPTION)
    parser.add_argument("folder", metavar="FOLDER", help="the card (README.md) and the files that it names")
    parser.add_argument("--repo", required=True, metavar="OWNER/NAME", help="is made if it is missing")
    parser.add_argument("--public", action="store_true", help="everybody may read a repository that is made")
    return parser


def main(words: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    parser = build_parser()
    args = parser.read(words)
    from spatialalign_trl.prompts.publishing import push_prompts

    try:
        url, counts = push_prompts(args.folder, args.repo, private=not args.public)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(f"{', '.join(f'{count} {split}' for split, count in counts.items())} prompts: {url}")
    return 0
