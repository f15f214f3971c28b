"""What is in the graph behind a tensor."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any


def graph_behind(nodes: Iterable[Any]) -> set[Any]:
    """The nodes and, by id, the leaves of a graph; costs no product.

    Args:
        nodes: Where to begin (``tensor.grad_fn``); None is left out.

    Returns:
        All nodes behind these, themselves included.
    """
    seen: set[Any] = set()
    stack = list(nodes)
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        parents = getattr(node, "next_functions", ())
        if parents:
            stack += [parent for parent, _ in parents]
        elif (variable := getattr(node, "variable", None)) is not None:
            seen.add(id(variable))
    return seen


def nearest(node: Any, names: Mapping[Any, str]) -> str | None:  # noqa: ANN401
    """The named node that is the fewest steps behind another.

    Args:
        node: Where to begin.
        names: Nodes with a name.

    Returns:
        The name, or None.
    """
    seen, waiting = {node}, deque([node])
    while waiting:
        node = waiting.popleft()
        if node in names:
            return names[node]
        for parent, _ in node.next_functions:
            if parent is not None and parent not in seen:
                seen.add(parent)
                waiting.append(parent)
    return None
