"""Winners are measured, replaced where they break their limit, and teach the next choice."""

from __future__ import annotations

from typing import Any

import pytest

from latbench.errors import ConfigError
from latbench.keep_limits import Winner, WinnersFactor, keep_limit
from latbench.problem import Candidate, Objective, Problem
from latbench.testing.searchers import ToySpace

PROBLEM = Problem(ToySpace(1, 9), (Objective("error"), Objective("latency_ms")))


def candidates(*rows: tuple[float, float, float]) -> list[Candidate]:
    """Of error, latency and its upper end."""
    return [
        Candidate((i,), {"error": e, "latency_ms": v, "latency_high_ms": h}, number=i)
        for i, (e, v, h) in enumerate(rows)
    ]


def test_a_winner_that_keeps_its_limit_when_measured_stays() -> None:
    found = candidates((0.1, 9, 11), (0.2, 8, 9), (0.3, 5, 6))
    kept = keep_limit(PROBLEM, found, 10, lambda c: c.values["latency_ms"], extra=0)
    assert kept.winner == found[1]
    assert (kept.broke_first, kept.extra) == (False, 0)


def test_a_winner_that_breaks_its_limit_is_replaced_and_the_next_is_chosen_with_more_care() -> None:
    found = candidates((0.1, 9, 9.5), (0.2, 8, 9.4), (0.3, 5, 6))
    measured: list[int] = []

    def slow(c: Candidate) -> float:
        measured.append(c.number)
        return 1.3 * c.values["latency_high_ms"]

    kept = keep_limit(PROBLEM, found, 10, slow, extra=3)
    # The second one's upper end times 1.3 is beyond the limit: it is not even tried before there is a winner.
    assert measured[:2] == [0, 2]
    assert kept.winner == found[2]
    assert kept.broke_first


def test_what_is_left_of_the_measurements_goes_to_better_ones_that_may_keep_the_limit() -> None:
    found = candidates((0.1, 9.9, 14), (0.2, 9, 12), (0.3, 5, 6), (0.4, 4, 5))
    kept = keep_limit(PROBLEM, found, 10, lambda c: {0: 10.5, 1: 9.5}.get(c.number, 5.0), extra=2)
    assert kept.winner == found[1]
    assert [w.candidate.number for w in kept.tried if w.chosen] == [2]
    assert {w.candidate.number for w in kept.tried} == {0, 1, 2}
    assert not kept.broke_first


@pytest.mark.parametrize(
    ("doubtful", "first"),
    [
        # Gain times chance: 0.4 · 0.31 before 0.2 · 0.57.
        (((0.1, 11, 15), (0.3, 9.8, 12)), 0),
        # The chance is that of an interval of 90 %: 0.3 · 0.03 after 0.02 · 0.57.
        (((0.2, 12, 14), (0.48, 9.8, 12)), 1),
    ],
)
def test_what_is_tried_first_promises_most_and_a_trial_does_not_widen_the_intervals(doubtful: Any, first: int) -> None:
    found = candidates(*doubtful, (0.5, 5, 6))
    factor = WinnersFactor()
    kept = keep_limit(PROBLEM, found, 10, lambda c: 5.0 if c.number == 2 else 30.0, extra=1, factor=factor)
    assert [w.candidate.number for w in kept.tried] == [2, first]
    assert factor.factor == 1


@pytest.mark.parametrize("extra", [0, 2])
def test_no_more_is_measured_than_was_allowed(extra: int) -> None:
    found = candidates(*((0.1 * i, 1, 2) for i in range(8)))
    kept = keep_limit(PROBLEM, found, 10, lambda c: 11.0, extra=extra)
    assert kept.winner is None
    assert len(kept.tried) == extra + 1
    kept = keep_limit(PROBLEM, found, 10, lambda c: float("nan"), extra=extra)
    assert (kept.winner, len(kept.tried)) == (None, extra + 1)


def test_where_nothing_is_safe_any_more_the_most_cautious_is_tried() -> None:
    found = candidates((0.1, 9, 9.5), (0.2, 8, 9.4), (0.3, 7, 8))
    kept = keep_limit(PROBLEM, found, 10, lambda c: 20.0 if c.number == 0 else 9.0, extra=1)
    assert kept.winner == found[2]


def test_the_factor_is_the_conformal_quantile_and_never_narrows() -> None:
    factor = WinnersFactor(0.9)
    assert factor.factor == 1.0
    for ratio in (0.5, 0.7, 0.8):
        factor.learn(Winner(candidates((0, 1, 1))[0], 1, 1, ratio))
    assert factor.factor == 1.0
    factor.learn(Winner(candidates((0, 1, 1))[0], 1, 1, 1.4))
    assert factor.factor == 1.4
    for _ in range(26):
        factor.learn(Winner(candidates((0, 1, 1))[0], 1, 2, 2.2))
    # The 28th of 30: not the one outlier.
    assert factor.factor == pytest.approx(1.1)


def test_bad_input_is_named() -> None:
    with pytest.raises(ConfigError, match="level"):
        WinnersFactor(1.0)
    with pytest.raises(ConfigError, match="positive"):
        keep_limit(PROBLEM, [], 0, lambda c: 1.0)
    with pytest.raises(ConfigError, match="no best network"):
        keep_limit(Problem(PROBLEM.space, (Objective("latency_ms"),)), [], 1, lambda c: 1.0)
    with pytest.raises(ConfigError, match="winner's latencies"):
        WinnersFactor().learn(Winner(candidates((0, 1, 1))[0], 1, 1, -1))


def test_networks_that_were_measured_before_teach_first_and_cost_no_measurement() -> None:
    found = candidates((0.1, 9, 9.5), (0.2, 8, 9.4), (0.25, 6, 7), (0.3, 5, 6))
    measured: list[int] = []

    def right(c: Candidate) -> float:
        measured.append(c.number)
        return c.values["latency_high_ms"]

    kept = keep_limit(PROBLEM, found, 10, right, extra=1, known={(0,): 12.0, (3,): 6.0})
    # The first broke the limit by more than its interval says, so that the second is not safe; the third is.
    assert measured == [2]
    assert kept.winner == found[2]
    assert [w.candidate.number for w in kept.tried] == [0, 3, 2]
    assert keep_limit(PROBLEM, found, 10, right, extra=0, known={(0,): 12.0, (3,): 6.0}).winner == found[3]


@pytest.mark.parametrize("maximise", [False, True])
def test_replacements_come_in_the_order_of_the_goal_whatever_the_order_of_evaluation(maximise: bool) -> None:
    goal = Objective("error", maximise)
    problem = Problem(ToySpace(1, 9), (goal, Objective("latency_ms")))
    sign = -1 if maximise else 1
    found = candidates((sign * 0.3, 5, 6), (sign * 0.1, 9, 9.9), (sign * 0.2, 8, 9), (sign * 0.15, 9.5, 13))
    measured: list[int] = []

    def too_slow(c: Candidate) -> float:
        measured.append(c.number)
        return 10.01

    kept = keep_limit(problem, found, 10, too_slow, extra=2)
    assert measured == [1, 2, 0], "the fourth one's upper end never keeps the limit"
    assert [w.candidate.number for w in kept.tried] == [1, 2, 0]
    assert kept.winner is None


def test_of_equally_good_ones_the_faster_is_the_winner() -> None:
    found = candidates((0.1, 9, 9.5), (0.1, 5, 6), (0.1, 7, 8))
    measured: list[int] = []

    def right(c: Candidate) -> float:
        measured.append(c.number)
        return c.values["latency_ms"]

    assert keep_limit(PROBLEM, found, 10, right).winner == found[1]
    assert measured == [1]


def test_of_those_measured_before_the_best_that_keeps_the_limit_is_the_winner_in_any_order() -> None:
    found = candidates((0.3, 5, 6), (0.1, 9, 9.5), (0.2, 6, 7))
    for known in ({(0,): 5.0, (2,): 6.0}, {(2,): 6.0, (0,): 5.0}):
        kept = keep_limit(PROBLEM, found, 10, lambda c: 9.0, extra=0, known=known)
        assert kept.winner == found[2]
        assert [w.candidate.number for w in kept.tried] == [2]
