"""Run the whole loop on a random pipeline and write a report; started by torchrun from test_processes.py."""

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from tiny_loop import config, luck, prompts  # noqa: E402

from spatialalign_trl.models import load_video_model
from spatialalign_trl.online.trainer import OnlineSpatialAlignTrainer


def main(folder: str, output: Path, batch: int) -> None:
    torch.set_num_threads(1)
    # SGD, because Adam divides by the size of the gradient and makes rounding visible.
    args = config(output / "run", optim="sgd", per_device_train_batch_size=batch, max_steps=2, rollout_batch_size=1)
    trainer = OnlineSpatialAlignTrainer(
        load_video_model(folder, device="cpu"), luck, args, prompts("train", "red"), prompts("eval", "blue")
    )
    results = trainer.train()
    rank = trainer.accelerator.process_index
    report = {"world": trainer.accelerator.num_processes, "base": results["base"], "rounds": results["rounds"]}
    (output / f"rank{rank}.json").write_text(json.dumps(report))
    trainer.accelerator.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
