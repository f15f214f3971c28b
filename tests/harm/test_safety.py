"""Nothing is unpickled, nothing is written elsewhere, and names are only names."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor, nn

from harm.worlds import World, train
from ntk_monitor import NTKMonitor, Snapshot, StallAlert, probe
from ntk_monitor.views import introduction

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore::ntk_monitor.monitor.StallWarning"),
]
_heard: list[tuple[str, Any]] | None = None


def _listen(event: str, args: tuple[Any, ...]) -> None:
    if _heard is not None and event in {"open", "pickle.find_class", "os.mkdir", "os.rename"}:
        _heard.append((event, args))


sys.addaudithook(_listen)


@contextmanager
def audit() -> Iterator[list[tuple[str, Any]]]:
    """Hear of every file that is opened and every class that is unpickled."""
    global _heard  # noqa: PLW0603 (an audit hook cannot be removed)
    _heard = []
    try:
        yield _heard
    finally:
        _heard = None


def written(events: list[tuple[str, Any]]) -> list[Path]:
    """The files and folders that were opened for writing, made or renamed."""
    paths = []
    for event, args in events:
        if event == "open" and (not isinstance(args[0], (str, bytes, os.PathLike))):
            continue
        writes = event != "open" or any(c in str(args[1] or "") for c in "wax+")
        writes |= event == "open" and bool(args[2] & (os.O_WRONLY | os.O_RDWR))
        if writes and event != "pickle.find_class":
            paths.append(Path(os.fsdecode(args[0])).resolve())
    return paths


def test_nothing_is_written_outside_the_log_directory(tmp_path: Path) -> None:
    world = World(loggers=lambda p: [CSVLogger(p, "csv"), TensorBoardLogger(p, "tb")])
    callbacks = [NTKMonitor(4, max_overhead=None, max_products=16, modes=1), StallAlert(1)]
    train("conv", world, callbacks, tmp_path / "first")  # what packages write once for themselves
    with audit() as events:
        train("conv", world, callbacks, tmp_path / "second")
    paths = [path for path in written(events) if path != Path(os.devnull)]
    assert any("events" in path.name for path in paths)
    for path in paths:
        assert path.is_relative_to(tmp_path / "second"), path


def test_snapshots_and_states_are_read_without_unpickling(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    path = probe(net, torch.randn(5, 3)).save(tmp_path / "a.npz")
    state = NTKMonitor().state_dict()
    with audit() as events:
        Snapshot.load(path)
        NTKMonitor().load_state_dict(state)
        StallAlert().load_state_dict(StallAlert().state_dict())
    assert any(event == "open" for event, _ in events)
    assert not [args for event, args in events if event == "pickle.find_class"]


NAMES = ["[bold red]x[/]", "$\\frac{a}", "<script>alert(1)</script>", "a|b`c*", "{0}%s"]


@pytest.mark.parametrize("name", NAMES)
def test_names_of_modules_are_only_names(name: str, tmp_path: Path) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module(name, nn.Linear(3, 4))
            self.gain = nn.LayerNorm(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.gain(self._modules[name](x))

    snapshot = probe(Odd(), torch.randn(5, 3), state="gain")
    assert f"{name}.weight: 4 -> 4" in introduction(snapshot)
    again = Snapshot.load(snapshot.save(tmp_path / "a.npz"))
    assert again.coverage == snapshot.coverage


@pytest.mark.parametrize("name", ["../../up", "a/b", "..", ""])
def test_names_of_states_cannot_leave_their_place(name: str) -> None:
    with pytest.raises(ValueError, match="by a name without '/'"):
        NTKMonitor(state={name: "rnn"})
