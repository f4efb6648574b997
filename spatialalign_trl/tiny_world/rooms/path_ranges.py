"""How far cameras move and turn in each style of room."""

from __future__ import annotations

from dataclasses import dataclass

from spatialalign_trl.tiny_world.rooms.base import is_flat


@dataclass(frozen=True)
class PathRanges:
    """Ranges from which camera paths are drawn, for rooms of one style.

    Attributes:
        eye_height (tuple of 2 `float`):
            Height of cameras above the floor in metres.
        pan (tuple of 2 `float`):
            Angle of a pan in degrees.
        dolly (tuple of 2 `float`):
            Length of a straight path in metres.
        orbit (tuple of 2 `float`):
            Angle of an orbit around an object, in radians.
        walk_angle (`float`):
            Largest turn of a walk to either side, in degrees.
        walk_leg (tuple of 2 `float`):
            Length, in metres, of each of the two legs of a walk before they are smoothed into a bend.
        shortest_walk (`float`):
            Smallest length of a walk in metres.
        survey_spread (`float`):
            Share of the room, in [0, 1], in which the middle of a recording may lie.
        survey_radii (tuple of 2 `float`):
            Radii of the ellipse on which a recording is made, as shares of half the room's size.
        survey_swing (`float`):
            Largest angle, in degrees, between the view and the middle of the ellipse.
        survey_rise (`float`):
            Largest change of the eye height during a recording, in metres.
        max_turn (`float`):
            Largest turn of an approach in degrees. After a larger turn, consecutive frames have too little in common.
        reach (tuple of 2 `float`):
            Distance, in metres, from an object's outline at which an approach ends.
    """

    eye_height: tuple[float, float] = (1.25, 1.6)
    pan: tuple[float, float] = (35, 80)
    dolly: tuple[float, float] = (0.7, 1.6)
    orbit: tuple[float, float] = (0.4, 1.3)
    walk_angle: float = 100
    walk_leg: tuple[float, float] = (0.4, 1.6)
    shortest_walk: float = 1.0
    survey_spread: float = 1.0
    survey_radii: tuple[float, float] = (0.25, 0.45)
    survey_swing: float = 25
    survey_rise: float = 0.05
    max_turn: float = 150.0
    reach: tuple[float, float] = (0.7, 1.5)


_TEXTURED = PathRanges()
_FLAT = PathRanges(
    eye_height=(1.4, 1.4), pan=(30, 60), dolly=(0.5, 1.4), orbit=(0.3, 0.8), walk_angle=80, walk_leg=(0.3, 1.0),
    shortest_walk=0.6, survey_spread=0.2, survey_radii=(0.12, 0.4), survey_swing=15, survey_rise=0.0, max_turn=110.0,
    reach=(0.9, 1.5),
)  # fmt: skip
"""Slower cameras: a frame of 32x48 pixels shows little of a step, and a small model has to follow."""


def ranges_of(style: str) -> PathRanges:
    """Return the ranges for rooms of a style."""
    return _FLAT if is_flat(style) else _TEXTURED
