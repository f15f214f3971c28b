"""Several processes, each with a part of a batch, find what one finds on all of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from ranks.data_parallel import NIGHTLY
from ranks.launch import finish, run, start

CLOSE = {"finite-difference": 1e-4}
"""Relative gap that a method may leave; 1e-5 for the others, which have no step."""
Found = list[dict[str, Any]]


@pytest.fixture(scope="module", params=[2, 3])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Found:
    return run("data_parallel.py", request.param, tmp_path_factory.mktemp("ranks"))


def gap(name: str, ours: Any, theirs: Any) -> float:
    """The largest difference in relation to the largest number."""
    if isinstance(theirs, list) and theirs and isinstance(theirs[0], list):
        ours, theirs = ([x for row in rows[:3] for x in row] for rows in (ours, theirs))
    elif not isinstance(theirs, list):
        ours, theirs = [ours], [theirs]
    assert len(ours) == len(theirs), name
    for a, b in zip(ours, theirs, strict=True):
        assert math.isnan(a) == math.isnan(b), name
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if not math.isnan(b)]
    size = max((abs(b) for _, b in pairs), default=0.0)
    return max((abs(a - b) for a, b in pairs), default=0.0) / size if size else 0.0


def test_they_find_what_one_process_finds(found: Found) -> None:
    assert len(found[0]["compare"]) >= 2
    for case, both in found[0]["compare"].items():
        together, alone = both["together"], both["alone"]
        assert together.keys() == alone.keys()
        for name, number in alone.items():
            if name in {"ntk/probe_seconds", "adjoint"} or (name == "products" and "exact" in case):
                continue
            if isinstance(number, str):
                assert together[name] == number, f"{case}: {name}"
            elif name == "products":  # one more where an error just reaches a limit, or not
                assert abs(together[name] - number) <= 1, f"{case}: {name}"
            else:
                limit = CLOSE.get(case.rpartition(", ")[2], 1e-5)
                assert gap(name, together[name], number) <= limit, f"{case}: {name}"


def test_all_have_the_same_numbers(found: Found) -> None:
    for case, first in found[0]["compare"].items():
        for other in found[1:]:
            ours = {k: str(v) for k, v in first["together"].items()}
            theirs = {k: str(v) for k, v in other["compare"][case]["together"].items()}
            assert ours == theirs, case


def test_both_ways_of_sampling_and_of_keeping_rows_were_tried(found: Found) -> None:
    schemes = {both["together"]["scheme"] for both in found[0]["compare"].values()}
    assert schemes >= {"sampled", "deflated"}
    shapes = {name: both["together"]["shape"] for name, both in found[0]["compare"].items()}
    assert math.prod(shapes["long, forward-ad"][:2]) > 2 * (128 + 64)


def test_sequences_may_be_of_other_lengths(found: Found) -> None:
    for process in found:
        numbers = process["lengths"]["together"]
        assert numbers["shape"] == [4 * len(found), 9, 6]
        assert 0 < numbers["ntk/temporal_effective_rank"] < 9 * 4 * len(found)
    assert found[0]["lengths"] == found[-1]["lengths"]


def test_one_that_fails_is_heard_of_wherever_it_fails(found: Found) -> None:
    for process in found[:-1]:
        for name, error in process["failures"].items():
            if name.startswith("at forward pass"):
                assert error.startswith("ProcessError: another process"), name
    for name, error in found[-1]["failures"].items():
        if name.startswith("at forward pass"):
            assert error == "OSError: no luck today", name


def test_a_batch_that_one_cannot_use_is_heard_of(found: Found) -> None:
    errors = [process["failures"]["arrays"] for process in found]
    assert errors[-1].startswith("ValueError: batch must have tensors")
    assert all(error.startswith("ProcessError: another process") for error in errors[:-1])


def test_a_method_that_fails_in_one_process_is_left_by_all_or_ends_the_probe(found: Found) -> None:
    kinds = ("auto, ", "forward-ad, ")
    names = [name for name in found[0]["failures"] if name.startswith(kinds)]
    assert len(names) == (36 if NIGHTLY and len(found) == 2 else 12)
    for name in names:
        ends = {process["failures"][name].partition(":")[0] for process in found}
        if "nothing" in ends:  # another method took its place, in all
            assert ends == {"nothing"}, name
        else:
            assert all(process["failures"][name].startswith("ProcessError: another process")
                       or process["failures"][name].startswith("RuntimeError: method=")
                       for process in found[:-1]), name  # fmt: skip
            assert "no luck today" in found[-1]["failures"][name], name


def test_a_target_that_one_process_cannot_place_is_left_aside_by_all(found: Found) -> None:
    for process in found:
        assert process["failures"]["classes"] == "nothing"
        assert process["failures"]["no target"] == "nothing"


def test_processes_that_differ_are_found_out(found: Found) -> None:
    for process in found:
        failures = process["failures"]
        assert "differ in their random tangents" in failures["seeds"]
        assert "do different things" in failures["settings"]
        assert "do different things" in failures["budget"]
        assert "differ in their parameters" in failures["parameters"]
        assert "differ in their parameters" in failures["parameters in place"]
        assert "differ in their parameters" in failures["nan"]
        assert failures["afterwards"] == "nothing"


def test_one_that_is_killed_is_not_waited_for(tmp_path: Path) -> None:
    processes = start("killed.py", 2, tmp_path)
    codes = finish(processes, limit=120)
    said = (tmp_path / "0.log").read_text()
    assert codes == [0, 7], said
    assert "the probe ended with" in said
