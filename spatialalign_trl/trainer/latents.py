"""From a preference dataset to latents and prompt embeddings on disk, so that the frozen encoders can leave memory.

Every distinct video and prompt is encoded once and kept as a safetensors file, named by a hash of what was encoded and
of the encoders that did it; a second run, or a second round, finds it there. Batches are read lazily from these files.
"""

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import datasets
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from spatialalign_trl.files import write_atomic
from spatialalign_trl.trainer.pair_columns import (
    SIDES,
    PairColumns,
    check_pairs,
    check_same_shape,
    latent_shape,
    raise_at,
)
from spatialalign_trl.video import Video

if TYPE_CHECKING:
    from spatialalign_trl.models.base import VideoModel


LATENTS = "latents"
_FORMAT = "1"  # of the cache; part of every key


class PairDataset(Dataset):
    """
    Preference pairs as latents and conditioning, read when asked for.

    An item is `{"chosen": (C, F, H, W) fp32, "rejected": the same, "conditioning": {name: tensor}, "row": its
    number}`, with `"noise_seeds": (2,) int64` where the dataset knows the noise that the videos were sampled from.

    Args:
        pairs ([`PairColumns`]):
            The checked dataset.
        latent_files (`dict[tuple[int, str], Path]`):
            File of the latents of every (row, side); empty where the dataset itself holds them.
        prompt_files (`list[Path]`):
            For every row, the file of its prompt's conditioning tensors.
        latent_shape (`tuple[int, ...]`):
            `(C, F, H, W)`, the same for all.
    """

    def __init__(
        self,
        pairs: PairColumns,
        latent_files: dict[tuple[int, str], Path],
        prompt_files: list[Path],
        latent_shape: tuple[int, ...],
    ) -> None:
        self.pairs = pairs
        self.latent_files = latent_files
        self.prompt_files = prompt_files
        self.latent_shape = latent_shape
        self._fingerprints: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.pairs)

    def latents(self, row: int, side: str) -> Tensor:
        """Latents of shape `(C, F, H, W)`, fp32."""
        where = self.pairs.where(row, side)
        if self.latent_files:
            path = self.latent_files[row, side]
            return load_tensors(path.read_bytes(), f"{where} (cached in {path})")[LATENTS].float()
        return load_tensors(self.pairs.cell(row, side), where)[LATENTS].float()

    def __getitem__(self, row: int) -> dict[str, Any]:
        path = self.prompt_files[row]
        conditioning = load_tensors(path.read_bytes(), f"{self.pairs.name} row {row}, its prompt (cached in {path})")
        item = {**{side: self.latents(row, side) for side in SIDES}, "conditioning": conditioning}
        item["row"] = torch.tensor(row)
        if self.pairs.noise_seeds is not None:
            item["noise_seeds"] = torch.tensor(self.pairs.noise_seeds[row])
        return item

    def fingerprint(self, row: int) -> str:
        """Hashes of a pair's latents and conditioning, and its noise seeds: what a network can see of the pair."""
        if row not in self._fingerprints:
            if self.latent_files:
                latents = [self.latent_files[row, side].name for side in SIDES]  # named by their content
            else:
                latents = [hashlib.sha256(self.pairs.cell(row, side)).hexdigest() for side in SIDES]
            seeds = self.pairs.noise_seeds[row] if self.pairs.noise_seeds is not None else ()
            self._fingerprints[row] = " ".join([*latents, self.prompt_files[row].name, *map(str, seeds)])
        return self._fingerprints[row]


def collate_pairs(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Stacks items of a [`PairDataset`], whose tensors all get a batch dimension in front."""
    names = items[0]["conditioning"].keys()
    return {
        **{name: torch.stack([item[name] for item in items]) for name in items[0] if name != "conditioning"},
        "conditioning": {name: torch.stack([item["conditioning"][name] for item in items]) for name in names},
    }


@dataclass(frozen=True)
class Share:
    """
    Which part of the work is this process's, and how it waits for the others.

    Args:
        rank (`int`):
            This process.
        world_size (`int`):
            Number of processes.
        barrier (`Callable[[], None]`):
            Returns when all processes called it.
    """

    rank: int = 0
    world_size: int = 1
    barrier: Callable[[], None] = lambda: None


def prepare_pairs(
    dataset: datasets.Dataset,
    model: "VideoModel",
    cache_dir: str | os.PathLike,
    *,
    name: str = "train_dataset",
    share: Share | None = None,
    show_progress: bool = True,
) -> PairDataset:
    """
    Checks a preference dataset and encodes what the cache does not hold yet.

    Args:
        dataset (`datasets.Dataset`):
            See [`check_pairs`].
        model ([`VideoModel`]):
            Its encoders are loaded again if they were released; they are not released here.
        cache_dir (`str` or `os.PathLike`):
            Where the encoded files go; visible to all processes.
        name (`str`, *optional*, defaults to `"train_dataset"`):
            What errors call the dataset.
        share ([`Share`], *optional*):
            The processes among which the work is dealt; `None`: there is one.
        show_progress (`bool`, *optional*, defaults to `True`):
            Whether the first process shows progress bars.

    Raises:
        ValueError: a column, a row or a video is wrong; the message names it.
    """
    share = share or Share()
    pairs = check_pairs(dataset, name, model.conditioning_columns)
    model.reload_encoders()
    cache = EncodingCache(Path(cache_dir), model, share, show_progress)
    cells = [(row, side) for row in range(len(pairs)) for side in SIDES]
    if pairs.holds_latents:
        files: dict[tuple[int, str], Path] = {}
        checked = cache.progress(cells, "checking latents")
        shapes = {cell: latent_shape(pairs.cell(*cell), pairs.where(*cell)) for cell in checked}
        _check_finite(pairs, cells[share.rank :: share.world_size])
    else:
        files = cache.encode_videos(pairs, cells)
        shapes = {cell: shape_of(path) for cell, path in files.items()}
    shape = check_same_shape(pairs, shapes)
    settings = model.default_settings()
    channels = model.latent_shape(settings.num_frames, settings.height, settings.width)[0]
    if shape[0] != channels:
        raise ValueError(
            f"{pairs.where(0, SIDES[0])}: latents with {shape[0]} channels, but {model.name_or_path} has {channels}. "
            "They come from another model: drop the latent columns to encode the videos again."
        )
    return PairDataset(pairs, files, cache.encode_conditions(pairs), shape)


class Encodable(Protocol):
    """Rows of a checked dataset, as [`EncodingCache`] asks for them; `side` is a column or stands for one."""

    name: str

    def __len__(self) -> int: ...

    def where(self, row: int, side: str) -> str:
        """How errors name a cell."""

    def condition(self, row: int) -> dict[str, Any]:
        """All that conditions the model in a row."""

    def video_content(self, row: int, side: str) -> bytes:
        """Bytes that name the video in a cell."""

    def video(self, row: int, side: str) -> Video:
        """The video in a cell."""


class EncodingCache:
    """The files in a cache folder, and the encoding of missing ones dealt over the processes."""

    def __init__(self, folder: Path, model: "VideoModel", share: Share, show_progress: bool) -> None:
        self.folder = folder
        self.model = model
        self.share = share
        self.show_progress = show_progress and share.rank == 0
        self.encoders = encoder_fingerprint(model)

    def progress(self, items: list[Any], what: str) -> "tqdm[Any]":
        return tqdm(items, desc=what, disable=not self.show_progress)

    def encode_videos(self, pairs: Encodable, cells: list[tuple[int, str]]) -> dict[tuple[int, str], Path]:
        files = {}
        first: dict[Path, tuple[int, str]] = {}
        for cell in self.progress(cells, "hashing videos"):
            files[cell] = self._path("video", pairs.video_content(*cell))
            first.setdefault(files[cell], cell)
        for path in self._mine(first, "encoding videos"):
            where = pairs.where(*first[path])
            try:
                latents = self.model.encode_video([pairs.video(*first[path])])[0]
            except ValueError as error:  # unreadable, or frames and size that the model refuses
                raise_at(where, error)
            if not latents.isfinite().all():
                raise ValueError(f"{where}: the VAE gave values that are not finite")
            self._write(path, {LATENTS: latents})
        self.share.barrier()
        return files

    def encode_conditions(self, pairs: Encodable) -> list[Path]:
        """For every row, the file of its conditioning."""
        files = [self._path("prompt", self.model.row_content(pairs.condition(row))) for row in range(len(pairs))]
        first: dict[Path, int] = {}
        for row, path in enumerate(files):
            first.setdefault(path, row)
        for path in self._mine(first, "embedding prompts"):
            try:
                conditioning = self.model.encode_rows([pairs.condition(first[path])])
            except ValueError as error:
                raise_at(f"{pairs.name} row {first[path]}", error)
            self._write(path, {name: tensor[0] for name, tensor in conditioning.items()})
        self.share.barrier()
        return files

    def _path(self, kind: str, content: bytes) -> Path:
        digest = hashlib.sha256(f"{_FORMAT} {kind} {self.encoders}\n".encode() + content).hexdigest()
        return self.folder / f"{kind}-{digest[:32]}.safetensors"

    def _mine(self, paths: dict[Path, Any], what: str) -> "tqdm[Path]":
        """This process's share of the files that are missing or broken, behind a progress bar."""
        # Nobody writes before everybody has looked: else the processes deal different lists.
        missing = [path for path in paths if not is_whole(path)]
        self.share.barrier()
        return self.progress(missing[self.share.rank :: self.share.world_size], what)

    def _write(self, path: Path, tensors: dict[str, Tensor]) -> None:
        write_atomic(path, save_safetensors({name: t.detach().cpu().contiguous() for name, t in tensors.items()}))


def encoder_fingerprint(model: "VideoModel") -> str:
    """
    A hash that tells encoders apart: the model's name, a few weights of every tensor of its encoders, and whether the
    VAE works in tiles.

    A name alone would not do: a model trained again keeps its folder, and its old latents must not be taken for new.
    """
    digest = hashlib.sha256(f"{model.family} {model.name_or_path} {model.revision}".encode())
    if model.computation.get("vae_tiling"):
        digest.update(b"tiles")
    for part in model.encoder_names:
        weights_digest(digest, part, getattr(model.pipeline, part).state_dict())
    return digest.hexdigest()


def weights_digest(digest: "hashlib._Hash", part: str, weights: Mapping[str, Tensor]) -> None:
    """Adds a few weights of every tensor to a hash."""
    for name, tensor in sorted(weights.items()):
        digest.update(f"{part}.{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        flat = tensor.detach().flatten()
        digest.update(torch.cat([flat[:4], flat[-4:]]).double().cpu().numpy().tobytes())


def load_tensors(data: bytes, where: str) -> dict[str, Tensor]:
    try:
        return load_safetensors(data)
    except SafetensorError as error:
        raise_at(where, ValueError(f"not a whole safetensors file ({error}); remove it and start again"))


def is_whole(path: Path) -> bool:
    """Whether a safetensors file is there and complete."""
    try:
        with safe_open(path, "pt"):
            return True
    except (FileNotFoundError, SafetensorError):
        return False


def shape_of(path: Path) -> tuple[int, ...]:
    with safe_open(path, "pt") as file:
        return tuple(file.get_slice(LATENTS).get_shape())


def _check_finite(pairs: PairColumns, cells: list[tuple[int, str]]) -> None:
    for cell in cells:
        where = pairs.where(*cell)
        if not load_tensors(pairs.cell(*cell), where)[LATENTS].isfinite().all():
            raise ValueError(f"{where}: the latents hold values that are not finite")
