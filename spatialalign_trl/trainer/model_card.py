"""Render the model card of a trained LoRA: what it is, how to load it in diffusers, and how it was trained."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData, constants

from spatialalign_trl.models.sources import hub_id
from spatialalign_trl.models.tiny import EMBEDDED_MODELS
from spatialalign_trl.safe_text import table_cell

if TYPE_CHECKING:
    from spatialalign_trl.models.base import VideoModel
    from spatialalign_trl.models.usage import LoraUsage


TEMPLATE = Path(__file__).resolve().parent / "templates" / "lora_model_card.md"
DIFFUSION_DPO = "2311.12908"
PAPERS = {
    "2602.22745": {"key": "spatialalign", "title": "SpatialAlign"},
    "2512.03040": {
        "key": "xiao2025video4spatial",
        "title": "Video4Spatial: Towards Visuospatial Intelligence with Context-Guided Video Generation",
        "author": "Zeqi Xiao and Yiwei Zhao and Lingxiao Li and Yushi Lan and Ning Yu and Rahul Garg and Roshni "
        "Cooper and Mohammad H. Taghavi and Xingang Pan",
        "year": "2025",
    },
    DIFFUSION_DPO: {
        "key": "wallace2023diffusion",
        "title": "Diffusion Model Alignment Using Direct Preference Optimization",
        "author": "Bram Wallace and Meihua Dang and Rafael Rafailov and Linqi Zhou and Aaron Lou and Senthil "
        "Purushwalkam and Stefano Ermon and Caiming Xiong and Shafiq Joty and Nikhil Naik",
        "year": "2023",
    },
}
"""Maps an arXiv number to the fields of its citation."""

PAIRS_OF_VIDEOS = "pairs of a chosen and a rejected video of the same prompt"
_MARKDOWN = "`*_[]"
"""The facts are Markdown, but no HTML, and no further cells."""
_VERSIONS = ("spatialalign-trl", "trl", "transformers", "diffusers", "peft", "torch")


@dataclass(frozen=True)
class VideoPair:
    """
    Two videos of the same prompt, one of the base model and one of the aligned model.

    Args:
        prompt (`str`):
            The prompt of both videos.
        before, after (`str`):
            Paths of the mp4 files, relative to the card.
        scores (`str`):
            The scores of both videos, as text.
    """

    prompt: str
    before: str
    after: str
    scores: str


@dataclass(frozen=True)
class Comparison:
    """
    An evaluation of the base model and of the aligned model.

    Args:
        prompts (`str`):
            A description of the prompts that were evaluated.
        table (`str`):
            The table of both models, in Markdown.
        metrics (`dict[str, float]`):
            The metrics of the aligned model.
        videos (`list[VideoPair]`, *optional*):
            The videos to show.
    """

    prompts: str
    table: str
    metrics: dict[str, float]
    videos: list[VideoPair] = field(default_factory=list)


@dataclass(frozen=True)
class Recipe:
    """
    How a run was launched.

    Args:
        command (`str`):
            The command line, without tokens.
        settings (`str`):
            YAML with all settings of the run, from its file and its flags. Passed to `--config`, it repeats the run.
    """

    command: str
    settings: str


def lora_model_card(
    model: VideoModel,
    *,
    model_name: str,
    repo: str,
    tags: list[str],
    trainer_name: str,
    formula: str,
    facts: dict[str, Any],
    results: dict[str, float],
    step: int,
    usage: LoraUsage,
    learns_from: str = PAIRS_OF_VIDEOS,
    dataset_name: str | None = None,
    papers: Sequence[str] = (),
    comparison: Comparison | None = None,
    recipe: Recipe | None = None,
) -> ModelCard:
    """
    Render the card.

    Args:
        model ([`VideoModel`]):
            The base model. Its name is left out of the metadata unless it is a Hub id, because it could be a path of
            this machine.
        model_name (`str`):
            The title of the card.
        repo (`str`):
            What the quick start loads: a Hub id or a folder.
        tags (`list[str]`):
            The tags of the metadata.
        trainer_name (`str`):
            The name of the method.
        formula (`str`):
            The loss, as text.
        facts (`dict[str, Any]`):
            How the LoRA was trained; every item is a row of a table.
        results (`dict[str, float]`):
            The last logged values; every item is a row of a table.
        step (`int`):
            The optimizer step of `results`.
        usage ([`LoraUsage`]):
            How the LoRA is used, for the quick start.
        learns_from (`str`, *optional*, defaults to `"pairs of a chosen and a rejected video of the same prompt"`):
            What the training data consists of.
        dataset_name (`str`, *optional*):
            Hub id of the training data.
        papers (sequence of `str`, *optional*):
            The papers to cite, as keys of `PAPERS`.
        comparison ([`Comparison`], *optional*):
            The evaluation before and after training.
        recipe ([`Recipe`], *optional*):
            How the run was launched.

    Returns:
        `huggingface_hub.ModelCard`.
    """
    # 1. The metadata: YAML that the Hub reads.
    base_model = hub_id(model.name_or_path)
    is_tiny = model.name_or_path in EMBEDDED_MODELS
    if base_model:
        base_model_text = f"[{base_model}](https://huggingface.co/{base_model})"
    else:
        base_model_text = "embedded in spatialalign-trl" if is_tiny else f"`{os.path.basename(model.name_or_path)}`"
    card_data = ModelCardData(
        library_name="diffusers",
        pipeline_tag="text-to-video",
        base_model=base_model,
        datasets=[dataset_name] if dataset_name else None,
        tags=sorted(set(tags)),
        model_name=model_name,
        eval_results=_eval_results(comparison) if comparison else None,
    )
    if comparison and comparison.videos:  # the Hub shows these as a gallery
        card_data.widget = [{"text": video.prompt, "output": {"url": video.after}} for video in comparison.videos]

    # 2. The text.
    return ModelCard.from_template(
        card_data,
        template_path=str(TEMPLATE),
        model_name=model_name,
        base_model_text=base_model_text,
        usage_code=usage.code(repo, base_model or (model.name_or_path if is_tiny else "path/to/the/base/model")),
        dataset_name=dataset_name,
        trainer_name=trainer_name,
        learns_from=learns_from,
        formula=formula,
        facts=[(table_cell(name, keep=_MARKDOWN), table_cell(value, keep=_MARKDOWN)) for name, value in facts.items()],
        results=[(name, f"{value:.6g}") for name, value in results.items()],
        step=step,
        versions=[(name, _version(name)) for name in _VERSIONS],
        papers=[{"id": paper, **PAPERS[paper]} for paper in papers],
        comparison=comparison,
        videos=[_escaped(video) for video in comparison.videos] if comparison else [],
        video_root=f"{constants.ENDPOINT}/{repo}/resolve/main/" if hub_id(repo) else "",
        recipe=recipe,
    )


def _escaped(pair: VideoPair) -> VideoPair:
    """Escape the texts of a pair for the cells of a table."""
    return replace(pair, prompt=table_cell(pair.prompt), scores=table_cell(pair.scores, keep=">"))


def _eval_results(comparison: Comparison) -> list[EvalResult]:
    """Return the metrics as the metadata's `model-index`."""
    return [
        EvalResult(
            task_type="text-to-video",
            task_name="Text-to-Video",
            dataset_type="prompts",
            dataset_name=comparison.prompts,
            metric_type=name,
            metric_name=f"{name}, aligned",
            metric_value=round(value, 4),
        )
        for name, value in comparison.metrics.items()
    ]


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except (
        ModuleNotFoundError
    ):  # PackageNotFoundError of importlib.metadata: run from a checkout that is not installed
        return "from source"
