"""``ntk-monitor demo``: the paper's Network 1, from the installed package alone."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path

from rich.console import Console


def main(arguments: Sequence[str]) -> int:
    """Train a network that cannot learn two thirds of its task, and show what is said of it.

    Args:
        arguments: What stands behind ``ntk-monitor demo``.

    Returns:
        0.
    """
    parser = ArgumentParser(
        prog="ntk-monitor demo",
        description="Train the paper's Network 1, a GRU that cannot learn two thirds of its task, "
        "for a few minutes, and show what its alert says.",
    )
    parser.add_argument(
        "--network", type=int, choices=(1, 2), default=1, help="2 is one that can learn all of it"
    )
    parser.add_argument("--folder", type=Path, default=Path("ntk_demo"), help="where logs go")
    parser.add_argument("--steps", type=int, default=1500, help="optimizer steps")
    settings = parser.parse_args(list(arguments))
    from ntk_monitor.commands.fit import main as fit  # noqa: PLC0415  (after --help)

    name = f"memory_pro_network{settings.network}"
    with as_file(files("ntk_monitor") / "configs" / f"{name}.yaml") as config:
        fit([
            "fit",
            "--config",
            str(config),
            "--trainer.max_steps",
            str(settings.steps),
            "--trainer.logger.init_args.save_dir",
            str(settings.folder),
        ])
        console = Console()
        next_steps = {"Look at it": f"ntk-monitor view {settings.folder}"}
        if settings.network == 1:
            next_steps["Find out what helps it"] = f"ntk-monitor try --config {config}"
            next_steps["See one that learns all of it"] = "ntk-monitor demo --network 2"
        for what, line in next_steps.items():
            console.print(f"{what}:  {line}", markup=False, soft_wrap=True, highlight=False)
    return 0
