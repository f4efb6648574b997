"""Readers for the layouts in which posed videos are shared. All end in a `PosedVideo`.

RealEstate10K     `<clip>.txt` with a line a frame (world to camera, intrinsics as shares of the sides); the frames are
                  an mp4, or a folder of `<timestamp>.png` or `.jpg`
transforms.json   nerfstudio, instant-ngp, ScanNet++: camera to world in OpenGL's axes; the json names the frames
COLMAP text       ScanNet++ and many others: `cameras.txt` and `images.txt`, world to camera; named frames

Pixels in these files count from the picture's corner; ours from the first pixel's middle, which is half a pixel less.
Names of frames come from files of strangers: one that leads out of its folder is refused.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np

from spatialalign_trl.files import read_json
from spatialalign_trl.scenes.recordings import PosedVideo, one_camera

_IMAGE_ENDINGS = (".png", ".jpg", ".jpeg")
_OPENGL_TO_OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])
_DISTORTION = ("k1", "k2", "k3", "k4", "p1", "p2")
_COLMAP_CAMERAS = {
    "SIMPLE_PINHOLE": 0,
    "PINHOLE": 0,
    "SIMPLE_RADIAL": 1,
    "RADIAL": 2,
    "OPENCV": 4,
    "OPENCV_FISHEYE": 4,
}
"""Camera model -> how many of its last parameters are distortion."""


def load_posed_video(
    path: str | os.PathLike, frames: str | os.PathLike | None = None, max_frames: int | None = None
) -> PosedVideo:
    """Read a recording in one of the layouts.

    Args:
        path (`str` or `os.PathLike`): A RealEstate10K text file, a `transforms.json` by any name, or a folder with a
            `transforms.json` or with COLMAP's text files (in itself, `sparse/0`, `sparse` or `colmap`).
        frames (`str` or `os.PathLike`, *optional*): Where the frames are: for RealEstate10K an mp4 or a folder, by
            default the one beside the text file with its name; for the others the folder that names count from, by
            default the json's own, and `images` beside COLMAP's files.
        max_frames (`int`, *optional*): Only that many frames, evenly spaced.

    Raises:
        FileNotFoundError: when there is nothing of the kind.
        ValueError: when a file is not what its layout says; names the file and the place.
    """
    path = Path(path)
    if path.is_dir():
        if (path / "transforms.json").is_file():
            video = _read_transforms(path / "transforms.json", frames)
        else:
            video = _read_colmap(path, frames)
    elif not path.is_file():
        raise FileNotFoundError(f"there is no recording {path}")
    else:
        video = (_read_transforms if path.suffix == ".json" else _read_realestate10k)(path, frames)
    return video if max_frames is None or max_frames >= len(video) else _thinned(video, max_frames)


def _thinned(video: PosedVideo, number: int) -> PosedVideo:
    if number < 1:
        raise ValueError(f"max_frames is {number}; it must be at least 1.")
    kept = np.linspace(0, len(video) - 1, number).round().astype(int)
    return PosedVideo(
        video.name, video.poses[kept], video.intrinsics, video.size, video.indices[kept],
        lambda positions: video.read([int(kept[position]) for position in positions]),
    )  # fmt: skip


# RealEstate10K


def _read_realestate10k(path: Path, frames: str | os.PathLike | None) -> PosedVideo:
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip() or (number == 1 and len(line.split()) == 1):  # the address of the video
            continue
        rows.append(_numbers(line.split(), 19, f"{path}, line {number}"))
    if not rows:
        raise ValueError(f"{path} holds no cameras; a RealEstate10K file has 19 numbers a line, one line a frame.")
    table = np.array(rows)
    table = table[np.argsort(table[:, 0], kind="stable")]
    stamps = table[:, 0].astype(np.int64)
    source = _beside(path) if frames is None else Path(frames)
    read, size = _video_reader(source, stamps) if source.is_file() else _stamp_reader(source, stamps)
    world_to_camera = np.tile(np.eye(4), (len(table), 1, 1))
    world_to_camera[:, :3] = table[:, 7:].reshape(-1, 3, 4)
    matrices = _matrices(table[:, 1:5] * np.array([size[1], size[0], size[1], size[0]]))
    camera = one_camera(str(path), matrices, size)
    return PosedVideo(path.stem, np.linalg.inv(world_to_camera), camera, size, np.arange(len(table)), read)


def _beside(path: Path) -> Path:
    for candidate in (path.with_suffix(".mp4"), path.with_suffix("")):
        if candidate.exists():
            return candidate
    raise FileNotFoundError(f"{path} has no frames beside it: neither {path.stem}.mp4 nor a folder {path.stem}.")


def _stamp_reader(folder: Path, stamps: np.ndarray):
    if not folder.is_dir():
        raise FileNotFoundError(f"there are no frames at {folder}")
    files = []
    for stamp in stamps:
        names = [folder / f"{stamp}{ending}" for ending in _IMAGE_ENDINGS]
        files.append(next((name for name in names if name.is_file()), None))
        if files[-1] is None:
            raise FileNotFoundError(f"{folder} has no frame {stamp} ({', '.join(_IMAGE_ENDINGS)})")
    return _image_reader(files), _image_size(files[0])


def _video_reader(path: Path, stamps: np.ndarray):
    """Frames of a video at times in microseconds; of a clip with as many frames as cameras, in order."""
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            size = stream.height, stream.width
            times = sorted(
                float(packet.pts * stream.time_base) for packet in container.demux(stream) if packet.pts is not None
            )
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(f"{path} is not a readable video ({error}).") from error
    if len(times) == len(stamps):
        chosen = np.arange(len(stamps))
    else:
        seconds = stamps / 1e6
        chosen = np.abs(np.asarray(times)[None] - seconds[:, None]).argmin(axis=1)
        apart = np.abs(np.asarray(times)[chosen] - seconds)
        if apart.max() > 0.1 or len(set(chosen)) < len(chosen):
            raise ValueError(
                f"{path} has {len(times)} frames, but none of its own for the camera at {seconds[apart.argmax()]:.2f} "
                f"s (of {len(stamps)} cameras); it is another clip, or cut elsewhere."
            )

    def read(positions: Sequence[int]) -> list[np.ndarray]:
        wanted = {int(chosen[position]) for position in positions}
        found = {}
        with av.open(str(path)) as container:
            for number, frame in enumerate(container.decode(video=0)):
                if number in wanted:
                    found[number] = frame.to_ndarray(format="rgb24")
                if len(found) == len(wanted):
                    break
        if len(found) < len(wanted):
            raise ValueError(f"{path} ends before frame {max(wanted)}; it is cut short.")
        return [found[int(chosen[position])] for position in positions]

    return read, size


# transforms.json


def _read_transforms(path: Path, frames: str | os.PathLike | None) -> PosedVideo:
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("frames"), list):
        raise ValueError(f"{path} has no list 'frames'; it is no transforms.json.")
    folder = path.parent if frames is None else Path(frames)
    rows = [row for row in content["frames"] if not (isinstance(row, dict) and row.get("is_bad"))]
    files, poses = [], []
    for number, row in enumerate(rows):
        place = f"{path}, frame {number}"
        if not isinstance(row, dict) or not isinstance(row.get("file_path"), str):
            raise ValueError(f"{place}: has no file_path")
        files.append(_image_inside(folder, row["file_path"], place))
        matrix = np.array(_numbers(np.ravel(row.get("transform_matrix", ())), None, place))
        if matrix.size not in (12, 16):
            raise ValueError(f"{place}: transform_matrix has {matrix.size} numbers; it is a 4x4 matrix.")
        poses.append(np.vstack([matrix.reshape(-1, 4)[:3], [0, 0, 0, 1]]) @ _OPENGL_TO_OPENCV)
    if not files:
        raise ValueError(f"{path} lists no frames")
    order = sorted(range(len(files)), key=lambda i: str(files[i]))
    files, poses, rows = ([some[i] for i in order] for some in (files, poses, rows))
    size = _image_size(files[0])
    matrices = np.stack([_transforms_camera({**content, **row}, size, str(path)) for row in rows])
    camera = one_camera(str(path), matrices, size)
    return PosedVideo(path.parent.name, np.stack(poses), camera, size, np.arange(len(files)), _image_reader(files))


def _transforms_camera(values: dict[str, Any], size: tuple[int, int], place: str) -> np.ndarray:
    height, width = size
    bent = {key: values[key] for key in _DISTORTION if values.get(key)}
    if bent:
        raise ValueError(f"{place}: the frames are distorted ({bent}); undistort them first.")
    recorded = values.get("w", width), values.get("h", height)
    if "fl_x" in values:
        focal = values["fl_x"], values.get("fl_y", values["fl_x"])
    elif "camera_angle_x" in values:
        focal = (recorded[0] / 2 / np.tan(float(values["camera_angle_x"]) / 2),) * 2
    else:
        raise ValueError(f"{place}: neither fl_x nor camera_angle_x says how long the lens is")
    numbers = [*focal, values.get("cx", recorded[0] / 2), values.get("cy", recorded[1] / 2)]
    scale = np.array([width, height] * 2) / np.array([*_numbers(recorded, 2, place)] * 2)
    return _matrices(np.array([_numbers(numbers, 4, place)]) * scale)[0]


# COLMAP


def _read_colmap(path: Path, frames: str | os.PathLike | None) -> PosedVideo:
    folders = [path, path / "sparse" / "0", path / "sparse", path / "colmap"]
    folder = next((one for one in folders if (one / "images.txt").is_file() and (one / "cameras.txt").is_file()), None)
    if folder is None:
        raise FileNotFoundError(
            f"{path} holds neither transforms.json nor COLMAP's cameras.txt and images.txt; of COLMAP's binary files "
            "make text with `colmap model_converter --output_type TXT`."
        )
    images = path / "images" if frames is None else Path(frames)
    cameras = {}
    for place, words in _colmap_lines(folder / "cameras.txt"):
        cameras[words[0]] = _colmap_camera(words[1:], place)
    rows = []
    # Every image has two lines; the second lists its points, and may be empty.
    lines = (folder / "images.txt").read_text(encoding="utf-8").rstrip().splitlines()
    lines = [(number, line) for number, line in enumerate(lines, start=1) if not line.startswith("#")]
    for number, line in lines[::2]:
        place, words = f"{folder / 'images.txt'}, line {number}", line.split(maxsplit=9)
        if len(words) != 10:
            raise ValueError(f"{place}: expected id, rotation, translation, camera and name, found {line[:80]!r}")
        if words[8] not in cameras:
            raise ValueError(f"{place}: camera {words[8]!r} is not in cameras.txt")
        rows.append((words[9], _numbers(words[1:8], 7, place), words[8], place))
    if not rows:
        raise ValueError(f"{folder / 'images.txt'} lists no images")
    rows.sort(key=lambda row: row[0])
    files = [_image_inside(images, name, place) for name, _, _, place in rows]
    size = _image_size(files[0])
    matrices = []
    for _, _, camera, place in rows:
        recorded, matrix = cameras[camera]
        if recorded != size:
            raise ValueError(
                f"{place}: its camera is for {recorded[1]}x{recorded[0]}, the frames are {size[1]}x{size[0]}"
            )
        matrices.append(matrix)
    world_to_camera = np.stack([_colmap_pose(np.array(pose), place) for _, pose, _, place in rows])
    camera = one_camera(str(folder), np.stack(matrices), size)
    return PosedVideo(
        path.name, np.linalg.inv(world_to_camera), camera, size, np.arange(len(files)), _image_reader(files)
    )


def _colmap_lines(path: Path):
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip() and not line.startswith("#"):
            yield f"{path}, line {number}", line.split()


def _colmap_camera(words: list[str], place: str) -> tuple[tuple[int, int], np.ndarray]:
    model = words[0] if words else ""
    if model not in _COLMAP_CAMERAS:
        raise ValueError(
            f"{place}: camera model {model!r}; known: {', '.join(_COLMAP_CAMERAS)}. Undistort the images."
        )
    numbers = _numbers(words[1:], None, place)
    single = model in ("SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL")
    if len(numbers) != 2 + (3 if single else 4) + _COLMAP_CAMERAS[model]:
        raise ValueError(f"{place}: {len(numbers)} numbers are not those of a {model} camera")
    width, height, *numbers = numbers
    if any(numbers[3 if single else 4 :]):
        raise ValueError(f"{place}: the images are distorted; undistort them first (`colmap image_undistorter`).")
    numbers = [numbers[0], *numbers[:3]] if single else numbers[:4]
    return (int(height), int(width)), _matrices(np.array([numbers]))[0]


def _colmap_pose(numbers: np.ndarray, place: str) -> np.ndarray:
    """World to camera from a quaternion (w first) and a translation."""
    length = np.linalg.norm(numbers[:4])
    if length < 1e-6:
        raise ValueError(f"{place}: its quaternion is zero")
    w, x, y, z = numbers[:4] / length
    pose = np.eye(4)
    pose[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    pose[:3, 3] = numbers[4:]
    return pose


# What the layouts share


def _numbers(words: Sequence[Any], count: int | None, place: str) -> list[float]:
    try:
        numbers = [float(word) for word in words]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{place}: {error}") from error
    if (count is not None and len(numbers) != count) or not np.isfinite(numbers).all():
        raise ValueError(f"{place}: expected {count or 'finite'} finite numbers, found {list(words)[:20]}")
    return numbers


def _matrices(numbers: np.ndarray) -> np.ndarray:
    """fx, fy, cx, cy counted from the corner -> 3x3 matrices counted from the first pixel's middle."""
    matrices = np.tile(np.eye(3), (len(numbers), 1, 1))
    matrices[:, 0, 0], matrices[:, 1, 1] = numbers[:, 0], numbers[:, 1]
    matrices[:, 0, 2], matrices[:, 1, 2] = numbers[:, 2] - 0.5, numbers[:, 3] - 0.5
    return matrices


def _image_inside(folder: Path, name: str, place: str) -> Path:
    """The image of a name, which has to lie in the folder; links are followed before that is asked."""
    file = (folder / name).resolve()
    if not file.is_relative_to(folder.resolve()):
        raise ValueError(f"{place}: {name!r} leads out of {folder}")
    if file.suffix.lower() not in _IMAGE_ENDINGS:
        raise ValueError(f"{place}: {name!r} is no image ({', '.join(_IMAGE_ENDINGS)})")
    if not file.is_file():
        raise FileNotFoundError(f"{place}: there is no frame {file}")
    return file


def _image_size(path: Path) -> tuple[int, int]:
    from PIL import Image

    with Image.open(path) as image:
        return image.height, image.width


def _image_reader(files: list[Path]):
    def read(positions: Sequence[int]) -> list[np.ndarray]:
        from PIL import Image

        found = []
        for position in positions:
            with Image.open(files[position]) as image:
                found.append(np.asarray(image.convert("RGB")))
        return found

    return read
