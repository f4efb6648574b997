"""Grounding DINO as a detector: finds the things named in a text on every frame of a clip.

Source: the paper's section on DSR-Score and its authors' released code: grounding-dino-tiny, text
`"{animal}. {object}."`, box threshold 0.4, text threshold 0.3. Their frames went through JPEG before the detector;
here they do not, and the model runs in the transformers port of today, so boxes agree to within the detector's noise,
not bit for bit.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from tqdm.auto import tqdm

from spatialalign_trl.errors import near_miss
from spatialalign_trl.perception.checkpoints import PretrainedModel, RunsPretrained
from spatialalign_trl.perception.detections import Detections

if TYPE_CHECKING:
    import torch

    from spatialalign_trl.video import Video

DEFAULT_CHECKPOINT = "IDEA-Research/grounding-dino-tiny"
BOX_THRESHOLD, TEXT_THRESHOLD = 0.4, 0.3
CUDA_BATCH_SIZE = 8
"""On a CPU a batch is no faster than its frames one by one (measured), and takes more memory."""

LabelMode = Literal["exact", "span"]

_CLASSES = {
    "grounding-dino": ("GroundingDinoForObjectDetection", "GroundingDinoProcessor"),
    "mm-grounding-dino": ("MMGroundingDinoForObjectDetection", "GroundingDinoProcessor"),
}


def caption(names: Sequence[str]) -> str:
    """The text for the detector: `["cat", "fire hydrant"]` -> `"cat. fire hydrant."`."""
    return " ".join(f"{name}." for name in names)


def label_spans(input_ids: Sequence[int], names: Sequence[str], tokenizer: Any) -> list[list[int]]:
    """
    Where each name stands in the tokens of [`caption`].

    Args:
        input_ids (sequence of `int`):
            The tokens of one text, special ones included.
        names (sequence of `str`):
            The names, in the text's order.
        tokenizer:
            The tokenizer that made the tokens.

    Returns:
        `list[list[int]]`: for each name the positions of its tokens.

    Raises:
        ValueError: when the tokens hold another number of names: a name contains the full stop that ends one, or was
            cut off.
    """
    stop, special = tokenizer.convert_tokens_to_ids("."), set(tokenizer.all_special_ids)
    spans: list[list[int]] = [[]]
    for position, token in enumerate(input_ids):
        if token == stop:
            spans.append([])
        elif token not in special or token == tokenizer.unk_token_id:
            spans[-1].append(position)
    if spans.pop() or len(spans) != len(names) or not all(spans):
        raise ValueError(
            f"the names {list(names)} are not found one by one in the detector's text {caption(names)!r}."
        )
    return spans


def assign_spans(
    probabilities: np.ndarray, spans: Sequence[Sequence[int]], threshold: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Label every box by the name whose tokens it fits best.

    Args:
        probabilities (`np.ndarray` of shape `(boxes, tokens)`):
            Sigmoid of the detector's logits.
        spans (sequence of sequences of `int`):
            From [`label_spans`].
        threshold (`float`):
            Boxes at or below it are dropped.

    Returns:
        `(indices, scores, names)` of the boxes kept: their places among `probabilities`, the highest probability over
        the span of the best name, and that name's index.
    """
    scores = np.stack([probabilities[:, list(span)].max(axis=1) for span in spans], axis=1)
    names, best = scores.argmax(axis=1), scores.max(axis=1)
    kept = np.flatnonzero(best > threshold)
    return kept, best[kept], names[kept]


class GroundingDINODetector(RunsPretrained):
    """
    Finds named things on single frames.

    Args:
        checkpoint (`str` or `os.PathLike`, *optional*, defaults to `"IDEA-Research/grounding-dino-tiny"`):
            A Hub id or a local folder; also MM Grounding DINO.
        box_threshold (`float`, *optional*, defaults to `0.4`):
            A box counts when some token of the text fits it better than this; in [0, 1].
        text_threshold (`float`, *optional*, defaults to `0.3`):
            A token belongs to a box's label when it fits better than this; in [0, 1]. Read by `"exact"` only.
        label_mode (`"exact"` or `"span"`, *optional*, defaults to `"exact"`):
            How boxes get their names. `"exact"`: as the paper, all tokens above `text_threshold`, decoded. A name of
            several tokens may come back in pieces ("hydra" for "hydrant"), two names in one ("cat bench"). `"span"`:
            every box is scored per name over the tokens of that name, and the best name wins, whole.
        batch_size (`int`, *optional*):
            Frames at a time; 8 on CUDA and 1 elsewhere when not given.
        device, dtype, trust_remote_code, revision (*optional*):
            As of [`~spatialalign_trl.perception.checkpoints.PretrainedModel`]: CUDA with bfloat16 autocast where there
            is one, float32 elsewhere.
        disable_progress_bar (`bool`, *optional*, defaults to `True`):
            Whether to show no bar over the frames.
    """

    def __init__(
        self,
        checkpoint: str | os.PathLike = DEFAULT_CHECKPOINT,
        box_threshold: float = BOX_THRESHOLD,
        text_threshold: float = TEXT_THRESHOLD,
        label_mode: LabelMode = "exact",
        batch_size: int | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        trust_remote_code: bool = False,
        revision: str | None = None,
        disable_progress_bar: bool = True,
    ) -> None:
        for name, value in (("box_threshold", box_threshold), ("text_threshold", text_threshold)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}; it must lie in [0, 1].")
        if label_mode not in get_args(LabelMode):
            raise ValueError(f"label_mode is {label_mode!r}. {near_miss(str(label_mode), get_args(LabelMode))}")
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1.")
        self.box_threshold, self.text_threshold, self.label_mode = box_threshold, text_threshold, label_mode
        self.batch_size = batch_size
        self.disable_progress_bar = disable_progress_bar
        self.pretrained = PretrainedModel(
            checkpoint, _CLASSES, device=device, dtype=dtype, trust_remote_code=trust_remote_code, revision=revision,
            needs_torchvision=False,
        )  # fmt: skip

    def fingerprint(self) -> str:
        """Weights, precision, thresholds and label matching as one string; loads nothing."""
        text = f" text {self.text_threshold}" if self.label_mode == "exact" else ""
        return f"{super().fingerprint()} box {self.box_threshold}{text} {self.label_mode}"

    def detect(self, video: Video, names: Sequence[str]) -> list[Detections]:
        """
        Find the named things on every frame.

        Args:
            video (`np.ndarray` of shape `(frames, height, width, 3)`, `uint8`):
                The clip.
            names (sequence of `str`):
                What to look for; compared without regard to case, given back as they are.

        Returns:
            `list[Detections]`: one a frame; labels in `"exact"` mode are what the text's tokens decode to.
        """
        size = self.batch_size or (CUDA_BATCH_SIZE if self.pretrained.device.type == "cuda" else 1)
        found: list[Detections] = []
        with tqdm(
            total=len(video), desc="detecting", unit="frame", leave=False, disable=self.disable_progress_bar
        ) as bar:
            for start in range(0, len(video), size):
                frames = video[start : start + size]
                found += self._detect_batch(frames, names)
                bar.update(len(frames))
        return found

    def _detect_batch(self, frames: Video, names: Sequence[str]) -> list[Detections]:
        import torch
        from PIL import Image

        model, processor = self.pretrained.load()
        # One text an image: the model does not spread one text over a batch.
        inputs = processor(
            images=[Image.fromarray(frame) for frame in frames],
            text=[caption(names)] * len(frames),
            return_tensors="pt",
        ).to(self.pretrained.device)
        with torch.inference_mode(), self.pretrained.autocast():
            outputs = model(**inputs)
        outputs.logits, outputs.pred_boxes = outputs.logits.float().cpu(), outputs.pred_boxes.float().cpu()
        return self._read(outputs, inputs["input_ids"].cpu(), frames.shape[1:3], names, processor)

    def _read(
        self, outputs: Any, input_ids: torch.Tensor, size: tuple[int, int], names: Sequence[str], processor: Any
    ) -> list[Detections]:
        """Boxes, scores and labels from a batch of the model's outputs, for frames of `size` (height, width)."""
        exact = self.label_mode == "exact"
        results = processor.post_process_grounded_object_detection(
            outputs,
            input_ids,
            # In span mode all boxes are wanted: the post-processor would count full stops as words.
            threshold=self.box_threshold if exact else -1.0,
            text_threshold=self.text_threshold if exact else 1.0,
            target_sizes=[tuple(size)] * len(input_ids),
        )
        if not exact:
            return self._read_spans(outputs, input_ids, results, names, processor)
        as_given = {name.lower(): name for name in names}  # the text is lower-cased on its way through the tokenizer
        found = []
        for result in results:
            boxes = _float64(result["boxes"]).reshape(-1, 4)
            words = result["text_labels"][: len(boxes)]  # no boxes at all decode to one empty string
            labels = tuple(as_given.get(label, label) for label in words)
            found.append(Detections(boxes, _float64(result["scores"]), labels))
        return found

    def _read_spans(
        self, outputs: Any, input_ids: torch.Tensor, results: list[dict], names: Sequence[str], processor: Any
    ) -> list[Detections]:
        spans = label_spans(input_ids[0].tolist(), names, processor.tokenizer)
        found = []
        for logits, result in zip(outputs.logits, results, strict=True):
            kept, scores, labels = assign_spans(_float64(logits.sigmoid()), spans, self.box_threshold)
            boxes = _float64(result["boxes"]).reshape(-1, 4)[kept]
            found.append(Detections(boxes, scores, tuple(names[k] for k in labels)))
        return found


def _float64(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().to(device="cpu").numpy().astype(np.float64)
