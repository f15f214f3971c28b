"""Probes leave nothing behind, however many there are."""

import gc

import pytest
import torch
from conftest import CASES
from monitor.helpers import fit

from ntk_monitor import NTKMonitor, Snapshot
from ntk_monitor.model.memory import free_memory
from ntk_monitor.probe import Probe

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers:UserWarning",
    "ignore:.*LeafSpec.*is deprecated",
    "ignore:.*logging interval:UserWarning",
    "ignore:You're resuming from a checkpoint:UserWarning",
    "ignore::ntk_monitor.monitor.StallWarning",
)
PROBES = 200


def live_bytes() -> int:
    """Bytes of all tensors that python can reach."""
    gc.collect()
    tensors = [o for o in gc.get_objects() if type(o) in {torch.Tensor, torch.nn.Parameter}]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


@pytest.mark.parametrize(
    "method", ["finite-difference", "in-place", "forward-ad", "double-backward", "exact"]
)
def test_memory_is_flat_over_many_probes(method: str) -> None:
    case = CASES["gru"]
    model, batch = case.make_model(), case.make_batch()
    measure = Probe(state=case.state, method=method, max_products=20, tolerance=0.0, dtype=None)
    before: int | None = None
    snapshot: Snapshot | None = None
    for i in range(PROBES if method == "finite-difference" else 20):
        snapshot = measure(model, batch, seed=i)
        if i == 5:
            before = live_bytes()
    assert snapshot is not None
    assert live_bytes() == before


def test_memory_is_flat_over_a_training() -> None:
    """Two hundred probes by the monitor, and what it keeps at the end is what it kept early on."""
    kept: list[int] = []

    class Weighed(NTKMonitor):
        def on_probe(self, *_: object) -> None:
            self.probes = getattr(self, "probes", 0) + 1
            if self.probes % 10 == 0:
                kept.append(live_bytes())

    monitor = Weighed(every_n_steps=1, max_overhead=None, max_products=16, modes=1, figures=False)
    fit([monitor], max_epochs=20)
    assert len(kept) == PROBES // 10
    assert max(kept[5:]) <= max(kept[1:5])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_memory_is_flat_on_a_gpu() -> None:
    case = CASES["gru"]
    model = case.make_model().cuda()
    batch = tuple(t.cuda() for t in case.make_batch())
    measure = Probe(state=case.state, max_products=20, tolerance=0.0)
    for i in range(PROBES):
        measure(model, batch, seed=i)
        if i == 5:
            before = torch.cuda.memory_allocated()
    assert torch.cuda.memory_allocated() == before
    assert free_memory(torch.device("cuda")) > 0
