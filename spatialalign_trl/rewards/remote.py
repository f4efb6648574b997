"""
A reward that another machine answers: videos and columns are posted, scores come back. The schema stands in
rewards/README.md, a server for any reward in `rewards/server.py`.
"""

import asyncio
import base64
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from spatialalign_trl.errors import near_miss
from spatialalign_trl.video import Video, check_completions, encode_video

SCHEMES = ("http://", "https://")
# Answers after which the same request may succeed.
RETRIED = (408, 425, 429, 500, 502, 503, 504)
FIRST_WAIT_SECONDS = 1.0
MAX_WAIT_SECONDS = 60.0
DEFAULT_FPS = 16.0


class HTTPReward:
    """
    Reward of a server, asked while other rewards run.

    Args:
        url (`str`):
            `http://host:port/path`, without a user, a password or a query: it appears in logs and on cards.
        name (`str`, *optional*):
            What the reward is logged as; by default the last part of the path, else the host.
        timeout (`float`, *optional*, defaults to `600.0`):
            Seconds for one request, in all.
        retries (`int`, *optional*, defaults to `4`):
            How often a request is sent again after a lost connection, a timeout, or an answer such as 503. The wait is
            1, 2, 4, ... seconds, or what `Retry-After` asks for, at most 60.
        max_videos (`int`, *optional*, defaults to `8`):
            Videos in one request. More are sent one request after the other.
        token_env (`str`, *optional*):
            Environment variable that holds a token, which is sent as `Authorization: Bearer`.
        crf (`int`, *optional*, defaults to `0`):
            Quality of the mp4 that is sent; 0 is lossless, so that the server sees the very pixels.

    Raises:
        `ValueError`: for a URL that is none or may hold a secret, or numbers out of range.
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
                f"The URL of the reward {shown_url(url)} has a user, a password or a query (?...), which logs would "
                "show. Put a token into an environment variable and name it: "
                "reward_options {<url>: {token_env: NAME}}."
            )
        if not url.startswith(SCHEMES) or not parts.hostname:
            raise ValueError(f"{shown_url(url)!r} is no URL of a reward; one looks like http://127.0.0.1:8000/score.")
        for option, value, least in (
            ("timeout", timeout, 1e-3),
            ("retries", retries, 0),
            ("max_videos", max_videos, 1),
        ):
            if not value >= least:
                raise ValueError(f"{option} is {value}; it must be at least {least:g}.")
        self.url = url
        last = parts.path.rstrip("/").rpartition("/")[2] or parts.netloc
        self.__name__ = name or re.sub(r"\W", "_", last)
        self.timeout, self.retries, self.max_videos = timeout, retries, max_videos
        self.token_env, self.crf = token_env, crf
        self._server: dict[str, Any] | None = None

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

        Raises:
            `ConnectionError`: when it does not answer, after all retries.
            `PermissionError`: when it refuses the token.
            `ValueError`: for an answer that breaks the schema, or a request that the server calls wrong.
        """
        from httpx2 import AsyncClient

        scores: list[float | None] = []
        extra: dict[str, list] = {}
        async with AsyncClient() as client:
            for start in range(0, len(completions), self.max_videos):
                part = slice(start, start + self.max_videos)
                sent = {name: values[part] for name, values in columns.items()}
                videos, fps = completions[part], sent.get("fps")
                body = await asyncio.to_thread(request_body, prompts[part], videos, sent, fps, self.crf)
                answer = await self._post(client, body)
                read = read_scores(answer, len(videos))
                scores += read[0]
                for name, values in read[1].items():
                    extra.setdefault(name, [None] * start).extend(values)
                for values in extra.values():  # a column that this request alone lacks
                    values.extend([None] * (len(scores) - len(values)))
        for name, values in extra.items() if log_extra is not None else ():
            log_extra(name, values)
        return scores

    async def _post(self, client: Any, body: bytes) -> Any:
        """The JSON that the server answers with."""
        from httpx2 import TransportError

        headers = {"Content-Type": "application/json", **self._authorization()}
        for attempt in range(self.retries + 1):
            wait = FIRST_WAIT_SECONDS * 2**attempt
            try:
                async with asyncio.timeout(self.timeout):
                    response = await client.post(self.url, content=body, headers=headers, timeout=self.timeout)
            except TimeoutError:
                problem = f"no answer within {self.timeout:g} s"
            except TransportError as error:
                problem = f"{type(error).__name__} {_printable(str(error))}".rstrip()
            else:
                if response.status_code == 200:
                    return self._json(response)
                problem = f"status {response.status_code}{_reason(response)}"
                if response.status_code in (401, 403):
                    raise PermissionError(f"{self.url} refused the request: {problem}. {self._token_remedy()}")
                if response.status_code not in RETRIED:
                    raise ValueError(f"{self.url} refused the request: {problem}")
                wait = _retry_after(response) or wait
            if attempt < self.retries:
                await asyncio.sleep(min(wait, MAX_WAIT_SECONDS))
        raise ConnectionError(f"{self.url} did not score: {problem} (asked {self.retries + 1} times)")

    def _json(self, response: Any) -> Any:
        try:
            return json.loads(response.content)
        except ValueError as error:
            raise ValueError(f"{self.url} answered what is no JSON: {_printable(response.text)!r}") from error

    def _authorization(self) -> dict[str, str]:
        if self.token_env is None:
            return {}
        token = os.environ.get(self.token_env, "").strip()
        if not token:
            raise PermissionError(f"The reward {self.url} takes its token from ${self.token_env}, which is not set.")
        return {"Authorization": f"Bearer {token}"}

    def _token_remedy(self) -> str:
        if self.token_env is None:
            return "It may want a token: reward_options {<url>: {token_env: NAME_OF_A_VARIABLE}}."
        return f"Check the token in ${self.token_env}."

    def check_prompts(self, **columns: Sequence[Any]) -> None:
        """
        Ask the server whether it is there, and which columns it needs, before anything is sampled.

        Raises:
            `ConnectionError`: when it cannot be reached.
            `ValueError`: when the prompts lack a column that it needs.
        """
        needed = self._about().get("required_columns", ())
        for column in needed if isinstance(needed, list) else ():
            if column not in columns:
                raise ValueError(f"its server needs the column {column!r}. {near_miss(str(column), columns)}")

    def describe(self) -> dict[str, Any]:
        """The server's address, and what it says of its reward; another judge there is another reward."""
        return {"url": self.url, "crf": self.crf, "server": self._about()}

    def _about(self) -> dict[str, Any]:
        """What the server answers to GET, asked once; a server need not answer it with anything."""
        if self._server is None:
            from httpx2 import Client, TransportError

            try:
                with Client(timeout=min(self.timeout, 30.0)) as client:
                    response = client.get(self.url, headers=self._authorization())
            except TransportError as error:
                raise ConnectionError(
                    f"The reward {self.url} cannot be reached ({type(error).__name__}); start its server first, such "
                    "as `spatialalign serve-reward dsr_score --port 8000`."
                ) from error
            if response.status_code in (401, 403):
                raise PermissionError(f"{self.url} refused the request. {self._token_remedy()}")
            try:
                about = json.loads(response.content) if response.status_code == 200 else None
            except ValueError:
                about = None
            self._server = about if isinstance(about, dict) else {}
        return self._server


def shown_url(url: str) -> str:
    """A URL without what may be secret in it: user, password, query and fragment. Other names of rewards stay."""
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
    """The JSON of one request: prompts, columns, and the videos as mp4 in base64."""
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
    The scores and the columns of an answer.

    Raises:
        `ValueError`: when it breaks the schema; says where.
    """
    if not isinstance(answer, dict) or not isinstance(answer.get("scores"), list):
        raise ValueError(f'the answer must be {{"scores": [...]}}, got {_printable(json.dumps(answer))}')
    scores, extra = answer["scores"], answer.get("extra") or {}
    if len(scores) != count:
        raise ValueError(f"the answer has {len(scores)} scores for {count} videos")
    for k, score in enumerate(scores):
        number = isinstance(score, (int, float)) and not isinstance(score, bool)
        if score is not None and not (number and math.isfinite(score)):
            raise ValueError(f"scores[{k}] of the answer is {score!r}; a score is a finite number or null (INVALID)")
    if not isinstance(extra, dict):
        raise ValueError(f"extra of the answer is {type(extra).__name__}; it must map names to lists")
    for name, values in extra.items():
        if not isinstance(values, list) or len(values) != count:
            raise ValueError(f"extra[{name!r}] of the answer is no list of {count} values, one a video")
    return [None if score is None else float(score) for score in scores], extra


def _reason(response: Any) -> str:
    """What the server said went wrong, if it said so."""
    try:
        said = json.loads(response.content)["error"]
    except (ValueError, KeyError, TypeError):
        return ""
    return f": {_printable(str(said))}"


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text[:300])


def _retry_after(response: Any) -> float | None:
    asked = response.headers.get("Retry-After", "")
    return float(asked) if asked.isdecimal() else None
