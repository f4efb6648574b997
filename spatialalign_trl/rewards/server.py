"""
Serve any reward over HTTP: the server for `rewards/remote.py`, written with the standard library and small enough to
copy.

It answers POST with scores and GET with a description of the reward. Requests for scores are handled one at a time,
because rewards share models. It does not support TLS; in an untrusted network, put it behind a proxy that does.
"""

import base64
import binascii
import hmac
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from spatialalign_trl.rewards.convention import RewardFunc, required_columns
from spatialalign_trl.rewards.runner import RewardRunner
from spatialalign_trl.safe_text import mask_secrets
from spatialalign_trl.video import read_video

MAX_BODY_BYTES = 1 << 30


class RewardServer(ThreadingHTTPServer):
    """
    Serve one reward until `shutdown()`.

    Args:
        reward (callable):
            The reward.
        host (`str`, *optional*, defaults to `"127.0.0.1"`):
            Address to listen on. `"0.0.0.0"` means all addresses of this machine, so everybody in its networks can use
            the reward unless `token` is given.
        port (`int`, *optional*, defaults to `8000`):
            Port to listen on; 0 picks a free one.
        token (`str`, *optional*):
            The token that requests must send as `Authorization: Bearer`.

    Raises:
        `OSError`: if the address is not available.
    """

    daemon_threads = True

    def __init__(
        self, reward: RewardFunc, host: str = "127.0.0.1", port: int = 8000, token: str | None = None
    ) -> None:
        self.runner = RewardRunner(reward, max_failure_share=1.0)
        self.token = token
        self._lock = threading.Lock()
        super().__init__((host, port), _Handler)

    @property
    def url(self) -> str:
        """The URL of the reward, with the port that was picked."""
        return f"http://{self.server_address[0]}:{self.server_address[1]}/{self.runner.names[0]}"

    def about(self) -> dict[str, Any]:
        """Return the answer to GET: the reward's name, the columns it needs, and its settings."""
        name, reward = self.runner.names[0], self.runner.reward_funcs[0]
        return {
            "reward": name,
            "required_columns": required_columns(reward),
            "settings": mask_secrets(self.runner.describe()[name]),
        }

    def score(self, request: Any) -> dict[str, Any]:
        """
        Return the answer to POST: the scores and the logged columns.

        Args:
            request:
                The JSON of the request.

        Raises:
            `ValueError`: if the request violates the schema.
            `RuntimeError`: if the reward fails.
        """
        prompts, videos, columns = read_request(request)
        with self._lock:
            output = self.runner(prompts, videos, columns)
        name = self.runner.names[0]
        if output.errors:
            raise RuntimeError(f"the reward {name!r} failed: {output.errors[name][0]}")
        return {"scores": output.rewards, "extra": output.extra}


def read_request(request: Any) -> tuple[list[str], list[Any], dict[str, list]]:
    """
    Check a request and decode its videos.

    Args:
        request:
            The JSON of the request.

    Returns:
        `(prompts, videos, columns)`: videos are `uint8` arrays of shape `(frames, height, width, 3)`.

    Raises:
        `ValueError`: if the request violates the schema; says where.
    """
    if not isinstance(request, dict):
        raise ValueError("the request must be a JSON object with prompts, videos and columns")
    prompts, videos, columns = (request.get(name) for name in ("prompts", "videos", "columns"))
    columns = {} if columns is None else columns
    if not isinstance(videos, list) or not isinstance(prompts, list) or not isinstance(columns, dict):
        raise ValueError("prompts and videos must be lists, and columns an object of lists")
    for name, values in {"prompts": prompts, **columns}.items():
        if not isinstance(values, list) or len(values) != len(videos):
            raise ValueError(f"{name} must be a list with one value for each of the {len(videos)} videos")
    decoded = []
    for k, video in enumerate(videos):
        try:
            decoded.append(read_video(base64.b64decode(video, validate=True)))
        except (binascii.Error, TypeError, ValueError) as error:
            raise ValueError(f"videos[{k}] is no video file in base64: {error}") from error
    return prompts, decoded, columns


class _Handler(BaseHTTPRequestHandler):
    server: RewardServer
    server_version = "spatialalign-reward"
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self._is_allowed():
            self._answer(200, self.server.about())

    def do_POST(self) -> None:
        if not self._is_allowed():
            return
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MAX_BODY_BYTES:
            return self._refuse(413, f"Content-Length must be given, and at most {MAX_BODY_BYTES}")
        # A web page in a browser cannot send this type to another site without its permission.
        if self.headers.get_content_type() != "application/json":
            return self._refuse(415, "Content-Type must be application/json")
        body = self.rfile.read(int(length))
        try:
            self._answer(200, self.server.score(json.loads(body)))
        except ValueError as error:
            self._answer(400, {"error": str(error)})
        except Exception as error:  # a reward may raise anything, and must not end the server
            self._answer(500, {"error": str(error)})

    def _is_allowed(self) -> bool:
        given = self.headers.get("Authorization", "")
        token = self.server.token
        if token is None or hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
            return True
        self._refuse(401, "the token is missing or wrong")
        return False

    def _refuse(self, status: int, reason: str) -> None:
        """Answer before the body was read, and therefore close the connection."""
        self.close_connection = True
        self._answer(status, {"error": reason})

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content, default=str).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)
