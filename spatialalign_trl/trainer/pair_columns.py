"""Check the columns of a dataset, before anything is encoded or trained.

Errors name the dataset, the row and the column: a run that only fails when it reaches a bad row, at step 2,000, has
wasted a night.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import datasets

from spatialalign_trl.text_files import cell_text
from spatialalign_trl.trainer.dataset_files import check_video_files
from spatialalign_trl.video import Video, brief, frames_of, video_bytes, with_undecoded_videos

SIDES = ("chosen", "rejected")
LATENT_COLUMNS = {side: f"{side}_latents" for side in SIDES}
NOISE_SEED_COLUMNS = {side: f"{side}_noise_seed" for side in SIDES}


@dataclass(frozen=True, kw_only=True)
class ExampleColumns(ABC):
    """
    A checked dataset that can be encoded; a cell of it is a row and a side.

    Args:
        name (`str`):
            How errors refer to the dataset.
        prompts (`list[str]`):
            The prompt of every row.
        rows (`datasets.Dataset`):
            The columns that latents are made from, undecoded.
        conditions (`datasets.Dataset`, *optional*):
            The columns that condition the model in addition to the prompt, undecoded; `None` if there are none.
    """

    name: str
    prompts: list[str]
    rows: datasets.Dataset
    conditions: datasets.Dataset | None = None

    def __len__(self) -> int:
        return len(self.prompts)

    def condition(self, row: int) -> dict[str, Any]:
        """Return everything that conditions the model in a row: the prompt, and the columns that the model reads."""
        return {"prompt": self.prompts[row], **(self.conditions[row] if self.conditions is not None else {})}

    def describe(self, row: int) -> str:
        """Return how errors refer to a row: the dataset, the row's number and its prompt."""
        prompt = self.prompts[row]
        return f"{self.name} row {row} ({prompt if len(prompt) <= 60 else prompt[:57] + '...'!r})"

    @abstractmethod
    def where(self, row: int, side: str) -> str:
        """Return how errors refer to a cell."""

    @abstractmethod
    def video_content(self, row: int, side: str) -> bytes:
        """Return bytes that identify the video in a cell; they are hashed."""

    @abstractmethod
    def video(self, row: int, side: str) -> Video:
        """Read the video in a cell."""


@dataclass(frozen=True, kw_only=True)
class PairColumns(ExampleColumns):
    """
    A checked preference dataset. It has the fields of [`ExampleColumns`] and:

    Args:
        columns (`dict[str, str]`):
            The column in `rows` of `"chosen"` and of `"rejected"`.
        holds_latents (`bool`):
            Whether these columns contain latents rather than videos.
        noise_seeds (`list[tuple[int, int]]`, *optional*):
            For every row, the seeds of the noise that the chosen and the rejected video were sampled from; `None` if
            the dataset does not have them.
    """

    columns: dict[str, str]
    holds_latents: bool
    noise_seeds: list[tuple[int, int]] | None = None

    def where(self, row: int, side: str) -> str:
        """See [`ExampleColumns.where`]."""
        return f"{self.name} row {row}, column {self.columns[side]!r}"

    def video_content(self, row: int, side: str) -> bytes:
        """See [`ExampleColumns.video_content`]."""
        return video_bytes(self.cell(row, side), self.where(row, side))

    def video(self, row: int, side: str) -> Video:
        """See [`ExampleColumns.video`]."""
        return frames_of(self.video_content(row, side), self.where(row, side))

    def cell(self, row: int, side: str) -> Any:
        """Return the undecoded value of a cell."""
        return self.rows[row][self.columns[side]]


def check_pairs(
    dataset: datasets.Dataset, name: str = "train_dataset", conditioning_columns: Sequence[str] = ()
) -> PairColumns:
    """
    Check the type, the columns and the prompts of a preference dataset.

    Args:
        dataset (`datasets.Dataset`):
            Columns `prompt`, and `chosen` and `rejected` (videos: `Video` features, paths, or mp4 bytes) or
            `chosen_latents` and `rejected_latents` (bytes of a safetensors file with one tensor "latents"). If both
            are present, the latents are used. Optional: `chosen_noise_seed` and `rejected_noise_seed`, integers; the
            noise that a video was sampled from is `torch.randn` of the latents' shape, fp32, from a CPU generator
            with that seed.
        name (`str`, *optional*, defaults to `"train_dataset"`):
            How errors refer to the dataset.
        conditioning_columns (sequence of `str`, *optional*):
            The columns that the model reads in addition to the prompt, if the dataset has them.

    Raises:
        TypeError: if it is not a `datasets.Dataset`.
        ValueError: if there are no rows, columns are missing, a prompt is empty, or a row names a file that its
            dataset may not use ([`check_video_files`]).
    """
    check_is_dataset(dataset, name)
    names = set(dataset.column_names)

    # Latents are used where the dataset has them: nothing has to be encoded then.
    latent_sides = [side for side in SIDES if LATENT_COLUMNS[side] in names]
    if len(latent_sides) == 1:
        missing = LATENT_COLUMNS[SIDES[1] if latent_sides == ["chosen"] else SIDES[0]]
        raise ValueError(
            f"{name} has {LATENT_COLUMNS[latent_sides[0]]!r} but no {missing!r}. Pass both columns or neither."
        )
    columns = LATENT_COLUMNS if latent_sides else {side: side for side in SIDES}
    remedy = "A preference dataset has prompt, chosen and rejected."
    check_columns(dataset, name, ("prompt", *columns.values()), remedy)
    if len(dataset) == 0:
        raise ValueError(f"{name} is empty: there is no pair to train on (did all samples of each prompt tie?)")
    conditioning = [column for column in conditioning_columns if column in names]
    check_video_files(dataset, [*columns.values(), *conditioning], name)
    return PairColumns(
        name=name,
        prompts=prompts_of(dataset, name),
        rows=undecoded(dataset, list(columns.values())),
        conditions=condition_columns(dataset, conditioning_columns),
        columns=dict(columns),
        holds_latents=bool(latent_sides),
        noise_seeds=_noise_seeds(dataset, name),
    )


def check_is_dataset(dataset: Any, name: str) -> None:
    """Raise a `TypeError` that names the remedy unless the value is a `datasets.Dataset`."""
    if not isinstance(dataset, datasets.Dataset):
        remedy = "Pass one split, such as load_dataset(...)['train']" if isinstance(dataset, dict) else "Pass one"
        remedy += " (materialise a streaming dataset first)."
        raise TypeError(f"{name} is a {type(dataset).__name__}, but a datasets.Dataset is needed. {remedy}")


def check_columns(dataset: datasets.Dataset, name: str, needed: Iterable[str], remedy: str) -> None:
    """Raise a `ValueError`, which ends with the remedy, if the dataset lacks one of the columns."""
    missing = [column for column in needed if column not in dataset.column_names]
    if missing:
        raise ValueError(
            f"{name} has no column {', '.join(map(repr, missing))}; it has "
            f"{', '.join(sorted(dataset.column_names)) or 'none'}. {remedy}"
        )


def prompts_of(dataset: datasets.Dataset, name: str) -> list[str]:
    """Return the column `prompt`; raise a `ValueError` that names the first row without a prompt."""
    prompts = dataset.select_columns(["prompt"]).with_format(None)["prompt"][:]
    for row, prompt in enumerate(prompts):
        if not isinstance(prompt, str) or not cell_text(prompt):
            raise ValueError(f"{name} row {row}, column 'prompt': expected a text, got {prompt!r}")
    return prompts


def undecoded(dataset: datasets.Dataset, columns: list[str]) -> datasets.Dataset:
    """Select columns of a dataset, and return their videos as files rather than decoded frames."""
    return with_undecoded_videos(dataset.select_columns(columns).with_format(None))


def condition_columns(dataset: datasets.Dataset, names: Sequence[str]) -> datasets.Dataset | None:
    """Select those of the named columns that the dataset has; return `None` if it has none of them."""
    present = [name for name in names if name in dataset.column_names]
    return undecoded(dataset, present) if present else None


def _noise_seeds(dataset: datasets.Dataset, name: str) -> list[tuple[int, int]] | None:
    columns = list(NOISE_SEED_COLUMNS.values())
    if not set(columns) <= set(dataset.column_names):
        return None
    seeds = dataset.select_columns(columns).with_format(None)
    pairs = list(zip(*(seeds[column][:] for column in columns), strict=True))
    for row, pair in enumerate(pairs):
        for column, seed in zip(columns, pair, strict=True):
            if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
                raise ValueError(f"{name} row {row}, column {column!r}: expected a seed in 0..2**63-1, got {seed!r}")
    return pairs


def latent_shape(cell: Any, where: str) -> tuple[int, ...]:
    """
    Read the shape of the latents in a cell, from the safetensors header alone.

    Args:
        cell (`bytes`):
            A safetensors file with one tensor "latents".
        where (`str`):
            How errors refer to the cell.

    Returns:
        `tuple[int, ...]`: `(C, F, H, W)`.

    Raises:
        ValueError: if the cell is anything else.
    """
    problem = f"{where}: expected the bytes of a safetensors file with one tensor 'latents' of shape (C, F, H, W)"
    if not isinstance(cell, bytes) or len(cell) < 8:
        raise ValueError(f"{problem}, got {brief(cell)}")
    try:
        header = json.loads(cell[8 : 8 + int.from_bytes(cell[:8], "little")])
        shape = tuple(header["latents"]["shape"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{problem}, got {len(cell)} bytes of something else ({type(error).__name__})") from error
    if len(shape) != 4:
        raise ValueError(f"{problem}, got shape {shape}")
    return shape


def check_same_shape(columns: ExampleColumns, shapes: dict[tuple[int, str], tuple[int, ...]]) -> tuple[int, ...]:
    """
    Return the shape that all latents have.

    Args:
        columns ([`ExampleColumns`]):
            The dataset that errors refer to.
        shapes (`dict[tuple[int, str], tuple[int, ...]]`):
            The shape of the latents of every (row, side).

    Raises:
        ValueError: if two cells differ, because they cannot be in the same batch.
    """
    (first_row, first_side), first = next(iter(shapes.items()))
    for (row, side), shape in shapes.items():
        if shape != first:
            raise ValueError(
                f"{columns.where(row, side)}: latents of shape {shape}, but {columns.where(first_row, first_side)} "
                f"has {first}. All videos of a dataset must have the same number of frames and the same size. Filter "
                "out or re-encode the others."
            )
    return first


def raise_at(where: str, error: Exception) -> NoReturn:
    """Raise the message of an error as a `ValueError` that begins with the place."""
    raise ValueError(f"{where}: {error}") from error
