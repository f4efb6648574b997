"""SAM 2 as a follower of boxes: from the boxes on one frame to boxes on all, forwards and backwards.

Source: the paper's section on DSR-Score and its authors' released code (SAM 2.1 hiera-large). They start a session for
each direction and save frames as JPEG in between; here both directions share one session, so that the image encoder
runs once a frame, and frames are not re-encoded.
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
    The boxes around masks, in inclusive pixels.

    Args:
        masks (`torch.Tensor` of shape `(n, height, width)`, bool):
            Masks; may be empty.

    Returns:
        `np.ndarray` of shape `(n, 4)`, float64: `xmin, ymin, xmax, ymax` of the pixels inside, without the `+ 1` of a
        half-open box, as the authors' code has it (a mask one pixel wide has `x2 - x1 = 0` and does not count for the
        score); zeros for an empty mask.
    """
    import torch

    columns, rows = masks.any(dim=-2).to(torch.uint8), masks.any(dim=-1).to(torch.uint8)
    edges = []
    for line in (columns, rows):  # argmax gives the first of equal values: the first pixel from either end
        edges.append((line.argmax(dim=-1), line.shape[-1] - 1 - line.flip(-1).argmax(dim=-1)))
    (x1, x2), (y1, y2) = edges
    boxes = torch.stack([x1, y1, x2, y2], dim=-1) * masks.flatten(1).any(dim=1, keepdim=True)
    return boxes.cpu().numpy().astype(np.float64)


class SAM2Follower(RunsPretrained):
    """
    Follows boxes through a clip with SAM 2's video model.

    EdgeTAM checkpoints (`model_type` `edgetam_video`) go through the same calls; that was run on a random EdgeTAM with
    SAM 2's image encoder only, since its own one needs the package `timm`.

    Each frame goes through the image encoder once: one direction covers the frames after that of the boxes, the other
    those before it, and the features of the frame they share are kept between the two.

    Memory on the device, for a clip of `T` frames at the 1024 x 1024 pixels of SAM 2's released checkpoints: what the
    model remembers of each object, 6 MB a frame (`T` = 81, two objects: 1 GB); the prepared frames once while they are
    made, 13 MB each (1 GB), which then lie in main memory; the features of one frame, 0.1 GB.

    Args:
        checkpoint (`str` or `os.PathLike`, *optional*, defaults to `"facebook/sam2.1-hiera-large"`):
            A Hub id or a local folder.
        device, dtype, trust_remote_code, revision (*optional*):
            As of [`~spatialalign_trl.perception.checkpoints.PretrainedModel`]: CUDA with bfloat16 autocast where there
            is one, float32 elsewhere.
        disable_progress_bar (`bool`, *optional*, defaults to `True`):
            Whether to show no bar over the frames.
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
                `x1, y1, x2, y2` in pixels, on frame `frame`.
            frame (`int`):
                Where the boxes stand, from 0.

        Returns:
            `np.ndarray` of shape `(T, n, 4)`: the boxes of the masks on every frame, in inclusive pixels; zeros where
            a mask is empty (see [`mask_boxes`]).

        Raises:
            ValueError: for boxes of another shape, or a frame outside the clip.
        """
        import torch

        boxes = np.asarray(boxes, np.float64)
        if boxes.ndim != 2 or boxes.shape[1] != 4 or not len(boxes):
            raise ValueError(f"boxes have shape {boxes.shape}; (n, 4) with at least one box is needed.")
        if not 0 <= frame < len(video):
            raise ValueError(f"frame is {frame}, outside the clip of {len(video)} frames.")
        followed = np.zeros((len(video), len(boxes), 4))
        session = self._session(video)
        total = len(video) + (1 if frame else 0)
        bar = tqdm(total=total, desc="following", unit="frame", leave=False, disable=self.disable_progress_bar)
        with bar, torch.inference_mode(), self.pretrained.autocast():
            # The frame of the boxes is met in both directions and, as with the authors, taken from the last.
            features = None  # of the boxes' frame; the session keeps those of the latest frame alone
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
        """A session over a clip, with its frames prepared."""
        import torch

        _, processor = self.pretrained.load()
        # A frame is needed once on the device, when it is encoded.
        storage = {"inference_device": self.pretrained.device, "video_storage_device": "cpu"}
        return processor.init_video_session(video=video, dtype=torch.float32, **storage)

    def _propagate(
        self, session: Any, boxes: np.ndarray, frame: int, backwards: bool, size: tuple[int, int]
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """`(frame index, masks (n, height, width))` from the frame of the boxes on, in one direction."""
        model, processor = self.pretrained.load()
        # What an earlier pass left behind would act as memory of frames that this pass has not seen. The prepared
        # frames stay.
        session.reset_tracking_data()
        ids = list(range(1, len(boxes) + 1))
        processor.add_inputs_to_inference_session(session, frame_idx=frame, obj_ids=ids, input_boxes=[boxes.tolist()])
        for output in model.propagate_in_video_iterator(session, start_frame_idx=frame, reverse=backwards):
            logits = processor.post_process_masks([output.pred_masks], original_sizes=[list(size)], binarize=False)[0]
            yield output.frame_idx, logits[:, 0] > 0
