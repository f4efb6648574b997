"""The run's preference dataset on the Hub, while the run is at work. A push that fails stops nothing: what it would
have pushed is kept in `output_dir/hub_preferences`, with the command that pushes it later."""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spatialalign_trl.evaluation import summarize
from spatialalign_trl.files import read_json
from spatialalign_trl.hub.pushing import check_hub_access, push_dataset_folder, without_tokens
from spatialalign_trl.online.preference_card import CARD_FILE, PREVIEW_FILE, RoundSummary, preference_card
from spatialalign_trl.online.preference_files import (
    PAIRS,
    SAMPLES,
    count_rows,
    public_name,
    rounds_in,
    write_pairs,
    write_samples,
)
from spatialalign_trl.preferences import PairingResult, make_pairs
from spatialalign_trl.report.contact_sheet import ContactSheetRow, contact_sheet, score_style
from spatialalign_trl.rewards.scoring import combine_scores, has_failed
from spatialalign_trl.video import videos_of

if TYPE_CHECKING:
    from accelerate import Accelerator
    from rich.console import Console

    from spatialalign_trl.models.base import VideoModel
    from spatialalign_trl.models.settings import SamplingSettings
    from spatialalign_trl.online.config import OnlineSpatialAlignConfig
    from spatialalign_trl.preferences import Pair
    from spatialalign_trl.rewards.runner import RewardRunner
    from spatialalign_trl.rollout.store import Sample, SampleStore

HUB_FOLDER = "hub_preferences"
"""In `output_dir`: the dataset's repository as it is, or should be, on the Hub."""

OPTION = "push_preferences_to_hub"
PREVIEW_PAIRS = 4


class PreferencePublishing:
    """How [`OnlineSpatialAlignTrainer`] makes pairs, and shows them while it works."""

    args: OnlineSpatialAlignConfig
    accelerator: Accelerator
    console: Console
    model: VideoModel
    output_dir: Path
    results: dict[str, Any]
    runner: RewardRunner
    settings: SamplingSettings
    store: SampleStore
    train_rows: list[dict[str, Any]]

    def _make_pairs(self, samples: Sequence[Sample]) -> PairingResult:
        args = self.args
        samples = combine_scores(samples, self.runner.combination, normalize=True)
        invalid = sum(sample.reward is None for sample in samples)
        if args.invalid_score is not None:
            samples = [_lost(sample, args.invalid_score) for sample in samples]
        result = make_pairs(
            samples, args.pair_strategy, args.score_threshold, args.min_pair_gap, args.pairs_per_prompt, args.seed
        )
        result.stats["invalid_samples"] = invalid
        return result

    def _check_preferences_repo(self) -> None:
        """Before anything is sampled. A Hub that is down does not stop the run, a wrong token does."""
        repo = self.args.push_preferences_to_hub
        if repo is None:
            return
        private = not self.args.push_preferences_public
        problem = check_hub_access(repo, OPTION, private=private, token=self.args.hub_token)
        if problem is not None:
            warnings.warn(f"{OPTION}={repo!r}: {problem}. The run goes on, and pushes when it can.", stacklevel=2)

    def _sample_to_train_on(self, number: int, revision: str) -> list[Sample]:
        """The round's training samples; between blocks of them, what there is so far is pushed."""
        seeds, rows, desc = self._training_seeds(number), self.train_rows, "sampling to train on"
        if self.args.push_preferences_to_hub is None or self.args.push_preferences_every is None:
            return self._sample(rows, seeds, revision, desc)
        block = max(1, self.args.push_preferences_every // len(seeds))
        samples: list[Sample] = []
        for start in range(0, len(rows), block):
            some = rows[start : start + block]
            is_news = not self._are_scored(some, seeds, revision)
            samples += self._sample(some, seeds, revision, desc)
            if is_news and start + block < len(rows):
                self._push_preferences(number, samples, is_partial=True)
        return samples

    def _are_scored(self, rows: Sequence[dict[str, Any]], seeds: Sequence[int], revision: str) -> bool:
        ids = self._sample_ids(rows, seeds, revision)
        return all(self.store.path(sample_id, ".scores.json").exists() for sample_id in ids)

    def _sample_ids(self, rows: Sequence[dict[str, Any]], seeds: Sequence[int], revision: str) -> list[str]:
        settings = self.settings.to_dict()
        return [self.store.sample_id(row, seed, settings, revision) for row in rows for seed in seeds]

    def _push_preferences(self, number: int, samples: Sequence[Sample], *, is_partial: bool = False) -> None:
        """Pushes the dataset with this round's samples and pairs. Never raises: work goes on."""
        if self.args.push_preferences_to_hub is None:
            return
        if self.accelerator.is_main_process:
            try:
                result = self._make_pairs(self._pool(number, samples))
                self._write_round(number, samples, result)
                self._write_card(number, samples, result, is_partial)
                self._push_folder("sampling" if is_partial else "sampled", number)
            except Exception as error:
                self._warn_of_push(f"{type(error).__name__}: {without_tokens(str(error))}")
        self.accelerator.wait_for_everyone()

    def _push_finished_preferences(self) -> None:
        """After the last round: the card with the evaluation, and rounds that an earlier start did not write."""
        if self.args.push_preferences_to_hub is None:
            return
        if self.accelerator.is_main_process:
            try:
                for number in range(1, self.args.num_rounds + 1):
                    samples = self._samples_of_round(number)
                    result = self._make_pairs(self._pool(number, samples))
                    if count_rows(self._hub_folder, SAMPLES, number) != len(samples):
                        self._write_round(number, samples, result)
                self._write_card(number, samples, result, is_partial=False)
                self._push_folder("trained", number)
            except Exception as error:
                self._warn_of_push(f"{type(error).__name__}: {without_tokens(str(error))}")
        self.accelerator.wait_for_everyone()

    # Files

    @property
    def _hub_folder(self) -> Path:
        return self.output_dir / HUB_FOLDER

    def _pool(self, number: int, samples: Sequence[Sample]) -> list[Sample]:
        """What the round's pairs are made of."""
        return [*(self._earlier_samples(number) if self.args.pool_rounds else []), *samples]

    def _samples_of_round(self, number: int) -> list[Sample]:
        """The training samples of a round that is done, from the store."""
        revision = read_json(self._round_file(number))["sampled_from"]
        ids = self._sample_ids(self.train_rows, self._training_seeds(number), revision)
        return combine_scores([self.store.load(sample_id) for sample_id in ids], self.runner.combination)

    def _earlier_samples(self, number: int) -> list[Sample]:
        """The training samples of all rounds before `number`."""
        return [sample for earlier in range(1, number) for sample in self._samples_of_round(earlier)]

    def _round_file(self, number: int) -> Path:
        return self.output_dir / "rounds" / f"{number:02d}" / "round.json"

    def _write_round(self, number: int, samples: Sequence[Sample], result: PairingResult) -> None:
        write_pairs(self._hub_folder, number, result.pairs, self.store.video_bytes)
        write_samples(self._hub_folder, number, samples, self.store.video_bytes)

    def _write_card(self, number: int, samples: Sequence[Sample], result: PairingResult, is_partial: bool) -> None:
        if result.pairs:
            self._draw_preview(result.pairs)
        records = [read_json(self._round_file(earlier)) for earlier in range(1, number)]
        rounds = [RoundSummary(r["round"], r["sampled_from"], r["rollouts"], r["preferences"]) for r in records]
        summary = summarize(list(samples), seed=self.args.seed)
        rounds.append(RoundSummary(number, samples[0].policy_revision, summary, result.stats))
        evaluation = {name: self.results[name] for name in ("base", "aligned") if self.results.get(name)}
        card = preference_card(
            self._hub_folder,
            repo=self.args.push_preferences_to_hub,
            license=self.args.push_preferences_license,
            model_name=self.model.name_or_path,
            facts=self._how_they_were_made(),
            rounds=rounds,
            scores=[s.reward for s in [*self._earlier_samples(number), *samples]],
            pairs=result.pairs,
            evaluation=evaluation,
            is_partial=is_partial,
        )
        card.save(self._hub_folder / CARD_FILE)

    def _how_they_were_made(self) -> dict[str, Any]:
        args, settings = self.args, self.settings
        strategy = f"`{args.pair_strategy}`"
        if args.pair_strategy == "threshold":
            strategy += f" at {args.score_threshold:g}"
        per_prompt = "all" if args.pairs_per_prompt is None else f"at most {args.pairs_per_prompt}"
        return {
            "Model": f"`{public_name(self.model.name_or_path)}`",
            "Rewards": ", ".join(f"`{name}`" for name in self.runner.names),
            "Prompts": f"{len(self.train_rows)}, {args.num_generations} videos each and round",
            "Sampling": f"{settings.num_frames} frames of {settings.width} x {settings.height} at {settings.fps:g} a "
            f"second, {settings.num_inference_steps} steps, guidance {settings.guidance_scale:g}",
            "Pairs": f"{strategy}, {per_prompt} a prompt, gap at least {args.min_pair_gap:g}, of the samples of "
            + ("all rounds so far" if args.pool_rounds else "the round"),
            "Noise": "`torch.randn` of the latents' shape from a CPU generator with `noise_seed`",
        }

    def _draw_preview(self, pairs: Sequence[Pair]) -> None:
        rows = [
            ContactSheetRow(
                pair.chosen.row["prompt"],
                [
                    (name, self.store.video(side.sample_id), score)
                    for name, side, score in (
                        ("chosen", pair.chosen, pair.score_chosen),
                        ("rejected", pair.rejected, pair.score_rejected),
                    )
                ],
                videos_of(pair.chosen.row),
            )
            for pair in pairs[:: max(1, len(pairs) // PREVIEW_PAIRS)][:PREVIEW_PAIRS]
        ]
        # A pair's score is the sum of several rewards, and INVALID videos have one, too.
        style = score_style(self.runner.names if len(self.runner.names) == 1 else ())
        contact_sheet(rows, self._hub_folder / PREVIEW_FILE, **style | {"score_name": "score"})

    # Pushing

    def _push_folder(self, state: str, number: int) -> None:
        url = push_preferences_folder(
            self._hub_folder,
            self.args.push_preferences_to_hub,
            message=f"Round {number}: {state}",
            private=not self.args.push_preferences_public,
            token=self.args.hub_token,
        )
        self.console.print(f"preferences pushed to {url}", soft_wrap=True)

    def _warn_of_push(self, reason: str) -> None:
        command = push_command(self.output_dir, self.args.push_preferences_to_hub, self.args.push_preferences_public)
        warnings.warn(
            f"the preferences are not on the Hub: {reason}. The run goes on. They are kept in {self._hub_folder}; "
            f"this pushes them:\n  {command}",
            stacklevel=3,
        )


def _lost(sample: Sample, invalid_score: float) -> Sample:
    """The sample, with a score where a reward's verdict was INVALID."""
    if sample.reward is not None or not sample.scored or has_failed(sample, sample.rewards):
        return sample
    return replace(sample, reward=invalid_score)


def push_preferences_folder(
    folder: Path, repo: str, *, message: str, private: bool = True, token: str | None = None
) -> str:
    """Pushes a run's `hub_preferences`; files of rounds, there, that are not here are deleted with the same commit.

    Raises:
        hub.PushFailed: when it failed for good.
        FileNotFoundError: when the folder is no such dataset.
    """
    if not (folder / CARD_FILE).is_file() or not rounds_in(folder, SAMPLES):
        raise FileNotFoundError(f"{folder} holds no preference dataset: run with --{OPTION} first.")
    # Only rounds: a file that somebody added on the Hub stays.
    replaced = [f"{config}/round-*.parquet" for config in (PAIRS, SAMPLES)]
    return push_dataset_folder(folder, repo, message=message, private=private, token=token, replaced=replaced)


def push_command(output_dir: Path, repo: str, public: bool = False) -> str:
    """The line that pushes what a run kept."""
    words = ["spatialalign", "push-preferences", str(output_dir), "--repo", repo, *(["--public"] if public else [])]
    return shlex.join(words)
