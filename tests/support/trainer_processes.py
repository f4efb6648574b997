"""Run one process of a distributed run, started by torchrun from test_distributed.py; write its results as JSON."""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parent))
from tiny_pairs import latent_pairs, lora_of, spatialalign_trainer, video_pairs  # noqa: E402

from spatialalign_trl.trainer.finiteness import NonFiniteError  # noqa: E402


def stop_one_process(trainer, folder: Path, rank: int, step: int, what: str) -> None:
    """Make a loss or a gradient of one process NaN after a number of steps, and write what every process says."""
    original = trainer._example_losses
    weight = next(parameter for parameter in trainer.model.parameters() if parameter.requires_grad)

    def changed(model: torch.nn.Module, inputs: dict) -> tuple:
        losses, metrics = original(model, inputs)
        if trainer.args.process_index == rank and trainer.state.global_step == step:
            (folder / "rows.json").write_text(json.dumps(inputs["row"].tolist()))
            losses = losses * float("nan") if what == "loss" else losses + (weight - weight).sum().sqrt()
        return losses, metrics

    trainer._example_losses = changed
    try:
        trainer.train()
    except NonFiniteError as error:
        weights = {name: value.contiguous() for name, value in lora_of(trainer).items()}
        own = trainer.args.process_index
        save_file(weights, folder / f"lora-{own}.safetensors")
        result = {"world_size": trainer.accelerator.num_processes, "error": str(error)}
        (folder / f"rank-{own}.json").write_text(json.dumps(result))


def main(folder: Path, options: dict) -> None:
    torch.set_num_threads(1)
    count, videos = options.pop("pairs"), options.pop("videos", False)
    evaluate, stop = options.pop("evaluate", False), options.pop("stop", None)
    if evaluate:
        options["eval_dataset"] = latent_pairs(5, seed=3)
    trainer = spatialalign_trainer(
        folder / "out", train_dataset=(video_pairs if videos else latent_pairs)(count), **options
    )
    if stop is not None:
        stop_one_process(trainer, folder, **stop)
        return
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
