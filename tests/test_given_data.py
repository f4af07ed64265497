"""Architectures that were measured elsewhere: the door of :func:`latbench.fit` for arrays."""

from __future__ import annotations

import numpy as np
import pytest

import latbench as lb
from latbench.arch_times import ArchTimes
from latbench.errors import ConfigError, NotEnoughDataError

CELLS = lb.load_space("nasbench201")
ARCHS = CELLS.sample_archs(30, 0)
MS = 2.0 + (ARCHS == 3).sum(axis=1) + 0.3 * (ARCHS == 2).sum(axis=1)


def test_arrays_are_fitted_and_the_card_says_where_they_come_from():
    model = lb.fit("network", space=CELLS, archs=ARCHS, latency_ms=MS, device="my-phone", families="process")
    assert model.card.setting.device == "my-phone"
    assert model.card.data == {"origin": "given as arrays", "networks": 30}
    assert model.card.space == CELLS.spec
    net = CELLS.network(ARCHS[0])
    assert model.predict(net).latency_ms == pytest.approx(MS[0], rel=0.1)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"latency_ms": None}, "go together"),
        ({"space": None}, "give the space"),
        ({"store": "x.db"}, "measured elsewhere"),
        ({"statistic": "min"}, "measured elsewhere"),
        ({"latency_ms": [1.0] * 29}, "expected 30 numbers"),
        ({"latency_ms": [1.0] * 29 + [0.0]}, "row 29: a measured value is a positive number, not 0"),
        ({"latency_ms": ["a"] * 30}, "not numbers"),
        ({"archs": [[7] * 6] * 30}, "position 0 has choices 0–4; got 7"),
        ({"order": [0.0] * 29 + [np.nan]}, "row 29: order"),
        ({"order": [0.0]}, "order: expected 30 numbers"),
        ({"sources": {"gpu": (ARCHS, MS)}}, "network does not learn from other devices; use transfer"),
    ],
)
def test_wrong_arrays_are_refused_by_row_and_what_would_be_right(change, says):
    with pytest.raises(ConfigError, match=says):
        lb.fit("network", **{"space": CELLS, "archs": ARCHS, "latency_ms": MS, **change})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sources": {"gpu": ([[0] * 6], [-1.0])}}, r"sources\['gpu'\]: row 0"),
        ({"sources": {"gpu": ARCHS}}, r"sources\['gpu'\]: its architectures and their times.*'phone': \(archs, lat"),
        ({"sources": {"gpu": (ARCHS,)}}, r"sources\['gpu'\]: its architectures and their times"),
        ({"sources": [(ARCHS, MS)]}, "sources: other devices' names.*not a list"),
        ({"order": np.arange(30)}, "transfer has no drift term"),
    ],
)
def test_transfer_refuses_wrong_sources_and_an_order(change, says):
    with pytest.raises(ConfigError, match=says):
        lb.fit("transfer", **{"space": CELLS, "archs": ARCHS, "latency_ms": MS, **change})


def test_without_arrays_a_store_is_asked_for():
    with pytest.raises(ConfigError, match="store is missing"):
        lb.fit("network", space=CELLS)


def test_rows_are_taken_with_their_order():
    times = ArchTimes.of(CELLS, ARCHS, MS, np.arange(30))
    some = times.take([3, 1])
    assert len(some) == 2
    np.testing.assert_array_equal(some.archs, ARCHS[[3, 1]])
    np.testing.assert_array_equal(some.order, [3.0, 1.0])
    assert ArchTimes.of(CELLS, ARCHS, MS).take([0]).order is None


@pytest.mark.parametrize("name", ["table", "kernels", "memory", "roofline"])
def test_a_predictor_that_does_not_learn_from_arrays_says_which_ones_do(name):
    with pytest.raises(ConfigError, match=f"{name} does not learn from archs .*given arrays: network, transfer"):
        lb.fit(name, space=CELLS, archs=ARCHS, latency_ms=MS)


@pytest.mark.parametrize("name", ["network", "transfer"])
def test_too_few_given_numbers_ask_for_more_of_them_and_name_no_profile_that_does_not_exist(name):
    with pytest.raises(NotEnoughDataError, match="more archs and latency_ms") as e:
        lb.fit(name, space=CELLS, archs=ARCHS[:2], latency_ms=[1.0, 2.0])
    assert ".toml" not in str(e.value)
