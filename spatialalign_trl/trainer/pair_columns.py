"""What a preference dataset must look like, checked before anything is encoded or trained.

Errors name the dataset, the row and the column: a run that dies at its 2,000th step over row 17 has cost a night.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import datasets

from spatialalign_trl.video import Video, brief, read_video, video_bytes, with_undecoded_videos

SIDES = ("chosen", "rejected")
LATENT_COLUMNS = {side: f"{side}_latents" for side in SIDES}
NOISE_SEED_COLUMNS = {side: f"{side}_noise_seed" for side in SIDES}


@dataclass(frozen=True)
class PairColumns:
    """
    A checked preference dataset.

    Args:
        name (`str`):
            What errors call it.
        prompts (`list[str]`):
            One a row.
        rows (`datasets.Dataset`):
            The columns the latents come from, undecoded.
        columns (`dict[str, str]`):
            For `"chosen"` and `"rejected"`, the column in `rows`.
        holds_latents (`bool`):
            Whether these columns hold latents; else videos.
        noise_seeds (`list[tuple[int, int]]`, *optional*):
            For every row, the seeds of the noise that chosen and rejected were sampled from; `None` where the dataset
            does not say.
        conditions (`datasets.Dataset`, *optional*):
            What conditions the model beside the prompt, undecoded; `None` where it reads nothing else.
    """

    name: str
    prompts: list[str]
    rows: datasets.Dataset
    columns: dict[str, str]
    holds_latents: bool
    noise_seeds: list[tuple[int, int]] | None = None
    conditions: datasets.Dataset | None = None

    def __len__(self) -> int:
        return len(self.prompts)

    def condition(self, row: int) -> dict[str, Any]:
        """All that conditions the model in a row: its prompt, and the model's own columns."""
        return {"prompt": self.prompts[row], **(self.conditions[row] if self.conditions is not None else {})}

    def video_content(self, row: int, side: str) -> bytes:
        """Bytes that name the video in a cell."""
        return video_bytes(self.cell(row, side), self.where(row, side))

    def video(self, row: int, side: str) -> Video:
        """The video in a cell."""
        return read_video(self.video_content(row, side))

    def where(self, row: int, side: str) -> str:
        """How errors name a cell."""
        return f"{self.name} row {row}, column {self.columns[side]!r}"

    def cell(self, row: int, side: str) -> Any:
        """The undecoded value of a cell."""
        return self.rows[row][self.columns[side]]


def check_pairs(
    dataset: datasets.Dataset, name: str = "train_dataset", conditioning_columns: Sequence[str] = ()
) -> PairColumns:
    """
    Checks kind, columns and prompts of a preference dataset.

    Args:
        dataset (`datasets.Dataset`):
            Columns `prompt`, and `chosen` and `rejected` (videos: `Video` features, paths, or mp4 bytes) or
            `chosen_latents` and `rejected_latents` (bytes of a safetensors file with one tensor "latents"); latents
            win if both are there. Optional: `chosen_noise_seed` and `rejected_noise_seed`, whole numbers; the noise a
            video was sampled from is `torch.randn` of the latents' shape, fp32, from a CPU generator with that seed.
        name (`str`, *optional*, defaults to `"train_dataset"`):
            What errors call it.
        conditioning_columns (sequence of `str`, *optional*):
            What the model reads beside the prompt, where the dataset has it.

    Raises:
        TypeError: not a `datasets.Dataset`.
        ValueError: no rows, missing columns, or an empty prompt.
    """
    check_is_dataset(dataset, name)
    names = set(dataset.column_names)
    given = [side for side in SIDES if LATENT_COLUMNS[side] in names]
    if len(given) == 1:
        missing = LATENT_COLUMNS[SIDES[1] if given == ["chosen"] else SIDES[0]]
        raise ValueError(f"{name} has {LATENT_COLUMNS[given[0]]!r} but no {missing!r}: give both, or neither")
    columns = LATENT_COLUMNS if given else {side: side for side in SIDES}
    missing = [column for column in ("prompt", *columns.values()) if column not in names]
    if missing:
        raise ValueError(
            f"{name} has no column {', '.join(map(repr, missing))}; it has {', '.join(sorted(names)) or 'none'}. A "
            "preference dataset has prompt, chosen and rejected."
        )
    if len(dataset) == 0:
        raise ValueError(f"{name} is empty: there is no pair to train on (did all samples of each prompt tie?)")
    prompts = prompts_of(dataset, name)
    rows = undecoded(dataset, list(columns.values()))
    seeds = _noise_seeds(dataset, name)
    conditions = condition_columns(dataset, conditioning_columns)
    return PairColumns(name, prompts, rows, dict(columns), bool(given), noise_seeds=seeds, conditions=conditions)


def check_is_dataset(dataset: Any, name: str) -> None:
    """Raises a `TypeError` that says what to pass instead."""
    if not isinstance(dataset, datasets.Dataset):
        remedy = "Pass one split, such as load_dataset(...)['train']" if isinstance(dataset, dict) else "Pass one"
        remedy += " (a streaming dataset: materialise it first)."
        raise TypeError(f"{name} is a {type(dataset).__name__}, but a datasets.Dataset is needed. {remedy}")


def prompts_of(dataset: datasets.Dataset, name: str) -> list[str]:
    """The column `prompt`; a `ValueError` names the row that has none."""
    prompts = dataset.select_columns(["prompt"]).with_format(None)["prompt"][:]
    for row, prompt in enumerate(prompts):
        if not isinstance(prompt, str) or not prompt.strip():
            raise ValueError(f"{name} row {row}, column 'prompt': expected a text, got {prompt!r}")
    return prompts


def undecoded(dataset: datasets.Dataset, columns: list[str]) -> datasets.Dataset:
    """Some columns of a dataset, videos as their files."""
    return with_undecoded_videos(dataset.select_columns(columns).with_format(None))


def condition_columns(dataset: datasets.Dataset, names: Sequence[str]) -> datasets.Dataset | None:
    """Those of the columns that the dataset has; `None` without any."""
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
    The shape of the latents in a cell, from the safetensors header alone.

    Raises:
        ValueError: not the bytes of a safetensors file with a tensor "latents" of shape (C, F, H, W).
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


def check_same_shape(pairs: PairColumns, shapes: dict[tuple[int, str], tuple[int, ...]]) -> tuple[int, ...]:
    """
    The one shape of all latents.

    Args:
        pairs ([`PairColumns`]):
            Names the cells.
        shapes (`dict[tuple[int, str], tuple[int, ...]]`):
            Shape of every (row, side).

    Raises:
        ValueError: two cells differ; a batch cannot hold both.
    """
    (first_row, first_side), first = next(iter(shapes.items()))
    for (row, side), shape in shapes.items():
        if shape != first:
            raise ValueError(
                f"{pairs.where(row, side)}: latents of shape {shape}, but {pairs.where(first_row, first_side)} has "
                f"{first}. All videos of a dataset must have the same frames and size; filter or re-encode the others."
            )
    return first


def raise_at(where: str, error: Exception) -> NoReturn:
    """Raises `error`'s message as a `ValueError` about a cell."""
    raise ValueError(f"{where}: {error}") from error
