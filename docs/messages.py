"""List every message of the package in docs/troubleshooting.md, read off the source.

    python docs/messages.py

An expression within a message is written as "…".
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
PACKAGE = HERE.parent / "ntk_monitor"
SIGN = "<!-- messages -->"
SAYING = {"say", "remark", "inform", "give_up", "warn", "_warn", "rank_zero_info", "_tell"}
"""Functions that are handed a message."""
SIGNALS = {"GraphNeededError", "StopIteration", "KeyError", "AttributeError", "IndexError"}
"""Exceptions that the package, or python, catches itself."""
FEWEST = 12
"""Letters that make a message."""


def main() -> None:
    """Write the list."""
    file = HERE / "troubleshooting.md"
    before, _, after = file.read_text().split(SIGN)
    file.write_text(f"{before}{SIGN}\n\n{listed()}\n\n{SIGN}{after}")


def listed() -> str:
    """All messages, in the order of their letters.

    Returns:
        A list in Markdown.
    """
    found = sorted(set(messages()), key=lambda text: text.lstrip("…`'\" ").lower())
    return "\n".join(f"- {quoted(text)}" for text in found)


def quoted(text: str) -> str:
    """A message as code.

    Args:
        text: The message.

    Returns:
        The same between as many ticks as it needs.
    """
    ticks = "``" if "`" in text else "`"
    space = " " if "`" in text else ""
    return f"{ticks}{space}{text}{space}{ticks}"


def messages() -> Iterator[str]:
    """Every message in the source.

    Yields:
        Each with "…" for its expressions.
    """
    for file in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(file.read_text())
        constants = named(tree)
        for node in ast.walk(tree):
            for text in said(node, constants):
                plain = " ".join(text.split())
                if sum(letter.isalpha() for letter in plain) >= FEWEST:
                    yield plain


def said(node: ast.AST, constants: dict[str, str]) -> Iterator[str]:
    """The messages of one statement or call.

    Args:
        node: A node of the source.
        constants: Texts of the module that have a name.

    Yields:
        Messages.
    """
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
        if name_of(node.exc.func) not in SIGNALS:
            yield text_of(node.exc.args[0], constants)
    elif isinstance(node, ast.Call):
        name = name_of(node.func)
        if name == "require" and len(node.args) >= 3:
            argument, expected = (text_of(each, constants) for each in node.args[1:3])
            yield f"{argument} must be {expected}, got …"
        elif name in SAYING:
            yield from (text_of(each, constants) for each in node.args)
        elif name == "append" and "remarks" in ast.unparse(node.func):
            yield text_of(node.args[0], constants)


def named(tree: ast.Module) -> dict[str, str]:
    """Texts that are constants of a module.

    Args:
        tree: The module.

    Returns:
        The texts by their names.
    """
    found = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            text = text_of(node.value, {})
            if text != "…":
                found[node.targets[0].id] = text
    return found


def name_of(node: ast.expr) -> str:
    """The last part of a name."""
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def text_of(node: ast.expr, constants: dict[str, str]) -> str:
    """A text as the source has it, with "…" for each expression.

    Args:
        node: An expression.
        constants: Texts that have a name.

    Returns:
        The text.
    """
    match node:
        case ast.Constant(value=str(text)):
            found = text
        case ast.JoinedStr(values=parts):
            found = "".join(text_of(each, constants) for each in parts)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            found = text_of(left, constants) + text_of(right, constants)
        case (
            ast.FormattedValue(value=inner)
            | ast.IfExp(body=inner)
            | ast.Call(func=ast.Attribute(attr="rstrip", value=inner))
        ):
            found = text_of(inner, constants)
        case ast.Name(id=name):
            found = constants.get(name, "…")
        case _:
            found = "…"
    return found


if __name__ == "__main__":
    main()
