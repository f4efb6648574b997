"""A page of somebody else's folder: no code runs, and no file outside of the folder gets into the page."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from report_folders import evaluation_folder, grade, run_folder

from spatialalign_trl.cli import main
from spatialalign_trl.files import read_json, write_json
from spatialalign_trl.perception import checkpoints
from spatialalign_trl.report.gallery import Clip
from spatialalign_trl.report.untrusted import confine_clips, make_graders
from spatialalign_trl.report.write import try_write_report, write_report
from spatialalign_trl.video import write_video

SECRET = np.random.default_rng(0).integers(0, 256, (9, 20, 30, 3), dtype=np.uint8)


@pytest.fixture
def secret(tmp_path) -> Path:
    """A video of the user's own, outside of the folder that somebody sent."""
    return write_video(tmp_path / "home" / "private.mp4", SECRET, fps=8, crf=0)


@pytest.fixture
def sent(tmp_path) -> Path:
    return run_folder(tmp_path / "sent", prompts=1, seeds=1)


def videos_read(folder: Path, **options) -> list[np.ndarray]:
    """Write the page and return the videos that were read for it."""
    read = []
    write_report(folder, lambda videos, **columns: read.extend(videos) or grade(videos, **columns), **options)
    return read


def set_rewards(folder: Path, rewards: dict) -> None:
    results = read_json(folder / "results.json")
    results["settings"]["rewards"] = rewards
    write_json(folder / "results.json", results)


def set_video(folder: Path, video: str) -> None:
    notes = read_json(folder / "report.json")
    for clip in notes["clips"]:
        clip["video"] = video
    write_json(folder / "report.json", notes)


def code_checkpoint(folder: Path) -> Path:
    """Write a checkpoint whose code leaves a mark when transformers executes it."""
    (folder / "detector").mkdir(parents=True)
    (folder / "detector" / "config.json").write_text(
        json.dumps({"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}})
    )
    (folder / "detector" / "evil.py").write_text(
        f"from pathlib import Path\nfrom transformers import PretrainedConfig\nPath({str(folder / 'executed')!r})"
        ".touch()\nclass Config(PretrainedConfig):\n    model_type = 'evil'\n"
    )
    return folder / "detector"


def test_a_folder_s_settings_run_no_code_and_load_no_checkpoint_of_its_own(sent, monkeypatch):
    loaded = []
    monkeypatch.setattr(checkpoints, "find_checkpoint", lambda name, *args: loaded.append(name) or Path(name))
    detector = code_checkpoint(sent)
    options = {"checkpoint": str(detector), "trust_remote_code": True}
    set_rewards(sent, {"dsr_score": {"tracker": "sam3", "tracker_options": options}})
    with pytest.warns(UserWarning, match=r"results\.json.*is a path.*--trust_folder"):
        write_report(sent)
    assert not loaded and not (sent / "executed").exists()
    assert "Curves and boxes of some videos are missing" in (sent / "report.html").read_text(encoding="utf-8")

    with pytest.warns(UserWarning, match="Curves and boxes"):  # this detector cannot detect, but it was executed
        write_report(sent, trusted=True)
    assert loaded and (sent / "executed").exists()


@pytest.mark.parametrize("options", [{"trust_remote_code": "false"}, {"trust_remote_code": 1}, {"checkpoint": "../x"}])
def test_settings_of_a_folder_pass_the_checks_of_settings_from_the_hub(options):
    with pytest.raises(ValueError, match="results.json"):
        make_graders({"dsr_score": {"tracker": "grounded_sam", "tracker_options": options}}, "sent/results.json")


def test_settings_of_another_machine_are_dropped_and_the_rest_is_used():
    settings = {"tracker": "color_segmentation", "min_frames": 5, "tracker_options": {"device": "cuda:7"}}
    (reward,) = make_graders({"dsr_score": settings, "sharpness": {"odd": "/x"}, "gone": {}}, "sent/results.json")
    assert reward.settings()["min_frames"] == 5


@pytest.mark.parametrize("how", ["absolute", "relative", "link"])
def test_videos_outside_of_a_folder_are_not_read(sent, secret, how):
    if how == "link":
        os.symlink(secret, sent / "samples" / "link.mp4")
    set_video(sent, {"absolute": str(secret), "relative": "../home/private.mp4", "link": "samples/link.mp4"}[how])
    with pytest.warns(UserWarning, match="outside of .*--trust_folder"):
        assert videos_read(sent) == []
    page = (sent / "report.html").read_text(encoding="utf-8")
    assert "2 video files lie outside of" in page and "--trust_folder" in page
    assert all(np.array_equal(video, SECRET) for video in videos_read(sent, trusted=True))


@pytest.mark.parametrize("key", ["path", "bytes"])
def test_recordings_in_the_rows_of_a_folder_are_confined_too(sent, secret, key):
    notes = read_json(sent / "report.json")
    cell = {"bytes": None, "path": None} | {key: str(secret)}
    notes["clips"][0]["row"]["context"] = cell
    write_json(sent / "report.json", notes)
    if key == "bytes":  # a text is no content, and must not be taken for a path
        with pytest.warns(UserWarning, match="expected the content of a video under 'bytes'"):
            assert not any(np.array_equal(video, SECRET) for video in videos_read(sent))
        assert '"name":"context"' not in (sent / "report.html").read_text(encoding="utf-8")
        return
    with pytest.warns(UserWarning, match="1 video files lie outside"):
        assert len(videos_read(sent)) == 2
    assert '"name":"context"' not in (sent / "report.html").read_text(encoding="utf-8")
    videos_read(sent, trusted=True)
    assert '"name":"context"' in (sent / "report.html").read_text(encoding="utf-8")


def test_recordings_inside_of_a_folder_are_shown_wherever_the_command_is_started(sent, secret, monkeypatch):
    monkeypatch.chdir(sent.parent)
    inside = write_video(sent / "scenes" / "a.mp4", SECRET, fps=8, crf=0)
    row = {"context": {"bytes": None, "path": str(inside.relative_to(sent.parent))}}
    clip = Clip("base", "id", "p0", 0, "samples/base-0-0.mp4", row)
    assert confine_clips([clip], sent) == ([clip], [])


def test_a_folder_without_foreign_files_gives_the_same_page_as_a_trusted_one(tmp_path):
    pages = []
    for trusted in (False, True):
        folder = evaluation_folder(tmp_path / str(trusted) / "folder")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            write_report(folder, grade, trusted=trusted)
        pages.append((folder / "report.html").read_bytes().replace(b"/True/", b"/False/"))
    assert pages[0] == pages[1]


def test_what_a_run_itself_writes_may_name_videos_elsewhere(sent, secret):
    set_video(sent, str(secret))
    try_write_report(sent, grade)
    page = (sent / "report.html").read_text(encoding="utf-8")
    assert "outside of" not in page and '"video":"' in page


def test_the_command_trusts_only_when_it_is_told(sent, secret, capsys):
    set_video(sent, str(secret))
    with pytest.warns(UserWarning, match="outside of"):
        assert main(["report", str(sent)]) == 0
    first = (sent / "report.html").stat().st_size
    assert main(["report", str(sent), "--trust_folder"]) == 0
    assert (sent / "report.html").stat().st_size > first
