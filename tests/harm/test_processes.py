"""Two processes train together; both measure, and both have the result."""

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

from ntk_monitor.monitor.integrations.lightning.trainer import require_known_strategy

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
        "PYTHONPATH": os.pathsep.join(map(str, (SCRIPT.parents[1], SCRIPT.parents[2]))),
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


OWN = {"ntk/overhead"}
UNKNOWN = -1.0


def test_training_is_the_same(both: tuple[Path, list[dict[str, Any]]]) -> None:
    for found in both[1]:
        for name in ("watched", "val", "planned", "dear", "same", "broken in 0", "broken in 1"):
            for what in ("weights", "losses", "steps"):
                assert found[name][what] == found["plain"][what], name
    assert both[1][0]["plain"]["weights"] == both[1][1]["plain"]["weights"]
    assert both[1][0]["plain"]["losses"] != both[1][1]["plain"]["losses"]


@pytest.mark.parametrize(
    ("name", "probes"), [("watched", 5), ("val", 5), ("planned", 9), ("dear", 1), ("loop", 3)]
)
def test_every_process_has_the_same_numbers(name: str, probes: int, both: Any) -> None:
    first, second = (found[name] for found in both[1])
    assert first["heard"] == second["heard"]
    assert len(first["heard"]) == probes
    if name == "loop":
        return
    ours = {k: v for k, v in first["metrics"].items() if k not in OWN}
    assert ours == {k: v for k, v in second["metrics"].items() if k not in OWN}
    assert "core/effective_rank" in ours


def test_a_loop_of_ones_own_is_the_same(both: Any) -> None:
    for found in both[1]:
        for what in ("weights", "random"):
            assert found["loop"][what] == found["plain loop"][what]
        assert [step for step, _ in found["loop"]["heard"]] == [0, 2, 4]


def test_a_loop_cut_in_two_measures_the_same_batches(both: Any) -> None:
    for found in both[1]:
        assert found["cut loop"] == found["loop"]


def test_what_the_first_process_plans_all_do(both: Any) -> None:
    for found in both[1]:
        assert [step for step, _ in found["planned"]["heard"]] == list(range(9))
        assert found["planned"]["warnings"] == []
        cheap = [trace == UNKNOWN for _, trace in found["planned"]["heard"]]
        assert cheap[0]
        assert not cheap[-1]
        assert "ntk/trace" in found["planned"]["metrics"]


def test_every_process_probes_at_the_same_steps(both: Any) -> None:
    for name, steps in {"watched": [0, 2, 4, 6, 8], "val": [0, 2, 4, 6, 8], "dear": [0]}.items():
        for found in both[1]:
            assert [step for step, _ in found[name]["heard"]] == steps
    assert both[1][0]["watched"]["metrics"]["alert/mode_1"] in {0.0, 1.0}


@pytest.mark.parametrize(("rank", "steps"), [(0, [0]), (1, [0, 2, 4, 6, 8])])
def test_the_first_process_decides_what_is_too_dear(rank: int, steps: list[int], both: Any) -> None:
    for found in both[1]:
        dear = found[f"dear in {rank}"]
        assert [step for step, _ in dear["heard"]] == steps
        assert dear["warnings"] == []
        for what in ("weights", "losses", "steps"):
            assert dear[what] == found["plain"][what]
    first, second = (found[f"dear in {rank}"] for found in both[1])
    assert first["heard"] == second["heard"]


def test_each_process_keeps_its_own_batch_and_a_checkpoint_all(both: Any) -> None:
    first, second = (found["watched"] for found in both[1])
    assert first["kept"] == second["kept"] == [first["own"], second["own"]]
    assert first["own"] != second["own"]


def test_a_batch_that_all_have_counts_once(both: Any) -> None:
    first, second = (found["same"] for found in both[1])
    assert first["heard"] == second["heard"]
    assert len(first["heard"]) == 5
    assert first["heard"][0][1] == pytest.approx(first["alone"][0], rel=1e-6)


def test_there_is_one_set_of_records(both: Any) -> None:
    text = (both[0] / "watched" / "version_0" / "metrics.csv").read_text()
    rows = list(csv.DictReader(text.splitlines()))
    steps = [int(row["step"]) for row in rows if row.get("ntk/trace")]
    assert steps == [0, 2, 4, 6, 8]
    assert len(list((both[0] / "watched").iterdir())) == 1


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("how", ["broken", "broken apart"])
def test_a_failure_in_one_process_hangs_nobody_and_is_one_for_all(
    how: str, rank: int, both: Any
) -> None:
    first, second = (found[f"{how} in {rank}"] for found in both[1])
    assert len(first["warnings"]) == 2
    assert "switched off" in first["warnings"][1]
    said = "no luck today" if rank == 0 else "another process that takes part"
    assert said in first["warnings"][0]
    assert second["warnings"] == []
    assert first["heard"] == second["heard"] == []
    assert first["failures"] == second["failures"] == 3


@pytest.mark.parametrize("rank", [0, 1])
def test_a_failure_that_is_to_be_raised_is_raised_in_every_process(rank: int, both: Any) -> None:
    for i, found in enumerate(both[1]):
        said = "no luck today" if i == rank else "another process that takes part"
        assert said in found[f"raised in {rank}"]["error"]


@pytest.mark.parametrize("name", ["gathers", "reduces"])
def test_a_step_that_talks_to_other_processes_is_told_and_hangs_nobody(
    name: str, both: Any
) -> None:
    first, second = (found[name] for found in both[1])
    assert "communicates with other processes, which a probe cannot repeat" in first["warnings"][0]
    assert "forward_fn=" in first["warnings"][0]
    assert len(first["warnings"]) == 2
    assert first["heard"] == second["heard"] == []
    for found in both[1]:
        for what in ("weights", "losses", "steps"):
            assert found[name][what] == found[f"plain {name}"][what]


def test_a_step_that_logs_for_all_processes_is_probed(both: Any) -> None:
    for found in both[1]:
        assert len(found["synchronises"]["heard"]) == 5
        assert found["synchronises"]["warnings"] == []
        assert found["synchronises"]["metrics"] != {}
        for what in ("weights", "losses", "steps"):
            assert found["synchronises"][what] == found["plain synchronises"][what]


def test_an_alert_that_stops_stops_every_process(both: Any) -> None:
    first, second = both[1]
    assert 0 < first["stopped"]["steps"] == second["stopped"]["steps"] < first["plain"]["steps"]


def test_sharded_parameters_are_measured_and_trained_the_same(both: Any) -> None:
    for found in both[1]:
        for what in ("weights", "losses", "steps"):
            assert found["sharded"][what] == found["plain sharded"][what]
        assert found["sharded"]["warnings"] == []
        assert len(found["sharded"]["heard"]) == 5
    first, second = (found["sharded"] for found in both[1])
    assert first["heard"] == second["heard"]
    assert first["method"] == second["method"] == "in-place"
    # The first probe is one of the same parameters and batches as with DDP, by another method.
    assert first["heard"][0][1] == pytest.approx(both[1][0]["watched"]["heard"][0][1], rel=1e-3)


@pytest.mark.parametrize(
    ("strategy", "world_size", "name"),
    [
        (FSDPStrategy(), 1, "FSDPStrategy, which shards parameters into flat ones"),
        (FSDPStrategy(), 2, "FSDPStrategy, which shards parameters into flat ones"),
        (type("DeepSpeedStrategy", (), {})(), 1, "DeepSpeedStrategy, which keeps parameters"),
        (type("Mine", (), {})(), 4, "Mine, which runs 4 processes in an unknown way"),
    ],
)
def test_other_strategies_are_refused(strategy: Any, world_size: int, name: str) -> None:
    trainer: Any = SimpleNamespace(strategy=strategy, world_size=world_size)
    with pytest.raises(MisconfigurationException, match=f"{name}.*: supported are one device"):
        require_known_strategy(trainer)


def test_supported_strategies_are_not() -> None:
    known = [(DDPStrategy(), 2), (ModelParallelStrategy(), 2), (type("Mine", (), {})(), 1)]
    for strategy, size in known:
        require_known_strategy(SimpleNamespace(strategy=strategy, world_size=size))
