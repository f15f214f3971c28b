"""The schedule's arithmetic, and the verdicts of the alert."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from ntk_monitor import Estimate, NTKMonitor, StallAlert, TargetMode
from ntk_monitor.monitor import StallWarning
from ntk_monitor.monitor.alert import ModeWatch
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


def watch(learned: list[float], excess: list[float], patience: int = 3) -> ModeWatch:
    found = ModeWatch()
    for pair in zip(learned, excess, strict=True):
        found.add(*pair, patience)
    return found


@pytest.mark.parametrize(
    ("learned", "excess", "probes_left", "stalled"),
    [
        ([0.0] * 4, [20.0] * 4, 10, True),
        ([0.0] * 3, [20.0] * 3, 10, False),  # not seen for long enough
        ([0.95] * 4, [20.0] * 4, 10, False),  # learned
        ([0.0] * 4, [-1.0] * 4, 10, False),  # within reach
        ([0.0] * 4, [20.0, 20.0, -0.1, 20.0], 10, False),  # was within reach
        ([0.0, 0.02, 0.04, 0.06], [20.0] * 4, 10, False),  # improving
        ([0.0] * 4, [26.0, 24.0, 22.0, 20.0], 10, False),  # 2 a probe, 2 needed
        ([0.0] * 4, [26.0, 24.0, 22.0, 20.0], 9, True),  # 2 a probe, 2.2 needed
        ([0.0] * 4, [math.inf] * 4, 10, True),
        ([math.nan] * 4, [20.0] * 4, 10, False),
    ],
)
def test_verdicts(
    learned: list[float], excess: list[float], probes_left: float, *, stalled: bool
) -> None:
    assert watch(learned, excess).is_stalled(3, 0.9, 0.01, probes_left) is stalled


def snapshot(learned: float, steps: float, overlap: float = 0.5) -> Any:
    mode = TargetMode(1, 2.0, Estimate(0.1, 0.01), 1.0, learned, overlap, steps)
    return SimpleNamespace(target_modes=(mode,))


@pytest.fixture
def trainer() -> Any:
    return SimpleNamespace(
        estimated_stepping_batches=100,
        loggers=[],
        callback_metrics={},
        callbacks=[NTKMonitor()],
        should_stop=False,
        is_global_zero=True,
    )


def drive(alert: StallAlert, trainer: Any, shots: list[Any], start: int = 0) -> list[float]:
    flags = []
    for i, shot in enumerate(shots):
        trainer.callbacks[0].states[0].snapshot = shot
        alert.on_probe(trainer, None, shot, start + 10 * i)
        flags.append(float(trainer.callback_metrics["alert/mode_1"]))
    return flags


def test_warns_once_says_when_recovered_and_may_warn_again(trainer: Trainer) -> None:
    alert = StallAlert(patience=2)
    with pytest.warns(StallWarning) as caught:
        flags = drive(alert, trainer, [snapshot(0.0, 1e9)] * 5)
    assert flags == [0, 0, 1, 1, 1]
    assert len(caught) == 1
    assert alert.stalled == (1,)
    message = str(caught[0].message)
    for part in ("mode 1", "learned 0.000", "1e+09 steps where 80 remain", "propagator"):
        assert part in message
    assert drive(alert, trainer, [snapshot(0.5, 3.0)], start=50) == [0]
    assert alert.stalled == ()
    assert "recovered" in alert.messages[-1]


def test_what_is_not_learned_at_the_end_is_no_stall(trainer: Trainer) -> None:
    assert drive(StallAlert(patience=2), trainer, [snapshot(0.0, 1e9)] * 3, start=80) == [0, 0, 0]
    with pytest.warns(StallWarning):
        found = drive(StallAlert(patience=2), trainer, [snapshot(0.0, 1e9)] * 4, start=70)
    assert found == [0, 0, 1, 1]


def test_reason_depends_on_the_core(trainer: Trainer) -> None:
    with pytest.warns(StallWarning, match=r"hardly has this mode's time course.*Shampoo"):
        drive(StallAlert(patience=1), trainer, [snapshot(0.0, 1e9, overlap=1e-8)] * 2)


def test_stop_ends_the_training(trainer: Trainer) -> None:
    alert = StallAlert(patience=1, actions=("stop",))
    drive(alert, trainer, [snapshot(0.0, 1e9)] * 2)
    assert trainer.should_stop
    assert len(alert.messages) == 1


def test_horizon_takes_the_place_of_the_steps_that_remain(trainer: Trainer) -> None:
    shots = [snapshot(0.0, 500.0)] * 3
    assert drive(StallAlert(patience=1, horizon=1000), trainer, shots) == [0, 0, 0]
    with pytest.warns(StallWarning):
        assert drive(StallAlert(patience=1), trainer, shots) == [0, 1, 1]


def test_watches_survive_a_checkpoint(trainer: Trainer) -> None:
    first, second = StallAlert(patience=2), StallAlert(patience=2)
    drive(first, trainer, [snapshot(0.0, 1e9)] * 2)
    state = first.state_dict()
    second.load_state_dict(state)
    with pytest.warns(StallWarning):
        assert drive(second, trainer, [snapshot(0.0, 1e9)], start=20) == [1]
    assert torch.equal(trainer.callback_metrics["alert/mode_1"], torch.tensor(1.0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patience": 0}, "patience must be at least 1"),
        ({"learned_threshold": 0.0}, "learned_threshold must lie in"),
        ({"min_improvement": -1.0}, "min_improvement must be"),
        ({"horizon": 0}, "horizon must be at least 1"),
        ({"actions": ("email",)}, "actions must be a sequence"),
        ({"actions": "warn"}, "actions must be a sequence"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StallAlert(**settings)
