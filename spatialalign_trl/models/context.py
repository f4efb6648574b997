"""What a context-conditioned model is told of a scene: which frames, where in time, and along which cameras.

Pure functions. Poses are camera-to-world matrices in OpenCV's axes (x right, y down, z into the picture), and
intrinsics in its pixels, whose middles are at whole numbers.

Source: Video4Spatial (arXiv 2512.03040), which has no public code. Each docstring says what is our reading of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from spatialalign_trl.video import Video

RAY_CHANNELS = 6
"""Of a Pluecker ray: its direction d (unit length) and its moment o x d about the world's origin."""

CAMERA_NUMBERS = 16
"""Of a packed camera: rotation (9, by rows), centre (3), fx/width, fy/height, cx/width, cy/height. All zero: none."""

BOX_COLOUR = (255, 0, 0)


def choose_context_frames(
    count: int,
    wanted: int | None = None,
    context_poses: np.ndarray | None = None,
    target_poses: np.ndarray | None = None,
) -> list[int]:
    """
    Which frames of a context the model sees: long contexts are thinned to what attention can hold.

    Without poses they are spread evenly over the context. With the poses of both the context and the target they are
    taken greedily, each next one so that the target's cameras come nearest to a chosen one; two cameras are as far
    apart as the distance of their centres, in units of the context's extent, plus the angle between their views in
    units of 90 degrees. The last frame, from which the video goes on, is always among them.

    Args:
        count (`int`):
            Frames of the context.
        wanted (`int`, *optional*):
            How many are chosen; `None`: all. A context that has fewer gives some of them twice, so that contexts of
            different lengths fit one batch.
        context_poses (`np.ndarray` of shape `(count, 4, 4)`, *optional*):
            Only the choice uses them; the model does not see them.
        target_poses (`np.ndarray` of shape `(frames, 4, 4)`, *optional*):
            The trajectory that is asked for.

    Returns:
        `list[int]`: in the order of time.

    Source: the paper samples non-contiguous context frames; that their choice looks at the trajectory is ours.
    """
    if count < 1 or (wanted is not None and wanted < 1):
        raise ValueError(f"{wanted} of {count} context frames: both must be at least 1")
    if wanted is None or wanted == count:
        return list(range(count))
    if wanted > count or wanted == 1 or context_poses is None or target_poses is None:
        return [count - 1] if wanted == 1 else np.linspace(0, count - 1, wanted).round().astype(int).tolist()
    apart = _camera_distances(np.asarray(target_poses, float), np.asarray(context_poses, float))
    chosen = [count - 1]
    nearest = apart[:, -1]
    while len(chosen) < wanted:
        gains = np.maximum(nearest[:, None] - apart, 0).sum(0)
        gains[chosen] = -1
        chosen.append(int(gains.argmax()))
        nearest = np.minimum(nearest, apart[:, chosen[-1]])
    return sorted(chosen)


def _camera_distances(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    centres = [poses[:, :3, 3] for poses in (some, others)]
    extent = max(float(np.linalg.norm(np.ptp(centres[1], axis=0))), 1e-6)
    far = np.linalg.norm(centres[0][:, None] - centres[1][None], axis=-1) / extent
    cosine = (some[:, None, :3, 2] * others[None, :, :3, 2]).sum(-1)
    return far + np.arccos(np.clip(cosine, -1, 1)) / (np.pi / 2)


def context_positions(numbers: Sequence[int], frames_per_latent: int, *, contiguous: bool = False) -> list[float]:
    """
    Where context frames lie on RoPE's time axis, on which the video's latent frames are 0, 1, 2, ...:

        p_i = (n_i - n_last)/frames_per_latent - 1

    so that the gaps between context frames stay, in the video's own unit of time, and the last one comes right before
    the video. A model whose positions are contiguous whatever the gaps (the paper's ablation) has `-K, ..., -2, -1`.

    Args:
        numbers (`list[int]`):
            Frame numbers in the recording from which the context was taken, in the order of time.
        frames_per_latent (`int`):
            Of the VAE (Wan: 4).
        contiguous (`bool`, *optional*, defaults to `False`):
            The ablation.

    Source: the paper says that non-contiguously sampled context frames have matching, non-contiguous time indices.
    That the context comes before the video, the unit, and fractions between two latent frames are our reading.
    """
    if any(later < earlier for earlier, later in zip(numbers, numbers[1:], strict=False)):
        raise ValueError(f"context frames are numbered {list(numbers)}: give them in the order of time")
    if contiguous:
        return [float(i - len(numbers)) for i in range(len(numbers))]
    return [(number - numbers[-1]) / frames_per_latent - 1.0 for number in numbers]


def as_poses(value: Any, name: str, count: int | None = None) -> np.ndarray:
    """
    Poses from a dataset's cell.

    Args:
        value (nested lists or array of shape `(frames, 4, 4)` or `(frames, 3, 4)`, or flattened to 16 or 12 numbers):
            Camera-to-world.
        name (`str`):
            The column, for errors.
        count (`int`, *optional*):
            How many there have to be.

    Returns:
        `np.ndarray` of shape `(frames, 4, 4)`.
    """
    poses = np.asarray(value, float)
    poses = poses.reshape(len(poses), -1) if poses.ndim > 1 else poses.reshape(1, -1)
    if poses.shape[1] not in (12, 16) or not np.isfinite(poses).all():
        raise ValueError(f"{name}: expected finite 4x4 or 3x4 camera-to-world matrices, got shape {np.shape(value)}")
    if count is not None and len(poses) != count:
        raise ValueError(f"{name}: {len(poses)} poses for {count} frames")
    full = np.tile(np.eye(4), (len(poses), 1, 1))
    full[:, :3] = poses[:, :12].reshape(-1, 3, 4)
    rotation = full[:, :3, :3]
    if np.abs(rotation @ rotation.transpose(0, 2, 1) - np.eye(3)).max() > 1e-2:
        raise ValueError(f"{name}: a pose's 3x3 part is no rotation (scale and shear have to be taken out)")
    return full


def as_intrinsics(value: Any, height: int, width: int) -> np.ndarray:
    """
    `(fx/width, fy/height, cx/width, cy/height)` from a 3x3 matrix (or its 9 numbers) or `(fx, fy, cx, cy)` in pixels.

    Pixels' middles are at whole numbers, so the middle of the picture is `((width - 1)/2, (height - 1)/2)`; what is
    returned counts from the picture's corner, and the middle is 0.5.
    """
    numbers = np.asarray(value, float).flatten()
    if numbers.size == 9:
        numbers = numbers[[0, 4, 2, 5]]
    if numbers.size != 4 or not (np.isfinite(numbers).all() and (numbers[:2] > 0).all()):
        raise ValueError(f"intrinsics: expected a 3x3 matrix or (fx, fy, cx, cy) in pixels, got {value!r}")
    return (numbers + [0, 0, 0.5, 0.5]) / [width, height, width, height]


def pack_cameras(poses: np.ndarray, intrinsics: np.ndarray, origin: np.ndarray) -> torch.Tensor:
    """
    Cameras as the conditioning carries them, relative to one of them.

    Args:
        poses (`np.ndarray` of shape `(frames, 4, 4)`):
            Camera-to-world.
        intrinsics (`np.ndarray` of shape `(4,)`):
            From [`as_intrinsics`].
        origin (`np.ndarray` of shape `(4, 4)`):
            The camera-to-world that becomes the identity.

    Returns:
        `torch.Tensor` of shape `(frames, CAMERA_NUMBERS)`, fp32.
    """
    relative = np.linalg.inv(origin) @ poses
    parts = [relative[:, :3, :3].reshape(-1, 9), relative[:, :3, 3], np.tile(intrinsics, (len(poses), 1))]
    return torch.from_numpy(np.concatenate(parts, axis=1)).float()


def pluecker_rays(cameras: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """
    Rays through the middles of a grid of patches, `(d, o x d)` with `d = R K^-1 (x, y, 1)` of unit length.

    Args:
        cameras (`torch.Tensor` of shape `(..., CAMERA_NUMBERS)`):
            From [`pack_cameras`]; rays of cameras that are all zero are zero.
        rows, columns (`int`):
            Of the grid.

    Returns:
        `torch.Tensor` of shape `(..., rows, columns, RAY_CHANNELS)`, fp32.
    """
    cameras = cameras.float()
    there = cameras.abs().sum(-1) > 0
    rotation = cameras[..., :9].unflatten(-1, (3, 3))
    centre, intrinsics = cameras[..., 9:12], cameras[..., 12:]
    y = (torch.arange(rows, device=cameras.device) + 0.5) / rows
    x = (torch.arange(columns, device=cameras.device) + 0.5) / columns
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
    focal = torch.where(there[..., None], intrinsics[..., :2], 1.0)
    pixels = (grid - intrinsics[..., None, None, 2:]) / focal[..., None, None, :]
    directions = torch.cat([pixels, torch.ones_like(pixels[..., :1])], dim=-1)
    # No matrix product: under autocast it would be one of bfloat16.
    directions = (rotation[..., None, None, :, :] * directions[..., None, :]).sum(-1)
    directions = torch.nn.functional.normalize(directions, dim=-1)
    moments = torch.linalg.cross(centre[..., None, None, :].expand_as(directions), directions)
    return torch.cat([directions, moments], dim=-1) * there[..., None, None, None]


def latent_cameras(cameras: torch.Tensor, frames_per_latent: int) -> torch.Tensor:
    """
    The cameras of every latent frame: the first frame has a latent frame of its own, later ones share one.

    Args:
        cameras (`torch.Tensor` of shape `(batch, frames, CAMERA_NUMBERS)`):
            Of the frames.
        frames_per_latent (`int`):
            Of the VAE.

    Returns:
        `torch.Tensor` of shape `(batch, latent frames, frames_per_latent, CAMERA_NUMBERS)`; the first frame's camera
        stands there `frames_per_latent` times.
    """
    first = cameras[:, :1].expand(-1, frames_per_latent, -1)
    return torch.cat([first, cameras[:, 1:]], dim=1).unflatten(1, (-1, frames_per_latent))


def draw_boxes(video: Video, boxes: Sequence[Sequence[float] | None]) -> Video:
    """
    The auxiliary bounding box: outlines of the target, drawn into the frames of a video to learn from.

    Args:
        video (`np.ndarray` of shape `(frames, height, width, 3)`, `uint8`):
            Left as it is.
        boxes (list of `(x0, y0, x1, y1)` in pixels or `None`):
            One a frame; frames with `None` or an empty list get no box.

    Source: the paper trains grounding with an auxiliary bounding box of the target (without it, instructions are
    followed 0.540 of the time instead of 0.649). That the box is part of the picture the model generates, so that it
    says what it takes for the target, is our reading; colour (red) and width (1/60 of the height) are ours.
    """
    if len(boxes) != len(video):
        raise ValueError(f"{len(boxes)} boxes for {len(video)} frames; give one a frame, None where there is none")
    drawn = video.copy()
    height, width = video.shape[1:3]
    line = max(1, round(height / 60))
    for frame, box in zip(drawn, boxes, strict=True):
        if not box:
            continue
        x0, y0, x1, y1 = (int(round(v)) for v in np.clip(box, 0, [width, height, width, height]))
        if x1 - x0 < 2 or y1 - y0 < 2:
            continue
        inner = slice(y0 + line, max(y0 + line, y1 - line)), slice(x0 + line, max(x0 + line, x1 - line))
        inside = frame[inner].copy()
        frame[y0:y1, x0:x1] = BOX_COLOUR
        frame[inner] = inside
    return drawn
