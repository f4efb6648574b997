"""Train a LoRA of a video model on TRL's base trainer: the part that all examples and losses share."""

import copy
import functools
import math
import os
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import datasets
import torch
from accelerate.state import AcceleratorState, PartialState
from peft import LoraConfig
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset
from transformers import TrainerCallback
from transformers.trainer_utils import EvalLoopOutput
from trl.trainer.base_trainer import _BaseTrainer as BaseTrainer

from spatialalign_trl.devices import release_memory
from spatialalign_trl.models.base import VideoModel
from spatialalign_trl.models.quantization import check_optimizer
from spatialalign_trl.trainer.distribution import refuse_unsupported_distribution
from spatialalign_trl.trainer.finite_training import FiniteTraining
from spatialalign_trl.trainer.flow_matching import pair_generator, sigma_bounds, step_position
from spatialalign_trl.trainer.latents import Share
from spatialalign_trl.trainer.lora import attach_lora
from spatialalign_trl.trainer.publishing import METRIC_NAMES, LoraPublishing
from spatialalign_trl.trainer.resuming import Resuming
from spatialalign_trl.trainer.video_trainer_config import VideoTrainerConfig


class VideoTrainer(LoraPublishing, FiniteTraining, Resuming, BaseTrainer):
    """
    Encodes the examples once, releases the encoders, and trains a LoRA on them.

    A subclass defines how a dataset becomes examples (`_prepare`), how examples become a batch (`collate`), and the
    loss of every example of a batch (`_example_losses`).

    Args:
        model (`str` or [`VideoModel`]):
            The model whose transformer is trained; a string is passed to [`load_video_model`].
        args ([`VideoTrainerConfig`], *optional*):
            A copy of it becomes `trainer.args`.
        train_dataset (`datasets.Dataset`):
            The examples.
        eval_dataset (`datasets.Dataset` or `dict[str, datasets.Dataset]`, *optional*):
            The same columns. Every evaluation draws the same noise.
        peft_config ([`~peft.LoraConfig`], *optional*):
            The adapter; by default [`default_lora_config`], or the adapter that the model already carries.
        callbacks (`list[TrainerCallback]`, *optional*):
            Added to the default ones.
        optimizers (`tuple`, *optional*, defaults to `(None, None)`):
            Optimizer and scheduler to use instead of those that `args` describes.

    Raises:
        NonFiniteError: from `train`, see [`FiniteTraining`].
    """

    loss_is_scaled_for_ga = False
    config_class: ClassVar[type[VideoTrainerConfig]]
    collate: ClassVar[Callable[[list[dict[str, Any]]], dict[str, Any]]]

    def __init__(
        self,
        model: str | VideoModel,
        args: VideoTrainerConfig | None = None,
        train_dataset: datasets.Dataset | None = None,
        eval_dataset: datasets.Dataset | dict[str, datasets.Dataset] | None = None,
        peft_config: LoraConfig | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LRScheduler | None] = (None, None),
    ) -> None:
        args = self._checked_args(args, model)
        self.video_model = _load(model, args)
        self.flow_shift = _flow_shift(self.video_model, args)
        self.sigma_bounds = _sigma_interval(self.video_model, args)
        # Refuse a timestep grid without a point now, not at step 0.
        sigma_bounds(self.flow_shift, args.timestep_sampling, *self.sigma_bounds, args.num_train_timesteps)
        self.latent_cache_dir = Path(args.latent_cache_dir or os.path.join(args.output_dir, "_latent_cache"))

        if train_dataset is None:
            raise ValueError("train_dataset is missing")
        train_examples = self._prepare(train_dataset, args, "train_dataset")
        if isinstance(eval_dataset, dict):
            eval_examples: Any = {k: self._prepare(v, args, f"eval_dataset[{k!r}]") for k, v in eval_dataset.items()}
        else:
            eval_examples = None if eval_dataset is None else self._prepare(eval_dataset, args, "eval_dataset")
        self.video_model.release_encoders()

        self._set_gradient_checkpointing(args)
        network = attach_lora(self.video_model, peft_config, seed=args.seed)
        self._metrics: dict[str, dict[str, list[float]]] = {"train": defaultdict(list), "eval": defaultdict(list)}
        self._micro_step = (-1, -1)  # (optimizer step, index of its latest micro-step)
        self._step_rows: tuple[int, list[Any]] = (-1, [])  # (optimizer step, rows of the dataset that it has seen)
        self._eval_batches = 0
        self._eval_examples: Any = None
        self._unwrapped_cache: tuple[torch.nn.Module | None, torch.nn.Module | None] = (None, None)
        super().__init__(
            model=network,
            args=args,
            data_collator=self.collate,
            train_dataset=train_examples,
            eval_dataset=eval_examples,
            processing_class=None,  # Trainer would save the pipeline with every checkpoint
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self._finish_init()

    def _finish_init(self) -> None:
        """Set up what a subclass adds; called once, at the end of the construction."""

    @abstractmethod
    def _prepare(self, dataset: datasets.Dataset, args: VideoTrainerConfig, name: str) -> Dataset:
        """Check a dataset and encode it to examples; errors call it `name`."""

    @abstractmethod
    def _example_losses(self, model: torch.nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute `(losses, metrics)` of a batch, of shape `(batch,)` each."""

    @staticmethod
    def _sharing(args: VideoTrainerConfig) -> dict[str, Any]:
        """Return the keyword arguments by which the encoding functions divide their work among the processes."""
        share = Share(args.process_index, args.world_size, args.distributed_state.wait_for_everyone)
        return {"share": share, "show_progress": not args.disable_tqdm}

    def _checked_args(self, args: VideoTrainerConfig | None, model: str | VideoModel) -> VideoTrainerConfig:
        if args is None:
            name = model if isinstance(model, str) else getattr(model, "name_or_path", "model")
            args = self.config_class(output_dir=f"{os.path.basename(name.rstrip('/'))}-{self._name}")
        if not isinstance(args, self.config_class):
            raise TypeError(
                f"args is a {type(args).__name__}; {type(self).__name__} needs a {self.config_class.__name__}"
            )
        args = copy.copy(args)  # the caller's object keeps the settings that are switched off below
        refuse_unsupported_distribution(args)
        check_optimizer(getattr(args.optim, "value", args.optim))
        if args.remove_unused_columns:
            raise ValueError("remove_unused_columns=True would remove every column of the batches: leave it off")
        if args.world_size > 1 and not args.accelerator_config.even_batches:
            raise ValueError(
                "even_batches=False lets a process with fewer examples leave the others waiting: leave it on"
            )
        return args

    def _set_gradient_checkpointing(self, args: VideoTrainerConfig) -> None:
        """Switch gradient checkpointing here: Trainer would call a method that diffusers' models do not have."""
        network = self.video_model.base_transformer
        if args.gradient_checkpointing:
            network.enable_gradient_checkpointing()
        else:
            network.disable_gradient_checkpointing()
        args.gradient_checkpointing = args.activation_checkpointing = False

    def create_accelerator_and_postprocess(self) -> None:
        """
        Create the accelerator, computing as these arguments say.

        accelerate keeps one state per process: the first `Accelerator` would decide for all later ones on precision,
        compiler and plugins.
        """
        if PartialState().device.type != self.args.device.type:  # the arguments of another run were made since
            self.args.__dict__.pop("_setup_devices")
            self.args.device  # noqa: B018 - sets up the processes on this device
        AcceleratorState._reset_state()
        super().create_accelerator_and_postprocess()
        self._accelerator_state = self._read_accelerator_state()

    def _read_accelerator_state(self) -> tuple[Any, ...]:
        state = self.accelerator.state.__dict__  # empty if other arguments were made since
        return tuple(state.get(name) for name in ("_mixed_precision", "device", "dynamo_plugin"))

    def _restore_accelerator(self) -> None:
        """Create the accelerator again if another run in this process has replaced accelerate's state."""
        if self._read_accelerator_state() != self._accelerator_state:
            self.create_accelerator_and_postprocess()

    def _send_telemetry(self) -> None:
        """Send nothing: TRL's own version reads fields that a diffusers config does not have."""

    # Loss

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Compute the mean loss of a batch, and record its metrics for the next log."""
        if self.model.training:
            step, rows = self._step_rows
            current_step = self.state.global_step
            self._step_rows = current_step, [*(rows if step == current_step else []), inputs.get("row")]
        losses, metrics = self._example_losses(model, inputs)
        self._record({"loss": losses.detach(), **metrics}, inputs)
        loss = losses.mean()
        return (loss, metrics) if return_outputs else loss

    def _unwrapped(self, model: torch.nn.Module) -> torch.nn.Module:
        """Return the network inside DDP's wrapper. Cached, because accelerate walks the whole network to find it."""
        if self._unwrapped_cache[0] is not model:
            self._unwrapped_cache = model, self.accelerator.unwrap_model(model)
        return self._unwrapped_cache[1]

    def prediction_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, None, None]:
        """Compute the loss of a batch without gradients; there are no labels."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            return self.compute_loss(model, inputs).detach(), None, None

    def _generators(self, count: int) -> list[torch.Generator]:
        """Return one generator for every example of the current batch; see [`flow_matching.pair_generator`]."""
        processes = {"rank": self.args.process_index, "world_size": self.args.world_size}
        if self.model.training:
            stream, step = "train", self.state.global_step
            previous_step, micro_step = self._micro_step
            micro_step = micro_step + 1 if previous_step == step else 0
            self._micro_step = (step, micro_step)
            first = step_position(0, micro_step=micro_step, batch_size=self._train_batch_size, **processes)
        else:  # step 0 in every evaluation, so that all of them draw the same noise
            stream, step = "eval", 0
            batch_size = self.args.eval_batch_size
            first = step_position(0, micro_step=self._eval_batches, batch_size=batch_size, **processes)
            self._eval_batches += 1
        return [pair_generator(self.args.seed, stream, step, first + i) for i in range(count)]

    # Metrics

    def _record(self, metrics: dict[str, Tensor], inputs: dict[str, Any]) -> None:
        """Gather every example's metrics from all processes, and stop all of them if a number is not finite."""
        values = local = torch.stack(list(metrics.values()), dim=1)  # (batch, metrics): one message for all metrics
        if self.model.training:
            # Not gather_for_metrics: batches are fetched ahead, and it would truncate an earlier batch to the size of
            # the last one.
            mode, values = "train", self.accelerator.gather(values)
        else:
            mode, values = "eval", self.accelerator.gather_for_metrics(values)
        for index, (name, column) in enumerate(zip(metrics, values.T.tolist(), strict=True)):
            # Every process has the values of all, so that all stop here. Other losses may have metrics of their own
            # that are not always defined.
            if (name == "loss" or name in METRIC_NAMES) and not all(map(math.isfinite, column)):
                self._stop_at_loss(name, inputs, ~torch.isfinite(local[:, index]))
            if name == "loss" and mode == "train":  # Trainer logs it
                continue
            self._metrics[mode][METRIC_NAMES.get(name, name)].extend(column)

    def _take_metrics(self, mode: str) -> dict[str, float]:
        averages = {name: sum(values) / len(values) for name, values in self._metrics[mode].items()}
        self._metrics[mode].clear()
        return averages

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the averages over all examples since the last log."""
        if "train_loss" in logs:
            logs["train_loss"] = self._mean_loss()
        if not math.isfinite(logs.get("grad_norm", 0.0)):  # the loss scale of fp16 was too large: no step was made
            del logs["grad_norm"]
        super().log({**logs, **self._take_metrics("train")} if self.model.training else logs, start_time)

    def get_eval_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader:
        """See [`~transformers.Trainer.get_eval_dataloader`]; it is prepared by the accelerator."""
        self._restore_accelerator()
        return super().get_eval_dataloader(*args, **kwargs)

    def evaluation_loop(
        self, dataloader: DataLoader, description: str, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> EvalLoopOutput:
        """Evaluate with the same noise every time; the result has all metrics, averaged over examples."""
        self._restore_accelerator()
        self._metrics["eval"].clear()
        self._eval_batches, self._eval_examples = 0, dataloader.dataset
        output = super().evaluation_loop(dataloader, description, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        release_memory()  # evaluation's larger batches reserved memory that training needs
        output.metrics.update({f"{metric_key_prefix}_{k}": v for k, v in self._take_metrics("eval").items()})
        return output

    # Training

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, or continue a training; see [`Resuming.train`]."""
        self._micro_step = (-1, -1)  # an interrupted step starts over with its first micro-step
        self._step_rows = (-1, [])
        self._metrics["train"].clear()
        return super().train(*args, **kwargs)

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        self._restore_accelerator()
        return super()._inner_training_loop(*args, **kwargs)

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Create the schedule that `args` names; past its end it keeps its last value (a cosine would rise again)."""
        is_ours = self.lr_scheduler is None
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        if is_ours and isinstance(scheduler, LambdaLR):
            rates = scheduler.lr_lambdas
            scheduler.lr_lambdas = [
                functools.partial(_constant_after, rate, last_step=num_training_steps) for rate in rates
            ]
        return scheduler


def _constant_after(rate: Callable[[int], float], step: int, *, last_step: int) -> float:
    return rate(min(step, last_step))


def _flow_shift(model: VideoModel, args: VideoTrainerConfig) -> float:
    """Choose the flow shift: the sampler's by default, because other noise levels would train for nothing."""
    for shift in (args.flow_shift, model.default_settings().flow_shift):
        if shift is not None:
            return shift
    return model.flow_shift


def _sigma_interval(model: VideoModel, args: VideoTrainerConfig) -> tuple[float, float]:
    """Return the noise levels that the arguments allow and the trained transformer sees in sampling."""
    low, high = model.sigma_range
    bounds = max(args.min_sigma, low), min(args.max_sigma, high)
    if bounds[0] >= bounds[1]:
        raise ValueError(
            f"min_sigma={args.min_sigma}, max_sigma={args.max_sigma}: the trained transformer only sees noise "
            f"levels in [{low}, {high}], and these bounds exclude all of them. Widen the bounds, or train the other "
            "expert."
        )
    return bounds


def _load(model: str | VideoModel, args: VideoTrainerConfig) -> VideoModel:
    if isinstance(model, VideoModel):
        return model
    if not isinstance(model, str):
        raise TypeError(f"model is a {type(model).__name__}: pass a name, a folder or a VideoModel (load_video_model)")
    from spatialalign_trl.models import load_video_model

    options = dict(args.model_init_kwargs or {})
    if isinstance(options.get("torch_dtype"), str):
        options["torch_dtype"] = getattr(torch, options["torch_dtype"])
    return load_video_model(model, **{"device": args.device, **options})
