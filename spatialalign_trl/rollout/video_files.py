"""
Find videos in folders, and what each of them is: the one rule of every command that takes videos.

Every visible file of a folder is a video, unless its name says that it is something else (a text, a table, a picture,
weights). What is not read (a broken link, a folder of videos inside of the folder) is listed with the reason. A video
is identified by the record of a sample next to it (`store.py`), otherwise by its name (`video_names.py`). Of several
videos of one prompt, seed and folder, the first by name is read and the others are listed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spatialalign_trl.files import read_json
from spatialalign_trl.prompts.grammar import PROMPT_COLUMNS
from spatialalign_trl.rollout.video_names import read_video_name
from spatialalign_trl.text_files import cell_text, same_text

OTHER_SUFFIXES = frozenset(
    ".txt .md .rst .csv .tsv .json .jsonl .ndjson .yaml .yml .toml .ini .cfg .log .html .htm .xml .pdf .tex .srt .vtt "
    ".xlsx .xls .ods .docx .py .sh .ipynb .js .css .lock .sha256 .md5 .sum .url .db .sqlite "
    ".png .jpg .jpeg .bmp .svg .tif .tiff .ico .psd "
    ".wav .mp3 .flac .m4a .aac .opus "
    ".safetensors .npy .npz .pt .pth .ckpt .bin .parquet .arrow .h5 .hdf5 .pkl .pickle".split()
)
"""Suffixes of files that are no videos, in lower case. They may lie next to videos."""
OTHER_NAMES = frozenset({"readme", "license", "licence", "notice", "makefile", "checksums", "sha256sums"})
"""Names without a suffix, in lower case, of files that are no videos."""

_SAMPLE_NAME = re.compile(r"[0-9a-f]{20}")
_MAX_RECORD_BYTES = 10_000_000
"""Records of samples are far smaller, so a larger JSON file is not one."""


@dataclass(frozen=True)
class FolderContent:
    """
    What a folder of videos contains.

    Args:
        videos (`list[Path]`):
            The videos, sorted by name. They have not been opened.
        left_out (`dict[Path, str]`):
            What is not read -> the reason.
    """

    videos: list[Path] = field(default_factory=list)
    left_out: dict[Path, str] = field(default_factory=dict)


@dataclass(frozen=True)
class FoundVideo:
    """
    A video and what its record or its name says about it.

    Args:
        path (`Path`):
            The file.
        prompt_id (`str`):
            The id of its prompt, as `same_text` writes it. The prompt set may have no such id.
        seed (`int`, *optional*):
            The seed that it was sampled with.
        record (`dict`, *optional*):
            The record of the sample, if the video is one.
    """

    path: Path
    prompt_id: str
    seed: int | None = None
    record: Mapping[str, Any] | None = None

    @property
    def policy_revision(self) -> str:
        """The weights that sampled it, or `""`."""
        return str((self.record or {}).get("policy_revision") or "")

    @property
    def sha256(self) -> str | None:
        """The checksum of the file in its record."""
        return (self.record or {}).get("sha256")


def folder_content(folder: Path, ignore: Collection[Path] = ()) -> FolderContent:
    """
    List the videos of a folder, and what in it is not read.

    Args:
        folder (`Path`):
            The folder. Hidden files and folders are skipped.
        ignore (collection of `Path`, *optional*):
            Files and folders of the command itself, such as its output folder.

    Raises:
        OSError: if the folder cannot be listed.
    """
    content = FolderContent()
    ignored = {os.path.abspath(path) for path in ignore}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or os.path.abspath(path) in ignored:
            continue
        if path.is_dir():
            if any(_videos_below(path, ignored)):
                content.left_out[path] = "a folder inside of the folder, which is not searched. Give it by itself"
        elif not _may_be_video(path):
            continue
        elif path.is_file():
            content.videos.append(path)
        elif path.is_symlink() and not os.path.exists(path):
            content.left_out[path] = f"a link to {os.readlink(path)}, which does not exist"
        else:
            content.left_out[path] = "not a file, but a pipe, a socket or a device"
    return content


def identify_video(path: Path, known: Container[str] = ()) -> FoundVideo | None:
    """
    Identify a video by the record of a sample next to it, otherwise by its name.

    Args:
        path (`Path`):
            The file.
        known (container of `str`, *optional*):
            The ids of the prompts, as `same_text` writes them. If there are none, only a record identifies a video.

    Returns:
        [`FoundVideo`]: the video, or `None` if it has no record and no prompts are known.

    Raises:
        ValueError: if its record is damaged.
    """
    record = _read_record(path)
    if record is not None:
        return FoundVideo(path, same_text(record["prompt_id"]), record["seed"], record)
    if not known:
        return None
    return FoundVideo(path, *read_video_name(path.stem, known))


def why_unidentified(path: Path) -> str:
    """Say what a video without a prompt lacks."""
    file = path.with_suffix(".json")
    if file.is_file():
        return f"video without a prompt: {file.name} is not the record of a sample"
    return "video without a prompt: there is no record (.json) next to it"


def without_repetition(videos: Iterable[FoundVideo]) -> tuple[list[FoundVideo], dict[Path, str]]:
    """
    Keep the first of several videos of one prompt, seed, policy and folder.

    Args:
        videos (iterable of [`FoundVideo`]):
            The videos. One without a seed has the seed 0.

    Returns:
        The videos that are kept, and the others -> the reason.
    """
    first: dict[tuple[Any, ...], FoundVideo] = {}
    left_out = {}
    for video in videos:
        key = (os.path.abspath(video.path.parent), video.policy_revision, video.prompt_id, video.seed or 0)
        earlier = first.setdefault(key, video)
        if earlier is not video:
            left_out[video.path] = f"left out, because {earlier.path.name} is of the same prompt and seed. Remove one"
    return list(first.values()), left_out


def _may_be_video(path: Path) -> bool:
    suffix = path.suffix.lower()
    return suffix not in OTHER_SUFFIXES and (bool(suffix) or path.name.lower() not in OTHER_NAMES)


def _videos_below(folder: Path, ignored: Collection[str]) -> Iterator[str]:
    """Iterate over the videos of a folder and of those inside of it. Links to folders are not followed."""
    if os.path.abspath(folder) in ignored:
        return
    for parent, folders, files in os.walk(folder):
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and os.path.abspath(os.path.join(parent, name)) not in ignored
        ]
        yield from (name for name in files if not name.startswith(".") and _may_be_video(Path(name)))


def _read_record(path: Path) -> dict[str, Any] | None:
    """Read the record of a sample, `<id>.json` next to `<id>.mp4`; `None` if there is none, or only another JSON."""
    file = path.with_suffix(".json")
    if not file.is_file():
        return None
    must_be_one = _SAMPLE_NAME.fullmatch(path.stem) is not None
    try:
        record = read_json(file) if file.stat().st_size <= _MAX_RECORD_BYTES else None
    except (OSError, ValueError) as error:
        if must_be_one:
            raise ValueError(f"{file.name} is not the record of a sample: {error}") from error
        return None
    is_one = isinstance(record, dict) and {"prompt_id", "seed", "row"} <= set(record)
    if not is_one or not isinstance(record["row"], dict):
        if must_be_one:
            raise ValueError(f"{file.name} is not the record of a sample. Restore it, or remove both files")
        return None
    try:
        video, settings = record.get("files", {}).get("video", {}), record.get("settings") or {}
        return {
            "prompt_id": str(record["prompt_id"]),
            "seed": int(record["seed"]),
            "policy_revision": str(record.get("policy_revision") or ""),
            "row": {name: _without_missing(name, value) for name, value in record["row"].items()},
            "sha256": video.get("sha256"),
            "fps": settings.get("fps"),
        }
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{file.name} is not the record of a sample: {type(error).__name__} {error}") from error


def _without_missing(name: str, value: Any) -> Any:
    """Return a cell of a recorded row: `""` for a part of the prompt that is missing, else the cell itself."""
    return "" if name in PROMPT_COLUMNS and value is not None and not cell_text(value) else value
