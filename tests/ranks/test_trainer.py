"""Under the Trainer of transformers, several processes find what one finds on all of a batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ranks.launch import run
from ranks.test_data_parallel import Found, gap

TRAININGS = ("watched", "in order")
FORECAST = {
    *("rate", "steps_to_learn", "transfer", "transfer_stderr", "headroom"),
    *("in_10_steps", "in_30_steps"),  # as transfer has it
}
"""What is made of differences in float32, whose step need only agree to 2e-3 with a finer one."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trainer")


@pytest.fixture(scope="module")
def found(folder: Path) -> Found:
    return run("trainer.py", 2, folder)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run("trainer.py", 1, tmp_path_factory.mktemp("alone"))[0]


def test_training_is_the_same(found: Found) -> None:
    for process in found:
        assert process["plain"]["wrapped"] == "DistributedDataParallel"
        for what in ("weights", "random"):
            assert process["watched"][what] == process["plain"][what]
    assert found[0]["plain"]["weights"] == found[1]["plain"]["weights"]
    assert found[0]["plain"]["weights"] != found[0]["in order"]["weights"]


@pytest.mark.parametrize("name", TRAININGS)
def test_each_process_probes_on_its_own_first_batch(
    name: str, found: Found, alone: dict[str, Any]
) -> None:
    first, second = (process[name]["kept"] for process in found)
    assert first + second == alone[name]["kept"]
    assert first != second


@pytest.mark.parametrize("name", TRAININGS)
def test_they_find_what_one_process_finds(name: str, found: Found, alone: dict[str, Any]) -> None:
    first, second = (process[name]["heard"] for process in found)
    assert [step for step, _ in first] == [0, 2, 4]
    assert str(first) == str(second)
    step, wanted = alone[name]["heard"][0]  # later on, dropout has had its say
    assert step == 0
    assert first[0][1].keys() == wanted.keys()
    for tag, number in wanted.items():
        limit = 5e-3 if tag.split("/")[-1] in FORECAST else 1e-4
        assert gap(tag, first[0][1][tag], number) <= limit, tag


def test_there_is_one_set_of_records(folder: Path, found: Found) -> None:
    (file,) = (folder / "watched").rglob("events.*")
    assert file.parent == folder / "watched" / "ntk_monitor"
    events = EventAccumulator(str(file)).Reload()
    assert [e.step for e in events.Scalars("ntk/trace")] == [0, 2, 4]
    assert found[0]["watched"]["history"] == [0, 2, 4]
    assert not list((folder / "plain").rglob("events.*"))
