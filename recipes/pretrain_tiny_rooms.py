"""Trains the embedded context model `tiny_rooms` from scratch, on videos of the rooms' renderer.

The model continues a recording of a room along a camera trajectory (scene navigation) or to a named object (object
grounding). It has six stages. After an interruption, rerun the same command to resume:

1. `render`    renders navigation and grounding tasks in training rooms;
2. `vae`       trains an `AutoencoderKLWan` on their videos;
3. `compress`  removes redundant latent channels (`tiny_world/latent_subspace.py`);
4. `decoder`   freezes the encoder and trains the decoder to give sharper pictures;
5. `denoiser`  trains all weights of the `WanTransformer3DModel` with context, cameras and text, by flow matching on
               the video's frames, with the same conditioning as `ContextSFTTrainer`;
6. `export`    writes a diffusers pipeline folder in fp16, with `context_modules.safetensors`.

Source: Video4Spatial (arXiv 2512.03040), which fine-tunes a pretrained video model and has no public code. Simplified:
without a pretrained model, video, context and tasks are learned at the same time; a word-level tokenizer, 17 frames of
32x48 pixels, 8 context frames. Ours: in some examples the network also receives the cameras of the context
(`context_camera_share`), so that it learns the meaning of the trajectory's cameras sooner. It is sampled without them.
In addition, some training videos do not follow their instruction (`obey_share`), as in `pretrain_tiny.py`, to leave
alignment something to improve.

    python recipes/pretrain_tiny_rooms.py --config recipes/configs/pretrain_tiny_rooms.yaml
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline
from safetensors.torch import load_file
from tqdm import tqdm

from spatialalign_trl.arguments.parsing import parse_recipe
from spatialalign_trl.models.context import context_positions
from spatialalign_trl.models.context_rows import CAMERAS, CONTEXT_CAMERAS, LATENTS, POSITIONS, SIGMA
from spatialalign_trl.models.encoding import Conditioning, batch_to_pixels
from spatialalign_trl.models.ranges import COUNT, FINITE, SHARE, Range
from spatialalign_trl.models.wan_context import WanContextVideoModel
from spatialalign_trl.tiny_world.networks import (
    MAX_TOKENS,
    embed,
    export_pipeline,
    new_denoiser,
    new_text_encoder,
    new_tokenizer,
)
from spatialalign_trl.tiny_world.rooms.examples import (
    ExampleSettings,
    load_examples,
    load_videos,
    mirrored,
    render_examples,
    room_phrases,
)
from spatialalign_trl.tiny_world.rooms.layout import SPLIT_SEEDS
from spatialalign_trl.tiny_world.training_loop import TrainingLoop, run_stages, write_tensors
from spatialalign_trl.tiny_world.vae_training import VAEArguments, compress, train_decoder, train_vae
from spatialalign_trl.trainer.flow_matching import shift_sigma

SIZE, NUM_FRAMES, FPS = (32, 48), 17, 8
FRAMES_PER_LATENT = 4  # temporal compression of the VAE
DEFAULT_CONFIG = Path(__file__).parent / "configs" / "pretrain_tiny_rooms.yaml"
IDLE = {
    "still": np.zeros(NUM_FRAMES, int),
    "stopped": np.minimum(np.arange(NUM_FRAMES), NUM_FRAMES // 2),
}
"""Kind of disobedience -> frames of the correct video that are shown instead."""
STAGES = ("render", "vae", "compress", "decoder", "denoiser", "export")


@dataclass
class PretrainTinyRoomsArguments(VAEArguments):
    """Arguments of this recipe."""

    output_dir: str = field(
        default="runs/pretrain_tiny_rooms",
        metadata={"help": "Folder for examples, checkpoints and the exported pipeline."},
    )
    stages: list[str] = field(
        default_factory=lambda: list(STAGES), metadata={"help": f"Stages to run: some of {', '.join(STAGES)}."}
    )
    threads: Annotated[int, Range(at_least=1, at_most=4096)] = field(
        default=1, metadata={"help": "Number of CPU threads."}
    )
    style: str = field(
        default="indoor",
        metadata={"help": "Style of the rooms: flat (made for frames of this size) or indoor (textured)."},
    )
    rooms: Annotated[int, COUNT] = field(default=500, metadata={"help": "Number of training rooms."})
    vae_rooms: Annotated[int, COUNT] = field(
        default=10**6, metadata={"help": "Number of training rooms whose videos the VAE is trained on, at most rooms."}
    )
    held_out_rooms: Annotated[int, Range(at_least=0)] = field(
        default=0, metadata={"help": "Number of validation rooms on which the stages are measured."}
    )
    variants: Annotated[int, COUNT] = field(
        default=4, metadata={"help": "Examples of each task in each room. Mirroring doubles their number."}
    )
    context_frames: Annotated[int, COUNT] = field(default=8, metadata={"help": "Context frames that the model sees."})
    layers: Annotated[int, COUNT] = field(default=5, metadata={"help": "Blocks of the transformer."})
    denoiser_steps: Annotated[int, Range(at_least=0)] = field(
        default=6000, metadata={"help": "Steps of the flow-matching stage."}
    )
    denoiser_batch_size: Annotated[int, COUNT] = field(default=32, metadata={"help": "Examples per step."})
    denoiser_learning_rate: Annotated[float, Range(above=0)] = field(
        default=2e-3, metadata={"help": "Peak learning rate; decays to 0 on a cosine."}
    )
    compile_blocks: bool = field(
        default=False,
        metadata={"help": "Compile the blocks. A fifth faster, but needs a C++ compiler."},
    )
    context_dropout: Annotated[float, SHARE] = field(
        default=0.1,
        metadata={"help": "Share of examples without instruction and context, for guidance on both together."},
    )
    instruction_dropout: Annotated[float, SHARE] = field(
        default=0.05,
        metadata={"help": "Share of examples without instruction only, for guidance on the instruction alone."},
    )
    context_camera_share: Annotated[float, SHARE] = field(
        default=0.5,
        metadata={"help": "Share of navigation examples in which the network receives the cameras of the context."},
    )
    obey_share: Annotated[float, SHARE] = field(
        default=0.5,
        metadata={
            "help": "Share of the training videos that follow their instruction. In the others the camera does not "
            "move or, in half of those for grounding, stops half-way. 1 gives a model that alignment can improve less."
        },
    )
    obeyed_steps: Annotated[int, Range(at_least=0)] = field(
        default=0,
        metadata={
            "help": "Steps of the denoiser in which all videos follow their instruction, before obey_share applies."
        },
    )
    flow_shift: Annotated[float, Range(above=0)] = field(
        default=3.0, metadata={"help": "Flow shift k: sigma = k u / (1 + (k - 1) u)."}
    )
    guidance_scale: Annotated[float, FINITE] = field(
        default=1.5, metadata={"help": "Guidance scale of the exported sampling settings."}
    )


# Clips for the VAE


class Clips:
    """Draws batches of the examples' videos for the VAE, half of them mirrored."""

    def __init__(self, folder: Path, rooms: int) -> None:
        self.videos = load_videos(folder, rooms)

    def __call__(self, rng: np.random.Generator, size: int, frames: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw a batch, see `ClipBatch`. All pixels have the same weight."""
        number = {1: 4 * size, NUM_FRAMES: size}.get(frames, 2 * size)
        rows = rng.integers(len(self.videos), size=number)
        starts = rng.integers(NUM_FRAMES - frames + 1, size=number)
        clips = np.stack([self.videos[row, start : start + frames] for row, start in zip(rows, starts, strict=True)])
        flipped = rng.random(number) < 0.5
        clips[flipped] = clips[flipped][:, :, :, ::-1]
        pixels = batch_to_pixels(clips)
        return pixels, torch.ones_like(pixels[:, :1])


# The denoiser


def encoded_examples(args: PretrainTinyRoomsArguments, out: Path) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Return latents and conditioning of all examples and their mirror images, and the prompts; encode them once."""
    examples = []
    for example in load_examples(out / "examples"):
        examples += [example, mirrored(example)]
    file = out / "latents.safetensors"
    if not file.exists():
        vae = AutoencoderKLWan.from_pretrained(out / "vae_compressed")
        videos, contexts = [], []
        idle: dict[str, list[torch.Tensor]] = {name: [] for name in IDLE}
        with torch.no_grad():
            for start in tqdm(range(0, len(examples), 32), "encoding examples", mininterval=10):
                batch = examples[start : start + 32]
                videos.append(_latents(vae, [example.video for example in batch]))
                for name, frames in IDLE.items():
                    idle[name].append(_latents(vae, [example.video[frames] for example in batch]))
                # Encode each context frame as a video of one frame.
                contexts_as_videos = batch_to_pixels([example.context for example in batch]).transpose(1, 2)
                frames = contexts_as_videos.flatten(0, 1).unsqueeze(2)
                modes = vae.encode(frames).latent_dist.mode().half()[:, :, 0]
                contexts.append(modes.unflatten(0, (len(batch), -1)).transpose(1, 2))
        positions = [context_positions(example.numbers, FRAMES_PER_LATENT) for example in examples]
        tensors = {
            "video": torch.cat(videos),
            **{name: torch.cat(parts) for name, parts in idle.items()},
            LATENTS: torch.cat(contexts),
            POSITIONS: torch.tensor(positions),
            CAMERAS: torch.stack([example.cameras for example in examples]),
            CONTEXT_CAMERAS: torch.stack([example.context_cameras for example in examples]),
        }
        write_tensors(file, tensors)
    data = {name: tensor.float() for name, tensor in load_file(file).items()}
    return data, [example.prompt for example in examples]


def _latents(vae: AutoencoderKLWan, videos: list[np.ndarray]) -> torch.Tensor:
    return vae.encode(batch_to_pixels(videos)).latent_dist.mode().half()


def select_videos(
    args: PretrainTinyRoomsArguments, batch: dict[str, torch.Tensor], generator: torch.Generator, step: int
) -> torch.Tensor:
    """Choose the videos to train on: after `obeyed_steps`, only `obey_share` of them follow their instruction.

    Args:
        args (`PretrainTinyRoomsArguments`):
            `obey_share` and `obeyed_steps` are used.
        batch (`dict[str, torch.Tensor]`):
            Latents `video`, `still` and `stopped`, and the cameras, which are zero for grounding.
        generator (`torch.Generator`):
            Source of all randomness.
        step (`int`):
            Step of the training.

    Returns:
        `torch.Tensor` of shape `(B, C, F, H, W)`: the latents of the chosen videos.
    """
    obey_share = 1.0 if step < args.obeyed_steps else args.obey_share
    draw = torch.rand(len(batch["video"]), generator=generator)
    disobeys = draw > obey_share
    # Only grounding videos stop half-way: they never show the object, while half of a path would be half correct.
    is_grounding = ~batch[CAMERAS].any(-1).any(-1)
    stops = is_grounding & (draw > (1 + obey_share) / 2)
    video = batch["video"].clone()
    video[disobeys], video[stops] = batch["still"][disobeys], batch["stopped"][stops]
    return video


def new_model(args: PretrainTinyRoomsArguments, vae: AutoencoderKLWan) -> WanContextVideoModel:
    """Build the context model with random weights, except for the VAE."""
    tokenizer = new_tokenizer(room_phrases(args.style))
    pipeline = WanPipeline(
        tokenizer=tokenizer,
        text_encoder=new_text_encoder(len(tokenizer)),
        vae=vae,
        transformer=new_denoiser(vae.config.z_dim, args.layers),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=args.flow_shift),
        expand_timesteps=False,
    )
    model = WanContextVideoModel(pipeline, context_frames=args.context_frames)
    model.base_transformer.camera_projection.requires_grad_(True)
    return model


def trained_networks(model: WanContextVideoModel) -> torch.nn.ModuleDict:
    """Return text encoder and transformer of a model, ready for training."""
    networks = {"text_encoder": model.pipeline.text_encoder, "transformer": model.base_transformer}
    return torch.nn.ModuleDict({name: network.train().requires_grad_(True) for name, network in networks.items()})


def denoiser_loop(args: PretrainTinyRoomsArguments, out: Path, networks: torch.nn.ModuleDict) -> TrainingLoop:
    """Build the training loop of the denoiser, which resumes from its checkpoint."""
    path = out / "denoiser.safetensors"
    return TrainingLoop(path, networks, args.denoiser_steps, args.denoiser_learning_rate, args.save_steps)


def train_denoiser(args: PretrainTinyRoomsArguments, out: Path) -> None:
    """Train text encoder and transformer by flow matching."""
    data, prompts = encoded_examples(args, out)
    torch.manual_seed(args.seed)
    model = new_model(args, AutoencoderKLWan.from_pretrained(out / "vae_compressed"))
    networks = trained_networks(model)
    if args.compile_blocks:
        model.base_transformer.compile_repeated_blocks()
    tokens = model.pipeline.tokenizer(
        [*prompts, ""], padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
    )

    def loss_at(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        # The draws depend on seed and step only, so that a resumed run equals an uninterrupted one.
        generator = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        size = args.denoiser_batch_size
        rows = torch.randint(len(prompts), (size,), generator=generator)
        # Stratify the noise levels: one in each of `size` equal parts of [0, 1].
        u = (torch.randperm(size, generator=generator) + torch.rand(size, generator=generator)) / size
        sigma = shift_sigma(u, args.flow_shift)
        batch = {name: tensor[rows] for name, tensor in data.items()}
        clean = select_videos(args, batch, generator, step)
        noise = torch.randn(clean.shape, generator=generator)
        s = sigma.view(-1, 1, 1, 1, 1)
        # The last prompt is the empty one, which replaces dropped instructions.
        texts = torch.cat([rows, torch.tensor([len(prompts)])])
        embeddings = embed(networks["text_encoder"], tokens.input_ids[texts], tokens.attention_mask[texts])
        conditioning = _condition(args, model, batch, embeddings, generator)
        velocity = model.predict((1 - s) * clean + s * noise, sigma, conditioning)
        loss = F.mse_loss(velocity, noise - clean)
        return loss, {"loss": float(loss.detach())}

    denoiser_loop(args, out, networks).run(loss_at)


def _condition(
    args: PretrainTinyRoomsArguments,
    model: WanContextVideoModel,
    batch: dict[str, torch.Tensor],
    embeddings: torch.Tensor,
    generator: torch.Generator,
) -> Conditioning:
    """Build the conditioning of a batch and drop a share of it; the last embedding is that of the empty prompt."""
    size = len(batch[LATENTS])
    # Navigation has cameras and may also show those of the context. Grounding has none.
    is_navigation = batch[CAMERAS].any(-1).any(-1)[:, None, None]
    has_context_cameras = (torch.rand(size, 1, 1, generator=generator) < args.context_camera_share) & is_navigation
    conditioning = {
        "prompt_embeds": embeddings[:-1],
        LATENTS: batch[LATENTS],
        POSITIONS: batch[POSITIONS],
        SIGMA: torch.zeros(batch[POSITIONS].shape),
        CAMERAS: batch[CAMERAS],
        CONTEXT_CAMERAS: batch[CONTEXT_CAMERAS] * has_context_cameras,
    }
    share = torch.rand(size, generator=generator)
    null_context = torch.randn(batch[LATENTS].shape, generator=generator)
    return model.nulled(
        conditioning,
        {"prompt_embeds": embeddings[-1:]},
        null_context,
        instruction=share < args.context_dropout + args.instruction_dropout,
        context=share < args.context_dropout,
    )


def export(args: PretrainTinyRoomsArguments, out: Path) -> None:
    """Write the pipeline folder with the averaged weights of the last checkpoint."""
    model = new_model(args, AutoencoderKLWan.from_pretrained(out / "vae_sharpened"))
    denoiser_loop(args, out, trained_networks(model)).use_average()
    folder = out / "pipeline"
    folder.mkdir(parents=True, exist_ok=True)
    model.save_context_modules(folder)
    del model.base_transformer.camera_projection  # saved separately, because a plain pipeline cannot load it
    export_pipeline(model.pipeline, folder, (NUM_FRAMES, *SIZE), args.guidance_scale, FPS)


def render_all(args: PretrainTinyRoomsArguments, out: Path) -> None:
    """Render the examples of training and held-out rooms, with a progress bar."""
    settings = ExampleSettings(args.style, args.variants, args.context_frames, SIZE, NUM_FRAMES)
    for name, split, rooms in (("held_out", "validation", args.held_out_rooms), ("examples", "train", args.rooms)):
        first = SPLIT_SEEDS[split].start
        with tqdm(total=rooms, desc=f"rendering {name}", unit="room", mininterval=10) as bar:
            for done in render_examples(out / name, range(first, first + rooms), settings, args.threads):
                bar.update(done - bar.n)


def held_out_clips(args: PretrainTinyRoomsArguments, out: Path) -> torch.Tensor | None:
    """Return the videos of held-out rooms as pixels, or `None` without such rooms."""
    return batch_to_pixels(load_videos(out / "held_out")) if args.held_out_rooms else None


def main(args: PretrainTinyRoomsArguments) -> None:
    """Run the stages."""
    torch.set_num_threads(args.threads)
    out = Path(args.output_dir)
    examples = out / "examples"
    stages = {
        "render": lambda: render_all(args, out),
        "vae": lambda: train_vae(args, out, Clips(examples, args.vae_rooms), NUM_FRAMES, held_out_clips(args, out)),
        "compress": lambda: compress(
            args, Clips(examples, args.vae_rooms), NUM_FRAMES, out / "vae", out / "vae_compressed"
        ),
        "decoder": lambda: train_decoder(
            args,
            Clips(examples, args.vae_rooms),
            NUM_FRAMES,
            out / "vae_compressed",
            out / "vae_sharpened",
            held_out_clips(args, out),
        ),
        "denoiser": lambda: train_denoiser(args, out),
        "export": lambda: export(args, out),
    }
    run_stages(args.stages, stages, out)


if __name__ == "__main__":
    main(*parse_recipe((PretrainTinyRoomsArguments,), DEFAULT_CONFIG))
