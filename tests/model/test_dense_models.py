"""Whole models of the kinds that people have, against dense truth in float64."""

import pytest
import torch
from conftest import recurrent
from support.dense import rows_of_jacobian
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from zoo.layers import Raw, gated, packed, reals, vanilla

from ntk_monitor import linearize, probe
from ntk_monitor.model import Linearization

torchdiffeq = pytest.importorskip("torchdiffeq")
B, T, N = 3, 4, 5


def close(left: Tensor, right: Tensor, limit: float = 1e-8) -> None:
    assert float((left - right).norm() / right.norm()) < limit


def dense(lin: Linearization) -> Tensor:
    return lin.jacobian.to_dense().flatten(0, 2)


def expected(module: nn.Module, lin: Linearization, h: Tensor) -> Tensor:
    return rows_of_jacobian(h, [module.get_parameter(n) for n in lin.parameters])


def core(activity: Tensor) -> Tensor:
    V = activity.flatten(0, 1)
    return V @ V.T


def ones(x: Tensor) -> Tensor:
    return torch.ones_like(x[..., :1])


def test_two_layer_lstm_of_two_directions_with_lengths() -> None:
    """Every padded sequence is what the same layer sees of the sequence alone."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(N, 3, 2, batch_first=True, bidirectional=True)
            self.readout = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.readout(packed(self.rnn, x) if len(x) > 1 else self.rnn(x)[0])

    torch.manual_seed(0)
    net, x = Net().double(), reals(B, T, N)
    lin = linearize(net, x, dtype=None)
    close(dense(lin), expected(net, lin, packed(net.rnn, x)))
    assert lin.valid is not None
    assert lin.valid.sum(1).tolist() == [2, T, 3]
    for i, length in enumerate([2, T, 3]):
        alone = linearize(net, x[i : i + 1, :length], dtype=None)
        torch.testing.assert_close(lin.site_activity[i, :length], alone.site_activity[0])
        torch.testing.assert_close(lin.state[i, :length], alone.state[0])
        assert not lin.site_activity[i, length:].any()
        assert not lin.state[i, length:].any()


def test_padding_by_a_mask_leaves_every_number_as_without_it() -> None:
    """Padded positions leave k: as if each sequence had its own length."""
    torch.manual_seed(0)
    net = recurrent(nn.GRU)
    x, y = reals(2, T, 2), reals(2, T, 2)
    lengths = torch.tensor([T, 2])
    masked = probe(
        net, (x, y), dtype=None, mask_fn=lambda _: lengths, method="exact", learning_rate=0.1
    )
    parts = [linearize(net, x[i : i + 1, :n], dtype=None) for i, n in enumerate(lengths.tolist())]
    J = torch.cat([dense(part) for part in parts])
    V = torch.cat([part.site_activity[0] for part in parts])
    A = (J @ J.T).reshape(6, 6, 6, 6)
    temporal = torch.einsum("anbn->ab", A) / 6
    assert masked.trace.value == pytest.approx(float(J.square().sum()))
    assert masked.frobenius_norm.value == pytest.approx(float((J @ J.T).norm()))
    G = V @ V.T
    cosine = float((temporal * G).sum() / (temporal.norm() * G.norm()))
    assert masked.temporal_core_cosine.value == pytest.approx(cosine)
    rank = float(temporal.trace() ** 2 / temporal.square().sum())
    assert masked.temporal_effective_rank.value == pytest.approx(rank)
    rows = torch.cat([y[0], y[1, :2]])
    sigma = torch.linalg.svdvals(rows - rows.mean(0))
    assert [m.singular_value for m in masked.target_modes] == pytest.approx(sigma.tolist())
    mask = torch.arange(T) < lengths.unsqueeze(1)
    named = {"input": x, "labels": y, "attention_mask": mask.long()}
    again = probe(
        net,
        named,
        forward_fn=lambda m, b: m(b["input"]),
        dtype=None,
        method="exact",
        learning_rate=0.1,
    )
    assert again.trace == masked.trace
    assert [m.steps_to_learn for m in again.target_modes] == [
        m.steps_to_learn for m in masked.target_modes
    ]
    with pytest.raises(ValueError, match=r"rows \(B, T\) = \(2, 4\), or be lengths"):
        probe(net, (x, y), mask_fn=lambda _: torch.ones(2, 3))


def test_cnn_with_batch_norm() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Tanh(), nn.Conv2d(3, 4, 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(48, 2),
    ).double()  # fmt: skip
    net[1].running_var.fill_(0.7)
    x = reals(B, 2, 4, 3)
    lin = linearize(net, x, state="4", dtype=None)
    net.eval()
    h = net[:5](x)
    close(dense(lin), expected(net, lin, h.flatten(2).transpose(1, 2)))
    first = F.unfold(x, 3, padding=1).transpose(1, 2)
    second = net[:3](x).detach().flatten(2).transpose(1, 2)
    V = torch.cat([first, ones(first), second, ones(first)], dim=2)
    close(core(lin.site_activity), core(V))
    assert set(lin.coverage.left_out) == {"1.weight", "1.bias"}


def test_language_model_with_a_tied_head() -> None:
    """The weight acts before the state, as an embedding, and after it, as the readout."""
    embedding, hidden, head = nn.Embedding(7, N), nn.Linear(N, N), nn.Linear(N, 7, bias=False)
    head.weight = embedding.weight
    torch.manual_seed(0)
    net = nn.Sequential(embedding, hidden, nn.Tanh(), head).double()
    x = torch.randint(7, (B, T))
    lin = linearize(net, x, dtype=None)
    assert lin.modules == ("2",)
    close(dense(lin), expected(net, lin, net[:3](x)))
    embedded = embedding(x).detach()
    V = torch.cat([F.one_hot(x, 7).double(), embedded, ones(embedded)], dim=2)
    close(core(lin.site_activity), core(V))


def test_a_language_model_has_modes_over_the_classes_present() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(50, N), nn.Tanh(), nn.Linear(N, 50)).double()
    x = torch.randint(50, (B, T))
    labels = x.roll(-1, dims=1)
    labels[:, -1] = -100
    found = probe(net, (x, labels), dtype=None, modes=3, learning_rate=0.1, method="exact")
    counted = labels[labels >= 0]
    sizes = torch.bincount(counted).double()
    sigma = (sizes * (1 - sizes / len(counted))).sqrt().sort(descending=True)[0][:3]
    assert [m.singular_value for m in found.target_modes] == pytest.approx(sigma.tolist())
    chances = net(x).detach().softmax(-1)[labels >= 0]
    largest = int(sizes.argmax())
    inside = counted == largest
    learned = chances[inside, largest].mean() - chances[~inside, largest].mean()
    assert found.target_modes[0].learned == pytest.approx(float(learned))
    assert found.target_patterns[:, :, -1].abs().max() == 0


@pytest.mark.parametrize("kind", ["rnn", "gru"])
def test_cells_written_by_hand_are_the_layers_of_torch(kind: str) -> None:
    """The same weights in another arrangement: the same kernel, the same core."""
    torch.manual_seed(0)
    x = reals(B, T, N)
    if kind == "rnn":
        layer = nn.RNN(N, N, batch_first=True).double()
        hand = Raw(vanilla, W_in=(N, N), W=(N, N), b=(N,)).double()
        with torch.no_grad():
            hand.W_in.copy_(layer.weight_ih_l0.T)
            hand.W.copy_(layer.weight_hh_l0.T)
            hand.b.copy_(layer.bias_ih_l0 + layer.bias_hh_l0)
        layer.bias_hh_l0.requires_grad_(requires_grad=False)
        left = linearize(nn.Sequential(hand), x, state="0", dtype=None)
        right = linearize(nn.Sequential(layer), x, state="0", dtype=None)
        torch.testing.assert_close(left.state, right.state)
        close(dense(left) @ dense(left).T, dense(right) @ dense(right).T)
        close(core(left.site_activity), core(right.site_activity))
        return
    hand = nn.Sequential(Raw(gated, W_zr=(2 * N, 2 * N), b_zr=(2 * N,), W_n=(N, 2 * N))).double()
    lin = linearize(hand, x, state="0", dtype=None)
    close(dense(lin), expected(hand, lin, hand(x)))
    h = lin.state
    before = torch.cat([torch.zeros_like(h[:, :1]), h[:, :-1]], dim=1)
    both = torch.cat([x, before], dim=2)
    _, r = torch.sigmoid(F.linear(both, hand[0].W_zr, hand[0].b_zr)).detach().chunk(2, dim=2)
    V = torch.cat([both, ones(x), x, r * before], dim=2)
    close(core(lin.site_activity), core(V))


def test_attention_and_mlp() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), nn.Linear(6, 2)
    ).double()
    x, layer = reals(B, T, 6), net[0]
    lin = linearize(net, x, dtype=None)
    net.eval()
    close(dense(lin), expected(net, lin, layer(x)))
    q, k, v = F.linear(x, layer.self_attn.in_proj_weight, layer.self_attn.in_proj_bias).chunk(3, 2)
    q, k, v = (t.unflatten(2, (2, 3)).transpose(1, 2) for t in (q, k, v))
    mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    attended = layer.norm1(x + layer.self_attn.out_proj(mixed))
    inner = torch.relu(layer.linear1(attended))
    one = ones(x)
    V = torch.cat([x, one, mixed, one, attended, one, inner, one], dim=2).detach()
    close(core(lin.site_activity), core(V))


class FixedPoint(nn.Module):
    """h = tanh(W h + U x): solved without a graph, differentiated implicitly."""

    def __init__(self) -> None:
        super().__init__()
        self.W, self.U = nn.Linear(N, N, bias=False), nn.Linear(N, N)
        with torch.no_grad():
            self.W.weight.mul_(0.5)

    def step(self, h: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(self.W(h) + self.U(x))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            h = torch.zeros_like(x)
            for _ in range(100):
                h = self.step(h, x)
        h = self.step(h, x)
        if h.requires_grad:
            given = h.detach().requires_grad_()
            again = self.step(given, x)

            def solve(g: Tensor) -> Tensor:
                y = g
                for _ in range(100):
                    y = torch.autograd.grad(again, given, y, retain_graph=True)[0] + g
                return y

            h.register_hook(solve)
        return h


def test_fixed_point() -> None:
    """F(h, x, theta) = h - f(h, x, theta) = 0: J = (I - D_h f)^-1 D_theta f, V = [h, x, 1]."""
    torch.manual_seed(0)
    net = nn.Sequential(FixedPoint(), nn.Linear(N, 2)).double()
    x, layer = reals(B, N), net[0]
    lin = linearize(net, x, dtype=None, method="finite-difference")
    h = lin.state[:, 0].requires_grad_()
    f = layer.step(h, x)
    step = rows_of_jacobian(f, [layer.W.weight, layer.U.weight, layer.U.bias])
    D = rows_of_jacobian(f, [h])
    wanted = torch.linalg.solve(torch.eye(B * N).double() - D, step)
    close(lin.jacobian.T.to_dense().flatten(1).T, wanted)
    close(dense(lin), wanted, 1e-6)
    close(core(lin.site_activity), core(torch.cat([h, x, ones(x)], 1).detach().unsqueeze(1)))
    assert lin.coverage.fraction == 1.0
    found = probe(net, x, dtype=None, max_products=16, tolerance=0.5)
    assert found.method == "finite-difference"
    assert found.adjoint_error < 1e-5


class Flow(nn.Module):
    """dh/dt = tanh(W h + b), seen at some times."""

    def __init__(self, times: Tensor, *, last: bool) -> None:
        super().__init__()
        self.field, self.last = nn.Linear(N, N), last
        self.register_buffer("times", times)

    def forward(self, x: Tensor) -> Tensor:
        path = torchdiffeq.odeint(
            lambda _, h: torch.tanh(self.field(h)), x, self.times, method="rk4"
        )
        return path[-1] if self.last else path.transpose(0, 1)


@pytest.mark.parametrize("last", [True, False])
def test_differential_equation(*, last: bool) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(Flow(torch.linspace(0, 1, T).double(), last=last), nn.Linear(N, 2)).double()
    x = reals(B, N)
    lin = linearize(net, x, dtype=None)
    h = net[0](x)
    close(dense(lin), expected(net, lin, h))
    assert lin.coverage.fraction == 1.0
    assert len(lin.sites) == (4 * (T - 1) if last else 4)
    if not last:
        first = lin.sites[0].activity  # the first of four evaluations is at the state itself
        torch.testing.assert_close(first[:, 1:, :N], h[:, :-1].detach())
        assert not first[:, 0].any()
    # A weight used twelve times: its sites together give the Jacobian, cross terms and all.
    joined = sum(
        torch.einsum(
            "ikq,km->iqm",
            P.to_dense().flatten(0, 2).reshape(lin.state.numel(), -1, N),
            site.activity.flatten(0, 1),
        ).flatten(1)
        for P, site in zip(lin.site_propagators, lin.sites, strict=True)
    )
    close(joined @ joined.T, dense(lin) @ dense(lin).T)


def test_several_modules_side_by_side() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(N, 3), nn.Tanh(), nn.Linear(3, 4), nn.Tanh()).double()
    x = reals(B, T, N)
    both = linearize(net, x, state=["1", "3"], dtype=None)
    parts = [linearize(net, x, state=path, dtype=None) for path in ("1", "3")]
    torch.testing.assert_close(both.state, torch.cat([p.state for p in parts], dim=2))
    h = torch.cat([net[:2](x), net(x)], dim=2)
    close(dense(both), expected(net, both, h))
    y = both.jacobian.rmatvec(reals(B, T, 7))
    assert y.isfinite().all()
    with pytest.raises(ValueError, match=r"must agree in trials and time steps"):
        linearize(nn.Sequential(net, nn.Flatten()), x, state=["0", "1"])


def test_a_forward_pass_that_does_not_repeat_itself_is_refused() -> None:
    class Counting(nn.Linear):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            Counting.calls += 1
            return super().forward(x) * Counting.calls

    with pytest.raises(ValueError, match=r"differs by .* of its size between two forward passes"):
        linearize(nn.Sequential(Counting(N, 3)), reals(B, N), state="0")

    class Ragged(nn.Linear):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            Ragged.calls += 1
            return super().forward(x)[:, : Ragged.calls]

    with pytest.raises(ValueError, match=r"shape \(3, 1, 3\) in one .* and \(3, 2, 3\)"):
        linearize(nn.Sequential(Ragged(N, 3)), reals(B, T, N), state="0")


def test_noise_of_torch_is_the_same_in_every_pass() -> None:
    class Noisy(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(super().forward(x) + torch.randn(3))

    net = nn.Sequential(Noisy(N, 3), nn.Linear(3, 2))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    found = probe(net, reals(B, N).float())
    assert found.is_finite
    assert found.adjoint_error < 1e-5
    assert torch.equal(torch.get_rng_state(), before)
