"""The spatial relations between one animal and one static object, and the types made of them.

A type is what must hold one after the other: `"LT"` is left, then top. The paper (SpatialAlign, arXiv 2602.22745,
section 3) has three relations, L, R and T, and the six types of two different ones. Under, in front of and behind, and
types of more than two relations, are ours.
"""

from __future__ import annotations

from typing import NamedTuple


class Relation(NamedTuple):
    """A spatial relation between the animal and the object.

    Args:
        code (`str`): One letter, the key in [`RELATIONS`].
        initial (`str`): How the relation is worded at the start of the video.
        final (`str`): How the relation is worded after a motion.
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
# The paper's six, which all prompt sets here are made of.
DSR_TYPES = ("LR", "LT", "RL", "RT", "TL", "TR")
# Frames that show both and are averaged to say whether a relation holds: at either end of a video, and at a visit of a
# relation in between.
END_FRAMES = 3
# Relations along the camera's axis: boxes alone cannot tell them.
DEPTH_RELATIONS = ("F", "B")


def check_dsr_type(dsr_type: str) -> str:
    """Return `dsr_type` if it is a sequence of relations: two or more known codes, neighbours different.

    Raises:
        ValueError: If it is not; the message names the value, what is off and the types there are.
    """
    problem = _problem(dsr_type)
    if problem is not None:
        meanings = ", ".join(f"{code} = {relation.initial}" for code, relation in RELATIONS.items())
        raise ValueError(
            f"unknown DSR type {dsr_type!r}: {problem}. A type is two or more of {meanings}, in the order in which "
            f"they hold; the paper's are {', '.join(DSR_TYPES)}"
        )
    return dsr_type


def _problem(dsr_type: str) -> str | None:
    if not isinstance(dsr_type, str):
        return "it is no text"
    for code in dsr_type:
        if code not in RELATIONS:
            return f"{code!r} is no relation"
    if len(dsr_type) < 2:
        return "a motion needs a relation to start in and one to end in"
    for before, after in zip(dsr_type, dsr_type[1:], strict=False):
        if before == after:
            return f"{after} comes twice in a row, but each relation must differ from the one before"
    return None


def split_type(dsr_type: str) -> tuple[str, ...]:
    """The codes of the relations in order: `"LT"` -> `("L", "T")`. Unknown types raise `ValueError`."""
    return tuple(check_dsr_type(dsr_type))
