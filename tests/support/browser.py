"""A real Chromium, driven by Playwright; tests that want it are skipped where none is installed."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
DESKTOP = {"width": 1360, "height": 900}
PHONE = {"width": 390, "height": 844}


def chromium_path() -> str:
    """Where it is; skips the test if it is nowhere."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium is installed")
    return path


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser with a fresh profile of its own."""
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium_path(), args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


class Tab:
    """A page, and all that it complained of."""

    def __init__(self, browser: Any, url: str, viewport: dict[str, int] = DESKTOP, scheme: str = "light") -> None:
        self.page = browser.new_page(viewport=viewport, color_scheme=scheme)
        self.complaints: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        self.page.on("requestfailed", lambda request: self.complaints.append(f"failed: {request.url}"))
        self.asked: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(url)

    def text(self, selector: str) -> str:
        """What is to be read there."""
        return str(self.page.inner_text(selector))

    def wait(self, condition: str, timeout_s: float = 30.0) -> None:
        """Until a JavaScript expression holds. (Playwright's own way is code made in the page: forbidden.)"""
        deadline = time.monotonic() + timeout_s
        while not self.page.evaluate(condition):
            assert time.monotonic() < deadline, f"not within {timeout_s} s: {condition}; {self.complaints}"
            self.page.wait_for_timeout(100)
