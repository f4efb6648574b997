"""Policies that are evaluated side by side: models, LoRAs on a model, and folders of videos."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

BASE = "base"
"""Name of a model that is evaluated together with LoRAs on it."""

RUNS = "runs"
"""Folder that recipes write to. A path such as `runs/tiny` means a folder, not a Hub id, even if it does not exist."""

_NAME = re.compile(r"[\w .+-]{1,60}")


@dataclass(frozen=True)
class Policy:
    """
    A policy: one column of the tables.

    Args:
        name (`str`):
            The policy's name in the tables.
        model (`str`, *optional*):
            The model that samples its videos. `None` if they exist already.
        lora (`str`, *optional*):
            The LoRA on the model.
        folder (`str`, *optional*):
            The folder of its videos, if they exist already.
    """

    name: str
    model: str | None = None
    lora: str | None = None
    folder: str | None = None


def plan_policies(models: Sequence[str], loras: Sequence[str], folders: Sequence[str]) -> list[Policy]:
    """
    Return the policies that a command line names, in this order: models, LoRAs, folders.

    Args:
        models, loras, folders (sequences of `str`):
            Each is `PLACE`, or `NAME=PLACE` to name it in the tables.

    Raises:
        ValueError: If there are no policies, two of them have the same name, or there are LoRAs without a model or
            with several.
        FileNotFoundError: For a folder or a LoRA that does not exist.
    """
    if loras and len(models) != 1:
        raise ValueError(
            f"{len(loras)} LoRAs and {len(models)} models: a LoRA belongs to one model. Name that model, and evaluate "
            "LoRAs of other models in separate runs; --videos compares with the videos of those runs."
        )
    policies = [Policy(_name(m) or (BASE if loras else _short(m)), model=_place(m)) for m in models]
    policies += [Policy(_name(lora) or _short(lora), model=_place(models[0]), lora=_place(lora)) for lora in loras]
    policies += [Policy(_name(folder) or _short(folder), folder=_place(folder)) for folder in folders]
    if not policies:
        raise ValueError("there is nothing to evaluate: give a model, or folders of videos.")
    for policy in policies:
        namesakes = [other for other in policies if other.name == policy.name]
        if len(namesakes) > 1:
            places = " and ".join(repr(other.lora or other.folder or other.model) for other in namesakes)
            raise ValueError(f"{places} would both be called {policy.name!r}; write NAME=PLACE for one of them.")
        if policy.folder is not None and not Path(policy.folder).is_dir():
            raise FileNotFoundError(f"there is no folder of videos {policy.folder!r}.")
        if policy.lora is not None:
            check_lora(policy.lora)
    return policies


def check_lora(place: str) -> None:
    """
    Refuse a LoRA that cannot be loaded, as far as this can be seen without its model.

    Args:
        place (`str`):
            A folder, a safetensors file, or a Hub id.

    Raises:
        FileNotFoundError: If `place` is neither a LoRA on this machine nor a Hub id.
        ValueError: If the file is no LoRA.
    """
    from spatialalign_trl.models.lora_files import LORA_FILE, PEFT_FILE
    from spatialalign_trl.models.lora_keys import refuse_unreadable_lora

    path = Path(place)
    if path.is_dir() and not any((path / name).is_file() for name in (LORA_FILE, PEFT_FILE)):
        raise FileNotFoundError(f"the folder {place!r} holds no {LORA_FILE}. Give the folder that a training wrote.")
    if not path.exists() and (path.parts[:1] == (RUNS,) or Path(*path.parts[:1]).is_dir()):
        raise FileNotFoundError(
            f"there is no LoRA file or folder {place!r}; if a training leaves it there, run that first."
        )
    if not path.exists() and not re.fullmatch(r"[\w.-]+/[\w.-]+", place):
        raise FileNotFoundError(f"there is no LoRA file or folder {place!r}, and it is no Hub id (owner/name) either.")
    refuse_unreadable_lora(place)


def _split(argument: str) -> tuple[str, str]:
    """Split `NAME=PLACE` into name and place; the name is empty if there is none."""
    name, equals, place = argument.partition("=")
    # The path of an existing file may contain "=" too.
    return (name, place) if equals and _NAME.fullmatch(name) and not Path(argument).exists() else ("", argument)


def _name(argument: str) -> str:
    return _split(argument)[0]


def _place(argument: str) -> str:
    return _split(argument)[1]


def _short(argument: str) -> str:
    """Return the last meaningful part of a path or id: the folder's name for a safetensors file in a folder."""
    path = Path(_place(argument))
    return path.parent.name if path.suffix == ".safetensors" and path.parent.name else path.name or str(path)
