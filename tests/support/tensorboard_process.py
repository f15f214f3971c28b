"""A TensorBoard of its own process, which neither its start nor its end can hang."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

START, END = 120.0, 20.0
"""Seconds it may take to start, and to end before it is killed."""


@contextmanager
def tensorboard_over(logs: Path, *options: str) -> Iterator[str]:
    """The address of a TensorBoard that reads `logs`.

    What it says goes to a file, not a pipe, which could fill up or break; it and its data server
    are one process group, which is ended as a whole.
    """
    said = logs.parent / f"{logs.name}{''.join(options)}.tensorboard"
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logs), "--port", "0",
               "--host", "127.0.0.1", *options]  # fmt: skip
    with said.open("w") as out:
        server = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
    try:
        yield _address(server, said)
    finally:
        server.terminate()
        with suppress(subprocess.TimeoutExpired):
            server.wait(END)
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _address(server: subprocess.Popen[bytes], said: Path) -> str:
    end = time.monotonic() + START
    while server.poll() is None and time.monotonic() < end:
        if found := re.search(r"http://127\.0\.0\.1:\d+/", said.read_text()):
            return found[0]
        time.sleep(0.05)
    raise AssertionError(f"TensorBoard did not start: {said.read_text()[-2000:]}")
