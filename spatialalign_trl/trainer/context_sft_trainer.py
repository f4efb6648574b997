"""Train a context-conditioned model with supervision: recordings of scenes and their continuations in, a LoRA out."""

from typing import Any, ClassVar

import datasets
import torch
from torch import Tensor

from spatialalign_trl.models.context_rows import LATENTS as CONTEXT
from spatialalign_trl.models.wan_context import WanContextVideoModel
from spatialalign_trl.trainer.context_examples import SceneDataset, prepare_scenes
from spatialalign_trl.trainer.context_sft_config import ContextSFTConfig
from spatialalign_trl.trainer.draws import draw_sigma
from spatialalign_trl.trainer.flow_matching import draw_noise
from spatialalign_trl.trainer.latents import collate_pairs
from spatialalign_trl.trainer.losses import per_sample_mse
from spatialalign_trl.trainer.video_trainer import VideoTrainer


class ContextSFTTrainer(VideoTrainer):
    """
    Trains a LoRA of a [`WanContextVideoModel`] with flow matching on the target frames:

        x_s = (1 - s)*x0 + s*eps,    L = mean over target tokens of |v(x_s, s; g, context) - (eps - x0)|^2

    The context is clean (diffusion time 0) and is not predicted. In a share `context_dropout` of the examples the
    context is noise and the instruction is null, which trains the null branch of joint guidance.

    Source: Video4Spatial (arXiv 2512.03040), which trains the whole network and has no public code. Training a LoRA,
    the noise levels (those of the base's sampling) and the shares of null examples are our choices.

    Takes the arguments of [`VideoTrainer`], of which these differ:

    Args:
        model (`str` or [`WanContextVideoModel`]):
            The model whose transformer is trained; a string is passed to [`load_video_model`].
        args ([`ContextSFTConfig`], *optional*):
            A copy of it becomes `trainer.args`.
        train_dataset (`datasets.Dataset`):
            Columns `prompt`, `video`, and the columns that condition the model in addition to the prompt
            ([`prepare_scenes`]).
        eval_dataset (`datasets.Dataset` or `dict[str, datasets.Dataset]`, *optional*):
            The same columns. Every evaluation draws the same noise and keeps the context of every example.

    Raises:
        TypeError: if `model` or `args` has the wrong type.
        ValueError: if a dataset is wrong (the message names row and column) or has cameras that cannot have an effect.
    """

    config_class: ClassVar[type[ContextSFTConfig]] = ContextSFTConfig
    _tag_names = ["spatialalign-trl", "trl", "text-to-video", "lora", "diffusers", "template:sd-lora", "video4spatial"]
    _name = "Context SFT"
    _paper = {"id": "2512.03040"}
    _examples = "Scenes"
    _learns_from = "scenes: a recording, an instruction and the video that continues the recording as instructed"
    collate = staticmethod(collate_pairs)

    _null_embedding: dict[str, Tensor] | None = None
    """Embedding of the null prompt, which replaces the instruction of some examples."""

    def _finish_init(self) -> None:
        conditions = self.train_dataset.columns.conditions
        if conditions is not None and "camera_poses" in conditions.column_names and not self.video_model.sees_cameras:
            raise ValueError(
                "train_dataset has the column 'camera_poses', but the adapter leaves out camera_projection, so no "
                "camera can have an effect. Add camera_projection to the LoRA's targets, or drop the column."
            )

    def _prepare(self, dataset: datasets.Dataset, args: ContextSFTConfig, name: str) -> SceneDataset:
        model = self.video_model
        if not isinstance(model, WanContextVideoModel):
            raise TypeError(
                f"model is a {type(model).__name__}, which takes no context: load it with "
                "load_video_model(..., variant='context')"
            )
        scenes = prepare_scenes(
            dataset, model, self.latent_cache_dir, draw=args.auxiliary_box, name=name, **self._sharing(args)
        )
        if self._null_embedding is None:
            prompt = args.null_prompt if args.null_prompt is not None else model.default_settings().negative_prompt
            self._null_embedding = model.encode_prompts([prompt])
        return scenes

    def _example_losses(self, model: torch.nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        clean = inputs["latents"]
        sigma, noise, conditioning = self._draw(inputs)
        noisy = self.video_model.add_noise(clean, noise, sigma)
        prediction = self.video_model.predict(noisy, sigma, conditioning, transformer=model)
        losses = per_sample_mse(prediction, self.video_model.target(clean, noise, sigma))
        return losses, {}

    def _draw(self, inputs: dict[str, Any]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Draw noise levels and noise, and replace the conditioning of some examples by the null conditioning."""
        args, clean, conditioning = self.args, inputs["latents"], inputs["conditioning"]
        context = conditioning.get(CONTEXT)
        sigmas, noises, shares, null_contexts = [], [], [], []
        for generator in self._generators(len(clean)):
            sigmas.append(draw_sigma(args, self.flow_shift, self.sigma_bounds, generator))
            noises.append(draw_noise(tuple(clean.shape[1:]), generator))
            shares.append(torch.rand(1, generator=generator))
            if context is not None:
                null_contexts.append(draw_noise(tuple(context.shape[1:]), generator))
        sigma, share = (torch.cat(values).to(clean.device) for values in (sigmas, shares))
        noise = torch.stack(noises).to(clean.device)
        if not self.model.training:
            return sigma, noise, conditioning
        conditioning = self.video_model.nulled(
            conditioning,
            self._null_embedding,
            torch.stack(null_contexts) if null_contexts else None,
            instruction=share < args.context_dropout + args.instruction_dropout,
            context=share < args.context_dropout,
        )
        return sigma, noise, conditioning

    # The card

    def _papers(self) -> list[str]:
        return [self._paper["id"]]

    def _formula(self) -> str:
        return (
            "x_s = (1 - s)*x0 + s*eps\n"
            "L   = mean over target frames of |v(x_s, s; instruction, context) - (eps - x0)|^2"
        )

    def _method_facts(self) -> dict[str, Any]:
        model = self.video_model
        return {
            "Without instruction and context": self.args.context_dropout,
            "Without instruction": self.args.instruction_dropout,
            "Context": f"{model.context_frames or 'all'} frames, {model.context_layout} time indices",
        }
