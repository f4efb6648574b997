"""Write the data files of a preference dataset on the Hub: pairs and all scored samples, as Parquet files per round.

    preferences/round-01-00000.parquet       chosen and rejected videos of a prompt
    samples/round-01-00000.parquet           every video that the round sampled, with its score

A round's files always have the same names, so that pushing a round again replaces it. They contain the videos
themselves, and no paths of the machine that made them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spatialalign_trl.files import remove_leftovers
from spatialalign_trl.video import self_contained

if TYPE_CHECKING:
    from datasets import Dataset, Features

    from spatialalign_trl.preferences import Pair
    from spatialalign_trl.rollout.store import Sample

PAIRS, SAMPLES = "preferences", "samples"
"""The two configs, and the folders of their files."""

ROWS_PER_FILE = 128
"""A Wan video takes one or two MB, so a file takes a few hundred MB. A push sends only the files that changed."""

VideoBytes = Callable[[str], bytes]


def round_pattern(config: str, number: int) -> str:
    """Return the glob pattern of a round's files in a config."""
    return f"{config}/round-{number:02d}-*.parquet"


def write_pairs(folder: Path, number: int, pairs: Sequence[Pair], video_bytes: VideoBytes) -> list[Path]:
    """
    Write a round's pairs, and replace existing ones.

    Args:
        folder (`Path`):
            The dataset's folder.
        number (`int`):
            Number of the round, from 1.
        pairs (sequence of [`Pair`]):
            Pairs of [`Sample`]s.
        video_bytes (callable):
            Sample id -> content of its mp4.

    Returns:
        `list[Path]`: the files; empty without pairs.
    """
    from spatialalign_trl.preferences import to_dataset

    rows = [side.row for pair in pairs for side in (pair.chosen, pair.rejected)]
    extra = _facts_features(pairs, number)

    def table(part: Sequence[Pair]) -> Dataset:
        facts = {
            f"{name}_{side}": [_fact(getattr(pair, side), name) for pair in part]
            for name in ("rewards", "components", "policy_revision", "sampling_settings")
            for side in ("chosen", "rejected")
        }
        return _with_columns(to_dataset(part, video_bytes), {**facts, "round": [number] * len(part)}, extra)

    return _write(folder, PAIRS, number, pairs, table, rows)


def write_samples(folder: Path, number: int, samples: Sequence[Sample], video_bytes: VideoBytes) -> list[Path]:
    """
    Write all scored samples of a round, including INVALID ones (`score` is null), and replace existing ones.

    The arguments and the return value are those of [`write_pairs`].
    """
    from datasets import Dataset, Features, Value, Video

    from spatialalign_trl.preferences import VIDEO_STRUCT
    from spatialalign_trl.rollout.sampler import noise_seed

    sample_features = {
        "sample_id": Value("string"),
        "score": Value("float64"),
        "rewards": _rewards_feature(samples),
        "components": Value("string"),
        "seed": Value("int64"),
        "noise_seed": Value("int64"),
        "sampling_settings": Value("string"),
        "policy_revision": Value("string"),
        "round": Value("int64"),
    }
    rows = [sample.row for sample in samples]
    prompt_features = _prompt_features(rows)
    if clashes := sorted(set(prompt_features) & {*sample_features, "video"}):
        raise ValueError(f"The prompt column {clashes[0]!r} has the name of a column of the samples; rename it.")

    def table(part: Sequence[Sample]) -> Dataset:
        prompt_rows = [self_contained(sample.row, f"prompt {sample.prompt_id!r}") for sample in part]
        columns = {name: [row.get(name) for row in prompt_rows] for name in prompt_features}
        columns |= {
            "video": [{"bytes": video_bytes(s.sample_id), "path": f"{s.sample_id}.mp4"} for s in part],
            "sample_id": [sample.sample_id for sample in part],
            "score": [sample.reward for sample in part],
            "seed": [sample.seed for sample in part],
            "noise_seed": [noise_seed(sample.seed, sample.prompt_id) for sample in part],
            "round": [number] * len(part),
        }
        for name in ("rewards", "components", "sampling_settings", "policy_revision"):
            columns[name] = [_fact(sample, name) for sample in part]
        features = {**prompt_features, **sample_features, "video": Video(decode=False)}
        plain = {name: VIDEO_STRUCT if isinstance(kind, Video) else kind for name, kind in features.items()}
        dataset = Dataset.from_dict(columns, features=Features(plain))
        # Videos are cast afterwards, for the reason that `to_dataset` gives.
        return dataset.cast(Features(features))

    return _write(folder, SAMPLES, number, samples, table, rows)


def count_rows(folder: Path, config: str, number: int) -> int:
    """Count the rows of a round's files."""
    import pyarrow.parquet as pq

    return sum(pq.read_metadata(file).num_rows for file in folder.glob(round_pattern(config, number)))


def rounds_in(folder: Path, config: str) -> list[int]:
    """List the numbers of the rounds that have files."""
    return sorted({int(file.name.split("-")[1]) for file in (folder / config).glob("round-*-*.parquet")})


def public_name(model: str) -> str:
    """Return a model's name without the folders of this machine."""
    from spatialalign_trl.models.sources import hub_id

    return hub_id(model) or Path(model).name


def public_revision(revision: str) -> str:
    """Return a policy's name (`model@weights`) without the folders of this machine."""
    model, _, weights = revision.rpartition("@")
    return f"{public_name(model)}@{weights}"


def _fact(sample: Sample, name: str) -> Any:
    """Return a fact of a sample's origin; as JSON where keys differ between runs, since all files share columns."""
    if name == "rewards":
        return dict(sample.rewards)
    if name == "policy_revision":
        return public_revision(sample.policy_revision)
    value = sample.settings if name == "sampling_settings" else sample.components
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _rewards_feature(samples: Iterable[Sample]) -> dict[str, Any]:
    from datasets import Value

    return {name: Value("float64") for name in sorted({name for sample in samples for name in sample.rewards})}


def _facts_features(pairs: Sequence[Pair], number: int) -> Features:
    from datasets import Features, Value

    rewards = _rewards_feature(side for pair in pairs for side in (pair.chosen, pair.rejected))
    features = {
        "rewards": rewards,
        **{n: Value("string") for n in ("components", "policy_revision", "sampling_settings")},
    }
    columns = {f"{name}_{side}": kind for name, kind in features.items() for side in ("chosen", "rejected")}
    return Features({**columns, "round": Value("int64")})


def _prompt_features(rows: Sequence[Mapping[str, Any]]) -> Features:
    """Infer the types of the prompt columns from all rows: a file whose rows lack a value would infer another type."""
    from datasets import Features

    from spatialalign_trl.preferences import column_features

    return Features(column_features(rows, list(dict.fromkeys(name for row in rows for name in row))))


def _with_columns(dataset: Dataset, columns: Mapping[str, list], features: Features) -> Dataset:
    from datasets import Dataset, concatenate_datasets

    return concatenate_datasets([dataset, Dataset.from_dict(dict(columns), features=features)], axis=1)


def _write(
    folder: Path,
    config: str,
    number: int,
    items: Sequence[Any],
    table: Callable[[Sequence[Any]], Dataset],
    rows: Sequence[Mapping[str, Any]],
) -> list[Path]:
    (folder / config).mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder / config)
    features = _prompt_features(rows) if rows else {}
    files = []
    for index, start in enumerate(range(0, len(items), ROWS_PER_FILE)):
        dataset = table(items[start : start + ROWS_PER_FILE])
        for name, kind in features.items():
            if dataset.features[name] != kind:
                dataset = dataset.cast_column(name, kind)
        file = folder / config / f"round-{number:02d}-{index:05d}.parquet"
        temporary = file.with_name(f".{file.name}.partial")
        dataset.to_parquet(temporary)
        temporary.replace(file)
        files.append(file)
    for stale in set(folder.glob(round_pattern(config, number))) - set(files):
        stale.unlink()
    return files
