"""How far a probe goes."""

import math

import pytest
import torch
from conftest import CASES, Case
from monitor.helpers import fit
from support.dense import Truth, truth

from ntk_monitor import NTKMonitor, Snapshot, StallAlert, probe

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers:UserWarning",
    "ignore:.*LeafSpec.*is deprecated",
    "ignore:.*logging interval:UserWarning",
    "ignore:You're resuming from a checkpoint:UserWarning",
    "ignore::ntk_monitor.monitor.StallWarning",
)
LEARNING_RATE = 0.1


def measure(case: Case, **settings: object) -> Snapshot:
    settings = {"dtype": None, "learning_rate": LEARNING_RATE} | settings
    return probe(case.make_model(), case.make_batch(), state=case.state, **settings)


def exact(case: Case) -> Truth:
    return truth(case.make_model(), case.state, case.make_batch(), LEARNING_RATE)


@pytest.mark.parametrize("name", ["gru", "mlp"])
def test_the_core_tier_spends_nothing(name: str) -> None:
    case = CASES[name]
    snapshot, wanted = measure(case, tier="core", modes=2), exact(case)
    assert snapshot.products == 0
    assert snapshot.is_finite
    assert snapshot.core_effective_rank == pytest.approx(wanted.core_effective_rank, rel=1e-8)
    assert math.isnan(snapshot.trace.value)
    for i, mode in enumerate(snapshot.target_modes):
        assert mode.learned == pytest.approx(wanted.learned[i], rel=1e-6)
        assert mode.core_overlap == pytest.approx(wanted.overlaps[i], rel=1e-6)
        assert mode.steps_to_learn is None
    assert not any(tag.startswith("ntk/") for tag in snapshot.scalars() if "seconds" not in tag)


def test_the_modes_tier_is_exact_at_one_product_each() -> None:
    case = CASES["gru"]
    snapshot, wanted = measure(case, tier="modes", modes=2), exact(case)
    assert snapshot.products == 2
    for i, mode in enumerate(snapshot.target_modes):
        assert mode.gain == pytest.approx(wanted.gains[i], rel=1e-6)
        assert mode.rate == pytest.approx(wanted.rates[i], rel=1e-4)
        assert math.isnan(mode.alignment.value)
    scalars = snapshot.scalars().items()
    assert all(math.isfinite(value) for tag, value in scalars if "steps_to_learn" not in tag)


def test_a_tier_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="tier must be one of core, modes, kernel, got 'pilot'"):
        probe(torch.nn.Linear(2, 2), (torch.ones(2, 2), torch.ones(2, 2)), tier="pilot")


@pytest.mark.parametrize("tier", ["core", "modes"])
def test_a_monitor_of_a_tier_logs_what_it_reached(tier: str) -> None:
    monitor = NTKMonitor(every_n_steps=2, max_overhead=None, tier=tier, modes=1)
    trainer, _ = fit([monitor, StallAlert()])
    found = monitor.snapshot
    assert isinstance(found, Snapshot)
    assert found.tier == tier
    logged = {tag: float(value) for tag, value in trainer.callback_metrics.items()}
    assert "core/effective_rank" in logged
    assert ("target/mode_1/steps_to_learn" in logged) == (tier == "modes")
    assert "ntk/trace" not in logged
    assert math.isfinite(monitor.metrics.compute()["core/effective_rank"])


def test_tiers_agree_where_they_overlap() -> None:
    parts = [measure(CASES["rnn"], tier=t, max_products=32) for t in ("core", "modes", "kernel")]
    assert len({s.core_effective_rank for s in parts}) == 1
    assert parts[0].target_modes[0].learned == pytest.approx(parts[1].target_modes[0].learned)
    assert parts[1].target_modes[0].rate == parts[2].target_modes[0].rate
    assert parts[1].target_modes[0].gain == parts[2].target_modes[0].gain
