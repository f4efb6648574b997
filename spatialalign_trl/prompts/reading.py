"""Read the sentence of a prompt: which words are the scene, the animal, the object, the relations and the motions.

More is read than `build_prompt` writes, as long as the meaning is clear: the wordings of `relations.WORDINGS`, no
scene, a wrong article, a missing "of", an adjective at some mentions only, other spacing, no full stop. A text is cut
into words, and every way to cut it is tried; a text with two meanings is refused. A noun with its adjectives has at
most `MAX_NOUN_WORDS` words, so the time grows in proportion to the length of the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from spatialalign_trl.prompts.relations import RELATIONS, ambiguous_phrases, phrases

GRAMMAR = (
    "{scene}, a|an {attribute? animal} is on the left|right|top of|under|in front of|behind a|an {object}, "
    "then the {animal} {verb} to the left|right|top of|under|in front of|behind the {object}"
    "[, then the {animal} {verb} ... the {object}]."
)
ONE_AND_ONE = "one animal and one static object is what can be scored"

MAX_NOUN_WORDS = 20
_LONGEST_PHRASE = max(len(words) for place in ("initial", "final") for words in phrases(place))

Words = tuple[str, ...]

_THEN = re.compile(r"(?: ?[,;.] ?| )(?:and )?then,? ", re.IGNORECASE)
_PUNCTUATION = re.compile(r"[,;:!?]")
_ARTICLES = ("a", "an", "the")
# Words that may stand between "is" and the first relation without changing it.
_STATES = ("first", "initially", "sitting", "standing", "lying", "resting", "waiting", "perched", "hovering", "flying")
# Nouns of place. A phrase that ends in one needs "of" or an article after it: in "on the left table", the table may
# be the left one of two.
_SIDES = ("left", "right", "top", "bottom", "front", "back", "rear", "side")
# Words that make a noun mean more than one thing. A score follows one box for the animal and one for the object.
_JOINING = ("and", "or", "plus", "&", "+")
_COUNTING = ("two", "three", "four", "five", "six", "several", "many", "both", "some")
_ANOTHER = ("other", "another", "second", "different", "next")
# Words after which a noun is not the one that was described: "the mat behind the table" is no kind of table.
_NOT_ADJECTIVES = (
    *("a", "an", "the", "of", "to", "in", "on", "at", "by", "with", "from", "near", "beside", "is", "are", "that"),
    *("under", "below", "beneath", "underneath", "behind", "above", "over", "onto", "upon", "atop", "into", "then"),
)
# Words that turn the relation after them into its opposite, or leave open whether it is reached.
_NEGATING = ("not", "never", "cannot", "without", "almost", "nearly", "hardly", "or", "either")
_LEAVING = ("from", "toward", "towards", "of", *_ARTICLES)


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


class Reading(NamedTuple):
    """What a text says: the parts of a prompt. `type` has the code of every relation, `verbs` one per motion."""

    scene: str
    attribute: str
    animal: str
    object: str
    type: str
    verbs: Words


class _Place(NamedTuple):
    """A phrase in a clause: the words before it, the code of its relation, the mention of the object after it."""

    before: Words
    code: str
    object: Words
    start: int
    end: int
    is_doubtful: bool


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


def read_sentence(text: str) -> Reading:
    """Read the parts of a prompt from its text.

    Args:
        text (`str`): The prompt, as [`~spatialalign_trl.prompts.nouns.normalize`] returns it.

    Returns:
        [`Reading`]: the parts.

    Raises:
        PromptGrammarError: If the text cannot be read, or has two meanings. The message names the part.
    """
    # 1. Split the text into the clause of the first relation and the clauses of the motions
    sentence = text.removesuffix(".").rstrip()
    if not sentence or sentence[-1] in ",.;:!?":
        raise PromptGrammarError("ending", "the prompt must end with the object, and may have a full stop", text)
    edges = [0, *(edge for match in _THEN.finditer(sentence) for edge in match.span()), len(sentence)]
    clauses = [sentence[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True)]
    if len(clauses) == 1:
        raise PromptGrammarError("text", "', then the {animal} {verb} ...' is missing", text)
    count, starts = _first_clause(clauses)
    if not starts:
        raise _ambiguous(clauses[:1], clauses[1:], text) or _no_first_place(clauses[0], text)
    scene_start = sentence[: edges[2 * count - 2]]
    motions = [tuple(clause.split()) for clause in clauses[count:]]

    # 2. Read it in every way, with the most complete phrase first
    readings: list[Reading] = []
    sure: list[Reading] = []
    first_error = None
    for start in starts:
        try:
            reading = _read_from(start, scene_start, motions, text)
        except PromptGrammarError as error:
            first_error = first_error or error
            continue
        readings.append(reading)
        if not start.is_doubtful:
            sure.append(reading)
    if not readings:
        is_about_relations = first_error.part in ("object", "final_SR")
        raise (is_about_relations and _ambiguous(clauses[:count], clauses[count:], text)) or first_error

    # 3. Refuse a second meaning
    if not sure or len({(reading.type, reading.animal.casefold()) for reading in readings}) > 1:
        meanings = [f"{reading.type} of {reading.animal!r} and {reading.object!r}" for reading in readings]
        meanings += ["another object, which that word describes"] if not sure else []
        raise _two_meanings("initial_SR", meanings, text)
    return sure[0]


def _first_clause(clauses: Sequence[str]) -> tuple[int, list[_Place]]:
    """Return the number of clauses up to the first relation, and the ways to read it; the scene may say "then" too."""
    for count in range(1, len(clauses)):
        starts = list(_first_places(clauses[count - 1]))
        if starts:
            return count, starts
    return 0, []


def _ambiguous(firsts: Sequence[str], motions: Sequence[str], text: str) -> PromptGrammarError | None:
    """Return the error for a phrase that has two meanings, if a clause contains one."""
    for place, clauses in (("initial", firsts), ("final", motions)):
        for words, meanings in ambiguous_phrases(place).items():
            phrase = " ".join(words)
            if any(f" {phrase} " in f" {clause.casefold()} " for clause in clauses):
                return _two_meanings(f"{place}_SR", [f"{phrase!r} is {meanings}"], text)
    return None


def _two_meanings(part: str, meanings: Sequence[str], text: str) -> PromptGrammarError:
    """Return the error for a text that can be read in several ways."""
    ways = ", or ".join(dict.fromkeys(meanings))
    return PromptGrammarError(part, f"the text has two meanings: {ways}. Use the words of the grammar", text)


def _no_first_place(clause: str, text: str) -> PromptGrammarError:
    """Return the error for a text without a first relation."""
    words = clause.casefold().split()
    if any(place in phrases("initial") for place in _word_runs(words, "are")):
        return PromptGrammarError("animal", f"'are' means more than one animal, but {ONE_AND_ONE}", text)
    known = "|".join(relation.initial for relation in RELATIONS.values())
    return PromptGrammarError("initial_SR", f"expected 'is {known}' and an object", text)


def _word_runs(words: Sequence[str], verb: str) -> Iterator[Words]:
    """Iterate over the runs of words that follow a verb and could be a phrase."""
    lengths = range(1, _LONGEST_PHRASE + 1)
    for index, word in enumerate(words):
        if word == verb:
            yield from (tuple(words[index + 1 : index + 1 + length]) for length in lengths)


def _first_places(clause: str) -> Iterator[_Place]:
    """Iterate over the ways to read "is {phrase} {object}" in a clause, the last and longest first."""
    words = tuple(clause.split())
    lowered = tuple(clause.casefold().split())
    for verb in reversed([index for index, word in enumerate(lowered) if word == "is"]):
        start = verb + 2 if lowered[verb + 1 : verb + 2] and lowered[verb + 1] in _STATES else verb + 1
        for place in _places_at(words, lowered, start, phrases("initial")):
            yield place._replace(before=words[:verb])


def _places_at(words: Words, lowered: Words, start: int, codes: dict[Words, str]) -> Iterator[_Place]:
    """Iterate over the phrases that begin at a word, the longest first."""
    if len(words) - start > MAX_NOUN_WORDS + _LONGEST_PHRASE:
        return
    for end in range(min(start + _LONGEST_PHRASE, len(words) - 1), start, -1):
        phrase = lowered[start:end]
        if phrase in codes:
            is_doubtful = len(phrase) > 1 and phrase[-1] in _SIDES and lowered[end] not in _ARTICLES
            yield _Place(words[:start], codes[phrase], _without_article(words[end:]), start, end, is_doubtful)


def _without_article(words: Words) -> Words:
    """Return a mention without its article, whichever it is."""
    return words[1:] if len(words) > 1 and words[0].casefold() in _ARTICLES else words


def _read_from(start: _Place, scene_start: str, motions: Sequence[Words], text: str) -> Reading:
    """Read the text with one way to understand its first relation."""
    # 1. Where the phrases of the motions can be
    candidates = []
    for motion in motions:
        lowered = tuple(word.casefold() for word in motion)
        places = [place for k in range(len(motion)) for place in _places_at(motion, lowered, k, phrases("final"))]
        if not places:
            known = "|".join(relation.final for relation in RELATIONS.values())
            clause = " ".join(motion)
            raise PromptGrammarError("final_SR", f"expected '{known}' and 'the {{object}}' in {clause!r}", text)
        candidates.append(places)

    # 2. The scene, the object, and the phrases that stand before it
    scene, first_mention = _split_subject(scene_start + " ".join(start.before), text)
    for mention in (first_mention[1:], start.object):
        if "is" in (word.casefold() for word in mention):
            raise PromptGrammarError("object", f"{' '.join(mention)!r} is a sentence; {ONE_AND_ONE}", text)
    ends = [_motion_place(places, start.object, text) for places in candidates]
    noun = _object_of([start.object, *(end.object for end in ends)], text)

    # 3. The animal and its motions
    mentions = [_split_animal(first_mention, end.before, text) for end in ends]
    animals = [animal for _, animal, _ in mentions]
    if len({animal.casefold() for animal in animals}) > 1:
        difference = f"{animals[0]!r} in one clause but {animals[-1]!r} in another"
        raise PromptGrammarError("animal", f"{difference}; {ONE_AND_ONE}", text)
    attributes = list(dict.fromkeys(attribute for attribute, _, _ in mentions if attribute))
    if len(attributes) > 1:
        raise PromptGrammarError("animal", f"{attributes[0]!r} and {attributes[1]!r} differ; {ONE_AND_ONE}", text)
    for _, _, verb in mentions:
        _check_verb(verb, text)
    return Reading(
        scene=scene,
        attribute=attributes[0] if attributes else "",
        animal=animals[0],
        object=noun,
        type=start.code + "".join(end.code for end in ends),
        verbs=tuple(" ".join(verb) for _, _, verb in mentions),
    )


def has_one_meaning(reading: Reading) -> bool:
    """Return whether verbs and attributes of several words contain no second motion and no second animal."""
    try:
        for verb in reading.verbs:
            if " " in verb:
                _check_verb(tuple(verb.split()), "")
    except PromptGrammarError:
        return False
    attribute = tuple(reading.attribute.split())
    return len(attribute) < 2 or not _bad_adjective(attribute, skip=1)


def _split_subject(before: str, text: str) -> tuple[str, Words]:
    """Split the text before the first relation into the scene and the first mention of the animal."""
    scene, comma, mention = before.rpartition(",")
    scene, words = scene.rstrip(" ,;"), tuple(mention.split())
    has_article = len(words) > 1 and words[0].casefold() in _ARTICLES
    if not words or (comma and not (scene and has_article)):
        raise PromptGrammarError("scene", f"expected '{{scene}}, a|an {{animal}}', found {before!r}", text)
    return scene, _without_article(words)


def _motion_place(places: Sequence[_Place], first: Words, text: str) -> _Place:
    """Return the phrase of a motion: the one that is followed by the object and part of no longer one."""
    fitting = [place for place in places if _noun_of(first, place.object)]
    if not fitting:
        difference = f"{' '.join(first)!r} at the start but {' '.join(places[0].object)!r} later"
        raise PromptGrammarError("object", f"{difference}; {ONE_AND_ONE}", text)
    outer = [place for place in fitting if not any(_is_inside(place, other) for other in fitting)]
    sure = [place for place in outer if not place.is_doubtful]
    if not sure or len({place.code for place in outer}) > 1:
        meanings = [f"{place.code} of {' '.join(place.object)!r}" for place in outer]
        meanings += ["a motion to another object"] if not sure else []
        raise _two_meanings("final_SR", meanings, text)
    return sure[0]


def _is_inside(place: _Place, other: _Place) -> bool:
    """Return whether a phrase is a part of another one."""
    return other.start <= place.start and place.end <= other.end and place[3:5] != other[3:5]


def _noun_of(first: Words, second: Words) -> Words | None:
    """Return the noun that two mentions share, if one of them has adjectives before it at most."""
    shorter, longer = sorted((first, second), key=len)
    adjectives = longer[: len(longer) - len(shorter)]
    is_same = all(a.casefold() == b.casefold() for a, b in zip(shorter, longer[len(adjectives) :], strict=True))
    return shorter if is_same and _is_noun(shorter) and not _bad_adjective(adjectives) else None


def _is_noun(words: Words) -> bool:
    """Return whether words can be a noun: "jack in the box" is one, but "of a box" and "side of the box" are not."""
    lowered = [word.casefold() for word in words]
    if lowered[0] in _NOT_ADJECTIVES:
        return False
    for word, following in pairwise(lowered):
        if following in _ARTICLES and word not in _NOT_ADJECTIVES or following == "of" and word in _SIDES:
            return False
    return True


def _bad_adjective(words: Words, skip: int = 0) -> str | None:
    """Return the first word, after some that are skipped, that does not describe the noun after it."""
    lowered = [word.casefold() for word in words]
    for index, word in enumerate(lowered):
        if word in _ANOTHER or _PUNCTUATION.search(word) or (index >= skip and word in _NOT_ADJECTIVES):
            return word
    if lowered and (lowered[-1] in _JOINING or lowered[0] in _COUNTING or lowered[0].isdecimal()):
        return lowered[-1] if lowered[-1] in _JOINING else lowered[0]
    return None


def _object_of(mentions: Sequence[Words], text: str) -> str:
    """Return the noun of the object, which all mentions share. At most one set of adjectives may come with it."""
    noun = min(mentions, key=len)
    adjectives = {tuple(word.casefold() for word in words[: len(words) - len(noun)]) for words in mentions} - {()}
    if len(adjectives) > 1:
        found = " and ".join(repr(" ".join(words)) for words in sorted(adjectives))
        raise PromptGrammarError("object", f"{found} describe it at different mentions; {ONE_AND_ONE}", text)
    return " ".join(noun)


def _split_animal(first: Words, clause: Words, text: str) -> tuple[str, str, Words]:
    """Split `"red fire fox"` and `"the fire fox jumps"` into attribute, noun and verb: the noun is common to both."""
    if len(clause) > 1 and clause[0].casefold() in ("a", "an"):
        raise PromptGrammarError("animal", f"{' '.join(clause[:2])!r} may be another one; {ONE_AND_ONE}", text)
    second = _without_article(clause)
    lowered_first, lowered = ([word.casefold() for word in words] for words in (first, second))
    if lowered[:1] == ["it"] and len(first) == 1:
        return "", first[0], _verb_of(second, 1, text)

    # 1. All of the later mention's noun is in the first one, which may have adjectives before it
    for length in range(min(len(first), len(second), MAX_NOUN_WORDS), 0, -1):
        if lowered_first[-length:] == lowered[:length]:
            attribute = first[:-length]
            bad = _bad_adjective(attribute, skip=1)
            if bad is not None:
                described = " ".join(first)
                raise PromptGrammarError("animal", f"{bad!r} in {described!r} is no adjective; {ONE_AND_ONE}", text)
            # The first mention may have a capital letter because the text begins with it.
            return " ".join(attribute), " ".join(second[:length]), _verb_of(second, length, text)

    # 2. Only the later mention has adjectives
    for index in range(1, min(len(second) - len(first), MAX_NOUN_WORDS) + 1):
        end = index + len(first)
        if lowered[index:end] == lowered_first and not _bad_adjective(second[:index]):
            return " ".join(second[:index]), " ".join(second[index:end]), _verb_of(second, end, text)
    difference = f"{' '.join(first)!r} at the start but {' '.join(clause)!r} later"
    raise PromptGrammarError("animal", f"{difference}; {ONE_AND_ONE}", text)


def _verb_of(words: Words, start: int, text: str) -> Words:
    """Return the words from `start` on, which are the verb."""
    if start == len(words):
        raise PromptGrammarError("verb", f"is missing after 'the {' '.join(words)}'", text)
    return words[start:]


def _check_verb(verb: Words, text: str) -> None:
    """Check that a motion ends in the relation after its verb, and names no other one on its way."""
    lowered, spoken = tuple(word.casefold() for word in verb), " ".join(verb)
    if any(word in _NEGATING for word in lowered) or (len(lowered) > 1 and lowered[-1] in _LEAVING):
        raise PromptGrammarError("final_SR", f"{spoken!r} does not say that the motion ends there", text)
    codes = phrases("final")
    for start in range(len(lowered)):
        for end in range(start + 1, start + 1 + _LONGEST_PHRASE):
            phrase = lowered[start:end]
            if phrase in codes and phrase != ("on",):  # "jumps on" is a verb as well
                meanings = [f"a motion {' '.join(phrase)!r}", "one to the relation after it"]
                raise _two_meanings("final_SR", meanings, text)
