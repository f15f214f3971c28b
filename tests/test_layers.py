"""Imports point one way."""

import ast
from pathlib import Path

import ntk_monitor

ORDER = (
    "checks",
    "uncertainty",
    "ranks",
    "operators",
    "estimators",
    "model",
    "snapshot",
    "targets",
    "probe",
    "metrics",
    "views",
    "monitor",
    "tasks",
    "models",
    "checkpoints",
    "cli",
)
"""Each may import those before it, and itself."""
ROOT = Path(ntk_monitor.__file__).parent


def test_every_layer_imports_only_from_lower_ones() -> None:
    seen = set()
    for path in ROOT.rglob("*.py"):
        layer = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if layer == "__init__":
            continue
        seen.add(layer)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ntk_monitor."):
                imported = node.module.split(".")[1]
                assert ORDER.index(imported) <= ORDER.index(layer), f"{path} imports {node.module}"
    assert seen == set(ORDER)


def test_only_the_lightning_side_imports_lightning() -> None:
    for path in ROOT.rglob("*.py"):
        layer = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if layer in {
            "checks",
            "uncertainty",
            "ranks",
            "operators",
            "estimators",
            "model",
            "snapshot",
            "targets",
            "probe",
            "views",
        }:
            assert "lightning.pytorch" not in path.read_text(), path
