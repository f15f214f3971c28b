"""The pages of docs/ run, and print what they say they print."""

import doctest
from pathlib import Path

import pytest

PAGES = sorted((Path(__file__).parents[2] / "docs").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page_runs(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = doctest.testfile(str(page), module_relative=False, verbose=False)
    assert results.failed == 0, capsys.readouterr().out


def test_theory_page_computes_something() -> None:
    text = next(page for page in PAGES if page.stem == "theory").read_text()
    assert len(doctest.DocTestParser().get_examples(text)) > 40
