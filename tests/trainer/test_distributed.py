"""Test two gloo processes on the CPU: they divide a step, draw different noise, and end with the same LoRA."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trainer_processes
from safetensors.torch import load_file
from tiny_pairs import assert_same_weights


def launch(folder: Path, processes: int, **options: Any) -> list[dict[str, Any]]:
    """Run processes, and return the results of each, with its LoRA under "lora"."""
    folder.mkdir()
    if processes == 1:
        trainer_processes.main(folder, dict(options))
    else:
        torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--standalone"]
        command = [*torchrun, trainer_processes.__file__, str(folder), json.dumps(options)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    results = [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(processes)]
    for rank, result in enumerate(results):
        assert result["world_size"] == processes  # some launchers silently start a single process
        result["lora"] = load_file(folder / f"lora-{rank}.safetensors")
    return results


@pytest.mark.slow
def test_two_processes_train_the_same_lora_as_a_single_one(tmp_path: Path) -> None:
    # SGD, because Adam divides by the size of the gradient, which amplifies rounding errors.
    options = {"pairs": 16, "max_steps": 4, "optim": "sgd", "learning_rate": 1.0, "gradient_checkpointing": True}
    options["evaluate"] = True
    two = launch(tmp_path / "2", 2, per_device_train_batch_size=2, gradient_accumulation_steps=2, **options)
    single = launch(tmp_path / "1", 1, per_device_train_batch_size=8, **options)[0]

    assert not set(two[0]["noises"]) & set(two[1]["noises"])  # although Trainer seeds all ranks alike
    assert sorted(two[0]["noises"] + two[1]["noises"]) == sorted(single["noises"])
    assert_same_weights(two[0]["lora"], two[1]["lora"])
    assert_same_weights(two[0]["lora"], single["lora"], atol=1e-6)
    assert two[0]["losses"] == pytest.approx(single["losses"], abs=1e-6)
    assert two[0]["eval"] == pytest.approx(single["eval"], abs=1e-5)  # 5 pairs: the padding is not counted
    saved = load_file(tmp_path / "2" / "out" / "pytorch_lora_weights.safetensors")
    assert_same_weights({k.removeprefix("transformer."): v for k, v in saved.items()}, two[0]["lora"])


@pytest.mark.slow
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_number_that_is_not_finite_in_one_process_stops_both(tmp_path: Path, what: str) -> None:
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1, "per_device_train_batch_size": 1}
    results = launch(tmp_path / "2", 2, pairs=8, stop={"rank": 1, "step": 2, "what": what}, **options)
    (row,) = json.loads((tmp_path / "2" / "rows.json").read_text())
    assert results[0]["error"] == results[1]["error"]
    assert f"after 2 of 4 steps, the {what} is not finite for train_dataset row" in results[0]["error"]
    assert f"train_dataset row {row} (" in results[0]["error"]
    assert "checkpoint-1 is sound; checkpoint-2 is kept too" in results[0]["error"]
    assert_same_weights(results[0]["lora"], results[1]["lora"])
    assert all(value.isfinite().all() for value in results[0]["lora"].values())


@pytest.mark.slow
def test_an_odd_number_of_pairs_neither_hangs_nor_drops_one(tmp_path: Path) -> None:
    """5 pairs in batches of 1 make 6 batches; the last repeats the first pair."""
    options = {"pairs": 5, "per_device_train_batch_size": 1, "num_train_epochs": 1, "max_steps": -1}
    results = launch(tmp_path / "2", 2, videos=True, separate_forward=True, **options)
    assert [result["steps"] for result in results] == [3, 3]
    assert [len(result["noises"]) for result in results] == [3, 3]
    assert not any(result["has_encoders"] for result in results)
    assert_same_weights(results[0]["lora"], results[1]["lora"])
