"""Diffusion-DPO on TRL's base trainer: preference pairs of videos in, a LoRA out."""

import copy
import functools
import os
from collections import defaultdict
from collections.abc import Callable
from typing import Any, ClassVar

import datasets
import torch
from peft import LoraConfig
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import TrainerCallback
from transformers.trainer_utils import EvalLoopOutput

from ..models.base import VideoModel
from ._trl_base import BaseTrainer
from .diffusion_dpo_config import DiffusionDPOConfig
from .flow_matching import draw_noise, pair_generator, sample_sigmas, sigma_bounds, step_position
from .latents import PairDataset, Share, collate_pairs, prepare_pairs
from .lora import attach_lora
from .losses import diffusion_dpo_loss, sft_loss
from .pair_columns import SIDES
from .publishing import METRIC_NAMES, LoraPublishing


class DiffusionDPOTrainer(LoraPublishing, BaseTrainer):
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

    loss_is_scaled_for_ga = False
    config_class: ClassVar[type[DiffusionDPOConfig]] = DiffusionDPOConfig
    _tag_names = ["spatialalign-trl", "trl", "text-to-video", "lora", "diffusers", "template:sd-lora", "diffusion-dpo"]
    _name = "Diffusion-DPO"

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
        args = self._checked_args(args, model)
        self.video_model = _load(model, args)
        self.flow_shift = _flow_shift(self.video_model, args)
        bounds = (args.min_sigma, args.max_sigma, args.num_train_timesteps)
        sigma_bounds(self.flow_shift, args.timestep_sampling, *bounds)  # a grid without a point: now, not at step 0

        if train_dataset is None:
            raise ValueError("train_dataset is missing")
        train_pairs = self._prepare(train_dataset, args, "train_dataset")
        if isinstance(eval_dataset, dict):
            eval_pairs: Any = {k: self._prepare(v, args, f"eval_dataset[{k!r}]") for k, v in eval_dataset.items()}
        else:
            eval_pairs = None if eval_dataset is None else self._prepare(eval_dataset, args, "eval_dataset")
        self.video_model.release_encoders()

        self._set_gradient_checkpointing(args)
        network = attach_lora(self.video_model, peft_config, seed=args.seed)
        self._metrics: dict[str, dict[str, list[float]]] = {"train": defaultdict(list), "eval": defaultdict(list)}
        self._micro_step = (-1, -1)  # (optimizer step, micro-steps of it that were drawn for)
        self._eval_batches = 0
        super().__init__(
            model=network,
            args=args,
            data_collator=collate_pairs,
            train_dataset=train_pairs,
            eval_dataset=eval_pairs,
            processing_class=None,  # the pipeline stays ours: Trainer would save it with every checkpoint
            callbacks=callbacks,
            optimizers=optimizers,
        )

    def _checked_args(self, args: DiffusionDPOConfig | None, model: str | VideoModel) -> DiffusionDPOConfig:
        if args is None:
            name = model if isinstance(model, str) else getattr(model, "name_or_path", "model")
            args = self.config_class(output_dir=f"{os.path.basename(name.rstrip('/'))}-{self._name}")
        if not isinstance(args, self.config_class):
            raise TypeError(
                f"args is a {type(args).__name__}; {type(self).__name__} needs a {self.config_class.__name__}"
            )
        args = copy.copy(args)  # what is switched off below stays as the caller set it
        if args.n_gpu > 1:
            raise ValueError(
                f"{args.n_gpu} GPUs are visible to one process, and transformers would use torch.nn.DataParallel, "
                "which this trainer does not support. Start one process per GPU (`accelerate launch ...`), or show "
                "it one GPU (`CUDA_VISIBLE_DEVICES=0`)."
            )
        if args.remove_unused_columns:
            raise ValueError("remove_unused_columns=True would remove every column of the batches: leave it off")
        if args.world_size > 1 and not args.accelerator_config.even_batches:
            raise ValueError(
                "even_batches=False lets a process with fewer pairs leave the others waiting: leave it on"
            )
        return args

    def _prepare(self, dataset: datasets.Dataset, args: DiffusionDPOConfig, name: str) -> PairDataset:
        share = Share(args.process_index, args.world_size, args.distributed_state.wait_for_everyone)
        folder = args.latent_cache_dir or os.path.join(args.output_dir, "_latent_cache")
        return prepare_pairs(
            dataset, self.video_model, folder, name=name, share=share, show_progress=not args.disable_tqdm
        )

    def _set_gradient_checkpointing(self, args: DiffusionDPOConfig) -> None:
        """Trainer would call a method that diffusers' models do not have; switch it here and hide it from Trainer."""
        network = self.video_model.pipeline.transformer
        if args.gradient_checkpointing:
            network.enable_gradient_checkpointing()
        else:
            network.disable_gradient_checkpointing()
        args.gradient_checkpointing = args.activation_checkpointing = False

    def _send_telemetry(self) -> None:
        """Nothing is sent: TRL's own version reads fields that a diffusers config does not have."""

    # Noise

    def _generators(self, count: int) -> list[torch.Generator]:
        """One generator for every pair of the batch at hand; see [`flow_matching.pair_generator`]."""
        place = {"rank": self.args.process_index, "world_size": self.args.world_size}
        if self.model.training:
            step, drawn = self._micro_step
            drawn = drawn + 1 if step == self.state.global_step else 0
            step = self.state.global_step
            self._micro_step = (step, drawn)
            first = step_position(0, micro_step=drawn, batch_size=self._train_batch_size, **place)
            stream = "train"
        else:
            step, stream = 0, "eval"
            first = step_position(0, micro_step=self._eval_batches, batch_size=self.args.eval_batch_size, **place)
            self._eval_batches += 1
        return [pair_generator(self.args.seed, stream, step, first + i) for i in range(count)]

    def _draw(self, inputs: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Sigma of shape `(batch,)`, shared by the pair, and the noise of each side, on the latents' device."""
        latents = inputs["chosen"]
        sigmas, noises = [], []
        for generator in self._generators(len(latents)):
            sigmas.append(
                sample_sigmas(
                    1,
                    shift=self.flow_shift,
                    generator=generator,
                    sampling=self.args.timestep_sampling,
                    min_sigma=self.args.min_sigma,
                    max_sigma=self.args.max_sigma,
                    num_train_timesteps=self.args.num_train_timesteps,
                )
            )
            chosen = draw_noise(tuple(latents.shape[1:]), generator)
            noises.append((chosen, chosen if self.args.shared_noise else draw_noise(chosen.shape, generator)))
        sides = zip(SIDES, zip(*noises, strict=True), strict=True)
        noise = {side: torch.stack(values).to(latents.device) for side, values in sides}
        return torch.cat(sigmas).to(latents.device), noise

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
        return diffusion_dpo_loss(**six, beta=self.args.beta, margin_clip=self.args.margin_clip, reduction="none")

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """The mean loss of a batch of pairs (see [`collate_pairs`]); its metrics are noted for the next log."""
        losses, metrics = self._compute_loss(model, inputs)
        self._note({**metrics, "loss": losses.detach()})
        loss = losses.mean()
        return (loss, metrics) if return_outputs else loss

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        sigma, noise = self._draw(inputs)
        noisy = {side: self.video_model.add_noise(inputs[side], noise[side], sigma) for side in SIDES}
        target = {side: self.video_model.target(inputs[side], noise[side], sigma) for side in SIDES}
        conditioning = inputs["conditioning"]
        if self.args.loss_type == "sft" and self.model.training:  # evaluation reports the pair's metrics as well
            prediction = self.video_model.predict(noisy["chosen"], sigma, conditioning, transformer=model)
            return sft_loss(prediction, target["chosen"], reduction="none")
        # The reference goes first: its activations are gone before the policy's graph takes up memory. It is the
        # unwrapped network, which DDP does not watch, in the same batching and autocast as the policy.
        with torch.no_grad(), self.video_model.reference():
            reference = self._predict_pair(self.accelerator.unwrap_model(model), noisy, sigma, conditioning)
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

    def prediction_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, None, None]:
        """The loss of a batch without gradients; there are no labels."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            return self.compute_loss(model, inputs).detach(), None, None

    # Metrics

    def _note(self, metrics: dict[str, Tensor]) -> None:
        """Collects every pair's values from all processes."""
        values = torch.stack(list(metrics.values()), dim=1)  # (batch, metrics): one message instead of one a metric
        if self.model.training:
            # Not gather_for_metrics: batches are fetched ahead, and it would cut an earlier one to the last one's
            # size.
            mode, values = "train", self.accelerator.gather(values)
        else:
            mode, values = "eval", self.accelerator.gather_for_metrics(values)
        for name, column in zip(metrics, values.T.tolist(), strict=True):
            if name == "loss" and mode == "train":  # Trainer logs it
                continue
            self._metrics[mode][METRIC_NAMES.get(name, name)].extend(column)

    def _take_metrics(self, mode: str) -> dict[str, float]:
        averages = {name: sum(values) / len(values) for name, values in self._metrics[mode].items()}
        self._metrics[mode].clear()
        return averages

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the averages over all pairs since the last log."""
        super().log({**logs, **self._take_metrics("train")} if self.model.training else logs, start_time)

    def evaluation_loop(
        self, dataloader: DataLoader, description: str, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> EvalLoopOutput:
        """Evaluates with the same noise every time; the result holds all metrics, averaged over pairs."""
        self._metrics["eval"].clear()
        self._eval_batches = 0
        output = super().evaluation_loop(dataloader, description, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        output.metrics.update({f"{metric_key_prefix}_{k}": v for k, v in self._take_metrics("eval").items()})
        return output

    # Training

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """See [`~transformers.Trainer.train`]."""
        self._micro_step = (-1, -1)  # an interrupted step starts over
        return super().train(*args, **kwargs)

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """The schedule that `args` names, held at its last value past its end (a cosine would rise again)."""
        is_ours = self.lr_scheduler is None
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        if is_ours and isinstance(scheduler, LambdaLR):
            rates = scheduler.lr_lambdas
            scheduler.lr_lambdas = [functools.partial(_held, rate, last_step=num_training_steps) for rate in rates]
        return scheduler


def _held(rate: Callable[[int], float], step: int, *, last_step: int) -> float:
    return rate(min(step, last_step))


def _flow_shift(model: VideoModel, args: DiffusionDPOConfig) -> float:
    """Training on another grid than the one that is sampled from wastes it, so the default is the sampler's."""
    for shift in (args.flow_shift, model.default_settings().flow_shift):
        if shift is not None:
            return shift
    return model.flow_shift


def _load(model: str | VideoModel, args: DiffusionDPOConfig) -> VideoModel:
    if isinstance(model, VideoModel):
        return model
    if not isinstance(model, str):
        raise TypeError(f"model is a {type(model).__name__}: pass a name, a folder or a VideoModel (load_video_model)")
    from ..models import load_video_model

    options = dict(args.model_init_kwargs or {})
    if isinstance(options.get("torch_dtype"), str):
        options["torch_dtype"] = getattr(torch, options["torch_dtype"])
    return load_video_model(model, **{"device": args.device, **options})
