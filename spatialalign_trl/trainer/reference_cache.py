"""Cache the reference's predictions at fixed draws of noise and timestep on disk.

The reference does not change during a training, so its prediction for a pair at a given noise and timestep is the same
at every visit. With a few fixed draws per pair, all predictions are computed before the first step, and no step runs
the reference any more. A file is named by a hash of everything its content depends on, so an interrupted run continues
where it stopped, and nothing stale is ever read.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import torch
from safetensors.torch import save as save_safetensors

from spatialalign_trl.files import seal_tensors, write_atomic
from spatialalign_trl.trainer.draws import DrawKey
from spatialalign_trl.trainer.latents import PairDataset, is_whole, load_tensors, weights_digest
from spatialalign_trl.trainer.losses import Pair

if TYPE_CHECKING:
    from spatialalign_trl.models.base import VideoModel


_FORMAT = "1"  # of the cache; part of every key


class ReferenceCache:
    """
    Predictions of the reference on disk, by pair and draw.

    Args:
        folder (`Path`):
            The folder of the files; visible to all processes.
        model ([`VideoModel`]):
            The model whose current reference made the predictions.
        settings (`dict`):
            Everything else the predictions depend on, as JSON values: how draws are made, precision, batching.
    """

    def __init__(self, folder: Path, model: "VideoModel", settings: dict[str, Any]) -> None:
        self.folder = folder
        versions = {"torch": torch.__version__, "diffusers": diffusers.__version__, "device": model.device.type}
        context = json.dumps({**settings, **versions}, sort_keys=True)
        self._context = f"{_FORMAT} {reference_fingerprint(model)} {context}"

    def path(self, pairs: PairDataset, key: DrawKey) -> Path:
        """Return the path of a draw's file, which may not exist yet."""
        name = f"{self._context}\n{pairs.fingerprint(key.row)}\n{key.stream} {key.row} {key.index}"
        return self.folder / f"reference-{hashlib.sha256(name.encode()).hexdigest()[:32]}.safetensors"

    def missing(self, pairs: PairDataset, keys: Sequence[DrawKey]) -> list[DrawKey]:
        """Return the keys whose file is missing, incomplete or damaged; damage causes a warning."""
        return [key for key in keys if not is_whole(self.path(pairs, key))]

    def write(self, pairs: PairDataset, key: DrawKey, predictions: Pair) -> None:
        """
        Write the predictions of one draw.

        Args:
            pairs ([`PairDataset`]):
                The dataset.
            key ([`DrawKey`]):
                The draw.
            predictions ([`Pair`] of `torch.Tensor` of shape `(C, F, H, W)`):
                In the dtype that the network returned, which is kept.

        Raises:
            ValueError: if a prediction is not finite.
        """
        if not all(tensor.isfinite().all() for tensor in predictions):
            raise ValueError(
                f"{pairs.pairs.name} row {key.row}: the reference's prediction is not finite. Its latents or the "
                "model's weights are broken, or the precision is too low for this model (try bf16 instead of fp16)."
            )
        data = save_safetensors(
            {side: value.detach().cpu().contiguous() for side, value in predictions._asdict().items()}
        )
        write_atomic(self.path(pairs, key), seal_tensors(data))

    def read(self, pairs: PairDataset, keys: Sequence[DrawKey]) -> Pair:
        """
        Read the predictions of a batch of draws: `(len(keys), C, F, H, W)` each, on the CPU.

        Raises:
            FileNotFoundError: if one of them was never computed, or its file has been removed since.
            ValueError: if a file is damaged.
        """
        paths = [self.path(pairs, key) for key in keys]
        try:
            files = [load_tensors(path.read_bytes(), str(path)) for path in paths]
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{error.filename}: a precomputed prediction of the reference is gone. Start again to compute it."
            ) from error
        return Pair(*(torch.stack([file[side] for file in files]) for side in Pair._fields))


def reference_fingerprint(model: "VideoModel") -> str:
    """
    Return a hash that identifies the reference.

    It covers the base transformer (its name, a few weights of every tensor, and the settings and options that change
    what it computes) and, if the reference is an earlier policy (`set_reference_to_policy`), all weights of that
    adapter.
    """
    digest = hashlib.sha256(f"{model.family} {model.name_or_path} {model.revision}".encode())
    digest.update(json.dumps(model.computation, sort_keys=True).encode())
    # Such as the frame rate of LTX, which is an input of the transformer.
    options = {name: value for name in model.options if (value := getattr(model, name, None)) is not None}
    digest.update(json.dumps(options, sort_keys=True).encode() if options else b"")
    base = {
        name.replace(".base_layer", ""): tensor  # PEFT renames the layers that it wraps
        for name, tensor in model.base_transformer.state_dict().items()
        if ".lora_" not in name
    }
    weights_digest(digest, "transformer", base)
    for name, tensor in sorted((model.reference_weights or {}).items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode() + tensor.float().cpu().numpy().tobytes())
    return digest.hexdigest()
