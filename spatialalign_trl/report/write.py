"""Writing `report.html` into the folder of a run or of an evaluation, from what lies there.

results.json        the numbers: of the loop (`online/trainer.py`) or of an evaluation (`report/evaluation_files.py`)
report.json         what the page shows beside them and no other file holds: the loop's evaluated videos, the scores
                    of each round, the command; and curves and boxes, so that the page is made again without models
samples.parquet     an evaluation's videos
"""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from spatialalign_trl.evaluation import headline_value
from spatialalign_trl.files import read_json, write_atomic, write_json
from spatialalign_trl.report.gallery import Clip
from spatialalign_trl.report.grades import ASKED, Grade, find_grader, grade_videos
from spatialalign_trl.report.page import ReportContent, render_page
from spatialalign_trl.video import Video

REPORT_FILE, NOTES_FILE = "report.html", "report.json"
RESULTS_FILE, SAMPLES_FILE = "results.json", "samples.parquet"
MEGABYTES = 10.0
"""Default size of a page: about what a mail takes."""

_HIGHLIGHTS = (
    "model", "dtype", "rewards", "sampling", "prompts", "num_generations", "evaluation_seeds", "pair_strategy",
    "score_threshold", "min_pair_gap", "pairs_per_prompt", "pool_rounds", "max_steps", "per_device_train_batch_size",
    "gradient_accumulation_steps", "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "beta",
    "loss_type", "margin_clip", "zeroth_order_weight", "shared_noise", "min_sigma", "max_sigma", "seed",
)  # fmt: skip

_PAGE_COLUMNS = ("prompt", *ASKED)


def write_report(
    folder: Path, grade: Callable[..., Sequence[Any]] | None = None, max_megabytes: float = MEGABYTES
) -> Path:
    """
    Writes `report.html`, and the curves and boxes that it shows into `report.json`.

    Args:
        folder (`Path`):
            What a finished run of the loop, or an evaluation, left.
        grade (callable, *optional*):
            What `grades.find_grader` found among the rewards. By default the rewards that `results.json` names are
            made again, if videos are shown whose curves are not known yet and if that is possible.
        max_megabytes (`float`, *optional*):
            The page is no larger (of 10^6 bytes): videos that do not fit are left out, with a note.

    Returns:
        `Path`: the page.

    Raises:
        FileNotFoundError: the folder holds no `results.json`.
        ValueError: one of its files cannot be read, or `max_megabytes` is not above 0.
    """
    if not max_megabytes > 0:
        raise ValueError(f"max_megabytes={max_megabytes}: must be above 0, such as {MEGABYTES:g}")
    folder = Path(folder)
    if not (folder / RESULTS_FILE).is_file():
        raise FileNotFoundError(
            f"{folder} holds no {RESULTS_FILE}: give the folder of a run or an evaluation that has come to its end. "
            "The command that made it goes on where it stopped"
        )
    results = read_json(folder / RESULTS_FILE)
    noted = read_json(folder / NOTES_FILE) if (folder / NOTES_FILE).is_file() else {}
    is_evaluation = results.get("kind") == "evaluation"
    content = _of_evaluation(folder, results) if is_evaluation else _of_run(folder, results, noted)
    # Another tracker sees other boxes.
    known = noted.get("grades", {}) if noted.get("graded_by") == content.rewards else {}
    grader = _Grader(content.rewards, grade)
    page, gallery = render_page(content, folder, grader, known, max_megabytes)
    if grader.problems:
        page, gallery = render_page(content, folder, grader, known, max_megabytes, grader.problems)
    write_json(folder / NOTES_FILE, {**noted, "graded_by": content.rewards, "grades": known | gallery.grades})
    return write_atomic(folder / REPORT_FILE, page)


def leave_report(
    folder: Path, grade: Callable[..., Sequence[Any]] | None = None, max_megabytes: float = MEGABYTES
) -> None:
    """`write_report` at the end of hours of work whose results are on disk: what goes wrong is only told."""
    try:
        write_report(folder, grade, max_megabytes)
    except Exception as error:  # a page must not lose a run its ending
        warnings.warn(
            f"no {REPORT_FILE} was written ({type(error).__name__}: {error}); 'spatialalign report {folder}' tries "
            "again",
            stacklevel=2,
        )


def note_run(
    folder: Path,
    evaluated: Mapping[str, Sequence[Clip]],
    round_scores: Sequence[Sequence[float | None]],
    command: str | None,
) -> Path:
    """Writes what the loop knows and `write_report` needs into `report.json`; curves that are there are kept."""
    noted = read_json(folder / NOTES_FILE) if (folder / NOTES_FILE).is_file() else {}
    own = {
        "clips": [clip.to_dict() for clips in evaluated.values() for clip in clips],
        "round_scores": [list(scores) for scores in round_scores],
        "command": command,
    }
    return write_json(folder / NOTES_FILE, noted | own)


class _Grader:
    """Curves and boxes, from the reward that made the scores; says once why there are none."""

    def __init__(self, rewards: Mapping[str, Any], grade: Callable[..., Sequence[Any]] | None) -> None:
        self.rewards = rewards
        self.grade = grade
        self.problems: list[str] = []

    def __call__(self, clips: Sequence[Clip], videos: Sequence[Video]) -> list[Grade | None]:
        grades: list[Grade | None] = [None] * len(clips)
        askable = [place for place, clip in enumerate(clips) if set(ASKED[:3]) <= set(clip.row)]
        if not askable or self.problems:
            return grades
        try:
            self.grade = self.grade or self._make()
            if self.grade is None:
                return grades
            made = grade_videos(self.grade, [videos[k] for k in askable], [clips[k].row for k in askable])
        except Exception as error:  # a reward is somebody's code, and its models may not be on this machine
            self.problems.append(f"Curves and boxes of some videos are missing: {type(error).__name__}: {error}")
            warnings.warn(self.problems[-1], stacklevel=2)
            return grades
        for place, one in zip(askable, made, strict=True):
            grades[place] = one
        return grades

    def _make(self) -> Callable[..., Sequence[Any]] | None:
        from spatialalign_trl.rewards.convention import installed_rewards
        from spatialalign_trl.rewards.loading import load_reward

        names = [name for name, settings in self.rewards.items() if settings and name in installed_rewards()]
        return find_grader(load_reward(name, **self.rewards[name]) for name in names)


# What the two kinds of folders hold


def _of_run(folder: Path, results: Mapping[str, Any], noted: Mapping[str, Any]) -> ReportContent:
    summaries = {name: results[name] for name in ("base", "aligned") if results.get(name)}
    settings = dict(results["settings"])
    rewards = settings.get("rewards", {})
    difference = results.get("difference")
    quality, verdict = results.get("quality_difference") or {}, results.get("verdict")
    rounds = results["rounds"]
    scores = {f"Round {k}, sampled to train on": one for k, one in enumerate(noted.get("round_scores", []), start=1)}
    clips = [Clip(**clip) for clip in noted.get("clips", [])]
    scores |= _scores_of(clips)
    highlights = {name: settings[name] for name in _HIGHLIGHTS if name in settings}
    count = f"{len(rounds)} round{'' if len(rounds) == 1 else 's'}"
    return ReportContent(
        title=folder.resolve().name,
        subtitle=f"{settings.get('model')}, {count} of self-improvement by {', '.join(rewards) or 'rewards'}"
        + _evaluated_on(summaries),
        baseline="base",
        summaries=summaries,
        differences={"aligned": {"rewards": difference, "quality": quality, "verdict": verdict}} if difference else {},
        clips=clips,
        rounds=rounds,
        scores=scores,
        settings={
            "Settings": highlights,
            "Versions": results["versions"],
            "All settings": {name: value for name, value in settings.items() if name not in highlights},
        },
        commands=_run_commands(
            folder, str(settings.get("model")), noted.get("command"), "context" if "context" in settings else None
        ),
        rewards=rewards,
    )


def _of_evaluation(folder: Path, results: Mapping[str, Any]) -> ReportContent:
    policies = results["policies"]
    summaries = {name: policy["summary"] for name, policy in policies.items()}
    clips = _clips_of_parquet(folder / SAMPLES_FILE, next(iter(results["rewards"])))
    places = {
        name: next((policy[kind] for kind in ("lora", "folder", "model") if policy.get(kind)), None)
        for name, policy in policies.items()
    }
    settings = {name: value for name, value in results.get("settings", {}).items() if name != "hub_token"}
    return ReportContent(
        title=folder.resolve().name,
        subtitle=f"Evaluation of {', '.join(policies)} by {', '.join(results['rewards'])}" + _evaluated_on(summaries),
        baseline=results["baseline"],
        summaries=summaries,
        differences=results["differences"],
        clips=clips,
        scores=_scores_of(clips),
        settings={
            "Policies": places,
            "Settings": {**settings, "rewards": results["rewards"], "seeds": results.get("seeds")},
            "Versions": results.get("versions", {}),
        },
        commands=[("Make this page again, larger", _line("spatialalign", "report", folder, "--megabytes", "50"))],
        rewards=results["rewards"],
    )


def _clips_of_parquet(file: Path, first: str) -> list[Clip]:
    """The videos that an evaluation lists; their scores are the first reward's, as in its tables."""
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(file).to_pylist()
    return [
        Clip(
            **{name: row[name] for name in ("policy", "sample_id", "prompt_id", "seed", "video")},
            reward=headline_value(row["reward"], row[f"reward/{first}"]),
            reason=row.get("invalid_reason"),
            row={name: row[name] for name in _PAGE_COLUMNS if row.get(name) is not None},
        )
        for row in rows
    ]


def _evaluated_on(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    if not summaries:
        return ". Nothing was evaluated"
    first = next(iter(summaries.values()))
    return f". Evaluated on {first['num_prompts']} prompts, {first['num_videos']} videos a policy"


def _scores_of(clips: Sequence[Clip]) -> dict[str, list[float | None]]:
    scores: dict[str, list[float | None]] = {}
    for clip in clips:
        scores.setdefault(f"Evaluation, {clip.policy}", []).append(clip.reward)
    return scores


def _run_commands(folder: Path, model: str, command: str | None, variant: str | None) -> list[tuple[str, str]]:
    commands = [("Run it again, or go on after an interruption", command)] if command else []
    commands.append(("Make this page again, larger", _line("spatialalign", "report", folder, "--megabytes", "50")))
    if variant is not None:
        code = [
            "from spatialalign_trl import load_video_model",
            "",
            f"model = load_video_model({model!r}, {variant!r})",
        ]
        code.append(f"model.load_lora({str(folder)!r})")
        return [*commands, ("Use the LoRA", "\n".join(code))]
    prompts = "tiny_world_prompts" if model == "tiny" else "dsr_prompts"
    line = _line("spatialalign", "evaluate", "--model", model, "--lora", folder, "--prompts", prompts, "--seeds", "5")
    commands.append(("Evaluate it beside its base, on five seeds a prompt", line))
    imports, source = ["from diffusers import DiffusionPipeline"], repr(model)
    if model == "tiny":
        imports.append("from spatialalign_trl.models import tiny_model_path")
        source = "tiny_model_path()"
    code = [*imports, "", f"pipe = DiffusionPipeline.from_pretrained({source})"]
    code.append(f"pipe.load_lora_weights({str(folder)!r})")
    commands.append(("Use the LoRA in diffusers", "\n".join(code)))
    if model == "tiny" or "wan" in model.lower():
        line = _line("spatialalign", "export-lora", folder, "-o", f"{folder.resolve().name}_comfyui.safetensors")
        commands.append(("Write the LoRA for ComfyUI", line))
    return commands


def _line(*words: Any) -> str:
    return shlex.join(map(str, words))
