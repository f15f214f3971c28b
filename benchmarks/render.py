"""Render ``docs/performance.md`` from the results in ``benchmarks/results``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from results import FOLDER

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
HEAD = """# Performance

Rendered by `make bench` from `benchmarks/results/*.json`, which also name the machine. Times are
ratios of paired measurements in one process, medians over repeats.
"""


def main() -> None:
    """Write the page."""
    parts = [HEAD]
    for name, render in PARTS.items():
        path = FOLDER / f"{name}.json"
        if path.exists():
            results = json.loads(path.read_text())
            parts.append(render(results) + f"\n{machine(results['machine'])}\n")
    PAGE.write_text("\n".join(parts))


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """The lines of a table."""
    return [
        f"| {' | '.join(columns)} |",
        "|---" * len(columns) + "|",
        *(f"| {' | '.join(map(str, row))} |" for row in rows),
    ]


def accuracy(results: dict[str, Any]) -> str:
    """The table of errors and products."""
    lines = [
        "## Accuracy against products\n",
        "Root mean squared relative error in percent against the dense Jacobian, and in brackets",
        "how often the stated 95 % interval holds the truth, over "
        f"{results['repeats']} seeds. *Plain* is sampling alone: nothing is taken out of samples,",
        "and trials are not told apart.\n",
    ]
    columns = ("workload", "setting", "products", "trace", "effective rank", "temporal", "spatial")
    rows = [
        (
            row["workload"],
            row["setting"],
            f"{row['products']:.0f}",
            *(
                f"{100 * error:.1f} ({100 * row['coverage'][metric]:.0f})"
                for metric, error in row["rmse"].items()
            ),
        )
        for row in results["rows"]
    ]
    return "\n".join([*lines, *table((*columns, "cosine"), rows)]) + "\n"


def intervals(results: dict[str, Any]) -> str:
    """How often intervals hold the truth."""
    rows = [
        (
            row["workload"],
            row["products"],
            f"{100 * row['deflated']:.0f} %",
            *(f"{100 * share:.0f}" for share in row["coverage"].values()),
        )
        for row in results["rows"]
    ]
    ends = [
        (name, "", "", *(f"{100 * share:.0f}" for share in results[key].values()))
        for name, key in (("on average", "means"), ("least", "least"))
    ]
    lines = [
        "## Intervals\n",
        "How often, in percent, the stated 95 % interval holds the truth (a dense Jacobian in",
        f"float64), over {results['seeds']} seeds; *deflated*, in how many of these probes leading",
        "directions were taken out. The interval of `alignment` is that of the norm.\n",
    ]
    columns = ("workload", "products", "deflated", "trace", "norm", "rank", "temporal", "spatial")
    return "\n".join([*lines, *table((*columns, "cosine"), [*rows, *ends])]) + "\n"


def engine(results: dict[str, Any]) -> str:
    """What default probes cost."""
    rows = [
        (
            row["workload"],
            f"{row['products']:.0f}",
            f"{row['passes a product']:.2f}",
            f"{row['steps a probe']:.0f}",
            f"{row['seconds']:.2f}",
        )
        for row in results["rows"]
    ]
    lines = [
        "## A default probe\n",
        "Probes at default settings (tolerance 5 %, at most 96 products), forward passes and",
        "training steps (Adam) in turn in one process; everything a probe does is in its time.\n",
    ]
    columns = ("workload", "products", "forward passes a product", "training steps", "seconds")
    return "\n".join([*lines, *table(columns, rows)]) + "\n"


def cost(results: dict[str, Any]) -> str:
    """The table of times and memory."""
    lines = [
        "## Cost\n",
        "Time of a product over that of two plain forward passes, by how many tangents are carried",
        f"at once; time of a first probe of {results['products']} products, with all checks of how",
        "they are taken, over that of as many pairs of forward passes; and its peak memory over",
        "that of a training step with AdamW on its batch, weights, gradients and the optimizer's",
        "moments counted on both sides. On small models memory is mostly samples and gradients of",
        "trials, which take 512 MB at most.\n",
        "| workload | method | 1 | 4 | 16 | probe | memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        if "fails" in row:
            lines.append(f"| {row['workload']} | {row['method']} | fails: {row['fails']} | | | | |")
            continue
        chunks = [row.get(f"product, chunk {c}") for c in (1, 4, 16)]
        cells = ["" if c is None else f"{c:.2f}" for c in chunks]
        lines.append(
            f"| {row['workload']} | {row['method']} | {' | '.join(cells)} | {row['probe']:.2f} | "
            f"{row['memory over a training step']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def growth(results: dict[str, Any]) -> str:
    """The table of growth."""
    lines = [
        "## Growth\n",
        f"Probes of {results['products']} products by finite differences, one size varied at a "
        "time: time over as",
        "many pairs of forward passes, and peak memory over a training step with AdamW.\n",
    ]
    rows = [
        (
            row["axis"],
            row["value"],
            f"{row['parameters']:,}",
            *(f"{row[x]:.2f}" for x in ("seconds", "probe", "memory over a training step")),
        )
        for row in results["rows"]
    ]
    columns = ("what", "value", "parameters", "seconds", "probe", "memory")
    return "\n".join([*lines, *table(columns, rows)]) + "\n"


def overhead(results: dict[str, Any]) -> str:
    """The table of training overhead."""
    lines = [
        "## Training overhead\n",
        "Wall time of training with the monitor over that without, less one, in percent; median",
        "over pairs of runs that take turns every few steps, and their range. *No monitor*:",
        "neither run has one, so this is noise. By default probes may take 2 % of the time, or",
        "10 s where that is more: the limit.\n",
    ]
    rows = [
        (
            *(row[x] for x in ("training", "setting", "steps", "repeats", "probes")),
            f"{100 * row['overhead']:.1f}",
            f"{100 * min(row['all']):.1f} to {100 * max(row['all']):.1f}",
            f"{row['seconds']:.1f}" if "seconds" in row else "-",
            f"{100 * max(row['of the limit']):.0f} %" if row["setting"] == "default" else "-",
        )
        for row in results["rows"]
    ]
    columns = (
        *("training", "setting", "steps", "pairs", "probes", "overhead", "range", "seconds"),
        "of the limit, most",
    )
    return "\n".join([*lines, *table(columns, rows)]) + "\n"


def alternatives(results: dict[str, Any]) -> str:
    """The table of what the same numbers cost otherwise."""
    coarse = "NTK products at five times the error"
    lines = [
        "## Against what one would otherwise write\n",
        "Products by the NTK (a VJP, then a JVP) that separate estimates of the same numbers take",
        f"on the GRU-256 for an error of {100 * results['tolerance']:.0f} %, from the spread of a "
        "few samples of each;",
        "see `benchmarks/alternatives.py`.\n",
        "| number | NTK products | for five times the error |",
        "|---|---|---|",
        *(
            f"| `{number(row)}` | {row['NTK products']} | {row[coarse]} |"
            for row in results["rows"]
        ),
        f"| all | {results['NTK products']} | {results[coarse]} |\n",
        f"The probe took {results['probe, products']} single products, and was "
        f"{results['times faster']:.0f} times faster;",
        f"{results['times faster at a fifth of the error']:.0f} times faster than products for",
        "five times its error. The dense",
        f"Jacobian would fill {results['dense Jacobian, GiB']:.0f} GiB.",
    ]
    return "\n".join(lines) + "\n"


def forecast(results: dict[str, Any]) -> str:
    """The tables of what forecasts said, and what then happened."""
    lines = [
        "## Forecasts\n",
        f"{results['trainings']} short trainings (`benchmarks/forecast_trainings.py`), forecast at",
        "their beginning, after 5 and 30 % of their steps; four more probes in between let",
        "forecasts know how earlier ones fared (`benchmarks/forecast.py`). Settings",
        "were chosen on one half of the tasks; *report* is the other. Loss: share within 25 % of",
        "what came so many steps ahead, in brackets that of no change at all. Time: share of modes",
        "whose steps to learn are right within a factor 5, or rightly beyond the training's end;",
        "trainings go on beyond it as far as it takes to tell which.",
        "Rate: share within 1 % of the slope along the optimizer's real step, on full batches.\n",
    ]
    rows = []
    for half in ("choice", "report"):
        for kind in ("MSE", "CE", "all"):
            chosen = {
                table: next(
                    (
                        row
                        for row in results["tables"][table]
                        if (row["half"], row["loss_kind"]) == (half, kind)
                        and row["family"] == row["at"] == "all"
                    ),
                    None,
                )
                for table in ("loss", "time", "rate")
            }
            loss, time, rate = (chosen[table] for table in ("loss", "time", "rate"))
            cells = [
                f"{100 * loss[f'{h}: within']:.0f} % ({100 * loss[f'{h}: same']:.0f} %)"
                for h in (1, 10, 30, 100)
            ]
            cells += [f"{100 * time['right']:.0f} % of {time['cases']}"]
            cells += [f"{100 * rate['within 1 %']:.0f} % of {rate['cases']}" if rate else "-"]
            rows.append((half, kind, *cells))
    columns = ("half", "loss", "loss at 1", "at 10", "at 30", "at 100", "time", "rate")
    return "\n".join([*lines, *table(columns, rows)]) + "\n"


def alerts(results: dict[str, Any]) -> str:
    """The tables of the alert's quality."""
    lines = [
        "## Alert quality\n",
        "Short trainings of which it is known what becomes of each target mode",
        "(`benchmarks/kinds.py`, recorded by `alert_runs.py`), on which rules are replayed",
        "(`benchmarks/alerts.py`): modes called stalled or unpredictable, of those that ended",
        "unlearned, of those that were learned (falsely), and of those that are noise in part; how",
        "often the reason was right; the median delay after warm-up, as a share of the training.",
        "Settings were chosen on the kinds of the half *choice*.\n",
    ]
    columns = ("half", "rule", "trainings", "unlearned", "learned", "noise, in part", "reason")
    rows = [
        (
            row["half"],
            row["rule"],
            row["runs"],
            f"{row['called']}/{row['unlearned']}",
            f"{row['falsely']}/{row['learned']}",
            f"{row['spoken of']}/{row['limited']}, unpredictable {row['unpredictable']}",
            f"{row['right']}/{row['reasons']}" if row["rule"] == "ours" else "-",
            "-" if row["delay"] is None else f"{100 * row['delay']:.0f} %",
        )
        for row in results["rules"]
    ]
    lines += table((*columns, "delay"), rows)
    lines += [
        "\nSimulated series, the logarithm of a rate that grows straight with AR(1) noise: how",
        "often it is called stalled at twice and at 1.25 times the growth that is needed (falsely)",
        "and at 0.3 times (rightly, with the median probe), in 200 probes; and the median delay",
        "after growth has ended.\n",
    ]
    columns = ("window", "autocorrelation", "noise", "2x", "1.25x", "0.3x", "at probe", "delay")
    rows = [
        (
            row["window"],
            row["phi"],
            row["sd"],
            *(f"{row[times]:.3f}" for times in ("2x", "1.25x", "0.3x")),
            *(f"{row[when]:.0f}" for when in ("probes", "delay")),
        )
        for row in results["simulated"]
    ]
    return "\n".join([*lines, *table(columns, rows)]) + "\n"


def other_tools(results: dict[str, Any]) -> str:
    """The table of tools that judge a training from outside."""
    lines = [
        "## Other tools\n",
        "Tools that read a training's curves, or hang their own hooks into the model, with their",
        "own settings on the same trainings (`benchmarks/other_tools.py`): in how many they spoke",
        "up at all, about anything, and the median time of their first word.\n",
    ]
    rows = []
    for tool in dict.fromkeys(row["tool"] for row in results["rows"]):
        for half in ("choice", "report"):
            cells = []
            for group in ("stalled", "limited", "healthy"):
                own = [
                    row
                    for row in results["rows"]
                    if (row["tool"], row["half"], row["group"]) == (tool, half, group)
                ]
                when = [row["when"] for row in own if row["when"] is not None]
                first = f", at {100 * median(when):.0f} %" if when else ""
                cells.append(f"{len(when)} of {len(own)}{first}")
            rows.append((tool, half, *cells))
    columns = ("tool", "half", "of stalled ones", "of limited ones", "of healthy ones")
    return "\n".join([*lines, *table(columns, rows)]) + "\n"


def bare(results: dict[str, Any]) -> str:
    """The table of bare callbacks on certain stalls."""
    lines = [
        "## Bare callbacks\n",
        "Trainings that certainly stall, watched with nothing set (`benchmarks/bare.py`): when the",
        "first alert came, as a share of the training, and what all probes took, over the limit,",
        "which is the larger of 2 % of the time and 10 s.\n",
    ]
    columns = ("training", "steps", "probes", "first alert", "it says", "seconds in all")
    rows = [
        (
            row["kind"],
            row["steps"],
            row["probes"],
            "never" if row["first"] is None else f"{100 * row['first']:.0f} %",
            ", ".join([*row["kinds"], *row["reasons"]]) or "-",
            f"{row['seconds']:.0f}",
            f"{100 * row['of_limit']:.0f} %",
        )
        for row in results["rows"]
    ]
    return "\n".join([*lines, *table((*columns, "of the limit"), rows)]) + "\n"


def remedies(results: dict[str, Any]) -> str:
    """The table of what short trials of remedies were worth."""
    lines = [
        "## Trials of remedies\n",
        "Trainings that stall, or whose rest is noise, trained with each remedy for 8 % of their",
        "steps and whole; the rules of `try_remedies` replayed on that (`benchmarks/remedies.py`).",
        "*Helped*: some remedy takes away a tenth of the loss at the end. The rank correlation is",
        "that of the loss of trials and of whole trainings over all remedies that fit, of which",
        "most change nothing, and are in any order; beside it that of whole trainings with one",
        "seed and with another, which is as much as a whole training tells of the next, and that",
        "of the same whole trainings with their own losses half way. Rules were chosen on the",
        "half *choice*.\n",
    ]
    columns = (
        "half", "helped", "pick has over half of the best gain", "rank correlation, median",
        "of another seed", "half way", "nothing helps", "said so",
        "cost in trainings, median", "most",
    )  # fmt: skip
    rows = [
        (
            half,
            row["trainings that something helps"],
            row["pick has over half of the best gain"],
            f"{row['rank correlation, median']:.2f}",
            f"{row['rank correlation of another seed, median']:.2f}",
            f"{row['rank correlation half way, median']:.2f}",
            row["trainings that nothing helps"],
            row["said so"],
            f"{row['cost, median']:.2f}",
            f"{row['cost, most']:.2f}",
        )
        for half, row in results["summary"].items()
    ]
    return "\n".join([*lines, *table(columns, rows)]) + "\n"


def number(row: dict[str, Any]) -> str:
    """Its name, with the bars that a table would take for its own escaped."""
    return str(row["number"]).replace("|", "\\|")


def step_cost(results: dict[str, Any]) -> str:
    """The table of what the training step costs."""
    lines = [
        "## The training step\n",
        "Time of a probe through a `training_step` over one through the forward pass, with as many",
        f"products ({results['products']} at most), both in turn in one process; median and range",
        f"of {len(results['rows'][0]['ratios'])} pairs.\n",
    ]
    rows = [
        (
            row["workload"],
            *(f"{x:.2f}" for x in (row["ratio"], row["ratios"][0], row["ratios"][-1])),
        )
        for row in results["rows"]
    ]
    return "\n".join([*lines, *table(("workload", "ratio", "lowest", "highest"), rows)]) + "\n"


PARTS = {
    "accuracy": accuracy,
    "intervals": intervals,
    "engine": engine,
    "cost": cost,
    "step_cost": step_cost,
    "growth": growth,
    "alternatives": alternatives,
    "overhead": overhead,
    "forecast": forecast,
    "alerts": alerts,
    "other_tools": other_tools,
    "bare": bare,
    "remedies": remedies,
}


def machine(found: dict[str, Any]) -> str:
    """One line on the machine."""
    accelerator = f", {found['accelerator']}" if "accelerator" in found else ""
    return (
        f"Measured on {found['cores']} cores ({found['processor']}), torch {found['torch']}"
        f"{accelerator}, Python {found['python']}."
    )


if __name__ == "__main__":
    main()
