"""Write the card of a run's LoRA, and push the LoRA with its results to the Hub."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from transformers.trainer_utils import HubStrategy

from spatialalign_trl.evaluation import EVALUATION_SEED, headline_of, headline_score
from spatialalign_trl.files import read_json, write_json
from spatialalign_trl.hub.lora_files import command_for_later, make_model_repo, push_files
from spatialalign_trl.hub.pushing import PushFailed
from spatialalign_trl.models.lora import LORA_FILE
from spatialalign_trl.online.rounds import RunParts
from spatialalign_trl.online.run_settings import RUN_FILE
from spatialalign_trl.report.tables import markdown_table, summary_rows
from spatialalign_trl.report.write import REPORT_FILE
from spatialalign_trl.safe_text import mask_secrets, terminal_text, without_digests
from spatialalign_trl.trainer.model_card import Comparison, Recipe, VideoPair, lora_model_card
from spatialalign_trl.trainer.publishing import CARD_FILE, PUBLISHED, STARTING_LORA

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

    from spatialalign_trl.models.usage import LoraUsage
    from spatialalign_trl.rollout.store import Sample
    from spatialalign_trl.trainer.spatialalign_trainer import SpatialAlignTrainer

CARD_FACTS_FILE = "card.json"
"""In a round's `policy` folder: the facts of its training that the card needs."""

CONTACT_SHEET_FILE = "contact_sheet.png"
RESULTS_FILE = "results.json"
RECIPE_FILE = "recipe.yaml"

VIDEO_PAIRS = 3
"""Prompts whose videos before and after are shown in the card."""

PUSHED = (
    LORA_FILE, CARD_FILE, RESULTS_FILE, CONTACT_SHEET_FILE, REPORT_FILE, RUN_FILE, RECIPE_FILE, f"ema/{LORA_FILE}",
    "videos/*.mp4",
)  # fmt: skip
"""Files of `output_dir` that are pushed to the Hub if they exist."""


@dataclass(frozen=True)
class Outcome:
    """
    What a finished run found out.

    Args:
        results (`dict`): The content of `results.json`.
        evaluated (`dict[str, list[Sample]]`): `"base"` and `"aligned"` -> samples of the evaluation, in the same
            order; empty without evaluation prompts.
        recipe ([`Recipe`], *optional*): The command and settings that started the run.
    """

    results: Mapping[str, Any]
    evaluated: Mapping[str, Sequence[Sample]]
    recipe: Recipe | None = None


# The card


def write_card_facts(trainer: SpatialAlignTrainer, policy_folder: Path) -> None:
    """Write what only a round's trainer knows; a rerun that finds the round finished has no trainer."""
    facts = {
        "tags": trainer._tag_names,
        "trainer_name": trainer._name,
        "learns_from": trainer._learns_from,
        "formula": trainer._formula(),
        "facts": {name: str(value) for name, value in trainer._facts().items()},
        "results": {name: value for name, value in trainer._last_logged().items() if math.isfinite(value)},
        "step": trainer.state.global_step,
        "papers": trainer._papers(),
    }
    write_json(policy_folder / CARD_FACTS_FILE, facts)


def run_card(
    parts: RunParts,
    outcome: Outcome,
    repo: str,
    *,
    model_name: str | None = None,
    dataset_name: str | None = None,
    tags: str | Sequence[str] | None = None,
) -> ModelCard:
    """
    Render the model card of the run's LoRA.

    Args:
        parts ([`RunParts`]): The run, whose last round is finished.
        outcome ([`Outcome`]): Its results.
        repo (`str`): Hub id, or folder, that the card's code loads the LoRA from.
        model_name (`str`, *optional*): Title of the card, by default the name of `output_dir`.
        dataset_name (`str`, *optional*): Hub id of the preference dataset.
        tags (`str` or sequence of `str`, *optional*): Added to the trainer's.
    """
    card_facts = read_json(parts.round_folder(parts.args.num_rounds) / "policy" / CARD_FACTS_FILE)
    own_tags = [tags] if isinstance(tags, str) else list(tags or [])
    card_facts["tags"] = [*card_facts["tags"], "online-dpo", *own_tags]
    card_facts["facts"] = {**card_facts["facts"], **_run_facts(parts, outcome)}
    return lora_model_card(
        parts.model,
        model_name=model_name or parts.output_dir.resolve().name,
        repo=repo,
        usage=run_usage(parts, outcome),
        dataset_name=dataset_name,
        comparison=_comparison(parts, outcome),
        recipe=outcome.recipe,
        **card_facts,
    )


def _run_facts(parts: RunParts, outcome: Outcome) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "Rounds": parts.args.num_rounds,
        "Videos sampled per prompt": parts.args.num_generations,
    }
    if fit := outcome.results.get("settings", {}).get("starting_policy_keys"):  # later rounds load their own LoRAs
        facts[STARTING_LORA] = fit
    for policy in ("base", "aligned"):
        if summary := outcome.results.get(policy):
            headline = headline_of(summary)
            value = "none" if summary[headline] is None else f"{summary[headline]:.3f}"
            counts = f"{summary['num_prompts']} held-out prompts, {summary['num_videos']} videos"
            facts[f"{headline}, {policy}"] = f"{value} ({counts}, {summary['invalid_rate']:.1%} INVALID)"
    return facts


def run_usage(parts: RunParts, outcome: Outcome) -> LoraUsage:
    """Describe how the run's LoRA draws the first video that the card shows, or else the first training prompt."""
    shown = shown_videos(outcome)
    if not shown:
        return parts.lora_usage(parts.train_rows[0], EVALUATION_SEED)
    video_pair, (_, aligned) = shown[0]
    return parts.lora_usage(aligned.row, aligned.seed, video_pair.after)


def _comparison(parts: RunParts, outcome: Outcome) -> Comparison | None:
    """Compare base and aligned for the card; `None` if they were not both evaluated."""
    summaries = {name: outcome.results[name] for name in ("base", "aligned") if outcome.results.get(name)}
    if len(summaries) < 2:
        return None
    aligned = summaries["aligned"]
    headline = headline_of(aligned)
    others = ("S@0.8", "S@0.9") if headline.startswith("S@") else ("invalid_rate",)
    metrics = {name: aligned[name] for name in (headline, *others) if aligned[name] is not None}
    prompts = f"{aligned['num_prompts']} held-out prompts x {parts.args.evaluation_seeds} seeds"
    table = markdown_table(["", *summaries], summary_rows(summaries))
    return Comparison(prompts, table, metrics, [video_pair for video_pair, _ in shown_videos(outcome)])


def shown_videos(outcome: Outcome) -> list[tuple[VideoPair, tuple[Sample, Sample]]]:
    """Choose the prompts whose videos the card shows: `(names of the files, (base sample, aligned sample))`."""
    shown = []
    for k, samples in enumerate(spread_over_types(outcome, VIDEO_PAIRS), start=1):
        headlines = [headline_score(sample) for sample in samples]
        before, after = ("INVALID" if score is None else f"{score:.2f}" for score in headlines)
        names = (f"videos/{k}_base.mp4", f"videos/{k}_aligned.mp4")
        shown.append((VideoPair(samples[0].row["prompt"], *names, f"{before} -> {after}"), samples))
    return shown


def spread_over_types(outcome: Outcome, count: int) -> list[tuple[Sample, Sample]]:
    """Choose up to `count` prompts, spread evenly over the types; returns the first seed's (base, aligned)."""
    if not outcome.evaluated:
        return []
    pairs = zip(outcome.evaluated["base"], outcome.evaluated["aligned"], strict=True)
    first_seeds = [pair for pair in pairs if pair[0].seed == EVALUATION_SEED]
    first_seeds.sort(key=lambda pair: str(pair[0].row.get("type", "")))
    count = min(count, len(first_seeds))
    return [first_seeds[k * len(first_seeds) // count] for k in range(count)]


# The push


def make_run_repository(parts: RunParts, token: str | None = None) -> str:
    """Make the LoRA's repository; called before the work whose result is pushed, so that it cannot fail after it."""
    name = parts.args.hub_model_id or parts.output_dir.resolve().name
    repo = make_model_repo(name, private=parts.args.hub_private_repo, token=token or parts.args.hub_token)
    saves = "" if parts.args.hub_strategy == HubStrategy.END else f"at every save {', '.join(PUBLISHED)}; "
    announcement = f"to be pushed to {repo}, as far as the run makes it: {saves}at the end {', '.join(PUSHED)}"
    parts.console.print(terminal_text(announcement), soft_wrap=True)
    return repo


def push_run(
    parts: RunParts,
    outcome: Outcome,
    commit_message: str = "End of training",
    token: str | None = None,
    **card_options: Any,
) -> str | None:
    """
    Push the run's LoRA with its card and results; see [`OnlineSpatialAlignTrainer.push_to_hub`].

    `card_options` are the keyword arguments of [`run_card`].
    """
    if not (parts.output_dir / LORA_FILE).is_file():
        raise FileNotFoundError(f"{parts.output_dir} has no {LORA_FILE} to push: run train() to its end first.")
    if not parts.accelerator.is_main_process:
        return None
    name = parts.args.hub_model_id or parts.output_dir.resolve().name
    repo = make_model_repo(name, private=parts.args.hub_private_repo, token=token or parts.args.hub_token)
    run_card(parts, outcome, repo, **card_options).save(parts.output_dir / CARD_FILE)
    names = _published(parts.output_dir)
    parts.console.print(terminal_text(f"pushing to {repo}: {', '.join(names)}"), soft_wrap=True)
    commit = push_files(
        {name: _public_content(parts.output_dir, name) for name in names},
        repo,
        message=commit_message,
        private=parts.args.hub_private_repo,
        token=token or parts.args.hub_token,
        revision=parts.args.hub_revision,
    )
    parts.console.print(terminal_text(f"pushed to {commit.commit_url}"), soft_wrap=True)
    return str(commit.commit_url)


def try_push_run(parts: RunParts, outcome: Outcome, **card_options: Any) -> None:
    """Push a finished run, whose results are safe on disk. If that fails, print the command that pushes it later."""
    try:
        push_run(parts, outcome, **card_options)
    except (PushFailed, PermissionError) as failure:
        repo = parts.args.hub_model_id or parts.output_dir.resolve().name
        command = command_for_later(parts.output_dir, repo, _published(parts.output_dir))
        lines = f"not pushed: {failure}. To push it later:", f"  {command}"
        parts.console.print(*map(terminal_text, lines), sep="\n", soft_wrap=True)


def _published(output_dir: Path) -> list[str]:
    """List the existing files that are pushed, by their path in `output_dir` and in the repository."""
    files = (file for pattern in PUSHED for file in sorted(output_dir.glob(pattern)))
    return [file.relative_to(output_dir).as_posix() for file in files]


def _public_content(output_dir: Path, name: str) -> bytes | Path:
    """Return a file; the page without the path of `output_dir` in its command lines, settings without secrets."""
    file = output_dir / name
    if name == REPORT_FILE:
        page = file.read_bytes().replace(str(output_dir).encode(), output_dir.name.encode())
        return without_digests(page.decode()).encode()
    if name in (RESULTS_FILE, RUN_FILE):  # an older run's may contain secrets
        content = read_json(file)
        public = json.loads(without_digests(json.dumps(mask_secrets(content))))
        return file if public == content else json.dumps(public, indent=2).encode()
    if name == RECIPE_FILE:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        public = mask_secrets(content)
        return file if public == content else yaml.safe_dump(public, sort_keys=False, allow_unicode=True).encode()
    return file
