"""Probes leave nothing behind, however many there are."""

import gc
import os
import sys
from typing import Any

import pytest
import torch
from conftest import CASES
from lightning.pytorch import LightningModule
from monitor.helpers import fit
from torch import Tensor, nn

from ntk_monitor import NTKMonitor, Snapshot, linearize, probe
from ntk_monitor.estimators.kernel.tangent_sketch import TangentSketch
from ntk_monitor.model.isolation.memory import free_memory
from ntk_monitor.probe import Probe

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers:UserWarning",
    "ignore:.*LeafSpec.*is deprecated",
    "ignore:.*logging interval:UserWarning",
    "ignore:You're resuming from a checkpoint:UserWarning",
    "ignore::ntk_monitor.monitor.StallWarning",
)
NIGHTLY = "NTK_MONITOR_NIGHTLY" in os.environ
PROBES, FEWER = (60, 20) if NIGHTLY else (30, 14)
probe_module: Any = sys.modules["ntk_monitor.probing.kernel"]
METHODS = ("finite-difference", "in-place", "forward-ad", "double-backward", "exact")


def live_bytes(*, collect: bool = True) -> int:
    """Bytes of all tensors that python can reach, or that its collector is to find."""
    if collect:
        gc.collect()
    tensors = [o for o in gc.get_objects() if type(o) in {torch.Tensor, torch.nn.Parameter}]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


@pytest.mark.parametrize("method", METHODS)
def test_memory_is_flat_over_many_probes(method: str) -> None:
    case = CASES["gru"]
    model, batch = case.make_model(), case.make_batch()
    measure = Probe(state=case.state, method=method, max_products=20, tolerance=0.0, dtype=None)
    before: int | None = None
    snapshot: Snapshot | None = None
    for i in range(PROBES if method == "finite-difference" else FEWER):
        snapshot = measure(model, batch, seed=i)
        if i == 5:
            before = live_bytes()
    assert snapshot is not None
    assert live_bytes() == before


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", CASES)
def test_no_tensor_waits_for_the_garbage_collector(name: str, method: str) -> None:
    """On a GPU what waits is memory that training lacks, and python does not know of its size."""
    case = CASES[name]
    model, batch = case.make_model(), case.make_batch()
    measure = Probe(state=case.state, method=method, max_products=20, dtype=None)
    measure(model, batch)
    before = live_bytes()
    gc.disable()
    try:
        measure(model, batch)
        assert live_bytes(collect=False) == before
    finally:
        gc.enable()


def graph_nodes() -> int:
    """Nodes of autograd's graphs that python can reach; each keeps what its operation saved."""
    gc.collect()
    return sum(type(o).__name__.endswith("Backward0") for o in gc.get_objects())


class WithLoss(LightningModule):
    """A case's model in a ``training_step``, and one whose forward stores what it saw."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.seen = net, torch.zeros(())

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        self.seen = self.net(batch[0])
        return nn.functional.mse_loss(self.seen, batch[1])


@pytest.mark.parametrize("name", CASES)
def test_no_graph_of_the_first_pass_is_kept(name: str) -> None:
    """It holds the activations of a training step, which would be there at all products."""
    case = CASES[name]
    model, batch = WithLoss(case.make_model()), case.make_batch()
    before = graph_nodes()
    lin = linearize(model, batch, state=f"net.{case.state}", copies=False)
    assert lin.loss is not None
    assert lin.comparisons
    assert graph_nodes() == before


def test_memory_is_flat_over_a_training() -> None:
    """Fifty probes by the monitor, and what it keeps at the end is what it kept early on."""
    kept: list[int] = []

    class Weighed(NTKMonitor):
        def on_probe(self, *_: object) -> None:
            self.probes = getattr(self, "probes", 0) + 1
            if self.probes % 5 == 0:
                kept.append(live_bytes())

    monitor = Weighed(every_n_steps=1, max_overhead=None, max_products=16, modes=1, figures=False)
    fit([monitor], max_epochs=5)
    assert len(kept) == 10
    assert max(kept[4:]) <= max(kept[1:4])


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


def tokens_model() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """A transformer on random tokens: no few leading rows, a core of more columns than rows."""
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, batch_first=True, norm_first=True)
    encoder = nn.TransformerEncoder(block, 1, enable_nested_tensor=False)
    tokens = torch.randint(0, 50, (12, 48))
    net = nn.Sequential(nn.Embedding(50, 32), encoder, nn.Linear(32, 50))
    return net, (tokens, tokens.roll(-1, 1))


def test_samples_keep_to_max_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[TangentSketch] = []
    honest = probe_module.sample_kernel

    def spied(*args: Any, trials: Any, **kwargs: Any) -> Any:
        del trials  # by samples alone, as where trials act on one another
        measured = honest(*args, **kwargs)
        kept.append(measured.sketch)
        return measured

    monkeypatch.setattr(probe_module, "sample_kernel", spied)
    net, batch = tokens_model()
    settings: dict[str, Any] = {"tolerance": 0.0, "max_products": 60, "modes": 1}
    whole = probe(net, batch, max_memory=2**30, **settings)
    limit = 4 * 60 * 3 * 300 * 32
    little = probe(net, batch, max_memory=limit, **settings)
    assert kept[0].rows.W is None
    assert kept[1].rows.twofold
    sizes = [sum(4 * sample.numel() for sample in sketch._samples) for sketch in kept]
    assert sizes[0] > limit / 3 >= sizes[1]
    for name in ("effective_rank", "temporal_effective_rank", "spatial_effective_rank", "trace",
                 "core_cosine", "temporal_core_cosine", "frobenius_norm"):  # fmt: skip
        ours, theirs = getattr(little, name), getattr(whole, name)
        assert abs(ours.value - theirs.value) < 2 * ours.stderr, name
        assert ours.stderr > theirs.stderr or name == "trace"
    assert whole.core_effective_rank == pytest.approx(little.core_effective_rank)
