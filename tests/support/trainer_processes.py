"""Run one process of a distributed run, started by torchrun from test_distributed.py; write its results as JSON."""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parent))
from tiny_pairs import latent_pairs, lora_of, spatialalign_trainer, video_pairs  # noqa: E402


def main(folder: Path, options: dict) -> None:
    torch.set_num_threads(1)
    count, videos = options.pop("pairs"), options.pop("videos", False)
    evaluate = options.pop("evaluate", False)
    if evaluate:
        options["eval_dataset"] = latent_pairs(5, seed=3)
    trainer = spatialalign_trainer(
        folder / "out", train_dataset=(video_pairs if videos else latent_pairs)(count), **options
    )
    noises = []
    draw = trainer._draw

    def recording_draw(inputs: dict) -> tuple:
        draws = draw(inputs)
        noises.extend(float(value) for value in draws.noise.chosen.flatten(1).sum(1))
        return draws

    trainer._draw = recording_draw
    trainer.train()
    results = {
        "world_size": trainer.accelerator.num_processes,
        "steps": trainer.state.global_step,
        "noises": list(noises),
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "has_encoders": trainer.video_model.has_encoders,
    }
    if evaluate:
        results["eval"] = {k: v for k, v in trainer.evaluate().items() if "per_second" not in k and "runtime" not in k}
    rank = trainer.args.process_index
    save_file({k: v.contiguous() for k, v in lora_of(trainer).items()}, folder / f"lora-{rank}.safetensors")
    trainer.save_model()
    (folder / f"rank-{rank}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
