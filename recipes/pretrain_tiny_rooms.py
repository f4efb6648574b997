"""Trains the embedded context model `tiny_rooms` from scratch, on videos of the rooms' renderer.

The model continues a recording of a room along a camera trajectory (scene navigation) or to a named object (object
grounding). It has six stages. After an interruption, rerun the same command to resume:

1. `render`    renders navigation and grounding tasks in training rooms;
2. `vae`       trains an `AutoencoderKLWan` on their videos;
3. `compress`  whitens the latents and removes redundant channels (`tiny_world/latent_subspace.py`);
4. `decoder`   freezes the encoder and trains the decoder to give sharper pictures;
5. `denoiser`  encodes the examples and their mirror images, and trains all weights of the `WanTransformer3DModel`
               with context, cameras and text, by flow matching on the video's frames, with the same conditioning as
               `ContextSFTTrainer`;
6. `export`    writes a diffusers pipeline folder in fp16, with `context_modules.safetensors`.

With `held_out_rooms`, the stages `vae`, `decoder` and `denoiser` measure the averaged weights on rooms of the
validation split and append the numbers to `vae.jsonl`, `decoder.jsonl` and `denoiser.jsonl`.

Source: Video4Spatial (arXiv 2512.03040), which fine-tunes a pretrained video model and has no public code. Simplified:
without a pretrained model, video, context and tasks are learned at the same time; a word-level tokenizer, 17 frames of
32x48 pixels, 8 context frames. Ours: in some examples the network also receives the cameras of the context
(`context_camera_share`), so that it learns the meaning of the trajectory's cameras sooner. It can be sampled with and
without them.
In addition, some training videos do not follow their instruction (`obey_share`), as in `pretrain_tiny.py`, to leave
alignment something to improve.

    python recipes/pretrain_tiny_rooms.py --config recipes/configs/pretrain_tiny_rooms.yaml
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline
from tqdm import tqdm

from spatialalign_trl.arguments.parsing import parse_recipe
from spatialalign_trl.models.encoding import batch_to_pixels
from spatialalign_trl.models.ranges import COUNT, FINITE, SHARE, Range
from spatialalign_trl.models.wan_context import WanContextVideoModel
from spatialalign_trl.tiny_world.networks import (
    embed,
    export_pipeline,
    new_denoiser,
    new_text_encoder,
    new_tokenizer,
)
from spatialalign_trl.tiny_world.rooms.denoising import (
    Dropout,
    HeldOut,
    drop_conditioning,
    select_videos,
    tokenized,
)
from spatialalign_trl.tiny_world.rooms.examples import (
    ExampleSettings,
    load_videos,
    render_examples,
    room_phrases,
)
from spatialalign_trl.tiny_world.rooms.latents import IDLE, encode_examples, encode_idle, load_latents
from spatialalign_trl.tiny_world.rooms.layout import SPLIT_SEEDS
from spatialalign_trl.tiny_world.training_loop import Hardware, TrainingLoop, run_stages
from spatialalign_trl.tiny_world.vae_training import VAEArguments, compress, train_decoder, train_vae
from spatialalign_trl.trainer.flow_matching import shift_sigma

SIZE, NUM_FRAMES, FPS = (32, 48), 17, 8
FRAMES_PER_LATENT = 4  # temporal compression of the VAE
DEFAULT_CONFIG = Path(__file__).parent / "configs" / "pretrain_tiny_rooms.yaml"
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
    width: Annotated[int, COUNT] = field(default=128, metadata={"help": "Size of a token of the transformer."})
    head_size: Annotated[int, COUNT] = field(default=32, metadata={"help": "Size of a head of the attention."})
    rays: str = field(
        default="pluecker",
        metadata={"help": "How the network sees cameras: pluecker, or fourier (with Fourier features)."},
    )
    device: str = field(default="cpu", metadata={"help": "Device of all stages but render: auto, cpu or cuda."})
    precision: str = field(
        default="fp32",
        metadata={"help": "fp32, bf16, or auto: bf16 on GPUs and on CPUs that compute in it (AMX, AVX512-BF16)."},
    )
    attention_backend: str | None = field(
        default=None,
        metadata={
            "help": "Attention backend of diffusers, such as _native_math: plain products, which on CPUs with AMX are "
            "faster than the fused kernel."
        },
    )
    denoiser_steps: Annotated[int, Range(at_least=0)] = field(
        default=6000, metadata={"help": "Steps of the flow-matching stage."}
    )
    denoiser_batch_size: Annotated[int, COUNT] = field(default=32, metadata={"help": "Examples per step."})
    denoiser_learning_rate: Annotated[float, Range(above=0)] = field(
        default=2e-3, metadata={"help": "Peak learning rate; decays to 0 on a cosine."}
    )
    denoiser_flat_share: Annotated[float, SHARE] = field(
        default=0.0, metadata={"help": "Share of the steps after which the learning rate begins to decay."}
    )
    denoiser_eval_steps: Annotated[int, COUNT] = field(
        default=1000, metadata={"help": "Steps between measurements on held-out rooms, if there are any."}
    )
    held_out_videos: Annotated[int, COUNT] = field(
        default=32, metadata={"help": "Navigation tasks in held-out rooms to measure the denoiser on."}
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
        metadata={"help": "Share of the examples in which the network receives the cameras of the context."},
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

    @property
    def disobeys(self) -> bool:
        """Whether some videos do not follow their instruction."""
        return self.obey_share < 1 and self.obeyed_steps < self.denoiser_steps

    @property
    def dropout(self) -> Dropout:
        """Shares of the examples in which the network does not see something."""
        return Dropout(self.context_dropout, self.instruction_dropout, self.context_camera_share)


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


def encode(args: PretrainTinyRoomsArguments, out: Path, hardware: Hardware) -> None:
    """Encode the examples and, if some videos disobey, what an idle camera shows."""
    vae = AutoencoderKLWan.from_pretrained(out / "vae_compressed").to(hardware.device).eval()
    work = {"latents": encode_examples(out / "examples", out / "latents", vae, FRAMES_PER_LATENT)}
    if args.disobeys:
        work["idle_latents"] = encode_idle(out / "examples", out / "idle_latents", vae)
    for name, files in work.items():
        for _ in tqdm(files, f"encoding {name}", unit="file", mininterval=10):
            pass


def train_denoiser(args: PretrainTinyRoomsArguments, out: Path, hardware: Hardware) -> None:
    """Encode the examples, then train text encoder and transformer by flow matching."""
    # 1. Load the latents. The last prompt is the empty one, which replaces dropped instructions.
    encode(args, out, hardware)
    data, prompts = load_latents(out / "latents")
    if args.disobeys:
        data[IDLE] = load_latents(out / "idle_latents")[0][IDLE]
    data = {name: tensor.to(hardware.device) for name, tensor in data.items()}

    # 2. Build the networks, and continue from the checkpoint.
    torch.manual_seed(args.seed)
    model = new_model(args, AutoencoderKLWan.from_pretrained(out / "vae_sharpened"))
    model.pipeline.to(hardware.device)
    networks = trained_networks(model)
    loop = denoiser_loop(args, out, networks)
    if args.attention_backend:
        model.base_transformer.set_attention_backend(args.attention_backend)
    if args.compile_blocks:
        model.base_transformer.compile_repeated_blocks()
    tokens = tokenized(model, [*prompts, ""])

    def loss_at(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        # The draws depend on seed and step only, so that a resumed run equals an uninterrupted one.
        generator = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        size = args.denoiser_batch_size
        rows = torch.randint(len(prompts), (size,), generator=generator)
        # Stratify the noise levels: one in each of `size` equal parts of [0, 1].
        u = (torch.randperm(size, generator=generator) + torch.rand(size, generator=generator)) / size
        sigma = shift_sigma(u, args.flow_shift).to(hardware.device)
        batch = {name: tensor[rows.to(tensor.device)].float() for name, tensor in data.items()}
        obey_share = 1.0 if step < args.obeyed_steps else args.obey_share
        clean = select_videos(batch, obey_share, generator)
        noise = torch.randn(clean.shape, generator=generator).to(clean)
        s = sigma.view(-1, 1, 1, 1, 1)
        texts = torch.cat([rows, torch.tensor([len(prompts)])])
        with hardware.autocast():
            embeddings = embed(networks["text_encoder"], *(part[texts].to(hardware.device) for part in tokens))
            conditioning = drop_conditioning(model, batch, embeddings, args.dropout, generator)
            velocity = model.predict((1 - s) * clean + s * noise, sigma, conditioning)
        loss = F.mse_loss(velocity.float(), noise - clean)
        return loss, {"loss": float(loss.detach())}

    evaluate = None
    if args.held_out_rooms:
        held_out = HeldOut(model, out / "held_out", args.held_out_videos)
        evaluate = partial(held_out.measure, model, hardware, args.denoiser_batch_size)
    loop.run(loss_at, evaluate, args.denoiser_eval_steps)


def new_model(args: PretrainTinyRoomsArguments, vae: AutoencoderKLWan) -> WanContextVideoModel:
    """Build the context model with random weights, except for the VAE."""
    tokenizer = new_tokenizer(room_phrases(args.style))
    pipeline = WanPipeline(
        tokenizer=tokenizer,
        text_encoder=new_text_encoder(len(tokenizer)),
        vae=vae,
        transformer=new_denoiser(vae.config.z_dim, args.layers, args.width, args.head_size),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=args.flow_shift),
        expand_timesteps=False,
    )
    model = WanContextVideoModel(pipeline, context_frames=args.context_frames, rays=args.rays)
    projection = model.base_transformer.camera_projection.requires_grad_(True)
    if args.rays == "fourier":  # all weights are random, so this map need not start at zero
        torch.nn.init.normal_(projection.weight, std=0.5 / projection.in_features**0.5)
    return model


def trained_networks(model: WanContextVideoModel) -> torch.nn.ModuleDict:
    """Return text encoder and transformer of a model, ready for training."""
    networks = {"text_encoder": model.pipeline.text_encoder, "transformer": model.base_transformer}
    return torch.nn.ModuleDict({name: network.train().requires_grad_(True) for name, network in networks.items()})


def denoiser_loop(args: PretrainTinyRoomsArguments, out: Path, networks: torch.nn.ModuleDict) -> TrainingLoop:
    """Build the training loop of the denoiser, which resumes from its checkpoint."""
    path = out / "denoiser.safetensors"
    flat = args.denoiser_flat_share
    return TrainingLoop(path, networks, args.denoiser_steps, args.denoiser_learning_rate, args.save_steps, flat)


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
    hardware = Hardware.choose(args.device, args.precision)
    out = Path(args.output_dir)
    clips = partial(Clips, out / "examples", args.vae_rooms)  # loaded by the stages that need them
    stages = {
        "render": lambda: render_all(args, out),
        "vae": lambda: train_vae(args, out, clips(), NUM_FRAMES, held_out_clips(args, out), hardware),
        "compress": lambda: compress(args, clips(), NUM_FRAMES, out / "vae", out / "vae_compressed"),
        "decoder": lambda: train_decoder(
            args, clips(), NUM_FRAMES, *(out / f"vae_{name}" for name in ("compressed", "sharpened")),
            held_out_clips(args, out), hardware,
        ),
        "denoiser": lambda: train_denoiser(args, out, hardware),
        "export": lambda: export(args, out),
    }  # fmt: skip
    run_stages(args.stages, stages, out)


if __name__ == "__main__":
    main(*parse_recipe((PretrainTinyRoomsArguments,), DEFAULT_CONFIG))
