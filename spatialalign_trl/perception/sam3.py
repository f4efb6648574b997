"""Track objects with SAM 3: one model that detects and follows what a noun names, instead of Grounding DINO and SAM 2.

SAM 3 knows which word each box belongs to, so no label has to be decoded from tokens. It is not the default because
its DSR-Scores cannot be compared with published ones, and because the checkpoint (860 M weights) is gated.

If the package `kernels` is installed, transformers downloads compiled code from the Hub to remove duplicate masks and
fill holes; otherwise it skips these steps.
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

    Every object found for a word counts as a detection of that word on the frames where its mask is not empty. The
    validity rules are those of Grounded-SAM, so frames with two cats are redundant. For each word, the object with the
    highest sum of scores over the clip becomes the track. Boxes are in inclusive pixels.

    Args:
        checkpoint (`str` or `os.PathLike`, *optional*, defaults to `"facebook/sam3"`):
            A Hub id or a local folder.
        rules, strict, scale_to_length, cache_dir, disable_progress_bar (*optional*):
            See [`~spatialalign_trl.perception.open_vocabulary.OpenVocabularyTracker`].
        device, dtype, trust_remote_code, revision (*optional*):
            See [`~spatialalign_trl.perception.checkpoints.PretrainedModel`].
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
        Detect everything that the words name, on every frame.

        Args:
            video (`np.ndarray` of shape `(T, height, width, 3)`, `uint8`):
                The clip.
            names (sequence of `str`):
                The words.

        Returns:
            `(detections, ids)`: for each frame the `n` boxes, and `n` integers that identify the objects over time.
        """
        import torch

        model, processor = self.pretrained.load()
        no_detections = Detections(np.empty((0, 4)), np.empty(0), ())
        detections, ids = [no_detections] * len(video), [np.empty(0, np.int64)] * len(video)
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
                result = processor.postprocess_outputs(session, output)
                detections[output.frame_idx], ids[output.frame_idx] = _read_frame(result)
                bar.update()
        return detections, ids

    def _detect(self, video: Video, names: tuple[str, str], clip_digest: str) -> dict[str, np.ndarray]:
        def compute() -> dict[str, np.ndarray]:
            detections, ids = self.segment(video, names)
            return {**pack_detections(detections), "object_ids": np.concatenate(ids)}

        return self._cached(
            clip_digest, compute, lambda: {"kind": "sam3", "names": names, "model": self.pretrained.fingerprint()}
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
        # The model has followed all objects already: only choose one object for each word.
        labels = np.array([label for frame in detections for label in frame.labels])
        frames, ids = np.repeat(np.arange(len(video)), packed["boxes_per_frame"]), packed["object_ids"]
        boxes = np.zeros((len(video), len(names), 4))
        for column, name in enumerate(names):
            named = labels == name
            chosen = named & (ids == best_object(ids[named], packed["scores"][named]))
            boxes[frames[chosen], column] = packed["boxes"][chosen]
        return boxes


def best_object(ids: np.ndarray, scores: np.ndarray) -> int:
    """
    Return the id of the object with the highest sum of scores: seen with confidence, and on many frames.

    Args:
        ids (`np.ndarray` of shape `(n,)`):
            Object id of each detection.
        scores (`np.ndarray` of shape `(n,)`):
            Score of each detection.

    Returns:
        `int`: the lowest id if several objects have the same sum.
    """
    objects, indices = np.unique(ids, return_inverse=True)
    return int(objects[np.bincount(indices, weights=scores).argmax()])


def _read_frame(result: dict) -> tuple[Detections, np.ndarray]:
    """Return the detections and object ids of one frame from the processor's result."""
    ids = result["object_ids"].cpu().numpy()
    names = {object_id: name for name, object_ids in result["prompt_to_obj_ids"].items() for object_id in object_ids}
    boxes, scores = mask_boxes(result["masks"]), result["scores"].float().cpu().numpy().astype(np.float64)
    visible = (boxes != 0).any(axis=1)  # a mask may have lost all its pixels to another one
    labels = tuple(names[object_id] for object_id in ids[visible].tolist())
    return Detections(boxes[visible], scores[visible], labels), ids[visible]
