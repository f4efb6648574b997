"""The loop: sample, score, pair, train, evaluate. A stage leaves its result on disk and is skipped when it is there.

    output_dir/
      run.json                                 what was asked for; a rerun must ask for the same
      samples/                                 every video ever sampled, with its inputs, latents and scores
      rounds/01/preferences/                   the pairs of a round, a dataset for `load_dataset`
      rounds/01/policy/                        the trainer's folder: checkpoints, logs, the round's LoRA
      rounds/01/round.json                     its numbers; written last
      preferences/, pytorch_lora_weights.safetensors, README.md      the last round's, and the LoRA's card
      results.json, contact_sheet.png          before and after
      report.html, report.json                 all of it as one page, and what the page needs to be made again

Source: SpatialAlign (arXiv 2602.22745); the paper runs one round with the base model as the sampler.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from datasets import Dataset
from peft import LoraConfig
from rich.console import Console
from safetensors.torch import load_file
from transformers import ProgressCallback, TrainerCallback, set_seed
from transformers.trainer_utils import HubStrategy

from spatialalign_trl.evaluation import summarize
from spatialalign_trl.evaluation.looks import QualityMeasures
from spatialalign_trl.evaluation.verdict import Measured, judge
from spatialalign_trl.files import lock_folder, read_json, write_json
from spatialalign_trl.models.base import VideoModel
from spatialalign_trl.models.lora import LORA_FILE, active_adapters, lora_fingerprint
from spatialalign_trl.models.quantization import check_optimizer
from spatialalign_trl.online.config import OnlineSpatialAlignConfig
from spatialalign_trl.online.log_samples import LogSamples
from spatialalign_trl.online.preference_repo import PreferencePublishing
from spatialalign_trl.online.publishing import EVALUATION_SEED, PREFERENCES_FILE, RunPublishing
from spatialalign_trl.online.run_settings import check_same_run, describe_versions
from spatialalign_trl.preferences import to_dataset
from spatialalign_trl.rewards.runner import RewardRunner
from spatialalign_trl.rewards.scoring import score_samples
from spatialalign_trl.rollout.sampler import roll_out
from spatialalign_trl.rollout.store import Sample, SampleStore
from spatialalign_trl.trainer.callbacks import EMA_FOLDER, LoraEMA, MetricsOnTheBar, SaveOnInterrupt
from spatialalign_trl.trainer.checkpoints import last_whole_checkpoint
from spatialalign_trl.trainer.distribution import refuse_unsupported_distribution
from spatialalign_trl.trainer.spatialalign_trainer import SpatialAlignTrainer


class OnlineSpatialAlignTrainer(RunPublishing, PreferencePublishing):
    """Aligns a video model by its own samples, in TRL's shape.

    Args:
        model: a name, a folder, or a [`VideoModel`].
        reward_funcs: one or several rewards: callables, names or `path/to/file.py:Name`.
        args: the stages' settings.
        train_dataset: prompts to sample and train on; see `prompts.load_prompts` for the columns.
        eval_dataset: prompts to evaluate on, before and after; never trained on. `None`: nothing is evaluated.
        peft_config: the LoRA. By default the paper's.
        callbacks: for the trainer of every round.

    Raises:
        ValueError: before anything is sampled, for settings, prompts and rewards which do not fit together.

    Example:

    ```python
    trainer = OnlineSpatialAlignTrainer(
        model="tiny", reward_funcs="dsr_score", args=OnlineSpatialAlignConfig(output_dir="runs/tiny"),
        train_dataset=load_prompts("datasets/tiny_world_prompts", "train"),
        eval_dataset=load_prompts("datasets/tiny_world_prompts", "test"),
    )
    results = trainer.train()
    ```
    """

    def __init__(
        self,
        model: str | VideoModel,
        reward_funcs: str | Callable[..., Any] | Sequence[str | Callable[..., Any]],
        args: OnlineSpatialAlignConfig,
        train_dataset: Dataset,
        eval_dataset: Dataset | None = None,
        peft_config: LoraConfig | None = None,
        callbacks: Sequence[TrainerCallback] | None = None,
    ) -> None:
        refuse_unsupported_distribution(args, samples=True)
        check_optimizer(getattr(args.optim, "value", args.optim))
        self.args = args
        self.runner = RewardRunner(
            reward_funcs, args.reward_weights, args.max_failure_share, args.reward_normalization, args.reward_gates
        )
        self.train_rows, self.eval_rows = list(train_dataset), list(eval_dataset or [])
        self.runner.check_prompts(self.train_rows)
        if self.eval_rows:
            self.runner.check_prompts(self.eval_rows)
        if isinstance(model, str):
            from spatialalign_trl.models import load_video_model

            model = load_video_model(model)
        _check_disjoint(model, self.train_rows, self.eval_rows)
        self.starts_adapted = bool(active_adapters(model.transformer))
        if self.starts_adapted and peft_config is not None:
            raise ValueError(
                "the model already carries a LoRA: pass peft_config=None to go on training it, or unload it first "
                "(model.unload_lora()) to train a new one"
            )
        self.model = model
        self.settings = args.sampling_settings(model.default_settings())
        model.check_size(self.settings.num_frames, self.settings.height, self.settings.width)
        model.train_as_sampled(self.settings)
        # A LoRA that starts anew in a later round (continue_adapter=False) has the shape of the one it came with.
        self.peft_config = next(iter(model.transformer.peft_config.values())) if self.starts_adapted else peft_config
        self.callbacks = list(callbacks or [])
        self.accelerator = Accelerator(cpu=args.use_cpu)
        self.output_dir = Path(args.output_dir)
        self.quality = QualityMeasures(
            args.quality_guards, self.output_dir / "looks", self.eval_rows, self.accelerator
        )
        self.store = SampleStore(args.samples_dir or self.output_dir / "samples")
        # A store may hold samples of several models, and of one model with and without the LoRA it came with.
        start = lora_fingerprint(model.lora_state_dict()) if self.starts_adapted else "base"
        self.base_revision = f"{model.name_or_path}@{start}"
        self.revision = self.base_revision  # of the policy as it is now
        self.results: dict[str, Any] = {}
        self.evaluation_samples: dict[str, list[Sample]] = {}
        self.console = Console(quiet=not self.accelerator.is_main_process)

    # The loop

    def train(self) -> dict[str, Any]:
        """Runs what is missing of the loop.

        Returns:
            What `results.json` holds: `base`, `aligned`, `difference` (see `evaluation/`; `None` without evaluation
            prompts), `quality_difference`, `verdict`, `rounds`, `settings`, `versions`.

        Raises:
            KeyboardInterrupt: after Ctrl-C; a training has written a checkpoint first. Running again goes on.
            RuntimeError: where another process is at work in `output_dir`.
        """
        try:
            with lock_folder(self.output_dir, here=self.accelerator.is_main_process):
                return self._run()
        except KeyboardInterrupt:
            self.console.print(
                f"interrupted. What is finished is kept in {self.output_dir}; the same command goes on from there.",
                soft_wrap=True,
            )
            raise

    def _run(self) -> dict[str, Any]:
        if self.accelerator.is_main_process:
            rewards = self.runner.describe()
            start = self.base_revision if self.starts_adapted else None
            check_same_run(
                self.output_dir, self.args, self.settings, self.model, rewards, self.train_rows, starting_policy=start
            )
            if self.args.push_to_hub:
                self._hub_repository()  # without a token: now, not after the last round
            self._check_preferences_repo()
        self.accelerator.wait_for_everyone()
        self.console.rule("base model")
        evaluated = {"base": self._evaluate(self.base_revision)} if self.eval_rows else {}
        self.revision, rounds = self.base_revision, []
        for number in range(1, self.args.num_rounds + 1):
            self.console.rule(f"round {number} of {self.args.num_rounds}")
            record = self._run_round(number, self.revision)
            self.revision = record["policy_revision"]
            if self.eval_rows and (self.args.evaluate_every_round or number == self.args.num_rounds):
                evaluated["aligned"] = self._evaluate(self.revision, base=evaluated["base"].samples)
                record["evaluation"] = evaluated["aligned"][1]
            rounds.append(record)
        self.evaluation_samples = {name: measured.samples for name, measured in evaluated.items()}
        self.results = results = {
            **{name: evaluated[name][1] if evaluated else None for name in ("base", "aligned")},
            **(judge(evaluated["base"], evaluated["aligned"], self.args.seed) if evaluated else {"difference": None}),
            "rounds": rounds,
            "settings": read_json(self.output_dir / "run.json"),
            "versions": describe_versions(),
        }
        if self.accelerator.is_main_process:
            self._publish_locally(results, self.evaluation_samples)
        self._push_finished_preferences()
        if self.args.push_to_hub:
            self._push_or_tell(dataset_name=self.args.push_preferences_to_hub)
        self.accelerator.wait_for_everyone()
        return results

    def evaluate(self, eval_dataset: Dataset | None = None) -> dict[str, Any]:
        """Samples, scores and measures the policy as it is now: the one that the model came with, or after
        [`~OnlineSpatialAlignTrainer.train`] the last round's. Videos that are there already are not sampled again.

        Args:
            eval_dataset: prompts, instead of those the trainer was made with.

        Returns:
            `S@0.5` ... `S@0.9`, intervals, components and quality; see `evaluation.summarize`.

        Raises:
            ValueError: without evaluation prompts, or for prompts that the rewards cannot judge.
        """
        rows = self.eval_rows if eval_dataset is None else list(eval_dataset)
        if not rows:
            raise ValueError("there are no prompts to evaluate on: pass eval_dataset here, or to the trainer")
        self.runner.check_prompts(rows)
        return self._evaluate(self.revision, rows)[1]

    def _run_round(self, number: int, revision: str) -> dict[str, Any]:
        """One round from the policy `revision`; leaves the model at the round's policy."""
        folder = self.output_dir / "rounds" / f"{number:02d}"
        if (folder / "round.json").exists():
            self._load_policy(folder / "policy")
            return read_json(folder / "round.json")
        samples = self._sample_to_train_on(number, revision)
        preferences, stats = self._pair(self._pool(number, samples), folder / "preferences")
        self._push_preferences(number, samples)
        log_history = self._train_policy(preferences, folder / "policy", is_first=number == 1)
        weights = load_file(folder / "policy" / LORA_FILE)
        record = {
            "round": number,
            "policy_revision": f"{self.model.name_or_path}@{lora_fingerprint(weights)}",
            "sampled_from": revision,
            "preferences": stats,
            "rollouts": summarize(samples, seed=self.args.seed),
            "training": log_history,
        }
        if self.accelerator.is_main_process:
            write_json(folder / "round.json", record)
        self.accelerator.wait_for_everyone()
        return record

    # Stages

    def _training_seeds(self, number: int) -> list[int]:
        first = (number - 1) * self.args.num_generations
        return list(range(first, first + self.args.num_generations))

    def _sample(self, rows: list[dict], seeds: list[int], revision: str, desc: str) -> list[Sample]:
        """Samples and scores what is missing."""
        samples = roll_out(
            self.model,
            rows,
            seeds,
            self.settings,
            self.store,
            policy_revision=revision,
            batch_size=self.args.rollout_batch_size,
            accelerator=self.accelerator,
            crf=self.args.video_crf,
            desc=desc,
        )
        return score_samples(samples, self.store, self.runner, accelerator=self.accelerator)

    def _pair(self, samples: list[Sample], folder: Path) -> tuple[Dataset, dict[str, Any]]:
        """Makes the round's preference dataset; every process reads the file that the first one wrote."""
        args = self.args
        result = self._make_pairs(samples)
        if not result.pairs:
            scores = [sample.reward for sample in samples if sample.reward is not None]
            spread = f"between {min(scores):.3f} and {max(scores):.3f}" if scores else "all INVALID"
            raise ValueError(
                f"there is nothing to learn: none of {len({s.prompt_id for s in samples})} prompts has a pair "
                f"(scores are {spread}, pair_strategy={args.pair_strategy!r}, score_threshold={args.score_threshold}"
                "). Sample more videos per prompt (num_generations), lower score_threshold, or use "
                "pair_strategy=best_vs_worst. The samples are kept."
            )
        self.console.print(_describe_pairs(result.stats))
        if result.stats["share_without_pair"] > 0.5 and self.accelerator.is_main_process:
            warnings.warn(
                f"{result.stats['share_without_pair']:.0%} of the prompts have no pair and teach nothing: their "
                "videos all won, all lost, or are INVALID. Sample more videos a prompt (num_generations), move "
                "score_threshold towards the scores' middle, or use pair_strategy=best_vs_worst.",
                stacklevel=2,
            )
        file = folder / PREFERENCES_FILE
        if self.accelerator.is_main_process:
            dataset = to_dataset(result.pairs, self.store.video_bytes, self.store.latents_bytes)
            folder.mkdir(parents=True, exist_ok=True)
            temporary = file.with_suffix(".partial")
            dataset.to_parquet(temporary)
            temporary.replace(file)
        self.accelerator.wait_for_everyone()
        return Dataset.from_parquet(str(file), cache_dir=str(folder / "_cache")), result.stats

    def _train_policy(self, preferences: Dataset, folder: Path, *, is_first: bool) -> list[dict[str, Any]]:
        args = self.args
        if not is_first and not args.continue_adapter:
            self.model.unload_lora()
        if args.refresh_reference and (self.starts_adapted or not is_first):
            self.model.set_reference_to_policy()
        else:
            self.model.set_reference_to_base()
        is_new = not self.starts_adapted if is_first else not args.continue_adapter
        round_args = _round_arguments(args, folder)
        set_seed(args.seed)  # what a round starts from must not depend on what ran before it
        trainer = SpatialAlignTrainer(
            model=self.model,
            args=round_args,
            train_dataset=preferences,
            peft_config=self.peft_config if is_new else None,
            callbacks=self.callbacks,
        )
        trainer.push_note = f"Round {int(folder.parent.name)}: "
        if not args.disable_tqdm:
            trainer.remove_callback(ProgressCallback)
            trainer.add_callback(MetricsOnTheBar)
        needed = self._add_callbacks(trainer)
        interrupt = SaveOnInterrupt("the same command goes on from there")
        trainer.add_callback(interrupt)
        try:
            trainer.train(resume_from_checkpoint=last_whole_checkpoint(folder, args.world_size, needed))
        finally:
            interrupt.restore()
        trainer.save_model()
        if self.accelerator.is_main_process:
            self._note_for_the_card(trainer, folder)
        self.accelerator.wait_for_everyone()  # one process writes the LoRA, and all read it next
        history = [entry for entry in trainer.state.log_history if "loss" in entry]
        self.model.transformer.eval()
        return history

    def _add_callbacks(self, trainer: SpatialAlignTrainer) -> tuple[str, ...]:
        """Returns the files that a checkpoint holds because of them."""
        rows = (self.eval_rows or self.train_rows)[: self.args.log_samples_prompts]
        if self.args.log_samples_steps is not None:
            every = self.args.log_samples_steps
            LogSamples(self.model, rows, self.runner, self.settings, every, EVALUATION_SEED).watch(trainer)
        if self.args.ema_decay is None:
            return ()
        trainer.add_callback(LoraEMA(self.model, self.args.ema_decay))
        return (f"{EMA_FOLDER}/{LORA_FILE}",)

    def _load_policy(self, folder: Path) -> None:
        self.model.unload_lora()
        self.model.load_lora(folder)

    def _evaluate(
        self, revision: str, rows: list[dict[str, Any]] | None = None, base: list[Sample] | None = None
    ) -> Measured:
        """Samples, scores and measures; `base` holds the base model's samples of the same prompts and seeds."""
        seeds = [EVALUATION_SEED + k for k in range(self.args.evaluation_seeds)]
        rows = self.eval_rows if rows is None else rows
        samples = self._sample(rows, seeds, revision, f"evaluating {revision.split('@')[-1]}")
        partners = None if base is None else [(self.store, sample) for sample in base]
        quality, quality_per_video = self.quality.measure(self.store, samples, partners)
        self.quality.release()
        return Measured(samples, summarize(samples, quality, seed=self.args.seed), quality_per_video)


def _check_disjoint(
    model: VideoModel, train: Sequence[Mapping[str, Any]], evaluation: Sequence[Mapping[str, Any]]
) -> None:
    """Two rows are one task where the model is told the same: the prompt alone, or what conditions it beside it."""
    known = {model.row_content(row) for row in train}
    shared = sorted(row["prompt"] for row in evaluation if model.row_content(row) in known)
    if shared:
        raise ValueError(
            f"{len(shared)} prompts are in the training and in the evaluation set, such as {shared[0]!r}: evaluate on "
            "prompts that are not trained on"
        )


def _round_arguments(args: OnlineSpatialAlignConfig, folder: Path) -> OnlineSpatialAlignConfig:
    """The trainer's arguments of one round: the loop's, in the round's folder."""
    own = copy.copy(args)
    own.output_dir = str(folder)
    own.hub_model_id = args.hub_model_id or Path(args.output_dir).resolve().name
    if args.hub_strategy == HubStrategy.END:
        own.push_to_hub = False  # the run is pushed as a whole, when it is done
    return own


def _describe_pairs(stats: Mapping[str, Any]) -> str:
    return (
        f"{stats['pairs']} pairs from {stats['prompts_with_pair']} of {stats['prompts']} prompts "
        f"({stats['share_without_pair']:.0%} have no pair), mean gap {stats['mean_gap']:.3f}, "
        f"{stats['invalid_samples']} of {stats['samples']} samples INVALID"
    )
