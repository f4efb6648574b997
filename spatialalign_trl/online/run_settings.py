"""
Record a run's settings, so that a rerun in the same folder continues that run and no other.

`run.json` holds every setting that a result depends on, the shape of the LoRA, and fingerprints of the model's files
and of the code of the rewards. A setting belongs to the first stage that it changes, and a rerun with another value:

| stage | example | in the same folder |
|---|---|---|
| none | `save_steps`, `num_rounds` (`FREE`) | accepted in silence |
| memory | `gradient_checkpointing` (`MEMORY`) | accepted with a message; a training continues from its checkpoint |
| evaluation | `evaluation_seeds` | accepted with a message; missing videos are sampled |
| scoring, pairing, training | a reward's file, `score_threshold`, `learning_rate`, the LoRA's rank | accepted with a message while no round is finished: samples are kept, those of a changed reward are scored again, and a training that has begun starts again from step 0 (its checkpoints are kept in `replaced-N`). Refused once a round is finished, with the line that reuses the samples |
| sampling | `num_inference_steps`, the prompts | refused, with the line that reuses the samples that stay the same |
| the model | its weights, `dtype`, `video_crf` | refused: its samples have the same names, but are others |

A training does not go on from a checkpoint with other settings, because the checkpoint restores the optimizer and the
schedule of the old ones, and the LoRA would be one of two recipes under the name of the second.

A run from before a setting was recorded continues: what is missing in its `run.json` counts as unchanged.
"""  # noqa: E501 (a table)

from __future__ import annotations

import hashlib
import json
import platform
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spatialalign_trl.files import read_json, write_json
from spatialalign_trl.models.sources import model_fingerprint
from spatialalign_trl.online.config import SAMPLING_FIELDS
from spatialalign_trl.safe_text import mask_secrets, printable_lines
from spatialalign_trl.trainer.checkpoints import checkpoints_of, set_checkpoints_aside

if TYPE_CHECKING:
    from peft import LoraConfig

    from spatialalign_trl.models.base import VideoModel
    from spatialalign_trl.models.lora_loading import LoraFit
    from spatialalign_trl.models.settings import SamplingSettings
    from spatialalign_trl.online.config import OnlineSpatialAlignConfig

RUN_FILE = "run.json"
ROUND_FILE = "round.json"
"""The numbers of a round, in its folder. Written last, so a round with this file is finished."""

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

# Settings that trade memory for time, and change results by rounding at most.
MEMORY = {
    "gradient_checkpointing", "gradient_checkpointing_kwargs", "activation_checkpointing",
    "activation_checkpointing_kwargs", "torch_empty_cache_steps", "separate_forward", "precompute_reference",
    "per_device_eval_batch_size", "eval_accumulation_steps", "dataloader_prefetch_factor",
    "dataloader_persistent_workers", "skip_memory_metrics", "save_only_model",
}  # fmt: skip
EVALUATION = {"evaluation_seeds"}
SCORING = {"rewards", "reward_sources"}
PAIRING = {
    "reward_weights", "reward_normalization", "reward_gates", "pair_strategy", "score_threshold", "min_pair_gap",
    "invalid_score", "pairs_per_prompt", "pool_rounds", "seed",
}  # fmt: skip
# These are part of a sample's name, or do not change a sample, so that a changed one never mixes with the old samples.
SAMPLING = {"model", "starting_policy", "sampling", "prompts", "num_generations", "use_cpu"}
# These change a sample under the same name, as all that `VideoModel.computation` names.
MODEL = {"model_files", "dtype", "video_crf", "model_init_kwargs"}
STAGES = ("model", "sampling", "scoring", "pairing", "training", "evaluation", "memory")

UNKNOWN_SOURCE = "unknown"
"""The recorded fingerprint of code that is not told, by a server, or cannot be read."""

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


def describe_lora(config: LoraConfig) -> dict[str, Any]:
    """Return the rank, alpha and targets of a LoRA, and its other settings that differ from PEFT's defaults."""
    defaults = type(config)().to_dict()
    machine = {"auto_mapping", "base_model_name_or_path", "inference_mode", "task_type", "peft_version"}
    described = {
        name: sorted(value) if isinstance(value, (set, frozenset, list, tuple)) else value
        for name, value in config.to_dict().items()
        if name not in machine and (name in ("r", "lora_alpha", "target_modules") or value != defaults.get(name))
    }
    return json.loads(json.dumps(described, sort_keys=True, default=str))


def check_same_run(
    output_dir: Path,
    args: OnlineSpatialAlignConfig,
    sampling: SamplingSettings,
    model: VideoModel,
    rewards: Mapping[str, Any],
    prompts: Sequence[Mapping[str, Any]],
    starting_policy: str | None = None,
    starting_fit: LoraFit | None = None,
    lora: Mapping[str, Any] | None = None,
    reward_sources: Mapping[str, str | None] | None = None,
    notify: Callable[[str], None] = print,
) -> dict[str, Any]:
    """
    Write `run.json`, or compare the settings with an existing one. The table above says which changes are accepted.

    Args:
        output_dir (`Path`): The run's folder.
        args ([`OnlineSpatialAlignConfig`]): The run's arguments.
        sampling ([`SamplingSettings`]): How the run samples.
        model ([`VideoModel`]): The model.
        rewards (`dict`): Name -> the settings of the reward (`RewardRunner.describe`).
        prompts (sequence of `dict`): The training prompts.
        starting_policy (`str`, *optional*): The name of the LoRA that the model came with; `None` if it came without.
        starting_fit ([`LoraFit`], *optional*): How much of that LoRA's file has a place in the model.
        lora (`dict`, *optional*): The shape of the LoRA ([`describe_lora`]).
        reward_sources (`dict`, *optional*): Name -> fingerprint of the reward's code; `None` if it is unknown.
        notify (`Callable`, *optional*): Shows a message about a change that is accepted.

    Returns:
        `dict`: the run's settings.

    Raises:
        ValueError: if the folder has a run with other settings that it cannot be continued with; names each of them
            with both values, its stage, and how to go on with what exists.
    """
    wanted = {
        "model": model.name_or_path,
        "model_files": model_fingerprint(model.name_or_path, getattr(model, "revision", None)),
        "dtype": str(model.dtype).removeprefix("torch."),
        **model.computation,
        "rewards": dict(rewards),
        "reward_sources": {name: source or UNKNOWN_SOURCE for name, source in (reward_sources or {}).items()},
        "sampling": sampling.to_dict(),
        "prompts": _digest(prompts),
        "lora": None if lora is None else dict(lora),
        "starting_policy": starting_policy,
        **{name: value for name, value in args.to_dict().items() if name not in FREE},
    }
    if starting_fit is not None and starting_fit.unplaced:
        wanted["starting_policy_keys"] = starting_fit.describe()
    for name in ("model_files", "reward_sources", "lora", "starting_policy"):
        if not wanted[name]:
            del wanted[name]
    if unknown := [name for name, source in wanted.get("reward_sources", {}).items() if source == UNKNOWN_SOURCE]:
        names, reason = ", ".join(unknown), "its server tells no fingerprint, or it has no file"
        notify(printable_lines(f"The code of the reward {names} is unknown ({reason}): no rerun notices its changes."))
    # A hash stands beside every masked secret, so that a rerun with another secret is noticed.
    wanted = mask_secrets(json.loads(json.dumps(wanted, sort_keys=True, default=str)), digest=True)
    file = output_dir / RUN_FILE
    if file.exists():
        recorded = mask_secrets(read_json(file), digest=True)  # older runs recorded secrets as they are
        recorded = _completed(recorded, wanted, args, output_dir)
        names = [name for name in sorted({*recorded, *wanted}) if recorded.get(name) != wanted.get(name)]
        # What `sampling` resolves them to is compared: naming a default changes nothing.
        differing = {name: (recorded.get(name), wanted.get(name)) for name in names if name not in SAMPLING_FIELDS}
        if differing:
            _accept_or_refuse(output_dir, args, differing, notify)
    write_json(file, wanted)
    return wanted


def _completed(
    recorded: dict[str, Any], wanted: dict[str, Any], args: OnlineSpatialAlignConfig, output_dir: Path
) -> dict[str, Any]:
    """Fill in what an older version, or an unknown model, has not recorded; the same for what is unknown now."""
    # A run from before a setting existed used what is now its default.
    new = {f.name: f.default for f in fields(args) if f.name in wanted and f.name not in recorded}
    recorded |= json.loads(json.dumps({k: v for k, v in new.items() if v is not MISSING}, default=str))
    if "lora" in wanted and "lora" not in recorded:
        recorded["lora"] = wanted["lora"] | _saved_lora(output_dir)
    if "reward_sources" in wanted and "reward_sources" in recorded:
        old, new = recorded["reward_sources"], wanted["reward_sources"]
        for name, source in new.items():
            if old.get(name, UNKNOWN_SOURCE) == UNKNOWN_SOURCE:
                old[name] = source
            elif source == UNKNOWN_SOURCE:
                new[name] = old[name]
    for name in ("dtype", "model_files", "reward_sources", "lora", "starting_policy_keys"):
        if name in wanted:
            recorded.setdefault(name, wanted[name])
        elif name in recorded:
            wanted[name] = recorded[name]
    return recorded


def _saved_lora(output_dir: Path) -> dict[str, Any]:
    """Return the rank and alpha of the newest checkpoint, for a run that has not recorded them."""
    folders = sorted(output_dir.glob("rounds/*/policy"), reverse=True)
    for checkpoint in [path for folder in folders for path in checkpoints_of(folder)]:
        try:
            config = read_json(checkpoint / "adapter_config.json")
            return {name: config[name] for name in ("r", "lora_alpha")}
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return {}


def _stage(name: str, args: OnlineSpatialAlignConfig) -> str:
    """Return the first stage that a setting changes."""
    groups = {
        "model": MODEL, "sampling": SAMPLING, "scoring": SCORING, "pairing": PAIRING, "evaluation": EVALUATION,
        "memory": MEMORY,
    }  # fmt: skip
    for stage, names in groups.items():
        if name in names:
            return stage
    is_argument = name == "lora" or any(field.name == name for field in fields(args))
    return "training" if is_argument else "model"  # of `VideoModel.computation`


def _accept_or_refuse(
    output_dir: Path,
    args: OnlineSpatialAlignConfig,
    differing: Mapping[str, tuple[Any, Any]],
    notify: Callable[[str], None],
) -> None:
    """Prepare the folder for changed settings and say what follows from them, or raise a `ValueError`."""
    stages = {name: _stage(name, args) for name in differing}
    changed = [stage for stage in STAGES if stage in stages.values()]
    lines = "\n".join(
        f"{stage} settings:\n"
        + "\n".join(
            f"  {name}: {old!r} there, {new!r} now" for name, (old, new) in differing.items() if stages[name] == stage
        )
        for stage in changed
    )
    finished = sorted(file.parent.name for file in output_dir.glob(f"rounds/*/{ROUND_FILE}"))
    is_kept_from_here = not {"model", "sampling"} & set(changed)
    restarts = bool({"scoring", "pairing", "training"} & set(changed))
    if not is_kept_from_here or (finished and restarts):
        raise ValueError(
            f"{output_dir} holds a run with other settings:\n{lines}\n{_way_out(output_dir, args, changed, finished)}"
        )

    messages = []
    if "scoring" in changed:
        messages.append(
            "The samples are kept and scored again by what changed; old scores that differ are kept beside the new "
            "ones (<id>.scores.replaced-N.json)."
        )
    if restarts:
        for folder in sorted(output_dir.glob("rounds/*/policy")):
            target = set_checkpoints_aside(folder)
            if target is not None:
                messages.append(f"The training starts again from step 0; its checkpoints are kept in {target}.")
        messages.append("Samples are kept." if "scoring" not in changed else "")
    if "memory" in changed and not restarts:
        messages.append("A training continues from its last checkpoint.")
    if "evaluation" in changed:
        messages.append("The evaluation uses the videos that exist, and samples those that are missing.")
    message = f"{output_dir} continues with other settings:\n{lines}\n{' '.join(filter(None, messages))}"
    notify(printable_lines(message))


def _way_out(output_dir: Path, args: OnlineSpatialAlignConfig, changed: Sequence[str], finished: Sequence[str]) -> str:
    """Say how to go on after a refusal, without losing what the folder has."""
    number = 2
    while (other := output_dir.with_name(f"{output_dir.name}-{number}")).exists():
        number += 1
    here = f"Use the old settings to continue it. For a run with the new ones, which leaves {output_dir} as it is"
    if "model" in changed:
        return (
            "These change what the model samples under the same name, so the new run needs samples of its own. "
            f"{here}:\n--output_dir {shlex.quote(str(other))}"
        )
    samples = Path(args.samples_dir) if args.samples_dir else output_dir / "samples"
    reuse = f"--samples_dir {shlex.quote(str(samples))} --output_dir {shlex.quote(str(other))}"
    if "sampling" in changed:
        return f"{here} and reuses those of its samples that stay the same:\n{reuse}"
    rounds = f"Round {finished[-1]} of it was finished with the old settings. "
    scores = ", which are scored again by what changed" if "scoring" in changed else ""
    return f"{rounds}{here} and reuses its samples{scores}:\n{reuse}"


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
