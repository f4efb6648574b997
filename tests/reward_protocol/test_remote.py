"""A reward on another machine gives the scores that it gives on this one, and every failure of its server is named."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from fresh_process import PROGRAMS
from httpx2 import post

from spatialalign_trl.arguments.rewards import RewardArguments
from spatialalign_trl.rewards import remote as http_reward
from spatialalign_trl.rewards.remote import HTTPReward, read_scores, request_body
from spatialalign_trl.rewards.runner import RewardRunner, load_reward
from spatialalign_trl.rewards.scoring import score_samples
from spatialalign_trl.rewards.server import RewardServer, read_request
from spatialalign_trl.rewards.sources import source_fingerprint
from spatialalign_trl.rollout.store import SampleStore

VIDEOS = [np.full((3, 16, 16, 3), level, np.uint8) for level in (0, 51, 102, 255)]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(http_reward, "FIRST_WAIT_SECONDS", 0.001)


@contextmanager
def running(server: ThreadingHTTPServer) -> Iterator[ThreadingHTTPServer]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Script(ThreadingHTTPServer):
    """A server with prepared answers, `(status, body)` or a callable, one per request; the last one is repeated."""

    daemon_threads = True

    def __init__(self, *answers) -> None:
        self.answers, self.requests = list(answers), []
        super().__init__(("127.0.0.1", 0), ScriptHandler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/judge"


class ScriptHandler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append((dict(self.headers), json.loads(body)))
        answers = self.server.answers
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Callable):
            return answer(self)
        status, content = answer
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args) -> None: ...


def drop(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True
    handler.connection.close()


def score_with(server: Script, count: int = 2, **options) -> list | str:
    """Return the scores, or the error."""
    output = RewardRunner(load_reward(server.url, **options))(["p"] * count, VIDEOS[:count])
    return output.errors["judge"][0] if output.errors else output.rewards


def brightness(prompts, completions, animal, log_extra=None, **kwargs):
    log_extra("brightness_reason", [f"a {noun}" for noun in animal])
    values = [float(video.mean()) / 255 for video in completions]
    return [value if value > 0 else None for value in values]


# ------------------------------------------------------------------------------------------ client and server together


def test_scores_and_columns_are_those_of_the_reward_itself():
    columns = {"animal": ["fox", "cat", "dog", "hen"], "fps": [8.0] * 4}
    local = RewardRunner(brightness)(["p"] * 4, VIDEOS, columns)
    with running(RewardServer(brightness, port=0)) as server:
        remote = RewardRunner(load_reward(server.url, max_videos=3))(["p"] * 4, VIDEOS, columns)
    assert remote.per_reward == local.per_reward == {"brightness": [None, 0.2, 0.4, 1.0]}
    assert remote.extra == local.extra and remote.errors == {}


def test_prompts_are_checked_for_the_columns_that_the_served_reward_needs():
    with running(RewardServer(brightness, port=0)) as server:
        runner = RewardRunner(load_reward(server.url))
        runner.check_prompts([{"prompt": "p", "animal": "fox"}])
        with pytest.raises(ValueError, match="'brightness' cannot score.*needs the column 'animal'.*Did you mean"):
            runner.check_prompts([{"prompt": "p", "animals": "fox"}])


def test_the_description_contains_that_of_the_served_reward():
    with running(RewardServer(brightness, port=0)) as server:
        served = {"reward": "brightness", "required_columns": ["animal"], "settings": None}
        assert load_reward(server.url).describe() == {"url": server.url, "crf": 0, "server": served}


def test_the_server_tells_the_fingerprint_of_the_code_and_the_options_that_it_started_with(tmp_path):
    def fingerprint(content: str, **options) -> tuple[str | None, str]:
        file = tmp_path / "served.py"
        file.write_text(content)
        reward = load_reward(f"{file}:score", **options)
        with running(RewardServer(reward, port=0)) as server:
            file.write_text("edited since")
            client = load_reward(server.url)
            assert "fingerprint" not in client.describe()["server"]  # settings that an older run has recorded
            return source_fingerprint(client), json.dumps(client.describe()["server"])

    code = "def score(prompts, completions, size=1, key='', **kwargs):\n    return [{}] * len(completions)\n"
    first = fingerprint(code.format(0.5))
    assert first[0].startswith("served.py, sha256 ") and first[0] == fingerprint(code.format(0.5))[0]
    variants = [first, fingerprint(code.format(0.25))] + [fingerprint(code.format(0.5), size=k) for k in (2, 3)]
    assert len(set(variants)) == 4
    assert "swordfish" not in "".join(fingerprint(code.format(0.5), key="swordfish"))


def test_a_change_behind_a_server_scores_everything_again_and_keeps_the_old_scores(tmp_path):
    store, file, port = SampleStore(tmp_path / "samples"), tmp_path / "served.py", 0
    for k, video in enumerate(VIDEOS):
        sample = store.new_sample({"prompt_id": f"p{k}", "prompt": "p"}, 0, {"num_frames": 3}, "base")
        store.add(sample, video, torch.zeros(1, 1, 1, 1), fps=8, crf=0)

    def scores(value: float) -> list[float]:
        nonlocal port
        file.write_text(f"def score(prompts, completions, **kwargs):\n    return [{value}] * len(completions)\n")
        with running(RewardServer(load_reward(f"{file}:score"), port=port)) as server:
            port = server.server_address[1]
            samples = score_samples(store.samples(), store, RewardRunner(load_reward(server.url)))
        return [sample.reward for sample in samples]

    assert scores(0.25) == scores(0.25) == [0.25] * 4 and not list(store.directory.glob("*.replaced-*"))
    assert scores(0.5) == [0.5] * 4
    kept = [json.loads(path.read_text())["reward"] for path in store.directory.glob("*.scores.replaced-1.json")]
    assert kept == [0.25] * 4


def test_a_reward_that_describes_its_settings_decides_which_options_count(tmp_path):
    file = tmp_path / "served.py"
    file.write_text(
        "class Mine:\n"
        "    def __init__(self, size=1, device='cpu'): self.size = size\n"
        "    def describe(self): return {'size': self.size}\n"
        "    def __call__(self, prompts, completions, **kwargs): return [1.0] * len(completions)\n"
    )
    told = []
    for options in ({}, {"device": "cuda:1"}, {"size": 2}):
        reward = load_reward(f"{file}:Mine", **options)
        with running(RewardServer(reward, port=0)) as server:
            client = load_reward(server.url)
            told.append((client.describe()["server"]["settings"], source_fingerprint(client)))
    assert told[0] == told[1] and told[0][1] == told[2][1] and told[2][0] == {"size": 2}


@pytest.mark.parametrize("about", [{}, {"fingerprint": None}, {"fingerprint": " "}, {"fingerprint": 3}, []])
def test_a_server_without_a_fingerprint_is_unknown(about):
    with running(RewardServer(brightness, port=0)) as server:
        server.about = lambda: about
        assert source_fingerprint(load_reward(server.url)) is None


def test_a_fingerprint_is_text_of_a_bounded_length():
    with running(RewardServer(brightness, port=0)) as server:
        server.fingerprint = "\x1b[31m" + "x" * 1000
        told = source_fingerprint(load_reward(server.url))
    assert told.isprintable() and len(told) == 300


def test_a_server_that_is_not_running_is_reported_before_anything_is_sampled():
    with running(RewardServer(brightness, port=0)) as server:
        url = server.url
    with pytest.raises(ConnectionError, match=f"{url} cannot be reached.*start its server first"):
        RewardRunner(load_reward(url)).check_prompts([{"prompt": "p"}])


def test_an_async_reward_can_be_served():
    async def waits(prompts, completions, **kwargs):
        return [0.5] * len(prompts)

    with running(RewardServer(waits, port=0)) as server:
        assert RewardRunner(load_reward(server.url))(["p"], VIDEOS[:1]).rewards == [0.5]


def test_the_error_of_a_served_reward_is_reported():
    def broken(prompts, completions, **kwargs):
        raise RuntimeError("out of memory")

    with running(RewardServer(broken, port=0)) as server:
        output = RewardRunner(load_reward(server.url, retries=1))(["p"], VIDEOS[:1])
    assert "the reward 'broken' failed: RuntimeError: out of memory (asked 2 times)" in output.errors["broken"][0]


def test_other_rewards_run_while_the_server_computes():
    computing, done = threading.Event(), threading.Event()

    def slow(handler: BaseHTTPRequestHandler) -> None:
        computing.set()
        assert done.wait(timeout=20)
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(b'{"scores": [1.0]}')

    def local(prompts, completions, **kwargs):
        assert computing.wait(timeout=20)
        done.set()
        return [10.0]

    with running(Script(slow)) as server:
        assert RewardRunner([local, load_reward(server.url)])(["p"], VIDEOS[:1]).rewards == [11.0]


# -------------------------------------------------------------------------------------------------------------- tokens


@pytest.fixture
def guarded(monkeypatch, caplog) -> Iterator[RewardServer]:
    """Serve the reward `luck` to those who know the token, which $JUDGE_TOKEN contains, and log everything."""
    monkeypatch.setenv("JUDGE_TOKEN", "s3cret-t0ken")

    def luck(prompts, completions, **kwargs):
        return [0.5] * len(prompts)

    with running(RewardServer(luck, port=0, token="s3cret-t0ken")) as server, caplog.at_level("DEBUG"):
        yield server


def judge_one(reward: HTTPReward):
    return RewardRunner(reward)(["p"], VIDEOS[:1])


def test_a_token_is_sent_and_shown_nowhere(guarded, caplog, capfd):
    reward = load_reward(guarded.url, token_env="JUDGE_TOKEN")
    assert judge_one(reward).rewards == [0.5]
    assert "s3cret" not in caplog.text + "".join(capfd.readouterr()) + str(reward.describe())


def test_without_the_token_nothing_is_scored_and_the_option_is_named(guarded):
    error = judge_one(load_reward(guarded.url)).errors["luck"][0]
    assert "PermissionError" in error and "token_env" in error


def test_without_the_token_nothing_is_described_and_the_option_is_named(guarded):
    with pytest.raises(PermissionError, match="token_env"):
        load_reward(guarded.url).describe()


def test_a_wrong_token_is_reported_and_shown_nowhere(guarded, monkeypatch, caplog, capfd):
    monkeypatch.setenv("JUDGE_TOKEN", "another-s3cret")
    output = judge_one(load_reward(guarded.url, token_env="JUDGE_TOKEN"))
    assert "Check the token in $JUDGE_TOKEN" in output.errors["luck"][0]
    assert "s3cret" not in caplog.text + "".join(capfd.readouterr()) + str(output.errors)


def test_a_token_that_is_not_set_is_named(guarded, monkeypatch):
    monkeypatch.delenv("JUDGE_TOKEN")
    output = judge_one(load_reward(guarded.url, token_env="JUDGE_TOKEN"))
    assert "$JUDGE_TOKEN, which is not set" in output.errors["luck"][0]


# ------------------------------------------------------------------------------------------------- a server's failures


def test_a_request_holds_at_most_max_videos_and_the_videos_arrive_unchanged():
    with running(Script((200, {"scores": [1, None]}))) as server:
        assert score_with(server, 4, max_videos=2) == [1.0, None, 1.0, None]
    assert [len(body["videos"]) for _, body in server.requests] == [2, 2]
    prompts, videos, columns = read_request(server.requests[1][1])
    assert (
        prompts == ["p", "p"]
        and columns == {}
        and all((a == b).all() for a, b in zip(videos, VIDEOS[2:], strict=True))
    )


@pytest.mark.parametrize("failure", [(503, {}), (429, {}), (500, {"error": "busy"}), (408, b""), drop])
def test_temporary_failures_are_retried(failure):
    with running(Script(failure, failure, (200, {"scores": [0.25, 0.5]}))) as server:
        assert score_with(server) == [0.25, 0.5]
    assert len(server.requests) == 3


def test_after_the_last_retry_the_error_names_the_answer_and_the_number_of_tries():
    with running(Script((503, {"error": "the GPU is away"}))) as server:
        assert score_with(server, retries=2).endswith("did not score: status 503: the GPU is away (asked 3 times)")
    assert len(server.requests) == 3


def test_a_server_that_is_too_slow_is_given_up():
    release = threading.Event()
    with running(Script(lambda handler: release.wait(timeout=20) and drop(handler))) as server:
        assert "no answer within 0.2 s (asked 2 times)" in score_with(server, timeout=0.2, retries=1)
        release.set()


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ((200, b"<html>no judge here</html>"), "answered something that is no JSON: '<html>no judge here</html>'"),
        ((200, [0.5, 0.5]), 'must be {"scores": [...]}, got [0.5, 0.5]'),
        ((200, {"score": 1}), 'must be {"scores": [...]}'),
        ((200, {"scores": [0.5]}), "1 scores for 2 videos"),
        ((200, b'{"scores": [0.5, NaN]}'), "scores[1] of the answer is nan"),
        ((200, b'{"scores": [0.5, Infinity]}'), "scores[1] of the answer is inf"),
        ((200, {"scores": ["0.5", 0.5]}), "scores[0] of the answer is '0.5'"),
        ((200, {"scores": [True, 0.5]}), "scores[0] of the answer is True"),
        ((200, {"scores": [1, 1], "extra": {"why": ["a"]}}), "extra['why'] of the answer is no list of 2 values"),
        ((200, {"scores": [1, 1], "extra": ["a"]}), "extra of the answer is list"),
        ((400, {"error": "videos[0] is too long"}), "refused the request: status 400: videos[0] is too long"),
        ((404, b"\x1b[31mnothing"), "refused the request: status 404"),
    ],
)
def test_an_answer_that_breaks_the_schema_is_named_and_not_requested_again(answer, problem):
    with running(Script(answer)) as server:
        assert problem in score_with(server)
    assert len(server.requests) == 1


def test_the_wait_that_a_server_asks_for_is_kept(monkeypatch):
    waits = []

    async def sleep(seconds):
        waits.append(seconds)

    def later(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(429)
        handler.send_header("Retry-After", "7")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    monkeypatch.setattr(http_reward.asyncio, "sleep", sleep)
    with running(Script(later, (503, {}), (200, {"scores": [1, 1]}))) as server:
        assert score_with(server) == [1.0, 1.0]
    assert waits == [7.0, 0.002]


def test_columns_that_only_some_answers_have_are_filled_with_none():
    answers = [(200, {"scores": [1.0]}), (200, {"scores": [0.0], "extra": {"why": ["bad"]}}), (200, {"scores": [1.0]})]
    with running(Script(*answers)) as server:
        output = RewardRunner(load_reward(server.url, max_videos=1))(["p"] * 3, VIDEOS[:3])
    assert output.extra == {"why": [None, "bad", None]} and output.rewards == [1.0, 0.0, 1.0]


# ---------------------------------------------------------------------------------------------------- requests refused


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"prompts": ["p"]}, "prompts must be a list with one value for each of the 2 videos"),
        ({"columns": {"type": "LR"}}, "type must be a list"),
        ({"columns": []}, "columns an object"),
        ({"videos": None}, "prompts and videos must be lists"),
        ({"videos": ["AAAA", "AAAA"]}, r"videos\[0\] is no video file in base64"),
        ({"videos": ["!", "!"]}, r"videos\[0\] is no video file in base64"),
        ({"videos": [1, 2]}, r"videos\[0\] is no video file in base64"),
    ],
)
def test_a_request_that_breaks_the_schema_is_refused_with_the_reason(change, problem):
    request = json.loads(request_body(["p", "q"], VIDEOS[:2], {"type": ["LR", "RL"]}))
    assert read_request(request)[0] == ["p", "q"]
    with pytest.raises(ValueError, match=problem):
        read_request({**request, **change})


def test_only_json_is_accepted_so_that_a_page_in_a_browser_cannot_use_the_server():
    with running(RewardServer(brightness, port=0)) as server:
        assert post(server.url, content=b"{}", headers={"Content-Type": "text/plain"}).status_code == 415
        assert post(server.url, content=b"[]", headers={"Content-Type": "application/json"}).status_code == 400


def test_a_request_that_is_too_long_is_refused():
    with running(RewardServer(brightness, port=0)) as server:
        connection = HTTPConnection("127.0.0.1", server.server_address[1], timeout=20)
        connection.request("POST", "/", body=iter([]), headers={"Content-Length": str(1 << 40)})
        assert connection.getresponse().status == 413
        connection.close()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://me:pa55@judge:8000/x", "http://judge:8000/x has a user, a password"),
        ("http://pa55@judge/x", "token_env"),
        ("https://judge/x?key=pa55", "https://judge/x has a user, a password or a query"),
        ("http:///x", "is no URL of a reward"),
    ],
)
def test_a_url_with_a_secret_is_refused_without_showing_it(url, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_reward(url)
    assert "pa55" not in str(caught.value)


def test_a_misspelt_option_shows_no_secret_either():
    with pytest.raises(
        ValueError, match="'http://judge/y' is not in reward_funcs. Did you mean 'http://judge/x'"
    ) as caught:
        RewardArguments(reward_funcs=["http://pa55@judge/x"], reward_options={"http://pa55@judge/y": {}})
    assert "pa55" not in str(caught.value)


def test_the_reward_is_named_after_its_url_or_as_the_option_says():
    assert HTTPReward("http://judge:8000/v1/vlm-judge").__name__ == "vlm_judge"
    assert HTTPReward("http://judge:8000").__name__ == "judge_8000"
    assert HTTPReward("http://judge:8000/x", name="mine").__name__ == "mine"


def test_requests_of_no_videos_are_refused():
    with pytest.raises(ValueError, match="max_videos is 0"):
        HTTPReward("http://judge/x", max_videos=0)


def test_what_is_sent_is_the_schema_of_the_readme(repo_root):
    body = json.loads(request_body(["p"], VIDEOS[:1], {"animal": ["fox"]}))
    assert set(body) == {"prompts", "videos", "columns"} and base64.b64decode(body["videos"][0])[4:8] == b"ftyp"
    readme = (repo_root / "rewards" / "README.md").read_text()
    for key in (*body, "scores", "extra", "error", "required_columns", "serve-reward"):
        assert key in readme
    assert read_scores({"scores": [None]}, 1) == ([None], {})


COMMAND = "import sys; from spatialalign_trl.cli import main; sys.exit(main(sys.argv[1:]))"
SERVE_CONSTANT = [sys.executable, "-c", COMMAND, "serve-reward", f"{PROGRAMS / 'constant_reward.py'}:Constant"]


def test_the_command_serves_a_reward_from_a_file():
    command = [*SERVE_CONSTANT, "--port", "0", "--option", "value=0.75"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            url = process.stdout.readline().split(" at ")[1].split()[0]
            assert RewardRunner(load_reward(url))(["p"], VIDEOS[:1]).rewards == [0.75]
        finally:
            process.terminate()


def test_the_command_refuses_an_impossible_port():
    done = subprocess.run([*SERVE_CONSTANT, "--port", "99999"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "serve-reward: error" in done.stderr
