"""What is on the state's rows, on those of uses: gathered, or as a view where that is the same."""

import pytest
import torch
from torch import Tensor

from ntk_monitor.model.sites.placement import Placement, by_order
from ntk_monitor.model.state.row_labels import NONE

B, T = 3, 4
NUMBERS = torch.arange(B * T).view(B, T)
USES = {
    "all, trial by trial": NUMBERS,
    "all, step by step": NUMBERS.T,
    "later steps": NUMBERS[:, 1:],
    "later steps, step by step": NUMBERS[:, 2:].T,
    "one step": NUMBERS[:, 2],
    "one trial": NUMBERS[1],
    "another order": NUMBERS.flip(0),
    "steps with a gap": NUMBERS[:, ::2],
    "some not of the state": torch.where(NUMBERS % 2 == 0, NUMBERS, NONE),
    "the first not of the state": torch.where(NUMBERS > 0, NUMBERS, NONE),
    "as many as there are, one twice": torch.tensor([0, *range(B * T - 1)]),
    "rows of steps that end beyond the last": torch.tensor([3, 4, 7, 8, 11, 11]),
    "none": NUMBERS[:, :0],
}


def gathered(u: Tensor, rows: Tensor) -> Tensor:
    flat = u.flatten(0, 1)
    zero = torch.zeros_like(flat[0])
    found = [zero if row == NONE else flat[row] for row in rows.tolist()]
    return torch.stack(found) if found else flat[:0]


@pytest.mark.parametrize("name", USES)
def test_what_is_added_is_on_the_rows_of_a_use(name: str) -> None:
    rows = USES[name].flatten()
    placement = Placement(torch.zeros(0), (NUMBERS.flatten(), rows))
    for _ in range(2):  # also when the rows are known
        u = torch.randn(B, T, 2)
        assert torch.equal(placement.of_use(u, 1), gathered(u, rows))
        assert torch.equal(placement.of_use(u, 0), u.flatten(0, 1))


@pytest.mark.parametrize(("order", "spans"), [("batch", [T]), ("time", [T]), ("batch", [1, 2])])
def test_rows_of_all_trials_are_views_going_backward_too(order: str, spans: list[int]) -> None:
    placement = by_order((B, T), order, spans, "cpu")
    u = torch.randn(B, T, 2, requires_grad=True)
    for use in range(len(spans)):
        found = placement.of_use(u, use)
        assert torch.equal(found, gathered(u, placement.inverse[use]))
        w = torch.randn_like(found)
        (gradient,) = torch.autograd.grad(found, u, w)
        (wanted,) = torch.autograd.grad(gathered(u, placement.inverse[use]), u, w)
        assert torch.equal(gradient, wanted)
        nodes, seen = [found.grad_fn], []
        while nodes:
            node = nodes.pop()
            seen.append(node.name())
            nodes += [parent for parent, _ in node.next_functions if parent is not None]
        assert not [each for each in seen if each.startswith("Index")]
