"""Which files of a folder are videos, what is listed, and what identifies a video."""

import json
import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spatialalign_trl.rollout.video_files import (
    OTHER_SUFFIXES,
    FoundVideo,
    folder_content,
    identify_video,
    without_repetition,
)
from spatialalign_trl.rollout.video_names import VIDEO_SUFFIXES, read_video_name
from spatialalign_trl.text_files import same_text

RECORD = {
    "prompt_id": "p", "seed": 3, "row": {"prompt": "x", "attribute": float("nan"), "type": "LR"},
    "policy_revision": "tiny@base", "files": {"video": {"sha256": "0"}}, "settings": {"fps": 8.0},
}  # fmt: skip


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def test_every_file_is_a_video_unless_its_name_says_that_it_is_not(tmp_path):
    videos = [f"a{suffix}" for suffix in VIDEO_SUFFIXES] + ["b.MP4", "c", "d.mp4.part", "e.unknown"]
    write(tmp_path, *videos, *(f"a{suffix}" for suffix in OTHER_SUFFIXES), "A.TXT", "README", ".hidden.mp4")
    content = folder_content(tmp_path)
    assert sorted(path.name for path in content.videos) == sorted(videos) and not content.left_out
    assert not OTHER_SUFFIXES & set(VIDEO_SUFFIXES)


def test_what_is_neither_a_file_nor_read_is_listed_with_the_reason(tmp_path):
    write(tmp_path, "a.mp4", "sub/b.mp4", "deep/er/c.gif", "texts/notes.txt", ".cache/d.mp4", "plots/e.mp4")
    (tmp_path / "empty").mkdir()
    os.symlink(tmp_path / "nowhere.mp4", tmp_path / "broken.mp4")
    os.symlink("loop.mp4", tmp_path / "loop.mp4")
    os.symlink(tmp_path / "nowhere.txt", tmp_path / "broken.txt")
    os.symlink(tmp_path / "a.mp4", tmp_path / "link.mp4")
    os.symlink(tmp_path / "sub", tmp_path / "link")
    os.mkfifo(tmp_path / "pipe.mp4")
    content = folder_content(tmp_path, ignore=[tmp_path / "plots"])
    assert [path.name for path in content.videos] == ["a.mp4", "link.mp4"]
    reasons = {path.name: why for path, why in content.left_out.items()}
    assert set(reasons) == {"sub", "deep", "link", "broken.mp4", "loop.mp4", "pipe.mp4"}
    assert "not searched" in reasons["sub"] and "does not exist" in reasons["broken.mp4"]
    assert "a pipe" in reasons["pipe.mp4"]


@pytest.mark.parametrize(
    "content", ['{"steps": 50}', "[]", "{", "5", "\udcff", '{"prompt_id": "x", "seed": 1, "row": 2}', "[" * 100_000]
)
def test_somebody_s_json_beside_a_video_is_ignored(tmp_path, content):
    (tmp_path / "p_seed01.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    assert identify_video(tmp_path / "p_seed01.mp4", {"p"}) == FoundVideo(tmp_path / "p_seed01.mp4", "p", 1)
    assert identify_video(tmp_path / "p_seed01.mp4") is None


@pytest.mark.parametrize("content", ["[]", "{", "{}", '{"prompt_id": "p", "seed": "x", "row": {}}'])
def test_a_damaged_record_of_a_sample_is_not_ignored(tmp_path, content):
    (tmp_path / f"{'0' * 20}.json").write_text(content)
    with pytest.raises(ValueError, match=r"0\.json is not the record of a sample"):
        identify_video(tmp_path / f"{'0' * 20}.mp4", {"p"})


def test_a_record_says_what_a_video_is_without_nan(tmp_path):
    (tmp_path / "any.json").write_text(json.dumps(RECORD))
    video = identify_video(tmp_path / "any.mp4")
    assert (video.prompt_id, video.seed, video.policy_revision, video.sha256) == ("p", 3, "tiny@base", "0")
    assert video.record["row"] == {"prompt": "x", "attribute": "", "type": "LR"}


def test_of_one_prompt_and_seed_the_first_of_a_folder_is_kept():
    names = ["a/p.mp4", "a/p_seed00.mp4", "a/p_seed01.mp4", "b/p_seed00.mp4", "a/q_seed00.mp4"]
    videos = [FoundVideo(Path(name), *read_video_name(Path(name).stem, {"p"})) for name in names]
    kept, left_out = without_repetition(videos)
    assert [str(video.path) for video in kept] == [names[0], *names[2:]]
    assert {str(path) for path in left_out} == {names[1]} and "p.mp4 is of the same" in left_out[Path(names[1])]


def test_samples_of_several_policies_are_no_repetition():
    records = [{"policy_revision": name} for name in ("base", "lora")]
    videos = [FoundVideo(Path(f"{k}.mp4"), "p", 0, record) for k, record in enumerate(records)]
    assert without_repetition(videos) == (videos, {})


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), st.sampled_from(["NFC", "NFD"]), st.integers(0))
def test_a_name_gives_back_its_id_and_seed_in_either_form(prompt_id, form, seed):
    written = unicodedata.normalize(form, f"{prompt_id}_F81_seed{seed:02}")
    known = {same_text(prompt_id)}
    assert read_video_name(written, known) == (same_text(prompt_id), seed)
    assert read_video_name(unicodedata.normalize(form, prompt_id), known) == (same_text(prompt_id), None)
