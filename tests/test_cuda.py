"""Probes on a GPU say what they say on the CPU."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CASES
from harm.evidence import Witness, differences, evidence
from harm.worlds import MODELS, World, train
from torch import nn

from ntk_monitor import NTKMonitor, probe

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


@pytest.mark.parametrize("method", ["auto", "finite-difference", "double-backward", "exact"])
@pytest.mark.parametrize("name", CASES)
def test_exact_numbers_agree_with_the_cpu(name: str, method: str) -> None:
    case = CASES[name]
    model, batch = case.make_model(), case.make_batch()
    settings = {"state": case.state, "method": method, "dtype": None, "learning_rate": 0.1}
    here = probe(model, batch, **settings)
    there = probe(model.cuda(), tuple(t.cuda() for t in batch), **settings)
    assert there.core_effective_rank == pytest.approx(here.core_effective_rank, rel=1e-8)
    for ours, theirs in zip(here.target_modes, there.target_modes, strict=True):
        assert theirs.gain == pytest.approx(ours.gain, rel=1e-6)
    # The tangents of a GPU are others, so sampled numbers agree within their errors.
    for metric in ("trace", "effective_rank", "core_cosine"):
        a, b = getattr(here, metric), getattr(there, metric)
        assert abs(a.value - b.value) <= 5 * (a.stderr + b.stderr) + 1e-6 * abs(a.value)


def test_gpt2_size_fits_and_is_left_alone() -> None:
    """GPT-2's shape, 8 x 512 tokens: a probe ends, is finite, and gives all memory back."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(768, 12, 3072, dropout=0.0, batch_first=True)
    with torch.device("cuda"):
        model = nn.Sequential(nn.TransformerEncoder(layer, 12), nn.Linear(768, 3)).cuda()
        x = torch.randn(8, 512, 768)
    before = torch.cuda.memory_allocated()
    snapshot = probe(model, (x, x[..., :3]), state="0", max_products=24)
    assert snapshot.is_finite
    del snapshot
    assert torch.cuda.memory_allocated() == before


@pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*:FutureWarning")
@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("kind", MODELS)
def test_training_on_a_gpu_is_the_same(kind: str, precision: str, tmp_path: Path) -> None:
    world = World({"accelerator": "gpu", "devices": 1, "precision": precision})

    def run(*callbacks: Any) -> dict[str, Any]:
        torch.cuda.manual_seed(0)
        witness = Witness()
        trainer, module = train(kind, world, [*callbacks, witness], tmp_path)
        return {**evidence(trainer, module, witness), "cuda": torch.cuda.get_rng_state()}

    monitor = NTKMonitor(
        4, max_products=16, modes=1, tolerance=1.0, max_overhead=None, on_error="raise"
    )
    plain = run()
    assert differences(run(monitor), plain) == set()
    assert monitor.snapshot is not None
    assert monitor.snapshot.is_finite


def test_a_probe_uses_full_float32_and_leaves_tf32_on() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 4)).cuda()
    x = torch.randn(64, 256, device="cuda")
    wanted = probe(net, x, method="exact", parameters="0.bias")
    torch.set_float32_matmul_precision("high")
    try:
        found = probe(net, x, method="exact", parameters="0.bias")
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert found.trace == wanted.trace


def test_out_of_memory_on_a_gpu_costs_a_probe_and_no_more() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1)).cuda()
    x = torch.randn(4, 8, device="cuda")
    probe(net, x)
    before = torch.cuda.memory_allocated()
    torch.cuda.set_per_process_memory_fraction(1e-6)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            probe(net, torch.randn(2**20, 8, device="cpu"))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert torch.cuda.memory_allocated() == before
    assert probe(net, x).is_finite
