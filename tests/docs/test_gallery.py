"""The gallery says what was found, and its command makes it."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from ntk_monitor.monitor.alerts.reasons import CURES
from ntk_monitor.reason import Reason
from ntk_monitor.views.verdict import LEARNED

DOCS = Path(__file__).parents[2] / "docs"
sys.path.append(str(DOCS))
import gallery  # noqa: E402
from gallery_page import anchor, not_named, page  # noqa: E402
from gallery_pair import ALIKE, pair_of  # noqa: E402
from gallery_pictures import called, cut, forecast_at  # noqa: E402
from gallery_texts import MISSING, SHOWN  # noqa: E402

TEXT = (DOCS / "gallery.md").read_text()
FOUND: dict[str, Any] = json.loads((DOCS / "gallery.json").read_text())
RUNS: dict[str, Any] = FOUND["runs"]
LARGEST = 120_000
"""Bytes of a picture."""


def section(key: str) -> str:
    return TEXT.split(f"\n## {SHOWN[key].title}\n")[1].split("\n## ")[0]


def test_the_page_is_made_of_what_was_found() -> None:
    assert page(FOUND) == TEXT


def test_every_run_has_its_section() -> None:
    assert list(RUNS) == list(SHOWN)
    for key, shown in SHOWN.items():
        assert f"(#{anchor(shown.title)})" in TEXT
        assert section(key)


@pytest.mark.parametrize("key", RUNS)
def test_a_section_says_what_the_package_said(key: str) -> None:
    run, text = RUNS[key], section(key)
    assert f"\n> {run['verdict']}\n" in text
    messages = {alert["reason"]: alert["message"] for alert in reversed(run["alerts"])}
    if len(messages) > 1:
        messages.pop(None, None)
    for message in messages.values():
        assert f"\n> {message}\n" in text
    assert ("stays silent" in text) == (not messages)
    if run["trials"] is not None:
        assert run["trials"] in text


@pytest.mark.parametrize("key", [key for key, run in RUNS.items() if run["with"]])
def test_a_cure_is_told_by_its_numbers(key: str) -> None:
    before, after, text = RUNS[key], RUNS[key]["with"], section(key)
    assert f"ends at {after['loss']:.3g} in place of {before['loss']:.3g}" in text
    for run in (before, after):
        numbers = [f"{value:z.2f}" for value in run["learned"]]
        assert " and ".join([", ".join(numbers[:-1]), numbers[-1]]) in text


def test_a_reason_that_is_not_the_one_that_was_built_in_is_said_to_be_so() -> None:
    for key, shown in SHOWN.items():
        others = set(RUNS[key]["reasons"]) - {shown.reason}
        told = "Built in was" in section(key)
        assert told == bool(others and shown.reason)
        for reason in others if told else ():
            assert f"**{reason}**" in section(key)


def test_the_run_with_too_few_probes_is_one_that_is_spoken_of_with_more() -> None:
    few, many = RUNS["too-few-probes"], RUNS["decay"]
    assert few["kind"] == many["kind"]
    assert few["probes"] < 4 < many["probes"]
    assert many["alerts"]
    assert not few["alerts"]
    assert "warming up" in few["verdict"]


def test_every_reason_is_shown_or_named_as_missing() -> None:
    assert set(CURES) <= set(get_args(Reason))
    named = {reason for run in RUNS.values() for reason in run["reasons"]}
    missing = set(not_named(FOUND))
    assert named | missing == set(get_args(Reason))
    assert missing <= set(MISSING)
    for reason in missing:
        assert f"- **{reason}**: {MISSING[reason]}" in TEXT


def test_pictures_are_there_and_small() -> None:
    pictures = re.findall(r"!\[[^\]]{40,}\]\((images/[^)]+)\)", TEXT)
    assert len(pictures) == len(SHOWN) + 1
    dark = "images/healthy_and_stalled_dark.png"
    for name in [*pictures, dark]:
        assert 5_000 < (DOCS / name).stat().st_size <= LARGEST


def test_the_first_picture_is_of_two_losses_that_look_alike() -> None:
    pair = FOUND["pair"]
    first, second = pair["losses"]
    assert abs(first - second) <= ALIKE * max(first, second)
    left = pair["planned"] - pair["step"]
    learns, stuck = pair["steps_to_learn"]
    assert all(steps is not None and steps < left for steps in learns)
    assert all(steps is None or steps > 10 * left for steps in stuck)
    assert min(RUNS[pair["learns"]]["learned"]) >= LEARNED
    assert max(RUNS[pair["stuck"]]["learned"][1:]) < LEARNED / 2


def test_the_last_step_at_which_two_losses_look_alike() -> None:
    def run(losses: list[float], steps: list[float]) -> dict[str, Any]:
        ahead = {str(s): {"to_learn": [0.0, steps[i]]} for i, s in enumerate((0, 10, 20, 30))}
        return {
            "steps": [0, 10, 20, 30], "loss": losses, "learned": [[1.0, 0.1]] * 4,
            "forecasts": ahead, "planned": 40, "alerts": [{"step": 30, "kind": "stalled"}],
        }  # fmt: skip

    good, bad = run([3, 2, 1.95, 1], [9, 8, 7, 6]), run([3, 2, 2, 2], [1e9, 1e8, 1e7, 1e6])
    pair = pair_of({"network1-adam": good, "core": bad})
    assert pair is not None
    assert (pair["step"], pair["losses"], pair["alert"]) == (20, [1.95, 2], 30)
    assert pair["steps_to_learn"] == [[7], [1e7]]
    assert (pair["earlier"], pair["earlier_steps"]) == (10, [8])
    assert pair_of({"core": bad}) is None


def test_a_forecast_is_drawn_as_far_as_it_holds() -> None:
    assert cut([0, 10, 20], [4.0, 2.0, 1.0], 15) == ([0, 10, 15], [4.0, 2.0, 1.5])
    assert cut([0, 10, 20], [4.0, 2.0, None], 99) == ([0, 10], [4.0, 2.0])


def test_the_forecast_of_the_first_alert_is_drawn() -> None:
    run = {
        "planned": 100, "forecasts": {"0": "a", "20": "b", "60": "c"},
        "alerts": [{"step": 90, "kind": "stalled"}, {"step": 50, "kind": "stalled"}],
    }  # fmt: skip
    assert forecast_at(run) == (60, "c")
    assert list(called(run)) == [50]
    assert forecast_at(run | {"alerts": []}) == (20, "b")


def test_the_command_trains_draws_and_writes(tmp_path: Path) -> None:
    gallery.main(
        ["--only", "saturated", "--probes", "8", "--without-trials",
         "--runs", str(tmp_path / "runs"), "--docs", str(tmp_path)]
    )  # fmt: skip
    found = json.loads((tmp_path / "gallery.json").read_text())["runs"]["saturated"]
    assert found["reasons"] == ["saturated"]
    assert max(found["learned"]) < 0.1
    text = (tmp_path / "gallery.md").read_text()
    assert found["verdict"] in text
    assert "out of reach" in found["verdict"]
    assert (tmp_path / "images" / "gallery" / "saturated.png").read_bytes()[1:4] == b"PNG"
    assert list((tmp_path / "runs" / "saturated").rglob("events.out.tfevents*"))


def test_a_page_without_its_runs_says_what_it_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a fresh clone, where ``--only`` trains some again, and with another torch."""
    monkeypatch.setattr(torch, "__version__", "another")
    (tmp_path / "gallery.json").write_text((DOCS / "gallery.json").read_text())
    gallery.write(tmp_path / "no runs", tmp_path)
    for name in ("gallery.json", "gallery.md"):
        assert (tmp_path / name).read_text() == (DOCS / name).read_text()
