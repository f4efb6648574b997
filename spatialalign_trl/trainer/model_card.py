"""The model card of a trained LoRA: what it is, how to load it in diffusers, and how it was made."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData, constants

from spatialalign_trl.models.sources import hub_id
from spatialalign_trl.models.tiny import EMBEDDED_MODELS

if TYPE_CHECKING:
    from spatialalign_trl.models.base import VideoModel


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
"""arXiv number -> what a citation says of it."""

_EXAMPLE_PROMPT = "In a meadow, a cat is on the left of a box, then the cat jumps to the right of the box."
_EXAMPLE_INSTRUCTION = "Find the green plant."
_VERSIONS = ("spatialalign-trl", "trl", "transformers", "diffusers", "peft", "torch")


@dataclass(frozen=True)
class VideoPair:
    """
    Args:
        prompt (`str`):
            What was asked for.
        before, after (`str`):
            Paths of mp4 files beside the card.
        scores (`str`):
            Of both, in words.
    """

    prompt: str
    before: str
    after: str
    scores: str


@dataclass(frozen=True)
class Comparison:
    """
    Before and after.

    Args:
        prompts (`str`):
            What was evaluated on, in words.
        table (`str`):
            Markdown.
        metrics (`dict[str, float]`):
            Of the aligned model.
        videos (`list[VideoPair]`):
            A few.
    """

    prompts: str
    table: str
    metrics: dict[str, float]
    videos: list[VideoPair] = field(default_factory=list)


@dataclass(frozen=True)
class Recipe:
    """
    Args:
        command (`str`):
            The line that was run, without tokens.
        settings (`str`):
            YAML with all that it set, from its file and its flags: `--config` of it runs the same again.
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
    dataset_name: str | None = None,
    papers: Sequence[str] = (),
    comparison: Comparison | None = None,
    recipe: Recipe | None = None,
) -> ModelCard:
    """
    Renders the card.

    Args:
        model ([`VideoModel`]):
            The base model; a name that is no Hub id stays out of the metadata (it would be a path of this machine).
        model_name (`str`):
            The title.
        repo (`str`):
            What the quick start loads: a Hub id or a folder.
        tags (`list[str]`):
            Tags of the metadata.
        trainer_name (`str`):
            Name of the method.
        formula (`str`):
            The loss, as text.
        facts (`dict[str, Any]`):
            How it was trained, one row each.
        results (`dict[str, float]`):
            Last logged values, one row each.
        step (`int`):
            The optimizer step of `results`.
        dataset_name (`str`, *optional*):
            Hub id of the preference dataset.
        papers (sequence of `str`, *optional*):
            Keys of `PAPERS`, to cite.
        comparison ([`Comparison`], *optional*):
            Before and after.
        recipe ([`Recipe`], *optional*):
            What was run.
    """
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
    if comparison and comparison.videos:  # the Hub's gallery
        card_data.widget = [{"text": one.prompt, "output": {"url": one.after}} for one in comparison.videos]
    return ModelCard.from_template(
        card_data,
        template_path=str(TEMPLATE),
        model_name=model_name,
        base_model_text=base_model_text,
        base_model_source=base_model or (model.name_or_path if is_tiny else "path/to/the/base/model"),
        row_columns=", ".join(model.conditioning_columns),
        is_tiny=is_tiny,
        dataset_name=dataset_name,
        repo=repo,
        trainer_name=trainer_name,
        example_prompt=json.dumps(_example_prompt(model, comparison), ensure_ascii=False),
        settings=model.default_settings(),
        load_options="".join(f", {name}={value!r}" for name, value in model.lora_load_options.items()),
        formula=formula,
        facts=list(facts.items()),
        results=[(name, f"{value:.6g}") for name, value in results.items()],
        step=step,
        versions=[(name, _version(name)) for name in _VERSIONS],
        papers=[{"id": paper, **PAPERS[paper]} for paper in papers],
        comparison=comparison,
        video_root=f"{constants.ENDPOINT}/{repo}/resolve/main/" if hub_id(repo) else "",
        recipe=recipe,
    )


def _example_prompt(model: VideoModel, comparison: Comparison | None) -> str:
    """What the quick start asks for: of a model of scenes an instruction, one that was evaluated if there are any."""
    if not model.conditioning_columns:
        return _EXAMPLE_PROMPT
    return comparison.videos[0].prompt if comparison and comparison.videos else _EXAMPLE_INSTRUCTION


def _eval_results(comparison: Comparison) -> list[EvalResult]:
    """The metadata's `model-index`."""
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
    except ModuleNotFoundError:  # importlib.metadata's PackageNotFoundError: run from a checkout
        return "from source"
