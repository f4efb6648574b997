"""Writing files so that a reader never meets a half-written one.

Every file is written beside its place, in the same folder (a rename across file systems is a copy), and renamed over
the old one. A process that is killed leaves at most a temporary file, whose name says who wrote it, so that the
leftovers of the dead can be told from the work of the living. A job holds the folder that it writes to (`lock_folder`).
"""

from __future__ import annotations

import json
import os
import re
import socket
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

LOCK_FILE, HOLDER_FILE = ".lock", ".holder"  # both stay in a folder that nobody holds any more
PATIENCE = 10.0  # seconds: the data loader's workers of a killed job outlive it by a few
_TEMPORARY = re.compile(r"^\..+\.(?P<host>[^.]+)\.(?P<pid>\d+)\.[0-9a-f]{8}\.tmp$")


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname()) or "host"


def write_atomic(path: str | os.PathLike, data: bytes) -> Path:
    """
    Write bytes to a file in one step: readers see the old content or the new one, never a part of it.

    Args:
        path (`str` or `os.PathLike`):
            Where the file goes. Missing folders are made.
        data (`bytes`):
            The whole content.

    Returns:
        `Path`: the path written.

    Raises:
        TypeError: when `data` is not bytes.
    """
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise TypeError(f"write_atomic({os.fspath(path)!r}) takes bytes, got {type(data).__name__}; encode it first.")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{_host()}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        # Not tempfile: it makes files only their owner can read, whatever the umask says.
        with open(temporary, "xb") as file:
            file.write(data)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path


def write_json(path: str | os.PathLike, obj: Any) -> Path:
    """
    Write an object as readable JSON, atomically.

    Args:
        path (`str` or `os.PathLike`):
            Where the file goes.
        obj:
            Anything JSON can hold. NaN and infinities are refused: they are not JSON, and other readers fail on them.

    Returns:
        `Path`: the path written.

    Raises:
        ValueError: when a float is NaN or infinite.
        TypeError: when a value has no JSON form.
    """
    try:
        text = json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise ValueError(
            f"{os.fspath(path)}: {error}. JSON has no NaN or infinity; write None (null) for a missing number."
        ) from error
    except TypeError as error:
        raise TypeError(
            f"{os.fspath(path)}: {error}. Turn it into lists, dicts, strings and numbers first."
        ) from error
    return write_atomic(path, (text + "\n").encode("utf-8"))


def read_json(path: str | os.PathLike) -> Any:
    """
    Read a JSON file.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when the file is not JSON; the message names the file and the place.
    """
    data = Path(path).read_bytes()
    try:
        return json.loads(data.decode("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{os.fspath(path)} is not a JSON file ({error}); delete it or write it again.") from error


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OSError):
        return True
    return True


def remove_leftovers(folder: str | os.PathLike) -> list[Path]:
    """
    Delete the temporary files that killed processes of this machine left in a folder.

    Files that a living process, or a process of another machine, may still be writing are left alone.

    Returns:
        `list[Path]`: the files deleted.
    """
    removed = []
    for path in Path(folder).glob(".*.tmp"):
        match = _TEMPORARY.match(path.name)
        if match is None or match["host"] != _host() or _is_alive(int(match["pid"])):
            continue
        path.unlink(missing_ok=True)
        removed.append(path)
    return removed


@contextmanager
def lock_folder(folder: str | os.PathLike, *, here: bool = True) -> Iterator[None]:
    """
    Keeps a job's folder for that job: two in one folder would do the work twice and write over each other's
    checkpoints. The system lets go of it when the process ends, however it ends.

    Args:
        folder (`str` or `os.PathLike`):
            Made where it is missing.
        here (`bool`):
            False in those processes of a distributed job which leave it to the main one.

    Raises:
        RuntimeError: when another process holds the folder, and goes on holding it for `PATIENCE` seconds.
    """
    if not here:
        yield
        return
    from filelock import Timeout
    from huggingface_hub.utils import WeakFileLock  # copes with file systems that have no flock

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    holder = folder / HOLDER_FILE
    with ExitStack() as stack:
        try:
            stack.enter_context(WeakFileLock(folder / LOCK_FILE, timeout=PATIENCE))
        except Timeout:
            who = holder.read_text() if holder.exists() else "another process"
            raise RuntimeError(
                f"{who} is at work in {folder}: wait for it or end it (a launcher's death does not end what it "
                "launched), or give this job another output_dir."
            ) from None
        write_atomic(holder, f"process {os.getpid()} on {_host()}".encode())
        yield


held = lock_folder
"""The former name of [`lock_folder`], kept importable."""
