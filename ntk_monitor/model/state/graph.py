"""What is in the graph behind a tensor."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor


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


def extent(value: Tensor, most: int) -> tuple[int, int]:
    """How large a recorded graph is; nothing that it keeps is looked at, or computed again.

    Args:
        value: What was computed.
        most: Operations after which to stop.

    Returns:
        How many operations there are, or one more than ``most``; and the bytes of all that they
        computed.
    """
    seen, size, waiting = set[Any](), 0, [value.grad_fn]
    while waiting and len(seen) <= most:
        node: Any = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        size += sum(math.prod(each.shape) * each.dtype.itemsize for each in node._input_metadata)
        waiting += [parent for parent, _ in node.next_functions]
    return len(seen), size
