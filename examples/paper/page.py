"""Write ``docs/reproduction.md`` from the results: ``python examples/paper/page.py``."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

from experiment import Experiment

PAGE = Path(__file__).parents[2] / "docs" / "reproduction.md"
FIGURES = ("figure5", "figure8", "figure9", "figure10")
HEAD = """# The paper's figures, reproduced

Written by `python examples/paper/page.py` from the results of the commands below (`--full`, five
seeds; `--quick` takes about a minute). Each claim of a caption is judged in numbers on every seed.
Figures 3 and 4 are shown on one seed by the README's run command and `docs/theory.md` so far; of
Figure 6 there is the script, not yet a result.
"""
NOTES = {
    "figure8": """The paper calls scaled coordinate directions a natural choice of fixed points. On
such a point one unit saturates, and the others go on with the gain that they have: at gains above 1
they stay unstable, with one or two points planted. Points on which every unit saturates (entries
+-2 in orthogonal patterns of signs) give the caption's two and four ends at every gain; these are
drawn. At a gain of exactly 1 the spectral radius of 256 units lies above or below one by chance, so
the collapse without planted points is judged at 0.9.""",
    "figure9": """The state is everything that a weight puts out before the readout (queries, keys,
values, the attention's output, both hidden layers of the MLP), side by side.""",
}


def experiment(name: str) -> Experiment:
    """A figure by its name."""
    found: Experiment = import_module(name).FIGURE
    return found


def page() -> str:
    """The page."""
    parts = [HEAD]
    for name in FIGURES:
        figure = experiment(name)
        if not figure.file.exists():
            continue
        record = json.loads(figure.file.read_text())
        lines = [f"## {figure.title}\n", "| claim | measured | holds |", "|---|---|---|"]
        lines += [
            f"| {claim.text} | {claim.number} | {'yes' if claim.holds else '**no**'} |"
            for claim in figure.claims(record["results"])
        ]
        parts.append("\n".join(lines) + "\n")
        if name in NOTES:
            parts.append(NOTES[name] + "\n")
        seeds, minutes = len(record["results"]), record["minutes"]
        threads = record["machine"]["threads"]
        parts.append(
            f"`{record['command']}`: {seeds} seeds, {minutes} minutes with {threads} "
            f"thread{'s' * (threads > 1)}.\n\n![{figure.title}](images/paper/{name}.png)\n"
        )
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
