"""``ntk-monitor try``: short trials of remedies for a training that a config describes."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from rich.console import Console

from ntk_monitor.reason import Reason


def main(arguments: Sequence[str]) -> int:
    """Make trials.

    Args:
        arguments: What stands behind ``ntk-monitor try``.

    Returns:
        0 if a remedy helps, 1 if none does, 2 if nothing can be said.
    """
    own, training = _parser().parse_known_args(list(arguments))
    if "--config" not in training and not any(a.startswith("--config=") for a in training):
        _parser().error("--config must be the file that `ntk-monitor fit` trains with, got none")
    # After --help, which is to be quick.
    from ntk_monitor.commands.from_config import FromConfig  # noqa: PLC0415
    from ntk_monitor.remedies.search import SHARE, try_remedies  # noqa: PLC0415

    make = FromConfig(training)
    make.check()
    console = Console()
    trials = try_remedies(
        make,
        ckpt_path=own.ckpt,
        reason=own.reason,
        share=SHARE if own.share is None else own.share,
        max_cost=own.max_cost,
        time_limit=own.time_limit,
        processes=own.processes,
        seed=own.seed,
    )
    trials.show(console)
    if trials.baseline.loss is None:
        return 2
    if trials.best is None:
        return 1
    path = trials.save(own.output)
    resume = "" if own.ckpt is None else f" --ckpt_path {own.ckpt}"
    console.print(
        f"Train with it:  ntk-monitor fit {' '.join(training)} --config {path}{resume}",
        markup=False,
        soft_wrap=True,
    )
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="ntk-monitor try",
        description="Try what helps a stalled training, each remedy for a short while.",
        allow_abbrev=False,
        epilog="All other arguments are those of `ntk-monitor fit`, --config among them.",
    )
    parser.add_argument("--ckpt", type=str, default=None, help="a checkpoint to begin from")
    parser.add_argument(
        "--output", type=Path, default=Path("winner.yaml"), help="where to write the best remedy"
    )
    parser.add_argument(
        "--reason", type=str, choices=get_args(Reason), help="why it stalls, as the alert says"
    )
    parser.add_argument(
        "--share", type=float, default=None, help="share of the planned steps for each trial"
    )
    parser.add_argument(
        "--max-cost", type=float, default=1.0, help="most that all may cost, in whole trainings"
    )
    parser.add_argument("--time-limit", type=float, default=None, help="in seconds")
    parser.add_argument("--processes", type=int, default=1, help="trials at a time")
    parser.add_argument("--seed", type=int, default=0, help="of what the config draws no seed for")
    return parser
