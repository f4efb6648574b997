"""Trains the VAEs of the embedded models: encoder and decoder, then the decoder alone, then fewer latent channels.

The recipes that make the embedded models pass in a function that draws batches of clips (`ClipBatch`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

from spatialalign_trl.models.ranges import COUNT, SEED, Range
from spatialalign_trl.tiny_world.latent_subspace import compress_latents
from spatialalign_trl.tiny_world.training_loop import Hardware, TrainingLoop, rng_of

_CPU = Hardware()

ClipBatch = Callable[[np.random.Generator, int, int], tuple[torch.Tensor, torch.Tensor]]
"""`clips(rng, size, frames) -> (videos (B, 3, F, H, W) in [-1, 1], weights of their pixels (B, 1, F, H, W))`. For
clips of fewer frames the batch should be larger, so that a step costs about as much as one with `size` whole clips."""


@dataclass
class VAEArguments:
    """Arguments of the VAE stages, shared by the recipes."""

    seed: Annotated[int, SEED] = field(
        default=0, metadata={"help": "Seed of the initial weights, the clips, the captions and the noise."}
    )
    save_steps: Annotated[int, COUNT] = field(default=500, metadata={"help": "Steps between checkpoints."})
    eval_steps: Annotated[int, COUNT] = field(
        default=200, metadata={"help": "Steps between measurements on held-out clips, if the recipe has some."}
    )
    vae_steps: Annotated[list[int], Range(at_least=0)] = field(
        default_factory=lambda: [2400, 600, 2200],
        metadata={"help": "Steps of encoder and decoder together: on single frames, on 5 frames, and on whole clips."},
    )
    vae_channels: Annotated[int, COUNT] = field(
        default=48, metadata={"help": "Latent channels (z_dim) of the VAE during training."}
    )
    vae_residual: bool = field(
        default=True,
        metadata={
            "help": "is_residual of AutoencoderKLWan, as in Wan 2.2: shortcuts around every change of resolution."
        },
    )
    vae_loss: str = field(
        default="huber",
        metadata={
            "help": "Loss per pixel. 'l1': |e| + 0.5 e^2. 'huber': smooth L1 with beta 0.25, quadratic near zero."
        },
    )
    vae_batch_size: Annotated[int, COUNT] = field(
        default=8, metadata={"help": "Whole clips per step, in both VAE stages."}
    )
    vae_learning_rate: Annotated[float, Range(above=0)] = field(
        default=2e-3, metadata={"help": "Peak learning rate; decays to 0 on a cosine."}
    )
    vae_kl_weight: Annotated[float, Range(at_least=0)] = field(
        default=5e-5, metadata={"help": "Weight of the KL term while encoder and decoder are trained."}
    )
    decoder_steps: Annotated[int, Range(at_least=0)] = field(
        default=1200, metadata={"help": "Steps of the decoder stage."}
    )
    decoder_learning_rate: Annotated[float, Range(above=0)] = field(
        default=1e-3, metadata={"help": "Peak learning rate; decays to 0 on a cosine."}
    )
    latent_channels: Annotated[int, COUNT] = field(
        default=16,
        metadata={"help": "Principal components of the latents to keep: latent channels (z_dim) of the exported VAE."},
    )

    def __post_init__(self) -> None:
        if self.vae_loss not in ("l1", "huber"):
            raise ValueError(f"vae_loss={self.vae_loss!r}: unknown loss. Choose l1 or huber.")


def new_vae(args: VAEArguments) -> AutoencoderKLWan:
    """Build the VAE with random weights."""
    return AutoencoderKLWan(
        base_dim=16,
        z_dim=args.vae_channels,
        is_residual=args.vae_residual,
        dim_mult=[1, 4, 4],  # wide on the coarse grid, which costs little and is where shapes are represented
        num_res_blocks=1,
        temperal_downsample=[True, True],
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=8,
        latents_mean=[0.0] * args.vae_channels,
        latents_std=[1.0] * args.vae_channels,
    )


def forget_time(vae: AutoencoderKLWan) -> None:
    """Set the weights of all convolutions for earlier frames to zero.

    The VAE then treats every frame on its own, so what it learns on single frames is valid for clips.
    """
    with torch.no_grad():
        for module in vae.modules():
            if isinstance(module, torch.nn.Conv3d) and module.kernel_size == (3, 3, 3):
                module.weight[:, :, :-1] = 0.0


def decode_unclamped(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """Decode latents without the clamp of `vae.decode` to [-1, 1], which has no gradient at saturated pixels.

    Args:
        vae (`AutoencoderKLWan`):
            The VAE.
        latents (`torch.Tensor` of shape `(B, C, F, H, W)`):
            Latents without normalisation.

    Returns:
        `torch.Tensor` of shape `(B, 3, frames, height, width)`: the pixels, about in [-1, 1].
    """
    vae.clear_cache()
    # Decode latent frame by latent frame with a cache, as `vae.decode` does.
    hidden, frames = vae.post_quant_conv(latents), []
    for index in range(latents.shape[2]):
        vae._conv_idx = [0]
        frames.append(
            vae.decoder(
                hidden[:, :, index : index + 1],
                feat_cache=vae._feat_map,
                feat_idx=vae._conv_idx,
                first_chunk=index == 0,
            )
        )
    vae.clear_cache()
    return unpatchify(torch.cat(frames, 2), patch_size=vae.config.patch_size)


def reconstruction_loss(
    decoded: torch.Tensor, pixels: torch.Tensor, weights: torch.Tensor, kind: str = "l1"
) -> torch.Tensor:
    """Return the weighted mean error per pixel; `kind` is a value of `VAEArguments.vae_loss`."""
    error = decoded - pixels
    if kind == "huber":
        return (weights * F.smooth_l1_loss(decoded, pixels, beta=0.25, reduction="none")).mean()
    return (weights * (error.abs() + 0.5 * error.square())).mean()


def psnr(decoded: torch.Tensor, pixels: torch.Tensor) -> float:
    """Return the peak signal-to-noise ratio in dB of pixels in [-1, 1]."""
    return float(10 * torch.log10(4.0 / F.mse_loss(decoded.detach().clamp(-1, 1), pixels)))


def measure_vae(vae: AutoencoderKLWan, pixels: torch.Tensor) -> dict[str, Any]:
    """
    Measure how well a VAE reconstructs clips.

    Args:
        vae (`AutoencoderKLWan`):
            The VAE.
        pixels (`torch.Tensor` of shape `(B, 3, F, H, W)`):
            Clips in [-1, 1].

    Returns:
        `dict`: `held_out_psnr` in dB, the mean over clips; `held_out_psnr_by_frame`, the same for the first frame and
        for each group of frames that shares a latent frame; and `channel_std`, the deviation of each latent channel.
    """
    with torch.no_grad():
        modes = torch.cat([vae.encode(part.to(vae.device)).latent_dist.mode() for part in pixels.split(8)])
        decoded = torch.cat([vae.decode(part).sample.cpu() for part in modes.split(8)]).clamp(-1, 1)
    stride = (pixels.shape[2] - 1) // max(1, modes.shape[2] - 1)
    errors = (decoded - pixels).square().mean((1, 3, 4))
    groups = [errors[:, :1], *(errors[:, 1:].split(stride, dim=1) if stride else ())]
    return {
        "held_out_psnr": _decibels(errors),
        "held_out_psnr_by_frame": [_decibels(group) for group in groups],
        "channel_std": [round(float(std), 2) for std in modes.std((0, 2, 3, 4))],
    }


def _decibels(errors: torch.Tensor) -> float:
    """Return the mean over clips of the PSNR of squared errors `(clips, frames)`."""
    return round(float(10 * torch.log10(4.0 / errors.mean(1).clamp_min(1e-10)).mean()), 3)


def train_vae(
    args: VAEArguments,
    out: Path,
    clips: ClipBatch,
    num_frames: int,
    held_out: torch.Tensor | None = None,
    hardware: Hardware = _CPU,
) -> None:
    """Train encoder and decoder together: on single frames, then on 5 frames, then on whole clips.

    Args:
        args (`VAEArguments`):
            Steps, batch size and loss.
        out (`Path`):
            Folder for the checkpoint `vae.safetensors` and the trained VAE in `vae/`.
        clips (`ClipBatch`):
            Draws the batches.
        num_frames (`int`):
            Frames of a whole clip.
        held_out (`torch.Tensor` of shape `(B, 3, F, H, W)`, *optional*):
            Clips to measure the VAE on while it is trained, see `measure_vae`. The numbers go to `vae.jsonl`.
        hardware (`Hardware`, *optional*):
            Where to train. In float32 on the CPU by default.
    """
    torch.manual_seed(args.seed)
    vae = new_vae(args).to(hardware.device)
    forget_time(vae)  # the first stage sees single frames only
    loop = TrainingLoop(
        out / "vae.safetensors", vae, sum(args.vae_steps), args.vae_learning_rate, args.save_steps, flat=0.6
    )
    first_steps = np.cumsum([0, *args.vae_steps[:-1]])

    def loss_at(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        frames = (1, 5, num_frames)[int(np.searchsorted(first_steps, step, side="right")) - 1]
        # Clips and posterior noise depend on seed and step only, so that a resumed run equals an uninterrupted one.
        pixels, weights = clips(rng_of(args.seed, 1, step), args.vae_batch_size, frames)
        pixels, weights = pixels.to(hardware.device), weights.to(hardware.device)
        torch.manual_seed(step)
        with hardware.autocast():
            posterior = vae.encode(pixels).latent_dist
            decoded = decode_unclamped(vae, posterior.sample()).float()
        mean, var, logvar = posterior.mean.float(), posterior.var.float(), posterior.logvar.float()
        kl = 0.5 * (mean.square() + var - 1.0 - logvar).mean()
        reconstruction = reconstruction_loss(decoded, pixels, weights, args.vae_loss)
        metrics = {"loss": float(reconstruction.detach()), "psnr": psnr(decoded, pixels)}
        return reconstruction + args.vae_kl_weight * kl, metrics

    loop.run(loss_at, None if held_out is None else lambda: measure_vae(vae, held_out), args.eval_steps)
    vae.save_pretrained(out / "vae")


def train_decoder(
    args: VAEArguments,
    clips: ClipBatch,
    num_frames: int,
    source: Path,
    target: Path,
    held_out: torch.Tensor | None = None,
    hardware: Hardware = _CPU,
) -> None:
    """Train the decoder alone on whole clips. The encoder, and thus the latents, do not change.

    Args:
        args (`VAEArguments`):
            Steps, batch size and loss.
        clips (`ClipBatch`):
            Draws the batches.
        num_frames (`int`):
            Frames of a whole clip.
        source (`Path`):
            Folder of the VAE to start from.
        target (`Path`):
            Folder for the result. The checkpoint `decoder.safetensors` is written to the same parent folder.
        held_out (`torch.Tensor`, *optional*):
            As in `train_vae`; the numbers go to `decoder.jsonl`.
        hardware (`Hardware`, *optional*):
            As in `train_vae`.
    """
    torch.manual_seed(args.seed)
    vae = AutoencoderKLWan.from_pretrained(source).to(hardware.device)
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    path = target.with_name("decoder.safetensors")
    loop = TrainingLoop(path, vae, args.decoder_steps, args.decoder_learning_rate, args.save_steps)

    def loss_at(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        pixels, weights = clips(rng_of(args.seed, 3, step), args.vae_batch_size, num_frames)
        pixels, weights = pixels.to(hardware.device), weights.to(hardware.device)
        torch.manual_seed(step)
        with torch.no_grad():
            latents = vae.encode(pixels).latent_dist.mode()
            # Add a little noise: latents from the denoiser are slightly off and should give sharp shapes, too.
            latents = latents + 0.05 * torch.rand(len(latents), 1, 1, 1, 1).to(latents) * torch.randn_like(latents)
        with hardware.autocast():
            decoded = decode_unclamped(vae, latents).float()
        loss = reconstruction_loss(decoded, pixels, weights, args.vae_loss)
        return loss, {"loss": float(loss.detach()), "psnr": psnr(decoded, pixels)}

    loop.run(loss_at, None if held_out is None else lambda: measure_vae(vae, held_out), args.eval_steps)
    vae.save_pretrained(target)


def compress(args: VAEArguments, clips: ClipBatch, num_frames: int, source: Path, target: Path) -> None:
    """Reduce the latents of a VAE to `args.latent_channels` principal components.

    Args:
        args (`VAEArguments`):
            Seed and number of channels.
        clips (`ClipBatch`):
            Draws the clips from which the principal components are computed.
        num_frames (`int`):
            Frames of a whole clip.
        source, target (`Path`):
            Folders of the VAE and of the result.
    """
    vae = AutoencoderKLWan.from_pretrained(source)
    with torch.no_grad():
        modes = torch.cat(
            [vae.encode(clips(rng_of(args.seed, 2, i), 32, num_frames)[0]).latent_dist.mode() for i in range(16)]
        )
        compress_latents(vae, modes, args.latent_channels).save_pretrained(target)
