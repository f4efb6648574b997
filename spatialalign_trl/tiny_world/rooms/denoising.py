"""What the denoiser of rooms is trained and measured on: videos that obey or not, and a conditioning with gaps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spatialalign_trl.models.context import context_positions
from spatialalign_trl.models.context_rows import CAMERAS, CONTEXT_CAMERAS, LATENTS, POSITIONS, SIGMA
from spatialalign_trl.models.encoding import Conditioning, batch_to_pixels
from spatialalign_trl.models.settings import SamplingSettings
from spatialalign_trl.models.wan_context import WanContextVideoModel
from spatialalign_trl.tiny_world.networks import MAX_TOKENS, embed
from spatialalign_trl.tiny_world.rooms.examples import load_examples
from spatialalign_trl.tiny_world.rooms.latents import IDLE, VIDEO
from spatialalign_trl.tiny_world.training_loop import Hardware

_STEPS = 10
"""Euler steps of a measured sample."""


@dataclass(frozen=True)
class Dropout:
    """Shares of the examples, in [0, 1], in which the network does not see something.

    Attributes:
        everything (`float`):
            Neither instruction nor context, for guidance on both together.
        instruction (`float`):
            No instruction, for guidance on the instruction alone.
        context_cameras (`float`):
            Share in which the cameras of the context *are* seen, if the context is.
    """

    everything: float
    instruction: float
    context_cameras: float


def select_videos(batch: dict[str, torch.Tensor], obey_share: float, generator: torch.Generator) -> torch.Tensor:
    """Choose the videos to train on: a share of them follows its instruction, the others are of an idle camera.

    Args:
        batch (`dict[str, torch.Tensor]`):
            Latents `video` and, if some disobey, `idle`.
        obey_share (`float`):
            Share of the videos, in [0, 1], that follow their instruction.
        generator (`torch.Generator`):
            Source of all randomness.

    Returns:
        `torch.Tensor` of shape `(B, C, F, H, W)`: the latents of the chosen videos.
    """
    draw = torch.rand(len(batch[VIDEO]), generator=generator)
    if obey_share == 1:
        return batch[VIDEO]
    disobeys = (draw > obey_share).to(batch[VIDEO].device).view(-1, 1, 1, 1, 1)
    return torch.where(disobeys, batch[IDLE], batch[VIDEO])


def tokenized(model: WanContextVideoModel, prompts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids and attention mask of prompts, `(prompts, MAX_TOKENS)` each."""
    tokens = model.pipeline.tokenizer(
        list(prompts), padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
    )
    return tokens.input_ids, tokens.attention_mask


def drop_conditioning(
    model: WanContextVideoModel,
    batch: dict[str, torch.Tensor],
    embeddings: torch.Tensor,
    dropout: Dropout,
    generator: torch.Generator,
) -> Conditioning:
    """
    Build the conditioning of a batch and drop a share of it.

    Args:
        model ([`WanContextVideoModel`]):
            The model.
        batch (`dict[str, torch.Tensor]`):
            Latents, positions and cameras of the context, and cameras of the video (zero for grounding).
        embeddings (`torch.Tensor` of shape `(B + 1, tokens, dim)`):
            Embeddings of the prompts, and of the empty prompt at the end.
        dropout ([`Dropout`]):
            Shares to drop.
        generator (`torch.Generator`):
            Source of all randomness.

    Returns:
        `dict[str, torch.Tensor]`: what [`WanContextVideoModel.predict`] takes.
    """
    context, device = batch[LATENTS], batch[LATENTS].device
    size = len(context)
    sees_cameras = torch.rand(size, 1, 1, generator=generator) < dropout.context_cameras
    conditioning = {
        "prompt_embeds": embeddings[:-1],
        LATENTS: context,
        POSITIONS: batch[POSITIONS],
        SIGMA: torch.zeros(batch[POSITIONS].shape, device=device),
        CAMERAS: batch[CAMERAS],
        CONTEXT_CAMERAS: batch[CONTEXT_CAMERAS] * sees_cameras.to(device),
    }
    share = torch.rand(size, generator=generator)
    null_context = torch.randn(context.shape, generator=generator)
    return model.nulled(
        conditioning,
        {"prompt_embeds": embeddings[-1:]},
        null_context,
        instruction=share < dropout.everything + dropout.instruction,
        context=share < dropout.everything,
    )


class HeldOut:
    """Navigation tasks in held-out rooms, on which a denoiser is measured.

    Args:
        model ([`WanContextVideoModel`]):
            Its VAE encodes the context.
        folder (`Path`):
            Folder with examples.
        number (`int`):
            Number of tasks, at most.
    """

    def __init__(self, model: WanContextVideoModel, folder: Path, number: int) -> None:
        examples = [example for example in load_examples(folder) if example.cameras.any()][:number]
        vae, stride = model.pipeline.vae, (examples[0].video.shape[0] - 1)
        self.pixels = batch_to_pixels([example.video for example in examples])
        parts = self.pixels.split(16)
        with torch.no_grad():
            contexts = [
                vae.encode(batch_to_pixels(example.context[:, None]).to(vae.device)).latent_dist.mode()[:, :, 0]
                for example in examples
            ]
            self.latents = torch.cat([vae.encode(part.to(vae.device)).latent_dist.mode() for part in parts])
        stride //= self.latents.shape[2] - 1
        self.conditioning = {
            LATENTS: torch.stack(contexts).transpose(1, 2),
            POSITIONS: torch.tensor([context_positions(e.numbers, stride) for e in examples], device=vae.device),
            CAMERAS: torch.stack([example.cameras for example in examples]).to(vae.device),
            CONTEXT_CAMERAS: torch.stack([example.context_cameras for example in examples]).to(vae.device),
        }
        self.conditioning[SIGMA] = torch.zeros_like(self.conditioning[POSITIONS])
        self.tokens = tokenized(model, [*(example.prompt for example in examples), ""])
        self.context_pixels = np.stack([example.context for example in examples])

    def baselines(self, model: WanContextVideoModel) -> dict[str, float]:
        """Return the PSNR in dB of a still camera, of the context's mean colour, and of the truth through the VAE."""
        still = self.pixels[:, :, :1].expand_as(self.pixels)
        mean = torch.from_numpy(self.context_pixels.mean((1, 2, 3)) / 127.5 - 1).float()
        return {
            "still_camera": _psnr(still, self.pixels)[0],
            "mean_colour": _psnr(mean[:, :, None, None, None].expand_as(self.pixels), self.pixels)[0],
            "through_vae": _psnr(self._decode(model, self.latents), self.pixels)[0],
        }

    def measure(self, model: WanContextVideoModel, hardware: Hardware, batch_size: int) -> dict[str, Any]:
        """
        Sample all tasks without guidance and compare with the right answers.

        Args:
            model ([`WanContextVideoModel`]):
                The model.
            hardware ([`Hardware`]):
                Type to compute in.
            batch_size (`int`):
                Videos per batch.

        Returns:
            `dict`: PSNR in dB, the mean over videos, then the same by latent frame, with the cameras of the context
            (`told`), without them (`untold`), and with neither context nor instruction (`no_context`).
        """
        measured: dict[str, Any] = {}
        for name in ("told", "untold", "no_context"):
            videos = []
            for rows in torch.arange(len(self.pixels)).split(batch_size):
                latents = self._sample(model, hardware, rows, name)
                videos.append(self._decode(model, latents))
            measured[f"psnr_{name}"], *measured[f"psnr_{name}_by_frame"] = _psnr(torch.cat(videos), self.pixels)
        return measured | self.baselines(model)

    def _sample(self, model: WanContextVideoModel, hardware: Hardware, rows: torch.Tensor, name: str) -> torch.Tensor:
        conditioning = {key: tensor[rows.to(tensor.device)] for key, tensor in self.conditioning.items()}
        texts = torch.cat([rows, torch.tensor([len(self.pixels)])])
        with torch.no_grad(), hardware.autocast():
            ids, mask = (part[texts].to(hardware.device) for part in self.tokens)
            embeddings = embed(model.pipeline.text_encoder, ids, mask).float()
            conditioning["prompt_embeds"] = embeddings[:-1]
            if name != "told":
                conditioning[CONTEXT_CAMERAS] = torch.zeros_like(conditioning[CONTEXT_CAMERAS])
            if name == "no_context":
                every = torch.ones(len(rows), dtype=torch.bool)
                generator = torch.Generator().manual_seed(int(rows[0]))
                noise = torch.randn(conditioning[LATENTS].shape, generator=generator)
                null = {"prompt_embeds": embeddings[-1:]}
                conditioning = model.nulled(conditioning, null, noise, instruction=every, context=every)
            frames, height, width = self.pixels.shape[2:]
            settings = SamplingSettings(frames, height, width, num_inference_steps=_STEPS, guidance_scale=1.0)
            return model.sample(conditioning, None, rows.tolist(), settings)

    @staticmethod
    def _decode(model: WanContextVideoModel, latents: torch.Tensor) -> torch.Tensor:
        vae = model.pipeline.vae
        with torch.no_grad():
            parts = [vae.decode(part.to(vae.device)).sample.cpu() for part in latents.split(16)]
        return torch.cat(parts).clamp(-1, 1)


def _psnr(videos: torch.Tensor, truths: torch.Tensor) -> list[float]:
    """Return the mean PSNR in dB of videos in [-1, 1], then those of the first frame and of four frames each."""
    errors = (videos - truths).square().mean((1, 3, 4))
    groups = [errors, errors[:, :1], *errors[:, 1:].split(4, dim=1)]
    return [round(float(10 * torch.log10(4.0 / group.mean(1).clamp_min(1e-10)).mean()), 2) for group in groups]
