"""Two gloo processes on the CPU: they share one step, draw their own noise, and end with one LoRA."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import trainer_processes
from safetensors.torch import load_file


def launch(folder: Path, processes: int, **options: Any) -> list[dict[str, Any]]:
    """Runs the case and returns what each process saw, its LoRA under "lora"."""
    folder.mkdir()
    if processes == 1:
        trainer_processes.main(folder, dict(options))
    else:
        torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--standalone"]
        command = [*torchrun, trainer_processes.__file__, str(folder), json.dumps(options)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    seen = [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(processes)]
    for rank, one in enumerate(seen):
        assert one["world_size"] == processes  # some launchers quietly start a single process
        one["lora"] = load_file(folder / f"lora-{rank}.safetensors")
    return seen


def assert_same_lora(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], atol: float) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.slow
def test_two_processes_do_what_one_does(tmp_path: Path) -> None:
    # Adam divides by the gradient's size and makes rounding visible; plain gradient descent shows what was computed.
    options = {"pairs": 16, "max_steps": 4, "optim": "sgd", "learning_rate": 1.0, "gradient_checkpointing": True}
    options["evaluate"] = True
    two = launch(tmp_path / "2", 2, per_device_train_batch_size=2, gradient_accumulation_steps=2, **options)
    one = launch(tmp_path / "1", 1, per_device_train_batch_size=8, **options)[0]

    assert not set(two[0]["noises"]) & set(two[1]["noises"])  # Trainer seeds all ranks alike
    assert sorted(two[0]["noises"] + two[1]["noises"]) == sorted(one["noises"])
    assert_same_lora(two[0]["lora"], two[1]["lora"], atol=0)
    assert_same_lora(two[0]["lora"], one["lora"], atol=1e-6)
    assert two[0]["losses"] == pytest.approx(one["losses"], abs=1e-6)
    assert two[0]["eval"] == pytest.approx(one["eval"], abs=1e-5)  # 5 pairs: the padding is not counted
    saved = load_file(tmp_path / "2" / "out" / "pytorch_lora_weights.safetensors")
    assert_same_lora({k.removeprefix("transformer."): v for k, v in saved.items()}, two[0]["lora"], atol=0)


@pytest.mark.slow
def test_an_odd_number_of_pairs_neither_hangs_nor_drops_one(tmp_path: Path) -> None:
    """5 pairs in batches of 1: 6 batches, the last one a pair from the beginning again."""
    options = {"pairs": 5, "per_device_train_batch_size": 1, "num_train_epochs": 1, "max_steps": -1}
    seen = launch(tmp_path / "2", 2, videos=True, separate_forward=True, **options)
    assert [one["steps"] for one in seen] == [3, 3]
    assert [len(one["noises"]) for one in seen] == [3, 3]
    assert not any(one["has_encoders"] for one in seen)
    assert_same_lora(seen[0]["lora"], seen[1]["lora"], atol=0)
