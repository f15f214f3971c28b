"""What can be done with the charts and tables of the tab."""

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.event_runs import STEPS, write_run

from ntk_monitor.views.events import open_runs
from ntk_monitor.views.facts import FACTS_TAG
from ntk_monitor.views.record import write_record

pytest.importorskip("playwright.sync_api")
SVG = "{http://www.w3.org/2000/svg}"

Serve = Callable[[Any], Any]
Open = Callable[..., Any]


@pytest.fixture
def page(two: Any) -> Any:
    return two


def chart(page: Any, name: str) -> Any:
    """A chart of numbers over time, in view and drawn."""
    box = page.locator(f".chart-box[aria-label^='Chart of {name}.']")
    found = page.locator("#timeline .chart").filter(has=box).first
    found.scroll_into_view_if_needed()
    found.locator("canvas").wait_for()
    found.hover()
    return found


def tool(box: Any, label: str) -> Any:
    return box.locator(f".tool[aria-label^='{label}']")


def downloaded(page: Any, button: Any) -> tuple[str, str]:
    """The name and the text of the file that a button gives."""
    with page.expect_download() as waiting:
        button.click()
    return waiting.value.suggested_filename, Path(waiting.value.path()).read_text()


def test_the_tab_opens_on_the_verdict_and_how_sure_it_is(page: Any) -> None:
    page.set_viewport_size({"width": 900, "height": 700})
    sure = page.get_by_text("95 % sure").first
    box = sure.bounding_box()
    assert page.evaluate("scrollY") == 0
    assert box["y"] + box["height"] < 700


def test_a_chart_is_saved_as_numbers(page: Any) -> None:
    box = chart(page, "temporal effective rank")
    name, text = downloaded(page, tool(box, "Download the numbers"))
    assert name == "temporal_effective_rank.csv"
    head, *rows = text.splitlines()
    assert head == "curve,step,value,stderr"
    wanted = [f"{run},{step},{3 + step / 100:g},0.1" for run in ("bad", "good") for step in STEPS]
    assert rows == wanted


def test_a_chart_is_saved_as_a_picture(page: Any) -> None:
    box = chart(page, "temporal effective rank")
    name, text = downloaded(page, tool(box, "Download the picture"))
    assert name == "temporal_effective_rank.svg"
    drawing = ET.fromstring(text)
    lines = [path.get("d") for path in drawing.iter(f"{SVG}path")]
    assert [len(re.findall("[ML]", line)) for line in lines] == [len(STEPS)] * 2
    heights = [float(y) for _, y in re.findall(r"[ML](\S+) ([\d.]+)", lines[0])]
    assert heights == sorted(heights, reverse=True)  # the curve rises
    words = [text.text for text in drawing.iter(f"{SVG}text")]
    assert {"temporal effective rank", "step", "time courses", "bad", "good"} <= set(words)
    assert len(list(drawing.iter(f"{SVG}polygon"))) == 2  # a band each


def test_an_axis_becomes_logarithmic_and_linear_again(page: Any) -> None:
    box = chart(page, "temporal effective rank")
    log = tool(box, "Logarithmic axis")
    marks = [re.compile(">10<"), re.compile(">1<")]

    def axis() -> str:
        return downloaded(page, tool(box, "Download the picture"))[1]

    assert log.get_attribute("aria-pressed") == "false"
    log.click()
    assert log.get_attribute("aria-pressed") == "true"
    assert all(mark.search(axis()) for mark in marks)
    log.click()
    assert not all(mark.search(axis()) for mark in marks)


def test_a_pinned_chart_is_in_front_and_stays_there(page: Any) -> None:
    first = page.locator("#timeline .chart-box").first
    assert "headroom" not in first.get_attribute("aria-label")
    tool(chart(page, "headroom"), "Pin").click()
    assert first.get_attribute("aria-label").startswith("Chart of headroom.")
    page.reload()
    page.wait_for_selector("[data-ready]")
    assert first.get_attribute("aria-label").startswith("Chart of headroom.")
    assert tool(chart(page, "headroom"), "Pin").get_attribute("aria-pressed") == "true"
    tool(chart(page, "headroom"), "Pin").click()
    assert "headroom" not in first.get_attribute("aria-label")


def test_a_chart_fills_the_screen_until_it_is_left(page: Any) -> None:
    box = chart(page, "core cosine")
    before = box.bounding_box()
    tool(box, "Full screen").click()
    dialog = page.locator("dialog.full")
    assert dialog.bounding_box()["width"] > 0.9 * page.viewport_size["width"]
    assert dialog.locator("canvas").bounding_box()["height"] > 2 * before["height"]
    page.keyboard.press("Escape")
    dialog.wait_for(state="detached")
    box = chart(page, "core cosine")
    after = box.bounding_box()
    assert (after["width"], after["height"]) == (before["width"], before["height"])


def test_smoothing_averages_what_is_drawn_and_not_what_was_logged(page: Any) -> None:
    box = chart(page, "temporal effective rank")

    def files() -> tuple[str, list[str]]:
        numbers = downloaded(page, tool(box, "Download the numbers"))[1]
        picture = ET.fromstring(downloaded(page, tool(box, "Download the picture"))[1])
        return numbers, [path.get("d") for path in picture.iter(f"{SVG}path")]

    numbers, plain = files()
    assert len(plain) == 2
    page.get_by_label("Smoothing").fill("0.5")
    box.hover()
    again, lines = files()
    assert again == numbers
    assert len(lines) == 4
    end = [float(line.rpartition(" ")[2]) for line in lines[:2]]
    assert end[1] > end[0]  # further down: the average of a rise lags behind it


def test_every_axis_of_a_logged_number_says_what_it_counts(page: Any) -> None:
    page.set_viewport_size({"width": 1500, "height": 5000})
    page.locator("#timeline canvas").last.wait_for()
    for box in page.locator("#timeline .chart, #board .chart").all():
        box.hover()
        picture = ET.fromstring(downloaded(page, tool(box, "Download the picture"))[1])
        words = [text.text for text in picture.iter(f"{SVG}text") if text.get("transform")]
        assert words
        assert words[0], box.locator(".chart-title").inner_text()


def test_a_forecast_stands_at_the_step_that_it_is_for(page: Any) -> None:
    box = chart(page, "Loss, and its forecasts")
    _, text = downloaded(page, tool(box, "Download the numbers"))
    rows = [line.rsplit(",", 3) for line in text.splitlines()[1:] if "good" in line]
    came = {float(step): float(value) for curve, step, value, _ in rows if "came" in curve}
    ten = {float(step): float(value) for curve, step, value, _ in rows if "10 steps" in curve}
    assert sorted(came) == list(STEPS)
    assert ten == {step + 10: pytest.approx(0.9 * value, rel=1e-4) for step, value in came.items()}


def test_what_a_mode_is_in_the_data_stands_beside_it(
    serve: Serve, open_page: Open, tmp_path: Path
) -> None:
    from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 (slow, and only here)

    run = write_run(tmp_path / "run")
    with SummaryWriter(str(run)) as writer:
        facts = {"model": "Net", "optimizers": ["SGD, lr 0.1"], "outputs": ["left", "right"]}
        write_record(writer, FACTS_TAG, facts, 0)
    with serve(open_runs([tmp_path])) as url:
        page = open_page(url)
        page.wait_for_selector("[data-ready]")
        cell = page.locator("#board td.course").first
        assert cell.locator("polyline").count() == 4  # a line for each trial
        assert "left" in cell.inner_text()
        assert "right" in cell.inner_text()
        label = cell.locator("[role=img]").get_attribute("aria-label")
        assert label.startswith("Mode 1 in the data over time, 4 trials: ")
        where = page.locator("#board .where").first.inner_text()
        assert re.fullmatch(r"\d+ % in rnn\.\w+", where)
        assert "Net · SGD, lr 0.1" in page.locator(".verdict").inner_text()


@pytest.mark.parametrize("width", [900, 1400, 1500, 1900])
def test_no_column_is_cut_off(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    for box in page.locator("#now .table, #board .table").all():
        assert box.evaluate("box => box.scrollWidth <= box.clientWidth")
        right = box.evaluate("box => box.getBoundingClientRect().right")
        last = box.locator("th").last.evaluate("cell => cell.getBoundingClientRect().right")
        assert last <= right
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_runs_have_the_colours_that_tensorboard_gives_them(whole: tuple[Any, Any]) -> None:
    page, frame = whole
    mine = """runs => Object.fromEntries(runs.map((run) =>
      [run.dataset.run, getComputedStyle(run.querySelector('.swatch')).backgroundColor]))"""
    before = frame.locator(".run").evaluate_all(mine)
    page.get_by_role("tab", name="Time Series").click()
    page.wait_for_selector(".run-color-swatch")
    theirs = page.locator("runs-data-table tb-data-table-content-row").evaluate_all(
        """rows => Object.fromEntries(rows.map((row) => [row.textContent.trim(),
          row.querySelector('.run-color-swatch').style.backgroundColor]))"""
    )
    assert theirs == {run: before[run] for run in theirs}
    assert len(theirs) == len(before)
