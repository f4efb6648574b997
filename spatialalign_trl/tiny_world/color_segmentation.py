"""The tiny world's tracker: finds the two sprites of a clip by their colours, on pixels alone.

Every pixel takes the nearest colour of the tiny world's palette; the largest connected blob of the animal's colour is
the animal, the largest of the object's colour the object. It knows which colours were asked for, never where anything
was drawn, and works on generated videos as on rendered ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import ceil

import numpy as np
from scipy import ndimage

from spatialalign_trl.errors import near_miss
from spatialalign_trl.perception.tracks import FrameBoxes, Tracks
from spatialalign_trl.tiny_world.sprites import DARK_COLOR, SHADE_FACTOR
from spatialalign_trl.tiny_world.vocabulary import ANIMAL_COLORS, ANIMALS, OBJECT_COLORS, SCENES
from spatialalign_trl.video import Video

VALID_SHARE = 13 / 17
"""Share of the frames on which both sprites must be found; fewer make the video INVALID."""

MIN_PIXELS = 14
SECOND_BLOB_SHARE = 0.4
"""A second blob larger than this share of the first means that the sprite is doubled or torn: not found."""

BACKGROUND = -1
_IN_PLANE = np.zeros((3, 3, 3), int)
_IN_PLANE[1] = 1  # pixels touch within a frame (also at corners), never across frames


def _palette() -> tuple[np.ndarray, np.ndarray, list[str]]:
    """`(colors (P, 3), class of each color (P,), class names)`; an object's colour stands beside its shade."""
    names = [*ANIMAL_COLORS, *OBJECT_COLORS]
    colors, classes = [], []
    for index, color in enumerate((*ANIMAL_COLORS.values(), *OBJECT_COLORS.values())):
        colors.append(color)
        classes.append(index)
        if index >= len(
            ANIMAL_COLORS
        ):  # an animal's shades are few, and a yellow one would swallow parts of the crate
            colors.append(tuple(SHADE_FACTOR * value for value in color))
            classes.append(index)
    background = [color for pair in SCENES.values() for color in pair] + [DARK_COLOR]
    return np.asarray(colors + background, np.float32), np.asarray(classes + [BACKGROUND] * len(background)), names


_COLORS, _CLASSES, CLASS_NAMES = _palette()


@cache
def _lookup_table() -> np.ndarray:
    """Nearest palette class of every colour, at 6 bits a channel: int8 `(64, 64, 64)`."""
    levels = np.arange(64, dtype=np.float32) * 4 + 1.5
    cells = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    # |p - c|^2 without the constant |p|^2: one matrix product instead of a difference per palette entry
    distances = cells @ (-2.0 * _COLORS.T) + (_COLORS**2).sum(1)
    return _CLASSES[distances.argmin(1)].astype(np.int8).reshape(64, 64, 64)


def classify(video: Video) -> np.ndarray:
    """Nearest palette entry of every pixel.

    Args:
        video: uint8 `(..., height, width, 3)`.

    Returns:
        int8 `(..., height, width)`: an index into `CLASS_NAMES`, or `BACKGROUND`.
    """
    red, green, blue = (video[..., channel] >> 2 for channel in range(3))
    return _lookup_table()[red, green, blue]


def largest_blobs(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The largest connected blob on every frame.

    Args:
        mask: bool `(frames, height, width)`.

    Returns:
        `(boxes, blobs)`: float `(frames, 4)` xyxy pixel edges, NaN where there is no acceptable blob; and the blobs as
        bool `(frames, height, width)`.
    """
    labels, count = ndimage.label(mask, structure=_IN_PLANE)
    boxes, blobs = np.full((len(mask), 4), np.nan), np.zeros_like(mask)
    if not count:
        return boxes, blobs
    sizes = np.bincount(labels.ravel())[1:]
    places = ndimage.find_objects(labels)
    by_frame: dict[int, list[int]] = {}
    for index, place in enumerate(places):
        by_frame.setdefault(place[0].start, []).append(index)
    for frame, indices in by_frame.items():
        first, *others = sorted(indices, key=lambda index: -sizes[index])
        if sizes[first] < MIN_PIXELS or (others and sizes[others[0]] > SECOND_BLOB_SHARE * sizes[first]):
            continue
        _, rows, columns = places[first]
        boxes[frame] = columns.start, rows.start, columns.stop, rows.stop
        blobs[frame] = labels[frame] == first + 1
    return boxes, blobs


class ColorSegmentationTracker:
    """Tracks a tiny-world animal (by its colour adjective) and object (by its kind).

    A video is INVALID when both are found on fewer than `VALID_SHARE` of its frames.
    """

    name = "color_segmentation"
    required_columns = ("attribute",)

    def track(
        self,
        videos: Sequence[Video],
        *,
        animal: Sequence[str],
        object: Sequence[str],
        attribute: Sequence[str] | None = None,
    ) -> list[Tracks]:
        """Boxes of both sprites.

        Args:
            videos: uint8 `(frames, height, width, 3)` each.
            animal: nouns, such as `"fox"`.
            object: nouns with one fixed colour each, such as `"stump"`.
            attribute: the animals' colours, such as `"red"`; required here.

        Raises:
            ValueError: for words outside the tiny world, or without colours.
        """
        self.check_prompts(animal=animal, object=object, attribute=attribute)
        return [self._track_one(*row) for row in zip(videos, animal, object, attribute, strict=True)]

    def check_prompts(
        self, *, animal: Sequence[str], object: Sequence[str], attribute: Sequence[str] | None = None
    ) -> None:
        """Refuses words that cannot be tracked; arguments and errors as in `track`."""
        if attribute is None:
            raise ValueError("the color_segmentation tracker needs the column `attribute` (the animal's color)")
        for name, thing, color in zip(animal, object, attribute, strict=True):
            for word, known in ((name, ANIMALS), (thing, OBJECT_COLORS), (color, ANIMAL_COLORS)):
                if word not in known:
                    raise ValueError(
                        f"{word!r} is not in the tiny world, and color_segmentation can track nothing else. "
                        f"{near_miss(word, known)} Videos of other worlds need another tracker."
                    )

    def _track_one(self, video: Video, animal: str, object: str, color: str) -> Tracks:
        classes = classify(video)
        animal_boxes, _ = largest_blobs(classes == CLASS_NAMES.index(color))
        object_boxes, _ = largest_blobs(classes == CLASS_NAMES.index(object))
        found = ~(np.isnan(animal_boxes[:, 0]) | np.isnan(object_boxes[:, 0]))
        frames = [
            FrameBoxes(int(k), (animal, object), np.stack([animal_boxes[k], object_boxes[k]]))
            for k in np.flatnonzero(found)
        ]
        needed = ceil(VALID_SHARE * len(video) - 1e-9)
        reason = None
        if len(frames) < needed:
            found_in = f"found together in {len(frames)} of {len(video)} frames, {needed} needed"
            reason = f"{color} {animal} and {object} {found_in}"
        return Tracks(frames, len(video), reason)
