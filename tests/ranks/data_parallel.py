"""Probes of one batch by several processes, each with a part, and by one."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ntk_monitor.descent import lossmap
from ntk_monitor.model.derivatives import trial_gradients
from ntk_monitor.probe import Probe
from ntk_monitor.processes import ALONE, ProcessError, Processes

NIGHTLY = "NTK_MONITOR_NIGHTLY" in os.environ
ERRORS = (TimeoutError, RuntimeError, torch.OutOfMemoryError)
METHODS = ("finite-difference", "forward-ad", "double-backward", "exact")


class Gru(nn.Module):
    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.rnn = nn.GRU(2, width, batch_first=True)
        self.readout = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.rnn(x)[0])


class Words(nn.Module):
    """Words of a vocabulary of which each process sees others."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(12, 5, padding_idx=0), nn.Embedding(4, 5)
        self.rnn = nn.GRU(5, 6, batch_first=True)
        self.readout = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        embedded = self.words(x) + self.places(torch.arange(x.shape[1]))
        return self.readout(self.rnn(embedded)[0])


class Experts(nn.Module):
    """Rows go to one of two experts, by their sign: a process may have rows of one only."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 8), nn.Linear(3, 8)
        self.last = nn.Linear(8, 8)
        self.readout = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        positive = x[:, 0] > 0
        h = x.new_zeros(len(x), 8)
        for expert, rows in ((self.first, positive), (self.second, ~positive)):
            if rows.any():
                h = h.index_add(0, rows.nonzero().flatten(), expert(x[rows]))
        return self.readout(torch.tanh(self.last(torch.tanh(h))))


def mlp() -> nn.Module:
    layers = [nn.Linear(3, 9), nn.Tanh(), nn.Linear(9, 8), nn.Tanh(), nn.Linear(8, 4)]
    return nn.Sequential(*layers)


def transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=True)
    return nn.Sequential(nn.Linear(3, 8), layer, nn.Linear(8, 8), nn.Linear(8, 3))


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5))


def classes(count: int, most: int) -> Tensor:
    return torch.randint(0, most, (count,), generator=torch.Generator().manual_seed(5))


def sorted_rows() -> tuple[Tensor, Tensor]:
    x = draw(12, 3)
    x = x[x[:, 0].argsort()]
    return x, x.flip(1) ** 2


def sorted_words() -> tuple[Tensor, Tensor]:
    return classes(32, 12).sort().values.reshape(8, 4), draw(8, 4, 2)


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Tensor, Tensor]], dict]] = {
    "mlp": (mlp, lambda: (draw(13, 3), draw(13, 4)), {}),
    "classes": (mlp, lambda: (draw(11, 3), classes(11, 4)), {}),
    "gru": (Gru, lambda: (draw(7, 9, 2), draw(7, 9, 2)), {}),
    "wide core": (lambda: Gru(40), lambda: (draw(5, 4, 2), draw(5, 4, 2)), {"max_products": 60}),
    "long": (Gru, lambda: (draw(10, 60, 2).cumsum(1) / 8, draw(10, 60, 2)), {"tolerance": 0.02}),
    "longer": (lambda: Gru(24), lambda: (draw(8, 90, 2), draw(8, 90, 2)), {}),
    "transformer": (transformer, lambda: (draw(6, 5, 3), draw(6, 5, 3)), {}),
    "experts": (Experts, sorted_rows, {"state": "last"}),
    "words": (Words, sorted_words, {}),
    "words, streamed": (Words, sorted_words, {"max_memory": 2**12}),
    "modes only": (mlp, lambda: (draw(13, 3), draw(13, 4)), {"tier": "modes"}),
    "core only": (mlp, lambda: (draw(13, 3), draw(13, 4)), {"tier": "core"}),
}
COMPARED: dict[str, Any] = {"dtype": torch.float64, "modes": 2, "max_products": 48}
"""What both are probed with: enough for a round of samples, and for directions after it."""
DENSE = {"mlp", "classes", "gru", "experts"}
ANY_METHOD = DENSE | {"wide core", "transformer"}
"""Those that are measured by double backward, too, which knows nothing of processes."""
OF_THREE = {"mlp", "gru", "wide core", "long", "experts", "words, streamed", "modes only"}
"""Those that three processes measure, too."""


def edges(count: int, size: int) -> list[int]:
    """Where the parts of several processes begin and end: uneven, and none without any."""
    return [round(count * (i / size) ** 1.5) for i in range(size + 1)]


def part(batch: tuple[Tensor, Tensor], processes: Processes) -> tuple[Tensor, Tensor]:
    """The trials of this process."""
    own = slice(*edges(len(batch[0]), processes.size)[processes.index : processes.index + 2])
    x, y = batch
    return x[own], y[own]


def numbers(
    probe: Probe,
    module: nn.Module,
    batch: Any,
    processes: Processes = ALONE,
    learning_rate: float | None = 0.1,
) -> dict[str, Any]:
    snapshot = probe(module, batch, learning_rate=learning_rate, processes=processes)
    return {
        **snapshot.scalars(),
        "core spectrum": snapshot.core_spectrum.tolist(),
        "temporal spectrum": snapshot.temporal_spectrum.tolist(),
        "modes": snapshot.temporal_modes.flatten(1).tolist(),
        "patterns": snapshot.target_patterns.flatten(1).tolist(),
        "singular values": [mode.singular_value for mode in snapshot.target_modes],
        "gains": [mode.gain for mode in snapshot.target_modes],
        "overlaps": [mode.core_overlap for mode in snapshot.target_modes],
        "shape": list(snapshot.state_shape),
        "products": snapshot.products,
        "method": snapshot.method,
        "scheme": snapshot.scheme,
        "adjoint": snapshot.adjoint_error,
    }


def compare(processes: Processes) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, (make, draw_batch, settings) in CASES.items():
        if processes.size > 2 and name not in OF_THREE:
            continue
        for method in METHODS if processes.size == 2 else METHODS[:2]:
            if method == "exact" and name not in DENSE:
                continue
            if method == "double-backward" and name not in ANY_METHOD:
                continue
            torch.manual_seed(3)
            module = make().double()
            batch = tuple(t.double() if t.is_floating_point() else t for t in draw_batch())
            probe = Probe(method=method, **COMPARED | settings)
            # A forecast has products of its own, whatever the method, and many small messages.
            wanted = processes.size == 2 or name in DENSE
            rate = 0.1 if method == METHODS[0] and wanted else None
            together = numbers(probe, module, part(batch, processes), processes, rate)
            alone = numbers(probe, module, batch, ALONE, rate) if processes.index == 0 else None
            found[f"{name}, {method}"] = {"together": together, "alone": alone}
    return found


def lengths(processes: Processes) -> dict[str, Any]:
    """Processes whose sequences are of other lengths, as padding to the longest gives them."""
    torch.manual_seed(3)
    module = Gru().double()
    x = draw(4, 9, 2).double()
    T = 9 - 2 * processes.index
    probe = Probe(method="forward-ad", dtype=torch.float64)
    found = numbers(probe, module, (x[:, :T], x[:, :T]), processes)
    return {"together": found}


def failures(processes: Processes) -> dict[str, Any]:
    """One process fails, at several places; what each of them raises."""
    found: dict[str, Any] = {}
    last = processes.index == processes.size - 1

    def attempt(name: str, act: Callable[[], object]) -> None:
        try:
            act()
            found[name] = "nothing"
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
        mine = torch.ones(3)
        dist.all_reduce(mine)  # as training does: nothing of the probe's must be in its way
        assert mine.tolist() == [processes.size] * 3, name

    torch.manual_seed(3)
    module, batch = mlp(), (draw(12, 3), draw(12, 4))
    mine = part(batch, processes)

    def measure(batch: Any = mine, method: str = "finite-difference", **changes: Any) -> object:
        probe = Probe(method=method, max_products=60, **changes)
        return probe(module, batch, processes=processes)

    for calls in (0, 1, 2, 3, 12, 30) if processes.size == 2 else (1, 12):
        left = [calls if last else 10**9]

        def fail(module: nn.Module, batch: Any, left: list[int] = left) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise OSError("no luck today")
            return module(batch[0])

        attempt(f"at forward pass {calls}", lambda fail=fail: measure(forward_fn=fail))
        for error in ERRORS if NIGHTLY or calls in {1, 12} else ():
            left = [calls if last else 10**9]

            def fail_so(module: nn.Module, batch: Any, left: Any = left, error: Any = error) -> Any:
                left[0] -= 1
                if left[0] < 0:
                    raise error("no luck today")
                return module(batch[0])

            for method in ("auto", "forward-ad"):
                name = f"{method}, {error.__name__} at forward pass {calls}"
                attempt(name, lambda f=fail_so, m=method: measure(method=m, forward_fn=f))
    labels = mine[0], torch.full((len(mine[0]),), 9 if last else 1)
    attempt("classes", lambda: measure(labels))
    arrays = tuple(part.numpy() for part in mine)
    attempt("arrays", lambda: measure(arrays if last else mine))
    attempt(
        "no target", lambda: measure(mine[:1] if last else mine, forward_fn=lambda m, b: m(b[0]))
    )
    attempt("seeds", lambda: measure(seed=int(last)))
    attempt("settings", lambda: measure(modes=1 + last))
    attempt("budget", lambda: measure(tier="core" if last else "kernel"))
    with torch.no_grad():
        if last:
            module[0].weight[0, 0] += 1e-6
    attempt("parameters", measure)
    attempt("parameters in place", lambda: measure(method="in-place"))
    with torch.no_grad():
        if last:
            module[0].weight[0, 0] = torch.nan
    attempt("nan", measure)
    torch.manual_seed(3)
    module = mlp()
    attempt("afterwards", measure)
    return found


def by_samples_alone() -> None:
    """Have one process measure as several do: no trials told apart, no recorded graphs."""
    trial_gradients.FEWEST_GROUPS = 10**6
    lossmap.FEW = 0


def main(folder: Path) -> None:
    by_samples_alone()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    processes = Processes(dist.group.WORLD)
    assert issubclass(ProcessError, RuntimeError)
    found = {
        "compare": compare(processes),
        "lengths": lengths(processes),
        "failures": failures(processes),
    }
    (folder / f"{processes.index}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
