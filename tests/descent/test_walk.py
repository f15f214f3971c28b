"""Steps that are taken on copies, against the training itself."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from descent.small import EXACT, LossOf, data, mse, network, penalised, same, step, values
from ntk_monitor.descent import Clipping, Scheduled, descent_of, read_ahead
from ntk_monitor.descent.lossmap import LossMap
from ntk_monitor.descent.optimizers import NO_CLIPPING, Descent
from ntk_monitor.descent.walk import Walk, walk
from ntk_monitor.model import linearize

COUNT = 6

CLIPS: dict[str, tuple[Clipping, Callable[[nn.Module], object]]] = {
    "none": (NO_CLIPPING, lambda _: None),
    "norm": (Clipping(norm=0.1), lambda m: nn.utils.clip_grad_norm_(m.parameters(), 0.1)),
    "value": (Clipping(value=0.01), lambda m: nn.utils.clip_grad_value_(m.parameters(), 0.01)),
}


def loss_map(net: nn.Module, batch: tuple[Tensor, Tensor], loss: LossOf = mse) -> LossMap:
    return LossMap(linearize(net, batch, state="1", loss_fn=loss, dtype=None))


def descending(net: nn.Module, optimizer: Any, clipping: Clipping = NO_CLIPPING) -> Descent:
    found = descent_of([optimizer], net, clipping=clipping)
    assert found is not None
    return found


def trained(name: str, taken: int, loss: LossOf, clip: Any) -> tuple[nn.Module, Any]:
    net = network()
    optimizer = EXACT[name](net.parameters())
    for group in optimizer.param_groups:
        group["lr"] = 0.02
    for _ in range(taken):
        step(net, [optimizer], data(), loss, clip)
    return net, optimizer


def compare(found: Walk, net: nn.Module, make_step: Callable[[], object]) -> None:
    """That the losses are those of the training that then takes place."""
    for k, said in enumerate(found.losses):
        assert said == pytest.approx(float(mse(net, data()).detach()), rel=1e-7), k
        assert torch.allclose(found.outputs[k], net(data()[0]).flatten(), rtol=1e-5)
        make_step()


@pytest.mark.parametrize("clipped", CLIPS)
@pytest.mark.parametrize("taken", [0, 3])
@pytest.mark.parametrize("name", EXACT)
def test_steps_are_those_that_the_training_then_takes(name: str, taken: int, clipped: str) -> None:
    clipping, clip = CLIPS[clipped]
    net, optimizer = trained(name, taken, mse, clip)
    here = loss_map(net, data())
    found = walk(here, here, descending(net, optimizer, clipping), COUNT)
    assert len(found.losses) == COUNT + 1
    compare(found, net, lambda: step(net, [optimizer], data(), mse, clip))


@pytest.mark.parametrize("name", ["momentum with decay", "AdamW"])
def test_and_so_they_are_with_a_penalty_and_a_schedule(name: str) -> None:
    net, optimizer = trained(name, 2, penalised, lambda _: None)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.7)
    descent = descent_of([optimizer], net, rates=read_ahead([Scheduled(schedule)], COUNT + 1))
    assert descent is not None
    here = loss_map(net, data(), penalised)
    found = walk(here, here, descent, COUNT)

    def make_step() -> None:
        step(net, [optimizer], data(), penalised)
        schedule.step()

    for said in found.losses:
        assert said == pytest.approx(float(penalised(net, data()).detach()), rel=1e-7)
        make_step()


def test_steps_on_one_batch_are_observed_on_another() -> None:
    net, optimizer = trained("Adam", 2, mse, lambda _: None)
    descent = descending(net, optimizer)
    found = walk(loss_map(net, data(1)), loss_map(net, data()), descent, COUNT)
    compare(found, net, lambda: step(net, [optimizer], data(1)))


def test_nothing_of_the_training_is_touched() -> None:
    net, optimizer = trained("momentum", 3, mse, lambda _: None)
    before, kept = values(net), copy.deepcopy(optimizer.state_dict())
    here = loss_map(net, data())
    walk(here, here, descending(net, optimizer), COUNT)
    assert same(values(net), before)
    assert same(optimizer.state_dict(), kept)


def test_steps_that_explode_end_the_walk() -> None:
    net = network()
    optimizer = SGD(net.parameters(), lr=1e200)
    here = loss_map(net, data())
    found = walk(here, here, descending(net, optimizer), COUNT)
    assert 1 <= len(found.losses) < COUNT + 1
    assert len(found.losses) == len(found.outputs)
