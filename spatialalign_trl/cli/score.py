"""`spatialalign score`: grade videos with DSR-Score."""

from __future__ import annotations

import argparse
import hashlib
import inspect
import os
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from tqdm import tqdm

from spatialalign_trl.cli.display import console_for, problem_lines, score_table, summary_line
from spatialalign_trl.cli.parsing import Parser, UsageError, key_value, one_of, positive, share
from spatialalign_trl.cli.results import ResultFiles, ScoredVideo, Settings
from spatialalign_trl.cli.work import (
    Job,
    Plan,
    Problem,
    Question,
    find_videos,
    question_of_text,
    questions_by_name,
    questions_of_records,
    read_prompts,
    same_question,
    shown,
)
from spatialalign_trl.perception.tracks import TRACKERS
from spatialalign_trl.prompts import DSR_TYPES, RELATIONS, check_dsr_type
from spatialalign_trl.rewards.loading import load_reward
from spatialalign_trl.video import Video, read_video

DONE, INCOMPLETE, INTERRUPTED = 0, 1, 130

EXAMPLES = """\
examples:
  spatialalign score cat.mp4 --prompt "In a park, a cat is on the left of a bench, then the cat jumps to the top of the bench."
  spatialalign score *.mp4 --animal cat --object bench --type LT --plot pictures
  spatialalign score --prompts dsr_eval120.csv --videos outputs --csv scores.csv      {prompt_id}_F81_seed{ss}.mp4
  spatialalign score --videos runs/tiny/samples --tracker color_segmentation          samples know their prompts

exit code: 0 = everything given was scored (an INVALID video is scored), 1 = a part was not and is listed at the end,
2 = the line cannot be run, 130 = Ctrl-C. What was scored by then is printed and written.
"""  # noqa: E501


def build_parser() -> Parser:
    parser = Parser(
        prog="spatialalign score",
        usage="%(prog)s VIDEO... --prompt TEXT [options]\n       %(prog)s --videos DIR --prompts FILE [options]",
        description="Does the animal start and end where the prompt says? DSR-Score in [0, 1], or INVALID.",
        epilog=EXAMPLES,
    )
    add = parser.add_argument_group("videos").add_argument
    add("files", nargs="*", metavar="VIDEO", help="video files")
    add("--videos", metavar="DIR", help="a folder of videos, or of samples as the main job leaves them")

    add = parser.add_argument_group("what they should show (samples know it themselves)").add_argument
    add("--prompt", metavar="TEXT", help="one prompt for all videos")
    add("--animal", metavar="NOUN", help="the moving animal, for all videos; with --object and --type")
    add("--object", metavar="NOUN", help="the static object")
    add("--type", metavar="TYPE", help=f"relations in order: {', '.join(DSR_TYPES)}, or longer, such as LTR")
    add("--attribute", metavar="WORD", help="the animal's adjective, such as red")
    add("--prompts", metavar="FILE", help="csv, jsonl, json or txt file, or a prompt dataset; matched by prompt_id")
    add("--split", default="test", help="the split of a prompt dataset (default: %(default)s)")

    add = parser.add_argument_group("how they are read").add_argument
    trackers = ", ".join(sorted(TRACKERS))
    add(
        "--tracker",
        type=one_of("tracker", TRACKERS),
        default="grounded_sam",
        help=f"{trackers} (default: %(default)s)",
    )
    add(
        "--tracker-option", type=key_value, action="append", default=[], metavar="KEY=VALUE", dest="tracker_options",
        help="an option of the tracker, such as label_mode=span; may be repeated",
    )  # fmt: skip
    add(
        "--depth-option", type=key_value, action="append", default=[], metavar="KEY=VALUE", dest="depth_options",
        help="an option of the depth estimator that types with F or B need, such as checkpoint=DIR; may be repeated",
    )  # fmt: skip
    add("--strict", action="store_true", help="refuse more than the paper: teleports, frozen videos, gaps at the ends")
    add("--device", help="where models run, such as cuda:1 (default: chosen by the tracker)")
    add("--batch-size", type=positive, metavar="N", help="frames the detector looks at in one step")
    kept_at = str(default_cache()).replace("%", "%%")  # argparse would read it as a format
    add("--cache", metavar="DIR", help=f"where detections are kept (default: {kept_at})")
    add("--no-cache", action="store_true", help="keep no detections")

    add = parser.add_argument_group("what comes out").add_argument
    add(
        "--threshold", type=share, nargs="+", default=[0.7], metavar="TAU", dest="thresholds",
        help="S@TAU, the share of all videos that score TAU or more (default: 0.7)",
    )  # fmt: skip
    add("--csv", metavar="FILE", help="write one row a video, with the components and the reason")
    add("--json", metavar="FILE", help="the same, with the curves and the summary")
    add("--plot", metavar="DIR", help="write curves and boxes of every video: two PNGs and an mp4")
    return parser


def main(words: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    parser = build_parser()
    args = parser.read(words)
    try:
        plan = make_plan(args)
        check_outputs(args, plan)
        settings = Settings(args.tracker, tracker_options(args), depth_options(args), args.thresholds)
        reward = make_reward(settings)
        plan = refuse_unscorable(reward, plan)
    except UsageError as error:
        parser.error(str(error))
    return run(args, plan, settings, reward)


def default_cache() -> Path:
    """Where detections are kept when nothing else is said."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "spatialalign-trl" / "detections"


# Before any work ----------------------------------------------------------------------------------------------------


def make_plan(args: argparse.Namespace) -> Plan:
    """Which video is asked what.

    Raises:
        UsageError: when the options say nothing that can be done, or contradict each other.
    """
    parts = {f"--{name}": getattr(args, name) for name in ("animal", "object", "type")}
    given = [name for name, value in parts.items() if value]
    sources = [*(["--prompt"] if args.prompt else []), *(["--prompts"] if args.prompts else []), *given[:1]]
    if len(sources) > 1:
        raise UsageError(f"{sources[0]} and {sources[1]} both say what the videos should show; give one of them")
    if given and len(given) < len(parts):
        missing = ", ".join(name for name in parts if name not in given)
        raise UsageError(f"{', '.join(given)} without {missing}; a question needs all three")
    if args.attribute and not (given or args.prompt):
        raise UsageError("--attribute goes with --prompt or with --animal; prompt sets and samples bring their own")
    videos = find_videos(args.files, args.videos)
    if args.prompt:
        return same_question(videos, question_of_text(args.prompt, args.attribute))
    if given:
        question = Question(_known_type(args.type), args.animal, args.object, args.attribute or "")
        return same_question(videos, question)
    if args.prompts:
        questions, problems = read_prompts(args.prompts, args.split)
        plan = questions_by_name(videos, questions)
        plan.problems[:0] = problems
    else:
        plan = questions_of_records(videos)
    if not plan.jobs:
        why = "\n".join(problem_lines(plan.problems))
        remedy = "--prompt, --prompts, or --animal, --object and --type say what the videos should show"
        raise UsageError(f"none of {len(videos)} videos has a prompt; {remedy}.\n{why}")
    return plan


def _known_type(dsr_type: str) -> str:
    try:
        return check_dsr_type(dsr_type)
    except ValueError as error:
        meant = dsr_type.upper() if set(dsr_type.upper()) <= set(RELATIONS) else None
        question = f". Did you mean {meant!r}?" if meant not in (None, dsr_type) else ""
        raise UsageError(f"--type: {error}{question}") from error


def check_outputs(args: argparse.Namespace, plan: Plan) -> None:
    """Makes the folders of the files to write, and refuses files that would overwrite what is read.

    Raises:
        UsageError: for a place that cannot be written.
    """
    inputs = {job.path.resolve() for job in plan.jobs} | {Path(args.prompts or os.devnull).resolve()}
    for option in ("csv", "json"):
        name = getattr(args, option)
        if name is None:
            continue
        path = Path(name)
        if path.resolve() in inputs:
            raise UsageError(f"--{option} {name} would overwrite what is to be read")
        if path.is_dir():
            raise UsageError(f"--{option} {name} is a folder; give a file")
        _make_folder(f"--{option}", path.parent)
    if args.csv and args.json and Path(args.csv).resolve() == Path(args.json).resolve():
        raise UsageError(f"--csv and --json are both {args.csv}")
    if args.plot is not None:
        if args.videos is not None and Path(args.plot).resolve() == Path(args.videos).resolve():
            raise UsageError(f"--plot and --videos are both {args.plot}: the next run would score the pictures")
        _make_folder("--plot", Path(args.plot))


def _make_folder(option: str, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{option}: the folder {folder} cannot be made ({error})") from error
    if not os.access(folder, os.W_OK):
        raise UsageError(f"{option}: the folder {folder} cannot be written to")


def tracker_options(args: argparse.Namespace) -> dict[str, Any]:
    """What the tracker is made with: the flags that were given, and `--tracker-option`.

    Raises:
        UsageError: when an option is said twice.
    """
    if args.cache and args.no_cache:
        raise UsageError("--cache and --no-cache contradict each other; give one of them")
    flags = {"device": args.device, "strict": args.strict or None, "batch_size": args.batch_size}
    flags["cache_dir"] = args.cache
    options = _with_options(flags, args.tracker_options)
    if not args.no_cache and "cache_dir" not in options and _takes(args.tracker, "cache_dir"):
        options["cache_dir"] = str(default_cache())
    return options


def depth_options(args: argparse.Namespace) -> dict[str, Any]:
    """What the depth estimator is made with. Raises as `tracker_options`."""
    return _with_options({"device": args.device}, args.depth_options)


def _with_options(flags: dict[str, Any], more: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    options = {name: value for name, value in flags.items() if value is not None}
    for key, value in more:
        if key in options:
            raise UsageError(f"the option {key!r} is given twice")
        options[key] = value
    return options


def _takes(tracker: str, option: str) -> bool:
    module, name = TRACKERS[tracker].split(":")
    return option in inspect.signature(getattr(import_module(module), name)).parameters


def make_reward(settings: Settings) -> Any:
    """The reward with its tracker; no weights are loaded.

    Raises:
        UsageError: for an option that the tracker does not know or cannot be made with.
    """
    options = {"tracker_options": dict(settings.tracker_options), "depth_options": dict(settings.depth_options)}
    try:
        return load_reward("dsr_score", tracker=settings.tracker, **options)
    except (ValueError, TypeError, ImportError, OSError) as error:
        raise UsageError(str(error)) from error


def refuse_unscorable(reward: Any, plan: Plan) -> Plan:
    """The plan without the questions that this reward cannot answer, which become problems.

    Raises:
        UsageError: when that is all of them, or when what the tracker needs is missing (packages, checkpoints).
    """
    try:
        refused = _refused_questions(reward, list(dict.fromkeys(job.question for job in plan.jobs)))
    except (ImportError, OSError, RuntimeError) as error:
        raise UsageError(str(error)) from error
    jobs = [job for job in plan.jobs if job.question not in refused]
    if not jobs:
        raise UsageError(next(iter(refused.values())))
    problems = [Problem(shown(job.path), refused[job.question]) for job in plan.jobs if job.question in refused]
    return Plan(jobs, [*plan.problems, *problems])


def _refused_questions(reward: Any, questions: Sequence[Question]) -> dict[Question, str]:
    """Question -> why the reward cannot answer it."""
    columns = [question.columns() for question in questions]
    try:
        reward.check_prompts(**{name: [one[name][0] for one in columns] for name in columns[0]})
        return {}
    except ValueError:
        pass  # one of them; which, is asked one by one
    refused = {}
    for question, one in zip(questions, columns, strict=True):
        try:
            reward.check_prompts(**one)
        except ValueError as error:
            refused[question] = str(error).removeprefix("prompt 0: ")
    return refused


# The work -----------------------------------------------------------------------------------------------------------


def run(args: argparse.Namespace, plan: Plan, settings: Settings, reward: Any) -> int:
    """Scores, writes and prints; returns the exit code. After Ctrl-C, too, what was scored is written and printed."""
    files = ResultFiles(settings, args.csv, args.json)
    scored: list[ScoredVideo] = []
    problems = list(plan.problems)
    interrupted = False
    try:
        for outcome in outcomes(plan.jobs, reward, None if args.plot is None else Path(args.plot)):
            (problems if isinstance(outcome, Problem) else scored).append(outcome)
            files.update(scored, problems)
    except KeyboardInterrupt:
        interrupted = True
    try:
        files.update(scored, problems, last=True)
    except OSError as error:
        problems.append(Problem("results", f"not written: {error}"))
    out, err = console_for(sys.stdout), console_for(sys.stderr)
    if scored:
        out.print(score_table(scored, settings.thresholds[0]))
        out.print(summary_line(scored, settings.thresholds), markup=False, soft_wrap=True)
    if problems:
        err.print("\n".join(problem_lines(problems)), markup=False, soft_wrap=True)
    if interrupted:
        cached = "; the same line again continues, from the cache" if settings.tracker_options.get("cache_dir") else ""
        err.print(f"interrupted after {len(scored)} of {len(plan.jobs)} videos{cached}", markup=False, soft_wrap=True)
        return INTERRUPTED
    return INCOMPLETE if problems else DONE


def outcomes(jobs: Sequence[Job], reward: Any, plots: Path | None) -> Iterator[ScoredVideo | Problem]:
    """What became of each job, as it is done; a video that was scored but could not be drawn yields both."""
    from spatialalign_trl.cli.figures import draw_figures, figure_names

    names = figure_names(jobs)
    with tqdm(jobs, desc="scoring", unit="video") as bar:
        for job, name in zip(bar, names, strict=True):
            bar.set_postfix_str(shown(job.path.name))
            try:
                video = _read(job)
                graded = reward.grade([video], **job.question.columns())[0]
            except Exception as error:  # one bad file must not end a night's work
                yield Problem(shown(job.path), _why(error, job.path))
                continue
            one = ScoredVideo(job, graded.result, graded.tracks)
            yield one
            if plots is not None:
                try:
                    draw_figures(plots, name, one, video)
                except Exception as error:
                    yield Problem(shown(job.path), f"scored, but its pictures failed: {_why(error, job.path)}")


def _read(job: Job) -> Video:
    """The video. Raises a `ValueError` when it is not the one that its record describes."""
    if job.sha256 is None:
        return read_video(job.path)
    content = job.path.read_bytes()
    if hashlib.sha256(content).hexdigest() != job.sha256:
        raise ValueError("it is damaged: its checksum is not the one in its record")
    return read_video(content)


def _why(error: Exception, path: Path) -> str:
    """The error without the file's name, which stands before it; a kind that says nothing by itself is named."""
    text = shown(" ".join(str(error).removeprefix(f"{path}: ").removeprefix(f"{path} ").split()))
    expected = isinstance(error, (ValueError, OSError))
    return text if text and expected else f"{type(error).__name__}: {text}"
