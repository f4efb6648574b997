"""A folder of existing videos, from any model, read as samples that can be scored."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from spatialalign_trl.errors import reason_of
from spatialalign_trl.files import read_json
from spatialalign_trl.rollout.score_files import write_score_file
from spatialalign_trl.rollout.store import Sample, SampleStore, plain
from spatialalign_trl.rollout.video_files import (
    FoundVideo,
    folder_content,
    identify_video,
    why_unidentified,
    without_repetition,
)
from spatialalign_trl.text_files import same_text
from spatialalign_trl.video import Video, VideoError, read_fps, read_video


class UnreadableVideosError(ValueError):
    """A folder of videos, none of which can be read. The message lists them."""


class VideoFolder:
    """
    A folder of existing videos, read as samples.

    The files are named as the paper's authors name theirs (`{prompt_id}_F81_seed{ss}.mp4`; both suffixes may be
    missing), or they are samples of a [`SampleStore`] with their records; see `rollout/video_files.py`. Nothing is
    written into the folder. It reads videos and scores as a `SampleStore` does, so that `score_samples` takes it in
    place of one.

    Args:
        folder (`Path`):
            The folder of the videos.
        rows (sequence of `dict`):
            The prompts. If empty, the prompts are read from the records next to the videos.
        scores_dir (`Path`):
            Where scores are kept, keyed by the content of the videos: a changed file is scored again.
        unwanted (collection of `str`, *optional*):
            Ids of prompts whose videos are left out on purpose, so that they are no problem.

    Attributes:
        samples (`list[Sample]`):
            The samples, in the order of the prompts, then by seed.
        problems (`list[str]`):
            Videos that are left out and prompts without a video, with the reason.

    Raises:
        ValueError: If no video fits a prompt, or the folder cannot be read.
    """

    def __init__(
        self, folder: Path, rows: Sequence[Mapping[str, Any]], scores_dir: Path, unwanted: Collection[str] = ()
    ) -> None:
        self.folder = folder
        self.scores_dir = scores_dir
        self._rows = {same_text(str(row["prompt_id"])): dict(row) for row in rows}
        self._paths: dict[str, Path] = {}
        self._samples: dict[str, Sample] = {}
        unwanted = {same_text(prompt_id) for prompt_id in unwanted}

        # 1. Find out what each file is, and leave out what fits no prompt.
        try:
            content = folder_content(folder, ignore=[scores_dir.parent])
        except OSError as error:
            raise ValueError(f"the folder {folder} cannot be read ({error.strerror}).") from error
        left_out = dict(content.left_out)
        found, strangers = [], []
        for path in content.videos:
            try:
                video = identify_video(path, self._rows.keys() | unwanted)
            except ValueError as error:
                left_out[path] = str(error)
                continue
            if video is None:
                left_out[path] = why_unidentified(path)
            elif video.prompt_id in self._rows or not self._rows:
                found.append(video)
            elif video.record is not None and video.prompt_id not in unwanted:
                strangers.append(video)
            elif video.prompt_id not in unwanted:
                left_out[path] = f"the prompts have no prompt_id {video.prompt_id!r}"
        found, repeated = without_repetition(found)
        left_out |= repeated

        # 2. Make a sample of each, identified by its prompt, seed and content.
        for video in found:
            try:
                sample = self._sample_of(video)
            except (OSError, ValueError) as error:
                left_out[video.path] = reason_of(error, video.path)
                continue
            self._samples[sample.sample_id], self._paths[sample.sample_id] = sample, video.path
        self.problems = [f"{path}: {why}" for path, why in left_out.items()]
        if strangers:  # a run's folder also has the samples that it was trained on
            ids = dict.fromkeys(video.prompt_id for video in strangers)
            self.problems.append(f"{folder}: {len(strangers)} samples are of other prompts ({_some(ids)})")
        if not self._samples:
            reason = "\n  ".join(self.problems[:3]) or "it holds no video of these prompts"
            raise ValueError(f"no video in {folder} fits a prompt: {reason}")

        # 3. Order the samples as the prompts are ordered, and report the prompts without a video.
        order = {row["prompt_id"]: index for index, row in enumerate(self._rows.values())}
        self.samples = sorted(
            self._samples.values(),
            key=lambda sample: (order.get(sample.prompt_id, 0), sample.prompt_id, sample.seed),
        )
        sampled = {sample.prompt_id for sample in self.samples}
        missing = [prompt_id for prompt_id in order if prompt_id not in sampled]
        if missing:
            self.problems.append(f"{folder}: {len(missing)} prompts have no video ({_some(missing)})")

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

    def _sample_of(self, video: FoundVideo) -> Sample:
        """Make the sample of a video; raise `ValueError` if it is not what its record describes."""
        digest = hashlib.sha256(video.path.read_bytes()).hexdigest()
        settings, row = {"video_sha256": digest}, self._rows.get(video.prompt_id)
        if video.record is not None:
            recorded = video.record["row"]
            if video.record["fps"] is not None:
                settings["fps"] = video.record["fps"]
            if video.sha256 not in (None, digest):
                raise ValueError("damaged: its checksum is not the one in its record")
            if row is not None and row["prompt"] != recorded.get("prompt"):
                raise ValueError(f"its record has another prompt for {video.prompt_id!r}: {recorded.get('prompt')!r}")
            row = row or recorded | {"prompt_id": video.prompt_id}
        sample = SampleStore.new_sample(row, video.seed or 0, settings, video.policy_revision)
        if "fps" not in settings:
            # Frames alone do not show the speed of a motion. The id stays that of the content, and finds known scores.
            with suppress(VideoError):  # raised again, where the video is read
                sample = replace(sample, settings=settings | {"fps": read_fps(video.path)})
        return sample

    def drop_unreadable(self, samples: Sequence[Sample]) -> tuple[list[Sample], list[str]]:
        """
        Leave out the samples that could not be scored because their videos cannot be read.

        Args:
            samples (sequence of [`Sample`]):
                The samples after scoring.

        Returns:
            The samples that were scored, and the problems of the others.

        Raises:
            UnreadableVideosError: If none was.
        """
        problems = []
        for sample in samples:
            if not sample.scored:
                path = self._paths[sample.sample_id]
                try:
                    self.video(sample.sample_id)
                    why = "it could not be read when it was its turn. Run the same command again"
                except Exception as error:  # whatever a damaged file makes of the decoder
                    why = reason_of(error, path)
                problems.append(f"{path}: {why}")
        scored = [sample for sample in samples if sample.scored]
        if samples and not scored:
            raise UnreadableVideosError(f"no video in {self.folder} can be read:\n  " + "\n  ".join(problems))
        return scored, problems

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
        Write a sample's scores into `scores_dir`. Other scores that it had are kept in `<id>.replaced-N.json`.

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
        write_score_file(self.scores_dir / f"{sample_id}.json", plain(scores, nan_is_none=True))
        return self.load(sample_id)


def _some(names: Iterable[str]) -> str:
    """Join the first five names."""
    names = list(names)
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
