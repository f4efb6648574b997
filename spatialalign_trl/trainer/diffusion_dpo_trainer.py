"""Diffusion-DPO on TRL's base trainer: preference pairs of videos in, a LoRA out."""

import functools
from pathlib import Path
from typing import Any, ClassVar

import datasets
import torch
from peft import LoraConfig
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import TrainerCallback
from transformers.trainer_utils import EvalLoopOutput

from spatialalign_trl.models.base import VideoModel
from spatialalign_trl.trainer.callbacks import EarlyWarnings
from spatialalign_trl.trainer.diffusion_dpo_config import DiffusionDPOConfig
from spatialalign_trl.trainer.draws import PairDrawing, PairNoise
from spatialalign_trl.trainer.latents import PairDataset, collate_pairs, prepare_pairs
from spatialalign_trl.trainer.losses import diffusion_dpo_loss, sft_loss
from spatialalign_trl.trainer.pair_columns import NOISE_SEED_COLUMNS, SIDES
from spatialalign_trl.trainer.reference_cache import PrecomputedReference, ReferenceCache
from spatialalign_trl.trainer.reference_sync import SyncReference, load_reference, save_reference
from spatialalign_trl.trainer.video_trainer import VideoTrainer


class DiffusionDPOTrainer(PairDrawing, PrecomputedReference, VideoTrainer):
    """
    Trains a LoRA on preference pairs of videos with Diffusion-DPO.

    Latents and prompt embeddings are cached first and the encoders released; one transformer is in memory, and the
    reference is that same network with its adapter off.

    Args:
        model (`str` or [`VideoModel`]):
            The model whose transformer is trained; a string is passed to [`load_video_model`].
        args ([`DiffusionDPOConfig`], *optional*):
            A copy of it becomes `trainer.args`.
        train_dataset (`datasets.Dataset`):
            Columns `prompt`, `chosen`, `rejected` (videos), or `chosen_latents` and `rejected_latents` instead of
            videos.
        eval_dataset (`datasets.Dataset` or `dict[str, datasets.Dataset]`, *optional*):
            The same columns. Every evaluation draws the same noise.
        peft_config ([`~peft.LoraConfig`], *optional*):
            The adapter; by default [`default_lora_config`], or the adapter that the model already carries.
        callbacks (`list[TrainerCallback]`, *optional*):
            Added to the default ones.
        optimizers (`tuple`, *optional*, defaults to `(None, None)`):
            Optimizer and scheduler to use instead of those that `args` describes.

    Raises:
        TypeError: `model` or `args` is of the wrong kind.
        ValueError: a dataset is wrong (the message names row and column), or the arguments cannot work together.
    """

    config_class: ClassVar[type[DiffusionDPOConfig]] = DiffusionDPOConfig
    _tag_names = ["spatialalign-trl", "trl", "text-to-video", "lora", "diffusers", "template:sd-lora", "diffusion-dpo"]
    _name = "Diffusion-DPO"
    collate = staticmethod(collate_pairs)

    def __init__(
        self,
        model: str | VideoModel,
        args: DiffusionDPOConfig | None = None,
        train_dataset: datasets.Dataset | None = None,
        eval_dataset: datasets.Dataset | dict[str, datasets.Dataset] | None = None,
        peft_config: LoraConfig | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LRScheduler | None] = (None, None),
    ) -> None:
        super().__init__(model, args, train_dataset, eval_dataset, peft_config, callbacks, optimizers)
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
                f"rollout_noise=True, but {name} has no columns {' and '.join(NOISE_SEED_COLUMNS.values())}, which "
                "say what noise the videos were sampled from; it has "
                f"{', '.join(sorted(dataset.column_names))}. Datasets that the rollouts made have them; for others "
                "leave rollout_noise off."
            )
        return pairs

    def _refuse_sharded_reference(self) -> None:
        """What reads or writes the adapter's weights, or runs the network on one process alone, needs it whole."""
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

    # Loss

    def pair_loss(self, **six: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """
        The preference loss of every pair.

        Args:
            six (`torch.Tensor` of shape `(batch, ...)`):
                The six tensors of [`diffusion_dpo_loss`], by name.

        Returns:
            `(losses, metrics)` of shape `(batch,)` each.
        """
        return diffusion_dpo_loss(**six, **self._loss_options())

    def _loss_options(self) -> dict[str, Any]:
        """The keyword arguments of the preference losses that the arguments set."""
        names = ("beta", "margin_clip", "sft_weight", "winner_safe_mu")
        # "sft" has no preference loss; evaluation reports that of the default one beside it.
        loss_type = "sigmoid" if self.args.loss_type == "sft" else self.args.loss_type
        return {**{name: getattr(self.args, name) for name in names}, "loss_type": loss_type, "reduction": "none"}

    def _example_losses(self, model: torch.nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        losses, metrics = self._compute_loss(model, inputs)
        count = self.args.num_noise_draws
        if count > 1:  # a pair's draws lie one after the other
            losses = losses.unflatten(0, (-1, count)).mean(1)
            metrics = {name: value.unflatten(0, (-1, count)).mean(1) for name, value in metrics.items()}
        return losses, metrics

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        sigma, noise, keys = self._draw(inputs)
        clean, conditioning = {side: inputs[side] for side in SIDES}, inputs["conditioning"]
        if self.args.num_noise_draws > 1:
            clean, conditioning = (
                {name: tensor.repeat_interleave(self.args.num_noise_draws, 0) for name, tensor in tensors.items()}
                for tensors in (clean, conditioning)
            )
        noisy = {side: self.video_model.add_noise(clean[side], noise[side], sigma) for side in SIDES}
        target = {side: self.video_model.target(clean[side], noise[side], sigma) for side in SIDES}
        if self.args.loss_type == "sft" and self.model.training:  # evaluation reports the pair's metrics as well
            prediction = self.video_model.predict(noisy["chosen"], sigma, conditioning, transformer=model)
            return sft_loss(prediction, target["chosen"], reduction="none")
        # The reference goes first: its activations are gone before the policy's graph takes up memory. It is the
        # unwrapped network, which DDP does not watch, in the same batching and autocast as the policy.
        if self.args.precompute_reference:
            reference = self._read_reference(keys, sigma.device)
        else:
            with torch.no_grad(), self.video_model.reference():
                reference = self._predict_pair(self._unwrapped(model), noisy, sigma, conditioning)
        policy = self._predict_pair(model, noisy, sigma, conditioning)
        six = {
            f"{name}_{side}": values[side]
            for name, values in (("policy", policy), ("reference", reference), ("target", target))
            for side in SIDES
        }
        losses, metrics = self.pair_loss(**six)
        if self.args.loss_type == "sft":
            losses, sft_metrics = sft_loss(policy["chosen"], target["chosen"], reduction="none")
            metrics |= sft_metrics
        return losses, metrics

    def _predict_pair(
        self, network: torch.nn.Module, noisy: dict[str, Tensor], sigma: Tensor, conditioning: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        predict = functools.partial(self.video_model.predict, transformer=network)
        if self.args.separate_forward:
            return {side: predict(noisy[side], sigma, conditioning) for side in SIDES}
        both = predict(
            torch.cat([noisy[side] for side in SIDES]),
            sigma.repeat(2),
            {name: torch.cat([tensor, tensor]) for name, tensor in conditioning.items()},
        )
        return dict(zip(SIDES, both.chunk(2), strict=True))

    # Training

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
