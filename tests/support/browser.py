"""Run a headless Chromium for tests of pages: Debian's `chromium`, through playwright."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextmanager
def headless_chromium() -> Iterator[Any]:
    """Start a playwright `Browser`; the test is skipped if playwright or the browser is not installed."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    binary = next((path for name in NAMES if (path := shutil.which(name))), None)
    if binary is None:
        pytest.skip(f"there is no browser on this machine: none of {', '.join(NAMES)}")
    with playwright.sync_playwright() as running:
        # Chromium has no sandbox for root, and /dev/shm is small in containers.
        flags = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        browser = running.chromium.launch(executable_path=binary, args=flags)
        try:
            yield browser
        finally:
            browser.close()


def open_page(browser: Any, file: Path, errors: list[str], **context: Any) -> Any:
    """Open a file as a page in a new offline context.

    Args:
        browser: From `headless_chromium`.
        file (`Path`): The page.
        errors (`list[str]`): Console errors, uncaught exceptions and network requests are appended to it.
        context: Options of `Browser.new_context`, such as `color_scheme="dark"` or `viewport={...}`.
    """
    page = browser.new_context(offline=True, **context).new_page()
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on(
        "request",
        lambda request: errors.append(f"requests {request.url}") if request.url.startswith(("http", "ws")) else None,
    )
    page.goto(file.resolve().as_uri())
    return page
