"""The glossary explains every logged number, and README names some of them."""

import re
from pathlib import Path

from support.event_runs import small_snapshot

from ntk_monitor.views.glossary import GLOSSARY, IN_RECORDS, OPTIONAL, WORDS, explained

README = Path(__file__).parents[2] / "README.md"


def test_readme_names_tags_of_the_glossary() -> None:
    row = r"^\| `((?:ntk|core|target|alert|loss|gradient|update)/[^`]+)` \|"
    rows = re.findall(row, README.read_text(), re.MULTILINE)
    assert len(rows) > 4
    assert set(rows) <= {term.tag for term in GLOSSARY}  # all of them are in docs/numbers.md


def test_every_scalar_of_a_snapshot_is_explained() -> None:
    known = {term.tag for term in (*GLOSSARY, *OPTIONAL)}
    for tag in small_snapshot().scalars():
        assert re.sub(r"mode_\d+", "mode_<i>", tag).removesuffix("_stderr") in known


def test_every_term_says_everything_once() -> None:
    terms = explained()
    assert len({term["tag"] for term in terms}) == len(terms)
    assert len(terms) == len(GLOSSARY) + len(OPTIONAL) + len(IN_RECORDS) + len(WORDS)
    words = {term.tag for term in WORDS}
    for term in terms:
        assert term["meaning"].endswith(".")
        if term["tag"] not in words:
            assert all(term[name] for name in ("name", "range"))
            assert term["bad"].endswith(".")


def test_every_curve_has_a_unit() -> None:
    assert all(term.unit for term in (*GLOSSARY, *OPTIONAL))
