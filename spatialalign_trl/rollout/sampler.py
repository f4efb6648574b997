"""From a policy and prompts to samples in a store. Does only what is missing, so a run that stopped goes on by
itself."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm

from spatialalign_trl.models.settings import SamplingSettings
from spatialalign_trl.rollout.store import Sample, SampleStore

if TYPE_CHECKING:
    from accelerate import Accelerator

    from spatialalign_trl.models.base import VideoModel
    from spatialalign_trl.models.encoding import Conditioning


def noise_seed(seed: int, prompt_id: str) -> int:
    """
    The seed of a sample's noise: 63 bits of the SHA-256 of (seed, prompt id).

    Every prompt gets its own noise, so that seed 0 is not the same layout for all prompts, and the same one in every
    run.
    """
    digest = hashlib.sha256(f"{int(seed)}:{prompt_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def roll_out(
    model: VideoModel,
    rows: Iterable[Mapping[str, Any]],
    seeds: Sequence[int],
    settings: SamplingSettings,
    store: SampleStore,
    policy_revision: str = "base",
    batch_size: int = 8,
    accelerator: Accelerator | None = None,
    crf: int = 18,
    desc: str = "sampling",
) -> list[Sample]:
    """
    Sample a video for every prompt and seed that the store does not hold yet.

    Prompts are dealt over the processes of `accelerator` (process r of w takes rows r, r + w, ...); the store has to
    lie where all of them see it. Batches run over prompts and seeds; a sample's noise depends on its seed and prompt
    alone. Every sample is written as soon as its batch is decoded, so a run that is stopped loses at most one batch a
    process.

    Args:
        model ([`VideoModel`]):
            The policy. Encoders that were released are loaded while they are needed, and released again.
        rows (iterable of `dict`, or `datasets.Dataset`):
            Prompts: at least the columns `prompt_id` and `prompt`.
        seeds (`list[int]`):
            Seeds for every prompt.
        settings ([`SamplingSettings`]):
            How to sample.
        store ([`SampleStore`]):
            Where the samples go.
        policy_revision (`str`, *optional*, defaults to `"base"`):
            Name of the policy's weights, part of every sample's identity: give other weights another name.
        batch_size (`int`, *optional*, defaults to `8`):
            Videos sampled at a time in each process.
        accelerator (`Accelerator`, *optional*):
            The processes to share the work; this process alone by default.
        crf (`int`, *optional*, defaults to `18`):
            Quality of the mp4; 0 is lossless.
        desc (`str`, *optional*, defaults to `"sampling"`):
            Label of the progress bar, which only the main process shows.

    Returns:
        `list[Sample]`: all samples, on every process, in the order of rows and within a row of seeds.

    Raises:
        ValueError: when a row lacks its id or prompt, ids or seeds repeat, or the size is not legal.
    """
    rows = [dict(row) for row in rows]
    _check(rows, seeds, batch_size)
    model.check_size(settings.num_frames, settings.height, settings.width)
    if accelerator is None or accelerator.is_main_process:
        store.clean()
    planned = [[store.new_sample(row, seed, settings.to_dict(), policy_revision) for seed in seeds] for row in rows]
    rank, world = (0, 1) if accelerator is None else (accelerator.process_index, accelerator.num_processes)
    mine = [sample for of_row in planned[rank::world] for sample in of_row]
    missing = [sample for sample in mine if not store.has(sample.sample_id)]
    if missing:
        show = accelerator is None or accelerator.is_main_process
        with tqdm(total=len(mine), initial=len(mine) - len(missing), desc=desc, unit="video", disable=not show) as bar:
            _sample_missing(model, missing, settings, store, batch_size, crf, bar)
    if accelerator is not None:
        accelerator.wait_for_everyone()
    return [store.load(sample.sample_id) for of_row in planned for sample in of_row]


def _check(rows: list[dict[str, Any]], seeds: Sequence[int], batch_size: int) -> None:
    seen: dict[str, int] = {}
    for i, row in enumerate(rows):
        for column in ("prompt_id", "prompt"):
            if row.get(column) in (None, ""):
                raise ValueError(f"rows[{i}] has no {column!r}; it has {sorted(row)}. Load prompts with load_prompts.")
        if row["prompt_id"] in seen:
            raise ValueError(
                f"rows[{i}] and rows[{seen[row['prompt_id']]}] share the prompt_id {row['prompt_id']!r}; samples are "
                "told apart by it. Give every prompt its own."
            )
        seen[row["prompt_id"]] = i
    if len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds repeat: {list(seeds)}. The same seed gives the same video.")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1.")


def _sample_missing(
    model: VideoModel,
    missing: list[Sample],
    settings: SamplingSettings,
    store: SampleStore,
    batch_size: int,
    crf: int,
    bar: tqdm,
) -> None:
    had_encoders = model.has_encoders
    if not had_encoders:
        model.reload_encoders()
    try:
        embedded = _embed(model, missing)
        guided = model.uses_negative_prompt(settings)
        negative = model.encode_prompts([settings.negative_prompt]) if guided else None
        model.rest_text_encoders()
        for start in range(0, len(missing), batch_size):
            batch = missing[start : start + batch_size]
            prompts = [embedded[sample.prompt_id] for sample in batch]
            conditioning = {name: torch.cat([one[name] for one in prompts]) for name in prompts[0]}
            noise_seeds = [noise_seed(sample.seed, sample.prompt_id) for sample in batch]
            latents = model.sample(conditioning, negative, noise_seeds, settings)
            videos = model.decode_latents(latents)
            for sample, video, one in zip(batch, videos, latents, strict=True):
                store.add(sample, video, one, fps=settings.fps, crf=crf)
                bar.update()
    finally:
        if had_encoders:
            model.reload_encoders()
        else:
            model.release_encoders()


def _embed(model: VideoModel, samples: Iterable[Sample]) -> dict[str, Conditioning]:
    """Prompt id -> embedding. Every distinct one is made once and kept on the CPU: 4 MB each for Wan 2.1."""
    rows = {sample.prompt_id: sample.row for sample in samples}
    contents = {prompt_id: model.row_content(row) for prompt_id, row in rows.items()}
    distinct = {content: rows[prompt_id] for prompt_id, content in contents.items()}
    embedded = {
        content: {name: tensor.cpu() for name, tensor in model.encode_rows([row]).items()}
        for content, row in distinct.items()
    }
    return {prompt_id: embedded[content] for prompt_id, content in contents.items()}
