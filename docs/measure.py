"""Train the two Memory-Pro networks of configs/, and keep what the pages and pictures show of them.

    python docs/measure.py

writes docs/results/memory_pro.json in about ten minutes on one core; docs/pictures.py draws the
pictures from it, and docs/fill_numbers.py fills the tables of docs/numbers.md.
"""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import Tensor

from ntk_monitor import NTKMonitor, StallAlert
from ntk_monitor.commands.fit import MonitorCLI, judge_of
from ntk_monitor.views import summary_verdict

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "memory_pro.json"
NETWORKS = {"stalled": 1, "healthy": 2}
DIGITS = 5
"""Significant digits that are kept."""
EVERY = 4
"""Of the trials, one in so many is shown."""
LEADING = 6
"""Temporal modes in which a target mode's time course is looked for."""


def main() -> None:
    """Train both and write the file."""
    found = {name: measured(number) for name, number in NETWORKS.items()}
    RESULTS.write_text(json.dumps(found, separators=(",", ":")) + "\n")


def measured(number: int) -> dict[str, Any]:
    """One training, and what is shown of it.

    Args:
        number: Of the network, and of its config.

    Returns:
        Numbers, texts and patterns, as JSON has them.
    """
    with tempfile.TemporaryDirectory() as folder:
        cli = MonitorCLI(
            LightningModule, LightningDataModule, subclass_mode_model=True, subclass_mode_data=True,
            run=False, save_config_callback=None,
            args=["--config", f"configs/memory_pro_network{number}.yaml",
                  "--trainer.logger.init_args.save_dir", folder],
        )  # fmt: skip
        cli.trainer.fit(cli.model, datamodule=cli.datamodule)
        return kept(cli.trainer, cli.model, number)


def kept(trainer: Trainer, model: LightningModule, number: int) -> dict[str, Any]:
    """What is kept of a training that has ended.

    Args:
        trainer: Its Trainer.
        model: The trained model.
        number: Of the network.

    Returns:
        As JSON has it.
    """
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    monitor = next(each for each in callbacks if isinstance(each, NTKMonitor))
    alert = next(each for each in callbacks if isinstance(each, StallAlert))
    snapshot, state = monitor.snapshot, monitor.states[0]
    assert snapshot is not None
    verdict = summary_verdict(snapshot, state.losses, alert.history, judge_of(alert))
    inputs, _ = monitor.kept.content
    with torch.no_grad():
        outputs = model(inputs)
        activity = model.network.rnn(inputs)[0]
    return {
        "network": number,
        "steps": trainer.global_step,
        "verdict": f"At {verdict.when}: {verdict.text}",
        "alerts": list(alert.messages),
        "printed": str(snapshot),
        "history": [{tag: short(value) for tag, value in row.items()} for row in monitor.history],
        "shares": [short(mode.share) for mode in snapshot.target_modes],
        "core_overlaps": [short(mode.core_overlap) for mode in snapshot.target_modes],
        "gains": [short(mode.gain) for mode in snapshot.target_modes],
        "outputs": patterns(outputs[0]), "activity": patterns(activity[0]),
        "modes": patterns(snapshot.target_patterns[:, ::EVERY]),
        "seen": patterns(in_leading(snapshot.target_patterns, snapshot.temporal_modes)[:, ::EVERY]),
    }  # fmt: skip


def in_leading(wanted: Tensor, found: Tensor) -> Tensor:
    """The parts of time courses that lie in the leading temporal modes of the NTK.

    Args:
        wanted: Time courses, shape (modes, B, T).
        found: Orthonormal temporal modes, shape (r, B, T).

    Returns:
        The projections, of the first shape.
    """
    basis = found[:LEADING].flatten(1).to(wanted.dtype)
    return (wanted.flatten(1) @ basis.T @ basis).reshape(wanted.shape)


def patterns(values: Tensor) -> list[Any]:
    """A tensor in thousandths, as nested lists.

    Args:
        values: Any tensor.

    Returns:
        Rounded.
    """
    rounded: list[Any] = (values.double() * 1000).round().div(1000).tolist()
    return rounded


def short(value: float) -> float | str:
    """A number with few digits; what JSON cannot write as text.

    Args:
        value: The number.

    Returns:
        It, rounded.
    """
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else str(value)


if __name__ == "__main__":
    main()
