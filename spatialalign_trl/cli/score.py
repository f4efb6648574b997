"""`spatialalign score`: grade videos with DSR-Score."""

from __future__ import annotations

import argparse
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
    parse_question,
    plan_by_prompt_id,
    plan_from_records,
    plan_one_question,
    read_job,
    read_prompts,
)
from spatialalign_trl.errors import printable, reason_of
from spatialalign_trl.perception.tracks import TRACKERS
from spatialalign_trl.prompts import DSR_TYPES, RELATIONS, check_dsr_type
from spatialalign_trl.rewards.containment import contained
from spatialalign_trl.rewards.loading import load_reward
from spatialalign_trl.safe_text import terminal_text
from spatialalign_trl.video import Video, read_video

DONE, INCOMPLETE, INTERRUPTED = 0, 1, 130

EXAMPLES = """\
examples:
  spatialalign score cat.mp4 --prompt "In a park, a cat is on the left of a bench, then the cat jumps to the top of the bench."
  spatialalign score *.mp4 --animal cat --object bench --type LT --plot pictures
  spatialalign score --prompts dsr_eval120.csv --videos outputs --csv scores.csv      {prompt_id}_F81_seed{ss}.mp4
  spatialalign score --videos runs/tiny/samples --tracker color_segmentation          samples record their prompts

exit code: 0 = every video was scored (an INVALID video counts as scored), 1 = some could not be scored and are listed
at the end, 2 = the command line is wrong, 130 = Ctrl-C. After Ctrl-C, the scores so far are printed and written.
"""  # noqa: E501


def build_parser() -> Parser:
    """Build the parser of `spatialalign score`."""
    parser = Parser(
        prog="spatialalign score",
        usage="%(prog)s VIDEO... --prompt TEXT [options]\n       %(prog)s --videos DIR --prompts FILE [options]",
        description="Score whether the animal starts and ends where the prompt says: DSR-Score in [0, 1], or INVALID.",
        epilog=EXAMPLES,
    )
    add = parser.add_argument_group("videos").add_argument
    add("files", nargs="*", metavar="VIDEO", help="video files")
    add("--videos", metavar="DIR", help="a folder of videos, or of samples that a training run wrote")

    add = parser.add_argument_group("what the videos should show (samples record it themselves)").add_argument
    add("--prompt", metavar="TEXT", help="one prompt for all videos")
    add("--animal", metavar="NOUN", help="the moving animal, for all videos; needs --object and --type")
    add("--object", metavar="NOUN", help="the static object")
    add("--type", metavar="TYPE", help=f"the relations in order: {', '.join(DSR_TYPES)}, or longer, such as LTR")
    add("--attribute", metavar="WORD", help="the animal's adjective, such as red")
    add("--prompts", metavar="FILE", help="a csv, jsonl, json or txt file, or a prompt dataset; matched by prompt_id")
    add("--split", default="test", help="the split of a prompt dataset (default: %(default)s)")

    add = parser.add_argument_group("how the videos are analysed").add_argument
    trackers = ", ".join(sorted(TRACKERS))
    add(
        "--tracker",
        type=one_of("tracker", TRACKERS),
        default="grounded_sam",
        help=f"{trackers} (default: %(default)s)",
    )
    add(
        "--tracker_option", type=key_value, action="append", default=[], metavar="KEY=VALUE", dest="tracker_options",
        help="an option of the tracker, such as label_mode=span; may be repeated",
    )  # fmt: skip
    add(
        "--depth_option", type=key_value, action="append", default=[], metavar="KEY=VALUE", dest="depth_options",
        help="an option of the depth estimator that types with F or B need, such as checkpoint=DIR; may be repeated",
    )  # fmt: skip
    strict = "reject more than the paper: teleports, frozen videos, gaps at the ends, masks that flood the frame"
    add("--strict", action="store_true", help=strict)
    add("--device", help="where models run, such as cuda:1 (default: chosen by the tracker)")
    add("--batch_size", type=positive, metavar="N", help="frames that the detector processes at once")
    cache = str(default_cache()).replace("%", "%%")  # argparse formats the help text with %
    add("--cache", metavar="DIR", help=f"folder for cached detections (default: {cache})")
    add("--no_cache", action="store_true", help="cache no detections")

    add = parser.add_argument_group("output").add_argument
    add(
        "--threshold", type=share, nargs="+", default=[0.7], metavar="TAU", dest="thresholds",
        help="report S@TAU, the share of all videos that score TAU or more (default: 0.7)",
    )  # fmt: skip
    add("--csv", metavar="FILE", help="write one row per video, with the components and the reason")
    add("--json", metavar="FILE", help="write the same as JSON, with the curves and the summary")
    add("--plot", metavar="DIR", help="write the curves and boxes of every video: two PNGs and an mp4")
    return parser


def main(words: Sequence[str]) -> int:
    """Run `spatialalign score`.

    Args:
        words (sequence of `str`): The words after the command's name.

    Returns:
        `int`: the exit code, as `--help` lists them.

    Raises:
        SystemExit: with code 2 for a command line that cannot be run.
    """
    parser = build_parser()
    args = parser.read(words)
    try:
        # 1. Find out what each video should show, and check the output paths before hours of work.
        plan = make_plan(args)
        check_outputs(args, plan)

        # 2. Make the reward. Weights are loaded later, when the first video is scored.
        settings = make_settings(args)
        options = {"tracker_options": dict(settings.tracker_options), "depth_options": dict(settings.depth_options)}
        try:
            reward = load_reward("dsr_score", tracker=settings.tracker, **options)
        except (ValueError, TypeError, ImportError, OSError) as error:
            raise UsageError(str(error)) from error

        # 3. Drop the videos whose question this tracker cannot answer.
        plan = drop_unscorable(reward, plan)
    except UsageError as error:
        parser.error(str(error))

    # 4. Score, and write the results as they come.
    files = ResultFiles(settings, args.csv, args.json)
    scored: list[ScoredVideo] = []
    problems = list(plan.problems)
    interrupted = False
    try:
        for outcome in score_jobs(plan.jobs, reward, None if args.plot is None else Path(args.plot)):
            (problems if isinstance(outcome, Problem) else scored).append(outcome)
            files.update(scored, problems)
    except KeyboardInterrupt:
        interrupted = True
    try:
        files.update(scored, problems, last=True)
    except OSError as error:
        problems.append(Problem("results", f"not written: {error}"))

    # 5. Print, also after Ctrl-C: the table and the summary to stdout, the problems to stderr.
    out, err = console_for(sys.stdout), console_for(sys.stderr)
    if scored:
        out.print(score_table(scored, settings.thresholds[0]))
        out.print(terminal_text(summary_line(scored, settings.thresholds)), soft_wrap=True)
    if problems:
        err.print(*map(terminal_text, problem_lines(problems)), sep="\n", soft_wrap=True)
    if interrupted:
        is_cached = settings.tracker_options.get("cache_dir")
        remedy = ". Run the same command again to continue from the cached detections" if is_cached else ""
        message = f"interrupted after {len(scored)} of {len(plan.jobs)} videos{remedy}"
        err.print(terminal_text(message), soft_wrap=True)
        return INTERRUPTED
    return INCOMPLETE if problems else DONE


def default_cache() -> Path:
    """Return the folder in which detections are cached by default."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "spatialalign-trl" / "detections"


# Preparation --------------------------------------------------------------------------------------------------------


def make_plan(args: argparse.Namespace) -> Plan:
    """Assign a question to each video.

    Raises:
        UsageError: when the options contradict each other, or no video has a question.
    """
    # Exactly one source of questions: one prompt, its parts, a prompt set, or else the records of samples.
    parts = {f"--{name}": getattr(args, name) for name in ("animal", "object", "type")}
    given = [name for name, value in parts.items() if value]
    sources = [*(["--prompt"] if args.prompt else []), *(["--prompts"] if args.prompts else []), *given[:1]]
    if len(sources) > 1:
        raise UsageError(f"{sources[0]} and {sources[1]} both say what the videos should show. Give one of them")
    if given and len(given) < len(parts):
        missing = ", ".join(name for name in parts if name not in given)
        raise UsageError(f"{', '.join(given)} without {missing}. A question needs all three")
    if args.attribute and not (given or args.prompt):
        raise UsageError("--attribute goes with --prompt or with --animal. Prompt sets and samples bring their own")

    outputs = [Path(name) for name in (args.csv, args.json, args.plot) if name is not None]
    videos, left_out = find_videos(args.files, args.videos, outputs)
    if args.prompt:
        plan = plan_one_question(videos, parse_question(args.prompt, args.attribute))
    elif given:
        question = Question(_known_type(args.type), args.animal, args.object, args.attribute or "")
        plan = plan_one_question(videos, question)
    elif args.prompts:
        plan = plan_by_prompt_id(videos, *read_prompts(args.prompts, args.split))
    else:
        plan = plan_from_records(videos)
    plan.problems[:0] = left_out
    if not plan.jobs:
        reasons = "\n".join(problem_lines(plan.problems))
        remedy = "Say what the videos should show with --prompt, --prompts, or --animal, --object and --type"
        raise UsageError(f"none of {len(videos)} videos has a prompt. {remedy}.\n{reasons}")
    return plan


def _known_type(dsr_type: str) -> str:
    """Check `--type`, and suggest capitals where only they are missing."""
    try:
        return check_dsr_type(dsr_type)
    except ValueError as error:
        capitals = dsr_type.upper() if set(dsr_type.upper()) <= set(RELATIONS) else None
        suggestion = f". Did you mean {capitals!r}?" if capitals not in (None, dsr_type) else ""
        raise UsageError(f"--type: {error}{suggestion}") from error


def check_outputs(args: argparse.Namespace, plan: Plan) -> None:
    """Make the folders of the output files, and refuse paths that would overwrite an input.

    Raises:
        UsageError: for a path that cannot be written.
    """
    inputs = {job.path.resolve() for job in plan.jobs} | {Path(args.prompts or os.devnull).resolve()}
    for option in ("csv", "json"):
        name = getattr(args, option)
        if name is None:
            continue
        path = Path(name)
        if path.resolve() in inputs:
            raise UsageError(f"--{option} {name} would overwrite an input file. Give another path")
        if path.is_dir():
            raise UsageError(f"--{option} {name} is a folder. Give the path of a file")
        _make_folder(f"--{option}", path.parent)
    if args.csv and args.json and Path(args.csv).resolve() == Path(args.json).resolve():
        raise UsageError(f"--csv and --json are both {args.csv}. Give two files")
    if args.plot is not None:
        if args.videos is not None and Path(args.plot).resolve() == Path(args.videos).resolve():
            raise UsageError(
                f"--plot and --videos are both {args.plot}: the next run would score the plotted videos. Give another "
                "folder"
            )
        _make_folder("--plot", Path(args.plot))


def _make_folder(option: str, folder: Path) -> None:
    """Make an output folder, and check that files can be written to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{option}: the folder {folder} cannot be made ({error})") from error
    if not os.access(folder, os.W_OK):
        raise UsageError(f"{option}: the folder {folder} cannot be written to")


def make_settings(args: argparse.Namespace) -> Settings:
    """Collect the options of the tracker and the depth estimator from their flags and from KEY=VALUE options.

    Raises:
        UsageError: when an option is given twice.
    """
    if args.cache and args.no_cache:
        raise UsageError("--cache and --no_cache contradict each other. Give one of them")
    flags = {"device": args.device, "strict": args.strict or None, "batch_size": args.batch_size}
    tracker_options = _merge_options(flags | {"cache_dir": args.cache}, args.tracker_options)
    if not args.no_cache and "cache_dir" not in tracker_options:
        module, name = TRACKERS[args.tracker].split(":")
        # Only trackers that run a slow detector take a cache.
        if "cache_dir" in inspect.signature(getattr(import_module(module), name)).parameters:
            tracker_options["cache_dir"] = str(default_cache())
    depth_options = _merge_options({"device": args.device}, args.depth_options)
    return Settings(args.tracker, tracker_options, depth_options, args.thresholds)


def _merge_options(flags: dict[str, Any], pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return the flags that were given and the KEY=VALUE options in one dictionary."""
    options = {name: value for name, value in flags.items() if value is not None}
    for key, value in pairs:
        if key in options:
            raise UsageError(f"the option {key!r} is given twice. Give it once")
        options[key] = value
    return options


def drop_unscorable(reward: Any, plan: Plan) -> Plan:
    """Turn the jobs with a question that this reward cannot answer into problems.

    Raises:
        UsageError: when no job is left, or when the tracker lacks something that it needs (packages, checkpoints).
    """
    questions = list(dict.fromkeys(job.question for job in plan.jobs))
    columns = [question.columns() for question in questions]
    refused: dict[Question, str] = {}
    try:
        try:
            # All questions at once, which is the usual case; one by one only to find the refused ones.
            reward.check_prompts(**{name: [values[name][0] for values in columns] for name in columns[0]})
        except ValueError:
            for question, values in zip(questions, columns, strict=True):
                try:
                    reward.check_prompts(**values)
                except ValueError as error:
                    refused[question] = str(error).removeprefix("prompt 0: ")
    except (ImportError, OSError, RuntimeError) as error:
        raise UsageError(str(error)) from error
    jobs = [job for job in plan.jobs if job.question not in refused]
    if not jobs:
        raise UsageError(next(iter(refused.values())))
    problems = [Problem(printable(job.path), refused[job.question]) for job in plan.jobs if job.question in refused]
    return Plan(jobs, [*plan.problems, *problems])


# Scoring ------------------------------------------------------------------------------------------------------------


def score_jobs(jobs: Sequence[Job], reward: Any, plots: Path | None) -> Iterator[ScoredVideo | Problem]:
    """Yield the outcome of each job as soon as it is done.

    Args:
        jobs (sequence of [`Job`]): The videos and their questions.
        reward: The DSR-Score.
        plots (`Path`, *optional*): The folder for plots; `None` = no plots. A video that was scored but could not be
            plotted yields both its score and a problem.
    """
    from spatialalign_trl.cli.figures import draw_figures, figure_names

    names = figure_names(jobs)
    with tqdm(jobs, desc="scoring", unit="video") as bar:
        for job, name in zip(bar, names, strict=True):
            bar.set_postfix_str(printable(job.path.name))
            try:
                video = _read_job(job)
                with contained("dsr_score"):
                    graded = reward.grade([video], **job.question.columns())[0]
            except Exception as error:  # one bad file must not end a night's work
                yield Problem(printable(job.path), reason_of(error, job.path))
                continue
            scored_video = ScoredVideo(job, graded.result, graded.tracks)
            yield scored_video
            if plots is not None:
                try:
                    draw_figures(plots, name, scored_video, video)
                except Exception as error:
                    yield Problem(printable(job.path), f"scored, but its plots failed: {reason_of(error, job.path)}")


def _read_job(job: Job) -> Video:
    """Read a job's video, and raise `ValueError` if it is not the one that its record describes."""
    return read_video(job.path if job.sha256 is None else read_job(job))
