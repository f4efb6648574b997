"""Reduces the latent channels of a Wan VAE by removing redundant ones, with nearly the same pictures.

A VAE with many channels learns fast, but its latents end up in a subspace of them. The remaining channels burden a
small denoiser, which has to predict the noise in channels that carry no information.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLWan


def compress_latents(vae: AutoencoderKLWan, latents: torch.Tensor, channels: int) -> AutoencoderKLWan:
    """
    Build a VAE with fewer latent channels: the principal components of `latents`.

    Each component is scaled to unit variance; weak components are scaled up less. Both changes of basis are linear and
    are folded into the adjacent convolutions. The new VAE therefore decodes exactly what the old one decodes from
    latents projected onto the subspace.

    Args:
        vae (`AutoencoderKLWan`):
            VAE with `z_dim` channels. It is not changed.
        latents (`torch.Tensor` of shape `(N, z_dim, frames, height, width)`):
            Modes of `vae.encode`, without normalisation.
        channels (`int`):
            Number of channels to keep, from 2 to `z_dim`.

    Returns:
        `AutoencoderKLWan`: the new VAE. Its latents are normalised already, so `latents_mean` is 0 and `latents_std`
        is 1. The variance of its posterior is almost 0.

    Raises:
        ValueError: If `channels` is out of range.
    """
    z_dim = vae.config.z_dim
    if not 2 <= channels <= z_dim:
        raise ValueError(
            f"channels={channels}: out of range. Choose a number from 2 to {z_dim}, the channels of the VAE."
        )
    # 1. Find the basis of the subspace and the scale of each component.
    flat = latents.double().transpose(0, 1).reshape(z_dim, -1)
    mean = flat.mean(1)
    mixing, shift = _matrix(vae.post_quant_conv), vae.post_quant_conv.bias.detach().double()
    # The constant that the decoder adds to every latent needs a direction of its own. It cannot be added after the
    # decoder's zero padding, because that would be visible at the borders.
    constant = mean + torch.linalg.solve(mixing, shift)
    basis = _basis(flat - mean[:, None], constant, channels)
    scale = (basis.T @ (flat - mean[:, None])).std(1)
    # Scaling a weak channel up to unit variance would only amplify its noise.
    scale = scale.clamp_min(float(scale.median()) / 4)
    to_new, to_old = basis.T / scale[:, None], basis * scale

    # 2. Fold the change of basis into the last convolution of the encoder and the first one of the decoder.
    config = {**vae.config, "z_dim": channels, "latents_mean": [0.0] * channels, "latents_std": [1.0] * channels}
    small = AutoencoderKLWan.from_config(config)
    kept = {name: value for name, value in vae.state_dict().items() if "quant_conv" not in name}
    encode, decode = "encoder.conv_out", "decoder.conv_in"
    weight, bias = kept[f"{encode}.weight"].double(), kept[f"{encode}.bias"].double()
    moments = to_new @ _matrix(vae.quant_conv)[:z_dim]
    kept[f"{encode}.weight"] = torch.cat(
        [torch.einsum("oc,cixyz->oixyz", moments, weight), torch.zeros(channels, *weight.shape[1:])]
    )
    moved = to_new @ (vae.quant_conv.bias.detach().double()[:z_dim] - mean)
    kept[f"{encode}.bias"] = torch.cat([moments @ bias + moved, torch.full((channels,), -10.0)])
    kept[f"{decode}.weight"] = torch.einsum("ocxyz,cd,di->oixyz", kept[f"{decode}.weight"].double(), mixing, to_old)

    # 3. What is left of the two 1x1 convolutions is the identity and the constant.
    for name, size in (("quant_conv", 2 * channels), ("post_quant_conv", channels)):
        kept[f"{name}.weight"] = torch.eye(size).view(size, size, 1, 1, 1)
        kept[f"{name}.bias"] = torch.zeros(size)
    kept["post_quant_conv.bias"] = (basis.T @ constant) / scale
    small.load_state_dict({name: value.float() for name, value in kept.items()})
    return small.eval()


def _matrix(convolution: torch.nn.Module) -> torch.Tensor:
    """Return the matrix that a convolution of kernel size 1 applies to the channels."""
    return convolution.weight.detach().double()[:, :, 0, 0, 0]


def _basis(centred: torch.Tensor, constant: torch.Tensor, channels: int) -> torch.Tensor:
    """Return an orthonormal `(z_dim, channels)` basis of `constant` and the leading components of `centred`."""
    first = constant / constant.norm()
    rest = centred - first[:, None] * (first @ centred)
    _, components = torch.linalg.eigh(rest @ rest.T)
    span = torch.cat([first[:, None], components.flip(1)[:, : channels - 1]], 1)
    # Rotate the basis to the principal components of the data, so that channels are uncorrelated, strongest first.
    _, turn = torch.linalg.eigh((span.T @ centred) @ (span.T @ centred).T)
    return span @ turn.flip(1)
