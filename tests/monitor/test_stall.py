"""The rule of the alert: statistics of a series, and the states of a mode."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from scipy import stats

from ntk_monitor.monitor.alerts.rule import AVERAGED, FLAT_LONG, ModeWatch, Reading, StallRule
from ntk_monitor.monitor.alerts.trends import CLEARANCE, LONGEST, growth, holm, trend
from ntk_monitor.monitor.alerts.watch import StallWatch


def ar1(generator: np.random.Generator, count: int, phi: float, sd: float) -> list[float]:
    values = [generator.standard_normal() * sd]
    for _ in range(count - 1):
        step = generator.standard_normal() * sd * math.sqrt(1 - phi**2)
        values.append(phi * values[-1] + step)
    return values


def test_slope_and_uncorrected_error_are_those_of_least_squares() -> None:
    x = [0.0, 1.0, 3.0, 4.0, 7.0, 9.0]
    y = [0.0, 2.0, 1.0, 6.0, 3.0, 11.0]  # residuals that alternate: no correction is due
    wanted = stats.linregress(x, y)
    found = trend(x, y)
    assert found.slope == pytest.approx(wanted.slope)
    assert found.stderr == pytest.approx(wanted.stderr)
    assert found.dof == 4
    wanted_p = stats.t.cdf((wanted.slope - 2) / wanted.stderr, 4)
    assert found.probability_of(2.0, at_least=True) == pytest.approx(wanted_p)
    assert found.probability_of(2.0, at_least=False) == pytest.approx(1 - wanted_p)


def test_a_line_without_noise_is_certain() -> None:
    found = trend(range(5), [0.5 * i for i in range(5)])
    assert found.stderr == 0
    assert found.probability_of(0.4, at_least=True) == 1
    assert found.probability_of(0.6, at_least=True) == 0
    assert found.probability_of(0.6, at_least=False) == 1


def test_the_autocorrelation_of_short_series_is_corrected_for_its_bias() -> None:
    """Without it 6.6 % are rejected, and the standard error is 0.79 of what it should be."""
    generator = np.random.default_rng(3)
    found = [trend(range(10), ar1(generator, 10, 0.6, 1.0)) for _ in range(1500)]
    assert np.mean([line.probability_of(0.0, at_least=True) < 0.05 for line in found]) < 0.05
    spread = np.std([line.slope for line in found])
    assert np.median([line.stderr for line in found]) > 0.95 * spread


@pytest.mark.parametrize(("phi", "window"), [(0.0, 20), (0.6, 20), (0.6, 40), (0.8, 80)])
def test_standard_errors_hold_under_autocorrelated_noise(phi: float, window: int) -> None:
    generator = np.random.default_rng(1)
    found = [trend(range(window), ar1(generator, window, phi, 1.0)) for _ in range(600)]
    rejected = np.mean([line.probability_of(0.0, at_least=True) < 0.05 for line in found])
    assert rejected < 0.05 + 4 * math.sqrt(0.05 * 0.95 / 600) + (0.02 if phi else 0)
    spread = np.std([line.slope for line in found])
    assert 0.6 * spread < np.median([line.stderr for line in found]) < 1.5 * spread


def test_without_the_correction_far_more_would_be_rejected() -> None:
    """That the test above can fail: ordinary least squares on the same noise."""
    generator = np.random.default_rng(1)
    p = [stats.linregress(range(40), ar1(generator, 40, 0.6, 1.0)) for _ in range(600)]
    assert np.mean([stats.t.cdf(line.slope / line.stderr, 38) < 0.05 for line in p]) > 0.12


def test_the_window_grows_with_the_noise_and_says_when_it_does_not_suffice() -> None:
    generator = np.random.default_rng(0)
    quiet, loud = ([0.01 * i + sd * e for i, e in enumerate(generator.standard_normal(80))]
                   for sd in (0.001, 0.3))  # fmt: skip
    line = growth(range(80), quiet, 0.01, 20)
    assert line is not None
    assert line == trend(range(60, 80), quiet[-20:])
    assert growth(range(80), loud, 0.01, 20) is None
    line = growth(range(80), loud, 0.04, 20)
    assert line == trend(range(40, 80), loud[-40:])
    assert CLEARANCE * trend(range(60, 80), loud[-20:]).noise > 0.04 * 19
    assert growth(range(3), [0.0, 1.0, 2.0], 0.01, 20) is None


def test_holm_rejects_step_by_step() -> None:
    assert holm({1: 0.001, 2: 0.02, 3: 0.04}, 0.05) == {1, 2, 3}
    assert holm({1: 0.001, 2: 0.03, 3: 0.04}, 0.05) == {1}
    assert holm({1: 0.02, 2: 0.3}, 0.05) == {1}
    assert holm({1: 0.03, 2: 0.3}, 0.05) == set()
    assert holm({}, 0.05) == set()


def run(
    watch: StallWatch,
    learned: Sequence[float],
    log_steps: Sequence[float],
    planned: int = 1000,
    start: int = 0,
    transfer: tuple[float, float] | None = None,
) -> list[str]:
    states = []
    for i, (c, log_step) in enumerate(zip(learned, log_steps, strict=True)):
        step = start + 10 * i
        watch.update(step, [Reading(1, c, math.exp(log_step), transfer)], planned - step)
        states.append(watch.states[1])
    return states


def test_a_flat_mode_out_of_reach_stalls_after_patience() -> None:
    found = run(StallWatch(StallRule(patience=3)), [0.0] * 8, [20.0] * 8)
    assert found == ["warming up"] * 5 + ["stalled"] * 3  # four probes for a trend, three agree


@pytest.mark.parametrize(("times", "state"), [(2.0, "learning"), (0.5, "stalled")])
def test_growth_counts_against_what_the_remaining_steps_need(times: float, state: str) -> None:
    """Silent alignment: nothing learned, and steps to learn fall; ten in logarithms over 1000."""
    generator = np.random.default_rng(0)
    steps = [
        math.log(1000) + 10 - times * 0.1 * i + 0.002 * generator.standard_normal()
        for i in range(40)
    ]
    assert run(StallWatch(StallRule()), [0.0] * 40, steps)[-1] == state


def test_a_learned_fraction_that_rises_in_time_is_no_stall() -> None:
    """As under an optimizer of which the steps to learn are not known."""
    rising = [0.012 * i for i in range(40)]
    assert run(StallWatch(StallRule()), rising, [20.0] * 40)[-1] == "learning"
    assert run(StallWatch(StallRule()), [0.3 * c for c in rising], [20.0] * 40)[-1] == "stalled"


def judged(
    transfer: tuple[float, float] | None,
    steps: float,
    learned: Sequence[float],
    planned: int = 1000,
) -> list[str]:
    watch, states = StallWatch(StallRule()), []
    for i, c in enumerate(learned):
        watch.update(10 * i, [Reading(1, c, steps, transfer)], planned - 10 * i)
        states.append(watch.states[1])
    return states


def test_what_stands_still_within_reach_is_unpredictable() -> None:
    found = judged(None, 20.0, [0.2] * 60)
    assert set(found) == {"warming up", "insufficient data", "unpredictable"}
    # It takes a tenth of what remains, and three probes in a row that agree:
    # 100 of the 900 steps that remain, and two probes more.
    assert found.index("unpredictable") == 12
    assert found[-1] == "unpredictable"


def test_within_reach_it_is_learning_only_with_movement_or_transfer() -> None:
    assert judged(None, 200.0, [0.1 + 0.015 * i for i in range(12)])[-1] == "learning"
    assert judged((1.0, 0.1), 200.0, [0.2] * 12)[-1] == "learning"
    for unsure in (None, (0.1, 0.3), (-0.5, 0.1), (math.nan, math.nan), (0.5, math.inf)):
        assert judged(unsure, 200.0, [0.2] * 12)[-1] == "insufficient data"


def test_a_transfer_does_not_speak_for_what_stands_still_all_the_same() -> None:
    found = judged((1.0, 0.1), 20.0, [0.2] * 60)
    assert found[5] == "learning"
    assert found[-1] in {"stalled", "unpredictable"}


def test_out_of_reach_it_is_unpredictable_where_surely_nothing_transfers() -> None:
    assert judged((0.0, 0.05), 1e9, [0.0] * 12)[-1] == "unpredictable"
    for transfer in (None, (0.0, 0.8), (1.0, 0.05), (0.5, 0.05)):
        assert judged(transfer, 1e9, [0.0] * 12)[-1] == "stalled"


def test_an_unpredictable_mode_may_be_learned_after_all() -> None:
    found = judged(None, 20.0, [0.2] * 20 + [0.2 + 0.05 * i for i in range(1, 15)] + [0.95])
    assert found[19] == "unpredictable"
    assert found[-1] == "learned"
    assert "recovered" not in found


def test_transfers_of_many_probes_are_taken_together_but_not_as_independent() -> None:
    watch = ModeWatch()
    assert watch.transfer is None
    for i in range(30):
        watch.add(i, Reading(1, 0.0, 20.0, (0.2, 0.4)), 80)
    mean, stderr = watch.transfer or (math.nan, math.nan)
    assert mean == pytest.approx(0.2)
    assert 0.4 / math.sqrt(30) < stderr < 0.4
    watch.add(30, Reading(1, 0.0, 20.0, (math.nan, math.inf)), 80)
    assert watch.transfer == pytest.approx((mean, stderr))


def test_rates_that_come_and_go_are_averaged() -> None:
    generator = np.random.default_rng(0)
    x = list(range(0, 800, 10))
    far_apart = [-math.log(1e3 if coin else 1e8) for coin in generator.random(80) < 0.7]
    needed = 0.015
    assert growth(x, far_apart, needed, 20) is None
    line = growth(x, far_apart, needed, 20, AVERAGED)
    assert line is not None
    assert line.probability_of(needed, at_least=True) < 0.05
    assert growth(x[:15], far_apart[:15], needed, 20, AVERAGED) is None  # three means are no trend
    rising = [y + 2 * needed * at for at, y in zip(x, far_apart, strict=True)]
    line = growth(x, rising, needed, 20, AVERAGED)
    assert line is not None
    assert line.probability_of(needed, at_least=True) > 0.05


def test_progress_counts_when_it_is_more_than_noise() -> None:
    watch = StallWatch(StallRule())
    run(watch, [0.10, 0.12, 0.14], [3.0] * 3)
    assert watch.watches[1].moved == 0
    run(watch, [0.16], [3.0], start=30)
    assert watch.watches[1].moved == 30


def test_coming_back_from_an_overshoot_is_progress() -> None:
    watch = StallWatch(StallRule())
    run(watch, [0.2, 3.0, 3.0, 2.0, 0.4], [3.0] * 5)
    assert watch.watches[1].moved == 40
    run(watch, [0.41] * 3, [3.0] * 3, start=50)
    assert watch.watches[1].moved == 40


def test_noise_that_hides_the_growth_is_insufficient_data_until_it_has_stood_still_for_long() -> (
    None
):
    generator = np.random.default_rng(0)
    steps = [math.log(1000) + 3 + generator.standard_normal() for _ in range(40)]
    found = run(StallWatch(StallRule()), [0.0] * 40, steps)
    long = next(i for i in range(40) if 10 * i >= FLAT_LONG * (1000 - 10 * i))
    assert "insufficient data" in found
    assert "stalled" not in found[:long]
    assert found[-1] == "stalled"


def test_what_stands_still_while_its_rate_seems_to_grow_is_not_stalled() -> None:
    generator = np.random.default_rng(0)
    # As noisy, and a hundred times as fast by the end: silent alignment.
    steps = [math.log(1000) + 3 - i / 8 + generator.standard_normal() for i in range(40)]
    found = run(StallWatch(StallRule()), [0.0] * 40, steps)
    assert "stalled" not in found


def test_what_is_explained_is_stalled_whatever_transfers() -> None:
    for explained, state in ((True, "stalled"), (False, "unpredictable")):
        watch = StallWatch(StallRule())
        for i in range(40):
            reading = Reading(1, 0.0, 1e5, (0.0, 0.1), (0.0, 0.1), explained=explained)
            watch.update(10 * i, [reading], 1000 - 10 * i)
        assert watch.states[1] == state


@pytest.mark.parametrize(("whole", "state"), [(0.1, "unpredictable"), (0.9, "stalled")])
def test_little_transfer_of_the_loss_decides_where_a_mode_s_own_is_not_known(
    whole: float, state: str
) -> None:
    watch = StallWatch(StallRule())
    for i in range(40):
        watch.update(10 * i, [Reading(1, 0.0, 1e5, (0.5, 3.0), (whole, 0.2))], 1000 - 10 * i)
    assert watch.states[1] == state


def watch_of(learned: Sequence[float], rates: Sequence[float], **known: Any) -> StallWatch:
    watch = StallWatch(StallRule())
    for i, (c, rate) in enumerate(zip(learned, rates, strict=True)):
        watch.update(10 * i, [Reading(1, c, 5e3, rate=rate, **known)], 1000 - 10 * i)
    return watch


def test_what_adds_up_is_the_share_of_what_steps_promise() -> None:
    rising = [0.005 * i for i in range(30)]
    share, stderr = watch_of(rising, [1e-3] * 30).watches[1].realised(20) or (math.nan, math.nan)
    assert share == pytest.approx(0.5)
    assert stderr < 1e-6
    noise = np.random.default_rng(0).standard_normal(30)
    noisy = [c + 0.01 * x for c, x in zip(rising, noise, strict=True)]
    share, stderr = watch_of(noisy, [1e-3] * 30).watches[1].realised(20) or (math.nan, math.nan)
    assert abs(share - 0.5) < 3 * stderr < 0.3
    back_and_forth = [1e-3, -1e-3] * 15
    share, _ = watch_of([0.1] * 30, back_and_forth).watches[1].realised(20) or (math.nan, math.nan)
    assert share == pytest.approx(0)
    for rates in ([0.0] * 30, [math.nan] * 30, [1e-3] * 29 + [math.nan]):
        assert watch_of(rising, rates).watches[1].realised(20) is None
    assert watch_of(rising[:3], [1e-3] * 3).watches[1].realised(20) is None


ALL, NONE = (1.0, 0.05), (0.0, 0.05)


@pytest.mark.parametrize(
    ("slope", "rate", "transfer", "state"),
    [
        (0.0, 2e-4, ALL, "unpredictable"),  # nothing of it came true, whatever one batch says
        (0.0, 2e-4, NONE, "unpredictable"),
        (1e-5, 1e-5, NONE, "stalled"),  # all of it came true: it is only too slow
        (0.0, 1e-6, ALL, "stalled"),  # it would take for ever on its own batch as well
        (0.0, 1e-8, NONE, "stalled"),  # so that it does not count what steps teach others
        (0.0, math.nan, ALL, "stalled"),
        (0.0, math.nan, NONE, "unpredictable"),
    ],
)
def test_what_came_true_tells_noise_from_a_stall(
    slope: float, rate: float, transfer: tuple[float, float], state: str
) -> None:
    learned = [0.2 + 10 * slope * i for i in range(40)]
    known = {"transfer": transfer, "of_the_loss": transfer}
    assert watch_of(learned, [rate] * 40, **known).states[1] == state
    assert watch_of(learned, [rate] * 40, explained=True, **known).states[1] == "stalled"


def test_an_unpredictable_mode_is_no_stall_since_its_steps_become_small() -> None:
    watch = StallWatch(StallRule())
    for i in range(60):
        reading = Reading(1, 0.2, 5e3, NONE, NONE, rate=1e-3 if i < 20 else 1e-9)
        watch.update(10 * i, [reading], 1000 - 15 * i)
        assert i < 10 or watch.states[1] == "unpredictable"


@pytest.mark.parametrize(
    ("slope", "noise", "state"),
    [
        (9e-4, 0.0, "insufficient data"),  # as fast as it goes, twice the length would do
        (9e-4, 0.002, "insufficient data"),
        (2e-4, 0.0, "unpredictable"),
        (0.0, 0.01, "unpredictable"),
    ],
)
def test_what_rises_and_only_lacks_steps_is_no_noise(
    slope: float, noise: float, state: str
) -> None:
    watch, generator = StallWatch(StallRule()), np.random.default_rng(0)
    for i in range(50):
        c = 0.2 + 10 * slope * i + noise * generator.standard_normal()
        reading = Reading(1, c, 1e6, (0.0, 0.05), (0.0, 0.05), rate=2e-2)
        watch.update(10 * i, [reading], 600 - 10 * i)
    assert watch.states[1] == state


def test_unless_it_is_not_certain_that_nothing_transfers() -> None:
    watch, doubtful = StallWatch(StallRule()), (0.3, 0.3)
    for i in range(60):
        reading = Reading(1, 0.2, 5e3, doubtful, doubtful, rate=1e-3 if i < 20 else 1e-9)
        watch.update(10 * i, [reading], 1000 - 15 * i)
        assert not 12 < i < 25 or watch.states[1] == "unpredictable"
    assert watch.states[1] == "stalled"


def test_where_every_step_is_made_on_the_probed_batch_nothing_is_unpredictable() -> None:
    every = {"transfer": (1.0, 0.0), "of_the_loss": (1.0, 0.0)}
    assert watch_of([0.2] * 40, [2e-4] * 40, **every).states[1] == "stalled"
    almost = {"transfer": (1.0, 1e-3), "of_the_loss": (1.0, 1e-3)}
    assert watch_of([0.2] * 40, [2e-4] * 40, **almost).states[1] == "unpredictable"


def test_a_mode_within_reach_that_bounces_is_unpredictable_though_its_steps_transfer() -> None:
    for rates, state in (([1e-2, -1e-2] * 20, "unpredictable"), ([math.nan] * 40, "stalled")):
        watch = StallWatch(StallRule())
        for i, rate in enumerate(rates):
            watch.update(10 * i, [Reading(1, 0.2, 9.0, ALL, ALL, rate=rate)], 1000 - 10 * i)
        assert watch.states[1] == state


def test_a_mode_that_only_stands_still_is_not_certainly_too_slow() -> None:
    generator = np.random.default_rng(0)
    steps = [math.log(1000) + 3 + generator.standard_normal() for _ in range(40)]
    watch = StallWatch(StallRule())
    assert run(watch, [0.0] * 40, steps)[-1] == "stalled"
    assert watch.unsure == {1}
    certain = StallWatch(StallRule())
    assert run(certain, [0.0] * 8, [20.0] * 8)[-1] == "stalled"
    assert certain.unsure == frozenset()
    assert ModeWatch.from_state(vars(watch.watches[1])).certain is False


def test_learned_recovered_and_cooldown() -> None:
    watch = StallWatch(StallRule(patience=2, cooldown=6))
    assert run(watch, [0.0] * 6, [20.0] * 6)[-1] == "stalled"
    found = run(watch, [0.1, 0.2], [2.0, 2.0], start=60, transfer=(1.0, 0.1))
    assert found == ["stalled", "recovered"]
    # It falls back: no stall is called in the next six probes.
    found = run(watch, [0.2] * 25, [20.0] * 25, start=80)
    assert "stalled" not in found[:6]
    assert found[-1] == "stalled"
    found = run(watch, [0.95, 0.88, 0.88, 0.84, 0.84], [2.0] * 5, start=400)
    assert found[:3] == ["learned", "learned", "learned"]  # hysteresis
    assert found[-1] != "learned"


def test_no_stall_is_called_during_the_cooldown() -> None:
    def after(cooldown: int) -> int:
        watch = StallWatch(StallRule(patience=1, window=4, cooldown=cooldown))
        run(watch, [0.0] * 8, [20.0] * 8)
        run(watch, [0.2], [2.0], start=80, transfer=(1.0, 0.1))
        assert watch.states[1] == "recovered"
        return run(watch, [0.2] * 20, [20.0] * 20, start=90).index("stalled")

    assert (after(0), after(9)) == (3, 9)


def test_time_alone_makes_no_recovery() -> None:
    """A stalled mode that has stood still for twice its steps to learn, still out of reach."""
    watch = StallWatch(StallRule())
    found = run(watch, [0.1] * 99, [math.log(1e6)] * 60 + [math.log(450)] * 39)
    assert found[-1] == "stalled"
    assert "recovered" not in found


def test_not_knowing_for_a_probe_is_no_new_beginning() -> None:
    watch = StallWatch(StallRule())
    assert run(watch, [0.0] * 7, [20.0] * 7)[-1] == "stalled"
    watch.update(70, [Reading(1, 0.0, math.nan)], 900)
    watch.update(80, [Reading(1, 0.0, 1e9)], 900)
    watch.update(90, [Reading(1, 0.0, 1e9)], 900, early=True)
    assert watch.states[1] == "stalled"


def test_an_overshoot_is_not_learned() -> None:
    watch = StallWatch(StallRule())
    assert run(watch, [0.95, 1.05, 1.2, 5000.0, 5000.0, 5000.0], [2.0] * 6)[-1] != "learned"
    assert run(StallWatch(StallRule()), [1.08], [2.0]) == ["learned"]


def test_not_knowing_leaves_a_stall_as_it_is() -> None:
    watch = StallWatch(StallRule(patience=1))
    assert run(watch, [0.0] * 6, [20.0] * 6)[-1] == "stalled"
    noise = [14.0, 20.0, 11.0, 22.0, 12.0, 21.0]
    assert set(run(watch, [0.0] * 6, noise, start=60)) == {"stalled"}
    assert watch.watches[1].proposed == "insufficient data"


def test_states_that_alternate_change_nothing() -> None:
    watch = StallWatch(StallRule(patience=3))
    found = run(watch, [0.0] * 40, [2.0, 2.0, 20.0, 20.0] * 10)
    assert "stalled" not in found


def test_no_stall_is_called_at_the_last_probe() -> None:
    watch = StallWatch(StallRule(patience=1))
    for i in range(4):
        watch.update(10 * i, [Reading(1, 0.0, 1e9)], 100, last=i == 3)
    assert watch.states[1] != "stalled"


@pytest.mark.parametrize("modes", [16, 1])
def test_bounds_hold_for_all_modes_together(modes: int) -> None:
    """Modes that grow just as fast as needed, judged once: 5 % of probes may reject any of them.

    Sixteen tests at 5 % each would reject one of them in half of the probes.
    """
    generator = np.random.default_rng(0)
    alarms = 0
    for _ in range(200):
        watch = StallWatch(StallRule(patience=1))
        paths = [ar1(generator, 25, 0.0, 0.01) for _ in range(modes)]
        for i in range(25):
            # Of 10^4 steps at all times, ten in logarithms need a slope of 0.01 a probe.
            readings = [
                Reading(m + 1, 0.0, math.exp(math.log(1e4) + 10 - 0.01 * i + path[i]))
                for m, path in enumerate(paths)
            ]
            watch.update(10 * i, readings, 1e4, early=i < 24)
        alarms += "stalled" in watch.states.values()
    assert 0 < alarms / 200 <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / 200)


@pytest.mark.parametrize("reading", [(math.nan, 20.0), (0.0, math.nan)])
def test_readings_that_say_nothing_are_left_out(reading: tuple[float, float]) -> None:
    watch = StallWatch(StallRule())
    watch.update(0, [Reading(1, *reading)], 100)
    assert watch.states == {1: "not judged"}
    watch.update(10, [Reading(1, 0.5, 20.0)], 100)
    assert watch.states == {1: "warming up"}


def test_a_mode_that_nothing_moves_stalls() -> None:
    watch = StallWatch(StallRule())
    for i in range(8):
        watch.update(10 * i, [Reading(1, 0.0, math.inf)], 1000 - 10 * i)
    assert watch.states[1] == "stalled"


def test_probes_that_go_back_are_left_out() -> None:
    watch = StallWatch(StallRule())
    for step in (0, 10, 10, 5, 20):
        watch.update(step, [Reading(1, 0.0, 1.0)], 100)
    assert watch.watches[1].steps == [0, 10, 20]


def test_only_what_a_window_may_need_is_kept() -> None:
    watch = StallWatch(StallRule(window=5))
    run(watch, [0.0] * 50, [2.0] * 50)
    assert len(watch.watches[1].steps) == 5 * LONGEST


def test_a_watch_goes_through_plain_types() -> None:
    first, second = StallWatch(StallRule()), StallWatch(StallRule())
    run(first, [0.0] * 5, [20.0] * 5)
    second.watches = {i: ModeWatch.from_state(dict(vars(w))) for i, w in first.watches.items()}
    assert second.watches == first.watches
    assert run(second, [0.0], [20.0], start=50) == ["stalled"]
    with pytest.raises(ValueError, match="no state of a mode"):
        ModeWatch.from_state({**vars(first.watches[1]), "state": "sleepy"})
