"""Trains the embedded text-to-video model from scratch, on clips of the tiny world's renderer.

It has five stages. After an interruption, rerun the same command to resume:

1. `vae`       trains an `AutoencoderKLWan` on rendered clips, at the end with all 17 frames;
2. `decoder`   freezes the encoder, and thus the latents, and trains the decoder to give sharper pictures;
3. `compress`  removes redundant latent channels (`tiny_world/latent_subspace.py`);
4. `denoiser`  trains the `WanTransformer3DModel` together with a small `UMT5EncoderModel` by flow matching;
5. `export`    writes a diffusers pipeline folder in fp16.

Compared with a real text-to-video model it is simplified: a word-level tokenizer, 32 tokens, no GAN or perceptual
loss, 17 frames of 32x48 pixels. Only some of the captions are true (`tiny_world/clips.py`), so the model follows only
some of its prompts and leaves alignment something to improve.

    python recipes/pretrain_tiny.py --config recipes/configs/pretrain_tiny.yaml
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from safetensors.torch import load_file
from tqdm import tqdm
from transformers import UMT5EncoderModel

from spatialalign_trl.arguments.parsing import parse_recipe
from spatialalign_trl.models.ranges import COUNT, FINITE, SHARE, Range
from spatialalign_trl.prompts import DSR_TYPES, RELATIONS
from spatialalign_trl.tiny_world.clips import sample_scene
from spatialalign_trl.tiny_world.networks import (
    MAX_TOKENS,
    embed,
    export_pipeline,
    new_denoiser,
    new_text_encoder,
    new_tokenizer,
)
from spatialalign_trl.tiny_world.renderer import FPS, HEIGHT, NUM_FRAMES, WIDTH, foreground, render
from spatialalign_trl.tiny_world.training_loop import TrainingLoop, rng_of, run_stages, write_tensors
from spatialalign_trl.tiny_world.vae_training import VAEArguments, compress, train_decoder, train_vae
from spatialalign_trl.tiny_world.vocabulary import ANIMAL_COLORS, ANIMALS, OBJECTS, SCENES, VERBS
from spatialalign_trl.trainer.flow_matching import shift_sigma

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "pretrain_tiny.yaml"
STAGES = ("vae", "decoder", "compress", "denoiser", "export")


@dataclass
class PretrainTinyArguments(VAEArguments):
    """Arguments of this recipe."""

    output_dir: str = field(
        default="runs/pretrain_tiny", metadata={"help": "Folder for checkpoints and the exported pipeline."}
    )
    stages: list[str] = field(
        default_factory=lambda: list(STAGES), metadata={"help": f"Stages to run: some of {', '.join(STAGES)}."}
    )
    threads: Annotated[int, Range(at_least=1, at_most=4096)] = field(
        default=2, metadata={"help": "Number of CPU threads."}
    )
    num_clips: Annotated[int, COUNT] = field(
        default=10000, metadata={"help": "Captioned clips to encode for the denoiser."}
    )
    denoiser_steps: Annotated[int, Range(at_least=0)] = field(
        default=6500, metadata={"help": "Steps of the flow-matching stage."}
    )
    denoiser_batch_size: Annotated[int, COUNT] = field(default=64, metadata={"help": "Latents per step."})
    denoiser_learning_rate: Annotated[float, Range(above=0)] = field(
        default=2e-3, metadata={"help": "Peak learning rate; decays to 0 on a cosine."}
    )
    caption_drop: Annotated[float, SHARE] = field(
        default=0.1, metadata={"help": "Share of captions replaced by the empty one, which guidance needs."}
    )
    guidance_scale: Annotated[float, FINITE] = field(
        default=2.5,
        metadata={"help": "Guidance scale of the exported sampling settings; larger gives cleaner pictures."},
    )
    flow_shift: Annotated[float, Range(above=0)] = field(
        default=3.0, metadata={"help": "Flow shift k: sigma = k u / (1 + (k - 1) u)."}
    )


# Clips


def clip_batch(rng: np.random.Generator, size: int, frames: int = NUM_FRAMES) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw a batch of clips for the VAE: a `ClipBatch`.

    Args:
        rng (`np.random.Generator`):
            Source of all randomness.
        size (`int`):
            Number of clips in a batch of whole clips. A batch of shorter clips is larger, because they cost less.
        frames (`int`, *optional*, defaults to `17`):
            Frames per clip. With fewer than 17, four pieces are cut from every rendered clip.

    Returns:
        tuple of 2 `torch.Tensor`: videos `(B, 3, F, H, W)` in [-1, 1], and weights `(B, 1, F, H, W)`, 5 on and around
        sprites and 1 elsewhere.
    """
    pieces = 1 if frames == NUM_FRAMES else 4
    num_clips = size if frames == NUM_FRAMES else size * (2 if frames == 1 else 1) // 2
    videos, masks = [], []
    for _ in range(max(num_clips, 1)):
        scene = sample_scene(rng).scene
        video = render(scene).video
        mask = foreground(scene, video)
        for start in rng.integers(NUM_FRAMES - frames + 1, size=pieces):
            videos.append(video[start : start + frames])
            masks.append(mask[start : start + frames])
    pixels = torch.from_numpy(np.stack(videos)).permute(0, 4, 1, 2, 3).float() / 127.5 - 1.0
    weights = 1.0 + 4.0 * torch.from_numpy(np.stack(masks)).float().unsqueeze(1)
    return pixels, F.max_pool3d(weights, (1, 3, 3), stride=1, padding=(0, 1, 1))


# The text encoder and the denoiser


def world_phrases() -> list[str]:
    """Return phrases that contain all words of tiny-world prompts."""
    phrases = [*SCENES, *ANIMALS, *ANIMAL_COLORS, *OBJECTS, *VERBS, "a an is then the"]
    relations = (relation for code, relation in RELATIONS.items() if code in "".join(DSR_TYPES))
    return phrases + [text for relation in relations for text in (relation.initial, relation.final)]


def encoded_clips(args: PretrainTinyArguments, out: Path) -> tuple[torch.Tensor, list[str]]:
    """Return `(latents (N, C, F, H, W) fp32, captions)`. They are encoded once and then read from disk."""
    latents_file, captions_file = out / "clips.safetensors", out / "captions.json"
    if not latents_file.exists():
        vae = AutoencoderKLWan.from_pretrained(out / "vae_compressed")
        rng, latents, captions = rng_of(args.seed, 4), [], []
        for _ in tqdm(range(args.num_clips // 32), "encoding clips", mininterval=10):
            scenes = [sample_scene(rng) for _ in range(32)]
            videos = np.stack([render(drawn.scene).video for drawn in scenes])
            pixels = torch.from_numpy(videos).permute(0, 4, 1, 2, 3).float() / 127.5 - 1.0
            with torch.no_grad():
                latents.append(vae.encode(pixels).latent_dist.mode().half())
            captions += [drawn.caption.prompt for drawn in scenes]
        captions_file.write_text(json.dumps(captions))
        write_tensors(latents_file, {"latents": torch.cat(latents)})
    return load_file(latents_file)["latents"].float(), json.loads(captions_file.read_text())


class TextAndDenoiser(torch.nn.Module):
    """Text encoder and denoiser, which are trained together."""

    def __init__(self, vocabulary_size: int, channels: int) -> None:
        super().__init__()
        self.text_encoder, self.transformer = new_text_encoder(vocabulary_size), new_denoiser(channels)

    def forward(self, noisy: torch.Tensor, sigma: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Predict the velocity of noisy latents from tokenised captions."""
        embeddings = embed(self.text_encoder, ids, mask)
        return self.transformer(noisy, 1000.0 * sigma, embeddings, return_dict=False)[0]


def train_denoiser(args: PretrainTinyArguments, out: Path) -> None:
    """Train text encoder and denoiser by flow matching."""
    # The last caption is the empty one, for the captions that are dropped.
    latents, captions = encoded_clips(args, out)
    tokenizer = new_tokenizer(world_phrases())
    tokens = tokenizer(
        [*captions, ""], padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
    )
    torch.manual_seed(args.seed)
    model = TextAndDenoiser(len(tokenizer), args.latent_channels)
    loop = TrainingLoop(
        out / "denoiser.safetensors", model, args.denoiser_steps, args.denoiser_learning_rate, args.save_steps
    )

    def loss_at(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        # The draws depend on seed and step only, so that a resumed run equals an uninterrupted one.
        generator = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        size = args.denoiser_batch_size
        rows = torch.randint(len(captions), (size,), generator=generator)
        texts = torch.where(torch.rand(size, generator=generator) < args.caption_drop, len(captions), rows)
        # Stratify the noise levels: one in each of `size` equal parts of [0, 1].
        u = (torch.randperm(size, generator=generator) + torch.rand(size, generator=generator)) / size
        sigma = shift_sigma(u, args.flow_shift)
        noise = torch.randn((size, *latents.shape[1:]), generator=generator)
        s = sigma.view(-1, 1, 1, 1, 1)
        clean = latents[rows]
        velocity = model((1 - s) * clean + s * noise, sigma, tokens.input_ids[texts], tokens.attention_mask[texts])
        loss = F.mse_loss(velocity, noise - clean)
        return loss, {"loss": float(loss.detach())}

    loop.run(loss_at)
    model.text_encoder.save_pretrained(out / "text_encoder")
    model.transformer.save_pretrained(out / "transformer")


def export(args: PretrainTinyArguments, out: Path) -> None:
    """Write the pipeline folder: fp16 weights, tokenizer, scheduler and sampling settings."""
    pipeline = WanPipeline(
        tokenizer=new_tokenizer(world_phrases()),
        text_encoder=UMT5EncoderModel.from_pretrained(out / "text_encoder"),
        vae=AutoencoderKLWan.from_pretrained(out / "vae_compressed"),
        transformer=WanTransformer3DModel.from_pretrained(out / "transformer"),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=args.flow_shift),
    )
    export_pipeline(pipeline, out / "pipeline", (NUM_FRAMES, HEIGHT, WIDTH), args.guidance_scale, FPS)


def main(args: PretrainTinyArguments) -> None:
    """Run the stages."""
    torch.set_num_threads(args.threads)
    out = Path(args.output_dir)
    stages = {
        "vae": lambda: train_vae(args, out, clip_batch, NUM_FRAMES),
        "decoder": lambda: train_decoder(args, clip_batch, NUM_FRAMES, out / "vae", out / "vae_sharpened"),
        "compress": lambda: compress(args, clip_batch, NUM_FRAMES, out / "vae_sharpened", out / "vae_compressed"),
        "denoiser": lambda: train_denoiser(args, out),
        "export": lambda: export(args, out),
    }
    run_stages(args.stages, stages, out)


if __name__ == "__main__":
    main(*parse_recipe((PretrainTinyArguments,), DEFAULT_CONFIG))
