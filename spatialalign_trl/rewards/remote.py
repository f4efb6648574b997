"""
A reward that runs on another machine: the client posts videos and columns, the server answers with scores.

The schema is in the top-level rewards/README.md, and a server for any reward is in `rewards/server.py`.
"""

import asyncio
import base64
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from spatialalign_trl.errors import near_miss
from spatialalign_trl.rewards.calling import LARGEST
from spatialalign_trl.rewards.limits import MAX_ABOUT_BYTES, MAX_ANSWER_BYTES, parse_json
from spatialalign_trl.video import Video, check_completions, encode_video

SCHEMES = ("http://", "https://")
# Status codes after which the same request may succeed.
RETRIED = (408, 425, 429, 500, 502, 503, 504)
FIRST_WAIT_SECONDS = 1.0
MAX_WAIT_SECONDS = 60.0
DEFAULT_FPS = 16.0
ABOUT_SECONDS = 30.0
# Other encodings, and several in a row, can decompress a few bytes of an answer to gigabytes at once.
ENCODINGS = ("", "identity", "gzip", "deflate")


class _Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    content: bytes


class HTTPReward:
    """
    An async reward that a server computes while other rewards run.

    Args:
        url (`str`):
            `http://host:port/path`, without a user, a password or a query, because it appears in logs and on cards.
        name (`str`, *optional*):
            The name the reward is logged under; by default the last part of the path, else the host.
        timeout (`float`, *optional*, defaults to `600.0`):
            Total seconds for one request.
        retries (`int`, *optional*, defaults to `4`):
            How often a request is repeated after a lost connection, a timeout, or a status such as 503. The wait is
            1, 2, 4, ... seconds, or the `Retry-After` of the answer, but at most 60.
        max_videos (`int`, *optional*, defaults to `8`):
            Number of videos per request. More videos are sent in several requests, one after the other.
        token_env (`str`, *optional*):
            Name of an environment variable with a token, which is sent as `Authorization: Bearer`.
        crf (`int`, *optional*, defaults to `0`):
            Quality of the mp4 that is sent; 0 is lossless, so the server sees identical pixels.

    Raises:
        `ValueError`: for a malformed URL, a URL that may contain a secret, or numbers out of range.
    """

    required_columns: tuple[str, ...] = ()

    def __init__(
        self,
        url: str,
        name: str | None = None,
        timeout: float = 600.0,
        retries: int = 4,
        max_videos: int = 8,
        token_env: str | None = None,
        crf: int = 0,
    ) -> None:
        parts = urlsplit(url)
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError(
                f"The URL of the reward {shown_url(url)} has a user, a password or a query (?...), which would "
                "appear in logs. Put a token into an environment variable and name it: "
                "reward_options {<url>: {token_env: NAME}}."
            )
        if not url.startswith(SCHEMES) or not parts.hostname:
            raise ValueError(f"{shown_url(url)!r} is no URL of a reward. Use one such as http://127.0.0.1:8000/score.")
        for option, value, minimum in (
            ("timeout", timeout, 1e-3),
            ("retries", retries, 0),
            ("max_videos", max_videos, 1),
        ):
            if not value >= minimum:
                raise ValueError(f"{option} is {value}; it must be at least {minimum:g}.")
        self.url = url
        default_name = parts.path.rstrip("/").rpartition("/")[2] or parts.netloc
        self.__name__ = name or re.sub(r"\W", "_", default_name)
        self.timeout, self.retries, self.max_videos = timeout, retries, max_videos
        self.token_env, self.crf = token_env, crf
        self._description: dict[str, Any] | None = None

    async def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[Video],
        log_extra: Callable[[str, list], None] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        trainer_state: Any = None,
        **columns: Any,
    ) -> list[float | None]:
        """
        Ask the server for the scores of `N` videos.

        Args:
            prompts (sequence of `N` `str`):
                The prompts.
            completions (sequence of `N` videos):
                `uint8` arrays of shape `(frames, height, width, 3)`.
            log_extra (callable, *optional*):
                Receives the columns that the server answers in addition to the scores.
            log_metric, trainer_state (*optional*):
                Not used.
            columns (sequences of `N`):
                The other columns of the prompts, which are sent to the server. `fps` also sets the mp4's frame rate.

        Returns:
            `list[float | None]`: one score per video, `None` when INVALID.

        Raises:
            `ConnectionError`: if the server does not answer, after all retries.
            `PermissionError`: if it rejects the token.
            `ValueError`: for an answer that violates the schema, or a request that the server rejects.
        """
        from httpx2 import AsyncClient

        scores: list[float | None] = []
        extra: dict[str, list] = {}
        async with AsyncClient() as client:
            for start in range(0, len(completions), self.max_videos):
                part = slice(start, start + self.max_videos)
                sent_columns = {name: values[part] for name, values in columns.items()}
                videos, fps = completions[part], sent_columns.get("fps")
                body = await asyncio.to_thread(request_body, prompts[part], videos, sent_columns, fps, self.crf)
                answer = await self._post(client, body)
                part_scores, part_extra = read_scores(answer, len(videos))
                scores += part_scores
                # Fill up columns that only some of the answers have
                for name, values in part_extra.items():
                    extra.setdefault(name, [None] * start).extend(values)
                for values in extra.values():
                    values.extend([None] * (len(scores) - len(values)))
        for name, values in extra.items() if log_extra is not None else ():
            log_extra(name, values)
        return scores

    async def _post(self, client: Any, body: bytes) -> Any:
        """Post a request, with retries, and return the JSON of the answer."""
        from httpx2 import TransportError

        for attempt in range(self.retries + 1):
            wait = FIRST_WAIT_SECONDS * 2**attempt
            try:
                answer = await self._ask(client, "POST", self.timeout, MAX_ANSWER_BYTES, body)
            except TimeoutError:
                problem = f"no answer within {self.timeout:g} s"
            except TransportError as error:
                problem = f"{type(error).__name__} {_printable(str(error))}".rstrip()
            else:
                if answer.status == 200:
                    try:
                        return parse_json(answer.content, "its answer")
                    except (json.JSONDecodeError, UnicodeDecodeError) as error:
                        text = _printable(answer.content[:300].decode("utf-8", "replace"))
                        raise ValueError(f"{self.url} answered something that is no JSON: {text!r}") from error
                    except ValueError as error:
                        raise ValueError(f"{self.url}: {error}") from error
                problem = f"status {answer.status}{_reason(answer.content)}"
                if answer.status in (401, 403):
                    raise PermissionError(f"{self.url} refused the request: {problem}. {self._token_remedy()}")
                if answer.status not in RETRIED:
                    raise ValueError(f"{self.url} refused the request: {problem}")
                wait = _retry_after(answer.headers) or wait
            if attempt < self.retries:
                await asyncio.sleep(min(wait, MAX_WAIT_SECONDS))
        raise ConnectionError(f"{self.url} did not score: {problem} (asked {self.retries + 1} times)")

    async def _ask(
        self, client: Any, method: str, seconds: float, max_bytes: int, body: bytes | None = None
    ) -> _Answer:
        """Send a request and read the answer, with a limit on the total time and on the decompressed size."""
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity", **self._authorization()}
        async with (
            asyncio.timeout(seconds),
            client.stream(method, self.url, content=body, headers=headers, timeout=seconds) as response,
        ):
            encoding = response.headers.get("Content-Encoding", "").strip().lower()
            if encoding not in ENCODINGS:
                raise ValueError(f"{self.url} answered in the encoding {_printable(encoding)!r}; send it uncompressed")
            parts, size = [], 0
            async for part in response.aiter_bytes():
                size += len(part)
                if size > max_bytes:
                    raise ValueError(f"{self.url} answered more than {max_bytes} bytes, so the rest was not read")
                parts.append(part)
            return _Answer(response.status_code, response.headers, b"".join(parts))

    def _authorization(self) -> dict[str, str]:
        """Return the header with the token, if there is one."""
        if self.token_env is None:
            return {}
        token = os.environ.get(self.token_env, "").strip()
        if not token:
            raise PermissionError(
                f"The reward {self.url} takes its token from ${self.token_env}, which is not set. Set it."
            )
        return {"Authorization": f"Bearer {token}"}

    def _token_remedy(self) -> str:
        if self.token_env is None:
            return "It may need a token: reward_options {<url>: {token_env: NAME_OF_A_VARIABLE}}."
        return f"Check the token in ${self.token_env}."

    def check_prompts(self, **columns: Sequence[Any]) -> None:
        """
        Check that the server can be reached and that the prompts have the columns it needs, before anything is
        sampled.

        Args:
            columns (sequences of `N`):
                The columns of the prompts.

        Raises:
            `ConnectionError`: if the server cannot be reached.
            `ValueError`: if the prompts lack a column that it needs.
        """
        needed = self._describe_server().get("required_columns", ())
        for column in needed if isinstance(needed, list) else ():
            if column not in columns:
                raise ValueError(f"its server needs the column {column!r}. {near_miss(str(column), columns)}")

    def describe(self) -> dict[str, Any]:
        """Return the server's address and its description of the reward, which may change at the same address."""
        about = {name: value for name, value in self._describe_server().items() if name != "fingerprint"}
        return {"url": self.url, "crf": self.crf, "server": about}

    def server_fingerprint(self) -> str | None:
        """Return the server's fingerprint of the reward's code and options; `None` if it does not tell one."""
        fingerprint = self._describe_server().get("fingerprint")
        return _printable(fingerprint) if isinstance(fingerprint, str) and fingerprint.strip() else None

    def _describe_server(self) -> dict[str, Any]:
        """Return the server's answer to GET, which is requested once; `{}` if the server does not support it."""
        if self._description is None:
            from httpx2 import AsyncClient, TransportError

            async def ask() -> _Answer:
                async with AsyncClient() as client:
                    return await self._ask(client, "GET", min(self.timeout, ABOUT_SECONDS), MAX_ABOUT_BYTES)

            try:
                with ThreadPoolExecutor(1) as pool:  # this thread may have a running loop, as in a notebook
                    answer = pool.submit(asyncio.run, ask()).result()
            except (TransportError, TimeoutError) as error:
                raise ConnectionError(
                    f"The reward {self.url} cannot be reached ({type(error).__name__}); start its server first, for "
                    "example with `spatialalign serve-reward dsr_score --port 8000`."
                ) from error
            if answer.status in (401, 403):
                raise PermissionError(
                    f"{self.url} refused the request{_reason(answer.content)}. {self._token_remedy()}"
                )
            if answer.status == 421:  # it would refuse the videos as well
                raise ValueError(f"{self.url} refused the request: status 421{_reason(answer.content)}")
            try:
                about = parse_json(answer.content, "it") if answer.status == 200 else None
            except ValueError:
                about = None
            self._description = about if isinstance(about, dict) else {}
        return self._description


def shown_url(url: str) -> str:
    """Remove what may be secret from a URL: user, password, query and fragment. Other reward names are unchanged."""
    if not url.startswith(SCHEMES):
        return url
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def request_body(
    prompts: Sequence[str],
    videos: Sequence[Video],
    columns: Mapping[str, Sequence[Any]],
    fps: Sequence[float] | None = None,
    crf: int = 0,
) -> bytes:
    """
    Return the JSON of one request: prompts, columns, and the videos as mp4 in base64.

    Args:
        prompts (sequence of `N` `str`):
            The prompts.
        videos (sequence of `N` videos):
            `uint8` arrays of shape `(frames, height, width, 3)`.
        columns (mapping of `str` to sequences of `N`):
            The other columns of the prompts.
        fps (sequence of `N` `float`, *optional*):
            Frame rates of the mp4 files, by default 16.
        crf (`int`, *optional*, defaults to `0`):
            Quality of the mp4 files; 0 is lossless.
    """
    check_completions(videos)
    rates = fps or [DEFAULT_FPS] * len(videos)
    encoded = [encode_video(video, rate, crf) for video, rate in zip(videos, rates, strict=True)]
    body = {
        "prompts": list(prompts),
        "videos": [base64.b64encode(video).decode("ascii") for video in encoded],
        "columns": {name: list(values) for name, values in columns.items()},
    }
    return json.dumps(body).encode()


def read_scores(answer: Any, count: int) -> tuple[list[float | None], dict[str, list]]:
    """
    Check an answer and return its scores and its columns.

    Args:
        answer:
            The JSON that the server answered with.
        count (`int`):
            The number of videos in the request.

    Raises:
        `ValueError`: if the answer violates the schema; says where.
    """
    if not isinstance(answer, dict) or not isinstance(answer.get("scores"), list):
        raise ValueError(f'the answer must be {{"scores": [...]}}, got {_printable(json.dumps(answer))}')
    scores, extra = answer["scores"], answer.get("extra") or {}
    if len(scores) != count:
        raise ValueError(f"the answer has {len(scores)} scores for {count} videos")
    for k, score in enumerate(scores):
        is_number = isinstance(score, (int, float)) and not isinstance(score, bool)
        if score is not None and not (is_number and abs(score) <= LARGEST):
            raise ValueError(
                f"scores[{k}] of the answer is {_printable(repr(score))}; a score is a finite number of at most "
                f"{LARGEST:g} in magnitude, or null (INVALID)"
            )
    if not isinstance(extra, dict):
        raise ValueError(f"extra of the answer is {type(extra).__name__}; it must map names to lists")
    for name, values in extra.items():
        if not isinstance(values, list) or len(values) != count:
            raise ValueError(f"extra[{name!r}] of the answer is no list of {count} values, one per video")
    return [None if score is None else float(score) for score in scores], extra


def _reason(content: bytes) -> str:
    """Return the error message in an answer, after a colon; an empty text if there is none."""
    try:
        message = parse_json(content, "it")["error"]
    except (ValueError, KeyError, TypeError):
        return ""
    return f": {_printable(str(message))}"


def _printable(text: str) -> str:
    """Return the first 300 characters with control characters replaced, because servers are not trusted."""
    return "".join(letter if letter.isprintable() else " " for letter in text[:300])


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that the server asks to wait, if it does."""
    seconds = headers.get("Retry-After", "")
    return float(seconds) if seconds.isdecimal() else None
