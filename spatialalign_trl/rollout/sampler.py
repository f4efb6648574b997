"""Sample videos from a policy into a store. Only missing samples are made, so an interrupted run simply resumes.

`noise_seed` is importable from here, because rollouts define which noise a sample starts from.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm

from spatialalign_trl.models.settings import SamplingSettings
from spatialalign_trl.prompts.seeds import noise_seed
from spatialalign_trl.rollout.store import Sample, SampleStore

if TYPE_CHECKING:
    from accelerate import Accelerator, PartialState

    from spatialalign_trl.models.base import VideoModel
    from spatialalign_trl.models.encoding import Conditioning


def roll_out(
    model: VideoModel,
    rows: Iterable[Mapping[str, Any]],
    seeds: Sequence[int],
    settings: SamplingSettings,
    store: SampleStore,
    policy_revision: str = "base",
    batch_size: int = 8,
    accelerator: Accelerator | PartialState | None = None,
    crf: int = 18,
    desc: str = "sampling",
    on_batch: Callable[[int, float], str] | None = None,
) -> list[Sample]:
    """
    Sample a video for every prompt and seed that is not in the store yet.

    The prompts are divided among the processes of `accelerator` (process r of w takes rows r, r + w, ...), and all of
    them must see the store. A batch may mix prompts and seeds, because a sample's noise depends on its seed and prompt
    alone. Every sample is written as soon as its batch is decoded, so that an interrupted run loses at most one batch
    per process. It continues with the batches that it would have had, and therefore ends with the same videos bit for
    bit: the size of a batch affects the rounding.

    Args:
        model ([`VideoModel`]):
            The policy. If its encoders were released, they are loaded for the rollout and released again.
        rows (iterable of `dict`, or `datasets.Dataset`):
            The prompts, with at least the columns `prompt_id` and `prompt`.
        seeds (`list[int]`):
            The seeds for every prompt.
        settings ([`SamplingSettings`]):
            The sampling settings.
        store ([`SampleStore`]):
            The store that receives the samples.
        policy_revision (`str`, *optional*, defaults to `"base"`):
            Name of the policy's weights. It is part of every sample's identity, so give other weights another name.
        batch_size (`int`, *optional*, defaults to `8`):
            Number of videos that each process samples at a time.
        accelerator (`Accelerator` or `PartialState`, *optional*):
            The processes that share the work. By default this process does all of it.
        crf (`int`, *optional*, defaults to `18`):
            Quality of the mp4; 0 is lossless. See [`~spatialalign_trl.video.encode_video`].
        desc (`str`, *optional*, defaults to `"sampling"`):
            Label of the progress bar, which only the main process shows.
        on_batch (callable, *optional*):
            Called with the number of videos of every batch and the seconds that they took; returns a text for the
            progress bar.

    Returns:
        `list[Sample]`: all samples, on every process, ordered by row and then by seed.

    Raises:
        ValueError: if a row lacks its id or prompt, ids or seeds repeat, or the size is not legal.
    """
    # 1. Check the input before anything slow happens
    rows = [dict(row) for row in rows]
    _check_input(rows, seeds, batch_size)
    model.check_size(settings.num_frames, settings.height, settings.width)
    is_main = accelerator is None or accelerator.is_main_process
    if is_main:
        store.clean()

    # 2. Plan all samples, and find those of this process that are missing
    planned = [[store.new_sample(row, seed, settings.to_dict(), policy_revision) for seed in seeds] for row in rows]
    rank, world = (0, 1) if accelerator is None else (accelerator.process_index, accelerator.num_processes)
    assigned = [sample for samples in planned[rank::world] for sample in samples]
    missing = [sample for sample in assigned if not store.has(sample.sample_id)]

    # 3. Sample them
    if missing:
        num_done = len(assigned) - len(missing)
        with tqdm(total=len(assigned), initial=num_done, desc=desc, unit="video", disable=not is_main) as progress:
            batches, missing_ids = (
                _batches(assigned, missing, batch_size, store),
                {sample.sample_id for sample in missing},
            )
            _sample_batches(model, batches, missing_ids, settings, store, crf, progress, on_batch)

    # 4. Read what all processes wrote
    if accelerator is not None:
        accelerator.wait_for_everyone()
    return [store.load(sample.sample_id) for samples in planned for sample in samples]


def _check_input(rows: list[dict[str, Any]], seeds: Sequence[int], batch_size: int) -> None:
    """Check the arguments of [`roll_out`] that do not depend on the model."""
    index_of_id: dict[str, int] = {}
    for index, row in enumerate(rows):
        for column in ("prompt_id", "prompt"):
            if row.get(column) in (None, ""):
                raise ValueError(
                    f"rows[{index}] has no {column!r}; it has {sorted(row)}. Load prompts with load_prompts."
                )
        earlier = index_of_id.setdefault(row["prompt_id"], index)
        if earlier != index:
            raise ValueError(
                f"rows[{index}] and rows[{earlier}] share the prompt_id {row['prompt_id']!r}, but the id identifies a "
                "prompt's samples. Give every prompt its own."
            )
    if len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds repeat: {list(seeds)}. The same seed gives the same video. Pass each seed once.")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, but it must be at least 1.")


def _batches(assigned: list[Sample], missing: list[Sample], batch_size: int, store: SampleStore) -> list[list[Sample]]:
    """
    Divide the missing samples into batches.

    Samples that an interruption cut off or that are damaged come in the batches that they had, because the size of a
    batch affects the rounding. New samples, such as those of another seed, are packed.
    """
    is_interrupted = all(a is b for a, b in zip(assigned[len(assigned) - len(missing) :], missing, strict=True))
    if is_interrupted or any(store.path(sample.sample_id, ".json").exists() for sample in missing):
        missing_ids = {sample.sample_id for sample in missing}
        batches = [assigned[start : start + batch_size] for start in range(0, len(assigned), batch_size)]
        return [batch for batch in batches if any(sample.sample_id in missing_ids for sample in batch)]
    return [missing[start : start + batch_size] for start in range(0, len(missing), batch_size)]


def _sample_batches(
    model: VideoModel,
    batches: list[list[Sample]],
    missing_ids: set[str],
    settings: SamplingSettings,
    store: SampleStore,
    crf: int,
    progress: tqdm,
    on_batch: Callable[[int, float], str] | None,
) -> None:
    """Sample the batches and store what is missing. The model's encoders are left loaded or released as they were."""
    had_encoders = model.has_encoders
    if not had_encoders:
        model.reload_encoders()
    try:
        # Embed all prompts first, so that the text encoders can leave the accelerator before sampling starts.
        embeddings = _embed_prompts(model, [sample for batch in batches for sample in batch])
        guided = model.uses_negative_prompt(settings)
        negative = model.encode_prompts([settings.negative_prompt]) if guided else None
        model.rest_text_encoders()
        for batch in batches:
            started = time.monotonic()
            batch_embeddings = [embeddings[sample.prompt_id] for sample in batch]
            conditioning = {name: torch.cat([e[name] for e in batch_embeddings]) for name in batch_embeddings[0]}
            noise_seeds = [noise_seed(sample.seed, sample.prompt_id) for sample in batch]
            batch_latents = model.sample(conditioning, negative, noise_seeds, settings)
            videos = model.decode_latents(batch_latents)
            for sample, video, latents in zip(batch, videos, batch_latents, strict=True):
                if sample.sample_id in missing_ids:
                    store.add(sample, video, latents, fps=settings.fps, crf=crf)
                    progress.update()
            if on_batch is not None:
                progress.set_postfix_str(on_batch(len(batch), time.monotonic() - started))
    finally:
        if had_encoders:
            model.reload_encoders()
        else:
            model.release_encoders()


def _embed_prompts(model: VideoModel, samples: Iterable[Sample]) -> dict[str, Conditioning]:
    """Return prompt id -> embedding, on the CPU (4 MB each for Wan 2.1). Equal contents are embedded once."""
    rows = {sample.prompt_id: sample.row for sample in samples}
    contents = {prompt_id: model.row_content(row) for prompt_id, row in rows.items()}
    distinct = {content: rows[prompt_id] for prompt_id, content in contents.items()}
    embeddings = {
        content: {name: tensor.cpu() for name, tensor in model.encode_rows([row]).items()}
        for content, row in distinct.items()
    }
    return {prompt_id: embeddings[content] for prompt_id, content in contents.items()}
