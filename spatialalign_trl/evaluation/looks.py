"""Measure the quality guards on stored videos. Values are kept by sample, so a rerun measures only what is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tqdm import tqdm

from spatialalign_trl.evaluation.guards import (
    WHOLE_SET,
    Guard,
    get_guard,
    mean_of,
    needs_baseline,
    prepare_guard,
    release_guard,
    run_guard,
)
from spatialalign_trl.files import read_json, write_json
from spatialalign_trl.video import Video

if TYPE_CHECKING:
    from accelerate import Accelerator, PartialState

    from spatialalign_trl.rollout.store import Sample


class Videos(Protocol):
    """A store that reads videos by sample id."""

    def video(self, sample_id: str) -> Video: ...


class StoredVideos(Sequence):
    """
    A sequence of videos, each read from its store on access: all of them would not fit into memory.

    Args:
        store ([`Videos`]):
            The store of the videos.
        samples (sequence of [`Sample`]):
            The videos' samples.
    """

    def __init__(self, store: Videos, samples: Sequence[Sample]) -> None:
        self.store = store
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Video:
        return self.store.video(self.samples[index].sample_id)


class QualityMeasures:
    """
    The quality guards of an evaluation, and the values that they have measured.

    Args:
        specs (sequence of `str`):
            Guards as [`~spatialalign_trl.evaluation.guards.get_guard`] takes them.
        folder (`Path`):
            Where the values are kept, one JSON file per sample.
        rows (sequence of `dict`, *optional*):
            The prompts, which a guard may refuse.
        accelerator (`Accelerator` or `PartialState`, *optional*):
            The processes that share the videos.
        extra (`Mapping[str, Guard]`, *optional*):
            Guards that no spec can create, by the name that their values are stored under.

    Raises:
        ValueError: For an unknown guard, or prompts that a guard cannot measure.
        ImportError, FileNotFoundError, ConnectionError: For a package or a checkpoint that a guard needs.
    """

    def __init__(
        self,
        specs: Sequence[str],
        folder: Path,
        rows: Sequence[Mapping[str, Any]] = (),
        accelerator: Accelerator | PartialState | None = None,
        extra: Mapping[str, Guard] | None = None,
    ) -> None:
        self.guards: dict[str, Guard] = {spec: get_guard(spec) for spec in dict.fromkeys(specs)} | dict(extra or {})
        self.folder = folder
        self.accelerator = accelerator
        for spec, guard in self.guards.items():
            prepare_guard(spec, guard, rows)

    def measure(
        self,
        store: Videos,
        samples: Sequence[Sample],
        base: Sequence[tuple[Videos, Sample] | None] | None = None,
        desc: str = "measuring quality",
    ) -> tuple[dict[str, float | None], dict[str, list[float | None]]]:
        """
        Measure what is missing, and read the rest.

        Args:
            store ([`Videos`]):
                The store of the videos.
            samples (sequence of [`Sample`]):
                The videos' samples.
            base (sequence of `(Videos, Sample)` or `None`, *optional*):
                For each sample the baseline's video of the same prompt and seed, `None` where there is none.
            desc (`str`, *optional*, defaults to `"measuring quality"`):
                Text of the progress bar.

        Returns:
            `tuple[dict[str, float | None], dict[str, list[float | None]]]`: The mean of every measure, and the
            measures that have one value per video, in the order of the samples.
        """
        per_video_guards = {spec: guard for spec, guard in self.guards.items() if spec not in WHOLE_SET}
        partners = list(base) if base is not None else [None] * len(samples)
        pairs = list(zip(samples, partners, strict=True))

        # 1. Every process measures its share of the videos and writes the values into files.
        rank, world = (self.accelerator.process_index, self.accelerator.num_processes) if self.accelerator else (0, 1)
        share = [pair for pair in pairs[rank::world] if self._missing(per_video_guards, *pair)]
        for sample, partner in tqdm(share, desc=desc, unit="video", disable=rank != 0 or not share):
            self._measure_video(per_video_guards, store, sample, partner)
        if self.accelerator:
            self.accelerator.wait_for_everyone()

        # 2. Every process reads the values of all videos.
        stored = [self._stored(per_video_guards, *pair) for pair in pairs]
        names = dict.fromkeys(name for values in stored for name in values)
        measures: dict[str, Any] = {name: [values.get(name) for values in stored] for name in names}

        # 3. A measure of the whole set cannot be put together from parts, so every process computes it.
        if samples:
            rows = [sample.row for sample in samples]
            for spec, guard in self.guards.items():
                if spec in WHOLE_SET:
                    measures |= run_guard(spec, guard, StoredVideos(store, samples), rows)
        per_video = {name: value for name, value in measures.items() if isinstance(value, list)}
        return {name: mean_of(value) for name, value in measures.items()}, per_video

    def release(self) -> None:
        """Free the guards' models."""
        for spec, guard in self.guards.items():
            release_guard(spec, guard)

    def _file(self, sample: Sample) -> Path:
        return self.folder / f"{sample.sample_id}.json"

    def _read(self, sample: Sample) -> dict[str, dict[str, float | None]]:
        file = self._file(sample)
        return read_json(file) if file.is_file() else {}

    def _missing(
        self, guards: Mapping[str, Guard], sample: Sample, partner: tuple[Videos, Sample] | None
    ) -> dict[str, Guard]:
        """Return the guards that have not measured the video yet, by the key of their values."""
        stored = self._read(sample)
        keys = {key: spec for spec, guard in guards.items() if (key := _key(spec, guard, partner))}
        return {key: guards[spec] for key, spec in keys.items() if key not in stored}

    def _measure_video(
        self, guards: Mapping[str, Guard], store: Videos, sample: Sample, partner: tuple[Videos, Sample] | None
    ) -> None:
        missing, video = self._missing(guards, sample, partner), store.video(sample.sample_id)
        row = {"fps": sample.settings["fps"], **sample.row} if "fps" in sample.settings else sample.row
        for key, guard in missing.items():
            base_videos = None
            if needs_baseline(guard):
                base_store, base_sample = partner
                base_videos = [base_store.video(base_sample.sample_id)]
            # A copy: a guard may write into its video, which must not change what the next one measures.
            measured = run_guard(key, guard, [video.copy()], [row], base_videos)
            values = {name: value[0] if isinstance(value, list) else value for name, value in measured.items()}
            # Written after each guard, so that an interrupted run keeps what is finished.
            write_json(self._file(sample), self._read(sample) | {key: values})

    def _stored(
        self, guards: Mapping[str, Guard], sample: Sample, partner: tuple[Videos, Sample] | None
    ) -> dict[str, float | None]:
        """Return the values of these guards from the sample's file."""
        stored, values = self._read(sample), {}
        for spec, guard in guards.items():
            values |= stored.get(_key(spec, guard, partner) or "", {})
        return values


def _key(spec: str, guard: Guard, partner: tuple[Videos, Sample] | None) -> str | None:
    """Return the key that a guard's values are stored under; `None` if it has no video to compare with."""
    if not needs_baseline(guard):
        return spec
    return None if partner is None else f"{spec} from {partner[1].sample_id}"
