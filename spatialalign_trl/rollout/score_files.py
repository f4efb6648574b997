"""Write the scores of a sample, and keep the scores that they replace: a judge may have cost as much as the video."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spatialalign_trl.files import read_json, write_atomic, write_json

_BOOKKEEPING = ("_settings", "_error", "gate_reason")
"""Ends of the names of columns that no reward has logged."""


def write_score_file(file: Path, scores: Mapping[str, Any]) -> None:
    """
    Write scores. If the file has values that they lack, it is kept as `<name>.replaced-N.json` beside it.

    Args:
        file (`Path`):
            The file of the sample's scores.
        scores (`dict`):
            `rewards`, `reward` and `components`, as plain Python objects.
    """
    if file.is_file() and _has_more(file, scores):
        number = 1
        while (kept := file.with_name(f"{file.stem}.replaced-{number}.json")).exists():
            number += 1
        write_atomic(kept, file.read_bytes())
    write_json(file, scores)


def _has_more(file: Path, scores: Mapping[str, Any]) -> bool:
    """Return whether a file has a value of a reward, or one that a reward has logged, that is not in the scores."""
    try:
        former = read_json(file)
        values = [(former[group], scores[group]) for group in ("rewards", "components")]
        return any(
            value is not None and new.get(name) != value and not name.endswith(_BOOKKEEPING)
            for old, new in values
            for name, value in old.items()
        )
    except (ValueError, KeyError, TypeError, AttributeError):  # damaged scores
        return False
