"""What a run leaves behind when its stages are done: the LoRA with its card, tables, a picture, a push to the Hub."""

from __future__ import annotations

import math
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spatialalign_trl.evaluation import EVALUATION_SEED, headline_of, headline_score
from spatialalign_trl.files import read_json, write_atomic, write_json
from spatialalign_trl.hub.lora_files import command_for_later, make_model_repo, push_files
from spatialalign_trl.hub.pushing import PushFailed
from spatialalign_trl.models.lora import LORA_FILE
from spatialalign_trl.online.report import report_run
from spatialalign_trl.online.trackers import show_outcome, trackers_of_run
from spatialalign_trl.report.contact_sheet import ContactSheetRow, contact_sheet, score_style
from spatialalign_trl.report.tables import markdown_table, rich_table, summary_rows
from spatialalign_trl.report.write import REPORT_FILE
from spatialalign_trl.trainer.model_card import Comparison, Recipe, VideoPair, lora_model_card
from spatialalign_trl.trainer.publishing import CARD_FILE
from spatialalign_trl.video import browser_mp4, videos_of

if TYPE_CHECKING:
    from accelerate import Accelerator
    from huggingface_hub import ModelCard
    from rich.console import Console

    from spatialalign_trl.models.base import VideoModel
    from spatialalign_trl.models.settings import SamplingSettings
    from spatialalign_trl.online.config import OnlineSpatialAlignConfig
    from spatialalign_trl.rewards.runner import RewardRunner
    from spatialalign_trl.rollout.store import Sample, SampleStore
    from spatialalign_trl.trainer.spatialalign_trainer import SpatialAlignTrainer

PREFERENCES_FILE = "train-00000-of-00001.parquet"

FACTS_FILE = "card.json"
"""In a round's `policy` folder: what the card says of its training."""

CONTACT_SHEET_FILE = "contact_sheet.png"
RESULTS_FILE = "results.json"

RECIPE_FILE = "recipe.yaml"
VIDEO_PAIRS = 3
"""Prompts whose videos before and after are shown in the card."""

PUSHED = (
    LORA_FILE, CARD_FILE, RESULTS_FILE, CONTACT_SHEET_FILE, REPORT_FILE, "run.json", RECIPE_FILE, f"ema/{LORA_FILE}",
    "videos/*.mp4",
)  # fmt: skip
"""What is pushed to the Hub, as far as it is there."""


class RunPublishing:
    """The outward side of [`OnlineSpatialAlignTrainer`]."""

    args: OnlineSpatialAlignConfig
    accelerator: Accelerator
    console: Console
    model: VideoModel
    settings: SamplingSettings
    runner: RewardRunner
    output_dir: Path
    store: SampleStore
    results: dict[str, Any]
    evaluation_samples: dict[str, list[Sample]]
    recipe: Recipe | None = None
    """What was run, for the card; a recipe sets it."""

    def push_to_hub(
        self,
        commit_message: str = "End of training",
        token: str | None = None,
        model_name: str | None = None,
        dataset_name: str | None = None,
        tags: str | list[str] | None = None,
    ) -> str | None:
        """
        Pushes the run's LoRA, its card, `results.json`, pictures and videos to `args.hub_model_id` (by default the
        name of `output_dir`), which is made if it is missing, private if `args.hub_private_repo` says so.

        Args:
            commit_message (`str`, *optional*): Of the commit.
            token (`str`, *optional*): By default `args.hub_token`, then the one of `hf auth login`.
            model_name (`str`, *optional*): Title of the card.
            dataset_name (`str`, *optional*): Hub id of the preference dataset, for the card.
            tags (`str` or `list[str]`, *optional*): Added to the card's own.

        Returns:
            `str`: the commit's address; `None` on other processes than the first.

        Raises:
            FileNotFoundError: the run has no LoRA yet.
            PermissionError: there is no token, or it may not write there.
            PushFailed: after several attempts.
        """
        if not (self.output_dir / LORA_FILE).is_file():
            raise FileNotFoundError(f"{self.output_dir} holds no {LORA_FILE} to push: run train() to its end first.")
        if not self.accelerator.is_main_process:
            return None
        repo = self._hub_repository(token)
        tags = [tags] if isinstance(tags, str) else list(tags or [])
        self._card(repo, model_name, dataset_name, tags).save(self.output_dir / CARD_FILE)
        commit = push_files(
            {name: self._without_own_path(name) for name in self._published()},
            repo,
            message=commit_message,
            private=self.args.hub_private_repo,
            token=token or self.args.hub_token,
            revision=self.args.hub_revision,
        )
        self.console.print(f"pushed to {commit.commit_url}", soft_wrap=True)
        return str(commit.commit_url)

    def _push_or_tell(self, **kwargs: Any) -> None:
        """At the end of a run, whose results are safe: a push that fails is told, with the line that repeats it."""
        try:
            self.push_to_hub(**kwargs)
        except (PushFailed, PermissionError) as failure:
            repo = self.args.hub_model_id or self.output_dir.resolve().name
            command = command_for_later(self.output_dir, repo, self._published())
            self.console.print(f"not pushed: {failure}. To push it later:\n  {command}", soft_wrap=True)

    def _hub_repository(self, token: str | None = None) -> str:
        """Makes the repository, or finds that this cannot be done: called before work whose result is to be pushed."""
        name = self.args.hub_model_id or self.output_dir.resolve().name
        return make_model_repo(name, private=self.args.hub_private_repo, token=token or self.args.hub_token)

    def _published(self) -> list[str]:
        """What is pushed, as far as it is there: paths in `output_dir`, which are those in the repository."""
        files = (file for pattern in PUSHED for file in sorted(self.output_dir.glob(pattern)))
        return [file.relative_to(self.output_dir).as_posix() for file in files]

    def _without_own_path(self, name: str) -> bytes | Path:
        """A file as the Hub gets it: the page's command lines name the folder, and not where it lies here."""
        file = self.output_dir / name
        if name != REPORT_FILE:
            return file
        return file.read_bytes().replace(str(self.output_dir).encode(), self.output_dir.name.encode())

    # Files in output_dir

    def _publish_locally(self, results: Mapping[str, Any], evaluated: Mapping[str, list[Sample]]) -> None:
        last = self._last_round()
        write_atomic(self.output_dir / LORA_FILE, (last / "policy" / LORA_FILE).read_bytes())
        average = last / "policy" / "ema" / LORA_FILE
        if average.is_file():
            write_atomic(self.output_dir / "ema" / LORA_FILE, average.read_bytes())
        target = self.output_dir / "preferences"
        target.mkdir(exist_ok=True)
        shutil.copyfile(last / "preferences" / PREFERENCES_FILE, target / PREFERENCES_FILE)
        write_json(self.output_dir / RESULTS_FILE, results)
        if self.recipe is not None:
            write_atomic(self.output_dir / RECIPE_FILE, self.recipe.settings.encode())
        for pair, samples in self._shown_videos():
            for name, sample in zip((pair.before, pair.after), samples, strict=True):
                data = browser_mp4(self.store.video(sample.sample_id), self.settings.fps)
                write_atomic(self.output_dir / name, data)
        self._card(self.args.hub_model_id or self.output_dir.name).save(self.output_dir / CARD_FILE)
        if evaluated and self.args.contact_sheet_prompts:
            self._draw_contact_sheet(evaluated["base"], evaluated["aligned"])
        self._show_outcome(results)
        if self.args.report_megabytes:
            command = self.recipe.command if self.recipe else None
            rewards, size = self.runner.reward_funcs, self.args.report_megabytes
            report_run(self.output_dir, self.store, rewards, evaluated, self._round_scores, size, command)
            self.runner.release()
        self._print_outcome(results)

    def _round_scores(self) -> list[list[float | None]]:
        """Each round's scores of the samples that it was trained on."""
        rounds = range(1, self.args.num_rounds + 1)
        return [[headline_score(sample) for sample in self._samples_of_round(number)] for number in rounds]

    def _show_outcome(self, results: Mapping[str, Any]) -> None:
        """In the trackers, which the trainers have closed."""
        if not self.args.report_to or results["base"] is None:
            return
        names = [CONTACT_SHEET_FILE, *(name for pair, _ in self._shown_videos() for name in (pair.before, pair.after))]
        files = {f"outcome/{Path(name).stem}": self.output_dir / name for name in names}
        try:
            with trackers_of_run(self.args) as trackers:
                show_outcome(trackers, results, {name: file for name, file in files.items() if file.is_file()})
        except Exception as error:  # a tracker may not be reached; the results are on disk
            warnings.warn(f"the outcome is not in the trackers ({type(error).__name__}: {error})", stacklevel=2)

    def _last_round(self) -> Path:
        return self.output_dir / "rounds" / f"{self.args.num_rounds:02d}"

    def _note_for_the_card(self, trainer: SpatialAlignTrainer, policy: Path) -> None:
        """What only the round's trainer knows; a rerun that finds the round done has no trainer."""
        logged = {name: value for name, value in trainer._last_logged().items() if math.isfinite(value)}
        noted = {
            "tags": trainer._tag_names,
            "trainer_name": trainer._name,
            "formula": trainer._formula(),
            "facts": {name: str(value) for name, value in trainer._facts().items()},
            "results": logged,
            "step": trainer.state.global_step,
            "papers": trainer._papers(),
        }
        write_json(policy / FACTS_FILE, noted)

    def _card(
        self,
        repo: str,
        model_name: str | None = None,
        dataset_name: str | None = None,
        tags: list[str] | None = None,
    ) -> ModelCard:
        noted = read_json(self._last_round() / "policy" / FACTS_FILE)
        noted["tags"] = [*noted["tags"], "online-dpo", *(tags or [])]
        noted["facts"] = {**noted["facts"], **self._facts()}
        return lora_model_card(
            self.model,
            model_name=model_name or self.output_dir.resolve().name,
            repo=repo,
            dataset_name=dataset_name,
            comparison=self._comparison(),
            recipe=self.recipe,
            **noted,
        )

    def _comparison(self) -> Comparison | None:
        summaries = {name: self.results[name] for name in ("base", "aligned") if self.results.get(name)}
        if len(summaries) < 2:
            return None
        aligned = summaries["aligned"]
        first = headline_of(aligned)
        others = ("S@0.8", "S@0.9") if first.startswith("S@") else ("invalid_rate",)
        metrics = {name: aligned[name] for name in (first, *others) if aligned[name] is not None}
        prompts = f"{aligned['num_prompts']} held-out prompts x {self.args.evaluation_seeds} seeds"
        table = markdown_table(["", *summaries], summary_rows(summaries))
        return Comparison(prompts, table, metrics, [pair for pair, _ in self._shown_videos()])

    def _shown_videos(self) -> list[tuple[VideoPair, tuple[Sample, Sample]]]:
        """Prompts for the card, with their videos."""
        if not self.evaluation_samples:
            return []
        shown = []
        chosen = _spread_over_types(self.evaluation_samples["base"], self.evaluation_samples["aligned"], VIDEO_PAIRS)
        for k, pair in enumerate(chosen, start=1):
            told = map(headline_score, pair)
            scores = ["INVALID" if score is None else f"{score:.2f}" for score in told]
            names = (f"videos/{k}_base.mp4", f"videos/{k}_aligned.mp4")
            shown.append((VideoPair(pair[0].row["prompt"], *names, f"{scores[0]} -> {scores[1]}"), pair))
        return shown

    def _facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = {"Rounds": self.args.num_rounds, "Videos sampled a prompt": self.args.num_generations}
        for name in ("base", "aligned"):
            if numbers := self.results.get(name):
                where = f"{numbers['num_prompts']} held-out prompts, {numbers['num_videos']} videos"
                first = headline_of(numbers)
                value = "none" if numbers[first] is None else f"{numbers[first]:.3f}"
                facts[f"{first}, {name}"] = f"{value} ({where}, {numbers['invalid_rate']:.1%} INVALID)"
        return facts

    def _draw_contact_sheet(self, base: list[Sample], aligned: list[Sample]) -> Path:
        chosen = _spread_over_types(base, aligned, self.args.contact_sheet_prompts)
        rows = [
            ContactSheetRow(
                pair[0].row["prompt"],
                [
                    (name, self.store.video(sample.sample_id), headline_score(sample))
                    for name, sample in zip(("base", "aligned"), pair, strict=True)
                ],
                videos_of(pair[0].row),
            )
            for pair in chosen
        ]
        return contact_sheet(rows, self.output_dir / CONTACT_SHEET_FILE, **score_style(self.runner.names))

    def _print_outcome(self, results: Mapping[str, Any]) -> None:
        base, aligned = results["base"], results["aligned"]
        if base is not None:
            title = f"{base['num_prompts']} held-out prompts x {self.args.evaluation_seeds} seeds"
            self.console.print(rich_table({"base": base, "aligned": aligned}, title=title))
            first = headline_of(results["difference"])
            change = results["difference"][first]
            low, high = change["interval"]
            self.console.print(
                f"{first} {change['difference']:+.3f}, 95 % interval [{low:+.3f}, {high:+.3f}] (paired)"
            )
            verdict = results["verdict"]
            style = "bold yellow" if verdict["warning"] else None
            told = f"{'WARNING' if verdict['warning'] else 'looks'}: {verdict['message']}."
            self.console.print(told, style=style, markup=False, soft_wrap=True)
        for what, name in (
            ("LoRA", LORA_FILE),
            ("preference dataset", "preferences"),
            ("picture", CONTACT_SHEET_FILE),
            ("page", REPORT_FILE),
            ("all numbers", RESULTS_FILE),
        ):
            if (self.output_dir / name).exists():
                self.console.print(f"{what}: {self.output_dir / name}", soft_wrap=True)


def _spread_over_types(base: list[Sample], aligned: list[Sample], count: int) -> list[tuple[Sample, Sample]]:
    """The first seed of so many prompts, spread evenly over the types."""
    firsts = [pair for pair in zip(base, aligned, strict=True) if pair[0].seed == EVALUATION_SEED]
    firsts.sort(key=lambda pair: str(pair[0].row.get("type", "")))
    count = min(count, len(firsts))
    return [firsts[k * len(firsts) // count] for k in range(count)]
