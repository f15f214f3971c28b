"""A probe leaves no trace, whatever happens inside."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ntk_monitor import probe
from ntk_monitor.model import quiet


class Busy(nn.Module):
    """A model that does everything a probe could disturb."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(3, 6)
        self.norm = nn.BatchNorm1d(6)
        self.dropout = nn.Dropout(0.5)
        self.second = nn.Linear(6, 2)
        self.calls = 0
        self.last: Tensor | None = None
        self.register_buffer("seen", torch.zeros(1))
        self.frozen = nn.Linear(2, 2).eval()

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen = self.seen + 1
        self.last = self.first(x)
        noise = float(np.random.rand()) + random.random() + torch.rand(())
        return self.second(self.dropout(self.norm(self.last))) + 0.0 * noise


def fingerprint(module: nn.Module) -> dict[str, object]:
    return {
        "state": copy.deepcopy(module.state_dict()),
        "grads": [None if p.grad is None else p.grad.clone() for p in module.parameters()],
        "requires_grad": [p.requires_grad for p in module.parameters()],
        "training": [m.training for m in module.modules()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in module.modules()],
        "attributes": [set(vars(m)) for m in module.modules()],
        "identities": [id(p) for p in module.parameters()],
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].tolist(),
        "python": random.getstate(),
        "flags": (
            torch.backends.mkldnn.enabled,
            torch.backends.cudnn.enabled,
            torch.backends.mha.get_fastpath_enabled(),
            torch.backends.cuda.flash_sdp_enabled(),
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.is_autocast_enabled("cpu"),
        ),
    }


def assert_untouched(module: nn.Module, before: dict[str, object]) -> None:
    after = fingerprint(module)
    for key, value in before.items():
        torch.testing.assert_close(after[key], value, rtol=0, atol=0) if key in {
            "state",
            "torch",
        } else None
        if key == "grads":
            for a, b in zip(after[key], value, strict=True):
                assert (a is None and b is None) or torch.equal(a, b)
        elif key not in {"state", "torch"}:
            assert after[key] == value, key


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(8, 3, generator=generator), torch.randn(8, 2, generator=generator)


@pytest.mark.parametrize("method", ["forward-ad", "finite-difference", "double-backward", "exact"])
def test_probe_leaves_no_trace(method: str) -> None:
    net = Busy()
    nn.functional.mse_loss(net(batch()[0]), batch()[1]).backward()
    kept = net.last
    before = fingerprint(net)
    probe(net, batch(), state="norm", method=method, max_products=24, tolerance=0)
    assert_untouched(net, before)
    assert net.last is kept
    assert net.calls == 1


def test_a_failing_probe_leaves_no_trace() -> None:
    net = Busy()

    def fail(module: nn.Module, data: object) -> Tensor:
        module(data[0])
        raise KeyError("inside the model")

    before = fingerprint(net)
    with pytest.raises(KeyError, match="inside the model"):
        probe(net, batch(), state="norm", forward_fn=fail)
    assert_untouched(net, before)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_probe_works_and_restores_under(context: type) -> None:
    net = Busy()
    wanted = probe(net, batch(), state="norm").trace
    with context():
        before = fingerprint(net)
        assert probe(net, batch(), state="norm").trace == wanted
        assert_untouched(net, before)
    with torch.autocast("cpu", torch.bfloat16):
        before = fingerprint(net)
        assert probe(net, batch(), state="norm").trace == wanted
        assert_untouched(net, before)


def test_hooks_of_recurrent_layers_and_their_flat_weights_survive() -> None:
    net = nn.Sequential(nn.LSTM(3, 4, batch_first=True))
    flat = [id(w) for w in net[0]._flat_weights]
    probe(net, torch.zeros(2, 5, 3), state="0")
    assert [id(w) for w in net[0]._flat_weights] == flat
    assert all(isinstance(w, nn.Parameter) for w in net[0]._flat_weights)


def test_inside_the_context_the_module_is_in_evaluation_mode() -> None:
    net = Busy()
    with quiet(net):
        assert not any(m.training for m in net.modules())
        assert torch.is_grad_enabled()
        net.extra = 1
        net.register_buffer("late", torch.zeros(1))
    assert net.training
    assert not net.frozen.training
    assert not hasattr(net, "extra")
    assert not hasattr(net, "late")


@pytest.mark.parametrize(("layer", "kept"), [(nn.Conv2d(1, 2, 3), True), (nn.GRU(1, 2), False)])
def test_only_recurrent_layers_lose_their_fast_kernels(layer: nn.Module, kept: bool) -> None:
    with quiet(nn.ModuleList([layer])):
        assert torch.backends.mkldnn.enabled == kept
        assert torch.backends.cudnn.enabled == kept
    assert torch.backends.mkldnn.enabled
