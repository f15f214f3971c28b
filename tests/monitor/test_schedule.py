"""The schedule's arithmetic."""

from typing import Any

import pytest

from ntk_monitor.monitor.schedule import Schedule


def is_due(schedule: Schedule, step: int, epoch: int = 0) -> bool:
    return schedule.crosses(step, epoch) and schedule.affords(schedule.last)


def test_a_multiple_that_is_jumped_over_counts() -> None:
    schedule = Schedule(10, None)
    steps = [3, 9, 12, 19, 20, 20, 41, 45]
    assert [step for step in steps if is_due(schedule, step)] == [12, 20, 41]


def test_probes_stay_within_their_share_of_the_time() -> None:
    now = [0.0]
    schedule = Schedule(1, 0.1, clock=lambda: now[0])
    schedule.start(0, 0)
    schedule.record(1.0)  # the first probe, at step 0
    due = []
    for step in range(1, 101):
        now[0] += 1.0
        if is_due(schedule, step):
            due.append(step)
            schedule.record(1.0)
    # Eight in a hundred seconds: ten are allowed, less a fifth for what the clock cannot see.
    assert due == [25, 38, 50, 63, 75, 88, 100]


def test_plans() -> None:
    def due(plan: Any, steps: range = range(1, 70)) -> list[int]:
        schedule = Schedule(10, None, plan)
        schedule.start(0, 0)
        return [step for step in steps if is_due(schedule, step, step // 20)]

    assert due("steps") == [10, 20, 30, 40, 50, 60]
    assert due("log") == [2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64]
    assert due("epochs") == [20, 40, 60]
    assert due([40, 7]) == [7, 40]
    assert due([7, 8, 40], range(5, 70, 5)) == [10, 40]


def test_a_resumed_schedule_does_not_catch_up() -> None:
    schedule = Schedule(10, None)
    schedule.start(45, 0)
    assert not is_due(schedule, 46)
    assert is_due(schedule, 50)


@pytest.mark.parametrize("older", [True, False])
def test_a_resumed_training_can_pay_for_probes_at_once(*, older: bool) -> None:
    now = [0.0]
    first, second = (Schedule(1, 0.1, clock=lambda: now[0]) for _ in range(2))
    first.start(0, 0)
    now[0] = 1000.0
    first.record(60.0)
    assert first.affords(20.0)
    state = first.state_dict()
    assert state["elapsed"] == 1000.0
    if older:
        del state["elapsed"]
        state["spent"] = 79.0
    now[0] = 5.0  # another process
    second.load_state_dict(state)
    second.start(10, 0)
    assert second.affords(20.0) is not older
    assert second.overhead == pytest.approx(0.1 if older else 0.06)
    now[0] = 1005.0
    assert second.affords(20.0)
