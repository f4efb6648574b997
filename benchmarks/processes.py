"""Measures the speed-up of rollouts and training with two gloo processes instead of one on the CPUs of one machine.

    python benchmarks/processes.py
    python benchmarks/processes.py --prompts 8 --pairs 4       # too little work to gain fully from a second process

Each turn starts the same work with torchrun in one process and in two, with one thread each: the same videos of the
embedded model, and steps over the same pairs of a random Wan. Times are wall times from the moment when all processes
are ready until all are done, without start-up, loading and the first training step. Both must give the same samples
and the same losses. The speed-up is the time of one process divided by that of two. It is at most 2, and only if two
cores are free, so the load of the machine is printed, too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, median
from typing import Any

from measuring import ratio

ONE, TWO = 1, 2
PARTS = ("rollouts", "a training step")
LOSS_TOLERANCE = 2e-4


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=4, help="videos per prompt")
    parser.add_argument("--batch_size", type=int, default=8, help="videos sampled at once by each process")
    parser.add_argument("--pairs", type=int, default=8, help="pairs per step, in all processes together")
    parser.add_argument("--steps", type=int, default=6, help="number of timed steps")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--work_in", type=Path, help=argparse.SUPPRESS)  # set in the processes that torchrun starts
    parser.add_argument(
        "--meet_in", type=Path, help=argparse.SUPPRESS
    )  # folder in which independent processes wait for each other
    from random_wan import add_size_arguments

    add_size_arguments(parser, layers=8, heads=4, head_dim=64, ffn_dim=1024)
    options = parser.parse_args()
    if options.pairs % TWO:
        parser.error(f"--pairs {options.pairs}: must be even, because two processes share the pairs.")
    return options


def launch(processes: int, *more: str) -> dict[str, Any]:
    """Run the work with torchrun and return the results of the first process."""
    with tempfile.TemporaryDirectory() as folder:
        torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--standalone"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [*torchrun, *sys.argv, "--work_in", folder, *more]
        process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{process.stderr}")
        return json.loads((Path(folder) / "results.json").read_text())


def launch_apart() -> dict[str, Any]:
    """Run all the work in two independent processes at the same time, and return the mean of their seconds."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(TWO) as both:
        results = list(both.map(lambda _: launch(ONE, "--meet_in", folder), range(TWO)))
    return {part: mean(result[part] for result in results) for part in PARTS}


def meet(folder: Path | None, part: str) -> None:
    """Wait until the other independent process reaches the same part, so that both are timed at the same time."""
    if folder is None:
        return
    (folder / f"{part}-{os.getpid()}").touch()
    while len(list(folder.glob(f"{part}-*"))) < TWO:
        time.sleep(0.005)


def work(options: argparse.Namespace) -> None:
    """Do one process's share of rollouts and training, and let the main process write the results."""
    import torch
    from accelerate import Accelerator

    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    folder = options.work_in
    results = {"processes": accelerator.num_processes, **roll_out_share(options, folder, accelerator)}
    results |= train_share(options, folder, accelerator)
    if accelerator.is_main_process:
        (folder / "results.json").write_text(json.dumps(results))
    accelerator.end_training()


def roll_out_share(options: argparse.Namespace, folder: Path, accelerator: Any) -> dict[str, Any]:
    """Sample this process's share of the videos; return the seconds and the ids of all samples."""
    from rollout import PROMPTS

    from spatialalign_trl.models import load_video_model
    from spatialalign_trl.prompts import load_prompts
    from spatialalign_trl.rollout import SampleStore, roll_out

    model = load_video_model("tiny", device="cpu")
    rows = list(load_prompts(str(PROMPTS), "test"))[: options.prompts]
    settings, store = model.default_settings(), SampleStore(folder / "samples")
    accelerator.wait_for_everyone()
    meet(options.meet_in, "rollouts")
    start = time.perf_counter()
    samples = roll_out(
        model,
        rows,
        list(range(options.seeds)),
        settings,
        store,
        batch_size=options.batch_size,
        accelerator=accelerator,
    )
    return {"rollouts": time.perf_counter() - start, "samples": [sample.sample_id for sample in samples]}


def train_share(options: argparse.Namespace, folder: Path, accelerator: Any) -> dict[str, Any]:
    """Train on this process's share of the pairs; return the seconds per step and the losses."""
    from random_wan import random_pairs, random_video_model
    from training import StepClock

    from spatialalign_trl.trainer import SpatialAlignConfig, SpatialAlignTrainer

    with accelerator.main_process_first():
        model = random_video_model(options, str(folder / "model"))
    clock = StepClock(time.perf_counter)
    args = SpatialAlignConfig(
        str(folder / "policy"),
        use_cpu=True,
        bf16=False,
        max_steps=options.steps + 1,
        per_device_train_batch_size=options.pairs // accelerator.num_processes,
        learning_rate=1e-3,
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    pairs = random_pairs(options.pairs * (options.steps + 1), options.latent_size)
    trainer = SpatialAlignTrainer(model, args, pairs, callbacks=[clock])
    meet(options.meet_in, "training")
    trainer.train()  # a step ends after the exchange of its gradients, so the clock covers all processes
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {"a training step": clock.seconds(), "losses": losses}


def check_agreement(one: dict[str, Any], two: dict[str, Any]) -> float:
    """Check that one and two processes made the same samples, and return the largest difference of the losses."""
    assert (one["processes"], two["processes"]) == (ONE, TWO), "torchrun started a different number of processes"
    assert one["samples"] == two["samples"], "one process and two made different samples"
    worst = max(abs(a - b) for a, b in zip(one["losses"], two["losses"], strict=True))
    assert worst <= LOSS_TOLERANCE, f"the losses of one process and two differ by {worst}"
    return worst


def free_cores(seconds: float = 2.0) -> float:
    """Measure how many of the cores available to this process are idle on average (NaN if this is not Linux)."""
    cores = {f"cpu{k}" for k in os.sched_getaffinity(0)} if hasattr(os, "sched_getaffinity") else set()

    def idle() -> float:
        lines = (line.split() for line in Path("/proc/stat").read_text().splitlines())
        ticks = sum(int(fields[4]) for fields in lines if fields and fields[0] in cores)
        return ticks / os.sysconf("SC_CLK_TCK")

    if not cores or not Path("/proc/stat").exists():
        return float("nan")
    before = idle()
    time.sleep(seconds)
    return (idle() - before) / seconds


def load() -> str:
    """Describe the load of the machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    average = f", load average {os.getloadavg()[0]:.2f}" if hasattr(os, "getloadavg") else ""
    return f"{cores} cores, of which {free_cores():.2f} idle{average}"


def main() -> None:
    """Launch all turns, check that they agree and print the ratios."""
    options = arguments()
    if options.work_in:
        work(options)
        return
    print(f"before: {load()}")
    results: dict[int, list[dict[str, Any]]] = {ONE: [], TWO: []}
    independent = []
    for _ in range(options.turns):
        for processes, launches in results.items():
            launches.append(launch(processes))
        independent.append(launch_apart())
    worst = max(check_agreement(*both) for both in zip(results[ONE], results[TWO], strict=True))
    print(f"the same {options.prompts * options.seeds} samples; losses differ by {worst:.1e} at most")
    for part in PARTS:
        one, two, bound = (
            [launched[part] for launched in launches] for launches in (results[ONE], results[TWO], independent)
        )
        print(f"{f'{part}, 1 process / 2':32}{ratio(one, two)}   ({median(one):.2f} / {median(two):.2f} s)")
        print(f"{'  the bound of this machine':32}{ratio([2 * seconds for seconds in one], bound)}")
    print(f"after: {load()}")


if __name__ == "__main__":
    main()
