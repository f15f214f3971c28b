"""Write ``docs/reproduction.md`` from the results: ``python examples/paper/page.py``."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

from experiment import Experiment

PAGE = Path(__file__).parents[2] / "docs" / "reproduction.md"
FIGURES = (
    "figure3",
    "figure4",
    "figure5",
    "figure6",
    "figure8",
    "figure9",
    "figure10",
    "estimators",
)
HEAD = """# The paper's figures, reproduced

Written by `python examples/paper/page.py` from the results of the commands below (`--full`, five
seeds; `--quick` is smaller and takes a minute or two). The claims of the captions are judged in
numbers on every seed; numbers are from the smallest to the largest. Where one does not hold, the
likely reason is below the table.
"""
NOTES = {
    "figure8": """The paper calls scaled coordinate directions a natural choice of fixed points. On
such a point one unit saturates, and the others go on with the gain that they have: at gains above 1
they stay unstable, with one or two points planted. Points on which every unit saturates (entries
+-2 in orthogonal patterns of signs) give the caption's two and four ends at every gain; these are
drawn. At a gain of exactly 1 the spectral radius of 256 units lies above or below one by chance, so
the collapse without planted points is judged at 0.9.""",
    "figure3": """The parameters are the weights alone, as in the paper's `V`. The noise of the
training inputs has a standard deviation of 0.5, batches have 64 trials, and SGD a learning rate of
0.05 (the paper: variance 3.2, 500 trials, 0.001). `P` is that of the hidden state; its spectrum
is sampled trial by trial. SGD trains the biases, too.""",
    "figure4": """All parameters are trained, in batches of 64 trials with noise of standard
deviation 0.5; SGD has a learning rate of 0.05, Shampoo (of pytorch-optimizer) one of 0.05 for the
paper's 256 units, 0.1 for the 64 units of `--quick`. Network 2 has four planted pairs of fixed
points (`plant_fixed_points_`), where the paper has five points. Target modes 2 and 3, cosine and
sine in the response period, have the same singular value and are any rotation of the two; the
smaller of their numbers is taken, as the paper does in its section 5.2.""",
    "figure6": """In Figures 6, 9 and 10 the state is the attention's output and the hidden layers
of the MLP side by side, the weights are Xavier-normal, and they alone are trained (the paper's `V`
has no column of ones for biases). The paper does not say which activations make up its state.""",
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
        record = json.loads(figure.file.read_text())
        claims = figure.claims(record["results"])
        lines = [f"## {figure.title}\n", "| claim | measured | holds |", "|---|---|---|"]
        lines += [
            f"| {claim.text} | {claim.number} | {'yes' if claim.holds else '**no**'} |"
            for claim in claims
        ]
        parts.append("\n".join(lines) + "\n")
        parts += [f"{claim.reason}\n" for claim in claims if not claim.holds]
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
