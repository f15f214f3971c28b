"""The Memory-Pro task."""

import math
from typing import Any

import pytest
import torch

from ntk_monitor.tasks import MemoryProDataModule, memory_pro_trials


def test_trials_show_hold_and_ask() -> None:
    angles = torch.tensor([0.3, 2.0])
    x, y = memory_pro_trials(angles, 4, 5, 6)
    assert x.shape == y.shape == (2, 15, 3)
    direction = torch.stack([angles.cos(), angles.sin()], 1)
    torch.testing.assert_close(x[:, :4, :2], direction[:, None].expand(2, 4, 2))
    assert not x[:, 4:, :2].any()
    torch.testing.assert_close(y[:, 9:, :2], direction[:, None].expand(2, 6, 2))
    assert not y[:, :9, :2].any()
    assert bool((x[:, :9, 2] == 1).all())
    assert not x[:, 9:, 2].any()
    torch.testing.assert_close(x[..., 2], y[..., 2])


def test_evaluation_batch_is_clean_and_evenly_spaced() -> None:
    ((x, y),) = list(MemoryProDataModule().val_dataloader())
    assert x.shape == (20, 90, 3)
    wanted = memory_pro_trials(2 * math.pi * torch.arange(20) / 20)
    torch.testing.assert_close((x, y), wanted)


def test_training_noise_is_fresh_of_the_right_size_and_on_inputs_only() -> None:
    loader = MemoryProDataModule(trials=128, batch_size=64, noise_std=0.5).train_dataloader()
    assert len(loader) == 2
    batches = [*loader, *loader]
    for x, y in batches:
        angles = torch.atan2(y[:, -1, 1], y[:, -1, 0])
        clean, target = memory_pro_trials(angles)
        torch.testing.assert_close(y, target)
        assert float((x - clean).std()) == pytest.approx(0.5, rel=0.05)
    assert not torch.equal(batches[0][0], batches[2][0])


def test_an_epoch_shows_every_trial_once_in_a_new_order() -> None:
    loader = MemoryProDataModule(trials=10, batch_size=4, noise_std=0.0).train_dataloader()
    assert [len(x) for x, _ in loader] == [4, 4, 2]
    epochs = [torch.cat([y[:, -1, 0] for _, y in loader]) for _ in range(2)]
    torch.testing.assert_close(epochs[0].sort().values, epochs[1].sort().values)
    assert not torch.equal(*epochs)


def test_a_seed_reproduces_the_data_and_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    first, second = (MemoryProDataModule(trials=64, seed=3).train_dataloader() for _ in range(2))
    other = MemoryProDataModule(trials=64, seed=4).train_dataloader()
    drawn = [loader.dataset[list(range(64))][0] for loader in (first, second, other)]
    torch.testing.assert_close(drawn[0], drawn[1], rtol=0, atol=0)
    assert not torch.equal(drawn[0], drawn[2])
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trials": 0}, "trials must be at least 1, got 0"),
        ({"response_steps": 0}, "response_steps must be at least 1"),
        ({"noise_std": -1.0}, "noise_std must be"),
        ({"noise_std": math.nan}, "noise_std must be"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MemoryProDataModule(**settings)


def test_a_difficulty_is_the_length_of_the_delay_from_the_next_batch_on() -> None:
    data = MemoryProDataModule(trials=12, batch_size=4, noise_std=0.0)
    data.set_difficulty(0.3)  # before there are trials
    batches = iter(data.train_dataloader())
    lengths = []
    for difficulty in (0.5, 0.0, 1.0):
        data.set_difficulty(difficulty)
        x, y = next(batches)
        assert x.shape == y.shape
        lengths.append(x.shape[1])
        torch.testing.assert_close(y[:, -1, :2], x[:, 0, :2])
    assert lengths == [75, 61, 90]
    with pytest.raises(ValueError, match=r"difficulty must lie in \[0, 1\], got 2"):
        data.set_difficulty(2)
