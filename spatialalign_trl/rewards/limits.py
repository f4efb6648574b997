"""Limits of what a reward's client and server accept from each other, and reading JSON within them."""

from __future__ import annotations

import json
from typing import Any

MAX_BODY_BYTES = 1 << 30
"""Largest request. Eight lossless videos of 81 frames of 480x832 take about a third of it."""

MAX_ANSWER_BYTES = 64 << 20
"""Largest answer, decompressed: scores and the columns that a reward logs."""

MAX_ABOUT_BYTES = 1 << 20
"""Largest description of a reward, which is copied into run.json."""

MAX_JSON_VALUES = 2_000_000
"""Most values of one request or answer: `[[],[],...]` takes 20 times its size in memory. Videos are single texts."""


def parse_json(data: bytes, name: str) -> Any:
    """
    Parse JSON from another machine.

    Args:
        data (`bytes`):
            The text.
        name (`str`):
            How errors call it.

    Raises:
        `ValueError`: if it is no JSON, has more than `MAX_JSON_VALUES` values, or is nested too deeply.
    """
    # A bound on the number of values; base64 contains none of these characters.
    if data.count(b",") + data.count(b"[") + data.count(b"{") > MAX_JSON_VALUES:
        raise ValueError(f"{name} has more than {MAX_JSON_VALUES} values")
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError(f"{name} is nested too deeply") from None
