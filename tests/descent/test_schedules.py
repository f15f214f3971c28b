"""Learning rates to come, against those that do come."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LambdaLR,
    LinearLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

from descent.small import kept, same
from ntk_monitor.descent import Ahead, Scheduled, descent_of, read_ahead

SCHEDULERS: dict[str, Callable[[Optimizer], Any]] = {
    "StepLR": lambda o: StepLR(o, 4, 0.5),
    "CosineAnnealingLR": lambda o: CosineAnnealingLR(o, 20),
    "LambdaLR": lambda o: LambdaLR(o, lambda k: 1 / (1 + k)),
    "OneCycleLR": lambda o: OneCycleLR(o, 0.3, total_steps=60),
    "SequentialLR": lambda o: SequentialLR(
        o, [LinearLR(o, 0.1, total_iters=5), CosineAnnealingLR(o, 20)], [5]
    ),
}


def optimizer_of_two_groups() -> Optimizer:
    groups = [{"params": [nn.Parameter(torch.ones(2))]}, {"params": [nn.Parameter(torch.ones(3))]}]
    groups[1]["lr"] = 0.3  # type: ignore[assignment]
    return Adam(groups, lr=0.1)


def rates_to_come(optimizer: Optimizer, scheduler: Any, steps: int, when: Scheduled) -> list[Any]:
    found = [[float(g["lr"]) for g in optimizer.param_groups]]
    for step in range(1, steps):
        optimizer.step()
        if step >= when.first and (step - when.first) % when.every == 0:
            scheduler.step()
        found.append([float(g["lr"]) for g in optimizer.param_groups])
    return [list(rates) for rates in zip(*found, strict=True)]


@pytest.mark.parametrize(("every", "first"), [(1, 1), (5, 3), (3, 7)])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_rates_are_those_that_come(name: str, every: int, first: int) -> None:
    optimizer = optimizer_of_two_groups()
    scheduler = SCHEDULERS[name](optimizer)
    for _ in range(2):
        optimizer.step()
        scheduler.step()
    when = Scheduled(scheduler, every, first)
    before = kept(optimizer), copy.deepcopy(
        {k: v for k, v in scheduler.state_dict().items() if k != "_schedulers"}
    )  # fmt: skip
    found = read_ahead([when], 50)
    assert same(kept(optimizer), before[0])
    assert {k: v for k, v in scheduler.state_dict().items() if k != "_schedulers"} == before[1]
    wanted = rates_to_come(optimizer, scheduler, 50, when)
    for group, rates in zip(optimizer.param_groups, wanted, strict=True):
        assert found[id(group)] == pytest.approx(rates, rel=1e-12)


class Broken(StepLR):
    """Wants something that only a training has."""

    def get_lr(self) -> list[float]:
        if self.last_epoch > 0:
            raise RuntimeError("what is the loss?")
        return [0.1, 0.3]


@pytest.mark.parametrize("make", [ReduceLROnPlateau, lambda o: Broken(o, 1), lambda _: object()])
def test_what_cannot_be_foreseen_stays(make: Callable[[Optimizer], Any]) -> None:
    optimizer = optimizer_of_two_groups()
    found = read_ahead([Scheduled(make(optimizer))], 10)
    assert found == {}
    assert [g["lr"] for g in optimizer.param_groups] == [0.1, 0.3]


def test_a_reading_holds_until_it_is_wrong() -> None:
    optimizer = optimizer_of_two_groups()
    scheduler = StepLR(optimizer, 4, 0.5)
    asked: list[int] = []

    def schedulers() -> list[Scheduled]:
        asked.append(1)
        return [Scheduled(scheduler)]

    ahead, key = Ahead(), id(optimizer.param_groups[0])
    first = ahead.rates([optimizer], schedulers, 0, 40)[key]
    assert len(first) == 41
    for _ in range(5):
        optimizer.step()
        scheduler.step()
    assert ahead.rates([optimizer], schedulers, 5, 35)[key] == pytest.approx(first[5:])
    assert len(asked) == 1
    optimizer.param_groups[0]["lr"] = 0.7
    assert ahead.rates([optimizer], schedulers, 6, 34)[key][0] == 0.7
    assert len(asked) == 2
    assert ahead.rates([optimizer], schedulers, 2, 38)[key][0] == 0.7  # a training that went back
    assert len(asked) == 3


def test_a_descent_has_its_rates_relative_to_the_present_one() -> None:
    net = nn.Linear(2, 1)
    optimizer = SGD(net.parameters(), lr=0.4)
    rates = {id(optimizer.param_groups[0]): [0.4, 0.2, 0.1]}
    found = descent_of([optimizer], net, rates=rates)
    assert found is not None
    assert [found.rate_at(k) for k in (0, 1, 2, 3, 99)] == pytest.approx([1, 0.5, 0.25, 0.25, 0.25])
    assert [found.rates_until(t) for t in (0, 0.5, 1, 2, 2.5, 3, 7)] == pytest.approx([
        0,
        0.5,
        1,
        1.5,
        1.625,
        1.75,
        2.75,
    ])


def test_a_warmup_from_nothing_goes_by_the_first_rate_above_it() -> None:
    net = nn.Linear(2, 1)
    optimizer = SGD(net.parameters(), lr=0.0)
    rates = {id(optimizer.param_groups[0]): [0.0, 0.1, 0.2]}
    found = descent_of([optimizer], net, rates=rates)
    assert found is not None
    assert [found.rate_at(k) for k in range(4)] == pytest.approx([0, 1, 2, 2])
