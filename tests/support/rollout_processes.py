"""Roll out with several processes and write a report of each; started by torchrun from test_sampler.py."""

import sys
from pathlib import Path

from accelerate import Accelerator

from spatialalign_trl.files import write_json
from spatialalign_trl.models import SamplingSettings, load_video_model
from spatialalign_trl.rollout import SampleStore, roll_out


def main(folder: str, output: Path) -> None:
    accelerator = Accelerator(cpu=True)
    model = load_video_model(folder, device="cpu")
    sampled = []
    sample = model.sample

    def counting(conditioning, negative, seeds, settings):
        sampled.extend(seeds)
        return sample(conditioning, negative, seeds, settings)

    model.sample = counting
    rows = [
        {"prompt_id": f"p{i}", "prompt": f"In a meadow, a fox is on the left of a stump {i // 2}", "type": "LR"}
        for i in range(3)
    ]
    settings = SamplingSettings(5, 16, 16, num_inference_steps=2, guidance_scale=3.0, negative_prompt="blurry", fps=8)
    store = SampleStore(output / "samples")
    samples = roll_out(model, rows, [0, 1], settings, store, accelerator=accelerator)
    report = {
        "world": accelerator.num_processes,
        "sampled": len(sampled),
        "ids": [sample.sample_id for sample in samples],
    }
    write_json(output / f"rank{accelerator.process_index}.json", report)
    accelerator.end_training()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
