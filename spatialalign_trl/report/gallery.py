"""The page's gallery: which videos of several policies stand side by side, and which of them fit into the file."""

from __future__ import annotations

import base64
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from spatialalign_trl.report.clips import frame_rate, page_mp4, page_strip
from spatialalign_trl.report.grades import Grade
from spatialalign_trl.video import Video, read_video, videos_of

EXTREMES = 12
"""So many of the most improved and of the most regressed videos come first where not all fit."""

_BATCH = 8
_JSON_LETTERS = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


@dataclass(frozen=True)
class Clip:
    """One video of one policy.

    Args:
        policy (`str`): The policy's name.
        sample_id (`str`): Names the video and its score among all.
        prompt_id (`str`): Whose seeds belong together.
        seed (`int`, *optional*): Of the video.
        video (`str`): The mp4 file.
        row (`dict`): The prompt's columns: `prompt`, for curves `type`, `animal`, `object`, `attribute`, and undecoded
            videos, which are shown beside.
        reward (`float`, *optional*): The score; `None` = INVALID.
        reason (`str`, *optional*): Why it is INVALID, as `evaluation.invalid_reason` words it.
    """

    policy: str
    sample_id: str
    prompt_id: str
    seed: int | None
    video: str
    row: dict[str, Any] = field(default_factory=dict)
    reward: float | None = None
    reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


Pair = dict[str, Clip]
"""Policy -> its video of one prompt and seed."""

Grader = Callable[[Sequence[Clip], Sequence[Video]], Sequence[Grade | None]]


def pair_up(clips: Sequence[Clip], baseline: str) -> list[Pair]:
    """The policies' videos side by side, in the baseline's order: by prompt and seed, or, of a policy that has no seed
    in common with the baseline (another model's videos), by prompt and place among its seeds.
    """
    by_policy: dict[str, list[Clip]] = defaultdict(list)
    for clip in clips:
        by_policy[clip.policy].append(clip)
    seeds = {(clip.prompt_id, clip.seed): (clip.prompt_id, place) for clip, place in _ranked(by_policy[baseline])}
    pairs: dict[tuple[str, int], Pair] = {key: {} for key in seeds.values()}
    for policy, own in by_policy.items():
        shares_seeds = any((clip.prompt_id, clip.seed) in seeds for clip in own)
        for clip, place in _ranked(own):
            key = seeds.get((clip.prompt_id, clip.seed)) if shares_seeds else (clip.prompt_id, place)
            if key in pairs:
                pairs[key][policy] = clip
    return list(pairs.values())


def _ranked(clips: Sequence[Clip]) -> Iterator[tuple[Clip, int]]:
    """Each with its place among those of its prompt."""
    seen: dict[str, int] = defaultdict(int)
    for clip in clips:
        yield clip, seen[clip.prompt_id]
        seen[clip.prompt_id] += 1


def in_turn(pairs: Sequence[Pair]) -> list[Pair]:
    """The first seed of every prompt, the types in turn, then the second seeds, and so on."""
    turns: dict[str, int] = defaultdict(int)
    prompts: dict[str, int] = defaultdict(int)
    places = []
    for pair in pairs:
        clip = next(iter(pair.values()))
        kind = str(clip.row.get("type", ""))
        places.append((prompts[clip.prompt_id], turns[kind]))
        prompts[clip.prompt_id] += 1
        turns[kind] += 1
    return [pairs[place] for place in sorted(range(len(pairs)), key=places.__getitem__)]


def by_interest(pairs: Sequence[Pair], baseline: str, other: str) -> list[int]:
    """Places of all pairs: first the most improved and the most regressed, then the others as they come."""
    changes = {
        place: (pair[other].reward or 0) - (pair[baseline].reward or 0)
        for place, pair in enumerate(pairs)
        if baseline in pair and other in pair
    }
    ranked = sorted(changes, key=changes.__getitem__)
    extremes = [place for two in zip(reversed(ranked), ranked, strict=True) for place in two][: 2 * EXTREMES]
    return list(dict.fromkeys([*extremes, *range(len(pairs))]))


@dataclass
class Gallery:
    """What goes into the page.

    Args:
        entries (`list[str]`): JSON of each pair that fits, in the pairs' order.
        total (`int`): Pairs that there are.
        missing (`int`): Videos whose files are gone.
        grades (`dict`): Sample id -> curves and boxes, of the videos that fit.
    """

    entries: list[str]
    total: int
    missing: int
    grades: dict[str, Grade]


def fill(
    pairs: Sequence[Pair], order: Sequence[int], folder: Path, room: int, grade: Grader, known: Mapping[str, Grade]
) -> Gallery:
    """Takes pairs in `order` as long as there is room.

    Args:
        pairs: from `pair_up`.
        order: from `by_interest`.
        folder: what the clips' paths are relative to.
        room: bytes of JSON that fit.
        grade: makes the curves and boxes of videos that `known` does not have.
        known: sample id -> curves and boxes.
    """
    entries: dict[int, str] = {}
    grades: dict[str, Grade] = {}
    missing, is_full = 0, False
    for start in range(0, len(order), _BATCH):
        there = []
        for place in order[start : start + _BATCH]:
            files = {policy: folder / clip.video for policy, clip in pairs[place].items()}
            gone = [file for file in files.values() if not file.is_file()]
            missing += len(gone)
            if not gone and files:
                there.append((place, files))
        clips = [clip for place, _ in there for clip in pairs[place].values()]
        videos = {clip.sample_id: read_video(folder / clip.video) for clip in clips}
        batch = _graded(clips, videos, grade, known)
        for place, files in there:
            entry = _entry(pairs[place], files, videos, batch)
            room -= len(entry.encode()) + 1
            if is_full := room < 0:
                break
            entries[place] = entry
            ids = [clip.sample_id for clip in pairs[place].values()]
            grades |= {sample_id: batch[sample_id] for sample_id in ids if sample_id in batch}
        if is_full:
            break
    return Gallery([entries[place] for place in sorted(entries)], len(pairs), missing, grades)


def _graded(
    clips: Sequence[Clip], videos: Mapping[str, Video], grade: Grader, known: Mapping[str, Grade]
) -> dict[str, Grade]:
    new = [clip for clip in clips if clip.sample_id not in known]
    answers = grade(new, [videos[clip.sample_id] for clip in new]) if new else []
    made = {clip.sample_id: answer for clip, answer in zip(new, answers, strict=True) if answer is not None}
    return {clip.sample_id: known[clip.sample_id] for clip in clips if clip.sample_id in known} | made


def _entry(pair: Pair, files: Mapping[str, Path], videos: Mapping[str, Video], grades: Mapping[str, Grade]) -> str:
    first = next(iter(pair.values()))
    height, width = videos[first.sample_id].shape[1:3]
    sides = [
        {
            "policy": policy,
            "reward": clip.reward,
            "why": clip.reason,
            "reason": f"INVALID: {clip.reason}" if clip.reason else None,
            "frames": len(videos[clip.sample_id]),
            "grade": grades.get(clip.sample_id),
            "video": base64.b64encode(page_mp4(videos[clip.sample_id], frame_rate(files[policy]))).decode(),
        }
        for policy, clip in pair.items()
    ]
    return json_for_html(
        {
            "prompt_id": first.prompt_id,
            "prompt": str(first.row.get("prompt") or first.prompt_id),
            "type": str(first.row.get("type") or ""),
            "seed": first.seed,
            "size": [width, height],
            "given": [
                {"name": name, "image": base64.b64encode(page_strip(video)).decode()}
                for name, video in videos_of(first.row)
            ],
            "sides": sides,
        }
    )


def json_for_html(value: Any) -> str:
    """JSON that a `<script>` element can hold, whatever is in its texts."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for letter, escape in _JSON_LETTERS.items():
        text = text.replace(letter, escape)
    return text
