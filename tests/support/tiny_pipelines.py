"""Random pipelines of real diffusers classes, small enough for unit tests and built without a network."""

from __future__ import annotations

from pathlib import Path

from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler, WanPipeline
from diffusers import WanTransformer3DModel as WanTransformer
from tiny_family import TinyFamily
from tiny_text import T5_DIM, seeded, t5_encoder, t5_tokenizer

NUM_FRAMES, HEIGHT, WIDTH = 9, 16, 32


def transformer(channels: int = 4) -> WanTransformer:
    return WanTransformer(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=channels,
        out_channels=channels,
        text_dim=T5_DIM,
        freq_dim=32,
        ffn_dim=32,
        num_layers=2,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    ).eval()


def vae(channels: int = 4) -> AutoencoderKLWan:
    """Stride 4x8x8. Means and deviations are not 0 and 1, so that a test sees when they are forgotten."""
    return AutoencoderKLWan(
        base_dim=4,
        z_dim=channels,
        dim_mult=[1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=8,
        latents_mean=[0.1 * i - 0.2 for i in range(channels)],
        latents_std=[0.5 + 0.3 * i for i in range(channels)],
    ).eval()


def scheduler(kind: str = "euler", shift: float = 3.0):
    if kind == "euler":
        return FlowMatchEulerDiscreteScheduler(shift=shift)
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)


def wan_pipeline(seed: int = 0, kind: str = "euler", shift: float = 3.0) -> WanPipeline:
    """A pipeline like Wan 2.1's."""
    with seeded(seed):
        tokens = t5_tokenizer()
        return WanPipeline(
            tokenizer=tokens,
            text_encoder=t5_encoder(len(tokens), multilingual=True),
            vae=vae(),
            scheduler=scheduler(kind, shift),
            transformer=transformer(),
        )


def two_expert_pipeline() -> WanPipeline:
    """A pipeline like Wan 2.2 A14B's: one transformer for high noise, one for low."""
    base = wan_pipeline()
    with seeded(1):
        return WanPipeline(**{**base.components, "transformer_2": transformer()}, boundary_ratio=0.875)


def token_timestep_pipeline() -> WanPipeline:
    """A pipeline like Wan 2.2 TI2V-5B's: a timestep for every token, and a residual VAE of stride 4x16x16."""
    base = wan_pipeline(kind="unipc", shift=5.0)
    with seeded(2):
        residual_vae = AutoencoderKLWan(
            base_dim=4,
            z_dim=6,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
            is_residual=True,
            in_channels=12,
            out_channels=12,
            patch_size=2,
            scale_factor_spatial=16,
            latents_mean=[0.1 * i - 0.2 for i in range(6)],
            latents_std=[0.5 + 0.3 * i for i in range(6)],
        ).eval()
        parts = {"vae": residual_vae, "transformer": transformer(channels=6)}
        return WanPipeline(**{**base.components, **parts}, expand_timesteps=True)


def saved_wan(folder: Path, **kwargs) -> str:
    """Save a [`wan_pipeline`] as a pipeline folder and return its path."""
    wan_pipeline(**kwargs).save_pretrained(folder)
    return str(folder)


_WAN_SIZES = {
    (8, 16, 32): "num_frames is 8.*use 5 or 9",
    (9, 24, 32): "height is 24.*use 16 or 32",
    (9, 16, 8): "width is 8.*use 16",
}

FAMILIES = [
    TinyFamily("wan", wan_pipeline, (NUM_FRAMES, HEIGHT, WIDTH), illegal_sizes=_WAN_SIZES),
    TinyFamily("wan_unipc", lambda: wan_pipeline(kind="unipc"), (NUM_FRAMES, HEIGHT, WIDTH), illegal_sizes=_WAN_SIZES),
    TinyFamily(
        "wan_context",
        wan_pipeline,
        (NUM_FRAMES, HEIGHT, WIDTH),
        illegal_sizes=_WAN_SIZES,
        options={"variant": "context"},
    ),
    *(
        TinyFamily(
            f"wan22_a14b_{expert}",
            two_expert_pipeline,
            (NUM_FRAMES, HEIGHT, WIDTH),
            illegal_sizes=_WAN_SIZES,
            options={"expert": expert},
            settings={"guidance_scale_2": 2.0},
        )
        for expert in ("high_noise", "low_noise")
    ),
    TinyFamily(
        "wan22_ti2v_5b",
        token_timestep_pipeline,
        (5, 32, 64),
        illegal_sizes={
            (8, 32, 32): "num_frames is 8.*use 5 or 9",
            (9, 48, 32): "height is 48.*use 32 or 64",
            (9, 32, 16): "width is 16.*use 32",
        },
    ),
]
"""Wan's families for the contract test."""
