"""Compares a step of `SpatialAlignTrainer.train` with a plain step and with a loop without a trainer.

    python benchmarks/training.py
    python benchmarks/training.py --layers 4 --heads 2 --head_dim 32 --ffn_dim 256 --pairs 1 --latent_size 1 4 4 \
        --steps 30 --turns 15                                                # small enough to show the overhead
    python benchmarks/training.py --device cuda --dtype bfloat16 --pairs 1 --latent_size 21 60 104 \
        --layers 30 --heads 12 --head_dim 128 --ffn_dim 8960 --text_tokens 512 --gradient_checkpointing  # Wan2.1-1.3B

Four ways are compared, with the same random weights, pairs and LoRA:

    plain          `plain_step.py`: a copied reference, four forward passes per step, batches in memory
    trainer        the default: one network, chosen and rejected as one batch, the reference with the adapters off
    precomputed    the trainer with `precompute_reference`, without the time for precomputing
    bare           a loop with the trainer's forward passes, loss, backward pass, clipping and optimizer step, on
                   noised inputs; trainer - bare is the trainer's overhead: reading pairs, noise, metrics, callbacks

First, plain repeats some steps of both trainers with the same noise and LoRA, and must get the same losses. Then the
ways alternate. A turn of a trainer is a call of `train()`; all steps but the first are timed, from the end of one step
to the end of the next. A ratio is the median over the turns, followed by the quartiles in brackets. On a CPU, times
are processor times of this process, which do not include other jobs. On a GPU they are wall times until
synchronisation. Peak memory is measured in a new process for each way, and excludes the loaded model.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import tempfile
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import torch
from measuring import (
    added_peak,
    can_measure_peak,
    clock,
    in_turns,
    peak_in_own_process,
    ratio,
    report_peak,
    with_quartiles,
)
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from plain_step import Batch, PlainStep
from random_wan import add_size_arguments, random_pairs, random_video_model, tokens_per_video
from transformers import PrinterCallback, TrainerCallback

from spatialalign_trl.models.base import VideoModel
from spatialalign_trl.trainer import SpatialAlignConfig, SpatialAlignTrainer
from spatialalign_trl.trainer.latents import collate_pairs
from spatialalign_trl.trainer.lora import default_lora_config
from spatialalign_trl.trainer.losses import Pair, zeroth_order_dpo_loss

PLAIN, TRAINER, PRECOMPUTED, BARE = "plain", "trainer", "precomputed", "bare"
LEARNING_RATE = 1e-3
TOLERANCE = {"float32": 1e-5, "bfloat16": 3e-2}
"""Largest allowed relative difference of plain's and the trainer's losses: their batch sizes round differently."""


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=2, help="pairs per batch")
    add_size_arguments(parser, layers=8, heads=4, head_dim=64, ffn_dim=1024)
    parser.add_argument(
        "--gradient_checkpointing", action="store_true", help="use gradient checkpointing in every way"
    )
    parser.add_argument("--steps", type=int, default=3, help="timed steps per turn")
    parser.add_argument("--turns", type=int, default=7, help="number of times every way is timed")
    parser.add_argument("--peak_of", choices=[PLAIN, TRAINER, PRECOMPUTED], help=argparse.SUPPRESS)
    return parser.parse_args()


class StepClock(TrainerCallback):
    """Records the time at the end of every step."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.ends: list[float] = []

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.ends.clear()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.ends.append(self.now())

    def seconds(self) -> float:
        """Return the average time of a step, without the first one."""
        return (self.ends[-1] - self.ends[0]) / (len(self.ends) - 1)


class Ways:
    """Builds the model, the pairs, and the trainers of the ways."""

    def __init__(self, options: argparse.Namespace, folder: str) -> None:
        self.options, self.folder = options, folder
        self.now = clock(options.device)
        self.model = self._model()
        self.pairs = random_pairs(options.pairs * (options.steps + 1), options.latent_size)

    def _model(self) -> VideoModel:
        return random_video_model(self.options, f"{self.folder}/model")

    def trainer(self, way: str) -> SpatialAlignTrainer:
        """Build a trainer. All trainers share one network, as those of consecutive rounds do."""
        on_cpu = self.options.device == "cpu"
        precompute = {"precompute_reference": True, "num_fixed_draws": 2} if way == PRECOMPUTED else {}
        args = SpatialAlignConfig(
            f"{self.folder}/{way}",
            use_cpu=on_cpu,
            bf16=not on_cpu,
            max_steps=self.options.steps + 1,
            per_device_train_batch_size=self.options.pairs,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            gradient_checkpointing=self.options.gradient_checkpointing,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **precompute,
        )
        trainer = SpatialAlignTrainer(self.model, args, self.pairs, callbacks=[StepClock(self.now)])
        trainer.remove_callback(PrinterCallback)
        return trainer

    def plain(self) -> PlainStep:
        """Build the plain step on a separate network."""
        model = self._model()
        if self.options.gradient_checkpointing:
            model.base_transformer.enable_gradient_checkpointing()
        lora = default_lora_config(model)
        autocast = self.options.device != "cpu"
        return PlainStep(model.base_transformer, lora, learning_rate=LEARNING_RATE, autocast=autocast)

    def batch(self, trainer: SpatialAlignTrainer) -> dict[str, Any]:
        """Return the first batch of a trainer."""
        items = [trainer.train_dataset[row] for row in range(self.options.pairs)]
        return trainer._prepare_inputs(collate_pairs(items))


def plain_batch(inputs: dict[str, Any]) -> Batch:
    """Convert the inputs of a trainer to a batch for `PlainStep`."""
    return {side: inputs[side] for side in ("chosen", "rejected")} | inputs["conditioning"]


@contextlib.contextmanager
def recorded(trainer: SpatialAlignTrainer) -> Iterator[list[tuple]]:
    """Record `(inputs, draws, loss)` of every step that the trainer takes in the `with` block."""
    steps: list[tuple] = []
    compute, draw = trainer._example_losses, trainer._draw

    def drawing(inputs: dict[str, Any]) -> Any:
        steps.append((inputs, draw(inputs)))
        return steps[-1][1]

    def computing(model: torch.nn.Module, inputs: dict[str, Any]) -> Any:
        losses, metrics = compute(model, inputs)
        steps[-1] += (losses.mean().item(),)
        return losses, metrics

    trainer._example_losses, trainer._draw = computing, drawing
    try:
        yield steps
    finally:
        del trainer._example_losses, trainer._draw


def check_losses(trainer: SpatialAlignTrainer, plain: PlainStep, tolerance: float) -> float:
    """Repeat steps of the trainer with plain, and return the largest relative difference of the losses."""
    plain.new_optimizer()
    set_peft_model_state_dict(plain.policy, get_peft_model_state_dict(trainer.model))
    with recorded(trainer) as steps:
        trainer.train()
    worst = 0.0
    for inputs, draws, loss in steps:
        plain_loss = plain.step(plain_batch(inputs), (draws.sigma, draws.noise._asdict())).item()
        worst = max(worst, abs(plain_loss - loss) / loss)
    assert worst <= tolerance, f"the losses of plain and trainer differ by {worst:.1e}"
    # At a loss of ln 2 policy and reference are equal, so the comparison would not cover the policy.
    assert max(abs(loss - math.log(2)) for *_, loss in steps) > 10 * tolerance, "the policy did not move"
    return worst


def bare_step(trainer: SpatialAlignTrainer, inputs: dict[str, Any]) -> Callable[[], None]:
    """Build a function that does the work of the trainer's step on one noised batch."""
    network, model = trainer.model, trainer.video_model
    trainable = [weight for weight in network.parameters() if weight.requires_grad]
    defaults = trainer.optimizer.optimizer.defaults
    same = {name: defaults[name] for name in ("lr", "betas", "eps", "weight_decay", "fused")}
    optimizer = torch.optim.AdamW(trainable, **same)
    draws = trainer._draw(inputs)
    clean, noise = torch.cat([inputs["chosen"], inputs["rejected"]]), torch.cat(draws.noise)
    sigma = draws.sigma.repeat(2)
    conditioning = {name: torch.cat([value, value]) for name, value in inputs["conditioning"].items()}
    noisy, target = model.add_noise(clean, noise, sigma), model.target(clean, noise, sigma)

    def step() -> None:
        with trainer.accelerator.autocast():
            with torch.no_grad(), network.disable_adapter():
                reference = model.predict(noisy, sigma, conditioning, transformer=network)
            policy = model.predict(noisy, sigma, conditioning, transformer=network)
            loss, _ = zeroth_order_dpo_loss(*(Pair(*both.chunk(2)) for both in (policy, reference, target)))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def weight_bytes(parameters: Any) -> int:
    """Return the bytes of parameters, counting shared storages once."""
    return sum({p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in parameters}.values())


def measure(options: argparse.Namespace, folder: str) -> None:
    """Compare losses, times, resident weights and peak memory of the ways, and print the ratios."""
    ways = Ways(options, folder)
    trainers = {way: ways.trainer(way) for way in (TRAINER, PRECOMPUTED)}
    plain = ways.plain()
    weights = {TRAINER: weight_bytes(trainers[TRAINER].model.parameters()), PLAIN: weight_bytes(plain.parameters())}
    print(
        f"{weights[TRAINER] / 2**20:.0f} MiB of weights with LoRA, "
        f"{options.pairs} pairs of {tokens_per_video(options)} tokens, "
        f"{options.device}, {options.dtype}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )

    # 1. Both trainers and plain must have the same losses.
    for way, trainer in trainers.items():
        worst = check_losses(trainer, plain, TOLERANCE[options.dtype])
        print(f"losses of {options.steps + 1} steps agree, plain and {way}: they differ by {worst:.1e} at most")

    # 2. Times.
    seconds = in_turns(clocked(ways, trainers, plain), options.turns)
    for way in (PLAIN, TRAINER, PRECOMPUTED, BARE):
        print(f"{f'{way}, one step':32}{1000 * median(seconds[way]):7.1f} ms")
    for above, below in ((TRAINER, PLAIN), (PRECOMPUTED, PLAIN), (TRAINER, BARE)):
        print(f"{f'time, {above} / {below}':32}{ratio(seconds[above], seconds[below])}")
    overhead = [1000 * (trainer - bare) for trainer, bare in zip(seconds[TRAINER], seconds[BARE], strict=True)]
    print(f"{'trainer - bare, ms per step':32}{with_quartiles(overhead)}")

    # 3. Memory.
    share = weights[TRAINER] / weights[PLAIN]
    print(f"{'resident weights, trainer / plain':32}{share:7.3f}")
    if not can_measure_peak(options.device):
        print("peak memory: on a CPU it is measured on Linux only")
        return
    peaks = {way: peak_in_own_process(way) for way in (PLAIN, TRAINER, PRECOMPUTED)}
    for way in (TRAINER, PRECOMPUTED):
        added = f"({peaks[way] / 2**20:.0f} / {peaks[PLAIN] / 2**20:.0f} MiB)"
        print(f"{f'peak without weights, {way} / plain':42}{peaks[way] / peaks[PLAIN]:7.2f} {added}")
        whole = peaks[way] + weights[TRAINER], peaks[PLAIN] + weights[PLAIN]
        sizes = f"({whole[0] / 2**20:.0f} / {whole[1] / 2**20:.0f} MiB)"
        print(f"{f'peak with weights, {way} / plain':42}{whole[0] / whole[1]:7.2f} {sizes}")


def clocked(ways: Ways, trainers: dict[str, SpatialAlignTrainer], plain: PlainStep) -> dict[str, Callable[[], float]]:
    """Build, for every way, a function that returns the seconds of a step."""
    inputs = ways.batch(trainers[TRAINER])
    bare, batch, now, steps = bare_step(trainers[TRAINER], inputs), plain_batch(inputs), ways.now, ways.options.steps

    def of_loop(step: Callable[[], Any]) -> float:
        step()  # not timed, as the first step of `train()`
        start = now()
        for _ in range(steps):
            step()
        return (now() - start) / steps

    def of_trainer(trainer: SpatialAlignTrainer) -> float:
        trainer.train()
        callbacks = trainer.callback_handler.callbacks
        return next(callback for callback in callbacks if isinstance(callback, StepClock)).seconds()

    return {
        PLAIN: lambda: of_loop(lambda: plain.step(batch)),
        TRAINER: lambda: of_trainer(trainers[TRAINER]),
        PRECOMPUTED: lambda: of_trainer(trainers[PRECOMPUTED]),
        BARE: lambda: of_loop(bare),
    }


def measure_peak(options: argparse.Namespace, folder: str) -> None:
    """Print the peak memory of the steps of one way in addition to the loaded model, as JSON."""
    ways = Ways(options, folder)
    trainer = ways.trainer(options.peak_of if options.peak_of != PLAIN else TRAINER)
    work = trainer.train
    if options.peak_of == PLAIN:
        batch = plain_batch(ways.batch(trainer))
        del ways.model, trainer
        plain = ways.plain()

        def work() -> None:
            for _ in range(options.steps + 1):
                plain.step(batch)

    # Warm up: this allocates the moments of AdamW and other buffers, and precomputes the reference.
    work()
    report_peak(added_peak(work, options.device))


def main() -> None:
    """Measure all ways, or the peak memory of one of them."""
    options = arguments()
    with tempfile.TemporaryDirectory() as folder:
        (measure_peak if options.peak_of else measure)(options, folder)


if __name__ == "__main__":
    main()
