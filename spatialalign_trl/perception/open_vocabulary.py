"""What trackers of arbitrary nouns share: which words they take, the validity rules, the cache, progress.

A tracker says what it finds on each frame and how it follows a pair of boxes; everything else is here, so that two
trackers differ in their models alone.
"""

from __future__ import annotations

import logging
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from spatialalign_trl.perception.detection_cache import DetectionCache, unpack_detections
from spatialalign_trl.perception.tracks import FrameBoxes, Tracks
from spatialalign_trl.perception.validity import StrictRules, Validity, ValidityRules, assess, strict_reason

if TYPE_CHECKING:
    from spatialalign_trl.perception.detections import Detections
    from spatialalign_trl.video import Video

logger = logging.getLogger(__name__)

_SEVERAL = re.compile(r"\b(and|or)\b|[,;/&+]", re.IGNORECASE)


def check_nouns(animal: Sequence[str], object: Sequence[str]) -> None:
    """
    Refuse words that cannot be found or told apart in a picture.

    Args:
        animal, object (sequences of `N` `str`):
            The nouns; "fire hydrant" is one noun.

    Raises:
        ValueError: for an empty word, one with a `.` or `?` (they end a label in the detector's text), several nouns
            in one ("cat and dog"), or an animal that is its own object. Names the row.
    """
    for row, (subject, thing) in enumerate(zip(animal, object, strict=True)):
        for column, word in (("animal", subject), ("object", thing)):
            where = f"prompt {row}: {column} is {word!r}"
            if not isinstance(word, str) or not word.strip():
                raise ValueError(f"{where}; a noun such as 'cat' is needed.")
            if word != word.strip():
                raise ValueError(f"{where}; remove the spaces around it.")
            if "." in word or "?" in word:
                raise ValueError(f"{where}; '.' and '?' end a label in the detector's text, so leave them out.")
            if _SEVERAL.search(word):
                raise ValueError(
                    f"{where}, which names several things; one animal and one static object are what can be scored. "
                    "Make one prompt of each."
                )
        if subject.lower() == thing.lower():
            raise ValueError(
                f"prompt {row}: animal and object are both {subject!r}; their boxes cannot be told apart. "
                "Use two different nouns."
            )


class OpenVocabularyTracker(ABC):
    """
    A tracker of one animal and one object named by arbitrary nouns; follows the protocol
    [`~spatialalign_trl.perception.tracks.Tracker`].

    Adjectives (`attribute`) are accepted and not used: the paper's text holds the nouns alone.

    Args:
        rules ([`~spatialalign_trl.perception.validity.ValidityRules`], *optional*):
            When a clip is INVALID; the authors' rules when not given.
        strict (`bool` or [`~spatialalign_trl.perception.validity.StrictRules`], *optional*, defaults to `False`):
            Also refuse clips whose score would mean little (see `validity.py`); off for parity with the paper.
        scale_to_length (`bool`, *optional*, defaults to `False`):
            Scale the rules' thresholds, which are meant for 81 frames, to each clip's length.
        cache_dir (`str` or `os.PathLike`, *optional*):
            A folder that keeps what was found. A clip that is scored again, under any rules, then loads no model.
        disable_progress_bar (`bool`, *optional*, defaults to `False`):
            Whether to show no bar over the clips.
    """

    name: str

    def __init__(
        self,
        rules: ValidityRules | None = None,
        strict: bool | StrictRules = False,
        scale_to_length: bool = False,
        cache_dir: str | os.PathLike | None = None,
        disable_progress_bar: bool = False,
    ) -> None:
        rules = rules if rules is not None else ValidityRules()
        if strict:
            rules = replace(rules, strict=StrictRules() if strict is True else strict)
        if scale_to_length:
            rules = replace(rules, scale_to_length=True)
        self.rules = rules
        self.cache = None if cache_dir is None else DetectionCache(cache_dir)
        self.disable_progress_bar = disable_progress_bar

    @abstractmethod
    def prepare(self) -> None:
        """Check everything that the models need, fetching checkpoints that are not here; load nothing."""

    @abstractmethod
    def release(self) -> None:
        """Free the models' memory; the next use loads them again."""

    @abstractmethod
    def _find(self, video: Video, names: tuple[str, str], clip: str) -> dict[str, np.ndarray]:
        """
        What is on each frame, packed by `pack_detections`; further arrays are for `_follow`. `clip`: for `_cached`.
        """

    @abstractmethod
    def _follow(
        self,
        video: Video,
        names: tuple[str, str],
        found: dict[str, np.ndarray],
        detections: Sequence[Detections],
        prompt_frame: int,
        clip: str,
    ) -> np.ndarray:
        """The boxes of animal and object on every frame `(T, 2, 4)`, zeros where one is lost."""

    def check_prompts(
        self,
        *,
        animal: Sequence[str],
        object: Sequence[str],
        attribute: Sequence[str] | None = None,
    ) -> None:
        """
        Refuse words that cannot be tracked, and make sure that the models can be loaded, before any work.

        Raises:
            ValueError: as [`check_nouns`].
            ImportError, FileNotFoundError, PermissionError, ConnectionError: as
                [`~spatialalign_trl.perception.checkpoints.PretrainedModel.prepare`].
        """
        check_nouns(animal, object)
        self.prepare()

    def track(
        self,
        videos: Sequence[Video],
        *,
        animal: Sequence[str],
        object: Sequence[str],
        attribute: Sequence[str] | None = None,
    ) -> list[Tracks]:
        """
        Boxes of animal and object over each clip.

        Args:
            videos (sequence of `N` `np.ndarray` of shape `(T, height, width, 3)`, `uint8`):
                The clips.
            animal, object (sequences of `N` `str`):
                One noun each.
            attribute (sequence of `N` `str`, *optional*):
                Not used.

        Returns:
            `list[Tracks]`: with a `reason` where a clip is INVALID. `details` holds the numbers of `valid`, `missed`
            and `redundant` frames, the `prompt_frame` (or `None`) and, once boxes were followed, the number of frames
            with both (`followed`).

        Raises:
            as `check_prompts`.
        """
        self.check_prompts(animal=animal, object=object, attribute=attribute)
        rows = list(zip(videos, animal, object, strict=True))
        bar = tqdm(rows, desc=self.name, unit="video", leave=False, disable=self.disable_progress_bar or len(rows) < 2)
        return [self._track_one(*row) for row in bar]

    def _track_one(self, video: Video, animal: str, object: str) -> Tracks:
        names = (animal, object)
        clip = "" if self.cache is None else self.cache.digest(video)
        found = self._find(video, names, clip)
        detections = unpack_detections(found)
        validity = assess(detections, animal, object, self.rules)
        details = _details(validity)
        if validity.reason is not None:
            return Tracks([], len(video), validity.reason, details=details)
        boxes = self._follow(video, names, found, detections, validity.prompt_frame, clip)
        present = (boxes != 0).any(axis=-1)
        details["followed"] = int(present.all(axis=1).sum())
        reason = strict_reason(video, boxes, self.rules, animal=animal, object=object)
        return Tracks(_frames(boxes, present, names), len(video), reason, details=details)

    def _cached(
        self, clip: str, make: Callable[[], dict[str, np.ndarray]], parts: Callable[[], dict[str, Any]]
    ) -> dict[str, np.ndarray]:
        """
        What `make` gives for the clip of this digest (`""` without a cache), from the cache where it is there; `parts`
        says what else it depends on.
        """
        if self.cache is None:  # before `parts`, which reads whole checkpoints
            return make()
        what = parts()
        key = self.cache.key(clip, **what)
        entry = self.cache.load(key)
        if entry is not None:
            return entry.arrays
        arrays = make()
        try:
            self.cache.store(key, arrays, what)
        except OSError as error:  # what was found is worth more than keeping it
            logger.warning("nothing can be kept in %s: %s", self.cache.directory, error)
        return arrays


def _details(validity: Validity) -> dict[str, int | None]:
    return {
        "valid": validity.valid,
        "missed": validity.missed,
        "redundant": validity.redundant,
        "prompt_frame": validity.prompt_frame,
    }


def _frames(boxes: np.ndarray, present: np.ndarray, names: tuple[str, str]) -> list[FrameBoxes]:
    """The frames on which something is left, with what is left: an empty mask is no box."""
    return [
        FrameBoxes(
            k, tuple(name for name, there in zip(names, present[k], strict=True) if there), boxes[k, present[k]]
        )
        for k in np.flatnonzero(present.any(axis=1)).tolist()
    ]
