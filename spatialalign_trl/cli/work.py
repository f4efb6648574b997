"""Plan the work of `spatialalign score`: match each video with a question, and list the inputs that match nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from spatialalign_trl.cli.parsing import UsageError
from spatialalign_trl.errors import printable
from spatialalign_trl.files import read_json
from spatialalign_trl.prompts import DSRPrompt, parse_prompt
from spatialalign_trl.prompts.loading import try_prompts
from spatialalign_trl.rollout.video_names import VIDEO_SUFFIXES, read_video_name, videos_in


@dataclass(frozen=True)
class Question:
    """The parts of a prompt that the score needs: what a video should show.

    Args:
        type (`str`): The relations in order, such as `"LR"`.
        animal, object (`str`): The two nouns.
        attribute (`str`): The animal's adjective, or `""`.
        prompt_id, prompt (`str`): The prompt that the question comes from, as far as it is known, else `""`.
    """

    type: str
    animal: str
    object: str
    attribute: str = ""
    prompt_id: str = ""
    prompt: str = ""

    @classmethod
    def of_prompt(cls, prompt: DSRPrompt, prompt_id: str | None = None) -> Question:
        """Take the question from a parsed prompt; `prompt_id` replaces the prompt's own id."""
        return cls(
            type=prompt.type,
            animal=prompt.animal,
            object=prompt.object,
            attribute=prompt.attribute,
            prompt_id=prompt.prompt_id if prompt_id is None else prompt_id,
            prompt=prompt.prompt,
        )

    def columns(self) -> dict[str, list[str]]:
        """Return the prompt columns that a reward takes, for one video."""
        return {name: [getattr(self, name)] for name in ("type", "animal", "object", "attribute")}


@dataclass(frozen=True)
class Job:
    """A video and its question.

    Args:
        path (`Path`): The video file.
        question ([`Question`]): What the video should show.
        seed (`int`, *optional*): The seed that the video was sampled with, if its name or its record contains it.
        sha256 (`str`, *optional*): The checksum in its record.
    """

    path: Path
    question: Question
    seed: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Problem:
    """An input that could not be scored: `what` (a file, a row, a prompt id), and `why`. Both are printed, so control
    codes in them are replaced."""

    what: str
    why: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "what", printable(self.what))
        object.__setattr__(self, "why", printable(self.why.replace("\n", " ")))


@dataclass
class Plan:
    """The jobs in the order of the files, and the inputs that match nothing."""

    jobs: list[Job] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def find_videos(files: Sequence[str], folder: str | None) -> list[Path]:
    """List the named files, then the videos of the folder sorted by name, each once.

    Raises:
        UsageError: when there are none, when a folder is given as a file, or when the folder does not exist.
    """
    videos = [Path(file) for file in files]
    for path in videos:
        if path.is_dir():
            raise UsageError(f"{path} is a folder. Give it as --videos {path}")
    if folder is not None:
        directory = Path(folder)
        if not directory.is_dir():
            raise UsageError(f"--videos: there is no folder {folder}")
        inside = videos_in(directory)
        if not inside:
            raise UsageError(f"--videos: {folder} contains no video ({', '.join(VIDEO_SUFFIXES)})")
        videos += inside
    if not videos:
        raise UsageError("no videos were given. Name files, or a folder with --videos DIR")
    return list(dict.fromkeys(videos))


def read_prompts(source: str, split: str) -> tuple[dict[str, Question], list[Problem]]:
    """Read a prompt set.

    Returns:
        The questions by prompt id, and a problem for each row that is not a valid prompt.

    Raises:
        UsageError: when the source cannot be read at all, or contains no prompt.
    """
    questions: dict[str, Question] = {}
    problems = []
    try:
        for place, prompt in try_prompts(source, split):
            if isinstance(prompt, ValueError):
                problems.append(Problem(place, str(prompt)))
            else:
                questions[prompt.prompt_id] = Question.of_prompt(prompt)
    except (OSError, ValueError) as error:
        raise UsageError(f"--prompts: {error}") from error
    if not questions:
        reason = f"{problems[0].what}: {problems[0].why}" if problems else "it is empty"
        raise UsageError(f"--prompts: {source} contains no prompt. {reason}")
    return questions, problems


def parse_question(text: str, attribute: str | None) -> Question:
    """Parse the question from one prompt that holds for all videos.

    Args:
        text (`str`): The prompt.
        attribute (`str`, *optional*): The animal's adjective, if the prompt does not contain it.

    Raises:
        UsageError: when the text does not follow the grammar, or contains another attribute.
    """
    try:
        prompt = parse_prompt(text)
    except ValueError as error:
        raise UsageError(f"--prompt: {error}") from error
    if attribute and prompt.attribute and attribute != prompt.attribute:
        raise UsageError(
            f"--attribute is {attribute!r}, but the prompt says {prompt.attribute!r}. Leave out one of them"
        )
    question = Question.of_prompt(prompt, prompt_id="")
    return question if not attribute else replace(question, attribute=attribute)


def plan_one_question(videos: Iterable[Path], question: Question) -> Plan:
    """Give all videos the same question."""
    return Plan([Job(path, question) for path in videos])


def plan_by_prompt_id(videos: Sequence[Path], questions: dict[str, Question]) -> Plan:
    """Give every video the question of the prompt with its id.

    The id comes from a sample's record next to the file, otherwise from the file's name. Videos without a prompt and
    prompts without a video become problems.
    """
    plan = Plan()
    matched = set()
    for path in videos:
        try:
            job = _job_from_record(path)
            if job is None:  # then the authors' naming: the job's question is only an id so far
                prompt_id, seed = read_video_name(path.stem, questions)
                job = Job(path, Question("", "", "", prompt_id=prompt_id), seed)
        except ValueError as error:
            plan.problems.append(Problem(printable(path), str(error)))
            continue
        question = questions.get(job.question.prompt_id)
        if question is None:
            why = f"video without a prompt: the prompt set has no prompt_id {job.question.prompt_id!r}"
            plan.problems.append(Problem(printable(path), why))
            continue
        matched.add(question.prompt_id)
        plan.jobs.append(Job(path, question, job.seed, job.sha256))
    plan.problems += [
        Problem(printable(prompt_id), "prompt without a video") for prompt_id in questions if prompt_id not in matched
    ]
    return plan


def plan_from_records(videos: Sequence[Path]) -> Plan:
    """Give every video the question of the prompt in its record. Videos without a record become problems."""
    plan = Plan()
    for path in videos:
        try:
            job = _job_from_record(path)
        except ValueError as error:
            plan.problems.append(Problem(printable(path), str(error)))
            continue
        if job is None:
            plan.problems.append(
                Problem(printable(path), "video without a prompt: there is no record (.json) next to it")
            )
        else:
            plan.jobs.append(job)
    return plan


def _job_from_record(path: Path) -> Job | None:
    """Read the job from a sample's record, `<id>.json` next to `<id>.mp4` (`rollout/store.py`), if there is one."""
    file = path.with_suffix(".json")
    if not file.is_file():
        return None
    record: Any = read_json(file)
    try:
        row = record["row"]
        words = {name: str(row[name]) for name in ("type", "animal", "object")}
        optional = {name: str(row.get(name) or "") for name in ("attribute", "prompt")}
        question = Question(**words, **optional, prompt_id=str(record["prompt_id"]))
        sha256 = record.get("files", {}).get("video", {}).get("sha256")
        return Job(path, question, int(record["seed"]), sha256)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{file} is not the record of a sample: {type(error).__name__} {error}") from error
