"""Measures what the options of a training step cost.

    python benchmarks/trainer_step.py
    python benchmarks/trainer_step.py --pairs 8 --latent_size 5 8 12 --layers 4 --heads 4 --head_dim 32 --ffn_dim 512
    python benchmarks/trainer_step.py --device cuda --dtype bfloat16 --pairs 1 --latent_size 21 60 104 \
        --layers 30 --heads 12 --head_dim 128 --ffn_dim 8960 --text_tokens 512        # the size of Wan2.1-T2V-1.3B

One `SpatialAlignTrainer` with random weights computes the loss of one batch and its gradients repeatedly, with one
option switched on at a time. The options alternate in every turn, so that a change of the machine's speed affects all
of them. A ratio is the median over the turns, followed by the quartiles in brackets. On a CPU, times are processor
times of this process, which do not include other jobs. On a GPU they are wall times until synchronisation.

    separate_forward / batched       chosen and rejected one after the other / as one batch
    checkpointing / without          gradient checkpointing, which repeats the forward pass in the backward pass
      activations kept               bytes that the policy's graph keeps between forward and backward pass
    reference's share of a step      the forward pass without gradients, with the adapters off
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import torch
from measuring import clock, with_quartiles
from random_wan import add_size_arguments, random_pairs, random_video_model, tokens_per_video

from spatialalign_trl.trainer import SpatialAlignConfig, SpatialAlignTrainer
from spatialalign_trl.trainer.latents import collate_pairs

BATCHED, SEPARATE, CHECKPOINTING = "batched", "separate_forward", "checkpointing"


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=4, help="pairs in the batch")
    add_size_arguments(parser)
    parser.add_argument("--turns", type=int, default=15, help="number of times every option is timed")
    return parser.parse_args()


class Step:
    """Computes the loss of one batch and its gradients, with one option switched on."""

    def __init__(self, options: argparse.Namespace, folder: str) -> None:
        self.device = torch.device(options.device)
        self.now = clock(options.device)
        model = random_video_model(options, f"{folder}/model")
        self.base = model.transformer
        on_cpu = self.device.type == "cpu"
        args = SpatialAlignConfig(
            folder, use_cpu=on_cpu, bf16=not on_cpu, gradient_checkpointing=False, report_to="none", disable_tqdm=True
        )
        pairs = random_pairs(options.pairs, options.latent_size)
        self.trainer = SpatialAlignTrainer(model, args, pairs)
        self.trainer.model.train()
        items = [self.trainer.train_dataset[row] for row in range(options.pairs)]
        self.batch = self.trainer._prepare_inputs(collate_pairs(items))
        self.reference_seconds: list[float] = []

        # The reference has no method of its own, so time the calls without gradients.
        predict_pair = self.trainer._predict_pair

        def timed(*args: Any) -> Any:
            if torch.is_grad_enabled():  # the policy, which is not timed separately
                return predict_pair(*args)
            start = self.now()
            prediction = predict_pair(*args)
            self.reference_seconds.append(self.now() - start)
            return prediction

        self.trainer._predict_pair = timed

    def choose(self, choice: str) -> None:
        """Switch on one option and switch off the others."""
        self.trainer.args.separate_forward = choice == SEPARATE
        if choice == CHECKPOINTING:
            self.base.enable_gradient_checkpointing()
        else:
            self.base.disable_gradient_checkpointing()

    def loss(self) -> torch.Tensor:
        """Compute the loss of the batch."""
        with self.trainer.compute_loss_context_manager():
            return self.trainer.compute_loss(self.trainer.model, self.batch)

    def seconds(self, choice: str) -> float:
        """Time forward and backward pass with one option."""
        self.choose(choice)
        start = self.now()
        self.loss().backward()
        elapsed = self.now() - start
        self.trainer.model.zero_grad()
        return elapsed

    def activation_bytes(self, choice: str) -> int:
        """Return the bytes of the tensors that the graph keeps for the backward pass, without weights."""
        self.choose(choice)
        weights = {weight.untyped_storage().data_ptr() for weight in self.trainer.model.parameters()}
        saved: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                saved[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            self.loss()
        return sum(saved.values())

    def peak_bytes(self, choice: str) -> int:
        """Return the peak memory on the accelerator during a step, in bytes."""
        torch.accelerator.reset_peak_memory_stats()
        self.seconds(choice)
        return torch.accelerator.max_memory_allocated()


@contextlib.contextmanager
def new_step(options: argparse.Namespace) -> Iterator[Step]:
    """Build a step with a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        yield Step(options, folder)


def line(name: str, ratios: list[float]) -> str:
    """Format a line of the report."""
    return f"{name:34}{with_quartiles(ratios)}"


def take_turns(step: Step, turns: int, report: Callable[[str], None]) -> None:
    """Time every option in every turn and report the ratios."""
    for choice in (BATCHED, SEPARATE, CHECKPOINTING):
        step.seconds(choice)  # warm-up
    separate, checkpointed, share, batched = [], [], [], []
    for _ in range(turns):
        step.reference_seconds.clear()
        batched.append(step.seconds(BATCHED))
        share.append(step.reference_seconds[0] / batched[-1])
        separate.append(step.seconds(SEPARATE) / batched[-1])
        checkpointed.append(step.seconds(CHECKPOINTING) / batched[-1])
    report(f"{'one step, batched':34}{1:7.2f}   ({1000 * median(batched):.0f} ms)")
    report(line("separate_forward / batched", separate))
    report(line("checkpointing / without", checkpointed))
    kept = step.activation_bytes(CHECKPOINTING) / step.activation_bytes(BATCHED)
    report(f"{'  activations kept':34}{kept:7.2f}")
    report(line("reference's share of a step", share))
    if step.device.type != "cpu":
        peak = {choice: step.peak_bytes(choice) for choice in (BATCHED, SEPARATE, CHECKPOINTING)}
        for choice in (SEPARATE, CHECKPOINTING):
            report(f"{f'peak memory, {choice} / batched':34}{peak[choice] / peak[BATCHED]:7.2f}")


def main() -> None:
    """Measure all options and print the ratios."""
    options = arguments()
    with new_step(options) as step:
        weights = sum(weight.numel() for weight in step.base.parameters()) / 1e6
        print(
            f"{weights:.1f} M weights with LoRA, {options.pairs} pairs of {tokens_per_video(options)} tokens, "
            f"{options.device}, {options.dtype}, {torch.get_num_threads()} threads, torch {torch.__version__}"
        )
        take_turns(step, options.turns, print)


if __name__ == "__main__":
    main()
