"""In a browser, the page plays videos in sync with curves and boxes, filters and sorts them, and obeys keys."""

from __future__ import annotations

import time

import pytest
from browser import open_page
from report_folders import FRAMES, grade, run_folder

from spatialalign_trl.report.write import write_report


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write_report(run_folder(tmp_path_factory.mktemp("run"), prompts=9), grade)


@pytest.fixture(scope="module")
def errors() -> list[str]:
    return []


@pytest.fixture(scope="module")
def page(chromium, file, errors):
    """Open the page with reduced motion, so that nothing plays unless a test starts it."""
    page = open_page(chromium, file, errors, reduced_motion="reduce", viewport={"width": 1200, "height": 900})
    yield page
    page.context.close()


@pytest.fixture(autouse=True)
def fresh(page):
    page.locator("#filters button[type=reset]").click()
    until(page, "document.querySelector('#page').textContent === 'page 1 of 2'")


def until(page, expression: str, seconds: float = 60) -> None:
    """Poll from outside, because the page's security policy blocks playwright's `wait_for_function`."""
    end = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < end, f"never true: {expression}"
        time.sleep(0.05)


def cards(page) -> list[str]:
    return page.eval_on_selector_all(".card h3", "all => all.map((title) => title.textContent.split(' ').at(-1))")


def choose(page, name: str, value: str) -> None:
    page.locator(f"#filters [name={name}]").select_option(value)


def until_ready(page) -> None:
    until(page, "[...document.querySelectorAll('video')].every((video) => video.readyState >= 2)")


def test_videos_play_together_and_curves_and_boxes_follow(page):
    until_ready(page)
    card = page.locator(".card").first
    assert card.locator("video").evaluate_all("all => all.every((video) => video.paused && video.videoWidth >= 128)")
    card.get_by_role("button", name="Play").click()
    until(page, "document.querySelector('.card video').currentTime > 0.3")
    card.get_by_role("button", name="Pause").click()
    times = card.locator("video").evaluate_all("all => all.map((video) => video.currentTime)")
    assert abs(times[0] - times[1]) < 0.15
    slider = card.locator("input[type=range]")
    for frame, boxes in ((0, 2), (4, 0), (FRAMES - 1, 2)):
        slider.fill(str(frame))
        until(
            page,
            f"[...document.querySelectorAll('.card')[0].querySelectorAll('.side')]"
            f".every((side) => side.dataset.frame == {frame})",
        )
        assert card.locator(".boxes").first.locator("rect:not(.halo)").count() == boxes
        x = float(card.locator(".cursor").first.get_attribute("x1"))
        assert x == pytest.approx(100 * (frame + 0.5) / FRAMES, abs=1)
        value = card.locator(".legend output").first.inner_text()
        assert value == {0: "+1.00", 4: "not counted", FRAMES - 1: "\u22121.00"}[frame]
        assert card.locator(".controls output").inner_text() == f"frame {frame + 1} of {FRAMES}"


def test_filters_and_orders(page):
    assert page.locator("#count").inner_text() == "18 of 18 shown" and page.locator(".card").count() == 12
    choose(page, "type", "RL")
    assert page.locator("#count").inner_text() == "6 of 18 shown" and set(cards(page)) == {"2", "5", "8"}
    choose(page, "type", "")
    choose(page, "order", "improved")
    assert cards(page)[0] == "1"  # INVALID before, 0.76 after
    choose(page, "order", "regressed")
    assert cards(page)[0] == "2" and "\u22120.250" in page.locator(".card .meta").first.inner_text()
    choose(page, "reason", "any")
    assert page.locator("#count").inner_text() == "1 of 18 shown" and cards(page) == ["1"]
    assert page.locator(".card .reason").inner_text() == "INVALID: only N of N frames show the <animal>"
    choose(page, "reason", "")
    choose(page, "side", "aligned")
    page.locator("#filters [name=most]").fill("0.5")
    assert cards(page) == ["2"]
    page.locator("#filters [name=most]").fill("0.0")
    assert page.locator("#count").inner_text() == "0 of 18 shown" and cards(page) == []


def test_turning_pages_releases_videos(page):
    page.locator("#next").click()
    assert page.locator("#page").inner_text() == "page 2 of 2" and page.locator("video").count() == 12
    assert page.locator("#next").is_disabled() and page.locator("#previous").is_enabled()
    until_ready(page)


def test_keys_work(page):
    until_ready(page)
    card = page.locator(".card").nth(1)
    card.focus()
    page.keyboard.press("ArrowRight")
    until(page, "document.querySelectorAll('.card')[1].querySelector('.side').dataset.frame == 1")
    page.keyboard.press("ArrowLeft")
    until(page, "document.querySelectorAll('.card')[1].querySelector('.side').dataset.frame == 0")
    page.keyboard.press("b")
    assert not page.locator("#boxes").is_checked() and not card.locator(".boxes").first.is_visible()
    page.keyboard.press("b")
    assert card.locator(".boxes").first.is_visible()
    page.keyboard.press("p")
    assert page.locator("#play").inner_text() == "Pause all"
    page.keyboard.press("p")
    assert page.locator("#play").inner_text() == "Play all"
    page.keyboard.press(" ")
    assert card.get_by_role("button", name="Pause").is_visible()
    page.keyboard.press(" ")


def test_dark_and_light_follow_the_system(page):
    def background() -> str:
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    light = background()
    page.emulate_media(color_scheme="dark")
    assert light == "rgb(255, 255, 255)" and background() == "rgb(13, 17, 23)"
    page.emulate_media(color_scheme="light")


def test_a_phone_scrolls_in_one_direction_only(page):
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.set_viewport_size({"width": 1200, "height": 900})


def test_no_script_from_a_prompt_ran_and_the_console_has_no_errors(page, errors):
    page.get_by_role("button", name="Copy").first.click()
    until(page, "document.querySelector('.copy').textContent === 'Copied'")
    assert errors == []
