"""The command line of an evaluation, for `spatialalign evaluate` and `recipes/evaluate.py`."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spatialalign_trl.arguments.model import ModelArguments
from spatialalign_trl.arguments.prompts import PromptArguments, from_json, load_prompt_set
from spatialalign_trl.evaluation.guards import GUARDS
from spatialalign_trl.models.settings import SamplingArguments
from spatialalign_trl.models.tiny import EMBEDDED_MODELS, TINY_MODEL

if TYPE_CHECKING:
    from spatialalign_trl.evaluation.evaluator import Evaluation
    from spatialalign_trl.models.base import VideoModel
    from spatialalign_trl.models.settings import SamplingSettings
    from spatialalign_trl.video import Video


@dataclass
class EvaluationArguments(SamplingArguments):
    """What is evaluated, on what, by whom, and where the results go."""

    model: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Models to sample from: 'tiny' (the embedded model), Hub ids, or diffusers pipeline folders. "
            "NAME=PLACE says what one is called in the tables; so for lora and videos."
        },
    )
    lora: list[str] = field(
        default_factory=list,
        metadata={
            "help": "LoRAs on the one model, each evaluated beside it: folders that training wrote, safetensors "
            "files, or Hub ids."
        },
    )
    videos: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Folders of videos that exist, from any model: {prompt_id}_F81_seed{ss}.mp4 (both endings may be "
            "missing), or samples as a run leaves them."
        },
    )
    prompts: str | None = field(
        default=None,
        metadata={
            "help": "csv, jsonl, json or txt file, a dataset folder or Hub id, or the name of a folder under "
            "datasets/. May be left out where all videos are a run's samples."
        },
    )
    tasks: str | None = field(
        default=None,
        metadata={
            "help": "Scene tasks instead of prompts, as of recipes/video4spatial_*.py; the models then see recordings "
            "(variant context), and psnr to the right answers stands beside quality_guards."
        },
    )
    split: str = field(default="test", metadata={"help": "Split of a dataset of prompts or tasks."})
    max_prompts: int | None = field(default=None, metadata={"help": "Use the first so many. None: all."})
    seeds: int = field(
        default=5, metadata={"help": "Videos a prompt, with the same fixed seeds for every model and LoRA."}
    )
    output_dir: str = field(default="runs/evaluation", metadata={"help": "Where everything goes."})
    samples_dir: str | None = field(
        default=None,
        metadata={"help": "Folder of all samples, such as a run's, whose videos are then used. None: in output_dir."},
    )
    scenes_dir: str | None = field(
        default=None, metadata={"help": "Folder of the tasks' recordings, as of a run. None: scenes/ in output_dir."}
    )
    supersample: int = field(default=3, metadata={"help": "Rays a pixel of the tasks' rendered rooms, squared."})
    baseline: str | None = field(
        default=None, metadata={"help": "Name of what the others are compared with. None: the first."}
    )

    reward_funcs: list[str] = field(
        default_factory=lambda: ["dsr_score"],
        metadata={"help": "Rewards: names of installed ones, path/to/file.py:Name, or user/name@COMMIT on the Hub."},
    )
    reward_options: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "What a reward is made with: in YAML {dsr_score: {tracker: sam3}}, as a flag JSON."},
    )
    reward_weights: list[float] | None = field(
        default=None, metadata={"help": "reward = sum_i weight_i * reward_i. None: 1 each."}
    )
    tracker: str | None = field(
        default=None,
        metadata={"help": "dsr_score's tracker. None: color_segmentation for the tiny model, else grounded_sam."},
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Execute the code of rewards on the Hub, at the commits that are named."}
    )
    quality_guards: list[str] | None = field(
        default=None,
        metadata={
            "help": f"Measures of the picture beside the score: {', '.join(GUARDS)}, or a reward's name, such as "
            "identity or clip_iqa, with options: identity,tracker=grounded_sam. None: frames, flicker, pixel_drift, "
            "and tiny_world for the tiny model."
        },
    )

    guidance_scale_2: float | None = field(
        default=None, metadata={"help": "w at low noise, for a model with two experts. None: the model's default."}
    )
    flow_shift: float | None = field(
        default=None, metadata={"help": "k of s = k*u/(1 + (k-1)*u) in sampling. None: the model's default."}
    )
    negative_prompt: str | None = field(default=None, metadata={"help": "None: the model's default."})
    fps: float | None = field(default=None, metadata={"help": "Of the written mp4. None: the model's default."})
    batch_size: int = field(default=8, metadata={"help": "Videos sampled at once on one device."})
    video_crf: int | None = field(
        default=None,
        metadata={"help": "x264 quality of stored videos. None: 18; 0 (lossless) for embedded models."},
    )

    model_init_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "What the models' family alone knows: in YAML {context_frames: 8}, as a flag JSON."},
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
    cpu_threads: int | None = field(default=None, metadata={"help": "Threads of torch on a CPU. None: its choice."})
    use_cpu: bool = field(default=False, metadata={"help": "Coordinate the processes of a launch on CPUs."})

    def __post_init__(self) -> None:
        if self.tasks is not None and self.prompts is not None:
            raise ValueError(f"prompts={self.prompts!r} and tasks={self.tasks!r}: give one of them")
        if self.tasks is not None and "dsr_score" in self.reward_funcs:
            raise ValueError("dsr_score cannot judge scene tasks: set reward_funcs, to scene_navigation or others")
        self.model_init_kwargs = from_json(self.model_init_kwargs, "model_init_kwargs")
        for name in ("seeds", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")

    @property
    def is_tiny(self) -> bool:
        """Whether every model is the embedded one."""
        return self._samples_only([TINY_MODEL])

    @property
    def is_embedded(self) -> bool:
        """Whether every model is one in the package."""
        return self._samples_only(EMBEDDED_MODELS)

    def _samples_only(self, names: Iterable[str]) -> bool:
        return bool(self.model) and {one.rpartition("=")[2] for one in self.model} <= set(names)

    def build(self) -> Evaluation:
        """
        The evaluation that the arguments describe, with everything checked that can be without sampling.

        Raises:
            ValueError, FileNotFoundError, ConnectionError, ImportError: see [`Evaluation`] and `plan_policies`.
        """
        from accelerate import Accelerator
        from rich.console import Console

        from spatialalign_trl.evaluation.evaluator import Evaluation
        from spatialalign_trl.evaluation.policies import plan_policies
        from spatialalign_trl.evaluation.scene_metrics import TruthGuard
        from spatialalign_trl.rewards.runner import RewardRunner

        policies = plan_policies(self.model, self.lora, self.videos)
        if self.prompts is None and self.tasks is None and self.model:
            raise ValueError("a model needs prompts: give a file, a dataset, or a name under datasets/")
        rows = [] if self.prompts is None else list(load_prompt_set(self.prompts, self.split, self.max_prompts))
        runner = RewardRunner(self._rewards(), self.reward_weights)
        accelerator = Accelerator(cpu=self.use_cpu)
        loaded, sampling, truths = {}, self._sampling(), {}
        if self.tasks is not None:  # which are rendered at the size of the videos
            loaded = {policy.model: self._load_model(policy.model) for policy in policies[:1] if policy.model}
            size = self._size(next(iter(loaded.values()), None))
            sampling |= {name: getattr(size, name) for name in ("num_frames", "height", "width")}
            with accelerator.main_process_first():
                rows, truths = self._scenes(size)
        return Evaluation(
            policies,
            rows,
            runner,
            Path(self.output_dir),
            load_model=lambda name: loaded.pop(name, None) or self._load_model(name),
            seeds=self.seeds,
            sampling=sampling,
            quality_guards=self._guards(),
            own_guards={"truth": TruthGuard(truths)} if truths else None,
            baseline=self.baseline,
            samples_dir=None if self.samples_dir is None else Path(self.samples_dir),
            tag=self._tag(),
            batch_size=self.batch_size,
            video_crf=self.video_crf if self.video_crf is not None else 0 if self.is_embedded else 18,
            accelerator=accelerator,
            console=Console(quiet=not accelerator.is_main_process),
        )

    def notes(self) -> dict[str, Any]:
        """What `results.json` says of how it was made."""
        from spatialalign_trl.online.run_settings import describe_versions

        settings = dataclasses.asdict(self)
        return {"settings": settings, "command": list(sys.argv), "versions": describe_versions()}

    def _rewards(self) -> list[Any]:
        loader = PromptArguments(
            reward_funcs=self.reward_funcs,
            reward_options=self.reward_options,
            trust_remote_code=self.trust_remote_code,
        )
        if "dsr_score" in self.reward_funcs:
            options = dict((loader.reward_options or {}).get("dsr_score", {}))
            if self.tracker is not None and options.get("tracker", self.tracker) != self.tracker:
                raise ValueError(f"tracker={self.tracker!r}, but reward_options says {options['tracker']!r}")
            options.setdefault("tracker", self.tracker or ("color_segmentation" if self.is_tiny else "grounded_sam"))
            loader.reward_options = {**(loader.reward_options or {}), "dsr_score": options}
        elif self.tracker is not None:
            raise ValueError(f"tracker={self.tracker!r} is for dsr_score, which is not in reward_funcs")
        return loader.load_rewards()

    def _guards(self) -> list[str]:
        if self.quality_guards is not None:
            return self.quality_guards
        return ["frames", "flicker", "pixel_drift", *(["tiny_world"] if self.is_tiny else [])]

    def _size(self, model: VideoModel | None) -> SamplingSettings:
        """Of the tasks' videos: the first model's, or where there is none what is set."""
        from spatialalign_trl.models.settings import SamplingSettings

        if model is not None:
            return model.default_settings().updated(self._sampling())
        if None in (self.num_frames, self.height, self.width):
            raise ValueError("without a model, tasks need the size of the videos: set num_frames, height and width")
        return SamplingSettings(self.num_frames, self.height, self.width, num_inference_steps=1, guidance_scale=1)

    def _scenes(self, size: SamplingSettings) -> tuple[list[dict[str, Any]], dict[str, Video]]:
        """The tasks at this size, and the right answers."""
        from spatialalign_trl.arguments.scenes import SceneArguments

        scenes = SceneArguments(
            self.tasks, reward_funcs=self.reward_funcs, scenes_dir=self.scenes_dir, supersample=self.supersample
        )
        published, folder = scenes.load_set(self.tasks, self.split, self.max_prompts), Path(self.output_dir)
        return list(scenes.held_out(published, size, folder)), scenes.answers(published, size, folder)

    def _sampling(self) -> dict[str, Any]:
        from spatialalign_trl.models.settings import SamplingSettings

        values = {one.name: getattr(self, one.name) for one in dataclasses.fields(SamplingSettings)}
        return {name: value for name, value in values.items() if value is not None}

    def _tag(self) -> str:
        """What of the loading changes the videos, so that they are not taken for others'."""
        names = ("model_revision", "dtype", "quantization", "model_init_kwargs")
        said = {name: getattr(self, name) for name in names}
        return "".join(f" {name}={value}" for name, value in said.items() if value is not None)

    def _load_model(self, name: str) -> VideoModel:
        shared = {one.name for one in dataclasses.fields(ModelArguments)} & {f.name for f in dataclasses.fields(self)}
        variant = "context" if self.tasks is not None else None
        arguments = ModelArguments(name, variant=variant, **{one: getattr(self, one) for one in shared})
        return arguments.load(**(self.model_init_kwargs or {}))


def run_evaluation(args: EvaluationArguments) -> dict[str, Any]:
    """Runs what is missing of the evaluation and writes its files; returns what `results.json` holds."""
    return args.build().run(args.notes())
