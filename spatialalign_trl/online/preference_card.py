"""Render the card of a preference dataset: how it was made, the distribution of the scores, and some pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spatialalign_trl.online.preference_files import PAIRS, SAMPLES, public_name, public_revision, rounds_in
from spatialalign_trl.report.tables import markdown_table, summary_rows
from spatialalign_trl.safe_text import table_cell

if TYPE_CHECKING:
    from huggingface_hub import DatasetCard

    from spatialalign_trl.preferences import Pair

CARD_FILE, PREVIEW_FILE = "README.md", "preview.png"
TEMPLATE = Path(__file__).resolve().parent / "templates" / "preference_dataset_card.md"
TAGS = ("preference", "dpo", "text-to-video", "video", "spatial-reasoning", "spatialalign", "spatialalign-trl", "trl")
PAIRS_SHOWN = 8
BAR = 40
"""Length of a histogram's longest bar, in characters."""

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


@dataclass(frozen=True)
class RoundSummary:
    """
    What the card says of a round.

    Args:
        number (`int`):
            Number of the round, from 1.
        policy_revision (`str`):
            Name of the policy that sampled it.
        rollouts (`dict`):
            The result of [`~evaluation.summarize`] on its samples.
        pairing (`dict`):
            The `stats` of its [`PairingResult`].
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
    Render the card of a dataset.

    Args:
        folder (`Path`):
            The dataset's folder, with its data files.
        repo (`str`):
            `owner/name` on the Hub.
        license (`str`):
            The Hub's name of the licence.
        model_name (`str`):
            The model that sampled; the path of a local folder is kept out of the metadata.
        facts (`dict`):
            How the dataset was made: name -> value, one line each.
        rounds (sequence of [`RoundSummary`]):
            All rounds in order.
        scores (sequence of `float | None`):
            Scores of all samples; `None` = INVALID.
        pairs (sequence of [`Pair`]):
            Pairs of the last round.
        evaluation (`dict`, *optional*):
            Policy -> summary on held-out prompts.
        is_partial (`bool`, *optional*, defaults to `False`):
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
    rollouts = {f"round {summary.number}": summary.rollouts for summary in rounds}
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
        scores_table=_summaries_table(rollouts),
        evaluation_table=_summaries_table(evaluation) if evaluation else "",
        num_samples=len(scores),
        histogram=histogram(scores),
        pairs_table=_pairs_table(pairs),
    )


def histogram(scores: Sequence[float | None], bins: int = 10) -> str:
    """Draw bars of text over the range of the scores, or over [0, 1] if all scores lie in it."""
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
    for summary in rounds:
        rollouts, pairing = summary.rollouts, summary.pairing
        gap = pairing["mean_gap"]
        rows.append(
            [
                str(summary.number),
                f"`{public_revision(summary.policy_revision)}`",
                str(rollouts["num_videos"]),
                f"{rollouts['invalid_rate']:.1%}",
                str(pairing["pairs"]),
                f"{pairing['prompts_with_pair']} of {pairing['prompts']}",
                "-" if gap is None else f"{gap:.3f}",
            ]
        )
    return markdown_table(header, rows)


def _summaries_table(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    return markdown_table(["", *summaries], summary_rows(summaries))


def _pairs_table(pairs: Sequence[Pair]) -> str:
    if not pairs:
        return "There are no pairs yet."
    step = max(1, len(pairs) // PAIRS_SHOWN)
    rows = [
        [table_cell(pair.chosen.row["prompt"]), f"{pair.score_chosen:.3f}", f"{pair.score_rejected:.3f}"]
        for pair in pairs[::step][:PAIRS_SHOWN]
    ]
    return markdown_table(["prompt", "score of chosen", "score of rejected"], rows)
