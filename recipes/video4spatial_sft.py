"""Teach a video model to use a recording of a scene: the supervised stage of Video4Spatial.

It trains a LoRA of a context-conditioned model (`ContextSFTTrainer`) on videos of scenes. The inputs are clean frames
of a recording and an instruction; the target is the video that is the right answer. The default data are rendered
rooms. Real recordings go in as finished rows (`spatialalign_trl/scenes/rows.py`), which
`spatialalign_trl/scenes/curation.py` makes of videos with known cameras.

    accelerate launch recipes/video4spatial_sft.py
    accelerate launch recipes/video4spatial_sft.py --config recipes/configs/video4spatial_sft_wan2.1_1.3b.yaml

Without `--config` it runs `recipes/configs/video4spatial_sft_tiny.yaml`. Flags override the YAML. Running the same
command again continues from the last checkpoint and samples nothing twice.

The paper's ablations are options:

    --model_init_kwargs '{"context_layout": "contiguous"}'     time indices without gaps
    --model_init_kwargs '{"context_layout": "none"}'           no context
    --model_init_kwargs '{"guidance": "instruction"}'          guidance on the instruction alone
    --auxiliary_box false                                      no box around the target in the training videos

It writes the LoRA with its card, `samples/`, and `scene_metrics.json`: PSNR against the ground truth, the rewards and
their factors on held-out tasks, before and after, with 95 % intervals. The table is also printed.

Simplified: the paper trains the whole network on real recordings, and states neither noise levels nor learning rates;
`ContextSFTConfig` says which values are ours. A run trains on one set of tasks.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from spatialalign_trl.arguments.launch import launched
from spatialalign_trl.arguments.model import ModelArguments
from spatialalign_trl.arguments.parsing import parse_recipe
from spatialalign_trl.arguments.rewards import SceneRewardArguments
from spatialalign_trl.arguments.scenes import SceneArguments
from spatialalign_trl.files import lock_folder
from spatialalign_trl.models.ranges import COUNT, Range
from spatialalign_trl.models.settings import SamplingArguments
from spatialalign_trl.trainer.context_sft_config import ContextSFTConfig

if TYPE_CHECKING:
    from accelerate import PartialState
    from datasets import Dataset

    from spatialalign_trl.models.base import VideoModel
    from spatialalign_trl.models.settings import SamplingSettings
    from spatialalign_trl.rewards.runner import RewardRunner
    from spatialalign_trl.rollout.store import Sample, SampleStore
    from spatialalign_trl.trainer.context_sft_trainer import ContextSFTTrainer

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "video4spatial_sft_tiny.yaml"


@dataclass
class HeldOutArguments(SamplingArguments):
    """The size of all videos, and how held-out tasks are sampled before and after training."""

    evaluation_seeds: Annotated[int, Range(at_least=0, at_most=100_000)] = field(
        default=2, metadata={"help": "Videos per held-out task, with fixed seeds. 0: no evaluation."}
    )
    rollout_batch_size: Annotated[int, COUNT] = field(
        default=8, metadata={"help": "Videos sampled at once on one device."}
    )
    video_crf: Annotated[int, Range(at_least=0, at_most=51)] = field(
        default=18, metadata={"help": "x264 quality of stored videos; 0 is lossless RGB."}
    )


def main(
    scenes: SceneArguments,
    rewards: SceneRewardArguments,
    args: ContextSFTConfig,
    held_out: HeldOutArguments,
    model_arguments: ModelArguments,
) -> None:
    from spatialalign_trl.evaluation.scene_metrics import compare_scenes, write_comparison
    from spatialalign_trl.rewards.runner import RewardRunner
    from spatialalign_trl.rollout.store import SampleStore
    from spatialalign_trl.trainer.context_sft_trainer import ContextSFTTrainer

    check_training(args)
    published, runner = scenes.load(), RewardRunner(rewards.load_rewards())
    model = model_arguments.load(**(args.model_init_kwargs or {}))
    settings, folder = held_out.sampling_settings(model.default_settings()), Path(args.output_dir)
    model.check_size(settings.num_frames, settings.height, settings.width)
    rehearse_training(model, args, model_arguments, scenes, published[0], settings, folder)

    # 1. Render or read the tasks at the model's size, and check that the rewards can score them.
    with args.main_process_first(local=False, desc="preparing scenes"):
        train = scenes.with_answers(published[0], settings, folder)
        _, tasks = scenes.at_size(published, settings, folder)
    runner.check_prompts(list(tasks))
    store = SampleStore(folder / "samples")

    def evaluate(name: str) -> list[Sample]:
        return sample_and_score(model, tasks, settings, held_out, store, runner, args.distributed_state, name)

    # 2. Sample held-out tasks, train, and sample them again from the same noise.
    before = evaluate("before")
    trainer = ContextSFTTrainer(model, args, train_dataset=train, peft_config=model_arguments.lora_config(model))
    train_on(trainer, folder)
    model.transformer.eval()
    after = evaluate("after")

    # 3. Compare both with the right answers.
    if args.process_index == 0 and before:
        truths = scenes.answers(published[1], settings, folder)
        write_comparison(folder, compare_scenes(before, after, store, truths), ("before", "after"))


def check_training(args: ContextSFTConfig) -> None:
    """Refuse, before any work, settings with which a training cannot be continued or followed."""
    from spatialalign_trl.trainer.rehearsal import check_trackers
    from spatialalign_trl.trainer.resuming import refuse_save_only_model

    refuse_save_only_model(args)
    check_trackers(args)


def rehearse_training(
    model: VideoModel,
    args: ContextSFTConfig,
    model_arguments: ModelArguments,
    scenes: SceneArguments,
    tasks: Dataset,
    settings: SamplingSettings,
    folder: Path,
) -> None:
    """Build the trainer on the first two tasks, before all are rendered and the held-out ones are sampled."""
    from spatialalign_trl.trainer.context_sft_trainer import ContextSFTTrainer
    from spatialalign_trl.trainer.rehearsal import rehearse

    with args.main_process_first(local=False, desc="preparing scenes"):
        examples = scenes.with_answers(tasks.select(range(min(2, len(tasks)))), settings, folder)
    rehearse(ContextSFTTrainer, model, args, examples, model_arguments.lora_config(model))


def train_on(trainer: ContextSFTTrainer, folder: Path) -> None:
    """Train, starting from the last complete checkpoint if there is one, and save the LoRA."""
    from spatialalign_trl.trainer.callbacks import SaveOnInterrupt
    from spatialalign_trl.trainer.checkpoints import last_whole_checkpoint

    interrupt = SaveOnInterrupt("the same command continues from there")
    trainer.add_callback(interrupt)
    try:
        trainer.train(resume_from_checkpoint=last_whole_checkpoint(folder, trainer.args.world_size))
    finally:
        interrupt.restore()
    trainer.save_model()


def sample_and_score(
    model: VideoModel,
    tasks: Dataset,
    settings: SamplingSettings,
    held_out: HeldOutArguments,
    store: SampleStore,
    runner: RewardRunner,
    processes: PartialState,
    name: str,
) -> list[Sample]:
    """Sample and score the held-out tasks. Samples and scores in the store are reused."""
    from spatialalign_trl.evaluation import EVALUATION_SEED
    from spatialalign_trl.rewards.scoring import score_samples
    from spatialalign_trl.rollout.sampler import roll_out

    if not held_out.evaluation_seeds:
        return []
    seeds = [EVALUATION_SEED + k for k in range(held_out.evaluation_seeds)]
    samples = roll_out(
        model,
        tasks,
        seeds,
        settings,
        store,
        policy_revision=revision(model),
        batch_size=held_out.rollout_batch_size,
        accelerator=processes,
        crf=held_out.video_crf,
        desc=f"sampling {name}",
    )
    return score_samples(samples, store, runner, accelerator=processes, desc=f"scoring {name}")


def revision(model: VideoModel) -> str:
    """Return a name for the weights and everything else that decides the videos, such as the context's layout."""
    from spatialalign_trl.models.lora import active_adapters, lora_fingerprint

    weights = lora_fingerprint(model.lora_state_dict()) if active_adapters(model.transformer) else "base"
    computation = hashlib.sha256(json.dumps(model.computation, sort_keys=True, default=str).encode()).hexdigest()[:8]
    return f"{model.name_or_path}@{weights} {computation}"


def launch(default_config: Path) -> None:
    """Run the command line of this recipe."""
    with launched():
        kinds = (SceneArguments, SceneRewardArguments, ContextSFTConfig, HeldOutArguments, ModelArguments)
        scenes, rewards, args, *others = parse_recipe(kinds, default_config)
        with lock_folder(args.output_dir, here=args.process_index == 0):
            main(scenes, rewards, args, *others)


if __name__ == "__main__":
    launch(DEFAULT_CONFIG)
