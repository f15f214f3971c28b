"""A run's last snapshot as tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ntk_monitor.snapshot import Snapshot, TargetMode


def verdict(mode: TargetMode, *, stalled: bool, learned_threshold: float = 0.9) -> str:
    """One word for a target mode.

    Args:
        mode: The mode.
        stalled: Whether an alert is standing.
        learned_threshold: Learned fraction from which it counts as learned.

    Returns:
        ``"stalled"``, ``"learned"`` or ``"learning"``.
    """
    if stalled:
        return "stalled"
    return "learned" if mode.learned >= learned_threshold else "learning"


def summary_tables(snapshot: Snapshot, stalled: Sequence[int] = ()) -> list[Table]:
    """What the NTK can and cannot see, as rich tables.

    Args:
        snapshot: The measurement.
        stalled: Target modes with a standing alert, from 1.

    Returns:
        A table of the target modes, where there are any, and one of the kernel.
    """
    tables = [_kernel(snapshot)]
    if snapshot.target_modes:
        tables.insert(0, _targets(snapshot, stalled))
    return tables


def of_several(snapshot: Snapshot) -> bool:
    """Whether the target modes are of several outputs, whose names tell them apart.

    Args:
        snapshot: The measurement.

    Returns:
        True if they are.
    """
    return len({mode.output for mode in snapshot.target_modes}) > 1


SHOWN = 6
"""How many sites and how many parameters outside the core the introduction names."""


def introduction(snapshot: Snapshot, who: str = "NTKMonitor") -> str:
    """What is measured and how, for the first probe of a run.

    Args:
        snapshot: The measurement.
        who: Who measures.

    Returns:
        A table as plain text: the step function and its loss, the state, the outputs and targets,
        each with the argument that names another; the weight sites in the core, what is outside,
        and how products are computed.
    """
    B, T, n = snapshot.state_shape
    coverage = snapshot.coverage
    table = Table(title=f"{who}: what is measured", show_header=False, title_justify="left")
    loss = "" if snapshot.loss is None else f", loss {snapshot.loss:.4g}"
    table.add_row("step", escape(f"{snapshot.step}{loss}  (another: loss_fn, forward_fn)"))
    modules = ", ".join(snapshot.state) or "?"
    rows = f"{B} trials x {T} steps x {n} units"
    table.add_row("state", escape(f"{modules}: {rows}  (another: state)"))
    for output in snapshot.outputs[:SHOWN]:
        shape = " x ".join(map(str, output.shape))
        table.add_row("output", escape(f"{output.name}: {shape}, by {output.loss}"))
        table.add_row("target", escape(f"{output.target}  (another: target_fn)"))
    _add_rest(table, len(snapshot.outputs))
    modes = [f"{mode.share:.0%}" for mode in snapshot.target_modes]
    if modes:
        table.add_row(
            "modes", f"{len(modes)}, with {', '.join(modes)} of their target  (more: modes)"
        )
    table.add_row(
        "core",
        f"{len(coverage.sites)} weight site{'s' * (len(coverage.sites) != 1)} with "
        f"{coverage.fraction:.0%} of the parameters behind the state",
    )
    for name, columns, units in coverage.sites[:SHOWN]:
        table.add_row("", escape(f"{name}: {columns} -> {units}"))
    _add_rest(table, len(coverage.sites))
    for name, reason in list(coverage.left_out.items())[:SHOWN]:
        kind = "missed" if name in coverage.missed else "outside"
        table.add_row(kind, escape(f"{name}: {reason}"))
    _add_rest(table, len(coverage.left_out))
    table.add_row("products", f"{snapshot.products} by {snapshot.method}")
    text = StringIO()
    Console(file=text, width=100).print(table)
    return text.getvalue().rstrip()


def _add_rest(table: Table, count: int) -> None:
    if count > SHOWN:
        table.add_row("", f"and {count - SHOWN} more")


def _targets(snapshot: Snapshot, stalled: Sequence[int]) -> Table:
    table = Table(title="What gradient descent can see of the target")
    for column in ("mode", "size", "learned", "steps to learn", "alignment", "core overlap", ""):
        table.add_column(column, justify="right" if column else "left")
    styles = {"stalled": "bold red", "learned": "green", "learning": "yellow"}
    named = of_several(snapshot)
    for mode in snapshot.target_modes:
        word = verdict(mode, stalled=mode.index in stalled)
        steps = "-" if mode.steps_to_learn is None else f"{mode.steps_to_learn:.3g}"
        table.add_row(
            escape(f"{mode.index} {mode.output}" if named else str(mode.index)),
            f"{mode.singular_value:.3g}",
            f"{mode.learned:z.3f}",
            steps,
            f"{mode.alignment.value:.2g}",
            f"{mode.core_overlap:.2g}",
            f"[{styles[word]}]{word}[/]",
        )
    return table


def _kernel(snapshot: Snapshot) -> Table:
    B, T, n = snapshot.state_shape
    table = Table(
        title="What gradient descent can move",
        caption=f"{snapshot.products} products by {snapshot.method} in {snapshot.seconds:.2f} s on "
        f"a state of {B} x {T} x {n}; the core covers {snapshot.coverage.fraction:.0%} of the "
        "parameters behind it",
    )
    table.add_column("number")
    table.add_column("value", justify="right")
    table.add_column("of at most", justify="right")
    rows = [
        ("core cosine", snapshot.core_cosine, "1"),
        ("temporal core cosine", snapshot.temporal_core_cosine, "1"),
        ("effective rank", snapshot.effective_rank, str(B * T * n)),
        ("temporal effective rank", snapshot.temporal_effective_rank, str(B * T)),
        ("spatial effective rank", snapshot.spatial_effective_rank, str(n)),
        ("core effective rank", f"{snapshot.core_effective_rank:.3g}", str(B * T)),
    ]
    for name, value, limit in rows:
        table.add_row(name, str(value), limit)
    return table
