"""Read recordings with known cameras from the common file layouts into a `PosedVideo`.

RealEstate10K     `<clip>.txt` with one line per frame (world to camera, intrinsics as shares of the sides); the frames
                  are an mp4, or a folder of `<timestamp>.png` or `.jpg`
transforms.json   nerfstudio, instant-ngp, ScanNet++: camera to world in OpenGL's axes; the json names the frames
COLMAP text       ScanNet++ and many others: `cameras.txt` and `images.txt`, world to camera; named frames

Pixel coordinates in these files start at the image's corner. Ours start at the centre of the first pixel, so they are
smaller by half a pixel. A recording may come from somebody else: every file that is read must lie in its folder, and
frames in the folder that they are looked for in, after symbolic links and `..` are resolved.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spatialalign_trl.files import confined, read_json
from spatialalign_trl.scenes.recordings import PosedVideo, shared_intrinsics
from spatialalign_trl.text_files import read_text
from spatialalign_trl.video import check_pixels, decode_frames, open_video

_IMAGE_ENDINGS = (".png", ".jpg", ".jpeg")
_IMAGE_FORMATS = ("PNG", "JPEG")  # whatever a file is called: Pillow starts programs for some formats
_OWN_FRAMES = "If the frames are yours, pass frames=, their folder or video"
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
"""Camera model -> the number of distortion parameters, which come last."""


def load_posed_video(
    path: str | os.PathLike, frames: str | os.PathLike | None = None, max_frames: int | None = None
) -> PosedVideo:
    """Read a recording in one of the layouts.

    Args:
        path (`str` or `os.PathLike`): A RealEstate10K text file, a `transforms.json` of any name, or a folder with a
            `transforms.json` or with COLMAP's text files (directly, or in `sparse/0`, `sparse` or `colmap`).
        frames (`str` or `os.PathLike`, *optional*): The frames. For RealEstate10K, an mp4 or a folder, by default the
            one next to the text file with the same name. Otherwise the folder that file names are relative to, by
            default the folder of the json, and `images` in the folder of COLMAP's reconstruction.
        max_frames (`int`, *optional*): Largest number of frames, evenly spaced. By default all.

    Returns:
        [`PosedVideo`]: the recording.

    Raises:
        FileNotFoundError: if there is no recording at `path`, or a frame is missing.
        ValueError: if a file does not follow its layout, or names a file outside of the folder. The message names the
            file and the position.
    """
    path = Path(path)
    if path.is_dir():
        if (path / "transforms.json").is_file():
            _file_inside(path, "transforms.json", str(path))
            video = _read_transforms(path / "transforms.json", frames)
        else:
            video = _read_colmap(path, frames)
    elif not path.is_file():
        raise FileNotFoundError(f"there is no recording {path}")
    else:
        video = (_read_transforms if path.suffix == ".json" else _read_realestate10k)(path, frames)
    return video if max_frames is None or max_frames >= len(video) else _thinned(video, max_frames)


def _thinned(video: PosedVideo, number: int) -> PosedVideo:
    """Return a recording of `number` evenly spaced frames."""
    if number < 1:
        raise ValueError(f"max_frames={number}: must be at least 1.")
    kept = np.linspace(0, len(video) - 1, number).round().astype(int)
    return PosedVideo(
        video.name, video.poses[kept], video.intrinsics, video.size, video.indices[kept],
        lambda positions: video.read([int(kept[position]) for position in positions]),
    )  # fmt: skip


# RealEstate10K


def _read_realestate10k(path: Path, frames: str | os.PathLike | None) -> PosedVideo:
    """Read a RealEstate10K text file and its frames."""
    # Each line: timestamp, fx, fy, cx, cy, two zeros, and a 3x4 world-to-camera matrix
    rows = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip() or (number == 1 and len(line.split()) == 1):  # the first line is the URL of the video
            continue
        rows.append(_numbers(line.split(), 19, f"{path}, line {number}"))
    if not rows:
        raise ValueError(f"{path} contains no cameras. A RealEstate10K file has one line of 19 numbers per frame.")
    table = np.array(rows)
    table = table[np.argsort(table[:, 0], kind="stable")]
    stamps = table[:, 0].astype(np.int64)
    source = _default_frames(path) if frames is None else Path(frames)
    read, size = _video_reader(source, stamps) if source.is_file() else _stamp_reader(source, stamps)
    world_to_camera = np.tile(np.eye(4), (len(table), 1, 1))
    world_to_camera[:, :3] = table[:, 7:].reshape(-1, 3, 4)
    matrices = _matrices(table[:, 1:5] * np.array([size[1], size[0], size[1], size[0]]))
    camera = shared_intrinsics(str(path), matrices, size)
    return PosedVideo(path.stem, np.linalg.inv(world_to_camera), camera, size, np.arange(len(table)), read)


def _default_frames(path: Path) -> Path:
    """Return the mp4 or the folder of frames next to a RealEstate10K text file."""
    for candidate in (path.with_suffix(".mp4"), path.with_suffix("")):
        if candidate.exists():
            return _file_inside(path.parent, candidate.name, str(path))
    raise FileNotFoundError(f"{path} has no frames: next to it is neither {path.stem}.mp4 nor a folder {path.stem}.")


def _stamp_reader(folder: Path, stamps: np.ndarray):
    """Return a reader of the images that are named by the timestamps, and the images' size."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there are no frames at {folder}")
    files = []
    for stamp in stamps:
        names = [f"{stamp}{ending}" for ending in _IMAGE_ENDINGS]
        name = next((name for name in names if (folder / name).is_file()), None)
        if name is None:
            raise FileNotFoundError(f"{folder} has no frame {stamp} ({', '.join(_IMAGE_ENDINGS)})")
        files.append(_file_inside(folder, name, f"{folder}, frame {stamp}"))
    return _image_reader(files), _image_size(files[0])


def _video_reader(path: Path, stamps: np.ndarray):
    """Return a reader of a video's frames at timestamps in microseconds, and the frames' size as they are shown."""
    # 1. Find the frames that are shown: a trimmed file has others, which no camera belongs to.
    with open_video(path) as file:
        base = file.stream.time_base
        shown = sorted(packet.pts for packet in file.shown if packet.pts is not None)
        size = next(decode_frames(file))[1].shape[:2] if shown else (0, 0)
    if not shown:
        raise ValueError(f"{path} has no time stamps, which pair its frames with the cameras. Convert it to an mp4.")

    # 2. Choose one for each camera.
    if len(shown) == len(stamps):  # a clip that was cut to the cameras: its frames are in their order
        chosen = np.arange(len(stamps))
    else:
        times, seconds = np.array([float(stamp * base) for stamp in shown]), stamps / 1e6
        chosen = np.abs(times[None] - seconds[:, None]).argmin(axis=1)
        distance = np.abs(times[chosen] - seconds)
        if distance.max() > 0.1 or len(set(chosen)) < len(chosen):
            raise ValueError(
                f"{path} has {len(times)} frames, but no separate frame for the camera at "
                f"{seconds[distance.argmax()]:.2f} s (of {len(stamps)} cameras). It is another clip, or was cut "
                "differently."
            )

    def read(positions: Sequence[int]) -> list[np.ndarray]:
        wanted = [shown[chosen[position]] for position in positions]
        check_pixels(len(set(wanted)), *size, str(path))
        found: dict[int, np.ndarray] = {}
        with open_video(path) as file:
            for frame, pixels in decode_frames(file):
                if frame.pts in wanted:
                    found[frame.pts] = pixels
                if len(found) == len(set(wanted)):
                    break
        if lost := [stamp for stamp in wanted if stamp not in found]:
            raise ValueError(f"{path}: its frame at {float(lost[0] * base):.2f} s cannot be decoded. Make it again.")
        return [np.ascontiguousarray(found[stamp]) for stamp in wanted]

    return read, size


# transforms.json


def _read_transforms(path: Path, frames: str | os.PathLike | None) -> PosedVideo:
    """Read a transforms.json and its frames."""
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("frames"), list):
        raise ValueError(f"{path} has no list 'frames'. It is not a transforms.json file.")
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
            raise ValueError(f"{place}: transform_matrix has {matrix.size} numbers, but must be a 4x4 matrix.")
        poses.append(np.vstack([matrix.reshape(-1, 4)[:3], [0, 0, 0, 1]]) @ _OPENGL_TO_OPENCV)
    if not files:
        raise ValueError(f"{path} lists no frames")
    order = sorted(range(len(files)), key=lambda i: str(files[i]))
    files, poses, rows = ([values[i] for i in order] for values in (files, poses, rows))
    size = _image_size(files[0])
    matrices = np.stack([_transforms_camera({**content, **row}, size, str(path)) for row in rows])
    camera = shared_intrinsics(str(path), matrices, size)
    return PosedVideo(path.parent.name, np.stack(poses), camera, size, np.arange(len(files)), _image_reader(files))


def _transforms_camera(values: dict[str, Any], size: tuple[int, int], place: str) -> np.ndarray:
    """Return the intrinsics of a frame, scaled from the recorded size to the size of the image files."""
    height, width = size
    distortion = {key: values[key] for key in _DISTORTION if values.get(key)}
    if distortion:
        raise ValueError(f"{place}: the frames are distorted ({distortion}). Undistort them first.")
    recorded = values.get("w", width), values.get("h", height)
    if "fl_x" in values:
        focal = values["fl_x"], values.get("fl_y", values["fl_x"])
    elif "camera_angle_x" in values:
        focal = (recorded[0] / 2 / np.tan(float(values["camera_angle_x"]) / 2),) * 2
    else:
        raise ValueError(f"{place}: has no focal length, neither fl_x nor camera_angle_x")
    numbers = [*focal, values.get("cx", recorded[0] / 2), values.get("cy", recorded[1] / 2)]
    scale = np.array([width, height] * 2) / np.array([*_numbers(recorded, 2, place)] * 2)
    return _matrices(np.array([_numbers(numbers, 4, place)]) * scale)[0]


# COLMAP


def _read_colmap(path: Path, frames: str | os.PathLike | None) -> PosedVideo:
    """Read COLMAP's text files and their frames."""
    # 1. Find the files
    candidates = [path, path / "sparse" / "0", path / "sparse", path / "colmap"]
    complete = (f for f in candidates if (f / "images.txt").is_file() and (f / "cameras.txt").is_file())
    folder = next(complete, None)
    if folder is None:
        raise FileNotFoundError(
            f"{path} contains neither transforms.json nor COLMAP's cameras.txt and images.txt. Convert COLMAP's "
            "binary files to text with `colmap model_converter --output_type TXT`."
        )
    for name in ("cameras.txt", "images.txt"):
        _file_inside(path, folder.relative_to(path) / name, str(path))
    images = _file_inside(path, "images", str(path)) if frames is None else Path(frames)

    # 2. Read the cameras and the pose of every image
    cameras = {}
    for place, words in _colmap_lines(folder / "cameras.txt"):
        cameras[words[0]] = _colmap_camera(words[1:], place)
    rows = []
    # Every image has two lines. The second lists its points and may be empty.
    lines = read_text(folder / "images.txt").rstrip().splitlines()
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

    # 3. Match them with the image files
    files = [_image_inside(images, name, place) for name, _, _, place in rows]
    size = _image_size(files[0])
    matrices = []
    for _, _, camera, place in rows:
        recorded, matrix = cameras[camera]
        if recorded != size:
            raise ValueError(
                f"{place}: its camera is for {recorded[1]}x{recorded[0]}, but the frames are {size[1]}x{size[0]}"
            )
        matrices.append(matrix)
    world_to_camera = np.stack([_colmap_pose(np.array(pose), place) for _, pose, _, place in rows])
    camera = shared_intrinsics(str(folder), np.stack(matrices), size)
    return PosedVideo(
        path.name, np.linalg.inv(world_to_camera), camera, size, np.arange(len(files)), _image_reader(files)
    )


def _colmap_lines(path: Path):
    """Iterate over the position and the words of every line that is not a comment."""
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if line.strip() and not line.startswith("#"):
            yield f"{path}, line {number}", line.split()


def _colmap_camera(words: list[str], place: str) -> tuple[tuple[int, int], np.ndarray]:
    """Parse a line of cameras.txt without its id: return the image size (height, width) and the intrinsics."""
    model = words[0] if words else ""
    if model not in _COLMAP_CAMERAS:
        raise ValueError(
            f"{place}: camera model {model!r} is not one of {', '.join(_COLMAP_CAMERAS)}. Undistort the images."
        )
    numbers = _numbers(words[1:], None, place)
    single_focal = model in ("SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL")
    if len(numbers) != 2 + (3 if single_focal else 4) + _COLMAP_CAMERAS[model]:
        raise ValueError(f"{place}: {len(numbers)} numbers are not those of a {model} camera")
    width, height, *numbers = numbers
    if any(numbers[3 if single_focal else 4 :]):
        raise ValueError(f"{place}: the images are distorted. Undistort them first (`colmap image_undistorter`).")
    numbers = [numbers[0], *numbers[:3]] if single_focal else numbers[:4]
    return (int(height), int(width)), _matrices(np.array([numbers]))[0]


def _colmap_pose(numbers: np.ndarray, place: str) -> np.ndarray:
    """Return the 4x4 world-to-camera matrix of a quaternion (w first) and a translation."""
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


# Shared by the layouts


def _numbers(words: Sequence[Any], count: int | None, place: str) -> list[float]:
    """Parse finite numbers, `count` of them if it is given."""
    try:
        numbers = [float(word) for word in words]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{place}: {error}") from error
    if (count is not None and len(numbers) != count) or not np.isfinite(numbers).all():
        raise ValueError(f"{place}: expected {count or 'finite'} finite numbers, found {list(words)[:20]}")
    return numbers


def _matrices(numbers: np.ndarray) -> np.ndarray:
    """Convert fx, fy, cx, cy relative to the image's corner to 3x3 matrices relative to the first pixel's centre."""
    matrices = np.tile(np.eye(3), (len(numbers), 1, 1))
    matrices[:, 0, 0], matrices[:, 1, 1] = numbers[:, 0], numbers[:, 1]
    matrices[:, 0, 2], matrices[:, 1, 2] = numbers[:, 2] - 0.5, numbers[:, 3] - 0.5
    return matrices


def _image_inside(folder: Path, name: str, place: str) -> Path:
    """Return the path of an image, which must be inside the folder."""
    file = _file_inside(folder, name, place)
    if file.suffix.lower() not in _IMAGE_ENDINGS:
        raise ValueError(f"{place}: {name!r} is not an image ({', '.join(_IMAGE_ENDINGS)})")
    if not file.is_file():
        raise FileNotFoundError(f"{place}: there is no frame {file}")
    return file


def _file_inside(folder: Path, name: str | os.PathLike, place: str) -> Path:
    """Return the path of a file, or of a folder, which must be inside the folder after links are resolved."""
    try:
        return confined(name, folder)
    except ValueError as error:
        raise ValueError(f"{place}: {error} {_OWN_FRAMES}.") from error


def _image_size(path: Path) -> tuple[int, int]:
    """Return the height and width of an image file."""
    from PIL import Image

    with Image.open(path, formats=_IMAGE_FORMATS) as image:
        return image.height, image.width


def _image_reader(files: list[Path]):
    """Return a function that reads the images at some positions of the list."""

    def read(positions: Sequence[int]) -> list[np.ndarray]:
        from PIL import Image

        frames = []
        for position in positions:
            with Image.open(files[position], formats=_IMAGE_FORMATS) as image:
                frames.append(np.asarray(image.convert("RGB")))
        return frames

    return read
