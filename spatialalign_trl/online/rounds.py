"""Sample, score and pair: the core of a round, as functions.

    samples = sample_and_score(run, rows, seeds, revision, "sampling")       # the policy's own videos
    result  = make_round_pairs(run, samples_to_pair(run, number, samples))   # winners and losers
    dataset = store_pairs(run, result.pairs, folder)                         # what the trainer reads

[`OnlineSpatialAlignTrainer`] calls these functions in this order; `recipes/loop_from_parts.py` shows the whole loop.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from safetensors import SafetensorError
from safetensors.torch import load

from spatialalign_trl.files import is_intact, read_json
from spatialalign_trl.models.lora import LORA_FILE, lora_fingerprint
from spatialalign_trl.online.run_settings import ROUND_FILE, check_same_run, describe_lora
from spatialalign_trl.planning.pace import Pace
from spatialalign_trl.preferences import Pair, PairingResult, make_pairs, to_dataset
from spatialalign_trl.rewards.scoring import combine_scores, has_failed, score_samples
from spatialalign_trl.rewards.sources import source_fingerprints
from spatialalign_trl.rollout.origin import check_origin
from spatialalign_trl.rollout.sampler import noise_seed, roll_out
from spatialalign_trl.safe_text import terminal_text
from spatialalign_trl.trainer.checkpoints import checkpoints_of
from spatialalign_trl.trainer.lora import default_lora_config

if TYPE_CHECKING:
    from accelerate import PartialState
    from peft import LoraConfig
    from rich.console import Console

    from spatialalign_trl.models.base import VideoModel
    from spatialalign_trl.models.lora_loading import LoraFit
    from spatialalign_trl.models.settings import SamplingSettings
    from spatialalign_trl.models.usage import LoraUsage
    from spatialalign_trl.online.config import OnlineSpatialAlignConfig
    from spatialalign_trl.rewards.runner import RewardRunner
    from spatialalign_trl.rollout.store import Sample, SampleStore

PREFERENCES_FILE = "train-00000-of-00001.parquet"


@dataclass(frozen=True)
class RunParts:
    """
    The parts of a run that all its stages share.

    Args:
        args ([`OnlineSpatialAlignConfig`]): The settings of the stages.
        model ([`VideoModel`]): The policy.
        settings ([`SamplingSettings`]): How videos are sampled.
        runner ([`RewardRunner`]): The rewards.
        store ([`SampleStore`]): The folder of all samples.
        train_rows (`list[dict]`): The training prompts.
        accelerator (`PartialState`): The processes of the run.
        console (`Console`): Where progress is printed; silent except on the main process.
        pace ([`Pace`], *optional*): How long the run still takes.
    """

    args: OnlineSpatialAlignConfig
    model: VideoModel
    settings: SamplingSettings
    runner: RewardRunner
    store: SampleStore
    train_rows: list[dict[str, Any]]
    accelerator: PartialState
    console: Console
    pace: Pace = field(default_factory=Pace)

    @property
    def output_dir(self) -> Path:
        """The run's folder."""
        return Path(self.args.output_dir)

    def round_folder(self, number: int) -> Path:
        """Return the folder of a round; the first round has number 1."""
        return self.output_dir / "rounds" / f"{number:02d}"

    def lora_usage(self, row: Mapping[str, Any], seed: int, name: str = "the run's sample") -> LoraUsage:
        """
        Describe how the LoRA draws what the run samples for a prompt and a seed.

        Args:
            row (`dict`): The prompt.
            seed (`int`): The seed of the sample.
            name (`str`, *optional*): What the sample is called in the code's comment.
        """
        prompt_id = str(row["prompt_id"])
        source = f"{name}: noise_seed({seed}, {prompt_id!r}) of rollout/sampler.py"
        return self.model.lora_usage(
            self.settings, prompt=row["prompt"], noise_seed=noise_seed(seed, prompt_id), drawn_by_run=source
        )


# Before the first round


def check_run_folder(
    run: RunParts,
    peft_config: LoraConfig | None,
    starting_policy: str | None,
    starting_fit: LoraFit | None = None,
) -> dict[str, Any]:
    """
    Check that a run's folder, and that of its samples, belong to this run; see [`check_same_run`], [`check_origin`].

    Args:
        run ([`RunParts`]): The run.
        peft_config ([`~peft.LoraConfig`], *optional*): The LoRA; `None`: the model's default.
        starting_policy (`str`, *optional*): The name of the LoRA that the model came with; `None` if it came without.
        starting_fit ([`LoraFit`], *optional*): How much of that LoRA's file has a place in the model.
    """
    settings = check_same_run(
        run.output_dir,
        run.args,
        run.settings,
        run.model,
        run.runner.describe(),
        run.train_rows,
        starting_policy,
        starting_fit,
        lora=describe_lora(peft_config or default_lora_config(run.model)),
        reward_sources=source_fingerprints(run.runner),
    )
    check_origin(run.store, run.model)
    return settings


# 1. Sample and score


def training_seeds(run: RunParts, number: int) -> list[int]:
    """Return the seeds of a round; no two rounds share one."""
    first = (number - 1) * run.args.num_generations
    return list(range(first, first + run.args.num_generations))


def sample_and_score(
    run: RunParts, rows: Sequence[Mapping[str, Any]], seeds: Sequence[int], revision: str, desc: str
) -> list[Sample]:
    """
    Sample and score the videos that the store does not have yet.

    Args:
        run ([`RunParts`]): The run.
        rows (sequence of `dict`): The prompts.
        seeds (sequence of `int`): One video is sampled per prompt and seed.
        revision (`str`): The name of the policy's weights, which is part of a sample's identity.
        desc (`str`): The label of the progress bar.

    Returns:
        `list[Sample]`: by prompt, then by seed.
    """
    samples = roll_out(
        run.model,
        rows,
        seeds,
        run.settings,
        run.store,
        policy_revision=revision,
        batch_size=run.args.rollout_batch_size,
        accelerator=run.accelerator,
        crf=run.args.video_crf,
        desc=desc,
        on_batch=run.pace.sampled,
    )
    return score_samples(samples, run.store, run.runner, accelerator=run.accelerator)


def are_scored(run: RunParts, rows: Sequence[Mapping[str, Any]], seeds: Sequence[int], revision: str) -> bool:
    """Check whether the store already has the scores of all these samples."""
    ids = _sample_ids(run, rows, seeds, revision)
    return all(run.store.path(sample_id, ".scores.json").exists() for sample_id in ids)


def samples_of_round(run: RunParts, number: int) -> list[Sample]:
    """Load the training samples of a finished round from the store."""
    revision = read_json(run.round_folder(number) / ROUND_FILE)["sampled_from"]
    ids = _sample_ids(run, run.train_rows, training_seeds(run, number), revision)
    return combine_scores([run.store.load(sample_id) for sample_id in ids], run.runner.combination)


def samples_before(run: RunParts, number: int) -> list[Sample]:
    """Load the training samples of all rounds before `number`."""
    return [sample for earlier in range(1, number) for sample in samples_of_round(run, earlier)]


def read_round(run: RunParts, number: int) -> dict[str, Any]:
    """
    Return the record of a finished round, whose LoRA is as the round left it.

    Raises:
        ValueError: if the LoRA is missing or damaged; names an intact copy, or what else to do.
    """
    folder = run.round_folder(number)
    record = read_json(folder / ROUND_FILE)
    file = folder / "policy" / LORA_FILE
    if not _holds_policy(file, record):
        copies = [run.output_dir / LORA_FILE, *(path / LORA_FILE for path in checkpoints_of(folder / "policy"))]
        copy = next((path for path in copies if _holds_policy(path, record)), None)
        if copy is not None:
            remedy = f"An intact copy of it is {copy}: cp {copy} {file}"
        else:
            remedy = (
                f"There is no intact copy. Rename {folder / ROUND_FILE} and run the same command: it uses samples, "
                "scores and sound checkpoints again, and ends the round's training anew."
            )
        raise ValueError(f"{file} is missing or damaged: it is not the LoRA that round {number} made. {remedy}")
    return record


def _holds_policy(file: Path, record: Mapping[str, Any]) -> bool:
    """Return whether a file is the LoRA that a round's record names."""
    try:
        data = file.read_bytes()
        weights = load(data) if is_intact(data) else {}
    except (OSError, SafetensorError):
        return False
    return lora_fingerprint(weights) == record["policy_revision"].rpartition("@")[2]


def _sample_ids(run: RunParts, rows: Sequence[Mapping[str, Any]], seeds: Sequence[int], revision: str) -> list[str]:
    settings = run.settings.to_dict()
    return [run.store.sample_id(row, seed, settings, revision) for row in rows for seed in seeds]


# 2. Pair


def samples_to_pair(run: RunParts, number: int, samples: Sequence[Sample]) -> list[Sample]:
    """Return the samples that a round's pairs are made of: its own, and with `pool_rounds` all earlier ones."""
    return [*(samples_before(run, number) if run.args.pool_rounds else []), *samples]


def make_round_pairs(run: RunParts, samples: Sequence[Sample]) -> PairingResult:
    """Pair winners and losers of the same prompt as the settings say; `stats` also counts the INVALID samples."""
    args, combination = run.args, run.runner.combination
    if combination.normalization != "none":  # z-scores exist only here, where all samples to compare are known
        samples = combine_scores(samples, combination, normalize=True)
    num_invalid = sum(sample.reward is None for sample in samples)
    if args.invalid_score is not None:
        samples = [_with_invalid_score(sample, args.invalid_score) for sample in samples]
    result = make_pairs(
        samples, args.pair_strategy, args.score_threshold, args.min_pair_gap, args.pairs_per_prompt, args.seed
    )
    result.stats["invalid_samples"] = num_invalid
    return result


def _with_invalid_score(sample: Sample, invalid_score: float) -> Sample:
    """Score an INVALID sample, so that it can lose. A sample on which a reward failed keeps having no score."""
    if sample.reward is not None or not sample.scored or has_failed(sample, sample.rewards):
        return sample
    return replace(sample, reward=invalid_score)


def check_pairs(run: RunParts, samples: Sequence[Sample], result: PairingResult) -> None:
    """
    Print what the pairing gave, and warn if most prompts have no pair.

    Raises:
        ValueError: if no prompt has a pair.
    """
    args, stats = run.args, result.stats
    if not result.pairs:
        scores = [sample.reward for sample in samples if sample.reward is not None]
        spread = f"between {min(scores):.3f} and {max(scores):.3f}" if scores else "all INVALID"
        raise ValueError(
            f"there is nothing to learn: none of {len({s.prompt_id for s in samples})} prompts has a pair "
            f"(scores are {spread}, pair_strategy={args.pair_strategy!r}, score_threshold={args.score_threshold}). "
            "Sample more videos per prompt (num_generations), lower score_threshold, or use "
            "pair_strategy=best_vs_worst. The samples are kept."
        )
    summary = (
        f"{stats['pairs']} pairs from {stats['prompts_with_pair']} of {stats['prompts']} prompts "
        f"({stats['share_without_pair']:.0%} have no pair), mean gap {stats['mean_gap']:.3f}, "
        f"{stats['invalid_samples']} of {stats['samples']} samples INVALID"
    )
    run.console.print(terminal_text(summary))
    if stats["share_without_pair"] > 0.5 and run.accelerator.is_main_process:
        warnings.warn(
            f"{stats['share_without_pair']:.0%} of the prompts have no pair and teach nothing: their videos all won, "
            "all lost, or are INVALID. Sample more videos per prompt (num_generations), move score_threshold towards "
            "the middle of the scores, or use pair_strategy=best_vs_worst.",
            stacklevel=2,
        )


def store_pairs(run: RunParts, pairs: Sequence[Pair], folder: Path) -> Dataset:
    """Write a round's preference dataset to `folder`; every process reads the file that the main process wrote."""
    file = folder / PREFERENCES_FILE
    if run.accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(".partial")
        to_dataset(pairs, run.store.video_bytes, run.store.latents_bytes).to_parquet(temporary)
        temporary.replace(file)
    run.accelerator.wait_for_everyone()
    return Dataset.from_parquet(str(file), cache_dir=str(folder / "_cache"))
