"""Derive the seed of a sample's noise."""

from __future__ import annotations

import hashlib


def noise_seed(seed: int, prompt_id: str) -> int:
    """
    Return the seed of a sample's noise: 63 bits of the SHA-256 of (seed, prompt id).

    Every prompt gets its own noise, so that seed 0 does not mean the same layout for all prompts, and it gets the same
    noise in every run.

    Args:
        seed (`int`):
            The seed of the sample, as requested.
        prompt_id (`str`):
            The id of the prompt.

    Returns:
        `int`: a seed for `torch.Generator.manual_seed`, from 0 to 2**63 - 1.
    """
    digest = hashlib.sha256(f"{int(seed)}:{prompt_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
