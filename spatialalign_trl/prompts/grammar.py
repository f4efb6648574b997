"""Build prompts from their parts, and parse prompts, by this grammar:

    {scene}, a|an {attribute? animal} is {initial_SR} a|an {object}, then the {animal} {verb} {final_SR} the {object}.

The second mention, "the {animal}", determines which words of the first mention are the noun. The words before them are
the attribute. The last clause may be repeated for every further relation of a sequence (this is ours; the paper has
one motion):

    ..., then the {animal} {verb} {SR} the {object}, then the {animal} {verb} {final_SR} the {object}.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from spatialalign_trl.prompts.relations import RELATIONS, check_dsr_type, split_type

GRAMMAR = (
    "{scene}, a|an {attribute? animal} is on the left|right|top of|under|in front of|behind a|an {object}, "
    "then the {animal} {verb} to the left|right|top of|under|in front of|behind the {object}"
    "[, then the {animal} {verb} ... the {object}]."
)
ONE_AND_ONE = "one animal and one static object is what can be scored"
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
_CODE_OF_INITIAL = {relation.initial: code for code, relation in RELATIONS.items()}
_CODE_OF_FINAL = {relation.final: code for code, relation in RELATIONS.items()}
_INITIAL = re.compile(rf"(?P<before>.*) is (?P<relation>{'|'.join(_CODE_OF_INITIAL)}) (?P<object>.+)")
_FINAL = re.compile(rf"(?P<before>.+) (?P<relation>{'|'.join(_CODE_OF_FINAL)}) the (?P<object>.+)")
_PLURAL = re.compile(rf".* are ({'|'.join(_CODE_OF_INITIAL)}) .+")
_SUBJECT = re.compile(r"(?P<scene>.*), (?P<article>an?) (?P<animal>[^,]+)")
_WITH_ARTICLE = re.compile(r"an? (?P<noun>.+)")
_WORDS = re.compile(r"[^\s,.;:!?]+( [^\s,.;:!?]+)*")
# Words that make a noun mean more than one thing. A score follows one box for the animal and one for the object.
_JOINING = ("and", "or", "plus", "&", "+")
_COUNTING = ("two", "three", "four", "five", "six", "several", "many", "both", "some")

# Words that are spelled with a vowel but pronounced with a consonant, and the other way round.
_SPOKEN_CONSONANT = re.compile(r"eu|ewe|one\b|uni(?![dmn])|us[eu]|ut[ei]|ukulele")
_SPOKEN_VOWEL = re.compile(r"heir|honest|honou?r|hour")


class PromptGrammarError(ValueError):
    """A prompt, or a part of one, that does not follow the grammar.

    Args:
        part (`str`): The part with the problem: `"ending"`, `"scene"`, `"animal"`, `"object"`, `"verb"`,
            `"attribute"`, `"initial_SR"`, `"final_SR"`, `"type"` or `"text"`.
        message (`str`): What is wrong with it and what was expected.
        text (`str`, *optional*): The prompt.
    """

    def __init__(self, part: str, message: str, text: str | None = None) -> None:
        self.part = part
        where = "" if text is None else f". The prompt: {text!r}. The grammar: {GRAMMAR}"
        super().__init__(f"{part}: {message}{where}")


@dataclass(frozen=True)
class DSRPrompt:
    """A prompt and its parts.

    Args:
        prompt_id (`str`): The id, unique within a prompt set.
        type (`str`): The relations in order. In the paper's prompts, this is one of [`DSR_TYPES`].
        scene (`str`): The place, without the comma after it: `"In a meadow"`.
        initial_SR (`str`): The first relation in words, such as `"on the left of"`.
        final_SR (`str`): The last relation in words, such as `"to the right of"`.
        animal (`str`): The animal's noun, without its attribute.
        object (`str`): The static object's noun, one word or several.
        verb (`str`): The animal's motion, such as `"jumps"`. In a sequence, one verb per motion: `"jumps, walks"`.
        attribute (`str`): The words that describe the animal, such as `"red"`, or `""`.
        prompt (`str`): The text for the video model.
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


def indefinite_article(words: str) -> str:
    """Return `"a"` or `"an"`, depending on the sound that `words` begin with, as far as the spelling shows it."""
    lowered = words.lower()
    if _SPOKEN_CONSONANT.match(lowered):
        return "a"
    return "an" if lowered[:1] in tuple("aeiou") or _SPOKEN_VOWEL.match(lowered) else "a"


def check_one_thing(part: str, words: str) -> None:
    """Check that a noun means a single thing: a score would follow only one of several.

    Args:
        part (`str`): The part of the prompt, `"animal"` or `"object"`, for the error.
        words (`str`): The noun, such as `"fire hydrant"`.

    Raises:
        PromptGrammarError: For two nouns ("bench and table", "bench, table") and for counts ("two cats").
    """
    tokens = words.casefold().replace(",", " and ").split()
    is_joined = any(word in _JOINING for word in tokens[1:-1])
    is_counted = len(tokens) > 1 and (tokens[0] in _COUNTING or tokens[0].isdecimal())
    if is_joined or is_counted:
        raise PromptGrammarError(part, f"{words!r} is more than one {part}, but {ONE_AND_ONE}")


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
    first_mention = f"{attribute} {animal}".lstrip()
    motions = (
        f"{_THEN}{animal} {motion} {relation.final} the {object}"
        for motion, relation in zip(verbs, later, strict=True)
    )
    text = (
        f"{scene}, {indefinite_article(first_mention)} {first_mention} is {initial.initial} "
        f"{indefinite_article(object)} {object}{''.join(motions)}."
    )

    # 3. Check that it parses to the same parts
    prompt = parse_prompt(text, prompt_id)
    for part, value in {**parts, "type": type}.items():
        if getattr(prompt, part) != value:
            raise PromptGrammarError(part, f"{value!r} would be parsed as {getattr(prompt, part)!r}", text)
    return prompt


def parse_prompt(text: str, prompt_id: str | None = None) -> DSRPrompt:
    """Parse a prompt of the grammar into its parts.

    Either article is accepted before either noun, and runs of white space count as one space.

    Args:
        text (`str`): The prompt.
        prompt_id (`str`, *optional*): The id. By default it consists of the type and a hash of the text.

    Returns:
        [`DSRPrompt`]: the prompt with its parts.

    Raises:
        PromptGrammarError: If the text does not follow the grammar. The message names the part with the problem. A
            second object or a second moving thing is refused.
    """
    # 1. Split the text into its parts
    text = " ".join(text.split())
    if not text.endswith("."):
        raise PromptGrammarError("ending", "the prompt must end with a full stop", text)
    head, tails = _split_clauses(text)
    scene, first_mention = _split_subject(head["before"], text)
    noun = _object_of(head, tails, text)
    mentions = [_split_animal(first_mention, tail["before"], text) for tail in tails]
    attribute, animal, _ = mentions[0]

    # 2. Check the parts
    for _, other, _ in mentions:
        if other != animal:
            raise PromptGrammarError(
                "animal", f"{animal!r} in one clause but {other!r} in another; {ONE_AND_ONE}", text
            )
    verbs = [verb for _, _, verb in mentions]
    for part, words in (("animal", animal), ("object", noun), *(("verb", verb) for verb in verbs)):
        if not _WORDS.fullmatch(words):
            raise PromptGrammarError(part, f"{words!r} must be words with no punctuation", text)
    for part, words in (("animal", animal), ("object", noun)):
        check_one_thing(part, words)
    if animal.casefold() == noun.casefold():
        raise PromptGrammarError("object", f"animal and object are both {noun!r}, but they must differ", text)

    # 3. Derive the type and the id
    dsr_type = _CODE_OF_INITIAL[head["relation"]] + "".join(_CODE_OF_FINAL[tail["relation"]] for tail in tails)
    try:
        check_dsr_type(dsr_type)
    except ValueError as error:
        raise PromptGrammarError("type", f"the relation must change with every motion ({error})", text) from None
    if prompt_id is None:
        prompt_id = f"{dsr_type}_{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    return DSRPrompt(
        prompt_id=prompt_id,
        type=dsr_type,
        scene=scene,
        initial_SR=head["relation"],
        final_SR=tails[-1]["relation"],
        animal=animal,
        object=noun,
        verb=", ".join(verbs),
        attribute=attribute,
        prompt=text,
    )


def _split_clauses(text: str) -> tuple[re.Match, list[re.Match]]:
    """Match the first clause, up to the object, and the clauses that begin with "then the"."""
    clauses = text[:-1].split(_THEN)
    if len(clauses) == 1:
        raise PromptGrammarError("text", "', then the {animal} {verb} ...' is missing", text)
    for count in range(1, len(clauses)):  # the scene may contain the words "then the" too
        head = _INITIAL.fullmatch(_THEN.join(clauses[:count]))
        if head is not None:
            break
    else:
        if _PLURAL.fullmatch(clauses[0]):
            raise PromptGrammarError("animal", f"'are' means more than one animal, but {ONE_AND_ONE}", text)
        raise PromptGrammarError("initial_SR", f"expected 'is {'|'.join(_CODE_OF_INITIAL)}' and an object", text)
    tails = [_FINAL.fullmatch(clause) for clause in clauses[count:]]
    if None in tails:
        clause = clauses[count + tails.index(None)]
        expected = f"expected '{'|'.join(_CODE_OF_FINAL)}' and 'the {{object}}' in {clause!r}"
        raise PromptGrammarError("final_SR", expected, text)
    return head, tails


def _split_subject(before: str, text: str) -> tuple[str, str]:
    """Split the text before the first relation into the scene and the first mention of the animal."""
    subject = _SUBJECT.fullmatch(before)
    if subject is None:
        raise PromptGrammarError("scene", f"expected '{{scene}}, a|an {{animal}}', found {before!r}", text)
    scene = subject["scene"]
    if not scene or scene != scene.rstrip(", ") or scene[0] != scene[0].upper():
        raise PromptGrammarError("scene", f"{scene!r} must begin with a capital letter and not end in a comma", text)
    return scene, subject["animal"]


def _object_of(head: re.Match, tails: Sequence[re.Match], text: str) -> str:
    """Return the noun of the object, which all clauses must share."""
    first = _WITH_ARTICLE.fullmatch(head["object"])
    if first is None:
        raise PromptGrammarError("object", f"expected 'a' or 'an' before {head['object']!r}", text)
    noun = first["noun"]
    for tail in tails:
        if tail["object"] != noun:
            difference = f"{noun!r} at the start but {tail['object']!r} later"
            raise PromptGrammarError("object", f"{difference}; {ONE_AND_ONE}", text)
    return noun


def _split_animal(first_mention: str, second_mention: str, text: str) -> tuple[str, str, str]:
    """Split `"red fire fox"` and `"fire fox jumps"` into attribute, noun and verb: the noun is common to both."""
    first, second = first_mention.split(), second_mention.split()
    for length in range(min(len(first), len(second)), 0, -1):
        if first[-length:] == second[:length]:
            if length == len(second):
                raise PromptGrammarError("verb", f"is missing after 'the {second_mention}'", text)
            return " ".join(first[:-length]), " ".join(first[-length:]), " ".join(second[length:])
    difference = f"{first_mention!r} at the start but 'the {second_mention}' later"
    raise PromptGrammarError("animal", f"{difference}; {ONE_AND_ONE}", text)
