"""What is shown while trials are made."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from ntk_monitor.remedies.trial import Trial


class Progress:
    """A bar on a terminal: how many trials are over, and the best loss so far."""

    def __init__(self, count: int, shown: bool) -> None:
        """Prepare it.

        Args:
            count: Of trials.
            shown: Whether it is wanted.
        """
        console = Console(stderr=True)
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[best]}"),
            TimeElapsedColumn(),
            console=console,
            disable=not shown or not console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task("trials", total=count, best="")
        self._over = 0
        self._best = float("inf")

    def __enter__(self) -> Progress:
        """Show it."""
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take it away."""
        self._bar.stop()

    def begin(self, name: str) -> None:
        """A trial begins.

        Args:
            name: Of its remedy.
        """
        self._bar.update(self._task, description=name)

    def moved(self, share: float) -> None:
        """A trial has come as far.

        Args:
            share: Of its steps.
        """
        self._bar.update(self._task, completed=self._over + min(share, 1.0))

    def done(self, trial: Trial) -> None:
        """A trial is over.

        Args:
            trial: The trial.
        """
        self._over += 1
        loss = trial.loss
        if trial.is_whole and loss is not None and loss.value < self._best:
            self._best = loss.value
            self._bar.update(self._task, best=f"best so far: {trial.name}, loss {loss.value:.4g}")
        self._bar.update(self._task, completed=self._over)
