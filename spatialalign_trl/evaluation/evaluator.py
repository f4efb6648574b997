"""Evaluating policies side by side: sample, score, look, compare, write. What is there is not made again.

output_dir/
  samples/            every video, with its inputs, latents and scores (`rollout/store.py`)
  scores/             of videos in other folders, by what is in the file
  looks/              what the quality guards measured, by sample
  results.json, table.md, table.tex, samples.parquet      see `report/evaluation_files.py`
  report.html, report.json     see `report/write.py`
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from spatialalign_trl.devices import release_memory
from spatialalign_trl.errors import near_miss
from spatialalign_trl.evaluation.compare import Evaluated, compare_policies
from spatialalign_trl.evaluation.looks import Looks, Videos
from spatialalign_trl.evaluation.policies import Policy
from spatialalign_trl.evaluation.statistics import EVALUATION_SEED, summarize
from spatialalign_trl.evaluation.video_folder import VideoFolder
from spatialalign_trl.files import lock_folder
from spatialalign_trl.models.lora import lora_fingerprint
from spatialalign_trl.models.settings import SamplingSettings
from spatialalign_trl.rewards.runner import RewardRunner
from spatialalign_trl.rewards.scoring import score_samples
from spatialalign_trl.rollout.origin import check_origin
from spatialalign_trl.rollout.sampler import roll_out
from spatialalign_trl.rollout.store import Sample, SampleStore

if TYPE_CHECKING:
    from accelerate import Accelerator

    from spatialalign_trl.evaluation.guards import Guard
    from spatialalign_trl.models.base import VideoModel


class Evaluation:
    """
    Evaluates policies on the same prompts and seeds.

    Args:
        policies (sequence of [`Policy`]): What is compared; see `policies.plan_policies`.
        rows (sequence of `dict`): The prompts. May be empty where all policies are folders of recorded samples.
        runner ([`RewardRunner`]): The rewards.
        output_dir (`Path`): See the top of this file.
        load_model (callable, *optional*): Name -> [`VideoModel`]. Needed where a policy has a model.
        seeds (`int`, *optional*, defaults to `5`): Videos a prompt. They are numbered from `EVALUATION_SEED`, as the
            loop's own evaluation numbers them.
        sampling (`dict`, *optional*): Fields of `SamplingSettings` that differ from a model's own.
        quality_guards (sequence of `str`, *optional*): As `guards.get_guard` takes them.
        own_guards (`Mapping[str, Guard]`, *optional*): More of them, by name.
        baseline (`str`, *optional*): Name of the policy that the others are compared with; by default the first.
        samples_dir (`Path`, *optional*): Where samples are kept, such as a run's `samples`, to use its videos.
        tag (`str`, *optional*): What else sampling depends on, such as a dtype; part of the samples' identity.
        batch_size (`int`, *optional*): Videos sampled at a time.
        video_crf (`int`, *optional*): Quality of the mp4s; 0 is lossless.
        accelerator (`Accelerator`, *optional*): The processes to share the work.
        console (`Console`, *optional*): Where to say what is done.

    Raises:
        ValueError: for prompts that the rewards cannot judge, an unknown guard or baseline, and videos that fit no
            prompt; ImportError, FileNotFoundError, ConnectionError: for what a reward or a guard lacks. All of it
            before anything is sampled.
    """

    def __init__(
        self,
        policies: Sequence[Policy],
        rows: Sequence[Mapping[str, Any]],
        runner: RewardRunner,
        output_dir: Path,
        *,
        load_model: Callable[[str], VideoModel] | None = None,
        seeds: int = 5,
        sampling: Mapping[str, Any] | None = None,
        quality_guards: Sequence[str] = ("frames", "flicker", "pixel_drift"),
        own_guards: Mapping[str, Guard] | None = None,
        baseline: str | None = None,
        samples_dir: Path | None = None,
        tag: str = "",
        batch_size: int = 8,
        video_crf: int = 18,
        accelerator: Accelerator | None = None,
        console: Console | None = None,
    ) -> None:
        if seeds < 1:
            raise ValueError(f"seeds={seeds}: must be at least 1")
        self.policies = list(policies)
        self.rows = [dict(row) for row in rows]
        self.runner = runner
        self.output_dir = Path(output_dir)
        self.load_model = load_model
        self.seeds = [EVALUATION_SEED + k for k in range(seeds)]
        self.sampling = dict(sampling or {})
        self.tag = tag
        self.batch_size = batch_size
        self.video_crf = video_crf
        self.accelerator = accelerator
        self.is_main = accelerator is None or accelerator.is_main_process
        self.console = console or Console(quiet=True)
        self.problems: list[str] = []
        if any(policy.model for policy in self.policies) and not self.rows:
            raise ValueError("a model needs prompts to sample")
        if self.rows:
            runner.check_prompts(self.rows)
        self.looks = Looks(quality_guards, self.output_dir / "looks", self.rows, accelerator, own_guards)
        self._folders = self._open_folders()
        names = [policy.name for policy in self.policies]
        if baseline is not None and baseline not in names:
            raise ValueError(f"baseline={baseline!r} is none of the policies. {near_miss(baseline, names)}")
        self.baseline = baseline or names[0]
        self.samples_dir = Path(samples_dir or self.output_dir / "samples")

    def _open_folders(self) -> dict[str, Evaluated]:
        """The folders' videos, by policy; a folder with samples of several policies becomes several."""
        found: dict[str, Evaluated] = {}
        for place, policy in reversed(list(enumerate(self.policies))):
            if policy.folder is None:
                continue
            folder = VideoFolder(Path(policy.folder), self.rows, self.output_dir / "scores")
            self.problems[:0] = folder.problems
            groups = folder.by_policy()
            if not self.rows:
                self.runner.check_prompts([sample.row for sample in folder.samples])
            several = len(groups) > 1
            names = [f"{policy.name} {group.rpartition('@')[2]}" if several else policy.name for group in groups]
            split = [Policy(name, folder=policy.folder) for name in names]
            self.policies[place : place + 1] = split
            found |= {
                one.name: Evaluated(one, folder, samples) for one, samples in zip(split, groups.values(), strict=True)
            }
        return found

    # The stages

    def run(self, notes: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """
        Runs what is missing, and writes the files.

        Args:
            notes (`dict`, *optional*): Goes into `results.json` as it is: settings, versions.

        Returns:
            What `results.json` holds; see `report/evaluation_files.py`.

        Raises:
            RuntimeError: where another process is at work in the output folder.
        """
        with lock_folder(self.output_dir, here=self.is_main):
            return self._run(dict(notes or {}))

    def _run(self, notes: Mapping[str, Any]) -> dict[str, Any]:
        from spatialalign_trl.report.evaluation_files import print_results, write_results
        from spatialalign_trl.report.grades import find_grader
        from spatialalign_trl.report.write import try_write_report

        evaluated = self._sample() | self._folders
        evaluated = {policy.name: evaluated[policy.name] for policy in self.policies}
        for name, one in evaluated.items():
            one.samples = score_samples(
                one.samples, one.store, self.runner, accelerator=self.accelerator, desc=f"scoring {name}"
            )
        self._look(evaluated)
        results = self._results(evaluated) | notes
        if self.is_main:
            write_results(self.output_dir, results, evaluated)
            try_write_report(self.output_dir, find_grader(self.runner.reward_funcs))
            self.runner.release()
            print_results(self.console, results, self.output_dir)
        if self.accelerator:
            self.accelerator.wait_for_everyone()
        return results

    def _sample(self) -> dict[str, Evaluated]:
        evaluated: dict[str, Evaluated] = {}
        store: SampleStore | None = None
        for name in dict.fromkeys(policy.model for policy in self.policies if policy.model):
            store = store or SampleStore(self.samples_dir)
            model = self.load_model(name)
            if self.is_main:
                check_origin(store, model, self.tag)
            settings = model.default_settings().updated(self.sampling)
            policies = [one for one in self.policies if one.model == name]
            for policy in policies:  # a LoRA that does not load is found before hours of sampling
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
        start = "base"
        if policy.lora is not None:
            model.load_lora(policy.lora)
            start = lora_fingerprint(model.lora_state_dict())
        try:
            return roll_out(
                model,
                self.rows,
                self.seeds,
                settings,
                store,
                policy_revision=f"{model.name_or_path}@{start}{self.tag}",
                batch_size=self.batch_size,
                accelerator=self.accelerator,
                crf=self.video_crf,
                desc=f"sampling {policy.name}",
            )
        finally:
            if policy.lora is not None:
                model.unload_lora()

    def _look(self, evaluated: Mapping[str, Evaluated]) -> None:
        base = evaluated[self.baseline]
        of_base: dict[tuple[str, int], tuple[Videos, Sample]] = {
            (sample.prompt_id, sample.seed): (base.store, sample) for sample in base.samples
        }
        for name, one in evaluated.items():
            partners = [of_base.get((s.prompt_id, s.seed)) if one is not base else None for s in one.samples]
            one.quality, one.looks = self.looks.measure(one.store, one.samples, partners, desc=f"looking at {name}")
        self.looks.release()

    def _results(self, evaluated: Mapping[str, Evaluated]) -> dict[str, Any]:
        base = evaluated[self.baseline]
        policies = {
            name: {
                "model": one.policy.model,
                "lora": one.policy.lora,
                "folder": one.policy.folder,
                "revision": one.samples[0].policy_revision,
                "sampling": one.samples[0].settings if one.policy.model else None,
                "summary": summarize(one.samples, one.quality),
            }
            for name, one in evaluated.items()
        }
        differences = {name: compare_policies(base, one) for name, one in evaluated.items() if one is not base}
        return {
            "kind": "evaluation",
            "format": 1,
            "baseline": self.baseline,
            "policies": policies,
            "differences": differences,
            "rewards": self.runner.describe(),
            "quality_guards": list(self.looks.guards),
            "seeds": self.seeds,
            "problems": self.problems,
        }
