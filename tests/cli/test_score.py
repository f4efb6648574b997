"""`spatialalign score` scores videos as the reward does, and lists what it cannot score."""

import csv
import json
import os
import signal
import subprocess
import sys
from configparser import ConfigParser
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

from spatialalign_rewards import DSRScore
from spatialalign_trl.cli import main, score
from spatialalign_trl.cli.display import score_text
from spatialalign_trl.cli.figures import figure_names
from spatialalign_trl.cli.results import csv_cell
from spatialalign_trl.cli.score_files import read_scores
from spatialalign_trl.cli.work import Job, Question
from spatialalign_trl.perception.tracks import TRACKERS
from spatialalign_trl.prompts import parse_prompt
from spatialalign_trl.rollout.store import SampleStore
from spatialalign_trl.tiny_world.clips import caption_for
from spatialalign_trl.tiny_world.renderer import Scene, render
from spatialalign_trl.video import read_video, write_video

SCENE = Scene(scene="In a meadow", color="red", animal="fox", object="stump", verb="jumps", type="LR")
PROMPT = caption_for(SCENE).prompt
WORDS = ["--animal", "fox", "--object", "stump", "--type", "LR", "--attribute", "red"]
TINY = ["--tracker", "color_segmentation"]


def write(path, scene=SCENE):
    write_video(path, render(scene).video, fps=8, crf=0)
    return str(path)


def write_invalid(path):
    write_video(path, np.full((17, 32, 48, 3), 128, np.uint8), fps=8, crf=0)
    return str(path)


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user_cache"))
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def run(capsys):
    """Return a function that runs `spatialalign score` and returns its exit code, stdout and stderr."""

    def run(*words):
        try:
            code = main(["score", *map(str, words)])
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def prompts():
    """Write a prompt file and videos in the authors' format: a good and a static seed of each of two types."""
    Path("outputs").mkdir()
    lines = ["type,prompt_id,animal,object,scene,initial_SR,final_SR,prompt"]
    for number, type in enumerate(("LR", "LT")):
        scene = replace(SCENE, type=type)
        caption = caption_for(scene)
        parts = [type, f"10{number}_{type}", "fox", "stump", caption.scene, caption.initial_SR, caption.final_SR]
        lines.append(",".join([*parts, f'"{caption.prompt}"']))
        for seed, motion in enumerate(("complete", "static")):
            write(f"outputs/10{number}_{type}_F17_seed{seed:02d}.mp4", replace(scene, motion=motion))
    Path("prompts.csv").write_text("\n".join(lines) + "\n")
    return ["--prompts", "prompts.csv", "--videos", "outputs", *TINY]


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# -------------------------------------------------------------------------------------------------------------- output


def test_the_authors_files_are_scored_as_the_reward_scores_them(run, prompts):
    assert run(*prompts, "--csv", "scores/out.csv")[0] == 0
    rows = rows_of("scores/out.csv")
    expected_ids = [("100_LR", "0"), ("100_LR", "1"), ("101_LT", "0"), ("101_LT", "1")]
    assert [(row["prompt_id"], row["seed"]) for row in rows] == expected_ids
    reward = DSRScore("color_segmentation")
    for row in rows:
        question = {name: [row[name]] for name in ("type", "animal", "object", "attribute")}
        result = reward.grade([row["file"]], **question)[0].result
        for name in ("score", "initial_score", "initial_gap", "final_score", "final_gap"):
            assert float(row[name]) == getattr(result, name)
        assert row["S@0.7"] == str(int(result.score >= 0.7))


def test_a_row_describes_the_video_the_prompt_and_the_tracker(run, prompts):
    code, out, err = run(*prompts, "--csv", "out.csv", "--json", "out.json", "--threshold", "0.7", "0.5")
    assert code == 0
    for row in rows_of("out.csv"):
        assert (row["counted_frames"], row["num_frames"], row["reason"]) == ("17", "17", "")
        assert row["S@0.5"] == "1"
        assert row["tracker"] == "color_segmentation" and row["prompt"].startswith("In a meadow")
        assert Path(row["file"]).name in out
    assert "4 videos: S@0.7 0.500, S@0.5 1.000, invalid 0.000 (0)" in out
    assert "4/4" in err  # the progress bar


def test_prompts_in_other_words_are_scored_as_the_grammars_and_kept_as_they_are(run):
    texts = {
        "LR": "A red fox is left of the stump, then the fox jumps to right of stump",
        "LT": "A red fox is on the left a stump, then the fox jumps onto the stump.  ",
    }
    Path("outputs").mkdir()
    Path("prompts.txt").write_text("".join(f"{text}\n" for text in texts.values()))
    for type, text in texts.items():
        write(f"outputs/{parse_prompt(text).prompt_id}_seed00.mp4", replace(SCENE, type=type))
    assert run("--prompts", "prompts.txt", "--videos", "outputs", *TINY, "--csv", "out.csv")[0] == 0
    for row, (type, text) in zip(rows_of("out.csv"), texts.items(), strict=True):
        assert (row["type"], row["animal"], row["object"], row["attribute"]) == (type, "fox", "stump", "red")
        assert row["prompt"] == text.strip() and row["S@0.7"] == "1"
        canonical = caption_for(replace(SCENE, type=type)).prompt
        assert run("--prompt", canonical, row["file"], *TINY, "--csv", "one.csv")[0] == 0
        assert rows_of("one.csv")[0]["score"] == row["score"]


def test_json_contains_curves_settings_and_summary(run, prompts):
    assert run(*prompts, "--json", "out.json", "--threshold", "0.65")[0] == 0
    written = json.loads(Path("out.json").read_text())
    assert written["tracker"] == "color_segmentation" and written["thresholds"] == [0.65]
    assert written["summary"]["S@0.65"] == written["summary"]["S@0.7"] == 0.5
    assert written["summary"]["num_prompts"] == 2 and written["problems"] == []
    video = written["videos"][2]
    assert (video["prompt_id"], video["seed"], video["type"]) == ("101_LT", 0, "LT")
    assert [curve["relation"] for curve in video["curves"]] == ["L", "T"]
    left, top = (np.array(curve["values"]) for curve in video["curves"])
    assert len(left) == len(top) == len(video["frame_indices"]) == video["counted_frames"] == 17
    assert left[:3].mean() == pytest.approx(video["components"]["initial_score"])
    assert top[-3:].mean() == pytest.approx(video["components"]["final_score"])


def test_an_invalid_video_is_a_result_and_counts_as_a_failure(run):
    code, out, _ = run(
        write("good.mp4"), write_invalid("grey.mp4"), *WORDS, *TINY, "--csv", "o.csv", "--json", "o.json"
    )
    assert code == 0
    assert "INVALID" in out and "found together in 0 of 17 frames" in out
    assert "2 videos: S@0.7 0.500, invalid 0.500 (1)" in out
    good, grey = rows_of("o.csv")
    assert (good["valid"], grey["valid"]) == ("True", "False")
    assert grey["score"] == grey["initial_gap"] == "" and "0 of 17 frames" in grey["reason"]
    assert json.loads(Path("o.json").read_text())["videos"][1]["score"] is None


def test_a_table_of_no_videos_has_no_rows():
    assert score.score_table([], 0.7).row_count == 0


def test_a_score_just_below_the_threshold_is_not_rounded_up_to_it():
    assert [score_text(value) for value in (0.69999, 0.7, 0.7 - 1e-12, 1.0, None)] == [
        "0.699", "0.700", "0.700", "1.000", "INVALID",
    ]  # fmt: skip


def test_file_names_are_printed_as_text_and_not_as_markup(run):
    name = "[red]a[bold] \x1b[31m\n.mp4"
    Path(f"b{name}").write_text("no video")
    code, out, err = run(write(name), f"b{name}", *WORDS, *TINY)
    assert code == 1
    assert "[red]a[bold] ?[31m?.mp4" in out and "b[red]a[bold] ?[31m?.mp4: is not a readable video" in err
    assert "\x1b[31m" not in out + err


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_file_name_that_is_no_utf8_is_written_and_printed_with_a_question_mark(run):
    write("plain.mp4")
    name = os.fsdecode(b"caf\xe9.mp4")
    os.rename("plain.mp4", name)
    assert run(name, "absent.mp4", *WORDS, *TINY, "--csv", "o.csv", "--json", "o.json", "--plot", "p")[0] == 1
    assert [row["file"] for row in rows_of("o.csv")] == ["caf?.mp4"]


def sequence(path):
    """Write a video that goes left, then on top, then right: two clips, one after the other."""
    clips = [render(replace(SCENE, type=type)).video for type in ("LT", "TR")]
    write_video(path, np.concatenate(clips), fps=8, crf=0)
    return str(path)


@pytest.fixture
def sequences(run):
    """Score a pair of relations, a sequence of three and an invalid one; return the three rows of the CSV."""
    text = PROMPT.replace("then the fox jumps", "then the fox hops to the top of the stump, then the fox jumps")
    grey = render(SCENE).video * 0 + 128
    write_video("ltr_seed1.mp4", np.concatenate([grey, grey]), fps=8, crf=0)
    Path("prompts.csv").write_text(f'prompt_id,prompt\nlr,"{PROMPT}"\nltr,"{text}"\n')
    videos = [write("lr_seed0.mp4"), sequence("ltr_seed0.mp4"), "ltr_seed1.mp4"]
    files = ["--csv", "o.csv", "--json", "o.json", "--plot", "pictures"]
    code, _, err = run(*videos, "--prompts", "prompts.csv", *TINY, *files)
    assert code == 0, err
    return rows_of("o.csv")


def test_sequences_have_more_components_than_pairs_of_relations(sequences):
    two, three, invalid = sequences
    names = ["initial_score", "initial_gap", "visit_score_1", "visit_gap_1", "final_score", "final_gap"]
    assert [name for name in two if name in names] == names
    assert two["visit_score_1"] == two["visit_gap_1"] == "" and three["type"] == "LTR"
    assert float(three["score"]) == pytest.approx(sum(float(three[name]) for name in names) / 12 + 0.5)
    assert invalid["score"] == invalid["visit_gap_1"] == ""


def test_sequences_have_a_curve_for_every_relation(sequences):
    videos = json.loads(Path("o.json").read_text())["videos"]
    relations = [[curve["relation"] for curve in video["curves"]] for video in videos]
    assert relations == [["L", "R"], ["L", "T", "R"], ["L", "T", "R"]]


def test_every_video_of_a_sequence_has_three_plots(sequences):
    assert len(list(Path("pictures").iterdir())) == 9


# -------------------------------------------------------------------------------------------------------------- inputs


def test_a_prompt_and_its_parts_give_the_same_score(run):
    video = write("a.mp4")
    assert run("--prompt", PROMPT, video, *TINY, "--csv", "prompt.csv")[0] == 0
    assert run(*WORDS, *TINY, "--csv", "parts.csv", video)[0] == 0
    by_prompt, by_parts = rows_of("prompt.csv")[0], rows_of("parts.csv")[0]
    assert by_prompt.pop("prompt") == PROMPT and by_parts.pop("prompt") == ""
    assert by_prompt == by_parts


@pytest.mark.parametrize(
    ("name", "seed"),
    [
        ("100_LR_F81_seed00.mp4", "0"),
        ("100_LR_F49_seed1234.mp4", "1234"),
        ("100_LR_seed7.MP4", "7"),
        ("100_LR_F81.mp4", ""),
        ("100_LR.mkv", ""),
    ],
)
def test_prompt_id_and_seed_are_read_from_variants_of_the_authors_file_names(run, name, seed):
    Path("outputs").mkdir()
    os.rename(write("video.mp4"), Path("outputs", name))
    Path("prompts.csv").write_text(f'prompt_id,prompt\n100_LR,"{PROMPT}"\n')
    assert run("--prompts", "prompts.csv", "--videos", "outputs", *TINY, "--csv", "o.csv")[0] == 0
    assert [(row["prompt_id"], row["seed"]) for row in rows_of("o.csv")] == [("100_LR", seed)]


def test_a_prompt_id_that_looks_like_a_seed_is_taken_as_it_is(run):
    Path("prompts.csv").write_text(f'prompt_id,prompt\nfox_seed01,"{PROMPT}"\n')
    video = write("fox_seed01.mp4")
    assert run(video, "--prompts", "prompts.csv", *TINY, "--csv", "o.csv")[0] == 0
    assert [(row["prompt_id"], row["seed"]) for row in rows_of("o.csv")] == [("fox_seed01", "")]


@pytest.fixture
def samples():
    """Write a folder of two samples as the rollout writes them."""
    store = SampleStore("samples")
    row = {**caption_for(SCENE).to_row(), "prompt_id": "tiny-0"}
    for seed, motion in ((3, "complete"), (4, "static")):
        video = render(replace(SCENE, motion=motion)).video
        sample = store.new_sample(row, seed, {"steps": 2}, "base")
        store.add(sample, video, torch.zeros(1, 1, 1, 1), fps=8, crf=0)
    return store


def test_samples_of_a_rollout_are_scored_with_their_own_prompts(run, samples):
    assert run("--videos", "samples", *TINY, "--csv", "o.csv")[0] == 0
    rows = rows_of("o.csv")
    assert {(row["prompt_id"], row["seed"]) for row in rows} == {("tiny-0", "3"), ("tiny-0", "4")}
    assert {row["prompt"] for row in rows} == {PROMPT}
    assert sorted(float(row["score"]) >= 0.7 for row in rows) == [False, True]


def test_a_prompt_file_replaces_the_prompts_of_samples(run, samples):
    other = PROMPT.replace("left", "top")
    Path("prompts.csv").write_text(f'prompt_id,prompt\ntiny-0,"{other}"\n')
    assert run("--videos", "samples", "--prompts", "prompts.csv", *TINY, "--csv", "o.csv")[0] == 0
    assert {row["type"] for row in rows_of("o.csv")} == {"TR"}


def test_a_damaged_sample_is_listed(run, samples):
    damaged = sorted(Path("samples").glob("*.mp4"))[0]
    write(damaged, replace(SCENE, type="RL"))
    (Path("samples") / f"{'0' * 20}.json").write_text("[]")
    write(f"samples/{'0' * 20}.mp4")
    code, out, err = run("--videos", "samples", *TINY)
    assert code == 1
    assert f"{damaged}: it is damaged" in err
    assert "00000000000000000000.json is not the record of a sample" in err
    assert "1 video:" in out


# -------------------------------------------------------------------------------------------------------------- errors


@pytest.fixture
def problems(run, prompts):
    """Score good videos among unusable ones and prompts; return the problems by name (what -> why) and stderr."""
    Path("outputs/100_LR_F17_seed02.mp4").write_bytes(b"no video")
    Path("outputs/100_LR_F17_seed03.mp4").write_bytes(b"")
    write("outputs/stranger_F17_seed00.mp4")
    write("outputs/duck_F17_seed00.mp4")
    Path("outputs/notes.txt").write_text("no video, and not meant as one")
    duck = PROMPT.replace("red fox", "green duck").replace("fox", "duck")
    with open("prompts.csv", "a") as file:
        file.write(f',lost,,,,,,"{PROMPT}"\n,lost2,,,,,,"{PROMPT}"\n,wrong,,,,,,A fox.\n,100_LR,,,,,,"{PROMPT}"\n')
        file.write(f',duck,,,,,,"{duck}"\n')
    code, out, err = run(*prompts, "--json", "o.json")
    assert code == 1
    assert "4 videos:" in out and "Traceback" not in err
    return {problem["what"]: problem["why"] for problem in json.loads(Path("o.json").read_text())["problems"]}, err


def test_what_cannot_be_scored_is_listed_in_the_json_and_printed(problems):
    why, err = problems
    assert {Path(what).name for what in why} == {
        "100_LR_F17_seed02.mp4", "100_LR_F17_seed03.mp4", "stranger_F17_seed00.mp4", "duck_F17_seed00.mp4",
        "lost", "lost2", "prompts.csv, line 6", "prompts.csv, line 7",
    }  # fmt: skip
    for what in why:
        assert what in err


def test_every_problem_has_its_reason(problems):
    why, err = problems
    assert "not a readable video" in why["outputs/100_LR_F17_seed02.mp4"]
    assert "'stranger'" in why["outputs/stranger_F17_seed00.mp4"]
    assert "'green' is not in the tiny world" in why["outputs/duck_F17_seed00.mp4"]
    assert "already used" in why["prompts.csv, line 7"]
    assert "prompt without a video (2): lost, lost2" in err


def test_a_missing_file_and_a_failing_tracker_are_listed(run, monkeypatch):
    grade = DSRScore.grade

    def fail_on_short(self, videos, **columns):
        if len(videos[0]) < 17:
            raise RuntimeError("out of memory")
        return grade(self, videos, **columns)

    monkeypatch.setattr(DSRScore, "grade", fail_on_short)
    write_video("short.mp4", render(SCENE).video[:5], fps=8, crf=0)
    code, out, err = run("absent.mp4", "short.mp4", write("good.mp4"), *WORDS, *TINY)
    assert code == 1
    assert "1 video:" in out
    assert "absent.mp4: there is no such video file" in err
    assert "short.mp4: RuntimeError: out of memory" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a.mp4", *WORDS, "--trakcer", "sam3"], "no option --trakcer. Did you mean '--tracker'"),
        (["a.mp4", *WORDS, "--csvv=x"], "no option --csvv. Did you mean '--csv'"),
        (["a.mp4", *WORDS, "--batch-sise", "8"], "no option --batch-sise. Did you mean '--batch_size'"),
        (["a.mp4", *WORDS, "--tracker", "grounded_san"], "no tracker 'grounded_san'. Did you mean 'grounded_sam'"),
        (["a.mp4", *WORDS, *TINY, "--tracker-option", "devise=cpu"], "has no option 'devise'"),
        (["a.mp4", *WORDS, *TINY, "--strict"], "'color_segmentation' has no option 'strict'"),
        (["a.mp4", *WORDS, *TINY, "--tracker-option", "strict"], "'strict' is not of the form key=value"),
        (["a.mp4", *WORDS, "--type", "lr"], "Did you mean 'LR'"),
        (["a.mp4", *WORDS, "--type", "LL"], "unknown DSR type 'LL'"),
        (["a.mp4", *WORDS, "--type", "LX"], "unknown DSR type 'LX'"),
        (["a.mp4", *WORDS, *TINY, "--object", "stumpf"], "Did you mean 'stump'"),
        (["a.mp4", *WORDS, *TINY, "--object", "fox"], "animal and object are both 'fox'"),
        (["a.mp4", "--prompt", "A fox."], "--prompt: text: "),
        (["a.mp4", "--prompt", PROMPT, "--attribute", "blue"], "--attribute is 'blue', but the prompt says 'red'"),
        (["a.mp4", "--prompt", PROMPT, "--type", "LR"], "--prompt and --type both say"),
        (["a.mp4", "--prompt", PROMPT, "--prompts", "p.csv"], "--prompt and --prompts both say"),
        (["a.mp4", "--animal", "fox"], "--animal without --object, --type"),
        (["a.mp4", "--attribute", "red"], "--attribute goes with"),
        (["a.mp4", *TINY], "none of 1 videos has a prompt"),
        (["a.mp4", *WORDS, "--threshold", "70"], "70 is not in 0 to 1"),
        (["a.mp4", *WORDS, "--threshold", "x"], "'x' is not a number"),
        (["a.mp4", *WORDS, "--batch-size", "0"], "'0' is not a whole number of at least 1"),
        (["a.mp4", *WORDS, "--cache", "c", "--no-cache"], "--cache and --no_cache contradict"),
        (["a.mp4", *WORDS, "--device", "cpu", "--tracker-option", "device=cpu"], "'device' is given twice"),
        (["a.mp4", *WORDS, *TINY, "--csv", "a.mp4"], "--csv a.mp4 would overwrite"),
        (["a.mp4", *WORDS, *TINY, "--csv", "full"], "--csv full is a folder"),
        (["a.mp4", *WORDS, *TINY, "--csv", "a.mp4/o.csv"], "cannot be made"),
        (["a.mp4", *WORDS, *TINY, "--csv", "o", "--json", "o"], "--csv and --json are both o"),
        (["--videos", "full", *WORDS, *TINY, "--plot", "full"], "--plot and --videos are both full"),
        ([*WORDS], "no videos were given"),
        (["full", *WORDS], "full is a folder. Give it as --videos full"),
        (["--videos", "empty", *WORDS], "--videos: empty contains no video"),
        (["--videos", "nowhere", *WORDS], "--videos: there is no folder nowhere"),
        (["a.mp4", "--prompts", "nowhere.csv"], "--prompts: there is no prompt file nowhere.csv"),
        (["a.mp4", "--prompts", "empty.csv"], "--prompts: empty.csv contains no prompt"),
        (["a.mp4", "--prompts", "broken.jsonl"], "--prompts: broken.jsonl, line 1: not valid JSON"),
        (["a.mp4", "--prompts", "all_wrong.txt"], "all_wrong.txt, line 1: text: "),
    ],
)  # fmt: skip
def test_an_impossible_command_line_is_one_error_and_writes_nothing(run, words, message):
    write("a.mp4")
    Path("full").mkdir()
    write("full/b.mp4")
    Path("empty").mkdir()
    Path("empty.csv").write_text("")
    Path("broken.jsonl").write_text("{")
    Path("all_wrong.txt").write_text("A fox.\n")
    before = sorted(Path.cwd().rglob("*"))
    code, out, err = run(*words)
    assert code == 2
    assert message in err and err.startswith("spatialalign score: error: ")
    assert out == "" and "Traceback" not in err
    assert sorted(Path.cwd().rglob("*")) == before


# ------------------------------------------------------------------------------------------------------- interruptions


@pytest.fixture
def ctrl_c_at_the_third_video(monkeypatch):
    paths = []

    def read_job(job):
        paths.append(job.path)
        if len(paths) == 3:
            signal.raise_signal(signal.SIGINT)
        return read_video(job.path)

    monkeypatch.setattr(score, "_read_job", read_job)
    # A shell that starts the tests in the background makes them ignore Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_keeps_and_writes_the_finished_videos(run, prompts, ctrl_c_at_the_third_video):
    code, out, err = run(*prompts, "--csv", "o.csv", "--json", "o.json")
    assert code == 130
    assert [row["seed"] for row in rows_of("o.csv")] == ["0", "1"]
    assert len(json.loads(Path("o.json").read_text())["videos"]) == 2
    assert "2 videos: S@0.7 0.500" in out
    assert "interrupted after 2 of 4 videos" in err and "Traceback" not in err


def test_results_are_written_after_every_video(run, prompts, monkeypatch):
    file_existed = []

    def read_job(job):
        file_existed.append(Path("o.csv").exists())
        return read_video(job.path)

    monkeypatch.setattr(score, "_read_job", read_job)
    assert run(*prompts, "--csv", "o.csv")[0] == 0
    assert file_existed == [False, True, True, True]


def test_results_that_cannot_be_written_are_still_printed(run, prompts, monkeypatch):
    def full(path, data):
        raise OSError("no space left on device")

    monkeypatch.setattr("spatialalign_trl.cli.results.write_atomic", full)
    code, out, err = run(*prompts, "--csv", "o.csv")
    assert code == 1
    assert "4 videos:" in out and "no space left on device" in err


# --------------------------------------------------------------------------------------------------------------- plots


def test_plots_of_a_valid_and_an_invalid_video(run):
    code, *_ = run(write("a b.mp4"), write_invalid("grey.mp4"), *WORDS, *TINY, "--plot", "deep/pictures")
    assert code == 0
    expected = [f"{name}_{kind}" for name in ("a_b", "grey") for kind in ("boxes.mp4", "boxes.png", "curves.png")]
    assert sorted(path.name for path in Path("deep/pictures").iterdir()) == expected
    annotated = read_video("deep/pictures/a_b_boxes.mp4")
    assert len(annotated) == 17 and annotated.shape[2] == 480


def test_a_failed_plot_is_reported_and_the_score_is_kept(run, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr("spatialalign_trl.cli.figures.plot_curves", fail)
    code, out, err = run(write("a.mp4"), *WORDS, *TINY, "--plot", "p", "--csv", "o.csv")
    assert code == 1
    assert len(rows_of("o.csv")) == 1 and "1 video: S@0.7 1.000" in out
    assert "scored, but its plots failed: no space left" in err


def test_names_of_plots_never_leave_the_folder():
    files = [
        "../../x.mp4",
        "..mp4",
        "a/same.mp4",
        "b/same.mp4",
        "b/SAME.mp4",
        "$(rm).mp4",
        f"{'l' * 300}.mp4",
        "-.mp4",
    ]
    names = figure_names([Job(Path(file), Question("LR", "fox", "stump")) for file in files])
    assert len({name.lower() for name in names}) == len(files)
    assert names[2:5] == ["same", "same-2", "SAME-3"]
    for name in names:
        assert Path(name).name == name and len(name) < 120 and not name.startswith(("-", "."))


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_a_spreadsheet_finds_no_formula_in_the_csv(start):
    assert csv_cell(f"{start}HYPERLINK(1)") == f"'{start}HYPERLINK(1)"
    assert csv_cell(f"a{start}b") == f"a{start}b" and csv_cell(-0.5) == -0.5 and csv_cell(None) is None


def test_a_formula_in_a_prompt_or_a_file_name_is_text_and_its_scores_are_found_again(run):
    name = "=cmd|calc.mp4"
    Path("prompts.csv").write_text(f'prompt_id,prompt\n=cmd|calc,"{PROMPT}"\n')
    write(name)
    run(name, "--prompts", "prompts.csv", *TINY, "--csv", "o.csv")
    with open("o.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["file"] == f"'{name}" and row["prompt_id"] == "'=cmd|calc" and abs(float(row["final_gap"])) <= 1
    assert read_scores("o.csv").of_files([name])[0]["file"] == row["file"]


def test_codes_in_a_name_or_an_error_do_not_reach_the_terminal(run):
    name = "\x1b[31m[bold].mp4"
    Path(name).write_text("no video")
    code, out, err = run(name, *WORDS, *TINY)
    assert code == 1 and "\x1b[31m" not in out + err and "?[31m[bold].mp4" in err
    code, out, err = run("--videos", "\x1b[31mnowhere", *WORDS, *TINY)
    assert code == 2 and "\x1b" not in err and "there is no folder ?[31mnowhere" in err


def test_prompt_ids_are_not_used_as_paths(run):
    Path("prompts.csv").write_text(f'prompt_id,prompt\n../../evil,"{PROMPT}"\n/etc/x,"{PROMPT}"\nok,"{PROMPT}"\n')
    write("ok_F17_seed00.mp4")
    code, _, err = run("ok_F17_seed00.mp4", "--prompts", "prompts.csv", *TINY, "--plot", "p", "--csv", "o.csv")
    assert code == 1 and "prompt without a video (2): ../../evil, /etc/x" in err
    assert {path.name for path in Path.cwd().iterdir()} == {"prompts.csv", "ok_F17_seed00.mp4", "p", "o.csv"}


# ------------------------------------------------------------------------------------------------------------ trackers


OPTION = {"grounded_sam": "detector_checkpoint=nobody/nothing", "sam3": "checkpoint=nobody/nothing"}


class RecordingTracker:
    """A tracker that records the options it was made with."""

    name, options = "recording", []

    def __init__(self, cache_dir=None, device=None, strict=False, batch_size=None, label_mode="exact", depth=1.0):
        RecordingTracker.options.append(dict(vars(), self=None))

    def track(self, videos, *, animal, object, attribute=None):
        raise ValueError("this tracker only records")


def test_flags_become_options_of_the_tracker(run, monkeypatch, tmp_path):
    monkeypatch.setattr(RecordingTracker, "options", [])
    monkeypatch.setitem(TRACKERS, "recording", f"{__name__}:RecordingTracker")
    base = [write("a.mp4"), *WORDS, "--tracker", "recording"]
    assert run(*base)[0] == 1
    assert RecordingTracker.options[0]["cache_dir"] == str(tmp_path / "user_cache" / "spatialalign-trl" / "detections")
    assert RecordingTracker.options[0]["strict"] is False
    more = ["--strict", "--device", "cpu", "--batch-size", "3", "--cache", "here"]
    assert run(*base, *more, "--tracker-option", "label_mode=span", "--tracker-option", "depth=0.5")[0] == 1
    options = {name: value for name, value in RecordingTracker.options[1].items() if name != "self"}
    assert options == {
        "cache_dir": "here", "device": "cpu", "strict": True, "batch_size": 3, "label_mode": "span", "depth": 0.5,
    }  # fmt: skip
    assert run(*base, "--no-cache")[0] == 1
    assert RecordingTracker.options[2]["cache_dir"] is None


@pytest.mark.parametrize("tracker", ["grounded_sam", "sam3"])
def test_without_checkpoints_there_is_one_error_and_no_work(run, tracker, monkeypatch):
    monkeypatch.setattr(score, "_read_job", lambda job: pytest.fail("a video was read"))
    code, out, err = run(
        write("a.mp4"), *WORDS, "--tracker", tracker, "--csv", "o.csv", "--tracker-option", OPTION[tracker]
    )
    assert code == 2
    assert out == "" and "Traceback" not in err and len(err.splitlines()) == 2
    assert "nobody/nothing" in err and "hf download" in err
    assert not Path("o.csv").exists()


def test_front_and_behind_need_a_depth_checkpoint(run):
    words = [write("a.mp4"), *WORDS, "--type", "FB", *TINY]
    code, out, err = run(*words, "--depth-option", "checkpoint=nobody/nothing")
    assert code == 2 and out == "" and "nobody/nothing" in err


def test_a_misspelt_depth_option_is_named_with_the_nearest_one(run):
    code, _, err = run(write("a.mp4"), *WORDS, "--type", "FB", *TINY, "--depth-option", "chekpoint=x")
    assert code == 2 and "Did you mean 'checkpoint'" in err


def test_other_types_need_no_depth_checkpoint(run):
    write("a.mp4")
    assert run("a.mp4", *WORDS, *TINY, "--depth-option", "checkpoint=nobody/nothing")[0] == 0


def test_grounded_sam_scores_from_local_checkpoints_and_reuses_its_detections(run, monkeypatch):
    from tiny_perception import saved_grounding_dino, saved_sam2

    options = [
        f"detector_checkpoint={saved_grounding_dino(Path('dino'))}",
        f"follower_checkpoint={saved_sam2(Path('sam'))}",
    ]
    options += ["label_mode=span", "box_threshold=0.0", "text_threshold=0.0"]
    words = [write("a.mp4"), *WORDS, "--device", "cpu", "--batch-size", "8", "--cache", "kept", "--csv", "o.csv"]
    words += [word for option in options for word in ("--tracker-option", option)]
    code, out, err = run(*words)
    assert code == 0, err
    row = rows_of("o.csv")[0]
    assert int(row["valid_frames"]) + int(row["missed_frames"]) + int(row["redundant_frames"]) == 17
    assert row["tracker"] == "grounded_sam" and "label_mode=span" in row["tracker_options"]
    assert any(Path("kept").rglob("*"))

    monkeypatch.setattr("spatialalign_trl.perception.grounding_dino.GroundingDINODetector.detect", pytest.fail)
    assert run(*words)[0] == 0
    assert rows_of("o.csv")[0] == row


# --------------------------------------------------------------------------------------------------------- the command


def test_the_console_script_is_installed(repo_root):
    config = ConfigParser()
    config.read(repo_root / "setup.cfg")
    name, _, target = config["options.entry_points"]["console_scripts"].strip().partition(" = ")
    module, _, function = target.partition(":")
    assert name == "spatialalign"
    assert getattr(import_module(module), function) is main


def test_the_command_runs_in_a_fresh_process():
    write("a.mp4")
    code = "import sys; from spatialalign_trl.cli import main; sys.exit(main())"
    words = [sys.executable, "-c", code, "score", "a.mp4", "--prompt", PROMPT, *TINY]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "1 video: S@0.7 1.000" in done.stdout
    assert "scoring: 100%" in done.stderr


@pytest.mark.parametrize(("words", "code", "message"), [
    (["--version"], 0, "spatialalign-trl"),
    (["--help"], 0, "commands:"),
    (["score", "--help"], 0, "exit code: 0 ="),
    (["scor"], 2, "Did you mean 'score'"),
    ([], 2, "COMMAND"),
])  # fmt: skip
def test_help_version_and_misspelt_commands_print_what_to_do(capsys, words, code, message):
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == code
    assert message in "".join(capsys.readouterr())
