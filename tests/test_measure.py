"""Measuring one subject now, on this machine and on a device that misbehaves on purpose."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest

import latbench as lb
from latbench.device import Description, Device, Job, Unit
from latbench.errors import DeviceBusyError, DeviceDiedError, DeviceError, DeviceTimeoutError, UnsupportedOpError
from latbench.host_lock import HostLock
from latbench.measure import measure
from latbench.network import Network
from latbench.op import Op, TensorSpec
from latbench.protocol import Protocol
from latbench.setting import Setting
from latbench.visit import Failure, Measurement, Visit

OP = Op.make("relu", [TensorSpec((1, 8, 16, 16))])
pytestmark = pytest.mark.usefixtures("own_locks")
FAST = Protocol(min_runs=5, max_runs=20, min_ms=0.5, max_ms=5.0, warmup_max_ms=5.0, min_visits=2, max_visits=3)  # type: ignore[call-arg]


class Scripted(Device):
    """A device whose Visits are given: each a median in milliseconds, a :class:`Failure`, or "unsupported"."""

    def __init__(self, script: Sequence[float | Failure | str], spread: float = 0.001) -> None:
        self.script, self.spread, self.asked = list(script), spread, 0
        self.profile = lb.Profile(name="scripted", transport={"kind": "none"}, runtime={"kind": "none"})  # type: ignore[call-arg]

    def open(self) -> None: ...

    def close(self) -> None: ...

    def describe(self) -> Description:
        return Description("scripted")

    @property
    def setting(self) -> Setting:
        return Setting("scripted", "none", "0")

    def visits(self, jobs: Sequence[Job], protocol: Protocol) -> Iterator[Visit]:
        (job,) = jobs
        at = 100.0 * self.asked
        answer = self.script[min(self.asked, len(self.script) - 1)]
        self.asked += 1
        ns = np.linspace(1 - self.spread, 1 + self.spread, 21) * (answer if isinstance(answer, float) else 1.0) * 1e6
        yield Visit("control:launch", "control", f"c{self.asked}", at, at + 1, np.full(5, 2500, np.int64))
        yield Visit(
            job.subject.key, "op", f"v{self.asked}", at + 1, at + 2,
            ns.astype(np.int64) if isinstance(answer, float) else np.empty(0, np.int64), slot=job.slot,
            failure=answer if isinstance(answer, Failure) else None,
            unsupported=Failure("UnsupportedOpError", "no kernel") if answer == "unsupported" else None,
        )  # fmt: skip

    def units(self, net: Network) -> list[Unit]:
        return []

    def prepare(self, subjects: Iterable[Op | Network]) -> None: ...


def test_visits_are_added_until_the_interval_is_narrow_enough() -> None:
    protocol = Protocol(min_visits=3, max_visits=10)  # type: ignore[call-arg]
    steady = Scripted([1.0, 1.001, 0.999])
    assert measure(steady, OP, protocol).visits == 3
    wild = Scripted([1.0, 1.2, 0.9, 1.3, 1.1, 0.8, 1.25, 0.95, 1.15, 1.05])
    m = measure(wild, OP, protocol)
    assert (m.visits, wild.asked) == (10, 10)
    assert m.low_ms < m.latency_ms < m.high_ms


def test_contended_visits_are_taken_again_and_that_is_said() -> None:
    d = Scripted([1.0], spread=0.5)
    m = measure(d, OP, Protocol(min_visits=2, max_visits=2, max_requeues=1))  # type: ignore[call-arg]
    assert (m.visits, d.asked) == (2, 4)
    assert any("2 contended Visits were taken again" in w for w in m.warnings)


def test_a_failure_among_good_visits_is_left_out() -> None:
    d = Scripted([Failure("DeviceTimeoutError", "slow"), 1.0, 1.0])
    assert measure(d, OP, Protocol(min_visits=2, max_visits=2)).visits == 2  # type: ignore[call-arg]


def test_fewer_visits_than_asked_for_are_said_to_be_few() -> None:
    d = Scripted([1.0, *[Failure("DeviceTimeoutError", "too slow")] * 9])
    m = measure(d, OP, Protocol(min_visits=4, max_visits=4, max_requeues=2))  # type: ignore[call-arg]
    assert (m.visits, d.asked) == (1, 4)
    assert any("only 1 of 4 Visits: 3 Visits failed" in w and "too slow" in w for w in m.warnings)


def test_a_device_that_is_lost_does_not_take_the_visits_before_with_it() -> None:
    class Dying(Scripted):
        def visits(self, jobs: Sequence[Job], protocol: Protocol) -> Iterator[Visit]:
            if self.asked == 3:
                raise DeviceDiedError("signal 11")
            return super().visits(jobs, protocol)

    m = measure(Dying([1.0, 1.2, 1.1]), OP, Protocol(min_visits=8, max_visits=8))  # type: ignore[call-arg]
    assert m.visits == 3
    assert any("only 3 of 8 Visits: the device was lost: signal 11" in w for w in m.warnings)
    dead = Dying([1.0])
    dead.asked = 3
    with pytest.raises(DeviceDiedError, match="signal 11"):
        measure(dead, OP, FAST)


def test_a_device_that_another_process_measures_is_refused() -> None:
    code = (
        "import sys; from latbench.host_lock import HostLock\n"
        "with HostLock('scripted', 'theirs'): print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        d = Scripted([1.0])
        with pytest.raises(DeviceBusyError, match=rf"theirs \(pid {other.pid}"):
            measure(d, OP, FAST)
        assert d.asked == 0
    finally:
        other.communicate("")
    assert measure(d, OP, FAST).visits == 2


def test_while_it_measures_others_are_told_what_holds_the_device() -> None:
    def other(v: Visit, m: Measurement | None) -> None:
        with pytest.raises(DeviceBusyError, match="measure of relu"), HostLock("scripted", "other"):
            pass

    assert measure(Scripted([1.0]), OP, FAST, progress=other).visits == 2


def test_waiting_for_the_core_is_no_contention() -> None:
    class Waiting(Scripted):
        def visits(self, jobs: Sequence[Job], protocol: Protocol) -> Iterator[Visit]:
            for v in super().visits(jobs, protocol):
                wait = np.arange(v.samples_ns.size, dtype=np.int64) * 1_000_000
                yield replace(v, samples_ns=v.samples_ns + wait, wait_ns=wait)

    m = measure(Waiting([1.0]), OP, Protocol(min_visits=2, max_visits=2))  # type: ignore[call-arg]
    assert not any("contended" in w for w in m.warnings)


@pytest.mark.parametrize(
    ("kind", "error"),
    [("DeviceTimeoutError", DeviceTimeoutError), ("DeviceDiedError", DeviceDiedError), ("Strange", DeviceError)],
)
def test_if_all_visits_fail_the_error_is_the_one_that_they_name(kind: str, error: type[DeviceError]) -> None:
    d = Scripted([Failure(kind, "what happened")])
    with pytest.raises(error, match="what happened"):
        measure(d, OP, FAST)
    assert d.asked <= 1 + FAST.max_requeues


def test_an_unsupported_subject_is_named() -> None:
    with pytest.raises(UnsupportedOpError, match="no kernel"):
        measure(Scripted(["unsupported"]), OP, FAST)


def test_progress_hears_of_every_visit() -> None:
    heard: list[int] = []
    measure(Scripted([1.0, 1.1]), OP, FAST, progress=lambda v, m: heard.append(m.visits if m else 0))
    assert heard == [1, 2, 3]


def test_this_machine_measures_an_op() -> None:
    with lb.load_device("local-cpu") as device:
        m = device.measure(OP, FAST)
    assert 2 <= m.visits <= 3
    assert 0 < m.low_ms <= m.latency_ms <= m.high_ms
    assert m.latency_ms < 100
    assert len(m.samples_ns) == m.visits
    assert all(5 <= s.size <= 20 for s in m.samples_ns)
    assert m.setting == device_setting()
    assert m.environment
    assert m.statistics["min"] <= m.statistics["p50"] <= m.statistics["p99"]


def device_setting() -> Setting:
    with lb.load_device("local-cpu") as device:
        return device.setting
