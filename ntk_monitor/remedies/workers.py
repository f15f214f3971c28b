"""Trials in processes of their own."""

from __future__ import annotations

import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from typing import Any

from ntk_monitor.remedies.trial import Job, Trial, run_trial

GUARD = (
    " before its first step: a script that calls try_remedies does so below `if __name__ == "
    '"__main__":`, since other processes read it, too'
)
"""What helps where a process did not begin."""


class Worker:
    """A process that makes one trial after the other.

    Attributes:
        job: What it is at, or was at last.
        done: The share of it that is done.
    """

    def __init__(self, threads: int) -> None:
        """Start it.

        Args:
            threads: Of torch.
        """
        context = get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_work, args=(other, threads), daemon=True)
        self._process.start()
        other.close()
        self._heard = False

    def start(self, job: Job) -> None:
        """Have it begin a trial.

        Args:
            job: The trial.
        """
        self.job = job
        self.done = 0.0
        self._pipe.send(job)

    def result(self, patience: float) -> Trial | None:
        """What came of it.

        Args:
            patience: Seconds to wait for news.

        Returns:
            The trial, also where the process died of it; None while it goes on.
        """
        try:
            while self._pipe.poll(patience):
                found = self._pipe.recv()
                self._heard = True
                if isinstance(found, Trial):
                    return found
                self.done, patience = found, 0.0
        except (EOFError, OSError):
            self._process.join(1.0)
            why = f"failed: its process ended with code {self._process.exitcode}"
            if not self._heard:
                why += GUARD
            return Trial(self.job.remedy, {}, ended=why)
        return None

    @property
    def is_alive(self) -> bool:
        """Whether it can make another trial."""
        return self._process.is_alive()

    def end(self) -> None:
        """End it, whatever it is at."""
        self._process.terminate()
        self._process.join(5.0)
        self._pipe.close()


def _work(pipe: Any, threads: int) -> None:  # noqa: ANN401
    """What a process does."""
    import torch  # noqa: PLC0415

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one who started it is told
    torch.set_num_threads(threads)
    with suppress(EOFError, OSError):
        while True:
            job = pipe.recv()
            pipe.send(run_trial(job, pipe.send))


@contextmanager
def workers(threads: int) -> Iterator[Callable[[int], Worker]]:
    """Processes that are started when they are needed, and ended whatever happens.

    Args:
        threads: Of torch, in each.

    Yields:
        From a number to its process, a new one where it has died.
    """
    found: dict[int, Worker] = {}

    def worker(number: int) -> Worker:
        if number not in found or not found[number].is_alive:
            found[number] = Worker(threads)
        return found[number]

    try:
        yield worker
    finally:
        for each in found.values():
            each.end()


def can_travel(job: Job) -> str:
    """Whether a job can be sent to another process.

    Args:
        job: The job.

    Returns:
        Why it cannot; empty if it can.
    """
    script = getattr(sys.modules["__main__"], "__file__", None)
    if script is not None and not os.path.exists(script):
        return f"{script} cannot be run again"
    try:
        pickle.dumps(job)
    except Exception as error:  # pickle raises what it likes
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    return ""
