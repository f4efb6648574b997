"""
Evaluate policies on the same prompts and seeds: sample, score, measure quality, and compare with a baseline.

[`Evaluation.run`] returns the results. `arguments/evaluation.py` writes them as files. Sampled videos, scores and
quality measures are kept in the output folder, so a rerun computes only what is missing:

output_dir/
  samples/            every sampled video with its inputs, latents and scores (`rollout/store.py`)
  scores/             scores of videos in other folders, keyed by the content of the file
  looks/              values of the quality guards, by sample (`evaluation/looks.py`)
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from spatialalign_trl.devices import release_memory
from spatialalign_trl.errors import near_miss
from spatialalign_trl.evaluation.comparison import Evaluated, compare_policies
from spatialalign_trl.evaluation.looks import QualityMeasures
from spatialalign_trl.evaluation.policies import Policy
from spatialalign_trl.evaluation.statistics import EVALUATION_SEED, summarize
from spatialalign_trl.evaluation.video_folder import VideoFolder
from spatialalign_trl.models.lora import lora_fingerprint
from spatialalign_trl.models.settings import SamplingSettings
from spatialalign_trl.rewards.runner import RewardRunner
from spatialalign_trl.rewards.scoring import score_samples
from spatialalign_trl.rollout.origin import check_origin
from spatialalign_trl.rollout.sampler import roll_out
from spatialalign_trl.rollout.store import Sample, SampleStore
from spatialalign_trl.safe_text import mask_secrets

if TYPE_CHECKING:
    from accelerate import Accelerator, PartialState

    from spatialalign_trl.evaluation.guards import Guard
    from spatialalign_trl.models.base import VideoModel


@dataclass(frozen=True)
class PolicySampling:
    """
    How the policies' videos are sampled.

    Args:
        load_model (callable, *optional*):
            Loads a [`VideoModel`] by its name. Required if a policy has a model.
        seeds (`int`, *optional*, defaults to `5`):
            Number of videos per prompt. Seeds count up from `EVALUATION_SEED`, as in the training loop's evaluation.
        settings (`dict`, *optional*):
            Fields of `SamplingSettings` that replace a model's defaults.
        tag (`str`, *optional*, defaults to `""`):
            Everything else that changes the videos, such as a dtype. It becomes part of the samples' identity.
        batch_size (`int`, *optional*, defaults to `8`):
            Number of videos sampled at a time.
        video_crf (`int`, *optional*, defaults to `18`):
            x264 quality of the stored mp4 files. 0 is lossless.
        samples_dir (`Path`, *optional*):
            Folder of the samples, such as a run's `samples`, whose videos are then reused. Defaults to `samples` in
            the output folder.

    Raises:
        ValueError: If `seeds` is less than 1.
    """

    load_model: Callable[[str], VideoModel] | None = None
    seeds: int = 5
    settings: Mapping[str, Any] = field(default_factory=dict)
    tag: str = ""
    batch_size: int = 8
    video_crf: int = 18
    samples_dir: Path | None = None

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"seeds={self.seeds}: must be at least 1.")


@dataclass(frozen=True)
class QualityGuards:
    """
    Which quality guards measure the videos.

    Args:
        specs (sequence of `str`, *optional*, defaults to `("frames", "flicker", "pixel_drift")`):
            Guards as [`~spatialalign_trl.evaluation.guards.get_guard`] takes them.
        extra (`Mapping[str, Guard]`, *optional*):
            More guards, by the name that their values are stored under.
    """

    specs: Sequence[str] = ("frames", "flicker", "pixel_drift")
    extra: Mapping[str, Guard] = field(default_factory=dict)


class EvaluationResults(NamedTuple):
    """
    What [`Evaluation.run`] returns.

    Args:
        results (`dict`):
            The content of `results.json`, ready for JSON; see `report/evaluation_files.py`.
        evaluated (`dict[str, Evaluated]`):
            Name of a policy -> its scored and measured videos.
    """

    results: dict[str, Any]
    evaluated: dict[str, Evaluated]


class Evaluation:
    """
    Evaluates policies on the same prompts and seeds.

    Args:
        policies (sequence of [`Policy`]):
            The policies to compare; see `policies.plan_policies`.
        rows (sequence of `dict`):
            The prompts. May be empty if all policies are folders of recorded samples.
        runner ([`RewardRunner`]):
            The rewards.
        output_dir (`Path`):
            Folder of samples, scores and measures; see the top of this file.
        sampling ([`PolicySampling`], *optional*):
            How the videos are sampled.
        guards ([`QualityGuards`], *optional*):
            Which quality guards measure the videos.
        baseline (`str`, *optional*):
            Name of the policy that the others are compared with. Defaults to the first.
        unwanted (collection of `str`, *optional*):
            Ids of prompts that are left out on purpose: their videos in folders are no problem.
        problems (sequence of `str`, *optional*):
            Inputs that could not be used, such as rows of the prompt set. They are added to the results.
        accelerator (`Accelerator` or `PartialState`, *optional*):
            The processes that share the work.

    Raises:
        ValueError: For prompts that the rewards cannot score, an unknown guard or baseline, and videos that fit no
            prompt.
        ImportError, FileNotFoundError, ConnectionError: For a package or checkpoint that a reward or guard needs. All
            errors are raised before anything is sampled.
    """

    def __init__(
        self,
        policies: Sequence[Policy],
        rows: Sequence[Mapping[str, Any]],
        runner: RewardRunner,
        output_dir: Path,
        *,
        sampling: PolicySampling | None = None,
        guards: QualityGuards | None = None,
        baseline: str | None = None,
        unwanted: Collection[str] = (),
        problems: Sequence[str] = (),
        accelerator: Accelerator | PartialState | None = None,
    ) -> None:
        self.policies = list(policies)
        self.rows = [dict(row) for row in rows]
        self.runner = runner
        self.output_dir = Path(output_dir)
        self.sampling = sampling or PolicySampling()
        self.seeds = [EVALUATION_SEED + k for k in range(self.sampling.seeds)]
        self.accelerator = accelerator
        self.is_main = accelerator is None or accelerator.is_main_process
        self.problems: list[str] = list(problems)
        if any(policy.model for policy in self.policies) and not self.rows:
            raise ValueError("a model needs prompts to sample: pass rows.")
        if self.rows:
            runner.check_prompts(self.rows)
        guards = guards or QualityGuards()
        self.quality = QualityMeasures(guards.specs, self.output_dir / "looks", self.rows, accelerator, guards.extra)
        self._folders = self._open_folders(unwanted)
        names = [policy.name for policy in self.policies]
        if baseline is not None and baseline not in names:
            raise ValueError(f"baseline={baseline!r} is none of the policies. {near_miss(baseline, names)}")
        self.baseline = baseline or names[0]

    def _open_folders(self, unwanted: Collection[str]) -> dict[str, Evaluated]:
        """Open the folders' videos; replace a folder with samples of several policies by one policy for each."""
        opened: dict[str, Evaluated] = {}
        # Back to front, so that a policy that is replaced by several does not move those that are still to come.
        for index, policy in reversed(list(enumerate(self.policies))):
            if policy.folder is None:
                continue
            folder = VideoFolder(Path(policy.folder), self.rows, self.output_dir / "scores", unwanted)
            self.problems[:0] = folder.problems
            if not self.rows:
                self.runner.check_prompts([sample.row for sample in folder.samples])
            groups = folder.by_policy()
            several = len(groups) > 1
            names = [f"{policy.name} {revision.rpartition('@')[2]}" if several else policy.name for revision in groups]
            self.policies[index : index + 1] = [Policy(name, folder=policy.folder) for name in names]
            for name, samples in zip(names, groups.values(), strict=True):
                opened[name] = Evaluated(Policy(name, folder=policy.folder), folder, samples)
        return opened

    def run(self) -> EvaluationResults:
        """
        Sample, score and measure what is missing, and compare the policies with the baseline.

        Every process calls this, and every process gets the results. Callers that write files hold the output
        folder's lock (`files.lock_folder`) around both.
        """
        # 1. Sample the models' videos. Those of folders exist already.
        evaluated = self._sample() | self._folders
        evaluated = {policy.name: evaluated[policy.name] for policy in self.policies}

        # 2. Score
        for name, videos in evaluated.items():
            is_folder = isinstance(videos.store, VideoFolder)
            videos.samples = score_samples(
                videos.samples, videos.store, self.runner, skip_unreadable=is_folder, accelerator=self.accelerator,
                desc=f"scoring {name}",
            )  # fmt: skip
            if is_folder:
                videos.samples, problems = videos.store.drop_unreadable(videos.samples)
                self.problems += problems

        # 3. Measure quality. Some guards compare a video with the baseline's video of the same prompt and seed.
        base = evaluated[self.baseline]
        base_videos = {(sample.prompt_id, sample.seed): (base.store, sample) for sample in base.samples}
        for name, videos in evaluated.items():
            partners = [
                None if videos is base else base_videos.get((sample.prompt_id, sample.seed))
                for sample in videos.samples
            ]
            videos.quality, videos.quality_per_video = self.quality.measure(
                videos.store, videos.samples, partners, desc=f"measuring {name}"
            )
        self.quality.release()

        # 4. Summarise and compare
        return EvaluationResults(self._results(evaluated), evaluated)

    def _sample(self) -> dict[str, Evaluated]:
        """Sample the videos of all policies that have a model, one model in memory at a time."""
        evaluated: dict[str, Evaluated] = {}
        store: SampleStore | None = None
        for name in dict.fromkeys(policy.model for policy in self.policies if policy.model):
            # Opening the store creates its folder, so it is opened only if there is something to sample.
            store = store or SampleStore(self.sampling.samples_dir or self.output_dir / "samples")
            model = self.sampling.load_model(name)
            if self.is_main:
                check_origin(store, model, self.sampling.tag)
            settings = model.default_settings().updated(self.sampling.settings)
            policies = [policy for policy in self.policies if policy.model == name]
            # Load every LoRA once, so that one that does not fit is found before hours of sampling.
            for policy in policies:
                if policy.lora is not None:
                    model.load_lora(policy.lora)
                    model.unload_lora()
            for policy in policies:
                evaluated[policy.name] = Evaluated(policy, store, self._sample_policy(policy, model, settings, store))
            del model
            gc.collect()
            release_memory()
        return evaluated

    def _sample_policy(
        self, policy: Policy, model: VideoModel, settings: SamplingSettings, store: SampleStore
    ) -> list[Sample]:
        """Sample one policy's videos, with its LoRA in the model meanwhile."""
        weights = "base"
        if policy.lora is not None:
            model.load_lora(policy.lora)
            weights = lora_fingerprint(model.lora_state_dict())
        try:
            return roll_out(
                model,
                self.rows,
                self.seeds,
                settings,
                store,
                policy_revision=f"{model.name_or_path}@{weights}{self.sampling.tag}",
                batch_size=self.sampling.batch_size,
                accelerator=self.accelerator,
                crf=self.sampling.video_crf,
                desc=f"sampling {policy.name}",
            )
        finally:
            if policy.lora is not None:
                model.unload_lora()

    def _results(self, evaluated: Mapping[str, Evaluated]) -> dict[str, Any]:
        """Return the content of `results.json`."""
        base = evaluated[self.baseline]
        policies = {
            name: {
                "model": videos.policy.model,
                "lora": videos.policy.lora,
                "folder": videos.policy.folder,
                "revision": videos.samples[0].policy_revision,
                "sampling": videos.samples[0].settings if videos.policy.model else None,
                "summary": summarize(videos.samples, videos.quality),
            }
            for name, videos in evaluated.items()
        }
        differences = {
            name: compare_policies(base, videos) for name, videos in evaluated.items() if videos is not base
        }
        return {
            "kind": "evaluation",
            "format": 1,
            "baseline": self.baseline,
            "policies": policies,
            "differences": differences,
            "rewards": mask_secrets(self.runner.describe()),
            "quality_guards": list(self.quality.guards),
            "seeds": self.seeds,
            "problems": self.problems,
        }
