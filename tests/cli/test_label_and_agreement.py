"""`spatialalign label` writes a blind page of a run, and `spatialalign agreement` compares labels with any scores."""

import csv
import json
import re
from pathlib import PurePath

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from spatialalign_trl.cli import main
from spatialalign_trl.cli.parsing import UsageError
from spatialalign_trl.cli.score_files import ScoreTable, number, read_scores
from spatialalign_trl.cli.score_matching import match_rows
from spatialalign_trl.evaluation.labels import consensus, read_labels
from spatialalign_trl.rollout.store import SampleStore
from spatialalign_trl.tiny_world.clips import caption_for
from spatialalign_trl.tiny_world.renderer import Scene
from spatialalign_trl.video import write_video

SETTINGS = {"num_frames": 3, "height": 16, "width": 24, "fps": 8.0}
ANIMALS = ("fox", "cat", "duck", "frog", "turtle")


def row_of(animal, dsr_type="LR"):
    scene = Scene(scene="In a meadow", color="red", animal=animal, object="stump", verb="jumps", type=dsr_type)
    prompt = caption_for(scene)
    return {
        "prompt_id": f"p-{animal}", "prompt": prompt.prompt, "type": dsr_type, "animal": animal, "object": "stump",
        "attribute": "red",
    }  # fmt: skip


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """Write a run's folder with ten scored samples of five prompts; higher seeds have better scores."""
    folder = tmp_path_factory.mktemp("run")
    store = SampleStore(folder / "samples")
    for k, animal in enumerate(ANIMALS):
        for seed in range(2):
            sample = store.new_sample(row_of(animal), seed, SETTINGS, "tiny@base" if seed else "tiny@lora")
            video = np.full((3, 16, 24, 3), 20 * k + seed, np.uint8)
            store.add(sample, video, torch.zeros(1, 1, 2, 2), fps=8, crf=0)
            score = None if k == 4 else 0.5 + 0.1 * k + 0.15 * seed
            components = {"dsr_initial_score": 0.9, "dsr_final_score": -0.9 + 1.8 * seed}
            store.write_scores(sample.sample_id, {"dsr_score": score, "vlm": 1.0 - seed}, score, components)
    return folder


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Return a function that runs `spatialalign` in an empty folder and returns its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "250")

    def run(*words):
        try:
            code = main([str(word) for word in words])
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return run


def page_data(path):
    return json.loads(re.search(r'id="data">(.*?)</script>', path.read_text(encoding="utf-8"), re.S)[1])


def write_labels(path, page, labeller="Ada", answer=lambda clip: (2, 2)):
    """Write a label file for a page. `answer` returns the answers for start and end, or `None` = absent."""
    rows = []
    for clip in page["clips"]:
        answers = answer(clip)
        rows.append({key: clip[key] for key in ("id", "file", "prompt_id", "type")})
        rows[-1] |= {"absent": answers is None, "skipped": False, "seconds": 2.0}
        rows[-1]["answers"] = {} if answers is None else {"start": answers[0], "end": answers[1], "looks": 2}
    data = {key: page[key] for key in ("format", "version", "page", "seed")}
    path.write_text(json.dumps({**data, "labeller": labeller, "labels": rows}))
    return path


@pytest.fixture(scope="module")
def label_data(run_folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "label.html"
    assert main(["label", str(run_folder), "--out", str(path), "--seed", "3"]) == 0
    return page_data(path)


@pytest.fixture
def ada(label_data, run_folder, tmp_path):
    """Write labels that follow the seeds: the second sample of each prompt ends right, and the turtles are absent."""
    seeds = {sample.sample_id: sample.seed for sample in SampleStore(run_folder / "samples").samples()}

    def answer(clip):
        seed = seeds[clip["file"].split("/")[-1].removesuffix(".mp4")]
        return None if clip["prompt_id"] == "p-turtle" else (2, 2 * seed)

    return write_labels(tmp_path / "ada.json", label_data, answer=answer)


def test_the_order_of_clips_is_random_and_depends_on_the_seed(run, run_folder, label_data, tmp_path):
    def files(*words):
        assert run("label", run_folder, "--out", "page.html", *words)[0] == 0
        return [clip["file"] for clip in page_data(tmp_path / "page.html")["clips"]]

    third = [clip["file"] for clip in label_data["clips"]]
    assert files("--seed", 3) == third != files("--seed", 4)
    assert sorted(third) == sorted(files("--seed", 4)) != third


def test_a_limited_page_has_clips_of_all_prompts(run, run_folder, tmp_path):
    run("label", run_folder, "--out", "few.html", "--limit", 5)
    assert {clip["prompt_id"] for clip in page_data(tmp_path / "few.html")["clips"]} == {f"p-{a}" for a in ANIMALS}


def test_the_page_of_a_run_contains_no_score_and_no_policy(label_data):
    assert len(label_data["clips"]) == 10
    text = json.dumps(label_data)
    assert "score" not in text and "tiny@" not in text and "lora" not in text


def test_a_folder_is_matched_with_a_prompt_file(run, tmp_path):
    rows = [row_of(animal) for animal in ANIMALS[:2]]
    with open(tmp_path / "prompts.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    for model in ("a", "b"):
        write_video(tmp_path / "videos" / model / "p-fox_F81_seed00.mp4", np.zeros((2, 16, 16, 3), np.uint8), 8)
    write_video(tmp_path / "videos" / "b" / "p-bear_seed1.mp4", np.zeros((2, 16, 16, 3), np.uint8), 8)
    code, out, err = run("label", "videos", "--prompts", "prompts.csv", "--out", "page.html")
    assert code == 1 and "2 of 2 clips" in out
    assert "p-bear_seed1.mp4: video without a prompt" in err and "p-cat: prompt without a video" in err
    assert len({clip["id"] for clip in page_data(tmp_path / "page.html")["clips"]}) == 2


@pytest.fixture
def agreement(run, run_folder, ada, tmp_path):
    """Compare labels with a run; return (results, printed text, Markdown)."""
    code, out, err = run(
        "agreement", "--labels", ada, "--scores", run_folder, "--json", "a.json", "--markdown", "a.md"
    )
    assert code == 0, err
    return json.loads((tmp_path / "a.json").read_text()), out, (tmp_path / "a.md").read_text()


def test_agreement_is_high_for_a_reward_that_follows_the_labels(agreement):
    results, _, _ = agreement
    assert list(results["rewards"]) == ["dsr_score", "vlm"]
    dsr, vlm = results["rewards"].values()
    assert dsr["tau_b"]["value"] > 0.5 > 0 > vlm["tau_b"]["value"]
    assert dsr["parts"]["final_score"]["value"] == pytest.approx(1) and vlm["parts"] == {}


def test_agreement_counts_the_decisions_and_invalid_videos(agreement):
    dsr = agreement[0]["rewards"]["dsr_score"]
    assert dsr["invalid"] == {"clips": 2, "absent_to_humans": 1.0}
    # 0.5 0.6 0.7 0.8 without, 0.65 0.75 0.85 0.95 with a right end, two INVALID
    assert dsr["decisions"] == {
        "both_yes": 3, "both_no": 4, "reward_only": 2, "humans_only": 1, "humans_split": 0,
    }  # fmt: skip
    assert dsr["accuracy"]["value"] == pytest.approx(0.7)


def test_agreement_is_printed_and_written_as_markdown(agreement):
    results, out, markdown = agreement
    assert "0.700 [" in out and "dsr_score" in out and "0.700 [" in markdown
    assert results["labels"][0]["median_seconds"] == 2


def score_rows(samples):
    return [
        {
            "file": f"elsewhere/{sample.sample_id}.mp4",
            "prompt_id": sample.prompt_id,
            "score": sample.reward,
            "valid": True,
            "initial_score": 0.9,
            "final_score": sample.components["dsr_final_score"],
        }
        for sample in samples
    ]


def write_csv(samples, folder):
    """Write the CSV of `spatialalign score`."""
    rows = score_rows(samples)
    with open(folder / "scores.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return "scores.csv"


def write_json(samples, folder):
    """Write the JSON of `spatialalign score`."""
    videos = [{**row, "components": {"final_score": row.pop("final_score")}} for row in score_rows(samples)]
    (folder / "scores.json").write_text(json.dumps({"videos": videos}))
    return "scores.json"


def write_parquet(samples, folder):
    """Write the samples of `spatialalign evaluate`."""
    rows = [
        {"video": f"{s.sample_id}.mp4", "reward/dsr_score": s.reward, "components": json.dumps(s.components)}
        for s in samples
    ]
    Dataset.from_list(rows).to_parquet(folder / "samples.parquet")
    return "samples.parquet"


def write_results(samples, folder):
    """Write the results of `spatialalign evaluate`, which lie next to its samples."""
    write_parquet(samples, folder)
    (folder / "results.json").write_text(json.dumps({"kind": "evaluation"}))
    return "results.json"


@pytest.mark.parametrize("write", [write_csv, write_json, write_parquet, write_results])
def test_every_score_file_gives_the_agreement_of_the_run(run, run_folder, ada, tmp_path, write):
    def agreement_with(source, *words):
        assert run("agreement", "--labels", ada, "--scores", source, "--json", "a.json", *words)[0] == 0, source
        (agreement,) = json.loads((tmp_path / "a.json").read_text())["rewards"].values()
        assert agreement["parts"].pop("final_score")["value"] == pytest.approx(1)
        return {**agreement, "parts": None}

    file = write(SampleStore(run_folder / "samples").samples(), tmp_path)
    assert agreement_with(file) == agreement_with(run_folder, "--reward", "dsr_score")


@pytest.fixture
def two_labellers(label_data, run_folder, ada, tmp_path):
    """Return the words that compare two labellers with a run and with a judge's table of six clips."""
    bob = write_labels(tmp_path / "bob.json", label_data, "Bob", lambda clip: (2, 2))
    with open(tmp_path / "judge.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "score"])
        writer.writerows([clip["file"], 1 + place % 5] for place, clip in enumerate(label_data["clips"][:6]))
    return ["agreement", "--labels", ada, bob, "--scores", run_folder, "judge.csv", "--reward", "dsr_score"]


def test_agreement_of_two_labellers_is_reported(run, two_labellers, ada, tmp_path):
    code, out, _ = run(*two_labellers, "--reward", "score=3", "--json", "a.json")
    results = json.loads((tmp_path / "a.json").read_text())
    assert code == 0 and "Ada and Bob" in out
    assert results["labellers"][0]["clips"] == 10
    split = results["rewards"]["dsr_score"]["decisions"]["humans_split"]
    labels = [read_labels(ada), read_labels(tmp_path / "bob.json")]
    assert split == sum(clip.obeys is None for clip in consensus(labels)) == 6


def test_a_table_of_scores_is_compared_at_its_own_threshold(run, two_labellers, tmp_path):
    assert run(*two_labellers, "--reward", "score=3", "--json", "a.json")[0] == 0
    results = json.loads((tmp_path / "a.json").read_text())
    assert "judge" not in results["rewards"]
    assert results["rewards"]["score"]["threshold"] == 3 and results["unscored"] == {"dsr_score": 0, "score": 4}


def test_scores_beyond_0_to_1_need_a_threshold(run, two_labellers):
    code, _, err = run(*two_labellers, "--reward", "score")
    assert code == 2 and "not in 0 to 1" in err and "--reward score=TAU" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--reward", "dsr_scor"], "Did you mean 'dsr_score'"),
        (["--reward", "vlm=high"], "not of the form NAME or NAME=TAU"),
        (["--labels", "nowhere.json"], "nowhere.json"),
        (["--labels", "ADA", "ADA"], "two files are from the labeller 'Ada'"),
        (["--scores", "ADA"], "no scores of single videos"),
        (["--scores", "nowhere.csv"], "nowhere.csv"),
        (["--json", "ADA"], "would overwrite"),
    ],
)
def test_agreement_prints_one_line_errors(run, run_folder, ada, words, message):
    arguments = ["--labels", ada, "--scores", run_folder, *(ada if word == "ADA" else word for word in words)]
    code, _, err = run("agreement", *arguments)
    assert code == 2 and message in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere", "--out", "a.html"], "no video and no folder nowhere"),
        ([".", "--out", "a.html"], "contains no video"),
        (["clip.mp4", "--out", "a.html"], "Give --prompts"),
        (["clip.mp4", "--prompt", "a fox", "--out", "a.html"], "--prompt: "),
        (["clip.mp4", "--prompt", "TEXT", "--out", "clip.mp4"], "would overwrite"),
    ],
)
def test_label_prints_one_line_errors(run, tmp_path, words, message):
    if "clip.mp4" in words:
        write_video(tmp_path / "clip.mp4", np.zeros((2, 16, 16, 3), np.uint8), 8)
    text = row_of("fox")["prompt"]
    code, _, err = run("label", *(text if word == "TEXT" else word for word in words))
    assert code == 2 and message in err


def test_an_unreadable_clip_is_left_out_and_reported(run, tmp_path):
    write_video(tmp_path / "good.mp4", np.zeros((2, 16, 16, 3), np.uint8), 8)
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    code, out, err = run("label", "good.mp4", "bad.mp4", "--prompt", row_of("fox")["prompt"], "--out", "a.html")
    assert code == 1 and "1 of 2 clips" in out and "bad.mp4" in err


def test_videos_of_one_name_are_distinguished_by_their_folders(tmp_path):
    table = ScoreTable(tmp_path, [{"file": "x/base/p1.mp4", "score": 1}, {"file": "x/lora/p1.mp4", "score": 2}])
    rows = table.of_files(["y/lora/p1.mp4", "base/p1.mp4", "z/p2.mp4", "y/other/p1.mp4"])
    assert [row and row["score"] for row in rows] == [2, 1, None, None]
    with pytest.raises(UsageError, match="2 rows match the video p1.mp4"):
        table.of_files(["p1.mp4"])


@pytest.mark.parametrize(
    ("clip", "row", "is_same"),
    [
        ("ours/p1.mp4", "ours/p1.mp4", True),
        ("ours/p1.mp4", "base/p1.mp4", False),
        ("/data/ours/p1.mp4", "ours/p1.webm", True),
        ("ours/p1.mp4", "/data/base/p1.mp4", False),
        ("ours/p1.mp4", "p1", True),
        ("out\\ours\\p1.mp4", "ours/p1.mp4", True),
        ("../ours/p1.mp4", "./ours/p1.MP4", True),
        ("../p1.mp4", "ours/p1.mp4", True),
        ("ours/../base/p1.mp4", "ours/p1.mp4", False),
        ("ours/caf\u00e9.mp4", "ours/cafe\u0301.mp4", True),
        ("/home/ada/out/ours/p1.mp4", "/scratch/ours/p1.mp4", True),  # two machines
        ("/home/ada/base/clips/p1.mp4", "/home/ada/ours/clips/p1.mp4", False),
        ("out/base/clips/p1.mp4", "out/ours/clips/p1.mp4", False),
        ("base/clips/p1.mp4", "ours/clips/p1.mp4", False),
        ("elsewhere/0123456789abcdef0123.mp4", "samples/0123456789abcdef0123.mp4", True),  # a sample's id
        ("ours/p1.mp4", "ours/p10.mp4", False),
    ],
)
def test_a_row_of_another_folder_is_no_score_of_the_clip(clip, row, is_same):
    assert match_rows([clip], [row], "scores.csv") == [0 if is_same else None]
    assert match_rows([row], [clip], "scores.csv") == [0 if is_same else None]


def test_a_row_belongs_to_one_clip():
    clips = ["a/clips/p1.mp4", "b/clips/p1.mp4"]
    assert match_rows(clips, ["a/clips/p1.mp4"], "scores.csv") == [0, None]
    assert match_rows(clips, clips[::-1], "scores.csv") == [1, 0]
    with pytest.raises(UsageError, match=r"the row p1.mp4 matches 2 labelled clips, such as a/clips/p1.mp4 and b/"):
        match_rows(clips, ["p1.mp4"], "scores.csv")


folders = st.lists(st.sampled_from("abc"), max_size=3).map(tuple)


@given(st.lists(st.tuples(folders, st.sampled_from("pq")), min_size=1, max_size=6, unique=True))
def test_a_table_of_the_same_paths_gives_every_clip_its_own_row(videos):
    files = ["/".join(["root", *folder, f"{name}.mp4"]) for folder, name in videos]
    assert match_rows(files, [f"/elsewhere/{file}" for file in files], "t") == list(range(len(files)))


@given(st.lists(st.tuples(folders, folders), min_size=1, max_size=6, unique_by=lambda pair: pair[0]))
def test_no_pair_has_different_parents_and_no_row_is_used_twice(pairs):
    clips, rows = ([str(PurePath(*side, "p.mp4")) for side in sides] for sides in zip(*pairs, strict=True))
    try:
        matched = match_rows(clips, rows, "t")
    except UsageError:
        return
    used = [row for row in matched if row is not None]
    assert len(used) == len(set(used))
    for clip, row in zip(clips, matched, strict=True):
        if row is not None and PurePath(clip).parent.name and PurePath(rows[row]).parent.name:
            assert PurePath(clip).parent.name == PurePath(rows[row]).parent.name


@pytest.fixture
def two_models(tmp_path):
    """Write the videos of two models under the same names, and return a function that writes scores of folders."""
    for place, model in enumerate(("ours", "base")):
        for k, animal in enumerate(ANIMALS):
            video = np.full((3, 16, 24, 3), 20 * k + place, np.uint8)
            write_video(tmp_path / model / f"p-{animal}_seed00.mp4", video, 8)

    def write_scores(name, rows):
        lines = [f"{model}/p-{animal}_seed00.mp4,{score}" for model, animal, score in rows]
        (tmp_path / name).write_text("\n".join(["file,score", *lines]) + "\n")
        return name

    return write_scores


def label_folders(run, tmp_path, folders, out="page.html", answer=lambda clip: (2, 2 * ("ours" in clip["file"]))):
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps([row_of(animal) for animal in ANIMALS]))
    code, _, err = run("label", *folders, "--prompts", prompts, "--out", tmp_path / out)
    assert code == 0, err
    page = page_data(tmp_path / out)
    return page, write_labels(tmp_path / f"{out}.json", page, out, answer)


def test_clips_of_a_model_without_scores_are_unscored(run, tmp_path, two_models):
    _, labels = label_folders(run, tmp_path, ["ours", "base"])
    scores = two_models("scores.csv", [("ours", animal, 0.9) for animal in ANIMALS])
    code, out, err = run("agreement", "--labels", labels, "--scores", scores, "--json", "a.json")
    results = json.loads((tmp_path / "a.json").read_text())
    assert code == 0, err
    assert results["rewards"]["score"]["clips"] == 5 and results["rewards"]["score"]["accuracy"]["value"] == 1
    assert results["unscored"] == {"score": 5}
    assert len(results["unscored_reasons"]["score"]) == 5
    assert "is not in the table, only ours/p-" in out and "another folder" in out


def test_labels_of_one_model_are_not_compared_with_scores_of_another(run, tmp_path, two_models):
    _, labels = label_folders(run, tmp_path, ["base"])
    scores = two_models("scores.csv", [("ours", animal, 0.9) for animal in ANIMALS])
    code, out, err = run("agreement", "--labels", labels, "--scores", scores)
    assert code == 2 and not out
    assert "has no score for any labelled clip: base/p-" in err and "only ours/p-" in err


@pytest.mark.parametrize("folder", ["", "ours/"])
def test_scores_without_folders_are_compared_with_a_word(run, tmp_path, two_models, folder):
    _, labels = label_folders(run, tmp_path, ["ours"])
    (tmp_path / "s.csv").write_text("file,score\n" + "".join(f"{folder}p-{a}_seed00.mp4,1\n" for a in ANIMALS))
    code, out, _ = run("agreement", "--labels", labels, "--scores", "s.csv", "--json", "a.json")
    assert code == 0 and ("named without their folder" in out) == (not folder)
    results = json.loads((tmp_path / "a.json").read_text())
    assert results["matched_by_name"] == {"score": 0 if folder else 5} and results["unscored"] == {"score": 0}


def test_a_runs_samples_need_no_folder(agreement):
    results, out, _ = agreement
    assert set(results["matched_by_name"].values()) == {0} and "without their folder" not in out


@pytest.mark.parametrize("cell", ["INVALID", "invalid ", "nan", "None", "N/A", "", "-100"])
def test_an_invalid_cell_is_that_cells(run, tmp_path, two_models, cell):
    _, labels = label_folders(run, tmp_path, ["ours"])
    scores = two_models("scores.csv", [("ours", animal, cell if k == 2 else 0.9) for k, animal in enumerate(ANIMALS)])
    assert run("agreement", "--labels", labels, "--scores", scores, "--json", "a.json")[0] == 0
    results = json.loads((tmp_path / "a.json").read_text())
    reward = results["rewards"]["score"]
    assert reward["clips"] == 5 and reward["invalid"]["clips"] == 1 and reward["accuracy"]["value"] == 0.8
    assert results["unscored"] == {"score": 0}


def test_a_text_among_numbers_is_listed_with_its_clip(run, tmp_path, two_models):
    _, labels = label_folders(run, tmp_path, ["ours"])
    rows = [("ours", animal, "timeout" if animal == "duck" else 0.9) for animal in ANIMALS]
    code, out, err = run(
        "agreement", "--labels", labels, "--scores", two_models("scores.csv", rows), "--json", "a.json"
    )
    assert code == 0, err
    results = json.loads((tmp_path / "a.json").read_text())
    assert results["unscored"] == {"score": 1}
    assert results["unscored_reasons"]["score"] == ["ours/p-duck_seed00.mp4: score='timeout' is not a number"]
    assert "score='timeout' is not a number" in out


def test_a_reward_that_is_invalid_for_all_videos_is_compared(run, tmp_path, two_models):
    _, labels = label_folders(run, tmp_path, ["ours"])
    scores = two_models("scores.csv", [("ours", animal, "") for animal in ANIMALS])
    assert run("agreement", "--labels", labels, "--scores", scores, "--json", "a.json")[0] == 0
    assert json.loads((tmp_path / "a.json").read_text())["rewards"]["score"]["invalid"]["clips"] == 5


@pytest.mark.parametrize("bad", ["ours/p-duck_seed00.mp4", "ours/p-turtle_seed00.mp4"])
def test_a_score_out_of_range_names_its_clip(run, tmp_path, two_models, bad):
    _, labels = label_folders(run, tmp_path, ["ours", "base"])
    rows = [(m, a, 7 if f"{m}/p-{a}_seed00.mp4" == bad else 0.9) for m in ("base", "ours") for a in ANIMALS]
    code, _, err = run("agreement", "--labels", labels, "--scores", two_models("scores.csv", rows))
    assert code == 2 and f"score=7 of {bad}: not in 0 to 1" in err


def test_pages_made_under_any_path_have_the_same_clips(run, tmp_path, two_models, monkeypatch):
    pages, files = {}, {}
    monkeypatch.chdir(tmp_path)
    pages["relative"], files["relative"] = label_folders(run, tmp_path, ["ours", "base"], "relative.html")
    absolute = [tmp_path / "ours", tmp_path / "base"]
    pages["absolute"], files["absolute"] = label_folders(run, tmp_path, absolute, "absolute.html")
    monkeypatch.chdir(tmp_path / "ours")
    pages["inside"], files["inside"] = label_folders(run, tmp_path, [".", "../base"], "inside.html")
    identities = [(page["page"], [clip["id"] for clip in page["clips"]]) for page in pages.values()]
    assert identities[0] == identities[1] == identities[2]
    assert all("ours/" in clip["file"] or "base/" in clip["file"] for clip in pages["inside"]["clips"])
    monkeypatch.chdir(tmp_path)
    scores = two_models("scores.csv", [("ours", animal, 0.9) for animal in ANIMALS])
    words = ["agreement", "--labels", *files.values(), "--scores", scores, "--json", "a.json"]
    code, _, err = run(*words)
    assert code == 0, err
    results = json.loads((tmp_path / "a.json").read_text())
    assert results["humans"]["clips"] == 10 and results["labellers"][0]["clips"] == 10
    assert results["unscored"] == {"score": 5}


def test_a_clip_named_twice_is_on_the_page_once(run, tmp_path, two_models):
    page, _ = label_folders(run, tmp_path, ["ours", tmp_path / "ours", "ours/p-fox_seed00.mp4"])
    assert len(page["clips"]) == 5


def test_equal_videos_of_two_models_are_two_clips(run, tmp_path, two_models):
    (tmp_path / "base" / "p-fox_seed00.mp4").write_bytes((tmp_path / "ours" / "p-fox_seed00.mp4").read_bytes())
    page, _ = label_folders(run, tmp_path, ["ours", "base"])
    again, _ = label_folders(run, tmp_path, [tmp_path / "ours", tmp_path / "base"], "again.html")
    assert len({clip["id"] for clip in page["clips"]}) == 10
    assert again["page"] == page["page"]


@pytest.mark.parametrize(
    "videos", [3, {"a": 1}, [1], *([{"file": "a.mp4", "components": wrong}] for wrong in ("x", "[1]", 3))]
)
def test_a_json_of_another_shape_is_refused(run, tmp_path, ada, videos):
    (tmp_path / "scores.json").write_text(json.dumps({"videos": videos}))
    code, _, err = run("agreement", "--labels", ada, "--scores", "scores.json")
    assert code == 2 and "scores.json" in err and "Traceback" not in err


def test_invalid_scores_of_all_formats_are_recognised():
    assert [number(value) for value in (None, "", float("nan"), "-100", -100)] == [None] * 5
    assert number("0.5") == 0.5 and number(0) == 0.0


def test_a_column_of_texts_is_no_reward(tmp_path):
    (tmp_path / "scores.csv").write_text("file,score,reason\na.mp4,,gone\nb.mp4,0.5,\n")
    assert read_scores(str(tmp_path / "scores.csv")).rewards() == ["score"]
