"""
Human labels of clips: read the files that the page of `spatialalign label` exports.

format, version     "spatialalign-labels", 1
page, seed          identifies the page (the same clips in the same order), and the seed of the order
labeller            the name that was typed in
exported_at, num_clips
labels              one object per clip: id, file, prompt_id, type,
                    answers (question -> 0 no, 1 partly, 2 yes; questions are start, visit_1 ... of types with more
                    than two relations, end, and looks), absent (the animal or the object is missing, or there are
                    several), skipped, seconds (on screen), labelled_at
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from spatialalign_trl.files import read_json
from spatialalign_trl.prompts.relations import RELATIONS

LABEL_FORMAT, LABEL_VERSION = "spatialalign-labels", 1
START, END, LOOKS = "start", "end", "looks"
YES = 2
"""The highest answer. 0 is no, 1 is partly."""


@dataclass(frozen=True)
class Label:
    """
    One person's label of one clip.

    Args:
        clip_id, file, prompt_id (`str`):
            The clip, its file as it was named on the labeller's command line, and its prompt. The id is made of the
            file's name and content, so that pages made in different folders have the same clips.
        answers (`dict[str, int]`):
            Question -> 0, 1 or 2. Empty if `absent`.
        absent (`bool`):
            Whether the animal or the object is missing, or there are several: DSR-Score calls such a video INVALID.
        seconds (`float`):
            How long the clip was on the screen.
        type (`str`, *optional*):
            The DSR type that the questions are about; `""` if unknown.
    """

    clip_id: str
    file: str
    prompt_id: str
    answers: Mapping[str, int]
    absent: bool
    seconds: float
    type: str = ""

    @property
    def obedience(self) -> float:
        """
        How much of the prompt came true: the mean of the answers about places, in [0, 1]; 0 if absent.

        As in DSR-Score, one half comes from the start and the other from the end, so a video in which nothing moves
        gets about 0.5.
        """
        return fmean(answer / YES for name, answer in self.answers.items() if name != LOOKS) if self.answers else 0.0

    @property
    def obeys(self) -> bool:
        """Whether every answer about places is yes."""
        return bool(self.answers) and all(answer == YES for name, answer in self.answers.items() if name != LOOKS)


@dataclass(frozen=True)
class LabelFile:
    """
    The labels of one person.

    Args:
        path (`Path`):
            The file.
        labeller (`str`):
            The person's name.
        labels (`dict[str, Label]`):
            Clip id -> label, without the skipped clips.
        skipped (`int`):
            The number of skipped clips.
    """

    path: Path
    labeller: str
    labels: Mapping[str, Label]
    skipped: int

    @property
    def median_seconds(self) -> float:
        """The median time that a labelled clip was on the screen."""
        return median(label.seconds for label in self.labels.values())


def questions_of(dsr_type: str) -> dict[str, str]:
    """
    Return the questions about places for a DSR type, in their order.

    Args:
        dsr_type (`str`):
            The type, one relation code per letter, such as `"LR"`.

    Returns:
        `dict[str, str]`: Question -> the relation's code.
    """
    names = [START, *(f"visit_{k + 1}" for k in range(len(dsr_type) - 2)), END]
    return dict(zip(names, dsr_type, strict=True))


def read_labels(path: str | os.PathLike) -> LabelFile:
    """
    Read a label file.

    Args:
        path (`str` or `os.PathLike`):
            The file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not a label file, has an unknown version, or holds no label or a malformed one.
    """
    data = read_json(path)
    if not isinstance(data, dict) or data.get("format") != LABEL_FORMAT:
        raise ValueError(f"{os.fspath(path)} is no label file. Export one from a page of `spatialalign label`.")
    if data.get("version") != LABEL_VERSION:
        raise ValueError(
            f"{os.fspath(path)} is a label file of version {data.get('version')!r}, but this release reads version "
            f"{LABEL_VERSION}. Update the package, or make the page again."
        )
    labels: dict[str, Label] = {}
    skipped = 0
    for index, row in enumerate(data.get("labels") or []):
        try:
            if row.get("skipped"):
                skipped += 1
                continue
            label = _label(row)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            clip = f" ({row['file']})" if isinstance(row, Mapping) and row.get("file") else ""
            raise ValueError(f"{os.fspath(path)}, label {index}{clip}: {error!r}. Export the labels again.") from error
        if label.clip_id in labels:
            raise ValueError(
                f"{os.fspath(path)}, label {index}: the clip {label.file} was already labelled. Export the labels "
                "again."
            )
        labels[label.clip_id] = label
    if not labels:
        raise ValueError(f"{os.fspath(path)} holds no label: {skipped} clips were skipped. Label at least one.")
    return LabelFile(Path(path), str(data.get("labeller") or Path(path).stem), labels, skipped)


def _label(row: Mapping[str, Any]) -> Label:
    """Parse one label; raise `KeyError`, `TypeError` or `ValueError` if it is malformed."""
    absent = row["absent"] is True
    dsr_type = str(row["type"])
    if len(dsr_type) < 2 or not set(dsr_type) <= set(RELATIONS):
        raise ValueError(f"there is no DSR type {dsr_type!r}")
    answers = {} if absent else dict(row["answers"])
    expected = {} if absent else [*questions_of(dsr_type), LOOKS]
    if set(answers) != set(expected):
        raise ValueError(
            f"the type {dsr_type} asks for {', '.join(expected)}, but has answers to {', '.join(answers)}"
        )
    for name, answer in answers.items():
        if type(answer) is not int or not 0 <= answer <= YES:
            raise ValueError(f"the answer {name!r} is {answer!r}, not 0, 1 or 2")
    seconds = float(row["seconds"])
    return Label(str(row["id"]), str(row["file"]), str(row["prompt_id"]), answers, absent, seconds, dsr_type)


@dataclass(frozen=True)
class Judged:
    """
    The consensus of all labellers on one clip: means over those who labelled it.

    Args:
        clip_id, file, prompt_id (`str`):
            The clip, its file, and its prompt.
        obedience (`float`):
            Mean obedience, in [0, 1].
        obeys (`bool`, *optional*):
            The majority's decision; `None` if the labellers are split.
        absent (`float`):
            Share of the labellers who say that the animal or the object is missing, or that there are several.
        answers (`dict[str, float]`):
            Question -> mean answer in [0, 1], over the labellers who do not say so.
    """

    clip_id: str
    file: str
    prompt_id: str
    obedience: float
    obeys: bool | None
    absent: float
    answers: Mapping[str, float]


def consensus(files: Sequence[LabelFile]) -> list[Judged]:
    """
    Combine the labels of several people.

    Args:
        files (sequence of [`LabelFile`]):
            The labels, one file per labeller.

    Returns:
        `list[Judged]`: The consensus on every clip that at least one of them labelled.

    Raises:
        ValueError: If two of them were asked about different DSR types of one clip.
    """
    by_clip: dict[str, list[Label]] = {}
    for file in files:
        for clip_id, label in file.labels.items():
            labels = by_clip.setdefault(clip_id, [])
            labels.append(label)
            if label.type != labels[0].type:
                raise ValueError(
                    f"{file.path}: {label.file} was labelled as {label.type} by {file.labeller}, but as "
                    f"{labels[0].type} by others, who were asked other questions. Make the pages from one prompt "
                    "file, or compare these labels separately."
                )
    judged = []
    for labels in by_clip.values():
        share = fmean(label.obeys for label in labels)
        names = dict.fromkeys(name for label in labels for name in label.answers)
        judged.append(
            Judged(
                clip_id=labels[0].clip_id,
                file=labels[0].file,
                prompt_id=next((label.prompt_id for label in labels if label.prompt_id), ""),
                obedience=fmean(label.obedience for label in labels),
                obeys=None if share == 0.5 else share > 0.5,
                absent=fmean(label.absent for label in labels),
                answers={n: fmean(label.answers[n] / YES for label in labels if n in label.answers) for n in names},
            )
        )
    return judged
