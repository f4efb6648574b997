"""Renders a `Scene` of the tiny world into a video and the exact boxes of both sprites.

The animal waits at the initial relation, moves along a smooth arc, and rests at the final relation. The object never
moves. What the clip shows (`type` and `motion`) is independent of any caption, which lets `clips.py` make clips that
contradict their captions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spatialalign_trl.prompts import DSR_TYPES, split_type
from spatialalign_trl.tiny_world.sprites import SIZES, SUPERSAMPLING, stamp
from spatialalign_trl.tiny_world.vocabulary import ANIMAL_COLORS, ANIMALS, OBJECT_COLORS, SCENES

HEIGHT, WIDTH, NUM_FRAMES, FPS = 32, 48, 17, 8
HORIZON, GROUND = 20.0, 30.0
"""The y coordinates of the horizon and of the line on which everything stands, in pixels from the top."""

GRID = 2
"""Pixels between the positions that a sprite may take. On this grid a sprite looks the same everywhere, so that even a
small VAE learns sharp shapes."""

MOTIONS = ("complete", "static", "half")
"""complete: moves from the initial to the final relation. static: never moves. half: moves half-way and returns."""

_APEX = {"jumps": 1.0, "hops": 0.8, "leaps": 1.2, "bounces": 0.9}
_MOVING_SHARE = {"jumps": 0.55, "hops": 0.65, "leaps": 0.42, "bounces": 0.6}


@dataclass(frozen=True)
class Scene:
    """Everything that determines a clip.

    Attributes:
        scene, color, animal, object, verb (`str`):
            Words of `vocabulary.py`.
        type (`str`):
            DSR type that the clip shows, such as `"LR"`.
        motion (`str`, *optional*, defaults to `"complete"`):
            One of `MOTIONS`.
        object_x (`float`, *optional*, defaults to `24.0`):
            Centre of the object in pixels from the left; moved to the nearest position on the grid.
        gaps (tuple of 2 `float`, *optional*, defaults to `(1.0, 1.0)`):
            Pixels between the boxes at a left or right relation, at the start and at the end.
        start (`float`, *optional*, defaults to `0.2`):
            Share of the clip after which the motion begins, in [0, 0.45].

    Raises:
        ValueError: If `type` is not a DSR type.
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
            raise ValueError(
                f"type={self.type!r}: the tiny world does not show it. Choose from {', '.join(DSR_TYPES)}."
            )


@dataclass(frozen=True)
class Clip:
    """A rendered scene.

    Attributes:
        video (`np.ndarray` of shape `(frames, height, width, 3)`, `uint8`):
            RGB frames.
        animal_boxes, object_boxes (`np.ndarray` of shape `(frames, 4)`, `float64`):
            Exact boxes of both sprites: x1, y1, x2, y2 in pixels.
    """

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
    """Return the left edge and bottom of the animal at a relation."""
    animal_width, _ = SIZES[scene.animal]
    left, top, right, _ = _object_box(scene)
    if relation == "T":
        return (left + right - animal_width) / 2, top
    return (left - gap - animal_width if relation == "L" else right + gap), GROUND


def _smoothstep(x: np.ndarray) -> np.ndarray:
    x = np.clip(x, 0.0, 1.0)
    return x * x * (3.0 - 2.0 * x)


def _trajectory(scene: Scene, num_frames: int) -> np.ndarray:
    """Return the left edge and bottom of the animal on every frame, `(num_frames, 2)`, on the grid."""
    initial, final = split_type(scene.type)
    (x0, y0), (x1, y1) = _place(initial, scene, scene.gaps[0]), _place(final, scene, scene.gaps[1])
    time = np.linspace(0.0, 1.0, num_frames)
    progress = _smoothstep((time - scene.start) / _MOVING_SHARE[scene.verb])
    if scene.motion == "static":
        progress = np.zeros_like(progress)
    elif scene.motion == "half":
        progress = 0.5 * np.sin(np.pi * progress)
    # When the animal changes sides, the arc must be high enough to clear the object.
    clearance = SIZES[scene.object][1] + 3.0 if "T" not in scene.type else 4.0
    arc = 4.0 * progress * (1.0 - progress) * clearance * _APEX[scene.verb]
    x = x0 + progress * (x1 - x0)
    y = np.maximum(y0 + progress * (y1 - y0) - arc, SIZES[scene.animal][1])
    return _snap(np.stack([x, y], axis=1))


def _draw(canvas: np.ndarray, name: str, color: tuple[int, int, int], left: float, top: float, mirrored: bool) -> None:
    """Composite a sprite onto a float canvas in place; its box starts at `(left, top)` and may cross the borders."""
    # The whole pixels of the position select the place on the canvas, the rest selects the shifted sprite.
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
    """Return a frame with the two tones of a scene, above and below the horizon."""
    above, ground = (np.asarray(color, np.float32) for color in SCENES[scene])
    share = np.clip(np.arange(HEIGHT, dtype=np.float32) + 1.0 - HORIZON, 0.0, 1.0)[:, None, None]
    return np.broadcast_to(above * (1.0 - share) + ground * share, (HEIGHT, WIDTH, 3)).copy()


def check_words(scene: Scene) -> None:
    """Check that a scene's words and its motion are in the tiny world. Unknown ones raise a `ValueError`."""
    words = {"scene": SCENES, "color": ANIMAL_COLORS, "object": OBJECT_COLORS, "animal": ANIMALS, "verb": _APEX}
    for field, known in {**words, "motion": MOTIONS}.items():
        if getattr(scene, field) not in known:
            raise ValueError(
                f"{field}={getattr(scene, field)!r} is not in the tiny world. Choose from {', '.join(known)}."
            )


def render(scene: Scene, num_frames: int = NUM_FRAMES) -> Clip:
    """Render a scene.

    Args:
        scene (`Scene`):
            The scene to show.
        num_frames (`int`, *optional*, defaults to `17`):
            Length of the clip. The embedded model makes 17 frames.

    Returns:
        `Clip`: the video and the exact boxes.

    Raises:
        ValueError: If a word or the motion is unknown.
    """
    check_words(scene)

    # The backdrop with the object is the same on all frames.
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
    """Find the pixels of a rendered video that belong to a sprite.

    Args:
        scene (`Scene`):
            The scene that was rendered.
        video (`np.ndarray` of shape `(frames, height, width, 3)`, `uint8`):
            Its video.
        threshold (`int`, *optional*, defaults to `12`):
            Levels of 255 by which a pixel must differ from the plain background in at least one channel.

    Returns:
        `np.ndarray` of shape `(frames, height, width)`, `bool`: true where a sprite is.
    """
    difference = np.abs(video.astype(np.int16) - _background(scene.scene).astype(np.int16))
    return difference.max(-1) > threshold
