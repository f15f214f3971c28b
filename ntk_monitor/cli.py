"""``ntk-monitor``: finds the command that is asked for, and imports nothing else."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import version
from typing import NamedTuple

from ntk_monitor.commands.brief_help import HELP_ALL, brief_help


class Command(NamedTuple):
    """A command.

    Attributes:
        usage: How it is called.
        does: What it does.
        module: The file in `ntk_monitor.commands` whose ``main`` it is.
    """

    usage: str
    does: str
    module: str


COMMANDS: dict[str, Command] = {
    "demo": Command("demo", "train the paper's Network 1, and show what the alert says", "demo"),
    "fit": Command("fit --config FILE", "train what a config describes, under the monitor", "fit"),
    "probe": Command(
        "probe --config FILE [--ckpt FILE]", "measure a model as it begins, or checkpoints", "fit"
    ),
    "try": Command(
        "try --config FILE [--ckpt FILE]",
        "try what helps a stalled training, and rank it",
        "trials",
    ),
    "view": Command("view [FOLDER]", "open TensorBoard on its NTK tab", "view"),
    "report": Command("report RUN...", "write one HTML page about runs", "report"),
}


def main() -> int:
    """Run a command of ``sys.argv``.

    Returns:
        Its exit code.
    """
    arguments = sys.argv[1:]
    first = arguments[0] if arguments else "--help"
    if first in {"-h", "--help"}:
        sys.stdout.write(helped())
        return 0
    if first == "--version":
        sys.stdout.write(f"ntk-monitor {version('ntk-monitor')}\n")
        return 0
    if first not in COMMANDS:
        sys.stderr.write(unknown(first))
        return 2
    if COMMANDS[first].module == "fit" and {"-h", "--help"} & set(arguments[1:]):
        sys.stdout.write(brief_help(first))
        return 0
    arguments = ["--help" if argument == HELP_ALL else argument for argument in arguments]
    module = import_module(f"ntk_monitor.commands.{COMMANDS[first].module}")
    run: Callable[[Sequence[str]], int] = module.main
    return run(arguments if COMMANDS[first].module == "fit" else arguments[1:])


def helped() -> str:
    """What ``--help`` says."""
    width = max(len(command.usage) for command in COMMANDS.values())
    lines = [f"  {command.usage:{width}}  {command.does}" for command in COMMANDS.values()]
    return "\n".join([
        "usage: ntk-monitor COMMAND ...",
        "",
        "See what gradient descent can and cannot learn next.",
        "",
        *lines,
        f"  {'--version':{width}}  print the version",
        "",
        "ntk-monitor COMMAND --help has the arguments of each.",
        "",
    ])


def unknown(name: str) -> str:
    """What is said of a command that there is not.

    Args:
        name: What was asked for.

    Returns:
        A line, with the one that may be meant.
    """
    close = get_close_matches(name, COMMANDS, n=1)
    meant = f" Did you mean {close[0]}?" if close else ""
    return (
        f"ntk-monitor: COMMAND must be one of {', '.join(COMMANDS)}, got {name!r}.{meant} "
        "ntk-monitor --help says what each does.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
