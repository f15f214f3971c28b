"""The torchmetrics classes: one snapshot, several snapshots, and torchmetrics' own contract."""

import copy
import math
import pickle

import pytest
import torch
from conftest import CASES
from torchmetrics import Metric

from ntk_monitor import Snapshot, probe
from ntk_monitor.metrics import (
    CoreCosine,
    EffectiveRank,
    TargetModeAlignment,
    core_cosine,
    effective_rank,
    target_mode_alignment,
)


def snapshot(name: str = "gru", seed: int = 0) -> Snapshot:
    case = CASES[name]
    net, batch = case.make_model(), case.make_batch()
    settings = {"state": case.state, "dtype": None, "method": "forward-ad", "seed": seed}
    return probe(net, batch, tolerance=0.0, max_products=40, modes=2, **settings)


METRICS = {
    "core cosine": (CoreCosine, core_cosine, {}, lambda s: s.core_cosine.value),
    "temporal core cosine": (
        CoreCosine,
        core_cosine,
        {"view": "temporal"},
        lambda s: s.temporal_core_cosine.value,
    ),
    "rank": (EffectiveRank, effective_rank, {}, lambda s: s.effective_rank.value),
    "temporal rank": (
        EffectiveRank,
        effective_rank,
        {"view": "temporal"},
        lambda s: s.temporal_effective_rank.value,
    ),
    "spatial rank": (
        EffectiveRank,
        effective_rank,
        {"view": "spatial"},
        lambda s: s.spatial_effective_rank.value,
    ),
    "core rank": (
        EffectiveRank,
        effective_rank,
        {"view": "core"},
        lambda s: s.core_effective_rank,
    ),
    "alignment": (
        TargetModeAlignment,
        target_mode_alignment,
        {"mode": 2},
        lambda s: s.target_modes[1].alignment.value,
    ),
}


@pytest.fixture(params=METRICS)
def entry(request: pytest.FixtureRequest) -> tuple:
    return METRICS[request.param]


def test_one_snapshot_gives_its_own_number(entry: tuple) -> None:
    kind, function, settings, truth = entry
    s = snapshot()
    metric = kind(**settings)
    assert float(metric(s)) == pytest.approx(truth(s), rel=1e-9)
    assert float(metric.compute()) == pytest.approx(truth(s), rel=1e-9)
    assert float(function(s, **settings)) == pytest.approx(truth(s), rel=1e-9)


def test_pooled_numbers_are_ratios_of_sums_and_lie_between(entry: tuple) -> None:
    kind, _, settings, truth = entry
    shots = [snapshot(seed=seed) for seed in range(3)]
    metric = kind(**settings)
    for s in shots:
        metric.update(s)
    values = [truth(s) for s in shots]
    assert min(values) - 1e-9 <= float(metric.compute()) <= max(values) + 1e-9


def test_merging_two_processes_is_updating_one(entry: tuple) -> None:
    kind, _, settings, _ = entry
    first, second, whole = (kind(**settings) for _ in range(3))
    a, b = snapshot("gru"), snapshot("lstm")
    first.update(a)
    second.update(b)
    for s in (a, b):
        whole.update(s)
    for name, reduction in first._reductions.items():
        assert reduction is not None
        both = torch.stack([getattr(first, name), getattr(second, name)])
        setattr(first, name, reduction(both))
    torch.testing.assert_close(first.compute(), whole.compute())


def test_contract_of_a_metric(entry: tuple) -> None:
    kind, _, settings, _ = entry
    metric: Metric = kind(**settings)
    metric.update(snapshot())
    value = metric.compute()
    for twin in (pickle.loads(pickle.dumps(metric)), copy.deepcopy(metric), metric.clone()):
        torch.testing.assert_close(twin.compute(), value)
    assert metric.state_dict() == {}
    assert isinstance(hash(metric), int)
    metric.reset()
    with pytest.warns(UserWarning, match="before the ``update``"):
        assert math.isnan(float(metric.compute()))


def test_a_mode_that_is_not_there_is_nan() -> None:
    assert math.isnan(float(target_mode_alignment(snapshot(), mode=7)))


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="view must be 'full' or 'temporal'"):
        CoreCosine("spatial")
    with pytest.raises(ValueError, match="view must be one of"):
        EffectiveRank("time")
    with pytest.raises(ValueError, match="mode must be 1 or more"):
        TargetModeAlignment(0)
