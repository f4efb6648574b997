"""`spatialalign serve-reward`: serve a reward over HTTP, for `--reward_funcs http://host:port/name` elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from spatialalign_trl.cli.parsing import Parser, key_value
from spatialalign_trl.errors import printable
from spatialalign_trl.rewards.loading import load_reward
from spatialalign_trl.rewards.server import RewardServer

LOCAL = ("127.0.0.1", "localhost")


def build_parser() -> Parser:
    """Build the parser of `spatialalign serve-reward`."""
    parser = Parser(
        prog="spatialalign serve-reward",
        description="Serve a reward over HTTP. The protocol is described in rewards/README.md.",
        epilog="Example: spatialalign serve-reward dsr_score --port 8000 --option tracker=grounded_sam",
    )
    parser.add_argument("reward", help="a reward as in --reward_funcs: dsr_score, or path/to/file.py:Name")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default: 127.0.0.1, which only this machine can reach)",
    )
    parser.add_argument("--port", type=int, default=8000, help="port to listen on; 0 picks a free one (default: 8000)")
    parser.add_argument(
        "--option",
        type=key_value,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an argument of the reward; may be repeated",
    )
    parser.add_argument(
        "--token_env", metavar="NAME", help="environment variable with a token that requests must send"
    )
    return parser


def main(words: Sequence[str]) -> int:
    """Serve a reward until Ctrl-C.

    Args:
        words (sequence of `str`): The words after `spatialalign serve-reward`.

    Raises:
        SystemExit: with code 2 for a reward that cannot be made, or an address that the server cannot listen on.
    """
    parser = build_parser()
    args = parser.read(words)
    token = None if args.token_env is None else os.environ.get(args.token_env, "").strip()
    if token == "":
        parser.error(f"--token_env {args.token_env}: the environment variable is not set. Set it to the token")
    try:
        server = RewardServer(load_reward(args.reward, **dict(args.option)), args.host, args.port, token)
    except (ValueError, TypeError, ImportError, OSError, OverflowError) as error:
        parser.error(str(error))
    if args.host not in LOCAL and token is None:
        print(
            "Anyone who can reach this machine can use the reward. Add --token_env to require a token",
            file=sys.stderr,
        )
    print(printable(f"serving {args.reward} at {server.url} (stop with Ctrl-C)"), flush=True)
    with server:
        server.serve_forever()
    return 0
