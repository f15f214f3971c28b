"""A run's last snapshot as tables for the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from io import StringIO

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from ntk_monitor.estimators import Estimate
from ntk_monitor.snapshot import Snapshot
from ntk_monitor.views.glossary import NAMES, NOW
from ntk_monitor.views.losses import Point
from ntk_monitor.views.verdict import LEARNED, Judge, ModeRow, Verdict, verdict_of

STYLES = {"stalled": "bold red", "not moving": "bold red", "learned": "green",
          "recovered": "green"}  # fmt: skip
"""How a state is printed; any other in yellow."""


def summary_verdict(
    snapshot: Snapshot,
    losses: Sequence[Point] = (),
    history: Mapping[int, Sequence[tuple[int, str]]] | None = None,
    judge: Judge | None = None,
) -> Verdict:
    """The verdict on a run, by its last snapshot.

    Args:
        snapshot: The last measurement.
        losses: Steps and losses of all probes.
        history: For each target mode the states that `StallAlert` gave it, with their steps.
        judge: What is known of the alert.

    Returns:
        The verdict.
    """
    step = losses[-1][0] if losses else None
    return verdict_of(_rows(snapshot, history or {}), losses, judge, step)


def summary_tables(
    snapshot: Snapshot,
    history: Mapping[int, Sequence[tuple[int, str]]] | None = None,
    whole: tuple[int, Snapshot] | None = None,
) -> list[Table]:
    """What the NTK can and cannot see, as rich tables.

    Args:
        snapshot: The last measurement.
        history: For each target mode the states that `StallAlert` gave it, with their steps.
        whole: The last measurement that reached the kernel, with its step, where that is another.

    Returns:
        A table of the target modes, where there are any, one of the loss and the next steps, where
        a loss is known, and one of the kernel.
    """
    tables = []
    if snapshot.target_modes:
        tables.append(_targets(snapshot, history or {}))
    if snapshot.loss is not None:
        tables.append(_now(snapshot))
    kernel, where = (snapshot, "") if whole is None else (whole[1], f", at step {whole[0]}")
    return [*tables, _kernel(kernel, where)]


def _rows(snapshot: Snapshot, history: Mapping[int, Sequence[tuple[int, str]]]) -> list[ModeRow]:
    """The target modes as the verdict takes them."""
    named = of_several(snapshot)
    rows = []
    for mode in snapshot.target_modes:
        past = list(history.get(mode.index, ()))
        seen = "learned" if mode.learned >= LEARNED else "not judged"
        since, state = past[-1] if past else (None, seen)
        low, high = mode.steps_band or (None, None)
        numbers = {"learned": mode.learned, "share": mode.share, "steps_low": low,
                   "steps_to_learn": mode.steps_to_learn, "steps_high": high}  # fmt: skip
        rows.append(ModeRow(mode.index, state, since, past, numbers, mode.output if named else ""))
    return rows


def of_several(snapshot: Snapshot) -> bool:
    """Whether the target modes are of several outputs, whose names tell them apart.

    Args:
        snapshot: The measurement.

    Returns:
        True if they are.
    """
    return len({mode.output for mode in snapshot.target_modes}) > 1


SITES = 3
"""Weight sites of the trace that the table names."""
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
    if modes := [f"{mode.share:.0%}" for mode in snapshot.target_modes]:
        shares = ", ".join(modes)
        table.add_row("modes", f"{len(modes)}, with {shares} of their target  (more: modes)")
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
    Console(file=text, width=100, force_jupyter=False).print(table)
    return text.getvalue().rstrip()


def _add_rest(table: Table, count: int) -> None:
    if count > SHOWN:
        table.add_row("", f"and {count - SHOWN} more")


def _targets(snapshot: Snapshot, history: Mapping[int, Sequence[tuple[int, str]]]) -> Table:
    table = Table(title="What becomes of the target")
    for column in ("mode", "share", "learned", "steps to learn", "core overlap", ""):
        table.add_column(column, justify="right" if column else "left")
    for row, mode in zip(_rows(snapshot, history), snapshot.target_modes, strict=True):
        table.add_row(
            escape(f"{row.index} {row.output}".strip()),
            "-" if math.isnan(mode.share) else f"{mode.share:.0%}",
            f"{mode.learned:z.3f}",
            row.steps_text,
            f"{mode.core_overlap:.2g}",
            f"[{STYLES.get(row.state, 'yellow')}]{row.state}[/]",
        )
    largest = [(mode.index, *mode.by_site[0]) for mode in snapshot.target_modes if mode.by_site]
    if largest:
        where = "; ".join(f"mode {i}: {share:.2f} in {name}" for i, name, share in largest)
        table.caption = escape(f"where most can be learned: {where}")
    return table


def _now(snapshot: Snapshot) -> Table:
    """The loss, its forecast, and what a flat loss asks for."""
    value_column = Column("value", justify="right")
    table = Table("number", value_column, title="The loss and the next steps", show_header=False)
    scalars = snapshot.scalars()
    idle = {f"record/{name}": getattr(snapshot, name) for name in ("dead_units", "saturated_units")}
    for tag in NOW:
        value, error = (scalars | idle).get(tag), scalars.get(f"{tag}_stderr")
        if value is not None and not math.isnan(value):
            text = f"{value:.3g}" if error is None else str(Estimate(value, error))
            table.add_row(NAMES[tag], text)
    return table


def _kernel(snapshot: Snapshot, where: str) -> Table:
    B, T, n = snapshot.state_shape
    table = Table(
        "number",
        *(Column(name, justify="right") for name in ("value", "of at most")),
        title=f"What gradient descent can move{where}",
        caption=f"{snapshot.products} products by {snapshot.method} in {snapshot.seconds:.2f} s on "
        f"a state of {B} x {T} x {n}; the core covers {snapshot.coverage.fraction:.0%} of the "
        "parameters behind it",
    )
    rows = [
        ("core cosine", snapshot.core_cosine, "1"),
        ("temporal core cosine", snapshot.temporal_core_cosine, "1"),
        ("effective rank", snapshot.effective_rank, str(B * T * n)),
        ("temporal effective rank", snapshot.temporal_effective_rank, str(B * T)),
        ("spatial effective rank", snapshot.spatial_effective_rank, str(n)),
    ]
    for name, value, limit in rows if snapshot.tier == "kernel" else ():
        table.add_row(name, str(value), limit)
    table.add_row("core effective rank", f"{snapshot.core_effective_rank:.3g}", str(B * T))
    shares = zip(snapshot.trace_by_site[:SITES], snapshot.trace_by_site_stderr, strict=False)
    for (name, share), error in shares:
        table.add_row(escape(f"share of the trace in {name}"), str(Estimate(share, error)), "1")
    return table
