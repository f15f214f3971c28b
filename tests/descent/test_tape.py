"""A loss that is computed anew from other outputs."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ntk_monitor.model.step.tape import Tape

F = nn.functional
Loss = Callable[[Tensor], Tensor]
generator = torch.Generator().manual_seed(0)
CLASSES = torch.randint(0, 4, (7,), generator=generator)
IGNORED = CLASSES.where(torch.arange(7) % 3 > 0, -100)
BITS = torch.randint(0, 2, (7, 4), generator=generator).double()
VALUES = torch.randn(7, 4, generator=generator).double()
MASK = (torch.rand(7, 4, generator=generator) > 0.3).double()


def by_hand(y: Tensor) -> Tensor:
    logs = y - y.logsumexp(-1, keepdim=True)
    return -logs.gather(1, CLASSES[:, None]).mean()


def in_place(y: Tensor) -> Tensor:
    errors = y.clone()
    errors.sub_(VALUES)
    errors.pow_(2)
    errors[:, 0] = 0.5 * errors[:, 1]
    errors.masked_fill_(MASK == 0, 0.0)
    return errors.sum().div_(MASK.sum())


def into_a_buffer(y: Tensor) -> Tensor:
    total = torch.zeros(4, dtype=torch.float64)
    for row, wanted in zip(y, VALUES, strict=True):
        total += (row - wanted).square()
    out = torch.ones(2, dtype=torch.float64)
    out[1] = total.mean()
    return out[1] * 2 + total.max()


def into_the_outputs(y: Tensor) -> Tensor:
    y.masked_fill_(MASK == 0, -1e3)
    y[0, 0] = 0.0
    return F.cross_entropy(y, CLASSES)


def by_trial(y: Tensor) -> Tensor:
    losses = torch.zeros(len(y), dtype=torch.float64)
    for i, (row, wanted) in enumerate(zip(y, VALUES, strict=True)):
        losses[i] = (row - wanted).square().mean()
    return losses.mean()


def chosen(y: Tensor) -> Tensor:
    return (y[MASK.bool()] - VALUES[MASK.bool()]).square().mean()


LOSSES: dict[str, Loss] = {
    "cross-entropy": lambda y: F.cross_entropy(y, CLASSES),
    "cross-entropy by hand": by_hand,
    "cross-entropy of some rows": lambda y: F.cross_entropy(y, IGNORED),
    "yes or no": lambda y: F.binary_cross_entropy_with_logits(y, BITS),
    "yes or no by hand": lambda y: (
        -(BITS * y.sigmoid().log() + (1 - BITS) * (1 - y.sigmoid()).log()).mean()
    ),
    "yes or no under a mask": lambda y: (
        (F.binary_cross_entropy_with_logits(y, BITS, reduction="none") * MASK).sum() / MASK.sum()
    ),
    "squares": lambda y: F.mse_loss(y, VALUES),
    "squares by hand": lambda y: ((y - VALUES) ** 2 * MASK).sum() / MASK.sum(),
    "in place": in_place,
    "into a buffer": into_a_buffer,
    "into the outputs": into_the_outputs,
    "trial by trial": by_trial,
    "of some entries": chosen,
    "of two passes over it": lambda y: F.mse_loss(y, VALUES) + 0.1 * y.tanh().abs().mean(),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_replay_is_the_loss_of_other_outputs(name: str) -> None:
    loss = LOSSES[name]
    weight = torch.randn(3, 4, generator=generator).double().requires_grad_()
    x = torch.randn(7, 3, generator=generator).double()
    tape = Tape()
    y = x @ weight
    start = y.detach().clone()
    tape.start(0, y)
    recorded = loss(y)
    tape.stop()
    for seed in range(3):
        other = torch.randn(7, 4, generator=torch.Generator().manual_seed(seed)).double()
        first, second = (other.clone().requires_grad_() for _ in range(2))
        found, wanted = tape.replay({0: first}, recorded), loss(second * 1)
        assert found is not None
        torch.testing.assert_close(found, wanted)
        torch.testing.assert_close(
            *(torch.autograd.grad(a, b)[0] for a, b in ((found, first), (wanted, second)))
        )
        torch.testing.assert_close(first.detach(), other, rtol=0, atol=0)
    again = tape.replay({0: start}, recorded)
    assert again is not None
    torch.testing.assert_close(again, recorded.detach(), rtol=0, atol=0)
    torch.autograd.grad(recorded, weight)  # which the recording leaves as it is


def test_two_outputs_are_replayed_together() -> None:
    tape = Tape()
    a, b = VALUES.clone().requires_grad_(), BITS.clone().requires_grad_()
    tape.start(0, a)
    tape.start(1, b)
    loss = (a * b).sum() + a.square().mean()
    tape.stop()
    other = MASK + 0.5
    found = tape.replay({0: other, 1: VALUES}, loss)
    torch.testing.assert_close(found, (other * VALUES).sum() + other.square().mean())


def test_what_does_not_come_from_them_is_none() -> None:
    tape = Tape()
    tape.start(0, VALUES.clone())
    loss = BITS.mean()
    tape.stop()
    assert tape.replay({0: VALUES}, loss) is None
    Tape().stop()  # one that never began
