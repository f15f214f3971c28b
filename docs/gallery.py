"""Make the gallery: train every run of it, draw its pictures, and write docs/gallery.md.

    pip install -c constraints.txt -e ".[examples]"
    python docs/gallery.py
    python docs/gallery.py --only decay clipping    # some of them, the others as they are kept
    python docs/gallery.py --only                   # none: the pictures and the page anew

What each run gave is kept in the folder of the runs, logs and all; docs/gallery.json has what the
page says.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from gallery_page import page
from gallery_pair import draw_pair, pair_of
from gallery_pictures import finite, picture
from gallery_runs import PROBES, SEED, Run, computed, silence, train, tried
from gallery_texts import SHOWN, Shown
from rich.console import Console

from ntk_monitor.remedies import remedies

DOCS = Path(__file__).parent
NOTHING: dict[str, Any] = {"torch": torch.__version__, "runs": {}, "pair": None}
"""What is known before any run."""
KEPT = "found.json"


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, draw and write.

    Args:
        arguments: Of the command line.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", choices=list(SHOWN), help="which to train")
    parser.add_argument("--runs", type=Path, default=Path("runs/gallery"), help="for their logs")
    parser.add_argument("--docs", type=Path, default=DOCS, help="where page and pictures go")
    parser.add_argument("--probes", type=int, default=PROBES, help="of each run")
    parser.add_argument("--without-trials", action="store_true", help="of remedies: faster")
    settings = parser.parse_args(arguments)
    silence()
    tell = Console(highlight=False, markup=False, soft_wrap=True).print
    for key in SHOWN if settings.only is None else settings.only:
        shown = SHOWN[key]
        if settings.without_trials:
            shown = replace(shown, tried=False)
        tell(f"{key}: {shown.kind}")
        record = made(shown, settings.runs / key, settings.probes)
        (settings.runs / key / KEPT).write_text(json.dumps(record))
        tell(f"  {record['seconds']:.0f} s of computing. {record['found']['verdict']}")
    write(settings.runs, settings.docs)


def made(shown: Shown, folder: Path, probes: int = PROBES) -> dict[str, Any]:
    """Train one run, and with what short trials choose.

    Args:
        shown: Which.
        folder: For its logs.
        probes: How many it has.

    Returns:
        ``found``, what the page says, ``curves``, what the picture shows, and ``seconds`` of
        computing.
    """
    began = computed()
    run = train(shown.kind, folder / "as it is", probes=shown.probes or probes)
    found = said(run)
    found["kind"] = shown.kind
    curves = {"run": drawn(run), "cured": None}
    if shown.tried:
        trials = tried(shown.kind, next(iter(found["reasons"]), None))
        found["trials"] = trials.verdict
        known = {remedy.name: remedy for remedy in remedies()}
        remedy = trials.best.remedy if trials.best else known.get(shown.otherwise)
        if remedy is not None:
            after = train(shown.kind, folder / "with the remedy", remedy, probes)
            found["with"] = {"name": remedy.name, "remedy": repr(remedy), **_end(after)}
            curves["cured"] = {**drawn(after), "name": remedy.name}
    return {"found": found, "curves": curves, "seconds": round(computed() - began, 1)}


def said(run: Run) -> dict[str, Any]:
    """What is said of a run, and how it ended.

    Args:
        run: The run.

    Returns:
        Plain types.
    """
    verdict, alerts = run.told["verdict"], sorted(run.told["alerts"], key=lambda a: a["step"])
    reasons = [alert["reason"] for alert in alerts if alert["reason"]]
    return {
        "planned": run.planned, "probes": len(run.curves.steps),
        "state": verdict["state"], "when": verdict["when"], "verdict": verdict["text"],
        "advice": verdict["advice"], "alerts": alerts, "reasons": list(dict.fromkeys(reasons)),
        "history": run.history, **_end(run), "trials": None, "with": None,
    }  # fmt: skip


def _end(run: Run) -> dict[str, Any]:
    curves = run.curves
    (loss,) = finite(curves.loss[-1:])
    return {"loss": loss, "learned": [round(value, 3) for value in curves.learned[-1]]}


def drawn(run: Run) -> dict[str, Any]:
    """What a picture shows of a run.

    Args:
        run: The run.

    Returns:
        Plain types.
    """
    curves = run.curves
    ahead = {
        str(step): {name: finite(values) for name, values in each.items()}
        for step, each in curves.forecasts.items()
    }
    return {
        "planned": run.planned, "alerts": run.told["alerts"], "steps": curves.steps,
        "loss": finite(curves.loss), "learned": curves.learned, "forecasts": ahead,
    }  # fmt: skip


def write(runs: Path, docs: Path) -> None:
    """Draw the pictures of all runs that are kept, and write the page.

    Of runs that are not kept the page says what it said before.

    Args:
        runs: The folder of the runs.
        docs: Where to.
    """
    kept = {
        key: json.loads((runs / key / KEPT).read_text())
        for key in SHOWN
        if (runs / key / KEPT).exists()
    }
    images = docs / "images" / "gallery"
    images.mkdir(parents=True, exist_ok=True)
    for key, record in kept.items():
        picture(record["curves"]["run"], record["curves"]["cured"], images / f"{key}.png")
    file = docs / "gallery.json"
    before = json.loads(file.read_text()) if file.exists() else NOTHING
    runs_found = before["runs"] | {key: record["found"] for key, record in kept.items()}
    found: dict[str, Any] = {
        "seed": SEED, "torch": torch.__version__ if kept else before["torch"],
        "runs": {key: runs_found[key] for key in SHOWN if key in runs_found},
        "pair": before["pair"],
    }  # fmt: skip
    pair = pair_of({key: record["curves"]["run"] for key, record in kept.items()})
    if pair is not None:
        found["pair"] = pair
        draw_pair(pair, kept, docs / "images")
    file.write_text(json.dumps(found, indent=1) + "\n")
    (docs / "gallery.md").write_text(page(found))


if __name__ == "__main__":
    main()
