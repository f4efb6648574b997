"""The labelling page is one blind file; in a browser, keys and buttons label clips and nothing is lost."""

import json
import re

import numpy as np
import pytest
from browser import open_page

from spatialalign_trl.evaluation.labels import read_labels
from spatialalign_trl.report.label_page import Clip, label_page
from spatialalign_trl.video import browser_mp4


def clip(number, prompt="", dsr_type="LR", folder="base"):
    video = np.full((4, 32, 48, 3), 10 * number, np.uint8)
    return Clip(
        f"{folder}/clip{number}.mp4", f"p{number}", prompt, dsr_type, "fox", "stump", "red", browser_mp4(video, 8)
    )


@pytest.fixture(scope="module")
def clips():
    return [clip(1), clip(2, "A fox </script><b>& a stump"), clip(3, dsr_type="LTR")]


@pytest.fixture(scope="module")
def file(clips, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "label.html"
    path.write_text(label_page(clips, seed=7), encoding="utf-8")
    return path


def test_the_page_is_one_file_without_links(file):
    text = file.read_text(encoding="utf-8")
    assert not re.findall(r"(?:src|href)=[\"'](?!data:)", text)
    assert "http" not in re.sub(r"http-equiv", "", text)


def test_a_prompt_cannot_end_the_script(file):
    text = file.read_text(encoding="utf-8")
    assert "</script><b>" not in text
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])
    assert data["clips"][1]["prompt"] == "A fox </script><b>& a stump"


def test_no_clip_and_a_clip_twice_are_refused(clips):
    with pytest.raises(ValueError, match="no clip"):
        label_page([], 0)
    with pytest.raises(ValueError, match="occurs twice"):
        label_page([clips[0], clips[0]], 0)


# In a browser

STATE = "Object.values(labels).map(l => l.absent ? 'x' : l.skipped ? 's' : Object.values(l.answers).join(''))"


def begin(chromium, file, errors, name="Ada", **context):
    page = open_page(chromium, file, errors, **context)
    page.fill("#name", name)
    page.keyboard.press("Enter")
    return page


def press(page, keys):
    for key in keys:
        page.keyboard.press("Backspace" if key == "<" else key)


def exported(page, tmp_path, key="e"):
    with page.expect_download() as download:
        page.keyboard.press(key)
    path = tmp_path / download.value.suggested_filename
    download.value.save_as(path)
    return path


def wait_for(page, expression):
    """Poll from outside, because the page's security policy blocks playwright's `wait_for_function`."""
    for _ in range(200):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never true: {expression}")


@pytest.fixture
def ada(chromium, file):
    """Open the page as Ada; afterwards the console must have no errors."""
    errors = []
    page = begin(chromium, file, errors, accept_downloads=True)
    yield page
    assert errors == []


def test_the_page_asks_about_a_playing_clip(ada):
    assert ada.inner_text("#question") == "At the start, is the red fox on the left of the stump?"
    wait_for(ada, "video.currentTime > 0 && video.videoHeight >= 240")


def test_keys_answer_and_go_back(ada):
    press(ada, "32")
    assert ada.inner_text("#question").startswith("Does it look fine")
    press(ada, "<<1")  # the first answer becomes no
    press(ada, "33")
    assert ada.inner_text("#progress") == "1 of 3"
    assert ada.evaluate(STATE) == ["022"]


def test_a_reload_keeps_the_answers_of_an_unfinished_clip(ada, clips):
    press(ada, "13")
    ada.reload()
    assert ada.inner_text("#progress") == "0 of 3"
    assert ada.inner_text("#question").startswith("Does it look fine")
    press(ada, "3")
    assert ada.inner_text("#progress") == "1 of 3"
    assert ada.inner_text("#prompt") == clips[1].prompt


def test_undo_takes_a_label_back(ada):
    press(ada, "333x")
    assert ada.inner_text("#progress") == "2 of 3"
    press(ada, "u")
    assert ada.inner_text("#progress") == "1 of 3"


def test_after_the_last_clip_keys_label_nothing_and_undo_returns_to_it(ada):
    press(ada, "133s3333")
    assert ada.is_visible("#finished") and not ada.is_visible("#video")
    press(ada, "3x")
    assert ada.evaluate(STATE) == ["022", "s", "2222"]
    press(ada, "u")
    assert ada.is_visible("#video") and ada.inner_text("#question").startswith("Does it look fine")


def test_the_export_contains_labels_times_and_the_labeller(ada, tmp_path, clips):
    wait_for(ada, "video.currentTime > 0.1")  # a label takes a measurable time
    press(ada, "133s3331")
    path = exported(ada, tmp_path)
    data = json.loads(path.read_text(encoding="utf-8"))
    assert path.name == "labels-Ada.json" and data["labeller"] == "Ada" and data["seed"] == 7 and data["version"] == 1
    assert [row["id"] for row in data["labels"]] == [clip.clip_id for clip in clips]
    assert [row["skipped"] for row in data["labels"]] == [False, True, False]
    assert all(row["seconds"] >= 0 and row["labelled_at"] for row in data["labels"])
    assert data["labels"][0]["seconds"] > 0.1
    labels = read_labels(path)
    assert labels.skipped == 1
    assert [dict(label.answers) for label in labels.labels.values()] == [
        {"start": 0, "end": 2, "looks": 2},
        {"start": 2, "visit_1": 2, "end": 2, "looks": 0},
    ]


def test_each_name_has_its_own_labels_and_buttons_do_what_keys_do(chromium, file):
    errors = []
    page = begin(chromium, file, errors)
    page.click("[data-key='3']")
    page.click("#other")
    page.fill("#name", "Bob")
    page.keyboard.press("Enter")
    assert page.evaluate(STATE) == []
    page.click("[data-key='x']")
    assert page.inner_text("#progress") == "1 of 3"
    page.click("#other")
    page.fill("#name", "Ada")
    page.keyboard.press("Enter")
    assert page.evaluate("labels[data.clips[0].id].answers") == {"start": 2}
    assert errors == []


def test_it_is_blind_and_fits_a_phone_in_the_dark(chromium, file):
    errors = []
    page = begin(chromium, file, errors, viewport={"width": 360, "height": 640}, color_scheme="dark")
    text = page.inner_text("body")
    assert "base" not in text and "clip1" not in text and "score" not in text.lower()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    low, high = (page.evaluate(f"getComputedStyle(document.body).{name}") for name in ("backgroundColor", "color"))
    luminance = [sum(map(int, re.findall(r"\d+", color)[:3])) for color in (low, high)]
    assert luminance[0] < 150 < 500 < luminance[1]
    answers = page.locator(".answers button").first.bounding_box()
    assert answers["height"] >= 44 and answers["y"] + answers["height"] <= 640
    assert errors == []


def test_two_tabs_of_the_page_share_the_labels(chromium, file):
    errors = []
    first = begin(chromium, file, errors)
    second = first.context.new_page()
    second.goto(file.resolve().as_uri())
    press(second, "x")
    wait_for(first, "document.getElementById('progress').textContent === '1 of 3'")
    press(first, "s")
    wait_for(second, "document.getElementById('progress').textContent === '2 of 3'")
    assert second.evaluate(STATE) == ["x", "s"]
    assert errors == []


def test_a_held_key_labels_once_and_a_shortcut_not_at_all(chromium, file):
    errors = []
    page = begin(chromium, file, errors)
    page.keyboard.down("3")
    page.keyboard.down("3")  # what a browser sends while a key is held
    page.keyboard.up("3")
    page.keyboard.press("Control+1")
    assert page.evaluate(STATE) == ["2"]
    assert errors == []


def test_damaged_storage_is_set_aside_and_a_clip_that_cannot_play_says_so(chromium, clips, tmp_path):
    broken = Clip(**{**vars(clips[0]), "mp4": b"no video"})
    path = tmp_path / "broken.html"
    path.write_text(label_page([broken], 0), encoding="utf-8")
    errors = []
    page = begin(chromium, path, errors)
    wait_for(page, "!document.getElementById('broken').hidden")
    page.evaluate("localStorage.setItem(keyOf('Ada'), '{damaged')")
    page.reload()
    assert page.inner_text("#progress") == "0 of 1"
    assert page.evaluate("localStorage.getItem(keyOf('Ada') + ':damaged')") == "{damaged"
    press(page, "s")
    assert page.is_visible("#finished")
    assert errors == []
