"""``ntk-monitor report``: a page about runs, from the command line."""

from __future__ import annotations

import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser
from rich.console import Console

from ntk_monitor.views.events import NoRunsError
from ntk_monitor.views.report import print_report, write_report

SUMMARY = "ntk-monitor report RUN...: one HTML page about finished or running trainings"


def report(arguments: Sequence[str]) -> int:
    """Make a report.

    Args:
        arguments: What stands behind ``ntk-monitor report``.

    Returns:
        0, or 2 if there was nothing to report on.
    """
    parser = ArgumentParser(prog="ntk-monitor report", description=SUMMARY)
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="log folder of one run or of several"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("ntk_report.html"), help="where to write the page"
    )
    parser.add_argument("--open", type=bool, default=True, help="whether to show it in a browser")
    settings = parser.parse_args(list(arguments))
    try:
        made = write_report([Path(run) for run in settings.runs], Path(settings.output))
    except (NoRunsError, OSError) as error:
        sys.stderr.write(f"ntk-monitor report: {error}\n")
        return 2
    print_report(made, Console())
    if settings.open:
        webbrowser.open(made.path.resolve().as_uri())
    return 0
