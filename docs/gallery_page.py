"""The page of the gallery, from what was found and the texts of each run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from gallery_pair import span
from gallery_texts import MISSING, SHOWN, Shown

from ntk_monitor.reason import Reason

Found = Mapping[str, Any]
NOTE = (
    "<!-- Written by `python docs/gallery.py` from docs/gallery.json and docs/gallery.toml; "
    "change those. -->"
)

NOT_MADE = "its training is not among those that were made this time."


def page(found: Found) -> str:
    """The whole page.

    Args:
        found: What came of each run, by its key, and of the first picture's pair.

    Returns:
        Markdown.
    """
    runs = {key: shown for key, shown in SHOWN.items() if key in found["runs"]}
    parts = ["# Gallery of trainings\n", NOTE + "\n"]
    if found["pair"] is not None:
        parts += _first(found["pair"], found["runs"])
    parts += [_how(found), *_index(runs, found["runs"])]
    for key, shown in runs.items():
        parts += _section(key, shown, found["runs"][key])
    parts += _missing(found)
    return "\n".join(parts)


def not_named(found: Found) -> tuple[str, ...]:
    """The reasons of the alert that it gave for no run of the gallery.

    Args:
        found: As for `page`.

    Returns:
        The reasons.
    """
    named = {reason for run in found["runs"].values() for reason in run["reasons"]}
    return tuple(reason for reason in get_args(Reason) if reason not in named)


def _first(pair: Found, runs: Found) -> Iterator[str]:
    good, bad = runs[pair["learns"]], runs[pair["stuck"]]
    losses = [f"{loss:.3f}" for loss in pair["losses"]]
    yield f"![{alt_of_pair(pair)}](images/healthy_and_stalled.png)\n"
    yield (
        "Two trainings of one network, from the same weights, on the same task: a GRU that has to "
        "remember a direction, with Adam (blue) and with SGD (orange). At step "
        f"{pair['step']} of {pair['planned']} both losses have stood still for a while, at "
        f"{losses[0]} and {losses[1]}. By `ntk_monitor`'s forecast of that step, what is not "
        f"learned yet takes {span(pair['steps_to_learn'][0])} with Adam, and "
        f"{span(pair['steps_to_learn'][1])} with SGD. The alert speaks at step {pair['alert']} of "
        "the run with SGD, and not of the other. In the end the learned fractions are "
        f"{_listed(good)} with Adam and {_listed(bad)} with SGD. (The step shown is the last probe "
        f"at which the losses look alike. At the one before, step {pair['earlier']}, the forecast "
        f"of the run with Adam still said {span(pair['earlier_steps'])}: it sees the turn "
        "before the loss does, but not long before.)\n"
    )
    yield (
        "What the network should put out is divided into a few *target modes*, the largest first. "
        "The *learned fraction* of a mode is 0 where it is absent and 1 where it is there; from "
        "0.9 on it counts as learned.\n"
    )


def alt_of_pair(pair: Found) -> str:
    """The first picture in words.

    Args:
        pair: What was found of it.

    Returns:
        A sentence.
    """
    return (
        f"Two losses that are flat and look alike until step {pair['step']}; one training then "
        "learns all of its target, the other never does, and ntk_monitor tells them apart while "
        "they still look alike"
    )


def _how(found: Found) -> str:
    return (
        f"Each training below ran once, with seed {found['seed']}, and is shown whatever came of "
        "it. Verdicts and alerts are word for word what the package said. In the pictures a run is "
        "blue, with its forecast as a dashed line; the same training with the remedy that short "
        "trials chose ([remedies](remedies.md)) is green, or, where they found none, with one that "
        "is known for the fault; a vertical line is the first alert of a kind. `python "
        "docs/gallery.py` makes all of it again.\n"
    )


def _index(runs: Mapping[str, Shown], found: Found) -> Iterator[str]:
    yield "| run | built in | the alert | with the remedy |"
    yield "|---|---|---|---|"
    for key, shown in runs.items():
        run = found[key]
        kinds = list(dict.fromkeys(alert["kind"] for alert in run["alerts"]))
        said = _and(run["reasons"] or kinds) or f"silent ({run['state']})"
        when = f", step {run['alerts'][0]['step']}" if run["alerts"] else ""
        after = run["with"]
        cured = "" if after is None else f"{after['name']}: {_least(after)} learned"
        none = "the trials find none" if run["trials"] and not after else cured
        link = f"[{shown.title}](#{anchor(shown.title)})"
        yield f"| {link} | {shown.built_in} | {said}{when} | {none} |"
    yield ""


def anchor(title: str) -> str:
    """The address of a heading, as GitHub and MyST make it.

    Args:
        title: The heading.

    Returns:
        Lower case, with hyphens.
    """
    kept = "".join(c for c in title.lower() if c.isalnum() or c in " -_")
    return kept.replace(" ", "-")


def _least(run: Found) -> str:
    good = sum(value >= 0.9 for value in run["learned"])
    return f"{good} of {len(run['learned'])} modes"


def _section(key: str, shown: Shown, run: Found) -> Iterator[str]:
    yield f"## {shown.title}\n"
    yield f"{shown.what}\n"
    yield f"**What the loss curve alone would suggest.** {shown.curve}\n"
    yield f"![{alt(shown, run)}](images/gallery/{key}.png)\n"
    yield f"**The verdict** at {run['when']}:\n\n> {run['verdict']}\n"
    yield from _alerts(shown, run)
    yield f"**What to do.** {shown.to_do}{_cure(run)}\n"


def alt(shown: Shown, run: Found) -> str:
    """A picture in words.

    Args:
        shown: The texts of its run.
        run: What came of it.

    Returns:
        A sentence or two.
    """
    alerts = [each for each in run["alerts"] if each["kind"] in {"stalled", "unpredictable"}]
    said = f"; the alert speaks at step {alerts[0]['step']}" if alerts else "; no alert"
    after = run["with"]
    cured = "" if after is None else f", and {_listed(after)} with {after['name']}"
    return f"Loss and learned fractions of {shown.short}{said}. At the end: {_listed(run)}{cured}"


def first_of_each(alerts: list[Found]) -> list[Found]:
    """The first alert of each reason; those without one only where no other has a reason.

    Args:
        alerts: In the order in which they were given.

    Returns:
        Some of them.
    """
    first: dict[str | None, Found] = {}
    for alert in alerts:
        first.setdefault(alert["reason"], alert)
    return [alert for reason, alert in first.items() if reason or len(first) == 1]


def _alerts(shown: Shown, run: Found) -> Iterator[str]:
    alerts = run["alerts"]
    if not alerts:
        yield "**The alert** stays silent.\n"
        return
    told = first_of_each(alerts)
    more = f", of {len(alerts)} messages one of each reason" if len(alerts) > len(told) else ""
    yield f"**The alert**{more}:\n"
    yield from (f"> {alert['message']}\n" for alert in told)
    wrong = [f"**{reason}**" for reason in run["reasons"] if reason != shown.reason]
    if shown.reason is not None and wrong:
        right = "beside the right one" if shown.reason in run["reasons"] else "in its place"
        yield (
            f"Built in was **{shown.reason}**; the alert named {_and(wrong)} {right}. "
            f"{shown.if_wrong}\n"
        )


def _cure(run: Found) -> str:
    if run["trials"] is None:
        return ""
    said = f' The trials said: "{run["trials"]}"'
    after = run["with"]
    if after is None:
        return said
    chosen = run["trials"].startswith(after["name"])
    way = "with that" if chosen else f"with {after['name']} all the same"
    return (
        f"{said} Trained as long {way}, the loss ends at {after['loss']:.3g} in place of "
        f"{run['loss']:.3g}, and the modes at {_listed(after)} in place of {_listed(run)}."
    )


def _listed(run: Found) -> str:
    """The learned fractions at the end of a run."""
    return _and([f"{value:z.2f}" for value in run["learned"]])


def _missing(found: Found) -> Iterator[str]:
    there = not_named(found)
    if not there:
        return
    yield "## Reasons without a picture\n"
    for reason in there:
        yield f"- **{reason}**: {MISSING.get(reason, NOT_MADE)}"
    yield ""


def _and(words: list[str]) -> str:
    """Words as a list in a sentence."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
