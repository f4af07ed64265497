"""What one Visit says, and how far several can be trusted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latbench.errors import ProtocolError
from latbench.statistics import (
    STATISTICS,
    contention,
    run_statistics,
    run_times_ms,
    visit_interval,
    visit_intervals,
    visit_value,
)
from latbench.visit import Failure, Visit

runs = st.lists(st.integers(1, 10**12), min_size=1, max_size=60)


def a_visit(samples: list[int], **more: object) -> Visit:
    return Visit("s", "op", "u", 0.0, 1.0, np.array(samples, np.int64), **more)  # type: ignore[arg-type]


@given(runs)
def test_every_statistic_lies_between_the_fastest_and_the_slowest_run(samples: list[int]) -> None:
    s = run_statistics(samples)
    assert set(s) == set(STATISTICS)
    low, high = min(samples) * 1e-6, max(samples) * 1e-6
    assert all(low * (1 - 1e-12) <= v <= high * (1 + 1e-12) for v in s.values())
    assert s["min"] <= s["p25"] <= s["p50"] <= s["p90"] <= s["p99"]


@given(runs, st.data())
def test_every_statistic_but_first_and_sustained_ignores_the_order_of_runs(
    samples: list[int], data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations(samples))
    a, b = run_statistics(samples), run_statistics(shuffled)
    for name in ("p50", "p25", "min", "mean", "p90", "p99"):
        assert a[name] == pytest.approx(b[name], rel=1e-12)


@given(runs, st.integers(2, 1000))
def test_statistics_scale_with_the_times(samples: list[int], factor: int) -> None:
    a, b = run_statistics(samples), run_statistics([s * factor for s in samples])
    assert all(b[k] == pytest.approx(a[k] * factor, rel=1e-9) for k in a)


def test_statistics_are_what_their_names_say() -> None:
    samples = [9_000_000, *[1_000_000] * 5, *[2_000_000] * 2]
    s = run_statistics(samples)
    assert (s["first"], s["min"], s["p50"], s["sustained"]) == (9.0, 1.0, 1.0, 2.0)
    assert s["mean"] == pytest.approx(18 / 8)


def test_scheduler_wait_is_taken_off_and_wall_times_stay_available() -> None:
    wall, wait = [1_000_000, 4_000_000, 1_000_000], [0, 3_000_000, 0]
    assert run_statistics(wall, wait)["mean"] == pytest.approx(1.0)
    assert run_statistics(wall, wait, wait=False)["mean"] == pytest.approx(2.0)
    assert contention(wall, wait) == pytest.approx(1.0)
    assert contention(wall) > 3


def test_a_wait_longer_than_its_run_leaves_a_positive_time() -> None:
    assert run_times_ms([1000, 1000], [1001, 1]).min() > 0


def test_no_run_becomes_faster_than_the_fastest_undisturbed_one() -> None:
    wall, wait = [1_000_000, 1_100_000, 1_050_000], [0, 900_000, 0]
    assert run_statistics(wall, wait)["min"] == pytest.approx(1.0)
    assert run_times_ms([5_000_000, 1_000_000], [3_500_000, 0]).tolist() == pytest.approx([1.5, 1.0])


@pytest.mark.parametrize("samples", [[], [0], [-5], [float("nan")], [float("inf")], [[1, 2]]])
def test_samples_that_are_no_times_are_refused(samples: list[float]) -> None:
    with pytest.raises(ProtocolError):
        run_statistics(samples)


@pytest.mark.parametrize("wait", [[1], [-1, 0], [float("nan"), 0]])
def test_a_wait_that_does_not_fit_its_samples_is_refused(wait: list[float]) -> None:
    with pytest.raises(ProtocolError):
        run_statistics([10, 10], wait)


@given(runs)
def test_the_value_of_a_visit_is_the_statistic_of_its_runs(samples: list[int]) -> None:
    s = run_statistics(samples)
    assert all(visit_value(a_visit(samples), name) == pytest.approx(s[name], rel=1e-12) for name in STATISTICS)


def test_the_first_run_of_a_visit_is_its_first_warmup_run() -> None:
    assert visit_value(a_visit([1_000_000], warmup_ns=np.array([7_000_000])), "first") == 7.0


def test_a_failed_visit_has_no_value() -> None:
    with pytest.raises(ProtocolError, match="no samples"):
        visit_value(a_visit([], failure=Failure("DeviceDiedError", "gone")), "p50")


def test_one_visit_says_nothing_of_its_spread() -> None:
    i = visit_interval([3.0])
    assert (i.value, i.low, i.high) == (3.0, 0.0, np.inf)


def test_no_visits_have_no_interval() -> None:
    with pytest.raises(ValueError, match="at least one"):
        visit_interval([])


def test_one_disturbed_visit_does_not_move_the_centre() -> None:
    calm = [1.0, 1.01, 0.99, 1.0, 1.02, 0.98]
    assert visit_interval([*calm, 5.0]).value == pytest.approx(1.0, abs=0.03)


@given(st.lists(st.floats(0.5, 2.0), min_size=2, max_size=12), st.integers(0, 5))
def test_an_interval_holds_its_value_and_a_seed_reproduces_it(values: list[float], seed: int) -> None:
    i = visit_interval(values, seed=seed)
    assert i.low <= i.value <= i.high
    assert min(values) <= i.value <= max(values)
    assert i == visit_interval(values, seed=seed)


@pytest.mark.parametrize("values", [[3.0, 3.1], [3.0, 3.1, 3.3]])
def test_the_interval_of_two_or_three_visits_is_students(values: list[float]) -> None:
    """With so few, the centre is (nearly) the mean and the half-width t · s / √n, s with n − 1 in the denominator."""
    from scipy.stats import t

    x = np.array(values)
    i = visit_interval(x)
    half = t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x))
    assert 0.97 * half < i.high - i.value < 1.2 * half


def test_a_higher_level_gives_a_wider_interval() -> None:
    v = [1.0, 1.1, 0.9, 1.05, 0.98]
    assert visit_interval(v, 0.99).high > visit_interval(v, 0.95).high > visit_interval(v, 0.5).high


def test_intervals_of_many_subjects_are_those_of_each_alone() -> None:
    rng = np.random.default_rng(3)
    groups = [rng.normal(1, 0.1, n) for n in (4, 2, 7, 4, 1, 3)]
    for together, g in zip(visit_intervals(groups), groups, strict=True):
        alone = visit_interval(g)
        assert (together.value, together.low, together.high) == pytest.approx((alone.value, alone.low, alone.high))


@pytest.mark.parametrize("visits", [4, 6, 10])
def test_nominal_95_percent_intervals_cover_at_least_92_whatever_the_repeats_do(visits: int) -> None:
    """Runs of a Visit share an offset and are correlated in time; one Visit in ten is disturbed; 40 runs each."""
    rng = np.random.default_rng(visits)
    subjects, repeats = 1500, 40
    offset = rng.normal(0, 0.01, (subjects, visits, 1))
    noise = np.cumsum(rng.normal(0, 0.001, (subjects, visits, repeats)), axis=2) + rng.normal(
        0, 0.01, (subjects, visits, repeats)
    )
    runs_ms = np.exp(offset + noise)
    values = np.median(runs_ms, axis=2)
    found = visit_intervals(list(values))
    cover = np.mean([i.low <= 1.0 <= i.high for i in found])
    assert 0.92 <= cover <= 0.985
    # Taking all runs for independent is what must not happen: that interval misses the truth most of the time.
    naive = [visit_interval(row) for row in runs_ms[:40].reshape(40, -1)[:, ::4]]
    assert np.mean([i.low <= 1.0 <= i.high for i in naive]) < 0.8
