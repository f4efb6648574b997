"""Scoring what was rolled out: every stored sample that has no score yet is read, judged, and written back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from spatialalign_trl.rewards.combination import RewardCombination
from spatialalign_trl.rewards.runner import RewardRunner

if TYPE_CHECKING:
    from accelerate import Accelerator

    from spatialalign_trl.rollout.store import Sample, SampleStore


def score_samples(
    samples: Sequence[Sample],
    store: SampleStore,
    runner: RewardRunner,
    *,
    batch_size: int = 16,
    accelerator: Accelerator | None = None,
    desc: str = "scoring",
) -> list[Sample]:
    """Scores the samples which these rewards have not scored yet, and those on which one of them failed.

    A sample that a reward of the same name but with other settings has scored (another tracker) is scored again. Where
    only some of the rewards have scored it, and no others, the new ones alone are asked.
    Models that the rewards have loaded are freed at the end.

    The stored mp4 is what is judged, as the authors do, so that a score can be checked against the file it belongs to.
    Scores are written batch by batch: an interruption loses one batch.

    Args:
        samples: stored samples.
        store: where they lie.
        runner: the rewards.
        batch_size: videos handed to the rewards at a time.
        accelerator: deals the samples over the processes (sample i to process i modulo their number) and waits for
            all of them. Every process must be given the same samples in the same order.
        desc: of the progress bar.

    Returns:
        The samples with their scores, in the order given, on every process.

    Raises:
        RewardFailure: when a reward fails on too many videos.
        ValueError: for a batch size below 1, or a stored video that is damaged.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
    rank, world = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    # Deal by place among all samples, not among those to score: a process that was slow to load its samples already
    # sees what a quick one has scored since, and would count differently.
    made_with = {name: settings for name, settings in runner.describe().items() if settings is not None}
    judges = {f"{name}_settings": _digest(settings) for name, settings in made_with.items()}
    missing: dict[tuple[str, ...], list[Sample]] = {}
    for sample in samples[rank::world]:
        missing.setdefault(_missing(sample, runner.names, judges), []).append(sample)
    missing.pop((), None)
    total = sum(map(len, missing.values()))
    with tqdm(total=total, desc=desc, unit="video", disable=rank != 0 or not total) as bar:
        for names, mine in missing.items():
            asked = runner.only(names)
            for start in range(0, len(mine), batch_size):
                batch = mine[start : start + batch_size]
                _score_batch(batch, store, asked, runner.combination, judges)
                bar.update(len(batch))
    runner.release()
    if accelerator:
        accelerator.wait_for_everyone()
    return combine_scores([store.load(sample.sample_id) for sample in samples], runner.combination)


def combine_scores(
    samples: Sequence[Sample], combination: RewardCombination, *, normalize: bool = False
) -> list[Sample]:
    """Adds each sample's stored values up anew: those in the store were added up as the run that scored it wanted.

    Args:
        samples: stored samples; with `normalize`, all those that are to be compared, in any order.
        combination: the weights, the gates and the normalisation.
        normalize: the values are normalised first, as the combination says.

    Returns:
        The samples with `reward` of this combination, and with `gate_reason` in `components` where it has gates. Their
        `rewards` stay what the rewards returned.
    """
    scored = [sample for sample in samples if sample.scored]
    values = [sample.rewards for sample in scored]
    if normalize:
        rewards = combination.normalized(values, [sample.prompt_id for sample in scored])
    else:
        rewards = [combination.combined(one) for one in values]
    combined = {}
    for sample, reward in zip(scored, rewards, strict=True):
        components = {name: value for name, value in sample.components.items() if name != "gate_reason"}
        if combination.gates:
            components["gate_reason"] = combination.gate_reason(sample.rewards)
        # The first is the headline, whatever was asked first when the scores were made.
        own = {name: sample.rewards[name] for name in combination.weights if name in sample.rewards}
        rewards_in_order = own | sample.rewards
        combined[sample.sample_id] = replace(sample, rewards=rewards_in_order, reward=reward, components=components)
    return [combined.get(sample.sample_id, sample) for sample in samples]


def _missing(sample: Sample, names: Sequence[str], judges: Mapping[str, str]) -> tuple[str, ...]:
    """The rewards that have to be asked: those that have not judged the sample, where the others of them, made with
    these settings, and no other rewards have, without failing; else all, for nobody knows who logged what."""
    there = [name for name in names if name in sample.rewards]
    known = sample.scored and len(there) == len(sample.rewards) and not has_failed(sample, there)
    columns = (f"{name}_settings" for name in there)
    if not known or any(sample.components.get(column) != judges.get(column) for column in columns):
        return tuple(names)
    return tuple(name for name in names if name not in there)


def has_failed(sample: Sample, names: Iterable[str]) -> bool:
    """Whether one of these rewards failed on the sample: it then has no verdict, not even INVALID."""
    return any(sample.components.get(f"{name}_error") for name in names)


def _digest(settings: Any) -> str:
    """A short name of what a reward was made with."""
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _score_batch(
    batch: Sequence[Sample],
    store: SampleStore,
    runner: RewardRunner,
    combination: RewardCombination,
    judges: Mapping[str, str],
) -> None:
    """Asks the runner's rewards, and adds what they say to what is known where they are not all of the combination."""
    is_part = set(runner.names) < set(combination.weights)
    columns = {name: [sample.row[name] for sample in batch] for name in batch[0].row}
    if all("fps" in sample.settings for sample in batch):  # what a reward of speed cannot see in the frames
        columns.setdefault("fps", [sample.settings["fps"] for sample in batch])
    output = runner(columns.pop("prompt"), [store.video(sample.sample_id) for sample in batch], columns)
    for index, sample in enumerate(batch):
        rewards = {name: values[index] for name, values in output.per_reward.items()}
        components = {name: values[index] for name, values in output.extra.items()}
        if is_part:
            rewards, components = sample.rewards | rewards, sample.components | components
        store.write_scores(
            sample.sample_id, rewards=rewards, reward=combination.combined(rewards), components=components | judges
        )
