"""A probe leaves no trace, whatever happens inside."""

import copy
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ntk_monitor import linearize, probe
from ntk_monitor.compat import set_default_device
from ntk_monitor.model import quiet
from ntk_monitor.model.derivatives import trial_gradients

quieting = sys.modules[
    "ntk_monitor.model.isolation.quiet"
]  # the package's own name for it is a function


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


class Unruly(nn.Module):
    """A model whose ``forward`` changes whatever it can reach."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 4)
        weight = self.layer.weight
        self.real = lambda: weight  # neither functional_call nor a look at attributes finds it
        self.history: list[int] = [1]
        self.table = {"calls": 0}
        self.memory = torch.zeros(4)
        self.array = np.zeros(2)
        self.generator = torch.Generator().manual_seed(1)
        self.numpy_generator = np.random.default_rng(1)
        self.old_generator = np.random.RandomState(1)
        self.python_generator = random.Random(1)

    def forward(self, x: Tensor) -> Tensor:
        noise = torch.randn((), generator=self.generator) + self.numpy_generator.normal()
        noise = noise + self.python_generator.random() + self.old_generator.rand()
        noise = noise + np.random.rand() + random.random() + torch.rand(())
        h = torch.tanh(self.layer(x) + self.memory) * noise
        self.memory.copy_(h.detach()[0])
        self.array += 1
        self.history.append(len(self.history))
        self.table["calls"] += 1
        self.table["late"] = True
        self.extra = h
        self.training = not self.training
        self.real().requires_grad_(False)
        self.real().grad = torch.ones_like(self.real())
        self.layer.register_forward_hook(lambda *_: None)
        torch.backends.cudnn.benchmark = True
        torch.use_deterministic_algorithms(True)
        np.seterr(all="raise")
        return h


def disturbed(net: Unruly) -> dict[str, object]:
    """What `Unruly` changes."""
    return {
        "random_states": (
            torch.get_rng_state().tolist(),
            np.random.get_state()[1].tolist(),
            random.getstate(),
        ),
        "flags": (
            torch.backends.cudnn.benchmark,
            torch.are_deterministic_algorithms_enabled(),
            np.geterr(),
        ),
        "gradients": (net.layer.weight.requires_grad, net.layer.weight.grad),
        "attributes": (
            sorted(vars(net)),
            list(net.history),
            dict(net.table),
            net.memory.tolist(),
            net.array.tolist(),
            net.training,
            len(net.layer._forward_hooks),
            net.generator.get_state().tolist(),
            str(net.numpy_generator.bit_generator.state),
            str(net.old_generator.get_state()),
            net.python_generator.getstate(),
        ),
    }


@pytest.fixture
def flags() -> Iterator[None]:
    """Put back what a test changes on purpose."""
    with quieting.flags(nn.Module()):
        yield


@pytest.mark.usefixtures("flags")
def test_an_unruly_model_is_probed_without_a_trace() -> None:
    net = Unruly()
    before = disturbed(net)
    for method in ("finite-difference", "double-backward", "in-place"):
        whole = nn.Sequential(net)
        found = probe(whole, batch()[0], state="0", method=method, max_products=24, modes=0)
        assert found.trace.is_finite
        assert found.method == method
    assert disturbed(net) == before


@pytest.mark.usefixtures("flags")
@pytest.mark.parametrize("name", ["random_states", "flags", "gradients", "attributes"])
def test_every_guard_is_needed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = Unruly()
    before = disturbed(net)
    others = tuple(guard for guard in quieting.GUARDS if guard.__name__ != name)
    assert len(others) == len(quieting.GUARDS) - 1
    monkeypatch.setattr(quieting, "GUARDS", others)
    with quiet(net):
        net(batch()[0])
    after = disturbed(net)
    assert name in {key for key, value in after.items() if value != before[key]}


OTHER: dict[str, object] = {
    "default dtype": torch.float64,
    "default device": torch.device("meta"),
    "deterministic algorithms": (True, True),
    "number of threads": torch.get_num_threads() + 1,
    "float errors of numpy": {
        "divide": "ignore",
        "over": "raise",
        "under": "warn",
        "invalid": "print",
    },
}


@pytest.mark.usefixtures("flags")
@pytest.mark.parametrize("name", quieting.FLAGS)
def test_every_flag_is_put_back(name: str) -> None:
    read, write = quieting.FLAGS[name]
    before = read()
    wanted = OTHER.get(name, not before)
    with quiet(nn.Linear(1, 1)):
        write(wanted)
        assert read() == wanted
    assert read() == before


@pytest.mark.parametrize("method", ["exact", "finite-difference", "forward-ad"])
def test_a_default_device_elsewhere_is_no_matter(method: str) -> None:
    """Ours are all made where the model is, not where the user's new tensors go."""
    net, data = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), batch()
    settings = {"method": method, "max_products": 24, "learning_rate": 0.1}
    wanted = probe(net, data, **settings)
    try:
        torch.set_default_device("meta")
        found = probe(net, data, **settings)
    finally:
        set_default_device(None)
    assert found.scalars() | {"ntk/probe_seconds": 0.0} == pytest.approx(
        wanted.scalars() | {"ntk/probe_seconds": 0.0}, nan_ok=True
    )


def test_backward_hooks_and_compilation_are_out_of_the_way() -> None:
    inner = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    calls: list[int] = []
    inner[0].register_full_backward_hook(lambda *_: calls.append(1))
    names = [name for name, _ in inner.named_parameters()]
    wanted = probe(inner, batch())
    compiled = torch.compile(inner, backend="eager")
    net = nn.ModuleDict({"net": compiled})
    for module, prefix in ((compiled, ""), (net, "net.")):
        forward = None if module is compiled else (lambda m, b: m["net"](b[0]))
        for state in (f"{prefix}1", f"{prefix}_orig_mod.1"):
            found = probe(module, batch(), state=state, forward_fn=forward)
            assert found.trace == wanted.trace
            assert found.state == (f"{prefix}1",)
            assert [name for name, *_ in found.coverage.sites] == [f"{prefix}0.weight"]
    assert calls == []
    assert [name for name, _ in net.named_parameters()] == [f"net._orig_mod.{n}" for n in names]
    assert len(inner[0]._backward_hooks) == 1


def test_a_probe_compiles_nothing() -> None:
    from torch._dynamo.utils import counters  # noqa: PLC0415

    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    net[0].compile(backend="eager")
    net(batch()[0])
    before = counters["stats"]["unique_graphs"]
    probe(net, batch())
    with quiet(net):
        net(batch()[0][:3])
    assert counters["stats"]["unique_graphs"] == before
    net(batch()[0])
    assert counters["stats"]["unique_graphs"] == before


class Carrying(nn.Module):
    """A recurrent network that carries its hidden state from batch to batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn = nn.GRU(2, 4, batch_first=True)
        self.hidden: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        y, hidden = self.rnn(x, self.hidden)
        self.hidden = hidden.detach()
        return y


def test_a_hidden_state_carried_on_is_as_it_was_at_every_product() -> None:
    net, x = Carrying(), torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0))
    net(x)
    hidden = net.hidden
    assert hidden is not None
    found = probe(net, x)
    assert net.hidden is hidden

    def given(module: nn.Module, batch: Tensor) -> Tensor:
        return module.rnn(batch, hidden)[0]

    assert found.trace == probe(net, x, forward_fn=given).trace


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_checkpointed_models_have_the_same_numbers(
    reentrant: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is computed again is not seen trial by trial: by samples alone.
    monkeypatch.setattr(trial_gradients, "FEWEST_GROUPS", 10**6)

    class Checkpointed(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            h = checkpoint(lambda x: self[2](self[1](self[0](x))), x, use_reentrant=reentrant)
            return self[4](self[3](h))

    torch.manual_seed(0)
    layers = [nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)]
    net = Checkpointed(*layers).to(dtype)
    for method in ("exact", "double-backward"):
        settings = {"method": method, "state": "2", "max_products": 24}
        found = probe(net, batch(), **settings)
        assert found.trace == probe(nn.Sequential(*layers), batch(), **settings).trace


class Parts(nn.Module):
    """A body and a head, some of it computed again going backward."""

    def __init__(self, part: str = "") -> None:
        super().__init__()
        self.part = part
        self.body = nn.Sequential(nn.Linear(3, 8), nn.Tanh())
        self.head = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))

    def forward(self, x: Tensor) -> Tensor:
        def again(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
            return checkpoint(function, x, use_reentrant=False)

        if self.part == "whole":
            return again(lambda x: self.head(self.body(x)), x)
        h = again(self.body, x) if self.part == "body and head" else self.body(x)
        return again(self.head, h) if self.part else self.head(h)


@pytest.mark.parametrize("part", ["head", "body and head", "whole"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"parameters": "body.0.weight"}, {"method": "exact"}, {"state": "auto"}],
    ids=str,
)
def test_a_head_is_computed_again_with_what_a_probe_has_changed(
    part: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial_gradients, "FEWEST_GROUPS", 10**6)
    torch.manual_seed(0)
    net, plain = Parts(part), Parts()
    plain.load_state_dict(net.state_dict())
    both = torch.randn(4, 6, 3), torch.randn(4, 6, 2)
    settings = {"state": "body", "learning_rate": 0.1, "max_products": 24, **settings}
    found, right = (probe(m, both, **settings).scalars() for m in (net, plain))
    timed = {name for name in right if "seconds" in name}
    assert found.keys() == right.keys()
    assert {n: x for n, x in found.items() if n not in timed} == pytest.approx(
        {n: x for n, x in right.items() if n not in timed}, rel=1e-4, nan_ok=True
    )


def test_what_is_computed_again_has_the_weights_of_the_linearisation() -> None:
    torch.manual_seed(0)
    net, x = Parts("whole"), torch.randn(4, 6, 3)
    lin, plain = (linearize(m, x, state="body") for m in (net, copy.deepcopy(net)))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(3)
    torch.testing.assert_close(lin.ntk.to_dense(), plain.ntk.to_dense())


def test_new_tensors_have_the_arithmetic_of_the_probe() -> None:
    class Started(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.GRUCell(2, 4)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.zeros(len(x), 4)
            for t in range(x.shape[1]):
                h = self.cell(x[:, t], h)
            return h

    x = torch.randn(3, 4, 2, dtype=torch.float64)
    before = torch.get_default_dtype()
    for dtype in (torch.float32, torch.float64):
        assert probe(Started().double(), x, dtype=dtype).trace.is_finite
    assert torch.get_default_dtype() == before


@pytest.mark.filterwarnings("ignore:Please use the new API settings:UserWarning")  # in torch 2.9
def test_float32_is_float32_where_less_is_allowed() -> None:
    net, x = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1)), torch.randn(32, 64)
    wanted = probe(net, x, max_products=24).trace
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert probe(net, x, max_products=24).trace == wanted
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
        with quiet(net):
            assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
            assert torch.backends.cuda.matmul.fp32_precision == "ieee"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("inside", [True, False])
def test_scripted_modules_are_refused_and_left_in_training(*, inside: bool) -> None:
    scripted = torch.jit.trace(nn.Linear(3, 4), torch.zeros(2, 3))
    net = nn.Sequential(scripted, nn.Tanh()) if inside else scripted
    net.train()
    with pytest.raises(ValueError, match="probe the module that was scripted or traced"):
        probe(net, batch())
    assert all(module.training for module in net.modules())
