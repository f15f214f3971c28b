"""The tab within TensorBoard, as a user has it."""

import json
import urllib.parse
import urllib.request
from typing import Any

import pytest
from support.event_runs import SINCE, STEPS


def chart(frame: Any, title: str) -> Any:
    """The chart of this title, in view and drawn."""
    found = frame.locator(".chart").filter(has=frame.get_by_text(title, exact=True)).first
    found.scroll_into_view_if_needed()
    found.locator("canvas").wait_for()
    return found


def hover(page: Any, box: Any, share: float = 0.5) -> Any:
    """What the chart says with the mouse on it."""
    over = box.locator(".u-over").bounding_box()
    page.mouse.move(over["x"] + share * over["width"], over["y"] + over["height"] / 2)
    bubble = box.locator(".hover")
    bubble.wait_for()
    return bubble


def untick(frame: Any, *names: str) -> None:
    for name in names:
        frame.locator(f".run[data-run='{name}'] input").click()


def test_the_server_answers_within_tensorboard(tensorboard: str) -> None:
    query = urllib.parse.urlencode({"run": "bad"})
    with urllib.request.urlopen(
        f"{tensorboard}data/plugin/ntk/series?{query}", timeout=60
    ) as answer:
        run = json.load(answer)["runs"]["bad"]
    assert run["axes"][run["series"]["ntk/trace"]["axis"]]["steps"] == list(STEPS)
    with urllib.request.urlopen(f"{tensorboard}data/plugins_listing", timeout=60) as answer:
        listing = json.load(answer)["ntk"]
    assert (listing["enabled"], listing["tab_name"]) == (True, "NTK")


def test_verdict_board_and_alerts(whole: tuple[Any, Any]) -> None:
    _, frame = whole
    verdicts = frame.locator(".verdict")
    assert verdicts.count() == 4
    bad = verdicts.filter(has=frame.get_by_text("bad", exact=True))
    assert f"is out of reach since step {SINCE} (95 % sure)" in bad.inner_text()
    assert "What helps: Start from an initialisation" in bad.inner_text()
    row = frame.locator("#board tbody tr").filter(has=frame.get_by_text("bad", exact=True)).nth(1)
    cells = [cell.strip() for cell in row.locator("td").all_inner_texts()]
    assert cells[3] == "37 %"
    assert "stalled" in cells[4]
    assert f"since {SINCE}" in cells[4]
    assert cells[5].endswith("0.000")
    assert cells[6].endswith("3e10")
    assert cells[8] == "1e-11 ± 1e-12"
    assert "step 0: not judged" in row.locator(".chip").get_attribute("data-tip")
    assert bad.locator(".verdict-advice code").inner_text() == "ntk-monitor try --config FILE"
    assert frame.locator("#alerts .alert code").first.inner_text().startswith("ntk-monitor try")
    alerts = frame.locator("#alerts .alert").first.inner_text().lower()
    assert "warning" in alerts
    assert f"step {SINCE}" in alerts


def test_shares_are_a_bar_and_the_next_steps_a_table(tab: Any) -> None:
    frame = tab
    bad = frame.locator(".verdict").filter(has=frame.get_by_text("bad", exact=True))
    fates = bad.locator(".shares i").evaluate_all("parts => parts.map((p) => p.dataset.fate)")
    assert fates == ["learned", "out of reach"]
    widths = bad.locator(".shares i").evaluate_all("parts => parts.map((p) => p.clientWidth)")
    assert widths[0] / sum(widths) == pytest.approx(0.63, abs=0.02)
    bad.locator(".fate").nth(1).focus()
    assert "StallAlert is sure that it is stalled" in frame.locator(".tip").inner_text()
    row = frame.locator("#now tbody tr").filter(has=frame.get_by_text("bad", exact=True))
    cells = [" ".join(cell.split()) for cell in row.locator("td").all_inner_texts()]
    assert cells[1:6] == ["0.5", "0.45 −10 %", "0.4 −20 %", "30 steps", "0.4 ± 0.1"]
    assert cells[-1] == "0 %"


def test_hover_shows_values_and_errors_of_each_run(tab: Any) -> None:
    page = frame = tab
    untick(frame, "garbage", "lost")
    box = chart(frame, "core cosine")
    text = hover(page, box).inner_text()
    assert text.count("0.8 ± 0.02") == 2
    assert "bad" in text
    assert "good" in text
    # The cursor is shared: the next chart shows its line at the same step.
    other = chart(frame, "temporal core cosine").locator(".u-cursor-x")
    mine = box.locator(".u-cursor-x")
    at = [line.evaluate("e => e.style.transform") for line in (mine, other)]
    assert at[0] == at[1] != ""


def test_the_slider_moves_by_keyboard(tab: Any) -> None:
    frame = tab
    frame.locator("#snapshots").scroll_into_view_if_needed()
    label = frame.locator("#snapshots .step")
    frame.wait_for_function("document.querySelector('#snapshots .step').textContent")
    assert label.inner_text().startswith(f"step {STEPS[-1]}")
    frame.locator(".slider").focus()
    frame.locator(".slider").press("ArrowLeft")
    assert label.inner_text().startswith(f"step {STEPS[-2]}")
    assert f"probe {len(STEPS) - 1} of {len(STEPS)}" in label.inner_text()
    frame.locator(".slider").press("Home")
    assert label.inner_text().startswith(f"step {STEPS[0]}")
    frame.locator("#snapshots canvas").first.wait_for()
    # cumulative variance, three temporal modes, two target patterns
    assert frame.locator("#snapshots .chart").count() == 6


def test_runs_are_ticked_filtered_and_shown_alone(tab: Any) -> None:
    page = frame = tab
    frame.locator(".run[data-run='good']").dblclick()
    assert frame.locator(".verdict").count() == 1
    untick(frame, "bad")
    frame.wait_for_selector(".ntk[data-runs='2']")
    assert frame.locator("#board tbody tr").count() == 4
    text = hover(page, chart(frame, "learned")).inner_text()
    assert text.count("mode 2") == 2
    frame.locator(".filter").fill("goo")
    shown = frame.locator(".run:visible").all()
    assert [run.get_attribute("data-run") for run in shown] == ["good"]
    frame.get_by_text("none", exact=True).click()
    assert frame.locator(".verdict").count() == 1
    assert frame.locator(".verdict-run").inner_text() == "bad"


def test_a_run_without_data_is_greyed_and_says_why(tab: Any) -> None:
    frame = tab
    plain = frame.locator(".run[data-run='plain']")
    assert plain.locator("input").is_disabled()
    plain.hover()
    tip = frame.locator(".tip")
    assert "no numbers of NTKMonitor" in tip.inner_text()


def test_terms_are_explained(tab: Any) -> None:
    frame = tab
    frame.locator("#board th .term", has_text="learned").focus()
    tip = frame.locator(".tip").inner_text()
    assert "How much of this part of the target the output has" in tip
    assert "Range: 0 absent, 1 solved" in tip
    assert "Looks bad: Stays at 0" in tip


def test_dark_mode_follows_tensorboard(whole: tuple[Any, Any]) -> None:
    page, frame = whole
    chart(frame, "trace")
    color = "getComputedStyle(document.querySelector('.chart')).backgroundColor"
    root = frame.locator("html")
    assert root.get_attribute("data-theme") == "light"
    light = frame.evaluate(color)
    page.evaluate("document.body.classList.add('dark-mode')")
    frame.wait_for_selector("html[data-theme='dark']")
    assert frame.evaluate(color) != light
    page.evaluate("document.body.classList.remove('dark-mode')")
    frame.wait_for_selector("html[data-theme='light']")


def test_numbers_that_are_not_finite_are_labelled(tab: Any) -> None:
    page = frame = tab
    frame.locator(".run[data-run='lost']").dblclick()
    box = chart(frame, "core cosine")
    badge = box.locator(".badge")
    assert badge.is_visible()
    assert badge.inner_text() == "2 not finite"
    assert f"NaN at {STEPS[2]}" in badge.get_attribute("data-tip")
    assert "NaN" in hover(page, box, share=STEPS[2] / STEPS[-1]).inner_text()
    assert "∞" in chart(frame, "trace").locator(".badge").get_attribute("data-tip")


def test_garbage_is_skipped_with_a_note(tab: Any) -> None:
    frame = tab
    frame.locator(".run[data-run='garbage']").dblclick()
    assert frame.locator(".verdict").count() == 1
    assert "alert/changes" in frame.locator(".notes").first.inner_text()
    frame.locator("#snapshots").scroll_into_view_if_needed()
    note = frame.locator("#snapshots .note").first
    note.wait_for()
    assert "another tool uses the same tag" in note.inner_text()
    assert frame.locator("#snapshots .step").inner_text().startswith("step 80  (probe 1 of 1)")
    assert frame.locator("img").count() == 0


def test_the_x_axis_can_be_time(tab: Any) -> None:
    page = frame = tab
    frame.get_by_text("Relative time").click()
    text = hover(page, chart(frame, "spatial effective rank")).inner_text()
    assert text.split("\n")[0].endswith(" s")
