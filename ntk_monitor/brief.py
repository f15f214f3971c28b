"""A measurement in ten lines, as text and as HTML."""

from __future__ import annotations

import math
from html import escape
from typing import Any, NamedTuple

from ntk_monitor.uncertainty import Estimate

MOST_MODES = 3
"""Target modes that have a line of their own."""


class Line(NamedTuple):
    """A number.

    Attributes:
        name: What it is.
        value: The number, with its error.
        meaning: What it says, and what is good.
    """

    name: str
    value: str
    meaning: str


def head(snapshot: Any) -> str:  # noqa: ANN401
    """What was measured.

    Args:
        snapshot: The measurement.

    Returns:
        A line.
    """
    trials, steps, units = snapshot.state_shape
    shape = f"{trials} trials x {steps} steps x {units} units"
    state = ", ".join(snapshot.state) or "-"
    loss = "" if snapshot.loss is None else f", loss {snapshot.loss:.4g}"
    spent = f"{snapshot.products} products, {snapshot.seconds:.2g} s"
    return f"Snapshot of {state} ({shape}){loss}; tier {snapshot.tier}, {spent}"


def lines(snapshot: Any) -> list[Line]:  # noqa: ANN401
    """The numbers that one looks at first.

    Args:
        snapshot: The measurement.

    Returns:
        At most nine of them.
    """
    found = [
        Line(f"target mode {mode.index}", _learned(mode), _prospect(mode))
        for mode in snapshot.target_modes[:MOST_MODES]
    ]
    more = len(snapshot.target_modes) - MOST_MODES
    if more > 0:
        found.append(Line("", f"and {more} more", "in target_modes"))
    if snapshot.tier == "kernel":
        k, n = math.prod(snapshot.state_shape[:2]), snapshot.state_shape[2]
        cosine, rank = snapshot.core_cosine, snapshot.effective_rank
        of_time, of_units = snapshot.temporal_effective_rank, snapshot.spatial_effective_rank
        says = "1: a forward pass predicts what a step can move; 0 to 1"
        directions = f"directions of the state that a step can move, of {k * n}"
        courses = f"time courses of {k}, unit directions of {n}; near 1 is poor"
        found += [
            Line("core cosine", _number(cosine), says),
            Line("effective rank", _number(rank), directions),
            Line("in time, in units", f"{_number(of_time)}, {_number(of_units)}", courses),
            Line("trace", _number(snapshot.trace), "sensitivity of the state to the parameters"),
        ]
    share = f"{snapshot.coverage.fraction:.0%}"
    found.append(Line("coverage", share, "of the parameters behind the state are in the core"))
    return found


def text(snapshot: Any) -> str:  # noqa: ANN401
    """The measurement as text.

    Args:
        snapshot: The measurement.

    Returns:
        At most ten lines.
    """
    found = lines(snapshot)
    widths = [max(map(len, column)) for column in list(zip(*found, strict=True))[:2]]
    rows = (f"  {a:{widths[0]}}  {b:{widths[1]}}  {c}".rstrip() for a, b, c in found)
    return "\n".join([head(snapshot), *rows])


def html(snapshot: Any) -> str:  # noqa: ANN401
    """The measurement as an HTML table.

    Args:
        snapshot: The measurement.

    Returns:
        The table.
    """
    rows = "".join(
        f"<tr><th style='text-align:left'>{escape(a)}</th><td>{escape(b)}</td>"
        f"<td style='text-align:left'>{escape(c)}</td></tr>"
        for a, b, c in lines(snapshot)
    )
    return f"<table><caption>{escape(head(snapshot))}</caption>{rows}</table>"


def _number(estimate: Estimate) -> str:
    error = f" ± {estimate.stderr:.1g}" if estimate.stderr else ""
    return f"{estimate.value:.3g}{error}"


def _learned(mode: Any) -> str:  # noqa: ANN401
    share = "" if math.isnan(mode.share) else f" of {mode.share:.0%} of the target"
    return f"learned {mode.learned:z.2f}{share}"


def _prospect(mode: Any) -> str:  # noqa: ANN401
    if mode.steps_to_learn is None:
        return "0 absent, 1 solved; steps to learn need a learning_rate"
    if math.isinf(mode.steps_to_learn):
        return "by the forecast never learned"
    return f"{mode.steps_to_learn:.3g} steps until it is 0.9"
