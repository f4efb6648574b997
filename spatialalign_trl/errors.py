"""Word errors the same way everywhere: the nearest known name, and what the Hub's errors mean for the user."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that a misspelt one was probably meant to be; `None` when nothing is close."""
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
        `str`: such as `"Did you mean 'dsr_score'? Known: dsr_score, object_grounding."`; the question is left out when
        nothing is close.
    """
    names = sorted(set(known))
    close = nearest(name, names)
    question = f"Did you mean {close!r}? " if close else ""
    return f"{question}Known: {', '.join(names) if names else 'none'}."


@contextmanager
def explain_hub_errors(name: str, revision: str | None = None) -> Iterator[None]:
    """
    Turns the Hub client's errors into Python's own, with what to do.

    Args:
        name (`str`):
            The Hub id that is asked for.
        revision (`str`, *optional*):
            Branch, tag or commit.

    Raises (from the block):
        FileNotFoundError: when there is no such repository or revision.
        PermissionError: when the repository is gated.
        ConnectionError: when the Hub cannot be asked and the files are not in the cache.
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
            f"{name!r} is gated: accept its terms on https://huggingface.co/{name}, then log in with `hf auth login`."
        ) from error
    except RevisionNotFoundError as error:
        raise FileNotFoundError(f"{name!r} has no revision {revision!r} on the Hub.") from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"there is no folder {name!r} and nothing of that id on the Hub (or it is private: `hf auth login`)."
        ) from error
    except HFValidationError as error:
        raise FileNotFoundError(f"there is no folder {name!r}, and it is no Hub id (owner/name) either.") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        at = f" at revision {revision!r}" if revision else ""
        raise ConnectionError(
            f"there is no folder {name!r}, and what the Hub has of that name{at} is not in the local cache, nor could "
            "the Hub be asked for it (no network, or HF_HUB_OFFLINE is set). Fetch it where there is a network with "
            f"`{download_command(name, revision)}`, or pass a local folder that holds it."
        ) from error
    except (HfHubHTTPError, ConnectionError) as error:
        raise ConnectionError(f"the Hub did not answer for {name!r}: {error}") from error


def download_command(name: str, revision: str | None = None) -> str:
    """The line that fetches a repository into the local cache."""
    return f"hf download {name}" + (f" --revision {revision}" if revision else "")
