"""Score stored samples: every sample without a score is read, judged, and its score is written next to it."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from tqdm import tqdm

from spatialalign_trl.rewards.combination import RewardCombination
from spatialalign_trl.rewards.runner import RewardRunner
from spatialalign_trl.rewards.sources import source_fingerprints

if TYPE_CHECKING:
    from accelerate import Accelerator, PartialState

    from spatialalign_trl.video import Video


logger = logging.getLogger(__name__)


class StoredSample(Protocol):
    """A dataclass with what scoring needs of a sample, such as [`~spatialalign_trl.rollout.store.Sample`]."""

    sample_id: str
    prompt_id: str
    row: dict[str, Any]
    settings: dict[str, Any]
    rewards: dict[str, float | None]
    reward: float | None
    scored: bool
    components: dict[str, Any]


class Store(Protocol):
    """What scoring needs of a store, such as [`~spatialalign_trl.rollout.store.SampleStore`]."""

    def load(self, sample_id: str) -> StoredSample: ...

    def video(self, sample_id: str) -> Video: ...

    def write_scores(
        self,
        sample_id: str,
        rewards: Mapping[str, float | None],
        reward: float | None,
        components: Mapping[str, Any] | None = None,
    ) -> StoredSample: ...


def score_samples(
    samples: Sequence[StoredSample],
    store: Store,
    runner: RewardRunner,
    *,
    batch_size: int = 16,
    skip_unreadable: bool = False,
    accelerator: Accelerator | PartialState | None = None,
    desc: str = "scoring",
) -> list[StoredSample]:
    """
    Score the samples that these rewards have not scored yet, and those on which one of them failed.

    A sample that was scored by a reward of the same name with other settings (another tracker) is scored again, and
    its old scores are kept beside the new ones. If its scores come from some of the rewards and no others, only the
    missing rewards are run. At the end the rewards release their models.

    The rewards see the stored mp4, as in the authors' code, so that a score can be checked against its file. Scores
    are written batch by batch: an interruption loses one batch.

    Args:
        samples (sequence of [`StoredSample`]):
            The samples.
        store ([`Store`]):
            The store that contains them.
        runner ([`RewardRunner`]):
            The rewards.
        batch_size (`int`, *optional*, defaults to `16`):
            Number of videos per call of the rewards.
        skip_unreadable (`bool`, *optional*, defaults to `False`):
            Leave samples unscored whose videos cannot be read, as those of strangers may not be.
        accelerator (`Accelerator` or `PartialState`, *optional*):
            Distributes the samples over the processes (sample i to process i modulo their number) and waits for all of
            them. Every process must be given the same samples in the same order.
        desc (`str`, *optional*, defaults to `"scoring"`):
            Label of the progress bar.

    Returns:
        `list[StoredSample]`: the samples with their scores, in the given order, on every process.

    Raises:
        `RewardFailure`: if a reward fails on too many videos.
        `ValueError`: for a batch size below 1, or a damaged video without `skip_unreadable`.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")

    # 1. Find the rewards to run on each sample. Distribute all samples, not only the unscored ones: a process that
    # loaded its samples late already sees the scores of a faster one, and would count differently.
    rank, world = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    digests, former = _digests(runner)
    by_rewards: dict[tuple[str, ...], list[StoredSample]] = {}
    for sample in samples[rank::world]:
        by_rewards.setdefault(_rewards_to_run(sample, runner.names, digests, former), []).append(sample)
    for sample in by_rewards.pop((), []):
        if any(sample.components.get(column) != digest for column, digest in digests.items()):
            # Scores from before the code was recorded count as made by the present code, and by no later one.
            store.write_scores(sample.sample_id, sample.rewards, sample.reward, sample.components | digests)

    again = [sample for names, part in by_rewards.items() if len(names) == len(runner.names) for sample in part]
    if (count := sum(sample.scored for sample in again)) and rank == 0:
        logger.warning(
            "%d samples are scored again, because a reward or its settings have changed, or it failed on them. Scores "
            "that differ are kept beside the new ones (*.replaced-N.json).",
            count,
        )

    # 2. Score and write, batch by batch
    total = sum(map(len, by_rewards.values()))
    with tqdm(total=total, desc=desc, unit="video", disable=rank != 0 or not total) as bar:
        for names, unscored in by_rewards.items():
            part = runner.only(names)
            for start in range(0, len(unscored), batch_size):
                batch = unscored[start : start + batch_size]
                videos = _read_videos(batch, store, skip_unreadable)
                readable = [sample for sample in batch if sample.sample_id in videos]
                if readable:
                    _score_batch(readable, videos, store, part, runner.combination, digests)
                bar.update(len(batch))
    runner.release()
    if accelerator:
        accelerator.wait_for_everyone()

    # 3. Read all scores. Those of earlier runs may have been combined with other weights or gates.
    return combine_scores([store.load(sample.sample_id) for sample in samples], runner.combination)


def combine_scores(
    samples: Sequence[StoredSample], combination: RewardCombination, *, normalize: bool = False
) -> list[StoredSample]:
    """
    Combine each sample's stored values, replacing the `reward` of the run that scored it.

    Args:
        samples (sequence of [`StoredSample`]):
            The samples, in any order; with `normalize`, all samples that are to be compared.
        combination ([`RewardCombination`]):
            The weights, the gates and the normalisation.
        normalize (`bool`, *optional*, defaults to `False`):
            Normalise the values first, as the combination says.

    Returns:
        `list[StoredSample]`: the samples with the `reward` of this combination, and with `gate_reason` in `components`
        if it has gates. Their `rewards` stay the values that the rewards returned.
    """
    scored = [sample for sample in samples if sample.scored]
    values = [sample.rewards for sample in scored]
    if normalize:
        rewards = combination.normalized(values, [sample.prompt_id for sample in scored])
    else:
        rewards = [combination.combined(sample_values) for sample_values in values]
    combined = {}
    for sample, reward in zip(scored, rewards, strict=True):
        components = {name: value for name, value in sample.components.items() if name != "gate_reason"}
        if combination.gates:
            components["gate_reason"] = combination.gate_reason(sample.rewards)
        # The combination's first reward is the headline of reports, whichever ran first.
        first = {name: sample.rewards[name] for name in combination.weights if name in sample.rewards}
        in_order = first | sample.rewards
        combined[sample.sample_id] = replace(sample, rewards=in_order, reward=reward, components=components)
    return [combined.get(sample.sample_id, sample) for sample in samples]


def has_failed(sample: StoredSample, names: Iterable[str]) -> bool:
    """Return whether one of these rewards failed on the sample, which is no verdict, not even INVALID."""
    return any(sample.components.get(f"{name}_error") for name in names)


def _digests(runner: RewardRunner) -> tuple[dict[str, str], dict[str, str | None]]:
    """Return hashes of each reward's settings and code, by the column that holds them; and those of earlier versions,
    which did not cover the code (`None`: there was no column)."""
    digests, former = {}, {}
    sources = source_fingerprints(runner)
    for name, settings in runner.describe().items():
        column = f"{name}_settings"
        former[column] = None if settings is None else _digest(settings)
        if sources[name] is not None:
            digests[column] = f"{former[column] or ''}+{_digest(sources[name])}"
        elif settings is not None:
            digests[column] = former[column]
    return digests, former


def _rewards_to_run(
    sample: StoredSample, names: Sequence[str], digests: Mapping[str, str], former: Mapping[str, str | None]
) -> tuple[str, ...]:
    """Return the missing rewards if all stored scores came from these rewards with these settings and no error, else
    all: columns cannot be attributed to the reward that logged them."""
    present = [name for name in names if name in sample.rewards]
    is_reusable = sample.scored and len(present) == len(sample.rewards) and not has_failed(sample, present)
    columns = (f"{name}_settings" for name in present)
    if not is_reusable or any(
        sample.components.get(column) not in (digests.get(column), former[column]) for column in columns
    ):
        return tuple(names)
    return tuple(name for name in names if name not in present)


def _digest(settings: Any) -> str:
    """Return a short hash of a reward's settings."""
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _read_videos(batch: Sequence[StoredSample], store: Store, skip_unreadable: bool) -> dict[str, Video]:
    """Read the videos of a batch, by sample id."""
    videos = {}
    for sample in batch:
        try:
            videos[sample.sample_id] = store.video(sample.sample_id)
        except Exception:  # whatever a damaged file makes of the decoder
            if not skip_unreadable:
                raise
    return videos


def _score_batch(
    batch: Sequence[StoredSample],
    videos: Mapping[str, Video],
    store: Store,
    runner: RewardRunner,
    combination: RewardCombination,
    digests: Mapping[str, str],
) -> None:
    """Run the rewards on a batch and write the scores; a subset of the rewards adds to the scores that are known."""
    columns = {name: [sample.row[name] for sample in batch] for name in batch[0].row}
    if all("fps" in sample.settings for sample in batch):  # frames alone do not show the speed of a motion
        columns.setdefault("fps", [sample.settings["fps"] for sample in batch])
    output = runner(columns.pop("prompt"), [videos[sample.sample_id] for sample in batch], columns)
    is_subset = set(runner.names) < set(combination.weights)
    for index, sample in enumerate(batch):
        rewards = {name: values[index] for name, values in output.per_reward.items()}
        components = {name: values[index] for name, values in output.extra.items()}
        reward = output.rewards[index]
        if is_subset:  # the runner knows only the new values
            rewards, components = sample.rewards | rewards, sample.components | components
            reward = combination.combined(rewards)
        store.write_scores(sample.sample_id, rewards=rewards, reward=reward, components=components | digests)
