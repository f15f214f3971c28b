"""The report as Markdown and as JSON."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
from support.event_runs import write_run, write_three_runs

from ntk_monitor.commands.report import main as report
from ntk_monitor.views.documents import title_of
from ntk_monitor.views.report import write_report

pytestmark = pytest.mark.filterwarnings("ignore:html5lib's sanitizer is deprecated")


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logs")
    write_three_runs(folder)
    return folder


def test_markdown_has_every_run_with_tables_that_are_tables(logs: Path) -> None:
    made = write_report([logs], None, kind="markdown")
    lines = made.text.splitlines()
    assert lines[0] == "# NTK report: bad, good"
    assert lines[2].startswith("Made on 20")
    assert [line[3:] for line in lines if line.startswith("## ")] == list(made.runs)
    rows = [line for line in lines if line.startswith("|")]
    assert rows
    for above, below in pairwise(lines):
        if above.startswith("|") and below.startswith("|"):
            assert above.replace("\\|", "").count("|") == below.replace("\\|", "").count("|")
    for name, run in made.runs.items():
        assert run["verdict"]["text"].split(".")[0] in made.text, name


def test_the_title_leaves_out_what_all_runs_share_and_names_few() -> None:
    names = [f"logs/{name}/version_0" for name in "abcd"]
    assert title_of({name: {} for name in names[:2]}) == "NTK report: a, b"
    assert title_of({name: {} for name in names[:1]}) == "NTK report: logs/a/version_0"
    assert title_of({name: {} for name in names}) == "NTK report: 4 runs"


def test_what_a_run_is_called_neither_ends_a_cell_nor_begins_a_tag(tmp_path: Path) -> None:
    write_run(tmp_path / "a|b <script>", stalled=True)
    text = write_report([tmp_path], None, kind="markdown").text
    assert "## a\\|b &lt;script>" in text
    assert "<script>" not in text


def test_json_has_numbers_as_numbers_with_their_meaning(logs: Path) -> None:
    made = write_report([logs], None, kind="json")
    found = json.loads(made.text, parse_constant=pytest.fail)
    assert [run["name"] for run in found["runs"]] == list(made.runs)
    for run in found["runs"]:
        assert run["verdict"]["text"]
        assert {"index", "learned", "steps_to_learn", "state"} <= set(run["modes"][0])
        numbers = {number["tag"]: number for number in run["numbers"]}
        cosine = numbers["ntk/core_cosine"]
        assert isinstance(cosine["value"], float)
        assert cosine["meaning"]
        assert cosine["range"] == "0 to 1"
        assert cosine["bad"]


@pytest.mark.parametrize(("kind", "ending"), [("markdown", "md"), ("json", "json")])
def test_the_command_writes_or_prints_it(
    kind: str,
    ending: str,
    logs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert report([str(logs), "--format", kind, "--output", "-"]) == 0
    printed = capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    assert report([str(logs), "--format", kind]) == 0
    file = tmp_path / f"ntk_report.{ending}"
    assert printed.splitlines()[5:] == file.read_text().splitlines()[5:]
    with pytest.raises(SystemExit):
        report([str(logs), "--format", "pdf"])
