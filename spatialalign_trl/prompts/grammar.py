"""Build prompts from their parts, and parse prompts, by this grammar:

    {scene}, a|an {attribute? animal} is {initial_SR} a|an {object}, then the {animal} {verb} {final_SR} the {object}.

The second mention, "the {animal}", determines which words of the first mention are the noun. The words before them are
the attribute. The last clause may be repeated for every further relation of a sequence (this is ours; the paper has
one motion):

    ..., then the {animal} {verb} {SR} the {object}, then the {animal} {verb} {final_SR} the {object}.

This is what is built. What else is read, as long as its meaning is clear, is in `reading.py` and `relations.py`.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict, dataclass

from spatialalign_trl.prompts.nouns import is_same_noun, normalize
from spatialalign_trl.prompts.reading import (
    GRAMMAR,
    PromptGrammarError,
    Reading,
    check_one_thing,
    has_one_meaning,
    read_sentence,
)
from spatialalign_trl.prompts.relations import RELATIONS, check_dsr_type, split_type

__all__ = [
    "GRAMMAR",
    "PROMPT_COLUMNS",
    "DSRPrompt",
    "PromptGrammarError",
    "build_prompt",
    "check_one_thing",
    "indefinite_article",
    "parse_prompt",
]

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

_THEN = ", then the "
_INITIALS, _FINALS = (
    {getattr(relation, place): code for code, relation in RELATIONS.items()} for place in ("initial", "final")
)
_INITIAL = re.compile(rf"(?P<before>.*) is (?P<relation>{'|'.join(_INITIALS)}) an? (?P<object>.+)")
_FINAL = re.compile(rf"(?P<before>.+) (?P<relation>{'|'.join(_FINALS)}) the (?P<object>.+)")
_SUBJECT = re.compile(r"(?P<scene>.*[^, ]), an? (?P<animal>[^,]+)")
_WORDS = re.compile(r"[^\s,.;:!?]+( [^\s,.;:!?]+)*")

# Words that are spelled with a vowel but pronounced with a consonant, and the other way round.
_SPOKEN_CONSONANT = re.compile(r"eu|ewe|one\b|uni(?![dmn])|us[eu]|ut[ei]|ukulele")
_SPOKEN_VOWEL = re.compile(r"heir|honest|honou?r|hour")
# Capitals that are spoken letter by letter ("MRI", "X-ray"), and the letters whose names begin with a vowel.
_SPELLED = re.compile(r"(?:[A-Z]|[A-Z]{2,3}|[B-DF-HJ-NP-TV-Z]{4,})(?![A-Za-z])")
_VOWEL_LETTERS = "AEFHILMNORSX"


@dataclass(frozen=True)
class DSRPrompt:
    """A prompt and its parts.

    Args:
        prompt_id (`str`): The id, unique within a prompt set.
        type (`str`): The relations in order. In the paper's prompts, this is one of [`DSR_TYPES`].
        scene (`str`): The place, without the comma after it: `"In a meadow"`. `""` if the text names none.
        initial_SR (`str`): The first relation in the grammar's words, such as `"on the left of"`.
        final_SR (`str`): The last relation in the grammar's words, such as `"to the right of"`.
        animal (`str`): The animal's noun, without its attribute.
        object (`str`): The static object's noun, one word or several.
        verb (`str`): The animal's motion, such as `"jumps"`. In a sequence, one verb per motion: `"jumps, walks"`.
        attribute (`str`): The words that describe the animal, such as `"red"`, or `""`.
        prompt (`str`): The text for the video model, as it was written.
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
        """Return the prompt as a dataset row with the columns of [`PROMPT_COLUMNS`]."""
        values = asdict(self)
        return {column: values[column] for column in PROMPT_COLUMNS}

    def describe(self) -> str:
        """Return the type and the sentence that [`build_prompt`] writes for these parts: what was read in the text."""
        return f"{self.type}: {_sentence(self)}"


def indefinite_article(words: str) -> str:
    """Return `"a"` or `"an"`, depending on the sound that `words` begin with, as far as the spelling shows it."""
    if _SPELLED.match(words):
        return "an" if words[0] in _VOWEL_LETTERS else "a"
    lowered = words.lower()
    if _SPOKEN_CONSONANT.match(lowered):
        return "a"
    return "an" if lowered[:1] in tuple("aeiou") or _SPOKEN_VOWEL.match(lowered) else "a"


def build_prompt(
    *, scene: str, animal: str, object: str, type: str, verb: str, attribute: str = "", prompt_id: str | None = None
) -> DSRPrompt:
    """Build a prompt from its parts. [`parse_prompt`] returns the same parts.

    Args:
        scene (`str`): The place. A comma at its end is dropped, and its first letter is capitalised.
        animal (`str`): The animal's noun.
        object (`str`): The object's noun.
        type (`str`): The relations in order, such as `"LR"` or `"LTR"`.
        verb (`str`): A verb in the third person, such as `"jumps"`. In a sequence, one per motion: `"jumps, walks"`.
        attribute (`str`, *optional*): Words before the animal at its first mention, such as `"red"`.
        prompt_id (`str`, *optional*): The id. By default it consists of the type and a hash of the text.

    Returns:
        [`DSRPrompt`]: the prompt with its parts.

    Raises:
        ValueError: If the type is unknown.
        PromptGrammarError: If a part is empty, contains punctuation, or could not be separated from its neighbours.
    """
    # 1. Check every part alone
    initial, *later = (RELATIONS[code] for code in split_type(type))
    scene = " ".join(scene.split()).rstrip(", ")
    scene = scene[:1].upper() + scene[1:]
    parts = {"scene": scene, "animal": animal, "object": object, "verb": verb, "attribute": attribute}
    if not scene:
        raise PromptGrammarError("scene", "is empty")
    verbs = verb.split(", ") if len(later) > 1 else [verb]
    if len(verbs) != len(later):
        raise PromptGrammarError("verb", f"{verb!r} must name {len(later)} motions, one per step of {type!r}")
    for part, words in (("animal", animal), ("object", object)):
        check_one_thing(part, words)
    word_parts = [
        ("animal", animal),
        ("object", object),
        ("attribute", attribute),
        *(("verb", word) for word in verbs),
    ]
    for part, words in word_parts:
        if not _WORDS.fullmatch(words) and not (part == "attribute" and attribute == ""):
            raise PromptGrammarError(part, f"{words!r} must be words with single spaces and no punctuation")

    # 2. Put the text together
    built = DSRPrompt(
        prompt_id="", type=type, initial_SR=initial.initial, final_SR=later[-1].final, prompt="", **parts
    )
    text = _sentence(built)

    # 3. Check that it parses to the same parts
    prompt = parse_prompt(text, prompt_id)
    for part, value in {**parts, "type": type}.items():
        if getattr(prompt, part) != value:
            raise PromptGrammarError(part, f"{value!r} would be parsed as {getattr(prompt, part)!r}", text)
    return prompt


def _sentence(prompt: DSRPrompt) -> str:
    """Return the sentence of the grammar for the parts of a prompt. Without a scene, it begins with the animal."""
    initial, *later = (RELATIONS[code] for code in split_type(prompt.type))
    verbs = prompt.verb.split(", ") if len(later) > 1 else [prompt.verb]
    first_mention = f"{prompt.attribute} {prompt.animal}".lstrip()
    motions = (
        f", then the {prompt.animal} {verb} {relation.final} the {prompt.object}"
        for verb, relation in zip(verbs, later, strict=True)
    )
    start = f"{prompt.scene}, {indefinite_article(first_mention)}" if prompt.scene else ""
    start = start or indefinite_article(first_mention).capitalize()
    return (
        f"{start} {first_mention} is {initial.initial} {indefinite_article(prompt.object)} {prompt.object}"
        f"{''.join(motions)}."
    )


def parse_prompt(text: str, prompt_id: str | None = None) -> DSRPrompt:
    """Parse a prompt into its parts.

    The text may deviate from what [`build_prompt`] writes, as long as its meaning is clear: see `rewards/README.md`.
    It stays as it is, apart from white space at its ends and line breaks. `describe()` of the result says what was
    read. In the parts, runs of white space are one space, and characters are composed (NFC).

    Args:
        text (`str`): The prompt.
        prompt_id (`str`, *optional*): The id. By default it consists of the type and a hash of the text.

    Returns:
        [`DSRPrompt`]: the prompt with its parts.

    Raises:
        PromptGrammarError: If the text cannot be read, or has two meanings. The message names the part with the
            problem. A second object or a second moving thing is refused.
    """
    # 1. Read the text
    normalized = normalize(text)
    reading = _read_canonical(normalized) or read_sentence(normalized)

    # 2. Check the parts
    parts = [("animal", reading.animal), ("object", reading.object), *(("verb", verb) for verb in reading.verbs)]
    for part, words in parts:
        if not _WORDS.fullmatch(words):
            raise PromptGrammarError(part, f"{words!r} must be words with no punctuation", normalized)
    for part, words in parts[:2]:
        check_one_thing(part, words)
    if is_same_noun(reading.animal, reading.object):
        problem = f"animal and object are both {reading.object!r}, but they must differ"
        raise PromptGrammarError("object", problem, normalized)
    try:
        check_dsr_type(reading.type)
    except ValueError as error:
        problem = f"the relation must change with every motion ({error})"
        raise PromptGrammarError("type", problem, normalized) from None

    # 3. Derive the id
    if prompt_id is None:
        prompt_id = f"{reading.type}_{hashlib.sha256(normalized.encode()).hexdigest()[:12]}"
    return DSRPrompt(
        prompt_id=prompt_id,
        type=reading.type,
        scene=reading.scene,
        initial_SR=RELATIONS[reading.type[0]].initial,
        final_SR=RELATIONS[reading.type[-1]].final,
        animal=reading.animal,
        object=reading.object,
        verb=", ".join(reading.verbs),
        attribute=reading.attribute,
        prompt=" ".join(line.strip() for line in text.splitlines() if line.strip()),
    )


def _read_canonical(text: str) -> Reading | None:
    """Read a sentence that [`build_prompt`] could have written, in which any word may be a noun or a verb."""
    # 1. The clauses; the scene may contain "then the" too
    clauses = text.removesuffix(".").split(_THEN)
    heads = ((count, _INITIAL.fullmatch(clause)) for count, clause in enumerate(clauses[:-1]))
    count, head = next(((count, head) for count, head in heads if head), (0, None))
    if head is None or not text.endswith("."):
        return None
    tails = [_FINAL.fullmatch(clause) for clause in clauses[count + 1 :]]
    subject = _SUBJECT.fullmatch(_THEN.join([*clauses[:count], head["before"]]))
    if None in tails or subject is None or text[0] != text[0].upper():
        return None
    if any(tail["object"] != head["object"] for tail in tails):
        return None

    # 2. The animal is what its mentions share
    mentions = [_split_mentions(subject["animal"].split(), tail["before"].split()) for tail in tails]
    if None in mentions or len({animal for _, animal, _ in mentions}) > 1:
        return None
    attribute, animal, _ = mentions[0]
    verbs = tuple(verb for _, _, verb in mentions)
    codes = [_INITIALS[head["relation"]], *(_FINALS[tail["relation"]] for tail in tails)]
    reading = Reading(subject["scene"], attribute, animal, head["object"], "".join(codes), verbs)
    return reading if has_one_meaning(reading) else None


def _split_mentions(first: list[str], second: list[str]) -> tuple[str, str, str] | None:
    """Split `["red", "fox"]` and `["fox", "jumps"]` into attribute, noun and verb: the noun is common to both."""
    for length in range(min(len(first), len(second)), 0, -1):
        if first[-length:] == second[:length]:
            parts = (" ".join(words) for words in (first[:-length], first[-length:], second[length:]))
            return tuple(parts) if length < len(second) else None
    return None
