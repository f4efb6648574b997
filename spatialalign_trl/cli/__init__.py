"""The console command `spatialalign`. Each subcommand is a module that is imported only when it is called."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from spatialalign_trl import __version__
from spatialalign_trl.cli.parsing import Parser, one_of

COMMANDS = {
    "score": "score whether the animal in a video starts and ends where the prompt says (DSR-Score)",
    "plan": "forecast a run without a GPU: memory, hours and disk of every stage, and what makes it fit a card",
    "evaluate": "compare models, LoRAs and folders of videos on the same prompts and seeds, with tables",
    "push-prompts": "push a folder of prompts to the Hub",
    "new-reward": "create a package for a reward of your own, with tests and an entry point",
    "report": "rebuild the HTML report of a run or an evaluation: videos side by side, curves, all numbers",
    "push-preferences": "push a run's preference dataset to the Hub if the run itself could not",
    "serve-reward": "serve a reward to other machines over HTTP",
    "label": "make an HTML page on which people label clips",
    "agreement": "measure how well DSR-Score and other rewards agree with people's labels",
    "export-lora": "write a trained LoRA in the format that ComfyUI or the original Wan code reads",
}

INTERRUPTED = 130
"""The exit code that shells report for a command ended by Ctrl-C."""


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run `spatialalign`.

    Args:
        argv (sequence of `str`, *optional*):
            The words after `spatialalign`; defaults to `sys.argv[1:]`.

    Returns:
        `int`: the exit code: 0 = everything was done, 1 = a part was not and is listed, 130 = Ctrl-C.

    Raises:
        SystemExit: with code 2 for a command line that cannot be run, with 0 after `--help`.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    width = max(map(len, COMMANDS)) + 2
    listing = "\n".join(f"  {name:<{width}}{summary}" for name, summary in COMMANDS.items())
    parser = Parser(
        prog="spatialalign",
        description="Train and evaluate text-to-video models that put things where the prompt says.",
        epilog=f"commands:\n{listing}\n\nRun 'spatialalign COMMAND --help' to list a command's options.",
    )
    parser.add_argument("--version", action="version", version=f"spatialalign-trl {__version__}")
    parser.add_argument("command", type=one_of("command", COMMANDS), metavar="COMMAND")
    command = parser.parse_args(words[:1]).command
    from spatialalign_trl.video import max_pixels

    try:
        max_pixels()  # a wrong setting would be the fault of every video
    except ValueError as error:
        parser.error(str(error))
    try:
        return import_module(f"{__name__}.{command.replace('-', '_')}").main(words[1:])
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
