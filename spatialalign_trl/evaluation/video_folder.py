"""A folder of existing videos, from any model, read as samples that can be scored."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from spatialalign_trl.files import read_json, write_json
from spatialalign_trl.rollout.store import Sample, SampleStore, plain
from spatialalign_trl.rollout.video_names import VIDEO_SUFFIXES, read_video_name, videos_in
from spatialalign_trl.video import Video, VideoError, read_fps, read_video


class VideoFolder:
    """
    A folder of existing videos, read as samples.

    The files are named as the paper's authors name theirs (`{prompt_id}_F81_seed{ss}.mp4`; both suffixes may be
    missing), or they are samples of a [`SampleStore`] with their records. Nothing is written into the folder. It reads
    videos and scores as a `SampleStore` does, so that `score_samples` takes it in place of one.

    Args:
        folder (`Path`):
            The folder of the videos.
        rows (sequence of `dict`):
            The prompts. Videos of other prompts are left out. If empty, the prompts are read from the records next to
            the videos.
        scores_dir (`Path`):
            Where scores are kept, keyed by the content of the videos: a changed file is scored again.

    Attributes:
        samples (`list[Sample]`):
            The samples, in the order of the prompts, then by seed.
        problems (`list[str]`):
            Videos that are left out and prompts without a video, with the reason.

    Raises:
        ValueError: If no video fits a prompt.
    """

    def __init__(self, folder: Path, rows: Sequence[Mapping[str, Any]], scores_dir: Path) -> None:
        self.folder = folder
        self.scores_dir = scores_dir
        self.problems: list[str] = []
        self._rows = {str(row["prompt_id"]): dict(row) for row in rows}
        self._paths: dict[str, Path] = {}
        self._samples: dict[str, Sample] = {}

        # 1. Read what each file is, and leave out what fits no prompt.
        paths: dict[tuple[str, str, int], Path] = {}
        for path in videos_in(folder):
            try:
                sample = self._read_sample(path)
            except ValueError as error:
                self.problems.append(f"{path}: {error}")
                continue
            if sample is None:
                continue
            key = (sample.policy_revision, sample.prompt_id, sample.seed)
            if key in paths:
                self.problems.append(f"{path}: left out, {paths[key].name} is of the same prompt and seed")
                continue
            paths[key] = path
            self._samples[sample.sample_id], self._paths[sample.sample_id] = sample, path
        if not self._samples:
            reason = (
                "\n  ".join(self.problems[:3]) or f"it holds no video ({', '.join(VIDEO_SUFFIXES)}) of these prompts"
            )
            raise ValueError(f"no video in {folder} fits a prompt: {reason}")

        # 2. Order the samples as the prompts are ordered, and report the prompts without a video.
        order = {prompt_id: index for index, prompt_id in enumerate(self._rows)}
        self.samples = sorted(
            self._samples.values(),
            key=lambda sample: (order.get(sample.prompt_id, 0), sample.prompt_id, sample.seed),
        )
        sampled = {sample.prompt_id for sample in self.samples}
        missing = [prompt_id for prompt_id in self._rows if prompt_id not in sampled]
        if missing:
            named = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            self.problems.append(f"{folder}: {len(missing)} prompts have no video ({named})")

    def by_policy(self) -> dict[str, list[Sample]]:
        """
        Return the samples with their scores by the policy that sampled them, as far as their records name it.

        Returns:
            `dict[str, list[Sample]]`: Policy revision -> its samples; base models come first.
        """
        revisions = {sample.policy_revision for sample in self.samples}
        revisions = sorted(revisions, key=lambda revision: (not revision.endswith("@base"), revision))
        samples = [self.load(sample.sample_id) for sample in self.samples]
        return {
            revision: [sample for sample in samples if sample.policy_revision == revision] for revision in revisions
        }

    def _read_sample(self, path: Path) -> Sample | None:
        """Identify a file; return `None` for a prompt that is not asked for, raise `ValueError` if it is damaged."""
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        settings, revision = {"video_sha256": digest}, ""
        record_path = path.with_suffix(".json")
        if record_path.is_file():
            record = read_json(record_path)
            try:
                prompt_id, seed = str(record["prompt_id"]), int(record["seed"])
                revision, row = str(record["policy_revision"]), dict(record["row"])
                recorded_digest = record["files"]["video"]["sha256"]
                settings |= {"fps": record["settings"]["fps"]} if "fps" in record["settings"] else {}
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{record_path.name} is not the record of a sample ({error!r})") from error
            if recorded_digest != digest:
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
        sample = SampleStore.new_sample(row, seed, settings, revision)
        if "fps" not in settings:
            # Frames alone do not show the speed of a motion. The id stays that of the content, and finds known scores.
            with suppress(VideoError):  # raised again, where the video is read
                sample = replace(sample, settings=settings | {"fps": read_fps(path)})
        return sample

    # The methods of a SampleStore that scoring uses

    def path(self, sample_id: str) -> Path:
        """
        Return the path of a sample's video.

        Args:
            sample_id (`str`):
                The sample's id.
        """
        return self._paths[sample_id]

    def video(self, sample_id: str) -> Video:
        """
        Read a sample's video.

        Args:
            sample_id (`str`):
                The sample's id.

        Returns:
            `np.ndarray` of shape (frames, height, width, 3): The video, `uint8`.
        """
        return read_video(self._paths[sample_id])

    def load(self, sample_id: str) -> Sample:
        """
        Load a sample, with its scores if it has any.

        Args:
            sample_id (`str`):
                The sample's id.
        """
        file = self.scores_dir / f"{sample_id}.json"
        if not file.is_file():
            return self._samples[sample_id]
        return replace(self._samples[sample_id], scored=True, **read_json(file))

    def write_scores(
        self,
        sample_id: str,
        rewards: Mapping[str, float | None],
        reward: float | None,
        components: Mapping[str, Any] | None = None,
    ) -> Sample:
        """
        Write a sample's scores into `scores_dir`.

        Args:
            sample_id (`str`):
                The sample's id.
            rewards (`Mapping[str, float | None]`):
                Reward -> its value; `None` is INVALID.
            reward (`float`, *optional*):
                The combination of all rewards; `None` is INVALID.
            components (`Mapping[str, Any]`, *optional*):
                What the rewards logged.

        Returns:
            [`Sample`]: The sample with its scores.
        """
        scores = {"rewards": dict(rewards), "reward": reward, "components": dict(components or {})}
        write_json(self.scores_dir / f"{sample_id}.json", plain(scores, nan_is_none=True))
        return self.load(sample_id)
