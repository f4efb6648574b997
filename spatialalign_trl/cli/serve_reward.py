"""`spatialalign serve-reward`: a reward behind HTTP, for `--reward_funcs http://host:port/name` on another machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from spatialalign_trl.cli.parsing import Parser, key_value
from spatialalign_trl.rewards.loading import load_reward
from spatialalign_trl.rewards.server import RewardServer

LOCAL = ("127.0.0.1", "localhost")


def main(words: Sequence[str]) -> int:
    """Serves until Ctrl-C.

    Args:
        words: the words after `spatialalign serve-reward`.

    Raises:
        SystemExit: with code 2 for a reward that cannot be made or an address that cannot be listened on.
    """
    parser = Parser(
        prog="spatialalign serve-reward",
        description="Serve a reward over HTTP. Its schema stands in rewards/README.md.",
        epilog="Example: spatialalign serve-reward dsr_score --port 8000 --option tracker=grounded_sam",
    )
    parser.add_argument("reward", help="as in --reward_funcs: dsr_score, or path/to/file.py:Name")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine alone)")
    parser.add_argument("--port", type=int, default=8000, help="0 picks a free one (default: 8000)")
    parser.add_argument(
        "--option",
        type=key_value,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="what the reward is made with",
    )
    parser.add_argument(
        "--token-env", metavar="NAME", help="environment variable with a token that requests must send"
    )
    args = parser.read(words)
    token = None if args.token_env is None else os.environ.get(args.token_env, "").strip()
    if token == "":
        parser.error(f"--token-env: ${args.token_env} is not set")
    try:
        server = RewardServer(load_reward(args.reward, **dict(args.option)), args.host, args.port, token)
    except (ValueError, TypeError, ImportError, OSError, OverflowError) as error:
        parser.error(str(error))
    if args.host not in LOCAL and token is None:
        print("anybody who reaches this machine can use the reward; --token-env asks for a token", file=sys.stderr)
    print(f"serving {args.reward} at {server.url} (Ctrl-C ends it)", flush=True)
    with server:
        server.serve_forever()
    return 0
