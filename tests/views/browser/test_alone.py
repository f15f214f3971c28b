"""The tab's page with other data, and the report, without TensorBoard around them."""

import json
import re
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.event_runs import STEPS, write_plain_run, write_run
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer

from ntk_monitor.views.dashboard.data import DashboardData, to_json
from ntk_monitor.views.dashboard.plugin import MOST_RUNS
from ntk_monitor.views.events import open_runs
from ntk_monitor.views.report import write_report

expect = pytest.importorskip("playwright.sync_api").expect

Serve = Callable[[Any], Any]
Open = Callable[..., Any]


def test_no_runs_at_all(serve: Serve, open_page: Open) -> None:
    with serve(MultiplexerDataProvider(EventMultiplexer(), "")) as url:
        page = open_page(url)
        page.wait_for_selector("[data-ready]")
        assert "No runs yet" in page.locator(".message").inner_text()
        assert not page.locator("main").is_visible()


def test_only_runs_without_data(serve: Serve, open_page: Open, tmp_path: Path) -> None:
    write_plain_run(tmp_path)
    with serve(open_runs([tmp_path])) as url:
        page = open_page(url)
        page.wait_for_selector("[data-ready]")
        assert "callbacks=[NTKMonitor(" in page.locator(".message pre").inner_text()


def test_a_server_that_fails_is_told_of_and_asked_again(serve: Serve, open_page: Open) -> None:
    with serve(object()) as url:
        page = open_page(url, failing=True)
        page.wait_for_selector("[data-ready]")
        assert "could not read the data" in page.locator(".note").inner_text()
        page.locator("[aria-label='Refresh']").click()
        page.wait_for_selector(".ntk:not([data-busy])")


def test_new_data_comes_in_and_nothing_jumps(serve: Serve, open_page: Open, tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    multiplexer = EventMultiplexer(size_guidance={"tensors": 0})
    multiplexer.AddRunsFromDirectory(str(tmp_path))
    multiplexer.Reload()
    with serve(MultiplexerDataProvider(multiplexer, str(tmp_path))) as url:
        page = open_page(url)
        page.wait_for_selector("[data-ready]")
        page.locator("#snapshots").scroll_into_view_if_needed()
        expect(page.locator("#snapshots .step")).not_to_be_empty()
        page.locator(".slider").press("Home")
        place = "document.querySelector('.slider').getBoundingClientRect().top"
        before = page.evaluate(place)
        write_run(tmp_path / "run", steps=(700, 800))
        multiplexer.Reload()
        page.locator("[aria-label='Refresh']").click()
        expect(page.locator("#snapshots .step")).to_contain_text(f"of {len(STEPS) + 2})")
        assert "Last probe at step 800" in page.locator(".verdict-detail").inner_text()
        assert page.locator("#snapshots .step").inner_text().startswith("step 0 ")
        assert page.evaluate(place) == pytest.approx(before, abs=1)
        assert page.evaluate("scrollY") > 0


def test_a_cheap_probe_shows_the_last_known_kernel(
    serve: Serve, open_page: Open, tmp_path: Path
) -> None:
    write_run(tmp_path, steps=(0, 300))
    write_run(tmp_path, steps=(320, 340), tier="modes")
    with serve(open_runs([tmp_path])) as url:
        page = open_page(url)
        page.wait_for_selector("[data-ready]")
        assert "(at step 300)" in page.locator(".verdict-detail").inner_text()
        assert "at 300" in page.locator("#board tbody tr").first.inner_text()
        page.locator("#snapshots").scroll_into_view_if_needed()
        label = page.locator("#snapshots .step")
        expect(label).to_have_text("step 340  (probe 4 of 4, kernel of step 300)")
        assert page.locator("#snapshots .chart").count() == 6


def test_a_state_is_chosen(serve: Serve, open_page: Open, tmp_path: Path) -> None:
    write_run(tmp_path, prefix="encoder/")
    write_run(tmp_path, prefix="decoder/", stalled=False)
    with serve(open_runs([tmp_path])) as url:
        page = open_page(url)
        page.wait_for_selector("[data-ready]")
        choice = page.locator("[aria-label='State']")
        assert choice.locator("option").all_inner_texts() == ["decoder", "encoder"]
        rows = page.locator("#board tbody tr")
        assert "0.970" in rows.nth(1).inner_text()
        choice.select_option("encoder/")
        expect(rows.nth(1)).to_contain_text("0.000")


def test_a_run_without_the_chosen_state_says_so(
    serve: Serve, open_page: Open, tmp_path: Path
) -> None:
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", prefix="encoder/")
    with serve(open_runs([tmp_path])) as url:
        page = open_page(url)
        page.wait_for_selector("[data-ready]")
        page.locator("[aria-label='State']").select_option("encoder/")
        verdict = page.locator(".verdict").filter(has=page.get_by_text("a", exact=True))
        expect(verdict).to_contain_text("This run has no state of the name encoder")
        assert "Last probe" not in verdict.inner_text()
        runs = page.locator("#snapshots select option").all_inner_texts()
        assert runs == ["b"]


def test_a_chart_that_is_removed_leaves_nothing_behind(
    serve: Serve, open_page: Open, tmp_path: Path
) -> None:
    write_run(tmp_path / "a", records=False)
    more = {step: {"target/mode_1/preconditioned_steps_to_learn": 5.0} for step in STEPS}
    write_run(tmp_path / "b", records=False, changed=more)
    count = """async () => {
      const { default: uPlot } = await import('/data/plugin/ntk/vendor/uPlot.esm.js');
      return uPlot.sync('ntk').plots.length;
    }"""
    with serve(open_runs([tmp_path])) as url:
        page = open_page(url)
        page.set_viewport_size({"width": 1500, "height": 4000})  # every chart is in view
        page.wait_for_selector("[data-ready]")
        charts = page.locator("#board canvas, #timeline canvas")
        box = page.locator(".run[data-run='b'] input")
        expect(charts).to_have_count(page.locator("#board .chart, #timeline .chart").count())
        before = charts.count()
        for _ in range(10):
            box.click()
            expect(charts).to_have_count(before - 1)
            assert page.evaluate(count) == before - 1
            box.click()
            expect(charts).to_have_count(before)
        assert page.evaluate(count) == before


def test_more_runs_than_the_server_takes_at_once_are_asked_for_in_portions(
    serve: Serve, open_page: Open, tmp_path: Path
) -> None:
    names = [f"run_{i}" for i in range(501)]
    run = write_run(tmp_path / "run", records=False, steps=(0,))
    data = DashboardData(open_runs([run]))
    answer = data.series(["run"])["runs"]["run"]
    runs = [{"name": name, "start": None, "states": [""], "reason": None} for name in names]
    asked: list[list[str]] = []

    def series(route: Any) -> None:
        asked.append(urllib.parse.parse_qs(route.request.post_data)["run"])
        found = {"runs": dict.fromkeys(asked[-1][:1], answer), "notes": []}
        route.fulfill(content_type="application/json", body=to_json(found))

    with serve(data.provider) as url:
        page = open_page(url, before=lambda page: (
            page.route(re.compile("/runs$"), lambda route: route.fulfill(
                content_type="application/json", body=json.dumps(data.runs() | {"runs": runs}))),
            page.route(re.compile("/series$"), series),
        ))  # fmt: skip
        page.wait_for_selector("[data-ready]")
        asked.clear()
        page.get_by_text("show all").click()
        page.wait_for_selector(".ntk:not([data-busy])")
        assert max(map(len, asked)) <= MOST_RUNS
        assert [name for portion in asked for name in portion] == [*names[-10:], *names[:-10]]


def test_eleven_runs_show_the_latest_ten_and_no_time_is_lost(
    serve: Serve, open_page: Open, tmp_path: Path
) -> None:
    for i in range(11):
        write_run(tmp_path / f"run_{i}", records=False, steps=(0, 100))
    with serve(open_runs([tmp_path])) as url:
        page = open_page(url)
        page.wait_for_selector("[data-ready]")
        assert page.locator(".count").inner_text() == "10 of 11 runs"
        assert page.locator(".verdict").count() == 10
        colors = page.locator(".run").evaluate_all(
            "runs => runs.map((run) => run.style.getPropertyValue('--run'))"
        )
        assert len(set(colors)) == 11
        page.get_by_text("show all").click()
        page.wait_for_selector(".ntk[data-runs='11']")


def test_the_report_opens_as_a_file_and_asks_for_nothing(open_page: Open, tmp_path: Path) -> None:
    write_run(tmp_path / "logs" / "bad")
    write_run(tmp_path / "logs" / "good", stalled=False)
    report = write_report([tmp_path / "logs"], tmp_path / "report.html")
    page = open_page(report.path.as_uri())  # which fails at any request to another address
    page.wait_for_selector("[data-ready]")
    assert page.locator(".verdict").count() == 2
    assert page.locator("[aria-label='Refresh']").count() == 0
    page.locator("#snapshots").scroll_into_view_if_needed()
    page.locator("#snapshots canvas").first.wait_for()
    page.locator(".slider").press("ArrowLeft")
    assert page.locator("#snapshots .step").inner_text().startswith(f"step {STEPS[-2]}")
    assert not page.locator("#static table").first.is_visible()
    page.locator("#static summary").click()
    assert page.locator("#static img").first.evaluate("image => image.naturalWidth") > 0


def test_the_report_can_be_read_without_javascript(browser: Any, tmp_path: Path) -> None:
    report = write_report([write_run(tmp_path / "bad")], tmp_path / "report.html")
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report.path.as_uri())
    text = page.locator("#static").inner_text()
    assert "is out of reach since step 300" in text
    assert "Target mode 2 is stalled at step 300" in text
    assert page.locator("#static table").first.is_visible()
    context.close()


def test_names_leave_out_the_folders_that_all_runs_share(
    serve: Serve, open_page: Open, tmp_path: Path
) -> None:
    for name in ("sgd", "adam"):
        write_run(tmp_path / "lightning_logs" / name / "version_0", records=False)
    with serve(open_runs([tmp_path])) as url:
        page = open_page(url)
        page.wait_for_selector("[data-ready]")
        assert set(page.locator(".verdict-run").all_inner_texts()) == {"sgd", "adam"}
        assert "lightning_logs/sgd/version_0" in page.locator(".runs").inner_text()
