"""A device for tests of campaigns: it times numpy kernels in this very process, and can be told to misbehave.

Its numbers are real times of real work. ``NumpyDevice.script`` maps a subject's key to what shall happen when its turn
comes: a list of actions, used up one by one.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from latbench.device import Description, Device, Job, Unit
from latbench.errors import DeviceError
from latbench.network import Network
from latbench.op import Op, TensorSpec
from latbench.profile import Profile
from latbench.protocol import Protocol
from latbench.setting import Setting
from latbench.visit import Failure, Role, Visit

Action = Callable[[Visit], Visit]

#: A protocol that takes milliseconds.
QUICK = Protocol(
    warmup_runs=1, warmup_max_ms=1, min_runs=5, max_runs=5, min_ms=0, min_visits=2, max_visits=4, target_ci=10.0,
    contention_ratio=1e6,
)  # fmt: skip


def matmul(n: int) -> Op:
    """A fully connected layer of n inputs and outputs."""
    return Op.make("linear", [TensorSpec((1, n))], out_features=n, bias=False)


class NumpyDevice(Device):
    """Times ``x @ w`` of the size of the subject's first input."""

    def __init__(self, identity: str = "", options: dict[str, object] | None = None) -> None:
        self.profile = Profile(
            name="numpy", transport={"kind": "none"}, runtime={"kind": "numpy"}, protocol=QUICK, description="tests"
        )
        self._identity = identity or f"numpy-{uuid.uuid4().hex[:8]}"
        self._options = options or {}
        self._is_open = False
        self.script: dict[str, list[Action]] = {}
        #: Slots of each stream that was asked for, and uids of all Visits that were taken.
        self.streams: list[list[str]] = []
        self.taken: list[str] = []
        self.opened = self.closed_streams = 0
        self.prepared: list[str] = []

    def open(self) -> None:
        self._is_open = True
        self.opened += 1

    def close(self) -> None:
        self._is_open = False

    def describe(self) -> Description:
        return Description(self._identity, {"cpu": "this one"}, {"load": 0.0})

    @property
    def setting(self) -> Setting:
        if not self._is_open:
            raise DeviceError("not open")
        return Setting(self._identity, "numpy", np.__version__, options=self._options)

    def units(self, net: Network) -> list[Unit]:
        return [Unit(n.op, (n.name,), n.outputs, n.name) for n in net.nodes]

    def prepare(self, subjects: Iterable[Op | Network]) -> None:
        self.prepared += [s.key for s in subjects]

    def visits(self, jobs: Sequence[Job], protocol: Protocol) -> Iterator[Visit]:
        self.streams.append([j.slot for j in jobs])
        run = uuid.uuid4().hex[:8]
        try:
            for number, job in enumerate(jobs):
                if number % 5 == 0:
                    yield self._visit("control:compute", "", run, 32, protocol)
                spec = job.subject.inputs[0]
                tensor = job.subject.tensors[spec] if isinstance(job.subject, Network) else spec
                visit = self._visit(job.subject.key, job.slot, run, tensor.shape[-1], protocol)
                actions = self.script.get(job.subject.key, [])
                yield actions.pop(0)(visit) if actions else visit
        finally:
            self.closed_streams += 1

    def _visit(self, subject: str, slot: str, run: str, n: int, protocol: Protocol) -> Visit:
        x, w = np.ones((1, n), np.float32), np.ones((n, n), np.float32)
        samples = []
        started = time.time()
        for _ in range(protocol.min_runs + 1):
            a = time.perf_counter_ns()
            x @ w
            samples.append(time.perf_counter_ns() - a)
        uid = f"{run}-{len(self.taken)}"
        self.taken.append(uid)
        role: Role = "op" if subject.startswith("op1") else "network" if slot else "control"
        return Visit(
            subject, role, uid, started, time.time(), np.array(samples[1:], np.int64),
            warmup_ns=np.array(samples[:1], np.int64), run=run, slot=slot, environment={"load": 0.5},
        )  # fmt: skip


class Simulator(NumpyDevice):
    """A device without processes or noise: one nanosecond per element of the weights, on a clock of its own."""

    clock = 0.0

    @property
    def setting(self) -> Setting:
        return replace(super().setting, clock="simulated")

    def _visit(self, subject: str, slot: str, run: str, n: int, protocol: Protocol) -> Visit:
        uid = f"{run}-{len(self.taken)}"
        self.taken.append(uid)
        began, self.clock = self.clock, self.clock + n * n * 1e-9
        role: Role = "op" if subject.startswith("op1") else "network" if slot else "control"
        return Visit(subject, role, uid, began, self.clock, np.array([n * n], np.int64), run=run, slot=slot)


def failing(kind: str = "ModelError", message: str = "no such kernel") -> Action:
    """The subject fails."""
    return lambda v: replace(v, samples_ns=np.empty(0, np.int64), failure=Failure(kind, message))


def unsupported() -> Action:
    """The subject is unsupported."""
    return lambda v: replace(v, samples_ns=np.empty(0, np.int64), unsupported=Failure("UnsupportedOpError", "a rule"))


def uneven() -> Action:
    """Something else ran meanwhile: the slowest run takes a hundred times as long."""
    return lambda v: replace(v, samples_ns=np.concatenate([v.samples_ns[:-1], v.samples_ns[-1:] * 100]))


def scaled(factor: float) -> Action:
    """It takes so many times as long."""
    return lambda v: replace(v, samples_ns=(v.samples_ns * factor).astype(np.int64))


def raising(error: Exception) -> Action:
    """The device is lost."""

    def act(_: Visit) -> Visit:
        raise error

    return act


def as_is() -> Action:
    """Nothing special."""
    return lambda v: v
