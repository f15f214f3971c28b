"""``ntk-monitor report``: the page, what is printed, and what is said when there is nothing."""

import html
import json
import re
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from rich.console import Console
from support.event_runs import (
    MESSAGE,
    SINCE,
    STEPS,
    small_snapshot,
    write_garbage,
    write_plain_run,
    write_run,
    write_tensor,
    write_three_runs,
)
from torch.utils.tensorboard import SummaryWriter

from ntk_monitor import cli
from ntk_monitor.commands.report import main as report
from ntk_monitor.views.dashboard.bundle import bundle
from ntk_monitor.views.dashboard.data import NOBODY, SCALARS
from ntk_monitor.views.dashboard.files import static_file, static_files
from ntk_monitor.views.events import NoRunsError, open_runs, pictures
from ntk_monitor.views.figures import own_style, snapshot_figures
from ntk_monitor.views.record import SNAPSHOT_TAG
from ntk_monitor.views.report import print_report, write_report


def embedded(page: str) -> dict[str, Any]:
    """The data that the page carries."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def cell(page: str, number: str) -> str:
    """What the table of numbers has beside the name of one."""
    found = re.search(rf"<td[^>]*>{number}</td><td[^>]*>(.*?)</td>", page)
    assert found is not None
    return found[1]


def without_script(page: str) -> str:
    return re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("logs")
    write_three_runs(top)
    time.sleep(1.1)  # readers sort files by second, and then by a number as if it were a word
    with SummaryWriter(str(top / "bad")) as writer, own_style():
        for tag, figure in snapshot_figures(small_snapshot()).items():
            writer.add_figure(tag, figure, STEPS[-1])
    return top


def test_the_page_says_everything_without_javascript(logs: Path, tmp_path: Path) -> None:
    made = write_report([logs], tmp_path / "deep" / "report.html")
    text = without_script(made.path.read_text())
    assert "(mode 1) is learned." in text
    assert f"out of reach since step {SINCE} (95 % sure)" in text
    assert MESSAGE.replace("`", "") in html.unescape(re.sub("</?code>", "", text))
    assert text.count("<code>ntk-monitor try --config FILE</code>") == 2  # the advice and the alert
    assert cell(text, "core cosine").startswith("0.8 ± 0.02")
    assert text.count('src="data:image/png;base64,') == 1 + 3  # the timeline, and what was logged
    assert list(made.runs) == ["bad", "good"]


def test_the_page_names_no_other_address(logs: Path, tmp_path: Path) -> None:
    text = without_script(write_report([logs], tmp_path / "report.html").path.read_text())
    sources = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert sources
    assert all(source.startswith("data:") for source in sources)
    assert "default-src 'none'" in text
    assert "@import" not in text
    assert "url(" not in text


def test_the_page_carries_the_data_of_the_tab(logs: Path, tmp_path: Path) -> None:
    data = embedded(write_report([logs], tmp_path / "report.html").path.read_text())
    assert [run["name"] for run in data["runs"]["runs"]] == ["bad", "good", "plain"]
    assert data["series"][""]["runs"]["bad"]["step"] == STEPS[-1]
    assert data["snapshots"][""]["bad"]["steps"] == list(STEPS)


def test_text_of_a_run_cannot_become_markup(tmp_path: Path) -> None:
    name = "<script>alert(1)</script>"
    run = write_run(tmp_path / "logs" / "x")
    with SummaryWriter(str(run)) as writer:
        writer.add_text("alert", f"Target mode 1 is stalled {name}", 400)
    text = write_report([tmp_path / "logs"], tmp_path / "report.html").path.read_text()
    assert name not in text
    assert "&lt;script&gt;alert(1)" in text


def test_code_in_an_alert_is_no_markup_either(tmp_path: Path) -> None:
    run = write_run(tmp_path / "logs" / "x")
    with SummaryWriter(str(run)) as writer:
        writer.add_text("alert", "Target mode 1 is stalled: `try <b>` finds <out>", 400)
        writer.add_text("alert", "Target mode 1 is stalled: a ` alone", 450)
    text = write_report([tmp_path / "logs"], tmp_path / "report.html").path.read_text()
    assert "<code>try &lt;b&gt;</code> finds &lt;out&gt;" in text
    assert "a ` alone" in text


def test_every_module_is_in_the_bundle_once() -> None:
    script = bundle()
    code = re.sub(r"/\*.*?\*/", "", script, flags=re.DOTALL)
    assert not re.search(r"^(import|export) ", code, re.MULTILINE)
    modules = [name for name in static_files() if name.endswith(".js") and name != "index.js"]
    for name in modules:
        assert script.count(f"modules['{name}'] = ") == 1
        for other in re.findall(r"from '\./([^']+)'", static_file(name)):
            assert script.index(f"modules['{other}'] = ") < script.index(f"modules['{name}'] = ")


def test_several_folders_and_files_are_named_apart(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_run(tmp_path / name / "version_0", records=False)
    both = write_report([tmp_path / "one", tmp_path / "two"], tmp_path / "report.html")
    assert list(both.runs) == ["one/version_0", "two/version_0"]
    single = write_report([tmp_path / "one" / "version_0"], tmp_path / "report.html")
    assert list(single.runs) == ["one/version_0"]
    (file,) = (tmp_path / "two" / "version_0").iterdir()
    assert list(write_report([file], tmp_path / "report.html").runs) == ["two/version_0"]


def test_states_are_reported_apart(tmp_path: Path) -> None:
    write_run(tmp_path / "run", prefix="encoder/")
    write_run(tmp_path / "run", prefix="decoder/", stalled=False)
    made = write_report([tmp_path], tmp_path / "report.html")
    assert list(made.runs) == ["run (decoder)", "run (encoder)"]


def test_a_run_is_reported_on_in_its_own_states_only(tmp_path: Path) -> None:
    write_run(tmp_path / "logs" / "a")
    write_run(tmp_path / "logs" / "b", prefix="encoder/")
    made = write_report([tmp_path / "logs"], tmp_path / "report.html")
    assert list(made.runs) == ["a", "b (encoder)"]
    page = made.path.read_text()
    assert re.findall("<h2>(.*?)</h2>", without_script(page)) == ["a", "b (encoder)"]
    data = embedded(page)
    assert {state: list(runs) for state, runs in data["snapshots"].items()} == {
        "": ["a"], "encoder/": ["b"],
    }  # fmt: skip


def write_table(folder: Path, content: bytes = b"step,ntk/core_cosine\n0,0.5\n10,0.6\n") -> Path:
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_bytes(content)
    return folder


def test_tables_are_shown_beside_event_files(tmp_path: Path) -> None:
    events = write_run(tmp_path / "logs" / "events")
    write_table(tmp_path / "logs" / "deep" / "table")
    (events / "metrics.csv").write_text("step,ntk/trace\n0,1\n")  # of the same run
    made = write_report([tmp_path / "logs"], tmp_path / "report.html")
    assert list(made.runs) == ["events", "deep/table"]
    assert made.runs["deep/table"]["series"]["ntk/core_cosine"]["values"] == [0.5, 0.6]
    assert made.runs["events"]["step"] == STEPS[-1]
    table = write_table(tmp_path / "other")
    made = write_report([events, table], tmp_path / "report.html")
    assert list(made.runs) == ["events", "other"]
    last = open_runs([events, table]).read_last_scalars(
        NOBODY.ctx, experiment_id="", plugin_name=SCALARS
    )
    assert last["other"]["ntk/core_cosine"].value == 0.6
    (file,) = events.glob("*tfevents*")
    assert list(write_report([file], tmp_path / "report.html").runs) == ["events"]


def test_a_folder_may_be_called_as_event_files_are(tmp_path: Path) -> None:
    write_table(tmp_path / "my_tfevents" / "version_0")
    made = write_report([tmp_path], tmp_path / "report.html")
    assert list(made.runs) == ["my_tfevents/version_0"]


def test_a_table_may_hold_letters_of_another_encoding(tmp_path: Path) -> None:
    write_table(tmp_path / "run", b"step,ntk/core_cosine,caf\xe9\n0,0.5,1\n")
    made = write_report([tmp_path], tmp_path / "report.html")
    assert made.runs["run"]["series"]["ntk/core_cosine"]["values"] == [0.5]


def test_a_table_that_cannot_be_read_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = b"step,ntk/core_cosine,note\n0,0.5," + b"x" * 200_000 + b"\n"
    folder = write_table(tmp_path / "run", content)
    assert report([str(folder), "--output", str(tmp_path / "page.html")]) == 2
    message = capsys.readouterr().err
    assert f"{folder / 'metrics.csv'} cannot be read as a table" in message
    assert "field larger" in message


@pytest.mark.parametrize("name", [r"lr$\frac$", "a$b$c", "_hidden"])
def test_a_name_in_the_figure_is_written_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    drawn: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, **k: (drawn.append(self), save(self, *a, **k))[1]
    )
    write_run(tmp_path / "logs" / name)
    made = write_report([tmp_path / "logs"], tmp_path / "report.html")
    assert list(made.runs) == [name]
    (text,) = drawn[0].legends[0].get_texts()
    assert text.get_text() == name
    assert not text.get_parse_math()


def test_an_odd_record_does_not_stop_the_report(tmp_path: Path) -> None:
    write_run(tmp_path / "logs" / "good")
    with SummaryWriter(str(write_run(tmp_path / "logs" / "odd", records=False))) as writer:
        write_tensor(writer, SNAPSHOT_TAG, b'{"a":' + b"[" * 480 + b"]" * 480 + b"}", 700)
    made = write_report([tmp_path / "logs"], tmp_path / "report.html")
    assert list(made.runs) == ["good", "odd"]
    (note,) = embedded(made.path.read_text())["series"][""]["notes"]
    assert note.startswith("odd: ntk/snapshot at step 700 was skipped")


def test_no_name_can_command_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "logs" / "run\x1b]0;owned\x07\x1b[2J")
    assert report([str(tmp_path / "logs"), "--output", str(tmp_path / "p.html")]) == 0
    shown = capsys.readouterr().out
    assert "run]0;owned[2J (at step 500): " in shown
    assert report([str(tmp_path / "absent\x1b[2J"), "--output", str(tmp_path / "p.html")]) == 2
    shown += capsys.readouterr().err
    assert "absent[2J does not exist" in shown
    assert {c for c in shown if not c.isprintable()} == {"\n"}


def test_it_says_what_it_is_doing(logs: Path, tmp_path: Path) -> None:
    told: list[str] = []
    write_report([logs], tmp_path / "report.html", told.append)
    assert told == [
        "reading the logs", "reading the curves of 2 runs", "reading the probes of bad (1 of 2)",
        "reading the probes of good (2 of 2)", "drawing",
    ]  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is always a window")
def test_without_a_display_no_browser_is_opened(
    logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    command = [str(logs), "--output", str(tmp_path / "page.html"), "--open", "true"]
    assert report(command) == 0
    assert not opened
    monkeypatch.setenv("WAYLAND_DISPLAY", "wayland-0")
    assert report(command) == 0
    assert len(opened) == 1


def test_a_csv_logger_is_enough(tmp_path: Path) -> None:
    lines = ["epoch,ntk/core_cosine,ntk/core_cosine_stderr,step,target/mode_1/learned,train/loss"]
    lines += [f"0,{0.5 + i / 100},0.01,{100 * i},{0.31 * i}," for i in range(4)]
    lines += ["0,,,50,,0.7", "0,0.9"]  # another logger's row, and one that is not complete
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.csv").write_text("\n".join(lines))
    made = write_report([tmp_path], tmp_path / "report.html")
    run = made.runs["run"]
    assert run["series"]["ntk/core_cosine"]["values"] == [0.5, 0.51, 0.52, 0.53]
    assert run["modes"][0]["state"] == "learned"
    assert run["series"]["train/loss"]["values"] == [0.7]
    assert pictures(open_runs([tmp_path]), "run") == {}


def test_what_is_broken_is_reported_as_far_as_it_goes(tmp_path: Path) -> None:
    write_garbage(tmp_path / "garbage")
    (tmp_path / "noise").mkdir()
    (tmp_path / "noise" / "events.out.tfevents.1").write_bytes(b"\x00\x01 not an event file")
    write_run(tmp_path / "cut")
    (file,) = (tmp_path / "cut").iterdir()
    file.write_bytes(file.read_bytes()[:-500])
    made = write_report([tmp_path], tmp_path / "report.html")
    assert set(made.runs) == {"cut", "garbage"}
    data = embedded(made.path.read_text())
    assert data["snapshots"][""]["garbage"]["steps"] == [80]


def test_numbers_that_are_not_finite_do_not_stop_it(tmp_path: Path) -> None:
    lost = {"ntk/core_cosine": float("nan"), "target/mode_1/learned": float("nan"),
            "ntk/trace": float("inf")}  # fmt: skip
    run = write_run(tmp_path / "run", changed={STEPS[-1]: lost})
    made = write_report([run], tmp_path / "report.html")
    text = without_script(made.path.read_text())
    assert "NaN" in cell(text, "core cosine")
    assert "insufficient data" in text


def test_the_terminal_shows_verdict_modes_and_where_the_page_is(logs: Path, tmp_path: Path) -> None:
    made = write_report([logs], tmp_path / "report.html")
    text = StringIO()
    print_report(made, Console(file=text, width=120))
    shown = text.getvalue()
    assert "bad (at step 500): " in shown
    assert "is out of reach since" in shown
    assert "What helps: Start from an initialisation" in shown
    assert re.search(r"2 .* 0 .* 3e10 .* stalled", shown)
    assert str(made.path) in shown


def test_the_command_makes_the_page(
    logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.setenv("DISPLAY", ":0")
    output = tmp_path / "page.html"
    assert report([str(logs), "--output", str(output), "--open", "false"]) == 0
    assert not opened
    assert report([str(logs), "--output", str(output)]) == 0
    assert opened == [output.resolve().as_uri()]


def test_what_cannot_be_reported_on_is_named_with_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    write_plain_run(tmp_path / "plain")
    for name, words in (
        ("absent", "does not exist: give the log folder"),
        ("empty", "holds no event files"),
        ("plain", "add NTKMonitor() to the callbacks"),
    ):
        output = tmp_path / "page.html"
        assert report([str(tmp_path / name), "--output", str(output), "--open", "false"]) == 2
        message = capsys.readouterr().err
        assert str(tmp_path / name) in message
        assert words in message
        assert not output.exists()
    with pytest.raises(NoRunsError, match="does not exist"):
        open_runs([tmp_path / "plain", tmp_path / "absent"])


def test_the_command_line_knows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["ntk-monitor", "report", str(tmp_path / "absent")])
    assert cli.main() == 2
    command = [sys.executable, "-m", "ntk_monitor.cli", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "report RUN..." in shown
