"""A folder of videos that exist already, from any model, as samples that can be scored."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from spatialalign_trl.files import read_json, write_json
from spatialalign_trl.rollout.store import Sample, SampleStore, plain
from spatialalign_trl.rollout.video_names import VIDEO_SUFFIXES, read_video_name, videos_in
from spatialalign_trl.video import Video, read_video


class VideoFolder:
    """
    Videos named as the authors name theirs (`{prompt_id}_F81_seed{ss}.mp4`; both endings may be missing), or samples
    as `SampleStore` leaves them, whose records say what they are. Nothing is written into the folder.

    Args:
        folder (`Path`):
            The videos.
        rows (sequence of `dict`):
            The prompts; videos of others are left out. Empty: the records beside the videos say the prompts.
        scores_dir (`Path`):
            Where scores are kept, by what is in the videos: a changed file is scored again.

    Attributes:
        samples (`list[Sample]`): By the order of the prompts, then by seed.
        problems (`list[str]`): Videos and prompts that fit nothing.

    Raises:
        ValueError: when no video fits a prompt.
    """

    def __init__(self, folder: Path, rows: Sequence[Mapping[str, Any]], scores_dir: Path) -> None:
        self.folder = folder
        self.scores_dir = scores_dir
        self.problems: list[str] = []
        self._rows = {str(row["prompt_id"]): dict(row) for row in rows}
        self._paths: dict[str, Path] = {}
        self._samples: dict[str, Sample] = {}
        taken: dict[tuple[str, str, int], Path] = {}
        for path in videos_in(folder):
            try:
                sample = self._sample(path)
            except ValueError as error:
                self.problems.append(f"{path}: {error}")
                continue
            if sample is None:
                continue
            key = (sample.policy_revision, sample.prompt_id, sample.seed)
            if key in taken:
                self.problems.append(f"{path}: left out, {taken[key].name} is of the same prompt and seed")
                continue
            taken[key] = path
            self._samples[sample.sample_id], self._paths[sample.sample_id] = sample, path
        if not self._samples:
            why = "\n  ".join(self.problems[:3]) or f"it holds no video ({', '.join(VIDEO_SUFFIXES)}) of these prompts"
            raise ValueError(f"no video in {folder} fits a prompt: {why}")
        order = {prompt_id: place for place, prompt_id in enumerate(self._rows)}
        self.samples = sorted(
            self._samples.values(), key=lambda one: (order.get(one.prompt_id, 0), one.prompt_id, one.seed)
        )
        missing = [prompt_id for prompt_id in self._rows if all(one.prompt_id != prompt_id for one in self.samples)]
        if missing:
            named = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            self.problems.append(f"{folder}: {len(missing)} prompts have no video ({named})")

    def by_policy(self) -> dict[str, list[Sample]]:
        """The samples with their scores by what sampled them, the base first, as far as their records tell."""
        revisions = sorted({one.policy_revision for one in self.samples}, key=lambda r: (not r.endswith("@base"), r))
        samples = [self.load(one.sample_id) for one in self.samples]
        return {name: [one for one in samples if one.policy_revision == name] for name in revisions}

    def _sample(self, path: Path) -> Sample | None:
        """What a file is; `None` when it is of a prompt that is not asked for.

        Raises:
            ValueError: when it is of no prompt, or not what its record says.
        """
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        record = path.with_suffix(".json")
        settings, revision = {"video_sha256": digest}, ""
        if record.is_file():
            found = read_json(record)
            try:
                prompt_id, seed, revision = str(found["prompt_id"]), int(found["seed"]), str(found["policy_revision"])
                row, written = dict(found["row"]), found["files"]["video"]["sha256"]
                settings |= {"fps": found["settings"]["fps"]} if "fps" in found["settings"] else {}
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{record.name} is not the record of a sample ({error!r})") from error
            if written != digest:
                raise ValueError("damaged: its checksum is not the one in its record")
            if self._rows and prompt_id not in self._rows:
                return None
            if self._rows and self._rows[prompt_id]["prompt"] != row.get("prompt"):
                raise ValueError(f"its record has another prompt for {prompt_id!r}: {row.get('prompt')!r}")
            row = self._rows.get(prompt_id, row)
        else:
            if not self._rows:
                raise ValueError("no record (.json) lies beside it; give the prompts")
            prompt_id, number = read_video_name(path.stem, self._rows)
            if prompt_id not in self._rows:
                raise ValueError(f"the prompts have no prompt_id {prompt_id!r}")
            row, seed = self._rows[prompt_id], number or 0
        return SampleStore.new_sample(row, seed, settings, revision)

    # What scoring asks of a store

    def path(self, sample_id: str) -> Path:
        """The video's file."""
        return self._paths[sample_id]

    def video(self, sample_id: str) -> Video:
        """The video."""
        return read_video(self._paths[sample_id])

    def load(self, sample_id: str) -> Sample:
        """The sample with its scores, if it has any."""
        file = self.scores_dir / f"{sample_id}.json"
        if not file.is_file():
            return self._samples[sample_id]
        scores = read_json(file)
        return replace(self._samples[sample_id], scored=True, **scores)

    def write_scores(
        self,
        sample_id: str,
        rewards: Mapping[str, float | None],
        reward: float | None,
        components: Mapping[str, Any] | None = None,
    ) -> Sample:
        """Writes what the rewards said about a video."""
        scores = {"rewards": dict(rewards), "reward": reward, "components": dict(components or {})}
        write_json(self.scores_dir / f"{sample_id}.json", plain(scores, nan_is_none=True))
        return self.load(sample_id)
