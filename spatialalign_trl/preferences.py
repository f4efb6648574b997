"""
Turn scored samples into preference pairs, and pairs into a preference dataset.

A pair consists of two samples of one prompt with different scores. INVALID samples (reward `None`) are never paired,
because nothing is known about their quality. Source of the default strategy: SpatialAlign (arXiv 2602.22745), where a
sample with a score of at least 0.7 is preferred over a valid sample below 0.7.
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
from spatialalign_trl.prompts.seeds import noise_seed
from spatialalign_trl.video import is_video_cell, self_contained

logger = logging.getLogger(__name__)

Strategy: TypeAlias = Literal["threshold", "best_vs_worst", "min_gap"]

GAP_TOLERANCE = 1e-9
"""Tolerance for rounding in a difference of scores: 0.7 - 0.6 is 0.09999999999999998, but counts as a gap of 0.1."""

ROWS_PER_BLOCK = 64
"""Number of rows converted to Arrow at once: one chunk of a column of bytes must stay below 2 GiB."""

VIDEO_STRUCT = {"bytes": Value("binary"), "path": Value("string")}
"""The storage type of an undecoded `Video`."""

_SAMPLE_ID = re.compile(r"[0-9a-f]{8,64}")


class ScoredSample(Protocol):
    """The attributes of a sample that pairing reads, such as [`~spatialalign_trl.rollout.store.Sample`] has."""

    sample_id: str
    prompt_id: str
    row: dict[str, Any]
    seed: int
    reward: float | None
    components: dict[str, Any]


@dataclass(frozen=True)
class Pair:
    """
    Two samples of one prompt, where the chosen one scored higher.

    Args:
        chosen, rejected ([`ScoredSample`]):
            The winner and the loser.

    Raises:
        ValueError: if they belong to different prompts, one is INVALID, or the winner does not score higher.
    """

    chosen: ScoredSample
    rejected: ScoredSample

    def __post_init__(self) -> None:
        ids = f"{self.chosen.sample_id} and {self.rejected.sample_id}"
        if self.chosen.prompt_id != self.rejected.prompt_id:
            raise ValueError(
                f"Samples {ids} belong to different prompts ({self.chosen.prompt_id!r}, {self.rejected.prompt_id!r})."
            )
        if self.chosen.reward is None or self.rejected.reward is None:
            raise ValueError(f"Samples {ids} cannot form a pair: an INVALID sample has no score to compare.")
        if not self.score_chosen > self.score_rejected:
            raise ValueError(
                f"Samples {ids} cannot form a pair: the chosen sample's score {self.score_chosen} is not above the "
                f"rejected sample's {self.score_rejected}."
            )

    @property
    def prompt_id(self) -> str:
        """The id of the prompt that both samples belong to."""
        return self.chosen.prompt_id

    @property
    def score_chosen(self) -> float:
        """The winner's reward."""
        return float(self.chosen.reward)

    @property
    def score_rejected(self) -> float:
        """The loser's reward."""
        return float(self.rejected.reward)

    @property
    def gap(self) -> float:
        """The difference of the scores, above 0."""
        return self.score_chosen - self.score_rejected


@dataclass(frozen=True)
class PairingResult:
    """
    The pairs, and statistics about how many samples and prompts they use.

    Args:
        pairs (`list[Pair]`):
            The pairs, grouped by prompt in the order in which the prompts first appear.
        stats (`dict[str, float | None]`):
            `prompts`, `prompts_with_pair`, `share_without_pair`, `pairs`, `mean_gap` (`None` without pairs),
            `samples`, `invalid_samples`.
        without_pair (`dict[str, str]`):
            Prompt id -> the reason why the prompt has no pair.
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
    Pair samples within each prompt. The result depends on the samples and the arguments, not on the samples' order.

    Args:
        samples (`Iterable[ScoredSample]`):
            Scored samples of any number of prompts.
        strategy (`str`, *optional*, defaults to `"threshold"`):
            - `"threshold"` (the paper's): pair a sample with a score of at least `threshold` with a valid sample below
              it, drawn at random.
            - `"best_vs_worst"`: pair the best sample with the worst. With more pairs per prompt, pair the second best
              with the second worst, and so on.
            - `"min_gap"`: pair any two valid samples with a difference of at least `min_gap`, drawn at random.
        threshold (`float`, *optional*, defaults to `0.7`):
            Lowest score of a winner in the strategy `"threshold"`.
        min_gap (`float`, *optional*, defaults to `0.0`):
            Smallest `score_chosen - score_rejected` of any pair, with any strategy. Equal scores are never paired.
        pairs_per_prompt (`int`, *optional*, defaults to `1`):
            Largest number of pairs per prompt, without repetitions; `None` for all possible pairs.
        seed (`int`, *optional*, defaults to `0`):
            Seeds each prompt's draw, together with the prompt id.

    Returns:
        [`PairingResult`]: the pairs and statistics.

    Raises:
        ValueError: for an unknown strategy, numbers out of range, a sample that appears twice, a score that is not
            finite, or one prompt id with two texts.
    """
    _check_settings(strategy, threshold, min_gap, pairs_per_prompt)
    by_prompt = _group_by_prompt(samples)
    pairs, without_pair = [], {}
    for prompt_id, group in by_prompt.items():
        # A generator per prompt: the draw must not depend on which other prompts there are.
        digest = sha256(f"{seed}\n{prompt_id}".encode()).digest()
        generator = random.Random(int.from_bytes(digest[:8], "big"))
        valid = [sample for sample in group if sample.reward is not None]
        if len(valid) < 2:
            without_pair[prompt_id] = "fewer than two valid samples"
            continue

        # All candidates (winner, loser) of this strategy
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

        # Of these, as many as wanted with a large enough gap
        candidates = [
            (winner, loser)
            for winner, loser in candidates
            if (gap := winner.reward - loser.reward) > 0 and gap >= min_gap - GAP_TOLERANCE
        ]
        if not candidates:
            without_pair[prompt_id] = "all valid samples tie" if min_gap == 0 else f"no gap of at least {min_gap:g}"
            continue
        if strategy != "best_vs_worst":  # that one's order matters: best pair first
            generator.shuffle(candidates)
        pairs += [Pair(*pair) for pair in candidates[:pairs_per_prompt]]
    return PairingResult(pairs, _stats(by_prompt, pairs, without_pair), without_pair)


def to_dataset(
    pairs: Sequence[Pair],
    load_video_bytes: Callable[[str], bytes],
    load_latents_bytes: Callable[[str], bytes] | None = None,
) -> Dataset:
    """
    Turn pairs into a self-contained preference dataset, which can be pushed and used on other machines.

    Args:
        pairs (`Sequence[Pair]`):
            The pairs. Each becomes one row.
        load_video_bytes (`Callable[[str], bytes]`):
            Function from a sample id to the content of its mp4 file, such as
            [`~spatialalign_trl.rollout.store.SampleStore.video_bytes`].
        load_latents_bytes (`Callable[[str], bytes]`, *optional*):
            Function from a sample id to the content of a safetensors file with the single tensor `latents`.

    Returns:
        `datasets.Dataset`: the prompt columns, including their videos (undecoded `Video`s, such as the context of a
        scene), `chosen` and `rejected` (`Video(decode=False)`: `{"bytes", "path"}` with the bare file name
        `<sample_id>.mp4`), `score_chosen`, `score_rejected`, `chosen_sample_id`, `rejected_sample_id`, `seed_chosen`,
        `seed_rejected`, `chosen_noise_seed`, `rejected_noise_seed` (the seeds of the initial noise, see
        `VideoModel.initial_noise`), and with latents also `chosen_latents` and `rejected_latents`.

    Raises:
        ValueError: for a sample id that is not a hexadecimal number (it becomes a file name), an empty video, or a
            prompt column with the name of one of the columns above.
    """
    features = _features(pairs, with_latents=load_latents_bytes is not None)
    # Videos enter as plain structs and are cast afterwards. Video's own encoding drops the bytes and keeps a local
    # path if the working directory happens to contain a file of that name.
    storage = {name: VIDEO_STRUCT if isinstance(feature, Video) else feature for name, feature in features.items()}
    blocks = []
    for start in range(0, max(len(pairs), 1), ROWS_PER_BLOCK):
        rows = [_row(pair, load_video_bytes, load_latents_bytes) for pair in pairs[start : start + ROWS_PER_BLOCK]]
        columns = {name: [row[name] for row in rows] for name in features}
        blocks.append(Dataset.from_dict(columns, features=Features(storage)))
    dataset = datasets.concatenate_datasets(blocks)
    for name, feature in features.items():
        if isinstance(feature, Video):
            dataset = dataset.cast_column(name, feature)
    return dataset


# ------------------------------------------------------------------------------------------------------------ pairing


def _check_settings(strategy: str, threshold: float, min_gap: float, pairs_per_prompt: int | None) -> None:
    """Check the settings of [`make_pairs`]."""
    strategies = get_args(Strategy)
    if strategy not in strategies:
        raise ValueError(f"strategy={strategy!r}: unknown pairing strategy. {near_miss(str(strategy), strategies)}")
    if not math.isfinite(threshold):
        raise ValueError(f"threshold={threshold!r}: must be a finite number.")
    if not (math.isfinite(min_gap) and min_gap >= 0):
        raise ValueError(f"min_gap={min_gap!r}: must be a finite number of at least 0.")
    if strategy == "min_gap" and min_gap == 0:
        raise ValueError(f"min_gap={min_gap!r}: the strategy 'min_gap' needs a value above 0, its only criterion.")
    if pairs_per_prompt is not None and pairs_per_prompt < 1:
        raise ValueError(f"pairs_per_prompt={pairs_per_prompt!r}: must be at least 1, or None for all pairs.")


def _group_by_prompt(samples: Iterable[ScoredSample]) -> dict[str, list[ScoredSample]]:
    """Return prompt id -> its samples, sorted by id so that nothing depends on the order of the input."""
    groups: dict[str, list[ScoredSample]] = {}
    seen = set()
    for sample in samples:
        if sample.sample_id in seen:
            raise ValueError(f"Sample {sample.sample_id} (prompt {sample.prompt_id!r}) appears twice.")
        seen.add(sample.sample_id)
        if sample.reward is not None and not math.isfinite(sample.reward):
            raise ValueError(
                f"Sample {sample.sample_id} (prompt {sample.prompt_id!r}) has the score {sample.reward}, but a score "
                "must be a finite number, or None for INVALID."
            )
        if sample.row.get("prompt_id", sample.prompt_id) != sample.prompt_id:
            raise ValueError(
                f"Sample {sample.sample_id} has the prompt id {sample.prompt_id!r}, but its row has "
                f"{sample.row['prompt_id']!r}."
            )
        group = groups.setdefault(sample.prompt_id, [])
        if group and sample.row.get("prompt") != group[0].row.get("prompt"):
            raise ValueError(
                f"The prompt id {sample.prompt_id!r} is used for two prompts: {group[0].row.get('prompt')!r} and "
                f"{sample.row.get('prompt')!r}."
            )
        group.append(sample)
    return {prompt_id: sorted(group, key=lambda sample: sample.sample_id) for prompt_id, group in groups.items()}


def _best_vs_worst(valid: list[ScoredSample], generator: random.Random) -> list[tuple[ScoredSample, ScoredSample]]:
    """Pair the best sample with the worst, the second best with the second worst, and so on."""
    ranked = list(valid)
    generator.shuffle(ranked)  # samples of equal score keep a random order
    ranked.sort(key=lambda sample: sample.reward, reverse=True)
    return list(zip(ranked, ranked[::-1], strict=True))[: len(ranked) // 2]


def _stats(
    by_prompt: dict[str, list[ScoredSample]], pairs: list[Pair], without_pair: dict[str, str]
) -> dict[str, float | None]:
    """Count prompts, pairs and samples, and log the prompts without a pair."""
    num_prompts = len(by_prompt)
    if without_pair:
        reasons = ", ".join(f"{reason}: {n}" for reason, n in Counter(without_pair.values()).most_common())
        level = logging.WARNING if len(without_pair) > num_prompts / 2 else logging.INFO
        logger.log(level, "%d of %d prompts have no pair (%s).", len(without_pair), num_prompts, reasons)
    samples = [sample for group in by_prompt.values() for sample in group]
    return {
        "prompts": num_prompts,
        "prompts_with_pair": num_prompts - len(without_pair),
        "share_without_pair": len(without_pair) / num_prompts if num_prompts else 0.0,
        "pairs": len(pairs),
        "mean_gap": sum(pair.gap for pair in pairs) / len(pairs) if pairs else None,
        "samples": len(samples),
        "invalid_samples": sum(sample.reward is None for sample in samples),
    }


# -------------------------------------------------------------------------------------------------------- the dataset


def _features(pairs: Sequence[Pair], with_latents: bool) -> Features:
    """Return the columns of the dataset: the prompt columns, which all samples must share, and the pair's."""
    pair_columns = {
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
        pair_columns |= {"chosen_latents": Value("binary"), "rejected_latents": Value("binary")}
    columns = list(pairs[0].chosen.row) if pairs else list(PROMPT_COLUMNS)
    for pair in pairs:
        for sample in (pair.chosen, pair.rejected):
            if set(sample.row) != set(columns):
                different = sorted(set(sample.row) ^ set(columns))
                raise ValueError(
                    f"Sample {sample.sample_id} differs from the others in its prompt columns: {different}."
                )
    for column in columns:
        if column in pair_columns or column in ("chosen_latents", "rejected_latents"):
            raise ValueError(f"The prompt column {column!r} has the name of a preference column. Rename it.")
    missing = [column for column in ("prompt_id", "prompt") if column not in columns]
    if missing:
        raise ValueError(f"The samples' rows have no column {missing[0]!r}. They have {', '.join(columns)}.")
    return Features(column_features([pair.chosen.row for pair in pairs], columns) | pair_columns)


def column_features(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> dict[str, Any]:
    """
    Choose the `datasets` types for columns of samples' rows.

    Args:
        rows (sequence of `Mapping`):
            The rows.
        columns (sequence of `str`):
            The names of the columns.

    Returns:
        `dict[str, Any]`: column name -> type: strings for the columns of prompt sets, `Video(decode=False)` for
        undecoded videos, and the types that `datasets` infers for all others.
    """
    videos = {column for column in columns if any(is_video_cell(row.get(column)) for row in rows)}
    others = [column for column in columns if column not in {*PROMPT_COLUMNS, *videos}]
    inferred = Dataset.from_list([{name: row.get(name) for name in others} for row in rows]).features
    known = {**inferred, **dict.fromkeys(videos, Video(decode=False))}
    return {column: known.get(column, Value("string")) for column in columns}


def _row(
    pair: Pair, load_video_bytes: Callable[[str], bytes], load_latents_bytes: Callable[[str], bytes] | None
) -> dict[str, Any]:
    """Return the dataset row of a pair."""
    row = self_contained(pair.chosen.row, f"prompt {pair.prompt_id!r}")
    row |= {"score_chosen": pair.score_chosen, "score_rejected": pair.score_rejected}
    for side, sample in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        sample_id = sample.sample_id
        if not _SAMPLE_ID.fullmatch(sample_id):
            raise ValueError(
                f"The sample id {sample_id!r} becomes a file name, but is not a hexadecimal number of 8 to 64 digits."
            )
        content = load_video_bytes(sample_id)
        if not content:
            raise ValueError(f"The video of sample {sample_id} is empty. Delete it and sample it again.")
        row[side] = {"bytes": content, "path": f"{sample_id}.mp4"}
        row[f"{side}_sample_id"] = sample_id
        row[f"seed_{side}"] = sample.seed
        row[f"{side}_noise_seed"] = noise_seed(sample.seed, sample.prompt_id)
        if load_latents_bytes is not None:
            row[f"{side}_latents"] = load_latents_bytes(sample_id)
    return row
