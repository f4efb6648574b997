"""Detect named objects on every frame of a clip with Grounding DINO.

Source: the paper's section on DSR-Score and its authors' released code: grounding-dino-tiny, text
`"{animal}. {object}."`, box threshold 0.4, text threshold 0.3. Their frames were saved as JPEG before detection; ours
are not, and the transformers port has changed since, so boxes agree to within the detector's noise, not bit for bit.
"""

from __future__ import annotations

import os
import re
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
"""Frames per batch on CUDA. On a CPU, a batch is not faster than single frames (measured) and takes more memory."""

LabelMode = Literal["exact", "span"]

_PLAIN = re.compile(r"[A-Za-z0-9]+( [A-Za-z0-9]+)*")

_CLASSES = {
    "grounding-dino": ("GroundingDinoForObjectDetection", "GroundingDinoProcessor"),
    "mm-grounding-dino": ("MMGroundingDinoForObjectDetection", "GroundingDinoProcessor"),
}


def caption(names: Sequence[str]) -> str:
    """Return the detector's text for some names: `["cat", "fire hydrant"]` -> `"cat. fire hydrant."`."""
    return " ".join(f"{name}." for name in names)


def label_spans(input_ids: Sequence[int], names: Sequence[str], tokenizer: Any) -> list[list[int]]:
    """
    Find the tokens of each name in the tokens of a [`caption`].

    Args:
        input_ids (sequence of `int`):
            The tokens of one text, including special ones.
        names (sequence of `str`):
            The names, in the text's order.
        tokenizer:
            The tokenizer that made the tokens.

    Returns:
        `list[list[int]]`: the positions of the tokens of each name.

    Raises:
        ValueError: when the text does not contain this number of names, because a name contains the full stop that
            separates names, or the text was truncated.
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
            f"the names {list(names)} are not found one by one in the detector's text {caption(names)!r}. Use shorter "
            "names without full stops."
        )
    return spans


def label_names(names: Sequence[str], tokenizer: Any) -> dict[str, str]:
    """
    Find out which label a box has that matches every token of a name.

    The detector's text is cut into tokens and labels are put together from them, so that "T-shirt" comes back as
    "t - shirt" and "piñata" as "pinata". Case, accents and white space are the tokenizer's business alone.

    Args:
        names (sequence of `str`):
            The names that are looked for.
        tokenizer:
            The tokenizer that cuts the detector's text.

    Returns:
        `dict[str, str]`: label -> name.

    Raises:
        ValueError: for a name without any token, one with a special token such as "[SEP]", and for two names of the
            same tokens. The message names them.
    """
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    labels: dict[str, str] = {}
    for name in names:
        tokens = tokenizer(name, add_special_tokens=False)["input_ids"]
        if not tokens or special & set(tokens):
            raise ValueError(f"the detector's tokenizer makes no words of {name!r}. Use another noun.")
        label = tokenizer.decode(tokens)
        other = labels.setdefault(label, name)
        if other != name:
            raise ValueError(
                f"{other!r} and {name!r} are the same to the detector, {label!r}; their boxes cannot be told apart. "
                "Use two different nouns."
            )
    return labels


def is_plain(name: str) -> bool:
    """Return whether a name is its own label, apart from case: words of English letters and digits, single spaces."""
    return _PLAIN.fullmatch(name) is not None


def assign_spans(
    probabilities: np.ndarray, spans: Sequence[Sequence[int]], threshold: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Label every box with the name whose tokens it matches best.

    Args:
        probabilities (`np.ndarray` of shape `(boxes, tokens)`):
            Sigmoid of the detector's logits.
        spans (sequence of sequences of `int`):
            The result of [`label_spans`].
        threshold (`float`):
            Boxes with a score at or below it are dropped.

    Returns:
        `(indices, scores, names)` of the remaining boxes: their rows in `probabilities`, the highest probability over
        the span of the best name, and the index of that name.
    """
    scores = np.stack([probabilities[:, list(span)].max(axis=1) for span in spans], axis=1)
    names, best = scores.argmax(axis=1), scores.max(axis=1)
    indices = np.flatnonzero(best > threshold)
    return indices, best[indices], names[indices]


class GroundingDINODetector(RunsPretrained):
    """
    Detects named objects on single frames.

    Args:
        checkpoint (`str` or `os.PathLike`, *optional*, defaults to `"IDEA-Research/grounding-dino-tiny"`):
            A Hub id or a local folder of Grounding DINO or MM Grounding DINO.
        box_threshold (`float`, *optional*, defaults to `0.4`):
            A box counts if the probability of some token of the text is above this; in [0, 1].
        text_threshold (`float`, *optional*, defaults to `0.3`):
            A token belongs to a box's label if its probability is above this; in [0, 1]. Only used with
            `label_mode="exact"`.
        label_mode (`"exact"` or `"span"`, *optional*, defaults to `"exact"`):
            How boxes are labelled. `"exact"`, as in the paper: the label is decoded from all tokens above
            `text_threshold`. It may be a part of a name ("hydra" for "hydrant") or join two names ("cat bench").
            `"span"`: the label is the name with the most probable token, always as a whole.
        batch_size (`int`, *optional*):
            Frames per batch. Defaults to 8 on CUDA and to 1 elsewhere.
        device, dtype, trust_remote_code, revision (*optional*):
            See [`~spatialalign_trl.perception.checkpoints.PretrainedModel`]. The defaults are bfloat16 autocast on
            CUDA if it is available, and float32 elsewhere.
        disable_progress_bar (`bool`, *optional*, defaults to `True`):
            Whether to hide the progress bar over the frames.

    Raises:
        ValueError: for a threshold outside [0, 1], an unknown `label_mode` or a `batch_size` below 1.
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
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1, or None to choose by the device.")
        self.box_threshold, self.text_threshold, self.label_mode = box_threshold, text_threshold, label_mode
        self.batch_size = batch_size
        self._tokenizer: Any = None
        self.disable_progress_bar = disable_progress_bar
        self.pretrained = PretrainedModel(
            checkpoint, _CLASSES, device=device, dtype=dtype, trust_remote_code=trust_remote_code, revision=revision,
            needs_torchvision=False,
        )  # fmt: skip

    def fingerprint(self) -> str:
        """Return weights, precision, thresholds and label mode as one string, without loading the model."""
        text = f" text {self.text_threshold}" if self.label_mode == "exact" else ""
        return f"{super().fingerprint()} box {self.box_threshold}{text} {self.label_mode}"

    def check_names(self, names: Sequence[str]) -> None:
        """
        Check that the tokenizer can tell some names apart, without loading the model.

        Args:
            names (sequence of `str`):
                What to look for on one clip.

        Raises:
            ValueError: see [`label_names`].
        """
        if all(is_plain(name) for name in names):
            return
        if self._tokenizer is None:
            from transformers import AutoTokenizer

            folder = self.pretrained.prepare()
            trust = self.pretrained.trust_remote_code
            self._tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
        label_names(names, self._tokenizer)

    def detect(self, video: Video, names: Sequence[str]) -> list[Detections]:
        """
        Detect the named objects on every frame.

        Args:
            video (`np.ndarray` of shape `(frames, height, width, 3)`, `uint8`):
                The clip.
            names (sequence of `str`):
                What to look for. Case is ignored, but labels have the case that is given here.

        Returns:
            `list[Detections]`: one per frame. In `"exact"` mode, a label that matches no name is the decoded text.
        """
        size = self.batch_size or (CUDA_BATCH_SIZE if self.pretrained.device.type == "cuda" else 1)
        detections: list[Detections] = []
        with tqdm(
            total=len(video), desc="detecting", unit="frame", leave=False, disable=self.disable_progress_bar
        ) as bar:
            for start in range(0, len(video), size):
                frames = video[start : start + size]
                detections += self._detect_batch(frames, names)
                bar.update(len(frames))
        return detections

    def _detect_batch(self, frames: Video, names: Sequence[str]) -> list[Detections]:
        import torch
        from PIL import Image

        model, processor = self.pretrained.load()
        # One text per image: the model does not broadcast a single text over the batch.
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
        """Convert the model's outputs for a batch of frames of `size` (height, width) to detections."""
        exact = self.label_mode == "exact"
        results = processor.post_process_grounded_object_detection(
            outputs,
            input_ids,
            # In span mode keep all boxes, and apply the threshold later: here, full stops would count as words.
            threshold=self.box_threshold if exact else -1.0,
            text_threshold=self.text_threshold if exact else 1.0,
            target_sizes=[tuple(size)] * len(input_ids),
        )
        if not exact:
            return self._read_spans(outputs, input_ids, results, names, processor)
        if all(is_plain(name) for name in names):  # the tokenizer only converts them to lower case
            name_of = {name.lower(): name for name in names}
        else:
            name_of = label_names(names, processor.tokenizer)
        detections = []
        for result in results:
            boxes = _float64(result["boxes"]).reshape(-1, 4)
            decoded = result["text_labels"][: len(boxes)]  # without any boxes, it is a list of one empty string
            labels = tuple(name_of.get(label, label) for label in decoded)
            detections.append(Detections(boxes, _float64(result["scores"]), labels))
        return detections

    def _read_spans(
        self, outputs: Any, input_ids: torch.Tensor, results: list[dict], names: Sequence[str], processor: Any
    ) -> list[Detections]:
        """Label the boxes of a batch in span mode, where all frames have the same text."""
        spans = label_spans(input_ids[0].tolist(), names, processor.tokenizer)
        detections = []
        for logits, result in zip(outputs.logits, results, strict=True):
            indices, scores, labels = assign_spans(_float64(logits.sigmoid()), spans, self.box_threshold)
            boxes = _float64(result["boxes"]).reshape(-1, 4)[indices]
            detections.append(Detections(boxes, scores, tuple(names[label] for label in labels)))
        return detections


def _float64(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().to(device="cpu").numpy().astype(np.float64)
