"""Cases shared by all tests: small models and batches, each with its seed."""

import gc
import os
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

if "PYTEST_XDIST_WORKER" in os.environ:  # no fewer processes than cores, and these start others
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")

LONG = (
    *("ranks/test_sharded", "views/browser", "ranks/test_data_parallel", "test_memory"),
    *("harm/test_processes", "model/test_rewrites", "ranks/test_trainer", "harm/test_network_1"),
    *("ranks/test_fabric", "examples/test_paper", "monitor/test_adapters"),
)
"""Few tests that take long: begun first, so that no worker is left with them at the end."""
SLOW = (
    *LONG,
    *("zoo/", "outsiders/", "test_try", "test_probe_truth"),
    *("monitor/test_callback", "monitor/test_loggers", "harm/", "examples/", "model/test_theory"),
    *("views/test_report", "views/test_dashboard_server", "test_checkpoints", "test_cli"),
    *("docs/", "estimators/", "remedies/", "test_commands"),
    *("model/test_operations", "model/test_same_function", "model/test_trial_gradients"),
    *("model/test_site_sampling", "model/test_inplace"),
)
"""Those that `make test-fast` leaves out: marked ``slow``."""
MARKED = {
    "slow": SLOW,
    "browser": ("views/browser/",),
    "processes": ("ranks/", "harm/test_processes"),
}
"""Markers, and where the tests are that have them."""


def pytest_configure(config: pytest.Config) -> None:
    """Have scopes come as they are collected, not by how many tests they have."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        names = (i for i, name in enumerate(LONG) if f"tests/{name}" in item.nodeid)
        return next(names, len(LONG))

    items.sort(key=place)
    for item in items:
        for marker, names in MARKED.items():
            if any(f"tests/{name}" in item.nodeid for name in names):
                item.add_marker(marker)


def pytest_collection_finish() -> None:
    """Keep what was imported out of the garbage collector's way."""
    gc.collect()
    gc.freeze()


class Made(nn.Module):
    """A function of its parts."""

    def __init__(self, function: Callable[..., Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], *, batch_first: bool, bias: bool) -> None:
        super().__init__()
        self.rnn = kind(2, 6, batch_first=batch_first, bias=bias)
        self.readout = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.rnn(x)[0])


def recurrent(kind: type[nn.RNNBase], *, batch_first: bool = True, bias: bool = True) -> nn.Module:
    torch.manual_seed(3)
    return Recurrent(kind, batch_first=batch_first, bias=bias).double()


def mlp() -> nn.Module:
    torch.manual_seed(3)
    layers = [nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, 2)]
    return nn.Sequential(*layers).double()


def sequences(*, batch_first: bool = True) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(4, 5, 2, generator=generator, dtype=torch.float64)
    y = torch.randn(4, 5, 2, generator=generator, dtype=torch.float64)
    return (x, y) if batch_first else (x.transpose(0, 1), y.transpose(0, 1))


def vectors() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(12, 3, generator=generator, dtype=torch.float64)
    y = torch.randn(12, 2, generator=generator, dtype=torch.float64)
    return x, y


@dataclass(frozen=True)
class Case:
    """A model, a batch, and where its state is."""

    make_model: Callable[[], nn.Module]
    make_batch: Callable[[], tuple[Tensor, Tensor]]
    state: str


CASES = {
    "rnn": Case(lambda: recurrent(nn.RNN), sequences, "rnn"),
    "gru": Case(lambda: recurrent(nn.GRU), sequences, "rnn"),
    "lstm": Case(lambda: recurrent(nn.LSTM), sequences, "rnn"),
    "mlp": Case(mlp, vectors, "3"),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]
