"""Makes the embedded text-to-video model again, from nothing but the tiny world's renderer.

Five stages, each resumable (rerun the same line after an interruption):

1. `vae`       trains an `AutoencoderKLWan` on rendered clips of the full length that is sampled later;
2. `decoder`   freezes the encoder and sharpens the decoder (the latents stay what they are);
3. `compress`  folds away the latent channels that say what others say (`tiny_world/latent_subspace.py`);
4. `denoiser`  trains the `WanTransformer3DModel` together with a small `UMT5EncoderModel` by flow matching;
5. `export`    writes a diffusers pipeline folder in fp16.

Simplified against a real text-to-video model: word-level tokenizer, 32 tokens, no GAN or perceptual loss, 17 frames
of 32x48 pixels. The clips' captions are only partly true (`tiny_world/clips.py`), so the model obeys partly.

    python recipes/pretrain_tiny.py --config recipes/configs/pretrain_tiny.yaml
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from safetensors.torch import load_file
from tqdm import tqdm
from transformers import UMT5EncoderModel

from spatialalign_trl.arguments.parsing import parse_recipe
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
    output_dir: str = field(default="runs/pretrain_tiny", metadata={"help": "Checkpoints and the exported pipeline."})
    stages: list[str] = field(default_factory=lambda: list(STAGES), metadata={"help": f"Some of {', '.join(STAGES)}."})
    threads: int = field(default=2, metadata={"help": "CPU threads."})
    num_clips: int = field(default=10000, metadata={"help": "Captioned clips that are encoded for the denoiser."})
    denoiser_steps: int = field(default=6500, metadata={"help": "Steps of the flow-matching stage."})
    denoiser_batch_size: int = field(default=64, metadata={"help": "Latents a step."})
    denoiser_learning_rate: float = field(default=2e-3, metadata={"help": "Peak, cosine to 0."})
    caption_drop: float = field(default=0.1, metadata={"help": "Share of empty captions, for guidance."})
    guidance_scale: float = field(
        default=2.5, metadata={"help": "Of the exported sampling settings; more guidance draws more cleanly."}
    )
    flow_shift: float = field(default=3.0, metadata={"help": "k of sigma = k u / (1 + (k - 1) u)."})


# Clips


def clip_batch(rng: np.random.Generator, size: int, frames: int = NUM_FRAMES) -> tuple[torch.Tensor, torch.Tensor]:
    """`(videos (B, 3, F, H, W) in [-1, 1], weights (B, 1, F, H, W))`: a sprite counts five times its background.

    With fewer frames than a clip has, four pieces are cut from each clip, and the batch is larger: they cost less.
    """
    pieces = 1 if frames == NUM_FRAMES else 4
    clips = size if frames == NUM_FRAMES else size * (2 if frames == 1 else 1) // 2
    videos, masks = [], []
    for _ in range(max(clips, 1)):
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
    """All words that prompts of the tiny world are made of."""
    phrases = [*SCENES, *ANIMALS, *ANIMAL_COLORS, *OBJECTS, *VERBS, "a an is then the"]
    shown = (relation for code, relation in RELATIONS.items() if code in "".join(DSR_TYPES))
    return phrases + [text for relation in shown for text in (relation.initial, relation.final)]


def encoded_clips(args: PretrainTinyArguments, out: Path) -> tuple[torch.Tensor, list[str]]:
    """`(latents (N, C, F, H, W) fp32, captions)`; encoded once, then read from disk."""
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
    def __init__(self, vocabulary_size: int, channels: int) -> None:
        super().__init__()
        self.text_encoder, self.transformer = new_text_encoder(vocabulary_size), new_denoiser(channels)

    def forward(self, noisy: torch.Tensor, sigma: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        embeddings = embed(self.text_encoder, ids, mask)
        return self.transformer(noisy, 1000.0 * sigma, embeddings, return_dict=False)[0]


def train_denoiser(args: PretrainTinyArguments, out: Path) -> None:
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
        generator = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        size = args.denoiser_batch_size
        rows = torch.randint(len(captions), (size,), generator=generator)
        texts = torch.where(torch.rand(size, generator=generator) < args.caption_drop, len(captions), rows)
        u = (torch.randperm(size, generator=generator) + torch.rand(size, generator=generator)) / size  # stratified
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
    """Writes the pipeline folder: fp16 weights, tokenizer, scheduler, and the settings it is sampled with."""
    pipeline = WanPipeline(
        tokenizer=new_tokenizer(world_phrases()),
        text_encoder=UMT5EncoderModel.from_pretrained(out / "text_encoder"),
        vae=AutoencoderKLWan.from_pretrained(out / "vae_compressed"),
        transformer=WanTransformer3DModel.from_pretrained(out / "transformer"),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=args.flow_shift),
    )
    export_pipeline(pipeline, out / "pipeline", (NUM_FRAMES, HEIGHT, WIDTH), args.guidance_scale, FPS)


def main(args: PretrainTinyArguments) -> None:
    torch.set_num_threads(args.threads)
    out = Path(args.output_dir)
    runners = {
        "vae": lambda: train_vae(args, out, clip_batch, NUM_FRAMES),
        "decoder": lambda: train_decoder(args, clip_batch, NUM_FRAMES, out / "vae", out / "vae_sharpened"),
        "compress": lambda: compress(args, clip_batch, NUM_FRAMES, out / "vae_sharpened", out / "vae_compressed"),
        "denoiser": lambda: train_denoiser(args, out),
        "export": lambda: export(args, out),
    }
    run_stages(args.stages, runners, out)


if __name__ == "__main__":
    main(*parse_recipe((PretrainTinyArguments,), DEFAULT_CONFIG))
