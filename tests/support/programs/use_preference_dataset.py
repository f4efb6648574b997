"""Use a preference dataset on the Hub as a stranger would: download it, stream it, and train on it.

Arguments: the dataset's name, the folder of a video model, the output folder. Writes `videos.json` into the output
folder: for `preferences` and `samples`, downloaded and streamed, the file name and the SHA-256 of the videos of every
row. Prints the loss of one step of Diffusion-DPO.
"""

import hashlib
import json
import sys
from pathlib import Path

from datasets import Video, load_dataset

from spatialalign_trl.models import load_video_model
from spatialalign_trl.trainer import DiffusionDPOConfig, DiffusionDPOTrainer

VIDEO_COLUMNS = {"preferences": ("chosen", "rejected"), "samples": ("video",)}


def videos_of(repo: str, config: str, streaming: bool) -> list[list[str]]:
    dataset = load_dataset(repo, config, split="train", streaming=streaming)
    for column in VIDEO_COLUMNS[config]:
        dataset = dataset.cast_column(column, Video(decode=False))
    rows = [[row[column] for column in VIDEO_COLUMNS[config]] for row in dataset]
    return [[f"{cell['path']} {hashlib.sha256(cell['bytes']).hexdigest()}" for cell in row] for row in rows]


def train_one_step(repo: str, model: str, output: Path) -> float:
    args = DiffusionDPOConfig(
        output_dir=str(output),
        max_steps=1,
        per_device_train_batch_size=2,
        use_cpu=True,
        bf16=False,
        report_to="none",
        gradient_checkpointing=False,
        logging_steps=1,
        disable_tqdm=True,
        save_strategy="no",
    )
    pairs = load_dataset(repo, "preferences", split="train")
    trainer = DiffusionDPOTrainer(model=load_video_model(model, device="cpu"), args=args, train_dataset=pairs)
    trainer.train()
    return trainer.state.log_history[0]["loss"]


def main(repo: str, model: str, output: Path) -> None:
    videos = {
        name: {config: videos_of(repo, config, streaming) for config in VIDEO_COLUMNS}
        for name, streaming in (("downloaded", False), ("streamed", True))
    }
    output.mkdir()
    (output / "videos.json").write_text(json.dumps(videos))
    print("loss", train_one_step(repo, model, output))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
