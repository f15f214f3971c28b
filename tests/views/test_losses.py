"""Whether a loss moves: never flat where it falls, and nothing where too little is known."""

import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from ntk_monitor.views.losses import FEWEST, Motion, motion_of


def motion(
    course: Callable[[np.ndarray], np.ndarray], count: int = 40, noise: float = 0.0, seed: int = 0
) -> Motion:
    """The motion of a loss with this course over 0 to 1, at steps a hundred apart."""
    t = np.linspace(0, 1, count)
    values = course(t) + noise * np.random.default_rng(seed).standard_normal(count)
    return motion_of([(100 * i, float(value)) for i, value in enumerate(values)])


def test_a_plateau_is_flat_since_it_began() -> None:
    found = motion(lambda t: np.maximum(1 - 2 * t, 0.5), noise=0.001)
    assert found.state == "flat"
    assert 800 <= found.since <= 1300
    assert found.text.startswith(f"The loss has not moved since step {found.since}: by less than ")
    assert found.text.endswith(" % (95 % sure).")


def test_what_falls_is_falling_with_an_interval_that_holds() -> None:
    last = (1 - 0.5 * np.linspace(0, 1, 40))[-14:]
    true = (last[0] - last[-1]) / np.median(last)
    found = [motion(lambda t: 1 - 0.5 * t, noise=0.005, seed=seed) for seed in range(100)]
    assert {one.state for one in found} == {"falling"}
    assert sum(one.fall.low < true < one.fall.high for one in found) >= 90
    assert found[0].text.startswith("The loss is still falling: by 2")


def test_what_rises_is_rising() -> None:
    found = motion(lambda t: 1 + t, noise=0.01)
    assert found.state == "rising"
    assert "The loss is rising: by " in found.text
    assert "-" not in found.text


def test_a_loss_that_bends_is_falling_all_the_same() -> None:
    assert motion(lambda t: 2.0**-t, count=8).state == "falling"
    assert motion(lambda t: (1 + 20 * t) ** -0.5, count=12).state == "falling"


def test_too_few_probes_say_nothing() -> None:
    found = motion(lambda t: 0 * t + 1, count=FEWEST - 1)
    assert (found.state, found.text) == ("unknown", "")
    broken = [(i, math.nan) for i in range(100)]
    assert motion_of(broken).state == "unknown"


def test_noise_hides_and_says_so() -> None:
    found = motion(lambda t: 1 - 0.02 * t, count=10, noise=0.1)
    assert found.state == "hidden"
    assert "is hidden in its noise" in found.text


@pytest.mark.parametrize(("noise", "says"), [(0.012, True), (1.0, False)])
def test_a_range_that_says_nothing_is_not_said(noise: float, says: bool) -> None:
    found = motion(lambda t: 1 - 0.02 * t, count=10, noise=noise)
    assert found.state == "hidden"
    assert (found.fall.high - found.fall.low < 1) == says
    assert ("%" in found.text) == says


def test_an_outlier_does_not_end_a_plateau() -> None:
    points = [(100 * i, 0.5 + 0.001 * (-1) ** i) for i in range(30)]
    points[17] = (1700, 40.0)
    found = motion_of(points)
    assert (found.state, found.since) == ("flat", 0)


def test_a_loss_that_has_fallen_to_nothing_is_flat() -> None:
    assert motion(lambda t: np.exp(-40 * t), count=60).state == "flat"


def test_a_loss_of_zeros_is_flat() -> None:
    assert motion(lambda t: 0 * t).state == "flat"


@pytest.mark.parametrize("noise", [0.0, 0.002, 0.02])
@pytest.mark.parametrize("count", [8, 20, 60])
def test_a_loss_that_falls_by_a_tenth_is_hardly_ever_called_flat(noise: float, count: int) -> None:
    found = Counter(motion(lambda t: 1 - 0.1 * t, count, noise, seed).state for seed in range(60))
    assert found["flat"] <= 2


@pytest.mark.parametrize("count", [8, 20, 60])
def test_of_plateaus_few_are_called_falling_or_rising(count: int) -> None:
    found = Counter(motion(lambda t: 0 * t + 1, count, 0.02, seed).state for seed in range(100))
    assert found["falling"] + found["rising"] <= 12  # 5 % are meant to be


def test_what_is_left_of_a_loss_is_told_next_to_what_it_fell() -> None:
    found = motion_of([(t, 2 * math.exp(-t / 60)) for t in range(0, 1001, 17)])
    assert found.state == "flat"
    assert found.text.startswith(f"The loss is almost all gone: since step {found.since} it has ")
    assert "has not moved" not in found.text
