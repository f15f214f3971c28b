"""Start a script in several processes that find one another, and read what each wrote."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
TIME_LIMIT = 240


def start(script: str, size: int, folder: Path) -> list[subprocess.Popen[bytes]]:
    """The processes; each gets the folder, and its place in the environment, as from torchrun."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "NODE_RANK": "0",
        "WORLD_SIZE": str(size),
    }
    processes = []
    for rank in range(size):
        places = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        with (folder / f"{rank}.log").open("w") as log:
            command = [sys.executable, str(TESTS / "ranks" / script), str(folder)]
            environment = {**os.environ, **shared, **places}
            processes.append(
                subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
            )
    return processes


def finish(processes: list[subprocess.Popen[bytes]], limit: float = TIME_LIMIT) -> list[int]:
    """How the processes ended; a hang is a failure."""
    try:
        return [process.wait(limit) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def run(script: str, size: int, folder: Path) -> list[dict[str, Any]]:
    """What each process wrote to ``<rank>.json``."""
    codes = finish(start(script, size, folder))
    said = "\n".join((folder / f"{rank}.log").read_text()[-3000:] for rank in range(size))
    assert codes == [0] * size, said
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(size)]
