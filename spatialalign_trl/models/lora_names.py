"""Translate the names of a Wan transformer's modules between diffusers and the original code, dotted or underscored.

diffusers   blocks.0.attn2.to_k          with underscores   blocks_0_attn2_to_k
original    blocks.0.cross_attn.k                           blocks_0_cross_attn_k
"""

from __future__ import annotations

import re
from collections.abc import Mapping

# Module names in diffusers -> in the original code, outside the transformer blocks and inside a block.
OUTSIDE = {
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "condition_embedder.image_embedder.ff.net.0.proj": "img_emb.proj.1",  # only in image-to-video models
    "condition_embedder.image_embedder.ff.net.2": "img_emb.proj.3",
    "proj_out": "head.head",
}
INSIDE = {
    **{
        f"{attention}.{projection}": f"{original_attention}.{letter}"
        for attention, original_attention in (("attn1", "self_attn"), ("attn2", "cross_attn"))
        for projection, letter in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "o"))
    },
    "attn2.add_k_proj": "cross_attn.k_img",  # only in image-to-video models
    "attn2.add_v_proj": "cross_attn.v_img",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
}
TO_ORIGINAL = {**OUTSIDE, **INSIDE}

_DIFFUSERS_OUTSIDE = {original: name for name, original in OUTSIDE.items()}
_DIFFUSERS_INSIDE = {original: name for name, original in INSIDE.items()}
# A name with underscores has lost its dots, so it can only be looked up.
_UNDERSCORED_OUTSIDE = {either.replace(".", "_"): name for name, pair in OUTSIDE.items() for either in (name, pair)}
_UNDERSCORED_INSIDE = {either.replace(".", "_"): name for name, pair in INSIDE.items() for either in (name, pair)}

BLOCK = re.compile(r"^(blocks\.\d+\.)(.+)$")
_UNDERSCORED_BLOCK = re.compile(r"^blocks_(\d+)_(.+)$")


def is_wan_module(module: str) -> bool:
    """Return whether a name in diffusers is that of a linear layer of a Wan transformer."""
    match = BLOCK.match(module)
    return match[2] in INSIDE if match else module in OUTSIDE


def diffusers_name(module: str) -> str:
    """
    Return a module's name in diffusers.

    Args:
        module (`str`):
            The name in diffusers or in the original Wan code, with dots or with underscores.

    Returns:
        `str`: the name in diffusers, or `module` itself if it is no Wan module.
    """
    if match := BLOCK.match(module):
        return match[1] + _DIFFUSERS_INSIDE.get(match[2], match[2])
    if match := _UNDERSCORED_BLOCK.match(module):
        layer = _UNDERSCORED_INSIDE.get(match[2])
        return module if layer is None else f"blocks.{match[1]}.{layer}"
    return _DIFFUSERS_OUTSIDE.get(module) or _UNDERSCORED_OUTSIDE.get(module, module)


def renamed(module: str, names: Mapping[str, str] = TO_ORIGINAL) -> str:
    """
    Return a module's name in the original code.

    Args:
        module (`str`):
            The name in diffusers.
        names (`Mapping[str, str]`, *optional*):
            Names without their block; by default those of the original code.

    Raises:
        ValueError: if the module is not a linear layer of a Wan transformer.
    """
    if not is_wan_module(module):
        raise ValueError(
            f"{module!r} is not a linear layer of a Wan transformer, and the names in other families' original "
            "code are unknown here. Keep such a LoRA in the diffusers format."
        )
    match = BLOCK.match(module)
    return match[1] + names[match[2]] if match else names[module]
