"""Results as JSON, with the machine that they were measured on."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).parent / "results"


def save(name: str, results: dict[str, Any]) -> Path:
    """Write ``benchmarks/results/<name>.json``.

    Args:
        name: Of the benchmark.
        results: What it found.

    Returns:
        The path written.
    """
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), **results}, indent=1) + "\n")
    return path


def load(name: str) -> dict[str, Any]:
    """Read ``benchmarks/results/<name>.json``.

    Args:
        name: Of the benchmark.

    Returns:
        What :func:`save` wrote, empty where it never did.
    """
    path = FOLDER / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    found: dict[str, Any] = {
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if torch.cuda.is_available():
        found["accelerator"] = torch.cuda.get_device_name()
    return found
