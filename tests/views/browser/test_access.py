"""The tab and the report for those who do not see them, or use no mouse."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.event_runs import STEPS, write_run

from ntk_monitor.views.events import open_runs
from ntk_monitor.views.report import write_report

axe = pytest.importorskip("axe_playwright_python.sync_playwright")

Serve = Callable[[Any], Any]
Open = Callable[..., Any]
GRAVE = {"serious", "critical"}


def findings(page: Any) -> list[str]:
    """What axe calls serious or critical, with the elements."""
    return [
        f"{found['id']}: {[node['html'][:160] for node in found['nodes']]}"
        for found in axe.Axe().run(page).response["violations"]
        if found["impact"] in GRAVE
    ]


def in_theme(theme: str) -> Callable[[Any], object]:
    return lambda page: page.emulate_media(color_scheme=theme)


def draw_all(page: Any, height: int = 5000) -> None:
    """Bring every chart into view."""
    page.set_viewport_size({"width": page.viewport_size["width"], "height": height})
    page.wait_for_selector("[data-ready]")
    page.locator("#snapshots canvas").last.wait_for()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_grave_in_the_tab(
    serve: Serve, open_page: Open, tmp_path: Path, theme: str
) -> None:
    write_run(tmp_path / "bad")
    write_run(tmp_path / "good", stalled=False)
    with serve(open_runs([tmp_path])) as url:
        page = open_page(url, before=in_theme(theme), failing=True)
        draw_all(page)
        assert page.locator("html").get_attribute("data-theme") == theme
        page.evaluate("document.title = 'NTK'; document.documentElement.lang = 'en'")
        assert findings(page) == []


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1400])
def test_axe_finds_nothing_grave_in_the_report(
    open_page: Open, tmp_path: Path, theme: str, width: int
) -> None:
    write_run(tmp_path / "logs" / "bad")
    write_run(tmp_path / "logs" / "good", stalled=False)
    made = write_report([tmp_path / "logs"], tmp_path / "report.html")
    page = open_page(made.path.as_uri(), before=in_theme(theme), failing=True)
    page.set_viewport_size({"width": width, "height": 900})
    draw_all(page, 9000)
    page.locator("#static summary").click()
    assert findings(page) == []


def picture(page: Any, name: str) -> Any:
    """The picture of a chart, in view and drawn."""
    found = page.locator(f".chart-box[aria-label^='Chart of {name}.']").first
    found.scroll_into_view_if_needed()
    found.locator("canvas").wait_for()
    return found


def test_every_chart_says_its_last_value_range_and_error(two: Any) -> None:
    page = two
    said = picture(page, "temporal effective rank").get_attribute("aria-label")
    last, first = 3 + STEPS[-1] / 100, 3
    assert f"bad: last {last:g} ± 0.1, from {first} to {last:g}" in said
    assert "good: last" in said
    page.locator("#snapshots").scroll_into_view_if_needed()
    page.locator("#snapshots canvas").last.wait_for()
    for box in page.locator(".chart-box").all():
        assert box.get_attribute("role") == "img"
        assert box.get_attribute("aria-label").startswith("Chart of ")
        assert ": last " in box.get_attribute("aria-label")


def test_arrow_keys_move_the_cursor_and_the_values_are_said(two: Any) -> None:
    page = two
    box = picture(page, "temporal effective rank")
    box.focus()
    box.press("End")
    live = page.locator("[aria-live].live")
    assert live.text_content() == f"step {STEPS[-1]}. bad: 8 ± 0.1. good: 8 ± 0.1"
    box.press("ArrowLeft")
    assert live.text_content().startswith(f"step {STEPS[-2]}. bad: 7 ")
    hover = page.locator(".chart").filter(has=box).locator(".hover")
    assert f"step {STEPS[-2]}" in hover.inner_text()
    box.press("Home")
    assert live.text_content().startswith(f"step {STEPS[0]}. ")
    box.press("Escape")
    assert not hover.is_visible()


def test_focus_is_seen_and_nothing_moves_by_itself(two: Any) -> None:
    page = two
    page.keyboard.press("Tab")
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert page.evaluate(outline) == "solid"
    for _ in range(12):
        page.keyboard.press("Tab")
        assert page.evaluate(outline) == "solid", page.evaluate("document.activeElement.outerHTML")
    assert page.evaluate("document.getAnimations().length") == 0
    moving = """[...document.querySelectorAll('.ntk *')].filter((element) =>
      getComputedStyle(element).transitionDuration !== '0s').map((element) => element.className)"""
    assert page.evaluate(moving) == []


def test_the_words_are_explained_and_a_reader_is_told(two: Any) -> None:
    page = two
    for word, text in (
        ("mode", "A part of the target"),
        ("state", "What StallAlert says"),
        ("transfer", "What a step on some trials does"),
    ):
        term = page.locator("th .term", has_text=word).first
        term.focus()
        assert text in page.locator(".tip").inner_text()
        assert term.get_attribute("aria-describedby") == page.locator(".tip").get_attribute("id")
    page.locator("#snapshots").scroll_into_view_if_needed()
    sees = page.locator("#snapshots .term", has_text="sees")
    sees.focus()
    assert "leading temporal modes contain it" in page.locator(".tip").inner_text()


def test_the_report_fits_a_phone(open_page: Open, tmp_path: Path) -> None:
    name = "a_run_with_a_long_name_that_no_phone_has_room_for_in_one_line/version_0"
    write_run(tmp_path / "logs" / name)
    write_run(tmp_path / "logs" / "good", stalled=False)
    made = write_report([tmp_path / "logs"], tmp_path / "report.html")
    page = open_page(made.path.as_uri())
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_selector("[data-ready]")
    page.locator("#static summary").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator("h1").inner_text().startswith("NTK report: ")
    numbers = page.locator("#static .numbers").first
    display = "cell => getComputedStyle(cell).display"
    assert numbers.locator("td").first.evaluate(display) == "block"  # the table stacks
    assert numbers.bounding_box()["width"] <= 390
    modes = page.locator("#board .table")
    assert modes.evaluate("box => box.scrollWidth > box.clientWidth")  # and this one scrolls
    assert modes.bounding_box()["width"] <= 390


def test_the_report_prints_as_text_in_black_on_white(open_page: Open, tmp_path: Path) -> None:
    write_run(tmp_path / "logs" / "bad")
    made = write_report([tmp_path / "logs"], tmp_path / "report.html")
    page = open_page(made.path.as_uri(), before=in_theme("dark"))
    page.wait_for_selector("[data-ready]")
    page.emulate_media(media="print", color_scheme="dark")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert not page.locator("#dashboard").is_visible()
    assert page.locator("#static table").first.is_visible()
    ink = page.locator("#static p").first.evaluate("text => getComputedStyle(text).color")
    paper = page.locator("body").evaluate("body => getComputedStyle(body).backgroundColor")
    assert (ink, paper) == ("rgb(0, 0, 0)", "rgb(255, 255, 255)")
    assert page.pdf().count(b"/Type /Page\n") in range(1, 8)
