"""Write recordings with known cameras in the file layouts of published data sets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from spatialalign_trl.tiny_world.rooms import Rendering
from spatialalign_trl.video import write_video


def stamps(number: int) -> list[int]:
    """Return the timestamps of frames in microseconds."""
    return [100_000 * i + 33_000 for i in range(number)]


def save_frames(folder: Path, frames: Sequence[np.ndarray], names: Sequence[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for frame, name in zip(frames, names, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(frame).save(folder / name)


def realestate10k(folder: Path, poses: np.ndarray, rendering: Rendering, with_video: bool, name: str = "clip") -> Path:
    """Write RealEstate10K's layout, with the frames as an mp4 or a folder, and return the text file."""
    k, (height, width) = rendering.intrinsics, rendering.frames.shape[1:3]
    shares = [k[0, 0] / width, k[1, 1] / height, (k[0, 2] + 0.5) / width, (k[1, 2] + 0.5) / height, 0, 0]
    lines = ["https://example.org/watch"]
    for stamp, pose in zip(stamps(len(poses)), poses, strict=True):
        lines.append(" ".join(map(str, [stamp, *shares, *np.linalg.inv(pose)[:3].ravel()])))
    (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    if with_video:
        write_video(folder / f"{name}.mp4", rendering.frames, 10, crf=0)
    else:
        save_frames(folder / name, rendering.frames, [f"{stamp}.png" for stamp in stamps(len(poses))])
    return folder / f"{name}.txt"
