"""Write docs/models.md: what the monitor sees of every model of the zoo."""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "tests"))

from ntk_monitor import Snapshot, probe  # noqa: E402
from zoo.cases import CASES, Animal  # noqa: E402

PAGE = ROOT / "docs" / "models.md"
HEAD = """# Models

What a probe finds in {count} small models, written by `python tests/zoo/page.py` and checked by
`pytest tests/zoo`: where the state is, which share of the parameters behind it is in the core, and
why the rest is not. In every one of them the derivatives agree with finite differences in float64,
the adjoint error is below 1e-5 in float32, and the model is left as it was.

A parameter is outside the core for one of two reasons; its effect on the NTK is exact all the same.
It scales, shifts, normalises or places activity and multiplies none (normalisation gains, depthwise
convolutions, a class token); or it acts on other rows than the state's (an image before pooling, an
encoder beside a decoder's state, tokens sorted by expert).
"""
REST = "\n## Trainings as others write them\n"
"""Where the part begins that ``outsiders/page.py`` writes."""


def table() -> str:
    """The part of the page on the zoo."""
    parts = [HEAD.format(count=len(CASES))]
    group = ""
    for name, animal in CASES.items():
        if animal.group != group:
            group = animal.group
            parts.append(f"\n## {group}\n")
            parts.append("| model | state | shape | in the core | outside |\n|---|---|---|---|---|")
        module, batch = animal.make()
        snapshot = probe(module, batch, state=animal.state, tier="core", modes=0)
        parts.append(row(name, animal, snapshot))
    return "\n".join(parts) + "\n"


def row(name: str, animal: Animal, snapshot: Snapshot) -> str:
    """The line of one model."""
    coverage = snapshot.coverage
    reasons = Counter(
        "other rows" if "rows" in why or "_grouped_mm" in why else why.split("'")[1]
        for n, why in coverage.left_out.items()
        if n not in coverage.missed
    )
    if coverage.missed:
        reasons["**missed**"] = len(coverage.missed)
    outside = ", ".join(f"{count} x {why}" for why, count in reasons.items())
    shape = " x ".join(map(str, snapshot.state_shape))
    state = ", ".join(f"`{path}`" for path in snapshot.state)
    return f"| {name} | {state} | {shape} | {coverage.fraction:.0%} | {outside} |"


def main() -> None:
    """Write the page, all but what is not of the zoo."""
    warnings.simplefilter("ignore")
    _, rest, text = PAGE.read_text().partition(REST)
    PAGE.write_text(table() + rest + text)


if __name__ == "__main__":
    main()
