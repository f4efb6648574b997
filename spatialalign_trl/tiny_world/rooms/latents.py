"""Encodes the examples of rooms for the denoiser, file by file, so that encoding can be interrupted.

Every file of examples becomes one file of latents, with the mirror images after the examples. What a disobedient
camera shows is encoded into other files, because only the end of training needs it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from safetensors import safe_open
from safetensors.torch import save

from spatialalign_trl.files import write_atomic
from spatialalign_trl.models.context import context_positions
from spatialalign_trl.models.context_rows import CAMERAS, CONTEXT_CAMERAS, LATENTS, POSITIONS
from spatialalign_trl.models.encoding import batch_to_pixels
from spatialalign_trl.tiny_world.rooms.examples import RoomExample, load_file_of_examples, mirrored

VIDEO, IDLE = "video", "idle"
_BATCH = 16


def encode_examples(source: Path, target: Path, vae: AutoencoderKLWan, frames_per_latent: int) -> Iterator[int]:
    """
    Encode the videos and contexts of all examples of a folder and of their mirror images. Existing files are kept.

    Args:
        source (`Path`):
            Folder with examples.
        target (`Path`):
            Folder for the latents.
        vae (`AutoencoderKLWan`):
            The VAE.
        frames_per_latent (`int`):
            Its time stride.

    Yields:
        `int`: number of finished files.
    """
    for number, path in enumerate(sorted(source.glob("*.safetensors")), 1):
        if not (target / path.name).exists():
            examples = _with_mirror_images(path)
            # Encode each context frame as a video of one frame.
            frames = [example.context[:, None] for example in examples]
            contexts = _encode(vae, [frame for context in frames for frame in context])[:, :, 0]
            tensors = {
                VIDEO: _encode(vae, [example.video for example in examples]),
                LATENTS: contexts.unflatten(0, (len(examples), -1)).transpose(1, 2),
                POSITIONS: torch.tensor([context_positions(e.numbers, frames_per_latent) for e in examples]),
                CAMERAS: torch.stack([example.cameras for example in examples]),
                CONTEXT_CAMERAS: torch.stack([example.context_cameras for example in examples]),
            }
            _write(target / path.name, tensors, [example.prompt for example in examples])
        yield number


def encode_idle(source: Path, target: Path, vae: AutoencoderKLWan) -> Iterator[int]:
    """
    Encode what a disobedient camera shows in all examples of a folder and in their mirror images.

    In navigation it does not move. In half of the examples for grounding it stops half-way: the object never comes
    into view, while half of a path of navigation would be half correct.

    Args:
        source, target, vae:
            As in `encode_examples`.

    Yields:
        `int`: number of finished files.
    """
    for number, path in enumerate(sorted(source.glob("*.safetensors")), 1):
        if not (target / path.name).exists():
            examples = _with_mirror_images(path)
            # Two examples of one room are often one of each task, so alternating would not mix them.
            stops = np.random.default_rng(int(path.stem)).random(len(examples)) < 0.5
            videos = [idle_video(example, bool(stop)) for example, stop in zip(examples, stops, strict=True)]
            _write(target / path.name, {IDLE: _encode(vae, videos)}, [example.prompt for example in examples])
        yield number


def idle_video(example: RoomExample, stops: bool) -> np.ndarray:
    """Return the video of a camera that does not move or, if `stops` and in grounding, stops half-way."""
    frames = np.arange(len(example.video))
    is_grounding = not example.cameras.any()
    return example.video[np.minimum(frames, len(frames) // 2 if stops and is_grounding else 0)]


def load_latents(folder: Path) -> tuple[dict[str, torch.Tensor], list[str]]:
    """
    Load the latents of a folder, in the order of the examples' files.

    Args:
        folder (`Path`):
            Folder of `encode_examples` or `encode_idle`.

    Returns:
        Tensors, the first dimension over examples and latents in fp16, and the prompts.

    Raises:
        FileNotFoundError: If the folder has no latents.
    """
    parts: dict[str, list[torch.Tensor]] = {}
    prompts: list[str] = []
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            prompts += file.metadata()["prompts"].split("\n")
            for name in file.keys():  # noqa: SIM118
                parts.setdefault(name, []).append(file.get_tensor(name))
    if not parts:
        raise FileNotFoundError(f"{folder} contains no latents. Encode the examples first.")
    return {name: torch.cat(tensors) for name, tensors in parts.items()}, prompts


def _with_mirror_images(path: Path) -> list[RoomExample]:
    examples = load_file_of_examples(path)
    return examples + [mirrored(example) for example in examples]


def _encode(vae: AutoencoderKLWan, videos: list[np.ndarray]) -> torch.Tensor:
    """Return the latents of videos of one length, in fp16 on the CPU."""
    batch = _BATCH if len(videos[0]) > 1 else 8 * _BATCH
    with torch.no_grad():
        return torch.cat([
            vae.encode(batch_to_pixels(videos[i : i + batch]).to(vae.device)).latent_dist.mode().half().cpu()
            for i in range(0, len(videos), batch)
        ])  # fmt: skip


def _write(path: Path, tensors: dict[str, torch.Tensor], prompts: list[str]) -> None:
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    write_atomic(path, save(contiguous, {"prompts": "\n".join(prompts)}))
