"""The GRU and its two initialisations."""

import pytest
import torch
from torch import nn

from ntk_monitor.models import GRURegression, plant_fixed_points_, xavier_


def planted(count: int = 3, radius: float = 0.2) -> tuple[nn.GRU, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    rnn = nn.GRU(3, 32, batch_first=True).double()
    xavier_(rnn, generator=generator)
    return rnn, plant_fixed_points_(rnn, count, radius, generator)


def step(rnn: nn.GRU, h: torch.Tensor) -> torch.Tensor:
    x = torch.zeros(len(h), 1, 3, dtype=h.dtype)
    return rnn(x, h.unsqueeze(0))[1][0]


def test_planted_states_of_both_signs_are_fixed_without_input() -> None:
    rnn, states = planted()
    for sign in (1, -1):
        with torch.no_grad():
            torch.testing.assert_close(step(rnn, sign * states), sign * states)
    gram = states @ states.T
    torch.testing.assert_close(gram, torch.diag(gram.diagonal()))
    root_mean_square = states.square().mean(1).sqrt()
    torch.testing.assert_close(root_mean_square, torch.full((3,), 0.2, dtype=torch.float64))


def test_activity_near_planted_states_persists_and_zero_repels() -> None:
    rnn, states = planted()
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        noise = torch.randn(states.shape, generator=generator, dtype=torch.float64)
        near, tiny = states + 0.01 * noise, 0.01 * states
        for _ in range(1500):
            near, tiny = step(rnn, near), step(rnn, tiny)
    assert float(near.norm()) > 0.5 * float(states.norm())
    assert float(tiny.norm()) > 0.2 * float(states.norm())


def test_xavier_network_forgets_and_planted_network_holds() -> None:
    generator = torch.Generator().manual_seed(0)
    forgetful = nn.GRU(3, 32, batch_first=True).double()
    xavier_(forgetful, generator=generator)
    holding, states = planted()
    with torch.no_grad():
        h = k = states
        for _ in range(60):
            h, k = step(forgetful, h), step(holding, k)
    assert float(h.norm()) < 1e-3 * float(states.norm())
    assert float(k.norm()) > 0.9 * float(states.norm())


def test_xavier_scales_each_gate_and_zeroes_biases() -> None:
    rnn = nn.GRU(100, 200)
    xavier_(rnn, gain=2.0, generator=torch.Generator().manual_seed(0))
    for gate in rnn.weight_hh_l0.chunk(3):
        assert float(gate.detach().std()) == pytest.approx(2 * (2 / 400) ** 0.5, rel=0.05)
    for gate in rnn.weight_ih_l0.chunk(3):
        assert float(gate.detach().std()) == pytest.approx(2 * (2 / 300) ** 0.5, rel=0.05)
    assert not rnn.bias_hh_l0.any()


def test_the_module_takes_its_optimizer_as_an_argument() -> None:
    module = GRURegression(optimizer=lambda p: torch.optim.Adam(p, lr=0.3))
    optimizer = module.configure_optimizers()
    assert isinstance(optimizer, torch.optim.Adam)
    assert len(optimizer.param_groups[0]["params"]) == 6
    assert module(torch.zeros(2, 5, 3)).shape == (2, 5, 3)
    assert GRURegression().configure_optimizers().param_groups[0]["lr"] == 0.05


def test_what_cannot_be_planted_is_refused() -> None:
    with pytest.raises(ValueError, match="one-layer"):
        plant_fixed_points_(nn.GRU(2, 4, num_layers=2))
    with pytest.raises(ValueError, match=r"count must lie in \[1, hidden_size=4\], got 5"):
        plant_fixed_points_(nn.GRU(2, 4), count=5)
    with pytest.raises(ValueError, match="radius must lie"):
        plant_fixed_points_(nn.GRU(2, 4), radius=1.0)
