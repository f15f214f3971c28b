"""``ntk-monitor report``: a page about runs, from the command line."""

from __future__ import annotations

import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.text import Text

from ntk_monitor.commands.display import has_display

ENDINGS = {"html": "html", "markdown": "md", "json": "json"}


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
        "--format",
        choices=tuple(ENDINGS),
        default="html",
        help="a page; markdown, to paste into an issue; or json, for programs",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=None,
        help="where to write; by default ntk_report.html, .md or .json, and - prints it",
    )
    parser.add_argument(
        "--open", type=bool, default=True, help="whether to show it in a browser, if there is one"
    )
    settings = parser.parse_args(list(arguments))
    # After --help, which is to be quick.
    from ntk_monitor.views.events import NoRunsError  # noqa: PLC0415
    from ntk_monitor.views.report import print_report, write_report  # noqa: PLC0415
    from ntk_monitor.views.rows import printable  # noqa: PLC0415

    paths = [Path(run) for run in settings.runs]
    printed = str(settings.output) == "-"
    output = None if printed else Path(settings.output or f"ntk_report.{ENDINGS[settings.format]}")
    try:
        with Console(stderr=True).status("") as status:
            made = write_report(
                paths,
                output,
                lambda doing: status.update(Text(printable(f"ntk-monitor report: {doing}"))),
                settings.format,
            )
    except (NoRunsError, OSError) as error:
        sys.stderr.write(printable(f"ntk-monitor report: {error}") + "\n")
        return 2
    if printed:
        sys.stdout.write(made.text)
        return 0
    print_report(made, Console())
    if made.path is not None and settings.format == "html" and settings.open and has_display():
        webbrowser.open(made.path.resolve().as_uri())
    return 0
