"""Word error messages consistently: name the nearest known name, and explain the Hub's errors to the user."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from unicodedata import category


def nearest(name: str, known: Iterable[str]) -> str | None:
    """
    Return the known name that is closest to a misspelt name.

    Args:
        name (`str`):
            The misspelt name.
        known (`Iterable[str]`):
            The names that exist.

    Returns:
        `str` or `None`: the nearest known name, or `None` if no name is close.
    """
    return next(iter(difflib.get_close_matches(name, sorted(set(known)), n=1)), None)


def near_miss(name: str, known: Iterable[str]) -> str:
    """
    Build the tail of an error message about an unknown name.

    Args:
        name (`str`):
            The name that was not found.
        known (`Iterable[str]`):
            The names that exist.

    Returns:
        `str`: a text such as `"Did you mean 'dsr_score'? Known: dsr_score, object_grounding."`. The question is left
        out if no name is close.
    """
    names = sorted(set(known))
    close = nearest(name, names)
    question = f"Did you mean {close!r}? " if close else ""
    return f"{question}Known: {', '.join(names) if names else 'none'}."


def printable(text: object) -> str:
    """
    Replace what a terminal would interpret or cannot show, such as escape codes and bytes that are not UTF-8.

    Args:
        text (`object`):
            A text from data, such as a prompt, a file's name or an error about them; anything else is converted.

    Returns:
        `str`: the text on one line, with question marks for the replaced characters.
    """
    return "".join(
        letter if letter.isprintable() else " " if category(letter) == "Zs" else "?" for letter in str(text)
    )


def reason_of(error: Exception, name: object = "") -> str:
    """
    Word an error as the reason why one of several inputs was not used: one line, without the input's name.

    Args:
        error (`Exception`):
            The error.
        name (`object`, *optional*):
            The input, such as its path. Messages that begin with it are shortened.

    Returns:
        `str`: the message, after the error's type if only a programmer would understand it.
    """
    message = str(error)
    for start in (f"{name}: ", f"{name} ", f"{name}, ") if str(name) else ():
        message = message.removeprefix(start)
    text = printable(" ".join(message.split()))
    return text if text and isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: {text}"


@contextmanager
def explain_hub_errors(name: str, revision: str | None = None) -> Iterator[None]:
    """
    Convert the Hub client's errors into Python's built-in ones, with a message that says what to do.

    Args:
        name (`str`):
            The requested Hub id.
        revision (`str`, *optional*):
            The requested branch, tag or commit.

    Raises:
        FileNotFoundError: if the block requests a repository or a revision that does not exist.
        PermissionError: if the repository is gated.
        ConnectionError: if the Hub cannot be reached and the files are not in the local cache.
    """
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except GatedRepoError as error:
        raise PermissionError(
            f"{name!r} is gated. Accept its terms on https://huggingface.co/{name}, then log in with `hf auth login`."
        ) from error
    except RevisionNotFoundError as error:
        raise FileNotFoundError(f"{name!r} has no revision {revision!r} on the Hub.") from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"there is no folder {name!r}, and no repository with that id on the Hub. If it is private, log in with "
            "`hf auth login`."
        ) from error
    except HFValidationError as error:
        raise FileNotFoundError(f"there is no folder {name!r}, and it is not a Hub id (owner/name) either.") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        at = f" at revision {revision!r}" if revision else ""
        raise ConnectionError(
            f"there is no folder {name!r}, the Hub repository of that name{at} is not in the local cache, and the Hub "
            "cannot be reached (no network, or HF_HUB_OFFLINE is set). Download it on a machine with a network, with "
            f"`{download_command(name, revision)}`, or pass a local folder that contains it."
        ) from error
    except (HfHubHTTPError, ConnectionError) as error:
        raise ConnectionError(f"the Hub did not answer for {name!r}: {error}") from error


def download_command(name: str, revision: str | None = None) -> str:
    """Return the shell command that downloads a repository into the local cache."""
    return f"hf download {name}" + (f" --revision {revision}" if revision else "")
