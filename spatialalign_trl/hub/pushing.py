"""Pushing a folder to a dataset repository, again when the Hub stumbles; what fails for good is said in one sentence.

A push is one commit of the whole folder. Repeating it is harmless: files that are there already are not sent again,
and nothing is committed when nothing changed, also where the Hub did the work and only its answer was lost.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

logger = logging.getLogger(__name__)
T = TypeVar("T")

RETRIED = {
    408: "it gave up waiting",
    409: "another commit was under way",
    412: "another commit came first",
    429: "too many requests",
    500: "an error of its own",
    502: "a gateway failed",
    503: "not available",
    504: "a gateway gave up waiting",
}
"""Status codes that pass by themselves."""

ATTEMPTS = 5
FIRST_PAUSE, LONGEST_PAUSE = 2.0, 300.0
"""Seconds. Pauses double; a `Retry-After` of the Hub counts where it is longer."""

SILENCE = 120.0
"""Seconds without a byte after which a connection counts as dead; the client's own default is to wait for ever."""

_TOKEN = re.compile(r"hf_[A-Za-z0-9]{6,}")


class PushFailed(Exception):
    """The push did not succeed. `reason`: why, in words without tokens; `attempts`: how often it was tried."""

    def __init__(self, reason: str, attempts: int) -> None:
        super().__init__(f"{reason} ({attempts} attempt{'s' if attempts > 1 else ''})")
        self.reason, self.attempts = reason, attempts


def check_repo_name(name: str, option: str) -> None:
    """
    Checks that a name can be one of a repository on the Hub.

    Args:
        name (`str`):
            `owner/name`.
        option (`str`):
            Who asks, for the error.

    Raises:
        ValueError: when it cannot; names the rule.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(f"{option}={name!r} is no name for a repository on the Hub: {error}") from None
    if name.count("/") != 1:
        raise ValueError(f"{option}={name!r}: give owner/name, such as me/{name}")


def check_hub_access(repo: str, option: str, *, private: bool, token: str | None = None) -> str | None:
    """
    Makes the dataset repository if it is missing, before work begins whose result is to go there.

    Args:
        repo (`str`):
            `owner/name`.
        option (`str`):
            Who asks, for the error.
        private (`bool`):
            Whether only its owner sees it, where it is made now.
        token (`str`, *optional*):
            By default the one of `hf auth login` or of `HF_TOKEN`.

    Returns:
        `str`, *optional*: why the Hub could not be asked, when that may pass; `None` when all is well.

    Raises:
        PermissionError: when there is no token, or the Hub takes it not, or not for this owner.
    """
    try:
        open_repo(repo, f"{option}={repo!r}", repo_type="dataset", private=private, token=token)
    except PermissionError:
        raise
    except Exception as error:
        return describe_failure(error)
    return None


def open_repo(name: str, what: str, *, repo_type: str, private: bool | None, token: str | None) -> str:
    """
    Makes the repository if it is missing.

    Args:
        name (`str`):
            `owner/name`, or a name under the token's owner.
        what (`str`):
            What needs it, for the error.
        repo_type (`str`):
            `"model"` or `"dataset"`.
        private (`bool`, *optional*):
            Of a repository that is made now.
        token (`str`, *optional*):
            By default the one of `hf auth login` or of `HF_TOKEN`.

    Returns:
        `str`: its full name.

    Raises:
        PermissionError: when there is no token, or the Hub takes it not, or not for this owner. Others are the
            client's own.
    """
    from huggingface_hub import HfApi, get_token

    if not (token or get_token()):
        raise PermissionError(
            f"{what} needs a token that may write: `hf auth login`, or set the environment's HF_TOKEN."
        )
    try:
        with impatient_client():
            api = HfApi(token=token)
            return api.create_repo(name, repo_type=repo_type, private=private, exist_ok=True).repo_id
    except Exception as error:
        if status_of(error) in (401, 403):
            raise PermissionError(
                f"{what}: {describe_failure(error)}. Check the token's rights (`hf auth whoami`) and the owner's name."
            ) from None  # the client's error holds the request
        raise


def push_dataset_folder(
    folder: str | os.PathLike,
    repo: str,
    *,
    message: str,
    private: bool = True,
    token: str | None = None,
    replaced: Sequence[str] = (),
    attempts: int = ATTEMPTS,
) -> str:
    """
    Pushes a folder as one commit to a dataset repository, which is made if it is missing.

    Args:
        folder (`str` or `os.PathLike`):
            What is pushed.
        repo (`str`):
            `owner/name`.
        message (`str`):
            Of the commit.
        private (`bool`, *optional*, defaults to `True`):
            Of a repository that is made now; one that is there keeps who sees it.
        token (`str`, *optional*):
            By default the one of `hf auth login` or of `HF_TOKEN`.
        replaced (sequence of `str`, *optional*):
            Patterns of files that are deleted there when they are not here.
        attempts (`int`, *optional*, defaults to `5`):
            How often it is tried when the failure may pass: status 408, 409, 412, 429 and 5xx, silence, a dropped
            connection.

    Returns:
        `str`: the commit's address.

    Raises:
        PushFailed: when it failed for good.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)

    def push() -> str:
        api.create_repo(repo, repo_type="dataset", private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo,
            repo_type="dataset",
            folder_path=Path(folder),
            ignore_patterns=[".*"],  # half-written files
            delete_patterns=list(replaced) or None,
            commit_message=message,
        )
        return str(commit.commit_url)

    return retry_push(push, repo, attempts)


def retry_push(push: Callable[[], T], repo: str, attempts: int = ATTEMPTS) -> T:
    """
    Does a push, again when what went wrong may pass by itself.

    Args:
        push (`Callable`):
            Can be repeated without harm.
        repo (`str`):
            Where to, for the log.
        attempts (`int`, *optional*, defaults to `5`):
            At most so often.

    Returns:
        What `push` returned.

    Raises:
        PushFailed: when it failed for good.
    """
    pause = FIRST_PAUSE
    for attempt in range(1, attempts + 1):
        try:
            with impatient_client():
                return push()
        except Exception as error:
            reason = describe_failure(error)
            if attempt == attempts or not may_pass(error):
                raise PushFailed(reason, attempt) from None  # the client's error holds the request
            wait = min(max(pause, _retry_after(error)), LONGEST_PAUSE)
            logger.warning("%s; pushing to %s again in %.0f s (%d of %d)", reason, repo, wait, attempt + 1, attempts)
        time.sleep(wait)
        pause *= 2
    raise ValueError(f"attempts is {attempts}; it must be at least 1")


def describe_failure(error: BaseException) -> str:
    """What went wrong, in one line that holds no token."""
    status = status_of(error)
    if status is not None:
        known = {
            401: "it does not know the token",
            403: "the token may not write there",
            404: "there is no such place",
        }
        words = RETRIED.get(status) or known.get(status) or _first_line(error)
        return f"the Hub answered {status} ({words})"
    if _is_of_the_network(error):
        return f"the connection to the Hub failed ({_first_line(error)})"
    return _first_line(error)


def without_tokens(text: str) -> str:
    """The text, with whatever looks like a token of the Hub taken out."""
    return _TOKEN.sub("hf_***", text)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return without_tokens(f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what led to it: uploads of large files wrap what happened in a `RuntimeError`."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _response(error: BaseException) -> Any:
    return next((one.response for one in _chain(error) if getattr(one, "response", None) is not None), None)


def status_of(error: BaseException) -> int | None:
    """The Hub's answer that led to the error."""
    response = _response(error)
    return None if response is None else int(response.status_code)


def _is_of_the_network(error: BaseException) -> bool:
    # By name: versions of the client stand on different HTTP libraries, whose errors share it.
    names = {kind.__name__ for one in _chain(error) for kind in type(one).__mro__}
    return bool(names & {"TransportError", "ConnectionError", "TimeoutError"}) and "OfflineModeIsEnabled" not in names


def may_pass(error: BaseException) -> bool:
    """Whether trying again can help."""
    status = status_of(error)
    return status in RETRIED if status is not None else _is_of_the_network(error)


def _retry_after(error: BaseException) -> float:
    response = _response(error)
    text = "" if response is None else str(response.headers.get("Retry-After") or "")
    return float(text) if text.isdecimal() else 0.0


@contextmanager
def impatient_client() -> Iterator[None]:
    """Within the block the Hub's client does not wait for ever for an answer."""
    from huggingface_hub import get_session

    session = get_session()
    before, session.timeout = session.timeout, SILENCE
    try:
        yield
    finally:
        session.timeout = before
