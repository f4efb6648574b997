"""Command-line arguments that name the training and evaluation prompts, and the code that loads them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from spatialalign_trl.errors import near_miss, nearest
from spatialalign_trl.models.ranges import COUNT, Range, check_fields

if TYPE_CHECKING:
    from datasets import Dataset

    from spatialalign_trl.models.settings import SamplingSettings

DATASETS = Path(__file__).resolve().parent.parent.parent / "datasets"


@dataclass
class PromptArguments:
    """Arguments that name the prompts to train and to evaluate on."""

    train_prompts: str = field(
        default="tiny_world_prompts",
        metadata={"help": "Prompts to sample and train on: a folder under datasets/, a path, a Hub id, or a file."},
    )
    train_split: str = field(default="train", metadata={"help": "Split of train_prompts."})
    eval_prompts: str | None = field(
        default=None, metadata={"help": "Prompts to evaluate on, never trained on. None: train_prompts."}
    )
    eval_split: str = field(default="test", metadata={"help": "Split of eval_prompts."})
    max_train_prompts: Annotated[int | None, COUNT] = field(
        default=None, metadata={"help": "Use only this many training prompts, from the first. None: all."}
    )
    max_eval_prompts: Annotated[int | None, Range(at_least=0, at_most=1_000_000)] = field(
        default=None,
        metadata={
            "help": "Use only this many evaluation prompts, from the first. None: all. 0: nothing is evaluated."
        },
    )

    def __post_init__(self) -> None:
        check_fields(self)

    def load(self) -> tuple[Dataset, Dataset]:
        """
        Load the prompts as they were published.

        Returns:
            `tuple[Dataset, Dataset]`: The training prompts and the evaluation prompts.
        """
        train = self.load_set(self.train_prompts, self.train_split, self.max_train_prompts)
        return train, self.load_set(self.eval_prompts or self.train_prompts, self.eval_split, self.max_eval_prompts)

    def load_set(self, source: str, split: str, limit: int | None) -> Dataset:
        """
        Load the first rows of one split.

        Args:
            source (`str`):
                A folder under `datasets/`, a path, a Hub id, or a file.
            split (`str`):
                The split.
            limit (`int`, *optional*):
                The number of rows. `None` loads all of them.
        """
        return load_prompt_set(source, split, limit)

    def at_size(
        self, rows: tuple[Dataset, Dataset], settings: SamplingSettings, folder: Path
    ) -> tuple[Dataset, Dataset]:
        """
        Prepare the rows for videos of a given size. Text prompts fit every size and are returned unchanged.

        Args:
            rows (`tuple[Dataset, Dataset]`):
                Training and evaluation rows from [`~PromptArguments.load`].
            settings ([`~spatialalign_trl.models.settings.SamplingSettings`]):
                The size of the videos.
            folder (`Path`):
                Where files that belong to the rows may be written.
        """
        return rows


def prompt_source(source: str) -> str:
    """
    Resolve the name of a folder under `datasets/` to its path. Paths and Hub ids are returned as they are.

    Args:
        source (`str`):
            A folder's name, a path, or a Hub id.

    Raises:
        FileNotFoundError: If `source` is neither a path nor has an owner, and is nearly the name of such a folder.
    """
    bundled = {folder.name: folder for folder in DATASETS.glob("*") if folder.is_dir()}
    is_path = "/" in source or Path(source).exists()
    if source not in bundled and not is_path and nearest(source, bundled):
        raise FileNotFoundError(
            f"there is no set {source!r} under {DATASETS} and no such path. {near_miss(source, bundled)}"
        )
    return str(bundled.get(source, source))


def load_prompt_set(source: str, split: str, limit: int | None = None) -> Dataset:
    """
    Load prompts with [`~spatialalign_trl.prompts.load_prompts`], also from a folder under `datasets/` by its name.

    Args:
        source (`str`):
            A folder's name, a path, a Hub id, or a file.
        split (`str`):
            The split.
        limit (`int`, *optional*):
            The number of prompts, from the first. `None` loads all of them.
    """
    from spatialalign_trl.prompts import load_prompts

    prompts = load_prompts(prompt_source(source), split)
    return prompts if limit is None else prompts.select(range(min(limit, len(prompts))))
