"""Several processes, each with a part of the parameters and of the batch, find what one finds."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import pytest

from ranks.data_parallel import NIGHTLY
from ranks.launch import run
from ranks.test_data_parallel import (
    Found,
    gap,
    test_all_have_the_same_numbers,
    test_they_find_what_one_process_finds,
)

__all__ = ["test_all_have_the_same_numbers", "test_they_find_what_one_process_finds"]
Run = Callable[[int], Found]


@pytest.fixture(scope="module")
def run_of(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """What some number of processes found; each number is started once."""
    return cache(lambda size: run("sharded.py", size, tmp_path_factory.mktemp("sharded")))


@pytest.fixture(scope="module", params=[2, 4])
def found(request: pytest.FixtureRequest, run_of: Run) -> Found:
    return run_of(request.param)


@pytest.fixture(scope="module", params=[2, 4] if NIGHTLY else [2])
def trained(request: pytest.FixtureRequest, run_of: Run) -> Found:
    return run_of(request.param)


def test_with_tensor_parallelism_all_but_the_core_is_known(found: Found) -> None:
    both = found[0]["tensor parallel"]
    core = {"core/effective_rank", "core spectrum", "overlaps", "adjoint", "ntk/probe_seconds"}
    for name, number in both["alone"].items():
        if "core_cosine" in name or name in core:
            continue
        if isinstance(number, str):
            assert both["together"][name] == number
        else:
            assert gap(name, both["together"][name], number) <= 1e-4, name
    assert math.isnan(both["together"]["core/effective_rank"])
    assert "the state '0' differs between processes" in both["together"]["in parts"]
    for other in found[1:]:
        ours, theirs = both["together"], other["tensor parallel"]["together"]
        assert {k: str(v) for k, v in ours.items()} == {k: str(v) for k, v in theirs.items()}


def test_parts_are_what_is_differentiated(found: Found) -> None:
    methods = {both["together"]["method"] for both in found[0]["compare"].values()}
    assert methods == {"in-place"}


def test_training_is_the_same(trained: Found) -> None:
    for process in trained:
        assert process["training"]["watched"] == process["training"]["plain"]
    parts = [process["training"]["plain"] for process in trained]
    assert parts[0] != parts[1]


def test_gradients_that_wait_for_their_sum_are_left_alone(trained: Found) -> None:
    for process in trained:
        gradients = process["training"]["gradients"]
        assert len(gradients) == 6
        assert process["training"]["watched gradients"] == gradients


def test_what_gradients_are_divided_by_is_taken_back(trained: Found) -> None:
    for process in trained:
        pulled = process["training"]
        for alike in (False, True):
            ours, usual = (pulled[f"divided by {factor}, alike {alike}"] for factor in (3.0, None))
            assert ours == pytest.approx(usual, rel=1e-9)
    firsts = [process["training"]["divided by None, alike True"] for process in trained]
    assert firsts[0] == pytest.approx(firsts[1], rel=1e-9)


def test_it_is_told_that_there_is_no_forecast(trained: Found) -> None:
    for process in trained:
        assert any("no forecast" in remark for remark in process["training"]["remarks"])


def test_failures_and_refusals_are_everybodys(trained: Found) -> None:
    for process in trained:
        failures = process["failures"]
        for name in ("method", "exact"):
            assert "are sharded, so that no process has all" in failures[name]
        assert "works in the arithmetic of the model's own parameters" in failures["arithmetic"]
        assert "differ in their random tangents" in failures["seeds"]
        assert failures["alone"] == "nothing"
        assert failures["unchanged"]
    assert trained[0]["failures"]["target"].startswith("ProcessError: another process")
    assert trained[-1]["failures"]["target"] == "OSError: no luck today"
