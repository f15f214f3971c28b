"""The paper's statements as identities in float64, on every architecture."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations, pairwise

import pytest
import torch
from conftest import Case, mlp, recurrent, sequences, vectors
from support.operator_suite import OperatorSuite
from torch import Tensor, nn

from ntk_monitor import linearize
from ntk_monitor.model import Linearization, Propagator
from ntk_monitor.operators import Dense, Identity, LinearOperator, TensorProduct

B, T, N = 4, 5, 6


class CellLoop(nn.Module):
    """A recurrent network as users write it: a cell in a loop."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell
        self.readout = nn.Linear(N, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), N)
        carry = (h, h) if isinstance(self.cell, nn.LSTMCell) else h
        states = []
        for t in range(x.shape[1]):
            carry = self.cell(x[:, t], carry)
            states.append(carry[0] if isinstance(carry, tuple) else carry)
        return self.readout(torch.stack(states, dim=1))


class Leaky(nn.Module):
    """A cell of one's own: leaky integration of a rate."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs = nn.Linear(2, N)
        self.recurrent = nn.Linear(N, N, bias=False)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return 0.7 * h + 0.3 * torch.tanh(self.inputs(x) + self.recurrent(h))


class Layer(nn.Module):
    """A layer that runs its cell inside, so that the layer's output is the state."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Module()
        self.layer.cell = Leaky()
        self.layer.forward = lambda x: run(self.layer.cell, x)
        self.readout = nn.Linear(N, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.layer(x))


def run(cell: nn.Module, x: Tensor) -> Tensor:
    h, states = x.new_zeros(len(x), N), []
    for t in range(x.shape[1]):
        h = cell(x[:, t], h)
        states.append(h)
    return torch.stack(states, dim=1)


class Attention(nn.Module):
    """The paper's self-attention block and MLP (A.5.3)."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(2, N, bias=False) for _ in range(4))
        self.o = nn.Linear(N, N, bias=False)
        self.hidden = nn.Linear(N, N)
        self.state = nn.Tanh()
        self.readout = nn.Linear(N, 2)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.q(x) @ self.k(x).transpose(1, 2) / N**0.5
        attended = self.o(scores.softmax(-1) @ self.v(x))
        return self.readout(self.state(self.hidden(attended)))


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(3)
    return make().double()


def relu() -> nn.Module:
    torch.manual_seed(3)
    net = recurrent(nn.RNN)
    net.rnn = nn.RNN(2, N, nonlinearity="relu", batch_first=True).double()
    return net


def stacked() -> nn.Module:
    net = recurrent(nn.GRU)
    torch.manual_seed(3)
    net.rnn = nn.GRU(2, N, num_layers=2, batch_first=True).double()
    return net


def deep(kind: type[nn.RNNBase], **settings: object) -> nn.Module:
    """Two recurrent layers, in both directions if wanted."""
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(2, 2), kind(2, 3, 2, batch_first=True, **settings))
    return net.double()


def encoded() -> nn.Module:
    """A layer in front of the recurrent one, in a time-first model."""
    net = recurrent(nn.GRU, batch_first=False)
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(2, 2), net).double()


MODELS: dict[str, Case] = {
    "rnn": Case(lambda: recurrent(nn.RNN), sequences, "rnn"),
    "rnn-relu": Case(relu, sequences, "rnn"),
    "gru": Case(lambda: recurrent(nn.GRU), sequences, "rnn"),
    "gru-no-bias": Case(lambda: recurrent(nn.GRU, bias=False), sequences, "rnn"),
    "lstm": Case(lambda: recurrent(nn.LSTM), sequences, "rnn"),
    "encoded": Case(encoded, lambda: sequences(batch_first=False), "1.rnn"),
    "rnn-cell": Case(lambda: seeded(lambda: CellLoop(nn.RNNCell(2, N))), sequences, "cell"),
    "gru-cell": Case(lambda: seeded(lambda: CellLoop(nn.GRUCell(2, N))), sequences, "cell"),
    "lstm-cell": Case(lambda: seeded(lambda: CellLoop(nn.LSTMCell(2, N))), sequences, "cell"),
    "own-cell": Case(lambda: seeded(lambda: CellLoop(Leaky())), sequences, "cell"),
    "own-layer": Case(lambda: seeded(Layer), sequences, "layer"),
    "attention": Case(lambda: seeded(Attention), sequences, "state"),
    "mlp": Case(mlp, vectors, "3"),
}
RECURRENT = [name for name in MODELS if name not in {"attention", "mlp"}]


def lin_of(name: str, **settings: object) -> Linearization:
    case = MODELS[name]
    return linearize(case.make_model(), case.make_batch(), state=case.state, dtype=None, **settings)


def flat(operator: LinearOperator) -> Tensor:
    entries = operator.to_dense()
    return entries.reshape(entries.shape[: len(operator.shape_out)].numel(), -1)


def close(left: Tensor, right: Tensor) -> None:
    assert float((left - right).norm() / right.norm()) < 1e-8


@pytest.mark.parametrize("name", [*MODELS, "stacked"])
def test_proposition_1(name: str) -> None:
    """NTK_S = P K P*."""
    if name == "stacked":
        lin = linearize(stacked(), sequences(), state="rnn", dtype=None)
    else:
        lin = lin_of(name)
    P, K = lin.propagator, lin.parameter_operator
    assert (P @ K @ P.T).is_psd
    distance = (P @ K @ P.T).compare(lin.ntk, products=1000)
    assert distance.stderr == 0.0
    assert distance.value < 1e-8


@pytest.mark.parametrize("name", ["rnn", "rnn-relu", "gru", "lstm", "own-cell", "attention"])
def test_a_small_gradient_step_moves_the_state_as_the_kernel_says(name: str) -> None:
    """delta h = -NTK_S err to first order: the error falls linearly with the step."""
    case = MODELS[name]
    net, (x, _) = case.make_model(), case.make_batch()
    lin = linearize(net, x, state=case.state, dtype=None)
    error = torch.randn(lin.state.shape, generator=torch.Generator().manual_seed(0)).double()
    predicted = -lin.ntk.matvec(error)
    gradient = lin.jacobian.rmatvec(error)
    gaps = []
    for rate in (1e-4, 1e-5, 1e-6):
        moved = copy.deepcopy(net)
        offset = 0
        for parameter_name, p in moved.named_parameters():
            if parameter_name in lin.parameters:
                part = gradient[offset : offset + p.numel()]
                p.data.sub_(rate * part.reshape(p.shape))
                offset += p.numel()
        after = linearize(moved, x, state=case.state, dtype=None).state
        gaps.append(float(((after - lin.state) / rate - predicted).norm() / predicted.norm()))
    assert gaps[0] < 0.1
    for wide, narrow in pairwise(gaps):
        assert 8 < wide / narrow < 12.5


@pytest.mark.parametrize("name", RECURRENT)
def test_corollary_1(name: str) -> None:
    """P is lower triangular in time, and Phi(t, s) is what autograd says."""
    lin = lin_of(name)
    green = lin.propagator.green()
    eye = torch.eye(N, dtype=torch.float64)
    for t in range(T):
        close(green[:, t, t], eye.expand(B, N, N))
        assert not green[:, t, t + 1 :].any()
    # Phi(t, s) from one-step Jacobians of an independent implementation.
    if name in {"rnn", "gru", "rnn-cell", "own-cell"}:
        step = one_step(name)
        x = sequences()[0]
        for j in range(B):
            product = eye
            for t in range(1, T):
                jacobian = torch.autograd.functional.jacobian(
                    lambda h, j=j, t=t: step(x[j : j + 1, t], h[None])[0], lin.state[j, t - 1]
                )
                product = jacobian @ product
                close(green[j, t, 0], product)


def one_step(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    net = MODELS[name].make_model()
    if hasattr(net, "cell"):
        return net.cell
    return lambda x, h: net.rnn(x.unsqueeze(1), h.unsqueeze(0))[0][:, 0]


@pytest.mark.parametrize("name", RECURRENT)
def test_the_inverse_of_the_propagator_is_the_linearised_constraint(name: str) -> None:
    P = lin_of(name).propagator
    close(flat(P) @ flat(P.inverse), torch.eye(B * T * N, dtype=torch.float64))


def test_a_state_without_recurrence_has_the_identity_for_propagator() -> None:
    for name in ("attention", "mlp"):
        P = lin_of(name).propagator
        close(flat(P), torch.eye(len(flat(P)), dtype=torch.float64))


DEEP: dict[str, Case] = {
    "two-layer rnn": Case(lambda: deep(nn.RNN), sequences, "1"),
    "two-layer gru, two directions": Case(lambda: deep(nn.GRU, bidirectional=True), sequences, "1"),
    "two-layer lstm, two directions": Case(
        lambda: deep(nn.LSTM, bidirectional=True), sequences, "1"
    ),
    "two-layer lstm, two directions, projected": Case(
        lambda: deep(nn.LSTM, bidirectional=True, proj_size=2, bias=False), sequences, "1"
    ),
}


@pytest.mark.parametrize("name", [*MODELS, *DEEP])
def test_theorem_1_in_block_form(name: str) -> None:
    """NTK_S = P_core (+)_l (V_l V_l* (x) I) P_core*."""
    case = (MODELS | DEEP)[name]
    lin = linearize(case.make_model(), case.make_batch(), state=case.state, dtype=None)
    assert lin.coverage.fraction == 1.0
    P, core = lin.core_propagator, lin.block_core
    assert core.is_psd
    assert (P @ core @ P.T).compare(lin.ntk, products=1000).value < 1e-8


def test_theorem_1_in_summed_form_where_its_sites_share_a_propagator() -> None:
    """Both weights of a plain RNN add to one pre-activation: then P (G (x) I) P* is exact."""
    for name in ("rnn", "rnn-relu", "rnn-cell"):
        lin = lin_of(name)
        first, second = lin.site_propagators
        close(flat(first), flat(second))
        assert (first @ lin.core @ first.T).compare(lin.ntk, products=1000).value < 1e-8


def test_summed_form_is_no_identity_for_a_gru() -> None:
    lin = lin_of("gru-no-bias")
    first, second = lin.site_propagators
    V = Dense(lin.site_activity)
    gates = Identity((3 * N,), torch.float64)
    for P in (first, second):
        summed = P @ TensorProduct(V @ V.T, gates) @ P.T
        assert 1e-3 < summed.compare(lin.ntk, products=1000).value < 1


@pytest.mark.parametrize("name", MODELS)
def test_corollary_2(name: str) -> None:
    """<NTK_S err, err> = ||(V* (x) I) adj||^2, site by site, with adj = P_l* err."""
    lin = lin_of(name)
    error = torch.randn(lin.state.shape, generator=torch.Generator().manual_seed(0)).double()
    rate = (lin.ntk.matvec(error) * error).sum()
    filtered = [
        torch.einsum("btm,btq->mq", site.activity, P.rmatvec(error)).square().sum()
        for site, P in zip(lin.sites, lin.site_propagators, strict=True)
    ]
    torch.testing.assert_close(rate, torch.stack(filtered).sum(), rtol=1e-8, atol=0)


@pytest.mark.parametrize("name", ["rnn", "gru", "lstm", "attention"])
def test_equation_15_and_all_seven_reductions(name: str) -> None:
    lin = lin_of(name)
    J = flat(lin.jacobian)
    A = (J @ J.T).reshape(B, T, N, B, T, N)
    for count in (1, 2, 3):
        for axes in combinations(range(3), count):
            inputs = [axis if axis in axes else 3 + axis for axis in range(3)]
            kept = [axis for axis in range(3) if axis not in axes]
            wanted = torch.einsum(A, [0, 1, 2, *inputs], [*kept, *(3 + axis for axis in kept)])
            close(lin.ntk.partial_trace(axes).to_dense(), wanted)
    close(lin.ntk.partial_average(2).to_dense(), torch.einsum("btnBTn->btBT", A) / N)
    close(lin.ntk.partial_average((0, 1)).to_dense(), torch.einsum("btnbtN->nN", A) / (B * T))


@pytest.mark.parametrize("name", ["rnn", "gru", "lstm", "attention", "mlp"])
def test_proposition_2_bounds_the_rank_of_every_correction(name: str) -> None:
    lin = lin_of(name)
    temporal = lin.ntk.partial_average(2).to_dense()
    k = lin.state.shape[:2].numel()
    bound = min(
        int(torch.linalg.matrix_rank(temporal.reshape(k, k), hermitian=True, rtol=1e-10)),
        int(torch.linalg.matrix_rank(lin.ntk.partial_average((0, 1)).to_dense(), rtol=1e-10)),
    )
    errors = torch.randn(5, *lin.state.shape, generator=torch.Generator().manual_seed(0)).double()
    corrections = lin.ntk.matmat(errors).flatten(1, 2)
    assert all(int(torch.linalg.matrix_rank(c, rtol=1e-10)) <= bound for c in corrections)


def test_proposition_2_is_met_with_equality_in_the_separable_case() -> None:
    """A linear layer of rank-2 inputs: NTK = V V* (x) I, every random correction has rank 2."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6, bias=False), nn.Linear(6, 1)).double()
    x = torch.randn(12, 2).double() @ torch.randn(2, 5).double()
    lin = linearize(net, x, state="0", dtype=None)
    assert lin.core.compare(lin.ntk, products=1000).value < 1e-8
    error = torch.randn(lin.state.shape).double()
    correction = lin.ntk.matvec(error).flatten(0, 1)
    assert int(torch.linalg.matrix_rank(correction, rtol=1e-10)) == 2
    assert int(torch.linalg.matrix_rank(lin.core.partial_trace(2).to_dense()[:, 0, :, 0])) == 2


@pytest.mark.parametrize("kept", ["*weight_ih*", "*weight_hh*", "*bias*"])
def test_freezing_parameters_changes_k_and_not_p(kept: str) -> None:
    whole, part = lin_of("gru"), lin_of("gru", parameters=kept)
    close(flat(part.propagator), flat(whole.propagator))
    assert part.parameter_operator.compare(whole.parameter_operator, products=1000).value > 0.01
    P, K = part.propagator, part.parameter_operator
    assert (P @ K @ P.T).compare(part.ntk, products=1000).value < 1e-8


def test_freezing_w_leaves_xx_and_freezing_w_in_leaves_hh() -> None:
    for kept, activity in (("*weight_ih*", "x"), ("*weight_hh*", "h")):
        lin = linearize(recurrent(nn.RNN, bias=False), sequences(), dtype=None, parameters=kept)
        h = torch.cat([torch.zeros_like(lin.state[:, :1]), lin.state[:, :-1]], dim=1)
        V = Dense(sequences()[0] if activity == "x" else h)
        wanted = TensorProduct(V @ V.T, Identity((N,), torch.float64))
        assert lin.core.compare(wanted, products=1000).value < 1e-8


def test_perturbations_of_a_state_in_two_directions_are_refused() -> None:
    net = nn.Sequential(nn.GRU(2, 3, batch_first=True, bidirectional=True)).double()
    lin = linearize(net, sequences()[0], state="0", dtype=None)
    with pytest.raises(ValueError, match="two directions"):
        lin.propagator.matvec(torch.zeros_like(lin.state))


def test_a_state_behind_no_weight_site_has_no_block_core() -> None:
    lin = linearize(nn.Sequential(nn.LayerNorm(2)).double(), sequences()[0], state="0", dtype=None)
    with pytest.raises(ValueError, match="no weight site is known"):
        lin.block_core  # noqa: B018


def test_green_form_is_for_small_cases() -> None:
    P = Propagator(Identity((200, 50, 40)), Identity((200, 50, 40)))
    with pytest.raises(ValueError, match="entries, more than"):
        P.green()
    with pytest.raises(ValueError, match="from 0 to 49, got 50"):
        P.state_transition(50)


@dataclass(frozen=True)
class _Brute:
    """Derivatives of a plain GRU step by step, by autograd over an unrolled forward pass."""

    h: Tensor
    sweep: Tensor


def brute() -> _Brute:
    net, x = recurrent(nn.GRU), sequences()[0]

    def perturbed(u: Tensor) -> Tensor:
        h, states = x.new_zeros(B, N), []
        for t in range(T):
            h = net.rnn(x[:, t : t + 1], h.unsqueeze(0))[0][:, 0] + u[:, t]
            states.append(h)
        return torch.stack(states, dim=1)

    zero = torch.zeros(B, T, N, dtype=torch.float64)
    return _Brute(perturbed(zero), torch.autograd.functional.jacobian(perturbed, zero))


class TestJacobian(OperatorSuite):
    dtypes = (torch.float64,)

    def make(self, dtype: torch.dtype) -> LinearOperator:
        return lin_of("gru").jacobian

    def entries(self, dtype: torch.dtype) -> Tensor:
        net, x = recurrent(nn.GRU), sequences()[0]
        names = [name for name, _ in net.rnn.named_parameters()]

        def state(*theta: Tensor) -> Tensor:
            return torch.func.functional_call(net.rnn, dict(zip(names, theta, strict=True)), x)[0]

        parts = torch.autograd.functional.jacobian(
            state, tuple(p.detach() for p in net.rnn.parameters())
        )
        return torch.cat([part.flatten(3) for part in parts], dim=3)


class TestPropagator(OperatorSuite):
    dtypes = (torch.float64,)

    def make(self, dtype: torch.dtype) -> LinearOperator:
        return lin_of("gru").propagator

    def entries(self, dtype: torch.dtype) -> Tensor:
        return brute().sweep


class TestInversePropagator(OperatorSuite):
    dtypes = (torch.float64,)

    def make(self, dtype: torch.dtype) -> LinearOperator:
        return lin_of("gru").propagator.inverse

    def entries(self, dtype: torch.dtype) -> Tensor:
        k = B * T * N
        return torch.linalg.inv(brute().sweep.reshape(k, k)).reshape(B, T, N, B, T, N)


class TestParameterOperator(OperatorSuite):
    dtypes = (torch.float64,)

    def make(self, dtype: torch.dtype) -> LinearOperator:
        return lin_of("gru").parameter_operator

    def entries(self, dtype: torch.dtype) -> Tensor:
        k = B * T * N
        J = TestJacobian().entries(dtype).reshape(k, -1)
        direct = torch.linalg.inv(brute().sweep.reshape(k, k)) @ J
        return (direct @ direct.T).reshape(B, T, N, B, T, N)
