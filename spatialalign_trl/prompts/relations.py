"""The spatial relations between one animal and one static object, and the types made of them.

A type lists the relations that must hold one after the other: `"LT"` is left, then top. The paper (SpatialAlign,
arXiv 2602.22745, section 3) has three relations, L, R and T, and the six types of two different relations. Under, in
front of and behind, and types of more than two relations, are ours.
"""

from __future__ import annotations

import re
from functools import cache
from itertools import product
from typing import NamedTuple


class Relation(NamedTuple):
    """A spatial relation between the animal and the object.

    Args:
        code (`str`): One letter, the key in [`RELATIONS`].
        initial (`str`): The wording of the relation at the start of the video.
        final (`str`): The wording of the relation after a motion.
    """

    code: str
    initial: str
    final: str


RELATIONS: dict[str, Relation] = {
    "L": Relation("L", "on the left of", "to the left of"),
    "R": Relation("R", "on the right of", "to the right of"),
    "T": Relation("T", "on the top of", "to the top of"),
    "U": Relation("U", "under", "under"),
    "F": Relation("F", "in front of", "in front of"),
    "B": Relation("B", "behind", "behind"),
}
# What else is read as one of the relations. `[x]` may be left out, `(x/y)` is a choice. The wordings of `RELATIONS`
# among them, and are the only ones that `build_prompt` writes.
WORDINGS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "L": (
        ("(on/to/at/in) [the] (left/left side/left-hand side/left hand side) [of]", "left of"),
        ("(to/on/at) [the] (left/left side/left-hand side/left hand side) [of]", "left of"),
    ),
    "R": (
        ("(on/to/at/in) [the] (right/right side/right-hand side/right hand side) [of]", "right of"),
        ("(to/on/at) [the] (right/right side/right-hand side/right hand side) [of]", "right of"),
    ),
    "T": (
        ("(on/to/at/in) [the] (top/top side) [of]", "(on/to/at/in) the above [of]", "(on/upon/above/over/atop) [of]"),
        ("(to/on/at) [the] (top/top side) [of]", "(to/on/at) the above [of]", "(onto/on/on to/upon/above/atop) [of]"),
    ),
    "U": (
        ("(under/below/beneath/underneath) [of]", "(on/to/at/in) the (under/below/underneath) [of]")
        + ("(on/to/at/in) [the] (bottom/bottom side) [of]",),
        ("(under/below/beneath/underneath) [of]", "(to/on/at) the (under/below/underneath) [of]")
        + ("(to/on/at) [the] (bottom/bottom side) [of]",),
    ),
    "F": (
        ("(in/on/to/at) [the] front [of]", "(on/to/at) [the] front side [of]"),
        ("(in/to/on/at) [the] front [of]", "(to/on/at) [the] front side [of]"),
    ),
    "B": (
        ("behind [of]", "(on/to/at/in) the behind [of]", "(to/at) [the] (back/rear) [of]")
        + ("(on/to/at) [the] (back side/rear side) [of]", "in back of"),
        ("behind [of]", "(to/on/at) the behind [of]", "(to/at) [the] (back/rear) [of]")
        + ("(to/on/at) [the] (back side/rear side) [of]", "in back of"),
    ),
}
# What is refused because it has two meanings, which are named.
AMBIGUOUS: tuple[dict[str, str], dict[str, str]] = (
    {"(on/in) the back of": "behind it, or on or in its back part"},
    {"(on/in) the back of": "behind it, or on or in its back part", "over": "above it, or across it"},
)
# The paper's six types. All prompt sets of this repository consist of them.
DSR_TYPES = ("LR", "LT", "RL", "RT", "TL", "TR")
# Number of frames, each showing both animal and object, that are averaged to decide whether a relation holds: at
# either end of a video, and at every visit of a relation in between.
END_FRAMES = 3
# Relations along the camera's axis. Boxes alone cannot distinguish them.
DEPTH_RELATIONS = ("F", "B")


def check_dsr_type(dsr_type: str) -> str:
    """Check that a type is a sequence of relations: two or more known codes, with different neighbours.

    Args:
        dsr_type (`str`): The type, such as `"LT"`.

    Returns:
        `str`: the type itself.

    Raises:
        ValueError: If it is not. The message names the value, the problem and the known types.
    """
    problem = _problem(dsr_type)
    if problem is not None:
        meanings = ", ".join(f"{code} = {relation.initial}" for code, relation in RELATIONS.items())
        raise ValueError(
            f"unknown DSR type {dsr_type!r}: {problem}. A type is two or more of {meanings}, in the order in which "
            f"they hold. The paper's are {', '.join(DSR_TYPES)}"
        )
    return dsr_type


def _problem(dsr_type: str) -> str | None:
    """Return why a type is invalid, or `None` if it is valid."""
    if not isinstance(dsr_type, str):
        return "it is not a string"
    for code in dsr_type:
        if code not in RELATIONS:
            return f"{code!r} is not a relation"
    if len(dsr_type) < 2:
        return "a motion needs a relation to start in and one to end in"
    for before, after in zip(dsr_type, dsr_type[1:], strict=False):
        if before == after:
            return f"{after} comes twice in a row, but each relation must differ from the one before"
    return None


def split_type(dsr_type: str) -> tuple[str, ...]:
    """Return the codes of a type's relations in order: `"LT"` -> `("L", "T")`. Unknown types raise a `ValueError`."""
    return tuple(check_dsr_type(dsr_type))


@cache
def phrases(place: str) -> dict[tuple[str, ...], str]:
    """Return every phrase that is read as a relation.

    Args:
        place (`str`): `"initial"` for the relation at the start, `"final"` for one after a motion.

    Returns:
        `dict[tuple[str, ...], str]`: the words of a phrase, in lower case -> the code of its relation.

    Raises:
        ValueError: If [`WORDINGS`] gives a phrase to two relations.
    """
    codes: dict[tuple[str, ...], str] = {}
    for code, wordings in WORDINGS.items():
        for wording in wordings[_PLACES.index(place)]:
            for words in _expand(wording):
                if codes.setdefault(words, code) != code:
                    raise ValueError(f"{' '.join(words)!r} is given to {codes[words]} and to {code}")
    return codes


@cache
def ambiguous_phrases(place: str) -> dict[tuple[str, ...], str]:
    """Return every phrase of [`AMBIGUOUS`], in the form of [`phrases`] -> its meanings."""
    meanings = AMBIGUOUS[_PLACES.index(place)]
    return {words: meaning for wording, meaning in meanings.items() for words in _expand(wording)}


_PLACES = ("initial", "final")


def _expand(wording: str) -> list[tuple[str, ...]]:
    """Return the phrases of a wording: `"(on/at) [the] top"` stands for four."""
    choices = []
    for optional, several, word in re.findall(r"\[(.+?)\]|\((.+?)\)|(\S+)", wording):
        choices.append(("", optional) if optional else tuple((several or word).split("/")))
    return [tuple(" ".join(chosen).split()) for chosen in product(*choices)]


def wording_table() -> str:
    """Return [`WORDINGS`] and [`AMBIGUOUS`] as a table in Markdown, as `rewards/README.md` shows it."""
    rows = [
        (f"`{code}`", *(", ".join(f"`{wording}`" for wording in place) for place in WORDINGS[code]))
        for code in WORDINGS
    ]
    refused = [", ".join(f"`{wording}` ({meaning})" for wording, meaning in place.items()) for place in AMBIGUOUS]
    header = [("read as", 'at the start, after "is"', "after a motion"), ("---",) * 3]
    return "\n".join(f"| {' | '.join(row)} |" for row in [*header, *rows, ("refused", *refused)])
