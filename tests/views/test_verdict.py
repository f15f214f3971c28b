"""One verdict on a run: what becomes of which share of the target, and how sure that is."""

import math

import pytest

from ntk_monitor.views.verdict import Judge, ModeRow, steps_in_words, verdict_of

ALERT = Judge(present=True, planned=1500)
FLAT = [(100 * i, 0.5) for i in range(12)]
FALLING = [(100 * i, 1 - 0.05 * i) for i in range(12)]


def row(
    index: int,
    state: str,
    since: int | None = None,
    steps: float | None = None,
    share: float | None = None,
    band: tuple[float, float] | None = None,
    output: str = "",
) -> ModeRow:
    low, high = band or (None, None)
    numbers = {"steps_to_learn": steps, "share": share, "steps_low": low, "steps_high": high}
    return ModeRow(index, state, since, [], numbers, output)


def test_every_fate_has_its_share_its_certainty_and_its_steps() -> None:
    rows = [
        row(1, "learned", 0, 0.0, 0.4),
        row(2, "learning", 0, 340.0, 0.2, (250.0, 410.0)),
        row(3, "stalled", 500, math.inf, 0.1),
        row(4, "unpredictable", 700, 20.0, 0.08),
        row(5, "insufficient data", 5, 1e4, 0.02),
    ]
    found = verdict_of(rows, FALLING, ALERT, 1100)
    assert [(part.fate, part.share) for part in found.parts] == [
        ("learned", 0.4), ("on its way", 0.2), ("out of reach", 0.1), ("unpredictable", 0.08),
        ("undecided", 0.02), ("not followed", pytest.approx(0.2)),
    ]  # fmt: skip
    assert [part.text for part in found.parts] == [
        "40 % of the target (mode 1) is learned.",
        "20 % of the target (mode 2) is on its way (95 % sure): learned in 340 (250 to 410) steps.",
        "10 % of the target (mode 3) is out of reach since step 500 (95 % sure): never learned, by "
        "the forecast.",
        "8 % of the target (mode 4) is unpredictable since step 700 (95 % sure): a step on one "
        "batch does not teach it to another.",
        "2 % of the target (mode 5) is undecided: noise hides whether it comes within reach in "
        "time, which by the forecast takes 10000 steps.",
        "20 % is in further modes, which are not followed.",
    ]
    assert (found.state, found.when, found.note) == ("stalled", "step 1100 of 1500", "")
    assert found.text.startswith("40 % of the target")
    assert "The loss is still falling" in found.text


def test_a_flat_loss_leads() -> None:
    rows = [row(1, "learning", 0, 300.0, 0.9)]
    found = verdict_of(rows, FLAT, ALERT, 1100)
    assert found.flat
    assert found.text.startswith("The loss has not moved since step 0: by less than 0.1 % (95 %")
    assert found.state == "not moving"
    assert verdict_of([row(1, "learned", 0, 0.0, 1.0)], FLAT, ALERT).state == "learned"
    assert verdict_of([row(1, "stalled", 0, 9e9, 1.0)], FLAT, ALERT).state == "stalled"


def test_nothing_is_being_learned_without_a_judgement() -> None:
    rows = [row(1, "learned", 0, 0.0, 0.5), row(2, "not judged", 0, 12.0, 0.5)]
    found = verdict_of(rows)
    assert found.text == (
        "50 % of the target (mode 1) is learned. 50 % of the target (mode 2) is not judged. "
        "Adding StallAlert() would judge what is not learned."
    )
    assert found.state == "not judged"
    assert "way" not in found.text


def test_what_the_alert_cannot_say_yet_is_said() -> None:
    early = verdict_of([row(1, "warming up", 0, 5.0, 1.0)], judge=ALERT)
    assert early.text == "100 % of the target (mode 1) is not judged yet: the alert is warming up."
    endless = verdict_of([row(1, "not judged", 0, 5.0)], judge=Judge(True, endless=True))
    assert "StallAlert(horizon=...) would judge" in endless.note
    unknown = verdict_of([row(1, "not judged")], judge=ALERT)
    assert unknown.text == (
        "Mode 1 is not judged: no optimizer is known, so neither are steps to learn."
    )
    flags = verdict_of([row(1, "not judged", 0, 5.0)], judge=Judge(True, whole=False))
    assert flags.note == "Of the alert only what is stalled was logged."


def test_without_shares_modes_are_named() -> None:
    rows = [row(1, "learned"), row(2, "stalled", 500, 2e9), row(3, "stalled", 600, 3e10)]
    assert verdict_of(rows, judge=ALERT).text == (
        "Mode 1 is learned. Modes 2 and 3 are out of reach since step 500 to 600 (95 % sure): "
        "needs 2e9 to 3e10 more steps."
    )


def test_of_several_targets_each_counts_as_much() -> None:
    rows = [row(1, "learned", 0, 0.0, 0.8, output="a"), row(2, "stalled", 0, 9e9, 0.6, output="b")]
    assert [part.share for part in verdict_of(rows, judge=ALERT).parts] == pytest.approx([
        0.4,
        0.3,
        0.3,
    ])


def test_the_level_is_that_of_the_alert() -> None:
    found = verdict_of([row(1, "stalled", 5, 9e9)], judge=Judge(True, level=0.01))
    assert "(99 % sure)" in found.text


def test_without_modes_only_the_kernel_is_known() -> None:
    found = verdict_of([])
    assert found.state == "kernel only"
    assert found.text == "No target modes are followed: only the kernel's numbers are known."
    assert verdict_of([], FLAT).state == "not moving"


@pytest.mark.parametrize(
    ("steps", "band", "text"),
    [
        (None, (None, None), "no optimizer known"),
        (math.inf, (None, None), "never, by the forecast"),
        (math.inf, (9371.6, math.inf), "never, by the forecast (not before 9400)"),
        (math.nan, (None, None), "NaN"),
        (340.0, (252.0, 411.0), "340 (250 to 410)"),
        (340.0, (252.0, math.inf), "340 (at least 250)"),
        (340.0, (339.0, 341.0), "340"),
        (3e10, (None, None), "3e10"),
        (0.0, (0.0, 0.0), "0"),
        (7.23, (None, None), "7.2"),
    ],
)
def test_steps_in_words(
    steps: float | None, band: tuple[float | None, float | None], text: str
) -> None:
    assert steps_in_words(steps, band) == text
