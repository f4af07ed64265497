"""Recalibration: a model on networks that it picked itself."""

from __future__ import annotations

import numpy as np
import pytest

import latbench as lb
from latbench.errors import ConfigError, FileFormatError, NotEnoughDataError
from latbench.predictor import MeasuredNetwork
from latbench.recalibration import _deviation, factors
from latbench.setting import Setting
from latbench.visit import Interval, Measurement

SPACE = lb.load_space("nasbench201")
COSTS, OVERHEAD = np.array([0.1, 0.2, 1.0, 3.0, 0.8]), 2.0


def ms(archs):
    return OVERHEAD + COSTS[np.asarray(archs)].sum(axis=1)


@pytest.fixture(scope="module")
def model():
    archs = SPACE.sample_archs(25, seed=0)
    return lb.fit(
        "transfer",
        space=SPACE,
        archs=archs,
        latency_ms=ms(archs) * np.exp(np.random.default_rng(0).normal(0, 0.02, 25)),
    )


def winners(factor, noise=0.0, n=6, metric="latency_ms"):
    archs = SPACE.sample_archs(n, seed=5)
    values = ms(archs) * factor * np.exp(np.random.default_rng(1).normal(0, noise, n))
    setting = Setting("elsewhere", "unknown", "")
    return [
        MeasuredNetwork(net, Measurement(net.key, setting, {metric: Interval(v, v, v)}, {}, 1, metric=metric))
        for net, v in ((SPACE.network(a), float(v)) for a, v in zip(archs.tolist(), values, strict=True))
    ]


def test_winners_that_are_all_slower_make_the_model_slower(model):
    archs = SPACE.sample_archs(50, seed=7)
    ratio = model.recalibrated(winners(1.2)).predict_archs(SPACE, archs).value / model.predict_archs(SPACE, archs).value
    assert np.ptp(ratio) < 1e-9
    assert 1.1 < ratio[0] < 1.2


def test_few_winners_move_it_less_than_many(model):
    few, many = (model.recalibrated(winners(1.2, n=n)).factor for n in (3, 30))
    assert 1 < few < many < 1.21


def test_winners_that_scatter_widen_the_intervals(model):
    calm, wild = (model.recalibrated(winners(1.0, noise)) for noise in (0.0, 0.3))
    assert calm.width < 1.1 < wild.width


def test_networks_and_architectures_get_the_same_answer(model):
    again = model.recalibrated(winners(1.1, 0.05))
    archs = SPACE.sample_archs(3, seed=9)
    many = again.predict_archs(SPACE, archs)
    for i, arch in enumerate(archs.tolist()):
        e = again.predict(SPACE.network(arch))
        assert (e.latency_ms, e.low_ms, e.high_ms) == pytest.approx((many.value[i], many.low[i], many.high[i]))
        assert e.low_ms < e.latency_ms < e.high_ms
        assert sum(p.latency_ms for p in e.breakdown) == pytest.approx(e.latency_ms)


def test_it_is_saved_with_the_model_behind_it(model, tmp_path):
    again = model.recalibrated(winners(1.1, 0.05))
    loaded = lb.load_predictor(again.save(tmp_path / "m"))
    archs = SPACE.sample_archs(4, seed=3)
    for end in ("value", "low", "high"):
        np.testing.assert_array_equal(
            getattr(loaded.predict_archs(SPACE, archs), end), getattr(again.predict_archs(SPACE, archs), end)
        )
    assert loaded.card.model["recalibrated"]["networks"] == 6
    assert "picked" in loaded.card.notes[-1]


@pytest.mark.parametrize("name", ["transfer.npz", "model.json", "recalibrated.json"])
def test_a_truncated_file_is_refused(model, tmp_path, name):
    folder = model.recalibrated(winners(1.1)).save(tmp_path / "m")
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FileFormatError, match=name):
        lb.load_predictor(folder)


def test_two_winners_are_too_few(model):
    with pytest.raises(NotEnoughDataError, match="at least 3"):
        model.recalibrated(winners(1.1, n=2))


def test_a_measurement_of_another_metric_is_refused(model):
    with pytest.raises(ConfigError, match="energy_mj"):
        model.recalibrated(winners(1.1, metric="energy_mj"))


def test_a_recalibrated_model_is_not_recalibrated_again(model):
    with pytest.raises(ConfigError, match="already"):
        model.recalibrated(winners(1.1)).recalibrated(winners(1.1))


def test_errors_as_large_as_the_model_says_leave_the_width_about_as_it_is():
    off = np.random.default_rng(0).normal(0, 0.05, 400)
    factor, width = factors(off, np.full(400, 0.05))
    assert factor == pytest.approx(1, abs=0.01)
    assert width == pytest.approx(1, abs=0.1)


def test_the_deviation_behind_an_interval_is_that_of_normal_errors():
    # Five hundredths of normal errors lie beyond 1.6449 deviations on each side.
    assert _deviation(Interval(7.0, 7 * np.exp(-0.16449), 7 * np.exp(0.16449))) == pytest.approx(0.1, rel=1e-4)


def test_the_uncertainty_of_the_factor_itself_is_in_the_width():
    """Four winners as far off as said, half of them each way: scale 1, and the factor's own variance on top."""
    from latbench.recalibration import VALUE_WORTH

    off = np.array([0.05, -0.05, 0.05, -0.05])
    assert factors(off, np.full(4, 0.05)) == pytest.approx((1.0, np.sqrt(1 + 1 / (4 + VALUE_WORTH))))
