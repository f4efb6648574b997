"""Prepare what a context-conditioned model sees of a scene: which frames, at which times, along which cameras.

All functions are pure. Poses are camera-to-world matrices in OpenCV's axes (x right, y down, z into the picture).
Intrinsics are in OpenCV's pixels, whose centres are at whole numbers.

Source: Video4Spatial (arXiv 2512.03040), which has no public code. Each docstring says what the paper leaves open.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from spatialalign_trl.video import Video

RAY_CHANNELS = 6
"""Numbers of a Pluecker ray: its direction d (unit length) and its moment o x d about the world's origin."""

FOURIER_OCTAVES = 4
FOURIER_CHANNELS = RAY_CHANNELS + 2 * FOURIER_OCTAVES * 6
"""Numbers of a ray with Fourier features: the Pluecker ray, and sines and cosines of its direction and origin."""
FOURIER_METRES = 8.0
"""Longest period, in metres, of the features of an origin."""

CAMERA_NUMBERS = 16
"""Numbers of a packed camera: rotation (9, row by row), centre (3), fx/width, fy/height, cx/width, cy/height.

All zero means that there is no camera."""

BOX_COLOUR = (255, 0, 0)
"""RGB colour of the boxes that [`draw_boxes`] draws."""


def choose_context_frames(
    count: int,
    wanted: int | None = None,
    context_poses: np.ndarray | None = None,
    target_poses: np.ndarray | None = None,
) -> list[int]:
    """
    Choose the frames of a context that the model sees, so that a long context fits into the attention.

    Without poses, the frames are spread evenly over the context. With the poses of both the context and the target,
    they are chosen greedily: each next frame reduces the distance from the target's cameras to their nearest chosen
    camera the most. The distance of two cameras is that of their centres, in units of the context's extent, plus the
    angle between their views, in units of 90 degrees. The last frame is always chosen: the video continues from it.

    Args:
        count (`int`):
            Number of frames of the context.
        wanted (`int`, *optional*):
            Number of frames to choose. `None`: all. If the context has fewer, some are chosen twice, so that contexts
            of different lengths fit into one batch.
        context_poses (`np.ndarray` of shape `(count, 4, 4)`, *optional*):
            Camera-to-world matrices of the context. Only the choice uses them; the model does not see them.
        target_poses (`np.ndarray` of shape `(frames, 4, 4)`, *optional*):
            Camera-to-world matrices of the requested trajectory.

    Returns:
        `list[int]`: indices of the chosen frames, in the order of time.

    Raises:
        ValueError: if `count` or `wanted` is below 1.

    Source: the paper samples non-contiguous context frames. Choosing them by the trajectory is our addition.
    """
    if count < 1 or (wanted is not None and wanted < 1):
        raise ValueError(f"{wanted} of {count} context frames: both numbers must be at least 1.")
    if wanted is None or wanted == count:
        return list(range(count))
    if wanted > count or wanted == 1 or context_poses is None or target_poses is None:
        return [count - 1] if wanted == 1 else np.linspace(0, count - 1, wanted).round().astype(int).tolist()
    distances = _camera_distances(np.asarray(target_poses, float), np.asarray(context_poses, float))
    chosen = [count - 1]
    nearest = distances[:, -1]
    while len(chosen) < wanted:
        gains = np.maximum(nearest[:, None] - distances, 0).sum(0)
        gains[chosen] = -1
        chosen.append(int(gains.argmax()))
        nearest = np.minimum(nearest, distances[:, chosen[-1]])
    return sorted(chosen)


def _camera_distances(targets: np.ndarray, context: np.ndarray) -> np.ndarray:
    """Return the distance of every target camera to every context camera, of shape `(targets, context)`."""
    target_centres, context_centres = targets[:, :3, 3], context[:, :3, 3]
    extent = max(float(np.linalg.norm(np.ptp(context_centres, axis=0))), 1e-6)
    between_centres = np.linalg.norm(target_centres[:, None] - context_centres[None], axis=-1) / extent
    cosine = (targets[:, None, :3, 2] * context[None, :, :3, 2]).sum(-1)
    return between_centres + np.arccos(np.clip(cosine, -1, 1)) / (np.pi / 2)


def context_positions(numbers: Sequence[int], frames_per_latent: int, *, contiguous: bool = False) -> list[float]:
    """
    Return the positions of context frames on RoPE's time axis, on which the video's latent frames are 0, 1, 2, ...:

        p_i = (n_i - n_last)/frames_per_latent - 1

    The gaps between context frames are kept, in the time unit of the video, and the last context frame comes right
    before the video. Contiguous positions (the paper's ablation) are `-K, ..., -2, -1`, whatever the gaps.

    Args:
        numbers (`list[int]`):
            Numbers of the context frames in their recording, in the order of time.
        frames_per_latent (`int`):
            Time stride of the VAE (Wan: 4).
        contiguous (`bool`, *optional*, defaults to `False`):
            Whether to ignore the gaps.

    Returns:
        `list[float]`: one position per context frame.

    Raises:
        ValueError: if the numbers are not in the order of time.

    Source: the paper says that non-contiguously sampled context frames have matching, non-contiguous time indices. Our
    reading is that the context comes before the video, the unit, and fractions between two latent frames.
    """
    if any(later < earlier for earlier, later in zip(numbers, numbers[1:], strict=False)):
        raise ValueError(f"context frames are numbered {list(numbers)}. Pass them in the order of time.")
    if contiguous:
        return [float(i - len(numbers)) for i in range(len(numbers))]
    return [(number - numbers[-1]) / frames_per_latent - 1.0 for number in numbers]


def as_poses(value: Any, name: str, count: int | None = None) -> np.ndarray:
    """
    Convert a dataset's cell to poses.

    Args:
        value (nested lists or array of shape `(frames, 4, 4)` or `(frames, 3, 4)`, or flattened to 16 or 12 numbers):
            Camera-to-world matrices.
        name (`str`):
            The column's name in errors.
        count (`int`, *optional*):
            The required number of poses.

    Returns:
        `np.ndarray` of shape `(frames, 4, 4)`.

    Raises:
        ValueError: if the shape or the number is wrong, a number is not finite, or a 3x3 part is not a rotation.
    """
    poses = np.asarray(value, float)
    poses = poses.reshape(len(poses), -1) if poses.ndim > 1 else poses.reshape(1, -1)
    if poses.shape[1] not in (12, 16) or not np.isfinite(poses).all():
        raise ValueError(f"{name}: expected finite 4x4 or 3x4 camera-to-world matrices, got shape {np.shape(value)}.")
    if count is not None and len(poses) != count:
        raise ValueError(f"{name}: {len(poses)} poses for {count} frames. Pass one pose per frame.")
    full = np.tile(np.eye(4), (len(poses), 1, 1))
    full[:, :3] = poses[:, :12].reshape(-1, 3, 4)
    rotation = full[:, :3, :3]
    if np.abs(rotation @ rotation.transpose(0, 2, 1) - np.eye(3)).max() > 1e-2:
        raise ValueError(f"{name}: the 3x3 part of a pose is not a rotation. Remove scale and shear.")
    return full


def as_intrinsics(value: Any, height: int, width: int) -> np.ndarray:
    """
    Convert a dataset's cell to intrinsics in units of the picture: `(fx/width, fy/height, cx/width, cy/height)`.

    Args:
        value (3x3 matrix, its 9 numbers, or `(fx, fy, cx, cy)`):
            In pixels with centres at whole numbers, so the centre of the picture is `((width - 1)/2, (height - 1)/2)`.
        height, width (`int`):
            Size of the picture in pixels.

    Returns:
        `np.ndarray` of shape `(4,)`. It counts from the corner of the picture, so the centre of the picture is 0.5.

    Raises:
        ValueError: if the shape is wrong, a number is not finite, or a focal length is not positive.
    """
    numbers = np.asarray(value, float).flatten()
    if numbers.size == 9:
        numbers = numbers[[0, 4, 2, 5]]
    if numbers.size != 4 or not (np.isfinite(numbers).all() and (numbers[:2] > 0).all()):
        raise ValueError(
            f"intrinsics={value!r}: expected a 3x3 matrix or (fx, fy, cx, cy), finite, in pixels, with focal lengths "
            "above 0."
        )
    return (numbers + [0, 0, 0.5, 0.5]) / [width, height, width, height]


def pack_cameras(poses: np.ndarray, intrinsics: np.ndarray, origin: np.ndarray) -> torch.Tensor:
    """
    Pack cameras into the rows of numbers that the conditioning carries, relative to an origin.

    Args:
        poses (`np.ndarray` of shape `(frames, 4, 4)`):
            Camera-to-world matrices.
        intrinsics (`np.ndarray` of shape `(4,)`):
            From [`as_intrinsics`].
        origin (`np.ndarray` of shape `(4, 4)`):
            The camera-to-world matrix that becomes the identity.

    Returns:
        `torch.Tensor` of shape `(frames, CAMERA_NUMBERS)`, fp32.
    """
    relative = np.linalg.inv(origin) @ poses
    parts = [relative[:, :3, :3].reshape(-1, 9), relative[:, :3, 3], np.tile(intrinsics, (len(poses), 1))]
    return torch.from_numpy(np.concatenate(parts, axis=1)).float()


def pluecker_rays(cameras: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """
    Return the Pluecker rays through the centres of a grid of patches: `(d, o x d)`, `d = R K^-1 (x, y, 1)` normalised.

    Args:
        cameras (`torch.Tensor` of shape `(..., CAMERA_NUMBERS)`):
            From [`pack_cameras`]. The rays of an all-zero camera are zero.
        rows, columns (`int`):
            Size of the grid.

    Returns:
        `torch.Tensor` of shape `(..., rows, columns, RAY_CHANNELS)`, fp32.
    """
    cameras = cameras.float()
    is_camera = cameras.abs().sum(-1) > 0
    rotation = cameras[..., :9].unflatten(-1, (3, 3))
    centre, intrinsics = cameras[..., 9:12], cameras[..., 12:]
    y = (torch.arange(rows, device=cameras.device) + 0.5) / rows
    x = (torch.arange(columns, device=cameras.device) + 0.5) / columns
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
    focal = torch.where(is_camera[..., None], intrinsics[..., :2], 1.0)
    pixels = (grid - intrinsics[..., None, None, 2:]) / focal[..., None, None, :]
    directions = torch.cat([pixels, torch.ones_like(pixels[..., :1])], dim=-1)
    # A sum instead of a matrix product, which autocast would compute in bfloat16.
    directions = (rotation[..., None, None, :, :] * directions[..., None, :]).sum(-1)
    directions = torch.nn.functional.normalize(directions, dim=-1)
    moments = torch.linalg.cross(centre[..., None, None, :].expand_as(directions), directions)
    return torch.cat([directions, moments], dim=-1) * is_camera[..., None, None, None]


def fourier_rays(cameras: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """
    Return Pluecker rays with Fourier features of their directions d and origins o:

        (d, o x d), then sin and cos of 2^k (pi d / 2) and of 2^k (2 pi o / FOURIER_METRES), k = 0, ..., 3

    Args:
        cameras, rows, columns:
            See [`pluecker_rays`]. The features of an all-zero camera are zero.

    Returns:
        `torch.Tensor` of shape `(..., rows, columns, FOURIER_CHANNELS)`, fp32.

    Source: ours, for small models that learn geometry from scratch. The origins' scale fits rooms in metres.
    """
    rays = pluecker_rays(cameras, rows, columns)
    directions, centres = rays[..., :3], cameras.float()[..., None, None, 9:12].expand_as(rays[..., :3])
    angles = torch.cat([directions * (np.pi / 2), centres * (2 * np.pi / FOURIER_METRES)], dim=-1)
    octaves = [angles * 2**octave for octave in range(FOURIER_OCTAVES)]
    features = [function(octave) for octave in octaves for function in (torch.sin, torch.cos)]
    is_camera = (cameras.abs().sum(-1) > 0)[..., None, None, None]
    return torch.cat([rays, *features], dim=-1) * is_camera


def latent_cameras(cameras: torch.Tensor, frames_per_latent: int) -> torch.Tensor:
    """
    Group the cameras by latent frame. The first frame has its own latent frame; later ones share one.

    Args:
        cameras (`torch.Tensor` of shape `(batch, frames, CAMERA_NUMBERS)`):
            The cameras of the frames.
        frames_per_latent (`int`):
            Time stride of the VAE.

    Returns:
        `torch.Tensor` of shape `(batch, latent frames, frames_per_latent, CAMERA_NUMBERS)`. The camera of the first
        frame is repeated `frames_per_latent` times.
    """
    first = cameras[:, :1].expand(-1, frames_per_latent, -1)
    return torch.cat([first, cameras[:, 1:]], dim=1).unflatten(1, (-1, frames_per_latent))


def draw_boxes(video: Video, boxes: Sequence[Sequence[float] | None]) -> Video:
    """
    Draw the auxiliary bounding box, the outline of the target, into the frames of a training video.

    Args:
        video (`np.ndarray` of shape `(frames, height, width, 3)`, `uint8`):
            The video; it is not changed.
        boxes (list of `(x0, y0, x1, y1)` in pixels or `None`):
            One per frame. Frames with `None` or an empty list get no box.

    Returns:
        `np.ndarray`: a copy of the video with the boxes.

    Raises:
        ValueError: if the numbers of boxes and frames differ.

    Source: the paper trains grounding with an auxiliary bounding box of the target (without it, the model follows
    instructions 0.540 of the time instead of 0.649). Our reading is that the box is part of the generated picture, so
    that the model shows what it takes for the target. Colour (red) and width (1/60 of the height) are our choice.
    """
    if len(boxes) != len(video):
        raise ValueError(f"{len(boxes)} boxes for {len(video)} frames. Pass one per frame, None for a frame without.")
    drawn = video.copy()
    height, width = video.shape[1:3]
    line = max(1, round(height / 60))
    for frame, box in zip(drawn, boxes, strict=True):
        if not box:
            continue
        x0, y0, x1, y1 = (int(round(edge)) for edge in np.clip(box, 0, [width, height, width, height]))
        if x1 - x0 < 2 or y1 - y0 < 2:
            continue
        inner = slice(y0 + line, max(y0 + line, y1 - line)), slice(x0 + line, max(x0 + line, x1 - line))
        content = frame[inner].copy()
        frame[y0:y1, x0:x1] = BOX_COLOUR
        frame[inner] = content
    return drawn
