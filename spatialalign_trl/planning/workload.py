"""What a run asks for, in numbers: videos, pairs and steps, and what they take on disk and in memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

from spatialalign_trl.planning.cards import GIB

VIDEO_BITS_PER_PIXEL = 0.4
"""Assumed size of an mp4 at CRF 18. Generated videos differ by a factor of 4; latents outweigh them."""


@dataclass(frozen=True)
class Workload:
    """
    What a run asks for.

    Args:
        train_prompts, eval_prompts (`int`):
            Number of prompts.
        generations (`int`):
            Videos per training prompt and round.
        rounds (`int`):
            Number of rounds.
        evaluation_seeds (`int`):
            Videos per evaluation prompt and policy.
        evaluations (`int`):
            Number of policies that are evaluated.
        pair_strategy (`str`):
            As in `preferences.make_pairs`.
        pairs_per_prompt (`int`, *optional*):
            Largest number of pairs of a prompt.
        pools_rounds (`bool`):
            Whether later rounds pair the samples of all rounds so far.
        win_rate (`float`):
            Assumed share of videos that win, with `pair_strategy="threshold"`.
        steps (`int`, *optional*):
            Optimizer steps per round; `None`: `epochs` over the pairs.
        epochs (`float`):
            Passes over the pairs if `steps` is not given.
        batch (`int`):
            Pairs per device and forward.
        accumulation (`int`):
            Forwards per optimizer step.
        gpus (`int`):
            Number of processes, with a GPU each.
        latent_bytes, video_bytes (`float`):
            Size of a sample's latents (fp32) and of its video file.
        fixed_draws (`int`):
            Predictions of the reference that are stored for every video of a pair.
    """

    train_prompts: int
    eval_prompts: int
    generations: int
    rounds: int
    evaluation_seeds: int
    evaluations: int
    pair_strategy: str
    pairs_per_prompt: int | None
    pools_rounds: bool
    win_rate: float
    steps: int | None
    epochs: float
    batch: int
    accumulation: int
    gpus: int
    latent_bytes: float
    video_bytes: float
    fixed_draws: int = 0

    @property
    def training_videos(self) -> int:
        """Videos that are sampled to train on, in all rounds."""
        return self.train_prompts * self.generations * self.rounds

    @property
    def evaluation_videos(self) -> int:
        """Videos that are sampled to evaluate."""
        return self.eval_prompts * self.evaluation_seeds * self.evaluations

    def pairs(self, number: int) -> float:
        """Return the expected number of pairs of a round; the first has number 1."""
        samples = self.generations * (number if self.pools_rounds else 1)
        expected = expected_pairs(samples, self.pair_strategy, self.win_rate, self.pairs_per_prompt)
        return self.train_prompts * expected

    @property
    def most_pairs(self) -> float:
        """The expected number of pairs of the largest round."""
        return max(self.pairs(number) for number in range(1, self.rounds + 1))

    @property
    def forwards(self) -> int:
        """Number of batches that every process trains on, in all rounds."""
        if self.steps is not None:
            return self.steps * self.accumulation * self.rounds
        rounds = range(1, self.rounds + 1)
        return sum(math.ceil(self.epochs * self.pairs(n) / (self.batch * self.gpus)) for n in rounds)

    @property
    def visits(self) -> float:
        """How often a round trains on each of its pairs; a precomputed reference saves time above its draws."""
        visited = self.forwards / self.rounds * self.batch * self.gpus
        return visited / self.most_pairs if self.most_pairs else 0.0

    def disk(self) -> dict[str, float]:
        """Return GiB on disk, by what takes them."""
        sample = self.latent_bytes + self.video_bytes
        rounds = range(1, self.rounds + 1)
        pairs = sum(self.pairs(number) for number in rounds)
        found = {
            "samples": (self.training_videos + self.evaluation_videos) * sample / GIB,
            # The preference dataset holds both videos and latents of every pair: a parquet file, and datasets' copy.
            "pairs": pairs * 2 * sample * 2 / GIB,
        }
        if self.fixed_draws:  # in bf16
            found["reference"] = pairs * self.fixed_draws * 2 * self.latent_bytes / 2 / GIB
        return found

    def memory(self) -> float:
        """Return GiB of the main process's memory that the pairs take while their dataset is written."""
        return self.most_pairs * 2 * (self.latent_bytes + self.video_bytes) / GIB


def expected_pairs(samples: int, strategy: str, win_rate: float, limit: int | None) -> float:
    """
    Return the expected number of pairs of a prompt.

    Args:
        samples (`int`):
            Number of its videos, all of them valid.
        strategy (`str`):
            As in `preferences.make_pairs`. `"threshold"`: every video wins with probability `win_rate`, independently
            of the others. The other strategies: no two scores are equal.
        win_rate (`float`):
            Probability in [0, 1].
        limit (`int`, *optional*):
            Largest number of pairs.
    """
    limit = math.inf if limit is None else limit
    if strategy == "best_vs_worst":
        return min(samples // 2, limit)
    if strategy == "min_gap":
        return min(samples * (samples - 1) // 2, limit)
    total = 0.0
    for wins in range(samples + 1):
        probability = math.comb(samples, wins) * win_rate**wins * (1 - win_rate) ** (samples - wins)
        total += probability * min(wins * (samples - wins), limit)
    return total
