"""The HTTP side of the loopback Hub: requests are read and responses written, or lost as a fault prescribes."""

from __future__ import annotations

import json
import re
import socket
import traceback
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from loopback_api import Request, Response

ERROR_CODES = {401: "", 403: "", 404: "RepoNotFound", 409: "", 412: "", 429: "", 500: "", 503: ""}


@dataclass
class Fault:
    """A failure of requests with a matching method and path.

    Args:
        method: `"POST"`, ..., or `"*"` for any method.
        path: a regular expression that is searched for in the path.
        times: the number of requests that fail.
        status: the status of the response. With `None` the connection is dropped without a response.
        headers: headers of the response, such as `{"Retry-After": "1"}`.
        delay: seconds before the response or the drop.
        after: whether the request is carried out first, so that only its response is lost.
    """

    method: str
    path: str
    times: int = 1
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    after: bool = False
    hits: int = 0

    def matches(self, method: str, path: str) -> bool:
        return self.hits < self.times and self.method in ("*", method) and bool(re.search(self.path, path))


class HubServer(ThreadingHTTPServer):
    """
    A server on a free port of this machine.

    Args:
        answer: returns the response to a request, or the fault that applies to it.
        wait: waits so many seconds, or until the server stops.
    """

    daemon_threads = True

    def __init__(self, answer: Callable[[Request], Response | Fault], wait: Callable[[float], object]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer, self.wait = answer, wait
        self.errors: list[str] = []
        """Tracebacks of exceptions that `answer` raised."""


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *words: object) -> None:
        """Log nothing."""

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _serve(self) -> None:
        address = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(address.query))
        path = urllib.parse.unquote(address.path)
        try:
            answer = self.server.answer(Request(self.command, path, query, self.headers, self._body()))
        except Exception:
            self.server.errors.append(f"{self.command} {path}\n{traceback.format_exc()}")
            answer = Response({"error": "the loopback Hub has a bug"}, 500)
        if isinstance(answer, Fault):
            self.server.wait(answer.delay)
            if answer.status is None:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            words = f"the loopback Hub has a fault with status {answer.status}"
            headers = {"X-Error-Message": words, **answer.headers}
            if ERROR_CODES.get(answer.status):
                headers["X-Error-Code"] = ERROR_CODES[answer.status]
            answer = Response({"error": words}, answer.status, headers)
        self._send(answer)

    def _send(self, response: Response) -> None:
        is_raw = isinstance(response.data, bytes)
        data = response.data if is_raw else json.dumps(response.data).encode()
        try:
            self.send_response(response.status)
            for name, value in {"Content-Type": "application/json", **response.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # a client that did not wait for a delayed answer

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve
