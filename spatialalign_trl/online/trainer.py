"""Run the loop: sample, score, pair, train, evaluate. A stage writes its result to disk; a rerun skips what exists.

    output_dir/
      run.json                                 the settings; a rerun must have the same
      samples/                                 every video ever sampled, with its inputs, latents and scores
      rounds/01/preferences/                   the pairs of a round, a dataset for `load_dataset`
      rounds/01/policy/                        the trainer's folder: checkpoints, logs, the round's LoRA
      rounds/01/round.json                     its numbers; written last
      preferences/, pytorch_lora_weights.safetensors, README.md      the last round's, and the LoRA's card
      results.json, contact_sheet.png          before and after
      report.html, report.json                 everything as one page, and the data to make it again

Source: SpatialAlign (arXiv 2602.22745); the paper runs one round with the base model as the sampler.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from peft import LoraConfig
from rich.console import Console
from safetensors.torch import load_file
from transformers import ProgressCallback, TrainerCallback, set_seed

from spatialalign_trl.evaluation import EVALUATION_SEED, summarize
from spatialalign_trl.evaluation.looks import QualityMeasures
from spatialalign_trl.evaluation.verdict import Measured, judge
from spatialalign_trl.files import lock_folder, read_json, write_json
from spatialalign_trl.models.base import VideoModel
from spatialalign_trl.models.lora import LORA_FILE, active_adapters, lora_fingerprint
from spatialalign_trl.online.config import OnlineSpatialAlignConfig
from spatialalign_trl.online.log_samples import LogSamples
from spatialalign_trl.online.outcome import write_outcome
from spatialalign_trl.online.preference_repo import PreferenceRepo
from spatialalign_trl.online.publishing import Outcome, make_run_repository, push_run, try_push_run, write_card_facts
from spatialalign_trl.online.rehearsal import check_without_model, rehearse_training
from spatialalign_trl.online.rounds import (
    ROUND_FILE,
    RunParts,
    are_scored,
    check_pairs,
    check_run_folder,
    make_round_pairs,
    read_round,
    sample_and_score,
    samples_to_pair,
    store_pairs,
    training_seeds,
)
from spatialalign_trl.online.run_settings import RUN_FILE, check_disjoint, describe_versions
from spatialalign_trl.rewards.runner import RewardRunner
from spatialalign_trl.rollout.store import Sample, SampleStore
from spatialalign_trl.safe_text import terminal_text
from spatialalign_trl.trainer.callbacks import EMA_FOLDER, LoraEMA, MetricsOnTheBar, SaveOnInterrupt
from spatialalign_trl.trainer.checkpoints import last_whole_checkpoint
from spatialalign_trl.trainer.distribution import refuse_unsupported_distribution
from spatialalign_trl.trainer.resuming import refuse_save_only_model
from spatialalign_trl.trainer.spatialalign_trainer import SpatialAlignTrainer

if TYPE_CHECKING:
    from spatialalign_trl.trainer.model_card import Recipe


class OnlineSpatialAlignTrainer:
    """
    Aligns a video model with its own samples, in TRL's shape.

    Args:
        model (`str` or [`VideoModel`]):
            A name, a folder, or a loaded model.
        reward_funcs (`str`, callable, or a list of them):
            One or several rewards: callables, names or `path/to/file.py:Name`.
        args ([`OnlineSpatialAlignConfig`]):
            The settings of all stages.
        train_dataset (`datasets.Dataset`):
            Prompts to sample and train on; see `prompts.load_prompts` for the columns.
        eval_dataset (`datasets.Dataset`, *optional*):
            Prompts to evaluate on, before and after; never trained on. `None`: nothing is evaluated.
        peft_config ([`~peft.LoraConfig`], *optional*):
            The LoRA, by default the paper's.
        callbacks (list of [`~transformers.TrainerCallback`], *optional*):
            Added to the trainer of every round.

    Raises:
        ValueError: before anything is sampled, if settings, prompts and rewards do not fit together.

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

    recipe: Recipe | None = None
    """The command and settings that started the run, for the card; recipes set it."""

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
        # Refuse whatever cannot work before a model is loaded and a video sampled.
        refuse_unsupported_distribution(args, samples=True)
        refuse_save_only_model(args)
        self.args = args
        self.runner = RewardRunner(
            reward_funcs, args.reward_weights, args.max_failure_share, args.reward_normalization, args.reward_gates
        )
        self.train_rows, self.eval_rows = list(train_dataset), list(eval_dataset or [])
        check_without_model(args, self.runner, len(self.train_rows))
        self.runner.check_prompts(self.train_rows)
        if self.eval_rows:
            self.runner.check_prompts(self.eval_rows)

        if isinstance(model, str):
            from spatialalign_trl.models import load_video_model

            model = load_video_model(model)
        check_disjoint(model, self.train_rows, self.eval_rows)
        self.starts_adapted = bool(active_adapters(model.transformer))
        if self.starts_adapted and peft_config is not None:
            raise ValueError(
                "the model already carries a LoRA: pass peft_config=None to continue training it, or unload it first "
                "(model.unload_lora()) to train a new one"
            )
        self.model = model
        self.starting_fit = model.lora_fit  # later rounds load their own LoRAs
        self.settings = args.sampling_settings(model.default_settings())
        model.check_size(self.settings.num_frames, self.settings.height, self.settings.width)
        model.train_as_sampled(self.settings)
        # A new LoRA in a later round (continue_adapter=False) has the shape of the one that the model came with.
        self.peft_config = next(iter(model.transformer.peft_config.values())) if self.starts_adapted else peft_config
        self.callbacks = list(callbacks or [])

        # Only the processes: an `Accelerator` would decide on the precision and plugins of the trainers' own.
        self.accelerator = args.distributed_state
        self.output_dir = Path(args.output_dir)
        self.quality = QualityMeasures(
            args.quality_guards, self.output_dir / "looks", self.eval_rows, self.accelerator
        )
        self.store = SampleStore(args.samples_dir or self.output_dir / "samples")
        self.console = Console(quiet=not self.accelerator.is_main_process)
        self.parts = RunParts(
            args, model, self.settings, self.runner, self.store, self.train_rows, self.accelerator, self.console
        )
        self.preference_repo = PreferenceRepo(self.parts)

        # A store may hold samples of several models, and of one model with and without the LoRA it came with.
        start = lora_fingerprint(model.lora_state_dict()) if self.starts_adapted else "base"
        self.base_revision = f"{model.name_or_path}@{start}"
        self.revision = self.base_revision  # of the policy as it is now
        self.results: dict[str, Any] = {}
        self.evaluation_samples: dict[str, list[Sample]] = {}

    # The loop, top to bottom

    def train(self) -> dict[str, Any]:
        """
        Run the stages that are missing.

        Returns:
            The content of `results.json`: `base`, `aligned`, `difference` (see `evaluation/`; `None` without
            evaluation prompts), `quality_difference`, `verdict`, `rounds`, `settings`, `versions`.

        Raises:
            KeyboardInterrupt: after Ctrl-C; a training has written a checkpoint first. Running again continues.
            RuntimeError: if another process is working in `output_dir`.
        """
        try:
            with lock_folder(self.output_dir, here=self.accelerator.is_main_process):
                return self._run_loop()
        except KeyboardInterrupt:
            message = f"What is finished is kept in {self.output_dir}; the same command continues from there."
            self.console.print(terminal_text(f"interrupted. {message}"), soft_wrap=True)
            raise

    def _run_loop(self) -> dict[str, Any]:
        args = self.args
        rehearse_training(self.parts, None if self.starts_adapted else self.peft_config, len(self.eval_rows))
        if self.accelerator.is_main_process:
            self._check_before_sampling()
        self.accelerator.wait_for_everyone()

        self.console.rule("base model")
        measured = {"base": self._evaluate(self.base_revision)} if self.eval_rows else {}

        self.revision, rounds = self.base_revision, []
        for number in range(1, args.num_rounds + 1):
            self.console.rule(terminal_text(f"round {number} of {args.num_rounds}"))
            record = self._run_round(number, self.revision)
            self.revision = record["policy_revision"]
            if self.eval_rows and (args.evaluate_every_round or number == args.num_rounds):
                measured["aligned"] = self._evaluate(self.revision, base=measured["base"].samples)
                record["evaluation"] = measured["aligned"].summary
            rounds.append(record)

        self.evaluation_samples = {name: policy.samples for name, policy in measured.items()}
        self.results = {
            **{name: measured[name].summary if measured else None for name in ("base", "aligned")},
            **(judge(measured["base"], measured["aligned"], args.seed) if measured else {"difference": None}),
            "rounds": rounds,
            "settings": read_json(self.output_dir / RUN_FILE),
            "versions": describe_versions(),
        }
        if self.accelerator.is_main_process:
            write_outcome(self.parts, self._outcome())
        self.preference_repo.push_finished(self.results)
        if args.push_to_hub:
            try_push_run(self.parts, self._outcome(), dataset_name=args.push_preferences_to_hub)
        self.accelerator.wait_for_everyone()
        return self.results

    def _run_round(self, number: int, revision: str) -> dict[str, Any]:
        """Run one round from the policy `revision`; the model carries the round's policy afterwards."""
        folder = self.parts.round_folder(number)
        if (folder / ROUND_FILE).exists():
            record = read_round(self.parts, number)
            self.model.unload_lora()
            self.model.load_lora(folder / "policy")
            return record

        samples = self._sample_for_training(number, revision)
        pool = samples_to_pair(self.parts, number, samples)
        pairing = make_round_pairs(self.parts, pool)
        check_pairs(self.parts, pool, pairing)
        preferences = store_pairs(self.parts, pairing.pairs, folder / "preferences")
        self.preference_repo.push_round(number, samples, pairing)
        log_history = self._train_policy(preferences, folder / "policy", is_first=number == 1)

        weights = load_file(folder / "policy" / LORA_FILE)
        record = {
            "round": number,
            "policy_revision": f"{self.model.name_or_path}@{lora_fingerprint(weights)}",
            "sampled_from": revision,
            "preferences": pairing.stats,
            "rollouts": summarize(samples, seed=self.args.seed),
            "training": log_history,
        }
        if self.accelerator.is_main_process:
            write_json(folder / ROUND_FILE, record)
        self.accelerator.wait_for_everyone()
        return record

    # The stages

    def _check_before_sampling(self) -> None:
        """Refuse another run's folder and a Hub without access now, not after hours of sampling."""
        starting_policy = self.base_revision if self.starts_adapted else None
        check_run_folder(self.parts, self.peft_config, starting_policy, self.starting_fit)
        if self.args.push_to_hub:
            make_run_repository(self.parts)
        self.preference_repo.check_access()

    def _sample_for_training(self, number: int, revision: str) -> list[Sample]:
        """Sample and score a round's training videos; between blocks of prompts, push what exists so far."""
        seeds, rows, desc = training_seeds(self.parts, number), self.train_rows, "sampling to train on"
        every = self.args.push_preferences_every
        if not self.preference_repo.is_used or every is None:
            return sample_and_score(self.parts, rows, seeds, revision, desc)
        prompts_per_block = max(1, every // len(seeds))
        samples: list[Sample] = []
        for start in range(0, len(rows), prompts_per_block):
            block = rows[start : start + prompts_per_block]
            is_new = not are_scored(self.parts, block, seeds, revision)
            samples += sample_and_score(self.parts, block, seeds, revision, desc)
            if is_new and start + prompts_per_block < len(rows):
                self.preference_repo.push_partial_round(number, samples)
        return samples

    def _train_policy(self, preferences: Dataset, folder: Path, *, is_first: bool) -> list[dict[str, Any]]:
        """Train a round's LoRA on its pairs, from its last checkpoint if there is one; returns the log."""
        args = self.args
        # 1. Choose what the round starts from, and what its reference is.
        starts_new_lora = not self.starts_adapted if is_first else not args.continue_adapter
        if not is_first and not args.continue_adapter:
            self.model.unload_lora()
        if args.refresh_reference and (self.starts_adapted or not is_first):
            self.model.set_reference_to_policy()
        else:
            self.model.set_reference_to_base()

        # 2. Build the trainer. The seed is set again because a round must not depend on what ran before it.
        set_seed(args.seed)
        trainer = SpatialAlignTrainer(
            model=self.model,
            args=args.for_round(folder),
            train_dataset=preferences,
            peft_config=self.peft_config if starts_new_lora else None,
            callbacks=self.callbacks,
        )
        trainer.usage = self.parts.lora_usage((self.eval_rows or self.train_rows)[0], EVALUATION_SEED)
        trainer.push_note = f"Round {int(folder.parent.name)}: "
        if not args.disable_tqdm:
            trainer.remove_callback(ProgressCallback)
            trainer.add_callback(MetricsOnTheBar)
        if args.log_samples_steps is not None:
            rows = (self.eval_rows or self.train_rows)[: args.log_samples_prompts]
            every = args.log_samples_steps
            LogSamples(self.model, rows, self.runner, self.settings, every, EVALUATION_SEED).watch(trainer)
        required_files: tuple[str, ...] = ()  # what a checkpoint must have, in addition to the trainer's own files
        if args.ema_decay is not None:
            trainer.add_callback(LoraEMA(self.model, args.ema_decay))
            required_files = (f"{EMA_FOLDER}/{LORA_FILE}",)

        # 3. Train, and save the LoRA with what only this trainer knows for the card.
        interrupt = SaveOnInterrupt("the same command continues from there")
        trainer.add_callback(interrupt)
        try:
            trainer.train(resume_from_checkpoint=last_whole_checkpoint(folder, args.world_size, required_files))
        finally:
            interrupt.restore()
        trainer.save_model()
        if self.accelerator.is_main_process:
            write_card_facts(trainer, folder)
        self.accelerator.wait_for_everyone()  # one process writes the LoRA, and all read it next
        self.model.transformer.eval()
        return [entry for entry in trainer.state.log_history if "loss" in entry]

    def _evaluate(
        self, revision: str, rows: list[dict[str, Any]] | None = None, base: list[Sample] | None = None
    ) -> Measured:
        """Sample, score and measure; `base` has the base model's samples of the same prompts and seeds."""
        seeds = [EVALUATION_SEED + k for k in range(self.args.evaluation_seeds)]
        rows = self.eval_rows if rows is None else rows
        samples = sample_and_score(self.parts, rows, seeds, revision, f"evaluating {revision.split('@')[-1]}")
        partners = None if base is None else [(self.store, sample) for sample in base]
        quality, quality_per_video = self.quality.measure(self.store, samples, partners)
        self.quality.release()
        return Measured(samples, summarize(samples, quality, seed=self.args.seed), quality_per_video)

    # What a caller may ask of the policy afterwards

    def evaluate(self, eval_dataset: Dataset | None = None) -> dict[str, Any]:
        """
        Sample, score and measure the current policy: before [`~OnlineSpatialAlignTrainer.train`] the one that the
        model came with, afterwards the last round's. Existing videos are not sampled again.

        Args:
            eval_dataset (`datasets.Dataset`, *optional*):
                Prompts to use instead of those given to the constructor.

        Returns:
            `S@0.5` ... `S@0.9`, intervals, components and quality; see `evaluation.summarize`.

        Raises:
            ValueError: if there are no evaluation prompts, or the rewards cannot judge them.
        """
        rows = self.eval_rows if eval_dataset is None else list(eval_dataset)
        if not rows:
            raise ValueError("there are no prompts to evaluate on: pass eval_dataset here or to the constructor")
        self.runner.check_prompts(rows)
        return self._evaluate(self.revision, rows).summary

    def push_to_hub(
        self,
        commit_message: str = "End of training",
        token: str | None = None,
        model_name: str | None = None,
        dataset_name: str | None = None,
        tags: str | list[str] | None = None,
    ) -> str | None:
        """
        Push the run's LoRA, its card, `results.json`, pictures and videos to `args.hub_model_id` (by default the
        name of `output_dir`). A missing repository is made, private if `args.hub_private_repo` says so.

        Args:
            commit_message (`str`, *optional*, defaults to `"End of training"`): Message of the commit.
            token (`str`, *optional*): By default `args.hub_token`, then the one of `hf auth login`.
            model_name (`str`, *optional*): Title of the card.
            dataset_name (`str`, *optional*): Hub id of the preference dataset, for the card.
            tags (`str` or `list[str]`, *optional*): Added to the card's tags.

        Returns:
            `str`: the commit's address; `None` on all processes but the first.

        Raises:
            FileNotFoundError: if the run has no LoRA yet.
            PermissionError: if there is no token, or it may not write there.
            PushFailed: after several attempts.
        """
        card_options = {"model_name": model_name, "dataset_name": dataset_name, "tags": tags}
        return push_run(self.parts, self._outcome(), commit_message, token, **card_options)

    def _outcome(self) -> Outcome:
        return Outcome(self.results, self.evaluation_samples, self.recipe)
