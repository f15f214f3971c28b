"""The site is built without a warning, and its pages say what the package has."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.scripts import script

from ntk_monitor.views.glossary import GLOSSARY, IN_RECORDS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
NEEDED = (
    "sphinx",
    "myst_nb",
    "furo",
    "sphinx_design",
    "sphinx_copybutton",
    "sphinx-mathjax-offline",
)
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
PAGES = [*sorted(DOCS.glob("*.md")), *sorted(DOCS.glob("tutorials/*.md"))]


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {MISSING}; .[docs] has them")
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    """Every reference leads somewhere; `make docs` runs the tutorials as well."""
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", "-b", "html"]
    command += ["-D", "nb_execution_mode=off", "-D", "suppress_warnings=myst-nb.lexer"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": ""}
    built = subprocess.run(
        [*command, "-d", tmp_path / "trees", DOCS, tmp_path / "html"],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr[-5000:]
    for page in PAGES:
        html = (tmp_path / "html" / page.relative_to(DOCS)).with_suffix(".html").read_text()
        assert "<h1>" in html, page
    tutorials = {page.stem for page in (tmp_path / "html" / "tutorials").glob("*.html")}
    assert len(tutorials) > 4


FILL = script("fill_numbers")
NUMBERS = (DOCS / "numbers.md").read_text()


def test_every_logged_tag_is_on_the_page() -> None:
    tags = [tag for group in FILL.GROUPS.values() for tag in group]
    assert sorted(tags) == sorted(term.tag for term in GLOSSARY)
    assert set(tags) == set(FILL.GOOD)
    for run in FILL.MEASURED.values():
        logged = {re.sub(r"mode_\d+", "mode_<i>", tag) for row in run["history"] for tag in row}
        assert {tag.removesuffix("_stderr") for tag in logged - {"step"}} <= set(tags)
        assert len(run["history"]) > 20


def test_the_pages_say_what_was_measured() -> None:
    """``python docs/fill_numbers.py`` writes them anew."""
    assert NUMBERS.split("<!-- numbers -->")[1].strip() == "\n".join(FILL.sections()).strip()
    assert NUMBERS.split("<!-- printed -->")[1].strip() == FILL.printed()
    assert NUMBERS.split("<!-- records -->")[1].strip() == FILL.records()
    assert NUMBERS.split("<!-- cosines -->")[1].strip() == FILL.cosines()
    verdict = (DOCS / "what.md").read_text().split("<!-- verdict -->")[1].strip()
    assert verdict == f"> {FILL.MEASURED['stalled']['verdict']}"


def test_what_the_pictures_page_says_was_measured() -> None:
    text = (DOCS / "what.md").read_text()
    for run in FILL.MEASURED.values():
        assert f"{run['steps']} steps" in text
        assert f"{run['history'][-1]['loss/now']:.3f}" in text
        assert all(f"{share:.0%}".replace("%", " %") in text for share in run["shares"])


def test_every_word_of_the_glossary_is_a_link_somewhere() -> None:
    glossary = (DOCS / "glossary.md").read_text()
    words = re.findall(r"^(\S.*)\n  \S", glossary, re.MULTILINE)
    assert len(words) > 25
    others = "".join(page.read_text() for page in PAGES if page.stem != "glossary")
    linked = {
        re.sub(r".*<(.+)>", r"\1", found) for found in re.findall(r"\{term\}`([^`]+)`", others)
    }
    assert linked == set(words)


def test_what_a_verdict_can_say_is_on_the_decision_page() -> None:
    page = (DOCS / "flat.md").read_text()
    states = [term.name for term in IN_RECORDS if term.tag.startswith("verdict/")]
    assert len(states) > 5
    for state in states:
        assert state == "has not moved" or f"*{state}*" in page, state
    assert "has not moved" in page


def test_the_layer_that_tells_of_its_products_runs() -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", (DOCS / "your_model.md").read_text(), re.DOTALL)
    names = {"MyFusedLayer": type("MyFusedLayer", (torch.nn.Linear,), {})}
    exec(snippet, names)
    layer = names["MyFusedLayer"](3, 2)
    ((weight, activity, bias),) = names["read"](layer, torch.ones(1, 3))  # type: ignore[operator]
    assert weight is layer.weight
    assert bias is layer.bias
    assert activity.shape == (1, 3)
