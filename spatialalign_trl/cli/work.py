"""What `spatialalign score` is to do: which video is asked which question, and what was given that fits nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from spatialalign_trl.cli.parsing import UsageError
from spatialalign_trl.files import read_json
from spatialalign_trl.prompts import DSRPrompt, parse_prompt
from spatialalign_trl.prompts.loading import prompt_from_row, read_rows
from spatialalign_trl.rollout.video_names import VIDEO_SUFFIXES, read_video_name, videos_in


@dataclass(frozen=True)
class Question:
    """What a video is asked: the parts of a prompt that the score needs.

    Args:
        type (`str`): The relations in order, such as `"LR"`.
        animal, object (`str`): The two nouns.
        attribute (`str`): The animal's adjective, or `""`.
        prompt_id, prompt (`str`): Where it comes from, as far as that is known, else `""`.
    """

    type: str
    animal: str
    object: str
    attribute: str = ""
    prompt_id: str = ""
    prompt: str = ""

    @classmethod
    def of_prompt(cls, prompt: DSRPrompt, prompt_id: str | None = None) -> Question:
        return cls(
            type=prompt.type,
            animal=prompt.animal,
            object=prompt.object,
            attribute=prompt.attribute,
            prompt_id=prompt.prompt_id if prompt_id is None else prompt_id,
            prompt=prompt.prompt,
        )

    def columns(self) -> dict[str, list[str]]:
        """The columns that a reward is handed, for one video."""
        return {name: [getattr(self, name)] for name in ("type", "animal", "object", "attribute")}


@dataclass(frozen=True)
class Job:
    """A video and its question.

    Args:
        path (`Path`): The file.
        question ([`Question`]): What it is asked.
        seed (`int`, *optional*): The seed it was sampled with, where its name or its record says so.
        sha256 (`str`, *optional*): The checksum that its record holds.
    """

    path: Path
    question: Question
    seed: int | None = None
    sha256: str | None = None


def shown(text: str | Path) -> str:
    """A path, or what was said about it, fit to print and write: what is no letter, such as a terminal's
    control codes or bytes that are no UTF-8, becomes a question mark.
    """
    return "".join(letter if letter.isprintable() else "?" for letter in str(text))


@dataclass(frozen=True)
class Problem:
    """Something given that could not be scored: `what` (a file, a row, a prompt id), and `why`."""

    what: str
    why: str


@dataclass
class Plan:
    """The jobs, in the order of the files, and what fits nothing."""

    jobs: list[Job] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def find_videos(files: Sequence[str], folder: str | None) -> list[Path]:
    """The files named, then those of the folder by name; each once.

    Raises:
        UsageError: when there are none, or a folder stands where a file should and the other way round.
    """
    found = [Path(file) for file in files]
    for path in found:
        if path.is_dir():
            raise UsageError(f"{path} is a folder; give it as --videos {path}")
    if folder is not None:
        directory = Path(folder)
        if not directory.is_dir():
            raise UsageError(f"--videos: there is no folder {folder}")
        inside = videos_in(directory)
        if not inside:
            raise UsageError(f"--videos: {folder} holds no video ({', '.join(VIDEO_SUFFIXES)})")
        found += inside
    if not found:
        raise UsageError("which videos? Name files, or a folder with --videos DIR")
    return list(dict.fromkeys(found))


def read_prompts(source: str, split: str) -> tuple[dict[str, Question], list[Problem]]:
    """The questions of a prompt set by prompt id, and its rows that are none.

    Raises:
        UsageError: when the source cannot be read at all, or holds no prompt.
    """
    questions: dict[str, Question] = {}
    problems = []
    try:
        for place, row in read_rows(source, split):
            try:
                question = Question.of_prompt(prompt_from_row(row))
                if question.prompt_id in questions:
                    raise ValueError(f"prompt_id {question.prompt_id!r} was already used; ids are unique")
                questions[question.prompt_id] = question
            except ValueError as error:
                problems.append(Problem(place, str(error)))
    except (OSError, ValueError) as error:
        raise UsageError(f"--prompts: {error}") from error
    if not questions:
        why = f"{problems[0].what}: {problems[0].why}" if problems else "it is empty"
        raise UsageError(f"--prompts: {source} holds no prompt; {why}")
    return questions, problems


def question_of_text(text: str, attribute: str | None) -> Question:
    """The question that one prompt for all videos asks.

    Raises:
        UsageError: when the text does not follow the grammar, or has another attribute than the one given.
    """
    try:
        prompt = parse_prompt(text)
    except ValueError as error:
        raise UsageError(f"--prompt: {error}") from error
    if attribute and prompt.attribute and attribute != prompt.attribute:
        raise UsageError(f"--attribute is {attribute!r}, but the prompt says {prompt.attribute!r}")
    question = Question.of_prompt(prompt, prompt_id="")
    return question if not attribute else replace(question, attribute=attribute)


def same_question(videos: Iterable[Path], question: Question) -> Plan:
    """All videos are asked the same."""
    return Plan([Job(path, question) for path in videos])


def questions_by_name(videos: Sequence[Path], questions: dict[str, Question]) -> Plan:
    """Every video is asked what the prompt with its id says. The id stands in a sample's record beside the file, else
    in the file's name. Videos without a prompt and prompts without a video are problems.
    """
    plan = Plan()
    asked = set()
    for path in videos:
        try:
            job = _job_by_record(path) or _job_by_name(path, questions)
        except ValueError as error:
            plan.problems.append(Problem(shown(path), str(error)))
            continue
        question = questions.get(job.question.prompt_id)
        if question is None:
            why = f"video without a prompt: the prompt set has no prompt_id {job.question.prompt_id!r}"
            plan.problems.append(Problem(shown(path), why))
            continue
        asked.add(question.prompt_id)
        plan.jobs.append(Job(path, question, job.seed, job.sha256))
    plan.problems += [
        Problem(shown(prompt_id), "prompt without a video") for prompt_id in questions if prompt_id not in asked
    ]
    return plan


def questions_of_records(videos: Sequence[Path]) -> Plan:
    """Every video is asked what the record beside it says it was sampled from."""
    plan = Plan()
    for path in videos:
        try:
            job = _job_by_record(path)
        except ValueError as error:
            plan.problems.append(Problem(shown(path), str(error)))
            continue
        if job is None:
            plan.problems.append(Problem(shown(path), "video without a prompt: no record (.json) lies beside it"))
        else:
            plan.jobs.append(job)
    return plan


def _job_by_name(path: Path, questions: dict[str, Question]) -> Job:
    """The job as the authors' naming says it; its question holds no more than the prompt's id."""
    prompt_id, seed = read_video_name(path.stem, questions)
    return Job(path, Question("", "", "", prompt_id=prompt_id), seed)


def _job_by_record(path: Path) -> Job | None:
    """The job that the record of a sample says (`rollout/store.py`: `<id>.json` beside `<id>.mp4`); `None` where there
    is no record.

    Raises:
        ValueError: when the file beside the video is no sample's record.
    """
    file = path.with_suffix(".json")
    if not file.is_file():
        return None
    record: Any = read_json(file)
    try:
        row = record["row"]
        words = {name: str(row[name]) for name in ("type", "animal", "object")}
        more = {name: str(row.get(name) or "") for name in ("attribute", "prompt")}
        question = Question(**words, **more, prompt_id=str(record["prompt_id"]))
        sha256 = record.get("files", {}).get("video", {}).get("sha256")
        return Job(path, question, int(record["seed"]), sha256)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{file} is not the record of a sample: {type(error).__name__} {error}") from error
