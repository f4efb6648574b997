"""`spatialalign plan`: what a run takes of a GPU, in hours and on disk, without weights, a network or a GPU."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from spatialalign_trl.cli.parsing import Parser, positive, share
from spatialalign_trl.files import write_json
from spatialalign_trl.safe_text import printable_lines

if TYPE_CHECKING:
    from spatialalign_trl.arguments.model import ModelArguments
    from spatialalign_trl.arguments.prompts import PromptArguments
    from spatialalign_trl.models.settings import SamplingSettings
    from spatialalign_trl.online.config import OnlineSpatialAlignConfig
    from spatialalign_trl.planning.architectures import Architecture
    from spatialalign_trl.planning.forecast import Forecast
    from spatialalign_trl.planning.stages import StageTracer

DESCRIPTION = """\
Forecast a run of recipes/spatialalign.py from its YAML file: for every stage the peak memory, the operations and the
hours, and what the run takes on disk. Nothing is downloaded: the model is built from its published configuration, on
tensors that have shapes and no values, and goes through the code that a run goes through.

  spatialalign plan --config recipes/configs/wan2.1_t2v_14b.yaml --gpu 80GB --gpus 8 --tflops 350
  spatialalign plan --config recipes/configs/wan2.1_t2v_1.3b.yaml --gpu RTX4090 --num_frames 49
  spatialalign plan --config recipes/configs/tiny.yaml

Flags of the recipe override the YAML file, as in the recipe. If the run does not fit the card, the settings that save
memory are tried in order, and the first line of flags that fits is printed. The memory is what PyTorch allocates;
2 GiB for CUDA and 5 % for fragmentation are kept free."""


def build_parser() -> Parser:
    """Build the parser of `spatialalign plan`; flags that it does not know belong to the recipe."""
    from spatialalign_trl.planning.remedies import REMEDIES

    parser = Parser(prog="spatialalign plan", description=DESCRIPTION)
    parser.add_argument("--config", required=True, metavar="FILE", help="the run's YAML file")
    parser.add_argument(
        "--model",
        metavar="FOLDER_OR_ID",
        help="read the architecture from the config.json files of this folder or Hub repository, instead of from the "
        "list of published ones",
    )
    parser.add_argument("--gpu", metavar="CARD", help="the card: a name such as H100 or RTX4090, or a size, 80GB")
    parser.add_argument("--gpus", type=positive, default=1, metavar="N", help="number of GPUs (default: 1)")
    parser.add_argument(
        "--tflops",
        type=_above_zero,
        metavar="N",
        help="rate that a GPU reaches, in 10^12 operations per second (default: 40 %% of the named card's bf16 rate)",
    )
    parser.add_argument("--price", type=_above_zero, metavar="EUR", help="price of one GPU for one hour")
    parser.add_argument(
        "--win_rate", type=share, default=0.2, help="assumed share of videos that win, in 0 to 1 (default: 0.2)"
    )
    parser.add_argument(
        "--remedies",
        nargs="*",
        metavar="NAME",
        help=f"what may be tried if the run does not fit (default: all of {', '.join(REMEDIES)})",
    )
    parser.add_argument("--json", metavar="FILE", help="also write the forecast to this file; - prints it instead")
    return parser


def main(words: Sequence[str]) -> int:
    """Run the command. Returns 0 if the run fits or no card is given, 1 if it does not fit as it is."""
    parser = build_parser()
    args, recipe_words = parser.parse_known_args(list(words))
    from spatialalign_trl.arguments.launch import quiet_libraries
    from spatialalign_trl.planning.text import as_text

    quiet_libraries()
    try:
        plan = plan_recipe(args, recipe_words)
    except (OSError, ValueError) as error:
        parser.error(" ".join(str(error).split()))
    if args.json == "-":
        print(printable_lines(json.dumps(plan.to_dict(), indent=2)))
    else:
        print(printable_lines(as_text(plan)))
        if args.json is not None:
            write_json(Path(args.json), plan.to_dict())
    return 1 if plan.fits is False else 0


def plan_recipe(options: argparse.Namespace, recipe_words: Sequence[str] = ()) -> Forecast:
    """
    Forecast the run that a YAML file and the recipe's flags describe.

    Args:
        options (`argparse.Namespace`):
            The options of [`build_parser`].
        recipe_words (sequence of `str`, *optional*):
            Flags of the recipe, which override the YAML file.

    Returns:
        [`Forecast`]: with the remedy, if it does not fit the card.

    Raises:
        ValueError: for an unknown card, size, remedy or model; the message names the nearest known one.
        OSError: if a file or a repository cannot be read.
        SystemExit: with code 2 and one line, for a YAML file or flags that the recipe refuses.
    """
    # 1. What is independent of the model is checked first
    from spatialalign_trl.arguments.model import ModelArguments
    from spatialalign_trl.arguments.parsing import parse_recipe
    from spatialalign_trl.arguments.prompts import PromptArguments
    from spatialalign_trl.arguments.rewards import RewardArguments
    from spatialalign_trl.models.tiny import EMBEDDED_MODELS
    from spatialalign_trl.online.config import OnlineSpatialAlignConfig
    from spatialalign_trl.online.forecast import run_settings_of, workload_of
    from spatialalign_trl.planning.architectures import published_architecture, read_architecture
    from spatialalign_trl.planning.cards import ACHIEVED, find_card
    from spatialalign_trl.planning.forecast import forecast
    from spatialalign_trl.planning.process import memory_of_process, resident_memory
    from spatialalign_trl.planning.remedies import REMEDIES, Attempt, check_remedies, find_remedy
    from spatialalign_trl.planning.stages import check_quantization

    card = None if options.gpu is None else find_card(options.gpu)
    kinds = (PromptArguments, RewardArguments, OnlineSpatialAlignConfig, ModelArguments)
    recipe_words = ["--config", options.config, "--use_cpu", "true", *recipe_words]  # bf16 needs no GPU here
    parsed = parse_recipe(kinds, None, recipe_words, prog="spatialalign plan")
    prompts, _, args, model = parsed
    check_quantization(model.quantization)
    if model.variant is not None:
        raise ValueError(f"variant={model.variant!r}: a plan knows text-to-video models only. Leave variant out.")
    train_prompts, eval_prompts = _count_prompts(prompts)
    import spatialalign_trl.online.trainer  # noqa: F401 - what a run imports

    libraries = resident_memory()  # before anything is traced

    # 2. Build the model without weights
    if options.model is not None:
        architecture = read_architecture(options.model, model.model_revision)
    else:
        architecture = published_architecture(model.model_name_or_path)
    on_cpu = card is None and architecture.name in EMBEDDED_MODELS
    tracer, settings = _tracer(architecture, args, model, "float32" if on_cpu else "bfloat16")
    check_remedies(options.remedies or (), tracer)

    # 3. Forecast, and look for a remedy if it does not fit
    tflops = options.tflops
    if tflops is None and card is not None and card.tflops is not None:
        tflops = ACHIEVED * card.tflops
    workload = workload_of(args, tracer, train_prompts, eval_prompts, options.gpus, options.win_rate)
    saving = {"offload_encoders": model.offload_encoders, "vae_tiling": model.vae_tiling}
    run = run_settings_of(args, tracer, settings, **saving)
    plan = forecast(tracer, run, workload, card, tflops, options.price)
    if on_cpu:
        return dataclasses.replace(plan, process=memory_of_process(plan, tracer, libraries))
    if card is None:
        return plan
    start = Attempt(tracer, run, workload, {})
    remedies = REMEDIES if options.remedies is None else options.remedies
    return find_remedy(plan, start, card, tflops, options.price, remedies)


def _tracer(
    architecture: Architecture, args: OnlineSpatialAlignConfig, model: ModelArguments, default_dtype: str
) -> tuple[StageTracer, SamplingSettings]:
    """Return the tracer of a run's model, and the settings that it samples with."""
    import torch

    from spatialalign_trl.planning.stages import ModelSetup, StageTracer, default_settings

    options = dict(args.model_init_kwargs or {})
    settings = args.sampling_settings(default_settings(architecture, options))
    setup = ModelSetup(
        settings.num_frames,
        settings.height,
        settings.width,
        getattr(torch, model.dtype or default_dtype),
        model.quantization,
        options,
        dataclasses.replace(model, lora_path=None).lora_config,
    )
    return StageTracer(architecture, setup), settings


def _count_prompts(prompts: PromptArguments) -> tuple[int, int]:
    """Return the numbers of training and evaluation prompts, of sets that lie on this machine."""
    from spatialalign_trl.arguments.prompts import prompt_source

    sources = {"train_prompts": prompts.train_prompts, "eval_prompts": prompts.eval_prompts or prompts.train_prompts}
    for name, source in sources.items():
        if Path(prompt_source(source)).exists():
            continue
        if prompts.max_train_prompts is not None and prompts.max_eval_prompts is not None:
            return prompts.max_train_prompts, prompts.max_eval_prompts
        raise ValueError(
            f"{name}={source!r}: is not on this machine, and a plan asks no Hub. Pass --max_train_prompts and "
            "--max_eval_prompts."
        )
    train, evaluation = prompts.load()
    return len(train), len(evaluation)


def _above_zero(text: str) -> float:
    """Parse a number above 0; a type for `add_argument`."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value
