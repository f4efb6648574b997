"""The page of a run shows all its parts in one file, escapes texts, keeps its size limit, and is rebuilt from disk."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser

import av
import numpy as np
import pytest
from report_folders import EVIL, FRAMES, evaluation_folder, grade, run_folder

from spatialalign_trl.cli import main
from spatialalign_trl.files import read_json, write_json
from spatialalign_trl.report.gallery import Clip, alternate_types, json_for_html, pair_up, rank_by_change
from spatialalign_trl.report.grades import grade_videos, relation_names
from spatialalign_trl.report.page_plots import score_histograms, training_plots
from spatialalign_trl.report.write import write_report


class Page(HTMLParser):
    """The elements of a page, in order: `(tag, attributes)`, and the text of each `<script>`."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")
        if tag not in ("meta", "link", "input", "br", "img"):
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        if self._open and self._open[-1] == "script":
            self.scripts[-1] += data
        elif self._open and self._open[-1] != "style":
            self.text += data

    def close(self):
        super().close()
        assert not self._open, f"not closed: {self._open}"

    @property
    def data(self):
        return json.loads(self.scripts[0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = run_folder(tmp_path_factory.mktemp("runs") / "my <b>run</b>")
    write_report(folder, grade)
    return folder


@pytest.fixture(scope="module")
def page(folder):
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def test_the_page_has_all_its_parts(page):
    ids = {attributes.get("id") for _, attributes in page.elements}
    assert {"headline", "gallery", "filters", "training", "scores", "settings", "commands"} <= ids
    text = re.sub(r"\s+", " ", page.text)
    for words in (
        "S@0.7", "vs. base, paired", "Warning: sharpness fell", "Obedience and quality", "Margin of winner over loser",
        "Prediction error (MSE)", "winner", "loser", "Distance to the reference", "Prompts without a pair", "40%",
        "Round 1, sampled to train on (3 videos, 1 INVALID)", "Evaluation, aligned", "accelerate launch recipes",
        "spatialalign report", "load_lora_weights", "python", "12 of 12 pairs of prompt and seed", "data_seed",
    ):  # fmt: skip
        assert words in text, words


def test_a_reward_without_a_threshold_is_shown_by_its_mean_on_a_wider_axis(tmp_path):
    folder = run_folder(tmp_path / "run")
    results = read_json(folder / "results.json")
    for name, mean in (("base", -1.0), ("aligned", 3.0)):
        del results[name]["dsr_mean"]
        results[name] |= {"reward_mean": mean, "reward_mean_interval": [mean - 0.5, mean + 0.5]}
    results["difference"]["reward_mean"] = {"difference": 4.0, "interval": [3.0, 5.0], "num_pairs": 12}
    write_json(folder / "results.json", results)
    write_report(folder, grade)
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    text = re.sub(r"\s+", " ", page.text)
    assert "reward_mean: the mean score of the videos that are not INVALID" in text
    assert "+4.000 [+3.000, +5.000] vs. base, paired" in text
    assert page.data["threshold"] is None
    fills = [a["style"] for _, a in page.elements if a.get("class") == "fill"]  # from -1.5 to 3.5, 0 at 30 %
    assert fills == ["left:10.0%;width:20.0%", "left:30.0%;width:60.0%"]


def test_the_page_loads_nothing_else(page):
    for tag, attributes in page.elements:
        for name in ("src", "href", "xlink:href", "action", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith("#") or value == "data:,", (tag, name, value)
    assert all(tag not in ("iframe", "object", "embed") for tag, _ in page.elements)


def test_ids_are_unique(page):
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_pictures_have_descriptions(page):
    pictures = [attributes for _, attributes in page.elements if attributes.get("role") == "img"]
    assert len(pictures) >= 2 + 4 + 4 and all(attributes["aria-label"] for attributes in pictures)
    margin = next(label for label in (a["aria-label"] for a in pictures) if label.startswith("Margin"))
    assert margin == "Margin of winner over loser over 6 steps: margin from 0.1 to 0.3."


def test_plots_use_the_colours_of_the_page(page):
    colors = {match for _, a in page.elements for match in re.findall("#0102..", a.get("style") or "")}
    assert not colors and any("var(--first)" in (a.get("style") or "") for _, a in page.elements)


def test_texts_from_prompts_are_escaped(page):
    assert len(page.scripts) == 2
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert not any(tag in ("img", "b") and attributes for tag, attributes in page.elements)
    assert {clip["prompt"] for clip in page.data["clips"]} == {f"{EVIL} {k}" for k in range(6)}
    assert "my <b>run</b>" in page.text and EVIL in page.text and "49" not in page.text.split("sharpness fell")[1][:99]


def test_only_the_page_s_own_script_may_run(page):
    policy = next(a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(page.scripts[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy


def test_videos_play_in_browsers_and_have_curves_and_boxes(page):
    data = page.data
    assert data["policies"] == ["base", "aligned"] and data["threshold"] == 0.7
    for side in (side for clip in data["clips"] for side in clip["sides"]):
        with av.open(io.BytesIO(base64.b64decode(side["video"]))) as container:
            stream = container.streams.video[0]
            assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
            assert stream.height >= 128 and stream.average_rate == 8
            assert len(list(container.decode(video=0))) == side["frames"] == FRAMES
        first, last = side["grade"]["curves"]
        assert len(first["values"]) == len(side["grade"]["counted"]) == len(last["values"]) == FRAMES - 1
        assert side["grade"]["averaged"] == [[0, 2], [6, 8]]
        assert list(side["grade"]["boxes"]) == ["fox", "stump"] and side["grade"]["boxes"]["fox"][4] is None
    invalid = [side["why"] for clip in data["clips"] for side in clip["sides"] if side["reward"] is None]
    assert invalid == ["only N of N frames show the <animal>"]


def test_the_page_is_rebuilt_from_disk_without_models(folder, page):
    def page_without_videos() -> str:
        """Return the page without the videos, which x264 does not encode reproducibly with several threads."""
        return re.sub(r'"video":"[^"]*"', "", (folder / "report.html").read_text(encoding="utf-8"))

    before = page_without_videos()

    def fail(*args, **kwargs):
        raise AssertionError("the reward was called")

    write_report(folder, fail)
    assert page_without_videos() == before and '"curves":[{' in before
    assert len(read_json(folder / "report.json")["grades"]) == 24


@pytest.mark.parametrize("megabytes", [0.11, 0.2])
def test_the_size_limit_leaves_out_videos_and_says_so(tmp_path, megabytes):
    folder = run_folder(tmp_path, prompts=20)
    write_report(folder, grade, megabytes)
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    num_clips = len(page.data["clips"])
    assert (folder / "report.html").stat().st_size <= megabytes * 1e6
    assert num_clips < 40 and f"{num_clips} of 40" in page.text and "The page is limited to" in page.text
    assert set(read_json(folder / "report.json")["grades"]) == {
        f"{side['policy']}-{clip['prompt_id'][1:]}-{clip['seed'] - 100_000}"
        for clip in page.data["clips"]
        for side in clip["sides"]
    }
    if num_clips > 2:
        assert "p2" in {clip["prompt_id"] for clip in page.data["clips"]}  # whose score fell


def test_missing_video_files_are_reported(tmp_path):
    folder = run_folder(tmp_path, prompts=3)
    (folder / "samples" / "base-0-0.mp4").unlink()
    write_report(folder, grade)
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    assert len(page.data["clips"]) == 5 and "1 video cannot be shown: the files are missing" in page.text


def test_a_reward_that_fails_leaves_a_page_without_curves(tmp_path):
    folder = run_folder(tmp_path, prompts=3)
    with pytest.warns(UserWarning, match="no network here"):
        write_report(folder, lambda *a, **k: (_ for _ in ()).throw(ConnectionError("no network here")))
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    assert "Curves and boxes of some videos are missing: ConnectionError: no network here" in page.text
    assert [side["grade"] for clip in page.data["clips"] for side in clip["sides"]] == [None] * 12


def test_other_settings_of_the_reward_invalidate_stored_curves(tmp_path):
    folder = run_folder(tmp_path, prompts=1)
    write_report(folder, grade)
    results = read_json(folder / "results.json")
    results["settings"]["rewards"]["dsr_score"]["tracker"] = "yet another"
    write_json(folder / "results.json", results)
    graded = []
    write_report(folder, lambda videos, **columns: graded.extend(videos) or grade(videos, **columns))
    assert len(graded) == 4


def test_a_run_without_evaluation_has_a_page(tmp_path):
    folder = run_folder(tmp_path, prompts=1)
    results = read_json(folder / "results.json") | {"base": None, "aligned": None, "difference": None}
    write_json(folder / "results.json", results)
    (folder / "report.json").unlink()
    write_report(folder)
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    assert "Nothing was evaluated" in page.text and "Margin of winner" in page.text and not page.data["clips"]


def test_an_evaluation_shows_all_its_policies(tmp_path):
    folder = evaluation_folder(tmp_path / "eval")
    write_report(folder, grade)
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    assert page.data["policies"] == ["base", "mine", "theirs"] and len(page.data["clips"]) == 6
    assert all([side["policy"] for side in clip["sides"]] == page.data["policies"] for clip in page.data["clips"])
    assert "Evaluation of base, mine, theirs" in page.text and "Margin" not in page.text


# The parts


def clip(policy: str, prompt: str, seed: int, reward: float | None = 0.5, dsr_type: str = "LR") -> Clip:
    return Clip(policy, f"{policy}{prompt}{seed}", prompt, seed, "x.mp4", {"type": dsr_type}, reward)


def test_videos_are_paired_by_seed_or_else_by_place():
    ours = [clip("base", "a", 1), clip("base", "a", 2), clip("base", "b", 1)]
    same = [clip("same", "a", 2), clip("same", "b", 1), clip("same", "c", 1)]
    other = [clip("other", "a", 70), clip("other", "a", 71), clip("other", "a", 72)]
    pairs = pair_up([*same, *ours, *other], "base")
    seeds = [{policy: video.seed for policy, video in pair.items()} for pair in pairs]
    assert seeds == [{"base": 1, "other": 70}, {"base": 2, "same": 2, "other": 71}, {"base": 1, "same": 1}]


def test_types_alternate_and_extremes_come_first():
    rewards = {("a", "LR"): 0.5, ("b", "LR"): 0.9, ("c", "LT"): None}
    pairs = [
        {"base": clip("base", prompt, seed, 0.5, dsr_type), "new": clip("new", prompt, seed, reward, dsr_type)}
        for (prompt, dsr_type), reward in rewards.items()
        for seed in (1, 2)
    ]
    order = [(pair["base"].prompt_id, pair["base"].seed) for pair in alternate_types(pairs)]
    assert order == [("a", 1), ("c", 1), ("b", 1), ("a", 2), ("c", 2), ("b", 2)]
    places = rank_by_change(pairs, "base", "new")
    assert sorted(places) == list(range(6)) and {places[0], places[2]} == {2, 3} and {places[1], places[3]} == {4, 5}


def test_the_names_of_relations_say_when_they_apply():
    assert relation_names("LTR") == ["on the left of (start)", "on the top of (visit 1)", "on the right of (end)"]


def test_a_sequence_has_a_curve_and_a_stretch_for_every_visit():
    row = {"type": "LTR", "animal": "fox", "object": "stump"}
    (summary,) = grade_videos(grade, [np.zeros((FRAMES, 4, 4, 3), np.uint8)], [row])
    assert len(summary["curves"]) == 3 and summary["averaged"] == [[0, 2], [3, 6], [6, 8]]
    json.dumps(summary, allow_nan=False)


@pytest.mark.parametrize("text", [EVIL, "<!--", "]]>", "é 鳥"])
def test_json_in_a_page_reads_as_it_was_and_ends_no_script(text):
    written = json_for_html({"a": text})
    assert json.loads(written) == {"a": text} and not set("<>&\u2028") & set(written)


def test_plots_survive_empty_and_broken_logs():
    rounds = [{"round": 1, "training": [{"step": 1, "rewards/margins": float("nan")}], "preferences": {}}]
    assert training_plots(rounds) == [] and training_plots([]) == [] and score_histograms({}) == []
    (plot,) = score_histograms({"all <b>INVALID</b>": [None, None], "nothing": []})
    assert plot.title == "all <b>INVALID</b> (2 videos, 2 INVALID)" and "<b>" not in plot.svg


# The command


def test_the_command_rebuilds_the_page(tmp_path, capsys):
    folder = run_folder(tmp_path, prompts=1)
    write_report(folder, grade)
    (folder / "report.html").unlink()
    assert main(["report", str(folder), "--megabytes", "3"]) == 0
    assert str(folder / "report.html") in capsys.readouterr().out and (folder / "report.html").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "contains no results.json"),
        (["x", "--megabytes", "0"], "not a size above 0"),
        (["x", "--size"], "no"),
    ],
)
def test_the_command_s_errors_name_the_reason(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["report", *words])
    assert stopped.value.code == 2 and message in capsys.readouterr().err
