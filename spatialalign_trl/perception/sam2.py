"""Follow boxes from one frame through the whole clip, forwards and backwards, with SAM 2.

Source: the paper's section on DSR-Score and its authors' released code (SAM 2.1 hiera-large). They start a session for
each direction and save frames as JPEG in between. Here both directions share one session, so that the image encoder
runs once per frame, and frames are not re-encoded.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from spatialalign_trl.perception.checkpoints import PretrainedModel, RunsPretrained

if TYPE_CHECKING:
    import torch

    from spatialalign_trl.video import Video

DEFAULT_CHECKPOINT = "facebook/sam2.1-hiera-large"

_CLASSES = {
    "sam2_video": ("Sam2VideoModel", "Sam2VideoProcessor"),
    "edgetam_video": ("EdgeTamVideoModel", "Sam2VideoProcessor"),
}


def mask_boxes(masks: torch.Tensor) -> np.ndarray:
    """
    Return the boxes around masks, in inclusive pixels.

    Args:
        masks (`torch.Tensor` of shape `(n, height, width)`, bool):
            Masks; may be empty.

    Returns:
        `np.ndarray` of shape `(n, 4)`, float64: `xmin, ymin, xmax, ymax` of the pixels inside; zeros for an empty
        mask. As in the authors' code there is no `+ 1` as in a half-open box, so a mask one pixel wide has
        `x2 - x1 = 0` and does not count for the score.
    """
    import torch

    columns, rows = masks.any(dim=-2).to(torch.uint8), masks.any(dim=-1).to(torch.uint8)
    edges = []
    for occupied in (columns, rows):  # argmax returns the first of equal values: the first pixel from either end
        edges.append((occupied.argmax(dim=-1), occupied.shape[-1] - 1 - occupied.flip(-1).argmax(dim=-1)))
    (x1, x2), (y1, y2) = edges
    boxes = torch.stack([x1, y1, x2, y2], dim=-1) * masks.flatten(1).any(dim=1, keepdim=True)
    return boxes.cpu().numpy().astype(np.float64)


class SAM2Follower(RunsPretrained):
    """
    Follows boxes through a clip with SAM 2's video model.

    EdgeTAM checkpoints (`model_type` `edgetam_video`) use the same calls. This was tested only with a random EdgeTAM
    that has SAM 2's image encoder, because EdgeTAM's own encoder needs the package `timm`.

    Each frame goes through the image encoder once: one direction covers the frames after the prompt frame, the other
    the frames before it, and the features of the prompt frame are reused by the second direction.

    Memory on the device, for a clip of `T` frames at the 1024 x 1024 pixels of SAM 2's released checkpoints: 6 MB per
    frame for the model's memory of each object (1 GB for `T` = 81 and two objects); 13 MB per frame while the frames
    are preprocessed (1 GB), after which they are kept in main memory; 0.1 GB for the features of one frame.

    Args:
        checkpoint (`str` or `os.PathLike`, *optional*, defaults to `"facebook/sam2.1-hiera-large"`):
            A Hub id or a local folder.
        device, dtype, trust_remote_code, revision (*optional*):
            See [`~spatialalign_trl.perception.checkpoints.PretrainedModel`]. The defaults are bfloat16 autocast on
            CUDA if it is available, and float32 elsewhere.
        disable_progress_bar (`bool`, *optional*, defaults to `True`):
            Whether to hide the progress bar over the frames.
    """

    def __init__(
        self,
        checkpoint: str | os.PathLike = DEFAULT_CHECKPOINT,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        trust_remote_code: bool = False,
        revision: str | None = None,
        disable_progress_bar: bool = True,
    ) -> None:
        self.disable_progress_bar = disable_progress_bar
        self.pretrained = PretrainedModel(
            checkpoint, _CLASSES, device=device, dtype=dtype, trust_remote_code=trust_remote_code, revision=revision
        )

    def follow(self, video: Video, boxes: np.ndarray, frame: int) -> np.ndarray:
        """
        Follow boxes to the clip's end and to its beginning.

        Args:
            video (`np.ndarray` of shape `(T, height, width, 3)`, `uint8`):
                The clip.
            boxes (`np.ndarray` of shape `(n, 4)`):
                `x1, y1, x2, y2` in pixels, on the prompt frame.
            frame (`int`):
                Index of the prompt frame, from 0.

        Returns:
            `np.ndarray` of shape `(T, n, 4)`: the boxes around the masks on every frame, in inclusive pixels; zeros
            where a mask is empty (see [`mask_boxes`]).

        Raises:
            ValueError: for boxes of another shape, or a frame outside the clip.
        """
        import torch

        boxes = np.asarray(boxes, np.float64)
        if boxes.ndim != 2 or boxes.shape[1] != 4 or not len(boxes):
            raise ValueError(f"boxes have shape {boxes.shape}; they must be (n, 4) with at least one box.")
        if not 0 <= frame < len(video):
            raise ValueError(f"frame is {frame}; it must lie in 0 .. {len(video) - 1}, the frames of the clip.")
        followed = np.zeros((len(video), len(boxes), 4))
        session = self._session(video)
        total = len(video) + (1 if frame else 0)
        bar = tqdm(total=total, desc="following", unit="frame", leave=False, disable=self.disable_progress_bar)
        with bar, torch.inference_mode(), self.pretrained.autocast():
            # Both directions include the prompt frame. As in the authors' code, the backward result overwrites it.
            features = None  # of the prompt frame, because the session keeps only those of the latest frame
            for backwards in (False, True) if frame else (False,):
                if backwards:
                    session.cache.cache_vision_features(frame, features)
                for index, masks in self._propagate(session, boxes, frame, backwards, video.shape[1:3]):
                    followed[index] = mask_boxes(masks)
                    if index == frame:
                        features = session.cache.get_vision_features(frame)
                    bar.update()
        return followed

    def _session(self, video: Video) -> Any:
        """Start a session for a clip, with preprocessed frames."""
        import torch

        _, processor = self.pretrained.load()
        # Keep the frames on the CPU: each is needed only once on the device, when it is encoded.
        storage = {"inference_device": self.pretrained.device, "video_storage_device": "cpu"}
        return processor.init_video_session(video=video, dtype=torch.float32, **storage)

    def _propagate(
        self, session: Any, boxes: np.ndarray, frame: int, backwards: bool, size: tuple[int, int]
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield `(frame index, masks (n, height, width))` from the prompt frame on, in one direction."""
        model, processor = self.pretrained.load()
        # Without the reset, results of an earlier pass would act as memory of frames that this pass has not seen. The
        # preprocessed frames are kept.
        session.reset_tracking_data()
        ids = list(range(1, len(boxes) + 1))
        processor.add_inputs_to_inference_session(session, frame_idx=frame, obj_ids=ids, input_boxes=[boxes.tolist()])
        for output in model.propagate_in_video_iterator(session, start_frame_idx=frame, reverse=backwards):
            logits = processor.post_process_masks([output.pred_masks], original_sizes=[list(size)], binarize=False)[0]
            yield output.frame_idx, logits[:, 0] > 0
