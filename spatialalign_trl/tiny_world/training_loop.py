"""The training loop of the recipes that make the embedded models: small, resumable, without pickle."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from tqdm import tqdm

from spatialalign_trl.errors import near_miss
from spatialalign_trl.files import lock_folder, write_atomic


def rng_of(*key: int) -> np.random.Generator:
    """Make the generator of one step from `(seed, stage, step)`.

    It depends on nothing else, so a resumed run draws the same numbers as an uninterrupted one.
    """
    return np.random.default_rng(np.random.SeedSequence(key))


def write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write a safetensors file in one step."""
    write_atomic(path, save({name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}))


def run_stages(names: Sequence[str], stages: Mapping[str, Callable[[], None]], folder: Path) -> None:
    """
    Run the named stages in the order of `stages`, with the folder locked.

    Args:
        names (sequence of `str`):
            Stages to run.
        stages (`Mapping[str, Callable]`):
            Name of every stage -> function that runs it.
        folder (`Path`):
            Folder that the stages write to.

    Raises:
        ValueError: If a name is not a stage; nothing has run then.
        RuntimeError: If another process uses the folder.
    """
    unknown = set(names) - set(stages)
    if unknown:
        raise ValueError(f"stages={sorted(unknown)}: unknown. Choose from {', '.join(stages)}.")
    with lock_folder(folder):
        for name, run in stages.items():
            if name in names:
                run()


@dataclass(frozen=True)
class Hardware:
    """Where and in which type a network is trained.

    Attributes:
        device (`str`):
            `"cpu"` or `"cuda"`.
        bf16 (`bool`):
            Compute in bfloat16 where autocast allows it. Weights stay float32.
    """

    device: str = "cpu"
    bf16: bool = False

    @classmethod
    def choose(cls, device: str = "auto", precision: str = "auto") -> Hardware:
        """Choose the GPU if there is one, and bfloat16 where it is fast.

        Args:
            device (`"auto"`, `"cpu"` or `"cuda"`, *optional*):
                Where to train.
            precision (`"auto"`, `"fp32"` or `"bf16"`, *optional*):
                `"auto"` is bf16 on GPUs and on CPUs with AMX or AVX512-BF16. Other CPUs emulate it: a matrix product
                of 1024x1024 took 90 times as long as in float32 on an AVX2 machine.

        Raises:
            ValueError: If a value is unknown or the GPU is missing.
        """
        for name, value, choices in (
            ("device", device, ("auto", "cpu", "cuda")),
            ("precision", precision, ("auto", "fp32", "bf16")),
        ):
            if value not in choices:
                raise ValueError(f"{name}={value!r}: unknown. {near_miss(value, choices)}")
        if device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device='cuda': PyTorch finds no GPU. Use device: cpu or auto.")
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        # PyTorch has no public function for this.
        fast_cpu = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
        return cls(device, precision == "bf16" or (precision == "auto" and (device == "cuda" or fast_cpu)))

    def autocast(self) -> torch.autocast:
        """Return the context in which networks compute."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.bf16)


class TrainingLoop:
    """AdamW with warm-up, cosine decay and an exponential moving average of the weights, resumable from a checkpoint.

    Args:
        path (`Path`):
            Checkpoint, a safetensors file. If it exists, training resumes from it.
        module (`torch.nn.Module`):
            Network to train.
        steps (`int`):
            Total number of steps.
        learning_rate (`float`):
            Peak learning rate, reached after 200 steps.
        save_steps (`int`):
            Steps between checkpoints.
        flat (`float`, *optional*, defaults to `0.0`):
            Share of the steps, in [0, 1), after which the cosine decay begins.
    """

    def __init__(
        self, path: Path, module: torch.nn.Module, steps: int, learning_rate: float, save_steps: int, flat: float = 0.0
    ) -> None:
        self.path, self.module, self.steps, self.save_steps, self.flat = path, module, steps, save_steps, flat
        self.learning_rate = learning_rate
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), learning_rate, betas=(0.9, 0.98), weight_decay=1e-2, fused=True
        )
        self.average = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.start = self._resume()

    def _resume(self) -> int:
        """Load the checkpoint, if there is one, and return the number of finished steps."""
        if not self.path.exists():
            return 0
        tensors = load_file(self.path)
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors[f"parameter.{name}"])
                self.average[name].copy_(tensors[f"average.{name}"])
                # A weight without any gradient so far has no moments: those for time, while single frames are trained.
                if f"step.{name}" in tensors:
                    self.optimizer.state[parameter] = {
                        key: tensors[f"{key}.{name}"].to(parameter.device) for key in ("step", "exp_avg", "exp_avg_sq")
                    }
        return int(tensors["done"])

    def _save(self, done: int) -> None:
        tensors = {"done": torch.tensor(done)}
        for name, parameter in self.parameters.items():
            tensors |= {f"parameter.{name}": parameter, f"average.{name}": self.average[name]}
            tensors |= {f"{key}.{name}": value for key, value in self.optimizer.state[parameter].items()}
        write_tensors(self.path, tensors)

    def _rate(self, step: int) -> float:
        warm_up = min(1.0, (step + 1) / 200)
        progress = max(0.0, (step / self.steps - self.flat) / (1.0 - self.flat))
        return self.learning_rate * warm_up * 0.5 * (1.0 + np.cos(np.pi * progress))

    def run(
        self,
        loss_at: Callable[[int], tuple[torch.Tensor, dict[str, float]]],
        evaluate: Callable[[], dict[str, Any]] | None = None,
        eval_steps: int = 500,
    ) -> None:
        """Train the remaining steps, then put the averaged weights into the module.

        Args:
            loss_at (callable):
                `loss_at(step)` returns the loss and the numbers to show in the progress bar.
            evaluate (callable, *optional*):
                Measures the module with its averaged weights. The numbers go to a file of JSON lines beside the
                checkpoint. It must not draw from PyTorch's global generator.
            eval_steps (`int`, *optional*, defaults to `500`):
                Steps between two evaluations.
        """
        smooth: dict[str, float] = {}
        started = time.monotonic()
        bar = tqdm(range(self.start, self.steps), self.path.stem, initial=self.start, total=self.steps, mininterval=10)
        for step in bar:
            for group in self.optimizer.param_groups:
                group["lr"] = self._rate(step)
            loss, metrics = loss_at(step)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
            self.optimizer.step()
            # The average follows faster in the first steps, which still depend on the initialisation.
            decay = min(0.999, (1 + step) / (10 + step))
            torch._foreach_lerp_(
                list(self.average.values()), [p.detach() for p in self.parameters.values()], 1 - decay
            )
            smooth = {k: 0.98 * smooth.get(k, v) + 0.02 * v for k, v in metrics.items()}
            if step % 20 == 0:
                bar.set_postfix({k: f"{v:.4f}" for k, v in smooth.items()}, refresh=False)
            if (step + 1) % self.save_steps == 0 or step + 1 == self.steps:
                self._save(step + 1)
            if evaluate is not None and ((step + 1) % eval_steps == 0 or step + 1 == self.steps):
                with self.averaged():
                    measured = evaluate()
                row = {"step": step + 1, "seconds": round(time.monotonic() - started), **smooth, **measured}
                with self.path.with_suffix(".jsonl").open("a") as log:
                    log.write(json.dumps(row) + "\n")
        self.use_average()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Put the averaged weights into the module for the length of a block."""
        kept = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.use_average()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, parameter in self.parameters.items():
                    parameter.copy_(kept[name])

    def use_average(self) -> None:
        """Put the averaged weights into the module."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(self.average[name])
