"""The reduced VAE decodes the same as the full one from latents projected onto the subspace."""

import pytest
import torch
from diffusers import AutoencoderKLWan

from spatialalign_trl.tiny_world.latent_subspace import compress_latents


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    vae = AutoencoderKLWan(
        base_dim=4, z_dim=6, dim_mult=[1, 2, 2], num_res_blocks=1, temperal_downsample=[True, True], in_channels=12,
        out_channels=12, patch_size=2, scale_factor_spatial=8,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in vae.parameters():  # including biases, which are initialised to 0
            parameter.add_(0.1 * torch.randn_like(parameter))
    return vae.eval()


@pytest.fixture(scope="module")
def latents(vae):
    with torch.no_grad():
        return vae.encode(torch.rand(24, 3, 5, 32, 32) * 2 - 1).latent_dist.mode()


@torch.no_grad()
def test_all_channels_are_a_change_of_basis(vae, latents):
    small = compress_latents(vae, latents, 6)
    video = torch.rand(2, 3, 5, 32, 32) * 2 - 1
    ours = small.decode(small.encode(video).latent_dist.mode()).sample
    assert torch.allclose(ours, vae.decode(vae.encode(video).latent_dist.mode()).sample, atol=1e-3)


@torch.no_grad()
def test_fewer_channels_are_a_projection_and_nothing_else(vae, latents):
    """Compare the borders, too: a constant added after the decoder's zero padding would be visible there."""
    small = compress_latents(vae, latents, 4)
    video = torch.rand(24, 3, 5, 32, 32) * 2 - 1
    modes = (model.encode(video).latent_dist.mode() for model in (vae, small))
    old, new = (mode.transpose(0, 1).flatten(1).double() for mode in modes)
    mean = latents.double().mean((0, 2, 3, 4))[:, None]
    to_new = torch.linalg.lstsq((old - mean).T, new.T).solution.T
    assert torch.allclose(to_new @ (old - mean), new, atol=1e-3)
    codes = torch.randn(2, 4, 2, 4, 4)
    to_old = torch.linalg.pinv(to_new).float()
    projected = torch.einsum("ij,bjfhw->bifhw", to_old, codes) + mean.float().view(1, -1, 1, 1, 1)
    assert torch.allclose(small.decode(codes).sample, vae.decode(projected).sample, atol=1e-3)


@torch.no_grad()
def test_the_channels_are_uncorrelated_and_of_unit_variance(vae, latents):
    torch.manual_seed(2)
    small = compress_latents(vae, latents, 4)
    to_new = small.encode(torch.rand(64, 3, 5, 32, 32) * 2 - 1).latent_dist.mode().transpose(0, 1).flatten(1)
    assert torch.allclose(torch.cov(to_new), torch.eye(4), atol=0.2)


@pytest.mark.parametrize("channels", [1, 7])
def test_an_impossible_number_of_channels_is_refused(vae, latents, channels):
    with pytest.raises(ValueError, match=f"channels={channels}: .* from 2 to 6"):
        compress_latents(vae, latents, channels)
