"""Makes the embedded context model `tiny_rooms` again, from nothing but the renderer of the rooms.

It continues a recording of a room: along a camera trajectory (scene navigation), or to a named object (object
grounding). Six stages, each resumable (rerun the same line after an interruption):

1. `render`    renders tasks in training rooms, both kinds alike;
2. `vae`       trains an `AutoencoderKLWan` on their videos;
3. `compress`  folds away the latent channels that say what others say (`tiny_world/latent_subspace.py`);
4. `decoder`   freezes the encoder and sharpens the decoder;
5. `denoiser`  trains the `WanTransformer3DModel` with context, cameras and text, in full, by flow matching on the
               video's frames, with the same conditioning as `ContextSFTTrainer`;
6. `export`    writes a diffusers pipeline folder in fp16, with `context_modules.safetensors`.

Source: Video4Spatial (arXiv 2512.03040), which trains a pretrained video model and has no public code. Simplified:
there is no pretrained model, so that video, context and tasks are learned at once; word-level tokenizer, 17 frames of
32x48 pixels, 8 context frames. Ours: in some of the examples the network is told the cameras of the context
(`context_camera_share`), which teaches it sooner what the trajectory's cameras mean; it is sampled without them. And
not every instruction is obeyed (`obey_share`), as not every caption of `pretrain_tiny.py` is, so that alignment has
something to do.

    python recipes/pretrain_tiny_rooms.py --config recipes/configs/pretrain_tiny_rooms.yaml
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

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
from spatialalign_trl.models.wan_context import WanContextVideoModel
from spatialalign_trl.tiny_world.networks import (
    MAX_TOKENS,
    embed,
    export_pipeline,
    new_denoiser,
    new_text_encoder,
    new_tokenizer,
)
from spatialalign_trl.tiny_world.rooms.examples import load_examples, mirrored, render_examples, room_phrases
from spatialalign_trl.tiny_world.training_loop import TrainingLoop, run_stages, write_tensors
from spatialalign_trl.tiny_world.vae_training import VAEArguments, compress, train_decoder, train_vae
from spatialalign_trl.trainer.flow_matching import shift_sigma

SIZE, NUM_FRAMES, FPS = (32, 48), 17, 8
FRAMES_PER_LATENT = 4
DEFAULT_CONFIG = Path(__file__).parent / "configs" / "pretrain_tiny_rooms.yaml"
IDLE = {
    "still": np.zeros(NUM_FRAMES, int),
    "stopped": np.minimum(np.arange(NUM_FRAMES), NUM_FRAMES // 2),
}
"""How a camera disobeys: the frames of the right video that are shown."""
STAGES = ("render", "vae", "compress", "decoder", "denoiser", "export")


@dataclass
class PretrainTinyRoomsArguments(VAEArguments):
    output_dir: str = field(
        default="runs/pretrain_tiny_rooms", metadata={"help": "Examples, checkpoints, the exported pipeline."}
    )
    stages: list[str] = field(default_factory=lambda: list(STAGES), metadata={"help": f"Some of {', '.join(STAGES)}."})
    threads: int = field(default=1, metadata={"help": "CPU threads."})
    rooms: int = field(default=500, metadata={"help": "Training rooms."})
    variants: int = field(default=4, metadata={"help": "Examples of each task in each room; mirrored, twice as many."})
    context_frames: int = field(default=8, metadata={"help": "Context frames that the model sees."})
    layers: int = field(default=5, metadata={"help": "Blocks of the transformer."})
    denoiser_steps: int = field(default=6000, metadata={"help": "Steps of the flow-matching stage."})
    denoiser_batch_size: int = field(default=32, metadata={"help": "Examples a step."})
    denoiser_learning_rate: float = field(default=2e-3, metadata={"help": "Peak, cosine to 0."})
    compile_blocks: bool = field(
        default=False,
        metadata={"help": "Compile the blocks: a fifth faster; needs a C++ compiler."},
    )
    context_dropout: float = field(
        default=0.1, metadata={"help": "Share without instruction and without context: the null of joint guidance."}
    )
    instruction_dropout: float = field(
        default=0.05, metadata={"help": "Share without instruction: the null of guidance on the instruction alone."}
    )
    context_camera_share: float = field(
        default=0.5, metadata={"help": "Share in which the network is told the cameras of the context."}
    )
    obey_share: float = field(
        default=0.5,
        metadata={
            "help": "Share of the instructions that training videos obey; in the others the camera stays where it is, "
            "or, in half of the searches, stops half-way. 1: a model that leaves alignment less to do."
        },
    )
    obeyed_steps: int = field(
        default=0, metadata={"help": "Steps of the denoiser before obey_share holds, in which all are obeyed."}
    )
    flow_shift: float = field(default=3.0, metadata={"help": "k of sigma = k u / (1 + (k - 1) u)."})
    guidance_scale: float = field(default=1.5, metadata={"help": "Of the exported sampling settings."})


# Clips of the VAE


class Clips:
    """The examples' videos as the VAE's training wants them, half of them mirrored."""

    def __init__(self, folder: Path) -> None:
        examples = load_examples(folder)
        if not examples:
            raise FileNotFoundError(f"{folder} holds no examples; run the stage render first")
        self.videos = np.stack([example.video for example in examples])

    def __call__(self, rng: np.random.Generator, size: int, frames: int) -> tuple[torch.Tensor, torch.Tensor]:
        """See `ClipBatch`; all pixels count alike."""
        number = {1: 4 * size, NUM_FRAMES: size}.get(frames, 2 * size)
        rows = rng.integers(len(self.videos), size=number)
        starts = rng.integers(NUM_FRAMES - frames + 1, size=number)
        drawn = np.stack([self.videos[row, at : at + frames] for row, at in zip(rows, starts, strict=True)])
        flipped = rng.random(number) < 0.5
        drawn[flipped] = drawn[flipped][:, :, :, ::-1]
        pixels = batch_to_pixels(drawn)
        return pixels, torch.ones_like(pixels[:, :1])


# The denoiser


def encoded_examples(args: PretrainTinyRoomsArguments, out: Path) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Latents and conditioning of all examples and their mirror images, and the prompts; encoded once, then read."""
    examples = [turned for one in load_examples(out / "examples") for turned in (one, mirrored(one))]
    file = out / "latents.safetensors"
    if not file.exists():
        vae = AutoencoderKLWan.from_pretrained(out / "vae_compressed")
        videos, contexts = [], []
        idle: dict[str, list[torch.Tensor]] = {name: [] for name in IDLE}
        with torch.no_grad():
            for start in tqdm(range(0, len(examples), 32), "encoding examples", mininterval=10):
                batch = examples[start : start + 32]
                videos.append(_latents(vae, [one.video for one in batch]))
                for name, frames in IDLE.items():
                    idle[name].append(_latents(vae, [one.video[frames] for one in batch]))
                # each context frame is a video of one frame
                frames = batch_to_pixels([one.context for one in batch]).transpose(1, 2).flatten(0, 1).unsqueeze(2)
                modes = vae.encode(frames).latent_dist.mode().half()[:, :, 0]
                contexts.append(modes.unflatten(0, (len(batch), -1)).transpose(1, 2))
        places = [context_positions(one.numbers, FRAMES_PER_LATENT) for one in examples]
        tensors = {
            "video": torch.cat(videos),
            **{name: torch.cat(parts) for name, parts in idle.items()},
            LATENTS: torch.cat(contexts),
            POSITIONS: torch.tensor(places),
            CAMERAS: torch.stack([one.cameras for one in examples]),
            CONTEXT_CAMERAS: torch.stack([one.context_cameras for one in examples]),
        }
        write_tensors(file, tensors)
    return {name: tensor.float() for name, tensor in load_file(file).items()}, [one.prompt for one in examples]


def _latents(vae: AutoencoderKLWan, videos: list[np.ndarray]) -> torch.Tensor:
    return vae.encode(batch_to_pixels(videos)).latent_dist.mode().half()


def shown(
    args: PretrainTinyRoomsArguments, batch: dict[str, torch.Tensor], generator: torch.Generator, step: int
) -> torch.Tensor:
    """The latents that are shown under a batch's instructions: from a step on not all are obeyed (`obey_share`)."""
    obeyed = 1.0 if step < args.obeyed_steps else args.obey_share
    draw = torch.rand(len(batch["video"]), generator=generator)
    disobeys = draw > obeyed
    search = ~batch[CAMERAS].any(-1).any(-1)
    stops = search & (draw > (1 + obeyed) / 2)  # half of a path is half right, half of a search finds nothing
    video = batch["video"].clone()
    video[disobeys], video[stops] = batch["still"][disobeys], batch["stopped"][stops]
    return video


def new_model(args: PretrainTinyRoomsArguments, vae: AutoencoderKLWan) -> WanContextVideoModel:
    """The pipeline with fresh networks, and what a context adds to it."""
    tokenizer = new_tokenizer(room_phrases())
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
    networks = {"text_encoder": model.pipeline.text_encoder, "transformer": model.base_transformer}
    return torch.nn.ModuleDict({name: network.train().requires_grad_(True) for name, network in networks.items()})


def denoiser_loop(args: PretrainTinyRoomsArguments, out: Path, networks: torch.nn.ModuleDict) -> TrainingLoop:
    path = out / "denoiser.safetensors"
    return TrainingLoop(path, networks, args.denoiser_steps, args.denoiser_learning_rate, args.save_steps)


def train_denoiser(args: PretrainTinyRoomsArguments, out: Path) -> None:
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
        generator = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        size = args.denoiser_batch_size
        rows = torch.randint(len(prompts), (size,), generator=generator)
        u = (torch.randperm(size, generator=generator) + torch.rand(size, generator=generator)) / size  # stratified
        sigma = shift_sigma(u, args.flow_shift)
        batch = {name: tensor[rows] for name, tensor in data.items()}
        clean = shown(args, batch, generator, step)
        noise = torch.randn(clean.shape, generator=generator)
        s = sigma.view(-1, 1, 1, 1, 1)
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
    """The conditioning of a batch, some of it null; the last of the embeddings is the null prompt's."""
    size = len(batch[LATENTS])
    told = (torch.rand(size, 1, 1, generator=generator) < args.context_camera_share) & batch[CAMERAS].any(-1).any(-1)[
        :, None, None
    ]
    conditioning = {
        "prompt_embeds": embeddings[:-1],
        LATENTS: batch[LATENTS],
        POSITIONS: batch[POSITIONS],
        SIGMA: torch.zeros(batch[POSITIONS].shape),
        CAMERAS: batch[CAMERAS],
        CONTEXT_CAMERAS: batch[CONTEXT_CAMERAS] * told,
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
    """Writes the pipeline folder, with the averaged weights of the last checkpoint."""
    model = new_model(args, AutoencoderKLWan.from_pretrained(out / "vae_sharpened"))
    denoiser_loop(args, out, trained_networks(model)).use_average()
    folder = out / "pipeline"
    folder.mkdir(parents=True, exist_ok=True)
    model.save_context_modules(folder)
    del model.base_transformer.camera_projection  # it has a file of its own, which no plain pipeline looks for
    export_pipeline(model.pipeline, folder, (NUM_FRAMES, *SIZE), args.guidance_scale, FPS)


def render_all(args: PretrainTinyRoomsArguments, out: Path) -> None:
    with tqdm(total=args.rooms, desc="rendering", unit="room") as bar:
        for done in render_examples(
            out / "examples", args.rooms, args.variants, args.context_frames, SIZE, NUM_FRAMES
        ):
            bar.update(done - bar.n)


def main(args: PretrainTinyRoomsArguments) -> None:
    torch.set_num_threads(args.threads)
    out = Path(args.output_dir)
    examples = out / "examples"
    runners = {
        "render": lambda: render_all(args, out),
        "vae": lambda: train_vae(args, out, Clips(examples), NUM_FRAMES),
        "compress": lambda: compress(args, Clips(examples), NUM_FRAMES, out / "vae", out / "vae_compressed"),
        "decoder": lambda: train_decoder(
            args, Clips(examples), NUM_FRAMES, out / "vae_compressed", out / "vae_sharpened"
        ),
        "denoiser": lambda: train_denoiser(args, out),
        "export": lambda: export(args, out),
    }
    run_stages(args.stages, runners, out)


if __name__ == "__main__":
    main(*parse_recipe((PretrainTinyRoomsArguments,), DEFAULT_CONFIG))
