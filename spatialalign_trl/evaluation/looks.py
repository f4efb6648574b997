"""Measuring the guards on stored videos, each once: measures are kept by sample, and found again by a rerun."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tqdm import tqdm

from spatialalign_trl.evaluation.guards import WHOLE_SET, Guard, get_guard, mean_of, needs_baseline
from spatialalign_trl.files import read_json, write_json
from spatialalign_trl.video import Video

if TYPE_CHECKING:
    from accelerate import Accelerator

    from spatialalign_trl.rollout.store import Sample


class Videos(Protocol):
    """What is asked of a store."""

    def video(self, sample_id: str) -> Video: ...


class StoredVideos(Sequence):
    """Videos that are read when they are looked at: all at once would not fit into memory."""

    def __init__(self, store: Videos, samples: Sequence[Sample]) -> None:
        self.store = store
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, place: int) -> Video:
        return self.store.video(self.samples[place].sample_id)


class Looks:
    """
    The guards of an evaluation.

    Args:
        specs (sequence of `str`): As `get_guard` takes them.
        folder (`Path`): Where measures are kept.
        rows (sequence of `dict`, *optional*): The prompts, which guards may refuse.
        accelerator (`Accelerator`, *optional*): Deals the videos over the processes.
        own (`Mapping[str, Guard]`, *optional*): Guards that no spec can make, by the name that their measures are kept
            under.

    Raises:
        ValueError: for an unknown guard, or prompts that a guard cannot judge.
        ImportError, FileNotFoundError, ConnectionError: for a package or a checkpoint that a guard lacks.
    """

    def __init__(
        self,
        specs: Sequence[str],
        folder: Path,
        rows: Sequence[Mapping[str, Any]] = (),
        accelerator: Accelerator | None = None,
        own: Mapping[str, Guard] | None = None,
    ) -> None:
        self.guards: dict[str, Guard] = {spec: get_guard(spec) for spec in dict.fromkeys(specs)} | dict(own or {})
        self.folder = folder
        self.accelerator = accelerator
        for guard in self.guards.values():
            if hasattr(guard, "prepare"):
                guard.prepare()
            if hasattr(guard, "check_prompts"):
                guard.check_prompts(rows)

    def measure(
        self,
        store: Videos,
        samples: Sequence[Sample],
        base: Sequence[tuple[Videos, Sample] | None] | None = None,
        desc: str = "looking",
    ) -> tuple[dict[str, float | None], dict[str, list[float | None]]]:
        """
        Measures what is missing.

        Args:
            store: where the videos lie.
            samples: the videos.
            base: the baseline's video of the same prompt and seed for each, where there is one.
            desc: of the progress bar.

        Returns:
            The mean of every measure, and those that have a value a video.
        """
        whole = {spec: guard for spec, guard in self.guards.items() if spec in WHOLE_SET}
        single = {spec: guard for spec, guard in self.guards.items() if spec not in WHOLE_SET}
        partners = list(base) if base is not None else [None] * len(samples)
        rank, world = (self.accelerator.process_index, self.accelerator.num_processes) if self.accelerator else (0, 1)
        jobs = list(zip(samples, partners, strict=True))
        mine = [job for job in jobs[rank::world] if self._missing(single, *job)]
        for sample, partner in tqdm(mine, desc=desc, unit="video", disable=rank != 0 or not mine):
            self._measure_one(single, store, sample, partner)
        if self.accelerator:
            self.accelerator.wait_for_everyone()
        found = [self._known(single, *job) for job in jobs]
        names = dict.fromkeys(name for one in found for name in one)
        measures: dict[str, Any] = {name: [one.get(name) for one in found] for name in names}
        for guard in whole.values() if samples else ():
            measures |= guard(StoredVideos(store, samples), [sample.row for sample in samples])
        per_video = {name: value for name, value in measures.items() if isinstance(value, list)}
        return {name: mean_of(value) for name, value in measures.items()}, per_video

    def release(self) -> None:
        """Frees the guards' models."""
        for guard in self.guards.values():
            if hasattr(guard, "release"):
                guard.release()

    def _file(self, sample: Sample) -> Path:
        return self.folder / f"{sample.sample_id}.json"

    def _read(self, sample: Sample) -> dict[str, dict[str, float | None]]:
        file = self._file(sample)
        return read_json(file) if file.is_file() else {}

    def _missing(
        self, guards: Mapping[str, Guard], sample: Sample, partner: tuple[Videos, Sample] | None
    ) -> dict[str, Guard]:
        """Those of the guards that have not looked at the video yet."""
        there = self._read(sample)
        asked = {key: spec for spec, guard in guards.items() if (key := _key(spec, guard, partner))}
        return {key: guards[spec] for key, spec in asked.items() if key not in there}

    def _measure_one(
        self, guards: Mapping[str, Guard], store: Videos, sample: Sample, partner: tuple[Videos, Sample] | None
    ) -> None:
        missing, video = self._missing(guards, sample, partner), store.video(sample.sample_id)
        row = {"fps": sample.settings["fps"], **sample.row} if "fps" in sample.settings else sample.row
        for key, guard in missing.items():
            if needs_baseline(guard):
                base_store, base_sample = partner
                measured = guard([video], [row], base_videos=[base_store.video(base_sample.sample_id)])
            else:
                measured = guard([video], [row])
            write_json(self._file(sample), self._read(sample) | {key: {name: v[0] for name, v in measured.items()}})

    def _known(
        self, guards: Mapping[str, Guard], sample: Sample, partner: tuple[Videos, Sample] | None
    ) -> dict[str, float | None]:
        there, known = self._read(sample), {}
        for spec, guard in guards.items():
            known |= there.get(_key(spec, guard, partner) or "", {})
        return known


def _key(spec: str, guard: Guard, partner: tuple[Videos, Sample] | None) -> str | None:
    """What a measure is kept under; `None` where the guard has nothing to compare with."""
    if not needs_baseline(guard):
        return spec
    return None if partner is None else f"{spec} from {partner[1].sample_id}"
