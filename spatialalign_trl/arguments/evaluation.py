"""The command line of an evaluation, for `spatialalign evaluate` and `recipes/evaluate.py`."""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from spatialalign_trl.arguments.model import ModelArguments
from spatialalign_trl.arguments.prompts import prompt_source
from spatialalign_trl.arguments.rewards import RewardArguments, from_json
from spatialalign_trl.errors import printable
from spatialalign_trl.evaluation.guards import GUARDS
from spatialalign_trl.evaluation.statistics import DSR
from spatialalign_trl.files import lock_folder
from spatialalign_trl.models.ranges import COUNT, FINITE, Range
from spatialalign_trl.models.settings import FLOW_SHIFT, FPS, SamplingArguments
from spatialalign_trl.models.tiny import EMBEDDED_MODELS, TINY_MODEL
from spatialalign_trl.prompts.loading import load_readable_prompts
from spatialalign_trl.safe_text import mask_arguments, mask_secrets

if TYPE_CHECKING:
    from spatialalign_trl.evaluation.evaluator import Evaluation
    from spatialalign_trl.models.base import VideoModel
    from spatialalign_trl.models.settings import SamplingSettings
    from spatialalign_trl.rewards.convention import RewardFunc

logger = logging.getLogger(__name__)


@dataclass
class EvaluationArguments(RewardArguments, SamplingArguments):
    """Arguments of an evaluation: policies, prompts, rewards, quality guards, sampling, and where the results go."""

    model: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Models to sample from: 'tiny' (the embedded model), Hub ids, or diffusers pipeline folders. "
            "NAME=PLACE names one in the tables. The same holds for lora and videos."
        },
    )
    lora: list[str] = field(
        default_factory=list,
        metadata={
            "help": "LoRAs on the one model, each evaluated in addition to it: folders that training wrote, "
            "safetensors files, or Hub ids."
        },
    )
    videos: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Folders of existing videos, from any model: {prompt_id}_F81_seed{ss}.mp4 (both suffixes may be "
            "missing), or the samples of a run."
        },
    )
    prompts: str | None = field(
        default=None,
        metadata={
            "help": "csv, jsonl, json or txt file, a dataset folder or Hub id, or the name of a folder under "
            "datasets/. May be left out if all videos are samples of a run."
        },
    )
    tasks: str | None = field(
        default=None,
        metadata={
            "help": "Scene tasks instead of prompts, as in recipes/video4spatial_*.py. The models are then "
            "conditioned on recordings (variant context), and the PSNR against the ground truth is added to the "
            "quality guards."
        },
    )
    split: str = field(default="test", metadata={"help": "Split of a dataset of prompts or tasks."})
    max_prompts: Annotated[int | None, COUNT] = field(
        default=None, metadata={"help": "Use only this many prompts or tasks, from the first. None: all."}
    )
    seeds: Annotated[int, Range(at_least=1, at_most=100_000)] = field(
        default=5, metadata={"help": "Videos per prompt, with the same fixed seeds for every model and LoRA."}
    )
    output_dir: str = field(
        default="runs/evaluation", metadata={"help": "Folder of all files that the evaluation writes."}
    )
    samples_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder of the samples, such as a run's, whose videos are then reused. None: in output_dir."
        },
    )
    scenes_dir: str | None = field(
        default=None,
        metadata={"help": "Folder of the tasks' recordings, such as a run's. None: scenes/ in output_dir."},
    )
    supersample: Annotated[int, Range(at_least=1, at_most=64)] = field(
        default=3, metadata={"help": "The tasks' rooms are rendered with this many rays per pixel, squared."}
    )
    baseline: str | None = field(
        default=None, metadata={"help": "Name of the policy that the others are compared with. None: the first."}
    )

    reward_weights: Annotated[list[float] | None, FINITE] = field(
        default=None, metadata={"help": "reward = sum_i weight_i * reward_i. None: 1 each."}
    )
    tracker: str | None = field(
        default=None,
        metadata={"help": "dsr_score's tracker. None: color_segmentation for the tiny model, else grounded_sam."},
    )
    quality_guards: list[str] | None = field(
        default=None,
        metadata={
            "help": f"Measures of the picture in addition to the score: {', '.join(GUARDS)}, or a reward's name, "
            "such as identity or clip_iqa, with options: identity,tracker=grounded_sam. None: frames, flicker, "
            "pixel_drift, and tiny_world for the tiny model."
        },
    )

    guidance_scale_2: Annotated[float | None, FINITE] = field(
        default=None,
        metadata={"help": "w at low noise levels, for a model with two experts. None: the model's default."},
    )
    flow_shift: Annotated[float | None, FLOW_SHIFT] = field(
        default=None, metadata={"help": "k of s = k*u/(1 + (k-1)*u) in sampling. None: the model's default."}
    )
    negative_prompt: str | None = field(default=None, metadata={"help": "Negative prompt. None: the model's default."})
    fps: Annotated[float | None, FPS] = field(
        default=None, metadata={"help": "Frames per second of the written mp4. None: the model's default."}
    )
    batch_size: Annotated[int, COUNT] = field(default=8, metadata={"help": "Videos sampled at once on one device."})
    video_crf: Annotated[int | None, Range(at_least=0, at_most=51, note="0 is lossless.")] = field(
        default=None,
        metadata={"help": "x264 quality of stored videos. None: 18; 0 (lossless) for embedded models."},
    )

    model_init_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Options of the models' family: in YAML {context_frames: 8}, as a flag JSON."},
    )
    model_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a Hub model."})
    dtype: str | None = field(
        default=None, metadata={"help": "float32, bfloat16, float16. None: bfloat16 on a GPU, else float32."}
    )
    quantization: str | None = field(default=None, metadata={"help": "bitsandbytes_8bit or bitsandbytes_4bit."})
    attention_backend: str | None = field(
        default=None, metadata={"help": "native, xformers, flash, or another of diffusers' names."}
    )
    vae_tiling: bool = field(default=False, metadata={"help": "Decode in overlapping tiles: less memory."})
    vae_slicing: bool = field(default=False, metadata={"help": "Decode one video of a batch at a time."})
    cpu_threads: Annotated[int | None, Range(at_least=1, at_most=4096)] = field(
        default=None, metadata={"help": "Threads of torch on a CPU. None: torch's default."}
    )
    use_cpu: bool = field(default=False, metadata={"help": "Coordinate the processes of a launch on CPUs."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tasks is not None and self.prompts is not None:
            raise ValueError(f"prompts={self.prompts!r} and tasks={self.tasks!r}: give one of them, not both.")
        if self.tasks is not None and DSR in self.reward_funcs:
            raise ValueError(
                f"{DSR} cannot judge scene tasks: set reward_funcs to scene_navigation, object_grounding, or your own."
            )
        if self.reward_weights is not None and not any(self.reward_weights):
            raise ValueError(
                f"reward_weights={self.reward_weights}: no reward counts. Give one a weight that is not 0."
            )
        self.model_init_kwargs = from_json(self.model_init_kwargs, "model_init_kwargs")
        if not isinstance(self.model_init_kwargs, dict | None):
            raise ValueError(f"model_init_kwargs={self.model_init_kwargs!r}: expected {{option: value}}.")

    @property
    def is_tiny(self) -> bool:
        """Whether every model is the embedded model of the tiny world."""
        return self._only_models([TINY_MODEL])

    @property
    def is_embedded(self) -> bool:
        """Whether every model is one that this package contains."""
        return self._only_models(EMBEDDED_MODELS)

    def _only_models(self, names: Iterable[str]) -> bool:
        return bool(self.model) and {model.rpartition("=")[2] for model in self.model} <= set(names)

    def options_for(self, reward: str) -> dict[str, Any]:
        """
        Return the options that a reward is created with. DSR-Score gets the tracker from `tracker` or its default.

        Args:
            reward (`str`):
                The reward's name in `reward_funcs`.

        Raises:
            ValueError: If `tracker` and `reward_options` name different trackers.
        """
        options = super().options_for(reward)
        if reward == DSR:
            if self.tracker is not None and options.get("tracker", self.tracker) != self.tracker:
                raise ValueError(
                    f"tracker={self.tracker!r}, but reward_options has {options['tracker']!r}. Leave one of them out."
                )
            options.setdefault("tracker", self.tracker or ("color_segmentation" if self.is_tiny else "grounded_sam"))
        return options

    def load_rewards(self) -> list[RewardFunc]:
        """
        Create the rewards with their options, in the order of `reward_funcs`.

        Raises:
            ValueError: If a tracker is given without a reward that uses it.
        """
        if self.tracker is not None and DSR not in self.reward_funcs:
            raise ValueError(
                f"tracker={self.tracker!r} is an option of {DSR}, which is not in reward_funcs. Leave it out, or set "
                "reward_options."
            )
        return super().load_rewards()

    def build(self) -> Evaluation:
        """
        Build the evaluation that the arguments describe, and check everything that can be checked without sampling.

        Raises:
            ValueError, FileNotFoundError, ConnectionError, ImportError: See [`Evaluation`] and `plan_policies`.
        """
        from accelerate import PartialState

        from spatialalign_trl.arguments.scenes import SceneArguments
        from spatialalign_trl.evaluation.evaluator import Evaluation, PolicySampling, QualityGuards
        from spatialalign_trl.evaluation.policies import plan_policies
        from spatialalign_trl.evaluation.scene_metrics import TruthGuard
        from spatialalign_trl.rewards.runner import RewardRunner

        # 1. Policies, prompts and rewards: the checks that need no model
        policies = plan_policies(self.model, self.lora, self.videos)
        if self.prompts is None and self.tasks is None and self.model:
            raise ValueError("a model needs prompts: give a file, a dataset, or a name under datasets/.")
        prompts, problems = self._load_prompts()
        rows, others = prompts[: self.max_prompts], prompts[len(prompts[: self.max_prompts]) :]
        runner = RewardRunner(self.load_rewards(), self.reward_weights)
        processes = PartialState(cpu=self.use_cpu)

        # 2. Render scene tasks at the size of the videos, by default the first model's. A model that is loaded for its
        # size is kept for sampling.
        loaded: dict[str, VideoModel] = {}
        settings, truths = self._settings(), {}
        if self.tasks is not None:
            loaded = {policy.model: self._load_model(policy.model) for policy in policies[:1] if policy.model}
            size = self._task_size(next(iter(loaded.values()), None))
            settings |= {name: getattr(size, name) for name in ("num_frames", "height", "width")}
            scenes = SceneArguments(self.tasks, scenes_dir=self.scenes_dir, supersample=self.supersample)
            with processes.main_process_first():  # The main process renders, the others read its files.
                published = scenes.load_set(self.tasks, self.split, self.max_prompts)
                rows = list(scenes.held_out(published, size, Path(self.output_dir)))
                truths = scenes.answers(published, size, Path(self.output_dir))

        # 3. How videos are sampled and measured
        guards = self.quality_guards
        if guards is None:
            guards = ["frames", "flicker", "pixel_drift", *(["tiny_world"] if self.is_tiny else [])]
        sampling = PolicySampling(
            load_model=lambda name: loaded.pop(name, None) or self._load_model(name),
            seeds=self.seeds,
            settings=settings,
            tag=self._tag(),
            batch_size=self.batch_size,
            video_crf=self.video_crf if self.video_crf is not None else 0 if self.is_embedded else 18,
            samples_dir=None if self.samples_dir is None else Path(self.samples_dir),
        )
        return Evaluation(
            policies,
            rows,
            runner,
            Path(self.output_dir),
            sampling=sampling,
            guards=QualityGuards(guards, {"truth": TruthGuard(truths)} if truths else {}),
            baseline=self.baseline,
            unwanted=[row["prompt_id"] for row in others],
            problems=problems,
            accelerator=processes,
        )

    def _load_prompts(self) -> tuple[list[dict[str, Any]], list[str]]:
        """Load the prompts, and list the rows that are none. Those are said now, too: sampling may take hours."""
        if self.prompts is None:
            return [], []
        prompts, problems = load_readable_prompts(prompt_source(self.prompts), self.split)
        for problem in problems:
            logger.warning("left out: %s", printable(problem.text))
        return list(prompts), [problem.text for problem in problems]

    def notes(self) -> dict[str, Any]:
        """Return what `results.json` records about how it was made: settings, command line and versions."""
        from spatialalign_trl.online.run_settings import describe_versions

        settings = mask_secrets(dataclasses.asdict(self))
        return {"settings": settings, "command": mask_arguments(sys.argv), "versions": describe_versions()}

    def _task_size(self, model: VideoModel | None) -> SamplingSettings:
        """Return the size of the tasks' videos: the model's with what is set here, or only what is set here."""
        from spatialalign_trl.models.settings import SamplingSettings

        if model is not None:
            return model.default_settings().updated(self._settings())
        if None in (self.num_frames, self.height, self.width):
            raise ValueError("without a model, tasks need the size of the videos: set num_frames, height and width.")
        return SamplingSettings(self.num_frames, self.height, self.width, num_inference_steps=1, guidance_scale=1)

    def _settings(self) -> dict[str, Any]:
        """Return the sampling settings that are set here."""
        from spatialalign_trl.models.settings import SamplingSettings

        values = {setting.name: getattr(self, setting.name) for setting in dataclasses.fields(SamplingSettings)}
        return {name: value for name, value in values.items() if value is not None}

    def _tag(self) -> str:
        """Return the loading options that change the videos, so that samples made with others are not reused."""
        names = ("model_revision", "dtype", "quantization", "model_init_kwargs")
        values = {name: getattr(self, name) for name in names}
        if self.dtype == "float32":  # as the loop's samples of embedded models, which have no such mark
            values.pop("dtype")
        return "".join(f" {name}={value}" for name, value in values.items() if value is not None)

    def _load_model(self, name: str) -> VideoModel:
        """Load a model with the loading options of these arguments."""
        variant = "context" if self.tasks is not None else None
        names = {argument.name for argument in dataclasses.fields(ModelArguments)}
        shared = names & {argument.name for argument in dataclasses.fields(self)}
        arguments = ModelArguments(name, variant=variant, **{option: getattr(self, option) for option in shared})
        return arguments.load(**(self.model_init_kwargs or {}))


def run_evaluation(args: EvaluationArguments) -> dict[str, Any]:
    """
    Run what is missing of an evaluation, and write and print its results.

    Args:
        args ([`EvaluationArguments`]):
            The evaluation's arguments.

    Returns:
        `dict`: The content of `results.json`.

    Raises:
        RuntimeError: If another process works in the output folder.
    """
    return run_and_write(args.build(), args.notes())


def run_and_write(evaluation: Evaluation, notes: Mapping[str, Any]) -> dict[str, Any]:
    """
    Run what is missing of an evaluation, write its files and the report page, and print the tables.

    Args:
        evaluation ([`Evaluation`]):
            The evaluation.
        notes (`Mapping[str, Any]`):
            Entries that are added to `results.json`: settings, command line, versions.

    Returns:
        `dict`: The content of `results.json`.

    Raises:
        RuntimeError: If another process works in the output folder.
    """
    from rich.console import Console

    from spatialalign_trl.report.evaluation_files import print_results, write_results
    from spatialalign_trl.report.grades import find_grader
    from spatialalign_trl.report.write import try_write_report

    folder, runner = evaluation.output_dir, evaluation.runner
    with lock_folder(folder, here=evaluation.is_main):
        results, evaluated = evaluation.run()
        results = results | dict(notes)
        if evaluation.is_main:
            write_results(folder, results, evaluated)
            # The page shows curves of the rewards that can grade frames, so their models are released after it.
            try_write_report(folder, find_grader(runner.reward_funcs))
            runner.release()
            print_results(Console(), results, folder)
        if evaluation.accelerator:
            evaluation.accelerator.wait_for_everyone()
    return results
