"""A Wan pipeline of any size with random weights, built from configurations alone: nothing is downloaded."""

from __future__ import annotations

import string

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel

TEXT_DIM = 64


def random_wan(
    *, layers: int, heads: int, head_dim: int, ffn_dim: int, channels: int = 16, text_tokens: int = 32, seed: int = 0
) -> WanPipeline:
    """Builds the pipeline; Wan2.1-T2V-1.3B has 30 layers, 12 heads of 128, ffn_dim 8960 and 512 text tokens.

    Args:
        layers, heads, head_dim, ffn_dim: of the transformer.
        channels: of the latents.
        text_tokens: length of every prompt's embedding.
        seed: of the weights.
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
