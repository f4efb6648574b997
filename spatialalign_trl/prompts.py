"""Prompts of dynamic spatial relationships: the relations, the six types, the grammar (build and parse), loading sets.

One animal moves relative to one static object: one relation holds at the start, another at the end (SpatialAlign,
arXiv 2602.22745, section 3). The grammar is

    {scene}, a|an {attribute? animal} is {initial_SR} a|an {object}, then the {animal} {verb} {final_SR} the {object}.

The second mention, "the {animal}", tells which words of the first one are the noun; those before it are the attribute.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from datasets import Dataset

GRAMMAR = (
    "{scene}, a|an {attribute? animal} is on the left|right|top of a|an {object}, "
    "then the {animal} {verb} to the left|right|top of the {object}."
)
# The columns of every prompt dataset, in this order.
PROMPT_COLUMNS = (
    "prompt_id",
    "prompt",
    "type",
    "scene",
    "initial_SR",
    "final_SR",
    "animal",
    "object",
    "verb",
    "attribute",
)


class Relation(NamedTuple):
    """A spatial relation between the animal and the object.

    Args:
        code (`str`): `"L"`, `"R"` or `"T"`.
        initial (`str`): How the relation is worded at the start of the video.
        final (`str`): How the relation is worded at its end.
    """

    code: str
    initial: str
    final: str


RELATIONS: dict[str, Relation] = {
    "L": Relation("L", "on the left of", "to the left of"),
    "R": Relation("R", "on the right of", "to the right of"),
    "T": Relation("T", "on the top of", "to the top of"),
}
DSR_TYPES = ("LR", "LT", "RL", "RT", "TL", "TR")

_CODE_OF_INITIAL = {relation.initial: code for code, relation in RELATIONS.items()}
_CODE_OF_FINAL = {relation.final: code for code, relation in RELATIONS.items()}
_INITIAL = re.compile(rf"(?P<before>.*) is (?P<relation>{'|'.join(_CODE_OF_INITIAL)}) (?P<object>.+)")
_FINAL = re.compile(rf"(?P<before>.+) (?P<relation>{'|'.join(_CODE_OF_FINAL)}) the (?P<object>.+)")
_SUBJECT = re.compile(r"(?P<scene>.*), (?P<article>an?) (?P<animal>[^,]+)")
_WITH_ARTICLE = re.compile(r"an? (?P<noun>.+)")
_WORDS = re.compile(r"[^\s,.;:!?]+( [^\s,.;:!?]+)*")

# Spelled with a vowel but spoken with a consonant, and the other way round.
_SPOKEN_CONSONANT = re.compile(r"eu|ewe|one\b|uni(?![dmn])|us[eu]|ut[ei]|ukulele")
_SPOKEN_VOWEL = re.compile(r"heir|honest|honou?r|hour")


class PromptGrammarError(ValueError):
    """A prompt, or a part of one, that does not follow the grammar.

    Args:
        part (`str`): The part that is off: `"ending"`, `"scene"`, `"animal"`, `"object"`, `"verb"`, `"attribute"`,
            `"initial_SR"`, `"final_SR"`, `"type"` or `"text"`.
        message (`str`): What is off about it and what was expected.
        text (`str`, *optional*): The prompt.
    """

    def __init__(self, part: str, message: str, text: str | None = None) -> None:
        self.part = part
        where = "" if text is None else f". The prompt: {text!r}. The grammar: {GRAMMAR}"
        super().__init__(f"{part}: {message}{where}")


def check_dsr_type(dsr_type: str) -> str:
    """Return `dsr_type` if it is one of the six types.

    Raises:
        ValueError: If it is not; the message names the value and the types there are.
    """
    if dsr_type not in DSR_TYPES:
        raise ValueError(
            f"unknown DSR type {dsr_type!r}: expected one of {', '.join(DSR_TYPES)} (initial, then final relation; "
            "L = left, R = right, T = top)"
        )
    return dsr_type


def split_type(dsr_type: str) -> tuple[str, str]:
    """The codes of the initial and of the final relation: `"LT"` -> `("L", "T")`. Unknown types raise `ValueError`."""
    check_dsr_type(dsr_type)
    return dsr_type[0], dsr_type[1]


@dataclass(frozen=True)
class DSRPrompt:
    """A prompt and its parts.

    Args:
        prompt_id (`str`): Unique within a prompt set.
        type (`str`): One of [`DSR_TYPES`].
        scene (`str`): Where it happens, without the comma after it: `"In a meadow"`.
        initial_SR (`str`): `"on the left of"`, `"on the right of"` or `"on the top of"`.
        final_SR (`str`): `"to the left of"`, `"to the right of"` or `"to the top of"`.
        animal (`str`): The animal's noun, without its attribute.
        object (`str`): The static object's noun, one word or several.
        verb (`str`): What the animal does: `"jumps"`.
        attribute (`str`): What tells the animal apart, `"red"`, or `""`.
        prompt (`str`): The text given to the video model.
    """

    prompt_id: str
    type: str
    scene: str
    initial_SR: str
    final_SR: str
    animal: str
    object: str
    verb: str
    attribute: str
    prompt: str

    def to_row(self) -> dict[str, str]:
        """The prompt as a dataset row with the columns of [`PROMPT_COLUMNS`]."""
        values = asdict(self)
        return {column: values[column] for column in PROMPT_COLUMNS}


def indefinite_article(words: str) -> str:
    """`"a"` or `"an"`, by the sound that `words` begin with as far as the spelling tells it."""
    lowered = words.lower()
    if _SPOKEN_CONSONANT.match(lowered):
        return "a"
    return "an" if lowered[:1] in tuple("aeiou") or _SPOKEN_VOWEL.match(lowered) else "a"


def build_prompt(
    *, scene: str, animal: str, object: str, type: str, verb: str, attribute: str = "", prompt_id: str | None = None
) -> DSRPrompt:
    """Build a prompt from its parts; [`parse_prompt`] gives the same parts back.

    Args:
        scene (`str`): Where it happens. A comma at its end is dropped and its first letter becomes a capital.
        animal (`str`): The animal's noun.
        object (`str`): The object's noun.
        type (`str`): One of [`DSR_TYPES`].
        verb (`str`): A verb in the third person, `"jumps"`.
        attribute (`str`, *optional*): Stands before the animal at its first mention, `"red"`.
        prompt_id (`str`, *optional*): Made of the type and a hash of the text if it is not given.

    Raises:
        ValueError: If the type is unknown.
        PromptGrammarError: If a part is empty, holds punctuation, or could not be told from its neighbours.
    """
    initial, final = (RELATIONS[code] for code in split_type(type))
    scene = " ".join(scene.split()).rstrip(", ")
    scene = scene[:1].upper() + scene[1:]
    parts = {"scene": scene, "animal": animal, "object": object, "verb": verb, "attribute": attribute}
    if not scene:
        raise PromptGrammarError("scene", "is empty")
    for part in ("animal", "object", "verb", "attribute"):
        if not _WORDS.fullmatch(parts[part]) and not (part == "attribute" and attribute == ""):
            raise PromptGrammarError(part, f"{parts[part]!r} must be words with single spaces and no punctuation")

    first_mention = f"{attribute} {animal}".lstrip()
    text = (
        f"{scene}, {indefinite_article(first_mention)} {first_mention} is {initial.initial} "
        f"{indefinite_article(object)} {object}, then the {animal} {verb} {final.final} the {object}."
    )
    prompt = parse_prompt(text, prompt_id)
    for part, value in {**parts, "type": type}.items():
        if getattr(prompt, part) != value:
            raise PromptGrammarError(part, f"{value!r} would be read back as {getattr(prompt, part)!r}", text)
    return prompt


def parse_prompt(text: str, prompt_id: str | None = None) -> DSRPrompt:
    """Take a prompt of the grammar apart.

    Either article is accepted before either noun, and runs of white space count as one space.

    Args:
        text (`str`): The prompt.
        prompt_id (`str`, *optional*): Made of the type and a hash of the text if it is not given.

    Raises:
        PromptGrammarError: If the text does not follow the grammar; says which part is off.
    """
    text = " ".join(text.split())
    if not text.endswith("."):
        raise PromptGrammarError("ending", "the prompt must end with a full stop", text)
    start, then, end = text[:-1].rpartition(", then the ")
    if not then:
        raise PromptGrammarError("text", "', then the {animal} {verb} ...' is missing", text)

    head = _INITIAL.fullmatch(start)
    if head is None:
        raise PromptGrammarError("initial_SR", f"expected 'is {'|'.join(_CODE_OF_INITIAL)}' and an object", text)
    tail = _FINAL.fullmatch(end)
    if tail is None:
        raise PromptGrammarError("final_SR", f"expected '{'|'.join(_CODE_OF_FINAL)}' and 'the {{object}}'", text)
    subject = _SUBJECT.fullmatch(head["before"])
    if subject is None:
        raise PromptGrammarError("scene", f"expected '{{scene}}, a|an {{animal}}', found {head['before']!r}", text)
    scene = subject["scene"]
    if not scene or scene != scene.rstrip(", ") or scene[0] != scene[0].upper():
        raise PromptGrammarError("scene", f"{scene!r} must begin with a capital letter and not end in a comma", text)

    first_object = _WITH_ARTICLE.fullmatch(head["object"])
    if first_object is None:
        raise PromptGrammarError("object", f"expected 'a' or 'an' before {head['object']!r}", text)
    noun = first_object["noun"]
    if tail["object"] != noun:
        raise PromptGrammarError("object", f"{noun!r} at the start but {tail['object']!r} at the end", text)
    attribute, animal, verb = _split_animal(subject["animal"], tail["before"], text)
    for part, words in {"animal": animal, "object": noun, "verb": verb}.items():
        if not _WORDS.fullmatch(words):
            raise PromptGrammarError(part, f"{words!r} must be words with no punctuation", text)
    if animal.casefold() == noun.casefold():
        raise PromptGrammarError("object", f"animal and object are both {noun!r}; they must differ", text)

    dsr_type = _CODE_OF_INITIAL[head["relation"]] + _CODE_OF_FINAL[tail["relation"]]
    if dsr_type not in DSR_TYPES:
        raise PromptGrammarError("type", f"the relation must change, but both are {dsr_type[0]!r}", text)
    if prompt_id is None:
        prompt_id = f"{dsr_type}_{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    return DSRPrompt(
        prompt_id=prompt_id,
        type=dsr_type,
        scene=scene,
        initial_SR=head["relation"],
        final_SR=tail["relation"],
        animal=animal,
        object=noun,
        verb=verb,
        attribute=attribute,
        prompt=text,
    )


def _split_animal(first_mention: str, second_mention: str, text: str) -> tuple[str, str, str]:
    """Attribute, noun and verb of `"red fire fox"` and `"fire fox jumps"`: the noun is what both mentions share."""
    first, second = first_mention.split(), second_mention.split()
    for length in range(min(len(first), len(second)), 0, -1):
        if first[-length:] == second[:length]:
            if length == len(second):
                raise PromptGrammarError("verb", f"is missing after 'the {second_mention}'", text)
            return " ".join(first[:-length]), " ".join(first[-length:]), " ".join(second[length:])
    raise PromptGrammarError("animal", f"{first_mention!r} at the start but 'the {second_mention}' later", text)


def load_prompts(source: str | Path | Dataset, split: str = "train") -> Dataset:
    """Load a prompt set and take every prompt apart.

    Args:
        source (`str`, `Path` or [`~datasets.Dataset`]): A dataset folder in the Hub's layout, a dataset id on the Hub,
            a file (`.csv`, `.jsonl`, `.json` with a list of rows, `.txt` with a prompt a line) or a dataset. A row
            holds `prompt`, or the parts to build it from; parts beside a prompt must agree with it, other columns are
            dropped. The columns of the SpatialAlign authors' files are accepted as they are.
        split (`str`, *optional*, defaults to `"train"`): The split of a folder or of a Hub dataset; a file has none.

    Returns:
        [`~datasets.Dataset`] with exactly the columns of [`PROMPT_COLUMNS`], all strings.

    Raises:
        FileNotFoundError: If `source` looks like a file or a folder that is not there.
        ValueError: If the source is empty or has a row that is not a prompt; names the source and the row.
    """
    from datasets import Dataset, Features, Value

    rows: list[dict[str, str]] = []
    place_of_id: dict[str, str] = {}
    for place, row in _read_rows(source, split):
        try:
            prompt = _prompt_from_row(row)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error
        earlier = place_of_id.setdefault(prompt.prompt_id, place)
        if earlier != place:
            raise ValueError(f"{place}: prompt_id {prompt.prompt_id!r} was already used at {earlier}; ids are unique")
        rows.append(prompt.to_row())
    if not rows:
        raise ValueError(f"{source} holds no prompts")
    return Dataset.from_list(rows, features=Features({column: Value("string") for column in PROMPT_COLUMNS}))


def _prompt_from_row(row: Mapping[str, Any]) -> DSRPrompt:
    given = {column: str(row[column]).strip() for column in PROMPT_COLUMNS if row.get(column) not in (None, "")}
    if "type" in given:
        check_dsr_type(given["type"])
    prompt_id = given.pop("prompt_id", None)
    text = given.pop("prompt", None)
    if text is not None:
        prompt = parse_prompt(text, prompt_id)
    else:
        missing = [part for part in ("scene", "animal", "object", "type", "verb") if part not in given]
        if missing:
            raise ValueError(f"no column 'prompt', and to build it these columns are missing: {', '.join(missing)}")
        parts = {part: given.get(part, "") for part in ("scene", "animal", "object", "type", "verb", "attribute")}
        prompt = build_prompt(**parts, prompt_id=prompt_id)
    for column, value in given.items():
        if column == "scene":
            value = value.rstrip(", ")
        if getattr(prompt, column) != value:
            raise ValueError(f"column {column!r} is {value!r} but the prompt says {getattr(prompt, column)!r}")
    return prompt


def _read_rows(source: str | Path | Dataset, split: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Pairs of a row's place, for error messages, and the row."""
    if not isinstance(source, (str, Path)):
        yield from ((f"row {index} of the dataset", row) for index, row in enumerate(source))
        return
    path = Path(source)
    if path.suffix in _FILE_READERS:
        if not path.is_file():
            raise FileNotFoundError(f"there is no prompt file {path}")
        yield from ((f"{path}, {place}", row) for place, row in _FILE_READERS[path.suffix](path))
        return
    if path.is_file():
        raise ValueError(f"{path}: prompt files end in {', '.join(_FILE_READERS)}")
    # A Hub id is "name" or "owner/name"; anything else that does not exist was meant as a folder.
    if not path.is_dir() and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(source)):
        raise FileNotFoundError(f"there is no prompt folder {path}")
    from datasets import load_dataset

    for index, row in enumerate(load_dataset(str(source), split=split)):
        yield f"{source}, split {split}, row {index}", row


def _read_csv(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        for row in reader:
            yield f"line {reader.line_num}", row


def _read_jsonl(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for place, line in _read_lines(path):
        yield place, _json_row(line, f"{path}, {place}")


def _read_json(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    rows = _json_row(path.read_text(encoding="utf-8"), str(path), kind=list)
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(f"{path}, row {index}: expected an object with the prompt's columns, found {row!r}")
        yield f"row {index}", row


def _json_row(text: str, place: str, kind: type = dict) -> Any:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place}: not valid JSON ({error})") from error
    if not isinstance(value, kind):
        expected = "an object with the prompt's columns" if kind is dict else "a list of rows"
        raise ValueError(f"{place}: expected {expected}, found {text[:80]!r}")
    return value


def _read_txt(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    return ((place, {"prompt": line}) for place, line in _read_lines(path))


def _read_lines(path: Path) -> Iterator[tuple[str, str]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield f"line {number}", line


_FILE_READERS = {".csv": _read_csv, ".jsonl": _read_jsonl, ".json": _read_json, ".txt": _read_txt}
