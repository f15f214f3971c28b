"""Which remedies cure which stall, and whether short trials tell.

Trainings of `kinds.py` that stall, or whose rest is noise, are trained with each remedy, whole and
for the share that `try_remedies` takes; both are kept. How well the trials' order is that of whole
trainings, and what the rule of `try_remedies` says, is told from that, for the half of the kinds on
which the rule was chosen and for the other.
"""

from __future__ import annotations

import argparse
import gzip
import inspect
import json
import math
import os
from collections.abc import Iterator
from functools import partial
from itertools import combinations
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kinds import KINDS, half, make
from results import save
from scipy.stats import spearmanr
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

import ntk_monitor
from ntk_monitor.reason import Reason
from ntk_monitor.remedies import PlainTraining, Remedy, Trial, Trials, remedies
from ntk_monitor.remedies.course import STAGES
from ntk_monitor.remedies.race import Race
from ntk_monitor.remedies.search import LEAST_STEPS, SHARE
from ntk_monitor.remedies.trial import Job, run_trial

RUNS = Path(__file__).parent / "results" / "remedies.json.gz"


def plain(name: str, seed: int) -> PlainTraining:
    """A training of a kind, as trials take it."""
    training = make(name, seed)

    def loss_fn(module: nn.Module, batch: Any) -> Any:  # noqa: ANN401
        return training.loss(module(batch[0]), batch[1])

    optimizer, rate = training.optimizer, training.rate
    if isinstance(rate, LRScheduler) or len(optimizer.param_groups) > 1:
        made, scheduler = optimizer, rate
    else:
        accepted = inspect.signature(type(optimizer)).parameters
        settings = {k: v for k, v in optimizer.defaults.items() if k in accepted}
        made, scheduler = partial(type(optimizer), **settings), partial(by, rate)
    return PlainTraining(
        training.model, made, training.batch, training.steps, loss_fn, scheduler,
        training.clip_norm, training.accumulate,
    )  # fmt: skip


def by(rate: Any, optimizer: Optimizer) -> LRScheduler:  # noqa: ANN401
    """A schedule that multiplies the learning rate."""
    return LambdaLR(optimizer, rate)


def told(trial: Trial) -> dict[str, Any]:
    """What is kept of a trial."""
    return {
        "losses": {str(stage): [float(f"{x:.6g}") for x in v] for stage, v in trial.losses.items()},
        "learned": [[round(m.before, 4), round(m.after, 4)] for m in trial.modes],
        "steps": trial.steps, "ended": trial.ended, "seconds": round(trial.seconds, 2),
    }  # fmt: skip


def record(job: tuple[str, int, int]) -> dict[str, Any] | None:
    """Train one kind with one remedy, for a while and whole."""
    torch.set_num_threads(1)
    name, seed, number = job
    remedy = (Remedy(), *remedies())[number]
    monitor = {"tier": "modes", "plan": [1], "max_overhead": None, "figures": False}
    found = {}
    for what, share in (("trial", SHARE), ("whole", 1.0)):
        work = Job(
            partial(plain, name, seed), {}, remedy, share, LEAST_STEPS, monitor, None, seed
        )  # fmt: skip
        trial = run_trial(work)
        found[what] = told(trial)
        if not trial.losses:
            break
    kind = KINDS[name]
    planned = make(name, seed).steps
    print(name, seed, remedy.name, found["trial"]["ended"], flush=True)
    return {
        "kind": name, "half": half(name), "group": kind.group, "cause": kind.cause, "seed": seed,
        "remedy": remedy.name, "cost": remedy.cost, "planned": planned, **found,
    }  # fmt: skip


def jobs(only: str, groups: str, first: int, count: int) -> Iterator[tuple[str, int, int]]:
    """Every kind and remedy, seed by seed."""
    for seed in range(first, first + count):
        for name, kind in KINDS.items():
            if only in name and kind.group in groups:
                for number in range(1 + len(remedies())):
                    yield name, seed, number


# ---- what the records say -----------------------------------------------------------------------

REASON: dict[str, Reason] = {
    "learning rate": "learning rate", "clipping": "clipping", "decay": "decay",
    "saturated": "saturated", "blind readout": "readout", "core": "core",
    "propagator": "propagator",
}  # fmt: skip
"""The alert's reason for the cause that was built into a kind; others have none that is right."""
MOST_CURES = 3
"""Remedies that an alert names."""
CURES = Path(ntk_monitor.__file__).parent / "monitor" / "alerts" / "cures.json"
DOCS = Path(__file__).parents[1] / "docs" / "alerts.md"
MARK = "<!-- cures -->"
HELPED = 0.1
"""Share of the loss at the end that a remedy must take away for a training to count as helped."""
CURED = 0.5
"""Share of the loss at the end that it must take away to count as a cure."""


def final(run: dict[str, Any], what: str = "whole", stage: int = STAGES) -> float:
    """The mean loss of a run at a stage; infinite where it did not come there."""
    losses = run.get(what, {}).get("losses", {}).get(str(stage))
    return float(np.nan_to_num(np.mean(losses), nan=np.inf)) if losses else math.inf


def replay(runs: dict[str, dict[str, Any]], reason: Reason | None) -> Trials:
    """What `try_remedies` would have said of a training, by its own rules, from the records.

    Longer trials are the whole ones up to a quarter, whatever they may cost.

    Returns:
        The trials.
    """
    base = Job(lambda: None, {}, Remedy(), SHARE, LEAST_STEPS, {}, None, 0)
    race = Race(base, remedies(reason), max_cost=1.0)
    for job in iter(race.next, None):
        run = runs[job.remedy.name]
        planned, kept, taken = run["planned"], run["trial"]["losses"], run["trial"]["steps"]
        ended = "" if str(STAGES) in kept else run["trial"]["ended"]
        losses = {int(stage): tuple(values) for stage, values in kept.items()}
        if job.share != SHARE:
            taken = round(job.share * planned)
            losses = {STAGES: tuple(run["whole"]["losses"]["1"])}
        for stage in range(1, STAGES):
            if np.mean(losses.get(stage, -np.inf)) > job.bars.get(stage, np.inf):
                losses = {s: v for s, v in losses.items() if s <= stage}
                taken, ended = taken // 2 ** (STAGES - stage), "others were ahead"
        race.learn(job, Trial(job.remedy, losses, (), taken, planned, planned, ended=ended))
    return race.result


def judged(runs: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    """One training: what the trials said, and what came of it."""
    first = runs["as it is"]
    if not math.isfinite(final(first)):
        return None
    trials = replay(runs, REASON.get(first["cause"]))
    whole, half_way = (
        {name: final(run, stage=stage) for name, run in runs.items()}
        for stage in (STAGES, STAGES - 1)
    )
    tried = {name: final(run, "trial") for name, run in runs.items()}
    best = min(whole, key=whole.__getitem__)
    gains = {name: 1 - loss / whole["as it is"] for name, loss in whole.items()}
    pick = None if trials.best is None else trials.best.name
    return {
        "kind": first["kind"], "seed": first["seed"], "half": first["half"],
        "cause": first["cause"], "rank correlation": rank_correlation(tried, whole),
        "rank correlation half way": rank_correlation(half_way, whole),
        "whole": whole, "cost": trials.cost,
        "pick": pick, "best": best, "gain of the best": gains[best],
        "gain of the pick": gains[pick] if pick else 0.0, "longer": trials.longer is not None,
    }  # fmt: skip


def rank_correlation(of: dict[str, float], with_: dict[str, float]) -> float:
    """Spearman's, of the losses that remedies led to, over those that fit both times."""
    both = [name for name, loss in of.items() if math.isfinite(loss) and name in with_]
    ranked = []
    for losses in (of, with_):
        most = 10 * losses["as it is"]  # what diverges is only worst
        ranked.append([min(losses[name], most) for name in both])
    return float(spearmanr(*ranked).statistic)


def trainings(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All trainings that are kept whole, judged."""
    by: dict[tuple[str, int], dict[str, dict[str, Any]]] = {}
    for run in runs:
        by.setdefault((run["kind"], run["seed"]), {})[run["remedy"]] = run
    names = {remedy.name for remedy in (Remedy(), *remedies())}
    found = [judged(each) for each in by.values() if names <= set(each)]
    return [each for each in found if each is not None]


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    """What the trials were worth."""
    helped = [each for each in found if each["gain of the best"] >= HELPED]
    others = [each for each in found if each["gain of the best"] < HELPED]
    right = [e for e in helped if e["gain of the pick"] > e["gain of the best"] / 2]
    repeated = [
        rank_correlation(a["whole"], b["whole"])
        for a, b in combinations(helped, 2)
        if a["kind"] == b["kind"]
    ]
    return {
        "trainings that something helps": len(helped),
        "rank correlation, median": float(np.median([e["rank correlation"] for e in helped])),
        "rank correlation of another seed, median": float(np.median(repeated)),
        "rank correlation half way, median": float(
            np.median([e["rank correlation half way"] for e in helped])
        ),
        "pick has over half of the best gain": len(right),
        "trainings that nothing helps": len(others),
        "said so": sum(each["pick"] is None for each in others),
        "cost, median": float(np.median([each["cost"] for each in found])),
        "cost, most": max(each["cost"] for each in found),
    }


def cures(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By reason and remedy, how many trainings it cured."""
    whole = {(run["kind"], run["seed"]): final(run) for run in runs if run["remedy"] == "as it is"}
    counts: dict[tuple[str, str], list[int]] = {}
    for run in runs:
        base = whole.get((run["kind"], run["seed"]), math.inf)
        if run["group"] != "stalled" or run["remedy"] == "as it is" or not math.isfinite(base):
            continue
        if run["trial"]["ended"].startswith("does not"):
            continue
        cause = REASON.get(run["cause"], run["cause"])
        count = counts.setdefault((cause, run["remedy"]), [0, 0])
        count[0] += final(run) <= (1 - CURED) * base
        count[1] += 1
    return [
        {"reason": reason, "remedy": remedy, "cured": cured, "of": of}
        for (reason, remedy), (cured, of) in counts.items()
    ]


def cures_table(found: list[dict[str, Any]]) -> str:
    """Remedies by reasons, as docs/alerts.md has them."""
    counts = {(row["reason"], row["remedy"]): (row["cured"], row["of"]) for row in found}
    reasons = list(dict.fromkeys(row["reason"] for row in found))
    names = [remedy.name for remedy in remedies()]
    lines = [f"| remedy | {' | '.join(reasons)} |", "|---" * (1 + len(reasons)) + "|"]
    for name in (name for name in names if any((r, name) in counts for r in reasons)):
        cells = [counts.get((reason, name)) for reason in reasons]
        shown = ["" if cell is None else f"{cell[0]} of {cell[1]}" for cell in cells]
        lines.append(f"| {name} | {' | '.join(shown)} |")
    return "\n".join(lines)


def write_cures(found: list[dict[str, Any]]) -> None:
    """What alerts name, and the table in the documentation."""
    best: dict[str, list[tuple[str, int, int]]] = {}
    for row in sorted(found, key=lambda row: -row["cured"] / row["of"]):
        named = best.setdefault(row["reason"], [])
        if (
            row["reason"] in REASON.values()
            and len(named) < MOST_CURES
            and 2 * row["cured"] > row["of"]
        ):
            named.append((row["remedy"], row["cured"], row["of"]))
    told = {reason: named for reason, named in best.items() if named}
    CURES.write_text(json.dumps(told, indent=1) + "\n")
    before, _, after = DOCS.read_text().split(MARK)
    DOCS.write_text(f"{before}{MARK}\n{cures_table(found)}\n{MARK}{after}")


def report() -> None:
    """Write and print what the records say."""
    runs = kept()
    found = trainings(runs)
    halves = {which: [e for e in found if e["half"] == which] for which in ("choice", "report")}
    told = {which: summary(each) for which, each in halves.items()}
    for each in found:
        del each["whole"]  # it is kept with the runs
    save("remedies", {"summary": told, "trainings": found, "cures": cures(runs)})
    write_cures(cures(runs))
    for which, each in halves.items():
        print(which, json.dumps(told[which], indent=1))
        for e in each:
            print(
                f"  {e['kind']:36s} {e['seed']} cost {e['cost']:.2f}"
                f" rank {e['rank correlation']:.2f} pick {e['pick']} {e['gain of the pick']:.2f}"
                f" best {e['best']} {e['gain of the best']:.2f}{', longer' if e['longer'] else ''}"
            )


def main() -> None:
    """Record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="a part of the kinds' names")
    parser.add_argument("--groups", default="stalled limited")
    parser.add_argument("--first-seed", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--report", action="store_true", help="only say what is kept")
    arguments = parser.parse_args()
    if arguments.report:
        report()
        return
    names = [remedy.name for remedy in (Remedy(), *remedies())]
    there = {(run["kind"], run["seed"], run["remedy"]) for run in kept()}
    todo = jobs(arguments.only, arguments.groups, arguments.first_seed, arguments.seeds)
    left = [job for job in todo if (job[0], job[1], names[job[2]]) not in there]
    found = kept()
    with get_context("spawn").Pool(arguments.processes) as pool:
        for i, run in enumerate(pool.imap_unordered(record, left)):
            found.append(run)
            if i % 20 == 0 or i + 1 == len(left):
                RUNS.write_bytes(gzip.compress(json.dumps(found).encode(), mtime=0))


def kept() -> list[dict[str, Any]]:
    """What is kept."""
    return json.loads(gzip.decompress(RUNS.read_bytes())) if RUNS.exists() else []


if __name__ == "__main__":
    main()
