"""With Fabric, two processes with parts of a model find what one finds, and train as without."""

from __future__ import annotations

import pytest

from ranks.launch import run
from ranks.test_data_parallel import Found, gap


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return run("fabric.py", 2, tmp_path_factory.mktemp("fabric"))


def test_they_find_what_one_process_finds(found: Found) -> None:
    first, second = (process["watched"]["heard"] for process in found)
    assert [(step, method) for step, method, _ in first] == [(i, "in-place") for i in (0, 2, 4)]
    assert str(first) == str(second)
    alone = found[0]["alone"]
    del alone["ntk/probe_seconds"]
    assert first[0][2].keys() == alone.keys()
    for tag, number in alone.items():
        assert gap(tag, first[0][2][tag], number) <= 1e-4, tag


def test_training_is_the_same(found: Found) -> None:
    for process in found:
        assert process["plain"]["sharded"]
        for what in ("weights", "random"):
            assert process["watched"][what] == process["plain"][what]
    assert found[0]["plain"]["weights"] != found[1]["plain"]["weights"]
