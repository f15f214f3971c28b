"""What every logged number means: one table, for the NTK tab and the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Term(NamedTuple):
    """A logged number, explained.

    Attributes:
        tag: Its tag; ``<i>`` stands for the number of a target mode.
        name: What a chart of it is called.
        meaning: What it means, in one sentence.
        range: Between which values it lies.
        bad: When it looks bad, and what to look at then.
    """

    tag: str
    name: str
    meaning: str
    range: str
    bad: str


GLOSSARY = (
    Term(
        "ntk/core_cosine",
        "core cosine",
        "Does the core predict the whole kernel: cosine of A and G (x) I.",
        "0 to 1",
        "Look at the temporal core cosine first: a fall here alone means that the kernel is uneven "
        "over units.",
    ),
    Term(
        "ntk/temporal_core_cosine",
        "temporal core cosine",
        "Does the core predict when a step can act: cosine of T and G.",
        "0 to 1",
        "Low: the propagator, not the activity, decides; look at gain and stability.",
    ),
    Term(
        "ntk/effective_rank",
        "effective rank",
        "Directions of the whole state that a step can move.",
        "1 to k n",
        "Collapsing: see whether the temporal or the spatial effective rank falls.",
    ),
    Term(
        "ntk/temporal_effective_rank",
        "temporal effective rank",
        "Time courses that a step can move.",
        "1 to k",
        "Low: activity is poor in time; richer inputs, embeddings or initial dynamics.",
    ),
    Term(
        "ntk/spatial_effective_rank",
        "spatial effective rank",
        "Unit directions that a step can move.",
        "1 to n",
        "Low: propagation has few expanding directions; lower the recurrent gain.",
    ),
    Term(
        "ntk/trace",
        "trace",
        "Total sensitivity of the state to the parameters.",
        "above 0",
        "Exploding or vanishing: so do the gradients.",
    ),
    Term(
        "core/effective_rank",
        "core effective rank",
        "Time courses in the activity that weights multiply; exact, no derivative.",
        "1 to k",
        "Low: the upper limit of what a step can express is low.",
    ),
    Term(
        "target/mode_<i>/learned",
        "learned",
        "How much of this part of the target the output has (of classes: its probabilities), "
        "exactly.",
        "0 absent, 1 solved",
        "Stays at 0: compare steps to learn.",
    ),
    Term(
        "target/mode_<i>/steps_to_learn",
        "steps to learn",
        "Gradient steps in which the mode's error falls by e, at the present rate (exact for plain "
        "SGD on a mean squared error, else an estimate).",
        "above 0",
        "More than remain: initialise with activity there, use Shampoo, or a curriculum.",
    ),
    Term(
        "target/mode_<i>/alignment",
        "alignment",
        "How visible the mode is, against the size of the kernel; compare within a network only.",
        "0 to 1",
        "Near 0: gradient descent does not see it.",
    ),
    Term(
        "alert/mode_<i>",
        "stalled",
        "Whether the mode is stalled, as StallAlert says.",
        "0 or 1",
        "1: read the text of the alert.",
    ),
    Term(
        "ntk/probe_seconds",
        "probe seconds",
        "What the probe cost.",
        "above 0",
        "max_products down.",
    ),
    Term(
        "ntk/overhead",
        "overhead",
        "Share of wall time that went to probes so far, logging and figures included.",
        "0 to 1",
        "High early on is planned: what counts is the whole training, of which all of it may take "
        "four fifths of max_overhead (2 %), or of max_overhead_seconds (10 s) if that is more.",
    ),
)
"""Every tag of README's table, in its order."""

OPTIONAL = (
    Term(
        "target/mode_<i>/preconditioned_steps_to_learn",
        "preconditioned steps to learn",
        "Steps to learn with the optimizer's own scaling of each parameter, as Adam has it.",
        "above 0",
        "More than remain, as steps to learn.",
    ),
)
"""Tags that only some runs have."""

IN_RECORDS = (
    Term(
        "record/gain",
        "gain",
        "How fast the state moves along the mode, per unit of error and learning rate; exact.",
        "above 0",
        "Many times below that of other modes: gradient descent hardly moves it.",
    ),
    Term(
        "record/core_overlap",
        "core overlap",
        "Whether the activity that weights multiply has the mode's time course at all.",
        "0 to 1",
        "Below 0.01: no setting of the weights can express it; the activity must change first.",
    ),
    Term(
        "record/cumulative_variance",
        "cumulative variance",
        "Share of the trace that the leading modes of the NTK and of the core carry.",
        "0 to 1",
        "At 1 after one or two modes: a step can move these time courses only.",
    ),
    Term(
        "record/temporal_modes",
        "temporal modes",
        "The leading time courses along which a step can move the state, a line for each trial.",
        "unit vectors",
        "Near zero where the target needs a change: no step acts there.",
    ),
    Term(
        "record/target_modes",
        "target modes",
        "Parts of the target, each with its time course; grey is what the NTK's leading temporal "
        "modes have of it.",
        "unit vectors",
        "Grey is flat where the line is not: no step acts there, and this part is not learned.",
    ),
)
"""Numbers and pictures that are not scalars."""


def explained(terms: Sequence[Term] = GLOSSARY + OPTIONAL + IN_RECORDS) -> list[dict[str, str]]:
    """Terms as plain dictionaries, for JSON.

    Args:
        terms: Which.

    Returns:
        A dictionary for each.
    """
    return [term._asdict() for term in terms]
