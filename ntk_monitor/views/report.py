"""One HTML page about finished or running trainings, that needs nothing else."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from ntk_monitor.views.dashboard.bundle import bundle
from ntk_monitor.views.dashboard.data import DashboardData, to_json
from ntk_monitor.views.dashboard.files import static_file
from ntk_monitor.views.documents import as_json, made, markdown, title_of
from ntk_monitor.views.events import NoRunsError, Picture, open_runs, pictures
from ntk_monitor.views.facts import ABOUT
from ntk_monitor.views.figures import COLORS, own_style
from ntk_monitor.views.glossary import NAMES
from ntk_monitor.views.layout import WIDTH
from ntk_monitor.views.rows import HEAD, NUMBERS, cells, number_rows, points, printable
from ntk_monitor.views.summary import STYLES

POINTS = 60_000
SNAPSHOTS = 240
"""Points of curves and records of probes, over all runs: they bound the size of the page."""
CHARTS = (
    "ntk/core_cosine",
    "ntk/temporal_core_cosine",
    "ntk/effective_rank",
    "ntk/temporal_effective_rank",
    "ntk/spatial_effective_rank",
    "core/effective_rank",
)
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"
"""What a browser allows the page: itself, and no request to anything."""

Found = dict[str, dict[str, Any]]
Kind = Literal["html", "markdown", "json"]


@dataclass(frozen=True)
class Report:
    """What a report was made of.

    Attributes:
        path: Where it was written, or None.
        runs: What is known of each run, as `DashboardData.series` gives it.
        text: The page, or the document.
    """

    path: Path | None
    runs: Found
    text: str


def write_report(
    paths: Sequence[Path],
    output: Path | None,
    tell: Callable[[str], object] = lambda doing: None,
    kind: Kind = "html",
) -> Report:
    """Make the page, or a document for an issue or for programs.

    Args:
        paths: Log folders, of one run or of several.
        output: Where to write; missing folders are made. None to write nothing.
        tell: Called with what is being done, again and again.
        kind: ``"html"``, ``"markdown"`` or ``"json"``.

    Returns:
        What is in it.

    Raises:
        NoRunsError: If there is nothing to report on; the message names the path.
    """
    tell("reading the logs")
    provider = open_runs(paths)
    data = DashboardData(provider)
    listed = data.runs()
    names = [run["name"] for run in listed["runs"] if not run["reason"]]
    if not names:
        where = ", ".join(map(str, paths))
        raise NoRunsError(
            f"{where} holds runs, but none with numbers of NTKMonitor: add NTKMonitor() to the "
            "callbacks of the Trainer and train again, or give another folder"
        )
    pairs = [(run["name"], state) for run in listed["runs"] for state in run["states"]]
    states = sorted({state for _, state in pairs})
    points = min(max(POINTS // (30 * len(names)), 200), 2000)
    most = min(max(SNAPSHOTS // len(pairs), 2), 60)
    tell(f"reading the curves of {len(names)} run{'s' * (len(names) > 1)}")
    series = {state: data.series(names, state, points=points) for state in states}
    snapshots: dict[str, dict[str, Any]] = {state: {} for state in states}
    for i, (name, state) in enumerate(pairs, start=1):
        tell(f"reading the probes of {name} ({i} of {len(pairs)})")
        snapshots[state][name] = data.snapshots(name, state, most=most)
    content = {"runs": listed, "series": series, "snapshots": snapshots}
    runs: Found = {}
    for state in states:
        for name, run in series[state]["runs"].items():
            if (name, state) in pairs:
                runs[f"{name} ({state[:-1]})" if state else name] = run
    tell("drawing")
    if kind == "html":
        text = _page(runs, {name: pictures(provider, name) for name in names}, content)
    else:
        text = markdown(runs) if kind == "markdown" else as_json(json.loads(to_json(runs)))
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text, encoding="utf-8", errors="replace")
    return Report(output, runs, text)


def print_report(report: Report, console: Console) -> None:
    """Print the verdict on each run, its target modes, and where the page is.

    Args:
        report: What `write_report` gave.
        console: Where to print.
    """
    for name, run in report.runs.items():
        verdict = run["verdict"]
        style = STYLES.get(verdict["state"], "yellow")
        when = f" (at {verdict['when']})" if verdict["when"] else ""
        console.print(Text(printable(f"{name}{when}: {verdict['text']}"), style))
        if verdict["advice"]:
            console.print(Text(printable(f"What helps: {verdict['advice']}")))
        if run["modes"]:
            console.print(_table(run["modes"]))
    if report.path is not None:
        console.print(Text(printable(f"Report: {report.path}")), soft_wrap=True)


def _table(modes: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(*(Column(name, justify="right") for name in HEAD[:-1]), HEAD[-1])
    for mode in modes:
        state = Text(printable(str(mode["state"])), STYLES.get(mode["state"], "yellow"))
        table.add_row(*cells(mode)[:-1], state)
    return table


def _page(
    runs: Found, images: Mapping[str, Mapping[str, Picture]], content: Mapping[str, Any]
) -> str:
    """The page, with everything inside; it can be read without JavaScript."""
    pages = Environment(
        loader=PackageLoader("ntk_monitor.views"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    pages.filters |= {"prose": _prose, "cells": cells, "number_rows": number_rows}

    def own(name: str) -> str:
        return pages.loader.get_source(pages, name)[0] if pages.loader else ""

    css = static_file("vendor/uPlot.min.css") + static_file("style.css") + own("report.css")
    script = (bundle() + own("report.js")).replace("</script", r"<\/script")
    about = [[name, *(text for _, text in run["about"])] for name, run in runs.items()]
    return pages.get_template("report.html").render(
        title=title_of(runs),
        made=made(),
        policy=POLICY,
        css=css,
        script=script,
        data=to_json(content).replace("<", r"\u003c"),
        about_head=["run", *ABOUT],
        about=about,
        mode_head=HEAD,
        number_head=NUMBERS,
        runs=runs,
        pictures=_pictures(runs, images),
    )


def _pictures(runs: Found, images: Mapping[str, Mapping[str, Picture]]) -> list[dict[str, Any]]:
    """The kernel over time, and what the runs have logged, each with a title and a text."""
    groups = [{"title": "Over time", "images": [_image(_timeline(runs), "The kernel over time")]}]
    for name, figures in images.items():
        if figures:
            step = max(picture.step for picture in figures.values())
            shown = [_image(one.png, f"{tag} of {name}") for tag, one in figures.items()]
            title = f"Figures of {name}, drawn last at step {step}"
            groups.append({"title": title, "images": shown})
    return groups


def _prose(text: str) -> Markup:
    """Text in which backticks mark code, as HTML."""
    parts = text.split("`")
    if len(parts) % 2 == 0:  # one without its other
        return Markup(escape(text))
    coded = (f"<code>{escape(p)}</code>" if i % 2 else escape(p) for i, p in enumerate(parts))
    return Markup("".join(coded))


def _image(png: bytes, text: str) -> dict[str, str]:
    return {"text": text, "uri": f"data:image/png;base64,{base64.b64encode(png).decode()}"}


def _timeline(runs: Found) -> bytes:
    """The kernel's numbers of every run over time, with 95 % bands, as PNG."""
    with own_style():
        figure = Figure(figsize=(10, 5.4), layout="constrained")
        panels = figure.subplots(2, 3).ravel()
        lines: dict[str, Any] = {}
        for panel, tag in zip(panels, CHARTS, strict=True):
            for i, (name, run) in enumerate(runs.items()):
                steps, values = points(run, tag)
                _, errors = points(run, f"{tag}_stderr")
                (lines[name],) = panel.plot(steps, values, color=COLORS[i % len(COLORS)], lw=1.2)
                if len(errors) == len(values):
                    ends = [[v + sign * WIDTH * e for v, e in zip(values, errors, strict=True)]
                            for sign in (-1, 1)]  # fmt: skip
                    panel.fill_between(
                        steps, *ends, color=COLORS[i % len(COLORS)], alpha=0.18, lw=0
                    )
            panel.set_title(NAMES[tag], fontsize=9)
            panel.tick_params(labelsize=7)
        names = list(runs)[:12]
        legend = figure.legend(
            [lines[name] for name in names], [str(i) for i in range(len(names))],
            loc="outside lower center", ncols=3, fontsize=8,
        )  # fmt: skip
        for text, name in zip(legend.get_texts(), names, strict=True):
            text.set_parse_math(False)  # a name may hold dollars, or begin with an underscore
            text.set_text(printable(name))
        file = BytesIO()
        figure.savefig(file, format="png", dpi=110)
    return file.getvalue()
