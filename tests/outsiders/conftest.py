"""What is here are no tests by itself, and most of it needs libraries that the tests do without."""

from __future__ import annotations

from pathlib import Path

collect_ignore = [
    path.name
    for path in Path(__file__).parent.glob("*.py")
    if not path.name.startswith(("test_", "conftest"))
]
