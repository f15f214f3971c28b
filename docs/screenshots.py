"""Make the pictures of docs/dashboard.md from the logs of the two Memory-Pro runs.

Train both first (``ntk-monitor fit --config configs/memory_pro_network1.yaml``, and 2), then:

    python docs/screenshots.py runs

Needs a Chromium.
"""

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

IMAGES = Path(__file__).parent / "images"
WIDTH = 1500
SETTLE = 1500
"""Milliseconds in which charts that came into view are drawn."""


def main() -> None:
    """Start TensorBoard and take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("logs", help="log folder of both runs")
    logs = parser.parse_args().logs
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", logs, "--port", "0",
               "--host", "127.0.0.1"]  # fmt: skip
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        found = (re.search(r"http://127\.0\.0\.1:\d+/", line) for line in server.stderr)
        url = next(match[0] for match in found if match)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox"]
            )
            take(browser, f"{url}#ntk", "dashboard_light.png", 1120)
            take(browser, f"{url}?darkMode=true#ntk", "dashboard_dark.png", 1010, "#snapshots")
            browser.close()
    finally:
        server.terminate()
        server.wait()


def take(browser: Browser, url: str, name: str, height: int, first: str | None = None) -> None:
    """One picture, from the top of the tab or from one of its sections on."""
    page = browser.new_page(viewport={"width": WIDTH, "height": height})
    page.goto(url)
    for _ in range(20):  # TensorBoard may not have read its files yet
        frame = page.wait_for_selector("iframe").content_frame()
        assert frame is not None
        frame.wait_for_selector("[data-ready]")
        if frame.locator(".verdict").count():
            break
        page.wait_for_timeout(SETTLE)
        page.reload()
    if first is not None:
        frame.locator(first).evaluate("section => section.scrollIntoView()")
        page.wait_for_timeout(SETTLE)
        frame.locator(first).evaluate(
            "section => { section.scrollIntoView(); window.scrollBy(0, -260); }"
        )
    page.wait_for_timeout(SETTLE)
    page.screenshot(path=IMAGES / name)
    page.close()


if __name__ == "__main__":
    main()
