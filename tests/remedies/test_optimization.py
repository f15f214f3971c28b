"""Remedies that change how a gradient becomes a step."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim import lr_scheduler as schedulers

from ntk_monitor.remedies import Adam as AdamRemedy
from ntk_monitor.remedies import (
    Clipping,
    Curriculum,
    LargerBatches,
    LearningRate,
    Loop,
    NotApplicableError,
    Remedy,
    Shampoo,
    Together,
    WeightDecay,
)
from ntk_monitor.remedies.optimization import changed_optimizers

Make = Callable[[Optimizer], Any]
SCHEDULERS: dict[str, Make] = {
    "lambda": lambda o: schedulers.LambdaLR(o, lambda step: 1 / (1 + step)),
    "warm-up from zero": lambda o: schedulers.LambdaLR(o, lambda step: step / 10),
    "cosine": lambda o: schedulers.CosineAnnealingLR(o, 20),
    "milestones": lambda o: schedulers.MultiStepLR(o, [3, 5], 0.1),
    "exponential": lambda o: schedulers.ExponentialLR(o, 0.9),
    "one cycle": lambda o: schedulers.OneCycleLR(o, [0.3, 0.03], 20),
    "sequential": lambda o: schedulers.SequentialLR(
        o, [schedulers.LinearLR(o, 0.1, total_iters=4), schedulers.CosineAnnealingLR(o, 20)], [4]
    ),
}


def two_groups(kind: type[Optimizer] = SGD, **settings: Any) -> Optimizer:
    layers = [nn.Linear(3, 4), nn.Linear(4, 2)]
    groups = [{"params": layers[0].parameters()}, {"params": layers[1].parameters(), "lr": 0.01}]
    return kind(groups, lr=0.1, **settings)


def rates(optimizer: Optimizer, scheduler: Any, steps: int = 8) -> list[list[float]]:
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an order of steps that is not the point here
        for _ in range(steps):
            found.append([group["lr"] for group in optimizer.param_groups])
            scheduler.step()
    return found


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize(
    ("remedy", "factor"),
    [(LearningRate(10.0), 10.0), (LearningRate(0.1), 0.1), (AdamRemedy(1e-3), 0)],
)
def test_a_schedule_goes_on_with_the_changed_optimizer(
    name: str, remedy: Remedy, factor: float
) -> None:
    plain = two_groups(momentum=0.9)
    wanted = torch.tensor(rates(plain, SCHEDULERS[name](plain)))
    optimizer = two_groups(momentum=0.9)
    scheduler = SCHEDULERS[name](optimizer)
    reference = optimizer.param_groups[0].get("initial_lr", 0.1)
    (changed,) = changed_optimizers(remedy, [optimizer], [scheduler])
    assert scheduler.optimizer is changed
    found = torch.tensor(rates(changed, scheduler))
    torch.testing.assert_close(found, wanted * (factor or 1e-3 / reference), rtol=1e-5, atol=1e-9)


def test_adam_takes_over_parameters_ratios_and_decay() -> None:
    optimizer = two_groups(weight_decay=0.02)
    changed = AdamRemedy(1e-3).change_optimizer(optimizer)
    assert isinstance(changed, AdamW)
    for old, new in zip(optimizer.param_groups, changed.param_groups, strict=True):
        assert [id(p) for p in old["params"]] == [id(p) for p in new["params"]]
        assert new["weight_decay"] == 0.02
    assert [g["lr"] for g in changed.param_groups] == pytest.approx([1e-3, 1e-4])


def test_shampoo_takes_over_where_it_is_installed() -> None:
    try:
        import pytorch_optimizer  # noqa: F401, PLC0415
    except ImportError:
        with pytest.raises(NotApplicableError, match="not installed"):
            Shampoo().change_optimizer(two_groups())
    else:
        assert type(Shampoo().change_optimizer(two_groups())).__name__ == "Shampoo"


@pytest.mark.parametrize("kind", [Adam, AdamW])
def test_what_is_adam_already_is_not_made_adam(kind: type[Optimizer]) -> None:
    with pytest.raises(NotApplicableError, match="already"):
        AdamRemedy().change_optimizer(two_groups(kind))


def test_weight_decay_is_set_in_every_group() -> None:
    optimizer = two_groups(weight_decay=0.1)
    WeightDecay(0.0).change_optimizer(optimizer)
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.0, 0.0]
    with pytest.raises(NotApplicableError, match="already"):
        WeightDecay(0.0).change_optimizer(optimizer)
    with pytest.raises(NotApplicableError, match="LBFGS has no weight decay"):
        WeightDecay(0.0).change_optimizer(torch.optim.LBFGS(nn.Linear(2, 2).parameters()))


def test_a_learning_rate_of_zero_has_no_multiple() -> None:
    with pytest.raises(NotApplicableError, match="zero"):
        LearningRate(10.0).change_optimizer(SGD(nn.Linear(2, 2).parameters(), lr=0.0))


def test_clipping_and_accumulation() -> None:
    assert Clipping(None).change_loop(Loop(0.1, None, 2)) == Loop(None, None, 2)
    assert Clipping(None).change_loop(Loop(None, 0.1)) == Loop()
    assert Clipping(1.0).change_loop(Loop(None, 0.1)) == Loop(1.0)
    assert LargerBatches(4).change_loop(Loop(1.0, None, 2)) == Loop(1.0, None, 8)
    assert LargerBatches(4).cost == 4
    with pytest.raises(NotApplicableError, match="not clipped"):
        Clipping(None).change_loop(Loop())
    with pytest.raises(NotApplicableError, match="already"):
        Clipping(1.0).change_loop(Loop(1.0))


def test_a_curriculum_reaches_the_whole_task() -> None:
    class Graded:
        def __init__(self) -> None:
            self.seen: list[float] = []

        def set_difficulty(self, difficulty: float) -> None:
            self.seen.append(difficulty)

    data = Graded()
    for progress in (0.0, 0.1, 0.2, 0.9):
        Curriculum(over=0.2).change_data(data, progress)
    assert data.seen == pytest.approx([0.0, 0.5, 1.0, 1.0])
    with pytest.raises(NotApplicableError, match="list has no set_difficulty"):
        Curriculum().change_data([], 0.0)
    loader = type("Loader", (), {"dataset": data})()
    Curriculum().change_data(loader, 0.25)
    assert data.seen[-1] == 0.5


def test_several_remedies_act_together() -> None:
    both = Together([LearningRate(2.0), WeightDecay(0.5), LargerBatches(2)])
    (changed,) = changed_optimizers(both, [two_groups()], [])
    assert [g["lr"] for g in changed.param_groups] == pytest.approx([0.2, 0.02])
    assert changed.param_groups[0]["weight_decay"] == 0.5
    assert both.cost == 2
    assert both.name == "learning rate x 2 and weight decay 0.5 and batches x 2"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LearningRate(0.0), "factor must be a positive number"),
        (lambda: AdamRemedy(-1.0), "lr must be a positive number"),
        (lambda: WeightDecay(-0.1), "value must be 0 or more"),
        (lambda: Clipping(0.0), "norm must be a norm above 0"),
        (lambda: LargerBatches(1), "times must be at least 2"),
        (lambda: Curriculum(0.0), "over must be a share"),
        (lambda: Together([]), "remedies must be a sequence"),
    ],
)
def test_arguments_out_of_range_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "remedy", [LearningRate(3.0), LargerBatches(2), Together([AdamRemedy(0.1), Clipping(None)])]
)
def test_a_remedy_is_its_arguments(remedy: Remedy) -> None:
    again = type(remedy)(**remedy.arguments)
    assert repr(again) == repr(remedy)
    assert again.name == remedy.name
