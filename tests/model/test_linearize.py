"""The Jacobian, its methods, the choice of the state, and clear refusals."""

import copy
import importlib
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import Case, Made, mlp, recurrent, sequences, vectors
from support.dense import rows_of_jacobian, state_of
from torch import Tensor, nn

from ntk_monitor import Probe, linearize, probe
from ntk_monitor.model import METHODS, Linearization
from ntk_monitor.model.derivatives import adjoint
from ntk_monitor.model.derivatives.derivative import Derivative
from ntk_monitor.model.derivatives.differences import SHORTENED
from ntk_monitor.model.derivatives.products import ForwardAD
from ntk_monitor.model.isolation.memory import free_memory


@pytest.mark.parametrize("method", METHODS)
def test_jacobian_is_brute_force(case: Case, method: str) -> None:
    net, (x, y) = case.make_model(), case.make_batch()
    lin = linearize(net, (x, y), state=case.state, dtype=None, method=method)
    h, _ = state_of(net, case.state, x)
    parameters = [dict(net.named_parameters())[name] for name in lin.parameters]
    wanted = rows_of_jacobian(h, parameters).reshape(*h.shape, -1)
    J = lin.jacobian
    G = torch.randn(5, *J.shape_in, generator=torch.Generator().manual_seed(0)).double()
    tight = 1e-7 if method in {"finite-difference", "in-place"} else 1e-12
    torch.testing.assert_close(
        J.matmat(G), torch.einsum("btnp,sp->sbtn", wanted, G), rtol=tight, atol=tight
    )
    Z = torch.randn(3, *J.shape_out, generator=torch.Generator().manual_seed(1)).double()
    torch.testing.assert_close(J.rmatmat(Z), torch.einsum("btnp,sbtn->sp", wanted, Z))


def test_products_are_counted() -> None:
    lin = linearize(recurrent(nn.GRU), sequences(), dtype=None)
    J = lin.jacobian
    J.matmat(torch.zeros(3, *J.shape_in, dtype=torch.float64))
    J.rmatvec(torch.zeros(J.shape_out, dtype=torch.float64))
    assert J.products == 4
    J = linearize(recurrent(nn.GRU), sequences(), dtype=None, method="finite-difference").jacobian
    J.matmat(torch.ones(3, *J.shape_in, dtype=torch.float64))
    assert J.products == 3 + 1


def test_repeated_products_with_one_tangent_agree() -> None:
    """``torch.func.linearize`` is wrong from its second call on for recurrent layers."""
    for kind in (nn.RNN, nn.GRU, nn.LSTM):
        J = linearize(recurrent(kind), sequences(), dtype=None).jacobian
        g = torch.randn(J.shape_in, generator=torch.Generator().manual_seed(0)).double()
        first, *rest = (J.matvec(g) for _ in range(3))
        for again in rest:
            torch.testing.assert_close(again, first, rtol=0, atol=0)


def test_a_later_optimizer_step_does_not_change_the_operator() -> None:
    net = recurrent(nn.GRU)
    lin = linearize(net, sequences(), dtype=None)
    J = lin.jacobian
    g = torch.randn(J.shape_in, generator=torch.Generator().manual_seed(0)).double()
    z = torch.randn(J.shape_out, generator=torch.Generator().manual_seed(1)).double()
    before = J.matvec(g), J.rmatvec(z)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(1.0)
    torch.testing.assert_close((J.matvec(g), J.rmatvec(z)), before, rtol=0, atol=0)


def test_automatic_method_falls_through_to_one_that_works() -> None:
    class NoForwardMode(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return 2 * x

        @staticmethod
        def backward(ctx: object, g: Tensor) -> Tensor:
            return 2 * g

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 4)
            self.state = nn.Identity()
            self.readout = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.readout(self.state(NoForwardMode.apply(self.inner(x))))

    torch.manual_seed(0)
    net = Net().double()
    lin = linearize(net, vectors(), state="state", dtype=None)
    assert lin.jacobian.method == "forward-ad"
    g = torch.ones(lin.jacobian.shape_in, dtype=torch.float64)
    image = lin.jacobian.matvec(g)
    assert lin.jacobian.method == "double-backward"
    x = vectors()[0]
    torch.testing.assert_close(image[:, 0], 2 * (x.sum(1, keepdim=True) + 1).expand(-1, 4))
    with pytest.raises(RuntimeError):
        linearize(net, vectors(), state="state", dtype=None, method="forward-ad").jacobian.matvec(g)


def test_finite_differences_that_do_not_settle_are_refused() -> None:
    class Rough(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 4)
            self.state = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return self.state(torch.sin(1e9 * self.inner(x)))

    torch.manual_seed(0)
    lin = linearize(Rough(), vectors()[0], state="state", method="finite-difference")
    with pytest.raises(FloatingPointError, match="do not settle"):
        lin.jacobian.matvec(torch.ones(lin.jacobian.shape_in))


class Steep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, 400))
        self.state = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.state(torch.tanh(x @ self.weight.T))


def steep(method: str) -> Linearization:
    torch.manual_seed(0)
    net, x = Steep(), torch.full((6, 400), 0.5) + 0.1 * torch.randn(6, 400)
    net.weight.data -= (net.weight @ x.mean(0)) / x.mean(0).square().sum() * x.mean(0)
    return linearize(net, x, state="state", method=method)


def steep_jacobian(method: str) -> Derivative:
    return steep(method).jacobian


def test_finite_differences_shorten_the_step_along_steep_directions() -> None:
    """The step is checked on a random tangent; along a leading direction it would go too far."""
    fd, ad = (steep_jacobian(method) for method in ("finite-difference", "forward-ad"))
    random, steep = torch.randn(ad.shape_in), ad.rmatvec(ad.matvec(torch.randn(ad.shape_in)))
    for direction in (random, steep):
        image = ad.matvec(direction)
        assert (fd.matvec(direction) - image).norm() < 2e-3 * image.norm()
    assert 4 <= fd.products <= 3 + SHORTENED  # one for the check of the first


def test_a_steep_direction_after_samples_is_as_precise_as_before_them() -> None:
    """Samples tell how much a direction usually changes; a leading one gets a shorter step."""
    ad, fresh = (steep_jacobian(method) for method in ("forward-ad", "finite-difference"))
    sampled = steep("finite-difference").without_wide_sites()
    later, leading = sampled.jacobian, ad.rmatvec(ad.matvec(torch.randn(ad.shape_in)))
    sampled.sampler(0).sample(range(1))
    fresh.matvec(torch.randn(ad.shape_in))
    image = ad.matvec(leading)
    before, after = ((fd.matvec(leading) - image).norm() / image.norm() for fd in (fresh, later))
    assert after < 2e-3
    assert after < 10 * before


@pytest.mark.parametrize("method", ["finite-difference", "in-place"])
def test_products_together_are_those_one_by_one(method: str) -> None:
    """Some of a group are done again with a shorter step, the others are left as they are."""
    ad = steep_jacobian("forward-ad")
    steep = ad.rmatvec(ad.matvec(torch.randn(ad.shape_in)))
    still, first, last = torch.zeros_like(steep), *torch.randn(2, *ad.shape_in)
    between = steep / steep.norm() + 2 * first / first.norm()  # too steep as well, though less
    group = torch.stack([still, first, steep, last, between, still])
    together, apart = steep_jacobian(method), steep_jacobian(method)
    found = together.matmat(group)
    assert torch.equal(found, torch.stack([apart.matvec(g) for g in group]))
    assert together.products == apart.products > len(group) + 2
    torch.testing.assert_close(found, ad.matmat(group), rtol=2e-3, atol=2e-3 * float(found.max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tangents_that_move_nothing_or_little_set_no_step(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)), torch.randn(6, 4)
    x[:, 0], x[:, 1] = 0.0, 1e-5
    fd, ad = (
        linearize(net, x, state="1", method=method, dtype=dtype).jacobian
        for method in ("finite-difference", "forward-ad")
    )
    torch.testing.assert_close(fd.to_dense(), ad.to_dense(), rtol=1e-2, atol=1e-3)
    assert fd.products <= 2 * fd.input_size
    fresh = linearize(net, x, state="1", method="finite-difference", dtype=dtype).jacobian
    assert not fresh.matvec(torch.zeros(fd.shape_in, dtype=dtype)).any()
    for _ in range(2):
        fresh.matvec(torch.ones(fd.shape_in, dtype=dtype))
    assert fresh.products == 2 + 2 + 1  # the first that moves something is checked, too


def evaluations_of_samples(net: nn.Module, x: Tensor, count: int, **settings: Any) -> list[Any]:
    """How often the model is called for samples, and how far these are from exact ones."""
    calls = []
    handle = net.register_forward_pre_hook(lambda *_: calls.append(1))
    lins = [
        linearize(net, x, method=method, **settings)
        for method in ("finite-difference", "forward-ad")
    ]
    calls.clear()
    found = lins[0].sampler(0).sample(range(count))
    called = len(calls)
    handle.remove()
    wanted = lins[1].sampler(0).sample(range(count))
    return [called, float((found - wanted).norm() / wanted.norm())]


def test_a_sample_is_one_evaluation() -> None:
    net, (x, _) = recurrent(nn.GRU).float(), sequences()
    count, gap = evaluations_of_samples(net, x, 10, state="rnn")
    assert count == 10 + 1 + 1  # the point itself, and the check of the step
    assert gap < 2e-3
    count, gap = evaluations_of_samples(net.double(), x, 10, state="rnn", dtype=None)
    assert count == 2 * (10 + 1) + 1
    assert gap < 1e-8


def test_a_sample_is_two_where_the_function_bends_too_much() -> None:
    class Bent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.state = nn.Linear(3, 4), nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return self.state(torch.sin(150 * self.inner(x)))

    torch.manual_seed(0)
    count, gap = evaluations_of_samples(Bent(), torch.randn(5, 3), 10, state="state")
    assert count > 2 * 10
    assert gap < 1e-2


def test_a_method_that_stops_working_hands_over_to_the_next() -> None:
    """Training can put a model where finite differences do not settle: no probe is lost."""

    class Wave(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.state, self.readout = nn.Linear(3, 4), nn.Identity(), nn.Linear(4, 2)
            self.pitch = 1.0

        def forward(self, x: Tensor) -> Tensor:
            return self.readout(self.state(torch.sin(self.pitch * self.inner(x))))

    torch.manual_seed(0)
    net, measure = Wave(), Probe(max_products=12, tolerance=0.5, modes=0)
    methods = []
    for pitch in (1.0, 1e5, 1.0):
        net.pitch = pitch
        methods.append(measure(net, vectors()[0]).method)
    assert methods == ["finite-difference", "forward-ad", "forward-ad"]


def test_no_grad_inside_the_model_is_found_out() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first = nn.Linear(3, 5)
            self.state = nn.Linear(5, 4)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                detached = torch.tanh(self.first(x))
            return self.state(self.first(x) + detached)

    with pytest.raises(RuntimeError, match=r"no_grad\(\)"):
        probe(Half(), vectors()[0].float(), state="state", modes=0)


def test_probe_computes_in_the_dtype_that_is_asked_for() -> None:
    net = recurrent(nn.GRU).float()
    x, y = (t.float() for t in sequences())
    assert linearize(net, (x, y)).state.dtype == torch.float32
    assert linearize(net, (x, y), dtype=None).state.dtype == torch.float32
    assert linearize(net, (x, y), dtype=torch.float64).state.dtype == torch.float64
    double = probe(copy.deepcopy(net).double(), (x, y), max_products=40, tolerance=0)
    single = probe(net, (x, y), max_products=40, tolerance=0)
    assert single.trace.value == pytest.approx(double.trace.value, rel=1e-5)
    assert single.effective_rank.value == pytest.approx(double.effective_rank.value, rel=1e-4)
    assert next(net.parameters()).dtype == torch.float32


def test_automatic_state_is_the_last_recurrent_layer_or_what_feeds_the_readout() -> None:
    x, y = sequences()
    lin = linearize(recurrent(nn.LSTM), (x, y), dtype=None)
    assert lin.state.shape == (4, 5, 6)
    net = mlp()
    lin = linearize(net, vectors(), dtype=None)
    torch.testing.assert_close(lin.state[:, 0], net[:4](vectors()[0]).detach())


def test_time_first_states_become_batch_first() -> None:
    x, y = sequences(batch_first=False)
    lin = linearize(recurrent(nn.GRU, batch_first=False), (x, y), dtype=None)
    same = linearize(recurrent(nn.GRU), sequences(), dtype=None)
    torch.testing.assert_close(lin.state, same.state)
    torch.testing.assert_close(lin.output, same.output)
    first = probe(recurrent(nn.GRU, batch_first=False), (x, y), dtype=None, method="exact")
    second = probe(recurrent(nn.GRU), sequences(), dtype=None, method="exact")
    assert first.target_modes[0].gain == pytest.approx(second.target_modes[0].gain, rel=1e-9)
    torch.testing.assert_close(first.target_patterns, second.target_patterns)


def test_a_readout_of_the_last_hidden_state_depends_on_the_state() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.rnn = nn.GRU(2, 6, batch_first=True)
            self.readout = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.readout(self.rnn(x)[1][-1])

    net = Last().double()
    x, _ = sequences()
    y = torch.randn(4, 2, generator=torch.Generator().manual_seed(0)).double()
    snapshot = probe(net, (x, y), dtype=None, method="exact", learning_rate=0.1)
    J_y = rows_of_jacobian(net(x), list(net.parameters()))
    U, sigma, Vh = torch.linalg.svd(y - y.mean(0), full_matrices=False)
    r = 2 * (net(x) - y).detach().flatten() / 8
    for i, mode in enumerate(snapshot.target_modes):
        e = torch.outer(U[:, i], Vh[i]).flatten()
        wanted = -0.1 * float((e @ J_y) @ (r @ J_y)) / float(sigma[i])
        assert mode.rate == pytest.approx(wanted, rel=1e-5)
        q = torch.zeros(4, 5, 6, dtype=torch.float64)
        q[:, -1] = torch.outer(U[:, i], Vh[i] @ net.readout.weight.detach())
        J = rows_of_jacobian(net.rnn(x)[0], list(net.rnn.parameters()))
        gain = (q.flatten() @ J).square().sum() / q.square().sum()
        assert mode.gain == pytest.approx(float(gain))
        assert 0 <= mode.core_overlap <= 1


def test_class_targets_are_one_hot() -> None:
    net, (x, _) = mlp(), vectors()
    labels = torch.arange(12) % 2
    by_index = probe(net, (x, labels), dtype=None)
    by_value = probe(net, (x, nn.functional.one_hot(labels).double()), dtype=None)
    gains = [m.gain for m in by_value.target_modes]
    assert [m.gain for m in by_index.target_modes] == pytest.approx(gains, rel=1e-13)


def test_mappings_feed_the_keywords_of_forward() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = mlp()

        def forward(self, inputs: Tensor) -> dict[str, Tensor]:
            return {"aux": inputs.sum(), "logits": self.inner(inputs)}

    x, y = vectors()
    batch = {"inputs": x, "targets": y, "name": "kept out"}
    found = probe(Named(), batch, state="inner.3", dtype=None, target_fn=lambda b: b["targets"])
    plain = probe(mlp(), (x, y), state="3", dtype=None)
    assert found.target_modes[0].gain == pytest.approx(plain.target_modes[0].gain)
    assert found.trace.value == pytest.approx(plain.trace.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"state": "rn"}, r"did you mean 'rnn'\?.*its modules are rnn, readout"),
        ({"parameters": ["rnn.*", "nothing"]}, r"\['nothing'\] match no trained parameter"),
        ({"parameters": lambda _, __: False}, "match no trained parameter"),
        (
            {"parameters": ["rnn.*", "readout.*"]},
            r"parameters=\['readout.\*'\] do not act on the state 'rnn': leave them out",
        ),
        ({"parameters": "readout.*"}, "no studied parameter reaches the state 'rnn'"),
        ({"modes": -1}, "modes must be a number of target modes, 0 or more, got -1"),
        ({"tolerance": math.nan}, "tolerance must be"),
        ({"max_products": 3}, r"max_products must be at least 11 \(with modes=3\), got 3"),
        ({"method": "magic"}, "method must be one of auto, exact"),
        ({"dtype": torch.int64}, "dtype must be a floating"),
        ({"dtype": "float31"}, "dtype must be a floating"),
        ({"chunk_size": 0}, "chunk_size must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"seed": -1}, "seed must be 0 or more"),
        ({"target_fn": lambda _: torch.zeros(4, 5, 3)}, r"\(4, 5, 2\).*got \(4, 5, 3\)"),
        ({"target_fn": lambda _: torch.full((4, 5), 2)}, r"class indices must lie in \[0, 2\)"),
    ],
)
def test_bad_settings_are_refused_with_the_remedy(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        probe(recurrent(nn.GRU), sequences(), **settings)


def test_a_batch_that_forward_cannot_take_shows_forward_fn() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = mlp()

        def forward(self, x: Tensor, scale: Tensor) -> Tensor:
            return self.inner(scale * x)

    with pytest.raises(TypeError, match="forward_fn=lambda module, batch"):
        probe(Two(), vectors()[:1])
    with pytest.raises(TypeError, match="pass forward_fn"):
        probe(Two(), "text")
    x, y = vectors()
    found = probe(Two(), (x, y, 2.0), state="inner.3", forward_fn=lambda m, b: m(b[0], b[2]))
    assert found.is_finite


def test_states_of_another_shape_or_number_are_refused() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(self.inner(x))

    with pytest.raises(ValueError, match=r"once per forward pass, .*got 2 calls"):
        probe(Twice(), torch.zeros(4, 5, 3), state="inner")
    net = nn.Sequential(nn.Conv1d(2, 3, 1), nn.Flatten(2), nn.Flatten(0))
    with pytest.raises(ValueError, match=r"\(B, T, n\), \(B, n\), or \(B, n, H, W\), got \(60,\)"):
        probe(net, torch.zeros(4, 2, 5), state="2")


def test_nothing_to_train_is_refused() -> None:
    net = mlp().requires_grad_(requires_grad=False)
    with pytest.raises(ValueError, match="no parameter with requires_grad=True"):
        probe(net, vectors())


def test_exact_refuses_what_cannot_fit() -> None:
    net = nn.Sequential(nn.Linear(600, 600), nn.Tanh(), nn.Linear(600, 1))
    with pytest.raises(ValueError, match="dense Jacobian of"):
        probe(net, torch.zeros(2, 600), method="exact")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_activations_mark_the_snapshot(value: float) -> None:
    x, y = sequences()
    x[0, 0, 0] = value
    net = recurrent(nn.GRU)
    with torch.no_grad():
        net.rnn.weight_ih_l0.fill_(math.nan)
    with pytest.warns(RuntimeWarning, match="nan or infinite activations"):
        snapshot = probe(net, (x, y))
    assert not snapshot.is_finite
    assert math.isnan(snapshot.core_cosine.value)
    assert math.isnan(snapshot.scalars()["ntk/trace"])


def test_non_finite_targets_are_left_out() -> None:
    x, y = sequences()
    y[0] = math.nan
    with pytest.warns(RuntimeWarning, match="nan or infinite targets"):
        snapshot = probe(recurrent(nn.GRU), (x, y))
    assert snapshot.is_finite
    assert snapshot.target_modes == ()


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
def test_out_of_memory_halves_the_chunk(
    error: type[RuntimeError], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []
    call = ForwardAD.__call__

    def short_of_memory(self: ForwardAD, G: Tensor) -> Tensor:
        tried.append(self.chunk_size)
        if self.chunk_size > 8:
            raise error("DefaultCPUAllocator: can't allocate memory: you tried to allocate much")
        return call(self, G)

    monkeypatch.setattr(ForwardAD, "__call__", short_of_memory)
    J = linearize(recurrent(nn.GRU), sequences(), dtype=None).jacobian
    J.matmat(torch.ones(2, *J.shape_in, dtype=torch.float64))
    assert tried == [16, 8]
    assert J.method == "forward-ad"
    assert J.products == 2
    monkeypatch.setattr(ForwardAD, "__call__", lambda self, G: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        J.matmat(torch.ones(2, *J.shape_in, dtype=torch.float64))


def test_chunks_shrink_with_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("ntk_monitor.model.passes")
    monkeypatch.setattr(module, "free_memory", lambda _: 2**17)
    small = linearize(recurrent(nn.GRU), sequences(), dtype=None).jacobian
    assert small.method == "forward-ad"
    assert 1 <= small.chunk_size < 16
    assert free_memory(torch.device("cpu")) > 2**20


class Looks(torch.autograd.Function):
    """Goes backward as its gradient's values say."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return g * x.cos() if g.abs().max() < 1e9 else torch.zeros_like(x)


@pytest.mark.parametrize(
    ("function", "together"),
    [
        (torch.tanh, True),
        (Looks.apply, False),
        (lambda h: h + nn.functional.pdist(h).sum(), False),  # which cannot be batched
    ],
)
def test_adjoint_products_of_a_small_model_are_taken_together(
    function: Callable[[Tensor], Tensor], together: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = Made(lambda m, x: m.two(function(m.one(x))), one=nn.Linear(3, 8), two=nn.Linear(8, 4))
    x = torch.randn(5, 3, dtype=torch.float64)
    J = linearize(net.double(), x, state="two", dtype=None).jacobian
    Y = torch.randn(7, *J.shape_out, dtype=torch.float64)
    before = J.products
    found = J.rmatmat(Y)
    assert J.products == before + len(Y)
    assert J._adjoint_products._together == together
    apart = [torch.cat([x.flatten() for x in pulled]) for pulled in J.pulls_apart(Y)]
    monkeypatch.setattr(adjoint, "MOST_TOGETHER", 0)
    one_by_one = torch.stack([J.rmatvec(y) for y in Y])
    torch.testing.assert_close(found, one_by_one, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.stack(apart), one_by_one, rtol=1e-12, atol=1e-12)
