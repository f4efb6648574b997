"""Encode a preference dataset to latents and prompt embeddings on disk, so that the frozen encoders can be released.

Every distinct video and prompt is encoded once and stored as a safetensors file. It is named by a hash of the content
and of the encoders, so a second run, or a second round, finds and reuses it. Batches are read lazily from these files.
"""

import hashlib
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from spatialalign_trl.files import is_intact, seal_tensors, write_atomic
from spatialalign_trl.trainer.pair_columns import (
    SIDES,
    ExampleColumns,
    PairColumns,
    check_pairs,
    check_same_shape,
    latent_shape,
    raise_at,
)

if TYPE_CHECKING:
    from spatialalign_trl.models.base import VideoModel


LATENTS = "latents"
_FORMAT = "1"  # of the cache; part of every key


class PairDataset(Dataset):
    """
    Preference pairs as latents and conditioning, read from disk when an item is requested.

    An item is `{"chosen": (C, F, H, W) fp32, "rejected": the same, "conditioning": {name: tensor}, "row": its
    number}`, plus `"noise_seeds": (2,) int64` if the dataset has the seeds of the noise that the videos were sampled
    from.

    Args:
        pairs ([`PairColumns`]):
            The checked dataset.
        latent_files (`dict[tuple[int, str], Path]`):
            The file of the latents of every (row, side); empty if the dataset itself contains the latents.
        prompt_files (`list[Path]`):
            The file of the conditioning tensors of every row.
        latent_shape (`tuple[int, ...]`):
            `(C, F, H, W)`, the same for all rows.
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

    @property
    def columns(self) -> PairColumns:
        """The checked dataset, under the name that it has in every dataset of examples."""
        return self.pairs

    @property
    def prompts(self) -> list[str]:
        """The prompt of every row."""
        return self.pairs.prompts

    def latents(self, row: int, side: str) -> Tensor:
        """Read the latents of one side of a row: `(C, F, H, W)`, fp32."""
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
        """Return a string that identifies what a network sees of a pair: its latents, conditioning and seeds."""
        if row not in self._fingerprints:
            if self.latent_files:
                latents = [self.latent_files[row, side].name for side in SIDES]  # named by their content
            else:
                latents = [hashlib.sha256(self.pairs.cell(row, side)).hexdigest() for side in SIDES]
            seeds = self.pairs.noise_seeds[row] if self.pairs.noise_seeds is not None else ()
            self._fingerprints[row] = " ".join([*latents, self.prompt_files[row].name, *map(str, seeds)])
        return self._fingerprints[row]


def collate_pairs(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack items of a [`PairDataset`] to a batch; every tensor gets a batch dimension in front."""
    names = items[0]["conditioning"].keys()
    return {
        **{name: torch.stack([item[name] for item in items]) for name in items[0] if name != "conditioning"},
        "conditioning": {name: torch.stack([item["conditioning"][name] for item in items]) for name in names},
    }


@dataclass(frozen=True)
class Share:
    """
    The share of the work that this process does, and how it waits for the other processes.

    Args:
        rank (`int`, *optional*, defaults to `0`):
            The index of this process.
        world_size (`int`, *optional*, defaults to `1`):
            Number of processes.
        barrier (`Callable[[], None]`, *optional*):
            Returns once all processes have called it.
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
    Check a preference dataset, and encode what is not in the cache yet.

    Args:
        dataset (`datasets.Dataset`):
            See [`check_pairs`].
        model ([`VideoModel`]):
            The model that encodes. Its encoders are loaded again if they were released; they are not released here.
        cache_dir (`str` or `os.PathLike`):
            The folder of the encoded files; visible to all processes.
        name (`str`, *optional*, defaults to `"train_dataset"`):
            How errors refer to the dataset.
        share ([`Share`], *optional*):
            The processes that divide the work; `None`: there is only one.
        show_progress (`bool`, *optional*, defaults to `True`):
            Whether the first process shows progress bars.

    Raises:
        TypeError: if the dataset is not a `datasets.Dataset`.
        ValueError: if a column, a row or a video is wrong; the message names it.
    """
    share = share or Share()

    # 1. Check the columns.
    pairs = check_pairs(dataset, name, model.conditioning_columns)
    model.reload_encoders()
    cache = EncodingCache(Path(cache_dir), model, share, show_progress)
    cells = [(row, side) for row in range(len(pairs)) for side in SIDES]

    # 2. Encode the videos, or check the latents that the dataset contains.
    if pairs.holds_latents:
        files: dict[tuple[int, str], Path] = {}
        latent_cells = cache.progress(cells, "checking latents")
        shapes = {cell: latent_shape(pairs.cell(*cell), pairs.where(*cell)) for cell in latent_cells}
        for cell in cells[share.rank :: share.world_size]:  # reading the values takes longer: divided
            where = pairs.where(*cell)
            if not load_tensors(pairs.cell(*cell), where)[LATENTS].isfinite().all():
                raise ValueError(
                    f"{where}: the latents contain values that are not finite. Drop the row, or drop the latent "
                    "columns to encode the videos again."
                )
    else:
        files = cache.encode_videos(pairs, cells)
        shapes = {cell: shape_of(path) for cell, path in files.items()}

    # 3. All latents must have the same shape, and the model's number of channels.
    shape = check_same_shape(pairs, shapes)
    settings = model.default_settings()
    channels = model.latent_shape(settings.num_frames, settings.height, settings.width)[0]
    if shape[0] != channels:
        raise ValueError(
            f"{pairs.where(0, SIDES[0])}: latents with {shape[0]} channels, but {model.name_or_path} has {channels}. "
            "They come from another model. Drop the latent columns to encode the videos again."
        )

    # 4. Encode the prompts, and the other columns that condition the model.
    return PairDataset(pairs, files, cache.encode_conditions(pairs), shape)


class EncodingCache:
    """
    Encodes what is missing in a cache folder; the processes divide the work.

    Args:
        folder (`Path`):
            The folder of the files; visible to all processes.
        model ([`VideoModel`]):
            The model that encodes; its encoders must be loaded.
        share ([`Share`]):
            The processes that divide the work.
        show_progress (`bool`):
            Whether the first process shows progress bars.
    """

    def __init__(self, folder: Path, model: "VideoModel", share: Share, show_progress: bool) -> None:
        self.folder = folder
        self.model = model
        self.share = share
        self.show_progress = show_progress and share.rank == 0
        self.encoders = encoder_fingerprint(model)

    def progress(self, items: list[Any], description: str) -> "tqdm[Any]":
        """Show a progress bar while the items are iterated over, in the first process."""
        return tqdm(items, desc=description, disable=not self.show_progress)

    def encode_videos(self, columns: ExampleColumns, cells: list[tuple[int, str]]) -> dict[tuple[int, str], Path]:
        """
        Encode the videos whose files are missing.

        Args:
            columns ([`ExampleColumns`]):
                The checked dataset.
            cells (`list[tuple[int, str]]`):
                The (row, side) of every video; cells with equal content share a file.

        Returns:
            `dict[tuple[int, str], Path]`: the file of every cell's latents.

        Raises:
            ValueError: if a video cannot be read or encoded; the message names its cell.
        """
        files = {}
        first_cells: dict[Path, tuple[int, str]] = {}
        for cell in self.progress(cells, "hashing videos"):
            files[cell] = self._path("video", columns.video_content(*cell))
            first_cells.setdefault(files[cell], cell)
        for path in self._missing_share(first_cells, "encoding videos"):
            cell = first_cells[path]
            where = columns.where(*cell)
            try:
                latents = self.model.encode_video([columns.video(*cell)])[0]
            except ValueError as error:  # unreadable, or a number of frames or a size that the model refuses
                raise_at(where, error)
            if not latents.isfinite().all():
                raise ValueError(f"{where}: the VAE returned values that are not finite")
            self._write(path, {LATENTS: latents})
        self.share.barrier()
        return files

    def encode_conditions(self, columns: ExampleColumns) -> list[Path]:
        """
        Encode the prompts, and the other columns that condition the model, whose files are missing.

        Args:
            columns ([`ExampleColumns`]):
                The checked dataset.

        Returns:
            `list[Path]`: the file of every row's conditioning.

        Raises:
            ValueError: if a row cannot be encoded; the message names it.
        """
        files = [self._path("prompt", self.model.row_content(columns.condition(row))) for row in range(len(columns))]
        first_rows: dict[Path, int] = {}
        for row, path in enumerate(files):
            first_rows.setdefault(path, row)
        for path in self._missing_share(first_rows, "embedding prompts"):
            row = first_rows[path]
            try:
                conditioning = self.model.encode_rows([columns.condition(row)])
            except ValueError as error:
                raise_at(f"{columns.name} row {row}", error)
            self._write(path, {name: tensor[0] for name, tensor in conditioning.items()})
        self.share.barrier()
        return files

    def _path(self, kind: str, content: bytes) -> Path:
        digest = hashlib.sha256(f"{_FORMAT} {kind} {self.encoders}\n".encode() + content).hexdigest()
        return self.folder / f"{kind}-{digest[:32]}.safetensors"

    def _missing_share(self, paths: dict[Path, Any], description: str) -> "tqdm[Path]":
        """Return this process's share of the files that are missing or damaged, with a progress bar."""
        # A check reads the whole file, so the processes divide it, and remove what has to be encoded again.
        for path in list(paths)[self.share.rank :: self.share.world_size]:
            if path.is_file() and not is_whole(path):
                path.unlink(missing_ok=True)
        self.share.barrier()
        # No process may write before all have listed the missing files: otherwise they would divide different lists.
        missing = [path for path in paths if not path.is_file()]
        self.share.barrier()
        return self.progress(missing[self.share.rank :: self.share.world_size], description)

    def _write(self, path: Path, tensors: dict[str, Tensor]) -> None:
        data = save_safetensors({name: t.detach().cpu().contiguous() for name, t in tensors.items()})
        write_atomic(path, seal_tensors(data))


def encoder_fingerprint(model: "VideoModel") -> str:
    """
    Return a hash that identifies the encoders of a model.

    It covers the model's name, a few weights of every tensor of its encoders, and whether the VAE works in tiles. The
    name alone is not enough: a model that is trained again keeps its folder, and its old latents must not be reused.
    """
    digest = hashlib.sha256(f"{model.family} {model.name_or_path} {model.revision}".encode())
    if model.computation.get("vae_tiling"):
        digest.update(b"tiles")
    for part in model.encoder_names:
        weights_digest(digest, part, getattr(model.pipeline, part).state_dict())
    return digest.hexdigest()


def weights_digest(digest: "hashlib._Hash", part: str, weights: Mapping[str, Tensor]) -> None:
    """Add a few weights of every tensor to a hash; `part` is a prefix of their names."""
    for name, tensor in sorted(weights.items()):
        digest.update(f"{part}.{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        flat = tensor.detach().flatten()
        digest.update(torch.cat([flat[:4], flat[-4:]]).double().cpu().numpy().tobytes())


def load_tensors(data: bytes, where: str) -> dict[str, Tensor]:
    """Load the tensors of a safetensors file, and compare its checksum if it has one; errors begin with `where`."""
    try:
        tensors = load_safetensors(data)
    except SafetensorError as error:
        raise_at(where, ValueError(f"not a whole safetensors file ({error}). Remove it and start again."))
    if not is_intact(data):
        raise_at(where, ValueError("the content differs from its checksum. Start again: it is computed again."))
    return tensors


def is_whole(path: Path) -> bool:
    """Return whether a safetensors file exists and is undamaged. A damaged one causes a warning."""
    try:
        with safe_open(path, "pt"):  # fails if the file was cut off
            if is_intact(path.read_bytes()):
                return True
    except FileNotFoundError:
        return False
    except SafetensorError:
        pass
    warnings.warn(f"{path} is damaged or incomplete. It is computed again.", stacklevel=2)
    return False


def shape_of(path: Path) -> tuple[int, ...]:
    """Read the shape of the latents in a safetensors file, without loading them."""
    with safe_open(path, "pt") as file:
        return tuple(file.get_slice(LATENTS).get_shape())
