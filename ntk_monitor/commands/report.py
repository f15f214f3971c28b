"""``ntk-monitor report``: a page about runs, from the command line."""

from __future__ import annotations

import os
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.text import Text

from ntk_monitor.views.events import NoRunsError
from ntk_monitor.views.report import print_report, printable, write_report


def main(arguments: Sequence[str]) -> int:
    """Make a report.

    Args:
        arguments: What stands behind ``ntk-monitor report``.

    Returns:
        0, or 2 if there was nothing to report on.
    """
    parser = ArgumentParser(
        prog="ntk-monitor report",
        description="Write one HTML page about finished or running trainings.",
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="log folder of one run or of several"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("ntk_report.html"), help="where to write the page"
    )
    parser.add_argument(
        "--open", type=bool, default=True, help="whether to show it in a browser, if there is one"
    )
    settings = parser.parse_args(list(arguments))
    paths = [Path(run) for run in settings.runs]
    try:
        with Console(stderr=True).status("") as status:
            made = write_report(
                paths,
                Path(settings.output),
                lambda doing: status.update(Text(printable(f"ntk-monitor report: {doing}"))),
            )
    except (NoRunsError, OSError) as error:
        sys.stderr.write(printable(f"ntk-monitor report: {error}") + "\n")
        return 2
    print_report(made, Console())
    if settings.open and has_display():
        webbrowser.open(made.path.resolve().as_uri())
    return 0


def has_display() -> bool:
    """Whether a browser has a window; without one it would take over the terminal."""
    return sys.platform != "linux" or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))
