"""Record a run's settings, so that a rerun in the same folder continues that run and no other."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spatialalign_trl.files import read_json, write_json
from spatialalign_trl.safe_text import mask_secrets

if TYPE_CHECKING:
    from spatialalign_trl.models.base import VideoModel
    from spatialalign_trl.models.settings import SamplingSettings
    from spatialalign_trl.online.config import OnlineSpatialAlignConfig

RUN_FILE = "run.json"

# Settings that may change between two starts of one run, because no result depends on them.
FREE = {
    "output_dir", "logging_steps", "logging_strategy", "logging_first_step", "disable_tqdm", "report_to",
    "run_name", "save_steps", "save_strategy", "save_total_limit", "dataloader_num_workers", "rollout_batch_size",
    "contact_sheet_prompts", "report_megabytes", "log_samples_steps", "log_samples_prompts",
    "num_rounds", "samples_dir", "latent_cache_dir", "log_level",
    "log_level_replica", "log_on_each_node",
    "push_to_hub", "hub_model_id", "hub_strategy", "hub_token", "hub_private_repo", "hub_always_push", "hub_revision",
    "push_preferences_to_hub", "push_preferences_every", "push_preferences_public", "push_preferences_license",
    "local_rank", "ddp_backend", "ddp_timeout", "project", "trackio_space_id", "torch_compile", "quality_guards",
    "evaluate_every_round", "max_failure_share", "logging_nan_inf_filter", "dataloader_pin_memory",
}  # fmt: skip

PACKAGES = ("spatialalign-trl", "torch", "diffusers", "transformers", "peft", "trl", "accelerate", "datasets")


def describe_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results depend on."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def check_same_run(
    output_dir: Path,
    args: OnlineSpatialAlignConfig,
    sampling: SamplingSettings,
    model: VideoModel,
    rewards: Mapping[str, Any],
    prompts: Sequence[Mapping[str, Any]],
    starting_policy: str | None = None,
) -> dict[str, Any]:
    """
    Write `run.json`, or compare the settings with an existing one.

    Args:
        output_dir (`Path`): The run's folder.
        args ([`OnlineSpatialAlignConfig`]): The run's arguments.
        sampling ([`SamplingSettings`]): How the run samples.
        model ([`VideoModel`]): The model.
        rewards (`dict`): Name -> the settings of the reward (`RewardRunner.describe`).
        prompts (sequence of `dict`): The training prompts.
        starting_policy (`str`, *optional*): The name of the LoRA that the model came with; `None` if it came without.

    Returns:
        `dict`: the run's settings.

    Raises:
        ValueError: if the folder has a run with other settings; names each of them with both values.
    """
    wanted = {
        "model": model.name_or_path,
        "dtype": str(model.dtype).removeprefix("torch."),
        **model.computation,
        "rewards": dict(rewards),
        "sampling": sampling.to_dict(),
        "prompts": _digest(prompts),
        **({} if starting_policy is None else {"starting_policy": starting_policy}),
        **{name: value for name, value in args.to_dict().items() if name not in FREE},
    }
    # A hash stands beside every masked secret, so that a rerun with another secret is noticed.
    wanted = mask_secrets(json.loads(json.dumps(wanted, sort_keys=True, default=str)), digest=True)
    file = output_dir / RUN_FILE
    if file.exists():
        recorded = mask_secrets(read_json(file), digest=True)  # older runs recorded secrets as they are
        # A run from before a setting existed used what is now its default.
        new = {f.name: f.default for f in fields(args) if f.name in wanted and f.name not in recorded}
        recorded |= json.loads(json.dumps({k: v for k, v in new.items() if v is not MISSING}, default=str))
        recorded.setdefault("dtype", wanted["dtype"])  # older runs did not record it
        differing = [name for name in sorted({*recorded, *wanted}) if recorded.get(name) != wanted.get(name)]
        if differing:
            lines = "\n".join(
                f"  {name}: {recorded.get(name)!r} there, {wanted.get(name)!r} now" for name in differing
            )
            raise ValueError(
                f"{output_dir} holds a run with other settings:\n{lines}\n"
                "Choose another --output_dir, or remove the folder to start over."
            )
    write_json(file, wanted)
    return wanted


def check_disjoint(
    model: VideoModel, train: Sequence[Mapping[str, Any]], evaluation: Sequence[Mapping[str, Any]]
) -> None:
    """
    Check that no evaluation row conditions the model exactly as a training row does.

    Raises:
        ValueError: if there are such rows; counts them and shows one.
    """
    known = {model.row_content(row) for row in train}
    shared = sorted(row["prompt"] for row in evaluation if model.row_content(row) in known)
    if shared:
        raise ValueError(
            f"{len(shared)} prompts are in the training and in the evaluation set, such as {shared[0]!r}: evaluate on "
            "prompts that are not trained on"
        )


def _digest(rows: Sequence[Mapping[str, Any]]) -> str:
    text = json.dumps([dict(row) for row in rows], sort_keys=True)
    return f"{len(rows)} prompts, sha256 {hashlib.sha256(text.encode()).hexdigest()[:16]}"
