"""Grounded-SAM: Grounding DINO finds animal and object on every frame, SAM 2 follows them from one good frame.

Source: the paper's section on DSR-Score and its authors' released code. The first frame of the first run of four valid
frames prompts SAM 2; the boxes of its masks, on all frames, are what DSR-Score reads.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from spatialalign_trl.perception.detection_cache import pack_detections
from spatialalign_trl.perception.grounding_dino import GroundingDINODetector, LabelMode
from spatialalign_trl.perception.open_vocabulary import OpenVocabularyTracker
from spatialalign_trl.perception.sam2 import SAM2Follower
from spatialalign_trl.perception.validity import StrictRules, ValidityRules

if TYPE_CHECKING:
    import torch

    from spatialalign_trl.perception.detections import BoxFollower, Detections, Detector
    from spatialalign_trl.video import Video


class GroundedSAMTracker(OpenVocabularyTracker):
    """
    Tracks one animal and one object, named by any nouns, as the paper does.

    Args:
        detector ([`~spatialalign_trl.perception.detections.Detector`], *optional*):
            Finds the two on single frames; [`GroundingDINODetector`] with the options below when not given.
        follower ([`~spatialalign_trl.perception.detections.BoxFollower`], *optional*):
            Follows their boxes; [`SAM2Follower`] with the options below when not given.
        rules, strict, scale_to_length, cache_dir, disable_progress_bar (*optional*):
            As of [`~spatialalign_trl.perception.open_vocabulary.OpenVocabularyTracker`].
        detector_checkpoint, detector_revision, box_threshold, text_threshold, label_mode, batch_size (*optional*):
            Of the [`GroundingDINODetector`].
        follower_checkpoint, follower_revision (*optional*):
            Of the [`SAM2Follower`].
        device, dtype, trust_remote_code (*optional*):
            Of both.

    Raises:
        ValueError: for an option of a detector or follower that is passed as an object.
    """

    name = "grounded_sam"

    def __init__(
        self,
        detector: Detector | None = None,
        follower: BoxFollower | None = None,
        rules: ValidityRules | None = None,
        cache_dir: str | os.PathLike | None = None,
        *,
        strict: bool | StrictRules = False,
        scale_to_length: bool = False,
        detector_checkpoint: str | os.PathLike | None = None,
        detector_revision: str | None = None,
        box_threshold: float | None = None,
        text_threshold: float | None = None,
        label_mode: LabelMode | None = None,
        batch_size: int | None = None,
        follower_checkpoint: str | os.PathLike | None = None,
        follower_revision: str | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        trust_remote_code: bool | None = None,
        disable_progress_bar: bool = False,
    ) -> None:
        super().__init__(rules, strict, scale_to_length, cache_dir, disable_progress_bar)
        both = {"device": device, "dtype": dtype, "trust_remote_code": trust_remote_code}
        of_detector = {
            "checkpoint": detector_checkpoint, "revision": detector_revision, "box_threshold": box_threshold,
            "text_threshold": text_threshold, "label_mode": label_mode, "batch_size": batch_size,
        }  # fmt: skip
        of_follower = {"checkpoint": follower_checkpoint, "revision": follower_revision}
        if detector is not None and follower is not None:
            _refuse_options("detector and follower are", both)
        self.detector = _given_or_made(detector, "detector", GroundingDINODetector, of_detector, both, self)
        self.follower = _given_or_made(follower, "follower", SAM2Follower, of_follower, both, self)

    def prepare(self) -> None:
        """Check that both models can be loaded, fetching checkpoints that are not here; load nothing."""
        for part in (self.detector, self.follower):
            prepare = getattr(part, "prepare", None)
            if prepare is not None:
                prepare()

    def release(self) -> None:
        """Free the memory of both models; the next use loads them again."""
        self.detector.release()
        self.follower.release()

    def _find(self, video: Video, names: tuple[str, str], clip: str) -> dict[str, np.ndarray]:
        return self._cached(
            clip,
            lambda: pack_detections(self.detector.detect(video, names)),
            lambda: {"kind": "detections", "names": names, "detector": self.detector.fingerprint()},
        )

    def _follow(
        self,
        video: Video,
        names: tuple[str, str],
        found: dict[str, np.ndarray],
        detections: Sequence[Detections],
        prompt_frame: int,
        clip: str,
    ) -> np.ndarray:
        prompt = detections[prompt_frame]
        boxes = np.stack([prompt.boxes[prompt.labels.index(name)] for name in names])
        prompted_by = {"prompt_boxes": boxes.tolist(), "prompt_frame": prompt_frame}
        return self._cached(
            clip,
            lambda: {"boxes": self.follower.follow(video, boxes, prompt_frame)},
            lambda: {"kind": "followed", **prompted_by, "follower": self.follower.fingerprint()},
        )["boxes"]


def _refuse_options(what: str, options: dict[str, Any]) -> None:
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise ValueError(
            f"the {what} passed as an object, so the option {given[0]!r} would have no effect; set it there."
        )


def _given_or_made(
    given: Any | None,
    role: str,
    make: type,
    options: dict[str, Any],
    both: dict[str, Any],
    tracker: OpenVocabularyTracker,
) -> Any:
    """The object passed, or one made of the options that were set."""
    if given is None:
        options = {name: value for name, value in (options | both).items() if value is not None}
        return make(**options, disable_progress_bar=tracker.disable_progress_bar)
    prefixed = {f"{role}_{name}" if name in ("checkpoint", "revision") else name: options[name] for name in options}
    _refuse_options(f"{role} is", prefixed)
    return given
