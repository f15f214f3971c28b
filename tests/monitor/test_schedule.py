"""The schedule's arithmetic, by a clock that only the test moves."""

import math
import random
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest

from ntk_monitor.monitor.budget import SERIES, WHOLE_EVERY, is_turn, outlook, products_of_whole
from ntk_monitor.monitor.plan_messages import intentions, shortcomings
from ntk_monitor.monitor.schedule import CHEAP, MOST_PROBES, NONE, VERDICT_PROBES, Schedule

PRODUCTS = 96


@dataclass
class Training:
    """A training without anything in it, in which steps, probes and figures take a given time."""

    every: int | None = None
    share: float | None = 0.02
    seconds: float = 10.0
    total: float = 1000
    step: float = 0.01
    cheap: float = 0.05
    whole: float = 0.5
    figures: float = 0.0
    plan: Any = "steps"
    epoch: int = 10**9
    noise: float = 0.0
    now: float = 0.0
    taken: dict[int, int] = field(default_factory=dict)
    drawn: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(0)
        self.schedule = Schedule(
            self.every,
            self.share,
            self.plan,
            clock=lambda: self.now,
            max_overhead_seconds=self.seconds,
        )

    def run(self, steps: int | None = None) -> "Training":
        self.schedule.start(0, 0, self.total)
        self.visit(0)
        return self.go_on(0, int(self.total) if steps is None else steps)

    def go_on(self, start: int, steps: int) -> "Training":
        for step in range(start + 1, steps + 1):
            self.now += self.step
            if self.schedule.crosses(step, (step - 1) // self.epoch):
                self.visit(step)
        if self.schedule.lacks_end(steps):
            self.visit(steps, final=True)
        return self

    def visit(self, step: int, *, final: bool = False) -> None:
        schedule, epoch, started = self.schedule, max(step - 1, 0) // self.epoch, self.now
        choice = schedule.choose(step, epoch, PRODUCTS, final=final)
        if choice == NONE:
            return
        takes = self.cheap if choice == CHEAP else self.whole * (choice + 4) / (PRODUCTS + 4)
        self.now += takes * math.exp(self.noise * self.random.gauss(0, 1))
        schedule.figure_seconds = schedule.figure_seconds or self.figures
        wanted = self.figures and schedule.wants_figures(step, epoch, started, final=final)
        if wanted and choice != CHEAP:
            self.now += self.figures
            schedule.drew(self.figures)
            self.drawn.append(step)
        products = 6 if choice == CHEAP else choice
        schedule.record_probe(self.now - started, step, epoch, choice, products)
        self.taken[step] = choice

    @property
    def steps(self) -> list[int]:
        return list(self.taken)

    @property
    def wholes(self) -> list[int]:
        return [step for step, choice in self.taken.items() if choice != CHEAP]


def is_due(schedule: Schedule, step: int, epoch: int = 0) -> bool:
    return schedule.crosses(step, epoch) and schedule.choose(step, epoch, PRODUCTS) != NONE


def gaps(steps: list[int]) -> list[int]:
    return [b - a for a, b in pairwise(steps)]


def test_a_multiple_that_is_jumped_over_counts() -> None:
    schedule = Schedule(10, None)
    steps = [3, 9, 12, 19, 20, 20, 41, 45]
    assert [step for step in steps if is_due(schedule, step)] == [12, 20, 41]


def test_plans() -> None:
    def due(plan: Any, steps: range = range(1, 70)) -> list[int]:
        schedule = Schedule(10, None, plan)
        schedule.start(0, 0)
        return [step for step in steps if is_due(schedule, step, step // 20)]

    assert due("steps") == [10, 20, 30, 40, 50, 60]
    assert due("log") == [2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64]
    assert due("epochs") == [20, 40, 60]
    assert due([40, 7]) == [7, 40]
    assert due([7, 8, 40], range(5, 70, 5)) == [10, 40]


@pytest.mark.parametrize("total", [1, 7, 59, 60, 61, 1000, 12_345])
def test_the_monitor_plans_sixty_probes_up_to_the_end(total: int) -> None:
    training = Training(share=None, total=total).run()
    assert len(training.steps) == min(total, MOST_PROBES) + 1
    assert training.steps[0] == 0
    assert training.steps[-1] == total
    assert max(gaps(training.steps)) - min(gaps(training.steps)) <= 1
    assert set(training.taken.values()) == {PRODUCTS}


def test_without_a_known_end_there_is_one_every_hundred_steps() -> None:
    training = Training(share=None, total=math.inf).run(1050)
    assert training.steps == [*range(0, 1001, 100), 1050]
    assert "length of this training is not known" in intentions(training.schedule, 9, 0, 96)
    limited = Training(total=math.inf, cheap=0.5, whole=2.0).run(10_000)
    assert limited.schedule.spent <= 8.0
    assert 2 <= len(limited.wholes) < len(limited.steps)


@pytest.mark.parametrize("every", [None, 10])
@pytest.mark.parametrize("figures", [0.0, 0.4])
@pytest.mark.parametrize(
    ("seconds", "step", "cheap"),
    [(10.0, 0.01, 0.05), (10.0, 0.01, 0.3), (0.0, 1.0, 0.1), (10.0, 3.0, 0.5), (30.0, 0.01, 1.0)],
)
def test_probes_keep_to_their_limit_and_are_spread_evenly(
    every: int | None, figures: float, seconds: float, step: float, cheap: float
) -> None:
    training = Training(
        every, seconds=seconds, step=step, cheap=cheap, whole=10 * cheap, figures=figures
    ).run()
    schedule, limit = training.schedule, max(0.02 * training.now, seconds)
    assert schedule.spent <= 0.8 * limit + 1e-9
    assert schedule.figures_spent <= max(0.25 * limit, 2 * figures)
    assert schedule.spent > 0.4 * limit or len(training.steps) == MOST_PROBES + 1
    assert training.taken[0] == CHEAP
    assert training.steps[-1] == training.wholes[-1] == 1000
    assert len(training.steps) >= 8
    after = gaps(training.steps[1:])
    planned = 17 if every is None else every
    assert max(after) <= 2.5 * sorted(after)[len(after) // 2] + planned
    assert bool(training.drawn) == bool(figures)
    assert not figures or training.drawn[0] == training.wholes[0]


@pytest.mark.parametrize("seed", range(50))
def test_the_last_one_is_whole_although_times_vary(seed: int) -> None:
    training = Training(figures=0.4, noise=0.3, step=0.005)
    training.random.seed(seed)
    training.run()
    assert training.steps[-1] == training.wholes[-1] == 1000
    assert training.schedule.spent <= 10
    assert len(training.steps) >= 20


def test_where_the_budget_pays_for_all_all_are_whole() -> None:
    training = Training(step=10.0, figures=0.1).run()
    assert training.wholes == training.steps[1:]
    assert len(training.steps) == MOST_PROBES + 1
    assert training.drawn == training.wholes


def test_whole_probes_come_now_and_then_where_time_is_short() -> None:
    training = Training(cheap=0.1, whole=1.0).run()
    places = [training.steps.index(step) for step in training.wholes]
    assert len(places) >= 4
    assert places[0] == 2
    assert WHOLE_EVERY / 2 <= max(gaps(places)) <= 2 * WHOLE_EVERY
    assert len({training.taken[step] for step in training.wholes}) == 1


def test_an_interval_that_is_too_dear_is_thinned_out() -> None:
    training = Training(20, cheap=0.4, whole=4.0).run()
    assert all(step % 20 == 0 for step in training.steps)
    assert 12 <= len(training.steps) <= 20
    assert max(gaps(training.steps[1:])) <= 100


def test_a_probe_that_is_too_dear_for_any_other_stays_alone() -> None:
    training = Training(cheap=9.0, whole=90.0).run()
    assert training.steps == [0]
    assert "max_overhead_seconds=" in shortcomings(training.schedule, 1000)[0]


def test_the_share_alone_counts_where_no_seconds_are_given() -> None:
    assert Training(seconds=0.0).run().steps[:1] == [0]
    assert Training(seconds=0.0).run().schedule.spent <= 0.02 * 10 + 0.05
    assert Training(seconds=0.0, share=0.5).run().schedule.spent <= 0.4 * 20


def test_a_first_step_that_takes_long_is_made_up_for() -> None:
    training = Training(seconds=0.0, step=1.0)
    training.schedule.start(0, 0, 1000)
    training.visit(0)
    training.now += 600.0  # compiling
    training.go_on(0, 1000)
    assert training.schedule.spent <= 0.8 * 0.02 * training.now
    assert training.steps[-1] == training.wholes[-1] == 1000


def test_a_training_that_ends_early_has_its_last_probe() -> None:
    training = Training().run(405)
    assert training.steps[-1] == training.wholes[-1] == 405
    by_number = Training(100, share=None).run(405)
    assert by_number.steps == [0, 100, 200, 300, 400]
    beyond = Training(total=50).run(120)
    assert 50 in beyond.wholes


def test_an_alert_can_ask_for_a_whole_probe_with_figures() -> None:
    training = Training(figures=0.2)
    training.schedule.start(0, 0, 1000)
    training.visit(0)
    for step in range(1, 301):
        training.now += training.step
        if training.schedule.crosses(step):
            training.visit(step)
    calm, drawn = training.steps[-1], len(training.drawn)
    training.schedule.figures_due = True
    training.go_on(300, 400)
    following = next(step for step in training.steps if step > calm)
    assert training.taken[calm] == CHEAP
    assert following in training.wholes
    assert following == training.drawn[drawn]


@pytest.mark.parametrize("every", [None, 10])
def test_a_resumed_schedule_goes_on(every: int | None) -> None:
    whole = Training(every).run()
    first = Training(every)
    first.schedule.start(0, 0, 1000)
    first.visit(0)
    for step in range(1, 401):
        first.now += first.step
        if first.schedule.crosses(step):
            first.visit(step)
    second = Training(every, now=5.0)  # another process
    second.schedule.load_state_dict(first.schedule.state_dict())
    second.schedule.start(400, 0, 1000)
    second.go_on(400, 1000)
    assert first.taken | second.taken == whole.taken
    assert second.schedule.spent == pytest.approx(whole.schedule.spent)


def test_a_resumed_schedule_does_not_catch_up() -> None:
    schedule = Schedule(10, None)
    schedule.start(45, 0)
    assert not is_due(schedule, 46)
    assert is_due(schedule, 50)


def test_a_training_that_goes_on_for_longer_is_planned_anew() -> None:
    training = Training(share=None, total=60).run()
    again = Training(share=None, total=600)
    again.schedule.load_state_dict(training.schedule.state_dict())
    again.schedule.start(60, 0, 600)
    again.go_on(60, 600)
    assert again.steps == list(range(70, 601, 10))


@pytest.mark.parametrize("older", [True, False])
def test_a_resumed_training_can_pay_for_probes_at_once(*, older: bool) -> None:
    now = [0.0]
    first, second = (Schedule(1, 0.1, clock=lambda: now[0]) for _ in range(2))
    first.start(0, 0)
    now[0] = 1000.0
    for _ in range(3):
        first.record_probe(20.0, 10, 0, PRODUCTS, PRODUCTS)
    assert first.choose(11, 0, PRODUCTS) != NONE
    state = first.state_dict()
    assert state["elapsed"] == 1000.0
    if older:
        state = {"seen": 10, "spent": 79.0, "last": 20.0}
    now[0] = 5.0  # another process
    second.load_state_dict(state)
    second.start(10, 0)
    assert second.overhead == pytest.approx(0.1 if older else 0.06)
    assert (second.limit(10) - second.spent >= 20.0) is not older
    now[0] = 1005.0
    assert second.choose(11, 0, PRODUCTS) != NONE


def test_what_is_said_of_the_plan() -> None:
    training = Training(figures=0.2)
    training.schedule.start(0, 0, 1000)
    training.visit(0)
    training.now += 0.17
    training.visit(17)
    said = intentions(training.schedule, 17, 0, PRODUCTS)
    assert "probes planned, every" in said
    assert "s in all" in said
    assert "too few" not in said
    rare = Training(300).run(300)
    words = intentions(rare.schedule, 300, 0, PRODUCTS)
    assert f"too few for the verdict of an alert, which takes about {VERDICT_PROBES}" in words
    assert "every_n_steps=55" in words
    assert intentions(rare.schedule, 1000, 0, PRODUCTS) == ""
    assert shortcomings(Training().run().schedule, 1000) == []
    assert "every_n_steps=55" in shortcomings(Training(300).run().schedule, 1000)[0]
    assert "training is too short" in shortcomings(Training(total=5).run().schedule, 5)[0]
    (dear,) = shortcomings(
        Training(seconds=3.0, whole=1.0, cheap=0.6, step=0.1).run().schedule, 999
    )
    assert "max_overhead_seconds=" in dear
    assert ", or max_overhead=0.1" in dear


def test_what_is_proposed_is_enough() -> None:
    poor = Training(seconds=3.0, cheap=0.6, whole=3.0).run()
    assert poor.schedule.judged < VERDICT_PROBES
    (words,) = shortcomings(poor.schedule, 1000)
    seconds = float(words.split("max_overhead_seconds=")[1].split()[0].rstrip(","))
    rich = Training(seconds=seconds, cheap=0.6, whole=3.0).run()
    assert rich.schedule.judged >= VERDICT_PROBES


def test_outlook() -> None:
    assert outlook(100.0, 11, 0, 1.0, 2.0) == (10, 10, 22.0)
    assert outlook(21.0, 11, 0, 1.0, 2.0) == (10, 8, 20.0)
    assert outlook(12.0, 101, SERIES, 1.0, 2.0) == (8, 1, 11.0)
    assert outlook(9.5, 101, 0, 1.0, 2.0) == (8, 0, 9.0)
    assert outlook(0.5, 101, 0, 1.0, 2.0)[:2] == (0, 0)
    assert outlook(math.inf, 5, 0, 1.0, 1.0) == (4, 4, 5.0)


def test_turns_are_even() -> None:
    last, taken = 0, []
    for now in range(1, 101):
        if is_turn(now, last, 100, 9 - len(taken)):
            last = now
            taken.append(now)
    assert taken == list(range(10, 101, 10))


def test_whole_probes_are_smaller_where_several_could_not_be_paid_for() -> None:
    assert products_of_whole(math.inf, 0.1, PRODUCTS) == PRODUCTS
    assert products_of_whole(16.0, 0.02, PRODUCTS) == 46
    assert products_of_whole(1.0, 0.1, PRODUCTS) == 16
