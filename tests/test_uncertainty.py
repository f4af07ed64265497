"""Refusing what is too uncertain: the limit, and what the error says would help."""

from __future__ import annotations

from math import inf, nan

import pytest

from latbench.card import GIVEN, Card
from latbench.errors import ConfigError, PredictorError, UncertainError
from latbench.setting import Setting
from latbench.uncertainty import require, uncertainty
from latbench.visit import Estimate, Interval, Part

SETTING = Setting("board", "onnxruntime", "0")
CARD = Card("kernels", SETTING, device={"profile": "local-cpu"}, space={"name": "mobilenetv3"})


def estimate(low: float = 8.0, high: float = 12.0, parts: tuple[Part, ...] = (), setting: Setting = SETTING, **more):
    return Estimate(setting, {"latency_ms": Interval(10.0, low, high)}, parts, **more)


def refused(e: Estimate, limit: float = 0.1, card: Card = CARD) -> UncertainError:
    with pytest.raises(UncertainError) as found:
        require(e, limit, card)
    return found.value


def test_the_uncertainty_is_half_the_interval_over_the_value():
    assert uncertainty(estimate(8.0, 12.0)) == pytest.approx(0.2)
    assert uncertainty(estimate(9.0, 14.0)) == pytest.approx(0.25)
    assert uncertainty(estimate(9.0, inf)) == inf


def test_what_is_certain_enough_comes_back_and_none_asks_for_nothing():
    e = estimate()
    assert require(e, 0.21, CARD) is e
    assert require(e, None, CARD) is e
    assert require(estimate(high=inf), None, CARD).high_ms == inf


def test_the_error_holds_the_answer_the_interval_and_the_limit():
    e = estimate()
    error = refused(e)
    assert isinstance(error, PredictorError)
    assert (error.estimate, error.allowed) == (e, 0.1)
    assert error.uncertainty == pytest.approx(0.2)
    assert "latency_ms 10 with 90% interval 8 to 12 is ± 20.0%, at most ± 10.0% was asked for" in str(error)


def test_ops_that_were_never_measured_are_named_with_the_command_that_measures_them():
    parts = tuple(Part(f"k{i}", f"conv {i}", 1, 2.0 - i / 10, "estimated") for i in range(4))
    error = refused(estimate(parts=(*parts, Part("m", "linear", 1, 2.6, "measured"))))
    assert error.remedies[0].startswith(
        "74% of the estimate is 4 Ops that were never measured (conv 0, conv 1, conv 2, …)"
    )
    assert "latbench profile --device local-cpu --space mobilenetv3" in error.remedies[0]


def test_a_single_op_is_one():
    parts = (Part("k", "gelu", 1, 2.5, "estimated"), Part("m", "linear", 1, 7.5, "measured"))
    assert refused(estimate(parts=parts)).remedies[0].startswith("25% of the estimate is 1 Op that was never measured")


def test_a_model_of_whole_networks_asks_for_more_networks_and_not_for_ops():
    parts = (Part("network", "whole network", 1, 10.0, "estimated"),)
    card = CARD.replace(predictor="transfer", model={"networks": 30})
    (remedy,) = refused(estimate(parts=parts), card=card).remedies
    assert "Ops" not in remedy
    assert "measure more of them, and fit again: latbench profile --device local-cpu --space mobilenetv3" in remedy
    assert remedy.endswith("--level none --networks 60")
    elsewhere = refused(estimate(parts=parts), card=card.replace(data={"origin": GIVEN}))
    assert "give lb.fit more archs and latency_ms" in str(elsewhere)


def test_too_few_networks_are_named():
    card = CARD.replace(intervals={"note": "5 networks are too few for 90%: the largest residual is used"})
    assert "5 networks are too few" in str(refused(estimate(), card=card))


def test_a_simulators_own_error_cannot_be_measured_away():
    simulated = Setting("sim", "tidl", "0", clock="simulated", model_error=0.2)
    error = refused(estimate(5.0, 20.0, setting=simulated))
    assert "the simulator's own error is ± 33%" in error.remedies[0]
    assert "measure on the device" in error.remedies[0]


def test_a_warning_of_the_estimate_and_else_more_networks_are_what_helps():
    assert "extrapolated: far away" in str(refused(estimate(warnings=("extrapolated: far away",))))
    assert "calibrate on more networks like this one" in str(refused(estimate()))


@pytest.mark.parametrize("wrong", [0, -0.1, nan, True, False])
def test_a_limit_that_is_no_positive_number_is_refused(wrong):
    with pytest.raises(ConfigError, match="max_uncertainty"):
        require(estimate(), wrong, CARD)


def test_an_estimate_of_another_metric_is_judged_by_that():
    e = Estimate(SETTING, {"energy_mj": Interval(1.0, 0.4, 1.6)}, metric="energy_mj")
    assert uncertainty(e) == pytest.approx(0.6)
    assert "energy_mj 1 with 90% interval" in str(refused(e, card=CARD.replace(metric="energy_mj")))
    assert "--metric energy_mj" in str(refused(e, card=CARD.replace(metric="energy_mj")))
