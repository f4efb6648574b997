"""Every command reads a file as the others do: right, or it says what is wrong with it."""

import json
from pathlib import Path

import numpy as np
import pytest
from video_files import encode, trimmed, with_matrix

from spatialalign_trl.cli import main
from spatialalign_trl.evaluation.video_folder import VideoFolder
from spatialalign_trl.rewards.loading import load_reward
from spatialalign_trl.rewards.runner import RewardRunner
from spatialalign_trl.rewards.scoring import score_samples
from spatialalign_trl.rollout.store import SampleStore
from spatialalign_trl.tiny_world.renderer import Scene, render

QUESTION = ["--animal", "fox", "--attribute", "red", "--object", "stump", "--type", "LR"]
QUESTION += ["--tracker", "color_segmentation", "--no_cache"]
PROMPT = "In a meadow, a red fox is on the left of a stump, then the red fox jumps to the right of the stump."
RIGHT = 0.9996802


def crossing(frames: int = 17) -> np.ndarray:
    """A fox that jumps from the left of a stump to its right, 256x384."""
    scene = Scene(
        scene="In a meadow", color="red", animal="fox", object="stump", verb="jumps", type="LR", motion="complete",
        object_x=24.0, gaps=(1.0, 1.0), start=0.2,
    )  # fmt: skip
    return np.asarray(render(scene, frames).video).repeat(8, 1).repeat(8, 2)


def without_repeats(video: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """The frames that differ from the one before, and their places."""
    places = [k for k in range(len(video)) if k == 0 or (video[k] != video[k - 1]).any()]
    return video[places], places


def files() -> dict[str, bytes]:
    video = crossing()
    height, width = video.shape[1:3]
    merged, places = without_repeats(video)
    assert len(merged) < len(video)
    hidden = np.concatenate([video[::-1], video])
    return {
        "good.mp4": encode(video),
        "good.webm": encode(video, "webm"),
        "half_turn.mp4": with_matrix(encode(video[:, ::-1, ::-1]), -1, 0, 0, -1, width, height),
        "mirrored.mp4": with_matrix(encode(video[:, :, ::-1]), -1, 0, 0, 1, width, 0),
        "quarter_turn.mov": with_matrix(encode(np.rot90(video, 1, (1, 2)), "mov"), 0, 1, -1, 0, width, 0),
        "trimmed.mp4": trimmed(encode(hidden, options={"g": "100"}), 17, 17, rate=8),
        "merged.mp4": encode(merged, places=places, end=17),
        "merged.mkv": encode(merged, "mkv", places=places, end=17),
        "merged.gif": encode(merged, "gif", places=places, end=17),
        "a:b %d.mkv": encode(video, "mkv"),
    }


BROKEN = {
    "cut60.mp4": lambda good: good[: len(good) * 6 // 10],
    "cut90.mp4": lambda good: good[: len(good) * 9 // 10],
    "header.mp4": lambda good: good[:8] + good[good.find(b"moov") - 4 :][:300],
    "pointer.mp4": lambda good: b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n",
    "page.mp4": lambda good: b"<!doctype html><html></html>",
    "empty.mp4": lambda good: b"",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for name, data in files().items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("broken")
    for name, make in BROKEN.items():
        (folder / name).write_bytes(make(encode(crossing())))
    return folder


def test_the_score_is_that_of_the_clip_that_players_show(folder, tmp_path):
    videos = [str(path) for path in sorted(folder.iterdir())]
    assert main(["score", *videos, *QUESTION, "--json", str(tmp_path / "s.json")]) == 0
    scores = json.loads((tmp_path / "s.json").read_text())["videos"]
    found = {Path(video["file"]).name: video["score"] for video in scores}
    assert found == pytest.approx(dict.fromkeys(files(), RIGHT), abs=2e-4)


def test_score_lists_what_is_broken(broken, folder, tmp_path, capsys):
    videos = [str(path) for path in sorted(broken.iterdir())]
    code = main(["score", str(folder / "good.mp4"), *videos, *QUESTION, "--json", str(tmp_path / "s.json")])
    result = json.loads((tmp_path / "s.json").read_text())
    assert code == 1 and len(result["videos"]) == 1
    listed = {Path(problem["what"]).name: problem["why"] for problem in result["problems"]}
    assert set(listed) == set(BROKEN)
    assert all("is not a readable video" in why and "Error" not in why for why in listed.values()), listed
    assert "Git LFS pointer" in listed["pointer.mp4"] and "truncated" in listed["cut90.mp4"]
    assert "Traceback" not in capsys.readouterr().err


def test_label_makes_its_page_of_the_others(broken, folder, tmp_path, capsys):
    videos = [str(path) for path in [*sorted(broken.iterdir()), folder / "good.mp4", folder / "mirrored.mp4"]]
    assert main(["label", *videos, "--prompt", PROMPT, "--out", str(tmp_path / "page.html")]) == 1
    err = capsys.readouterr().err
    assert "not used" in err and all(f"{broken / name}: " in err for name in BROKEN)
    assert (tmp_path / "page.html").is_file()


@pytest.mark.parametrize("kind", ["mp4", "webm", "mkv"])
def test_a_movement_has_one_speed_whatever_the_rate_of_its_file(kind, tmp_path):
    pytest.importorskip("cv2")
    row = {"prompt_id": "LR_a", "prompt": PROMPT, "type": "LR", "animal": "fox", "object": "stump"}
    rewards = {}
    for name, frames, rate in (("slow", 17, 8), ("fast", 49, 24)):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"LR_a_seed00.{kind}").write_bytes(encode(crossing(frames), kind, rate))
        video_folder = VideoFolder(tmp_path / name, [row], tmp_path / "scores" / name)
        assert video_folder.samples[0].settings["fps"] == pytest.approx(rate, rel=0.01)
        runner = RewardRunner(load_reward("motion", floor=0.0, ceiling=2.0))
        (scored,) = score_samples(video_folder.samples, video_folder, runner)
        rewards[name] = scored.reward
    assert 0 < rewards["fast"] < 1
    assert rewards["slow"] == pytest.approx(rewards["fast"], rel=0.3)


def test_the_id_of_a_sample_of_a_folder_stays_that_of_its_content(tmp_path):
    """Scores of earlier versions are found by it."""
    row = {"prompt_id": "LR_a", "prompt": PROMPT, "type": "LR", "animal": "fox", "object": "stump"}
    (tmp_path / "LR_a_seed03.mp4").write_bytes(encode(crossing()))
    (sample,) = VideoFolder(tmp_path, [row], tmp_path / "scores").samples
    digest = {"video_sha256": sample.settings["video_sha256"]}
    assert sample.settings == {**digest, "fps": 8.0}
    assert sample.sample_id == SampleStore.sample_id(row, 3, digest, "")
