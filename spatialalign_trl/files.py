"""Write files atomically, so that a reader never sees a half-written one, and lock a job's folder.

Every file is first written to a temporary file in the same folder (a rename across file systems would be a copy) and
then renamed over the old one. A killed process leaves at most a temporary file behind. Its name contains the host and
the process id, so that stale temporary files of killed processes can be distinguished from files still being written.
A job locks the folder that it writes to with [`lock_folder`]. Names and paths that come from data become files only
through [`file_name`] and [`confined`].

What is kept for later carries checksums: a safetensors file that this library writes has one in its own metadata
([`seal_tensors`]), and a folder of several kinds of files has a `checksums.json` ([`write_checksums`]). Files without
a checksum, such as those of earlier versions or of other programs, are read as they are.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import uuid
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from spatialalign_trl.text_files import read_text

LOCK_FILE, HOLDER_FILE = ".lock", ".holder"
"""Files of the lock. Both remain in the folder after the lock is released."""

PATIENCE = 10.0
"""Seconds to wait for a lock: the data loader workers of a killed job keep its lock for a few seconds."""

CHECKSUM_FILE = "checksums.json"
"""File name -> size and SHA-256, for the other files of its folder."""
SEAL = "spatialalign_sha256"
"""Key, in the metadata of a safetensors file, of the SHA-256 of everything else in the file."""
MAX_NAME_BYTES = 100
"""Longest name that [`file_name`] returns, in UTF-8: endings and temporary names must fit into 255 bytes as well."""

_RESERVED_NAMES = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
"""Names that mean devices on Windows, with any ending."""

_TEMPORARY = re.compile(r"^\..+\.(?P<host>[^.]+)\.(?P<pid>\d+)\.[0-9a-f]{8}\.tmp$")


def _host() -> str:
    """Return the host's name, reduced to characters that are safe in a file name."""
    return re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname()) or "host"


def write_atomic(path: str | os.PathLike, data: bytes) -> Path:
    """
    Write bytes to a file atomically: readers see the old content or the new content, never a part of it.

    Args:
        path (`str` or `os.PathLike`):
            The file to write. Missing folders are created.
        data (`bytes`):
            The complete content.

    Returns:
        `Path`: the path of the file.

    Raises:
        TypeError: if `data` is not bytes.
    """
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise TypeError(f"write_atomic({os.fspath(path)!r}) takes bytes, got {type(data).__name__}. Encode it first.")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{_host()}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        # tempfile is no alternative: it creates files that only their owner can read, whatever the umask is.
        with open(temporary, "xb") as file:
            file.write(data)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path


def write_json(path: str | os.PathLike, obj: Any) -> Path:
    """
    Write an object as indented JSON, atomically.

    Args:
        path (`str` or `os.PathLike`):
            The file to write. Missing folders are created.
        obj (`Any`):
            An object with a JSON form. NaN and infinities are refused: they are not JSON, and other readers fail on
            them.

    Returns:
        `Path`: the path of the file.

    Raises:
        ValueError: if a float is NaN or infinite.
        TypeError: if a value has no JSON form.
    """
    try:
        text = json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise ValueError(
            f"{os.fspath(path)}: {error}. JSON has no NaN or infinity. Write None (null) for a missing number."
        ) from error
    except TypeError as error:
        raise TypeError(
            f"{os.fspath(path)}: {error}. Convert it to lists, dicts, strings and numbers first."
        ) from error
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError:  # a lone surrogate, which JSON can only hold escaped
        data = json.dumps(obj, indent=2, allow_nan=False).encode("ascii")
    return write_atomic(path, data + b"\n")


def read_json(path: str | os.PathLike) -> Any:
    """
    Read and parse a JSON file.

    Args:
        path (`str` or `os.PathLike`):
            The file to read.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the file is not JSON in UTF-8. The message names the file and the position of the error.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{os.fspath(path)} is not a JSON file ({error}). Correct it, or write it again.") from error


# Checksums


def seal_tensors(data: bytes) -> bytes:
    """
    Add a checksum to the metadata of a safetensors file.

    Args:
        data (`bytes`):
            The content of a safetensors file.

    Returns:
        `bytes`: the content with the checksum. Equal tensors and equal metadata give equal bytes.
    """
    header, tensors = _split_safetensors(data)
    metadata = {key: value for key, value in header.get("__metadata__", {}).items() if key != SEAL}
    header["__metadata__"] = dict(sorted(metadata.items()))
    header["__metadata__"] = {**header["__metadata__"], SEAL: _checksum_of(header, tensors)}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors stay aligned, as the format recommends
    return b"".join([len(text).to_bytes(8, "little"), text, tensors])


def seal_file(path: str | os.PathLike) -> Path:
    """Add a checksum to a safetensors file, atomically; see [`seal_tensors`]."""
    return write_atomic(path, seal_tensors(Path(path).read_bytes()))


def is_intact(data: bytes) -> bool:
    """
    Return whether a safetensors file has the content that its checksum was made of.

    Args:
        data (`bytes`):
            The content of the file. One without a checksum counts as intact if its header can be read.
    """
    try:
        header, tensors = _split_safetensors(data)
        metadata = dict(header.get("__metadata__", {}))
        checksum = metadata.pop(SEAL, None)
        if checksum is None:
            return SEAL not in json.dumps(header)  # the name of the metadata itself may be what is damaged
        return checksum == _checksum_of({**header, "__metadata__": metadata}, tensors)
    except (ValueError, TypeError, RecursionError):
        return False


def has_checksum(path: str | os.PathLike) -> bool:
    """Return whether a safetensors file, which may be damaged, was written with a checksum of its content."""
    return SEAL.encode() in Path(path).read_bytes()


def check_intact(path: str | os.PathLike, remedy: str) -> None:
    """
    Refuse a safetensors file that is damaged.

    Args:
        path (`str` or `os.PathLike`):
            The file.
        remedy (`str`):
            What to do about it; the end of the error.

    Raises:
        ValueError: if the content differs from the one that the file's checksum was made of.
    """
    if not is_intact(Path(path).read_bytes()):
        raise ValueError(f"{os.fspath(path)} is damaged: its content differs from its checksum. {remedy}")


def _split_safetensors(data: bytes) -> tuple[dict[str, Any], memoryview]:
    """Return the header and the tensors' bytes of a safetensors file; raise `ValueError` if there is no header."""
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or size > len(data) - 8:
        raise ValueError("not a whole safetensors file: its header is cut off")
    header = json.loads(bytes(data[8 : 8 + size]).decode("utf-8"))
    if not isinstance(header, dict) or not isinstance(header.get("__metadata__", {}), dict):
        raise ValueError("not a safetensors file: its header is not a JSON object")
    return header, memoryview(data)[8 + size :]


def _checksum_of(header: dict[str, Any], tensors: memoryview) -> str:
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    digest.update(tensors)
    return digest.hexdigest()


def write_checksums(folder: str | os.PathLike, names: Iterable[str]) -> Path:
    """
    Write the sizes and checksums of some files of a folder to its `checksums.json`, which it replaces.

    Args:
        folder (`str` or `os.PathLike`):
            The folder.
        names (iterable of `str`):
            Names of files in it.

    Returns:
        `Path`: the file with the checksums.
    """
    folder = Path(folder)
    return write_json(folder / CHECKSUM_FILE, {name: _size_and_checksum(folder / name) for name in sorted(names)})


def damaged_files(folder: str | os.PathLike) -> dict[str, str]:
    """
    Compare the files of a folder with its `checksums.json`.

    Args:
        folder (`str` or `os.PathLike`):
            The folder. Without checksums, nothing in it counts as damaged.

    Returns:
        `dict[str, str]`: name of each damaged file -> what is wrong with it.
    """
    folder = Path(folder)
    if not (folder / CHECKSUM_FILE).is_file():
        return {}
    try:
        recorded = {str(name): dict(entry) for name, entry in read_json(folder / CHECKSUM_FILE).items()}
    except (AttributeError, TypeError, ValueError):
        return {CHECKSUM_FILE: "is not a list of checksums"}
    damaged = {}
    for name, expected in recorded.items():
        if Path(name).name != name:  # never read outside of the folder
            damaged[CHECKSUM_FILE] = f"names {name!r}, which is not a file of its folder"
        elif not (folder / name).is_file():
            damaged[name] = "is missing"
        elif _size_and_checksum(folder / name) != expected:
            damaged[name] = "differs from its checksum"
    return damaged


def _size_and_checksum(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _is_alive(pid: int) -> bool:
    """Return whether a process of this machine is running."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it exists but belongs to another user
        return True
    return True


def remove_leftovers(folder: str | os.PathLike) -> list[Path]:
    """
    Delete the temporary files that killed processes of this machine left in a folder.

    Files that a running process, or a process of another machine, may still be writing are kept.

    Args:
        folder (`str` or `os.PathLike`):
            The folder to clean. Subfolders are not visited.

    Returns:
        `list[Path]`: the deleted files.
    """
    removed = []
    for path in Path(folder).glob(".*.tmp"):
        match = _TEMPORARY.match(path.name)
        if match is None or match["host"] != _host() or _is_alive(int(match["pid"])):
            continue
        path.unlink(missing_ok=True)
        removed.append(path)
    return removed


def file_name(text: str) -> str:
    """
    Turn an id or another text from data into the name of a file, without an ending.

    Letters and digits of any script, `-`, `_` and dots and spaces inside the name are kept; a name of these only, such
    as every id of the published prompt sets, is returned unchanged. All other characters (separators, NUL, control
    characters, lone surrogates, ...) become `_`. A changed name ends in a hash of the text, so that different texts
    get different names.

    Args:
        text (`str`):
            The text.

    Returns:
        `str`: the name, of at most `MAX_NAME_BYTES` bytes, without separators; neither hidden nor reserved.
    """
    name = re.sub(r"[^\w .-]", "_", text).strip(" .")
    if name == text and name and not _RESERVED_NAMES.fullmatch(name) and len(name.encode()) <= MAX_NAME_BYTES:
        return name
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    start = name.encode()[: MAX_NAME_BYTES - len(digest) - 1].decode("utf-8", "ignore").strip(" .")
    # The hash comes first where the start alone would mean a device.
    return f"{digest}-{start}" if _RESERVED_NAMES.fullmatch(start) else f"{start or 'file'}-{digest}"


def confined(path: str | os.PathLike, root: str | os.PathLike) -> Path:
    """
    Check that a path from data stays inside its folder, after symbolic links and `..` are resolved.

    Args:
        path (`str` or `os.PathLike`):
            The path; a relative one is relative to `root`.
        root (`str` or `os.PathLike`):
            The folder.

    Returns:
        `Path`: the resolved path.

    Raises:
        ValueError: if it is no path, or leads out of the folder.
    """
    try:
        resolved, folder = (Path(root) / path).resolve(), Path(root).resolve()
    except (OSError, RuntimeError, TypeError, ValueError) as error:  # NUL, a loop of links, no string
        raise ValueError(f"{path!r} is not a path ({error}).") from error
    if not resolved.is_relative_to(folder):
        raise ValueError(f"{os.fspath(path)!r} leads out of {os.fspath(root)}.")
    return resolved


@contextmanager
def lock_folder(folder: str | os.PathLike, *, here: bool = True) -> Iterator[None]:
    """
    Lock a job's output folder: two jobs in one folder would do the work twice and overwrite each other's checkpoints.

    The operating system releases the lock when the process ends, however it ends.

    Args:
        folder (`str` or `os.PathLike`):
            The folder to lock. It is created if it is missing.
        here (`bool`, *optional*, defaults to `True`):
            Whether this process takes the lock. Pass `False` in all but the main process of a distributed job.

    Raises:
        RuntimeError: if another process keeps the folder locked for `PATIENCE` seconds.
    """
    if not here:
        yield
        return
    from filelock import Timeout
    from huggingface_hub.utils import WeakFileLock  # also works on file systems without flock

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    holder = folder / HOLDER_FILE
    with ExitStack() as stack:
        try:
            stack.enter_context(WeakFileLock(folder / LOCK_FILE, timeout=PATIENCE))
        except Timeout:
            owner = holder.read_text() if holder.exists() else "another process"
            raise RuntimeError(
                f"{owner} is using {folder}. Wait for it or end it (ending a launcher does not end the processes that "
                "it launched), or give this job another output_dir."
            ) from None
        write_atomic(holder, f"process {os.getpid()} on {_host()}".encode())
        yield


held = lock_folder
"""The former name of [`lock_folder`]. It stays importable."""
