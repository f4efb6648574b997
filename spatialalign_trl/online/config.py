"""Configuration of [`OnlineSpatialAlignTrainer`]: the stages of the loop, on top of the trainer's arguments."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from transformers.trainer_utils import HubStrategy

from spatialalign_trl.evaluation import EVALUATION_SEED, GUARDS, get_guard
from spatialalign_trl.hub.pushing import check_repo_name
from spatialalign_trl.models.ranges import COUNT, FINITE, SHARE, Range
from spatialalign_trl.models.settings import FLOW_SHIFT, FPS, SamplingArguments, SamplingSettings
from spatialalign_trl.preferences import make_pairs
from spatialalign_trl.rewards.combination import check_gates, check_normalization
from spatialalign_trl.trainer.spatialalign_config import SpatialAlignConfig

SAMPLING_FIELDS = {
    "num_frames": "num_frames",
    "height": "height",
    "width": "width",
    "num_inference_steps": "num_inference_steps",
    "guidance_scale": "guidance_scale",
    "guidance_scale_2": "guidance_scale_2",
    "sampling_flow_shift": "flow_shift",
    "negative_prompt": "negative_prompt",
    "fps": "fps",
}
"""Config field -> field of `SamplingSettings`."""

VIDEOS = Range(at_least=1, at_most=EVALUATION_SEED)  # seeds of training and evaluation do not overlap


@dataclass
class OnlineSpatialAlignConfig(SamplingArguments, SpatialAlignConfig):
    r"""
    Arguments of [`OnlineSpatialAlignTrainer`]: those of [`SpatialAlignConfig`], which apply to the training of every
    round, and those of the other stages. The help text of each field explains it.
    """

    _VALID_DICT_FIELDS = SpatialAlignConfig._VALID_DICT_FIELDS + ["reward_gates"]

    num_rounds: Annotated[int, Range(at_least=1, at_most=10_000)] = field(
        default=1, metadata={"help": "Rounds of sample -> score -> pair -> train -> evaluate."}
    )

    num_generations: Annotated[int, VIDEOS] = field(
        default=5, metadata={"help": "Videos sampled per training prompt and round (the paper: 10)."}
    )
    rollout_batch_size: Annotated[int, COUNT] = field(
        default=16, metadata={"help": "Videos sampled at once on one device."}
    )
    guidance_scale_2: Annotated[float | None, FINITE] = field(
        default=None,
        metadata={
            "help": "Guidance scale w at low noise, for a model with two experts (Wan 2.2 A14B). None: the model's "
            "default."
        },
    )
    sampling_flow_shift: Annotated[float | None, FLOW_SHIFT] = field(
        default=None,
        metadata={
            "help": "k in s = k*u/(1 + (k-1)*u) when sampling. None: the model's default. Training uses flow_shift."
        },
    )
    negative_prompt: str | None = field(
        default=None, metadata={"help": "Text of the unconditional branch of the guidance. None: the model's default."}
    )
    fps: Annotated[float | None, FPS] = field(
        default=None, metadata={"help": "Frames per second of the mp4 files. None: the model's default."}
    )
    samples_dir: str | None = field(
        default=None,
        metadata={"help": "Folder of all samples; several runs may share it. None: samples/ in output_dir."},
    )
    video_crf: Annotated[int, Range(at_least=0, at_most=51, note="0 is lossless.")] = field(
        default=18,
        metadata={
            "help": "x264 quality (CRF) of stored videos, 0 to 51; 0 is lossless RGB, for videos of a few dozen "
            "pixels."
        },
    )

    reward_weights: Annotated[list[float] | None, FINITE] = field(
        default=None,
        metadata={
            "help": "reward = sum_i weight_i * reward_i, over the rewards that judged the video. None: 1 each, but 0 "
            "for rewards with a gate."
        },
    )
    reward_normalization: Literal["none", "group", "global"] = field(
        default="none",
        metadata={
            "help": "What reward_i counts as when videos are paired. 'none': its value v. 'group': (v - mean) / std "
            "over the prompt's samples. 'global': (v - mean) / std over all samples of this pairing. std is the "
            "population's, over the samples that have a verdict and pass the gates; 0 if all values are equal. "
            "score_threshold is a raw value, so normalisation needs another pair_strategy; min_pair_gap is then in "
            "standard deviations. Evaluation and stored values stay raw."
        },
    )
    reward_gates: dict[str, float] | str | None = field(
        default=None,
        metadata={
            "help": "Smallest value of a reward that a video needs: below it, or without a verdict of that reward, "
            "the video is INVALID. In YAML `reward_gates: {motion: 0.02}`, as a flag the same in JSON."
        },
    )
    max_failure_share: Annotated[float, SHARE] = field(
        default=0.5, metadata={"help": "The run stops if a reward fails on more than this share of the videos."}
    )

    pair_strategy: Literal["threshold", "best_vs_worst", "min_gap"] = field(
        default="threshold",
        metadata={
            "help": "'threshold': a winner scores >= score_threshold, a loser is valid and scores less (the paper). "
            "'best_vs_worst': the best against the worst of a prompt. 'min_gap': any two videos whose scores differ "
            "by at least min_pair_gap."
        },
    )
    score_threshold: Annotated[float, FINITE] = field(
        default=0.7, metadata={"help": "tau of pair_strategy='threshold'."}
    )
    min_pair_gap: Annotated[float, Range(at_least=0)] = field(
        default=0.0, metadata={"help": "Smallest score(chosen) - score(rejected), for every strategy."}
    )
    invalid_score: Annotated[float | None, FINITE] = field(
        default=None,
        metadata={
            "help": "Score of INVALID videos when videos are paired, such as 0: they can then be rejected, so that "
            "the model unlearns videos that cannot be judged. None: INVALID videos are in no pair (the paper)."
        },
    )
    pairs_per_prompt: Annotated[int | None, COUNT] = field(
        default=4,
        metadata={
            "help": "Maximum number of pairs per prompt, drawn without repeats. None: all. The paper draws a new pair "
            "whenever it visits a prompt, which several pairs per prompt amount to."
        },
    )

    pool_rounds: bool = field(
        default=True,
        metadata={"help": "Pair the samples of all rounds so far, instead of only the newest round's."},
    )
    continue_adapter: bool = field(
        default=True,
        metadata={"help": "Later rounds continue training the last round's LoRA, instead of a new one."},
    )
    refresh_reference: bool = field(
        default=False,
        metadata={
            "help": "The reference (v_ref) of later rounds is the policy at the start of the round, instead of the "
            "base model. Needs continue_adapter."
        },
    )

    evaluation_seeds: Annotated[int, VIDEOS] = field(
        default=4, metadata={"help": "Videos per evaluation prompt, with fixed seeds."}
    )
    quality_guards: list[str] = field(
        default_factory=lambda: ["frames"],
        metadata={"help": f"Measures of picture quality, in addition to the score: {', '.join(GUARDS)}."},
    )
    evaluate_every_round: bool = field(
        default=True, metadata={"help": "Evaluate after every round, instead of after the last one only."}
    )
    ema_decay: Annotated[float | None, Range(above=0, below=1, note="Such as 0.99.")] = field(
        default=None,
        metadata={
            "help": "d in phi <- d*phi + (1 - d)*theta, an average of the LoRA theta over the steps, saved in ema/. "
            "None: no average. Sampling and evaluation use theta."
        },
    )
    log_samples_steps: Annotated[int | None, COUNT] = field(
        default=None,
        metadata={
            "help": "Sample some evaluation prompts every so many training steps, and log videos, scores and curves "
            "to rounds/NN/policy/samples and to the trackers. None: never. The weights do not depend on it."
        },
    )
    log_samples_prompts: Annotated[int, COUNT] = field(
        default=4, metadata={"help": "Number of prompts that log_samples_steps samples."}
    )
    contact_sheet_prompts: Annotated[int, Range(at_least=0, at_most=10_000)] = field(
        default=6, metadata={"help": "Prompts on the contact sheet; 0: no sheet."}
    )
    report_megabytes: Annotated[float, Range(at_least=0, note="0: no page.")] = field(
        default=10.0,
        metadata={
            "help": "Maximum size of report.html in MB; videos that do not fit are left out, with a note. 0: no page."
        },
    )

    push_preferences_to_hub: str | None = field(
        default=None,
        metadata={
            "help": "owner/name of a dataset repository, made if it is missing. After the sampling of every round "
            "its pairs, all scored samples and a card are pushed. If a push fails, `spatialalign push-preferences` "
            "repeats it later."
        },
    )
    push_preferences_every: Annotated[int | None, COUNT] = field(
        default=500,
        metadata={
            "help": "Also push after about every so many scored videos. None: only when all videos of a round are "
            "scored."
        },
    )
    push_preferences_public: bool = field(
        default=False, metadata={"help": "Make a new repository public, so that everybody can see the dataset."}
    )
    push_preferences_license: str = field(
        default="apache-2.0",
        metadata={
            "help": "The Hub's name of the dataset's licence. The terms of the model that sampled the videos also "
            "apply."
        },
    )

    def _check(self) -> None:
        super()._check()
        if self.num_generations < 2 and self.num_rounds == 1:
            raise ValueError(f"num_generations={self.num_generations}: a pair needs at least 2 videos of a prompt")
        if self.num_rounds * self.num_generations > EVALUATION_SEED:
            raise ValueError(
                f"num_rounds={self.num_rounds} with num_generations={self.num_generations}: the seeds of the training "
                f"videos would reach those of the evaluation, which begin at {EVALUATION_SEED:,}. Lower one of them."
            )
        if self.reward_weights is not None and not any(self.reward_weights):
            raise ValueError(
                f"reward_weights={self.reward_weights}: no reward counts, so no video can win. Give at least one "
                "weight that is not 0, or leave reward_weights out."
            )
        # Pairing refuses settings that do not fit together, and needs no videos for it.
        make_pairs([], self.pair_strategy, self.score_threshold, self.min_pair_gap, self.pairs_per_prompt, self.seed)
        if self.invalid_score is not None and self.pair_strategy == "threshold":
            if not self.invalid_score < self.score_threshold:
                raise ValueError(
                    f"invalid_score={self.invalid_score:g} is not below score_threshold={self.score_threshold:g}: "
                    "INVALID videos would win"
                )
        if self.refresh_reference and not self.continue_adapter:
            raise ValueError("refresh_reference=True needs continue_adapter=True: a new LoRA starts as the base does")
        if self.push_preferences_to_hub is not None:
            check_repo_name(self.push_preferences_to_hub, "push_preferences_to_hub")
        try:
            for name in self.quality_guards:
                get_guard(name)
        except (ValueError, OSError) as error:  # a guard may be a reward in a file
            raise ValueError(f"quality_guards={self.quality_guards}: {error}") from error
        try:
            check_gates(self.reward_gates or {})
        except ValueError as error:
            raise ValueError(f"reward_gates={self.reward_gates}: {error}") from error
        check_normalization(self.reward_normalization)
        if self.reward_normalization != "none" and self.pair_strategy == "threshold":
            raise ValueError(
                f"reward_normalization={self.reward_normalization!r} with pair_strategy='threshold': "
                f"score_threshold={self.score_threshold:g} is a raw score, and normalised ones are standard "
                "deviations from the mean. Use pair_strategy=best_vs_worst, or min_gap with a min_pair_gap in "
                "standard deviations."
            )

    def for_round(self, folder: Path) -> OnlineSpatialAlignConfig:
        """Return the trainer's arguments of one round: these, with the round's folder."""
        round_args = copy.copy(self)
        round_args.output_dir = str(folder)
        round_args.hub_model_id = self.hub_model_id or Path(self.output_dir).resolve().name
        if self.hub_strategy == HubStrategy.END:
            round_args.push_to_hub = False  # the run is pushed as a whole at its end
        return round_args

    def sampling_settings(self, default: SamplingSettings) -> SamplingSettings:
        """Return the model's default settings, updated with the fields that are set here."""
        return default.updated({theirs: getattr(self, own) for own, theirs in SAMPLING_FIELDS.items()})
