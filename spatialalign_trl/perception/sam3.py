"""SAM 3 as a tracker: one model that finds and follows what a noun names, in place of Grounding DINO and SAM 2.

Which box belongs to which word is known, not read from decoded tokens. It is an option and not the default: DSR-Scores
from it cannot be compared with published ones, and the checkpoint (860 M weights) is gated.

With the package `kernels` installed, transformers fetches compiled code from the Hub to drop doubled masks and fill
holes; without it these steps are skipped.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from tqdm.auto import tqdm

from spatialalign_trl.perception.checkpoints import PretrainedModel, RunsPretrained
from spatialalign_trl.perception.detection_cache import pack_detections
from spatialalign_trl.perception.detections import Detections
from spatialalign_trl.perception.open_vocabulary import OpenVocabularyTracker
from spatialalign_trl.perception.sam2 import mask_boxes
from spatialalign_trl.perception.validity import StrictRules, ValidityRules

if TYPE_CHECKING:
    import torch

    from spatialalign_trl.video import Video

DEFAULT_CHECKPOINT = "facebook/sam3"

_CLASSES = {"sam3_video": ("Sam3VideoModel", "Sam3VideoProcessor")}


class SAM3Tracker(RunsPretrained, OpenVocabularyTracker):
    """
    Tracks one animal and one object, named by any nouns, with SAM 3's video model.

    Every object found for a word counts as a detection of it on the frames where its mask is not empty; the validity
    rules are the same as with Grounded-SAM, so frames with two cats are redundant. Of each word's objects the one with
    the highest sum of scores over the clip is the track. Boxes are in inclusive pixels.

    Args:
        checkpoint (`str` or `os.PathLike`, *optional*, defaults to `"facebook/sam3"`):
            A Hub id or a local folder.
        rules, strict, scale_to_length, cache_dir, disable_progress_bar (*optional*):
            As of [`~spatialalign_trl.perception.open_vocabulary.OpenVocabularyTracker`].
        device, dtype, trust_remote_code, revision (*optional*):
            As of [`~spatialalign_trl.perception.checkpoints.PretrainedModel`].
    """

    name = "sam3"

    def __init__(
        self,
        checkpoint: str | os.PathLike = DEFAULT_CHECKPOINT,
        rules: ValidityRules | None = None,
        cache_dir: str | os.PathLike | None = None,
        *,
        strict: bool | StrictRules = False,
        scale_to_length: bool = False,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        trust_remote_code: bool = False,
        revision: str | None = None,
        disable_progress_bar: bool = False,
    ) -> None:
        super().__init__(rules, strict, scale_to_length, cache_dir, disable_progress_bar)
        self.pretrained = PretrainedModel(
            checkpoint, _CLASSES, device=device, dtype=dtype, trust_remote_code=trust_remote_code, revision=revision
        )

    def segment(self, video: Video, names: Sequence[str]) -> tuple[list[Detections], list[np.ndarray]]:
        """
        Everything that the words name, on every frame.

        Args:
            video (`np.ndarray` of shape `(T, height, width, 3)`, `uint8`):
                The clip.
            names (sequence of `str`):
                The words.

        Returns:
            `(detections, ids)`: per frame the boxes, and `n` whole numbers that tell the objects apart over time.
        """
        import torch

        model, processor = self.pretrained.load()
        nothing = Detections(np.empty((0, 4)), np.empty(0), ())
        detections, ids = [nothing] * len(video), [np.empty(0, np.int64)] * len(video)
        bar = tqdm(total=len(video), desc="segmenting", unit="frame", leave=False, disable=self.disable_progress_bar)
        with bar, torch.inference_mode(), self.pretrained.autocast():
            session = processor.init_video_session(
                video=video,
                inference_device=self.pretrained.device,
                video_storage_device="cpu",
                dtype=torch.float32,
            )
            processor.add_text_prompt(session, list(names))
            for output in model.propagate_in_video_iterator(session):
                found = processor.postprocess_outputs(session, output)
                detections[output.frame_idx], ids[output.frame_idx] = _read(found)
                bar.update()
        return detections, ids

    def _find(self, video: Video, names: tuple[str, str], clip: str) -> dict[str, np.ndarray]:
        def make() -> dict[str, np.ndarray]:
            detections, ids = self.segment(video, names)
            return {**pack_detections(detections), "object_ids": np.concatenate(ids)}

        return self._cached(
            clip, make, lambda: {"kind": "sam3", "names": names, "model": self.pretrained.fingerprint()}
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
        labels = np.array([label for one in detections for label in one.labels])
        frames, ids = np.repeat(np.arange(len(video)), found["boxes_per_frame"]), found["object_ids"]
        boxes = np.zeros((len(video), len(names), 4))
        for k, name in enumerate(names):
            chosen = (labels == name) & (ids == best_object(ids[labels == name], found["scores"][labels == name]))
            boxes[frames[chosen], k] = found["boxes"][chosen]
        return boxes


def best_object(ids: np.ndarray, scores: np.ndarray) -> int:
    """The object whose scores sum up highest: seen surely, and on many frames. The first one of equal ones."""
    objects, places = np.unique(ids, return_inverse=True)
    return int(objects[np.bincount(places, weights=scores).argmax()])


def _read(found: dict) -> tuple[Detections, np.ndarray]:
    """Detections and object ids of one frame, from the processor's result."""
    ids = found["object_ids"].cpu().numpy()
    names = {number: name for name, numbers in found["prompt_to_obj_ids"].items() for number in numbers}
    boxes, scores = mask_boxes(found["masks"]), found["scores"].float().cpu().numpy().astype(np.float64)
    there = (boxes != 0).any(axis=1)  # a mask may have lost all its pixels to another one
    labels = tuple(names[number] for number in ids[there].tolist())
    return Detections(boxes[there], scores[there], labels), ids[there]
