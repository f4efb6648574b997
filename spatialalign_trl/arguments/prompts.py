"""Which prompts a recipe samples, and which rewards judge: command-line arguments, and what they load."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spatialalign_trl.errors import near_miss, nearest
from spatialalign_trl.rewards.remote import shown_url

if TYPE_CHECKING:
    from datasets import Dataset

    from spatialalign_trl.models.settings import SamplingSettings
    from spatialalign_trl.rewards.convention import RewardFunc

DATASETS = Path(__file__).resolve().parent.parent.parent / "datasets"


@dataclass
class PromptArguments:
    """Which prompts are trained and evaluated on, and who judges."""

    train_prompts: str = field(
        default="tiny_world_prompts",
        metadata={"help": "Prompts to sample and train on: a folder under datasets/, a path, a Hub id, or a file."},
    )
    train_split: str = field(default="train", metadata={"help": "Split of train_prompts."})
    eval_prompts: str | None = field(
        default=None, metadata={"help": "Prompts to evaluate on, never trained on. None: train_prompts."}
    )
    eval_split: str = field(default="test", metadata={"help": "Split of eval_prompts."})
    max_train_prompts: int | None = field(default=None, metadata={"help": "Use the first so many. None: all."})
    max_eval_prompts: int | None = field(default=None, metadata={"help": "Use the first so many. None: all."})
    reward_funcs: list[str] = field(
        default_factory=lambda: ["dsr_score"],
        metadata={
            "help": "Rewards: names of installed ones, path/to/file.py:Name, http://host:port/path of a server, or "
            "user/name@COMMIT on the Hub."
        },
    )
    trust_remote_code: bool = field(
        default=False,
        metadata={"help": "Execute the code of rewards on the Hub, each at the commit that reward_funcs names."},
    )
    reward_options: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "What a reward of reward_funcs is made with, by its name there. In YAML `reward_options: "
            "{dsr_score: {tracker: grounded_sam}}`, as a flag the same in JSON."
        },
    )

    def __post_init__(self) -> None:
        self.reward_options = from_json(self.reward_options, "reward_options")
        options = self.reward_options or {}
        if not isinstance(options, dict) or not all(isinstance(value, dict) for value in options.values()):
            raise ValueError(f"reward_options={options!r}: expected {{reward: {{option: value}}}}")
        for name in options:
            if name not in self.reward_funcs:
                known = map(shown_url, self.reward_funcs)
                raise ValueError(
                    f"reward_options: {shown_url(name)!r} is not in reward_funcs. {near_miss(shown_url(name), known)}"
                )

    def load_rewards(self) -> list[RewardFunc]:
        """The rewards, made with their options."""
        from spatialalign_trl.rewards.loading import load_reward

        options = self.reward_options or {}
        return [
            load_reward(name, trust_remote_code=self.trust_remote_code, **options.get(name, {}))
            for name in self.reward_funcs
        ]

    def load(self) -> tuple[Dataset, Dataset]:
        """`(training prompts, evaluation prompts)`, as they were published."""
        train = self.load_set(self.train_prompts, self.train_split, self.max_train_prompts)
        return train, self.load_set(self.eval_prompts or self.train_prompts, self.eval_split, self.max_eval_prompts)

    def load_set(self, source: str, split: str, limit: int | None) -> Dataset:
        """The first `limit` rows of one split."""
        return load_prompt_set(source, split, limit)

    def at_size(
        self, rows: tuple[Dataset, Dataset], settings: SamplingSettings, folder: Path
    ) -> tuple[Dataset, Dataset]:
        """What [`~PromptArguments.load`] returned, for videos of these settings; `folder` is where files for it may
        go. Prompts are words, and good for any size."""
        return rows


def from_json(value: Any, name: str) -> Any:
    """An argument that YAML files give as it is, and flags as JSON."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError as error:
        raise ValueError(f"{name}={value!r} is not JSON: {error}") from error


def prompt_source(source: str) -> str:
    """A path or Hub id as it is, or the path of a folder under `datasets/` by its name.

    Raises:
        FileNotFoundError: for what is neither a path nor has an owner, and is nearly the name of such a folder.
    """
    bundled = {folder.name: folder for folder in DATASETS.glob("*") if folder.is_dir()}
    is_path = "/" in source or Path(source).exists()
    if source not in bundled and not is_path and nearest(source, bundled):
        told = near_miss(source, bundled)
        raise FileNotFoundError(f"there is no set {source!r} under {DATASETS} and no such path. {told}")
    return str(bundled.get(source, source))


def load_prompt_set(source: str, split: str, limit: int | None = None) -> Dataset:
    """Loads the first `limit` prompts, as `load_prompts` does, or of a folder under `datasets/` by its name."""
    from spatialalign_trl.prompts import load_prompts

    prompts = load_prompts(prompt_source(source), split)
    return prompts if limit is None else prompts.select(range(min(limit, len(prompts))))
