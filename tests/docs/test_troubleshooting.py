"""Every message of the package is on the page, and every message on the page is in the package."""

import ast
import re
from pathlib import Path

import pytest
from support.scripts import script
from test_messages import MISTAKES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()


READER = script("messages")


def plain(text: str) -> str:
    return " ".join(text.split())


def explained() -> list[str]:
    """The messages that have an answer: terms of definition lists."""
    terms = re.findall(r"^`(.+)`\n: \S", PAGE.split(READER.SIGN)[0], re.MULTILINE)
    assert len(terms) > 30
    return terms


def texts() -> list[str]:
    """Every text in the source, with "…" for its expressions."""
    trees = (ast.parse(file.read_text()) for file in READER.PACKAGE.rglob("*.py"))
    kinds = ast.Constant | ast.JoinedStr | ast.BinOp
    found = [
        READER.text_of(node, READER.named(tree))
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, kinds)
    ]
    return [*map(plain, found), *READER.messages()]


def test_the_list_is_that_of_the_source() -> None:
    listed = PAGE.split(READER.SIGN)[1].strip()
    assert listed == READER.listed(), "python docs/messages.py writes it anew"
    assert listed.count("\n") > 200


def test_every_explained_message_is_said_by_the_package() -> None:
    found = "\n".join(texts())
    for message in explained():
        for part in message.split("…"):
            fragment = part.strip(" .,;:")
            assert fragment in found, message


@pytest.mark.parametrize("name", MISTAKES)
def test_what_a_newcomer_gets_wrong_is_on_the_page(name: str) -> None:
    act, kind, _ = MISTAKES[name]
    with pytest.raises(kind) as raised:
        act()
    patterns = [re.escape(text).replace("…", ".*") for text in [*explained(), *READER.messages()]]
    found = [p for p in patterns if p.strip(".* ") and re.fullmatch(p, str(raised.value))]
    assert any(sum(letter.isalpha() for letter in pattern) >= READER.FEWEST for pattern in found)
