"""The console command `spatialalign`. One module per subcommand; a module is imported when its command is called."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from spatialalign_trl import __version__
from spatialalign_trl.cli.parsing import Parser, one_of

COMMANDS = {
    "score": "grade videos: does the animal start and end where the prompt says? (DSR-Score)",
    "evaluate": "models, LoRAs and folders of videos side by side on the same prompts and seeds, with tables",
    "push-prompts": "put a folder of prompts on the Hub, as it is",
    "new-reward": "begin a reward of your own: a package with its test and entry point",
    "report": "make the page of a run or an evaluation again: videos side by side, curves, all numbers",
    "push-preferences": "push a run's preference dataset that the run itself could not push to the Hub",
    "serve-reward": "let other machines ask a reward over HTTP",
    "label": "make a page on which people label clips",
    "agreement": "how far DSR-Score and other rewards agree with people's labels",
    "export-lora": "write a trained LoRA under the names that ComfyUI and the original Wan code read",
}

INTERRUPTED = 130
"""What shells report for a command that Ctrl-C ended."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `spatialalign`.

    Args:
        argv: the words after `spatialalign`; those of the command line if it is not given.

    Returns:
        The exit code: 0 = everything was done, 1 = a part was not (it is listed), 130 = Ctrl-C.

    Raises:
        SystemExit: with code 2 for a line that cannot be run, with 0 after `--help`.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    width = max(map(len, COMMANDS)) + 2
    listing = "\n".join(f"  {name:<{width}}{what}" for name, what in COMMANDS.items())
    parser = Parser(
        prog="spatialalign",
        description="SpatialAlign from the command line.",
        epilog=f"commands:\n{listing}\n\n'spatialalign COMMAND --help' lists a command's options.",
    )
    parser.add_argument("--version", action="version", version=f"spatialalign-trl {__version__}")
    parser.add_argument("command", type=one_of("command", COMMANDS), metavar="COMMAND")
    command = parser.parse_args(words[:1]).command
    try:
        return import_module(f"{__name__}.{command.replace('-', '_')}").main(words[1:])
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
