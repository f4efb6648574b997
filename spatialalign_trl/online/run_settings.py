"""What a run was asked for, so that a rerun in the same folder continues that run and no other."""

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

if TYPE_CHECKING:
    from spatialalign_trl.models.base import VideoModel
    from spatialalign_trl.models.settings import SamplingSettings
    from spatialalign_trl.online.config import OnlineSpatialAlignConfig

RUN_FILE = "run.json"

# Settings that may change between two starts of one run: they do not touch what is computed.
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
    """Versions of Python and of the packages that results depend on."""
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
    """Writes `run.json`, or compares with the one that is there.

    Args:
        output_dir: the run's folder.
        args, sampling, model: what the run is made with.
        rewards: by name, what each says it was made with (`RewardRunner.describe`).
        prompts: to sample and train on.
        starting_policy: names the LoRA that the model came with; `None` when it came without one.

    Returns:
        The run's settings.

    Raises:
        ValueError: when the folder holds a run with other settings; names each and both values.
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
    wanted = json.loads(json.dumps(wanted, sort_keys=True, default=str))
    file = output_dir / RUN_FILE
    if file.exists():
        there = read_json(file)
        # A run of before a setting existed ran with what is now its default.
        new = {f.name: f.default for f in fields(args) if f.name in wanted and f.name not in there}
        there |= json.loads(json.dumps({k: v for k, v in new.items() if v is not MISSING}, default=str))
        there.setdefault("dtype", wanted["dtype"])  # not written by runs of before it was asked for
        differing = [name for name in sorted({*there, *wanted}) if there.get(name) != wanted.get(name)]
        if differing:
            lines = "\n".join(f"  {name}: {there.get(name)!r} there, {wanted.get(name)!r} now" for name in differing)
            raise ValueError(
                f"{output_dir} holds a run with other settings:\n{lines}\n"
                "Choose another --output_dir, or remove the folder to start over."
            )
    write_json(file, wanted)
    return wanted


def _digest(rows: Sequence[Mapping[str, Any]]) -> str:
    text = json.dumps([dict(row) for row in rows], sort_keys=True)
    return f"{len(rows)} prompts, sha256 {hashlib.sha256(text.encode()).hexdigest()[:16]}"
