"""Builds a Wan pipeline of any size with random weights, and pairs of random latents for it. Nothing is downloaded."""

from __future__ import annotations

import argparse
import string
from pathlib import Path

import torch
from datasets import Dataset
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from safetensors.torch import save
from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel

from spatialalign_trl.models import load_video_model
from spatialalign_trl.models.base import VideoModel

CHANNELS = 16
TEXT_DIM = 64
SIZES = {"layers": 4, "heads": 4, "head_dim": 32, "ffn_dim": 512, "text_tokens": 32}


def add_size_arguments(parser: argparse.ArgumentParser, **defaults: int) -> None:
    """Add flags for the sizes of the model and the latents, the device and the type of the weights."""
    parser.add_argument("--latent_size", type=int, nargs=3, default=[3, 8, 12], metavar=("FRAMES", "HEIGHT", "WIDTH"))
    for name, default in {**SIZES, **defaults}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--dtype", default="float32", choices=["float32", "bfloat16"], help="type of the frozen base weights"
    )


def random_video_model(options: argparse.Namespace, folder: str) -> VideoModel:
    """Build the model that the flags describe.

    It is saved to a folder and loaded from there, because loading decides which parts stay in float32. An existing
    folder is used as it is. With several processes, the main one must come first.
    """
    if not Path(folder).exists():
        random_wan(**{name: getattr(options, name) for name in SIZES}).save_pretrained(folder)
    return load_video_model(folder, torch_dtype=getattr(torch, options.dtype), device=options.device)


def tokens_per_video(options: argparse.Namespace) -> int:
    """Return the number of tokens per video, of 2x2 latent pixels each."""
    frames, height, width = options.latent_size
    return frames * height * width // 4


def random_pairs(count: int, latent_size: list[int]) -> Dataset:
    """Build a preference dataset of random latents."""
    generator = torch.Generator().manual_seed(0)
    columns: dict[str, list] = {"prompt": ["a fox is on the left of a stump"] * count}
    for side in ("chosen", "rejected"):
        latents = (torch.randn((CHANNELS, *latent_size), generator=generator) for _ in range(count))
        columns[f"{side}_latents"] = [save({"latents": tensor}) for tensor in latents]
    return Dataset.from_dict(columns)


def random_wan(
    *,
    layers: int,
    heads: int,
    head_dim: int,
    ffn_dim: int,
    channels: int = CHANNELS,
    text_tokens: int = 32,
    seed: int = 0,
) -> WanPipeline:
    """Build the pipeline. Wan2.1-T2V-1.3B has 30 layers, 12 heads of 128, ffn_dim 8960 and 512 text tokens.

    Args:
        layers, heads, head_dim, ffn_dim (`int`):
            Size of the transformer.
        channels (`int`, *optional*, defaults to `16`):
            Channels of the latents.
        text_tokens (`int`, *optional*, defaults to `32`):
            Number of tokens in the embedding of every prompt.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        letters = ["<pad>", "</s>", "<unk>", "▁", *string.ascii_letters, ".", ","]
        tokenizer = T5Tokenizer(
            vocab=[(piece, -float(rank)) for rank, piece in enumerate(letters)],
            extra_ids=0,
            model_max_length=text_tokens,
        )
        encoder = UMT5Config(vocab_size=len(tokenizer), d_model=TEXT_DIM, d_kv=16, d_ff=64, num_layers=1, num_heads=4)
        transformer = WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=heads,
            attention_head_dim=head_dim,
            in_channels=channels,
            out_channels=channels,
            text_dim=TEXT_DIM,
            freq_dim=256,
            ffn_dim=ffn_dim,
            num_layers=layers,
            cross_attn_norm=True,
            qk_norm="rms_norm_across_heads",
        )
        return WanPipeline(
            tokenizer=tokenizer,
            text_encoder=UMT5EncoderModel(encoder).eval(),
            vae=AutoencoderKLWan(
                base_dim=4,
                z_dim=channels,
                dim_mult=[1, 1, 1, 1],
                num_res_blocks=1,
                latents_mean=[0.0] * channels,
                latents_std=[1.0] * channels,
            ).eval(),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
            transformer=transformer.eval(),
        )
