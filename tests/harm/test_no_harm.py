"""Training is bit for bit the same with the monitor and without, in every kind of Trainer.

Every second combination (each of them, nightly) is also run with a monitor that does one deliberate
harm after its probes, which the same comparison has to find.
"""

from __future__ import annotations

import os
import random
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harm.evidence import DAMAGES, Witness, differences, evidence
from harm.worlds import MODELS, WORLDS, World, restored, train
from ntk_monitor import NTKMonitor, StallAlert
from ntk_monitor.model.isolation.quiet import FLAGS
from ntk_monitor.probe import Probe

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore::ntk_monitor.monitor.StallWarning"),
]
NIGHTLY = "NTK_MONITOR_NIGHTLY" in os.environ
FAST: dict[str, Any] = {"max_products": 16, "modes": 1, "tolerance": 1.0, "max_overhead": None}
FAST |= {"on_error": "raise", "learning_rate": 0.01}
COMBINATIONS = [
    (kind, name) for name in WORLDS for kind in MODELS if kind not in WORLDS[name].without
]


def watched(world: World, **settings: Any) -> list[Any]:
    settings = {**FAST, **world.monitor, **settings}
    if world.two_monitors:
        monitors = [NTKMonitor(5, state={n: n}, **settings) for n in ("body", "readout")]
        return [*monitors, StallAlert(1)]
    return [NTKMonitor(5, **settings), StallAlert(1)]


def run(kind: str, world: World, path: Path, callbacks: list[Any]) -> dict[str, Any]:
    random.seed(0)
    np.random.seed(0)
    witness = Witness()
    trainer, module = train(kind, world, [*callbacks, witness], path)
    return evidence(trainer, module, witness)


def fits(damage: str, kind: str, world: World) -> bool:
    """Whether a harm can be done, and shows, in a training."""
    if damage == "buffer":
        return kind in {"BatchNorm", "conv"}
    if damage == "learning rate":
        return not world.traits.get("manual") and "fast_dev_run" not in world.trainer
    if damage == "momentum":
        return not {"fast_dev_run", "overfit_batches"} & world.trainer.keys()
    if damage == "order of data":
        return not {"fast_dev_run", "overfit_batches"} & world.trainer.keys()
    if damage == "logged metric":
        return not world.trainer.get("barebones")
    return True


def assigned() -> list[Any]:
    """Every combination, each second one with a harm that fits it, each harm as often as can be."""
    turn, pairs = cycle(DAMAGES), []
    for i, (kind, name) in enumerate(COMBINATIONS):
        harmed = NIGHTLY or i % 2 == 0
        damage = next(d for d in turn if fits(d, kind, WORLDS[name])) if harmed else None
        pairs.append(pytest.param(kind, name, damage, id=f"{name}-{kind}-{damage or 'no harm'}"))
    return pairs


@pytest.mark.parametrize(("kind", "name", "damage"), assigned())
def test_training_is_the_same(
    kind: str, name: str, damage: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = WORLDS[name]
    plain = run(kind, world, tmp_path, [])
    monitors = watched(world)
    assert differences(run(kind, world, tmp_path, monitors), plain) == set()
    for monitor in monitors[:-1]:
        assert monitor.snapshot is not None
        assert monitor.snapshot.is_finite
    if damage is None:
        return
    where, harm = DAMAGES[damage]
    honest = Probe.__call__

    def harmful(self: Probe, module: Any, *args: Any, **kwargs: Any) -> Any:
        # As little as there is: it is the harm that is looked for.
        little = {"descent": None, "learning_rate": None, "tier": "core"}
        snapshot = honest(self, module, *args, **{**kwargs, **little})
        harm(module)
        return snapshot

    monkeypatch.setattr(Probe, "__call__", harmful)
    with restored(FLAGS):
        assert where in differences(
            run(kind, world, tmp_path, watched(world, on_error="warn")), plain
        )


def test_every_harm_is_done_somewhere() -> None:
    assert {pair.values[2] for pair in assigned()} - {None} == set(DAMAGES)
    assert len(assigned()) >= 60
