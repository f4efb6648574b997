"""Find the row of a table of scores that belongs to a labelled clip, by their paths.

Labels and scores may come from different folders and machines, so their paths need not be equal. They must not
contradict each other, either: two models' videos of one prompt have one name, and differ only by their folder. A path
is therefore compared from its end, and the folder that holds the video must be the same wherever both paths name it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from spatialalign_trl.cli.parsing import UsageError
from spatialalign_trl.rollout.video_names import VIDEO_SUFFIXES
from spatialalign_trl.text_files import same_text

Parts = tuple[str, ...]
_SAMPLE_ID = re.compile("[0-9a-f]{20}")
"""The name of a sample of a run, which is computed from its inputs and its policy: no other video has it."""


def path_parts(file: str) -> Parts:
    """
    Split a path into the parts that are compared.

    Args:
        file (`str`):
            The path, with slashes of any kind. The suffix of a video is dropped, and so is all up to the last `..`,
            because the folders before it are not those that hold the file.
    """
    # macOS decomposes accents in the names of files.
    path = PurePosixPath(same_text(file.replace("\\", "/")))
    if not path.parts:
        return ()
    name = path.stem if path.suffix.lower() in VIDEO_SUFFIXES else path.name
    folders = path.parts[:-1]
    if ".." in folders:
        folders = folders[len(folders) - folders[::-1].index("..") :]
    return (*folders, name)


def match_rows(clips: Sequence[str], rows: Sequence[str], table: Path) -> list[int | None]:
    """
    Find the row of each clip. No row belongs to two clips.

    Args:
        clips, rows (sequences of `str`):
            The paths of the labelled clips, and of the rows of the table.
        table (`Path`):
            The table, for error messages.

    Returns:
        `list[int | None]`: the index of each clip's row, or `None` if the table has none.

    Raises:
        UsageError: when several rows match a clip equally well, or several clips a row.
    """
    clip_parts, row_parts = [path_parts(file) for file in clips], [path_parts(file) for file in rows]
    root = len(_common_folder(row_parts))
    by_name: dict[str, list[int]] = {}
    for index, parts in enumerate(row_parts):
        if parts:
            by_name.setdefault(parts[-1], []).append(index)

    # 1. Find the rows whose path agrees best with the clip's.
    chosen: list[int | None] = []
    lengths: list[int] = []
    for file, parts in zip(clips, clip_parts, strict=True):
        found = [k for k in by_name.get(parts[-1] if parts else "", []) if _may_be_one(parts, row_parts[k], root)]
        common = [_common_end(parts, row_parts[k]) for k in found]
        best = [k for k, length in zip(found, common, strict=True) if length == max(common)]
        if len(best) > 1:
            raise UsageError(
                f"{table}: {len(best)} rows match the video {file}, such as {rows[best[0]]} and {rows[best[1]]}. "
                "Label and score the videos under the same paths"
            )
        chosen.append(best[0] if best else None)
        lengths.append(max(common, default=0))

    # 2. A row that is the best of several clips belongs to the one whose path agrees farthest.
    by_row: dict[int, list[int]] = {}
    for clip, row in enumerate(chosen):
        if row is not None:
            by_row.setdefault(row, []).append(clip)
    for row, rivals in by_row.items():
        farthest = max(lengths[clip] for clip in rivals)
        best = [clip for clip in rivals if lengths[clip] == farthest]
        if len(best) > 1:
            raise UsageError(
                f"{table}: the row {rows[row]} matches {len(best)} labelled clips, such as {clips[best[0]]} and "
                f"{clips[best[1]]}. Score the videos of each folder, and name the folder on the command line; compare "
                "labels of different versions of one video separately"
            )
        for clip in rivals:
            if clip != best[0]:
                chosen[clip] = None
    return chosen


def namesake(file: str, rows: Sequence[str]) -> str | None:
    """Return the first of the rows' paths that has the name of a clip, `None` if there is none."""
    name = path_parts(file)[-1:]
    return next((row for row in rows if path_parts(row)[-1:] == name), None)


def names_no_folder(file: str) -> bool:
    """Return whether a path is a name alone, which a video of any folder may have. A sample's id is of one video."""
    parts = path_parts(file)
    return len(parts) == 1 and not _SAMPLE_ID.fullmatch(parts[0])


def _may_be_one(clip: Parts, row: Parts, root: int) -> bool:
    """Return whether two paths with the same name may be those of one file; `root` folders are common to all rows."""
    common = _common_end(clip, row)
    if common == min(len(clip), len(row)) or _SAMPLE_ID.fullmatch(clip[-1]):
        return True
    if common < 2 or _first_folder(clip) == _first_folder(row):
        return False  # another parent; or another folder below the same one, such as out/base/clips and out/ours/clips
    # The same parent in another place. It is a copy if the parent's name is what distinguishes the rows, as in
    # y/base/p1 and the rows x/base/p1, x/ours/p1, or if the paths are of two machines.
    distinguishing = len(row) - root
    return common >= distinguishing >= 2 or (_is_absolute(clip) and _is_absolute(row))


def _common_folder(paths: Sequence[Parts]) -> Parts:
    """Return the folders that all paths begin with."""
    folders = {parts[:-1] for parts in paths if parts}
    first, last = (min(folders), max(folders)) if folders else ((), ())
    length = next((k for k, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[:length]


def _first_folder(parts: Parts) -> str:
    return parts[1] if _is_absolute(parts) else parts[0]


def _is_absolute(parts: Parts) -> bool:
    return parts[0] == "/" or parts[0].endswith(":")


def _common_end(a: Parts, b: Parts) -> int:
    """Count how many parts two paths share at their ends."""
    return next((k for k, (x, y) in enumerate(zip(a[::-1], b[::-1], strict=False)) if x != y), min(len(a), len(b)))
