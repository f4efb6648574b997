"""Scoring what was rolled out: every stored sample that has no score yet is read, judged, and written back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tqdm import tqdm

from .rewards import RewardRunner

if TYPE_CHECKING:
    from accelerate import Accelerator

    from .rollout.store import Sample, SampleStore


def score_samples(
    samples: Sequence[Sample],
    store: SampleStore,
    runner: RewardRunner,
    *,
    batch_size: int = 16,
    accelerator: Accelerator | None = None,
    desc: str = "scoring",
) -> list[Sample]:
    """Scores the samples which these rewards have not scored yet.

    The stored mp4 is what is judged, as the authors do, so that a score can be checked against the file it belongs to.
    Scores are written batch by batch: an interruption loses one batch.

    Args:
        samples: stored samples.
        store: where they lie.
        runner: the rewards.
        batch_size: videos handed to the rewards at a time.
        accelerator: deals the samples over the processes and waits for all of them.
        desc: of the progress bar.

    Returns:
        The samples with their scores, in the order given, on every process.

    Raises:
        RewardFailure: when a reward fails on too many videos.
    """
    names = set(runner.names)
    todo = [sample for sample in samples if not (sample.scored and set(sample.rewards) == names)]
    rank, world = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    mine = todo[rank::world]
    with tqdm(total=len(mine), desc=desc, unit="video", disable=rank != 0 or not mine) as bar:
        for start in range(0, len(mine), batch_size):
            batch = mine[start : start + batch_size]
            _score_batch(batch, store, runner)
            bar.update(len(batch))
    if accelerator:
        accelerator.wait_for_everyone()
    return [store.load(sample.sample_id) for sample in samples]


def _score_batch(batch: Sequence[Sample], store: SampleStore, runner: RewardRunner) -> None:
    columns = {name: [sample.row[name] for sample in batch] for name in batch[0].row}
    output = runner(columns.pop("prompt"), [store.video(sample.sample_id) for sample in batch], columns)
    for index, sample in enumerate(batch):
        store.write_scores(
            sample.sample_id,
            rewards={name: values[index] for name, values in output.per_reward.items()},
            reward=output.rewards[index],
            components={name: values[index] for name, values in output.extra.items()},
        )
