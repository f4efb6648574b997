"""
Identity: does the animal stay the same animal? DINOv2 features of its crops are compared over time.

Source: SpatialAlign (arXiv 2602.22745), which reports it in addition to DSR-Score.
"""

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from spatialalign_rewards._sampled_frames import check_counts, in_batches
from spatialalign_trl.perception.checkpoints import PretrainedModel, RunsPretrained
from spatialalign_trl.perception.tracks import Tracker, Tracks, get_tracker
from spatialalign_trl.text_files import cell_text
from spatialalign_trl.video import Video, check_completions

if TYPE_CHECKING:
    import torch

DEFAULT_CHECKPOINT = "facebook/dinov2-base"
CLASSES = {"dinov2": ("Dinov2Model", "AutoImageProcessor")}


class IdentityConsistency(RunsPretrained):
    """
    Reward in [-1, 1], near 1 for one and the same animal: the mean over frames of
    `(cos(f_t, f_0) + cos(f_t, f_(t-1))) / 2`, where `f_t` is DINOv2's feature of the animal's crop on the `t`-th frame
    that shows it, in time order. INVALID if the tracker rejects the video or finds the animal on fewer than two
    frames.

    A clip in which nothing moves is the most consistent of all, so combine this reward with one for motion.

    Args:
        tracker (`str` or [`~spatialalign_trl.perception.tracks.Tracker`], *optional*, defaults to
            `"color_segmentation"`):
            What finds the animal, as in [`DSRScore`]. If both rewards use the same `cache_dir`, every video is tracked
            only once.
        tracker_options (`dict`, *optional*):
            Arguments for a tracker that is given by name.
        checkpoint (`str` or `os.PathLike`, *optional*, defaults to `"facebook/dinov2-base"`):
            A DINOv2 model: a Hub id or a local folder.
        batch_size (`int`, *optional*, defaults to `16`):
            Crops per forward pass of the model.
        device, dtype, revision (*optional*):
            See [`~spatialalign_trl.perception.checkpoints.PretrainedModel`].
    """

    required_columns: tuple[str, ...] = ("animal", "object")

    def __init__(
        self,
        tracker: str | Tracker = "color_segmentation",
        tracker_options: dict[str, Any] | None = None,
        checkpoint: str | os.PathLike = DEFAULT_CHECKPOINT,
        batch_size: int = 16,
        device: "str | torch.device | None" = None,
        dtype: "str | torch.dtype | None" = None,
        revision: str | None = None,
    ) -> None:
        check_counts(batch_size=batch_size)
        self.__name__ = "identity"
        self.tracker = get_tracker(tracker, **(tracker_options or {}))
        self._tracker_settings = {
            "tracker": tracker if isinstance(tracker, str) else type(tracker).__name__,
            "tracker_options": dict(tracker_options or {}),
        }
        # A tracker may need further columns, such as the animal's colour.
        needed = (*IdentityConsistency.required_columns, *getattr(self.tracker, "required_columns", ()))
        self.required_columns = tuple(dict.fromkeys(needed))
        self.batch_size = batch_size
        self.pretrained = PretrainedModel(checkpoint, CLASSES, device=device, dtype=dtype, revision=revision)

    def check_prompts(
        self,
        animal: Sequence[str],
        object: Sequence[str],
        attribute: Sequence[str | None] | None = None,
        **columns: Any,
    ) -> None:
        """Check that the words can be tracked and the checkpoint can be loaded, before anything is sampled."""
        check = getattr(self.tracker, "check_prompts", None)
        if check is not None:
            check(animal=animal, object=object, attribute=attribute)
        self.prepare()

    def describe(self) -> dict[str, Any]:
        """Return the settings that determine this reward's values."""
        checkpoint, revision = self.pretrained.checkpoint, self.pretrained.revision
        return {**self._tracker_settings, "checkpoint": checkpoint, "revision": revision}

    def release(self) -> None:
        """Free the models' memory; the next video loads them again."""
        super().release()
        if hasattr(self.tracker, "release"):
            self.tracker.release()

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[Video],
        animal: Sequence[str],
        object: Sequence[str],
        attribute: Sequence[str | None] | None = None,
        log_extra: Callable[[str, list], None] | None = None,
        **kwargs: Any,
    ) -> list[float | None]:
        """
        Score `N` videos.

        Args:
            prompts (sequence of `N` `str`):
                Not used.
            completions (sequence of `N` videos):
                `uint8` arrays of shape `(frames, height, width, 3)`.
            animal, object (sequences of `N` `str`):
                The nouns that the tracker looks for.
            attribute (sequence of `N` `str`, *optional*):
                The animal's adjective, such as `"red"`, for trackers that use it.
            log_extra (callable, *optional*):
                Receives `identity_reason`: why a video is INVALID, or `None`.

        Returns:
            `list[float | None]`: one reward per video, `None` when INVALID.
        """
        check_completions(completions)
        adjectives = None if attribute is None else [cell_text(adjective) for adjective in attribute]
        tracks = self.tracker.track(completions, animal=animal, object=object, attribute=adjectives)
        scores, reasons = [], []
        for video, video_tracks, noun in zip(completions, tracks, animal, strict=True):
            crops = animal_crops(video, video_tracks, noun)
            reason = video_tracks.reason
            if reason is None and len(crops) < 2:
                reason = f"the {noun} was found on {len(crops)} of {len(video)} frames; at least 2 are needed"
            reasons.append(reason)
            scores.append(None if reason is not None else consistency(self._features(crops)))
        if log_extra is not None:
            log_extra("identity_reason", reasons)
        return scores

    def _features(self, crops: list[np.ndarray]) -> np.ndarray:
        """Return DINOv2's class-token feature of each crop, of shape `(crops, width)`."""
        import torch

        model, processor = self.pretrained.load()
        # Crops are squeezed to a square: another centre crop would cut off the animal's ends.
        size = dict(processor.crop_size)
        features = []
        for batch in in_batches(crops, self.batch_size):
            inputs = processor(images=batch, size=size, do_center_crop=False, return_tensors="pt").to(model.device)
            with torch.inference_mode(), self.pretrained.autocast():
                features.append(model(**inputs).pooler_output.float().cpu().numpy())
        return np.concatenate(features)


def animal_crops(video: Video, tracks: Tracks, animal: str) -> list[np.ndarray]:
    """Return the animal's crops in time order, leaving out frames on which it has no box or an empty one."""
    height, width = video.shape[1:3]
    crops = []
    for frame in sorted(tracks, key=lambda frame: frame.frame_index):
        if animal not in frame.labels:
            continue
        x1, y1, x2, y2 = frame.boxes[frame.labels.index(animal)]
        if not (x2 > x1 and y2 > y1):
            continue
        left, top = max(int(x1), 0), max(int(y1), 0)
        right, bottom = min(int(np.ceil(x2)), width), min(int(np.ceil(y2)), height)
        if right > left and bottom > top:
            crops.append(video[frame.frame_index, top:bottom, left:right])
    return crops


def consistency(features: np.ndarray) -> float:
    """
    Return the mean over `t >= 1` of `(cos(f_t, f_0) + cos(f_t, f_(t-1))) / 2`.

    Args:
        features (`np.ndarray` of shape `(n, width)`):
            Features in time order; `n` is at least 2.
    """
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    to_first, to_previous = unit[1:] @ unit[0], (unit[1:] * unit[:-1]).sum(1)
    return float(((to_first + to_previous) / 2).mean())
