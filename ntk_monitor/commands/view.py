"""``ntk-monitor view``: TensorBoard on its NTK tab."""

from __future__ import annotations

import sys
import time
import webbrowser
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ntk_monitor.commands.display import has_display

EVENTS = "events.out.tfevents.*"


def main(arguments: Sequence[str]) -> int:
    """Serve a folder of runs until Ctrl-C.

    Args:
        arguments: What stands behind ``ntk-monitor view``.

    Returns:
        0, or 2 if there is nothing to show.
    """
    parser = ArgumentParser(
        prog="ntk-monitor view", description="Open TensorBoard on its NTK tab, until Ctrl-C."
    )
    parser.add_argument(
        "folder", nargs="?", type=Path, default=Path(), help="a folder of runs; by default this one"
    )
    parser.add_argument("--port", type=int, default=None, help="by default any that is free")
    parser.add_argument("--host", default=None, help="by default this machine alone")
    parser.add_argument("--no-open", action="store_true", help="open no browser")
    settings = parser.parse_args(list(arguments))
    if not any(settings.folder.rglob(EVENTS)):
        sys.stderr.write(
            f"ntk-monitor view: FOLDER must have event files of TensorBoard in it, got "
            f"{settings.folder}: give the log folder of a run, or train with a TensorBoardLogger\n"
        )
        return 2
    console = Console()
    with console.status("starting TensorBoard"):
        url = serve(settings.folder, settings.port, settings.host)
    console.print(f"{url}  (Ctrl-C ends it)", markup=False, highlight=False, soft_wrap=True)
    if not settings.no_open and has_display():
        webbrowser.open(url)
    try:
        while True:
            time.sleep(1.0)
    except KeyboardInterrupt:
        return 0


def serve(folder: Path, port: int | None = None, host: str | None = None) -> str:
    """Start TensorBoard in a thread.

    Args:
        folder: Where the runs are.
        port: Where to listen; any port where left out.
        host: For whom; this machine alone where left out.

    Returns:
        The address of the NTK tab.
    """
    from tensorboard import program  # noqa: PLC0415  (after --help)

    board = program.TensorBoard()
    where = ["--host", host] if host is not None else []
    board.configure(argv=["tensorboard", "--logdir", str(folder), "--port", str(port or 0), *where])
    return f"{board.launch()}#ntk"
