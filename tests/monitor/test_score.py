"""For how many steps forecasts hold, by those that have come true."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch

from ntk_monitor.monitor.score import Score
from ntk_monitor.snapshot import Forecast

FAR = 30.0


@dataclass(frozen=True)
class Seen:
    """What a score looks at of a snapshot."""

    loss: float | None
    forecast: Forecast | None


def seen(loss: float, pace: float) -> Any:
    """A loss, and a forecast that it goes along a straight line from there."""
    steps = torch.tensor([0.0, FAR], dtype=torch.float64)
    line = torch.tensor([loss, loss + FAR * pace], dtype=torch.float64)
    return Seen(loss, Forecast(steps, line, torch.zeros(2, 0), FAR))


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
    for step in (0, 10, 20):  # said to fall, and it does not
        last = holds_for(score, seen(10.0, -0.5), step)
    assert last == 9.0  # all was wrong from 10 steps on


def test_near_ones_may_be_right_where_far_ones_are_not() -> None:
    score = Score()
    for step in range(0, 24, 4):  # wrong by a quarter beyond 8 steps ahead
        last = holds_for(score, seen(10.0, -0.3), step)
    assert last == 8.0


def test_what_has_no_loss_or_no_forecast_is_let_through() -> None:
    score = Score()
    for shot in (Seen(None, None), Seen(1.0, None)):
        assert score.kept(shot, 0) is shot  # type: ignore[arg-type, comparison-overlap]


def test_it_goes_on_from_its_own_words() -> None:
    whole, cut = Score(), Score()
    for step in (0, 7, 14):
        for score in (whole, cut):
            score.kept(seen(10.0 - step / 10, -0.1), step)
    rest = Score()
    rest.load_state_dict(json.loads(json.dumps(cut.state_dict())))
    for step in (21, 28, 35):
        shot = seen(10.0 - step / 4, -0.1)
        assert holds_for(rest, shot, step) == holds_for(whole, shot, step)
    empty = Score()
    empty.load_state_dict({})
    assert holds_for(empty, seen(1.0, 0.0), 40) == FAR
