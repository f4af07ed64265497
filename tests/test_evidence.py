"""From Visits to numbers, by the one canonical path."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from latbench.errors import NotEnoughDataError
from latbench.evidence import Evidence, kind_of, time_axis
from latbench.setting import Setting
from latbench.visit import Failure, Visit

SETTING = Setting("here", "onnxruntime", "1.0")
CONTROLS = ("control:compute", "control:memory", "control:launch")


def visit(subject: str, ms: float, at: float, uid: str, **more: object) -> Visit:
    """Five runs around ``ms``, the middle one exactly, from ``at`` for a tenth of a second."""
    ns = (np.array([0.99, 1.01, 1.0, 1.02, 0.98]) * ms * 1e6).astype(np.int64)
    values: dict[str, object] = {"role": "op", **more}
    return Visit(subject=subject, uid=uid, started=at, ended=at + 0.1, samples_ns=ns, **values)  # type: ignore[arg-type]


def a_campaign(
    slowdown: float = 0.0, *, start: float = 0.0, level: float = 0.0, seed: int = 0, rounds: int = 6, ops: int = 30
) -> list[Visit]:
    """Rounds of Ops of 1, 2, … ms while the machine, quiet at first, slows down by ``slowdown`` (log) at the end."""
    rng = np.random.default_rng(seed)
    out: list[Visit] = []
    t, end = start, 0.11 * rounds * ops * 1.1
    for _ in range(rounds):
        for n, i in enumerate(rng.permutation(ops)):
            slow = level + slowdown * min(max((t - start) / end - 0.3, 0.0) / 0.4, 1.0)
            if n % 5 == 0:
                for c in CONTROLS:
                    ms = float(np.exp(slow + rng.normal(0, 0.003)))
                    out.append(visit(c, ms, t, f"{seed}c{len(out)}", role="control"))
            ms = float((1 + i) * np.exp(slow + rng.normal(0, 0.005)))
            out.append(visit(f"op{i:02}", ms, t, f"{seed}v{len(out)}"))
            t += 0.11 * 1.1
    return out


def worst(e: Evidence, drift: bool = True) -> float:
    found = e.measurements(drift=drift)
    return max(abs(m.latency_ms / (1 + int(k[2:])) - 1) for k, m in found.items())


def test_a_slow_machine_is_corrected_to_the_reference_state() -> None:
    e = Evidence(a_campaign(0.3), SETTING)
    assert worst(e, drift=False) > 0.08
    assert worst(e) < 0.02
    m = e.measurements()["op03"]
    assert m.drift["span_percent"] == pytest.approx(35, abs=4)
    assert any("lean on the drift model" in w for w in m.warnings)
    assert m.low_ms <= m.latency_ms <= m.high_ms


def test_a_quiet_campaign_is_left_as_it_is() -> None:
    e = Evidence(a_campaign(0.0), SETTING)
    assert e.drift().model == "none"
    np.testing.assert_array_equal(e.values(), e.values(drift=False))


def test_campaigns_of_one_setting_are_pooled_at_the_quietest_state() -> None:
    quiet, slow = a_campaign(seed=1, rounds=3), a_campaign(seed=2, rounds=3, start=86_400.0, level=0.2)
    e = Evidence([*quiet, *slow], SETTING)
    assert worst(e, drift=False) > 0.08
    assert worst(e) < 0.02
    assert e.measurements()["op00"].visits == 6


def test_campaigns_on_a_clock_that_restarts_do_not_smear_into_each_other() -> None:
    """A board without a clock of its own: both campaigns begin at its second 0, and the other one is 20 % slower."""
    first, second = a_campaign(seed=1, rounds=3), a_campaign(seed=2, rounds=3, level=float(np.log(1.2)))
    visits = [replace(v, campaign=c, run=c) for c, vs in (("a", first), ("b", second)) for v in vs]
    e = Evidence(visits, SETTING)
    assert worst(e, drift=False) > 0.08
    assert worst(e) < 0.02


def test_a_clock_that_restarts_within_a_campaign_keeps_its_runs_apart_and_in_order() -> None:
    def run(name: str, start: float, number: int) -> list[Visit]:
        return [
            visit(f"op{i}", 1.0, start + i, f"{name}{i}", run=name, slot=f"c.{i}.{number}", campaign="c")
            for i in range(5)
        ]

    axis = time_axis([*run("third", 2.0, 2), *run("first", 1.0, 0), *run("second", 10.0, 1)]).reshape(3, 5)
    np.testing.assert_allclose(np.diff(axis), 1.0)
    assert axis[2, 0] - axis[1, 0] == pytest.approx(9.0)  # the clock went on between these two
    assert axis[0, 0] - axis[2, -1] > 1e5


def test_runs_on_a_clock_that_goes_on_stay_where_they_are_whatever_their_rounds() -> None:
    late = visit("op0", 1.0, 50.0, "x", run="late", slot="c.0.0", campaign="c")
    early = visit("op1", 1.0, 2.0, "y", run="early", slot="c.1.3", campaign="c")
    np.testing.assert_allclose(time_axis([early, late]), [2.05, 50.05])
    assert time_axis([]).size == 0


def test_numbers_name_the_visits_that_they_come_from_and_can_be_computed_again() -> None:
    visits = a_campaign(0.2)
    e = Evidence(visits, SETTING)
    uids = e.uids("op05")
    assert uids == [v.uid for v in visits if v.subject == "op05"]
    raw = np.array([np.median(v.samples_ns) * 1e-6 for v in visits if v.uid in uids])
    np.testing.assert_allclose(e.corrected_values("op05", drift=False), raw)
    again = Evidence(visits, SETTING)
    assert again.measurements()["op05"] == e.measurements()["op05"]


def test_failed_visits_are_left_out_by_name() -> None:
    good = a_campaign(rounds=2, ops=3)
    bad = replace(visit("op00", 1.0, 5.0, "bad"), failure=Failure("DeviceTimeoutError", "too long"))
    no = replace(visit("op09", 1.0, 5.0, "no"), unsupported=Failure("UnsupportedOpError", "no such kernel"))
    e = Evidence([*good, bad, no], SETTING)
    assert e.excluded == {"bad": "DeviceTimeoutError: too long", "no": "UnsupportedOpError: no such kernel"}
    assert e.measurements()["op00"].visits == 2
    assert "op09" not in e.measurements()
    with pytest.raises(NotEnoughDataError, match="no such kernel"):
        e.measurement("op09")


def test_a_visit_given_twice_counts_once() -> None:
    visits = a_campaign(rounds=2, ops=3)
    assert Evidence([*visits, *visits], SETTING).measurements()["op00"].visits == 2


def test_purposes_and_replicas_are_kept_apart() -> None:
    visits = [
        visit("net", 10.0 + r + 0.01 * i, i + 4.0 * r, f"{r}{i}", role="network", purpose="validation", replica=r)
        for r in (0, 1)
        for i in range(4)
    ]
    e = Evidence([*visits, visit("op", 1.0, 9.0, "op")], SETTING)
    assert e.subjects("validation") == ["net"]
    assert e.measurements(purpose="validation", replica=1)["net"].visits == 4
    assert e.measurements(replica=1)["net"].latency_ms > 10.9
    assert e.uids("net", replica=0) == ["00", "01", "02", "03"]
    assert e.measurements(purpose="calibration") == {}


def test_scheduler_wait_is_taken_off_unless_asked_otherwise() -> None:
    visits = [
        replace(v, samples_ns=v.samples_ns + 1_000_000, wait_ns=np.full(5, 1_000_000, np.int64))
        for v in (visit("op", 2.0, float(i), str(i)) for i in range(4))
    ]
    e = Evidence(visits, SETTING)
    assert e.measurements()["op"].latency_ms == pytest.approx(2.0, rel=1e-6)
    assert e.measurements(wait=False)["op"].latency_ms == pytest.approx(3.0, rel=1e-6)


def test_a_minimum_is_reported_as_what_it_is() -> None:
    e = Evidence(a_campaign(rounds=4, ops=4), SETTING)
    m = e.measurements("min")["op01"]
    assert m.latency_ms < e.measurements()["op01"].latency_ms
    assert any(w.startswith("min is the fastest run") for w in m.warnings)
    assert not any(w.startswith("min") for w in e.measurements()["op01"].warnings)


def test_statistics_are_named_and_ordered() -> None:
    s = Evidence(a_campaign(rounds=4, ops=4), SETTING).measurements()["op02"].statistics
    assert s["min"] <= s["p25"] <= s["p50"] <= s["p90"] <= s["p99"]


def test_the_first_run_is_the_first_warmup_run() -> None:
    cold = [replace(v, warmup_ns=np.array([9_000_000, 1_500_000], np.int64)) for v in a_campaign(rounds=4, ops=4)]
    assert Evidence(cold, SETTING).measurements(drift=False)["op02"].statistics["first"] == pytest.approx(9.0)


def test_other_metrics_come_with_their_own_interval() -> None:
    visits = [visit("op", 1.0, float(i), str(i), metrics={"peak_memory_bytes": 1000.0 + i}) for i in range(4)]
    i = Evidence(visits, SETTING).measurements()["op"].metrics["peak_memory_bytes"]
    assert i.low < i.value < i.high
    assert i.value == pytest.approx(1001.5)


def test_an_op_that_was_measured_alone_is_said_to_be() -> None:
    alone = [visit("op", 1.0, float(i), str(i), boundary="isolated") for i in range(3)]
    m = Evidence(alone, SETTING).measurements()["op"]
    assert m.boundary == "isolated"
    assert any("measured alone" in w for w in m.warnings)
    inside = [visit("op", 1.0, float(i), str(i), boundary="in-context") for i in range(3)]
    n = Evidence(inside, SETTING).measurements()["op"]
    assert n.boundary == "in-context"
    assert not any("alone" in w or "boundary" in w for w in n.warnings)


def test_visits_alone_and_in_context_are_not_mixed() -> None:
    alone = [visit("op", 3.0, float(i), f"a{i}", boundary="isolated") for i in range(3)]
    inside = [visit("op", 1.0, 9.0 + i, f"c{i}", boundary="in-context") for i in range(2)]
    e = Evidence([*alone, *inside], SETTING)
    m = e.measurements(drift=False)["op"]
    assert (m.latency_ms, m.visits, m.boundary) == (pytest.approx(1.0), 2, "in-context")
    assert e.uids("op") == ["c0", "c1"]
    assert any("3 Visits with another boundary than 'in-context' were left out" in w for w in m.warnings)


def test_one_visit_is_said_to_have_no_interval() -> None:
    m = Evidence([visit("op", 1.0, 0.0, "a")], SETTING).measurements()["op"]
    assert m.high_ms == np.inf
    assert any("one Visit" in w for w in m.warnings)
    assert any("no control Visits: uncorrected" in w for w in m.warnings)


def test_samples_and_environment_come_on_request() -> None:
    e = Evidence([visit("op", 1.0, float(i), str(i), environment={"governor": "none"}) for i in range(3)], SETTING)
    m = e.measurement("op")
    assert [s.size for s in m.samples_ns] == [5, 5, 5]
    assert m.environment == {"governor": "none"}
    assert e.measurements()["op"].samples_ns == ()


def test_no_visits_give_no_numbers() -> None:
    assert Evidence([], SETTING).measurements() == {}
    controls = [v for v in a_campaign(0.3) if v.role == "control"]
    only = Evidence(controls, SETTING)
    assert only.measurements() == {}
    assert only.drift().controls == len(controls)


def test_kinds_of_visits_are_those_of_their_ops() -> None:
    assert kind_of(visit("op1:block:mbconv:f32[1,3,8,8]:{}", 1, 0, "a")) == "mbconv"
    assert kind_of(visit("net1:abc", 1, 0, "b", role="network")) == "network"
    assert kind_of(visit("control:memory", 1, 0, "c", role="control")) == "control"
