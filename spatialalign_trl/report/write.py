"""Write `report.html` into the folder of a run or of an evaluation, from the files in that folder.

results.json        the numbers of a run (`online/trainer.py`) or of an evaluation (`report/evaluation_files.py`)
report.json         what the page shows in addition: a run's evaluated videos, the scores of each round and the
                    command; and the curves and boxes, so that the page can be rebuilt without models
samples.parquet     the videos of an evaluation
"""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from spatialalign_trl.evaluation import headline_value
from spatialalign_trl.files import read_json, write_atomic, write_json
from spatialalign_trl.models.usage import LoraUsage
from spatialalign_trl.report.gallery import Clip
from spatialalign_trl.report.grades import GRADE_COLUMNS, Grade, find_grader, grade_videos
from spatialalign_trl.report.page import ReportContent, render_page
from spatialalign_trl.report.untrusted import confine_clips, make_graders
from spatialalign_trl.rewards.containment import contained
from spatialalign_trl.safe_text import mask_secrets, mask_text
from spatialalign_trl.video import Video

REPORT_FILE, NOTES_FILE = "report.html", "report.json"
RESULTS_FILE, SAMPLES_FILE = "results.json", "samples.parquet"
MEGABYTES = 10.0
"""Default size limit of a page: small enough for an e-mail attachment."""

_HIGHLIGHTS = (
    "model", "dtype", "rewards", "sampling", "prompts", "num_generations", "evaluation_seeds", "pair_strategy",
    "score_threshold", "min_pair_gap", "pairs_per_prompt", "pool_rounds", "max_steps", "per_device_train_batch_size",
    "gradient_accumulation_steps", "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "beta",
    "loss_type", "margin_clip", "zeroth_order_weight", "shared_noise", "min_sigma", "max_sigma", "seed",
)  # fmt: skip
"""The settings that the page shows first."""

_PAGE_COLUMNS = ("prompt", *GRADE_COLUMNS)


def write_report(
    folder: Path,
    grade: Callable[..., Sequence[Any]] | None = None,
    max_megabytes: float = MEGABYTES,
    *,
    trusted: bool = False,
) -> Path:
    """Write `report.html`, and the curves and boxes that it shows into `report.json`.

    Args:
        folder (`Path`): The folder of a finished run or of an evaluation.
        grade (callable, *optional*): What `grades.find_grader` found among the rewards. By default, the rewards named
            in `results.json` are made again, if they can be and if some shown videos have no stored curves.
        max_megabytes (`float`, *optional*, defaults to 10.0): The largest size of the page, in units of 10^6 bytes.
            Videos that do not fit are left out, with a note.
        trusted (`bool`, *optional*, defaults to `False`): Whether you made the folder. If not, only videos inside of
            it are read, and rewards are made only with settings that a stranger may choose: no local checkpoints, no
            `trust_remote_code`.

    Returns:
        `Path`: the page.

    Raises:
        FileNotFoundError: when the folder has no `results.json`.
        ValueError: when one of its files cannot be read, or `max_megabytes` is not above 0.
    """
    if not max_megabytes > 0:
        raise ValueError(f"max_megabytes={max_megabytes}: must be above 0. Give a size such as {MEGABYTES:g}")
    folder = Path(folder)
    if not (folder / RESULTS_FILE).is_file():
        raise FileNotFoundError(
            f"{folder} contains no {RESULTS_FILE}. Give the folder of a finished run or evaluation. An unfinished one "
            "continues if its command is run again"
        )

    # 1. Read what the run or the evaluation wrote.
    results = read_json(folder / RESULTS_FILE)
    notes = read_json(folder / NOTES_FILE) if (folder / NOTES_FILE).is_file() else {}
    is_evaluation = results.get("kind") == "evaluation"
    page_notes: list[str] = []
    try:
        content = _content_of_evaluation(folder, results) if is_evaluation else _content_of_run(folder, results, notes)
        if not trusted:
            content.clips, page_notes = confine_clips(content.clips, folder)
    except (KeyError, TypeError, AttributeError, IndexError, StopIteration) as error:
        raise ValueError(
            f"{folder}: {RESULTS_FILE}, {NOTES_FILE} or {SAMPLES_FILE} is not as a run or an evaluation writes it "
            f"({type(error).__name__}: {error}). Run its command again"
        ) from error
    for note in page_notes:
        warnings.warn(note, stacklevel=2)

    # 2. Render. Stored curves and boxes are valid only for the same rewards: another tracker finds other boxes.
    known_grades = notes.get("grades", {}) if notes.get("graded_by") == content.rewards else {}
    grader = _Grader(content.rewards, grade, None if trusted else str(folder / RESULTS_FILE))
    page, gallery = render_page(content, folder, grader, known_grades, max_megabytes, page_notes)
    if grader.problems:  # known only now, and they belong on the page
        page_notes += grader.problems
        page, gallery = render_page(content, folder, grader, known_grades, max_megabytes, page_notes)

    # 3. Write the page, and all curves and boxes, so that the page can be rebuilt without models.
    write_json(folder / NOTES_FILE, {**notes, "graded_by": content.rewards, "grades": known_grades | gallery.grades})
    return write_atomic(folder / REPORT_FILE, page)


def try_write_report(
    folder: Path, grade: Callable[..., Sequence[Any]] | None = None, max_megabytes: float = MEGABYTES
) -> None:
    """Write the report of a folder that this process has written, and only warn if that fails: the results of a long
    run are already on disk.

    Args:
        folder, grade, max_megabytes: As in [`write_report`].
    """
    try:
        write_report(folder, grade, max_megabytes, trusted=True)
    except Exception as error:  # whatever goes wrong with a page, the run itself has succeeded
        warnings.warn(
            f"no {REPORT_FILE} was written ({type(error).__name__}: {error}). Run 'spatialalign report {folder}' to "
            "try again",
            stacklevel=2,
        )


def write_run_notes(
    folder: Path,
    evaluated: Mapping[str, Sequence[Clip]],
    round_scores: Sequence[Sequence[float | None]],
    command: str | None,
    usage: LoraUsage | None = None,
) -> Path:
    """Write into `report.json` what `write_report` cannot find in a run's other files.

    Args:
        folder (`Path`): The run's folder. Curves and boxes in its `report.json` are kept.
        evaluated (`dict`): Policy -> its evaluated videos.
        round_scores (sequence): For each round, the scores of the samples that it was trained on; `None` = INVALID.
        command (`str`, *optional*): The command line that started the run.
        usage ([`LoraUsage`], *optional*): How the run's LoRA is used.

    Returns:
        `Path`: the file.
    """
    notes = read_json(folder / NOTES_FILE) if (folder / NOTES_FILE).is_file() else {}
    run_notes = {
        "clips": [clip.to_dict() for clips in evaluated.values() for clip in clips],
        "round_scores": [list(scores) for scores in round_scores],
        "command": None if command is None else mask_text(command),
        "usage": None if usage is None else usage.to_dict(),
    }
    return write_json(folder / NOTES_FILE, notes | run_notes)


class _Grader:
    """Computes curves and boxes with the reward that made the scores; stops at the first failure, and warns once.

    `origin` is the file that the rewards' settings were read from, or `None` if that file is trusted."""

    def __init__(
        self, rewards: Mapping[str, Any], grade: Callable[..., Sequence[Any]] | None, origin: str | None
    ) -> None:
        self.rewards = rewards
        self.grade = grade
        self.origin = origin
        self.problems: list[str] = []

    def __call__(self, clips: Sequence[Clip], videos: Sequence[Video]) -> list[Grade | None]:
        grades: list[Grade | None] = [None] * len(clips)
        # Only prompts with a type, an animal and an object have curves.
        gradable = [place for place, clip in enumerate(clips) if set(GRADE_COLUMNS[:3]) <= set(clip.row)]
        if not gradable or self.problems:
            return grades
        try:
            with contained("curves and boxes"):
                self.grade = self.grade or self._make()
                if self.grade is None:
                    return grades
                rows = [clips[place].row for place in gradable]
                computed = grade_videos(self.grade, [videos[place] for place in gradable], rows)
        except Exception as error:  # a reward is user code, and its models may not be on this machine
            self.problems.append(f"Curves and boxes of some videos are missing: {type(error).__name__}: {error}")
            warnings.warn(self.problems[-1], stacklevel=2)
            return grades
        for place, grade in zip(gradable, computed, strict=True):
            grades[place] = grade
        return grades

    def _make(self) -> Callable[..., Sequence[Any]] | None:
        if self.origin is not None:
            return find_grader(make_graders(self.rewards, self.origin))
        from spatialalign_trl.rewards.convention import installed_rewards
        from spatialalign_trl.rewards.loading import load_reward

        names = [name for name, settings in self.rewards.items() if settings and name in installed_rewards()]
        return find_grader(load_reward(name, **self.rewards[name]) for name in names)


# The content of a run's page and of an evaluation's ------------------------------------------------------------------


def _content_of_run(folder: Path, results: Mapping[str, Any], notes: Mapping[str, Any]) -> ReportContent:
    summaries = {name: results[name] for name in ("base", "aligned") if results.get(name)}
    settings = mask_secrets(results["settings"])  # of an older run, or of somebody else's
    highlights = {name: settings[name] for name in _HIGHLIGHTS if name in settings}
    rewards = settings.get("rewards", {})
    rounds = results["rounds"]
    clips = [Clip(**clip) for clip in notes.get("clips", [])]

    count = f"{len(rounds)} round{'' if len(rounds) == 1 else 's'}"
    subtitle = f"{settings.get('model')}, {count} of self-improvement by {', '.join(rewards) or 'rewards'}"
    scores = {
        f"Round {number}, sampled to train on": round_scores
        for number, round_scores in enumerate(notes.get("round_scores", []), start=1)
    }
    differences = {}
    if results.get("difference"):
        differences["aligned"] = {
            "rewards": results["difference"],
            "quality": results.get("quality_difference") or {},
            "verdict": results.get("verdict"),
        }
    return ReportContent(
        title=folder.resolve().name,
        subtitle=subtitle + _evaluated_on(summaries),
        baseline="base",
        summaries=summaries,
        differences=differences,
        clips=clips,
        rounds=rounds,
        scores=scores | _scores_by_policy(clips),
        settings={
            "Settings": highlights,
            "Versions": results["versions"],
            "All settings": {name: value for name, value in settings.items() if name not in highlights},
        },
        commands=_run_commands(folder, settings, notes),
        rewards=rewards,
    )


def _content_of_evaluation(folder: Path, results: Mapping[str, Any]) -> ReportContent:
    import pyarrow.parquet

    policies, rewards = results["policies"], results["rewards"]
    summaries = {name: policy["summary"] for name, policy in policies.items()}
    sources = {
        name: next((policy[kind] for kind in ("lora", "folder", "model") if policy.get(kind)), None)
        for name, policy in policies.items()
    }
    settings = {name: value for name, value in results.get("settings", {}).items() if name != "hub_token"}
    settings, rewards = mask_secrets(settings), mask_secrets(rewards)

    # The videos' scores are those of the first reward, as in the tables.
    first_reward = next(iter(rewards))
    clips = [
        Clip(
            **{name: row[name] for name in ("policy", "sample_id", "prompt_id", "seed", "video")},
            reward=headline_value(row["reward"], row[f"reward/{first_reward}"]),
            reason=row.get("invalid_reason"),
            row={name: row[name] for name in _PAGE_COLUMNS if row.get(name) is not None},
        )
        for row in pyarrow.parquet.read_table(folder / SAMPLES_FILE).to_pylist()
    ]
    return ReportContent(
        title=folder.resolve().name,
        subtitle=f"Evaluation of {', '.join(policies)} by {', '.join(rewards)}" + _evaluated_on(summaries),
        baseline=results["baseline"],
        summaries=summaries,
        differences=results["differences"],
        clips=clips,
        scores=_scores_by_policy(clips),
        settings={
            "Policies": sources,
            "Settings": {**settings, "rewards": rewards, "seeds": results.get("seeds")},
            "Versions": results.get("versions", {}),
        },
        commands=[_larger_page_command(folder)],
        rewards=rewards,
    )


def _evaluated_on(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    if not summaries:
        return ". Nothing was evaluated"
    first = next(iter(summaries.values()))
    return f". Evaluated on {first['num_prompts']} prompts, {first['num_videos']} videos per policy"


def _scores_by_policy(clips: Sequence[Clip]) -> dict[str, list[float | None]]:
    scores: dict[str, list[float | None]] = {}
    for clip in clips:
        scores.setdefault(f"Evaluation, {clip.policy}", []).append(clip.reward)
    return scores


def _run_commands(folder: Path, settings: Mapping[str, Any], notes: Mapping[str, Any]) -> list[tuple[str, str]]:
    """List `(purpose, command)` for what a user may want to do with a run."""
    model, command = str(settings.get("model")), notes.get("command")
    commands = [("Run it again, or continue after an interruption", mask_text(command))] if command else []
    commands.append(_larger_page_command(folder))

    # A model with context is not a plain diffusers pipeline, so some commands do not apply to it.
    has_context = "context" in settings
    if not has_context:
        prompts = "tiny_world_prompts" if model == "tiny" else "dsr_prompts"
        line = _line(
            "spatialalign", "evaluate", "--model", model, "--lora", folder, "--prompts", prompts, "--seeds", "5"
        )
        commands.append(("Compare it with its base model, on five seeds per prompt", line))
    commands.append(("Use the LoRA", _usage_code(folder, notes)))
    if not has_context and (model == "tiny" or "wan" in model.lower()):
        line = _line("spatialalign", "export-lora", folder, "-o", f"{folder.resolve().name}_comfyui.safetensors")
        commands.append(("Write the LoRA for ComfyUI", line))
    return commands


def _usage_code(folder: Path, notes: Mapping[str, Any]) -> str:
    """Write the code that draws a video with the run's LoRA, or say what adds it to the page."""
    if notes.get("usage") is None:
        return (
            f"# {NOTES_FILE} of this run does not say how its LoRA is used: run its command once more, which adds it."
        )
    try:
        return LoraUsage.from_dict(notes["usage"]).code(str(folder))
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{folder / NOTES_FILE}: 'usage' is malformed ({error}). Run the run's command once more, which writes it"
        ) from error


def _larger_page_command(folder: Path) -> tuple[str, str]:
    return "Rebuild this page, larger", _line("spatialalign", "report", folder, "--megabytes", "50")


def _line(*words: Any) -> str:
    return shlex.join(map(str, words))
