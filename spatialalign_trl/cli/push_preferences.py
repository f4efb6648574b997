"""`spatialalign push-preferences`: push a run's preference dataset to the Hub if the run itself could not."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from spatialalign_trl.cli.parsing import Parser
from spatialalign_trl.errors import printable
from spatialalign_trl.safe_text import printable_lines

DESCRIPTION = """\
Push the preference dataset that a run with --push_preferences_to_hub collected in its folder.

  spatialalign push-preferences runs/tiny --repo me/prefs

The token comes from `hf auth login` or from the environment variable HF_TOKEN. Files that are already in the
repository are not sent again."""


def build_parser() -> Parser:
    """Build the parser of `spatialalign push-preferences`."""
    parser = Parser(prog="spatialalign push-preferences", description=DESCRIPTION)
    parser.add_argument("run", metavar="RUN_DIR", help="the run's output_dir")
    parser.add_argument(
        "--repo", required=True, metavar="OWNER/NAME", help="the dataset repository; created if missing"
    )
    parser.add_argument("--public", action="store_true", help="make the repository public if it is created now")
    return parser


def main(words: Sequence[str]) -> int:
    """Run the command, and return its exit code."""
    parser = build_parser()
    args = parser.read(words)
    from spatialalign_trl.hub.pushing import PushFailed, check_hub_access, check_repo_name
    from spatialalign_trl.online.preference_repo import HUB_FOLDER, describe_push, push_preferences_folder

    folder = Path(args.run) / HUB_FOLDER
    try:
        check_repo_name(args.repo, "--repo")
        check_hub_access(args.repo, "--repo", private=not args.public)
        print(printable_lines(describe_push(folder, args.repo)), file=sys.stderr)
        url = push_preferences_folder(folder, args.repo, message="Preferences", private=not args.public)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    except PushFailed as error:
        message = f"not pushed: {error}. {folder} is unchanged. Run the same command to try again."
        print(printable_lines(message), file=sys.stderr)
        return 1
    print(printable(url))
    return 0
