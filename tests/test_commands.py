"""The commands themselves: found fast, told of, and with what they need inside the package."""

import re
import runpy
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import get_args

import pytest
from torch.utils.tensorboard import SummaryWriter

import ntk_monitor
from ntk_monitor import cli
from ntk_monitor.commands import brief_help, demo, report, view
from ntk_monitor.commands import fit as fit_module
from ntk_monitor.views.report import Kind

ROOT = Path(__file__).parents[1]


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["ntk-monitor", *arguments])
    return cli.main()


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_help_lists_every_command(
    arguments: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(monkeypatch, *arguments) == 0
    shown = capsys.readouterr().out
    for name, command in cli.COMMANDS.items():
        assert f"  {command.usage} " in shown
        assert command.usage.startswith(name)
        assert command.does in shown


LIGHT = [["--help"], ["--version"], *([name, "--help"] for name in cli.COMMANDS)]


@pytest.mark.parametrize("arguments", LIGHT, ids=" ".join)
def test_help_and_version_import_neither_torch_nor_lightning(arguments: list[str]) -> None:
    code = (
        f"import sys; sys.argv = ['ntk-monitor', *{arguments}]\n"
        "from ntk_monitor import cli\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'lightning', 'rich', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *shown, heavy = done.stdout.splitlines()
    draws = arguments[0] in {"view", "report", "try", "demo"}  # what it says
    assert heavy == ("['rich']" if draws else "[]")
    assert "ntk-monitor" in shown[0]
    if arguments == ["--version"]:
        assert shown == [f"ntk-monitor {ntk_monitor.__version__}"]


def test_all_arguments_of_a_fit_are_shown_when_they_are_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, "fit", "--help-all")
    assert ended.value.code == 0
    every = capsys.readouterr().out
    assert run(monkeypatch, "fit", "--help") == 0
    brief = capsys.readouterr().out
    assert len(brief.splitlines()) < 25
    for flag in re.findall(r"--[a-z_]+(?=[ .\n])", brief):
        assert flag in every or flag == brief_help.HELP_ALL


def test_a_report_is_written_in_every_format_that_there_is() -> None:
    assert tuple(report.ENDINGS) == get_args(Kind)


def test_a_misspelt_command_is_told_what_is_meant(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "reprot") == 2
    message = capsys.readouterr().err
    assert "COMMAND must be one of demo, fit, probe, try, view, report, got 'reprot'" in message
    assert "Did you mean report?" in message
    assert run(monkeypatch, "xyzzy") == 2
    assert "Did you mean" not in capsys.readouterr().err


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_a_help(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        assert run(monkeypatch, name, "--help") == 0
    except SystemExit as ended:
        assert ended.code == 0  # noqa: PT017
    assert f"usage: ntk-monitor {name}" in capsys.readouterr().out


@pytest.mark.parametrize("number", [1, 2])
def test_the_demo_trains_with_the_config_of_the_package(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr(fit_module, "main", lambda arguments: seen.append(list(arguments)) or 0)
    folder = str(tmp_path / "demo")
    assert demo.main(["--network", str(number), "--folder", folder, "--steps", "7"]) == 0
    (arguments,) = seen
    assert arguments[:2] == ["fit", "--config"]
    config = Path(arguments[2])
    assert config.name == f"memory_pro_network{number}.yaml"
    assert config.read_text() == (ROOT / "configs" / config.name).read_text()
    assert arguments[arguments.index("--trainer.max_steps") + 1] == "7"
    shown = capsys.readouterr().out
    assert f"ntk-monitor view {folder}" in shown
    assert ("ntk-monitor try --config" in shown) == (number == 1)


def test_the_package_has_its_configs() -> None:
    names = {path.name for path in (files("ntk_monitor") / "configs").iterdir()}
    assert {path.name for path in (ROOT / "configs").iterdir()} == names


def test_view_serves_the_tab(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with SummaryWriter(str(tmp_path / "run")) as writer:
        writer.add_scalar("ntk/trace", 1.0, 0)
    code = (
        "import sys, urllib.request\n"
        "from ntk_monitor.commands import view\n"
        "from pathlib import Path\n"
        "url = view.serve(Path(sys.argv[1]))\n"
        "page = urllib.request.urlopen(url.removesuffix('#ntk'), timeout=30)\n"
        "print(url, page.status)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("#ntk 200")
    assert view.main([str(tmp_path / "absent")]) == 2
    assert "FOLDER must have event files of TensorBoard in it" in capsys.readouterr().err


def test_names_are_imported_when_they_are_asked_for() -> None:
    code = (
        "import ntk_monitor, sys\n"
        "assert 'torch' not in sys.modules\n"
        "import ntk_monitor.monitor\n"
        "from ntk_monitor import probe, Snapshot\n"
        "assert callable(probe) and callable(ntk_monitor.probe)\n"
        "from ntk_monitor.probe import Probe\n"
        "assert Probe is ntk_monitor.Probe\n"
        "print(sorted(set(ntk_monitor.__all__) - set(dir(ntk_monitor))))\n"
        "try: ntk_monitor.absent\n"
        "except AttributeError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["[]", "module 'ntk_monitor' has no attribute 'absent'"]


def test_an_older_python_is_told_which_one_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 10, 13, "final", 0))
    with pytest.raises(SystemExit, match=r"needs Python 3\.11 or newer, and this is Python 3\.10"):
        runpy.run_path(str(ROOT / "setup.py"))
