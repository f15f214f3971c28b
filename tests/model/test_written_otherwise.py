"""Activity by hand, for functions that are written in ways that rows were once lost in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from ntk_monitor import linearize
from ntk_monitor.model.linearization import Linearization

B, T, N, M = 4, 5, 4, 3
"""Trials, steps, units, inputs."""


class Made(nn.Module):
    """A function of its parts and its inputs, and a state."""

    def __init__(self, function: Callable[..., Tensor], **parts: Any) -> None:
        super().__init__()
        self.function, self.state = function, nn.Tanh()
        for name, part in parts.items():
            setattr(self, name, part)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.state(self.function(self, x))


def drawn(*shape: int) -> nn.Parameter:
    return nn.Parameter(0.5 * torch.randn(*shape, dtype=torch.float64))


def data(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(*(shape or (B, T, M)), generator=generator, dtype=torch.float64)


class Gaps(NamedTuple):
    """How far the core is from what it is by hand, and from the kernel by Theorem 1."""

    core: float
    theorem: float


def gaps(lin: Linearization, *activity: Tensor) -> Gaps:
    n = lin.state.shape[-1]
    rows = lin.state.numel() // n
    flat = [V.detach().reshape(rows, -1) for V in activity]
    wanted = sum(V @ V.T for V in flat)
    core = lin.core.to_dense().reshape(rows, n, rows, n)[:, 0, :, 0]
    kernel = lin.ntk.to_dense()
    found = (lin.core_propagator @ lin.block_core @ lin.core_propagator.T).to_dense()
    pairs = ((core, wanted), (found, kernel))
    return Gaps(*(float((a - b).norm() / b.norm()) for a, b in pairs))


def linearised(module: nn.Module, x: Tensor, **settings: Any) -> Linearization:
    return linearize(module, x, state="state", dtype=torch.float64, **settings)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# ---- parts of one parameter --------------------------------------------------------------------


def by_steps(each: Callable[[Made, Tensor, int], Tensor]) -> Callable[[Made, Tensor], Tensor]:
    return lambda m, x: torch.stack([each(m, x[:, t], t) for t in range(T)], 1)


def each_scaled(m: Made, x: Tensor) -> Tensor:
    return by_steps(lambda m, z, t: torch.addmm(m.pe[t], z, m.W, beta=2))(m, x)


PLACED: dict[str, Callable[[Made, Tensor], Tensor]] = {
    "at once": lambda m, x: x @ m.W + m.pe,
    "by number": by_steps(lambda m, z, t: z @ m.W + m.pe[t]),
    "by slices": by_steps(lambda m, z, t: m.pe[t : t + 1] + z @ m.W),
    "unbound": lambda m, x: torch.stack(
        [z @ m.W + p for z, p in zip(x.unbind(1), m.pe.unbind(), strict=True)], 1
    ),
    "in one operation": by_steps(lambda m, z, t: torch.nn.functional.linear(z, m.W.T, m.pe[t])),
    "of a longer table": lambda m, x: x @ m.W + m.long[:T],
    "of a longer table by number": by_steps(lambda m, z, t: z @ m.W + m.long[t]),
    "in parts": lambda m, x: torch.cat([x[:, :2] @ m.W + m.pe[:2], x[:, 2:] @ m.W + m.pe[2:]], 1),
    "of an embedding": by_steps(lambda m, z, t: z @ m.W + m.table.weight[t]),
}


@pytest.mark.parametrize("name", PLACED)
def test_a_bias_of_each_step_is_a_column_for_each_step(name: str) -> None:
    parts = {"W": drawn(M, N), "pe": drawn(T, N), "long": drawn(T + 3, N)}
    module = Made(PLACED[name], **parts, table=nn.Embedding(T, N))
    lin = linearised(module, data())
    steps = torch.eye(T, dtype=torch.float64).expand(B, T, T)
    assert gaps(lin, data(), steps) == pytest.approx((0, 0), abs=1e-10)
    assert lin.coverage.fraction == 1.0


def test_what_a_bias_of_each_step_is_multiplied_with_counts() -> None:
    lin = linearised(Made(each_scaled, W=drawn(M, N), pe=drawn(T, N)), data())
    steps = 2 * torch.eye(T, dtype=torch.float64).expand(B, T, T)
    assert gaps(lin, data(), steps) == pytest.approx((0, 0), abs=1e-10)


APART: dict[str, Callable[[Made, Tensor, int], Tensor]] = {
    "as it is": lambda m, z, t: z @ m.Wt[t],
    "twice": lambda m, z, t: z @ (2 * m.Wt)[t],
    "then exp": lambda m, z, t: z @ m.Wt[t].exp(),
    "exp before": lambda m, z, t: z @ m.Wt.exp()[t],
    "of two": lambda m, z, t: torch.cat([z, z], -1) @ torch.cat([m.Wt[t], m.Wt[0]]),
}


@pytest.mark.parametrize("name", APART)
def test_different_entries_of_a_weight_are_different_weights(name: str) -> None:
    module = Made(by_steps(APART[name]), Wt=drawn(T, M, N), a=nn.Linear(N, N))
    module.function = lambda m, x: m.a(by_steps(APART[name])(m, x))
    lin = linearised(module, data())
    assert [site.name for site in lin.sites] == ["a.weight"]
    assert lin.coverage.left_out == {"Wt": "its rows (4,) are not the state's (4, 5)"}


def test_a_weight_and_its_transpose_are_different_weights() -> None:
    def forward(m: Made, x: Tensor) -> Tensor:
        return torch.stack([z @ (m.W if t % 2 else m.W.T) for t, z in enumerate(x.unbind(1))], 1)

    lin = linearised(Made(forward, W=drawn(M, M), a=nn.Linear(M, M)), data())
    assert lin.coverage.fraction == 0.0


def test_a_derived_weight_is_the_same_at_all_steps() -> None:
    forward = by_steps(lambda m, z, t: z @ (m.W.T.exp() * 2).T)
    lin = linearised(Made(forward, W=drawn(M, N)), data())
    assert lin.coverage.fraction == 1.0
    assert gaps(lin, data()).core < 1e-10


# ---- trials one by one, with constants ---------------------------------------------------------


def one_by_one(function: Callable[[Made, Tensor], Tensor]) -> Callable[[Made, Tensor], Tensor]:
    return lambda m, x: torch.stack([function(m, trial) for trial in x])


CONSTANT = data(T, M)
ALIKE: dict[str, Callable[[Made, Tensor], Tensor]] = {
    "a buffer is added": lambda m, x: m.a(x + m.places),
    "a constant is added": lambda m, x: m.a(x + CONSTANT.to(x)),
    "a buffer scales": lambda m, x: m.a(m.places * x),
    "a frozen weight is added": lambda m, x: m.a(x + m.frozen),
    "a frozen layer's output is added": lambda m, x: m.a(x + m.layer(m.places)),
    "what a layer makes of a buffer is added": lambda m, x: m.b(m.a(x) + m.c(m.places).tanh()),
    "sorted": lambda m, x: m.a(x.sort(-2)[0]),
    "mixed behind": lambda m, x: m.mixing @ m.a(x),
    "a convolution": lambda m, x: m.conv(x.mT).mT,
}


def with_constants(function: Callable[[Made, Tensor], Tensor], steps: int) -> Made:
    parts = {
        "a": nn.Linear(M, N), "b": nn.Linear(N, N), "c": nn.Linear(M, N), "frozen": drawn(steps, M),
        "layer": nn.Linear(M, M), "conv": nn.Conv1d(M, N, 3, padding=1),
    }  # fmt: skip
    module = Made(function, **parts)
    module.register_buffer("places", data(steps, M))
    module.register_buffer("mixing", data(steps, steps))
    module.frozen.requires_grad_(False)
    module.layer.requires_grad_(False)
    return module


@pytest.mark.parametrize("trials", [B, T])
@pytest.mark.parametrize("name", ALIKE)
def test_trials_one_by_one_have_the_core_of_all_at_once(name: str, trials: int) -> None:
    module, x = with_constants(ALIKE[name], T), data(trials, T, M)
    at_once = linearised(module, x)
    module.function = one_by_one(ALIKE[name])
    apart = linearised(module, x)
    assert at_once.coverage.fraction == 1.0
    assert apart.coverage.fraction == 1.0
    torch.testing.assert_close(apart.core.to_dense(), at_once.core.to_dense(), rtol=1e-10, atol=0)


@pytest.mark.parametrize(
    "name", ["sorted", "mixed behind", "what a layer makes of a buffer is added"]
)
def test_trials_are_told_apart_without_a_graph(name: str) -> None:
    module = with_constants(one_by_one(ALIKE[name]), T)
    kept, streamed = (linearised(module, data(), max_memory=size) for size in (2**40, 1))
    assert streamed.coverage == kept.coverage
    torch.testing.assert_close(streamed.core.to_dense(), kept.core.to_dense())


def test_rows_of_a_constant_are_not_those_of_all_trials() -> None:
    module = with_constants(one_by_one(lambda m, x: m.a(m.mixing @ x)), T)
    lin = linearised(module, data())
    assert lin.coverage.fraction == 0.0
    assert lin.coverage.left_out.keys() == {"a.weight", "a.bias"}


def test_a_layer_on_a_buffer_serves_all_trials() -> None:
    module = with_constants(lambda m, x: m.a(m.places) + m.b(m.c(x)), T)
    lin = linearised(module, data())
    assert lin.coverage.fraction == 1.0
    both = torch.cat([module.places, torch.ones(T, 1)], -1).expand(B, T, M + 1)
    assert any(torch.equal(site.activity, both) for site in lin.sites)


# ---- rate networks -----------------------------------------------------------------------------

Step = Callable[[Any, Tensor, Tensor], Tensor]
RATES: dict[str, Step] = {
    "decay": lambda m, h, x: 0.8 * h + 0.2 * (h.tanh() @ m.W.T + x @ m.Win.T),
    "leak first": lambda m, h, x: h + 0.2 * (-h + h.tanh() @ m.W.T + x @ m.Win.T),
    "leak last": lambda m, h, x: h + 0.2 * (h.tanh() @ m.W.T + x @ m.Win.T - h),
    "einsum": lambda m, h, x: (
        h + 0.2 * (-h + torch.einsum("ij,bj->bi", m.W, h.tanh()) + x @ m.Win.T)
    ),
    "input first": lambda m, h, x: h + 0.2 * (x @ m.Win.T - h + h.tanh() @ m.W.T),
    "in place": lambda m, h, x: h.mul(0.8).add_(0.2 * (h.tanh() @ m.W.T + x @ m.Win.T)),
}


def before(module: Made, x: Tensor) -> Tensor:
    module(x)
    return torch.stack(module.before, 1)


def unrolled(step: Step, *, given: bool) -> Callable[[Made, Tensor], Tensor]:
    def forward(m: Made, x: Tensor) -> Tensor:
        h = x[:, 0].repeat(1, 2)[:, :N] if given else torch.zeros(len(x), N, dtype=x.dtype)
        states, m.before = [], []
        for t in range(x.shape[1]):
            m.before.append(h.detach().tanh())
            h = step(m, h, x[:, t])
            states.append(h)
        return torch.stack(states, 1)

    return forward


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("name", RATES)
def test_rates_have_one_core_however_their_leak_is_written(name: str, given: bool) -> None:
    module, x = Made(unrolled(RATES[name], given=given), W=drawn(N, N), Win=drawn(N, M)), data()
    lin = linearised(module, x)
    assert lin.coverage.fraction == 1.0
    assert gaps(lin, before(module, x), x) == pytest.approx((0, 0), abs=1e-10)


SIGNED: dict[str, Callable[[Any], Tensor]] = {
    "times a row": lambda m: m.W.relu() * m.signs,
    "on the right": lambda m: m.W.relu() @ torch.diag(m.signs),
    "on both sides": lambda m: torch.eye(N, dtype=m.W.dtype) @ m.W.relu() @ torch.diag(m.signs),
}


@pytest.mark.parametrize("name", SIGNED)
def test_signs_of_units_make_a_weight_of_a_weight(name: str) -> None:
    def step(m: Made, h: Tensor, x: Tensor) -> Tensor:
        return 0.8 * h + 0.2 * (h.tanh() @ SIGNED[name](m).T + x @ m.Win.T)

    module = Made(unrolled(step, given=False), W=drawn(N, N), Win=drawn(N, M))
    module.register_buffer("signs", torch.tensor([1.0, 1.0, 1.0, -4.0], dtype=torch.float64))
    lin = linearised(module, data())
    assert (lin.coverage.fraction, lin.coverage.left_out) == (1.0, {})
    assert gaps(lin, before(module, data()), data()).core < 1e-10


# ---- both directions, in one product -----------------------------------------------------------


def one_direction(m: Made, x: Tensor, name: str, *, fused: bool) -> tuple[Tensor, Tensor]:
    U, W, b = (getattr(m, part + name) for part in "UWb")
    h, states, before = x.new_zeros(len(x), N), [], []
    for z in x.unbind(1):
        before.append(h.detach())
        both = torch.cat([z, h], 1) @ torch.cat([U, W], 1).T if fused else z @ U.T + h @ W.T
        h = torch.tanh(both + b)
        states.append(h)
    return torch.stack(states, 1), torch.stack(before, 1)


def both_directions(m: Made, x: Tensor, *, fused: bool) -> tuple[Tensor, Tensor, Tensor]:
    ahead, before = one_direction(m, x, "1", fused=fused)
    back, after = (each.flip(1) for each in one_direction(m, x.flip(1), "2", fused=fused))
    return torch.cat([ahead, back], -1), before, after


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("steps", [2, 5])
def test_a_step_and_what_went_before_may_be_in_one_product(fused: bool, steps: int) -> None:
    module = Made(
        lambda m, x: both_directions(m, x, fused=fused)[0],
        U1=drawn(N, M), W1=drawn(N, N), b1=drawn(N), U2=drawn(N, M), W2=drawn(N, N), b2=drawn(N),
    )  # fmt: skip
    x = data(B, steps, M)
    lin = linearised(module, x)
    _, before, after = both_directions(module, x, fused=fused)
    ones = torch.ones(B, steps, 2, dtype=x.dtype)
    if steps == 2 and fused and lin.coverage.left_out:  # at the second step all steps are there
        inputs = [site.activity[..., :M] for site in lin.sites if site.name.startswith("U")]
        assert all(torch.equal(each, x) for each in inputs)
        return
    assert lin.coverage.fraction == 1.0
    assert gaps(lin, x, x, before, after, ones) == pytest.approx((0, 0), abs=1e-10)


# ---- tensors that are written to ---------------------------------------------------------------


def written(make: Callable[..., Tensor]) -> Callable[[Made, Tensor], Tensor]:
    def forward(m: Made, x: Tensor) -> Tensor:
        found = make(*x.shape[:2], N, dtype=x.dtype)
        found[:] = m.a(x)
        return m.b(found.tanh())

    return forward


def step_by_step(m: Made, x: Tensor) -> Tensor:
    found = torch.zeros(B, T, N, dtype=x.dtype)
    for t in range(T):
        found[:, t] = m.a(x[:, t])
    return m.b(found.tanh())


def in_rows(m: Made, x: Tensor) -> Tensor:
    whole = torch.zeros(N, M, dtype=x.dtype)
    whole[:2] = m.top
    whole[2:] = m.bottom
    return x @ whole.T


@pytest.mark.parametrize("forward", [written(torch.zeros), written(torch.empty), step_by_step])
def test_what_is_written_into_a_constant_is_seen(forward: Callable[..., Tensor]) -> None:
    module = Made(forward, a=nn.Linear(M, N), b=nn.Linear(N, N))
    lin = linearised(module, data())
    assert lin.coverage.fraction == 1.0
    ones = torch.ones(B, T, 2, dtype=torch.float64)
    assert gaps(lin, data(), module.a(data()).tanh(), ones) == pytest.approx((0, 0), abs=1e-10)


def test_a_weight_may_be_written_into_a_constant() -> None:
    lin = linearised(Made(in_rows, top=drawn(2, M), bottom=drawn(2, M)), data())
    assert lin.coverage.fraction == 1.0
    assert gaps(lin, data()) == pytest.approx((0, 0), abs=1e-10)


# ---- masks that are held otherwise -------------------------------------------------------------

MASK = (data(N, M) > -0.3).double()


def in_a_closure(mask: Tensor) -> Callable[[Made, Tensor], Tensor]:
    return lambda m, x: x @ (m.W * mask).T


HELD: dict[str, tuple[Callable[[Made, Tensor], Tensor], dict[str, Any]]] = {
    "attribute": (lambda m, x: x @ (m.W * m.mask).T, {"mask": MASK.clone()}),
    "where": (lambda m, x: x @ torch.where(m.mask > 0, m.W, 0.0).T, {"mask": MASK.clone()}),
    "filled": (lambda m, x: x @ m.W.masked_fill(~m.mask, 0).T, {"mask": MASK.bool()}),
    "list": (lambda m, x: x @ (m.masks[1] * m.W).T, {"masks": [None, MASK.clone()]}),
    "dict": (lambda m, x: x @ (m.masks["W"].to(x.dtype) * m.W).T, {"masks": {"W": MASK.float()}}),
    "closure": (in_a_closure(MASK.clone()), {}),
    "array": (lambda m, x: x @ (m.W * torch.from_numpy(m.mask)).T, {"mask": MASK.clone().numpy()}),
    "copied array": (lambda m, x: x @ (m.W * torch.tensor(m.mask)).T, {"mask": MASK.numpy()}),
    "shared array": (lambda m, x: x @ (m.W * torch.as_tensor(m.mask)).T, {"mask": MASK.numpy()}),
}


@pytest.mark.parametrize("name", HELD)
def test_a_mask_is_one_wherever_it_is_held(name: str) -> None:
    function, parts = HELD[name]
    lin = linearised(Made(function, W=drawn(N, M), **parts), data())
    assert (lin.coverage.fraction, lin.coverage.left_out) == (1.0, {})
    assert gaps(lin, data()).core < 1e-10


HELD_DATA: dict[str, Callable[[Made, Tensor], Tensor]] = {
    "as it is": lambda m, x: m.b(m.a(m.features).tanh()) + 0 * x[..., :1],
    "changed": lambda m, x: m.b(m.a(2 * m.features.clone()).tanh()) + 0 * x[..., :1],
    "scaled by a weight": lambda m, x: m.b(m.a(m.features * m.gain).tanh()) + 0 * x[..., :1],
    "written": lambda m, x: m.b(m.a(torch.zeros_like(x).copy_(m.features))) + 0 * x[..., :1],
}


@pytest.mark.parametrize("name", HELD_DATA)
def test_data_that_a_module_holds_is_data(name: str) -> None:
    parts = {"a": nn.Linear(M, N), "b": nn.Linear(N, N), "gain": drawn(M)}
    lin = linearised(Made(HELD_DATA[name], **parts, features=data()), data())
    assert [site.name for site in lin.sites] == ["a.weight", "b.weight"]


# ---- rows that a constant mixes ----------------------------------------------------------------


def test_rows_that_cannot_be_followed_are_said_to_be() -> None:
    module = with_constants(lambda m, x: m.a(m.mixing @ x), T)
    lin = linearised(module, data())
    assert lin.coverage.fraction == 0.0
    why = "its rows (4, 5) cannot be followed to the state's (4, 5): a product with a constant"
    assert lin.coverage.left_out["a.weight"].startswith(why)
