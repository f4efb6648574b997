"""Implement what trackers of arbitrary nouns share: checking the words, the validity rules, the cache, progress bars.

A subclass implements how it detects objects on each frame and how it follows a pair of boxes. Everything else is here,
so that two trackers differ only in their models.
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
from spatialalign_trl.perception.validity import StrictRules, ValidityRules, assess, strict_reason
from spatialalign_trl.prompts import is_same_noun

if TYPE_CHECKING:
    from spatialalign_trl.perception.detections import Detections
    from spatialalign_trl.video import Video

logger = logging.getLogger(__name__)

_SEVERAL = re.compile(r"\b(and|or)\b|[,;/&+]", re.IGNORECASE)


def check_nouns(animal: Sequence[str], object: Sequence[str]) -> None:
    """
    Check that every animal and object is a single noun that can be detected and distinguished from the other.

    Args:
        animal, object (sequences of `N` `str`):
            The nouns; "fire hydrant" is one noun.

    Raises:
        ValueError: for an empty word, a word with a `.` or `?` (they end a label in the detector's text), several
            nouns in one ("cat and dog"), or the same noun for animal and object. The message names the row.
    """
    for row, (animal_noun, object_noun) in enumerate(zip(animal, object, strict=True)):
        for column, word in (("animal", animal_noun), ("object", object_noun)):
            where = f"prompt {row}: {column} is {word!r}"
            if not isinstance(word, str) or not word.strip():
                raise ValueError(f"{where}; a noun such as 'cat' is needed.")
            if word != word.strip():
                raise ValueError(f"{where}; remove the spaces around it.")
            if "." in word or "?" in word:
                raise ValueError(f"{where}; '.' and '?' end a label in the detector's text. Leave them out.")
            if _SEVERAL.search(word):
                raise ValueError(
                    f"{where}, which names several things; only one animal and one static object can be scored. "
                    "Write a prompt for each."
                )
        if is_same_noun(animal_noun, object_noun):
            raise ValueError(
                f"prompt {row}: animal and object are both {animal_noun!r}; their boxes cannot be told apart. "
                "Use two different nouns."
            )


class OpenVocabularyTracker(ABC):
    """
    Base class of trackers of one animal and one object named by arbitrary nouns. Implements the protocol
    [`~spatialalign_trl.perception.tracks.Tracker`].

    Adjectives (`attribute`) are accepted but ignored: the paper's detector text contains only the nouns.

    Args:
        rules ([`~spatialalign_trl.perception.validity.ValidityRules`], *optional*):
            Decide when a clip is INVALID. Defaults to the authors' rules.
        strict (`bool` or [`~spatialalign_trl.perception.validity.StrictRules`], *optional*, defaults to `False`):
            Whether to reject also clips whose score would be misleading (see `validity.py`). Off for parity with the
            paper.
        scale_to_length (`bool`, *optional*, defaults to `False`):
            Whether to scale the rules' thresholds, which are meant for 81 frames, to the length of each clip.
        cache_dir (`str` or `os.PathLike`, *optional*):
            Folder for a cache of the detections. A clip that is scored again, under any rules, then loads no model.
        disable_progress_bar (`bool`, *optional*, defaults to `False`):
            Whether to hide the progress bar over the clips.
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
        """Check everything that the models need and download missing checkpoints, without loading any weights."""

    @abstractmethod
    def release(self) -> None:
        """Free the models' memory; the next use loads them again."""

    def _check_names(self, names: Sequence[tuple[str, str]]) -> None:  # noqa: B027 - nothing to check by default
        """Raise a `ValueError` for an animal and an object that the models cannot tell apart."""

    @abstractmethod
    def _detect(self, video: Video, names: tuple[str, str], clip_digest: str) -> dict[str, np.ndarray]:
        """Return the detections of all frames, packed by `pack_detections`, and any further arrays for `_follow`."""

    @abstractmethod
    def _follow(
        self,
        video: Video,
        names: tuple[str, str],
        packed: dict[str, np.ndarray],
        detections: Sequence[Detections],
        prompt_frame: int,
        clip_digest: str,
    ) -> np.ndarray:
        """Return the boxes of animal and object on every frame `(T, 2, 4)`, zeros where one is lost."""

    def check_prompts(
        self,
        *,
        animal: Sequence[str],
        object: Sequence[str],
        attribute: Sequence[str] | None = None,
    ) -> None:
        """
        Check, before any work, that the words can be tracked and that the models can be loaded.

        Args:
            animal, object (sequences of `N` `str`):
                One noun per prompt.
            attribute (sequence of `N` `str`, *optional*):
                Ignored.

        Raises:
            ValueError: see [`check_nouns`].
            ImportError, FileNotFoundError, PermissionError, ConnectionError: see
                [`~spatialalign_trl.perception.checkpoints.PretrainedModel.prepare`].
        """
        check_nouns(animal, object)
        self.prepare()
        self._check_names(list(zip(animal, object, strict=True)))

    def track(
        self,
        videos: Sequence[Video],
        *,
        animal: Sequence[str],
        object: Sequence[str],
        attribute: Sequence[str] | None = None,
    ) -> list[Tracks]:
        """
        Track animal and object through each clip.

        Args:
            videos (sequence of `N` `np.ndarray` of shape `(T, height, width, 3)`, `uint8`):
                The clips.
            animal, object (sequences of `N` `str`):
                One noun per clip.
            attribute (sequence of `N` `str`, *optional*):
                Ignored.

        Returns:
            `list[Tracks]`: one per clip, with a `reason` if the clip is INVALID. `details` contains the numbers of
            `valid`, `missed` and `redundant` frames, the `prompt_frame` (or `None`) and, if boxes were followed, the
            number of frames with both boxes (`followed`).

        Raises:
            See `check_prompts`.
        """
        self.check_prompts(animal=animal, object=object, attribute=attribute)
        rows = list(zip(videos, animal, object, strict=True))
        bar = tqdm(rows, desc=self.name, unit="video", leave=False, disable=self.disable_progress_bar or len(rows) < 2)
        return [self._track_clip(*row) for row in bar]

    def _track_clip(self, video: Video, animal: str, object: str) -> Tracks:
        names = (animal, object)

        # 1. Detect both objects on every frame, and apply the authors' rules to the detections.
        clip_digest = "" if self.cache is None else self.cache.digest(video)
        packed = self._detect(video, names, clip_digest)
        detections = unpack_detections(packed)
        validity = assess(detections, animal, object, self.rules)
        details: dict[str, int | None] = {
            "valid": validity.valid,
            "missed": validity.missed,
            "redundant": validity.redundant,
            "prompt_frame": validity.prompt_frame,
        }
        if validity.reason is not None:
            return Tracks([], len(video), validity.reason, details=details)

        # 2. Follow the boxes from the prompt frame, and apply the strict rules to the result.
        boxes = self._follow(video, names, packed, detections, validity.prompt_frame, clip_digest)
        present = (boxes != 0).any(axis=-1)
        details["followed"] = int(present.all(axis=1).sum())
        reason = strict_reason(video, boxes, self.rules, animal=animal, object=object)

        # 3. Keep the frames with at least one box. The box of an empty mask is left out.
        frames = [
            FrameBoxes(index, tuple(names[k] for k in np.flatnonzero(present[index])), boxes[index, present[index]])
            for index in np.flatnonzero(present.any(axis=1)).tolist()
        ]
        return Tracks(frames, len(video), reason, details=details)

    def _cached(
        self,
        clip_digest: str,
        compute: Callable[[], dict[str, np.ndarray]],
        key_parts: Callable[[], dict[str, Any]],
    ) -> dict[str, np.ndarray]:
        """Return the arrays of a clip from the cache, or compute and store them under a key made of `key_parts`."""
        if self.cache is None:  # checked first, because key_parts() reads whole checkpoints
            return compute()
        parts = key_parts()
        key = self.cache.key(clip_digest, **parts)
        entry = self.cache.load(key)
        if entry is not None:
            return entry.arrays
        arrays = compute()
        try:
            self.cache.store(key, arrays, parts)
        except OSError as error:  # a full disk must not lose the result
            logger.warning("nothing can be stored in the cache %s: %s", self.cache.directory, error)
        return arrays
