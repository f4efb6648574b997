"""The files of a preference dataset load again, are written alike each time, and name no path of this machine."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Video, load_dataset

from spatialalign_trl.online import preference_files
from spatialalign_trl.online.preference_card import histogram
from spatialalign_trl.preferences import make_pairs
from spatialalign_trl.video import encode_video


def samples(count: int = 5) -> list[SimpleNamespace]:
    """Return two samples of each prompt; the column `note` has a value in the last row only, `type` in none."""
    return [
        SimpleNamespace(
            sample_id=f"{k:020x}",
            prompt_id=f"p{k // 2}",
            row={"prompt_id": f"p{k // 2}", "prompt": "a fox", "type": None, "note": 7 if k == count - 1 else None},
            seed=k,
            settings={"num_frames": 9},
            policy_revision="/home/me/models/wan@base",
            rewards={"dsr": None if k == 1 else k / count},
            reward=None if k == 1 else k / count,
            components={"why": ["x"]} if k else {},
        )
        for k in range(count)
    ]


def video_bytes(sample_id: str) -> bytes:
    return b"mp4 " + sample_id.encode()


@pytest.fixture(autouse=True)
def small_files(monkeypatch) -> None:
    monkeypatch.setattr(preference_files, "ROWS_PER_FILE", 2)


def test_a_round_is_split_into_files_of_limited_length(tmp_path):
    files = preference_files.write_samples(tmp_path, 1, samples(), video_bytes)
    assert [file.name for file in files] == [f"round-01-0000{k}.parquet" for k in range(3)]
    assert preference_files.count_rows(tmp_path, "samples", 1) == 5


def test_files_are_written_alike_each_time(tmp_path):
    first, second = (
        [file.read_bytes() for file in preference_files.write_samples(tmp_path, 1, samples(), video_bytes)]
        for _ in range(2)
    )
    assert first == second


def test_the_files_of_a_round_load_as_one_dataset(tmp_path):
    preference_files.write_samples(tmp_path, 1, samples(), video_bytes)
    dataset = load_dataset(str(tmp_path / "samples"), split="train").cast_column("video", Video(decode=False))
    assert dataset["video"][:] == [
        {"bytes": video_bytes(s.sample_id), "path": f"{s.sample_id}.mp4"} for s in samples()
    ]
    assert dataset["score"][:] == [0.0, None, 0.4, 0.6, 0.8] and dataset["note"][:] == [None] * 4 + [7]
    assert dataset["policy_revision"][0] == "wan@base" and dataset["rewards"][2] == {"dsr": 0.4}


def test_videos_of_the_prompts_are_stored_and_paths_of_this_machine_are_not(tmp_path):
    recording = encode_video(np.zeros((2, 16, 16, 3), np.uint8), 8)
    (tmp_path / "scene.mp4").write_bytes(recording)
    with_recording = samples(4)
    for sample in with_recording:
        sample.row["context"] = {"bytes": None, "path": str(tmp_path / "scene.mp4")}
    files = preference_files.write_samples(tmp_path / "hub", 1, with_recording, video_bytes)
    pairs = make_pairs(with_recording, "best_vs_worst").pairs
    files += preference_files.write_pairs(tmp_path / "hub", 1, pairs, video_bytes)
    for file in files:
        assert str(tmp_path).encode() not in file.read_bytes()
        (dataset,) = load_dataset("parquet", data_files=str(file), cache_dir=str(tmp_path / "cache")).values()
        assert isinstance(dataset.features["context"], Video)
        assert {row["context"]["bytes"] for row in dataset.cast_column("context", Video(decode=False))} == {recording}


@pytest.mark.parametrize("column", ["context", "extra"])
def test_a_file_of_this_machine_that_is_no_video_is_not_published(tmp_path, column):
    (tmp_path / "passwords").write_text("root:x:0:0\n" * 50)
    some = samples(4)
    for sample in some:
        sample.row[column] = {"bytes": None, "path": str(tmp_path / "passwords")}
    with pytest.raises(ValueError, match=f"prompt 'p0', column '{column}' is not a video file"):
        preference_files.write_samples(tmp_path / "hub", 1, some, video_bytes)
    with pytest.raises(ValueError, match=f"prompt 'p1', column '{column}' is not a video file"):
        preference_files.write_pairs(tmp_path / "hub", 1, make_pairs(some, "best_vs_worst").pairs, video_bytes)
    assert not [file for file in (tmp_path / "hub").rglob("*") if file.is_file()]


def test_a_round_with_fewer_samples_replaces_all_its_files_and_keeps_other_rounds(tmp_path):
    preference_files.write_samples(tmp_path, 2, samples(), video_bytes)
    preference_files.write_samples(tmp_path, 1, samples(), video_bytes)
    preference_files.write_samples(tmp_path, 1, samples(2), video_bytes)
    assert preference_files.count_rows(tmp_path, "samples", 1) == 2
    assert preference_files.count_rows(tmp_path, "samples", 2) == 5
    assert preference_files.rounds_in(tmp_path, "samples") == [1, 2]


def test_a_pair_says_how_both_videos_were_made_and_scored(tmp_path):
    pairs = make_pairs(samples(6), "best_vs_worst").pairs
    preference_files.write_pairs(tmp_path, 1, pairs, video_bytes)
    dataset = load_dataset(str(tmp_path / "preferences"), split="train")
    row = dataset.cast_column("chosen", Video(decode=False)).cast_column("rejected", Video(decode=False))[0]
    assert row["chosen"]["bytes"] == video_bytes(row["chosen_sample_id"]) and row["round"] == 1
    assert row["components_chosen"] == '{"why": ["x"]}' and row["sampling_settings_rejected"] == '{"num_frames": 9}'
    assert row["rewards_chosen"]["dsr"] == row["score_chosen"] > row["score_rejected"]


def test_a_round_without_pairs_removes_its_files(tmp_path):
    preference_files.write_pairs(tmp_path, 1, make_pairs(samples(6), "best_vs_worst").pairs, video_bytes)
    assert preference_files.write_pairs(tmp_path, 1, [], video_bytes) == []
    assert preference_files.rounds_in(tmp_path, "preferences") == []


@pytest.mark.parametrize("scores", [[0.0, 1.0, 0.5, None], [-3.0, 7.5], [2.0, 2.0], [None], [0.7] * 30])
def test_a_histogram_counts_every_sample_once(scores):
    lines = histogram(scores).splitlines()
    assert sum(int(line.split()[-1]) for line in lines) == len(scores)
    assert int(lines[-1].split()[-1]) == scores.count(None)
