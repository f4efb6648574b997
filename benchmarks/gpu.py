"""Measure a model of real size with random weights on one GPU, beside the forecast of `spatialalign plan`.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --model Wan-AI/Wan2.1-T2V-14B-Diffusers
    python benchmarks/gpu.py --tiny

The first line takes Wan 2.1 1.3B at 81x480x832, and 6 minutes on an H100 or H200. The last one takes the embedded
model, also on a CPU, and shows that the script runs.

Every row is measured on its own; a row that fails says why, and the next one goes on. Nothing is downloaded. The peak
is what PyTorch allocates, as in a plan; the share is of the card's bf16 matrix rate by its data sheet.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gc
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from plain_step import PlainStep

from spatialalign_trl.devices import default_device
from spatialalign_trl.files import write_json
from spatialalign_trl.models import efficiency
from spatialalign_trl.planning.architectures import PUBLISHED, Architecture, read_architecture
from spatialalign_trl.planning.cards import CARDS, GIB
from spatialalign_trl.planning.fake_model import build_model, fake_conditioning
from spatialalign_trl.planning.stages import ModelSetup, StageTracer, default_settings, optimizer_step
from spatialalign_trl.planning.tracing import Cost
from spatialalign_trl.trainer.lora import default_lora_config
from spatialalign_trl.trainer.spatialalign_config import SpatialAlignConfig

ROOT = Path(__file__).resolve().parents[1]
BACKENDS = ("_native_flash", "_native_efficient", "_native_cudnn", "xformers", "flash", "_flash_3")


@dataclass
class Row:
    """One measurement and its forecast: seconds, GiB, PFLOP."""

    name: str
    seconds: float | None = None
    peak: float | None = None
    forecast_peak: float | None = None
    pflop: float | None = None
    failure: str = ""

    def text(self, card_tflops: float | None) -> str:
        """Return the row as a line of a Markdown table."""
        if self.failure:
            return f"| {self.name} | {self.failure} | | | | |"
        rate = None if not self.pflop or not self.seconds else self.pflop * 1e3 / self.seconds
        share = f"{rate / card_tflops:.0%}" if rate and card_tflops else ""
        numbers = (self.peak, self.forecast_peak, rate)
        peak, forecast_peak, speed = ("" if number is None else f"{number:.2f}" for number in numbers)
        return f"| {self.name} | {self.seconds:.3f} | {peak} | {forecast_peak} | {speed} | {share} |"


class Bench:
    """
    The rows of one model on one device.

    Args:
        architecture ([`Architecture`]):
            The model.
        size (`tuple[int, int, int]`):
            Frames, height and width of the videos.
        device (`torch.device`):
            Where it computes.
        budget (`float`):
            Seconds after which no further row is begun.
    """

    def __init__(
        self, architecture: Architecture, size: tuple[int, int, int], device: torch.device, budget: float
    ) -> None:
        self.architecture, self.device = architecture, device
        self.deadline = time.monotonic() + budget
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.tracer = StageTracer(architecture, ModelSetup(*size, dtype=self.dtype))
        self.args = SpatialAlignConfig(
            output_dir=tempfile.gettempdir(),
            report_to="none",
            bf16=device.type == "cuda",
            use_cpu=device.type == "cpu",
            per_device_train_batch_size=1,
        )
        self.rows: list[Row] = []

    def run(
        self, name: str, prepare: Callable[[], Callable[[], object]], forecast: Cost | None, loaded: float
    ) -> None:
        """
        Measure one row: prepare, run once to warm up, and run once more.

        Args:
            name (`str`):
                The row.
            prepare (callable):
                Builds what is measured, and returns the function to measure.
            forecast ([`Cost`], *optional*):
                What a plan says.
            loaded (`float`):
                GiB of weights that the forecast's peak is above.
        """
        row = Row(name)
        if forecast is not None:
            row.forecast_peak, row.pflop = loaded + forecast.memory / GIB, forecast.flops / 1e15
        self.rows.append(row)
        if time.monotonic() > self.deadline:
            row.failure = "left out: no time"
        else:
            try:
                code = prepare()
                row.seconds, row.peak = self._measured(code)
            except Exception as error:  # the row says it; the others are tried all the same
                row.failure = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        print(row.text(self.card_tflops), flush=True)
        gc.collect()

    def _measured(self, code: Callable[[], object]) -> tuple[float, float | None]:
        code()
        gc.collect()
        if self.device.type != "cuda":
            start = time.perf_counter()
            code()
            return time.perf_counter() - start, None
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
        start = time.perf_counter()
        code()
        torch.cuda.synchronize()
        return time.perf_counter() - start, torch.cuda.max_memory_allocated() / GIB

    @property
    def card_tflops(self) -> float | None:
        """The card's bf16 rate by its data sheet."""
        if self.device.type != "cuda":
            return None
        name = torch.cuda.get_device_name().upper().replace(" ", "")
        return max((card.tflops or 0.0 for known, card in CARDS.items() if known in name), default=None)

    def model(self, keep_vae: bool = False):
        """Return a model with random weights on the device."""
        with torch.device(self.device):
            model = build_model(self.architecture, self.dtype)
        if not keep_vae:
            model.pipeline.vae = None
        return model

    # The rows

    def sampling(self) -> None:
        """Predict, decode and encode."""
        weights = self.tracer.weights
        network, vae = weights["transformer"] / GIB, weights["vae"] / GIB

        def predicting() -> Callable[[], object]:
            model = self.model()
            noisy = torch.randn(1, *self.tracer.latent_shape, device=self.device)
            sigma, conditioning = torch.full((1,), 0.8, device=self.device), self._conditioning(model)
            return torch.no_grad()(lambda: model.predict(noisy, sigma, conditioning))

        def coding(decodes: bool, tiling: bool) -> Callable[[], object]:
            model = self.model(keep_vae=True)
            setattr(model.pipeline, model.trained_component, None)
            model.save_vae_memory(tiling=tiling)
            setup = self.tracer.setup
            latents = torch.randn(1, *self.tracer.latent_shape, device=self.device)
            pixels = torch.zeros(1, 3, setup.num_frames, setup.height, setup.width, device=self.device)
            code = model._decode_to_pixels if decodes else model._encode_pixels
            return torch.no_grad()(lambda: code(latents if decodes else pixels))

        self.run("one prediction of the sampler", predicting, self.tracer.predict(), network)
        self.run("VAE decode", lambda: coding(True, False), self.tracer.decode(), vae)
        self.run("VAE decode, tiled", lambda: coding(True, True), self.tracer.decode(tiling=True), vae)
        self.run("VAE encode", lambda: coding(False, False), self.tracer.encode(), vae)

    def training(self) -> None:
        """Steps of the trainer with its settings, and a step with a copied reference."""
        network = self.tracer.weights["transformer"] / GIB
        for name, changes in (
            ("step, checkpointing", {"gradient_checkpointing": True}),
            ("step, checkpointing, separate_forward", {"gradient_checkpointing": True, "separate_forward": True}),
            ("step, checkpointing, reference read", {"gradient_checkpointing": True, "precompute_reference": True}),
            ("step, no checkpointing", {"gradient_checkpointing": False}),
        ):
            self.run(name, lambda c=changes: self._step(**c), self.tracer.training_step(self.args, **changes), network)
        self.run("step of plain_step.py, copied reference", self._plain_step, None, 0)

    def kernels(self) -> None:
        """A checkpointed step with every attention backend, and with weights stored in fewer bits."""
        forecast = self.tracer.training_step(self.args, gradient_checkpointing=True)
        network = self.tracer.weights["transformer"] / GIB
        for backend in BACKENDS:
            self.run(f"step, attention {backend}", lambda b=backend: self._step(backend=b), forecast, network)
        self.run("one prediction, weights in fp8", self._fp8, None, 0)
        self.run("step, weights in 4 bits (nf4)", self._four_bits, None, 0)

    def _step(self, backend: str | None = None, **changes: bool) -> Callable[[], object]:
        model, args = self.model(), copy.copy(self.args)
        for name, value in {"gradient_checkpointing": True, **changes}.items():
            setattr(args, name, value)
        if backend is not None:
            efficiency.set_attention_backend(model, backend)
        return optimizer_step(model, args, self.tracer.latent_shape)

    def _plain_step(self) -> Callable[[], object]:
        model = self.model()
        network = model.base_transformer
        if hasattr(network, "enable_gradient_checkpointing"):
            network.enable_gradient_checkpointing()
        lora = default_lora_config(model)
        plain = PlainStep(network, lora, learning_rate=1e-4, autocast=self.args.bf16)
        shape = (1, *self.tracer.latent_shape)
        batch = {side: torch.randn(shape, device=self.device) for side in ("chosen", "rejected")}
        return lambda: plain.step(batch | self._conditioning(model))

    def _fp8(self) -> Callable[[], object]:
        model = self.model()
        model.base_transformer.enable_layerwise_casting(torch.float8_e4m3fn, self.dtype)
        noisy = torch.randn(1, *self.tracer.latent_shape, device=self.device)
        sigma, conditioning = torch.full((1,), 0.8, device=self.device), self._conditioning(model)
        for name, value in conditioning.items():
            conditioning[name] = value.to(self.dtype)
        return torch.no_grad()(lambda: model.predict(noisy, sigma, conditioning))

    def _four_bits(self) -> Callable[[], object]:
        from bitsandbytes.nn import Linear4bit

        model = self.model()
        for parent in list(model.base_transformer.modules()):
            for name, child in list(parent.named_children()):
                if type(child) is torch.nn.Linear:
                    packed = Linear4bit(
                        child.in_features, child.out_features, child.bias is not None, self.dtype, quant_type="nf4"
                    )
                    packed.load_state_dict(child.state_dict())
                    setattr(parent, name, packed.to(self.device))
        return optimizer_step(model, self.args, self.tracer.latent_shape)

    def _conditioning(self, model) -> dict[str, torch.Tensor]:
        return {name: value.to(self.device) for name, value in fake_conditioning(model, 1).items()}

    def loop(self) -> None:
        """The default job's stages, in bf16 on a GPU."""

        def smoke() -> Callable[[], object]:
            precision = ["--dtype", "bfloat16", "--bf16", "true"] if self.device.type == "cuda" else ["--use_cpu"]
            recipe, config = ROOT / "recipes" / "spatialalign.py", ROOT / "recipes" / "configs" / "smoke.yaml"

            def run() -> None:
                with tempfile.TemporaryDirectory() as folder:
                    command = [sys.executable, recipe, "--config", config, "--output_dir", folder, *precision]
                    done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise RuntimeError(done.stderr.strip().splitlines()[-1])

            return _only_once(run)

        self.run("the loop of smoke.yaml, as a process", smoke, None, 0)


def _only_once(code: Callable[[], None]) -> Callable[[], None]:
    """Return a function that runs only the second time it is called: a process needs no warm-up."""
    calls: Iterator[bool] = iter((False, True))
    return lambda: code() if next(calls) else None


def main() -> None:
    """Measure all rows, and print them as a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="Wan-AI/Wan2.1-T2V-1.3B-Diffusers", choices=sorted(PUBLISHED))
    parser.add_argument("--tiny", action="store_true", help="the embedded model, also on a CPU")
    parser.add_argument("--budget", type=float, default=330, help="seconds after which no further row is begun")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    options = parser.parse_args()
    device = default_device()
    if device.type != "cuda" and not options.tiny:
        parser.error("no CUDA GPU here: use --tiny")
    architecture = read_architecture("tiny") if options.tiny else PUBLISHED[options.model]
    settings = default_settings(architecture)
    size = settings.num_frames, settings.height, settings.width
    bench = Bench(architecture, size, device, options.budget)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{architecture.name}, {bench.tracer.parameters:,} weights, {size}, {name}, torch {torch.__version__}\n")
    print("| | seconds | peak GiB | forecast GiB | TFLOP/s | of the card's |\n|---|---|---|---|---|---|")
    for rows in (bench.sampling, bench.training, bench.kernels, bench.loop):
        with contextlib.suppress(KeyboardInterrupt):
            rows()
    if options.json is not None:
        write_json(options.json, [vars(row) for row in bench.rows])


if __name__ == "__main__":
    main()
