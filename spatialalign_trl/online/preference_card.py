"""The card of a preference dataset: what was done, how the scores lie, and a look at some pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spatialalign_trl.online.preference_files import PAIRS, SAMPLES, public_name, public_revision, rounds_in
from spatialalign_trl.report.tables import markdown_table, summary_rows

if TYPE_CHECKING:
    from huggingface_hub import DatasetCard

    from spatialalign_trl.preferences import Pair

CARD_FILE, PREVIEW_FILE = "README.md", "preview.png"
TEMPLATE = Path(__file__).resolve().parent / "templates" / "preference_dataset_card.md"
TAGS = ("preference", "dpo", "text-to-video", "video", "spatial-reasoning", "spatialalign", "spatialalign-trl", "trl")
PAIRS_SHOWN = 8
BAR = 40
"""Characters of a histogram's longest bar."""

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


@dataclass(frozen=True)
class RoundSummary:
    """
    Args:
        number (`int`):
            Of the round, from 1.
        policy_revision (`str`):
            What sampled it.
        rollouts (`dict`):
            What [`~evaluation.summarize`] says of its samples.
        pairing (`dict`):
            [`PairingResult`]'s `stats`.
    """

    number: int
    policy_revision: str
    rollouts: Mapping[str, Any]
    pairing: Mapping[str, Any]


def preference_card(
    folder: Path,
    *,
    repo: str,
    license: str,
    model_name: str,
    facts: Mapping[str, Any],
    rounds: Sequence[RoundSummary],
    scores: Sequence[float | None],
    pairs: Sequence[Pair],
    evaluation: Mapping[str, Mapping[str, Any]] | None = None,
    is_partial: bool = False,
) -> DatasetCard:
    """
    Renders the card of the dataset that lies in a folder.

    Args:
        folder (`Path`):
            The dataset's, with its data files.
        repo (`str`):
            `owner/name` on the Hub.
        license (`str`):
            The Hub's name of it.
        model_name (`str`):
            The model that sampled; a local folder stays out of the metadata.
        facts (`dict`):
            How it was made, one line each.
        rounds (sequence of [`RoundSummary`]):
            In order.
        scores (sequence of `float | None`):
            Of all samples.
        pairs (sequence of [`Pair`]):
            Of the last round.
        evaluation (`dict`, *optional*):
            Policy -> summary on held-out prompts.
        is_partial (`bool`):
            Whether the last round is still being sampled.
    """
    from huggingface_hub import DatasetCard, DatasetCardData

    from spatialalign_trl.models.sources import hub_id

    base = hub_id(model_name)
    size = next((name for limit, name in _SIZES if len(scores) < limit), "n>1M")
    card_data = DatasetCardData(
        license=license,
        tags=sorted(TAGS),
        task_categories=["text-to-video"],
        size_categories=[size],
        pretty_name=repo.split("/")[-1],
        configs=_configs(folder),
    )
    named = {f"round {one.number}": one.rollouts for one in rounds}
    return DatasetCard.from_template(
        card_data,
        template_path=str(TEMPLATE),
        title=repo.split("/")[-1],
        repo=repo,
        model_text=f"[{base}](https://huggingface.co/{base})" if base else f"`{public_name(model_name)}`",
        has_preview=(folder / PREVIEW_FILE).is_file(),
        facts=[(name, value) for name, value in facts.items()],
        is_partial=is_partial,
        rounds_table=_rounds_table(rounds),
        scores_table=_summaries_table(named),
        evaluation_table=_summaries_table(evaluation) if evaluation else "",
        num_samples=len(scores),
        histogram=histogram(scores),
        pairs_table=_pairs_table(pairs),
    )


def histogram(scores: Sequence[float | None], bins: int = 10) -> str:
    """Bars of text, one a bin between the least and the greatest score (between 0 and 1 where all lie there)."""
    valid = [score for score in scores if score is not None]
    if not valid:
        return f"INVALID  {len(scores)}"
    low, high = min(valid), max(valid)
    if 0 <= low and high <= 1:
        low, high = 0.0, 1.0
    elif low == high:
        low, high = low - 0.5, high + 0.5
    counts = [0] * bins
    for score in valid:
        counts[min(int((score - low) / (high - low) * bins), bins - 1)] += 1
    edges = [f"{low + k * (high - low) / bins:.2f}" for k in range(bins + 1)]
    labels = [*(f"{a} - {b}" for a, b in pairwise(edges)), "INVALID"]
    counts.append(len(scores) - len(valid))
    width, longest = max(map(len, labels)), max(counts)
    return "\n".join(
        f"{label:>{width}}  {'█' * round(BAR * count / longest):<{BAR}}  {count}"
        for label, count in zip(labels, counts, strict=True)
    )


def _configs(folder: Path) -> list[dict[str, Any]]:
    configs = [
        {"config_name": name, "data_files": [{"split": "train", "path": f"{name}/*.parquet"}]}
        for name in (PAIRS, SAMPLES)
        if rounds_in(folder, name)
    ]
    if configs:
        configs[0]["default"] = True
    return configs


def _rounds_table(rounds: Sequence[RoundSummary]) -> str:
    header = ["round", "sampled by", "videos", "INVALID", "pairs", "prompts with a pair", "mean gap"]
    rows = []
    for one in rounds:
        gap = one.pairing["mean_gap"]
        rows.append(
            [
                str(one.number),
                f"`{public_revision(one.policy_revision)}`",
                str(one.rollouts["num_videos"]),
                f"{one.rollouts['invalid_rate']:.1%}",
                str(one.pairing["pairs"]),
                f"{one.pairing['prompts_with_pair']} of {one.pairing['prompts']}",
                "-" if gap is None else f"{gap:.3f}",
            ]
        )
    return markdown_table(header, rows)


def _summaries_table(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    return markdown_table(["", *summaries], summary_rows(summaries))


def _pairs_table(pairs: Sequence[Pair]) -> str:
    if not pairs:
        return "There is none yet."
    step = max(1, len(pairs) // PAIRS_SHOWN)
    rows = [
        [_cell(pair.chosen.row["prompt"]), f"{pair.score_chosen:.3f}", f"{pair.score_rejected:.3f}"]
        for pair in pairs[::step][:PAIRS_SHOWN]
    ]
    return markdown_table(["prompt", "score of chosen", "score of rejected"], rows)


def _cell(text: str) -> str:
    """A prompt as a table's cell, where it cannot become markup."""
    return " ".join(str(text).replace("<", "&lt;").replace("`", "'").split())
