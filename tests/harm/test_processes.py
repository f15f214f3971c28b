"""Two processes train together; the first measures, both have the result."""

from __future__ import annotations

import csv
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from ntk_monitor.monitor.trainers import require_whole_model

SCRIPT = Path(__file__).with_name("processes.py")
TIME_LIMIT = 240


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """What each process saw; a hang is a failure."""
    folder = tmp_path_factory.mktemp("ddp")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "PYTHONPATH": str(SCRIPT.parents[1]),
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "NODE_RANK": "0",
    }
    logs = [(folder / f"{rank}.log").open("w") for rank in range(2)]
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(folder)],
            env={**os.environ, **shared, "LOCAL_RANK": str(rank)},
            stdout=logs[rank],
            stderr=subprocess.STDOUT,
        )
        for rank in range(2)
    ]
    try:
        codes = [process.wait(timeout=TIME_LIMIT) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
        for log in logs:
            log.close()
    said = "\n".join((folder / f"{rank}.log").read_text()[-2000:] for rank in range(2))
    assert codes == [0, 0], said
    return folder, [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_training_is_the_same(both: tuple[Path, list[dict[str, Any]]]) -> None:
    for found in both[1]:
        for name in ("watched", "val", "dear", "broken"):
            for what in ("weights", "losses", "steps"):
                assert found[name][what] == found["plain"][what], name
    assert both[1][0]["plain"]["weights"] == both[1][1]["plain"]["weights"]
    assert both[1][0]["plain"]["losses"] != both[1][1]["plain"]["losses"]


def test_every_process_has_the_numbers_of_the_first(both: Any) -> None:
    first, second = both[1]
    for name, probes in {"watched": 5, "val": 5, "dear": 1}.items():
        ours = {k: v for k, v in first[name]["metrics"].items() if "/" in k}
        assert ours == second[name]["metrics"]
        assert "ntk/trace" in ours
        assert first[name]["heard"] == second[name]["heard"]
        assert len(first[name]["heard"]) == probes
    assert first["watched"]["metrics"]["alert/mode_1"] in {0.0, 1.0}


def test_there_is_one_set_of_records(both: Any) -> None:
    text = (both[0] / "watched" / "version_0" / "metrics.csv").read_text()
    rows = list(csv.DictReader(text.splitlines()))
    steps = [int(row["step"]) for row in rows if row.get("ntk/trace")]
    assert steps == [0, 2, 4, 6, 8]
    assert len(list((both[0] / "watched").iterdir())) == 1


def test_a_failure_in_the_first_process_hangs_nobody(both: Any) -> None:
    first, second = both[1]
    assert len(first["broken"]["warnings"]) == 2
    assert "no luck today" in first["broken"]["warnings"][0]
    assert second["broken"]["warnings"] == []
    assert first["broken"]["heard"] == second["broken"]["heard"] == []


def test_a_failure_that_is_to_be_raised_is_raised_in_every_process(both: Any) -> None:
    for found in both[1]:
        assert "no luck today" in found["raised"]["error"]
        assert "a probe failed in the first process" in found["raised"]["error"]


def test_an_alert_that_stops_stops_every_process(both: Any) -> None:
    first, second = both[1]
    assert 0 < first["stopped"]["steps"] == second["stopped"]["steps"] < first["plain"]["steps"]


@pytest.mark.parametrize(
    ("strategy", "world_size", "name"),
    [
        (FSDPStrategy(), 1, "FSDPStrategy shards the model"),
        (FSDPStrategy(), 2, "FSDPStrategy shards the model"),
        (ModelParallelStrategy(), 2, "ModelParallelStrategy shards the model"),
        (type("DeepSpeedStrategy", (), {})(), 1, "DeepSpeedStrategy shards the model"),
        (type("Mine", (), {})(), 4, "Mine runs 4 processes"),
    ],
)
def test_other_strategies_are_refused(strategy: Any, world_size: int, name: str) -> None:
    trainer: Any = SimpleNamespace(strategy=strategy, world_size=world_size)
    with pytest.raises(MisconfigurationException, match=f"{name}: supported are one device and"):
        require_whole_model(trainer)


def test_supported_strategies_are_not() -> None:
    for strategy, size in [(DDPStrategy(), 2), (type("Mine", (), {})(), 1)]:
        require_whole_model(SimpleNamespace(strategy=strategy, world_size=size))
