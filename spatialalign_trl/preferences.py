"""
Scored samples -> preference pairs -> a preference dataset.

A pair is two samples of one prompt of which one scored higher. INVALID samples (reward `None`) are never in a pair:
they are neither good nor bad. Source of the default: SpatialAlign (arXiv 2602.22745), where a sample of at least 0.7
is preferred over a valid one below 0.7.
"""

import logging
import math
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Literal, Protocol, TypeAlias, get_args

import datasets
from datasets import Dataset, Features, Value, Video

from spatialalign_trl.errors import near_miss
from spatialalign_trl.prompts import PROMPT_COLUMNS
from spatialalign_trl.video import is_video_cell, self_contained

logger = logging.getLogger(__name__)

Strategy: TypeAlias = Literal["threshold", "best_vs_worst", "min_gap"]

# Rounding in a difference of scores: 0.7 - 0.6 is 0.09999999999999998 and yet a gap of 0.1.
GAP_TOLERANCE = 1e-9
# Rows that are turned into Arrow at once: a column of bytes must stay below 2 GiB in one piece.
ROWS_PER_BLOCK = 64
_SAMPLE_ID = re.compile(r"[0-9a-f]{8,64}")


class ScoredSample(Protocol):
    """What pairing needs to know of a sample; [`~spatialalign_trl.rollout.store.Sample`] has it."""

    sample_id: str
    prompt_id: str
    row: dict[str, Any]
    seed: int
    reward: float | None
    components: dict[str, Any]


@dataclass(frozen=True)
class Pair:
    """
    Two samples of one prompt, the first of which scored higher.

    Args:
        chosen, rejected ([`ScoredSample`]):
            The winner and the loser.

    Raises:
        `ValueError`: when they are of different prompts, one is INVALID, or the winner does not score higher.
    """

    chosen: ScoredSample
    rejected: ScoredSample

    def __post_init__(self) -> None:
        ids = f"{self.chosen.sample_id} and {self.rejected.sample_id}"
        if self.chosen.prompt_id != self.rejected.prompt_id:
            raise ValueError(
                f"Samples {ids} are of different prompts ({self.chosen.prompt_id!r}, {self.rejected.prompt_id!r})."
            )
        if self.chosen.reward is None or self.rejected.reward is None:
            raise ValueError(f"Samples {ids} are no pair: an INVALID sample has no score to compare.")
        if not self.score_chosen > self.score_rejected:
            raise ValueError(
                f"Samples {ids} are no pair: the chosen one's score {self.score_chosen} is not above the rejected "
                f"one's {self.score_rejected}."
            )

    @property
    def prompt_id(self) -> str:
        return self.chosen.prompt_id

    @property
    def score_chosen(self) -> float:
        return float(self.chosen.reward)

    @property
    def score_rejected(self) -> float:
        return float(self.rejected.reward)

    @property
    def gap(self) -> float:
        return self.score_chosen - self.score_rejected


@dataclass(frozen=True)
class PairingResult:
    """
    The pairs, and how much of the samples they use.

    Args:
        pairs (`list[Pair]`):
            By prompt, in the order in which the prompts first appear.
        stats (`dict[str, float | None]`):
            `prompts`, `prompts_with_pair`, `share_without_pair`, `pairs`, `mean_gap` (`None` without pairs),
            `samples`, `invalid_samples`.
        without_pair (`dict[str, str]`):
            Prompt id -> why it has no pair.
    """

    pairs: list[Pair]
    stats: dict[str, float | None]
    without_pair: dict[str, str]


def make_pairs(
    samples: Iterable[ScoredSample],
    strategy: Strategy = "threshold",
    threshold: float = 0.7,
    min_gap: float = 0.0,
    pairs_per_prompt: int | None = 1,
    seed: int = 0,
) -> PairingResult:
    """
    Pair samples within each prompt. The outcome depends on the samples and the arguments, not on the samples' order.

    Args:
        samples (`Iterable[ScoredSample]`):
            Scored samples of any number of prompts.
        strategy (`str`, *optional*, defaults to `"threshold"`):
            - `"threshold"` (the paper's): one of at least `threshold` beats a valid one below it, drawn at random.
            - `"best_vs_worst"`: the best beats the worst; with more pairs per prompt, the second best the second
              worst, and so on.
            - `"min_gap"`: any two valid samples at least `min_gap` apart, drawn at random.
        threshold (`float`, *optional*, defaults to `0.7`):
            Score from which a sample is a winner.
        min_gap (`float`, *optional*, defaults to `0.0`):
            Smallest `score_chosen - score_rejected` of any pair, whatever the strategy. Equal scores never pair.
        pairs_per_prompt (`int`, *optional*, defaults to `1`):
            At most that many pairs a prompt, none of them twice; `None` for all there are.
        seed (`int`, *optional*, defaults to `0`):
            With the prompt id, seeds each prompt's draw.

    Raises:
        `ValueError`: for an unknown strategy, numbers out of range, a sample that appears twice, a score that is not
            finite, or one prompt id with two texts.
    """
    _check_settings(strategy, threshold, min_gap, pairs_per_prompt)
    by_prompt = _group(samples)
    pairs, without_pair = [], {}
    for prompt_id, group in by_prompt.items():
        generator = _generator(seed, prompt_id)
        valid = [sample for sample in group if sample.reward is not None]
        if len(valid) < 2:
            without_pair[prompt_id] = "fewer than two valid samples"
            continue
        if strategy == "best_vs_worst":
            candidates = _best_vs_worst(valid, generator)
        elif strategy == "threshold":
            winners = [sample for sample in valid if sample.reward >= threshold]
            losers = [sample for sample in valid if sample.reward < threshold]
            if not winners or not losers:
                without_pair[prompt_id] = f"no valid sample {'below' if winners else 'of at least'} {threshold:g}"
                continue
            candidates = [(winner, loser) for winner in winners for loser in losers]
        else:
            candidates = [(winner, loser) for winner in valid for loser in valid]
        candidates = [pair for pair in candidates if _far_enough(*pair, min_gap)]
        if not candidates:
            without_pair[prompt_id] = "all valid samples tie" if min_gap == 0 else f"no gap of at least {min_gap:g}"
            continue
        if strategy != "best_vs_worst":
            generator.shuffle(candidates)
        pairs += [Pair(*pair) for pair in candidates[:pairs_per_prompt]]
    return PairingResult(pairs, _stats(by_prompt, pairs, without_pair), without_pair)


def to_dataset(
    pairs: Sequence[Pair],
    load_video_bytes: Callable[[str], bytes],
    load_latents_bytes: Callable[[str], bytes] | None = None,
) -> Dataset:
    """
    Turn pairs into a preference dataset that holds everything itself, so that it can be pushed and used elsewhere.

    Args:
        pairs (`Sequence[Pair]`):
            One becomes one row.
        load_video_bytes (`Callable[[str], bytes]`):
            Sample id -> its mp4 file's content ([`~spatialalign_trl.rollout.store.SampleStore.video_bytes`]).
        load_latents_bytes (`Callable[[str], bytes]`, *optional*):
            Sample id -> the content of a safetensors file with the one tensor `latents`.

    Returns:
        `datasets.Dataset`: the prompt columns, with the videos that are in them (undecoded `Video`s, such as the
        context of a scene), `chosen` and `rejected` (`Video(decode=False)`: `{"bytes", "path"}` with the bare
        file name `<sample_id>.mp4`), `score_chosen`, `score_rejected`, `chosen_sample_id`, `rejected_sample_id`,
        `seed_chosen`, `seed_rejected`, `chosen_noise_seed`, `rejected_noise_seed` (of the noise that sampling started
        from: `VideoModel.initial_noise`), and with latents `chosen_latents`, `rejected_latents`.

    Raises:
        `ValueError`: for a sample id that is no hexadecimal number (it becomes a file name), an empty video, or a
            prompt column whose name the dataset needs itself.
    """
    features = _features(pairs, with_latents=load_latents_bytes is not None)
    # Videos enter as plain structs and are cast afterwards. Video's own encoding drops the bytes and keeps a local
    # path if a file called like `path` happens to lie in the working directory.
    plain = {name: VIDEO_STRUCT if isinstance(kind, Video) else kind for name, kind in features.items()}
    blocks = []
    for start in range(0, max(len(pairs), 1), ROWS_PER_BLOCK):
        rows = [_row(pair, load_video_bytes, load_latents_bytes) for pair in pairs[start : start + ROWS_PER_BLOCK]]
        columns = {name: [row[name] for row in rows] for name in features}
        blocks.append(Dataset.from_dict(columns, features=Features(plain)))
    dataset = datasets.concatenate_datasets(blocks)
    for name, kind in features.items():
        if isinstance(kind, Video):
            dataset = dataset.cast_column(name, kind)
    return dataset


# ------------------------------------------------------------------------------------------------------------ pairing


def _check_settings(strategy: str, threshold: float, min_gap: float, pairs_per_prompt: int | None) -> None:
    strategies = get_args(Strategy)
    if strategy not in strategies:
        raise ValueError(f"There is no pairing strategy {strategy!r}. {near_miss(str(strategy), strategies)}")
    if not math.isfinite(threshold):
        raise ValueError(f"threshold must be a finite number, got {threshold}.")
    if not (math.isfinite(min_gap) and min_gap >= 0):
        raise ValueError(f"min_gap must be a finite number of at least 0, got {min_gap}.")
    if strategy == "min_gap" and min_gap == 0:
        raise ValueError("The strategy 'min_gap' needs a min_gap above 0: it has no other say in what a pair is.")
    if pairs_per_prompt is not None and pairs_per_prompt < 1:
        raise ValueError(f"pairs_per_prompt must be at least 1, or None for all, got {pairs_per_prompt}.")


def _group(samples: Iterable[ScoredSample]) -> dict[str, list[ScoredSample]]:
    """Prompt id -> its samples, in the order of their ids, so that nothing depends on the order they came in."""
    groups: dict[str, list[ScoredSample]] = {}
    seen = set()
    for sample in samples:
        if sample.sample_id in seen:
            raise ValueError(f"Sample {sample.sample_id} (prompt {sample.prompt_id!r}) is given twice.")
        seen.add(sample.sample_id)
        if sample.reward is not None and not math.isfinite(sample.reward):
            raise ValueError(
                f"Sample {sample.sample_id} (prompt {sample.prompt_id!r}) has the score {sample.reward}; a score is a "
                "finite number, or None for INVALID."
            )
        if sample.row.get("prompt_id", sample.prompt_id) != sample.prompt_id:
            raise ValueError(
                f"Sample {sample.sample_id} says prompt {sample.prompt_id!r}, its row {sample.row['prompt_id']!r}."
            )
        group = groups.setdefault(sample.prompt_id, [])
        if group and sample.row.get("prompt") != group[0].row.get("prompt"):
            raise ValueError(
                f"The prompt id {sample.prompt_id!r} stands for two prompts: {group[0].row.get('prompt')!r} and "
                f"{sample.row.get('prompt')!r}."
            )
        group.append(sample)
    return {prompt_id: sorted(group, key=lambda sample: sample.sample_id) for prompt_id, group in groups.items()}


def _generator(seed: int, prompt_id: str) -> random.Random:
    return random.Random(int.from_bytes(sha256(f"{seed}\n{prompt_id}".encode()).digest()[:8], "big"))


def _best_vs_worst(valid: list[ScoredSample], generator: random.Random) -> list[tuple[ScoredSample, ScoredSample]]:
    ranked = list(valid)
    generator.shuffle(ranked)  # samples of equal score keep a random order
    ranked.sort(key=lambda sample: sample.reward, reverse=True)
    return list(zip(ranked, ranked[::-1], strict=True))[: len(ranked) // 2]


def _far_enough(winner: ScoredSample, loser: ScoredSample, min_gap: float) -> bool:
    gap = winner.reward - loser.reward
    return gap > 0 and gap >= min_gap - GAP_TOLERANCE


def _stats(
    by_prompt: dict[str, list[ScoredSample]], pairs: list[Pair], without_pair: dict[str, str]
) -> dict[str, float | None]:
    count = len(by_prompt)
    if without_pair:
        reasons = ", ".join(f"{reason}: {n}" for reason, n in Counter(without_pair.values()).most_common())
        level = logging.WARNING if len(without_pair) > count / 2 else logging.INFO
        logger.log(level, "%d of %d prompts have no pair (%s).", len(without_pair), count, reasons)
    everything = [sample for group in by_prompt.values() for sample in group]
    return {
        "prompts": count,
        "prompts_with_pair": count - len(without_pair),
        "share_without_pair": len(without_pair) / count if count else 0.0,
        "pairs": len(pairs),
        "mean_gap": sum(pair.gap for pair in pairs) / len(pairs) if pairs else None,
        "samples": len(everything),
        "invalid_samples": sum(sample.reward is None for sample in everything),
    }


# -------------------------------------------------------------------------------------------------------- the dataset

VIDEO_STRUCT = {"bytes": Value("binary"), "path": Value("string")}


def _features(pairs: Sequence[Pair], with_latents: bool) -> Features:
    own = {
        "chosen": Video(decode=False),
        "rejected": Video(decode=False),
        "score_chosen": Value("float64"),
        "score_rejected": Value("float64"),
        "chosen_sample_id": Value("string"),
        "rejected_sample_id": Value("string"),
        "seed_chosen": Value("int64"),
        "seed_rejected": Value("int64"),
        "chosen_noise_seed": Value("int64"),
        "rejected_noise_seed": Value("int64"),
    }
    if with_latents:
        own |= {"chosen_latents": Value("binary"), "rejected_latents": Value("binary")}
    columns = list(pairs[0].chosen.row) if pairs else list(PROMPT_COLUMNS)
    for pair in pairs:
        for sample in (pair.chosen, pair.rejected):
            if set(sample.row) != set(columns):
                odd = sorted(set(sample.row) ^ set(columns))
                raise ValueError(f"Sample {sample.sample_id} has not the same prompt columns as the others: {odd}.")
    for column in columns:
        if column in own or column in ("chosen_latents", "rejected_latents"):
            raise ValueError(f"The prompt column {column!r} has the name of a preference column; rename it.")
    missing = [column for column in ("prompt_id", "prompt") if column not in columns]
    if missing:
        raise ValueError(f"The samples' rows have no column {missing[0]!r}; they have {', '.join(columns)}.")
    return Features(column_features([pair.chosen.row for pair in pairs], columns) | own)


def column_features(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> dict[str, Any]:
    """The types of some columns of samples' rows: prompts' columns are strings, and undecoded videos are videos."""
    videos = {column for column in columns if any(is_video_cell(row.get(column)) for row in rows)}
    others = [column for column in columns if column not in {*PROMPT_COLUMNS, *videos}]
    guessed = Dataset.from_list([{name: row.get(name) for name in others} for row in rows]).features
    known = {**guessed, **dict.fromkeys(videos, Video(decode=False))}
    return {column: known.get(column, Value("string")) for column in columns}


def _row(
    pair: Pair, load_video_bytes: Callable[[str], bytes], load_latents_bytes: Callable[[str], bytes] | None
) -> dict[str, Any]:
    from spatialalign_trl.rollout.sampler import noise_seed

    row = self_contained(pair.chosen.row, f"prompt {pair.prompt_id!r}")
    row |= {"score_chosen": pair.score_chosen, "score_rejected": pair.score_rejected}
    for side, sample in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        sample_id = sample.sample_id
        if not _SAMPLE_ID.fullmatch(sample_id):
            raise ValueError(
                f"The sample id {sample_id!r} is no hexadecimal number of 8 to 64 digits; it would become a file name."
            )
        content = load_video_bytes(sample_id)
        if not content:
            raise ValueError(f"The video of sample {sample_id} is empty; delete it and sample it again.")
        row[side] = {"bytes": content, "path": f"{sample_id}.mp4"}
        row[f"{side}_sample_id"] = sample_id
        row[f"seed_{side}"] = sample.seed
        row[f"{side}_noise_seed"] = noise_seed(sample.seed, sample.prompt_id)
        if load_latents_bytes is not None:
            row[f"{side}_latents"] = load_latents_bytes(sample_id)
    return row
