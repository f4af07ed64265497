"""Conformal intervals: the finite-sample quantile in closed form, and coverage by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from search_support import SETTING

from latbench.card import Card
from latbench.conformal import Conformal, Normalised
from latbench.errors import ConfigError, NotEnoughDataError
from latbench.predictors.additive import calibrate


def fixed(residuals):
    """Fits that do not move when a network is left out: then only the residuals speak."""
    return Conformal(np.asarray(residuals, float), np.ones((len(residuals), len(residuals))))


def test_the_quantile_is_the_finite_sample_one():
    # n = 19 and level 0.9: the ceil(0.9 × 20) = 18th smallest residual.
    low, high = fixed(np.arange(1, 20) / 100).factors(0.9)
    assert (low, high) == pytest.approx((0.82, 1.18))


def test_too_few_networks_for_the_level_use_the_largest_residual_and_say_so():
    c = fixed([0.01, 0.03, 0.02])
    assert not c.enough(0.9)
    assert c.factors(0.9) == pytest.approx((0.97, 1.03))
    assert "too few" in c.describe(0.9)["note"]
    assert c.enough(0.5)
    assert c.describe(0.5)["note"] == ""


def test_fits_that_move_widen_the_interval():
    still = fixed([0.01] * 9)
    moving = Conformal(still.residuals, np.linspace(0.95, 1.05, 9)[:, None] * np.ones((9, 9)))
    assert moving.factors(0.9)[0] < still.factors(0.9)[0]
    assert moving.factors(0.9)[1] > still.factors(0.9)[1]


def test_extra_uncertainty_adds_like_independent_errors():
    low, high = fixed([0.03] * 20).factors(0.9, extra=0.04)
    assert (low, high) == pytest.approx((0.95, 1.05))


@given(
    residuals=st.lists(st.floats(0, 2), min_size=1, max_size=40),
    levels=st.tuples(st.floats(0.01, 0.99), st.floats(0.01, 0.99)),
)
def test_intervals_hold_the_estimate_and_grow_with_the_level(residuals, levels):
    c = fixed(residuals)
    (low_a, high_a), (low_b, high_b) = (c.factors(v) for v in sorted(levels))
    assert 0 < low_b <= low_a <= 1 <= high_a <= high_b


@pytest.mark.parametrize("level", [0, 1, 90, -0.1])
def test_a_level_outside_0_to_1_is_refused(level):
    with pytest.raises(ConfigError, match="level"):
        fixed([0.1]).factors(level)


def test_no_networks_are_refused():
    with pytest.raises(NotEnoughDataError):
        Conformal.from_fits([], np.empty((0, 0)), [])


def test_arrays_bring_it_back():
    c = Conformal(np.array([0.1, 0.2]), np.array([[1.0, 0.9], [1.1, 1.0]]))
    back = Conformal.from_arrays(c.to_arrays("x"), "x")
    assert back.factors(0.8) == c.factors(0.8)


@pytest.mark.parametrize(("networks", "level"), [(9, 0.9), (20, 0.9), (30, 0.8)])
def test_new_networks_fall_inside_as_often_as_the_level_says(networks, level):
    inside = []
    for repeat in range(80):
        rng = np.random.default_rng(repeat)

        def draw(n, rng=rng):
            sums = rng.uniform(8, 14, n)
            # Heavy tails: nothing is assumed of the errors.
            return sums[:, None], (0.3 + 1.05 * sums) * (1 + 0.01 * rng.standard_t(3, n))

        x, y = draw(networks)
        fitted = calibrate(x, y)
        low, high = fitted.conformal.factors(level)
        new_x, new_y = draw(200)
        mid = fitted.calibration.overhead_ms + fitted.calibration.scale * new_x[:, 0]
        inside.append(np.mean((mid * low <= new_y) & (new_y <= mid * high)))
    mean, error = np.mean(inside), np.std(inside) / np.sqrt(len(inside))
    # A quantile of n residuals covers between level and level + 1 / (n + 1).
    assert level - 3 * error <= mean <= level + 1 / (networks + 1) + 3 * error


# -- intervals from a model's own deviations ----------------------------------------------------------------------


def test_own_scores_alone_take_the_finite_sample_quantile():
    c = Normalised.from_left_out(np.arange(1, 20) / 10)
    assert c.factor(0.9) == pytest.approx(1.8)
    few = Normalised.from_left_out([0.5, 2.0, 1.0])
    assert few.factor(0.9) == 2.0
    assert not few.enough(0.9)
    assert "too few" in few.describe(0.9)["note"]


def test_other_devices_give_ten_networks_a_level_that_has_no_steps():
    rng = np.random.default_rng(0)
    own, others = rng.normal(size=(30, 10)), rng.normal(size=(30, 500))
    c = Normalised.from_devices(rng.normal(size=10), own, others)
    assert c.enough(0.99)
    assert c.factor(0.9) < c.factor(0.91) < c.factor(0.92)


def test_a_device_that_is_off_more_than_it_says_gets_wider_intervals_where_others_show_that_this_lasts():
    rng = np.random.default_rng(1)
    scale = np.exp(rng.normal(0, 0.7, (60, 1)))
    own, others = rng.normal(size=(60, 20)) * scale, rng.normal(size=(60, 300)) * scale
    calm, wild = (Normalised.from_devices(rng.normal(size=20) * s, own, others) for s in (0.6, 3.0))
    assert calm.power > 0
    assert wild.factor(0.9) > 2 * calm.factor(0.9)


@pytest.mark.parametrize("n", [10, 20])
def test_over_exchangeable_devices_intervals_hold_as_often_as_the_level_says(n):
    rng, held = np.random.default_rng(2), []
    for _ in range(60):
        scale = np.exp(rng.normal(0, 0.5, (41, 1)))
        own, new = rng.normal(size=(41, n)) * scale, rng.normal(size=(41, 400)) * scale
        c = Normalised.from_devices(own[0], own[1:], new[1:])
        held.append(float((np.abs(new[0]) <= c.factor(0.9)).mean()))
    assert np.mean(held) == pytest.approx(0.9, abs=0.03)


def test_a_device_with_larger_errors_than_most_in_its_part_gets_no_less_than_its_own_quantile():
    rng = np.random.default_rng(3)
    others, elsewhere = rng.normal(size=(40, 19)), rng.normal(size=(40, 400))
    noisy, calm = np.linspace(0.1, 4, 19), np.linspace(0.01, 0.4, 19)
    c = Normalised.from_devices(noisy, others, elsewhere)
    assert c.factor(0.9) == pytest.approx(np.sort(noisy)[17])
    assert c.factor(0.5) >= np.sort(noisy)[9]
    usual = Normalised.from_devices(np.sort(rng.normal(size=19)) * 0.9, others, elsewhere)
    assert not len(usual.floor)
    assert Normalised.from_devices(calm, others, elsewhere).factor(0.9) < 2
    back = Normalised.from_arrays(c.to_arrays("x"), "x")
    assert back.factor(0.9) == c.factor(0.9)


def test_no_scores_are_refused_and_levels_are_checked():
    with pytest.raises(NotEnoughDataError):
        Normalised.from_left_out([])
    with pytest.raises(ConfigError, match="level"):
        Normalised.from_left_out([1.0]).factor(90)


def test_arrays_bring_normalised_scores_back():
    c = Normalised(np.linspace(0, 3, 2001), 1.5, 0.5, 12)
    back = Normalised.from_arrays(c.to_arrays("x"), "x")
    assert (back.factor(0.8), back.devices) == (c.factor(0.8), 12)


def test_an_interval_without_an_upper_end_is_said_and_kept():
    described = fixed([0.1, 0.2, np.inf]).describe(0.9)
    assert described["high"] is None
    assert "no upper end" in described["note"]
    card = Card("table", SETTING, intervals={"high": np.inf}, model={"fits": [{"rmspe": float("nan"), "n": 3}]})
    again = Card.loads(card.dumps())
    assert again.intervals == {"high": None}
    assert again.model == {"fits": [{"rmspe": None, "n": 3}]}


@pytest.mark.parametrize(("rank", "own"), [(32, True), (28, False)])
def test_own_errors_are_the_least_above_three_quarters_of_the_others(rank, own):
    """Forty devices with mean absolute scores from 0.4 to 2.4 in even steps, and one at one of these ranks."""
    scales = np.linspace(0.4, 2.4, 40)
    others = np.ones((40, 10)) * scales[:, None]
    c = Normalised.from_devices(np.full(10, scales[rank] + 1e-6), others, np.tile(np.linspace(0.1, 2, 50), (40, 1)))
    assert (len(c.floor) > 0) == own
