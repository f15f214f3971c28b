"""Inventories of other projects' names for intersphinx, made from a list, without a network.

``docs/inventories.toml`` lists each project's public address and the names that our pages and
docstrings refer to; a name that is missing there is a warning of the build, hence an error.
"""

from __future__ import annotations

import tomllib
import zlib
from pathlib import Path

HEADER = "# Sphinx inventory version 2\n# Project: {}\n# Version: \n# Rest is compressed by zlib.\n"


def mapping(names: Path, folder: Path) -> dict[str, tuple[str, str]]:
    """Write an inventory for each project of a list.

    Args:
        names: The list.
        folder: Where inventories go.

    Returns:
        What `intersphinx_mapping` is to be: for each project its address and its inventory.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for project, entry in tomllib.loads(names.read_text()).items():
        lines = [
            f"{name} {role} 1 {place} -"
            for role, places in entry["names"].items()
            for name, place in sorted(places.items())
        ]
        file = folder / f"{project}.inv"
        body = zlib.compress("".join(f"{line}\n" for line in lines).encode())
        file.write_bytes(HEADER.format(project).encode() + body)
        found[project] = (entry["url"], str(file))
    return found
