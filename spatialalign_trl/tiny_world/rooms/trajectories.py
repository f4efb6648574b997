"""Smooth camera paths through a room that keep clear of walls and objects, and what they are called in words.

A path is a few knots (position, yaw, pitch) with cubic splines between them, so that a line of a dataset holds it and
any number of frames can be made of it. Yaw 0 looks along +z and grows towards +x (to the right); pitch grows upwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.interpolate import CubicSpline

from spatialalign_trl.errors import near_miss
from spatialalign_trl.tiny_world.rooms.raycast import render_geometry
from spatialalign_trl.tiny_world.rooms.room import Room, RoomObject

Knot = tuple[float, float, float, float, float]
"""x, y, z in metres, yaw and pitch in degrees."""

CLEARANCE = 0.25
"""No camera comes nearer than this to anything, metres."""

_ATTEMPTS = 300
_ATTEMPTS_FROM_START = 24
"""A path from one given camera is cheap to give up: the caller tries another camera."""

_THUMBNAIL = (30, 52)
_GAZE = 18.0
"""Degrees to a side within which a camera counts as looking at an object."""

MAX_TURN = 150.0
"""Degrees that an approach turns at most: more leaves too little in common from frame to frame."""


@dataclass(frozen=True)
class Trajectory:
    """A camera path.

    Attributes:
        kind (`str`): Such as `"orbit"`.
        knots (`tuple[Knot, ...]`): At equal steps of time; at least two. Yaw is continuous: it may pass 360.
        text (`str`): The path as an instruction.
    """

    kind: str
    knots: tuple[Knot, ...]
    text: str

    def __post_init__(self) -> None:
        if len(self.knots) < 2 or any(len(knot) != 5 for knot in self.knots):
            raise ValueError(f"a trajectory has at least 2 knots of x, y, z, yaw, pitch; got {self.knots!r}")
        if not np.isfinite(np.array(self.knots, np.float64)).all():
            raise ValueError(f"a knot of the trajectory is not finite: {self.knots!r}")

    def poses(self, num_frames: int) -> np.ndarray:
        """Camera-to-world matrices `(num_frames, 4, 4)` from the first knot to the last.

        Raises:
            ValueError: for fewer than 1 frame.
        """
        if num_frames < 1:
            raise ValueError(f"num_frames is {num_frames}; it must be at least 1.")
        return np.stack([look(value[:3], value[3], value[4]) for value in self._at(num_frames)])

    def positions(self, number: int) -> np.ndarray:
        """Where the camera is at equal steps of time, `(number, 3)`."""
        return self._at(number)[:, :3]

    def _at(self, number: int) -> np.ndarray:
        knots = np.array(self.knots, np.float64)
        return CubicSpline(np.linspace(0, 1, len(knots)), knots)(np.linspace(0, 1, number))


def look(position: Sequence[float], yaw: float, pitch: float = 0.0) -> np.ndarray:
    """The pose of an upright camera.

    Args:
        position (sequence of 3 `float`): World coordinates, metres.
        yaw, pitch (`float`): Degrees.
    """
    yaw, pitch = np.radians(yaw), np.radians(pitch)
    forward = np.array([np.sin(yaw) * np.cos(pitch), -np.sin(pitch), np.cos(yaw) * np.cos(pitch)])
    right = np.array([np.cos(yaw), 0.0, -np.sin(yaw)])
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], axis=1)
    pose[:3, 3] = position
    return pose


def direction(start: np.ndarray, end: np.ndarray) -> tuple[float, float]:
    """Yaw and pitch, in degrees, of the view from one point to another."""
    x, y, z = np.asarray(end, np.float64) - np.asarray(start, np.float64)
    return float(np.degrees(np.arctan2(x, z))), float(np.degrees(np.arctan2(-y, np.hypot(x, z))))


def is_clear(room: Room, trajectory: Trajectory, clearance: float = CLEARANCE) -> bool:
    """Whether the camera keeps its distance from everything all along the path."""
    return bool(room.clearance(trajectory.positions(97)).min() >= clearance)


def sample_trajectory(room: Room, kind: str, rng: np.random.Generator, start: Knot | None = None) -> Trajectory:
    """A path of a kind: `"pan"`, `"dolly"`, `"orbit"`, `"walk"` or `"survey"` (which looks all around).

    Args:
        room (`Room`): Where.
        kind (`str`): What.
        rng: Source of all randomness.
        start (`Knot`, *optional*): The first camera, which a survey chooses itself; drawn when not given.

    Raises:
        ValueError: for an unknown kind.
        RuntimeError: when the room has no space for one (from there).
    """
    if kind not in _DRAWERS:
        raise ValueError(f"kind is {kind!r}. {near_miss(kind, _DRAWERS)}")
    for first in _starts(room, rng, start):
        drawn = _DRAWERS[kind](room, rng, first)
        if drawn is None or not is_clear(room, drawn):
            continue
        if kind == "survey" or _sees_far_enough(room, drawn):
            return drawn
    raise RuntimeError(f"room {room.seed} has no space for a {kind!r} trajectory; take another seed or start.")


def sample_approach(room: Room, target: RoomObject, rng: np.random.Generator, start: Knot | None = None) -> Trajectory:
    """A path that starts where the target is out of view and ends with it in the middle of the picture.

    Args:
        room, rng, start: As of `sample_trajectory`.
        target (`RoomObject`): One of the room's objects.

    Raises:
        RuntimeError: when none was found, for instance because the target is hidden, or in view at the start.
    """
    index = room.objects.index(target)
    for first in _starts(room, rng, start):
        drawn = _draw_approach(room, target, rng, first)
        if drawn is None or not is_clear(room, drawn):
            continue
        ends = render_geometry(room, drawn.poses(2), _THUMBNAIL)
        share = ends.visible_pixels[:, index] / np.prod(_THUMBNAIL)
        if share[0] == 0 and share[1] > 0.02 and np.median(ends.depth[0]) > 1.0 and _centred(ends.boxes[1, index]):
            return drawn
    raise RuntimeError(f"room {room.seed} has no free path to the {target.name}; take another target, seed or start.")


def _starts(room: Room, rng: np.random.Generator, start: Knot | None) -> Iterator[Knot]:
    """First cameras to try: the given one again and again, or others."""
    for _ in range(_ATTEMPTS if start is None else _ATTEMPTS_FROM_START):
        if start is None:
            position = _position(room, rng)
            yield (*position, rng.uniform(-180, 180), rng.uniform(-10, 0))
        else:
            yield start


def _centred(box: np.ndarray) -> bool:
    """Whether the visible part of an object lies around the middle of the thumbnail."""
    height, width = _THUMBNAIL
    return abs(box[0] + box[2] - width) < 0.3 * width and abs(box[1] + box[3] - height) < 0.5 * height


def rounded(values: np.ndarray) -> tuple[Knot, ...]:
    """Knots as a dataset stores them: 0.1 mm, 0.01 degrees."""
    return tuple((*(round(float(x), 4) for x in knot[:3]), *(round(float(x), 2) for x in knot[3:])) for knot in values)


def _eased(number: int) -> np.ndarray:
    """Shares of the way at equal steps of time: a slow start and a slow stop."""
    time = np.linspace(0, 1, number)
    return time * time * (3 - 2 * time)


def _position(room: Room, rng: np.random.Generator) -> np.ndarray:
    """A point at eye height, clear of everything but not proven to be."""
    half = np.array(room.layout.half) - 0.5
    x, z = rng.uniform(-half, half)
    return np.array([x, -rng.uniform(1.25, 1.6), z])


def _sees_far_enough(room: Room, trajectory: Trajectory) -> bool:
    """Frames full of one near wall show nothing to find a camera by."""
    seen = render_geometry(room, trajectory.poses(3), _THUMBNAIL)
    return bool(np.median(seen.depth.reshape(3, -1), axis=1).min() > 1.2)


def _side(angle: float) -> str:
    return "right" if angle > 0 else "left"


def _draw_pan(room: Room, rng: np.random.Generator, start: Knot) -> Trajectory:
    *position, yaw, pitch = start
    angle = rng.choice([-1, 1]) * rng.uniform(35, 80)
    text = f"Stand still and turn {_side(angle)} by {abs(angle):.0f} degrees."
    return Trajectory("pan", rounded(np.array([(*position, yaw + angle * share, pitch) for share in _eased(9)])), text)


def _draw_dolly(room: Room, rng: np.random.Generator, start: Knot) -> Trajectory:
    *position, yaw, pitch = start
    sideways = rng.random() < 0.35
    length = rng.choice([-1, 1]) * rng.uniform(0.7, 1.6)
    step = _ahead(yaw + (90 if sideways else 0)) * length
    words = ("right" if length > 0 else "left") if sideways else ("forward" if length > 0 else "backward")
    knots = [(*(position + step * share), yaw, pitch) for share in _eased(9)]
    return Trajectory("dolly", rounded(np.array(knots)), f"Move {words} by {abs(length):.1f} metres.")


def _draw_orbit(room: Room, rng: np.random.Generator, start: Knot) -> Trajectory | None:
    """Around an object that the first camera looks at, more or less; the view comes to rest on its middle."""
    eye, yaw, pitch = np.array(start[:3]), start[3], start[4]
    away = np.array([one.centre - eye for one in room.objects])
    distance = np.hypot(away[:, 0], away[:, 2])
    offset = (np.degrees(np.arctan2(away[:, 0], away[:, 2])) - yaw + 180) % 360 - 180
    at = np.flatnonzero((np.abs(offset) < _GAZE) & (distance > 0.9) & (distance < 3.5))
    if not len(at):
        return None
    target = room.objects[rng.choice(at)]
    radius = distance[room.objects.index(target)]
    sweep = rng.choice([-1, 1]) * min(rng.uniform(0.4, 1.3), 2.4 / radius)
    from_target = eye - target.centre
    # The point at the target's distance that the first camera looks at.
    watched = eye + radius * (_ahead(yaw) - [0, np.tan(np.radians(pitch)), 0])
    knots = []
    for share in _eased(9):
        cosine, sine = np.cos(sweep * share), np.sin(sweep * share)
        x, z = from_target[0] * cosine + from_target[2] * sine, from_target[2] * cosine - from_target[0] * sine
        place = target.centre + [x, from_target[1], z]
        knots.append((*place, *direction(place, watched + (target.centre - watched) * (2 * share - share * share))))
    # Looking at the middle, the camera moves to its left as the angle around the middle grows.
    text = f"Circle the {target.name} to the {_side(-sweep)} by {np.degrees(abs(sweep)):.0f} degrees, looking at it."
    return Trajectory("orbit", _from(start, knots), text)


def _draw_walk(room: Room, rng: np.random.Generator, start: Knot) -> Trajectory | None:
    """Along a bend, looking ahead."""
    *position, yaw, pitch = start
    angle = rng.uniform(-100, 100)
    bend = position + _ahead(yaw) * rng.uniform(0.4, 1.6)
    end = bend + _ahead(yaw + angle) * rng.uniform(0.4, 1.6)
    share = _eased(9)[:, None]
    path = (1 - share) ** 2 * position + 2 * share * (1 - share) * bend + share**2 * end
    length = np.linalg.norm(np.diff(path, axis=0), axis=1).sum()
    if length < 1.0:
        return None
    tangent = 2 * (1 - share) * (bend - position) + 2 * share * (end - bend)
    knots = [
        (*point, np.degrees(np.arctan2(step[0], step[2])), pitch) for point, step in zip(path, tangent, strict=True)
    ]
    turn = f", turning {_side(angle)} by {abs(angle):.0f} degrees" if abs(angle) >= 5 else ""
    return Trajectory("walk", _from(start, knots), f"Walk forward {length:.1f} metres{turn}.")


def _draw_survey(room: Room, rng: np.random.Generator, start: Knot) -> Trajectory:
    """Once around on a small ellipse, looking outwards: what a person does who films a whole room."""
    middle = np.array(start[:3])
    radii = rng.uniform(0.25, 0.45) * np.array(room.layout.half)
    start, turn = rng.uniform(0, 2 * np.pi), rng.choice([-1, 1])
    knots = []
    for share in np.linspace(0, 1, 17):
        angle = start + turn * 2 * np.pi * share
        eye = middle + np.array([radii[0] * np.sin(angle), 0.05 * np.sin(3 * angle), radii[1] * np.cos(angle)])
        # Looking across the room shows more of it than looking at the nearest wall.
        knots.append((*eye, np.degrees(angle) + 180 + 25 * np.sin(2 * angle), -8.0))
    return Trajectory("survey", rounded(_continuous(knots)), "Walk around the room and look at all of it.")


def _draw_approach(room: Room, target: RoomObject, rng: np.random.Generator, start: Knot) -> Trajectory | None:
    position, yaw, pitch = np.array(start[:3]), start[3], start[4]
    reach = np.hypot(*(target.high - target.low)[[0, 2]]) / 2 + rng.uniform(0.7, 1.5)
    around = rng.uniform(0, 2 * np.pi)
    if target.has_front:
        around = target.yaw + np.pi + rng.uniform(-0.9, 0.9)
    end = target.centre + reach * np.array([np.sin(around), 0.0, np.cos(around)])
    end[1] = position[1]
    final_yaw, final_pitch = direction(end, target.centre)
    turn = (final_yaw - yaw + 180) % 360 - 180
    if abs(turn) > MAX_TURN:
        return None
    bend = (position + end) / 2 + np.array([*rng.uniform(-0.6, 0.6, 2), 0.0])[[0, 2, 1]]
    knots = []
    for share in _eased(9):
        point = (1 - share) ** 2 * position + 2 * share * (1 - share) * bend + share**2 * end
        # The view turns first and rests on the target for the last third.
        turned = min(share * 1.25, 1.0)
        turned = turned * turned * (3 - 2 * turned)
        knots.append((*point, yaw + turn * turned, pitch + (final_pitch - pitch) * turned))
    return Trajectory("approach", _from(start, knots), f"Find the {target.name}.")


def _ahead(yaw: float) -> np.ndarray:
    """The direction on the floor that a yaw in degrees means."""
    return np.array([np.sin(np.radians(yaw)), 0.0, np.cos(np.radians(yaw))])


def _from(start: Knot, knots: Sequence[Sequence[float]]) -> tuple[Knot, ...]:
    """Knots that go on from `start`, which they begin with, in whole turns too."""
    values = _continuous([(*start[:3], start[3] % 360, start[4]), *knots[1:]])
    values[:, 3] += start[3] - values[0, 3]
    return rounded(values)


def _continuous(knots: Sequence[Sequence[float]]) -> np.ndarray:
    """Knots whose yaw has no jump of 360 degrees."""
    values = np.array(knots, np.float64)
    values[:, 3] = np.degrees(np.unwrap(np.radians(values[:, 3])))
    return values


_DRAWERS: dict[str, Callable[[Room, np.random.Generator, Knot], Trajectory | None]] = {
    "pan": _draw_pan,
    "dolly": _draw_dolly,
    "orbit": _draw_orbit,
    "walk": _draw_walk,
    "survey": _draw_survey,
}
TRAJECTORY_KINDS = tuple(_DRAWERS)
