"""Usual trainings with bare callbacks: a probe, the right state and target modes, no trace."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from outsiders.driver import report
from outsiders.training import Training

TRAININGS: list[Training] = [
    training
    for path in sorted(Path(__file__).parent.glob("usual_*.py"))
    for training in importlib.import_module(f"outsiders.{path.stem}").TRAININGS
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("training", TRAININGS, ids=[training.name for training in TRAININGS])
def test_bare_callbacks_find_what_is_there(training: Training) -> None:
    line = report(training, seconds=1.0)
    assert "error" not in line, line["traceback"]
    assert line["identical"], line["differing"]
    assert line["failures"] == 0, line["failure"]
    assert line["probes"] >= 1
    assert line["state_ok"], (line["state"], line["state_expected"])
    assert line["modes_ok"], (line["target_modes"], line["targets"], line["messages"])
