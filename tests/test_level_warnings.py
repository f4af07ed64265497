"""A level that few calibration networks cannot give is told with the estimate."""

from __future__ import annotations

import pytest

import latbench as lb
from latbench.cli.estimates import _interval_words, estimate_json
from latbench.predictors.kernels import Kernels
from latbench.predictors.network import NetworkRegression
from latbench.predictors.table import Table
from latbench.predictors.transfer import Transfer
from latbench.testing.predictors import AdditiveWorld

WORLD = AdditiveWorld(lb.load_space("mobilenetv3", resolution=32, width_mult=0.35, num_classes=10))


@pytest.mark.parametrize("cls", [Table, Kernels, NetworkRegression, Transfer])
def test_an_estimate_says_which_level_its_calibration_can_give_at_most(cls):
    data = WORLD.data(12)
    model = cls.fit(data)
    n = len(data.calibration)
    net = data.calibration[0].net
    said = f"{n} calibration networks give at most a level of {n}/{n + 1}"
    high = model.predict(net, level=0.99)
    assert any(said in w for w in high.warnings)
    assert (high.level, high.reached) == (0.99, n / (n + 1))
    assert f"interval of at most {n / (n + 1):.0%}, too few networks for 99%: " in _interval_words(high)
    told = estimate_json(high, "p50", None)
    assert (told["level"], told["level_asked"]) == (n / (n + 1), 0.99)
    assert _interval_words(model.predict(net, level=0.5)).startswith("50% interval ")
    assert not any("calibration networks give" in w for w in model.predict(net, level=0.5).warnings)
