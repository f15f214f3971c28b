"""Imports point one way."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

import ntk_monitor

ORDER = (
    "compat",
    "checks",
    "keywords",
    "uncertainty",
    "processes",
    "notices",
    "reason",
    "operators",
    "estimators",
    "model",
    "brief",
    "plots",
    "snapshot",
    "targets",
    "pulled_modes",
    "descent",
    "probing",
    "probe",
    "metrics",
    "views",
    "monitor",
    "tasks",
    "models",
    "remedies",
    "checkpoints",
    "commands",
    "cli",
)
"""Each may import those before it, and itself."""
ROOMS = {
    "": ORDER,
    "model": (
        "parameters",
        "isolation",
        "batch",
        "state",
        "sites",
        "step",
        "derivatives",
        "passes",
        "discovery",
        "second_pass",
        "linearization",
        "site_shares",
        "linearize",
    ),
    "monitor": (
        "failures",
        "host",
        "budget",
        "schedule",
        "plan_messages",
        "score",
        "probe_batch",
        "tracked_state",
        "settings",
        "measurement",
        "reporting",
        "base",
        "alerts",
        "integrations",
        "transformers",
    ),
    "monitor.integrations": ("lightning", "loop_host", "loop", "transformers"),
}
"""The same inside of a folder, for what is in it."""
ROOT = Path(ntk_monitor.__file__).parent


@pytest.mark.parametrize("room", ROOMS)
def test_every_layer_imports_only_from_lower_ones(room: str) -> None:
    order, folder = ROOMS[room], ROOT.joinpath(*filter(None, room.split(".")))
    inside = f"ntk_monitor.{room}." if room else "ntk_monitor."
    seen = set()
    for path in folder.rglob("*.py"):
        layer = path.relative_to(folder).parts[0].removesuffix(".py")
        if layer == "__init__":
            continue
        seen.add(layer)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
                inner = [name.removeprefix(inside) for name in names if name.startswith(inside)]
                for imported in {name.split(".")[0] for name in inner} & set(order):
                    lower = order.index(imported) <= order.index(layer)
                    assert lower, f"{path} imports {imported}"
    assert seen == set(order)


def test_no_module_imports_itself_by_way_of_others() -> None:
    """There are no circles of imports, those inside of functions and for types included."""
    graph: dict[str, set[str]] = {}
    names = {
        "ntk_monitor." + ".".join(p.relative_to(ROOT).with_suffix("").parts): p
        for p in ROOT.rglob("*.py")
    }
    for name, path in names.items():
        found = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                found |= {node.module, *(f"{node.module}.{a.name}" for a in node.names)}
        graph[name] = found & set(names)
    sorter = graphlib.TopologicalSorter(graph)
    sorter.prepare()  # raises a CycleError, which names them


LIGHTNING = {
    "checkpoints.py",
    "commands/fit.py",
    "commands/from_config.py",
    "models/gru.py",
    "monitor/integrations/lightning/alert.py",
    "monitor/integrations/lightning/callback.py",
    "monitor/integrations/lightning/trainer.py",
    "remedies/lightning.py",
    "tasks/memory_pro.py",
}


def test_only_the_lightning_side_imports_lightning() -> None:
    found = set()
    for path in ROOT.rglob("*.py"):
        nodes = [n for n in ast.walk(ast.parse(path.read_text())) if not isinstance(n, ast.alias)]
        names = {n.module or "" for n in nodes if isinstance(n, ast.ImportFrom)}
        names |= {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
        if {name.partition(".")[0] for name in names} & {"lightning", "pytorch_lightning"}:
            found.add(path.relative_to(ROOT).as_posix())
    assert found == LIGHTNING


def test_all_else_is_imported_without_lightning() -> None:
    """Whatever it imports in turn, too; ``transformers`` stands for its Trainer."""
    other = {
        "monitor/integrations/transformers.py",
        "monitor/transformers.py",
        "remedies/transformers.py",
        "views/dashboard/plugin.py",
    }
    other.add("remedies/loaders.py")  # which asks what a Lightning module overrides
    skipped = LIGHTNING | other
    paths = [path.relative_to(ROOT) for path in ROOT.rglob("*.py") if path.name != "__init__.py"]
    modules = [
        "ntk_monitor." + ".".join(path.with_suffix("").parts)
        for path in paths
        if path.as_posix() not in skipped and path.parts[0] not in {"models", "tasks"}
    ]
    code = f"""
import importlib, sys, torchmetrics  # an old torchmetrics imports some of them itself
others = set(sys.modules)
for name in {sorted(modules)}:
    importlib.import_module(name)
heavy = {{"lightning", "pytorch_lightning", "lightning_fabric", "accelerate"}}
new = set(sys.modules) - others
print(sorted(heavy & new), "transformers.trainer" in new)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[] False"
