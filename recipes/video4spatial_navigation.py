"""Teach a context-conditioned video model to follow a camera trajectory through a scene, from its own samples.

Every task is a recording of a scene and a trajectory of cameras. The model samples videos for the training tasks. A
reward locates the cameras of each video in the scene and measures how well they follow the trajectory
(`rewards/scene_navigation.py`). Winners and losers are paired, a LoRA is trained with zeroth-order regularised
Diffusion-DPO, and held-out scenes are evaluated before and after with fixed seeds.

    accelerate launch recipes/video4spatial_navigation.py
    accelerate launch recipes/video4spatial_navigation.py \
        --config recipes/configs/video4spatial_navigation_wan2.1_1.3b.yaml

Without `--config` it runs `recipes/configs/video4spatial_navigation_tiny.yaml`: rendered rooms and the model that was
trained on them. Flags override the YAML. Running the same command again continues an interrupted run.

It runs the loop of `recipes/spatialalign.py` and writes the same files. It also writes `scene_metrics.json`: PSNR
against the ground truth and the rewards' factors, before and after, with 95 % intervals.

Video4Spatial (arXiv 2512.03040) trains such models with supervision only (`recipes/video4spatial_sft.py`) and has no
public code. Aligning them with a reward, and this reward, are our additions. The reference of the preference loss is
the supervised model: the checkpoint itself, or its LoRA with `lora_path` and `refresh_reference: true`.

Simplified: as in `recipes/spatialalign.py`; PSNR compares with only one of the right answers.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from spatialalign import build_loop

from spatialalign_trl.arguments.launch import launched
from spatialalign_trl.arguments.model import ModelArguments
from spatialalign_trl.arguments.parsing import describe_recipe, parse_recipe
from spatialalign_trl.arguments.rewards import SceneRewardArguments
from spatialalign_trl.arguments.scenes import SceneArguments
from spatialalign_trl.online.config import OnlineSpatialAlignConfig

if TYPE_CHECKING:
    from spatialalign_trl.online.trainer import OnlineSpatialAlignTrainer
    from spatialalign_trl.trainer.model_card import Recipe

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "video4spatial_navigation_tiny.yaml"


def main(
    scenes: SceneArguments,
    rewards: SceneRewardArguments,
    args: OnlineSpatialAlignConfig,
    model_arguments: ModelArguments,
    recipe: Recipe | None = None,
) -> dict[str, object]:
    loop = build_loop(scenes, rewards, args, model_arguments)
    loop.recipe = recipe
    results = loop.train()
    if loop.accelerator.is_main_process and loop.evaluation_samples:
        write_scene_metrics(loop, scenes)
    return results


def write_scene_metrics(loop: OnlineSpatialAlignTrainer, scenes: SceneArguments) -> None:
    """Compare both policies' videos with the right answers, write `scene_metrics.json` and print the table."""
    from spatialalign_trl.evaluation.scene_metrics import compare_scenes, write_comparison

    _, published = scenes.load()
    truths = scenes.answers(published, loop.settings, loop.output_dir)
    base, aligned = (loop.evaluation_samples[name] for name in ("base", "aligned"))
    write_comparison(loop.output_dir, compare_scenes(base, aligned, loop.store, truths), ("base", "aligned"))


def launch(default_config: Path) -> None:
    """Run the command line that the recipes of both tasks share."""
    with launched():
        kinds = (SceneArguments, SceneRewardArguments, OnlineSpatialAlignConfig, ModelArguments)
        parsed = parse_recipe(kinds, default_config)
        main(*parsed, recipe=describe_recipe(parsed, default_config))


if __name__ == "__main__":
    launch(DEFAULT_CONFIG)
