"""Probes on a GPU say what they say on the CPU."""

import pytest
import torch
from conftest import CASES
from torch import nn

from ntk_monitor import probe

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
