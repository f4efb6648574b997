"""The tracker of the tiny world: finds the two sprites of a clip by their colours.

Every pixel is assigned to the nearest colour of the tiny world's palette. The largest connected blob of the animal's
colour is the animal, and the largest blob of the object's colour is the object. The tracker knows the colours in the
prompt but not where anything was drawn, so it treats generated and rendered videos alike.
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
"""Share of the frames on which both sprites must be found. With fewer, the video is INVALID."""

MIN_PIXELS = 14
"""Smallest blob that counts as a sprite, in pixels."""

SECOND_BLOB_SHARE = 0.4
"""A second blob larger than this share of the largest means a doubled or torn sprite, which counts as not found."""

BACKGROUND = -1
_IN_PLANE = np.zeros((3, 3, 3), int)
_IN_PLANE[1] = 1  # pixels are connected within a frame (also at corners), never across frames


def _palette() -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return `(colors (P, 3), class of each color (P,), class names)`; objects have a second entry for their shade."""
    names = [*ANIMAL_COLORS, *OBJECT_COLORS]
    colors, classes = [], []
    for index, color in enumerate((*ANIMAL_COLORS.values(), *OBJECT_COLORS.values())):
        colors.append(color)
        classes.append(index)
        # Animals get no entry for their shade: it covers few pixels, and shaded yellow would match parts of the crate.
        if index >= len(ANIMAL_COLORS):
            colors.append(tuple(SHADE_FACTOR * value for value in color))
            classes.append(index)
    background = [color for pair in SCENES.values() for color in pair] + [DARK_COLOR]
    return np.asarray(colors + background, np.float32), np.asarray(classes + [BACKGROUND] * len(background)), names


_COLORS, _CLASSES, CLASS_NAMES = _palette()


@cache
def _lookup_table() -> np.ndarray:
    """Return the nearest palette class of every colour, with 6 bits per channel: int8 `(64, 64, 64)`."""
    levels = np.arange(64, dtype=np.float32) * 4 + 1.5
    cells = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    # |p - c|^2 without |p|^2, which does not change the nearest entry, is a single matrix product.
    distances = cells @ (-2.0 * _COLORS.T) + (_COLORS**2).sum(1)
    return _CLASSES[distances.argmin(1)].astype(np.int8).reshape(64, 64, 64)


def classify(video: Video) -> np.ndarray:
    """Assign every pixel to the nearest palette entry.

    Args:
        video (`np.ndarray` of shape `(..., height, width, 3)`, `uint8`):
            One or more frames.

    Returns:
        `np.ndarray` of shape `(..., height, width)`, `int8`: an index into `CLASS_NAMES`, or `BACKGROUND`.
    """
    red, green, blue = (video[..., channel] >> 2 for channel in range(3))
    return _lookup_table()[red, green, blue]


def largest_blobs(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the largest connected blob on every frame.

    Args:
        mask (`np.ndarray` of shape `(frames, height, width)`, `bool`):
            Pixels of one colour.

    Returns:
        tuple of 2 `np.ndarray`: the boxes, `(frames, 4)`, as x1, y1, x2, y2 in pixels, NaN where no blob is
        acceptable; and the blobs, `(frames, height, width)`, `bool`.
    """
    # Label all frames at once. A blob never spans frames, so it belongs to the frame where its extent starts.
    labels, count = ndimage.label(mask, structure=_IN_PLANE)
    boxes, blobs = np.full((len(mask), 4), np.nan), np.zeros_like(mask)
    if not count:
        return boxes, blobs
    sizes = np.bincount(labels.ravel())[1:]
    extents = ndimage.find_objects(labels)
    by_frame: dict[int, list[int]] = {}
    for index, extent in enumerate(extents):
        by_frame.setdefault(extent[0].start, []).append(index)
    for frame, indices in by_frame.items():
        # Reject frames without a clear winner: nothing large enough, or two blobs of similar size.
        first, *others = sorted(indices, key=lambda index: -sizes[index])
        if sizes[first] < MIN_PIXELS or (others and sizes[others[0]] > SECOND_BLOB_SHARE * sizes[first]):
            continue
        _, rows, columns = extents[first]
        boxes[frame] = columns.start, rows.start, columns.stop, rows.stop
        blobs[frame] = labels[frame] == first + 1
    return boxes, blobs


class ColorSegmentationTracker:
    """Track a tiny-world animal by its colour adjective and an object by its kind.

    A video is INVALID if both are found on fewer than `VALID_SHARE` of its frames.
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
        """Find the boxes of both sprites in every video.

        Args:
            videos (sequence of `np.ndarray` of shape `(frames, height, width, 3)`, `uint8`):
                Videos to track.
            animal (sequence of `str`):
                Nouns, such as `"fox"`, one per video.
            object (sequence of `str`):
                Nouns with one fixed colour each, such as `"stump"`, one per video.
            attribute (sequence of `str`):
                Colours of the animals, such as `"red"`. Optional in the tracker protocol, but required here.

        Returns:
            `list[Tracks]`: the frames on which both sprites were found, one `Tracks` per video.

        Raises:
            ValueError: If a word is not in the tiny world, or if `attribute` is missing.
        """
        self.check_prompts(animal=animal, object=object, attribute=attribute)
        return [self._track_one(*row) for row in zip(videos, animal, object, attribute, strict=True)]

    def check_prompts(
        self, *, animal: Sequence[str], object: Sequence[str], attribute: Sequence[str] | None = None
    ) -> None:
        """Check that all words can be tracked. The arguments and errors are those of `track`."""
        if attribute is None:
            raise ValueError(
                "attribute=None: the color_segmentation tracker needs the column `attribute`, the animal's color."
            )
        for animal_word, object_word, color in zip(animal, object, attribute, strict=True):
            for column, word, known in (
                ("animal", animal_word, ANIMALS),
                ("object", object_word, OBJECT_COLORS),
                ("attribute", color, ANIMAL_COLORS),
            ):
                if word not in known:
                    raise ValueError(
                        f"{column}={word!r} is not in the tiny world, and color_segmentation can track nothing else. "
                        f"{near_miss(word, known)} Use another tracker for other videos."
                    )

    def _track_one(self, video: Video, animal: str, object: str, color: str) -> Tracks:
        classes = classify(video)
        animal_boxes, _ = largest_blobs(classes == CLASS_NAMES.index(color))
        object_boxes, _ = largest_blobs(classes == CLASS_NAMES.index(object))
        found = ~(np.isnan(animal_boxes[:, 0]) | np.isnan(object_boxes[:, 0]))
        frames = [
            FrameBoxes(int(frame), (animal, object), np.stack([animal_boxes[frame], object_boxes[frame]]))
            for frame in np.flatnonzero(found)
        ]
        needed = ceil(VALID_SHARE * len(video) - 1e-9)
        reason = None
        if len(frames) < needed:
            found_in = f"found together in {len(frames)} of {len(video)} frames, {needed} needed"
            reason = f"{color} {animal} and {object} {found_in}"
        return Tracks(frames, len(video), reason)
