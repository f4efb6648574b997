"""A `Scene` of the tiny world -> a video and the exact boxes of both sprites.

The animal waits at the initial relation, moves along an eased arc, and rests at the final one; the object never moves.
What actually happens (`motion`) is separate from what a caption says: `clips.py` uses that to make imperfect data.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spatialalign_trl.prompts import DSR_TYPES, split_type
from spatialalign_trl.tiny_world.sprites import SIZES, SUPERSAMPLING, stamp
from spatialalign_trl.tiny_world.vocabulary import ANIMAL_COLORS, ANIMALS, OBJECT_COLORS, SCENES

HEIGHT, WIDTH, NUM_FRAMES, FPS = 32, 48, 17, 8
HORIZON, GROUND = 20.0, 30.0
"""y of the horizon and of the line on which everything stands, in pixels from the top."""

GRID = 2
"""Sprites stand on every second pixel, so that each looks the same wherever it is: a small VAE learns that crisply."""

MOTIONS = ("complete", "static", "half")
"""complete: from the initial to the final relation; static: never leaves; half: jumps up half-way and falls back."""

_APEX = {"jumps": 1.0, "hops": 0.8, "leaps": 1.2, "bounces": 0.9}
_MOVING_SHARE = {"jumps": 0.55, "hops": 0.65, "leaps": 0.42, "bounces": 0.6}


@dataclass(frozen=True)
class Scene:
    """Everything that determines a clip.

    Attributes:
        scene, color, animal, object, verb: words of `vocabulary.py`.
        type: the DSR type that is *shown*, such as `"LR"`.
        motion: one of `MOTIONS`.
        object_x: centre of the object, pixels from the left (drawn at the nearest place on the grid).
        gaps: clear pixels between the boxes at a left or right relation, at the start and at the end.
        start: frame share at which the motion begins, in [0, 0.45].
    """

    scene: str
    color: str
    animal: str
    object: str
    verb: str
    type: str
    motion: str = "complete"
    object_x: float = 24.0
    gaps: tuple[float, float] = (1.0, 1.0)
    start: float = 0.2

    def __post_init__(self) -> None:
        if self.type not in DSR_TYPES:
            raise ValueError(f"the tiny world shows the types {', '.join(DSR_TYPES)}; type is {self.type!r}")


@dataclass(frozen=True)
class Clip:
    """A rendered scene: `video` uint8 `(frames, height, width, 3)`; boxes float `(frames, 4)` xyxy in pixels."""

    video: np.ndarray
    animal_boxes: np.ndarray
    object_boxes: np.ndarray


def _snap(value: float | np.ndarray) -> float | np.ndarray:
    return np.round(np.asarray(value) / GRID) * GRID


def _object_box(scene: Scene) -> tuple[float, float, float, float]:
    width, height = SIZES[scene.object]
    left = float(_snap(scene.object_x - width / 2))
    return left, GROUND - height, left + width, GROUND


def _place(relation: str, scene: Scene, gap: float) -> tuple[float, float]:
    """Left edge and bottom of the animal at a relation."""
    animal_width, _ = SIZES[scene.animal]
    left, top, right, _ = _object_box(scene)
    if relation == "T":
        return (left + right - animal_width) / 2, top
    return (left - gap - animal_width if relation == "L" else right + gap), GROUND


def _smoothstep(x: np.ndarray) -> np.ndarray:
    x = np.clip(x, 0.0, 1.0)
    return x * x * (3.0 - 2.0 * x)


def _trajectory(scene: Scene, num_frames: int) -> np.ndarray:
    """`(num_frames, 2)`: left edge and bottom of the animal, on the grid."""
    initial, final = split_type(scene.type)
    (x0, y0), (x1, y1) = _place(initial, scene, scene.gaps[0]), _place(final, scene, scene.gaps[1])
    time = np.linspace(0.0, 1.0, num_frames)
    progress = _smoothstep((time - scene.start) / _MOVING_SHARE[scene.verb])
    if scene.motion == "static":
        progress = np.zeros_like(progress)
    elif scene.motion == "half":
        progress = 0.5 * np.sin(np.pi * progress)
    # an arc over the object: high enough to clear it when the animal changes sides
    clearance = SIZES[scene.object][1] + 3.0 if "T" not in scene.type else 4.0
    arc = 4.0 * progress * (1.0 - progress) * clearance * _APEX[scene.verb]
    x = x0 + progress * (x1 - x0)
    y = np.maximum(y0 + progress * (y1 - y0) - arc, SIZES[scene.animal][1])
    return _snap(np.stack([x, y], axis=1))


def _draw(canvas: np.ndarray, name: str, color: tuple[int, int, int], left: float, top: float, mirrored: bool) -> None:
    """Composites a sprite whose box starts at (left, top) onto a float canvas, in place; clipped at the borders."""
    fine_x, fine_y = round(left * SUPERSAMPLING), round(top * SUPERSAMPLING)
    (column, offset_x), (row, offset_y) = divmod(fine_x, SUPERSAMPLING), divmod(fine_y, SUPERSAMPLING)
    sprite = stamp(name, mirrored, offset_x, offset_y)
    height, width = sprite.alpha.shape
    rows = slice(max(row, 0), max(min(row + height, canvas.shape[0]), 0))
    columns = slice(max(column, 0), max(min(column + width, canvas.shape[1]), 0))
    inside = (slice(rows.start - row, rows.stop - row), slice(columns.start - column, columns.stop - column))
    canvas[rows, columns] *= 1.0 - sprite.alpha[inside][..., None]
    canvas[rows, columns] += sprite.paint(color)[inside]


def _background(scene: str) -> np.ndarray:
    above, ground = (np.asarray(color, np.float32) for color in SCENES[scene])
    share = np.clip(np.arange(HEIGHT, dtype=np.float32) + 1.0 - HORIZON, 0.0, 1.0)[:, None, None]
    return np.broadcast_to(above * (1.0 - share) + ground * share, (HEIGHT, WIDTH, 3)).copy()


def render(scene: Scene, num_frames: int = NUM_FRAMES) -> Clip:
    """Renders a scene.

    Args:
        scene: what to show.
        num_frames: clip length; 17 is what the embedded model makes.

    Raises:
        ValueError: for words outside the vocabulary or an unknown DSR type or motion.
    """
    words = {"scene": SCENES, "color": ANIMAL_COLORS, "object": OBJECT_COLORS, "animal": ANIMALS, "verb": _APEX}
    for field, known in {**words, "motion": MOTIONS}.items():
        if getattr(scene, field) not in known:
            raise ValueError(f"{field}={getattr(scene, field)!r} is not in the tiny world; known: {', '.join(known)}")
    path = _trajectory(scene, num_frames)
    animal_width, animal_height = SIZES[scene.animal]
    object_box = _object_box(scene)
    backdrop = _background(scene.scene)
    _draw(backdrop, scene.object, OBJECT_COLORS[scene.object], *object_box[:2], False)
    facing_left = split_type(scene.type) in (("R", "L"), ("R", "T"), ("T", "L"))
    frames, animal_boxes = [], []
    for left, bottom in path:
        canvas = backdrop.copy()
        _draw(canvas, scene.animal, ANIMAL_COLORS[scene.color], left, bottom - animal_height, facing_left)
        frames.append(canvas)
        animal_boxes.append((left, bottom - animal_height, left + animal_width, bottom))
    video = np.clip(np.stack(frames) + 0.5, 0, 255).astype(np.uint8)
    return Clip(video, np.asarray(animal_boxes), np.tile(object_box, (num_frames, 1)))


def foreground(scene: Scene, video: np.ndarray, threshold: int = 12) -> np.ndarray:
    """Which pixels of a rendered video are not plain background: bool `(frames, height, width)`."""
    difference = np.abs(video.astype(np.int16) - _background(scene.scene).astype(np.int16))
    return difference.max(-1) > threshold
