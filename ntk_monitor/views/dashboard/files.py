"""The files of the page, as they are installed."""

from __future__ import annotations

from importlib.resources import files

TYPES = {"js": "text/javascript", "css": "text/css"}
"""What each kind of file is, by the end of its name."""

_STATIC = files("ntk_monitor.views.dashboard") / "static"
_VENDOR = "vendor"


def static_files() -> list[str]:
    """Paths of all files of the page, below the folder of static files.

    Returns:
        Our own first, then those of others, below ``vendor/``.
    """
    own = [item.name for item in _STATIC.iterdir()]
    others = [f"{_VENDOR}/{item.name}" for item in (_STATIC / _VENDOR).iterdir()]
    return [name for name in sorted(own) + sorted(others) if name.rpartition(".")[2] in TYPES]


def static_file(name: str) -> str:
    """The text of one file.

    Args:
        name: One of `static_files`.

    Returns:
        Its text.
    """
    return _STATIC.joinpath(*name.split("/")).read_text(encoding="utf-8")
