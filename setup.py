"""Says which Python is needed before pip looks for packages; all else is in pyproject.toml."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036
    sys.exit(
        "ntk_monitor needs Python 3.11 or newer, and this is Python "
        + ".".join(map(str, sys.version_info[:2]))
        + ": make the virtual environment with python3.11, say"
    )

from setuptools import setup

setup()
