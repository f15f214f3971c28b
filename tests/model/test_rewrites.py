"""An identical function gives identical numbers, however it is written."""

from __future__ import annotations

import math
import os
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from model.rewrites import KINDS, MODELS, Chain, Way
from torch import Tensor

from ntk_monitor import Snapshot, probe

NIGHTLY = bool(os.environ.get("NTK_MONITOR_NIGHTLY"))
EXAMPLES = 2000 if NIGHTLY else 200
"""Of all models together."""
B, T = 4, 5


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = ((B, T, 3), (B, T, 2))
    x, y = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    return x, y


@cache
def model(name: str) -> Chain:
    chain = Chain(name).double()
    chain(batch()[0])
    return chain


def measured(chain: Chain, ways: list[Way], rate: float | None) -> Snapshot:
    chain.ways = ways
    settings_: dict[str, Any] = {"method": "exact", "dtype": torch.float64, "state": "state"}
    return probe(chain, batch(), learning_rate=rate, modes=2, **settings_)


def numbers(shot: Snapshot) -> dict[str, Any]:
    found: dict[str, Any] = {
        name: getattr(shot, name).value
        for name in (
            *("trace", "effective_rank", "temporal_effective_rank", "spatial_effective_rank"),
            *("core_cosine", "temporal_core_cosine"),
        )
    }
    found["coverage"] = shot.coverage.fraction
    found["spectrum"] = shot.core_spectrum[:6].tolist()
    for mode in shot.target_modes:
        found[f"mode {mode.index}"] = [
            mode.singular_value, mode.learned, mode.gain, mode.core_overlap, mode.alignment.value
        ]  # fmt: skip
        if not math.isnan(mode.rate):
            found[f"steps of mode {mode.index}"] = [mode.rate, mode.steps_to_learn]
    return found


@cache
def plain(name: str, rate: float | None = None) -> dict[str, Any]:
    chain = model(name)
    return numbers(measured(chain, [KINDS[kind][0][0] for kind in chain.kinds], rate))


def require_same(name: str, ways: list[Way], how: str, rate: float | None = None) -> None:
    found, wanted = numbers(measured(model(name), ways, rate)), plain(name, rate)
    for what, number in wanted.items():
        assert found[what] == pytest.approx(number, rel=1e-8, abs=1e-10), f"{name}, {how}: {what}"


def test_the_plain_models_are_measured_in_full() -> None:
    assert len(MODELS) >= 12
    for name in MODELS:
        assert plain(name)["coverage"] == pytest.approx(1.0), name
        assert math.isfinite(plain(name)["core_cosine"]), name


SINGLE = [
    (name, i, way, call)
    for name, stages in MODELS.items()
    for i, (kind, _) in enumerate(stages)
    for way in range(len(KINDS[kind][0]))
    for call in range(-1, len(KINDS[kind][1]))
    if (way == 0) != (call == -1)
]
"""Every way to write, and every way to call, by itself."""

FORECAST = {
    (MODELS[name][i][0], way): (name, i, way, call) for name, i, way, call in SINGLE if call < 0
}.values()
"""Every way to write, once: however and wherever a stage is called, its outputs are the same."""


def chosen(name: str, i: int, way: int, call: int) -> tuple[Way, str]:
    ways, calls = KINDS[MODELS[name][i][0]]
    if call < 0:
        return ways[way], ways[way].__name__
    return calls[call](ways[way]), f"{ways[way].__name__}, {calls[call].__name__}"


@pytest.mark.parametrize("name", MODELS)
def test_every_way_by_itself(name: str) -> None:
    for where, i, way, call in SINGLE:
        if where == name:
            ways = [KINDS[kind][0][0] for kind, _ in MODELS[name]]
            ways[i], how = chosen(name, i, way, call)
            rate = 0.1 if (where, i, way, call) in FORECAST or NIGHTLY else None
            require_same(name, ways, f"stage {i + 1} {how}", rate)


@pytest.mark.parametrize("name", MODELS)
@settings(
    max_examples=-(-EXAMPLES // len(MODELS)),
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_ways_together(name: str, data: st.DataObject) -> None:
    ways, how = [], []
    for i, (kind, _) in enumerate(MODELS[name]):
        way = data.draw(st.integers(0, len(KINDS[kind][0]) - 1))
        call = data.draw(st.integers(-1, len(KINDS[kind][1]) - 1))
        own, text = chosen(name, i, way, call)
        ways.append(own)
        how.append(text)
    require_same(name, ways, "; ".join(how))
