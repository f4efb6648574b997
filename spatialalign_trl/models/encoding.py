"""Turn prompts into embeddings, and videos into latents and back: the part of a model that needs its encoders."""

from __future__ import annotations

import gc
import hashlib
import json
import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np
import torch

from spatialalign_trl.video import Video, check_video

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, PipelineQuantizationConfig


Conditioning: TypeAlias = dict[str, torch.Tensor]
"""The tensors that condition the transformer (the embedded prompts and anything else), by name, batch first."""

_VOXELS_PER_VAE_BATCH = 81 * 480 * 832


def vae_batch_size(num_frames: int, height: int, width: int) -> int:
    """
    Return how many videos the VAE takes at once: 8 tiny ones (about 3 times faster), or 1 of a real size.

    Args:
        num_frames, height, width (`int`):
            Size of the videos in pixels.
    """
    return max(1, min(8, _VOXELS_PER_VAE_BATCH // (num_frames * height * width)))


def batch_to_pixels(videos: Sequence[Video] | np.ndarray | torch.Tensor) -> torch.Tensor:
    """
    Stack videos of one size and scale them to the range that VAEs expect.

    Args:
        videos (list of `uint8` arrays (frames, height, width, 3), or one array or tensor of shape (batch, ...)):
            The videos.

    Returns:
        `torch.Tensor` of shape (batch, 3, frames, height, width), fp32 in [-1, 1].

    Raises:
        TypeError: if one of them is not a `uint8` array.
        ValueError: if there are none, one of them is not a video, or their sizes differ.
    """
    if isinstance(videos, torch.Tensor):
        videos = videos.cpu().numpy()
    if len(videos) == 0:
        raise ValueError("there is no video to encode. Pass at least one.")
    for i, video in enumerate(videos):
        check_video(video, f"videos[{i}]")
        if video.shape != videos[0].shape:
            raise ValueError(
                f"videos[{i}] has shape {video.shape} and videos[0] has {videos[0].shape}. Encode videos of different "
                "sizes separately."
            )
    return torch.from_numpy(np.stack(list(videos))).permute(0, 4, 1, 2, 3).float() / 127.5 - 1.0


def content_digest(cell: Any) -> str:
    """
    Return a hash of the content of a dataset's cell.

    Args:
        cell (`Any`):
            A file's path or an undecoded `Video` (the hash is of the file's bytes), an array or tensor (of its type,
            shape and numbers), or any other value (of its JSON).

    Returns:
        `str`: a hexadecimal SHA-256.
    """
    if isinstance(cell, Mapping) and {"bytes", "path"} & set(cell):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, (str, os.PathLike)) and os.path.isfile(cell):
        cell = Path(cell).read_bytes()
    if isinstance(cell, (np.ndarray, torch.Tensor)):
        array = np.ascontiguousarray(cell)
        cell = f"{array.dtype} {array.shape}\n".encode() + array.tobytes()
    return hashlib.sha256(cell if isinstance(cell, bytes) else json.dumps(cell).encode()).hexdigest()


class EncodingMixin:
    """Encoding and decoding in batches that fit in memory. A family implements one prompt and one batch of pixels."""

    pipeline: DiffusionPipeline
    encoder_names: ClassVar[tuple[str, ...]] = ("vae", "text_encoder")
    conditioning_columns: ClassVar[tuple[str, ...]] = ()
    """Columns of a dataset that condition the model in addition to `prompt`, in the rows that have them."""
    revision: str | None
    quantization_config: PipelineQuantizationConfig | None
    computation: dict[str, Any]
    _source: str
    _encoder_dtypes: dict[str, torch.dtype]
    offload_encoders: bool = False
    """Whether released encoders stay in the CPU's memory instead of being loaded from disk again."""
    _offloaded: dict[str, torch.nn.Module]
    _vae_memory_options: tuple[str, ...] = ()

    @property
    def has_encoders(self) -> bool:
        """Whether the VAE and the text encoder are in memory."""
        return all(getattr(self.pipeline, name) is not None for name in self.encoder_names)

    @property
    def _text_encoder_names(self) -> tuple[str, ...]:
        return tuple(name for name in self.encoder_names if name != "vae")

    def _require_encoders(self, task: str, *names: str) -> None:
        if any(getattr(self.pipeline, name) is None for name in names):
            raise RuntimeError(f"cannot {task}, because the encoders were released. Call reload_encoders() first.")

    def rest_text_encoders(self) -> None:
        """
        Move the text encoders to the CPU's memory while videos are sampled and decoded, if `offload_encoders` is on.

        It is worth it: Wan 2.1's text encoder is four times the size of the 1.3B transformer. `reload_encoders` moves
        them back.
        """
        if self.offload_encoders:
            self._release(self._text_encoder_names)

    def release_encoders(self) -> None:
        """Drop the VAE and the text encoders from memory. Sampling latents and training need neither."""
        self._release(self.encoder_names)

    def _release(self, names: Sequence[str]) -> None:
        for name in names:
            component = getattr(self.pipeline, name)
            if component is not None:
                self._encoder_dtypes[name] = component.dtype
                setattr(self.pipeline, name, None)
                if self.offload_encoders:
                    self._offloaded[name] = component.to("cpu")
        del component
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def reload_encoders(self) -> None:
        """
        Load the VAE and the text encoders again, from where the model was loaded.

        Raises:
            RuntimeError: if the model was built from a pipeline in memory, so that there is nothing to load from.
        """
        for name in list(self._offloaded):
            setattr(self.pipeline, name, self._offloaded.pop(name).to(self.device))
        missing = [name for name in self.encoder_names if getattr(self.pipeline, name) is None]
        if not missing:
            return
        if not self._source:
            raise RuntimeError(
                "the encoders cannot be loaded again, because this pipeline was built in memory. Set offload_encoders "
                "before releasing them, or load the model from a folder or the Hub."
            )
        for name, component in self._load_components({name: self._encoder_dtypes[name] for name in missing}).items():
            setattr(self.pipeline, name, component.to(self.device))
        self._apply_vae_memory_options()

    def _load_components(self, dtypes: dict[str, torch.dtype]) -> dict[str, torch.nn.Module]:
        """Load components of the pipeline in the given types, from the model's source and with its quantisation."""
        kept = {name: component for name, component in self.pipeline.components.items() if name not in dtypes}
        quantization = self.quantization_config
        loaded = type(self.pipeline).from_pretrained(
            self._source,
            revision=self.revision,
            dtype=dtypes,
            use_safetensors=True,
            **({} if quantization is None else {"quantization_config": quantization}),
            **kept,
        )
        return {name: getattr(loaded, name) for name in dtypes}

    def save_vae_memory(self, *, tiling: bool = False, slicing: bool = False) -> None:
        """
        Make the VAE work in parts from now on, also after it is loaded again.

        Args:
            tiling (`bool`, *optional*, defaults to `False`):
                Process overlapping tiles of the picture and blend them. It needs less memory and changes pixels
                slightly where tiles meet.
            slicing (`bool`, *optional*, defaults to `False`):
                Process the videos of a batch one after the other.

        Raises:
            ValueError: if this family's VAE cannot work in parts.
        """
        wanted = {"enable_tiling": tiling, "enable_slicing": slicing}
        self._vae_memory_options = tuple(method for method, is_on in wanted.items() if is_on)
        self._apply_vae_memory_options()
        self.computation.pop("vae_tiling", None)
        if tiling:  # slicing does not change the numbers
            self.computation["vae_tiling"] = True

    def _apply_vae_memory_options(self) -> None:
        vae = self.pipeline.vae
        for method in self._vae_memory_options if vae is not None else ():
            if not hasattr(vae, method):
                raise ValueError(
                    f"vae_{method.removeprefix('enable_')}=True: {type(vae).__name__} has no {method}. Leave it out."
                )
            getattr(vae, method)()

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """
        Embed prompts exactly as the pipeline's own call does.

        Prompts are embedded one by one, so that an embedding does not depend on the other prompts of its batch.

        Args:
            prompts (`list[str]`):
                At least one prompt.

        Returns:
            `dict[str, torch.Tensor]`: the tensors that condition the transformer, batch first.

        Raises:
            TypeError: if `prompts` is not a non-empty list of strings.
            RuntimeError: if the text encoders were released.
        """
        if isinstance(prompts, str) or not prompts or not all(isinstance(prompt, str) for prompt in prompts):
            raise TypeError(f"encode_prompts takes a non-empty list of strings, got {prompts!r}.")
        self._require_encoders("embed prompts", *self._text_encoder_names)
        with torch.no_grad():
            embedded = [self._encode_prompt(prompt) for prompt in prompts]
        return {name: torch.cat([embeddings[name] for embeddings in embedded]) for name in embedded[0]}

    def encode_rows(self, rows: Sequence[Mapping[str, Any]]) -> Conditioning:
        """
        Embed everything in the rows of a dataset that conditions the model: their prompts, and the
        `conditioning_columns` of a model that reads more than a prompt.

        Args:
            rows (`list[dict]`):
                At least one row, each with a `prompt`.

        Returns:
            `dict[str, torch.Tensor]`: the tensors that condition the transformer, batch first.
        """
        return self.encode_prompts([row["prompt"] for row in rows])

    def row_content(self, row: Mapping[str, Any]) -> bytes:
        """
        Return bytes that identify the result of [`~EncodingMixin.encode_rows`] for a row: equal bytes, equal tensors.

        Args:
            row (`dict`):
                A row with a `prompt`.
        """
        present = [name for name in self.conditioning_columns if row.get(name) is not None]
        if not present:
            return row["prompt"].encode()
        return "\n".join([row["prompt"], *(f"{name} {content_digest(row[name])}" for name in present)]).encode()

    @abstractmethod
    def _encode_prompt(self, prompt: str) -> Conditioning:
        """Embed one prompt. Every tensor has a batch dimension of 1."""

    def encode_video(
        self, videos: Sequence[Video] | np.ndarray | torch.Tensor, batch_size: int | None = None
    ) -> torch.Tensor:
        """
        Encode videos to normalised latents.

        The latents are the mode of the VAE's posterior, so that the same video always gives the same latents.

        Args:
            videos (list of `uint8` arrays (frames, height, width, 3), or one array with a batch dimension in front):
                Videos of one legal size.
            batch_size (`int`, *optional*):
                Number of videos in the VAE at a time. Defaults to a number that fits their size (1 for 81x480x832).

        Returns:
            `torch.Tensor` of shape (batch, channels, frames, height, width), fp32.

        Raises:
            ValueError: if the videos differ in size, or the size is not legal.
            RuntimeError: if the VAE was released.
        """
        self._require_encoders("encode videos", "vae")
        pixels = batch_to_pixels(videos)
        self.check_size(*pixels.shape[2:])
        with torch.no_grad():
            parts = pixels.split(batch_size or vae_batch_size(*pixels.shape[2:]))
            return torch.cat([self._encode_pixels(part) for part in parts])

    def _posterior_mode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the VAE's latents, before the family normalises them."""
        vae = self.pipeline.vae
        return vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mode()

    @abstractmethod
    def _encode_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encode pixels (batch, 3, frames, height, width) in [-1, 1] to normalised fp32 latents."""

    def decode_latents(self, latents: torch.Tensor, batch_size: int | None = None) -> list[Video]:
        """
        Decode normalised latents to videos.

        Args:
            latents (`torch.Tensor` of shape (batch, channels, frames, height, width)):
                The latents.
            batch_size (`int`, *optional*):
                Number of videos in the VAE at a time. Defaults to a number that fits their size (1 for 81x480x832).

        Returns:
            list of `uint8` arrays (frames, height, width, 3).

        Raises:
            ValueError: if the latents hold NaN or infinity.
            RuntimeError: if the VAE was released.
        """
        self._require_encoders("decode latents", "vae")
        if not torch.isfinite(latents).all():
            raise ValueError(
                "the latents hold NaN or infinity, so they cannot be decoded: the transformer's output diverged. "
                "Check the LoRA and the learning rate it was trained with."
            )
        videos: list[Video] = []
        with torch.no_grad():
            for part in latents.split(batch_size or vae_batch_size(*self._pixel_shape(latents))):
                pixels = self._decode_to_pixels(part)
                pixels = ((pixels.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
                videos.extend(pixels.permute(0, 2, 3, 4, 1).contiguous().cpu().numpy())
        return videos

    @abstractmethod
    def _decode_to_pixels(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode normalised latents to pixels (batch, 3, frames, height, width) in [-1, 1]."""
