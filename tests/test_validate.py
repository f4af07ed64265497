"""Validation: found networks are measured on the device, and limits are judged on what was measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from math import inf, nan
from pathlib import Path

import numpy as np
import pytest
from numpy_device import QUICK, Action, NumpyDevice, failing
from search_support import table, toy_error, toy_evaluator

import latbench as lb
from latbench.device import Device
from latbench.errors import ConfigError, DeviceError, SettingMismatchError
from latbench.evaluators import FunctionEvaluator
from latbench.protocol import Protocol
from latbench.result import SearchResult
from latbench.setting import Setting
from latbench.space import Arch
from latbench.store import Store
from latbench.testing.searchers import ToySpace
from latbench.validate import Validated, validate
from latbench.visit import Interval

SPACE = ToySpace(4, 3)


def searched(setting: Setting, *, slow: float = 1, **changes: object) -> SearchResult:
    model = table(SPACE, setting=setting, slow=slow)
    options = {"objectives": ["error", "latency_ms"], "budget": 30, "accuracy": toy_evaluator(), **changes}
    return lb.search("random", space=SPACE, latency=model, **options)  # type: ignore[arg-type]


def test_found_networks_are_measured_on_the_real_device(
    local_device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATBENCH_LOCK_FOLDER", str(tmp_path))
    # The made-up table promises a hundredth of what anything takes on a real machine.
    result = searched(local_device.setting, slow=1e-2, limits={"latency_ms": 5e-3, "params": 1e9})
    quick = Protocol(min_runs=5, max_runs=5, min_ms=0, min_visits=2, max_visits=2, warmup_runs=1, warmup_max_ms=1)
    validated = validate(result, local_device, protocol=quick, top=2, store=tmp_path / "s.db", extra=0)
    assert [v.arch for v in validated] == [c.arch for c in result.pick(2)]
    for v in validated:
        assert v.measured is not None
        assert v.measured.setting == local_device.setting
        assert v.measured.latency_ms > 5e-3 > v.predicted.high
        assert v.measured.visits == 2
        assert v.kept == {"latency_ms": False, "params": True}
        assert not v.covered
        assert v.ratio < 1
    assert result.validated == validated
    with Store.open(tmp_path / "s.db") as store:
        subjects = {x.subject for x in store.visits(local_device.setting) if x.role == "network"}
    assert subjects == {SPACE.network(v.arch).key for v in validated}
    # The device was open before, and still is.
    assert local_device.describe().identity


def test_a_network_with_one_visit_survives_being_saved(tmp_path: Path) -> None:
    with NumpyDevice() as device:
        result = searched(device.setting)
        (v,) = validate(result, device, protocol=QUICK, top=1, store=tmp_path / "s.db")
    assert v.measured is not None
    once = replace(v.measured, metrics={"latency_ms": Interval(v.measured.latency_ms, 0.0, inf)}, visits=1)
    result.validated = [replace(v, measured=once)]
    result.save(tmp_path / "found")
    (back,) = SearchResult.load(tmp_path / "found", space=SPACE).validated
    assert back.measured is not None
    assert back.measured.metrics == once.metrics


def test_a_device_that_was_closed_is_closed_again() -> None:
    device = NumpyDevice()
    with device:
        result = searched(device.setting)
    validate(result, device, protocol=QUICK, top=1)
    with pytest.raises(DeviceError):
        _ = device.setting


def test_a_validation_survives_the_files_of_its_result(tmp_path: Path) -> None:
    with NumpyDevice() as device:
        result = searched(device.setting)
        validate(result, device, protocol=QUICK, top=3)
    result.save(tmp_path / "r")
    back = SearchResult.load(tmp_path / "r", space=SPACE).validated
    assert len(back) == 3
    assert [v.to_json() for v in back] == [v.to_json() for v in result.validated]
    first = result.validated[0]
    assert Validated.from_json(json.loads(json.dumps(first.to_json()))).measured.metrics == first.measured.metrics


def test_the_statistic_that_was_predicted_is_the_one_measured() -> None:
    with NumpyDevice() as device:
        result = searched(device.setting)
        result.provenance["latency"][""]["statistic"] = "min"
        (v,) = validate(result, device, protocol=QUICK, top=1)
    assert v.measured is not None
    assert v.measured.latency_ms == pytest.approx(v.measured.statistics["min"])


def test_a_network_that_the_device_cannot_run_says_why() -> None:
    with NumpyDevice() as device:
        result = searched(device.setting, limits={"latency_ms": 10.0})
        bad, good = result.pick(2)
        device.script[SPACE.network(bad.arch).key] = [failing("DeviceDiedError", "out of memory")] * 20
        validated = validate(result, device, protocol=QUICK, top=2, extra=0)
    assert [v.measured is None for v in validated] == [True, False]
    assert validated[0].failure == "DeviceDiedError: out of memory"
    assert validated[0].kept == {"latency_ms": False}
    assert validated[1].arch == good.arch


def taking(ms: float) -> Action:
    return lambda v: replace(v, samples_ns=np.full(5, round(ms * 1e6), np.int64))


def searched_within(device: NumpyDevice, slow: int) -> tuple[SearchResult, list[Arch]]:
    """A search whose ``slow`` most accurate networks break the limit when they are measured, and no others; and those
    that keep it by prediction, the most accurate first."""
    limit = float(np.median([c.values["latency_ms"] for c in searched(device.setting).candidates]))
    result = searched(device.setting, limits={"latency_ms": limit}, limit_on="value")
    keep = [c for c in result.candidates if c.feasible]
    order = sorted(keep, key=lambda c: (c.values["error"], c.values["latency_ms"]))
    for i, c in enumerate(order):
        device.script[SPACE.network(c.arch).key] = [taking(1.5 * limit if i < slow else 0.5 * limit)] * 30
    return result, [c.arch for c in order]


def test_a_network_that_breaks_the_limit_when_measured_is_replaced_by_the_next_that_keeps_it() -> None:
    with NumpyDevice() as device:
        result, (best, *others) = searched_within(device, slow=2)
        first, *more = validate(result, device, protocol=QUICK, archs=[best])
    kept = result.provenance["kept_limits"]["latency_ms"]
    assert (first.arch, first.kept) == (best, {"latency_ms": False})
    assert kept["replaced"][0] == list(best)
    assert kept["measured"] == len(more) <= 3
    winner = next(v for v in more if list(v.arch) == kept["winner"])
    assert winner.kept == {"latency_ms": True}
    # Not the next at once: the interval, recalibrated by the one that broke it, says that it would break the limit too.
    assert others[0] not in [v.arch for v in more if v.kept["latency_ms"]]
    assert kept["interval_factor"] > 1.2


def test_no_more_networks_are_measured_than_allowed_and_none_where_the_best_keeps_its_limit() -> None:
    with NumpyDevice() as device:
        result, (best, *_) = searched_within(device, slow=99)
        assert len(validate(result, device, protocol=QUICK, archs=[best], extra=1)) == 2
        assert result.provenance["kept_limits"]["latency_ms"]["winner"] is None
        result, (best, *_) = searched_within(device, slow=0)
        (v,) = validate(result, device, protocol=QUICK, archs=[best])
    kept = result.provenance["kept_limits"]["latency_ms"]
    assert (kept["winner"], kept["replaced"], kept["measured"]) == (list(v.arch), [], 0)


def test_a_better_network_in_doubt_that_breaks_the_limit_was_tried_and_is_not_what_the_winner_replaced() -> None:
    with NumpyDevice() as device:
        limit = float(np.median([c.values["latency_ms"] for c in searched(device.setting).candidates]))
        result = searched(device.setting, limits={"latency_ms": limit}, limit_on="low")
        doubtful, safe = (
            sorted((c for c in result.candidates if c.feasible and (c.values["latency_high_ms"] <= limit) is kept),
                   key=lambda c: c.values["error"]) for kept in (False, True)
        )  # fmt: skip
        better = [c for c in doubtful if c.values["error"] < safe[0].values["error"]]
        for c in result.candidates:
            ms = 1.5 * limit if c in doubtful else 0.5 * limit
            device.script[SPACE.network(c.arch).key] = [taking(ms)] * 30
        validate(result, device, protocol=QUICK, archs=[safe[0].arch])
    kept = result.provenance["kept_limits"]["latency_ms"]
    assert better
    assert (kept["winner"], kept["replaced"]) == (list(safe[0].arch), [])
    assert kept["tried"]
    assert all(tuple(a) in {c.arch for c in better} for a in kept["tried"])
    (text,) = result.kept_limits()
    assert "in place of" not in text
    assert "better but in doubt, broke it" in text
    assert not {tuple(a) for a in kept["tried"]} & {c.arch for c in result.final()}


def test_validating_again_replaces_what_was_there_and_adds_the_rest() -> None:
    with NumpyDevice() as device:
        result = searched(device.setting)
        first, second, third = (c.arch for c in result.pick(3))
        validate(result, device, protocol=QUICK, archs=[first, second])
        validate(result, device, protocol=QUICK, archs=[second, third, third])
    assert [v.arch for v in result.validated] == [first, second, third]


def test_a_device_in_another_setting_is_refused_and_the_difference_is_named() -> None:
    with NumpyDevice("numpy-x") as device:
        result = searched(replace(device.setting, threads=7))
        with pytest.raises(SettingMismatchError, match="threads: 7 ≠ 1"):
            validate(result, device, protocol=QUICK)
        assert not device.taken


def test_of_several_devices_the_one_in_its_setting_is_compared() -> None:
    with NumpyDevice() as device:
        models = {"here": table(SPACE, setting=device.setting), "there": table(SPACE, slow=9)}
        result = lb.search("random", space=SPACE, latency=models, accuracy=toy_evaluator(), budget=20)
        (v,) = validate(result, device, protocol=QUICK, top=1)
    assert v.value == "latency_ms@here"
    c = next(c for c in result.candidates if c.arch == v.arch)
    assert (v.predicted.value, v.predicted.high) == (c.values["latency_ms@here"], c.values["latency_high_ms@here"])


def test_there_must_be_something_to_validate() -> None:
    with NumpyDevice() as device:
        result = searched(device.setting)
        loaded = SearchResult(replace(result.problem, cheap_values=None), result.candidates[:5], result.provenance)
        unknown = next(c.arch for c in result.candidates[5:])
        with pytest.raises(ConfigError, match="no candidate of this search"):
            validate(loaded, device, archs=[unknown])
        with pytest.raises(ConfigError, match="found nothing"):
            validate(SearchResult(result.problem, [], result.provenance), device)
        with pytest.raises(ConfigError, match="no latency model"):
            validate(SearchResult(result.problem, result.candidates, {}), device)


class KeptAside(FunctionEvaluator):
    """Has kept data aside, on which every error is a tenth higher."""

    def test(self, space: lb.SearchSpace, archs: Sequence[Arch]) -> list[dict[str, float]]:
        return [{"error": toy_error(space, a) + 0.1 if a[0] else nan} for a in archs]


def test_the_test_error_stands_beside_the_measurement_and_in_the_files(tmp_path: Path) -> None:
    with NumpyDevice() as device:
        evaluator = KeptAside(toy_error, recipe="tested")
        result = searched(device.setting, accuracy=evaluator)
        archs = [next(c.arch for c in result.candidates if bool(c.arch[0]) is first) for first in (True, False)]
        validate(result, device, protocol=QUICK, archs=archs, accuracy=evaluator)
        errors = [v.test_error for v in result.validated]
        # A training that diverged has no error.
        assert errors == [pytest.approx(toy_error(SPACE, archs[0]) + 0.1), None]
        # Validated again without the evaluator, what is known stays known.
        validate(result, device, protocol=QUICK, archs=archs)
        with pytest.raises(ConfigError, match="the search's evaluator was 'tested', not 'toy_error'"):
            validate(result, device, protocol=QUICK, archs=archs, accuracy=toy_evaluator())
    result.save(tmp_path / "r")
    assert [v.test_error for v in SearchResult.load(tmp_path / "r", space=SPACE).validated] == errors
    old = {k: v for k, v in result.validated[0].to_json().items() if k != "test_error"}
    assert Validated.from_json(old).test_error is None
