"""Store samples on disk.

A sample costs minutes of GPU time, so it is never overwritten, and a crash loses no sample that was written. A sample
consists of four files with names that begin with its id:

    <id>.mp4            the video
    <id>.safetensors    its latents (one tensor, "latents")
    <id>.json           the inputs it was made from, and the sizes and checksums of the two files above
    <id>.scores.json    its rewards, after it was scored (and `<id>.scores.replaced-N.json`: those of another reward)

`<id>.json` is written last, so a sample exists if and only if its `.json` exists and agrees with the other files.
Anything else (a process killed between two files, a full disk, a bad copy) is detected and reported, and the sample is
made again.
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
from spatialalign_trl.rollout.score_files import write_score_file
from spatialalign_trl.video import Video, encode_video, read_video

_SAMPLE_ID = re.compile(r"[0-9a-f]{20}")
_SUFFIXES = {"video": ".mp4", "latents": ".safetensors"}


@dataclasses.dataclass
class Sample:
    """
    The inputs of a sample and its scores. Its video and latents are read from the store.

    Args:
        sample_id (`str`):
            20 hexadecimal digits, determined by `row`, `seed`, `settings` and `policy_revision`.
        prompt_id (`str`):
            The id of the prompt.
        row (`dict`):
            The prompt's columns.
        seed (`int`):
            The requested seed. The noise depends on this seed and the prompt's id.
        settings (`dict`):
            The sampling settings.
        policy_revision (`str`):
            The name of the weights that sampled it.
        rewards (`dict[str, float | None]`, *optional*):
            One value per reward; `None` means INVALID.
        reward (`float`, *optional*):
            The weighted sum. `None` means INVALID if `scored`, and otherwise not known yet.
        scored (`bool`, *optional*, defaults to `False`):
            Whether the rewards have scored the sample.
        components (`dict`, *optional*):
            The values that the rewards logged in addition to their scores.
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
    """
    Convert a value to plain Python objects, so that equal values always have the same JSON.

    Args:
        value (`Any`):
            A value made of mappings, sequences, NumPy arrays and numbers of Python, NumPy or torch.
        nan_is_none (`bool`, *optional*, defaults to `False`):
            Whether NaN and infinities become `None`.

    Returns:
        `Any`: the value with dicts for mappings, lists for tuples and arrays, and Python numbers.
    """
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
            The folder. It is created if it is missing. Several processes may share it, also across machines on a
            shared file system.
    """

    def __init__(self, directory: str | os.PathLike) -> None:
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        # Checksums are compared once per process and sample, because that reads the files. Sizes are always compared.
        self._verified: set[str] = set()
        self._reported: set[str] = set()  # damaged samples, of each of which there is one warning

    @staticmethod
    def sample_id(row: Mapping[str, Any], seed: int, settings: Mapping[str, Any], policy_revision: str) -> str:
        """
        Return the id of a sample: 20 hexadecimal digits of the SHA-256 of the canonical JSON of its inputs.

        Args:
            row, seed, settings, policy_revision:
                The inputs; see [`Sample`].

        Returns:
            `str`: the id.

        Raises:
            TypeError, ValueError: if an input has no JSON form. The message names the prompt.
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
        """Make the sample of these inputs (see [`Sample`]), without scores and without adding it to the store."""
        return Sample(
            sample_id=cls.sample_id(row, seed, settings, policy_revision),
            prompt_id=str(row["prompt_id"]),
            row=plain(row),
            seed=int(seed),
            settings=plain(settings),
            policy_revision=str(policy_revision),
        )

    def path(self, sample_id: str, suffix: str = ".json") -> Path:
        """
        Return the path of one of a sample's files.

        Raises:
            ValueError: if the id is malformed. This keeps a malicious id from becoming a path outside of the folder.
        """
        if not isinstance(sample_id, str) or not _SAMPLE_ID.fullmatch(sample_id):
            raise ValueError(f"{sample_id!r} is not a sample id (20 hexadecimal digits).")
        return self.directory / f"{sample_id}{suffix}"

    # Writing

    def add(self, sample: Sample, video: Video, latents: torch.Tensor, fps: float, crf: int = 18) -> Sample:
        """
        Add a sample to the store. An intact sample that is already stored is not overwritten.

        Args:
            sample ([`Sample`]):
                The sample, made by [`~SampleStore.new_sample`].
            video (`np.ndarray` of shape (frames, height, width, 3), `uint8`):
                The video.
            latents (`torch.Tensor` of shape (channels, frames, height, width)):
                The latents that the video was decoded from.
            fps (`float`):
                Frames per second of the mp4.
            crf (`int`, *optional*, defaults to `18`):
                Quality of the mp4; 0 is lossless. See [`encode_video`].

        Returns:
            [`Sample`]: the sample.

        Raises:
            ValueError: if the sample's id does not match its inputs.
        """
        expected = self.sample_id(sample.row, sample.seed, sample.settings, sample.policy_revision)
        if sample.sample_id != expected:
            raise ValueError(
                f"sample_id={sample.sample_id!r}: the sample's inputs have the id {expected!r}. Make samples with "
                "new_sample."
            )
        if self.has(sample.sample_id):
            return sample
        contents = {
            "video": encode_video(video, fps, crf),
            # A contiguous copy: a slice of a batch would otherwise be stored with the memory of the whole batch.
            "latents": safetensors.torch.save({"latents": latents.detach().cpu().contiguous()}),
        }
        # When a damaged sample is made again, its old scores belong to the lost video.
        self.path(sample.sample_id, ".scores.json").unlink(missing_ok=True)
        for name, data in contents.items():
            write_atomic(self.path(sample.sample_id, _SUFFIXES[name]), data)
        # The record comes last: it makes the sample exist.
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
        self._reported.discard(sample.sample_id)
        return sample

    def write_scores(
        self,
        sample_id: str,
        rewards: Mapping[str, float | None],
        reward: float | None,
        components: Mapping[str, Any] | None = None,
    ) -> Sample:
        """
        Write the scores of a sample. NaN becomes `None` (INVALID). Other scores that it had are kept in
        `<id>.scores.replaced-N.json`.

        Args:
            sample_id (`str`):
                The id of a sample in this store.
            rewards (`dict[str, float | None]`):
                One value per reward.
            reward (`float`, *optional*):
                The weighted sum of the rewards.
            components (`dict`, *optional*):
                The values that the rewards logged. They need a JSON form.

        Returns:
            [`Sample`]: the sample with its scores.

        Raises:
            FileNotFoundError: if the store has no intact sample with this id.
        """
        self._require(sample_id)
        scores = {"rewards": dict(rewards), "reward": reward, "components": dict(components or {})}
        write_score_file(self.path(sample_id, ".scores.json"), plain(scores, nan_is_none=True))
        return self.load(sample_id)

    def clean(self) -> list[Path]:
        """Delete the temporary files of killed processes, and return their paths; see [`remove_leftovers`]."""
        return remove_leftovers(self.directory)

    # Reading

    def has(self, sample_id: str) -> bool:
        """Return whether the sample is stored and intact. A damaged sample causes a warning and counts as missing."""
        if self._record(sample_id) is None:
            return False
        if sample_id not in self._verified:
            for name in _SUFFIXES:
                try:
                    self._bytes(sample_id, name)
                except ValueError as error:
                    self._report_damage(sample_id, str(error))
                    return False
            self._verified.add(sample_id)
        return True

    def load(self, sample_id: str) -> Sample:
        """
        Read a sample, with its scores if it was scored.

        Raises:
            FileNotFoundError: if the store has no intact sample with this id.
        """
        return self._sample(sample_id, self._require(sample_id))

    def _sample(self, sample_id: str, record: dict[str, Any]) -> Sample:
        """Make a sample from the content of its `<id>.json` and its scores."""
        scores = self._scores(sample_id)
        return Sample(
            sample_id=sample_id,
            **{key: record[key] for key in ("prompt_id", "row", "seed", "settings", "policy_revision")},
            scored=scores is not None,
            **(scores or {}),
        )

    def samples(self) -> list[Sample]:
        """Return all intact samples, sorted by prompt id, seed and sample id."""
        ids = [path.stem for path in self.directory.glob("*.json") if _SAMPLE_ID.fullmatch(path.stem)]
        records = {sample_id: self._record(sample_id) for sample_id in ids}
        found = [self._sample(sample_id, record) for sample_id, record in records.items() if record is not None]
        return sorted(found, key=lambda sample: (sample.prompt_id, sample.seed, sample.sample_id))

    def video_bytes(self, sample_id: str) -> bytes:
        """Return the content of the mp4 file. Raises a `ValueError` that names the file if its checksum is wrong."""
        return self._bytes(sample_id, "video")

    def video(self, sample_id: str) -> Video:
        """Return the video as decoded from the mp4. With `crf > 0` it differs slightly from what was sampled."""
        return read_video(self.video_bytes(sample_id))

    def latents_bytes(self, sample_id: str) -> bytes:
        """Return the content of the safetensors file. Raises a `ValueError` that names it if its checksum is wrong."""
        return self._bytes(sample_id, "latents")

    def latents(self, sample_id: str) -> torch.Tensor:
        """Return the latents, of shape (channels, frames, height, width)."""
        return safetensors.torch.load(self.latents_bytes(sample_id))["latents"]

    def _bytes(self, sample_id: str, name: str) -> bytes:
        """Read the video's or the latents' file, and compare its checksum with the recorded one."""
        path = self.path(sample_id, _SUFFIXES[name])
        record = self._require(sample_id)
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != record["files"][name]["sha256"]:
            raise ValueError(f"{path} is damaged: its checksum differs from the recorded one.")
        return data

    def _require(self, sample_id: str) -> dict[str, Any]:
        """Return the sample's record, or raise an error if there is none."""
        record = self._record(sample_id)
        if record is None:
            raise FileNotFoundError(f"there is no intact sample {sample_id} in {self.directory}. Roll it out first.")
        return record

    def _record(self, sample_id: str) -> dict[str, Any] | None:
        """Return the content of `<id>.json`, or `None` if it is invalid or the other files do not have their sizes."""
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
                    problem = "is missing" if size is None else f"is truncated ({size} of {expected} bytes)"
                    raise ValueError(f"{file} {problem}.")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            self._report_damage(sample_id, str(error))
            return None
        return record

    def _report_damage(self, sample_id: str, problem: str) -> None:
        """Warn of a damaged sample, once: it is looked up again when it is made again."""
        if sample_id not in self._reported:
            self._reported.add(sample_id)
            remedy = f"The sample {sample_id} counts as missing and will be made again."
            warnings.warn(f"{problem.rstrip('.')}. {remedy}", stacklevel=4)

    def _scores(self, sample_id: str) -> dict[str, Any] | None:
        """Read `<id>.scores.json`, or return `None` if the sample was not scored or the file is damaged."""
        path = self.path(sample_id, ".scores.json")
        if not path.exists():
            return None
        try:
            scores = read_json(path)
            return {key: scores[key] for key in ("rewards", "reward", "components")}
        except (ValueError, KeyError, TypeError) as error:
            warnings.warn(f"{path} is damaged. The sample counts as not scored: {error}", stacklevel=3)
            return None
