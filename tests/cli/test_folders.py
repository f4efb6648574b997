"""Score, label and evaluate read a folder by one rule: everything is used, or listed with the reason and exit 1."""

import json
import os
import re
import shutil
import unicodedata
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from spatialalign_trl.cli import main
from spatialalign_trl.cli.work import read_prompts
from spatialalign_trl.tiny_world.clips import caption_for
from spatialalign_trl.tiny_world.renderer import Scene, render
from spatialalign_trl.video import read_video, write_video

SCENE = Scene(scene="In a meadow", color="red", animal="fox", object="stump", verb="jumps", type="LR")
PROMPT = caption_for(SCENE).prompt
TINY = ["--tracker", "color_segmentation"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A clip that is larger than what is decoded on one thread; nearly every test copies it."""
    video = render(replace(SCENE, motion="complete")).video.repeat(5, 1).repeat(5, 2)
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", np.ascontiguousarray(video), fps=8)


@pytest.fixture
def add(clip, tmp_path, monkeypatch):
    """Return a function that copies the clip under a name, in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def add(name):
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".mp4", ".MP4", ""):
            shutil.copy(clip, path)
            return path
        codec, pix_fmt = {".gif": ("gif", "rgb8"), ".ts": ("libx264", "yuv420p")}[path.suffix]
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=8)
            stream.height, stream.width = 160, 240
            stream.pix_fmt = pix_fmt
            for frame in read_video(clip):
                picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
                container.mux(stream.encode(picture.reformat(format=pix_fmt)))
            container.mux(stream.encode(None))
        return path

    return add


def write_prompts(*ids, name="prompts.csv", extra=""):
    Path(name).write_text("prompt_id,prompt\n" + "".join(f'{prompt_id},"{PROMPT}"\n' for prompt_id in ids) + extra)
    return name


def score(capsys, *words):
    code = main(["score", *words, *TINY, "--json", "scores.json"])
    capsys.readouterr()
    data = json.loads(Path("scores.json").read_text())
    return code, [row["file"] for row in data["videos"]], [f"{row['what']}: {row['why']}" for row in data["problems"]]


def evaluate(capsys, *words):
    guards = ["--quality_guards", "frames", "--output_dir", "evaluation"]
    code = main(["evaluate", *words, *TINY, *guards])
    output = capsys.readouterr()
    if code == 2:
        return code, [], [output.err]
    rows = read_samples("evaluation/samples.parquet") if code != 2 else []
    problems = json.loads(Path("evaluation/results.json").read_text())["problems"]
    return code, [os.path.relpath(row["video"]) for row in rows], problems


def read_samples(file):
    import pyarrow.parquet

    return pyarrow.parquet.read_table(file).to_pylist()


def label(capsys, *words):
    words = [word for word in words if word != "--videos"]
    code = main(["label", *words, "--out", "page.html", "--limit", "1000"])
    output = capsys.readouterr()
    page = Path("page.html").read_text(encoding="utf-8")
    clips = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])["clips"]
    return code, sorted(clip["file"] for clip in clips), output.err.splitlines()


COMMANDS = [score, label, evaluate]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_mixed_folder_is_used_or_listed(command, add, capsys):
    nfc, nfd = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    used = [str(add(f"videos/{name}")) for name in ("a.mp4", "b_F81_seed07.gif", "c.ts", f"{nfd}_seed01.MP4", "h")]
    Path("videos/a.json").write_text('{"steps": 50}')
    for name in ("notes.txt", "a.png", "Thumbs.db", "README"):
        Path("videos", name).write_text("no video, and not meant as one")
    add("videos/a_seed00.mp4")
    add("videos/sub/d.mp4")
    add("videos/stranger.mp4")
    Path("videos/e.webp").write_bytes(b"RIFF\x0c\0\0\0WEBPVP8 ")
    Path("videos/f.mp4").write_text("<html>")
    Path("videos/f_seed01.mp4").write_bytes(b"")
    Path("videos/f_seed02.mp4").write_bytes(add("videos/whole.mp4").read_bytes()[:300])
    os.symlink("nowhere.mp4", "videos/g.mp4")
    prompts = write_prompts("a", "b", "c", "d", "e", "f", "g", nfc, "h", extra="bad,A fox.\n")

    code, files, problems = command(capsys, "--videos", "videos", "--prompts", prompts)
    assert code == 1
    assert sorted(files) == sorted(used)
    listed = [
        "videos/a_seed00.mp4", "videos/sub", "videos/stranger.mp4", "videos/whole.mp4", "videos/e.webp",
        "videos/f.mp4", "videos/f_seed01.mp4", "videos/f_seed02.mp4", "videos/g.mp4", "prompts.csv, line 11",
    ]  # fmt: skip
    text = "\n".join(problems)
    for name in listed:
        assert f"{name}: " in text or f"{name}," in text, (name, text)
    assert "same prompt and seed" in text and "not searched" in text and "does not exist" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_in_which_everything_is_used_exits_with_0(command, add, capsys):
    used = [str(add(f"videos/{name}")) for name in ("a_seed00.mp4", "a_seed01.gif", "b.ts")]
    Path("videos/a_seed00.json").write_text("{")
    Path("videos/plots").mkdir()
    prompts = write_prompts("a", "b")
    code, files, _ = command(capsys, "--videos", "videos", "--prompts", prompts)
    assert (code, files) == (0, used)


@pytest.mark.parametrize("command", COMMANDS)
def test_what_a_command_writes_into_the_folder_is_not_taken_for_a_video(command, add, capsys, monkeypatch):
    add("videos/a.mp4")
    prompts = os.path.abspath(write_prompts("a"))
    monkeypatch.chdir("videos")
    for _ in range(2):
        words = ["--plot", "plots"] if command is score else []
        code, files, problems = command(capsys, "--videos", ".", "--prompts", prompts, *words)
        assert (code, [Path(file).name for file in files]) == (0, ["a.mp4"]), problems  # label adds the folder


@pytest.mark.parametrize("command", [score, evaluate])
def test_without_prompts_a_video_without_a_record_is_told_from_one_with_another_json(command, add, capsys):
    add("videos/a.mp4")
    add("videos/b.mp4")
    Path("videos/b.json").write_text("{}")
    words = ["--videos", "videos"]
    try:
        _, _, problems = command(capsys, *words)
        text = problems[0]
    except SystemExit as stopped:
        assert stopped.code == 2
        text = capsys.readouterr().err
    assert "a.mp4: video without a prompt: there is no record (.json) next to it" in text
    assert "b.mp4: video without a prompt: b.json is not the record of a sample" in text


def test_a_file_that_is_named_twice_is_scored_once(add, capsys):
    path = add("videos/a.mp4")
    words = [str(path), str(path.absolute()), "--videos", "./videos", "--prompt", PROMPT]
    assert score(capsys, *words) == (0, ["videos/a.mp4"], [])


def test_files_of_one_prompt_and_seed_in_two_folders_are_both_scored(add, capsys):
    files = [str(add(f"{name}/a_seed00.mp4")) for name in ("ours", "theirs")]
    assert score(capsys, *files, "--prompts", write_prompts("a")) == (0, files, [])


def test_evaluate_with_no_readable_video_lists_them_and_keeps_its_exit_code(add, capsys):
    add("videos/a.mp4").write_bytes(b"no video")
    code = main(["evaluate", "--videos", "videos", "--prompts", write_prompts("a"), *TINY, "--output_dir", "out"])
    error = capsys.readouterr().err
    assert code == 1 and "no video in videos can be read" in error and "a.mp4: is not a readable video" in error


def test_prompts_beyond_max_prompts_are_left_out_on_purpose(add, capsys):
    for name in ("a", "b", "c"):
        add(f"videos/{name}.mp4")
    prompts = write_prompts("a", "b", "c")
    assert evaluate(capsys, "--videos", "videos", "--prompts", prompts, "--max_prompts", "2")[:2] == (
        0,
        ["videos/a.mp4", "videos/b.mp4"],
    )


def test_an_unreadable_video_is_left_out_of_one_policy_and_not_of_another(add, capsys):
    for folder in ("ours", "theirs"):
        add(f"{folder}/a.mp4")
        add(f"{folder}/b.mp4")
    Path("theirs/b.mp4").write_bytes(b"no video")
    code, files, problems = evaluate(capsys, "--videos", "ours", "theirs", "--prompts", write_prompts("a", "b"))
    assert code == 1 and len(files) == 3
    assert len(problems) == 1 and problems[0].startswith("theirs/b.mp4: is not a readable video")
    results = json.loads(Path("evaluation/results.json").read_text())
    assert results["differences"]["theirs"]["num_pairs"] == 1


def test_label_reads_subfolders_only_where_a_folder_has_no_video_of_its_own(add, capsys):
    used = [str(add(f"videos/{name}/a.mp4")) for name in ("one", "two")]
    add("videos/two/deeper/a.mp4")
    code, files, problems = label(capsys, "videos", "--prompts", write_prompts("a"))
    assert (code, files) == (1, used) and "videos/two/deeper" in "\n".join(problems)


def test_nan_in_a_prompt_file_is_no_word_of_the_question(tmp_path):
    parts = {"prompt_id": "a", "scene": "in a meadow", "animal": "a fox", "object": "stump", "type": "LR",
             "verb": "jumps", "attribute": float("nan")}  # fmt: skip
    (tmp_path / "nan.json").write_text(json.dumps([parts]))
    questions, problems = read_prompts(str(tmp_path / "nan.json"), "test")
    assert not problems and questions["a"].attribute == "" and "a fox is" in questions["a"].prompt
