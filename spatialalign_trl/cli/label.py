"""`spatialalign label`: make a page on which people label clips."""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from spatialalign_trl.cli.parsing import Parser, UsageError, positive
from spatialalign_trl.cli.work import (
    Job,
    Plan,
    Problem,
    question_of_text,
    questions_by_name,
    questions_of_records,
    read_prompts,
    same_question,
    shown,
)
from spatialalign_trl.files import write_atomic
from spatialalign_trl.report.label_page import Clip, label_page
from spatialalign_trl.rollout.video_names import videos_in
from spatialalign_trl.video import browser_mp4_of

DONE, INCOMPLETE = 0, 1
LARGE = 200 * 2**20
"""Bytes from which on a page opens slowly."""

EXAMPLES = """\
examples:
  spatialalign label runs/tiny --prompts datasets/tiny_world_prompts --out label.html     samples know their prompts
  spatialalign label outputs --prompts dsr_eval120.csv --out label.html                   {prompt_id}_F81_seed{ss}.mp4

Open the page in a browser, label with the keys 1, 2, 3 and X, and export the labels with E;
`spatialalign agreement --labels labels-you.json --scores ...` compares them with rewards.
"""


def build_parser() -> Parser:
    parser = Parser(
        prog="spatialalign label",
        usage="%(prog)s VIDEOS_OR_RUN... --out label.html [options]",
        description="Make one HTML file on which people label clips. It shows no scores and no models.",
        epilog=EXAMPLES,
    )
    parser.add_argument("videos", nargs="+", metavar="VIDEOS_OR_RUN", help="video files, folders of videos, or runs")
    parser.add_argument("--out", required=True, metavar="FILE", help="the page to write")
    parser.add_argument(
        "--prompts", metavar="FILE", help="a prompt file or dataset; videos of other prompts are left out"
    )
    parser.add_argument("--split", default="test", help="the split of a prompt dataset (default: %(default)s)")
    parser.add_argument("--prompt", metavar="TEXT", help="one prompt for all videos")
    parser.add_argument(
        "--limit", type=positive, default=100, metavar="N",
        help="clips on the page, drawn from as many prompts as there are (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of the choice and the order (default: %(default)s)")
    return parser


def main(words: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    parser = build_parser()
    args = parser.read(words)
    out = Path(args.out)
    try:
        if out.is_dir():
            raise UsageError(f"--out {args.out} is a folder; give a file")
        plan = _plan(args.videos, args.prompts, args.split, args.prompt)
        if out.resolve() in {job.path.resolve() for job in plan.jobs}:
            raise UsageError(f"--out {args.out} would overwrite a clip")
    except UsageError as error:
        parser.error(str(error))
    jobs = choose(plan.jobs, args.limit, args.seed)
    clips, broken = _read_clips(jobs)
    for problem in broken:
        print(f"left out: {problem.what}: {problem.why}", file=sys.stderr)
    if not clips:
        return INCOMPLETE
    page = label_page(clips, args.seed).encode()
    write_atomic(out, page)
    prompts = len({clip.prompt_id or clip.prompt for clip in clips})
    print(f"{out}: {len(clips)} of {len(plan.jobs)} clips, of {prompts} prompts, {len(page) / 2**20:.1f} MiB")
    if plan.problems:
        first = plan.problems[0]
        print(f"not used: {len(plan.problems)}, such as {first.what}: {first.why}")
    if len(page) > LARGE:
        print("Browsers open so large a page slowly; a smaller --limit makes a smaller one.")
    return INCOMPLETE if broken else DONE


def _plan(names: Sequence[str], prompts: str | None, split: str, prompt: str | None) -> Plan:
    """Which clips can be shown with their questions.

    Raises:
        UsageError: when there are none.
    """
    if prompts and prompt:
        raise UsageError("--prompt and --prompts both say what the videos should show; give one of them")
    videos = find_clips(names)
    if prompt:
        return same_question(videos, question_of_text(prompt, None))
    plan = questions_by_name(videos, read_prompts(prompts, split)[0]) if prompts else questions_of_records(videos)
    if not plan.jobs:
        first = plan.problems[0]
        raise UsageError(f"none of {len(videos)} videos has a prompt; give --prompts. {first.what}: {first.why}")
    return plan


def find_clips(names: Sequence[str]) -> list[Path]:
    """The files named, and the videos of the folders named: of a run those in its `samples`, of a folder without
    videos those of the folders in it. Each once.

    Raises:
        UsageError: for a name that is nothing, or holds no video.
    """
    found: list[Path] = []
    for name in names:
        path = Path(name)
        if not path.is_dir():
            if not path.is_file():
                raise UsageError(f"there is no video and no folder {name}")
            found.append(path)
            continue
        folder = path / "samples" if (path / "samples").is_dir() else path
        inner = sorted(one for one in folder.iterdir() if one.is_dir() and not one.name.startswith("."))
        inside = videos_in(folder) or [video for one in inner for video in videos_in(one)]
        if not inside:
            raise UsageError(f"{name} holds no video")
        found += inside
    return list(dict.fromkeys(found))


def choose(jobs: Sequence[Job], limit: int, seed: int) -> list[Job]:
    """At most `limit` jobs in random order, drawn a prompt at a time so that as many prompts as possible are there."""
    order = random.Random(seed)
    by_prompt: dict[str, list[Job]] = {}
    for job in jobs:
        by_prompt.setdefault(job.question.prompt_id or job.question.prompt, []).append(job)
    groups = list(by_prompt.values())
    order.shuffle(groups)
    for group in groups:
        order.shuffle(group)
    rounds = max(map(len, groups), default=0)
    chosen = [group[k] for k in range(rounds) for group in groups if k < len(group)][:limit]
    order.shuffle(chosen)
    return chosen


def _read_clips(jobs: Sequence[Job]) -> tuple[list[Clip], list[Problem]]:
    clips, broken = [], []
    for job in tqdm(jobs, desc="encoding", unit="clip"):
        try:
            mp4 = browser_mp4_of(job.path.read_bytes())
        except (OSError, ValueError) as error:
            broken.append(Problem(shown(job.path), str(error)))
            continue
        clips.append(Clip(file=shown(job.path.as_posix()), mp4=mp4, **vars(job.question)))
    return clips, broken
