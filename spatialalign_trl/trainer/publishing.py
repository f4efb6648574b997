"""Save and publish what a trainer makes: checkpoints to resume from, the LoRA in diffusers' format, and its card."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.trainer_utils import HubStrategy
from transformers.utils.hub import PushInProgress

from spatialalign_trl.files import read_json, seal_file, write_json
from spatialalign_trl.models.lora import LORA_FILE
from spatialalign_trl.models.lora_files import PEFT_CONFIG_FILE, PEFT_FILE
from spatialalign_trl.trainer.checkpoints import record_checksums, refuse_damaged
from spatialalign_trl.trainer.model_card import DIFFUSION_DPO, PAIRS_OF_VIDEOS, lora_model_card

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, ModelCard

    from spatialalign_trl.models.base import VideoModel
    from spatialalign_trl.models.usage import LoraUsage

logger = logging.getLogger(__name__)

CARD_FILE = "README.md"
STARTING_LORA = "The LoRA to go on from"
"""The row of the card that says how many keys of that LoRA's file have no place in the model."""
PUBLISHED = (LORA_FILE, CARD_FILE, f"ema/{LORA_FILE}")
"""The files of a folder that are pushed, if they exist."""

# Maps the names in `losses` to the names in the logs, which are TRL's where TRL has one.
METRIC_NAMES = {
    "score_chosen": "rewards/chosen",
    "score_rejected": "rewards/rejected",
    "margin": "rewards/margins",
    "accuracy": "rewards/accuracies",
    "mse_chosen": "mse/chosen",
    "mse_rejected": "mse/rejected",
    "saturation": "margin_saturation",
    "distance_to_reference": "distance_to_reference",
    "loss_dpo": "loss/dpo",
    "loss_zeroth_order": "loss/zeroth_order",
    "loss_sft": "loss/sft",
    "loser_gradient_scale": "loser_gradient_scale",
}


class LoraPublishing:
    """Saves, pushes and describes the LoRA; overrides the methods by which Trainer saves a language model."""

    video_model: "VideoModel"
    flow_shift: float
    sigma_bounds: tuple[float, float]
    _name: str
    _examples: str = "Pairs"
    _learns_from: str = PAIRS_OF_VIDEOS
    _paper: dict[str, str]
    _tag_names: list[str]
    push_note: str = ""
    """Prefix of every commit message, such as `"Round 1: "`."""
    usage: "LoraUsage | None" = None
    """How the card says that the LoRA is used; by default with the model's settings and a prompt of the dataset."""

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save the adapter in PEFT's format (to resume from), the LoRA in diffusers' format, and the card."""
        self._refuse_non_finite_weights(output_dir or self.args.output_dir, state_dict)
        if not self.args.should_save:
            return
        output_dir = output_dir or self.args.output_dir
        os.makedirs(output_dir, exist_ok=True)
        network = self.accelerator.unwrap_model(self.model)
        network.save_pretrained(output_dir, state_dict=state_dict, save_embedding_layers=False)
        _sort_sets(Path(output_dir, PEFT_CONFIG_FILE))
        seal_file(Path(output_dir, PEFT_FILE))
        self.video_model.save_lora(output_dir, state_dict)
        write_json(Path(output_dir, "training_args.json"), self.args.to_dict())  # Trainer would write a pickle
        self._model_card().save(os.path.join(output_dir, CARD_FILE))  # replaces PEFT's card

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save a checkpoint, and then the checksums of its files."""
        super()._save_checkpoint(model, trial)
        checkpoint = Path(self._get_output_dir(trial=trial), f"checkpoint-{self.state.global_step}")
        if self.args.should_save and checkpoint.is_dir():  # save_total_limit may have removed it
            record_checksums(checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load the adapter of a checkpoint, unless a file of it is damaged."""
        refuse_damaged(Path(resume_from_checkpoint))
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    # The Hub

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Create the repository if it does not exist; see [`~hub.lora_files.make_model_repo`]."""
        if not self.is_world_process_zero():
            return
        from spatialalign_trl.hub.lora_files import make_model_repo

        name = self.args.hub_model_id or Path(self.args.output_dir).absolute().name
        private = self.args.hub_private_repo if private is None else private
        self.hub_model_id = make_model_repo(name, private=private, token=token or self.args.hub_token)
        self.push_in_progress = None

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """See [`~transformers.Trainer.save_model`]; a push that fails is logged, and the training continues."""
        super().save_model(output_dir, _internal_call=True)
        if self.args.push_to_hub and not _internal_call and self.is_world_process_zero():
            self._finish_current_push()
            folder = Path(output_dir or self.args.output_dir)
            self._push_or_warn(_published_files(folder), "Model save", folder)

    def push_to_hub(
        self,
        commit_message: str = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """
        Push the LoRA and its card, and nothing else from `output_dir`.

        Args:
            commit_message (`str`, *optional*, defaults to `"End of training"`):
                Message of the commit, after `push_note`.
            blocking, token, revision:
                See [`~transformers.Trainer.push_to_hub`].
            private (`bool`, *optional*):
                Whether a repository that is created now is private.
            kwargs:
                Arguments of [`~LoraPublishing.create_model_card`].

        Returns:
            `CommitInfo`, or a `Future` of it if not `blocking`; `None` in all processes but the first.

        Raises:
            PushFailed: if several attempts failed; the message does not contain the token.
        """
        from huggingface_hub import run_as_future

        token = token or self.args.hub_token
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**kwargs)
        self._finish_current_push()
        revision = revision or self.args.hub_revision
        arguments = _published_files(Path(self.args.output_dir)), self.push_note + commit_message, token, revision
        return self._push(*arguments) if blocking else run_as_future(self._push, *arguments)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push a checkpoint in the background; Trainer would push a pickle of the arguments, including the token."""
        strategy = self.args.hub_strategy
        if not self.is_world_process_zero() or strategy == HubStrategy.END:
            return
        running = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if running and not self.args.hub_always_push:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        folder = Path(checkpoint_folder)
        # Read the files now: save_total_limit may have removed the folder when the background job starts.
        files = {name: path.read_bytes() for name, path in _published_files(folder).items()}
        if strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            prefix = "last-checkpoint" if strategy == HubStrategy.CHECKPOINT else folder.name
            paths = [path for path in folder.rglob("*") if path.is_file()]
            files |= {f"{prefix}/{path.relative_to(folder).as_posix()}": path.read_bytes() for path in paths}
        from huggingface_hub import run_as_future

        message = f"Training in progress, step {self.state.global_step}"
        job = run_as_future(self._push_or_warn, files, message, folder)
        if running:
            self.push_in_progress.jobs.append(job)
        else:
            self.push_in_progress = PushInProgress([job])

    def _push_or_warn(self, files: Mapping[str, bytes | Path], message: str, folder: Path) -> None:
        """Push files; if that fails, log the reason and the command that pushes them later."""
        from spatialalign_trl.hub.lora_files import command_for_later
        from spatialalign_trl.hub.pushing import PushFailed, describe_failure

        try:
            self._push(files, self.push_note + message, self.args.hub_token, self.args.hub_revision)
        except Exception as error:  # any error: an exception in a background thread would be lost
            failure = error if isinstance(error, PushFailed) else describe_failure(error)
            command = command_for_later(folder, self.hub_model_id, [name for name in files if name in PUBLISHED])
            logger.warning(
                "%r was not pushed to %s: %s. The training continues. To push it later, run:\n  %s",
                message, self.hub_model_id, failure, command,
            )  # fmt: skip

    def _push(
        self, files: Mapping[str, bytes | Path], message: str, token: str | None, revision: str | None
    ) -> "CommitInfo":
        from spatialalign_trl.hub.lora_files import push_files

        private = self.args.hub_private_repo
        return push_files(files, self.hub_model_id, message=message, private=private, token=token, revision=revision)

    # Model card

    def create_model_card(
        self,
        model_name: str | None = None,
        dataset_name: str | None = None,
        tags: str | list[str] | None = None,
    ) -> None:
        """
        Write the LoRA's model card to `output_dir`.

        Args:
            model_name (`str`, *optional*):
                Title of the card.
            dataset_name (`str`, *optional*):
                Hub id of the preference dataset.
            tags (`str` or `list[str]`, *optional*):
                Tags to add to the trainer's.
        """
        if not self.is_world_process_zero():
            return
        tags = [tags] if isinstance(tags, str) else list(tags or [])
        self._model_card(model_name, dataset_name, tags).save(os.path.join(self.args.output_dir, CARD_FILE))

    def _model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: list[str] | None = None
    ) -> "ModelCard":
        return lora_model_card(
            self.video_model,
            model_name=model_name or (self.hub_model_id or str(Path(self.args.output_dir).resolve())).split("/")[-1],
            repo=self.hub_model_id or self.args.hub_model_id or Path(self.args.output_dir).name,
            tags=[*self._tag_names, *(tags or [])],
            usage=self.usage or self._default_usage(),
            trainer_name=self._name,
            learns_from=self._learns_from,
            formula=self._formula(),
            facts=self._facts(),
            results=self._last_logged(),
            step=self.state.global_step,
            dataset_name=dataset_name,
            papers=self._papers(),
        )

    def _default_usage(self) -> "LoraUsage":
        """Describe how the LoRA is used, with a prompt that was not trained on if there is one."""
        held_out = self.eval_dataset
        if isinstance(held_out, dict):
            held_out = next(iter(held_out.values()), None)
        prompt = (held_out or self.train_dataset).prompts[0]
        return self.video_model.lora_usage(self.video_model.default_settings(), prompt=prompt, noise_seed=0)

    def _papers(self) -> list[str]:
        """Return the arXiv numbers of the papers to cite."""
        loss = [] if self.args.loss_type == "sft" else [DIFFUSION_DPO]
        return [*([self._paper["id"]] if "id" in self._paper else []), *loss]

    def _formula(self) -> str:
        if self.args.loss_type == "sft":
            return "L = MSE_theta(chosen)"
        beta, clip = self.args.beta, self.args.margin_clip
        margin = f"{beta} * (score(chosen) - score(rejected))"
        margin = margin if clip is None else f"clip({margin}, -{clip}, {clip})"
        losses = {"sigmoid": "-log sigmoid(m)", "hinge": "max(0, 1 - m)", "ipo": f"(m/{beta} - 1/(2*{beta}))^2"}
        loss = losses[self.args.loss_type]
        if self.args.sft_weight:
            loss += f" + {self.args.sft_weight} * MSE_theta(chosen)"
        formula = f"score(y) = MSE_ref(y) - MSE_theta(y)\nm        = {margin}\nL_dpo    = {loss}"
        if self.args.winner_safe_mu is not None:
            formula += f"\n(the loser's gradient scaled as in Diffusion-SDPO, mu = {self.args.winner_safe_mu})"
        return formula

    def _facts(self) -> dict[str, Any]:
        args, lora = self.args, self.accelerator.unwrap_model(self.model).active_peft_config
        batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        targets, starting_fit = lora.target_modules, self.video_model.lora_fit
        return {
            self._examples: len(self.train_dataset),
            "Optimizer steps": self.state.global_step,
            f"{self._examples} a step": batch,
            "LoRA": f"rank {lora.r}, alpha {lora.lora_alpha}, dropout {lora.lora_dropout}",
            "LoRA targets": targets if isinstance(targets, str) else ", ".join(f"`{t}`" for t in sorted(targets)),
            **({STARTING_LORA: starting_fit.describe()} if starting_fit and starting_fit.unplaced else {}),
            "Learning rate": f"{args.learning_rate}, schedule {getattr(args.lr_scheduler_type, 'value', 'own')}",
            "Weight decay": args.weight_decay,
            "Noise levels": f"{args.timestep_sampling} in {list(self.sigma_bounds)}, shift {self.flow_shift}",
            **self._method_facts(),
            "Latents (C, F, H, W)": self.train_dataset.latent_shape,
            "Precision": "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32",
            "Seed": args.seed,
        }

    def _method_facts(self) -> dict[str, Any]:
        """Return the facts on the card that only this method has."""
        args = self.args
        noise = "that of the rollouts" if args.rollout_noise else "shared" if args.shared_noise else "independent"
        if args.num_noise_draws > 1:
            noise += f", {args.num_noise_draws} draws a step"
        if args.num_fixed_draws is not None:
            noise += f", {args.num_fixed_draws} fixed draws"
        return {"Noise within a pair": noise}

    def _last_logged(self) -> dict[str, float]:
        names = set(METRIC_NAMES.values())
        for entry in reversed(self.state.log_history):
            if "loss" in entry:
                return {name: value for name, value in entry.items() if name == "loss" or name in names}
        return {}


def _published_files(folder: Path) -> dict[str, Path]:
    """Return the files of a folder that are pushed, by their path in the repository."""
    return {name: folder / name for name in PUBLISHED if (folder / name).is_file()}


def _sort_sets(config_file: Path) -> None:
    """Sort the module names in PEFT's settings, which PEFT writes in the random order of a set."""
    settings = read_json(config_file)
    for name in ("target_modules", "exclude_modules"):
        if isinstance(settings.get(name), list):
            settings[name] = sorted(settings[name])
    write_json(config_file, settings)
