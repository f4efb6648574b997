"""Push a folder to a dataset repository, retry when the Hub fails temporarily, and describe failures in one sentence.

A push is one commit of the whole folder. Repeating it is harmless: files that the Hub already has are not sent again,
and nothing is committed when nothing changed. This also holds if the Hub made the commit and only its response was
lost.
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

from spatialalign_trl.safe_text import mask_text

logger = logging.getLogger(__name__)
T = TypeVar("T")

RETRIED = {
    408: "request timeout",
    409: "another commit was in progress",
    412: "another commit came first",
    429: "too many requests",
    500: "internal server error",
    502: "bad gateway",
    503: "service unavailable",
    504: "gateway timeout",
}
"""Status codes of temporary failures, with their meaning."""

ATTEMPTS = 5
FIRST_PAUSE, LONGEST_PAUSE = 2.0, 300.0
"""Seconds between attempts. Pauses double; if the Hub sends a longer `Retry-After`, that is used."""

SILENCE = 120.0
"""Seconds without a byte after which a connection counts as dead. The client's default is to wait for ever."""

_TOKEN = re.compile(r"hf_[A-Za-z0-9]{6,}")


class PushFailed(Exception):
    """
    A push that did not succeed.

    Args:
        reason (`str`):
            Why it failed, in words without tokens.
        attempts (`int`):
            The number of attempts that were made.
    """

    def __init__(self, reason: str, attempts: int) -> None:
        super().__init__(f"{reason} ({attempts} attempt{'s' if attempts > 1 else ''})")
        self.reason, self.attempts = reason, attempts


def check_repo_name(name: str, option: str) -> None:
    """
    Check that a repository on the Hub can have this name.

    Args:
        name (`str`):
            `owner/name`.
        option (`str`):
            The option or argument with the name, for the error message.

    Raises:
        ValueError: if the name is not possible. The message states the rule.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(f"{option}={name!r}: not a valid name for a repository on the Hub. {error}") from None
    if name.count("/") != 1:
        raise ValueError(f"{option}={name!r}: must be owner/name, such as me/{name}.")


def check_hub_access(repo: str, option: str, *, private: bool, token: str | None = None) -> str | None:
    """
    Create the dataset repository if it is missing, so that a long run does not fail at its first push.

    Args:
        repo (`str`):
            `owner/name`.
        option (`str`):
            The option or argument with the name, for the error message.
        private (`bool`):
            Whether a newly created repository is private.
        token (`str`, *optional*):
            A Hub token. By default the token of `hf auth login` or of `HF_TOKEN`.

    Returns:
        `str` or `None`: a description of the failure if the repository could not be created for now, or `None` if
        everything is fine.

    Raises:
        PermissionError: if there is no token, or the Hub does not accept it for this owner.
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
    Create a repository if it is missing.

    Args:
        name (`str`):
            `owner/name`, or a name under the token's owner.
        what (`str`):
            What needs the repository, for the error message.
        repo_type (`str`):
            `"model"` or `"dataset"`.
        private (`bool`, *optional*):
            Whether a newly created repository is private.
        token (`str`, *optional*):
            A Hub token. By default the token of `hf auth login` or of `HF_TOKEN`.

    Returns:
        `str`: the full name of the repository.

    Raises:
        PermissionError: if there is no token, or the Hub does not accept it for this owner. All other errors are those
            of the Hub's client.
    """
    from huggingface_hub import HfApi, get_token

    if not (token or get_token()):
        raise PermissionError(
            f"{what}: needs a token with write access. Log in with `hf auth login`, or set the environment variable "
            "HF_TOKEN."
        )
    try:
        with client_timeout():
            api = HfApi(token=token)
            return api.create_repo(name, repo_type=repo_type, private=private, exist_ok=True).repo_id
    except Exception as error:
        if status_of(error) in (401, 403):
            raise PermissionError(
                f"{what}: {describe_failure(error)}. Check the token's rights (`hf auth whoami`) and the owner's name."
            ) from None  # the client's error contains the request, and with it the token
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
    Push a folder as one commit to a dataset repository, which is created if it is missing.

    Args:
        folder (`str` or `os.PathLike`):
            The folder to push. Hidden files are skipped.
        repo (`str`):
            `owner/name`.
        message (`str`):
            The commit message.
        private (`bool`, *optional*, defaults to `True`):
            Whether a newly created repository is private. An existing repository keeps its visibility.
        token (`str`, *optional*):
            A Hub token. By default the token of `hf auth login` or of `HF_TOKEN`.
        replaced (sequence of `str`, *optional*):
            Patterns of files that are deleted from the repository if the folder does not contain them.
        attempts (`int`, *optional*, defaults to `5`):
            Largest number of attempts when failures are temporary: status 408, 409, 412, 429 and 5xx, no response, or
            a dropped connection.

    Returns:
        `str`: the URL of the commit.

    Raises:
        PushFailed: if the failure is permanent or all attempts failed.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)

    def push() -> str:
        api.create_repo(repo, repo_type="dataset", private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo,
            repo_type="dataset",
            folder_path=Path(folder),
            ignore_patterns=[".*"],  # temporary files that are still being written
            delete_patterns=list(replaced) or None,
            commit_message=message,
        )
        return str(commit.commit_url)

    return retry_push(push, repo, attempts)


def retry_push(push: Callable[[], T], repo: str, attempts: int = ATTEMPTS) -> T:
    """
    Call a function that pushes, and repeat the call while failures are temporary.

    Args:
        push (`Callable`):
            The function. It must be safe to repeat.
        repo (`str`):
            The name of the repository, for the log.
        attempts (`int`, *optional*, defaults to `5`):
            Largest number of calls, at least 1.

    Returns:
        The return value of `push`.

    Raises:
        PushFailed: if the failure is permanent or all attempts failed.
    """
    pause = FIRST_PAUSE
    for attempt in range(1, attempts + 1):
        try:
            with client_timeout():
                return push()
        except Exception as error:
            reason = describe_failure(error)
            if attempt == attempts or not is_temporary(error):
                raise PushFailed(reason, attempt) from None  # the client's error contains the token
            wait = min(max(pause, _retry_after(error)), LONGEST_PAUSE)
            logger.warning(
                "%s. Pushing to %s again in %.0f s (attempt %d of %d).", reason, repo, wait, attempt + 1, attempts
            )
        time.sleep(wait)
        pause *= 2
    raise ValueError(f"attempts={attempts!r}: must be at least 1.")


def describe_failure(error: BaseException) -> str:
    """
    Describe a failed request to the Hub in one line that contains no token.

    Args:
        error (`BaseException`):
            The error that the Hub's client raised.

    Returns:
        `str`: the description.
    """
    status = status_of(error)
    if status is not None:
        permanent = {
            401: "the token is not valid",
            403: "the token has no write access here",
            404: "not found",
        }
        meaning = RETRIED.get(status) or permanent.get(status) or _first_line(error)
        return f"the Hub answered {status} ({meaning})"
    if _is_network_error(error):
        return f"the connection to the Hub failed ({_first_line(error)})"
    return _first_line(error)


def without_tokens(text: str) -> str:
    """Replace every secret in a text by `***`; of a Hub token, `hf_` stays."""
    return mask_text(_TOKEN.sub("hf_***", text))


def _first_line(error: BaseException) -> str:
    """Return the type and the first line of an error, without tokens."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return without_tokens(f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Iterate over an error and its causes: uploads of large files wrap the original error in a `RuntimeError`."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _response(error: BaseException) -> Any:
    """Return the Hub's response that caused the error, or `None`."""
    responses = (getattr(cause, "response", None) for cause in _chain(error))
    return next((response for response in responses if response is not None), None)


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status code of the response that caused the error, or `None` if there was no response."""
    response = _response(error)
    return None if response is None else int(response.status_code)


def _is_network_error(error: BaseException) -> bool:
    """Return whether the connection failed."""
    # Compare names: versions of the Hub's client use different HTTP libraries, but their errors share these names.
    names = {base.__name__ for cause in _chain(error) for base in type(cause).__mro__}
    return bool(names & {"TransportError", "ConnectionError", "TimeoutError"}) and "OfflineModeIsEnabled" not in names


def is_temporary(error: BaseException) -> bool:
    """Return whether trying again can help."""
    status = status_of(error)
    return status in RETRIED if status is not None else _is_network_error(error)


def _retry_after(error: BaseException) -> float:
    """Return the seconds in the response's `Retry-After` header, or 0."""
    response = _response(error)
    text = "" if response is None else str(response.headers.get("Retry-After") or "")
    return float(text) if text.isdecimal() else 0.0


@contextmanager
def client_timeout() -> Iterator[None]:
    """Within the block, the Hub's client waits at most `SILENCE` seconds for each response."""
    from huggingface_hub import get_session

    session = get_session()
    before, session.timeout = session.timeout, SILENCE
    try:
        yield
    finally:
        session.timeout = before
