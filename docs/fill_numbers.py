"""Write what docs/numbers.md and docs/what.md say of the two Memory-Pro runs.

    python docs/fill_numbers.py

Meaning, range and what is bad are those of the package's own glossary, which the NTK tab shows as
well; the values are those that docs/measure.py kept; what is good stands here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ntk_monitor.views.glossary import GLOSSARY, IN_RECORDS, Term

HERE = Path(__file__).parent
MEASURED: dict[str, Any] = json.loads((HERE / "results" / "memory_pro.json").read_text())
GROUPS = {
    "Is the target learned?": (
        "target/mode_<i>/learned", "target/mode_<i>/steps_to_learn", "target/mode_<i>/rate",
        "target/mode_<i>/transfer", "target/mode_<i>/alignment", "alert/mode_<i>",
    ),
    "The loss and its forecast": (
        "loss/now", "loss/in_10_steps", "loss/in_30_steps", "loss/forecast_holds_for",
        "loss/transfer",
    ),
    "The gradient and the step": (
        "gradient/norm", "gradient/signal_to_noise", "gradient/clip_coefficient",
        "update/learning_rate", "update/relative_size", "update/headroom",
    ),
    "The kernel": (
        "ntk/effective_rank", "ntk/temporal_effective_rank", "ntk/spatial_effective_rank",
        "ntk/trace", "core/effective_rank", "ntk/core_cosine", "ntk/temporal_core_cosine",
    ),
    "The monitor itself": ("ntk/probe_seconds", "ntk/overhead"),
}  # fmt: skip
"""Tags in the order in which one reads them."""
GOOD = {
    "target/mode_<i>/learned": "Rises to 0.9 and more.",
    "target/mode_<i>/steps_to_learn": "Fewer than the steps that remain; 0 once it is learned.",
    "target/mode_<i>/rate": "Above 0 while the mode is not learned; around 0, either way, after.",
    "target/mode_<i>/transfer": "Near 1: what is learned of some trials holds for others.",
    "target/mode_<i>/alignment": "No good side by itself: compare modes of one network, at one "
    "step. It falls as the kernel grows.",
    "alert/mode_<i>": "Always 0.",
    "loss/now": "Falls.",
    "loss/in_10_steps": "Below the loss now, by more than its noise.",
    "loss/in_30_steps": "Below the loss in 10 steps.",
    "loss/forecast_holds_for": "30 and more, so that both losses ahead are worth their name.",
    "loss/transfer": "Near 1 or above. It has a standard error: look at that first.",
    "gradient/norm": "Steady, or falling with the loss.",
    "gradient/signal_to_noise": "1 and more. It has a standard error, too, and a large one on few "
    "trials.",
    "gradient/clip_coefficient": "1, or just below, but for single steps.",
    "update/learning_rate": "As you meant it to be. Whether it is small or large for this network, "
    "`update/relative_size` and `update/headroom` tell.",
    "update/relative_size": "Within the range, and steady.",
    "update/headroom": "Between 1 and about 10. Somewhat below 1 is usual late in a training at a "
    "fixed rate: it then swings about a minimum.",
    "ntk/effective_rank": "No good side by itself: a network that has learned may have few "
    "directions, which are the right ones. Its course tells: a collapse goes with a stall.",
    "ntk/temporal_effective_rank": "Well above the number of target modes.",
    "ntk/spatial_effective_rank": "No good side by itself, as the effective rank.",
    "ntk/trace": "Steady, or growing slowly as features are learned.",
    "core/effective_rank": "At least the number of target modes.",
    "ntk/core_cosine": "No good side by itself: the healthy network may have the lower one. Near 1 "
    "means that a forward pass predicts what a step can move.",
    "ntk/temporal_core_cosine": "No good side by itself, likewise; where it is near 1, a stall is "
    "explained by the activity alone.",
    "ntk/probe_seconds": "As little as a few training steps.",
    "ntk/overhead": "Below `max_overhead` at the end. Here there was no limit.",
}
"""What a healthy number looks like, by tag."""


def main() -> None:
    """Write the parts between the marks."""
    write("numbers.md", "numbers", "\n".join(sections()))
    write("numbers.md", "cosines", cosines())
    write("numbers.md", "printed", printed())
    write("numbers.md", "records", records())
    write("what.md", "verdict", f"> {MEASURED['stalled']['verdict']}")


def write(page: str, mark: str, text: str) -> None:
    """Put a text between two marks of a page.

    Args:
        page: The page's name.
        mark: What the marks say.
        text: The text.
    """
    file, sign = HERE / page, f"<!-- {mark} -->"
    file.write_text(replaced(file.read_text(), sign, text))


def replaced(page: str, sign: str, text: str) -> str:
    """A page with another text between two marks.

    Args:
        page: The page.
        sign: The mark.
        text: The text.

    Returns:
        The page.
    """
    before, _, after = page.split(sign)
    return f"{before}{sign}\n\n{text}\n\n{sign}{after}"


def cosines() -> str:
    """The core cosines of both runs, which a reader would take for a grade.

    Returns:
        A sentence.
    """
    tag = "ntk/core_cosine"
    found = {name: values(tag, run) for name, run in MEASURED.items()}
    return (
        f"In particular **the core cosine alone has no good side**: it is {found['stalled']} in "
        f"the stalled run and {found['healthy']} in the healthy one."
    )


def records() -> str:
    """What is in the records of probes, not among the numbers of loggers.

    Returns:
        A list with the meaning of each, its range, and what is bad.
    """
    lines = []
    for term in IN_RECORDS:
        if term.tag.startswith("record/"):
            bad = f" *Bad:* {term.bad}" if term.bad else ""
            lines.append(f"- **{term.name}** ({term.range}): {term.meaning}{bad}")
    return "\n".join(lines)


def printed() -> str:
    """Both last snapshots, as they print.

    Returns:
        Blocks of code.
    """
    parts = (f"The {name} run:\n\n```\n{run['printed']}\n```" for name, run in MEASURED.items())
    return "\n\n".join(parts)


def sections() -> Iterator[str]:
    """A section for each group, and in it one for each tag.

    Yields:
        Lines.
    """
    terms = {term.tag: term for term in GLOSSARY}
    for group, tags in GROUPS.items():
        yield f"## {group}\n"
        for tag in tags:
            yield from entry(terms[tag])


def entry(term: Term) -> Iterator[str]:
    """What is said of a tag.

    Args:
        term: The tag, explained.

    Yields:
        Lines.
    """
    yield f"### {term.name[:1].upper()}{term.name[1:]}\n"
    yield f"`{term.tag}`. {term.meaning}\n"
    yield "```{list-table}\n:widths: 20 80\n"
    rows = {"range": term.range, "good": GOOD[term.tag], "bad": term.bad}
    rows |= {f"{name} run": values(term.tag, run) for name, run in MEASURED.items()}
    for name, value in rows.items():
        yield f"* - {name}\n  - {value}"
    yield "```\n"


def values(tag: str, run: dict[str, Any]) -> str:
    """A number at the last probe of a run that has it, of every mode if it is one of modes.

    Args:
        tag: The tag.
        run: What was measured.

    Returns:
        Text.
    """
    if tag == "alert/mode_<i>":
        stalled = set(map(int, re.findall(r"mode (\d) is stalled", " ".join(run["alerts"]))))
        return ", ".join(str(int(i in stalled)) for i in (1, 2, 3))
    tags = [tag.replace("<i>", str(i)) for i in (1, 2, 3)] if "<i>" in tag else [tag]
    rows = [row for row in run["history"] if all(each in row for each in tags)]
    if not rows:
        return "not measured"
    last, end = rows[-1], run["history"][-1]
    if tag.endswith("/learned"):
        return ", ".join(f"{last[each]:z.3f}" for each in tags)
    found = ", ".join(number(last[each], last.get(f"{each}_stderr")) for each in tags)
    return found if last is end else f"{found} (at step {last['step']:.0f})"


def number(value: float | str, stderr: float | None) -> str:
    """A number with its standard error, in few digits.

    Args:
        value: The number; infinity as text.
        stderr: Its standard error, if it has one.

    Returns:
        Text.
    """
    if isinstance(value, str):
        return "never" if value == "inf" else value
    return f"{value:.3g}" + (f" ± {stderr:.1g}" if stderr else "")


if __name__ == "__main__":
    main()
