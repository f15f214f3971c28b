"""What every logged number means: one table, for the NTK tab and the report."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple


class Term(NamedTuple):
    """A logged number, explained.

    Attributes:
        tag: Its tag; ``<i>`` stands for the number of a target mode.
        name: What a chart of it is called.
        meaning: What it means, in one sentence.
        range: Between which values it lies.
        bad: When it looks bad, and what to look at then.
        unit: What an axis of it counts.
    """

    tag: str
    name: str
    meaning: str
    range: str = ""
    bad: str = ""
    unit: str = ""


GLOSSARY = (
    Term(
        "ntk/core_cosine",
        "core cosine",
        "Does the core predict the whole kernel: cosine of A and G (x) I.",
        "0 to 1",
        "Look at the temporal core cosine first: a fall here alone means that the kernel is uneven "
        "over units.",
        "cosine",
    ),
    Term(
        "ntk/temporal_core_cosine",
        "temporal core cosine",
        "Does the core predict when a step can act: cosine of T and G.",
        "0 to 1",
        "Low: the propagator, not the activity, decides; look at gain and stability.",
        "cosine",
    ),
    Term(
        "ntk/effective_rank",
        "effective rank",
        "Directions of the whole state that a step can move.",
        "1 to k n",
        "Collapsing: see whether the temporal or the spatial effective rank falls.",
        "directions",
    ),
    Term(
        "ntk/temporal_effective_rank",
        "temporal effective rank",
        "Time courses that a step can move.",
        "1 to k",
        "Low: activity is poor in time; richer inputs, embeddings or initial dynamics.",
        "time courses",
    ),
    Term(
        "ntk/spatial_effective_rank",
        "spatial effective rank",
        "Unit directions that a step can move.",
        "1 to n",
        "Low: propagation has few expanding directions; lower the recurrent gain.",
        "unit directions",
    ),
    Term(
        "ntk/trace",
        "trace",
        "Total sensitivity of the state to the parameters.",
        "above 0",
        "Exploding or vanishing: so do the gradients.",
        "state² per weight²",
    ),
    Term(
        "core/effective_rank",
        "core effective rank",
        "Time courses in the activity that weights multiply; exact, no derivative.",
        "1 to k",
        "Low: the upper limit of what a step can express is low.",
        "time courses",
    ),
    Term(
        "target/mode_<i>/learned",
        "learned",
        "How much of this part of the target the output has (of classes: its probabilities), "
        "exactly.",
        "0 absent, 1 solved",
        "Stays at 0: compare steps to learn.",
        "fraction",
    ),
    Term(
        "target/mode_<i>/rate",
        "rate",
        "What the next step of the optimizer adds to the learned fraction.",
        "any",
        "Near or below 0 while the mode is not learned.",
        "fraction per step",
    ),
    Term(
        "target/mode_<i>/steps_to_learn",
        "steps to learn",
        "Steps of the optimizer in use until the mode is 0.9 learned, by a forecast with the "
        "linearised model and the real loss, corrected by how earlier forecasts fared; infinite "
        "where it never is.",
        "above 0",
        "More than remain: read what StallAlert says helps.",
        "steps",
    ),
    Term(
        "target/mode_<i>/transfer",
        "transfer of the mode",
        "What a step on some trials does to this mode on others, over what it does on its own.",
        "around 0 to 1",
        "Certainly near 0: what is learned of one batch is of no use for another; noise, or "
        "nothing that this network sees in its inputs.",
        "share",
    ),
    Term(
        "target/mode_<i>/alignment",
        "alignment",
        "How visible the mode is, against the size of the kernel; compare within a network only.",
        "0 to 1",
        "Near 0: gradient descent does not see it.",
        "cosine",
    ),
    Term(
        "alert/mode_<i>",
        "stalled",
        "Whether the mode is stalled, as StallAlert says.",
        "0 or 1",
        "1: read the text of the alert.",
        "0 or 1",
    ),
    Term(
        "loss/now",
        "loss",
        "The loss that training minimises, on the batch that is probed.",
        "that of the loss",
        "Does not move: read the verdict and the target modes.",
        "loss",
    ),
    Term(
        "loss/in_10_steps",
        "loss in 10 steps",
        "The loss after ten more steps, by the forecast.",
        "that of the loss",
        "No lower than now: the next steps bring nothing.",
        "loss",
    ),
    Term(
        "loss/in_30_steps",
        "loss in 30 steps",
        "The loss after thirty more steps, by the forecast.",
        "that of the loss",
        "No lower than now: the next steps bring nothing.",
        "loss",
    ),
    Term(
        "loss/forecast_holds_for",
        "forecast holds for",
        "Steps for which forecasts were found to hold, by earlier ones that have come true.",
        "above 0 steps",
        "Fewer than the steps in question: the forecast says little about those.",
        "steps",
    ),
    Term(
        "loss/transfer",
        "transfer",
        "What a step on some trials does to the loss of others, over what it does to that of its "
        "own.",
        "around 0 to 1",
        "Certainly near 0: steps fit the batch and teach nothing.",
        "share",
    ),
    Term(
        "gradient/norm",
        "gradient norm",
        "Norm of the loss's gradient, before it is clipped.",
        "above 0",
        "Near 0 with a high loss: nothing moves; rising without end: it diverges.",
        "loss per weight",
    ),
    Term(
        "gradient/signal_to_noise",
        "signal to noise",
        "Of the gradient: the squared size of what all trials share, over that of the rest, in "
        "this batch.",
        "above 0",
        "Far below 1: steps are mostly noise; larger batches, or a smaller learning rate.",
        "ratio",
    ),
    Term(
        "gradient/clip_coefficient",
        "left by clipping",
        "Norm of the gradient after clipping, over that before.",
        "0 to 1",
        "Far below 1 at every step: clipping, not the learning rate, decides how far steps go.",
        "share",
    ),
    Term(
        "update/learning_rate",
        "learning rate",
        "That of the next step, as schedulers have set it; of the first group of parameters.",
        "above 0",
        "Falls long before the target is learned: the schedule ends too early.",
        "weight per gradient",
    ),
    Term(
        "update/relative_size",
        "relative update",
        "Norm of the next step over that of the parameters that it moves.",
        "about 0.0001 to 0.01",
        "Far below: the learning rate is too small; far above: too large.",
        "ratio",
    ),
    Term(
        "update/headroom",
        "headroom",
        "How many times as large steps may be until the loss's curvature makes them swing ever "
        "farther; before gradients are clipped by their norm.",
        "above 1",
        "Below 1: the learning rate is too large; in the hundreds: it may be larger.",
        "times",
    ),
    Term(
        "ntk/probe_seconds",
        "probe seconds",
        "What the probe cost.",
        "above 0",
        "Long beside your steps: max_products down.",
        "seconds",
    ),
    Term(
        "ntk/overhead",
        "overhead",
        "Share of wall time that went to probes so far, logging and figures included.",
        "0 to 1",
        "High early on is planned: what counts is the whole training, of which all of it may take "
        "four fifths of max_overhead (2 %), or of max_overhead_seconds (10 s) if that is more.",
        "share of time",
    ),
)
"""Every tag that is logged, in the order of tables."""

OPTIONAL = (
    Term(
        "target/mode_<i>/preconditioned_steps_to_learn",
        "preconditioned steps to learn",
        "Steps to learn with the optimizer's own scaling of each parameter, as versions before "
        "the forecast logged it.",
        "above 0",
        "More than remain, as steps to learn.",
        "steps",
    ),
)
"""Tags that only some runs have."""

IN_RECORDS = (
    Term(
        "record/share",
        "share",
        "How much of its target the mode is, by squared size; the rest is not followed.",
        "0 to 1",
        "All of them together small: follow more, NTKMonitor(modes=...).",
    ),
    Term(
        "record/dead_units",
        "dead units",
        "Share of the state's units that have the same activity on all rows.",
        "0 to 1",
        "Near 1: nothing of the input reaches the outputs.",
    ),
    Term(
        "record/saturated_units",
        "saturated units",
        "Share of its units that are at one end of their range, -1, 0 or 1, on nearly all rows.",
        "0 to 1",
        "Near 1: no gradient passes; smaller weights, or a normalisation.",
    ),
    Term(
        "verdict/flat",
        "has not moved",
        "The loss stays within its own noise, or 1 %, and a line through it falls by no more, with "
        "95 % certainty; fewer than 8 probes say nothing.",
        "a step since when",
        "Early in the training, with parts of the target that are not learned.",
    ),
    Term(
        "verdict/learned",
        "learned",
        "The output has this part of the target: its learned fraction is above 0.9.",
        "a share of the target",
        "It should grow.",
    ),
    Term(
        "verdict/on its way",
        "on its way",
        "StallAlert is sure that it comes within reach in the steps that remain.",
        "a share of the target",
        "It needs more steps than you want to give.",
    ),
    Term(
        "verdict/out of reach",
        "out of reach",
        "StallAlert is sure that it is stalled: it needs more steps than remain, and its rate does "
        "not grow fast enough.",
        "a share of the target",
        "Any: read what helps.",
    ),
    Term(
        "verdict/unpredictable",
        "unpredictable",
        "A step on one batch fits it there, and does nothing for others.",
        "a share of the target",
        "More than the noise that you know of: look at the labels, or at another network.",
    ),
    Term(
        "verdict/undecided",
        "undecided",
        "It needs more steps than remain, or stands still, and noise hides whether that changes in "
        "time.",
        "a share of the target",
        "It stays so: more probes, or larger batches, would tell.",
    ),
    Term(
        "verdict/too early",
        "too early",
        "StallAlert is warming up: the first tenth of a training, or fewer than four probes.",
        "a share of the target",
        "It lasts: probes are too rare.",
    ),
    Term(
        "verdict/not judged",
        "not judged",
        "Nothing says whether it will be learned: there is no StallAlert, or it lacks a number.",
        "a share of the target",
        "It stays so: add StallAlert() beside the monitor.",
    ),
    Term(
        "verdict/not followed",
        "not followed",
        "The rest of the target, beyond the modes that are followed.",
        "a share of the target",
        "Most of the target: follow more, NTKMonitor(modes=...).",
    ),
    Term(
        "record/gain",
        "gain",
        "How fast the state moves along the mode, per unit of error and learning rate, exact; and "
        "in which weights most of that is.",
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
        "share of the trace",
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
"""Numbers, pictures and words that are not scalars."""

WORDS = (
    Term(
        "word/mode",
        "mode",
        "A part of the target: one time course over trials and time, on one mixture of the "
        "outputs; mode 1 is the largest. The picture shows which.",
    ),
    Term(
        "word/in_the_data",
        "in the data",
        "The mode's time course, a line for each of some trials, and the outputs that it is made "
        "of, each with its weight.",
    ),
    Term(
        "word/state",
        "state",
        "What StallAlert says of the mode: learning, learned, stalled (it does not come within "
        "reach in time), recovered, unpredictable, insufficient data or warming up; not judged "
        "without it.",
    ),
    Term(
        "word/hidden_state",
        "state",
        "The activations whose movement is measured: trials, time steps and units of a module.",
    ),
    Term(
        "word/sees",
        "sees",
        "The NTK sees a time course where its leading temporal modes contain it: a step of "
        "gradient descent can then move the state along it.",
    ),
    Term(
        "word/transfer",
        "transfer",
        "What a step on some trials does for others, over what it does for its own: 1 where all "
        "teach the same, 0 where what is learned of one is of no use for another.",
    ),
    Term(
        "word/core",
        "core",
        "The Gram matrix of the activity that the weights multiply: what of the NTK a forward "
        "pass already tells.",
    ),
)
"""Words of the page that are no numbers."""

NOW = (
    "loss/now",
    "loss/in_10_steps",
    "loss/in_30_steps",
    "loss/forecast_holds_for",
    "loss/transfer",
    "gradient/norm",
    "gradient/signal_to_noise",
    "gradient/clip_coefficient",
    "update/learning_rate",
    "update/relative_size",
    "update/headroom",
    "record/dead_units",
    "record/saturated_units",
)
"""What the last probe says of the loss and of the next steps, in the order of its table."""


NAMES = {term.tag: term.name for term in GLOSSARY + IN_RECORDS}
"""What each number is called, by its tag."""


def tags_like(terms: Iterable[Term]) -> str:
    """A regular expression of the tags of some terms, with any number of a target mode.

    Args:
        terms: Which.

    Returns:
        The expression, which can be a part of another.
    """
    tags = (re.escape(term.tag).replace("<i>", r"\d+") for term in terms)
    return f"(?:{'|'.join(tags)})"


def explained() -> list[dict[str, str]]:
    """All terms as plain dictionaries, for JSON.

    Returns:
        A dictionary for each.
    """
    return [term._asdict() for term in GLOSSARY + OPTIONAL + IN_RECORDS + WORDS]
