"""What is evaluated side by side: models, LoRAs on a model, and folders of videos, refused early where needed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

BASE = "base"
"""What a model is called beside LoRAs on it."""

RUNS = "runs"
"""Where recipes put what they make, so that `runs/tiny` is meant as a folder, be it there or not."""

_NAME = re.compile(r"[\w .+-]{1,60}")


@dataclass(frozen=True)
class Policy:
    """
    One column of the tables.

    Args:
        name (`str`): What it is called.
        model (`str`, *optional*): What samples its videos; `None` when they exist.
        lora (`str`, *optional*): The LoRA on the model.
        folder (`str`, *optional*): Where its videos lie.
    """

    name: str
    model: str | None = None
    lora: str | None = None
    folder: str | None = None


def plan_policies(models: Sequence[str], loras: Sequence[str], folders: Sequence[str]) -> list[Policy]:
    """
    The policies that a command line names, in this order: models, LoRAs, folders.

    Args:
        models, loras, folders (sequences of `str`): Each `PLACE`, or `NAME=PLACE` to say what it is called.

    Raises:
        ValueError: when there are none, two have one name, or LoRAs come with no model or several.
        FileNotFoundError: for a folder or a LoRA that is not there.
    """
    if loras and len(models) != 1:
        raise ValueError(
            f"{len(loras)} LoRAs and {len(models)} models: a LoRA belongs to one model. Name that one, and evaluate "
            "LoRAs of other models in a run of their own; --videos compares with what it sampled"
        )
    policies = [Policy(_name(m) or (BASE if loras else _short(m)), model=_place(m)) for m in models]
    policies += [Policy(_name(lora) or _short(lora), model=_place(models[0]), lora=_place(lora)) for lora in loras]
    policies += [Policy(_name(folder) or _short(folder), folder=_place(folder)) for folder in folders]
    if not policies:
        raise ValueError("there is nothing to evaluate: give a model, or folders of videos")
    for policy in policies:
        same = [other for other in policies if other.name == policy.name]
        if len(same) > 1:
            places = " and ".join(repr(one.lora or one.folder or one.model) for one in same)
            raise ValueError(f"{places} would both be called {policy.name!r}; write NAME=PLACE for one of them")
        if policy.folder is not None and not Path(policy.folder).is_dir():
            raise FileNotFoundError(f"there is no folder of videos {policy.folder!r}")
        if policy.lora is not None:
            check_lora(policy.lora)
    return policies


def check_lora(place: str) -> None:
    """
    Refuses a LoRA that cannot be loaded, as far as that shows without its model.

    Raises:
        FileNotFoundError: for a place that is neither a LoRA on this machine nor a Hub id.
        ValueError: for a file that is no LoRA.
    """
    from spatialalign_trl.models.lora_files import LORA_FILE, PEFT_FILE
    from spatialalign_trl.models.lora_keys import refuse_unreadable_lora

    path = Path(place)
    if path.is_dir() and not any((path / name).is_file() for name in (LORA_FILE, PEFT_FILE)):
        raise FileNotFoundError(f"the folder {place!r} holds no {LORA_FILE}; give the folder that a training wrote")
    if not path.exists() and (path.parts[:1] == (RUNS,) or Path(*path.parts[:1]).is_dir()):
        raise FileNotFoundError(f"there is no LoRA file or folder {place!r}; if a training leaves it, run that first")
    if not path.exists() and not re.fullmatch(r"[\w.-]+/[\w.-]+", place):
        raise FileNotFoundError(f"there is no LoRA file or folder {place!r}, and it is no Hub id (owner/name) either")
    refuse_unreadable_lora(place)


def _split(word: str) -> tuple[str, str]:
    name, equals, place = word.partition("=")
    # A path may hold "=" itself.
    return (name, place) if equals and _NAME.fullmatch(name) and not Path(word).exists() else ("", word)


def _name(word: str) -> str:
    return _split(word)[0]


def _place(word: str) -> str:
    return _split(word)[1]


def _short(word: str) -> str:
    """The last part of a path or id that tells something."""
    path = Path(_place(word))
    return path.parent.name if path.suffix == ".safetensors" and path.parent.name else path.name or str(path)
