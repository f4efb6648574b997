"""Samples on disk: a sample costs minutes of GPU time, so it is never overwritten, and a crash loses none that was
written.

A sample is four files whose names begin with its id:

    <id>.mp4            the video
    <id>.safetensors    its latents (one tensor, "latents")
    <id>.json           what it was made from, and the sizes and checksums of the two files above
    <id>.scores.json    what the rewards said, once they did

`<id>.json` is written last, so a sample exists if and only if its `.json` does and agrees with the other files.
Anything else (a process killed between two files, a full disk, a bad copy) is noticed, reported and made again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch

from spatialalign_trl.files import read_json, remove_leftovers, write_atomic, write_json
from spatialalign_trl.video import Video, encode_video, read_video

_SAMPLE_ID = re.compile(r"[0-9a-f]{20}")
_SUFFIXES = {"video": ".mp4", "latents": ".safetensors"}


@dataclasses.dataclass
class Sample:
    """
    A sample: what it was made from and what was said about it. Its video and latents are read from the store.

    Args:
        sample_id (`str`):
            20 hexadecimal digits that the inputs below determine.
        prompt_id (`str`):
            The prompt's id.
        row (`dict`):
            The prompt's columns.
        seed (`int`):
            The seed as asked for; the noise comes from the seed and the prompt's id.
        settings (`dict`):
            The sampling settings.
        policy_revision (`str`):
            Which weights sampled it.
        rewards (`dict[str, float | None]`):
            One value a reward; `None` = INVALID.
        reward (`float`, *optional*):
            The weighted sum; `None` = INVALID when `scored`, else not known yet.
        scored (`bool`):
            Whether the rewards have been asked.
        components (`dict`):
            What rewards logged beside their values.
    """

    sample_id: str
    prompt_id: str
    row: dict[str, Any]
    seed: int
    settings: dict[str, Any]
    policy_revision: str
    rewards: dict[str, float | None] = dataclasses.field(default_factory=dict)
    reward: float | None = None
    scored: bool = False
    components: dict[str, Any] = dataclasses.field(default_factory=dict)


def plain(value: Any, *, nan_is_none: bool = False) -> Any:
    """NumPy and torch numbers as Python ones, tuples as lists, so that the same value always has the same JSON."""
    if isinstance(value, Mapping):
        return {str(key): plain(item, nan_is_none=nan_is_none) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(item, nan_is_none=nan_is_none) for item in value]
    if isinstance(value, (np.generic, torch.Tensor)):
        value = value.item()
    if nan_is_none and isinstance(value, float) and not math.isfinite(value):
        return None
    return value


class SampleStore:
    """
    A folder of samples.

    Args:
        directory (`str` or `os.PathLike`):
            The folder; made if it is missing. Several processes may share it, on a shared file system.
    """

    def __init__(self, directory: str | os.PathLike) -> None:
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        # Checksums are compared once a process and sample; sizes every time.
        self._verified: set[str] = set()

    @staticmethod
    def sample_id(row: Mapping[str, Any], seed: int, settings: Mapping[str, Any], policy_revision: str) -> str:
        """
        The id that a sample's inputs determine: 20 hexadecimal digits of the SHA-256 of their canonical JSON.

        Raises:
            TypeError, ValueError: when an input has no JSON form.
        """
        inputs = {
            "row": plain(row),
            "seed": int(seed),
            "settings": plain(settings),
            "policy_revision": str(policy_revision),
        }
        try:
            text = json.dumps(inputs, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise type(error)(f"the sample of prompt {row.get('prompt_id')!r} has no id: {error}") from error
        return hashlib.sha256(text.encode("utf-8")).hexdigest()[:20]

    @classmethod
    def new_sample(
        cls, row: Mapping[str, Any], seed: int, settings: Mapping[str, Any], policy_revision: str
    ) -> Sample:
        """The sample that these inputs make, not yet in the store."""
        return Sample(
            sample_id=cls.sample_id(row, seed, settings, policy_revision),
            prompt_id=str(row["prompt_id"]),
            row=plain(row),
            seed=int(seed),
            settings=plain(settings),
            policy_revision=str(policy_revision),
        )

    def path(self, sample_id: str, suffix: str = ".json") -> Path:
        """Path of one of a sample's files; an id that is none is refused before it becomes a file name."""
        if not isinstance(sample_id, str) or not _SAMPLE_ID.fullmatch(sample_id):
            raise ValueError(f"{sample_id!r} is no sample id (20 hexadecimal digits).")
        return self.directory / f"{sample_id}{suffix}"

    # Writing

    def add(self, sample: Sample, video: Video, latents: torch.Tensor, fps: float, crf: int = 18) -> Sample:
        """
        Put a sample into the store. One that is already there, whole, is kept as it is.

        Args:
            sample ([`Sample`]):
                From [`~SampleStore.new_sample`].
            video (`np.ndarray` of shape (frames, height, width, 3), `uint8`):
                The video.
            latents (`torch.Tensor` of shape (channels, frames, height, width)):
                The latents the video was decoded from.
            fps (`float`):
                Frames per second of the mp4.
            crf (`int`, *optional*, defaults to `18`):
                Quality of the mp4; 0 is lossless. See [`encode_video`].

        Returns:
            [`Sample`]: the sample.

        Raises:
            ValueError: when the sample's id is not that of its inputs.
        """
        expected = self.sample_id(sample.row, sample.seed, sample.settings, sample.policy_revision)
        if sample.sample_id != expected:
            raise ValueError(f"the inputs of sample {sample.sample_id!r} make the id {expected!r}; use new_sample.")
        if self.has(sample.sample_id):
            return sample
        contents = {
            "video": encode_video(video, fps, crf),
            "latents": safetensors.torch.save({"latents": latents.detach().cpu().contiguous()}),
        }
        # Where a damaged sample is made again, its scores belong to the video that is gone.
        self.path(sample.sample_id, ".scores.json").unlink(missing_ok=True)
        for name, data in contents.items():
            write_atomic(self.path(sample.sample_id, _SUFFIXES[name]), data)
        record = {
            "prompt_id": sample.prompt_id,
            "row": sample.row,
            "seed": sample.seed,
            "settings": sample.settings,
            "policy_revision": sample.policy_revision,
            "files": {
                name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
                for name, data in contents.items()
            },
        }
        write_json(self.path(sample.sample_id), record)
        self._verified.add(sample.sample_id)
        return sample

    def write_scores(
        self,
        sample_id: str,
        rewards: Mapping[str, float | None],
        reward: float | None,
        components: Mapping[str, Any] | None = None,
    ) -> Sample:
        """
        Write what the rewards said about a sample; NaN becomes `None` (INVALID).

        Args:
            sample_id (`str`):
                A sample of this store.
            rewards (`dict[str, float | None]`):
                One value a reward.
            reward (`float`, *optional*):
                Their weighted sum.
            components (`dict`, *optional*):
                Anything JSON can hold that the rewards logged.

        Returns:
            [`Sample`]: the sample with its scores.
        """
        self._require(sample_id)
        scores = {"rewards": dict(rewards), "reward": reward, "components": dict(components or {})}
        write_json(self.path(sample_id, ".scores.json"), plain(scores, nan_is_none=True))
        return self.load(sample_id)

    def clean(self) -> list[Path]:
        """Delete the temporary files of processes that were killed; those of living ones are left alone."""
        return remove_leftovers(self.directory)

    # Reading

    def has(self, sample_id: str) -> bool:
        """Whether the sample is there and whole. A damaged one is reported by a warning, and counts as missing."""
        if self._record(sample_id) is None:
            return False
        if sample_id not in self._verified:
            for name in _SUFFIXES:
                try:
                    self._bytes(sample_id, name)
                except ValueError as error:
                    warnings.warn(f"{error} It counts as missing and will be made again.", stacklevel=2)
                    return False
            self._verified.add(sample_id)
        return True

    def load(self, sample_id: str) -> Sample:
        """
        Read a sample with its scores, if it has any.

        Raises:
            FileNotFoundError: when the sample is not there or not whole.
        """
        return self._sample(sample_id, self._require(sample_id))

    def _sample(self, sample_id: str, record: dict[str, Any]) -> Sample:
        scores = self._scores(sample_id)
        return Sample(
            sample_id=sample_id,
            **{key: record[key] for key in ("prompt_id", "row", "seed", "settings", "policy_revision")},
            scored=scores is not None,
            **(scores or {}),
        )

    def samples(self) -> list[Sample]:
        """All whole samples, by prompt id, seed and sample id."""
        ids = [path.stem for path in self.directory.glob("*.json") if _SAMPLE_ID.fullmatch(path.stem)]
        records = {sample_id: self._record(sample_id) for sample_id in ids}
        found = [self._sample(sample_id, record) for sample_id, record in records.items() if record is not None]
        return sorted(found, key=lambda sample: (sample.prompt_id, sample.seed, sample.sample_id))

    def video_bytes(self, sample_id: str) -> bytes:
        """The mp4 file. Raises a `ValueError` that names it when it is not the one that was written."""
        return self._bytes(sample_id, "video")

    def video(self, sample_id: str) -> Video:
        """The video, as the mp4 shows it: with `crf > 0` not exactly as it was decoded from the latents."""
        return read_video(self.video_bytes(sample_id))

    def latents_bytes(self, sample_id: str) -> bytes:
        """The safetensors file. Raises a `ValueError` that names it when it is not the one that was written."""
        return self._bytes(sample_id, "latents")

    def latents(self, sample_id: str) -> torch.Tensor:
        """The latents, of shape (channels, frames, height, width)."""
        return safetensors.torch.load(self.latents_bytes(sample_id))["latents"]

    def _bytes(self, sample_id: str, name: str) -> bytes:
        path = self.path(sample_id, _SUFFIXES[name])
        record = self._require(sample_id)
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != record["files"][name]["sha256"]:
            raise ValueError(f"{path} is damaged: its checksum is not the one it was written with.")
        return data

    def _require(self, sample_id: str) -> dict[str, Any]:
        record = self._record(sample_id)
        if record is None:
            raise FileNotFoundError(f"there is no whole sample {sample_id} in {self.directory}; roll it out first.")
        return record

    def _record(self, sample_id: str) -> dict[str, Any] | None:
        """The content of `<id>.json` if it is sound and the files beside it have their sizes, else `None`."""
        path = self.path(sample_id)
        if not path.exists():
            return None
        try:
            record = read_json(path)
            inputs = (record[key] for key in ("row", "seed", "settings", "policy_revision"))
            if self.sample_id(*inputs) != sample_id:
                raise ValueError(f"{path} describes another sample.")
            for name, suffix in _SUFFIXES.items():
                file, expected = self.path(sample_id, suffix), record["files"][name]["bytes"]
                size = file.stat().st_size if file.exists() else None
                if size != expected:
                    found = "is missing" if size is None else f"is cut short ({size} of {expected} bytes)"
                    raise ValueError(f"{file} {found}.")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            warnings.warn(
                f"sample {sample_id} is damaged and counts as missing; it will be made again: {error}", stacklevel=3
            )
            return None
        return record

    def _scores(self, sample_id: str) -> dict[str, Any] | None:
        path = self.path(sample_id, ".scores.json")
        if not path.exists():
            return None
        try:
            scores = read_json(path)
            return {key: scores[key] for key in ("rewards", "reward", "components")}
        except (ValueError, KeyError, TypeError) as error:
            warnings.warn(f"{path} is damaged; the sample counts as not scored: {error}", stacklevel=3)
            return None
