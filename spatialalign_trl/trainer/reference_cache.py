"""What the reference predicts at fixed draws of noise and timestep, computed once and kept on disk.

The reference does not change while it is trained against, so its prediction for a pair at a given noise and timestep
is the same at every visit. With a few fixed draws a pair, all of them are computed before the first step, and the
reference's forward is gone from training. A file is named by a hash of everything that its content depends on, so a
run that was stopped goes on where it was, and nothing stale is ever read.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor
from tqdm.auto import tqdm

from spatialalign_trl.files import write_atomic
from spatialalign_trl.trainer.draws import DrawKey, stack_draws
from spatialalign_trl.trainer.flow_matching import Stream
from spatialalign_trl.trainer.latents import PairDataset, collate_pairs, is_whole, weights_digest
from spatialalign_trl.trainer.pair_columns import SIDES

if TYPE_CHECKING:
    from spatialalign_trl.models.base import VideoModel


_FORMAT = "1"  # of the cache; part of every key


class ReferenceCache:
    """
    Predictions of the reference, by pair and draw.

    Args:
        folder (`Path`):
            Where the files go; visible to all processes.
        model ([`VideoModel`]):
            Its reference at this moment is what the cache is about.
        settings (`dict`):
            What else the predictions depend on and JSON can hold: how draws are made, precision, batching.
    """

    def __init__(self, folder: Path, model: "VideoModel", settings: dict[str, Any]) -> None:
        self.folder = folder
        versions = {"torch": torch.__version__, "diffusers": diffusers.__version__, "device": model.device.type}
        context = json.dumps({**settings, **versions}, sort_keys=True)
        self._context = f"{_FORMAT} {reference_fingerprint(model)} {context}"

    def path(self, pairs: PairDataset, key: DrawKey) -> Path:
        """The file of a draw, there or not."""
        name = f"{self._context}\n{pairs.fingerprint(key.row)}\n{key.stream} {key.row} {key.index}"
        return self.folder / f"reference-{hashlib.sha256(name.encode()).hexdigest()[:32]}.safetensors"

    def missing(self, pairs: PairDataset, keys: Sequence[DrawKey]) -> list[DrawKey]:
        """Those of `keys` that have no whole file."""
        return [key for key in keys if not is_whole(self.path(pairs, key))]

    def write(self, pairs: PairDataset, key: DrawKey, predictions: dict[str, Tensor]) -> None:
        """
        Keeps the predictions of one draw.

        Args:
            pairs ([`PairDataset`]):
                The dataset.
            key ([`DrawKey`]):
                The draw.
            predictions (`dict[str, torch.Tensor]`):
                `(C, F, H, W)` each, in the type the network gave; it is kept.

        Raises:
            ValueError: a prediction is not finite.
        """
        if not all(tensor.isfinite().all() for tensor in predictions.values()):
            raise ValueError(
                f"{pairs.pairs.name} row {key.row}: the reference's prediction is not finite. Its latents or the "
                "model's weights are broken, or the precision is too low for this model (try bf16 instead of fp16)."
            )
        data = save_safetensors({side: value.detach().cpu().contiguous() for side, value in predictions.items()})
        write_atomic(self.path(pairs, key), data)

    def read(self, pairs: PairDataset, keys: Sequence[DrawKey]) -> dict[str, Tensor]:
        """
        The predictions of a batch of draws, `(len(keys), C, F, H, W)` a side, on the CPU.

        Raises:
            FileNotFoundError: one of them was never computed, or its file was removed meanwhile.
        """
        try:
            files = [load_safetensors(self.path(pairs, key).read_bytes()) for key in keys]
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{error.filename}: a precomputed prediction of the reference is gone. Start again to compute it."
            ) from error
        return {side: torch.stack([file[side] for file in files]) for side in SIDES}


def reference_fingerprint(model: "VideoModel") -> str:
    """
    A hash that tells references apart: the base transformer, by its name, a few weights of every tensor and what was
    set of how it computes, and, where the reference is a policy of its own (`set_reference_to_policy`), all of that
    adapter's weights.
    """
    digest = hashlib.sha256(f"{model.family} {model.name_or_path} {model.revision}".encode())
    digest.update(json.dumps(model.computation, sort_keys=True).encode())
    base = {
        name.replace(".base_layer", ""): tensor  # as PEFT renames what it wraps
        for name, tensor in model.base_transformer.state_dict().items()
        if ".lora_" not in name
    }
    weights_digest(digest, "transformer", base)
    for name, tensor in sorted((model.reference_weights or {}).items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode() + tensor.float().cpu().numpy().tobytes())
    return digest.hexdigest()


class PrecomputedReference:
    """The part of a trainer that computes the reference's predictions ahead and reads them back."""

    video_model: "VideoModel"

    def _precompute_reference(self, pairs: PairDataset, stream: Stream) -> None:
        """
        Computes what is missing of the reference's predictions, the work dealt over the processes.

        The network sees the same batch sizes, precision and batching of the two sides as the policy will: their
        rounding noise has to cancel.
        """
        per_pair = self.args.num_fixed_draws if stream == "fixed" else self.args.num_noise_draws
        batch = self.args.train_batch_size if stream == "fixed" else self.args.eval_batch_size
        size = batch * self.args.num_noise_draws
        precision = "bf16" if self.args.bf16 else "fp16" if self.args.fp16 else "none"
        settings = {**self.noise.describe(), "autocast": precision, "dtype": str(self.video_model.dtype)}
        settings |= {"batch": size, "separate_forward": self.args.separate_forward}
        cache = ReferenceCache(self.latent_cache_dir, self.video_model, settings)
        keys = [DrawKey(stream, row, index) for row in range(len(pairs)) for index in range(per_pair)]
        missing = cache.missing(pairs, keys)
        self.accelerator.wait_for_everyone()  # nobody writes before everybody has looked
        mine = missing[self.args.process_index :: self.args.world_size]
        quiet = self.args.disable_tqdm or self.args.process_index != 0
        for start in tqdm(range(0, len(mine), size), desc="computing the reference", disable=quiet):
            part = mine[start : start + size]
            whole = part + part[-1:] * (size - len(part))  # a shorter batch is rounded differently
            for key, prediction in zip(part, self._predict_reference(pairs, whole), strict=False):
                cache.write(pairs, key, prediction)
        self.accelerator.wait_for_everyone()
        self._reference_caches[stream] = (cache, pairs)

    def _predict_reference(self, pairs: PairDataset, keys: list[DrawKey]) -> list[dict[str, Tensor]]:
        """The reference's predictions of every draw, computed now."""
        inputs = self._prepare_inputs(collate_pairs([pairs[key.row] for key in keys]))
        seeds = inputs["noise_seeds"] if self.args.rollout_noise else [None] * len(keys)
        draws = [self.noise.of_key(key, pairs.latent_shape, own) for key, own in zip(keys, seeds, strict=True)]
        sigma, noise, _ = stack_draws(draws, keys, inputs["chosen"].device)
        noisy = {side: self.video_model.add_noise(inputs[side], noise[side], sigma) for side in SIDES}
        network = self.accelerator.unwrap_model(self.model)
        was_training = network.training
        network.eval()
        try:
            with torch.no_grad(), self.accelerator.autocast(), self.video_model.reference():
                predictions = self._predict_pair(network, noisy, sigma, inputs["conditioning"])
        finally:
            network.train(was_training)
        return [{side: predictions[side][i] for side in SIDES} for i in range(len(keys))]

    def _read_reference(self, keys: list[DrawKey], device: torch.device) -> dict[str, Tensor]:
        """What was computed ahead for the draws of a batch."""
        cache, pairs = self._reference_caches[keys[0].stream]
        return {side: tensor.to(device) for side, tensor in cache.read(pairs, keys).items()}
