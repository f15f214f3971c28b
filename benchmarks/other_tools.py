"""When tools that judge a training from outside speak up: three from PyPI, where installed.

Each has its own idea of what it needs: `training-doctor` and `gradsnitch` read the curves of loss,
learning rate and gradient norm (the latter also how far each step moves the weights), and
`torchmortem` hangs its own hooks into the model. They are called as their documentation says, with
their own settings. `training-doctor` judges at each step as it comes; the other two judge a whole
record, and are asked every so often for the record up to then. All of them see a training that
they leave as it was, to the last digit of the loss.

To have them without their dependencies: pip install --no-deps training-doctor gradsnitch
torchmortem, and plotly and jinja2 for the last.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from kinds import KINDS, Training, half, make, train
from results import save

ASKED = 20
"""How many times in a training those that judge a whole record are asked."""


@dataclass
class Verdict:
    """What a tool said of a training.

    Attributes:
        step: When it first spoke up, None if it never did.
        what: What it said then.
        later: Everything else that it said, with the steps.
        final: What it says of the whole record, or, if it only judges live, all that it said.
    """

    step: int | None = None
    what: str = ""
    later: list[tuple[int, str]] = field(default_factory=list)
    final: list[str] = field(default_factory=list)

    def add(self, step: int, what: str) -> None:
        """It said something; what it has said before is not new."""
        if what in {self.what, *(said for _, said in self.later)}:
            return
        if self.step is None:
            self.step, self.what = step, what
        else:
            self.later.append((step, what))


class Tool:
    """One tool beside a training."""

    package = ""

    def __init__(self, training: Training) -> None:
        """Attach to it."""
        self.training = training
        self.verdict = Verdict()
        self.every = max(1, training.steps // ASKED)

    def graded(self, step: int, loss: float) -> None:
        """The gradients are there."""

    def stepped(self, step: int, loss: float) -> None:
        """The weights have moved."""

    def close(self) -> None:
        """Let go of the model."""


class TrainingDoctor(Tool):
    """`Doctor.log` at every step: loss, rate and gradient norm."""

    package = "training_doctor"

    def __init__(self, training: Training) -> None:
        """A doctor with its own detectors."""
        super().__init__(training)
        from training_doctor import Doctor  # noqa: PLC0415

        self.doctor = Doctor()
        self.doctor.set_auto_print(False)

    def graded(self, step: int, loss: float) -> None:
        """Log, and note diagnoses."""
        rate = self.training.optimizer.param_groups[0]["lr"]
        for found in self.doctor.log(
            step=step, loss=loss, lr=rate, grad_norm=gradient_norm(self.training)
        ):
            self.verdict.add(step, found.problem)
            self.verdict.final.append(found.problem)


class GradSnitch(Tool):
    """`watch(model, optimizer)`, and its rules on the record up to now, of any severity.

    Its own live check prints errors only, and its plateau is a warning of the end report.
    """

    package = "gradsnitch"

    def __init__(self, training: Training) -> None:
        """A monitor of model and optimizer."""
        super().__init__(training)
        import gradsnitch  # noqa: PLC0415

        self.lint = gradsnitch.lint
        self.monitor = gradsnitch.watch(training.model, training.optimizer)

    def graded(self, step: int, loss: float) -> None:
        """Log, and ask every so often."""
        self.monitor.log(step, loss)
        if (step + 1) % self.every == 0 or step == self.training.steps - 1:
            said = [f"{found.code} {found.name}" for found in self.lint(self.monitor.df())]
            self.verdict.final = said
            for what in said:
                self.verdict.add(step, what)


class TorchMortem(Tool):
    """`Autopsy` with its hooks, of whose findings warnings and worse count.

    It judges when it is detached; its detectors are asked before that, with what its collectors
    have. It is not given the loss as a tensor, so that its curvature, which it counts as dear and
    draws random numbers for, is left out.
    """

    package = "torchmortem"

    def __init__(self, training: Training) -> None:
        """Hang in the hooks."""
        super().__init__(training)
        from torchmortem import Autopsy  # noqa: PLC0415

        self.autopsy = Autopsy(training.model, optimizer=training.optimizer)
        self.autopsy.attach()

    def stepped(self, step: int, loss: float) -> None:
        """Log, and ask every so often."""
        from torchmortem.types import Severity  # noqa: PLC0415

        self.autopsy.step(loss=loss)
        if (step + 1) % self.every and step != self.training.steps - 1:
            return
        autopsy = self.autopsy
        states = {state.name: state for state in (c.state() for c in autopsy._collectors)}
        metadata = autopsy._build_metadata(is_complete=step == self.training.steps - 1)
        self.verdict.final = []
        for detector in autopsy._detectors:
            found: list[Any] = []
            with contextlib.suppress(Exception):  # as its own report does
                found = detector.analyze(states, metadata)
            for finding in found:
                if finding.severity >= Severity.WARNING:
                    self.verdict.add(step, finding.title)
                    self.verdict.final.append(finding.title)

    def close(self) -> None:
        """Take the hooks out, without a report."""
        for collector in self.autopsy._collectors:
            collector.detach()
        self.autopsy._attached = False


TOOLS: dict[str, type[Tool]] = {
    "training-doctor": TrainingDoctor,
    "gradsnitch": GradSnitch,
    "torchmortem": TorchMortem,
}


def installed() -> dict[str, type[Tool]]:
    """The tools that are there."""
    return {n: t for n, t in TOOLS.items() if importlib.util.find_spec(t.package) is not None}


def gradient_norm(training: Training) -> float:
    """Of all gradients, before clipping."""
    squares = [
        float(p.grad.square().sum()) for p in training.model.parameters() if p.grad is not None
    ]
    return math.sqrt(sum(squares))


def judge(name: str, seed: int, tool: type[Tool]) -> Verdict:
    """Train a kind with one tool beside it."""
    training = make(name, seed)
    torch.manual_seed(seed)
    beside = tool(training)
    try:
        train(training, graded=beside.graded, stepped=beside.stepped)
    finally:
        beside.close()
    return beside.verdict


def training_doctor(name: str, seed: int) -> Verdict:
    """What `training-doctor` says of a training."""
    return judge(name, seed, TrainingDoctor)


def gradsnitch(name: str, seed: int) -> Verdict:
    """What `gradsnitch` says of a training."""
    return judge(name, seed, GradSnitch)


def torchmortem(name: str, seed: int) -> Verdict:
    """What `torchmortem` says of a training."""
    return judge(name, seed, TorchMortem)


JUDGES: dict[str, Callable[[str, int], Verdict]] = {
    "training-doctor": training_doctor,
    "gradsnitch": gradsnitch,
    "torchmortem": torchmortem,
}


def main() -> None:
    """Print what each says of some kinds, and save when they spoke up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="a part of the kinds' names")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for name, kind in KINDS.items():
        if arguments.only not in name:
            continue
        for tool in installed():
            said = JUDGES[tool](name, arguments.seed)
            print(
                f"{name} ({kind.group}), {tool}: {said.step} {said.what} {said.later}", flush=True
            )
            when = None if said.step is None else said.step / make(name, arguments.seed).steps
            rows.append({"tool": tool, "kind": name, "group": kind.group, "half": half(name),
                         "when": when, "what": said.what})  # fmt: skip
    if not arguments.only and len(installed()) == len(JUDGES):
        save("other_tools", {"rows": rows})


if __name__ == "__main__":
    main()
