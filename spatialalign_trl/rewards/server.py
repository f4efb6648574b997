"""
Serve any reward over HTTP: the server for `rewards/remote.py`, written with the standard library and small enough to
copy.

It answers POST with scores and GET with a description of the reward. Requests for scores are handled one at a time,
because rewards share models. It does not support TLS; in an untrusted network, put it behind a proxy that does.

Connections, time, and the memory of requests are limited. Pages in a browser cannot use a server without a token:
requests with an `Origin` are refused, and on a loopback address also those for another host name, which a page can
point to this machine (DNS rebinding).
"""

import base64
import binascii
import hmac
import io
import ipaddress
import json
import logging
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from spatialalign_trl.rewards.convention import RewardFunc, required_columns
from spatialalign_trl.rewards.limits import MAX_BODY_BYTES, parse_json
from spatialalign_trl.rewards.runner import RewardRunner
from spatialalign_trl.rewards.sources import source_fingerprint
from spatialalign_trl.safe_text import mask_secrets
from spatialalign_trl.video import TimedVideo, read_timed_video

logger = logging.getLogger(__name__)

MAX_BODIES_BYTES = 2 * MAX_BODY_BYTES
"""Most bytes of all requests that are being received or decoded. More are asked to come back (503)."""

MAX_PIXEL_BYTES = 4 << 30
"""Most bytes of the frames of one request. Eight videos of 81 frames of 720x1280 take less than half."""

MAX_CONNECTIONS = 64
IDLE_SECONDS = 30.0
"""Longest time without a byte from or to the other side."""
REQUEST_SECONDS = 600.0
"""Longest time for receiving a request, from the end of the last one."""

LOCAL_NAMES = ("localhost", "localhost.localdomain")


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
        self,
        reward: RewardFunc,
        host: str = "127.0.0.1",
        port: int = 8000,
        token: str | None = None,
    ) -> None:
        self.runner = RewardRunner(reward, max_failure_share=1.0)
        self.token = token
        self.fingerprint = source_fingerprint(self.runner.reward_funcs[0])  # now: the file may change while it serves
        self._lock = threading.Lock()
        self._decoding = threading.BoundedSemaphore(2)  # one request is decoded while another is scored
        self._connections = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._received = 0
        self._received_lock = threading.Lock()
        super().__init__((host, port), _Handler)
        self.is_loopback = ipaddress.ip_address(self.server_address[0]).is_loopback

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for a connection, or ask the client to come back if there are too many."""
        if self._connections.acquire(blocking=False):
            try:
                super().process_request(request, client_address)
            except BaseException:  # no thread could be started
                self._connections.release()
                raise
            return
        request.settimeout(1.0)
        try:
            request.sendall(b"HTTP/1.1 503 Busy\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        except OSError:
            pass
        self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Handle a connection, and make room for another one."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._connections.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log a broken connection, which is no error of the server."""
        logger.info("connection of %s ended", client_address, exc_info=True)

    def reserve(self, size: int) -> bool:
        """Count the bytes of a request as memory in use; return whether there was room for them."""
        with self._received_lock:
            if self._received + size > MAX_BODIES_BYTES:
                return False
            self._received += size
            return True

    def free(self, size: int) -> None:
        """Give back what [`~RewardServer.reserve`] counted."""
        with self._received_lock:
            self._received -= size

    @property
    def url(self) -> str:
        """The URL of the reward, with the port that was picked."""
        return f"http://{self.server_address[0]}:{self.server_address[1]}/{self.runner.names[0]}"

    def about(self) -> dict[str, Any]:
        """Return the answer to GET: the reward's name, the columns it needs, its settings and its fingerprint."""
        name, reward = self.runner.names[0], self.runner.reward_funcs[0]
        return {
            "reward": name,
            "required_columns": required_columns(reward),
            "settings": mask_secrets(self.runner.describe()[name]),
            "fingerprint": self.fingerprint,
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
        with self._decoding:  # frames take far more memory than a request
            prompts, timed, columns = _read_request(request)
            videos = [video for video, _ in timed]
            columns.setdefault("fps", [fps for _, fps in timed])  # frames alone do not show the speed of a motion
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
    prompts, timed, columns = _read_request(request)
    return prompts, [video for video, _ in timed], columns


def _read_request(request: Any) -> tuple[list[str], list[TimedVideo], dict[str, list]]:
    """Check a request and decode its videos, with their frame rates."""
    if not isinstance(request, dict):
        raise ValueError("the request must be a JSON object with prompts, videos and columns")
    prompts, videos, columns = (request.get(name) for name in ("prompts", "videos", "columns"))
    columns = {} if columns is None else columns
    if not isinstance(videos, list) or not isinstance(prompts, list) or not isinstance(columns, dict):
        raise ValueError("prompts and videos must be lists, and columns an object of lists")
    for name, values in {"prompts": prompts, **columns}.items():
        if not isinstance(values, list) or len(values) != len(videos):
            raise ValueError(f"{name} must be a list with one value for each of the {len(videos)} videos")
    decoded, room = [], MAX_PIXEL_BYTES
    for k, video in enumerate(videos):
        try:
            decoded.append(read_timed_video(base64.b64decode(video, validate=True), max_bytes=room))
            room -= decoded[-1].video.nbytes
        except (binascii.Error, TypeError, ValueError) as error:
            raise ValueError(f"videos[{k}] is no video file in base64: {error}") from error
    return prompts, decoded, dict(columns)


class _TimedReader(io.RawIOBase):
    """Reads from a socket until a deadline: a timeout for each read would wait for ever on one byte a minute."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.deadline = 0.0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the request took too long")
        self._connection.settimeout(min(IDLE_SECONDS, left))
        return self._connection.recv_into(buffer)


class _Handler(BaseHTTPRequestHandler):
    server: RewardServer
    server_version = "spatialalign-reward"
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self._reader = _TimedReader(self.connection)
        self.rfile = io.BufferedReader(self._reader, 1 << 16)

    def handle_one_request(self) -> None:
        self._reader.deadline = time.monotonic() + REQUEST_SECONDS
        super().handle_one_request()

    def do_GET(self) -> None:
        if not self._is_allowed():
            return
        if "Content-Length" in self.headers or "Transfer-Encoding" in self.headers:
            self.close_connection = True  # the body is not read, and must not count as the next request
        try:
            self._answer(200, self.server.about())
        except Exception as error:  # describe() of a reward may raise anything
            self._answer(500, {"error": str(error)})

    def do_POST(self) -> None:
        if not self._is_allowed():
            return
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MAX_BODY_BYTES or "Transfer-Encoding" in self.headers:
            return self._refuse(413, f"Content-Length must be given, and at most {MAX_BODY_BYTES}")
        # A web page in a browser cannot send this type to another site without its permission.
        if self.headers.get_content_type() != "application/json":
            return self._refuse(415, "Content-Type must be application/json")
        if self.headers.get("Content-Encoding", "identity") != "identity":
            return self._refuse(415, "Content-Encoding must be identity")
        size = int(length)
        if not self.server.reserve(size):
            return self._refuse(503, "too many requests at once; send it again later")
        try:
            body = self.rfile.read(size)
            if len(body) < size:  # the client has gone
                self.close_connection = True
                return
            self._answer(*self._score(body))
        finally:
            self.server.free(size)

    def _score(self, body: bytes) -> tuple[int, dict[str, Any]]:
        """Return the status and the answer to a request for scores."""
        try:
            return 200, self.server.score(parse_json(body, "the request"))
        except ValueError as error:
            return 400, {"error": str(error)}
        except Exception as error:  # a reward may raise anything, and must not end the server
            return 500, {"error": str(error)}

    def _is_allowed(self) -> bool:
        given = self.headers.get("Authorization", "")
        token = self.server.token
        if token is not None:
            if hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
                return True
            self._refuse(401, "the token is missing or wrong")
            return False
        # Only browsers send an origin. Their pages must not use the rewards of the machine that they are shown on.
        if "Origin" in self.headers:
            self._refuse(403, "requests of web pages are not allowed without a token")
            return False
        host = _host_name(self.headers.get("Host", ""))
        if self.server.is_loopback and not _is_local(host):
            self._refuse(421, f"without a token, this server answers for localhost only, not for the host {host!r}")
            return False
        return True

    def _refuse(self, status: int, reason: str) -> None:
        """Answer before the body was read, and therefore close the connection."""
        self.close_connection = True
        self._answer(status, {"error": reason})

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content, default=str).encode()
        self.connection.settimeout(IDLE_SECONDS)
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)


def _host_name(header: str) -> str:
    """Return the name or the address in a `Host` header, without the port; an empty text if it has none."""
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""


def _is_local(host: str) -> bool:
    """Return whether a host name means this machine wherever it is resolved."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in LOCAL_NAMES
