"""The modules of the page as one script, for a page that is opened as a file."""

from __future__ import annotations

import re

from ntk_monitor.views.dashboard.files import static_file


def bundle(name: str = "dashboard.js") -> str:
    """A module of the tab with all that it imports, as one script.

    Each module becomes a function that returns what it exports; so a page that is opened as a file
    needs no other.

    Args:
        name: The module, below the folder of static files.

    Returns:
        The script; ``modules[name]`` is what the module exports.
    """
    parts: list[str] = []
    _add_module(name, parts, set())
    return "const modules = {};\n" + "\n".join(parts)


_IMPORT = re.compile(r"^import (?P<what>[^;]+?) from '\./(?P<name>[^']+)';$", re.MULTILINE)
_EXPORT = re.compile(r"^export (async function|function|const|class) (\w+)", re.MULTILINE)
_DEFAULT = re.compile(r"^export \{ (\w+) as default \};$", re.MULTILINE)


def _add_module(name: str, parts: list[str], done: set[str]) -> None:
    if name in done:
        return
    done.add(name)
    text = static_file(name)
    for found in _IMPORT.finditer(text):
        _add_module(found["name"], parts, done)

    def imported(found: re.Match[str]) -> str:
        what = found["what"]
        default = "" if what.startswith("{") else ".default"
        return f"const {what.replace(' as ', ': ')} = modules['{found['name']}']{default};"

    exports = [f"default: {found[1]}" for found in _DEFAULT.finditer(text)]
    exports = exports or [found[2] for found in _EXPORT.finditer(text)]
    text = _DEFAULT.sub("", _EXPORT.sub(r"\1 \2", _IMPORT.sub(imported, text)))
    parts.append(
        f"modules['{name}'] = (() => {{\n{text}\nreturn {{ {', '.join(exports)} }};\n}})();"
    )
