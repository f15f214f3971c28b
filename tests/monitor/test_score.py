"""For how many steps forecasts hold, by those that have come true, and what is slower than said."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from ntk_monitor.estimators import Estimate
from ntk_monitor.monitor.score import KEPT, SLOWEST, Score
from ntk_monitor.snapshot import Forecast, TargetMode

FAR = 30.0


@dataclass(frozen=True)
class Seen:
    """What a score looks at of a snapshot."""

    loss: float | None
    forecast: Forecast | None
    target_modes: tuple[TargetMode, ...] = ()


def seen(loss: float, pace: float, *modes: tuple[float, float]) -> Any:
    """A loss, and a forecast that it goes along a straight line from there.

    Modes likewise, each with its learned fraction and what it gains at a step.
    """
    steps = torch.tensor([0.0, FAR], dtype=torch.float64)
    ends = ([v, v + FAR * gain] for v, gain in [(loss, pace), *modes])
    lines = [torch.tensor(each, dtype=torch.float64) for each in ends]
    learned = torch.stack(lines[1:], dim=1) if modes else torch.zeros(2, 0)
    found = tuple(
        TargetMode(
            index=i,
            singular_value=1.0,
            alignment=Estimate(0.0, 0.0),
            gain=0.0,
            learned=value,
            core_overlap=0.0,
            steps_to_learn=(0.9 - value) / gain if gain else math.inf,
            steps_band=((0.9 - value) / gain / 2, (0.9 - value) / gain) if gain else (20.0, 1e9),
        )
        for i, (value, gain) in enumerate(modes, start=1)
    )
    return Seen(loss, Forecast(steps, lines[0], learned, FAR), found)


def holds_for(score: Score, shot: Any, step: int) -> float:
    forecast = score.kept(shot, step).forecast
    assert forecast is not None
    return forecast.valid_for


def test_it_is_the_forecast_s_own_word_until_enough_has_come() -> None:
    score = Score()
    assert holds_for(score, seen(10.0, -0.1), 0) == FAR
    assert holds_for(score, seen(9.0, -0.1), 10) == FAR  # one comparison
    assert holds_for(score, seen(8.0, -0.1), 20) == 20.0  # three: 10, 10 and 20 steps ahead


def test_what_did_not_come_true_does_not_hold() -> None:
    score = Score()
    for step, loss in ((0, 10.0), (10, 20.0), (20, 40.0)):  # said to fall, and it rises
        last = holds_for(score, seen(loss, -0.5), step)
    assert last == 9.0  # all was wrong from 10 steps on


def test_near_ones_may_be_right_where_far_ones_are_not() -> None:
    score = Score()
    for step in range(0, 24, 4):  # said to fall by 0.3 a step, and it rises by as much
        last = holds_for(score, seen(10.0 + 0.3 * step, -0.3), step)
    assert last == 8.0


def test_what_has_no_loss_or_no_forecast_is_let_through() -> None:
    score = Score()
    none = torch.zeros(0)
    empty = Forecast(none, none, torch.zeros(0, 0), 0.0)
    for shot in (Seen(None, None), Seen(1.0, None), Seen(1.0, empty)):
        assert score.kept(shot, 0) is shot  # type: ignore[arg-type, comparison-overlap]


def test_what_comes_in_time_is_not_corrected() -> None:
    score = Score()
    for step in (0, 10, 20, 30):
        shot = seen(10.0 - 0.1 * step, -0.1, (0.01 * step, 0.01), (0.02 * step, 0.005))
        told = score.kept(shot, step)
        assert [m.steps_to_learn for m in told.target_modes] == pytest.approx([
            m.steps_to_learn for m in shot.target_modes
        ])
        assert told.target_modes[0].steps_band == pytest.approx(shot.target_modes[0].steps_band)
        torch.testing.assert_close(told.forecast.loss, shot.forecast.loss)
        torch.testing.assert_close(told.forecast.learned, shot.forecast.learned)


def test_what_took_four_times_as_long_may_take_twice_as_long() -> None:
    score = Score()
    for step in (0, 10, 20, 30):
        shot = seen(10.0 - 0.025 * step, -0.1, (0.01 * step, 0.04), (0.01 * step, 0.01))
        told = score.kept(shot, step)
    late, timely = told.target_modes
    assert late.steps_to_learn == pytest.approx(3 + 2 * (15 - 3))
    assert late.steps_band == pytest.approx((7.5, 3 + 4 * (15 - 3)))
    assert timely.steps_to_learn == pytest.approx((0.9 - 0.3) / 0.01)
    assert told.forecast is not None
    assert told.forecast.loss_in(30) == pytest.approx(9.25 - (3 + 27 / 2) * 0.1)
    assert told.forecast.learned[-1].tolist() == pytest.approx([
        0.3 + (3 + 27 / 2) * 0.04,
        0.3 + 30 * 0.01,
    ])


def test_the_next_steps_come_as_they_are_forecast() -> None:
    score = Score()
    for step in (0, 10):
        told = score.kept(seen(1.0, 0.0, (0.1, 0.01), (0.87, 0.01)), step)
    assert told.target_modes[1].steps_to_learn == pytest.approx(3.0)


def test_what_never_moved_is_as_slow_as_it_can_be() -> None:
    score = Score()
    for step in (0, 10):
        told = score.kept(seen(1.0, 0.0, (0.1, 0.01), (0.1, 0.0)), step)
    stuck, never = told.target_modes
    assert SLOWEST == 100
    assert stuck.steps_to_learn == pytest.approx(3 + 77 * math.sqrt(SLOWEST))
    assert never.steps_to_learn == math.inf
    assert told.forecast is not None
    assert told.forecast.loss_in(20) == 1.0  # it was said to stay, and did


def test_the_past_is_forgotten() -> None:
    score = Score()
    learned = 0.0
    for step in range(0, 200, 10):
        learned += 0.0 if step < 100 else 0.02  # as is forecast, from then on
        told = score.kept(seen(1.0, 0.0, (learned, 0.002)), step)
        slow = (told.target_modes[0].steps_to_learn - 3) / ((0.9 - learned) / 0.002 - 3)
        if step == 90:
            assert slow == pytest.approx(math.sqrt(SLOWEST))
    assert slow == pytest.approx(1.0)


def test_modes_may_come_and_go() -> None:
    score = Score()
    for step, count in enumerate((2, 1, 3, 0, 2)):
        told = score.kept(seen(1.0, 0.0, *[(0.1, 0.01)] * count), step)
        assert len(told.target_modes) == count
    assert [m.steps_to_learn for m in told.target_modes] == pytest.approx([80.0, 80.0])
    for step, count in enumerate((3, 3, 1), start=1000):
        told = score.kept(seen(1.0, 0.0, *[(0.1, 0.01)] * count), step)
        assert len(told.target_modes) == count
    shot = seen(1.0, 0.0, (0.1, 0.01))
    unforecast = Seen(1.0, seen(1.0, 0.0).forecast, shot.target_modes)
    told = score.kept(unforecast, 1005)  # type: ignore[arg-type]
    assert repr(told.target_modes) == repr(shot.target_modes)  # nan is in them


def test_it_goes_on_from_its_own_words() -> None:
    whole, cut = Score(), Score()

    def shot(step: int) -> Any:
        return seen(10.0 - step / 10, -0.2, (0.004 * step, 0.01), (0.1, 0.01))

    for step in (0, 7, 14):
        for score in (whole, cut):
            score.kept(shot(step), step)
    rest = Score()
    rest.load_state_dict(json.loads(json.dumps(cut.state_dict())))
    for step in (21, 28, 35):
        ours, theirs = rest.kept(shot(step), step), whole.kept(shot(step), step)
        assert repr(ours.target_modes) == repr(theirs.target_modes)
        assert ours.forecast is not None
        assert theirs.forecast is not None
        assert ours.forecast.valid_for == theirs.forecast.valid_for
        assert torch.equal(ours.forecast.loss, theirs.forecast.loss)
    for step in range(42, 42 + KEPT):
        rest.kept(shot(step), step)
    assert len(rest.state_dict()["said"]) == KEPT
