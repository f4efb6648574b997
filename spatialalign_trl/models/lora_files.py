"""Find a LoRA's file, in a folder or on the Hub, and read its tensors and settings without running anything."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open

from spatialalign_trl.errors import explain_hub_errors
from spatialalign_trl.files import read_json

LORA_FILE = "pytorch_lora_weights.safetensors"
"""The name under which diffusers looks for a LoRA."""
PEFT_FILE, PEFT_CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"

_METADATA = "lora_adapter_metadata"


def find_lora(source: str | os.PathLike) -> Path:
    """
    Return the LoRA file of a folder, a file or a Hub id, downloaded if necessary.

    Args:
        source (`str` or `os.PathLike`):
            A folder, a safetensors file, or a Hub id.

    Raises:
        FileNotFoundError: if there is no such file or repository.
        ConnectionError: if the Hub cannot be reached and the file is not in the cache.
        ValueError: if the repository has no LoRA file, or several.
    """
    path = Path(source).expanduser()
    if path.exists() or path.is_absolute() or len(Path(source).parts) != 2:
        return local_lora_file(path)
    return _published_lora(os.fspath(source))


def _published_lora(name: str) -> Path:
    with explain_hub_errors(name):
        try:
            return Path(hf_hub_download(name, LORA_FILE))
        except LocalEntryNotFoundError:  # a subclass of EntryNotFoundError, but it means that the Hub was not reached
            raise
        except EntryNotFoundError:  # another trainer wrote the repository, under another file name
            names = [file for file in HfApi().list_repo_files(name) if file.endswith(".safetensors")]
        files = [file for file in names if "/" not in file] or names  # folders hold checkpoints
        if PEFT_FILE in files:
            if HfApi().file_exists(name, PEFT_CONFIG_FILE):  # it holds alpha, and is read from the same folder
                hf_hub_download(name, PEFT_CONFIG_FILE)
            files = [PEFT_FILE]
        if len(files) == 1:
            return Path(hf_hub_download(name, files[0]))
    if not files:
        raise ValueError(f"the repository {name!r} has no .safetensors file. Pickles (.bin, .pt) are never loaded.")
    raise ValueError(
        f"the repository {name!r} has {len(files)} LoRA files: {', '.join(files[:8])}. Download the one to use with "
        f"`hf download {name} {files[0]} --local-dir lora` (this is the first), and pass lora/{files[0]}."
    )


def local_lora_file(source: str | os.PathLike) -> Path:
    """
    Find the LoRA file of a path.

    Args:
        source (`str` or `os.PathLike`):
            The file itself, or the folder of a trainer or a run that contains it.

    Returns:
        `Path`: the file.

    Raises:
        FileNotFoundError: if there is no such file.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if not path.is_dir():
        raise FileNotFoundError(f"there is no LoRA file or folder {os.fspath(source)!r}.")
    for name in (LORA_FILE, PEFT_FILE):
        if (path / name).is_file():
            return path / name
    content = sorted(file.name for file in path.iterdir())
    raise FileNotFoundError(
        f"{path} contains no {LORA_FILE}, but {', '.join(content[:8]) or 'nothing'}. Pass the folder that training "
        "wrote, or the file itself."
    )


def read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """
    Read a safetensors file.

    Returns:
        the tensors, and the metadata.

    Raises:
        ValueError: if it is another kind of file (the message says which), or not whole.
    """
    try:
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a whole safetensors file{_real_kind(path)}: {error}") from error


def _real_kind(path: Path) -> str:
    """Say what a file is that is no safetensors file, by its first bytes."""
    with open(path, "rb") as file:
        start = file.read(64)
    if not start:
        return ", but empty. It was probably not written to its end"
    if start.startswith((b"PK\x03\x04", *(b"\x80" + bytes([protocol]) for protocol in range(1, 6)))):
        return (
            ", but a pickle of PyTorch. Unpickling can run code, so it is never loaded: get its .safetensors version"
        )
    if start.startswith(b"version https://git-lfs"):
        return ", but the pointer of Git LFS to one. Fetch the file itself with `git lfs pull`"
    if start.startswith(b"GGUF"):
        return ", but a GGUF file. Get its .safetensors version"
    if start.isascii() and all(character.isprintable() or character.isspace() for character in start.decode()):
        return ", but text. It was probably saved from a web page: download the file itself"
    return ". It was probably not written to its end: get it again"


def read_settings(path: Path, metadata: Mapping[str, str], component: str, *, is_peft: bool) -> dict[str, Any] | None:
    """
    Return PEFT's settings of a LoRA: from the metadata that diffusers writes, or from the file that PEFT writes.

    Args:
        path (`Path`):
            The LoRA's file.
        metadata (`Mapping[str, str]`):
            Its metadata.
        component (`str`):
            The transformer whose settings are meant: diffusers prefixes them with it.
        is_peft (`bool`):
            Whether PEFT wrote the file, so that an `adapter_config.json` beside it belongs to it.

    Raises:
        ValueError: if they cannot be read, or rank or alpha is no number other than 0.
    """
    beside = path.with_name(PEFT_CONFIG_FILE)
    if is_peft and beside.is_file():
        settings = read_json(beside)
        origin = str(beside)
    elif _METADATA in metadata:
        origin = f"{path} (its metadata)"
        try:
            settings = json.loads(metadata[_METADATA])
        except ValueError as error:
            raise ValueError(f"{origin}: {_METADATA} is not JSON: {error}") from error
    else:
        return None
    if not isinstance(settings, dict):
        raise ValueError(f"{origin}: expected settings by name, not {type(settings).__name__}.")
    named = {key.removeprefix(f"{component}."): v for key, v in settings.items() if key.startswith(f"{component}.")}
    settings = named or {key: value for key, value in settings.items() if "." not in key}
    numbers = [settings[name] for name in ("lora_alpha", "r") if name in settings]
    for name in ("alpha_pattern", "rank_pattern"):
        patterns = {} if settings.get(name) is None else settings[name]
        if not isinstance(patterns, dict) or not all(_is_pattern(key) for key in patterns):
            raise ValueError(f"{origin}: {name} is {patterns!r}, not numbers by (patterns of) modules.")
        numbers += patterns.values()
    for value in numbers:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value == 0:
            raise ValueError(f"{origin}: rank or alpha is {value!r}. It must be a number that is not 0.")
    dropout = settings.get("lora_dropout", 0)
    if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
        raise ValueError(f"{origin}: lora_dropout is {dropout!r}. It must be a number from 0 to below 1.")
    return settings or None


def _is_pattern(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True
