"""Before training: which parts of the target will gradient descent not see, and what helps?

Two GRUs at initialisation, on the same trials of the Memory-Pro task. No step is taken for the
first table. For the initialisation that will stall, remedies are then tried, each for a share of
the training.

    python examples/diagnose_at_init.py [--share 0.08] [--processes 2]
"""

import argparse
import math
from functools import partial

import torch
from rich.console import Console
from rich.table import Table

from ntk_monitor import probe, try_remedies
from ntk_monitor.models import GRURegression
from ntk_monitor.tasks import MemoryProDataModule, memory_pro_trials

LEARNING_RATE, STEPS = 0.05, 1500


def diagnose(console: Console) -> list[str]:
    """Print steps to learn by initialisation.

    Returns:
        The initialisations of which a mode will stall.
    """
    torch.manual_seed(0)
    batch = memory_pro_trials(torch.linspace(0, 2 * math.pi, 21)[:-1])
    table = Table(title=f"Steps to learn each target mode, of the {STEPS} that are planned")
    for column in ("initialisation", "mode 1", "mode 2", "mode 3"):
        table.add_column(column, justify="right")
    stalling = []
    for initialization in ("xavier", "fixed_points"):
        model = GRURegression(hidden_size=64, initialization=initialization)
        snapshot = probe(model, batch, learning_rate=LEARNING_RATE, tier="modes")
        steps = [mode.steps_to_learn or float("inf") for mode in snapshot.target_modes]
        cells = [f"{s:.3g}" if s < STEPS else f"[red]{s:.3g}, will stall[/]" for s in steps]
        table.add_row(initialization, *cells)
        if any(s >= STEPS for s in steps):
            stalling.append(initialization)
    console.print(table)
    return stalling


def main() -> None:
    """Diagnose, and try what helps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", type=float, default=0.08, help="of the training, a trial")
    parser.add_argument("--processes", type=int, default=1, help="trials at a time")
    settings = parser.parse_args()
    console = Console()
    for initialization in diagnose(console):
        trials = try_remedies(
            partial(GRURegression, hidden_size=64, initialization=initialization),
            MemoryProDataModule(noise_std=0.5),
            trainer={"max_steps": STEPS, "max_epochs": -1, "accelerator": "cpu"},
            share=settings.share,
            processes=settings.processes,
            reason="core",
        )
        trials.show(console)


if __name__ == "__main__":
    main()
