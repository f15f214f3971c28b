"""What is said of remedies is what was measured."""

import json
import re
from pathlib import Path

import pytest

import ntk_monitor
from ntk_monitor import remedies as module
from ntk_monitor.monitor.alerts.reasons import CURES, measured
from ntk_monitor.remedies import Remedy, remedies

ROOT = Path(__file__).parents[2]
ALERTS, PAGE = ((ROOT / "docs" / name).read_text() for name in ("alerts.md", "remedies.md"))
FOUND = json.loads((ROOT / "benchmarks" / "results" / "remedies.json").read_text())["cures"]


def test_the_table_of_cures_is_the_measured_one() -> None:
    table = ALERTS.split("<!-- cures -->")[1].strip().splitlines()
    columns = [cell.strip() for cell in table[0].strip("|").split("|")]
    shown = {}
    for line in table[2:]:
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        for reason, cell in zip(columns[1:], cells, strict=True):
            if cell:
                shown[reason, name] = cell
    wanted = {(r["reason"], r["remedy"]): f"{r['cured']} of {r['of']}" for r in FOUND}
    assert shown == wanted


def test_alerts_name_the_best_of_what_was_measured() -> None:
    counts = {(r["reason"], r["remedy"]): (r["cured"], r["of"]) for r in FOUND}
    names = {remedy.name for remedy in remedies()}
    assert CURES
    for reason, cures in CURES.items():
        assert 1 <= len(cures) <= 3
        worst = min(cured / of for _, cured, of in cures)
        for name, cured, of in cures:
            assert counts[reason, name] == (cured, of)
            assert 2 * cured > of
            assert name in names
        others = [c / of for (r, n), (c, of) in counts.items() if r == reason]
        assert sum(share > worst for share in others) < len(cures)
    file = Path(ntk_monitor.__file__).parent / "monitor" / "alerts" / "cures.json"
    assert json.loads(file.read_text()) == CURES


def test_an_alert_says_what_cured_and_how_to_try() -> None:
    (name, cured, of), *_ = CURES["decay"]
    said = measured("decay")
    assert f"What cured trainings that stalled for this: {name} ({cured} of {of})" in said
    assert "ntk-monitor try --config FILE --reason 'decay'" in said
    assert measured("gradient noise").startswith(". What cures this one is found out by")


def test_the_page_has_every_remedy() -> None:
    table = re.findall(r"^\| `(\w+)\(", PAGE, re.MULTILINE)
    kinds = {
        name for name in module.__all__
        if isinstance(kind := getattr(module, name), type) and issubclass(kind, Remedy)
    }  # fmt: skip
    assert set(table) == kinds - {"Remedy"}


@pytest.mark.parametrize("command", ["try", "fit"])
def test_readme_shows_both_commands(command: str) -> None:
    readme = (ROOT / "README.md").read_text()
    assert f"ntk-monitor {command} --config configs/memory_pro_network1.yaml" in readme
