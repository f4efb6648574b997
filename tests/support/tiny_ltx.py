"""Build random LTX-Video pipelines of real classes."""

from __future__ import annotations

import torch
from diffusers import (
    AutoencoderKLLTXVideo,
    FlowMatchEulerDiscreteScheduler,
    LTXPipeline,
    LTXVideoTransformer3DModel,
)
from tiny_family import TinyFamily
from tiny_text import T5_DIM, seeded, t5_encoder, t5_tokenizer

from spatialalign_trl.models import VideoModel

SIZE = (9, 32, 64)


def ltx_pipeline(timestep_conditioning: bool = False) -> LTXPipeline:
    """Build a pipeline like LTX-Video 0.9's, or with `timestep_conditioning` like 0.9.1's. VAE stride 8x32x32."""
    with seeded(0):
        tokens = t5_tokenizer()
        vae = AutoencoderKLLTXVideo(
            in_channels=3,
            out_channels=3,
            latent_channels=4,
            block_out_channels=(8, 8, 8, 8),
            decoder_block_out_channels=(8, 8, 8, 8),
            layers_per_block=(1, 1, 1, 1, 1),
            decoder_layers_per_block=(1, 1, 1, 1, 1),
            spatio_temporal_scaling=(True, True, True, False),
            decoder_spatio_temporal_scaling=(True, True, True, False),
            decoder_inject_noise=(False, False, False, False, False),
            upsample_residual=(False, False, False, False),
            upsample_factor=(1, 1, 1, 1),
            timestep_conditioning=timestep_conditioning,
            patch_size=4,
            patch_size_t=1,
            encoder_causal=True,
            decoder_causal=False,
        ).eval()
        # Not 0 and 1, so that tests notice if they are not applied.
        vae.latents_mean.copy_(torch.linspace(-0.2, 0.3, 4))
        vae.latents_std.copy_(torch.linspace(0.5, 1.5, 4))
        return LTXPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(
                use_dynamic_shifting=True,
                base_shift=0.95,
                max_shift=2.05,
                base_image_seq_len=1024,
                max_image_seq_len=4096,
                shift_terminal=0.1,
            ),
            vae=vae,
            text_encoder=t5_encoder(len(tokens)),
            tokenizer=tokens,
            transformer=LTXVideoTransformer3DModel(
                in_channels=4,
                out_channels=4,
                num_attention_heads=2,
                attention_head_dim=12,
                cross_attention_dim=24,
                num_layers=2,
                caption_channels=T5_DIM,
            ).eval(),
        )


def packed(model: VideoModel, latents: torch.Tensor) -> torch.Tensor:
    return LTXPipeline._pack_latents(latents)


_ILLEGAL_SIZES = {
    (16, 32, 64): "num_frames=16:.*Use 9 or 17",
    (9, 48, 64): "height=48:.*Use 32 or 64",
    (9, 32, 16): "width=16:.*Use 32",
}

FAMILIES = [
    TinyFamily("ltx", ltx_pipeline, SIZE, _ILLEGAL_SIZES, call={"frame_rate": 25.0, "output_type": "np"}, pack=packed),
    TinyFamily(
        "ltx_091",
        lambda: ltx_pipeline(timestep_conditioning=True),
        SIZE,
        _ILLEGAL_SIZES,
        options={"frame_rate": 30.0},
        call={
            "frame_rate": 30.0,
            "decode_timestep": 0.05,
            "decode_noise_scale": 0.025,
            "output_type": "np",
            "generator": lambda: torch.Generator().manual_seed(0),
        },
        pack=packed,
    ),
]
"""LTX-Video's families for the contract test."""
