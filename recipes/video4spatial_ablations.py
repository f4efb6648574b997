"""Compare the ablations of Video4Spatial's supervised stage in one table.

Every variant is trained from the same checkpoint, on the same examples with the same noise, for the same number of
steps (as in `recipes/video4spatial_sft.py`), and samples the same held-out tasks from the same noise:

    full                  the paper's model: context at its own time indices, joint guidance, box of the target
    no_context            the recording is left out
    contiguous            time indices of the context without gaps
    instruction_guidance  guidance on the instruction alone: the context is in both branches
    no_box                no box around the target in the training videos (object grounding only)

Three more variants sample the full variant without further training: `longer_context` (twice the frames),
`told_cameras` (the network is given the cameras of the context, which the paper does not do) and `outdoor` (rooms in a
style that is never trained on).

    accelerate launch recipes/video4spatial_ablations.py
    accelerate launch recipes/video4spatial_ablations.py \
        --config recipes/configs/video4spatial_ablations_grounding.yaml

Running the same command again continues an interrupted run. It writes `ablations.json`, `ablations.md`, and a folder
with a LoRA for each trained variant.

Simplified: the paper trains each ablation from its base model. Here all of them start from a checkpoint that was
trained with the full recipe, so that an ablation has to unlearn it; `max_steps` decides for how long.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from video4spatial_sft import HeldOutArguments, check_training, rehearse_training, sample_and_score, train_on

from spatialalign_trl.arguments.launch import launched
from spatialalign_trl.arguments.model import ModelArguments
from spatialalign_trl.arguments.parsing import parse_recipe
from spatialalign_trl.arguments.rewards import SceneRewardArguments
from spatialalign_trl.arguments.scenes import SceneArguments
from spatialalign_trl.errors import near_miss
from spatialalign_trl.files import lock_folder, read_json, write_atomic, write_json
from spatialalign_trl.trainer.context_sft_config import ContextSFTConfig

if TYPE_CHECKING:
    from spatialalign_trl.models.base import VideoModel
    from spatialalign_trl.rollout.store import Sample

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "video4spatial_ablations_navigation.yaml"
RESULTS_FILE, TABLE_FILE = "ablations.json", "ablations.md"

TRAINED: dict[str, dict[str, Any]] = {
    "full": {},
    "no_context": {"context_layout": "none"},
    "contiguous": {"context_layout": "contiguous"},
    "instruction_guidance": {"guidance": "instruction"},
    "no_box": {},
}
"""Variants that are trained, and the model's options in their training and sampling."""

SHOWN = ("psnr", "rotation_error", "position_error", "registered", "visible", "SD", "IF")
"""Measures that the table shows in addition to the rewards. The JSON file has all measures."""

SAMPLED = ("longer_context", "told_cameras", "outdoor")
"""Variants that sample from the full variant with other options or tasks, without training."""


@dataclass
class AblationArguments:
    """Arguments that choose the variants to train and to measure."""

    variants: list[str] = field(
        default_factory=lambda: [*TRAINED, *SAMPLED],
        metadata={"help": f"Variants, out of {', '.join([*TRAINED, *SAMPLED])}; full is always included."},
    )
    outdoor_split: str = field(default="outdoor", metadata={"help": "Split of train_prompts for the variant outdoor."})

    def __post_init__(self) -> None:
        for name in self.variants:
            if name not in (*TRAINED, *SAMPLED):
                raise ValueError(f"variants={name!r}: unknown variant. {near_miss(name, [*TRAINED, *SAMPLED])}")
        self.variants = ["full", *(name for name in self.variants if name != "full")]


@dataclass
class Ablation:
    """A run of all variants."""

    scenes: SceneArguments
    rewards: SceneRewardArguments
    args: ContextSFTConfig
    held_out: HeldOutArguments
    model_arguments: ModelArguments

    def __post_init__(self) -> None:
        from spatialalign_trl.rewards.runner import RewardRunner
        from spatialalign_trl.rollout.store import SampleStore

        self.folder = Path(self.args.output_dir)
        self.runner = RewardRunner(self.rewards.load_rewards())
        self.processes = self.args.distributed_state
        self.store = SampleStore(self.folder / "samples")

    def run(self, variants: Sequence[str], outdoor_split: str) -> dict[str, Any]:
        """Train, sample and compare the variants that are missing, and return the contents of `ablations.json`."""
        from spatialalign_trl.models.lora import LORA_FILE

        path = self.folder / RESULTS_FILE
        results = read_json(path) if path.exists() else {}
        check_training(self.args)
        for name in variants:
            if name in TRAINED and not (self.folder / name / LORA_FILE).exists():
                self._rehearse(name)
        full: list[Sample] = []
        is_search = [bool(row.get("object")) for row in self.scenes.load()[1]]
        for name in variants:
            if name == "no_box" and not any(is_search):
                continue  # navigation has no object, so there is no box to leave out
            if name == "told_cameras" and all(is_search):
                continue  # a search has no path, in whose coordinates the cameras would be given
            if name in results and name != "full":
                continue
            samples, truths = self._train(name) if name in TRAINED else self._vary_full(name, outdoor_split)
            if name == "full":
                full = samples
            results[name] = self._compare(samples, truths, None if name in ("full", "outdoor") else full)
            if self.processes.is_main_process:
                write_json(path, results)
                write_atomic(self.folder / TABLE_FILE, to_markdown(results).encode())
        return results

    def _rehearse(self, name: str) -> None:
        """Build the trainer of a variant, so that none is refused after the others have been trained."""
        model = self._load_model(TRAINED[name])
        settings = self.held_out.sampling_settings(model.default_settings())
        model.check_size(settings.num_frames, settings.height, settings.width)
        args, tasks = self._args_of(name), self.scenes.load()[0]
        rehearse_training(model, args, self.model_arguments, self.scenes, tasks, settings, self.folder)

    def _args_of(self, name: str) -> ContextSFTConfig:
        args = copy.copy(self.args)
        args.output_dir, args.auxiliary_box = str(self.folder / name), name != "no_box"
        return args

    def _train(self, name: str) -> tuple[list[Sample], Mapping[str, Any]]:
        """Train a variant, or load its LoRA if it exists, and sample the held-out tasks."""
        from spatialalign_trl.models.lora import LORA_FILE
        from spatialalign_trl.trainer.context_sft_trainer import ContextSFTTrainer

        folder, model = self.folder / name, self._load_model(TRAINED[name])
        if not (folder / LORA_FILE).exists():
            settings = self.held_out.sampling_settings(model.default_settings())
            with self.args.main_process_first(local=False, desc="preparing scenes"):
                train = self.scenes.with_answers(self.scenes.load()[0], settings, self.folder)
            config = self.model_arguments.lora_config(model)
            trainer = ContextSFTTrainer(model, self._args_of(name), train_dataset=train, peft_config=config)
            train_on(trainer, folder)
        else:
            model.load_lora(folder)
        return self._sample_held_out(model, name, self.scenes)

    def _vary_full(self, name: str, outdoor_split: str) -> tuple[list[Sample], Mapping[str, Any]]:
        """Sample from the full variant, with another option of the model or on other tasks."""
        scenes, options = self.scenes, {}
        if name == "longer_context":
            options = {"context_frames": 2 * ((self.args.model_init_kwargs or {}).get("context_frames") or 8)}
        elif name == "told_cameras":
            options = {"context_cameras": True}
        else:
            scenes = dataclasses.replace(self.scenes, eval_split=outdoor_split)
        model = self._load_model(options)
        model.load_lora(self.folder / "full")
        return self._sample_held_out(model, name, scenes)

    def _load_model(self, options: Mapping[str, Any]) -> VideoModel:
        return self.model_arguments.load(**{**(self.args.model_init_kwargs or {}), **options})

    def _sample_held_out(
        self, model: VideoModel, name: str, scenes: SceneArguments
    ) -> tuple[list[Sample], Mapping[str, Any]]:
        settings, published = self.held_out.sampling_settings(model.default_settings()), scenes.load()
        with self.args.main_process_first(local=False, desc="preparing scenes"):
            _, tasks = scenes.at_size(published, settings, self.folder)
        self.runner.check_prompts(list(tasks))
        model.transformer.eval()
        samples = sample_and_score(
            model, tasks, settings, self.held_out, self.store, self.runner, self.processes, name
        )
        return samples, scenes.answers(published[1], settings, self.folder)

    def _compare(self, samples: list[Sample], truths: Mapping[str, Any], full: list[Sample] | None) -> dict[str, Any]:
        from spatialalign_trl.evaluation.scene_metrics import compare_scenes

        compared = compare_scenes(full or samples, samples, self.store, truths)
        return {"measures": compared["other"], "difference": compared["difference"] if full else {}}


def to_markdown(results: Mapping[str, Any]) -> str:
    """Make a table with a row per variant: means, each with its difference from the full variant and 95 % interval."""
    measured = dict.fromkeys(name for result in results.values() for name in result["measures"])
    rewards = [name for name in measured if any(other.startswith(f"{name}_") for other in measured)]
    names = [name for name in measured if name in rewards or name.endswith(SHOWN)]
    lines = ["| variant | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for variant, result in results.items():
        cells = []
        for name in names:
            measure, change = result["measures"].get(name), result["difference"].get(name)
            cell = "-" if measure is None else f"{measure['mean']:.3f}"
            if change is not None:
                low, high = change["interval"]
                cell += f" ({change['difference']:+.3f} [{low:+.3f}, {high:+.3f}])"
            cells.append(cell)
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(
    ablation: AblationArguments,
    scenes: SceneArguments,
    rewards: SceneRewardArguments,
    args: ContextSFTConfig,
    held_out: HeldOutArguments,
    model_arguments: ModelArguments,
) -> dict[str, Any]:
    run = Ablation(scenes, rewards, args, held_out, model_arguments)
    results = run.run(ablation.variants, ablation.outdoor_split)
    if run.processes.is_main_process:
        print(to_markdown(results))
    return results


def launch(default_config: Path) -> None:
    """Run the command line of this recipe."""
    with launched():
        common = (SceneArguments, SceneRewardArguments, ContextSFTConfig, HeldOutArguments, ModelArguments)
        ablation, scenes, rewards, args, *others = parse_recipe((AblationArguments, *common), default_config)
        with lock_folder(args.output_dir, here=args.process_index == 0):
            main(ablation, scenes, rewards, args, *others)


if __name__ == "__main__":
    launch(DEFAULT_CONFIG)
