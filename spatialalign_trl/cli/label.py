"""`spatialalign label`: make an HTML page on which people label clips."""

from __future__ import annotations

import hashlib
import random
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from spatialalign_trl.cli.display import console_for, problem_lines
from spatialalign_trl.cli.parsing import Parser, UsageError, positive
from spatialalign_trl.cli.work import (
    Job,
    Plan,
    Problem,
    each_once,
    list_folder,
    parse_question,
    plan_by_prompt_id,
    plan_from_records,
    plan_one_question,
    problems_of,
    read_job,
    read_prompts,
)
from spatialalign_trl.errors import printable, reason_of
from spatialalign_trl.files import write_atomic
from spatialalign_trl.report.label_page import Clip, label_page
from spatialalign_trl.safe_text import terminal_text
from spatialalign_trl.video import browser_mp4_of

DONE, INCOMPLETE = 0, 1
LARGE = 200 * 2**20
"""Browsers are slow to open a page of more bytes than this."""

EXAMPLES = """\
examples:
  spatialalign label runs/tiny --prompts datasets/tiny_world_prompts --out label.html     samples record their prompts
  spatialalign label outputs --prompts dsr_eval120.csv --out label.html                   {prompt_id}_F81_seed{ss}.mp4

Open the page in a browser, label with the keys 1, 2, 3 and X, and export the labels with E. Then compare them with
rewards: `spatialalign agreement --labels labels-you.json --scores ...`
"""


def build_parser() -> Parser:
    """Build the parser of `spatialalign label`."""
    parser = Parser(
        prog="spatialalign label",
        usage="%(prog)s VIDEOS_OR_RUN... --out label.html [options]",
        description="Make one HTML file on which people label clips. It shows no scores and no models.",
        epilog=EXAMPLES,
    )
    parser.add_argument("videos", nargs="+", metavar="VIDEOS_OR_RUN", help="video files, folders of videos, or runs")
    parser.add_argument("--out", required=True, metavar="FILE", help="the page to write")
    parser.add_argument("--prompts", metavar="FILE", help="a prompt file or dataset, matched by prompt_id")
    parser.add_argument("--split", default="test", help="the split of a prompt dataset (default: %(default)s)")
    parser.add_argument("--prompt", metavar="TEXT", help="one prompt for all videos")
    parser.add_argument(
        "--limit", type=positive, default=100, metavar="N",
        help="largest number of clips, drawn from as many prompts as possible (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=int, default=0, help="the seed of the choice and the order of clips (default: %(default)s)"
    )
    return parser


def main(words: Sequence[str]) -> int:
    """Run the command, and return its exit code."""
    parser = build_parser()
    args = parser.read(words)
    out = Path(args.out)
    try:
        if out.is_dir():
            raise UsageError(f"--out {args.out} is a folder. Give the path of a file")
        plan = make_plan(args.videos, args.prompts, args.split, args.prompt, ignore=[out])
        if out.resolve() in {job.path.resolve() for job in plan.jobs}:
            raise UsageError(f"--out {args.out} would overwrite a clip. Give another path")
    except UsageError as error:
        parser.error(str(error))

    # Read the chosen clips as mp4 files that browsers play. Unreadable ones are left out.
    clips, problems = [], list(plan.problems)
    for job in tqdm(draw_clips(plan.jobs, args.limit, args.seed), desc="encoding", unit="clip"):
        try:
            content = read_job(job)
            mp4 = browser_mp4_of(content)
        except Exception as error:  # one bad file must not cost the page
            problems.append(Problem(printable(job.path), reason_of(error, job.path)))
            continue
        sha256 = hashlib.sha256(content).hexdigest()
        clips.append(Clip(file=printable(path_with_folder(job.path)), mp4=mp4, sha256=sha256, **vars(job.question)))
    if problems:
        err = console_for(sys.stderr)
        err.print(*map(terminal_text, problem_lines(problems, "not used")), sep="\n", soft_wrap=True)
    if not clips:
        return INCOMPLETE

    page = label_page(clips, args.seed).encode()
    write_atomic(out, page)
    prompts = len({clip.prompt_id or clip.prompt for clip in clips})
    size = f"{len(page) / 2**20:.1f} MiB"
    print(printable(f"{out}: {len(clips)} of {len(plan.jobs)} clips, from {prompts} prompts, {size}"))
    if len(page) > LARGE:
        print("Browsers are slow to open such a large page. Make a smaller one with --limit.")
    return INCOMPLETE if problems else DONE


def make_plan(
    names: Sequence[str], prompts: str | None, split: str, prompt: str | None, ignore: Sequence[Path] = ()
) -> Plan:
    """Find the clips and the question of each.

    Args:
        names (sequence of `str`): Video files, folders of videos, or runs.
        prompts (`str`, *optional*): A prompt file or dataset.
        split (`str`): The split of a prompt dataset.
        prompt (`str`, *optional*): One prompt for all clips. Without either, samples record their prompts.
        ignore (sequence of `Path`, *optional*): The command's own files.

    Raises:
        UsageError: when no clip has a question.
    """
    if prompts and prompt:
        raise UsageError("--prompt and --prompts both say what the videos should show. Give one of them")
    videos, left_out = find_clips(names, ignore)
    if prompt:
        plan = plan_one_question(videos, parse_question(prompt, None))
    else:
        plan = plan_by_prompt_id(videos, *read_prompts(prompts, split)) if prompts else plan_from_records(videos)
    plan.problems[:0] = left_out
    if not plan.jobs:
        first = plan.problems[0]
        raise UsageError(f"none of {len(videos)} videos has a prompt: {first.what}: {first.why}. Give --prompts")
    return plan


def find_clips(names: Sequence[str], ignore: Sequence[Path] = ()) -> tuple[list[Path], list[Problem]]:
    """List the named files and the videos of the named folders, each once, under whatever paths they are named.

    The videos of a run are those in its folder `samples`. A folder without videos is replaced by its subfolders.

    Args:
        names (sequence of `str`): Files and folders.
        ignore (sequence of `Path`, *optional*): The command's own files.

    Returns:
        The videos, and what in the folders is not read.

    Raises:
        UsageError: for a name that does not exist, or a folder without videos.
    """
    found: list[Path] = []
    left_out: dict[Path, str] = {}
    for name in names:
        path = Path(name)
        if not path.is_dir():
            if not path.is_file():
                raise UsageError(f"there is no video and no folder {name}")
            found.append(path)
            continue
        folders = [path / "samples"] if (path / "samples").is_dir() else [path]
        contents = [list_folder(folder, ignore) for folder in folders]
        if not contents[0].videos:
            subfolders = [inside for inside in contents[0].left_out if inside.is_dir()]
            left_out |= {inside: why for inside, why in contents[0].left_out.items() if inside not in subfolders}
            contents = [list_folder(folder, ignore) for folder in subfolders]
        inside = [video for content in contents for video in content.videos]
        if not inside:
            raise UsageError(f"{name} contains no video")
        found += inside
        for content in contents:
            left_out |= content.left_out
    return each_once(found), problems_of(left_out)


def path_with_folder(path: Path) -> str:
    """Return a clip's path, with the name of its folder in any case, which distinguishes the videos of two models."""
    if path.parent.name not in ("", ".."):
        return path.as_posix()
    return Path(path.parent.resolve().name, path.name).as_posix()


def draw_clips(jobs: Sequence[Job], limit: int, seed: int) -> list[Job]:
    """Draw at most `limit` jobs in random order, one per prompt in each round, so that few prompts are left out."""
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
