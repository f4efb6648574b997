"""Fill the page's gallery: pair the videos of several policies, and choose those that fit into the file."""

from __future__ import annotations

import base64
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from spatialalign_trl.errors import reason_of
from spatialalign_trl.report.clips import page_mp4, page_strip
from spatialalign_trl.report.grades import Grade
from spatialalign_trl.video import Video, read_timed_video, videos_of

EXTREMES = 12
"""How many of the most improved, and of the most regressed, videos take precedence if not all fit."""

_BATCH = 8
_JSON_LETTERS = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


@dataclass(frozen=True)
class Clip:
    """One video of one policy.

    Args:
        policy (`str`): The policy's name.
        sample_id (`str`): The unique id of the video and its score.
        prompt_id (`str`): The prompt's id, which groups the seeds.
        seed (`int`, *optional*): The video's seed.
        video (`str`): The mp4 file.
        row (`dict`): The prompt's columns: `prompt`; `type`, `animal`, `object` and `attribute`, which curves need;
            and undecoded videos, which the page shows along with the prompt.
        reward (`float`, *optional*): The score; `None` = INVALID.
        reason (`str`, *optional*): Why it is INVALID, as worded by `evaluation.invalid_reason`.
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
        """Return the fields for JSON."""
        return asdict(self)


Pair = dict[str, Clip]
"""Maps each policy to its video of one prompt and seed."""

Grader = Callable[[Sequence[Clip], Sequence[Video]], Sequence[Grade | None]]


def pair_up(clips: Sequence[Clip], baseline: str) -> list[Pair]:
    """Match the policies' videos by prompt and seed, in the baseline's order.

    The videos of a policy without a seed in common with the baseline (another model's videos) are matched by prompt
    and by their position among the prompt's seeds.

    Args:
        clips (sequence of [`Clip`]): The videos of all policies.
        baseline (`str`): The policy that the others are compared with.
    """
    by_policy: dict[str, list[Clip]] = defaultdict(list)
    for clip in clips:
        by_policy[clip.policy].append(clip)
    seeds = {(clip.prompt_id, clip.seed): (clip.prompt_id, place) for clip, place in _with_places(by_policy[baseline])}
    pairs: dict[tuple[str, int], Pair] = {key: {} for key in seeds.values()}
    for policy, policy_clips in by_policy.items():
        shares_seeds = any((clip.prompt_id, clip.seed) in seeds for clip in policy_clips)
        for clip, place in _with_places(policy_clips):
            key = seeds.get((clip.prompt_id, clip.seed)) if shares_seeds else (clip.prompt_id, place)
            if key in pairs:
                pairs[key][policy] = clip
    return list(pairs.values())


def _with_places(clips: Sequence[Clip]) -> Iterator[tuple[Clip, int]]:
    """Yield each clip with its position among the clips of its prompt."""
    seen: dict[str, int] = defaultdict(int)
    for clip in clips:
        yield clip, seen[clip.prompt_id]
        seen[clip.prompt_id] += 1


def alternate_types(pairs: Sequence[Pair]) -> list[Pair]:
    """Order pairs for display: the first seed of every prompt with alternating types, then the second seeds, etc."""
    seen_of_prompt: dict[str, int] = defaultdict(int)
    seen_of_type: dict[str, int] = defaultdict(int)
    keys = []
    for pair in pairs:
        clip = next(iter(pair.values()))
        dsr_type = str(clip.row.get("type", ""))
        keys.append((seen_of_prompt[clip.prompt_id], seen_of_type[dsr_type]))
        seen_of_prompt[clip.prompt_id] += 1
        seen_of_type[dsr_type] += 1
    return [pairs[place] for place in sorted(range(len(pairs)), key=keys.__getitem__)]


def rank_by_change(pairs: Sequence[Pair], baseline: str, other: str) -> list[int]:
    """Return the positions of all pairs: the most improved and most regressed ones first, the others in order."""
    changes = {
        place: (pair[other].reward or 0) - (pair[baseline].reward or 0)
        for place, pair in enumerate(pairs)
        if baseline in pair and other in pair
    }
    ranked = sorted(changes, key=changes.__getitem__)
    best_and_worst = zip(reversed(ranked), ranked, strict=True)
    extremes = [place for places in best_and_worst for place in places][: 2 * EXTREMES]
    return list(dict.fromkeys([*extremes, *range(len(pairs))]))


@dataclass
class Gallery:
    """The videos that fit into the page.

    Args:
        entries (`list[str]`): The JSON of each pair that fits, in the order of the pairs.
        total (`int`): The number of all pairs.
        missing (`int`): The number of videos without a file.
        grades (`dict`): Sample id -> curves and boxes, for the videos that fit.
        unreadable (`dict[str, str]`): Video that cannot be read -> the reason.
    """

    entries: list[str]
    total: int
    missing: int
    grades: dict[str, Grade]
    unreadable: dict[str, str] = field(default_factory=dict)


def fill_gallery(
    pairs: Sequence[Pair],
    order: Sequence[int],
    folder: Path,
    max_bytes: int,
    grade: Grader,
    known_grades: Mapping[str, Grade],
) -> Gallery:
    """Add pairs to the gallery in the given order until one does not fit.

    Args:
        pairs (sequence of `Pair`): From [`pair_up`].
        order (sequence of `int`): Positions of pairs, from [`rank_by_change`].
        folder (`Path`): The folder that the clips' paths are relative to.
        max_bytes (`int`): The largest size of the gallery's JSON.
        grade (callable): Computes the curves and boxes of videos that `known_grades` lacks.
        known_grades (`dict`): Sample id -> curves and boxes.
    """
    room = max_bytes
    entries: dict[int, str] = {}
    grades: dict[str, Grade] = {}
    missing, is_full = 0, False
    unreadable: dict[str, str] = {}
    for start in range(0, len(order), _BATCH):
        # Read a batch of pairs, without those that lack a file or have one that cannot be read.
        batch, videos = [], {}
        for place in order[start : start + _BATCH]:
            files = [folder / clip.video for clip in pairs[place].values()]
            lost = [file for file in files if not file.is_file()]
            missing += len(lost)
            if lost or not files:
                continue
            read = {clip.sample_id: _read_clip(clip, folder, unreadable) for clip in pairs[place].values()}
            if None not in read.values():
                videos |= read
                batch.append(place)
        clips = [clip for place in batch for clip in pairs[place].values()]

        # Compute the curves and boxes that are not known yet, together: a reward is fastest on batches.
        new = [clip for clip in clips if clip.sample_id not in known_grades]
        answers = grade(new, [videos[clip.sample_id].video for clip in new]) if new else []
        batch_grades = {
            clip.sample_id: known_grades[clip.sample_id] for clip in clips if clip.sample_id in known_grades
        }
        batch_grades |= {
            clip.sample_id: answer for clip, answer in zip(new, answers, strict=True) if answer is not None
        }

        for place in batch:
            entry = _pair_json(pairs[place], videos, batch_grades)
            room -= len(entry.encode()) + 1
            if is_full := room < 0:
                break
            entries[place] = entry
            ids = [clip.sample_id for clip in pairs[place].values()]
            grades |= {sample_id: batch_grades[sample_id] for sample_id in ids if sample_id in batch_grades}
        if is_full:
            break
    return Gallery([entries[place] for place in sorted(entries)], len(pairs), missing, grades, unreadable)


@dataclass(frozen=True)
class _ReadClip:
    """A clip that was read: its frames, its frame rate, and the videos that belong to its prompt."""

    video: Video
    fps: float
    given: list[tuple[str, Video]]


def _read_clip(clip: Clip, folder: Path, unreadable: dict[str, str]) -> _ReadClip | None:
    """Read a clip; if that fails, add the reason to `unreadable`."""
    file = folder / clip.video
    try:
        return _ReadClip(*read_timed_video(file), videos_of(clip.row))
    except Exception as error:  # whatever a damaged file makes of the decoder
        unreadable[clip.video] = reason_of(error, file)
        return None


def _pair_json(pair: Pair, read: Mapping[str, _ReadClip], grades: Mapping[str, Grade]) -> str:
    first = next(iter(pair.values()))
    height, width = read[first.sample_id].video.shape[1:3]
    sides = [
        {
            "policy": policy,
            "reward": clip.reward,
            "why": clip.reason,
            "reason": f"INVALID: {clip.reason}" if clip.reason else None,
            "frames": len(read[clip.sample_id].video),
            "grade": grades.get(clip.sample_id),
            "video": base64.b64encode(page_mp4(read[clip.sample_id].video, read[clip.sample_id].fps)).decode(),
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
                for name, video in read[first.sample_id].given
            ],
            "sides": sides,
        }
    )


def json_for_html(value: Any) -> str:
    """Write JSON that cannot end the `<script>` element it is put into, whatever its texts contain."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for letter, escape in _JSON_LETTERS.items():
        text = text.replace(letter, escape)
    return text
