"""Compares DSR-Score's geometry on a batch of videos with one video at a time.

    python benchmarks/dsr_geometry.py
    python benchmarks/dsr_geometry.py --videos 16 256 4096 --frames 81 --turns 30

Both ways score the same random boxes, alternating in every turn, and must agree. A ratio is the median over the turns,
followed by the quartiles in brackets. Times are processor times of this process.
"""

from __future__ import annotations

import argparse
import time
from statistics import median, quantiles

import numpy as np

from spatialalign_rewards.dsr_score import score_tracks, score_tracks_batch
from spatialalign_trl.perception.tracks import FrameBoxes, Tracks
from spatialalign_trl.prompts import DSR_TYPES


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, nargs="+", default=[4, 32, 256, 1024], help="batch sizes")
    parser.add_argument("--frames", type=int, default=81, help="frames per video")
    parser.add_argument("--turns", type=int, default=15, help="number of times both ways are timed")
    return parser.parse_args()


def random_tracks(videos: int, frames: int) -> list[Tracks]:
    """Make tracks with both objects on every frame, at random positions."""
    corners = np.random.default_rng(0).uniform(0, 400, (videos, frames, 2, 2))
    sizes = np.random.default_rng(1).uniform(10, 80, (videos, frames, 2, 2))
    boxes = np.concatenate([corners, corners + sizes], axis=-1)
    return [
        Tracks([FrameBoxes(frame, ("fox", "stump"), video[frame]) for frame in range(frames)], frames)
        for video in boxes
    ]


def main() -> None:
    """Time both ways on every batch size and print the ratios."""
    options = arguments()
    print(f"{options.frames} frames per video, numpy {np.__version__}")
    for videos in options.videos:
        tracks = random_tracks(videos, options.frames)
        types = [DSR_TYPES[k % len(DSR_TYPES)] for k in range(videos)]
        animals, objects = ["fox"] * videos, ["stump"] * videos
        ratios, batch_times = [], []
        # Alternate, so that a change of the machine's speed affects both ways.
        for _ in range(options.turns):
            start = time.process_time()
            batched = score_tracks_batch(tracks, animals, objects, types)
            batch_times.append(time.process_time() - start)
            start = time.process_time()
            one_by_one = [score_tracks(*row) for row in zip(tracks, animals, objects, types, strict=True)]
            ratios.append((time.process_time() - start) / batch_times[-1])
        assert [result.score for result in batched] == [result.score for result in one_by_one]
        low, _, high = quantiles(ratios, n=4)
        per_video = 1e6 * median(batch_times) / videos
        print(
            f"{videos:6} videos: one by one / batched {median(ratios):5.2f} [{low:.2f}, {high:.2f}]   "
            f"({per_video:.0f} us per video, batched)"
        )


if __name__ == "__main__":
    main()
