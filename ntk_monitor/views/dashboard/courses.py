"""What a target mode is in the data: its time course, and which outputs it is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ntk_monitor.views.dashboard.selection import evenly

TRIALS = 6
STEPS = 45
OUTPUTS = 3
"""The most that a picture in a cell shows, and that stand in words beside it."""

Record = Mapping[str, Any]


def in_data(record: Record, index: int, names: Sequence[str]) -> dict[str, Any]:
    """What the record of a snapshot knows of one mode.

    Args:
        record: The record; empty where there is none.
        index: The mode's number.
        names: Names of the outputs, if they have any.

    Returns:
        ``course``, lines of numbers from -1 to 1 over time, one for each of some trials, or one
        over trials where there is no time; ``over``, what they run over; ``outputs``, pairs of a
        name and its entry of ``v_i``; and ``sites``, pairs of a weight and its share of the gain.
        What is not known is empty.
    """
    modes = record.get("target_modes", ())
    place = next((i for i, mode in enumerate(modes) if mode["index"] == index), None)
    if place is None:
        return {"course": [], "over": "time", "outputs": [], "sites": []}
    mode = modes[place]
    named = [] if mode.get("output") else names  # of several outputs these are another's, perhaps
    outputs = [[_name(i, named), part] for i, part in mode.get("by_output", ())][:OUTPUTS]
    patterns = record["target_patterns"]
    over = "trials" if len(patterns["steps"]) == 1 else "time"
    sites = [list(pair) for pair in mode.get("by_site", ())]
    items = patterns["items"]
    rows = items[place]["values"] if place < len(items) else []
    course = [[row[0] for row in rows]] if over == "trials" and rows else rows
    largest = max((abs(v) for row in course for v in row if v is not None), default=0) or 1
    lines = [[None if v is None else round(v / largest, 3) for v in evenly(row, STEPS)]
             for row in evenly(course, TRIALS)]  # fmt: skip
    return {"course": lines, "over": over, "outputs": outputs, "sites": sites}


def _name(output: int, names: Sequence[str]) -> str:
    return names[output] if 0 <= output < len(names) else f"output {output}"
