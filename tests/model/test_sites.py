"""Weight sites against hand-unrolled networks, and what they cover."""

import pytest
import torch
from conftest import mlp, recurrent, sequences, vectors
from support.dense import rows_of_jacobian, unroll, unrolled_activity
from torch import Tensor, nn

from ntk_monitor import linearize
from ntk_monitor.model import Linearization

KINDS = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}


def double(module: nn.Module, batch: object, **settings: object) -> Linearization:
    return linearize(module, batch, dtype=torch.float64, **settings)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_activity_is_that_of_the_unrolled_network(
    kind: str, *, batch_first: bool, bias: bool
) -> None:
    net = recurrent(KINDS[kind], batch_first=batch_first, bias=bias)
    lin = double(net, sequences(batch_first=batch_first))
    x = sequences()[0]
    torch.testing.assert_close(lin.site_activity, unrolled_activity(net, x).detach())
    torch.testing.assert_close(lin.state, unroll(net.rnn, x).detach())
    assert lin.coverage.fraction == 1.0
    assert [site.name for site in lin.sites] == ["rnn.weight_ih_l0", "rnn.weight_hh_l0"]


@pytest.mark.parametrize("kind", KINDS)
def test_one_sequence_time_first(kind: str) -> None:
    net = recurrent(KINDS[kind], batch_first=False)
    x = sequences()[0][:1]
    lin = double(net, x.transpose(0, 1))
    torch.testing.assert_close(lin.site_activity, unrolled_activity(net, x).detach())
    torch.testing.assert_close(lin.state, unroll(net.rnn, x).detach())


@pytest.mark.parametrize("kind", KINDS)
def test_initial_state_is_part_of_the_activity(kind: str) -> None:
    class Started(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = KINDS[kind](2, 6, batch_first=True).double()

        def forward(self, x: Tensor) -> Tensor:
            h = torch.full((1, len(x), 6), 0.5, dtype=x.dtype)
            return self.rnn(x, (h, h) if kind == "lstm" else h)[0]

    lin = double(Started(), sequences()[0])
    hidden = lin.sites[1].activity
    torch.testing.assert_close(hidden[:, 0, :6], torch.full((4, 6), 0.5, dtype=torch.float64))
    torch.testing.assert_close(hidden[:, 1:, :6], lin.state[:, :-1])


def test_theorem_1_site_by_site() -> None:
    """NTK_S = sum_l P_l (V_l V_l* (x) I) P_l*, with P_l = dh/dQ_l from an unrolled RNN."""
    net = recurrent(nn.RNN)
    x = sequences()[0]
    lin = double(net, x)
    p = torch.zeros(4, 5, 6, dtype=torch.float64, requires_grad=True)
    h, states = torch.zeros(4, 6, dtype=torch.float64), []
    rnn = net.rnn
    for t in range(5):
        q = x[:, t] @ rnn.weight_ih_l0.T + rnn.bias_ih_l0 + h @ rnn.weight_hh_l0.T + rnn.bias_hh_l0
        h = torch.tanh(q + p[:, t])
        states.append(h)
    # Both sites add to the same pre-activation, so that P_l is one and the same here.
    P = rows_of_jacobian(torch.stack(states, 1), [p]).reshape(120, 20, 6)
    total = torch.zeros(120, 120, dtype=torch.float64)
    for site in lin.sites:
        V = site.activity.flatten(0, 1)
        total += torch.einsum("ikn,km,lm,jln->ij", P, V, V, P)
    ntk = lin.ntk.to_dense().reshape(120, 120)
    torch.testing.assert_close(total, ntk)


def test_frozen_weights_leave_the_core() -> None:
    x, _ = sequences()
    net = recurrent(nn.GRU)
    for name in ("weight_ih_l0", "bias_ih_l0", "bias_hh_l0"):
        getattr(net.rnn, name).requires_grad_(False)
    lin = double(net, x)
    H = torch.cat([torch.zeros_like(lin.state[:, :1]), lin.state[:, :-1]], 1)
    torch.testing.assert_close(lin.site_activity, H)
    assert lin.parameters == ("rnn.weight_hh_l0",)

    net = recurrent(nn.GRU)
    lin = double(net, x, parameters="*weight_ih*")
    torch.testing.assert_close(lin.site_activity, x)


def test_frozen_bias_and_frozen_weight_alone() -> None:
    x, _ = vectors()
    ones = torch.ones(12, 1, 1, dtype=torch.float64)
    net = mlp()
    torch.testing.assert_close(
        double(net, x, state="1", parameters="0.weight").site_activity, x.unsqueeze(1)
    )
    only_bias = double(net, x, state="1", parameters="0.bias")
    torch.testing.assert_close(only_bias.site_activity, ones)
    assert only_bias.sites[0].name == "0.bias"


def test_weights_behind_the_state_do_not_count() -> None:
    lin = double(recurrent(nn.GRU), sequences())
    assert not any(name.startswith("readout") for name in lin.parameters)


def test_a_tied_weight_is_a_site_per_use_and_the_jacobian_has_the_cross_term() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first = nn.Linear(3, 3).double()
            self.second = nn.Linear(3, 3).double()
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.second(torch.tanh(self.first(x)))

    net, (x, _) = Tied(), vectors()
    lin = double(net, x, state="second")
    assert [site.parameters for site in lin.sites] == [
        ("first.weight", "first.bias"),
        ("first.weight", "second.bias"),
    ]
    J = rows_of_jacobian(net(x), [net.first.weight, net.first.bias, net.second.bias])
    torch.testing.assert_close(lin.jacobian.to_dense().reshape(36, -1), J)


def test_uncovered_layers_are_named_with_the_reason() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 2)).double()
    lin = double(net, vectors()[0])
    assert lin.coverage.fraction == pytest.approx(16 / 24)
    assert set(lin.coverage.left_out) == {"1.weight", "1.bias"}
    assert "LayerNorm" in lin.coverage.left_out["1.weight"]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("kind", "projection"), [("rnn", 0), ("gru", 0), ("lstm", 0), ("lstm", 4)])
def test_layers_and_directions_see_what_separate_layers_see(
    kind: str, projection: int, *, bidirectional: bool, bias: bool
) -> None:
    """Two layers against one-layer copies, each direction a layer of its own on a reversed input.

    The model is in float32 and the activity in float64, that of the weights as the probe holds
    them.
    """
    torch.manual_seed(0)
    settings = {"batch_first": True, "bias": bias, "proj_size": projection}
    settings = {k: v for k, v in settings.items() if k != "proj_size" or v}
    rnn = KINDS[kind](2, 6, 2, bidirectional=bidirectional, dropout=0.5, **settings)
    net, x = nn.Sequential(rnn), sequences()[0]
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(parameter.half())  # the same number in float32 and float64
    lin = double(net, x, state="0")
    activity = {site.name: site.activity for site in lin.sites}
    ones = [torch.ones_like(x[..., :1])] if bias else []
    inputs = x
    for layer in range(2):
        outputs = []
        for suffix in ("", "_reverse")[: 1 + bidirectional]:
            end = f"_l{layer}{suffix}"
            single = KINDS[kind](inputs.shape[2], 6, **settings).double()
            single.load_state_dict(
                {k.removesuffix(end) + "_l0": v for k, v in rnn.state_dict().items()
                 if k.endswith(end) and ("reverse" in k) == bool(suffix)}
            )  # fmt: skip
            states = single(inputs.flip(1) if suffix else inputs)[0].detach()
            previous = torch.cat([torch.zeros_like(states[:, :1]), states[:, :-1]], dim=1)
            if suffix:
                states, previous = states.flip(1), previous.flip(1)
            for name, seen in (("weight_ih", inputs), ("weight_hh", previous)):
                wanted = torch.cat([seen, *ones], dim=-1)
                torch.testing.assert_close(activity.pop(f"0.{name}{end}"), wanted)
            if projection:
                gone = activity.pop(f"0.weight_hr{end}")
                projected = gone @ rnn.get_parameter(f"weight_hr{end}").double().T
                torch.testing.assert_close(projected, states)
            outputs.append(states)
        inputs = torch.cat(outputs, dim=2)
    assert not activity
    assert lin.coverage.fraction == 1.0


def test_a_site_on_other_rows_is_left_out() -> None:
    class Conditioned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.start = nn.Linear(2, 6)
            self.rnn = nn.GRU(2, 6, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(x, self.start(x[:, 0]).unsqueeze(0))[0]

    lin = double(Conditioned().double(), sequences()[0])
    assert set(lin.coverage.left_out) == {"start.weight", "start.bias"}
    assert "rows (4,)" in lin.coverage.left_out["start.weight"]
    assert lin.coverage.fraction < 1


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_a_layer_of_which_only_the_last_state_goes_on_is_outside_not_missed(
    kind: type[nn.RNNBase],
) -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.hidden = kind(2, 4, batch_first=True), nn.Linear(4, 3)
            self.readout = nn.Linear(3, 1)

        def forward(self, x: Tensor) -> Tensor:
            last = self.rnn(x)[1]
            last = last if isinstance(last, Tensor) else last[0]
            return self.readout(torch.tanh(self.hidden(last[-1])))

    lin = linearize(Last(), torch.randn(3, 5, 2), state="hidden")
    assert [site.name for site in lin.sites] == ["hidden.weight"]
    assert lin.coverage.missed == ()
    assert "its rows (3, 5) are not the state's (3, 1)" in lin.coverage.left_out["rnn.weight_hh_l0"]


def test_an_embedding_that_is_called_at_each_step_is_one_site_over_all_its_entries() -> None:
    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.cell = nn.Embedding(9, 4), nn.GRUCell(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            h, states = self.words.weight.new_zeros(len(x), 5), []
            for word in x.unbind(1):
                h = self.cell(self.words(word), h)
                states.append(h)
            return torch.stack(states, 1)

    x = torch.tensor([[3, 1, 1], [0, 3, 8], [3, 1, 7]])
    sites = {site.name: site for site in linearize(Decoder().double(), x, dtype=None).sites}
    V = sites["words.weight"].activity
    assert V.shape == (3, 3, 5)
    assert torch.equal(V, nn.functional.one_hot(x, 9).double()[..., [0, 1, 3, 7, 8]])
