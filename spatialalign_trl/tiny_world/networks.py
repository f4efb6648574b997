"""Builds the text encoder and denoiser of the embedded models, tiny versions of the real classes, and exports them."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from pathlib import Path

import torch
from diffusers import WanPipeline, WanTransformer3DModel
from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel

from spatialalign_trl.errors import printable

MAX_TOKENS = 32
"""Length of every tokenised prompt, padding included."""


def new_tokenizer(phrases: Iterable[str]) -> T5Tokenizer:
    """Build a word-level tokenizer.

    Args:
        phrases (iterable of `str`):
            Texts with the words that become one token each. All other words are split into letters.

    Returns:
        `T5Tokenizer`: the tokenizer.
    """
    words = dict.fromkeys(word for phrase in phrases for word in phrase.split())
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), (",", -2.0), (".", -2.0)]
    vocabulary += [(f"▁{word}", -1.0) for word in words]
    vocabulary += [(letter, -9.0) for letter in "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789'-"]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=MAX_TOKENS)


def new_text_encoder(vocabulary_size: int) -> UMT5EncoderModel:
    """Build the text encoder with random weights."""
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=vocabulary_size, d_model=64, d_kv=16, d_ff=192, num_layers=2, num_heads=4, dropout_rate=0.0
        )
    )


def new_denoiser(channels: int, layers: int = 4, width: int = 128, head_size: int = 32) -> WanTransformer3DModel:
    """Build the denoiser with random weights.

    Args:
        channels (`int`):
            Channels of the latents.
        layers (`int`, *optional*, defaults to `4`):
            Number of blocks.
        width (`int`, *optional*, defaults to `128`):
            Size of a token, a multiple of `head_size`.
        head_size (`int`, *optional*, defaults to `32`):
            Size of a head of the attention.

    Raises:
        ValueError: If the width is no multiple of the head's size.
    """
    if width % head_size:
        raise ValueError(f"width={width}: it must be a multiple of head_size={head_size}.")
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=width // head_size,
        attention_head_dim=head_size,
        in_channels=channels,
        out_channels=channels,
        text_dim=64,
        freq_dim=64,
        ffn_dim=4 * width,
        num_layers=layers,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=64,
    )


def embed(text_encoder: torch.nn.Module, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Embed prompts for the denoiser as WanPipeline does: padding is set to zero and is attended to.

    Args:
        text_encoder (`torch.nn.Module`):
            From `new_text_encoder`.
        ids, mask (`torch.Tensor` of shape `(batch, tokens)`):
            Token ids and attention mask.

    Returns:
        `torch.Tensor` of shape `(batch, tokens, dim)`: the embeddings.
    """
    return text_encoder(ids, mask).last_hidden_state * mask.unsqueeze(-1)


def export_pipeline(
    pipeline: WanPipeline, folder: Path, size: tuple[int, int, int], guidance_scale: float, fps: int
) -> None:
    """Write a pipeline in fp16 with its sampling settings, and print the size of the folder.

    Args:
        pipeline (`WanPipeline`):
            Pipeline to export. It is not changed.
        folder (`Path`):
            Target folder. Other files in it are kept.
        size (tuple of 3 `int`):
            Frames, height and width of a video.
        guidance_scale (`float`):
            Guidance scale to sample with.
        fps (`int`):
            Frames per second of the videos.
    """
    # Converting to fp16 changes the modules in place, so convert a copy.
    copy.deepcopy(pipeline).to(dtype=torch.float16).save_pretrained(folder, safe_serialization=True)
    for file in folder.glob("*/config.json"):
        config = json.loads(file.read_text())
        config.pop("_name_or_path", None)  # a path on the machine that exported it
        file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    settings = {
        **dict(zip(("num_frames", "height", "width"), size, strict=True)),
        "num_inference_steps": 10,
        "guidance_scale": guidance_scale,
        "fps": fps,
        "negative_prompt": "",
    }
    (folder / "spatialalign.json").write_text(json.dumps(settings, indent=2) + "\n")
    written = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(printable(f"wrote {folder} ({written / 2**20:.2f} MiB)"))
