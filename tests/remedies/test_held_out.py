"""Data that no trial trains on."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from ntk_monitor.remedies.held_out import BATCHES, losses, of_validation, set_apart


def rows(batches: Any) -> list[float]:
    return [float(v) for (x,) in batches for v in x.flatten()]


def loader(samples: int, **settings: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.arange(float(samples))), **settings)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("samples", [10, 64, 1000])
def test_samples_of_a_loader_are_split(samples: int, shuffle: bool) -> None:
    held, rest = set_apart(loader(samples, batch_size=8, shuffle=shuffle))
    assert held.apart
    own, others = rows(held.batches), rows(rest)
    assert len(own) == min(BATCHES * 8, samples // 5)
    assert sorted(own + others) == list(range(samples))
    assert sorted(others + own) == sorted(rows(rest) + own)  # in every round
    assert (others == sorted(others)) == (not shuffle)


def test_what_has_no_samples_of_its_own_loses_its_first_batches() -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter([(torch.tensor([float(i)]),) for i in range(12)])

    batches = [(torch.tensor([float(i)]),) for i in range(40)]
    for data in (DataLoader(Stream(), batch_size=None), batches):
        held, rest = set_apart(data)
        assert held.apart
        assert rows(held.batches) == [0.0, 1.0, 2.0, 3.0]
        assert rows(rest)[:2] == rows(rest)[:2] == [4.0, 5.0]


def test_of_one_batch_nothing_can_be_held_out() -> None:
    batch = (torch.ones(3),)
    held, rest = set_apart([batch])
    assert not held.apart
    assert rest == [batch]
    assert held.source == "the data that were trained on"


def test_a_function_draws_what_is_held_out() -> None:
    drawn = iter(range(100))
    held, rest = set_apart(lambda: (torch.tensor([float(next(drawn))]),))
    assert rows(held.batches) == [0.0, 1.0, 2.0, 3.0]
    assert rows([rest()]) == [4.0]


def test_validation_data_are_copied() -> None:
    x = torch.zeros(4)
    held = of_validation([(x,)] * 9)
    x += 1
    assert len(held.batches) == BATCHES
    assert rows(held.batches) == [0.0] * 16


def test_losses_are_of_evaluation_mode_and_leave_the_module() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))
    model[2].eval()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    batches = [(torch.randn(5, 3), torch.randn(5, 1)) for _ in range(3)]
    random = torch.get_rng_state()

    def mse(module: nn.Module, batch: Any) -> Any:
        return nn.functional.mse_loss(module(batch[0]), batch[1])

    found = losses(model, batches, mse)
    assert torch.equal(torch.get_rng_state(), random)
    assert [m.training for m in model] == [True, True, False, True]
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key])
    model.eval()
    assert found == pytest.approx([float(mse(model, b).detach()) for b in batches])
