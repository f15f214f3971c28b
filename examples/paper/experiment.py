"""One figure of the paper: measured over seeds, drawn, and its claim checked in numbers.

``python examples/paper/figure5.py --full`` has five seeds and, where the page does not say
otherwise, the paper's sizes, and writes results and picture; ``--quick`` is smaller, with two
seeds, a minute or two on two cores, and draws into the current folder; ``--draw`` draws and judges
the results that are there.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ntk_monitor.views import own_style

HERE = Path(__file__).parent
PICTURES = HERE.parents[1] / "docs" / "images" / "paper"
Result = dict[str, Any]


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper, the number that decides it, and whether it holds.

    Attributes:
        text: The sentence; ours where it says so.
        number: What was measured, from smallest to largest over the seeds.
        holds: Whether it does on every seed.
        reason: If it does not, the likely reason.
    """

    text: str
    number: str
    holds: bool
    reason: str = ""


@dataclass(frozen=True)
class Experiment:
    """How a figure is made.

    Attributes:
        name: Of its files.
        title: What it shows.
        measure: ``(seed, full) -> result`` in plain types.
        claims: What the figure says, judged on the results of all seeds.
        draw: The picture.
    """

    name: str
    title: str
    measure: Callable[[int, bool], Result]
    claims: Callable[[Sequence[Result]], list[Claim]]
    draw: Callable[[Sequence[Result]], Figure]

    @property
    def file(self) -> Path:
        """Where the results of ``--full`` are."""
        return HERE / "results" / f"{self.name}.json"

    def load(self) -> list[Result]:
        """The results that are there, one for each seed."""
        results: list[Result] = json.loads(self.file.read_text())["results"]
        return results

    def run(self, seeds: int, *, full: bool) -> list[Result]:
        """Measure every seed.

        Args:
            seeds: How many.
            full: Whether at the paper's sizes.

        Returns:
            A result for each.
        """
        results = []
        for seed in track(range(seeds), self.title):
            torch.manual_seed(seed)
            results.append(self.measure(seed, full))
        return results

    def main(self) -> None:
        """The command line."""
        parser = argparse.ArgumentParser(description=self.title)
        kind = parser.add_mutually_exclusive_group()
        kind.add_argument("--quick", action="store_true", help="smaller, two seeds (the default)")
        kind.add_argument("--full", action="store_true", help="the paper's sizes, five seeds")
        kind.add_argument("--draw", action="store_true", help="only draw and judge what is there")
        kind.add_argument("--seeds", type=int, default=2, help="as --quick, with so many seeds")
        args = parser.parse_args()
        if args.draw:
            results = self.load()
        else:
            started = time.perf_counter()
            results = self.run(5 if args.full else args.seeds, full=args.full)
            if args.full:
                self.save(results, time.perf_counter() - started)
        picture = PICTURES / f"{self.name}.png" if args.full or args.draw else None
        with own_style():
            figure = self.draw(results)
            path = picture or Path(f"{self.name}.png")
            figure.savefig(path, dpi=110)
        Console().print(self.table(results), f"picture: {path}")

    def save(self, results: list[Result], seconds: float) -> None:
        """Write the results with the command, the machine and the time that they took."""
        record = {
            "command": f"python examples/paper/{self.name}.py --full",
            "minutes": round(seconds / 60, 1),
            "machine": {
                "cores": os.cpu_count(),
                "threads": torch.get_num_threads(),
                "python": platform.python_version(),
                "torch": torch.__version__,
            },
            "results": results,
        }
        self.file.write_text(json.dumps(_rounded(record)) + "\n")

    def table(self, results: Sequence[Result]) -> Table:
        """The claims, judged."""
        table = Table(title=f"{self.title}, {len(results)} seeds")
        for column in ("claim", "measured", "holds"):
            table.add_column(column)
        for claim in self.claims(results):
            table.add_row(claim.text, claim.number, "yes" if claim.holds else "[red]no[/]")
        return table


def values(results: Sequence[Result], name: str) -> np.ndarray:
    """One entry of every result, the seeds first."""
    return np.array([result[name] for result in results], dtype=float)


def draw_curve(axes: Axes, x: Sequence[float], curves: np.ndarray, color: str, **line: Any) -> None:  # noqa: ANN401
    """The mean over seeds as a line, and from the smallest to the largest as a band."""
    axes.plot(x, curves.mean(0), color=color, **line)
    axes.fill_between(x, curves.min(0), curves.max(0), color=color, alpha=0.2, lw=0)


def log_axis(axes: Axes, at: Sequence[float]) -> None:
    """A logarithmic x-axis with ticks where there are measurements."""
    axes.set_xscale("log")
    axes.set_xticks(at, [str(x) for x in at])
    axes.minorticks_off()


def spread(numbers: Any) -> str:  # noqa: ANN401
    """Smallest to largest."""
    numbers = np.asarray(numbers, dtype=float)
    low, high = (
        f"{number:.0f}" if 1e3 <= number < 1e5 else f"{number:.3g}"
        for number in (numbers.min(), numbers.max())
    )
    return low if low == high else f"{low} to {high}"


def _rounded(value: Any) -> Any:  # noqa: ANN401
    """Nested values with floats of five digits, which is more than is known."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    return [_rounded(v) for v in value] if isinstance(value, (list, tuple)) else value
