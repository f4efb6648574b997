"""Grounded-SAM: Grounding DINO detects animal and object on every frame, SAM 2 follows them from one good frame.

Source: the paper's section on DSR-Score and its authors' released code. The first frame of the first run of four valid
frames prompts SAM 2; DSR-Score reads the boxes of its masks on all frames.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from spatialalign_trl.perception.detection_cache import pack_detections
from spatialalign_trl.perception.grounding_dino import GroundingDINODetector, is_plain
from spatialalign_trl.perception.open_vocabulary import OpenVocabularyTracker
from spatialalign_trl.perception.sam2 import SAM2Follower
from spatialalign_trl.perception.validity import StrictRules, ValidityRules

if TYPE_CHECKING:
    from spatialalign_trl.perception.detections import BoxFollower, Detections, Detector
    from spatialalign_trl.video import Video

# The flat options of `get_tracker("grounded_sam", ...)`, and the constructor argument of the part that each one sets.
_DETECTOR_OPTIONS = {
    "detector_checkpoint": "checkpoint",
    "detector_revision": "revision",
    "box_threshold": "box_threshold",
    "text_threshold": "text_threshold",
    "label_mode": "label_mode",
    "batch_size": "batch_size",
}
_FOLLOWER_OPTIONS = {"follower_checkpoint": "checkpoint", "follower_revision": "revision"}
_SHARED_OPTIONS = {"device": "device", "dtype": "dtype", "trust_remote_code": "trust_remote_code"}


class GroundedSAMTracker(OpenVocabularyTracker):
    """
    Tracks one animal and one object, named by any nouns, as the paper does.

    Example:

    ```python
    tracker = GroundedSAMTracker(GroundingDINODetector(label_mode="span"), SAM2Follower(device="cuda"))
    tracker = get_tracker("grounded_sam", label_mode="span", device="cuda")  # flat options, as in YAML files
    ```

    Args:
        detector ([`~spatialalign_trl.perception.detections.Detector`], *optional*):
            Detects both on single frames. Defaults to a [`GroundingDINODetector`] with its default arguments.
        follower ([`~spatialalign_trl.perception.detections.BoxFollower`], *optional*):
            Follows their boxes through the clip. Defaults to a [`SAM2Follower`] with its default arguments.
        rules, cache_dir, strict, scale_to_length, disable_progress_bar (*optional*):
            See [`~spatialalign_trl.perception.open_vocabulary.OpenVocabularyTracker`].
    """

    name = "grounded_sam"
    option_names = (
        "detector", "follower", "rules", "cache_dir", "strict", "scale_to_length", *_DETECTOR_OPTIONS,
        *_FOLLOWER_OPTIONS, *_SHARED_OPTIONS, "disable_progress_bar",
    )  # fmt: skip

    def __init__(
        self,
        detector: Detector | None = None,
        follower: BoxFollower | None = None,
        rules: ValidityRules | None = None,
        cache_dir: str | os.PathLike | None = None,
        *,
        strict: bool | StrictRules = False,
        scale_to_length: bool = False,
        disable_progress_bar: bool = False,
    ) -> None:
        super().__init__(rules, strict, scale_to_length, cache_dir, disable_progress_bar)
        bar = {"disable_progress_bar": disable_progress_bar}
        self.detector = GroundingDINODetector(**bar) if detector is None else detector
        self.follower = SAM2Follower(**bar) if follower is None else follower

    @classmethod
    def from_options(
        cls, *, detector: Detector | None = None, follower: BoxFollower | None = None, **options: Any
    ) -> GroundedSAMTracker:
        """
        Make a tracker from flat options, as `tracker_options` in YAML files and on the command line.

        Args:
            detector, follower (*optional*):
                Passed on to the constructor. The options below then must not configure them.
            detector_checkpoint, detector_revision, box_threshold, text_threshold, label_mode, batch_size (*optional*):
                Arguments of the [`GroundingDINODetector`]. `None` stands for its default.
            follower_checkpoint, follower_revision (*optional*):
                Arguments of the [`SAM2Follower`]. `None` stands for its default.
            device, dtype, trust_remote_code (*optional*):
                Arguments of both models. `None` stands for their defaults.
            rules, cache_dir, strict, scale_to_length, disable_progress_bar (*optional*):
                Passed on to the constructor.

        Raises:
            ValueError: for an option of a detector or a follower that is passed as an object.
        """
        detector_options = _take(options, _DETECTOR_OPTIONS)
        follower_options = _take(options, _FOLLOWER_OPTIONS)
        shared_options = _take(options, _SHARED_OPTIONS)

        # An option that would be ignored is refused.
        if detector is not None and follower is not None:
            _refuse("detector and follower are", shared_options)
        if detector is not None:
            _refuse("detector is", detector_options)
        if follower is not None:
            _refuse("follower is", follower_options)

        bar = {"disable_progress_bar": options.get("disable_progress_bar", False)}
        shared = {_SHARED_OPTIONS[name]: value for name, value in shared_options.items()} | bar
        if detector is None:
            arguments = {_DETECTOR_OPTIONS[name]: value for name, value in detector_options.items()}
            detector = GroundingDINODetector(**arguments, **shared)
        if follower is None:
            arguments = {_FOLLOWER_OPTIONS[name]: value for name, value in follower_options.items()}
            follower = SAM2Follower(**arguments, **shared)
        return cls(detector, follower, **options)

    def prepare(self) -> None:
        """Check that both models can be loaded and download missing checkpoints, without loading any weights."""
        for part in (self.detector, self.follower):
            prepare = getattr(part, "prepare", None)
            if prepare is not None:
                prepare()

    def release(self) -> None:
        """Free the memory of both models; the next use loads them again."""
        self.detector.release()
        self.follower.release()

    def _check_names(self, names: Sequence[tuple[str, str]]) -> None:
        check = getattr(self.detector, "check_names", None)
        for row, pair in enumerate(names if check is not None else ()):
            try:
                check(pair)
            except ValueError as error:
                raise ValueError(f"prompt {row}: {error}") from error

    def _detect(self, video: Video, names: tuple[str, str], clip_digest: str) -> dict[str, np.ndarray]:
        # Labels of other names than plain ones were compared in another way before; do not read them from old caches.
        compared = {} if all(is_plain(name) for name in names) else {"labels": "by tokens"}
        return self._cached(
            clip_digest,
            lambda: pack_detections(self.detector.detect(video, names)),
            lambda: {"kind": "detections", "names": names, "detector": self.detector.fingerprint(), **compared},
        )

    def _follow(
        self,
        video: Video,
        names: tuple[str, str],
        packed: dict[str, np.ndarray],
        detections: Sequence[Detections],
        prompt_frame: int,
        clip_digest: str,
    ) -> np.ndarray:
        prompt = detections[prompt_frame]
        boxes = np.stack([prompt.boxes[prompt.labels.index(name)] for name in names])
        # The key names the prompt and not the detector: detectors that agree on this frame share the entry.
        prompted_by = {"prompt_boxes": boxes.tolist(), "prompt_frame": prompt_frame}
        return self._cached(
            clip_digest,
            lambda: {"boxes": self.follower.follow(video, boxes, prompt_frame)},
            lambda: {"kind": "followed", **prompted_by, "follower": self.follower.fingerprint()},
        )["boxes"]


def _take(options: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """Remove the named options from `options` and return those that are set, in the order of `names`."""
    taken = {name: options.pop(name, None) for name in names}
    return {name: value for name, value in taken.items() if value is not None}


def _refuse(parts: str, options: dict[str, Any]) -> None:
    """Raise a `ValueError` if any option is set for parts that are passed as objects."""
    if options:
        raise ValueError(
            f"the {parts} passed as an object, so the option {next(iter(options))!r} would have no effect. "
            "Set it where you make the object."
        )
