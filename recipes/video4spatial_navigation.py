"""Teach a context-conditioned video model to follow a camera trajectory through a scene, from its own samples.

Every task is a recording of a scene and a trajectory of cameras. The model samples videos for the training tasks; a
reward finds the cameras of each video in the scene and says how well it follows (`rewards/scene_navigation.py`);
winners and losers are paired, a LoRA is trained with zeroth-order regularised Diffusion-DPO, and held-out scenes are
evaluated before and after with fixed seeds.

    accelerate launch recipes/video4spatial_navigation.py
    accelerate launch recipes/video4spatial_navigation.py \
        --config recipes/configs/video4spatial_navigation_wan2.1_1.3b.yaml

Without `--config` it runs `recipes/configs/video4spatial_navigation_tiny.yaml`: rendered rooms and the model that was
trained on them. Flags override the YAML. Rerunning the same line continues an interrupted run.

It leaves what `recipes/spatialalign.py` leaves, whose loop it runs, and `scene_metrics.json`: PSNR against the ground
truth and the rewards' factors, before and after, with 95 % intervals.

Video4Spatial (arXiv 2512.03040) trains such models with supervision only (`recipes/video4spatial_sft.py`) and has no
public code. That they are aligned by a reward too, and this reward, are ours. The reference of the preference loss is
the supervised model: the checkpoint itself, or with `lora_path` and `refresh_reference: true` its LoRA.

Simplified: as `recipes/spatialalign.py`; PSNR compares with one right answer.
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
        tell_metrics(loop, scenes)
    return results


def tell_metrics(loop: OnlineSpatialAlignTrainer, scenes: SceneArguments) -> None:
    """Compares both policies' videos with the right answers; writes `scene_metrics.json` and prints it."""
    from spatialalign_trl.evaluation.scene_metrics import compare_scenes, write_comparison

    _, published = scenes.load()
    truths = scenes.answers(published, loop.settings, loop.output_dir)
    base, aligned = (loop.evaluation_samples[name] for name in ("base", "aligned"))
    write_comparison(loop.output_dir, compare_scenes(base, aligned, loop.store, truths), ("base", "aligned"))


def launch(default_config: Path) -> None:
    """The command line of both tasks' recipes."""
    with launched():
        kinds = (SceneArguments, SceneRewardArguments, OnlineSpatialAlignConfig, ModelArguments)
        parsed = parse_recipe(kinds, default_config)
        main(*parsed, recipe=describe_recipe(parsed, default_config))


if __name__ == "__main__":
    launch(DEFAULT_CONFIG)
