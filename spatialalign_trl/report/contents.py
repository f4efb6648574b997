"""Read what a page shows, from the files of a run or an evaluation. Parts of another shape are left out and named."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from spatialalign_trl.errors import reason_of
from spatialalign_trl.evaluation import headline_value
from spatialalign_trl.files import read_json
from spatialalign_trl.models.usage import LoraUsage
from spatialalign_trl.report.gallery import Clip
from spatialalign_trl.report.grades import GRADE_COLUMNS, Grade
from spatialalign_trl.report.page import ReportContent, check_page
from spatialalign_trl.safe_text import mask_secrets, mask_text

NOTES_FILE = "report.json"
RESULTS_FILE, SAMPLES_FILE = "results.json", "samples.parquet"

_HIGHLIGHTS = (
    "model", "dtype", "rewards", "sampling", "prompts", "num_generations", "evaluation_seeds", "pair_strategy",
    "score_threshold", "min_pair_gap", "pairs_per_prompt", "pool_rounds", "max_steps", "per_device_train_batch_size",
    "gradient_accumulation_steps", "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "beta",
    "loss_type", "margin_clip", "zeroth_order_weight", "shared_noise", "min_sigma", "max_sigma", "seed",
)  # fmt: skip
"""The settings that the page shows first."""

_PAGE_COLUMNS = ("prompt", *GRADE_COLUMNS)
Part = TypeVar("Part")


def read_results(folder: Path) -> dict[str, Any]:
    """Read the `results.json` of a run or of an evaluation.

    Args:
        folder (`Path`): The folder.

    Raises:
        FileNotFoundError: when the folder has none.
        ValueError: when it is not a file that a run or an evaluation writes.
    """
    file = folder / RESULTS_FILE
    if not file.is_file():
        raise FileNotFoundError(
            f"{folder} contains no {RESULTS_FILE}. Give the folder of a finished run or evaluation. An unfinished one "
            "continues if its command is run again"
        )
    results = read_json(file)
    is_evaluation = isinstance(results, dict) and results.get("kind") == "evaluation"
    needed = ("policies", "baseline", "rewards") if is_evaluation else ("settings", "rounds")
    missing = [name for name in needed if name not in results] if isinstance(results, dict) else needed
    if missing:
        names = " and no ".join(map(repr, missing))
        raise ValueError(
            f"{file} is not as a run or an evaluation writes it: it has no {names}. Give the folder of a finished run "
            "or evaluation"
        )
    return results


def read_notes(folder: Path, problems: list[str]) -> dict[str, Any] | None:
    """Read the `report.json` of a folder; `{}` if there is none.

    Args:
        folder (`Path`): The folder.
        problems (`list[str]`): Where a problem is added.

    Returns:
        `dict`: its content; `None` if it is damaged, so that nobody replaces it.
    """
    file = folder / NOTES_FILE
    if not file.is_file():
        return {}
    try:
        notes = read_json(file)
        if not isinstance(notes, dict):
            raise ValueError(f"{file} is not as a run writes it: it holds no object")
    except (OSError, ValueError) as error:
        problems.append(f"The page is without what {NOTES_FILE} adds to it: {reason_of(error)}")
        return None
    return notes


def read_content(
    folder: Path, results: Mapping[str, Any], notes: Mapping[str, Any], problems: list[str]
) -> ReportContent:
    """Collect the content of a page.

    Args:
        folder (`Path`): The folder of a run or of an evaluation.
        results (`dict`): What [`read_results`] returned.
        notes (`dict`): What [`read_notes`] returned.
        problems (`list[str]`): Where parts that are left out are added, with the reason.
    """
    parts = _Parts(problems)
    if results.get("kind") == "evaluation":
        return _content_of_evaluation(folder, results, parts)
    return _content_of_run(folder, results, notes, parts)


def without_malformed_parts(content: ReportContent, problems: list[str]) -> ReportContent:
    """Leave out the parts that no page can be made of.

    Args:
        content ([`ReportContent`]): The content of a page that could not be made.
        problems (`list[str]`): Where the parts are added, with the reason.

    Returns:
        The content without these parts; without any if the fault lies elsewhere.
    """
    empty = {"summaries": {}, "differences": {}, "rounds": (), "scores": {}, "settings": {}, "commands": ()}
    checked = replace(content, clips=(), **empty)
    for name in empty:
        longer = replace(checked, **{name: getattr(content, name)})
        try:
            check_page(longer)
        except Exception as error:  # whatever values of another shape make of the code
            problems.append(_left_out(name, error))
        else:
            checked = longer
    return replace(checked, clips=content.clips)


def known_grades(notes: Mapping[str, Any], rewards: Mapping[str, Any]) -> dict[str, Grade]:
    """Return the curves and boxes in a `report.json` that were made by the same rewards; others are made again."""
    grades = notes.get("grades")
    if notes.get("graded_by") != rewards or not isinstance(grades, dict):
        return {}
    return {sample_id: grade for sample_id, grade in grades.items() if _is_grade(grade)}


class _Parts:
    """Reads the parts of a page one by one; one of another shape is left out, and named in `problems`."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems

    def read(self, name: str, make: Callable[[], Part], empty: Part) -> Part:
        try:
            return make()
        except (KeyError, TypeError, AttributeError, IndexError, StopIteration, ValueError, OSError) as error:
            self.problems.append(_left_out(name, error))
            return empty

    def clips(self, file: str, make: Callable[[], Iterable[Callable[[], Clip]]]) -> list[Clip]:
        """Read the clips that a file lists."""
        clips, refused = [], []
        for make_clip in self.read(f"the videos in {file}", lambda: list(make()), []):
            try:
                clips.append(_checked_clip(make_clip()))
            except (KeyError, TypeError, AttributeError, ValueError) as error:
                refused.append(error)
        if refused:
            self.problems.append(_left_out(f"{len(refused)} videos in {file}", refused[0]))
        return clips


def _left_out(name: str, error: Exception) -> str:
    return f"The page is without {name}, not as a run or an evaluation writes it ({type(error).__name__}: {error})."


# The content of a run's page and of an evaluation's ------------------------------------------------------------------


def _content_of_run(
    folder: Path, results: Mapping[str, Any], notes: Mapping[str, Any], parts: _Parts
) -> ReportContent:
    summaries = {name: results[name] for name in ("base", "aligned") if results.get(name)}
    # Mask the settings of an older run, or of somebody else's.
    settings = parts.read("the settings", lambda: dict(mask_secrets(results["settings"])), {})
    highlights = {name: settings[name] for name in _HIGHLIGHTS if name in settings}
    rewards = parts.read("the rewards", lambda: dict(settings.get("rewards", {})), {})
    rounds = parts.read("the rounds", lambda: list(results["rounds"]), [])
    clips = parts.clips(
        NOTES_FILE, lambda: [lambda values=values: Clip(**values) for values in notes.get("clips", [])]
    )

    count = f"{len(rounds)} round{'' if len(rounds) == 1 else 's'}"
    subtitle = f"{settings.get('model')}, {count} of self-improvement by {', '.join(rewards) or 'rewards'}"
    scores = parts.read(
        f"the scores of the rounds in {NOTES_FILE}",
        lambda: {
            f"Round {number}, sampled to train on": list(round_scores)
            for number, round_scores in enumerate(notes.get("round_scores", []), start=1)
        },
        {},
    )
    differences = {}
    if results.get("difference"):
        differences["aligned"] = {
            "rewards": results["difference"],
            "quality": results.get("quality_difference") or {},
            "verdict": results.get("verdict"),
        }
    return ReportContent(
        title=folder.resolve().name,
        subtitle=subtitle + parts.read("the numbers of prompts", lambda: _evaluated_on(summaries), ""),
        baseline="base",
        summaries=summaries,
        differences=differences,
        clips=clips,
        rounds=rounds,
        scores=scores | _scores_by_policy(clips),
        settings={
            "Settings": highlights,
            "Versions": results.get("versions", {}),
            "All settings": {name: value for name, value in settings.items() if name not in highlights},
        },
        commands=parts.read("the commands", lambda: _run_commands(folder, settings, notes, parts), []),
        rewards=rewards,
    )


def _content_of_evaluation(folder: Path, results: Mapping[str, Any], parts: _Parts) -> ReportContent:
    rewards = parts.read("the rewards", lambda: dict(mask_secrets(results["rewards"])), {})
    policies = parts.read("the policies", lambda: {name: dict(x) for name, x in results["policies"].items()}, {})
    summaries = parts.read(
        "the numbers of the policies", lambda: {name: policy["summary"] for name, policy in policies.items()}, {}
    )
    sources = {
        name: next((policy[kind] for kind in ("lora", "folder", "model") if policy.get(kind)), None)
        for name, policy in policies.items()
    }
    settings = parts.read("the settings", lambda: dict(mask_secrets(results.get("settings", {}))), {})
    settings.pop("hub_token", None)
    clips = parts.clips(SAMPLES_FILE, lambda: _clips_of_samples(folder / SAMPLES_FILE, next(iter(rewards))))
    return ReportContent(
        title=folder.resolve().name,
        subtitle=f"Evaluation of {', '.join(policies)} by {', '.join(rewards)}"
        + parts.read("the numbers of prompts", lambda: _evaluated_on(summaries), ""),
        baseline=str(results["baseline"]),
        summaries=summaries,
        differences=results.get("differences", {}),
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


def _clips_of_samples(file: Path, first_reward: str) -> list[Callable[[], Clip]]:
    """Read the videos of an evaluation. Their scores are those of the first reward, as in the tables."""
    import pyarrow.parquet

    names = ("policy", "sample_id", "prompt_id", "seed", "video")

    def clip_of(row: Mapping[str, Any]) -> Clip:
        return Clip(
            **{name: row[name] for name in names},
            reward=headline_value(row["reward"], row[f"reward/{first_reward}"]),
            reason=row.get("invalid_reason"),
            row={name: row[name] for name in _PAGE_COLUMNS if row.get(name) is not None},
        )

    return [lambda row=row: clip_of(row) for row in pyarrow.parquet.read_table(file).to_pylist()]


def _checked_clip(clip: Clip) -> Clip:
    """Return a clip whose values are of the right kinds."""
    texts = (clip.policy, clip.sample_id, clip.prompt_id, clip.video, clip.reason or "")
    is_number = isinstance(clip.reward, (int, float)) and math.isfinite(clip.reward)
    if not all(isinstance(text, str) for text in texts) or not isinstance(clip.row, dict):
        raise TypeError(f"{clip} has a value of another kind")
    if not (clip.reward is None or is_number) or not isinstance(clip.seed, int | None):
        raise TypeError(f"the reward {clip.reward!r} or the seed {clip.seed!r} is no number")
    return clip


def _is_grade(grade: Any) -> bool:
    """Return whether a value has the form of [`Grade`]."""
    try:
        json.dumps(grade, allow_nan=False)
        numbers = [grade["frames"], *grade["counted"], *(value for pair in grade["averaged"] for value in pair)]
        numbers += [value for curve in grade["curves"] for value in curve["values"]]
        boxes = [box for over_time in grade["boxes"].values() for box in over_time if box is not None]
        numbers += [value for box in boxes for value in box]
        has_names = all(isinstance(curve["name"], str) for curve in grade["curves"])
        return has_names and all(len(box) == 4 for box in boxes) and all(isinstance(x, int | float) for x in numbers)
    except (KeyError, TypeError, AttributeError, ValueError):
        return False


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


def _run_commands(
    folder: Path, settings: Mapping[str, Any], notes: Mapping[str, Any], parts: _Parts
) -> list[tuple[str, str]]:
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
    usage = parts.read(f"'usage' of {NOTES_FILE}", lambda: _usage_code(folder, notes), "")
    if usage:
        commands.append(("Use the LoRA", usage))
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
    return LoraUsage.from_dict(notes["usage"]).code(str(folder))


def _larger_page_command(folder: Path) -> tuple[str, str]:
    return "Rebuild this page, larger", _line("spatialalign", "report", folder, "--megabytes", "50")


def _line(*words: Any) -> str:
    return shlex.join(map(str, words))
