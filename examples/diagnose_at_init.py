"""Before training: which parts of the target will gradient descent not see?

Two GRUs at initialisation, on the same trials of the Memory-Pro task. No step is taken.

    python examples/diagnose_at_init.py
"""

import math

import torch
from rich.console import Console
from rich.table import Table

from ntk_monitor import probe
from ntk_monitor.models import GRURegression
from ntk_monitor.tasks import memory_pro_trials

LEARNING_RATE, STEPS = 0.05, 1500

torch.manual_seed(0)
batch = memory_pro_trials(torch.linspace(0, 2 * math.pi, 21)[:-1])
table = Table(title=f"Steps to learn each target mode, of the {STEPS} that are planned")
for column in ("initialisation", "mode 1", "mode 2", "mode 3"):
    table.add_column(column, justify="right")
for initialization in ("xavier", "fixed_points"):
    model = GRURegression(hidden_size=64, initialization=initialization)
    snapshot = probe(model, batch, learning_rate=LEARNING_RATE, tier="modes")
    steps = [mode.steps_to_learn or float("inf") for mode in snapshot.target_modes]
    cells = [f"{s:.3g}" if s < STEPS else f"[red]{s:.3g}, will stall[/]" for s in steps]
    table.add_row(initialization, *cells)
Console().print(table)
