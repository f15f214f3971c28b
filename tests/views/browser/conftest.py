"""A headless Chromium, and pages that may neither fail nor ask anyone but the server."""

import re
import shutil
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.event_runs import STEPS, write_garbage, write_run, write_three_runs
from support.tensorboard_process import tensorboard_over
from tensorboard.data.provider import DataProvider
from tensorboard.plugins.base_plugin import TBContext
from werkzeug.serving import WSGIRequestHandler, make_server

from ntk_monitor.views.dashboard.plugin import NTKPlugin
from ntk_monitor.views.events import open_runs

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
HTML = b"<!doctype html><link rel=icon href=data:,><script type=module src=/boot.js></script>"
BOOT = b"import { render } from '/data/plugin/ntk/index.js'; await render();"
POLICY = "default-src 'self'; img-src data:"
ENDED: set[str] = set()
"""Servers that a test has ended before its page."""

Open = Callable[..., Any]


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Open]:
    """Opens pages; at the end, none may have failed or asked anyone but its own server."""
    troubles: list[str] = []
    context = browser.new_context(viewport={"width": 1500, "height": 950})
    context.set_default_timeout(15_000)

    def check(url: str, allowed: tuple[str, ...]) -> None:
        if not url.startswith(allowed):
            troubles.append(f"request to {url}")

    def complain(message: Any) -> None:
        url = message.location["url"]
        gone = "net::ERR_CONNECTION" in message.text and url.startswith(tuple(ENDED))
        if message.type == "error" and not gone and "favicon" not in url:
            troubles.append(message.text)

    def open_url(
        url: str, *, failing: bool = False, before: Callable[[Any], object] | None = None
    ) -> Any:
        origin = url if url.startswith("file:") else re.match(r"http://[^/]*/", url)[0]
        page = context.new_page()
        page.on("pageerror", lambda error: troubles.append(f"exception: {error}"))
        if not failing:
            page.on("console", complain)
        page.on("request", lambda r: check(r.url, (origin, "data:", "blob:")))
        if before is not None:
            before(page)
        page.goto(url)
        return page

    yield open_url
    context.close()
    assert not troubles


@pytest.fixture(scope="session")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs that stall, learn, have nothing, hold garbage, and lose their numbers."""
    top = tmp_path_factory.mktemp("logs")
    write_three_runs(top)
    write_garbage(top / "garbage")
    lost = {"ntk/core_cosine": float("nan"), "ntk/trace": float("inf")}
    write_run(top / "lost", changed={STEPS[2]: lost, STEPS[3]: lost})
    return top


@pytest.fixture(scope="session")
def tensorboard(logs: Path) -> Iterator[str]:
    """The address of a TensorBoard of its own process."""
    with tensorboard_over(logs) as url:
        _wait_for_runs(url, 5)
        yield url


def _wait_for_runs(url: str, count: int) -> None:
    for _ in range(100):
        with urllib.request.urlopen(f"{url}data/runs", timeout=60) as answer:
            if answer.read().count(b'"') == 2 * count:
                return
        time.sleep(0.1)
    raise AssertionError("TensorBoard has not read its runs")


@pytest.fixture
def tab(tensorboard: str, open_page: Open) -> Any:
    """The tab's own page, as TensorBoard serves it."""
    page = open_page(f"{tensorboard}data/plugin_entry.html?name=ntk")
    page.wait_for_selector("[data-ready]")
    return page


@pytest.fixture
def whole(tensorboard: str, open_page: Open) -> tuple[Any, Any]:
    """All of TensorBoard, opened at the tab, and the tab's frame."""
    page = open_page(f"{tensorboard}#ntk")
    frame = page.wait_for_selector("iframe").content_frame()
    frame.wait_for_selector("[data-ready]")
    return page, frame


class Quiet(WSGIRequestHandler):
    def log(self, *arguments: object) -> None:
        """Say nothing."""


@contextmanager
def serving(provider: DataProvider) -> Iterator[str]:
    """The tab alone, with no more rights than its own server's files."""
    apps = NTKPlugin(TBContext(data_provider=provider)).get_plugin_apps()

    def app(environ: dict[str, Any], start: Any) -> Any:
        path = environ["PATH_INFO"]
        if path in {"/", "/boot.js"}:
            kind = "text/html" if path == "/" else "text/javascript"
            start("200 OK", [("Content-Type", kind), ("Content-Security-Policy", POLICY)])
            return [HTML if path == "/" else BOOT]
        return apps[path.removeprefix("/data/plugin/ntk")](environ, start)

    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{server.port}/"
    ENDED.discard(url)
    try:
        yield url
    finally:
        ENDED.add(url)
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def serve() -> Callable[[DataProvider], Any]:
    return serving


@pytest.fixture
def two(serve: Callable[..., Any], open_page: Open, tmp_path: Path) -> Any:
    """The tab's page with a run that stalls and one that learns."""
    write_run(tmp_path / "bad")
    write_run(tmp_path / "good", stalled=False)
    with serve(open_runs([tmp_path])) as url:
        page = open_page(url)
        page.wait_for_selector("[data-ready]")
        yield page
