"""What is shown while trials are made."""

from __future__ import annotations

import math

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from ntk_monitor.remedies.trial import Trial


class Progress(Bar):
    """A bar on a terminal: how many trials are over, and the best loss so far."""

    def __init__(self, count: int, shown: bool) -> None:
        """Prepare it.

        Args:
            count: Of trials.
            shown: Whether it is wanted.
        """
        console = Console(stderr=True)
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[best]}"),
            TimeElapsedColumn(),
            console=console,
            disable=not shown or not console.is_terminal,
            transient=True,
        )
        self._bar = self.add_task("trials", total=count, best="")
        self._over = 0
        self._best = math.inf

    def begin(self, name: str) -> None:
        """A trial begins.

        Args:
            name: Of its remedy.
        """
        self.update(self._bar, description=name)

    def moved(self, share: float) -> None:
        """A trial has come as far.

        Args:
            share: Of its steps.
        """
        self.update(self._bar, completed=self._over + min(share, 1.0))

    def done(self, trial: Trial) -> None:
        """A trial is over.

        Args:
            trial: The trial.
        """
        self._over += 1
        loss = trial.loss
        if trial.is_whole and loss is not None and loss.value < self._best:
            self._best = loss.value
            self.update(self._bar, best=f"best so far: {trial.name}, loss {loss.value:.4g}")
        self.update(self._bar, completed=self._over)
