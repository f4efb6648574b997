"""The reward's client and server against a hostile other side: time, memory, connections, and pages in a browser."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import socket
import threading
import time
import tracemalloc
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from spatialalign_trl.rewards import limits, remote, server
from spatialalign_trl.rewards.limits import parse_json
from spatialalign_trl.rewards.remote import HTTPReward, request_body
from spatialalign_trl.rewards.server import RewardServer
from spatialalign_trl.video import encode_video

VIDEO = np.full((3, 16, 16, 3), 51, np.uint8)
JSON = {"Content-Type": "application/json"}


@contextmanager
def running(it):
    thread = threading.Thread(target=it.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield it
    finally:
        it.shutdown()
        it.server_close()
        thread.join()


def constant(prompts, completions, **kwargs):
    return [0.5] * len(completions)


@contextmanager
def reward_server(**options):
    with running(RewardServer(constant, port=0, **options)) as it:
        yield it


def send(it: RewardServer, method="POST", body=None, **headers) -> int:
    """Return the status that the server answers with."""
    connection = HTTPConnection("127.0.0.1", it.server_address[1], timeout=20)
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        connection.request(
            method, "/", request_body(["p"], [VIDEO], {}) if body is None else body, {**JSON, **headers}
        )
        return connection.getresponse().status
    finally:
        connection.close()


def call(reward: HTTPReward, count=1):
    return asyncio.run(reward(prompts=["p"] * count, completions=[VIDEO] * count))


# ---------------------------------------------------------------------------------------------------- the server


@pytest.mark.parametrize("host", ["127.0.0.1:9", "localhost", "LOCALHOST:80", "127.5.5.5", "[::1]:8000"])
def test_the_server_answers_for_this_machine_by_all_its_names(host):
    with reward_server() as it:
        assert send(it, Host=host) == send(it, "GET", Host=host) == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "8.8.8.8", "", "[", "a@b"]
)
def test_a_page_that_points_its_name_to_this_machine_gets_nothing(host):
    with reward_server() as it:
        assert send(it, "GET", Host=host) == 421
        assert send(it, body=b"{}", Host=host) == 421
    with reward_server(token="secret") as it:  # the page does not know the token, a proxy in front of the server does
        assert send(it, "GET", Host=host) == 401
        assert send(it, "GET", Host=host, Authorization="Bearer secret") == 200


def test_a_page_s_requests_are_refused_by_their_origin():
    with reward_server() as it:
        assert send(it, body=b"{}", Origin="http://127.0.0.1") == send(it, "GET", Origin="null") == 403


def test_a_client_is_told_before_anything_is_sampled(monkeypatch):
    with reward_server() as it:
        monkeypatch.setattr(server, "_is_local", lambda host: False)
        with pytest.raises(ValueError, match="status 421: without a token, this server answers for localhost only"):
            HTTPReward(it.url).check_prompts()


def test_idle_connections_end_and_give_their_threads_back(monkeypatch):
    monkeypatch.setattr(server, "IDLE_SECONDS", 0.3)
    with reward_server() as it, ExitStack() as stack:
        before = threading.active_count()
        idle = [stack.enter_context(socket.create_connection(it.server_address)) for _ in range(20)]
        assert all(connection.recv(1) == b"" for connection in idle)  # the server has closed them
        wait_for(lambda: threading.active_count() <= before)
        assert send(it) == 200


def test_a_trickle_of_bytes_ends_after_the_time_of_a_request(monkeypatch):
    monkeypatch.setattr(server, "REQUEST_SECONDS", 1.0)
    for start in (b"GET / HT", b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                  b"Content-Length: 1000\r\n\r\n"):  # fmt: skip
        with reward_server() as it, socket.create_connection(it.server_address, timeout=20) as connection:
            connection.sendall(start)
            began = time.monotonic()
            with pytest.raises(OSError):  # noqa: PT011 - reset or broken pipe
                while time.monotonic() - began < 15:
                    connection.sendall(b"x")
                    time.sleep(0.05)
            assert time.monotonic() - began < 10


def test_more_connections_than_allowed_are_asked_to_come_back(monkeypatch):
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 3)
    with reward_server() as it:
        threads = threading.active_count()
        with ExitStack() as stack:
            idle = [stack.enter_context(socket.create_connection(it.server_address)) for _ in range(3)]
            wait_for(lambda: threading.active_count() >= threads + 3)
            with socket.create_connection(it.server_address, timeout=20) as connection:
                assert connection.recv(100).startswith(b"HTTP/1.1 503")
            assert threading.active_count() == threads + 3 and len(idle) == 3
        wait_for(lambda: threading.active_count() == threads)
        assert send(it) == 200  # there is room again


def wait_for(condition, seconds=20) -> None:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    assert condition()


def test_requests_share_a_limit_of_memory(monkeypatch):
    monkeypatch.setattr(server, "MAX_BODIES_BYTES", 100_000)
    head = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99000\r\n\r\n"
    with reward_server() as it:
        with socket.create_connection(it.server_address, timeout=20) as connection:
            connection.sendall(head)
            wait_for(lambda: it._received == 99_000)
            assert send(it) == 503
        wait_for(lambda: it._received == 0)
        assert send(it) == 200
        wait_for(lambda: it._received == 0)


def test_videos_that_decode_to_too_much_are_refused(monkeypatch):
    bomb = encode_video(np.zeros((400, 128, 128, 3), np.uint8), 8, crf=51)
    size = 400 * 128 * 128 * 3
    assert len(bomb) < size / 500
    body = json.dumps({"prompts": ["p"] * 2, "videos": [base64.b64encode(bomb).decode()] * 2, "columns": {}}).encode()
    with reward_server() as it:
        assert send(it, body=body) == 200
        monkeypatch.setattr(server, "MAX_PIXEL_BYTES", size + size // 2)  # of both together
        tracemalloc.start()
        assert send(it, body=body) == 400
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2.2 * size  # the first video and half of the second, no more


@pytest.mark.parametrize(
    "body", [b"[" * 100_000, b"[" + b"[]," * 3_000_000 + b"[]]", b'{"prompts":' * 50_000, b"9" * 5000, b"\xff\xfe"]
)
def test_json_that_explodes_is_refused_in_little_memory(body):
    tracemalloc.start()
    with reward_server() as it:
        assert send(it, body=body) == 400
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60_000_000


@pytest.mark.parametrize(
    ("headers", "status"),
    [({"Content_Encoding": "gzip"}, 415), ({"Transfer_Encoding": "chunked"}, 413), ({"Content_Length": "-1"}, 413)],
)
def test_other_ways_to_send_a_body_are_refused(headers, status):
    with reward_server() as it:
        assert send(it, body=b"{}", **headers) == status


def test_the_body_of_a_get_is_no_second_request():
    with reward_server() as it, socket.create_connection(it.server_address, timeout=20) as connection:
        inner = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(inner) + inner)
        answers = b""
        try:
            while part := connection.recv(10_000):
                answers += part
        except ConnectionResetError:
            pass
        assert answers.count(b"HTTP/1.1 200") == 1


def test_a_description_that_fails_is_an_answer():
    class Broken:
        __name__ = "broken"

        def __call__(self, prompts, completions, **kwargs): ...

        def describe(self):
            raise RuntimeError("no settings")

    with running(RewardServer(Broken(), port=0)) as it:
        assert send(it, "GET") == 500


# ---------------------------------------------------------------------------------------------------- the client


@contextmanager
def hostile(answer):
    """A server whose answers to GET and POST are written by a function of the handler."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            try:
                answer(self)
            except OSError:  # the client has gone
                pass

        do_GET = do_POST

        def log_message(self, *args): ...

    it = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    it.daemon_threads = True
    with running(it):
        yield f"http://127.0.0.1:{it.server_address[1]}/judge"


def answering(content: bytes, **headers):
    def answer(handler):
        handler.send_response(200)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(content)

    return answer


def both_ways(url, **options):
    """Ask for scores and for the description, and return the errors."""
    errors = []
    for ask in (lambda: call(HTTPReward(url, retries=0, **options)), HTTPReward(url, **options).describe):
        try:
            errors.append(ask())
        except (ValueError, ConnectionError) as error:
            errors.append(error)
    return errors


@pytest.mark.parametrize("encoding", ["gzip", "gzip, gzip", "br"])
def test_an_answer_that_decompresses_to_far_more_is_not_read(encoding):
    bomb = gzip.compress(b" " * (1 << 28), 1)
    if "," in encoding:
        bomb = gzip.compress(bomb)
    with hostile(answering(bomb, Content_Encoding=encoding)) as url:
        tracemalloc.start()
        problems = both_ways(url)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    reason = "more than .* bytes" if encoding == "gzip" else "send it uncompressed"
    for problem in problems:
        assert isinstance(problem, ValueError) and problem.args[0].startswith(url)
        with pytest.raises(ValueError, match=reason):
            raise problem
    assert peak < 150_000_000


def test_a_compressed_answer_of_a_sound_size_is_read():
    content = gzip.compress(b'{"scores": [0.5]}')
    with hostile(answering(content, Content_Encoding="gzip")) as url:
        assert call(HTTPReward(url)) == [0.5]


@pytest.mark.parametrize("slow", ["body", "headers"])
def test_an_answer_without_an_end_is_given_up_in_time(slow):
    def endless(handler):
        if slow == "body":
            handler.send_response(200)
            handler.end_headers()
        else:
            handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        for number in range(400):
            handler.wfile.write(b" " if slow == "body" else b"X-%d: y\r\n" % number)
            time.sleep(0.05)

    with hostile(endless) as url:
        began = time.monotonic()
        problems = both_ways(url, timeout=0.7)
        assert time.monotonic() - began < 10
    assert all(isinstance(problem, ConnectionError) for problem in problems)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"[" * 100_000, "its answer is nested too deeply"),
        (b"[" + b"[]," * 3_000_000 + b"[]]", "its answer has more than 2000000 values"),
        (b'{"scores": [1' + b"0" * 400 + b"]}", r"scores\[0\] of the answer is 10{299}"),
        (b'{"scores": [1e308]}', "at most 1e\\+30 in magnitude"),
        (b'{"scores": [1' + b"0" * 5000 + b"]}", "Exceeds the limit"),
        (b" " * 2_000_000, "no JSON"),
    ],
)
def test_answers_that_explode_are_refused(content, problem):
    with hostile(answering(content)) as url, pytest.raises(ValueError, match=problem):
        call(HTTPReward(url))


def test_a_description_is_bounded_because_run_json_holds_it(monkeypatch):
    with hostile(answering(json.dumps({"a": "x" * limits.MAX_ABOUT_BYTES}).encode())) as url:
        with pytest.raises(ValueError, match="more than 1048576 bytes"):
            HTTPReward(url).describe()


def test_a_description_is_asked_for_inside_a_running_loop():
    async def inside():
        return HTTPReward(url).describe()["server"]

    with hostile(answering(b'{"reward": "judge"}')) as url:
        assert asyncio.run(inside()) == {"reward": "judge"}


def test_the_limits_leave_room_for_what_rewards_need():
    poses = np.zeros((8, 121, 4, 4)).tolist()
    parse_json(json.dumps({"columns": {"camera_poses": poses, "context_poses": poses}}).encode(), "it")
    assert 8 * 81 * 720 * 1280 * 3 < server.MAX_PIXEL_BYTES / 2
    assert remote.MAX_ANSWER_BYTES >= 64 << 20
