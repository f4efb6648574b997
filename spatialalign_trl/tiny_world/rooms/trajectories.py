"""Draws smooth camera paths through a room, clear of walls and objects, and describes them in words.

A path is a cubic spline through a few knots (position, yaw, pitch). It fits into a row of a dataset and gives any
number of frames. Yaw 0 looks along +z, and yaw grows towards +x (to the right). Pitch grows upwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.interpolate import CubicSpline

from spatialalign_trl.errors import near_miss
from spatialalign_trl.tiny_world.rooms.base import BaseRoom, RoomObject
from spatialalign_trl.tiny_world.rooms.path_ranges import ranges_of
from spatialalign_trl.tiny_world.rooms.views import render_geometry

Knot = tuple[float, float, float, float, float]
"""x, y, z in metres, yaw and pitch in degrees."""

CLEARANCE = 0.25
"""Smallest distance, in metres, between a camera and walls, floor, ceiling or objects."""

_ATTEMPTS = 300  # draws of a path before a room counts as too full
_ATTEMPTS_FROM_START = 24
"""Fewer attempts if the start is given, because the caller can try another start."""

_THUMBNAIL = (30, 52)  # height and width of the views in which paths are checked
_GAZE = 18.0
"""Largest angle, in degrees to either side, at which a camera counts as looking at an object."""


@dataclass(frozen=True)
class Trajectory:
    """A camera path.

    Attributes:
        kind (`str`):
            Kind of path, such as `"orbit"`.
        knots (`tuple[Knot, ...]`):
            At least two knots at equal steps of time. Yaw is continuous and may exceed 360 degrees.
        text (`str`):
            The path as an instruction.

    Raises:
        ValueError: If there are fewer than two knots, or a knot is not 5 finite numbers.
    """

    kind: str
    knots: tuple[Knot, ...]
    text: str

    def __post_init__(self) -> None:
        if len(self.knots) < 2 or any(len(knot) != 5 for knot in self.knots):
            raise ValueError(f"knots={self.knots!r}: a trajectory needs at least 2 knots of x, y, z, yaw, pitch.")
        if not np.isfinite(np.array(self.knots, np.float64)).all():
            raise ValueError(f"knots={self.knots!r}: all numbers of a trajectory must be finite.")

    def poses(self, num_frames: int) -> np.ndarray:
        """Compute the camera-to-world matrices from the first knot to the last.

        Args:
            num_frames (`int`):
                Number of poses, at equal steps of time.

        Returns:
            `np.ndarray` of shape `(num_frames, 4, 4)`: the poses.

        Raises:
            ValueError: If `num_frames` is less than 1.
        """
        if num_frames < 1:
            raise ValueError(f"num_frames={num_frames}: it must be at least 1.")
        values = self._interpolate(num_frames)
        return look(values[:, :3], values[:, 3], values[:, 4])

    def positions(self, number: int) -> np.ndarray:
        """Return the positions of the camera at equal steps of time, `(number, 3)`, in metres."""
        return self._interpolate(number)[:, :3]

    def _interpolate(self, number: int) -> np.ndarray:
        knots = np.array(self.knots, np.float64)
        return CubicSpline(np.linspace(0, 1, len(knots)), knots)(np.linspace(0, 1, number))


def look(
    position: Sequence[float] | np.ndarray, yaw: float | np.ndarray, pitch: float | np.ndarray = 0.0
) -> np.ndarray:
    """Compute the poses of upright cameras.

    Args:
        position (sequence of 3 `float`, or `np.ndarray` of shape `(..., 3)`):
            World coordinates in metres.
        yaw (`float` or `np.ndarray` of shape `(...)`):
            Direction in degrees. 0 looks along +z, 90 along +x.
        pitch (`float` or `np.ndarray` of shape `(...)`, *optional*, defaults to `0.0`):
            Inclination in degrees. Positive angles look up.

    Returns:
        `np.ndarray` of shape `(..., 4, 4)`: the camera-to-world matrices.
    """
    yaw, pitch = np.radians(yaw), np.radians(pitch)
    sin, cos, rise, level = np.sin(yaw), np.cos(yaw), np.sin(pitch), np.cos(pitch)
    pose = np.zeros((*np.shape(yaw), 4, 4))
    pose[..., 0, 0], pose[..., 2, 0] = cos, -sin  # right
    forward = sin * level, -rise, cos * level
    pose[..., 0, 1], pose[..., 1, 1], pose[..., 2, 1] = (  # down: forward x right
        forward[1] * -sin, forward[2] * cos - forward[0] * -sin, -forward[1] * cos,
    )  # fmt: skip
    for axis in range(3):
        pose[..., axis, 2] = forward[axis]
    pose[..., :3, 3] = position
    pose[..., 3, 3] = 1.0
    return pose


def direction(start: np.ndarray, end: np.ndarray) -> tuple[float, float]:
    """Return yaw and pitch, in degrees, of the view from one point to another."""
    x, y, z = np.asarray(end, np.float64) - np.asarray(start, np.float64)
    return float(np.degrees(np.arctan2(x, z))), float(np.degrees(np.arctan2(-y, np.hypot(x, z))))


def is_clear(room: BaseRoom, trajectory: Trajectory, clearance: float = CLEARANCE) -> bool:
    """Return whether a camera on the path keeps its distance from everything.

    Args:
        room (`BaseRoom`):
            The room.
        trajectory (`Trajectory`):
            The path.
        clearance (`float`, *optional*, defaults to `CLEARANCE`):
            Smallest allowed distance in metres.
    """
    return bool(room.clearance(trajectory.positions(97)).min() >= clearance)


def sample_trajectory(room: BaseRoom, kind: str, rng: np.random.Generator, start: Knot | None = None) -> Trajectory:
    """Draw a path of one kind.

    Args:
        room (`BaseRoom`):
            Room that the path must fit into.
        kind (`str`):
            `"pan"`, `"dolly"`, `"orbit"`, `"walk"`, or `"survey"`, which looks around the whole room.
        rng (`np.random.Generator`):
            Source of all randomness.
        start (`Knot`, *optional*):
            First camera of the path. It is drawn if not given. A survey always chooses its own.

    Returns:
        `Trajectory`: the path with its instruction.

    Raises:
        ValueError: If the kind is unknown.
        RuntimeError: If no path was found that fits into the room.
    """
    if kind not in _DRAWERS:
        raise ValueError(f"kind={kind!r}: unknown. {near_miss(kind, _DRAWERS)}")
    for first in _starts(room, rng, start):
        path = _DRAWERS[kind](room, rng, first)
        if path is None or not is_clear(room, path):
            continue
        if kind == "survey" or _sees_far_enough(room, path):
            return path
    raise RuntimeError(f"room {room.seed} has no space for a {kind!r} trajectory. Use another seed or start.")


def sample_approach(
    room: BaseRoom, target: RoomObject, rng: np.random.Generator, start: Knot | None = None
) -> Trajectory:
    """Draw a path that starts with the target out of view and ends with the target in the middle of the picture.

    Args:
        room (`BaseRoom`):
            Room that the path must fit into.
        target (`RoomObject`):
            One of the room's objects.
        rng (`np.random.Generator`):
            Source of all randomness.
        start (`Knot`, *optional*):
            First camera of the path. It is drawn if not given.

    Returns:
        `Trajectory`: the path with its instruction.

    Raises:
        RuntimeError: If no path was found, for instance because the target is hidden or is in view at the start.
    """
    index = room.objects.index(target)
    for first in _starts(room, rng, start):
        path = _draw_approach(room, target, rng, first)
        if path is None or not is_clear(room, path):
            continue
        ends = render_geometry(room, path.poses(2), _THUMBNAIL)
        share = ends.visible_pixels[:, index] / np.prod(_THUMBNAIL)
        if share[0] == 0 and share[1] > 0.02 and np.median(ends.depth[0]) > 1.0 and _centred(ends.boxes[1, index]):
            return path
    raise RuntimeError(f"room {room.seed} has no free path to the {target.name}. Use another target, seed or start.")


def _starts(room: BaseRoom, rng: np.random.Generator, start: Knot | None) -> Iterator[Knot]:
    """Yield first cameras to try: always the given one, or newly drawn ones."""
    for _ in range(_ATTEMPTS if start is None else _ATTEMPTS_FROM_START):
        if start is None:
            position = _position(room, rng)
            yield (*position, rng.uniform(-180, 180), rng.uniform(-10, 0))
        else:
            yield start


def _centred(box: np.ndarray) -> bool:
    """Return whether the visible part of an object is near the middle of the thumbnail."""
    height, width = _THUMBNAIL
    return abs(box[0] + box[2] - width) < 0.3 * width and abs(box[1] + box[3] - height) < 0.5 * height


def rounded(values: np.ndarray) -> tuple[Knot, ...]:
    """Round knots as a dataset stores them: to 0.1 mm and 0.01 degrees."""
    return tuple((*(round(float(x), 4) for x in knot[:3]), *(round(float(x), 2) for x in knot[3:])) for knot in values)


def _eased(number: int) -> np.ndarray:
    """Return shares of the way at equal steps of time, with a slow start and a slow stop."""
    time = np.linspace(0, 1, number)
    return time * time * (3 - 2 * time)


def _position(room: BaseRoom, rng: np.random.Generator) -> np.ndarray:
    """Draw a point at eye height, away from the walls; it may lie inside an object."""
    half = np.array(room.layout.half) - 0.5
    x, z = rng.uniform(-half, half)
    return np.array([x, -rng.uniform(*ranges_of(room.style).eye_height), z])


def _sees_far_enough(room: BaseRoom, trajectory: Trajectory) -> bool:
    """Return whether no frame is filled by a near wall, from which no pose could be estimated."""
    views = render_geometry(room, trajectory.poses(3), _THUMBNAIL)
    return bool(np.median(views.depth.reshape(3, -1), axis=1).min() > 1.2)


def _side(angle: float) -> str:
    return "right" if angle > 0 else "left"


def _draw_pan(room: BaseRoom, rng: np.random.Generator, start: Knot) -> Trajectory:
    *position, yaw, pitch = start
    angle = rng.choice([-1, 1]) * rng.uniform(*ranges_of(room.style).pan)
    text = f"Stand still and turn {_side(angle)} by {abs(angle):.0f} degrees."
    return Trajectory("pan", rounded(np.array([(*position, yaw + angle * share, pitch) for share in _eased(9)])), text)


def _draw_dolly(room: BaseRoom, rng: np.random.Generator, start: Knot) -> Trajectory:
    *position, yaw, pitch = start
    sideways = rng.random() < 0.35
    length = rng.choice([-1, 1]) * rng.uniform(*ranges_of(room.style).dolly)
    step = _ahead(yaw + (90 if sideways else 0)) * length
    words = ("right" if length > 0 else "left") if sideways else ("forward" if length > 0 else "backward")
    knots = [(*(position + step * share), yaw, pitch) for share in _eased(9)]
    return Trajectory("dolly", rounded(np.array(knots)), f"Move {words} by {abs(length):.1f} metres.")


def _draw_orbit(room: BaseRoom, rng: np.random.Generator, start: Knot) -> Trajectory | None:
    """Draw a path around an object near the middle of the first view; the view ends on the object's centre."""
    # 1. Choose a target.
    eye, yaw, pitch = np.array(start[:3]), start[3], start[4]
    away = np.array([thing.centre - eye for thing in room.objects])
    distance = np.hypot(away[:, 0], away[:, 2])
    offset = (np.degrees(np.arctan2(away[:, 0], away[:, 2])) - yaw + 180) % 360 - 180
    candidates = np.flatnonzero((np.abs(offset) < _GAZE) & (distance > 0.9) & (distance < 3.5))
    if not len(candidates):
        return None
    target = room.objects[rng.choice(candidates)]

    # 2. Move along the circle around it.
    radius = distance[room.objects.index(target)]
    sweep = rng.choice([-1, 1]) * min(rng.uniform(*ranges_of(room.style).orbit), 2.4 / radius)
    from_target = eye - target.centre
    # The view moves from the point that the first camera looks at, taken at the target's distance, to the target.
    watched = eye + radius * (_ahead(yaw) - [0, np.tan(np.radians(pitch)), 0])
    knots = []
    for share in _eased(9):
        cosine, sine = np.cos(sweep * share), np.sin(sweep * share)
        x, z = from_target[0] * cosine + from_target[2] * sine, from_target[2] * cosine - from_target[0] * sine
        position = target.centre + [x, from_target[1], z]
        look_at = watched + (target.centre - watched) * (2 * share - share * share)
        knots.append((*position, *direction(position, look_at)))

    # A camera that looks at the centre moves to its left as the angle around the centre grows.
    text = f"Circle the {target.name} to the {_side(-sweep)} by {np.degrees(abs(sweep)):.0f} degrees, looking at it."
    return Trajectory("orbit", _continue_from(start, knots), text)


def _draw_walk(room: BaseRoom, rng: np.random.Generator, start: Knot) -> Trajectory | None:
    """Draw a path along a bend, looking ahead."""
    *position, yaw, pitch = start
    ranges = ranges_of(room.style)
    angle = rng.uniform(-ranges.walk_angle, ranges.walk_angle)
    bend = position + _ahead(yaw) * rng.uniform(*ranges.walk_leg)
    end = bend + _ahead(yaw + angle) * rng.uniform(*ranges.walk_leg)
    share = _eased(9)[:, None]
    path = (1 - share) ** 2 * position + 2 * share * (1 - share) * bend + share**2 * end
    length = np.linalg.norm(np.diff(path, axis=0), axis=1).sum()
    if length < ranges.shortest_walk:
        return None
    tangent = 2 * (1 - share) * (bend - position) + 2 * share * (end - bend)
    knots = [
        (*point, np.degrees(np.arctan2(step[0], step[2])), pitch) for point, step in zip(path, tangent, strict=True)
    ]
    turn = f", turning {_side(angle)} by {abs(angle):.0f} degrees" if abs(angle) >= 5 else ""
    return Trajectory("walk", _continue_from(start, knots), f"Walk forward {length:.1f} metres{turn}.")


def _draw_survey(room: BaseRoom, rng: np.random.Generator, start: Knot) -> Trajectory:
    """Draw one turn around a small ellipse, looking at the whole room as a person would who records it."""
    ranges = ranges_of(room.style)
    middle = np.array(start[:3]) * [ranges.survey_spread, 1, ranges.survey_spread]
    radii = rng.uniform(*ranges.survey_radii) * np.array(room.layout.half)
    start, turn = rng.uniform(0, 2 * np.pi), rng.choice([-1, 1])
    knots = []
    for share in np.linspace(0, 1, 17):
        angle = start + turn * 2 * np.pi * share
        eye = middle + np.array(
            [radii[0] * np.sin(angle), ranges.survey_rise * np.sin(3 * angle), radii[1] * np.cos(angle)]
        )
        # Look across the room, which shows more of it than looking at the nearest wall.
        knots.append((*eye, np.degrees(angle) + 180 + ranges.survey_swing * np.sin(2 * angle), -8.0))
    return Trajectory("survey", rounded(_continuous(knots)), "Walk around the room and look at all of it.")


def _draw_approach(room: BaseRoom, target: RoomObject, rng: np.random.Generator, start: Knot) -> Trajectory | None:
    # 1. Choose where to stop: in front of the target, if it has a front.
    position, yaw, pitch = np.array(start[:3]), start[3], start[4]
    reach = np.hypot(*(target.high - target.low)[[0, 2]]) / 2 + rng.uniform(*ranges_of(room.style).reach)
    around = rng.uniform(0, 2 * np.pi)
    if target.has_front:
        around = target.yaw + np.pi + rng.uniform(-0.9, 0.9)
    end = target.centre + reach * np.array([np.sin(around), 0.0, np.cos(around)])
    end[1] = position[1]
    final_yaw, final_pitch = direction(end, target.centre)
    turn = (final_yaw - yaw + 180) % 360 - 180
    if abs(turn) > ranges_of(room.style).max_turn:
        return None

    # 2. Go there along a bend.
    bend = (position + end) / 2 + np.array([*rng.uniform(-0.6, 0.6, 2), 0.0])[[0, 2, 1]]
    knots = []
    for share in _eased(9):
        point = (1 - share) ** 2 * position + 2 * share * (1 - share) * bend + share**2 * end
        # The view turns first and rests on the target for the last third.
        turned = min(share * 1.25, 1.0)
        turned = turned * turned * (3 - 2 * turned)
        knots.append((*point, yaw + turn * turned, pitch + (final_pitch - pitch) * turned))
    return Trajectory("approach", _continue_from(start, knots), f"Find the {target.name}.")


def _ahead(yaw: float) -> np.ndarray:
    """Return the horizontal direction of a yaw in degrees."""
    return np.array([np.sin(np.radians(yaw)), 0.0, np.cos(np.radians(yaw))])


def _continue_from(start: Knot, knots: Sequence[Sequence[float]]) -> tuple[Knot, ...]:
    """Replace the first knot by `start` and shift the yaw of the others by whole turns to continue from it."""
    values = _continuous([(*start[:3], start[3] % 360, start[4]), *knots[1:]])
    values[:, 3] += start[3] - values[0, 3]
    return rounded(values)


def _continuous(knots: Sequence[Sequence[float]]) -> np.ndarray:
    """Remove jumps of 360 degrees from the yaw of knots."""
    values = np.array(knots, np.float64)
    values[:, 3] = np.degrees(np.unwrap(np.radians(values[:, 3])))
    return values


_DRAWERS: dict[str, Callable[[BaseRoom, np.random.Generator, Knot], Trajectory | None]] = {
    "pan": _draw_pan,
    "dolly": _draw_dolly,
    "orbit": _draw_orbit,
    "walk": _draw_walk,
    "survey": _draw_survey,
}
TRAJECTORY_KINDS = tuple(_DRAWERS)
