"""Configuration of [`OnlineSpatialAlignTrainer`]: the loop's stages, on top of the trainer's own arguments."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from transformers.trainer_utils import HubStrategy

from spatialalign_trl.evaluation import GUARDS, get_guard
from spatialalign_trl.hub.pushing import check_repo_name
from spatialalign_trl.models.settings import SamplingArguments, SamplingSettings
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


@dataclass
class OnlineSpatialAlignConfig(SamplingArguments, SpatialAlignConfig):
    r"""
    Arguments of [`OnlineSpatialAlignTrainer`]: those of [`SpatialAlignConfig`], which hold for the training of every
    round, and those of the stages around it. Each field's help says what it does.
    """

    _VALID_DICT_FIELDS = SpatialAlignConfig._VALID_DICT_FIELDS + ["reward_gates"]

    num_rounds: int = field(default=1, metadata={"help": "Rounds of sample -> score -> pair -> train -> evaluate."})

    num_generations: int = field(
        default=5, metadata={"help": "Videos sampled per training prompt and round (the paper: 10)."}
    )
    rollout_batch_size: int = field(default=16, metadata={"help": "Videos sampled at once on one device."})
    guidance_scale_2: float | None = field(
        default=None,
        metadata={"help": "w at low noise, where a second expert denoises (Wan 2.2 A14B). None: the model's default."},
    )
    sampling_flow_shift: float | None = field(
        default=None,
        metadata={
            "help": "k of s = k*u/(1 + (k-1)*u) in sampling. None: the model's default. Training uses flow_shift."
        },
    )
    negative_prompt: str | None = field(default=None, metadata={"help": "None: the model's default."})
    fps: float | None = field(default=None, metadata={"help": "Of the written mp4. None: the model's default."})
    samples_dir: str | None = field(
        default=None,
        metadata={"help": "Folder of all samples, which several runs may share. None: samples/ in output_dir."},
    )
    video_crf: int = field(
        default=18,
        metadata={"help": "x264 quality of stored videos; 0 is lossless RGB (for videos of a few dozen pixels)."},
    )

    reward_weights: list[float] | None = field(
        default=None,
        metadata={
            "help": "reward = sum_i weight_i * reward_i, of the rewards that judged the video. None: 1 each, and 0 "
            "for one with a gate."
        },
    )
    reward_normalization: Literal["none", "group", "global"] = field(
        default="none",
        metadata={
            "help": "What stands for reward_i where videos are paired. 'none': its value v. 'group': (v - mean) / std "
            "over the prompt's samples. 'global': (v - mean) / std over all samples that are paired in this round. "
            "Population std, of the samples that have a verdict and pass the gates; 0 where all are equal. "
            "score_threshold means raw values, so use another pair_strategy with it; min_pair_gap is then in standard "
            "deviations. Evaluation and stored values stay raw."
        },
    )
    reward_gates: dict[str, float] | str | None = field(
        default=None,
        metadata={
            "help": "Least value of a reward that a video needs: below it, or without that reward's verdict, it is "
            "INVALID. In YAML `reward_gates: {motion: 0.02}`, as a flag the same in JSON."
        },
    )
    max_failure_share: float = field(
        default=0.5, metadata={"help": "The run stops when a reward fails on more than this share of the videos."}
    )

    pair_strategy: Literal["threshold", "best_vs_worst", "min_gap"] = field(
        default="threshold",
        metadata={
            "help": "'threshold': a winner scores >= score_threshold, a loser is valid and scores less (the paper). "
            "'best_vs_worst': the extremes of a prompt. 'min_gap': any two at least min_pair_gap apart."
        },
    )
    score_threshold: float = field(default=0.7, metadata={"help": "tau of pair_strategy='threshold'."})
    min_pair_gap: float = field(
        default=0.0, metadata={"help": "Smallest score(chosen) - score(rejected), for every strategy."}
    )
    invalid_score: float | None = field(
        default=None,
        metadata={
            "help": "What an INVALID video counts as where videos are paired, such as 0: it can then be the rejected "
            "one, so that later rounds unlearn what cannot be judged. None: INVALID videos are in no pair (the paper)."
        },
    )
    pairs_per_prompt: int | None = field(
        default=4,
        metadata={
            "help": "At most so many pairs of a prompt, drawn without repeats. None: all. The paper draws a new pair "
            "at every visit of a prompt; several pairs a prompt come to the same."
        },
    )

    pool_rounds: bool = field(
        default=True,
        metadata={"help": "Pair the samples of all rounds so far, instead of the newest round's alone."},
    )
    continue_adapter: bool = field(
        default=True,
        metadata={"help": "Later rounds go on with the last round's LoRA, instead of a new one on the base."},
    )
    refresh_reference: bool = field(
        default=False,
        metadata={
            "help": "v_ref of later rounds is the policy at the round's start, instead of the base model. Needs "
            "continue_adapter."
        },
    )

    evaluation_seeds: int = field(default=4, metadata={"help": "Videos per evaluation prompt, with fixed seeds."})
    quality_guards: list[str] = field(
        default_factory=lambda: ["frames"],
        metadata={"help": f"Measures of the picture beside the score: {', '.join(GUARDS)}."},
    )
    evaluate_every_round: bool = field(
        default=True, metadata={"help": "Evaluate after every round, instead of after the last one only."}
    )
    ema_decay: float | None = field(
        default=None,
        metadata={
            "help": "d of phi <- d*phi + (1 - d)*theta, an average of the LoRA over the steps, saved beside it in "
            "ema/. None: none is kept. Sampling and evaluation use theta."
        },
    )
    log_samples_steps: int | None = field(
        default=None,
        metadata={
            "help": "Every so many steps of training, sample some evaluation prompts, and leave videos, scores and "
            "curves in rounds/NN/policy/samples and in the trackers. None: never. Changes no weight."
        },
    )
    log_samples_prompts: int = field(default=4, metadata={"help": "Prompts that log_samples_steps samples."})
    contact_sheet_prompts: int = field(default=6, metadata={"help": "Prompts on the contact sheet; 0 for none."})
    report_megabytes: float = field(
        default=10.0,
        metadata={"help": "Size of report.html; videos that do not fit are left out, with a note. 0: no page."},
    )

    push_preferences_to_hub: str | None = field(
        default=None,
        metadata={
            "help": "owner/name of a dataset repository, made if it is missing: after every round's sampling its "
            "pairs, all scored samples and a card are pushed. A push that fails is kept for `spatialalign "
            "push-preferences`."
        },
    )
    push_preferences_every: int | None = field(
        default=500,
        metadata={"help": "Also push whenever about so many more videos are scored. None: when all of a round are."},
    )
    push_preferences_public: bool = field(
        default=False, metadata={"help": "Everybody may see the dataset, where its repository is made now."}
    )
    push_preferences_license: str = field(
        default="apache-2.0",
        metadata={"help": "The Hub's name of the dataset's licence; the terms of the model that sampled hold too."},
    )

    def _check(self) -> None:
        super()._check()
        at_least_one = (
            "num_rounds", "num_generations", "rollout_batch_size", "evaluation_seeds", "log_samples_prompts",
        )  # fmt: skip
        for name in at_least_one:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.num_generations < 2 and self.num_rounds == 1:
            raise ValueError(f"num_generations={self.num_generations}: a pair needs at least 2 videos of a prompt")
        if not 0 <= self.report_megabytes < float("inf"):
            raise ValueError(f"report_megabytes={self.report_megabytes}: must be at least 0 (no page), such as 10")
        if self.invalid_score is not None and self.pair_strategy == "threshold":
            if not self.invalid_score < self.score_threshold:
                raise ValueError(
                    f"invalid_score={self.invalid_score:g} is not below score_threshold={self.score_threshold:g}: "
                    "INVALID videos would win"
                )
        if not 0 <= self.video_crf <= 51:
            raise ValueError(f"video_crf={self.video_crf}: must be in 0..51 (0 is lossless)")
        if self.refresh_reference and not self.continue_adapter:
            raise ValueError("refresh_reference=True needs continue_adapter=True: a new LoRA starts as the base does")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay={self.ema_decay}: must be in (0, 1), such as 0.99, or None")
        if self.log_samples_steps is not None and self.log_samples_steps < 1:
            raise ValueError(f"log_samples_steps={self.log_samples_steps}: must be at least 1, or None")
        if self.push_preferences_to_hub is not None:
            check_repo_name(self.push_preferences_to_hub, "push_preferences_to_hub")
        if self.push_preferences_every is not None and self.push_preferences_every < 1:
            raise ValueError(f"push_preferences_every={self.push_preferences_every}: must be at least 1, or None")
        for name in self.quality_guards:
            get_guard(name)
        check_gates(self.reward_gates or {})
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
