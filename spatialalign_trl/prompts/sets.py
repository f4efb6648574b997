"""Make prompt sets: order combinations of words by a hash, balance splits over the types, write rows as JSON lines.

The scripts that make the sets under `datasets/` share these functions. Nothing here draws random numbers: the same
words and seed give the same bytes on every machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from spatialalign_trl.errors import printable
from spatialalign_trl.files import write_atomic
from spatialalign_trl.prompts import DSR_TYPES, DSRPrompt

Words = TypeVar("Words", bound=tuple[str, ...])


def hash_order(combinations: Iterable[Words], seed: int) -> list[tuple[bytes, Words]]:
    """Sort combinations of words into an order that looks random and never changes.

    Args:
        combinations (iterable of tuples of `str`): The combinations. Their input order does not matter.
        seed (`int`): The seed. Another seed gives another order.

    Returns:
        `list[tuple[bytes, tuple]]`: pairs of the 32-byte hash that is sorted by, and the combination.
    """
    return sorted((hashlib.sha256("|".join((str(seed), *words)).encode()).digest(), words) for words in combinations)


def check_balanced(sizes: Mapping[str, int]) -> None:
    """Check that splits of these sizes can contain equally many prompts of each type.

    Args:
        sizes (`Mapping[str, int]`): Option name, such as `"num_test"`, -> number of prompts.

    Raises:
        ValueError: If a number is not a positive multiple of six. The message names the option.
    """
    for name, number in sizes.items():
        if number <= 0 or number % len(DSR_TYPES):
            raise ValueError(f"{name} is {number}: it must be a positive multiple of the {len(DSR_TYPES)} types")


def to_jsonl(prompts: Sequence[DSRPrompt]) -> bytes:
    """Return the prompts as JSON lines in UTF-8, with one row per line."""
    return "".join(json.dumps(prompt.to_row(), ensure_ascii=False) + "\n" for prompt in prompts).encode()


def write_splits(folder: Path, splits: Mapping[str, Sequence[DSRPrompt]]) -> None:
    """Write every split to `folder/{split}.jsonl` atomically, and print the files and their numbers of prompts."""
    for split, prompts in splits.items():
        path = write_atomic(folder / f"{split}.jsonl", to_jsonl(prompts))
        print(printable(f"{path}: {len(prompts)} prompts"))
