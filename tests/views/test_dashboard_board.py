"""The states of target modes, and the sentence about a run."""

import math

import pytest

from ntk_monitor.views.dashboard.board import ModeRow, advice, alert_of_text, history_of, sentence


def row(index: int, state: str, since: int | None = None, steps: float | None = None) -> ModeRow:
    return ModeRow(index, state, since, [], {"steps_to_learn": steps})


def test_history_of_a_run_without_recorded_states() -> None:
    learned = [(0, 0.0), (100, 0.1), (200, 0.1), (300, 0.5), (400, 0.95), (500, math.nan)]
    stalled = [(100, 0.0), (200, 1.0), (300, 0.0), (400, 0.0)]
    assert history_of(learned, stalled, ()) == [
        (0, "learning"),
        (200, "stalled"),
        (300, "recovered"),
        (400, "learned"),
        (500, "insufficient data"),
    ]


def test_a_stall_lasts_until_it_is_said_to_end() -> None:
    assert history_of([(0, 0.0), (100, 0.0), (200, 0.0)], [(100, 1.0)], ()) == [
        (0, "learning"),
        (100, "stalled"),
    ]


def test_recorded_states_go_before_the_rest() -> None:
    changes = [(300, "stalled"), (0, "warming up"), (400, "stalled")]
    assert history_of([(0, 0.99)], [], changes) == [(0, "warming up"), (300, "stalled")]


def test_alerts_alone_give_a_history() -> None:
    assert history_of([], [(0, 0.0), (100, 1.0)], ()) == [(0, "learning"), (100, "stalled")]


@pytest.mark.parametrize(
    ("rows", "state", "text"),
    [
        (
            [row(1, "learned"), row(2, "stalled", 500, 2e9), row(3, "stalled", 500, 3e10)],
            "stalled",
            "Gradient descent sees 1 of 3 target modes. Modes 2 and 3 are stalled since step 500: "
            "they need 2e9 to 3e10 steps. Mode 1 is learned.",
        ),
        (
            [row(1, "stalled", 100, 3e10), row(2, "stalled", 400, 7000.0)],
            "stalled",
            "Gradient descent sees 0 of 2 target modes. Mode 1 is stalled since step 100: it needs "
            "3e10 steps. Mode 2 is stalled since step 400: it needs 7e3 steps.",
        ),
        (
            [row(1, "learned"), row(2, "learning", 0, 340.0)],
            "learning",
            "Gradient descent sees 2 of 2 target modes. Mode 2 is being learned: its error falls "
            "by e in 340 steps. Mode 1 is learned.",
        ),
        (
            [row(1, "warming up"), row(2, "warming up")],
            "warming up",
            "Too early to say which of target modes 1 and 2 can be learned.",
        ),
        (
            [row(1, "learning", 0, 0.2), row(2, "recovered", 0, 20.0)],
            "recovered",
            "Gradient descent sees 2 of 2 target modes. Mode 2 recovered and is being learned: its "
            "error falls by e in 20 steps. Mode 1 is being learned: its error falls by e in less "
            "than 1 steps.",
        ),
        (
            [row(1, "stalled")],
            "stalled",
            "Gradient descent does not see its only target mode. Mode 1 is stalled.",
        ),
        (
            [row(1, "learned"), row(2, "insufficient data", 5, math.nan)],
            "insufficient data",
            "Gradient descent sees 1 of 2 target modes. Whether mode 2 can be learned cannot be "
            "told from the data. Mode 1 is learned.",
        ),
        (
            [],
            "kernel only",
            "No target modes are followed: only the kernel's numbers are known.",
        ),
    ],
)
def test_the_sentence_about_a_run(rows: list[ModeRow], state: str, text: str) -> None:
    found = sentence(rows, {"ntk/core_cosine": 0.7672, "ntk/core_cosine_stderr": 0.031})
    assert (found["state"], found["text"]) == (state, text)
    assert found["detail"] == "core cosine 0.767 ± 0.03"


def test_steps_are_those_of_the_optimizer_where_it_scales_gradients() -> None:
    mode = row(1, "stalled", 100, 3e10)
    mode.numbers["preconditioned_steps_to_learn"] = 4000.0
    assert "it needs 4e3 steps" in sentence([mode], {})["text"]


def test_alerts_as_text_are_understood() -> None:
    alert = alert_of_text("Target mode 3 is stalled at step 7: the activity that the weights "
                          "multiply hardly has this mode's time course", 7)  # fmt: skip
    assert (alert["mode"], alert["kind"], alert["severity"], alert["reason"]) == (
        3, "stalled", "warning", "core",
    )  # fmt: skip
    again = alert_of_text("Target mode 12 has recovered at step 9: learned 0.5.", 9)
    assert (again["mode"], again["kind"], again["severity"]) == (12, "recovered", "info")
    assert alert_of_text("something else", 1)["mode"] is None


def test_advice_is_that_of_the_newest_alert_of_stalled_modes() -> None:
    def alert(mode: int, message: str, reason: str | None = None) -> dict[str, object]:
        return {"mode": mode, "message": message, "reason": reason}

    alerts = [
        alert(2, "What helps: larger steps."),
        alert(2, "What helps: old advice."),
        alert(1, "What helps: nothing, it is learned."),
        alert(3, "no word", "gradient noise"),
    ]
    rows = [row(1, "learned"), row(2, "stalled"), row(3, "stalled")]
    assert advice(alerts, rows) == (
        "Larger steps. Use larger batches, or a lower learning rate towards the end."
    )
    assert not advice(alerts, [row(2, "learning")])
