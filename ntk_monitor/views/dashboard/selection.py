"""Which tags and which records of a run are read, and what is said of those that are skipped."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from ntk_monitor.views.glossary import GLOSSARY, OPTIONAL, tags_like
from ntk_monitor.views.record import SNAPSHOT_TAG

Item = TypeVar("Item")
MOST_NOTES = 6
LOSSES = 2
"""Curves of a run that are called a loss, beside ours."""

_NUMBER = rf"{tags_like(GLOSSARY + OPTIONAL)}(?:_stderr)?"
_TAG = re.compile(rf"(?P<state>(?:[^/]+/)?)(?P<tag>{_NUMBER}|{SNAPSHOT_TAG})")
_SHARED = re.compile(r"ntk/overhead|alert/.*")
_WHOLE = b'"tier":"kernel"'


def shown(notes: Iterable[str]) -> list[str]:
    """Notes as they are told: the first few, once each, and how many more there are.

    Args:
        notes: What was skipped, and why.

    Returns:
        The notes.
    """
    once = list(dict.fromkeys(notes))
    more = len(once) - MOST_NOTES
    return once[:MOST_NOTES] + ([f"and {more} more like these"] if more > 0 else [])


def evenly(items: Sequence[Item], most: int) -> list[Item]:
    """Evenly spaced entries, with the first and the last.

    Args:
        items: What to choose from.
        most: How many at most; if 1, the last.

    Returns:
        The entries in their order.
    """
    if len(items) <= most:
        return list(items)
    if most == 1:
        return [items[-1]]
    last = len(items) - 1
    return [items[round(i * last / (most - 1))] for i in range(most)]


def chosen(contents: Mapping[int, Any], most: int) -> list[int]:
    """Steps of records, evenly; half of them, if need be, such that hold the kernel's numbers.

    Args:
        contents: Records by their step.
        most: How many at most.

    Returns:
        The steps, ascending.
    """
    whole = [step for step, content in contents.items() if _WHOLE in _bytes(content)]
    rest = [step for step in contents if step not in set(whole)]
    if most < 4 or not whole or not rest or len(contents) <= most:
        return evenly(list(contents), most)
    kept = evenly(whole, most // 2)
    return sorted({*kept, *evenly(rest, most - len(kept) - 1), max(contents)})


def _bytes(content: Any) -> bytes:  # noqa: ANN401
    """The text of a tensor, whatever it holds."""
    first = content.ravel().tolist()[:1] if hasattr(content, "ravel") else [content]
    return first[0] if first and isinstance(first[0], bytes) else str(first).encode()


def states_in(*listings: Mapping[str, Iterable[str]]) -> dict[str, set[str]]:
    """What the tags of each followed state begin with.

    Args:
        listings: Tags by run.

    Returns:
        The beginnings by run.
    """
    states: dict[str, set[str]] = {}
    for listing in listings:
        for run, tags in listing.items():
            for tag in tags:
                found = _TAG.fullmatch(tag)
                if found and not _SHARED.fullmatch(found["tag"]):
                    states.setdefault(run, set()).add(found["state"])
    return states


def wanted_tags(tags: Iterable[str], state: str) -> dict[str, str]:
    """The tags to read.

    Args:
        tags: All tags of a run.
        state: What those of the state begin with.

    Returns:
        The tags, each with its name without the state's.
    """
    wanted = {}
    losses = []
    for tag in sorted(tags):
        found = _TAG.fullmatch(tag)
        if found is None:
            if "loss" in tag.lower() and "ntk" not in tag.lower():
                losses.append(tag)
        elif found["state"] == state or (not found["state"] and _SHARED.fullmatch(found["tag"])):
            wanted[tag] = found["tag"]
    losses.sort(key=lambda tag: ("epoch" in tag, len(tag)))
    return wanted | {tag: tag for tag in losses[:LOSSES]}


def natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts ``version_2`` before ``version_10``.

    Args:
        name: Of a run.

    Returns:
        The key.
    """
    return [(int(part or 0), text) for text, part in re.findall(r"(\D*)(\d*)", name)]
