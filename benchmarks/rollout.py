"""Compares `roll_out` with a loop that calls the pipeline for every video.

    python benchmarks/rollout.py
    python benchmarks/rollout.py --prompts 6 --seeds 5 --batch_size 30
    python benchmarks/rollout.py --device cuda --model Wan-AI/Wan2.1-T2V-1.3B-Diffusers --prompts 2 --seeds 2

    plain          calls `pipe(prompt, generator=...)` for every prompt and seed, and writes an mp4 of each video
    library        calls `roll_out` with an empty store: it batches over prompts and seeds, embeds every prompt once,
                   and writes latents, records and checksums in addition to the mp4s

Both use the same loaded pipeline, settings and noise. Their videos must agree within `--tolerance` levels of 255,
because batches of different sizes are rounded differently. The ways alternate in every turn. A ratio is the median
over the turns, followed by the quartiles in brackets. On a CPU, times are processor times of this process, which do
not include other jobs. On a GPU they are wall times until synchronisation.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from measuring import clock, in_turns, ratio, timed

from spatialalign_trl.models import load_video_model
from spatialalign_trl.models.base import VideoModel
from spatialalign_trl.models.settings import SamplingSettings
from spatialalign_trl.prompts import load_prompts
from spatialalign_trl.rollout import SampleStore, roll_out
from spatialalign_trl.rollout.sampler import noise_seed
from spatialalign_trl.video import read_video, write_video

PLAIN, LIBRARY = "plain", "library"
PROMPTS = Path(__file__).resolve().parents[1] / "datasets" / "tiny_world_prompts"


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="the embedded model, a pipeline folder or a Hub id")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=4, help="videos per prompt")
    parser.add_argument("--batch_size", type=int, default=16, help="batch size of the library")
    parser.add_argument(
        "--crf", type=int, default=0, help="quality of the mp4s; 0 is lossless, so that pixels can be compared"
    )
    parser.add_argument("--tolerance", type=int, default=1, help="largest allowed difference of pixels")
    parser.add_argument("--turns", type=int, default=5, help="number of times both ways are timed")
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


class TwoWays:
    """Samples the same videos in either way, each time into a new folder."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.model: VideoModel = load_video_model(options.model, device=options.device)
        self.settings: SamplingSettings = self.model.default_settings()
        self.rows = list(load_prompts(str(PROMPTS), "test"))[: options.prompts]
        self.seeds = list(range(options.seeds))

    def plain(self) -> list[Path]:
        """Call the pipeline once per video; return the mp4s, ordered by prompt and then by seed."""
        settings, pipe, paths = self.settings, self.model.pipeline, []
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        for row in self.rows:
            for seed in self.seeds:
                frames = pipe(
                    prompt=row["prompt"],
                    negative_prompt=settings.negative_prompt,
                    height=settings.height,
                    width=settings.width,
                    num_frames=settings.num_frames,
                    num_inference_steps=settings.num_inference_steps,
                    guidance_scale=settings.guidance_scale,
                    max_sequence_length=self.model.max_sequence_length,
                    generator=torch.Generator("cpu").manual_seed(noise_seed(seed, row["prompt_id"])),
                    output_type="np",
                ).frames[0]
                video = (frames * 255).round().astype(np.uint8)
                paths.append(write_video(folder / f"{len(paths)}.mp4", video, settings.fps, self.options.crf))
        return paths

    def library(self) -> list[Path]:
        """Call `roll_out`; return the mp4s in the same order as `plain`."""
        store = SampleStore(tempfile.mkdtemp(dir=self.folder))
        options = self.options
        samples = roll_out(
            self.model,
            self.rows,
            self.seeds,
            self.settings,
            store,
            batch_size=options.batch_size,
            crf=options.crf,
        )
        return [store.path(sample.sample_id, ".mp4") for sample in samples]


def check_videos(plain: list[Path], library: list[Path], tolerance: int) -> dict[str, Any]:
    """Check that the videos of both ways agree; return the largest difference and the share of equal values."""
    pairs = [(read_video(first).astype(int), read_video(second)) for first, second in zip(plain, library, strict=True)]
    differences = np.concatenate([np.abs(first - second).ravel() for first, second in pairs])
    largest = differences.max()
    assert largest <= tolerance, f"videos of plain and library differ by {largest} levels of 255"
    return {"largest": int(largest), "equal": float((differences == 0).mean())}


def main() -> None:
    """Check that both ways agree, time them and print the ratio."""
    options = arguments()
    with tempfile.TemporaryDirectory() as folder:
        ways = TwoWays(options, Path(folder))
        settings, count = ways.settings, options.prompts * options.seeds
        print(
            f"{count} videos ({options.prompts} prompts x {options.seeds} seeds) of {settings.num_frames} frames "
            f"{settings.height}x{settings.width}, {settings.num_inference_steps} steps, {options.model} on "
            f"{options.device}, {torch.get_num_threads()} threads, torch {torch.__version__}"
        )
        agreement = check_videos(ways.plain(), ways.library(), options.tolerance)
        print(
            f"videos agree: {agreement['equal']:.3%} of values are equal, "
            f"others differ by {agreement['largest']} at most"
        )
        now = clock(options.device)
        seconds = in_turns({PLAIN: timed(ways.plain, now), LIBRARY: timed(ways.library, now)}, options.turns)
        for way in (PLAIN, LIBRARY):
            print(f"{f'{way}, per video':26}{1000 * median(seconds[way]) / count:7.0f} ms")
        print(f"{'time, plain / library':26}{ratio(seconds[PLAIN], seconds[LIBRARY])}")


if __name__ == "__main__":
    main()
