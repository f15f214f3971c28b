"""What a newcomer gets wrong is told in one line, with what to do."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ntk_monitor import Monitor, NTKMonitor, Snapshot, StallAlert, linearize, probe


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(3, 8, batch_first=True)
        self.readout = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.rnn(x)[0])


class Reads(Net):
    """Takes the whole batch."""

    def forward(self, batch: Any) -> Tensor:
        return super().forward(batch["x"])


def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(4, 5, 3), torch.randn(4, 5, 2)


NET = Net()
X, Y = batch()
MISTAKES: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "a module as the state": (
        lambda: probe(NET, (X, Y), state=NET.rnn),  # type: ignore[arg-type]
        ValueError, "such as 'rnn' where model.rnn is meant .*, got a GRU",
    ),
    "of a monitor": (
        lambda: NTKMonitor(state=NET.rnn), ValueError, "state must be .* got a GRU",  # type: ignore[arg-type]
    ),
    "of an operator": (
        lambda: linearize(NET, (X, Y), state=3),  # type: ignore[arg-type]
        ValueError, "state must be .* got 3",
    ),
    "half steps": (
        lambda: NTKMonitor(every_n_steps=2.5),  # type: ignore[arg-type]
        ValueError, "every_n_steps must be a whole number of steps.* got 2.5",
    ),
    "epochs": (
        lambda: NTKMonitor(every_n_steps="epoch"),  # type: ignore[arg-type]
        ValueError, "plan='epochs' probes once in each.*, got 'epoch'",
    ),
    "misspelt, probe": (
        lambda: probe(NET, (X, Y), tolerence=0.1),  # type: ignore[call-arg]
        TypeError, "probe has no setting 'tolerence': did you mean 'tolerance'",
    ),
    "misspelt, callback": (
        lambda: NTKMonitor(every_n_step=5),  # type: ignore[call-arg]
        TypeError, "NTKMonitor has no setting 'every_n_step': did you mean 'every_n_steps'",
    ),
    "misspelt, alert": (
        lambda: StallAlert(patiance=1),  # type: ignore[call-arg]
        TypeError, "StallAlert has no setting 'patiance': did you mean 'patience'",
    ),
    "misspelt, loop": (
        lambda: Monitor(max_product=9), TypeError, "Monitor has no setting .* mean 'max_products'",
    ),
    "unlike any": (
        lambda: probe(NET, (X, Y), xyzzy=1),  # type: ignore[call-arg]
        TypeError, "probe has no setting 'xyzzy': settings are module, batch, state, ",
    ),
    "odd names": (
        lambda: probe(NET, {"stuff": X, "other": Y}),
        TypeError, r"a dict with the entries 'stuff', 'other' .*module\(batch\['stuff'\]\)",
    ),
    "arrays": (
        lambda: probe(NET, (X.numpy(), Y.numpy())),
        ValueError, "batch must have tensors, got NumPy arrays .* torch.as_tensor",
    ),
    "an array": (
        lambda: linearize(NET, X.numpy()), ValueError, "batch must have tensors, got NumPy arrays",
    ),
    "meta": (
        lambda: probe(nn.Linear(3, 2, device="meta"), (X, Y)),
        ValueError, "got weight on the meta device: call module.to_empty",
    ),
    "a function by name": (
        lambda: NTKMonitor(target_fn="json.loads"),  # type: ignore[arg-type]
        ValueError, "target_fn must be a function .in YAML its import path., or None",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_with_what_to_do(name: str) -> None:
    act, kind, message = MISTAKES[name]
    with pytest.raises(kind, match=message) as raised:
        act()
    assert "\n" not in str(raised.value)


def test_a_forward_that_reads_the_batch_itself_gets_it() -> None:
    snapshot = probe(Reads(), {"x": X, "y": Y}, tier="modes")
    assert isinstance(snapshot, Snapshot)
    assert len(snapshot.target_modes) == 2
