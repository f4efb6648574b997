"""Compare ways to align the same model, from the same samples and pairs, with the same budget, over several seeds.

It prints one row per method, with prompt following *and* picture quality, and writes `comparison.json` and
`comparison.md`:

    base                     no training
    sft                      supervised fine-tuning on the winners
    dpo                      Diffusion-DPO without the zeroth-order term
    paper                    the paper's loss and hyper-parameters (learning rate 1e-4, lambda 0.5, its LoRA targets)
    paper_lr                 the same with the learning rate of the configuration
    one_round                the configuration, in one round
    tuned                    the configuration itself (recipes/configs/tiny.yaml, the default of the main job: two
                             rounds, the second on the samples of both)
    rounds_fresh             the second round on its own samples alone
    rounds_refreshed         the second round with the policy of the first one as reference

All but the last three train on the same base samples in one round. Every row takes the same total number of steps.

    accelerate launch recipes/compare_methods.py --output_dir runs/compare
    accelerate launch recipes/compare_methods.py --output_dir runs/tune --eval_split validation --methods tuned dpo

Simplified: a seed decides the LoRA's initialisation, the draw of pairs and the training noise. All rows share the
rollouts of the base model and the evaluation seeds. Running the same command again continues an interrupted run.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

from rich.console import Console
from rich.table import Table
from spatialalign import DEFAULT_CONFIG, build_loop

from spatialalign_trl.arguments.launch import check_launch, quiet_libraries
from spatialalign_trl.arguments.model import ModelArguments
from spatialalign_trl.arguments.parsing import parse_recipe
from spatialalign_trl.arguments.prompts import PromptArguments
from spatialalign_trl.arguments.rewards import RewardArguments
from spatialalign_trl.errors import near_miss
from spatialalign_trl.evaluation import bootstrap_interval, success_rate
from spatialalign_trl.files import write_atomic, write_json
from spatialalign_trl.models.ranges import SEED
from spatialalign_trl.online.config import OnlineSpatialAlignConfig
from spatialalign_trl.report.tables import markdown_table
from spatialalign_trl.safe_text import terminal_text

PAPER = {
    "zeroth_order_weight": 0.5,
    "beta": 1.0,
    "margin_clip": 5.0,
    "shared_noise": False,
    "min_sigma": 0.0,
    "max_sigma": 1.0,
    "pair_strategy": "threshold",
    "score_threshold": 0.7,
}
ONE_ROUND = {"num_rounds": 1}
TWO_ROUNDS = {"num_rounds": 2, "evaluate_every_round": True}
PAPER_LORA = {"lora_target_modules": None, "lora_r": 16, "lora_alpha": 16}

# Method -> (changes to the configuration, changes to the LoRA).
METHODS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sft": ({**ONE_ROUND, "loss_type": "sft", "zeroth_order_weight": 0.0}, {}),
    "dpo": ({**ONE_ROUND, "zeroth_order_weight": 0.0}, {}),
    "paper": ({**ONE_ROUND, **PAPER, "learning_rate": 1e-4}, PAPER_LORA),
    "paper_lr": ({**ONE_ROUND, **PAPER}, PAPER_LORA),
    "one_round": (ONE_ROUND, {}),
    "tuned": ({}, {}),
    "rounds_fresh": ({**TWO_ROUNDS, "pool_rounds": False}, {}),
    "rounds_refreshed": ({**TWO_ROUNDS, "pool_rounds": True, "refresh_reference": True}, {}),
}
QUALITY = ("sprite_shape", "sprite_kind", "sprite_color", "motion", "distance_to_real", "sharpness")


@dataclass
class CompareArguments:
    methods: list[str] = field(
        default_factory=lambda: list(METHODS), metadata={"help": f"Methods to compare, out of {', '.join(METHODS)}."}
    )
    seeds: Annotated[list[int], SEED] = field(
        default_factory=lambda: [0, 1, 2], metadata={"help": "Training seeds of every method."}
    )
    variants: list[str] = field(
        default_factory=list,
        metadata={"help": "More rows, for tuning: name:field=value,field=value changes fields of the configuration."},
    )


def parse_variants(texts: list[str]) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Parse variants such as `["hot:learning_rate=4e-3,max_steps=60"]` into methods like those above.

    Raises:
        ValueError: if a field is unknown.
    """
    known = OnlineSpatialAlignConfig.__dataclass_fields__
    methods = {}
    for text in texts:
        name, _, changes = text.partition(":")
        values: dict[str, Any] = {}
        for change in filter(None, changes.split(",")):
            key, _, value = change.partition("=")
            if key not in known:
                raise ValueError(f"variant {text!r}: unknown field {key!r}. {near_miss(key, known)}")
            values[key] = _literal(value)
        methods[name] = (values, {})
    return methods


def _literal(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def method_arguments(
    overrides: tuple[dict[str, Any], dict[str, Any]],
    seed: int,
    folder: Path,
    args: OnlineSpatialAlignConfig,
    model_arguments: ModelArguments,
) -> tuple[OnlineSpatialAlignConfig, ModelArguments]:
    """The configuration and the LoRA of a method with a seed, made anew: they are checked, and what follows from one
    field, such as the precision from `bf16`, is set again."""
    changes, lora_changes = overrides
    own = {
        "output_dir": str(folder),
        "samples_dir": str(folder.parent.parent / "samples"),
        "seed": seed,
        "data_seed": seed,
        "contact_sheet_prompts": args.contact_sheet_prompts if seed == 0 else 0,
        **changes,
    }
    if "gradient_checkpointing" in changes:
        own["activation_checkpointing"] = changes["gradient_checkpointing"]  # the same setting under its new name
    if args.max_steps > 0 and "max_steps" not in changes:
        own["max_steps"] = args.max_steps * args.num_rounds // changes.get("num_rounds", args.num_rounds)
    return dataclasses.replace(args, **own), dataclasses.replace(model_arguments, **lora_changes)


def run_method(
    overrides: tuple[dict[str, Any], dict[str, Any]],
    seed: int,
    folder: Path,
    prompt_arguments: PromptArguments,
    reward_arguments: RewardArguments,
    args: OnlineSpatialAlignConfig,
    model_arguments: ModelArguments,
) -> Any:
    """Run one method with one seed, and return the finished loop with its samples."""
    own, lora = method_arguments(overrides, seed, folder, args, model_arguments)
    loop = build_loop(prompt_arguments, reward_arguments, own, lora)
    loop.train()
    return loop


def summarize_runs(loops: list[Any], policy: str) -> dict[str, Any]:
    """Average a method over its seeds. The interval is over prompts; the videos of all seeds are pooled per prompt."""
    results = [loop.results[policy] for loop in loops]
    samples = [sample for loop in loops for sample in loop.evaluation_samples[policy]]
    base = [sample for loop in loops for sample in loop.evaluation_samples["base"]]
    names = [name for name in results[0] if name.startswith("S@") and not name.endswith("interval")]
    row = {name: fmean(result[name] for result in results) for name in (*names, "invalid_rate")}
    row["S@0.7_interval"] = list(bootstrap_interval(samples, 0.7))
    row["S@0.7_seeds"] = [result["S@0.7"] for result in results]
    if policy != "base":
        row["S@0.7_difference"] = success_rate([s.reward for s in samples], 0.7) - success_rate(
            [s.reward for s in base], 0.7
        )
        row["S@0.7_difference_interval"] = list(bootstrap_interval(samples, 0.7, base))
        rounds = [[r["evaluation"]["S@0.7"] for r in loop.results["rounds"] if "evaluation" in r] for loop in loops]
        row["S@0.7_by_round"] = [fmean(values) for values in zip(*rounds, strict=True)]
    row["quality"] = {
        name: fmean(r["quality"][name] for r in results) for name in QUALITY if name in results[0]["quality"]
    }
    return row


def table_rows(comparison: dict[str, dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of the printed table."""
    quality = list(next(iter(comparison.values()))["quality"])
    header = ["method", "S@0.5", "S@0.7 [95 %]", "over seeds", "by round", "S@0.8", "invalid", *quality]
    rows = []
    for name, row in comparison.items():
        low, high = row["S@0.7_interval"]
        seeds, rounds = row["S@0.7_seeds"], row.get("S@0.7_by_round", [])
        rows.append(
            [
                name,
                f"{row['S@0.5']:.3f}",
                f"{row['S@0.7']:.3f} [{low:.3f}, {high:.3f}]",
                f"{min(seeds):.3f} - {max(seeds):.3f}" if len(rounds) else "",
                " ".join(f"{value:.3f}" for value in rounds) if len(rounds) > 1 else "",
                f"{row['S@0.8']:.3f}",
                f"{row['invalid_rate']:.3f}",
                *(f"{row['quality'][name]:.3f}" for name in quality),
            ]
        )
    return header, rows


def main(
    compare: CompareArguments,
    prompt_arguments: PromptArguments,
    reward_arguments: RewardArguments,
    args: OnlineSpatialAlignConfig,
    model_arguments: ModelArguments,
) -> dict[str, dict[str, Any]]:
    known = METHODS | parse_variants(compare.variants)
    for name in compare.methods:
        if name not in known:
            raise ValueError(f"unknown method {name!r}. {near_miss(name, known)}")
    chosen = list(dict.fromkeys([*compare.methods, *parse_variants(compare.variants)]))
    out = Path(args.output_dir)
    for name in chosen:  # refuse a wrong value of the last method before the first one runs
        try:
            method_arguments(known[name], 0, out / name / "seed0", args, model_arguments)
        except (ValueError, TypeError) as error:
            raise ValueError(f"method {name!r}: {error}") from error
    arguments = (prompt_arguments, reward_arguments, args, model_arguments)
    comparison: dict[str, dict[str, Any]] = {}
    for name in chosen:
        loops = [run_method(known[name], seed, out / name / f"seed{seed}", *arguments) for seed in compare.seeds]
        if not comparison:
            comparison["base"] = summarize_runs(loops[:1], "base")
        comparison[name] = summarize_runs(loops, "aligned")
        header, rows = table_rows(comparison)
        write_json(out / "comparison.json", comparison)
        write_atomic(out / "comparison.md", (markdown_table(header, rows) + "\n").encode())
    table = Table(title=terminal_text(f"{len(compare.seeds)} seeds per method"))
    for name in header:
        table.add_column(terminal_text(name))
    for row in rows:
        table.add_row(*map(terminal_text, row))
    Console(width=200).print(table)
    return comparison


if __name__ == "__main__":
    check_launch()
    quiet_libraries()
    kinds = (CompareArguments, PromptArguments, RewardArguments, OnlineSpatialAlignConfig, ModelArguments)
    main(*parse_recipe(kinds, DEFAULT_CONFIG))
