"""Plan the work of `spatialalign score`: match each video with a question, and list the inputs that match nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from spatialalign_trl.cli.parsing import UsageError
from spatialalign_trl.errors import printable
from spatialalign_trl.prompts import DSRPrompt, parse_prompt
from spatialalign_trl.prompts.loading import try_prompts
from spatialalign_trl.rollout.video_files import (
    FolderContent,
    FoundVideo,
    folder_content,
    identify_video,
    why_unidentified,
    without_repetition,
)
from spatialalign_trl.text_files import same_text


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


def find_videos(
    files: Sequence[str], folder: str | None, ignore: Sequence[Path] = ()
) -> tuple[list[Path], list[Problem]]:
    """List the named files, then the videos of the folder sorted by name, each once.

    Args:
        files (sequence of `str`): The named files.
        folder (`str`, *optional*): The folder.
        ignore (sequence of `Path`, *optional*): The command's own files and folders.

    Returns:
        The videos, and what in the folder is not read.

    Raises:
        UsageError: when there are none, when a folder is given as a file, or when the folder does not exist.
    """
    videos = [Path(file) for file in files]
    for path in videos:
        if path.is_dir():
            raise UsageError(f"{path} is a folder. Give it as --videos {path}")
    left_out: list[Problem] = []
    if folder is not None:
        directory = Path(folder)
        if not directory.is_dir():
            raise UsageError(f"--videos: there is no folder {folder}")
        content = list_folder(directory, ignore)
        left_out = problems_of(content.left_out)
        if not content.videos:
            reasons = "".join(f"\n  {problem.what}: {problem.why}" for problem in left_out)
            raise UsageError(f"--videos: {folder} contains no video{reasons}")
        videos += content.videos
    if not videos:
        raise UsageError("no videos were given. Name files, or a folder with --videos DIR")
    return each_once(videos), left_out


def each_once(paths: Iterable[Path]) -> list[Path]:
    """Return the paths without those that name the same file again, such as an absolute and a relative one."""
    # Only the folder's links are followed: a link to another model's video is a video of its own.
    once: dict[Path, Path] = {}
    for path in paths:
        once.setdefault(path.parent.resolve() / path.name, path)
    return list(once.values())


def list_folder(folder: Path, ignore: Sequence[Path] = ()) -> FolderContent:
    """List the videos of a folder as [`folder_content`] does.

    Raises:
        UsageError: when the folder cannot be read.
    """
    try:
        return folder_content(folder, ignore)
    except OSError as error:
        raise UsageError(f"the folder {folder} cannot be read ({error.strerror})") from error


def problems_of(left_out: Mapping[Path, str]) -> list[Problem]:
    """Return a problem for each file that is not read, from its reason."""
    return [Problem(printable(path), why) for path, why in left_out.items()]


def read_prompts(source: str, split: str) -> tuple[dict[str, Question], list[Problem]]:
    """Read a prompt set.

    Returns:
        The questions by prompt id (as `same_text` writes it), and a problem for each row that is not a valid prompt.

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
                questions[same_text(prompt.prompt_id)] = Question.of_prompt(prompt)
    except (OSError, ValueError) as error:
        raise UsageError(f"--prompts: {error}") from error
    if not questions:
        reason = f"{problems[0].what}: {problems[0].why}" if problems else f"{source} contains no prompt"
        raise UsageError(f"--prompts: {reason}")
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


def plan_by_prompt_id(
    videos: Sequence[Path], questions: Mapping[str, Question], problems: Sequence[Problem] = ()
) -> Plan:
    """Give every video the question of the prompt with its id.

    The id comes from a sample's record next to the file, otherwise from the file's name. Videos without a prompt and
    prompts without a video become problems.

    Args:
        videos (sequence of `Path`): The videos.
        questions (`dict[str, Question]`), problems (sequence of [`Problem`]): What [`read_prompts`] returned.
    """
    found, plan = _identified(videos, questions, problems)
    matched = set()
    for video in found:
        question = questions.get(video.prompt_id)
        if question is None:
            why = f"video without a prompt: the prompt set has no prompt_id {video.prompt_id!r}"
            plan.problems.append(Problem(printable(video.path), why))
            continue
        matched.add(video.prompt_id)
        plan.jobs.append(Job(video.path, question, video.seed, video.sha256))
    plan.problems += [
        Problem(printable(question.prompt_id), "prompt without a video")
        for prompt_id, question in questions.items()
        if prompt_id not in matched
    ]
    return plan


def plan_from_records(videos: Sequence[Path]) -> Plan:
    """Give every video the question of the prompt in its record. Videos without a record become problems."""
    found, plan = _identified(videos)
    for video in found:
        row = video.record["row"]
        try:
            words = {name: str(row[name]) for name in ("type", "animal", "object")}
        except KeyError as error:
            why = f"video without a prompt that can be scored: its record has no {error}"
            plan.problems.append(Problem(printable(video.path), why))
            continue
        optional = {name: str(row.get(name) or "") for name in ("attribute", "prompt")}
        question = Question(**words, **optional, prompt_id=video.record["prompt_id"])
        plan.jobs.append(Job(video.path, question, video.seed, video.sha256))
    return plan


def _identified(
    videos: Sequence[Path], known: Container[str] = (), problems: Sequence[Problem] = ()
) -> tuple[list[FoundVideo], Plan]:
    """Identify videos; the plan has the problems of those that cannot be identified or are there twice."""
    found, plan = [], Plan(problems=list(problems))
    for path in videos:
        try:
            video = identify_video(path, known)
        except ValueError as error:
            plan.problems.append(Problem(printable(path), str(error)))
            continue
        if video is None:
            plan.problems.append(Problem(printable(path), why_unidentified(path)))
        else:
            found.append(video)
    found, left_out = without_repetition(found)
    plan.problems += problems_of(left_out)
    return found, plan


def read_job(job: Job) -> bytes:
    """Read the content of a job's video.

    Raises:
        OSError: when the file cannot be read.
        ValueError: when it is not the one that its record describes.
    """
    content = job.path.read_bytes()
    if job.sha256 is not None and hashlib.sha256(content).hexdigest() != job.sha256:
        raise ValueError("it is damaged: its checksum is not the one in its record")
    return content
