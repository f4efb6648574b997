"""Train a LoRA with Diffusion-DPO on TRL's base trainer: preference pairs of videos in, a LoRA out."""

from pathlib import Path
from typing import Any, ClassVar

import datasets
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers.trainer_utils import EvalLoopOutput

from spatialalign_trl.trainer.callbacks import EarlyWarnings
from spatialalign_trl.trainer.diffusion_dpo_config import DiffusionDPOConfig
from spatialalign_trl.trainer.draws import DrawKey, Draws, PairNoise, stack_draws
from spatialalign_trl.trainer.flow_matching import Stream
from spatialalign_trl.trainer.latents import PairDataset, collate_pairs, prepare_pairs
from spatialalign_trl.trainer.losses import Pair, sft_loss, zeroth_order_dpo_loss
from spatialalign_trl.trainer.pair_columns import NOISE_SEED_COLUMNS
from spatialalign_trl.trainer.reference_cache import ReferenceCache
from spatialalign_trl.trainer.reference_sync import SyncReference, load_reference, save_reference
from spatialalign_trl.trainer.video_trainer import VideoTrainer


class DiffusionDPOTrainer(VideoTrainer):
    """
    Trains a LoRA on preference pairs of videos with Diffusion-DPO.

    Latents and prompt embeddings are cached first, then the encoders are released. Only one transformer is in memory:
    the reference is the same network with its adapter switched off.

    Takes the arguments of [`VideoTrainer`], of which these differ:

    Args:
        args ([`DiffusionDPOConfig`], *optional*):
            A copy of it becomes `trainer.args`.
        train_dataset (`datasets.Dataset`):
            Columns `prompt`, `chosen`, `rejected` (videos), or `chosen_latents` and `rejected_latents` instead of
            videos.
        eval_dataset (`datasets.Dataset` or `dict[str, datasets.Dataset]`, *optional*):
            The same columns. Every evaluation draws the same noise.

    Raises:
        TypeError: if `model` or `args` has the wrong type.
        ValueError: if a dataset is wrong (the message names row and column) or the arguments contradict each other.
    """

    config_class: ClassVar[type[DiffusionDPOConfig]] = DiffusionDPOConfig
    _tag_names = ["spatialalign-trl", "trl", "text-to-video", "lora", "diffusers", "template:sd-lora", "diffusion-dpo"]
    _name = "Diffusion-DPO"
    _latents_key = "chosen"
    collate = staticmethod(collate_pairs)

    def _finish_init(self) -> None:
        self.noise = PairNoise(self.args, self.flow_shift, self.sigma_bounds)
        self._reference_caches: dict[str, tuple[ReferenceCache, PairDataset]] = {}
        self._refuse_sharded_reference()
        self.add_callback(EarlyWarnings)
        if self.args.sync_reference:
            steps, alpha = self.args.reference_sync_steps, self.args.reference_mixup_alpha
            self.add_callback(SyncReference(self.video_model, steps, alpha))

    def _prepare(self, dataset: datasets.Dataset, args: DiffusionDPOConfig, name: str) -> PairDataset:
        pairs = prepare_pairs(dataset, self.video_model, self.latent_cache_dir, **self._sharing(args), name=name)
        if args.rollout_noise and pairs.pairs.noise_seeds is None:
            raise ValueError(
                f"rollout_noise=True, but {name} lacks the columns {' and '.join(NOISE_SEED_COLUMNS.values())}, which "
                "record the noise that the videos were sampled from; it has "
                f"{', '.join(sorted(dataset.column_names))}. Datasets made by the rollouts have these columns; for "
                "others leave rollout_noise off."
            )
        return pairs

    def _refuse_sharded_reference(self) -> None:
        """Refuse settings that need the whole network, or the adapter's weights, in every process."""
        for name, strategies in (
            ("precompute_reference", {"FSDP": self.is_fsdp_enabled}),
            ("sync_reference", {"FSDP": self.is_fsdp_enabled, "DeepSpeed": self.is_deepspeed_enabled}),
        ):
            for strategy, is_on in strategies.items():
                if is_on and getattr(self.args, name):
                    raise ValueError(
                        f"{name}=True does not work with {strategy}, which spreads the network or its checkpoints "
                        f"over the processes. Use DDP, or set {name}=False."
                    )

    # The training step, top to bottom

    def _example_losses(self, model: torch.nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        draws_per_pair = self.args.num_noise_draws
        clean, conditioning = Pair(inputs["chosen"], inputs["rejected"]), inputs["conditioning"]

        # 1. Draw a noise level per pair and noise per video. The draws of a pair follow one another in the batch.
        sigma, noise, keys = self._draw(inputs)
        if draws_per_pair > 1:
            clean = Pair(*(latents.repeat_interleave(draws_per_pair, 0) for latents in clean))
            conditioning = {name: value.repeat_interleave(draws_per_pair, 0) for name, value in conditioning.items()}

        # 2. Noise the latents, and compute what the network should predict.
        noisy = Pair(*(self.video_model.add_noise(x, eps, sigma) for x, eps in zip(clean, noise, strict=True)))
        target = Pair(*(self.video_model.target(x, eps, sigma) for x, eps in zip(clean, noise, strict=True)))

        # 3. Predict with the reference and the policy, and compare. Supervised training needs the winner alone, but
        #    its evaluation also reports the metrics of the pair.
        if self.args.loss_type == "sft" and self.model.training:
            prediction = self.video_model.predict(noisy.chosen, sigma, conditioning, transformer=model)
            losses, metrics = sft_loss(prediction, target.chosen, reduction="none")
        else:
            # The reference goes first: its activations are freed before the policy's graph takes up memory.
            reference = self._reference_predictions(model, noisy, sigma, conditioning, keys)
            policy = self._predict_pair(model, noisy, sigma, conditioning)
            losses, metrics = self.pair_loss(policy, reference, target)
            if self.args.loss_type == "sft":
                losses, sft_metrics = sft_loss(policy.chosen, target.chosen, reduction="none")
                metrics |= sft_metrics

        # 4. Average over the draws of each pair.
        if draws_per_pair > 1:
            losses = losses.unflatten(0, (-1, draws_per_pair)).mean(1)
            metrics = {name: value.unflatten(0, (-1, draws_per_pair)).mean(1) for name, value in metrics.items()}
        return losses, metrics

    def pair_loss(self, policy: Pair, reference: Pair, target: Pair) -> tuple[Tensor, dict[str, Tensor]]:
        """
        Compute the preference loss of every pair; override this method to train with another loss.

        Args:
            policy, reference, target ([`Pair`] of `torch.Tensor` of shape `(batch, ...)`):
                See [`zeroth_order_dpo_loss`].

        Returns:
            `(losses, metrics)` of shape `(batch,)` each.
        """
        losses, metrics = zeroth_order_dpo_loss(
            policy, reference, target, zeroth_order_weight=0, **self._loss_options()
        )
        del metrics["loss_zeroth_order"]  # this trainer has no such term
        return losses, metrics

    def _loss_options(self) -> dict[str, Any]:
        """Return the keyword arguments of the preference loss that the configuration sets."""
        names = ("beta", "margin_clip", "sft_weight", "winner_safe_mu")
        # "sft" has no preference loss; its evaluation reports the default one.
        loss_type = "sigmoid" if self.args.loss_type == "sft" else self.args.loss_type
        return {**{name: getattr(self.args, name) for name in names}, "loss_type": loss_type, "reduction": "none"}

    def _draw(self, inputs: dict[str, Any]) -> Draws:
        """Draw noise levels and noise for a batch, on the latents' device."""
        latents, count = inputs["chosen"], self.args.num_noise_draws
        shape = tuple(latents.shape[1:])
        draws, keys = [], []
        for i, generator in enumerate(self._generators(len(latents))):
            seeds = inputs["noise_seeds"][i] if self.args.rollout_noise else None
            pair_keys = self._draw_keys(int(inputs["row"][i]), generator)
            keys += pair_keys
            if pair_keys:
                draws += [self.noise.of_key(key, shape, seeds) for key in pair_keys]
            else:
                draws += self.noise.from_generator(generator, count, shape, seeds)
        return stack_draws(draws, keys, latents.device)

    def _draw_keys(self, row: int, generator: torch.Generator) -> list[DrawKey]:
        """Return the names of the draws of a pair; empty if every step makes new draws."""
        if self.model.training:
            return self.noise.pick_fixed(row, generator) if self.args.num_fixed_draws is not None else []
        if not self.args.precompute_reference:
            return []
        return [DrawKey("eval", row, index) for index in range(self.args.num_noise_draws)]

    def _reference_predictions(
        self,
        model: torch.nn.Module,
        noisy: Pair,
        sigma: Tensor,
        conditioning: dict[str, Tensor],
        keys: list[DrawKey],
    ) -> Pair:
        """Read the reference's predictions from the cache, or run the network with its adapter off."""
        if self.args.precompute_reference:
            cache, pairs = self._reference_caches[keys[0].stream]
            return Pair(*(prediction.to(sigma.device) for prediction in cache.read(pairs, keys)))
        # The unwrapped network, because DDP must not track this forward; batching and autocast are the policy's, so
        # that the rounding of both cancels.
        with torch.no_grad(), self.video_model.reference():
            return self._predict_pair(self._unwrapped(model), noisy, sigma, conditioning)

    def _predict_pair(
        self, network: torch.nn.Module, noisy: Pair, sigma: Tensor, conditioning: dict[str, Tensor]
    ) -> Pair:
        """Predict the velocities of both videos, in one batch unless `separate_forward` is set."""
        predict = self.video_model.predict
        if self.args.separate_forward:
            return Pair(*(predict(video, sigma, conditioning, transformer=network) for video in noisy))
        doubled = {name: torch.cat([tensor, tensor]) for name, tensor in conditioning.items()}
        return Pair(*predict(torch.cat(noisy), sigma.repeat(2), doubled, transformer=network).chunk(2))

    # The precomputed reference

    def _precompute_reference(self, pairs: PairDataset, stream: Stream) -> None:
        """Compute the missing predictions of the reference, divided among the processes.

        The network sees the same batch sizes, precision and batching of the two sides as the policy will, because
        their rounding errors have to cancel.
        """
        args = self.args
        draws_per_pair = args.num_fixed_draws if stream == "fixed" else args.num_noise_draws
        batch_size = args.train_batch_size if stream == "fixed" else args.eval_batch_size
        size = batch_size * args.num_noise_draws
        precision = "bf16" if args.bf16 else "fp16" if args.fp16 else "none"
        settings = {**self.noise.describe(), "autocast": precision, "dtype": str(self.video_model.dtype)}
        settings |= {"batch": size, "separate_forward": args.separate_forward}
        cache = ReferenceCache(self.latent_cache_dir, self.video_model, settings)
        keys = [DrawKey(stream, row, index) for row in range(len(pairs)) for index in range(draws_per_pair)]
        missing = cache.missing(pairs, keys)
        self.accelerator.wait_for_everyone()  # every process must see the same missing files before one is written
        process_keys = missing[args.process_index :: args.world_size]
        quiet = args.disable_tqdm or args.process_index != 0
        for start in tqdm(range(0, len(process_keys), size), desc="computing the reference", disable=quiet):
            part = process_keys[start : start + size]
            padded = part + part[-1:] * (size - len(part))  # a shorter batch would be rounded differently
            for key, prediction in zip(part, self._predict_reference(pairs, padded), strict=False):
                cache.write(pairs, key, prediction)
        self.accelerator.wait_for_everyone()
        self._reference_caches[stream] = (cache, pairs)

    def _predict_reference(self, pairs: PairDataset, keys: list[DrawKey]) -> list[Pair]:
        """Predict with the reference at every draw; returns tensors without a batch dimension."""
        inputs = self._prepare_inputs(collate_pairs([pairs[key.row] for key in keys]))
        seeds = inputs["noise_seeds"] if self.args.rollout_noise else [None] * len(keys)
        draws = [self.noise.of_key(key, pairs.latent_shape, seed) for key, seed in zip(keys, seeds, strict=True)]
        sigma, noise, _ = stack_draws(draws, keys, inputs["chosen"].device)
        clean = Pair(inputs["chosen"], inputs["rejected"])
        noisy = Pair(*(self.video_model.add_noise(x, eps, sigma) for x, eps in zip(clean, noise, strict=True)))
        network = self.accelerator.unwrap_model(self.model)
        was_training = network.training
        network.eval()
        try:
            with torch.no_grad(), self.accelerator.autocast(), self.video_model.reference():
                predictions = self._predict_pair(network, noisy, sigma, inputs["conditioning"])
        finally:
            network.train(was_training)
        return [Pair(chosen, rejected) for chosen, rejected in zip(*predictions, strict=True)]

    # Training and evaluation

    def evaluation_loop(
        self, dataloader: DataLoader, description: str, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> EvalLoopOutput:
        """See [`VideoTrainer.evaluation_loop`]."""
        if self.args.precompute_reference:
            self._precompute_reference(dataloader.dataset, "eval")
        return super().evaluation_loop(dataloader, description, *args, metric_key_prefix=metric_key_prefix, **kwargs)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """See [`~transformers.Trainer.train`]."""
        if self.args.precompute_reference:
            self._precompute_reference(self.train_dataset, "fixed")
        return super().train(*args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.sync_reference and self.args.should_save:
            save_reference(self.video_model, Path(output_dir or self.args.output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.args.sync_reference:
            load_reference(self.video_model, Path(resume_from_checkpoint))
