"""The host's side of a runner: it starts the program on the device, talks to it in JSON lines, and trusts none of them.

:class:`RunnerRuntime` is the base of runtimes whose measuring is done by a small program on the device. The events are
described in ``devices/runners/onnxruntime_runner.py``; any program that answers them will do.
"""

from __future__ import annotations

import json
import os
import secrets
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from latbench.control import control_ops, control_subject
from latbench.device import Description, Job
from latbench.errors import DeviceDiedError, DeviceTimeoutError, ProtocolError, TransportError
from latbench.network import Network
from latbench.op import Op
from latbench.protocol import Protocol
from latbench.runtime import Artefact, Runtime
from latbench.transport import Stream, Transport
from latbench.visit import Failure, Role, Visit

SCHEMA = 1
#: Seconds to wait for a runner that only has to say who it is.
HELLO_TIMEOUT_S = 120.0


class Conversation:
    """One running runner. Everything that it says is checked."""

    def __init__(self, stream: Stream, where: str) -> None:
        self._stream, self.where = stream, where
        self._timeout_s = 0.0
        self._lines: Iterator[str] = iter(())

    def send(self, **command: Any) -> None:
        """Send a command; a runner that has gone is noticed by :meth:`event`."""
        try:
            self._stream.send(json.dumps({"schema": SCHEMA, **command}, separators=(",", ":"), allow_nan=False))
        except TransportError as e:
            raise self.died(str(e)) from e

    def event(self, timeout_s: float, doing: str) -> dict[str, Any]:
        """The next event. Raises :class:`DeviceTimeoutError`, :class:`DeviceDiedError`, :class:`ProtocolError`."""
        if timeout_s != self._timeout_s:
            self._timeout_s, self._lines = timeout_s, self._stream.lines(timeout_s)
        try:
            line = next(self._lines, None)
        except DeviceTimeoutError as e:
            self._timeout_s = 0.0
            tail = self._stream.close().stderr.strip()
            raise DeviceTimeoutError(f"{e} while {doing}{_tail(tail)}") from None
        if line is None:
            raise self.died(f"while {doing}")
        try:
            event = json.loads(line, parse_constant=_refuse)
        except (json.JSONDecodeError, RecursionError, ProtocolError) as e:
            raise ProtocolError(f"{self.where}: not an event while {doing}: {line[:200]!r}: {e}") from None
        if not isinstance(event, dict) or event.get("schema") != SCHEMA or not isinstance(event.get("event"), str):
            raise ProtocolError(f"{self.where}: not an event of schema {SCHEMA} while {doing}: {line[:200]!r}")
        if event["event"] == "error":
            raise ProtocolError(f"{self.where}: the runner says, while {doing}: {event.get('message')}")
        return event

    def died(self, doing: str) -> DeviceDiedError:
        """The error that says how the runner ended."""
        end = self._stream.close()
        how = f"was killed by signal {-end.code}" if end.code < 0 else f"ended with exit code {end.code}"
        return DeviceDiedError(f"{self.where}: the runner {how} {doing}{_tail(end.stderr.strip())}")


def _tail(text: str) -> str:
    return f"\n  its last words: {text[-2000:]}" if text else ""


def _refuse(name: str) -> None:
    raise ProtocolError(f"{name} is not a measurement")


class RunnerRuntime(Runtime):
    """A runtime whose measuring is done by a program on the device, through the profile's transport."""

    transport: Transport

    #: Seconds that one artefact may take to be built on the device.
    build_timeout_s = 300.0

    # -- what a runtime must say --------------------------------------------------------------------------------

    @abstractmethod
    def runner_argv(self) -> list[str]:
        """The command that starts the runner on the device; called once it is there (see :meth:`send_runner`)."""

    @abstractmethod
    def runner_options(self) -> dict[str, Any]:
        """What the runner must know of the profile: plain JSON values; ``affinity`` are the cores to stay on."""

    @abstractmethod
    def artefacts(self, subjects: Iterable[Op | Network]) -> dict[str, Artefact]:
        """Key → artefact of each subject, from the cache or built now in one batch."""

    # -- what follows -------------------------------------------------------------------------------------------

    #: The runner's answer to ``hello``, kept by ``open``.
    hello: dict[str, Any]
    #: What the last finished run of :meth:`visits` spent, nanoseconds: ``wall_ns`` and ``spent_ns`` by purpose.
    last_run: Mapping[str, Any]

    def open(self) -> None:
        """Ask the runner who it is."""
        self.last_run, self._sent = {}, dict[Path, str]()
        with self.conversation() as talk:
            talk.send(cmd="hello", options={})
            self.hello = self._expect(talk.event(HELLO_TIMEOUT_S, "it said hello"), "hello")

    @contextmanager
    def conversation(self) -> Iterator[Conversation]:
        """A fresh runner, ended on leaving."""
        with self.transport.stream(self.runner_argv()) as stream:
            yield Conversation(stream, self.where)

    def _expect(self, event: dict[str, Any], name: str) -> dict[str, Any]:
        if event["event"] != name:
            raise ProtocolError(f"{self.where}: expected event {name!r}, got {event['event']!r}")
        return event

    def identity(self) -> str:
        """A name that stays with the machine: CPU, cores, and a hash of machine id, CPU and core count."""
        import hashlib
        import re

        env = self.hello["environment"]
        cpu = str(env["cpu"])
        slug = "-".join(re.findall(r"[a-z0-9]+", re.sub(r"\(.*?\)|@.*|processor|cpu", " ", cpu.lower()))[:4])
        text = f"{self.hello['machine_hash']}\n{cpu}\n{env['cores']}"
        return f"cpu-{slug or 'unknown'}-{env['cores']}c-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    def describe(self) -> Description:
        """Who the machine is, and its environment as the runner sees it now."""
        with self.conversation() as talk:
            talk.send(cmd="hello", options={})
            now = self._expect(talk.event(HELLO_TIMEOUT_S, "it said hello"), "hello")["environment"]
        names = ("cpu", "cores", "machine", "kernel", "python", "caches_kib", "memory_kib")
        return Description(self.identity(), {n: now.get(n) for n in names}, now)

    def prepare(self, subjects: Iterable[Op | Network]) -> None:
        """Build and cache artefacts, those of the control ops too."""
        self.artefacts([*subjects, *self.controls().values()])

    def controls(self) -> dict[str, Op]:
        """Kind → control op for this device's caches."""
        caches = self.hello["environment"].get("caches_kib") or {}
        return control_ops(max(caches.values(), default=None))

    def on_device(self, path: Path) -> str:
        """Where the runner finds a file of the host: the file itself on the same machine, else a copy."""
        if self.transport.same_host:
            return str(path)
        if path not in self._sent:
            self._sent[path] = f"{len(self._sent)}{path.suffix}"
            self.transport.put(path, self._sent[path])
        return self._sent[path]

    def visits(self, jobs: Sequence[Job], protocol: Protocol) -> Iterator[Visit]:
        """One fresh runner; a Visit for each job, control Visits in between. See the Device contract."""
        controls = self.controls()
        made = self.artefacts([*(j.subject for j in jobs), *controls.values()])
        plan = [self._job(j.slot, j.subject.key, _role(j.subject), made[j.subject.key]) for j in jobs]
        # What the first visit may cost, loading included, until the runner knows better: 5 ms and 1 ms a megabyte.
        control_plan = [
            self._job("", control_subject(k), "control", made[op.key]) | {"first_ms": 5 + op.activation_bytes / 1e6}
            for k, op in controls.items()
        ]
        queue = [p for p in plan if "path" in p]
        notes = {j.slot: made[j.subject.key] for j in jobs}
        run = secrets.token_hex(8)
        cores = self.runner_options().get("affinity", ()) if self.transport.same_host else ()
        with quiet_host(cores), self.conversation() as talk:
            talk.send(
                cmd="visits", run=run, options=self.runner_options(), protocol=protocol.model_dump(), jobs=queue,
                controls=[c for c in control_plan if "path" in c],
            )  # fmt: skip
            yield from self._stream(talk, plan, notes, run, protocol.visit_timeout_s)

    def _job(self, slot: str, subject: str, role: Role, a: Artefact) -> dict[str, Any]:
        job: dict[str, Any] = {"slot": slot, "subject": subject, "role": role, **a.run}
        return {**job, "path": self.on_device(a.path)} if a.path else job

    def _stream(
        self,
        talk: Conversation,
        plan: Sequence[dict[str, Any]],
        notes: Mapping[str, Artefact],
        run: str,
        limit_s: float,
    ) -> Iterator[Visit]:
        """Visits in the order of the plan. A line that is no measurement fails the Visit that was due."""
        reader = VisitReader(run)
        at = 0
        while True:
            while at < len(plan) and "path" not in plan[at]:
                yield _never(plan[at], notes[plan[at]["slot"]], run)
                at += 1
            due = plan[at] if at < len(plan) else None
            doing = f"it measured {due['subject']}" if due else "it finished"
            try:
                event = talk.event(limit_s, doing)
                if event["event"] == "started":
                    continue
                if event["event"] == "done":
                    if due is not None:
                        raise ProtocolError(f"{self.where}: the runner says done while {doing}")
                    self.last_run = {k: event[k] for k in ("wall_ns", "spent_ns", "run") if k in event}
                    return
                visit = reader.read(event, due)
            except ProtocolError as e:
                if due is None:
                    return
                visit = _failed(due, Failure("ProtocolError", str(e)), run, reader.next_uid())
            if visit is None:
                talk.send(ack=reader.uid)
                continue
            if visit.role != "control":
                a = notes[visit.slot]
                visit = _with(visit, a)
                at += 1
            yield visit
            talk.send(ack=reader.uid)


class VisitReader:
    """Turns ``visit`` events into Visits. ``uid`` is that of the last one."""

    def __init__(self, run: str) -> None:
        self.run, self.uid, self._count = run, "", 0
        self._seen: set[str] = set()

    def next_uid(self) -> str:
        """The uid that the runner must have given to a visit that could not be read, so that it can be acknowledged."""
        self._count += 1
        self.uid = f"{self.run}-{self._count}"
        return self.uid

    def read(self, e: dict[str, Any], due: Mapping[str, Any] | None) -> Visit | None:
        """The Visit, or None if its slot has been answered already. Raises :class:`ProtocolError`."""
        if e["event"] != "visit":
            raise ProtocolError(f"unexpected event {e['event']!r}")
        uid, slot, role = e.get("uid"), e.get("slot"), e.get("role")
        if not isinstance(uid, str) or not uid.startswith(f"{self.run}-") or not uid.rpartition("-")[2].isdigit():
            raise ProtocolError(f"uid {uid!r} is not of run {self.run}")
        if uid in self._seen:
            raise ProtocolError(f"uid {uid!r} was used before")
        # An unreadable line was answered under the number that it would have had: what comes late is dropped.
        late = int(uid.rpartition("-")[2]) <= self._count
        self._count = max(self._count, int(uid.rpartition("-")[2]) - 1)
        if late:
            self.uid = uid
            return None
        if role != "control" and (due is None or slot != due["slot"] or e.get("subject") != due["subject"]):
            raise ProtocolError(f"a visit for slot {slot!r}, but {due['slot'] if due else 'none'!r} was due")
        visit = _visit(e, self.run)
        self._seen.add(uid)
        self._count += 1
        self.uid = uid
        return visit


def _visit(e: dict[str, Any], run: str) -> Visit:
    failure, unsupported = _failure(e, "failure"), _failure(e, "unsupported")
    samples = _times(e, "samples_ns", positive=True)
    if failure is None and unsupported is None and not samples.size:
        raise ProtocolError(f"no samples for {e.get('subject')}")
    wait = _times(e, "wait_ns") if e.get("wait_ns") is not None else None
    if wait is not None and (wait.shape != samples.shape or (wait > samples).any()):
        raise ProtocolError(f"wait_ns does not fit samples_ns for {e.get('subject')}")
    started, ended = e.get("started"), e.get("ended")
    if not isinstance(started, (int, float)) or not isinstance(ended, (int, float)) or ended < started:
        raise ProtocolError(f"started {started!r} and ended {ended!r} are no times")
    load = e.get("load_ns", 0)
    if type(load) is not int or load < 0 or not isinstance(e.get("subject"), str):
        raise ProtocolError(f"load_ns {load!r} or subject {e.get('subject')!r} is wrong")
    return Visit(
        subject=e["subject"], role=e["role"], uid=e["uid"], started=float(started), ended=float(ended),
        samples_ns=samples, wait_ns=wait, warmup_ns=_times(e, "warmup_ns", positive=True), load_ns=load,
        environment=_mapping(e, "environment"), metrics=_mapping(e, "metrics"), run=run, slot=e["slot"],
        failure=failure, unsupported=unsupported,
    )  # fmt: skip


def _times(e: dict[str, Any], name: str, positive: bool = False) -> npt.NDArray[np.int64]:
    values = e.get(name) or []
    if not isinstance(values, list) or not all(
        type(v) is int and (1 if positive else 0) <= v < 1 << 62 for v in values
    ):
        raise ProtocolError(
            f"{name} of {e.get('subject')} is not a list of {'positive' if positive else 'whole'} numbers"
        )
    return np.array(values, np.int64)


def _mapping(e: dict[str, Any], name: str) -> dict[str, Any]:
    value = e.get(name) or {}
    if not isinstance(value, dict):
        raise ProtocolError(f"{name} of {e.get('subject')} is not an object")
    return value


def _failure(e: dict[str, Any], name: str) -> Failure | None:
    f = e.get(name)
    if f is None:
        return None
    if not isinstance(f, dict) or not isinstance(f.get("kind"), str) or not isinstance(f.get("message"), str):
        raise ProtocolError(f"{name} of {e.get('subject')} says neither kind nor message")
    return Failure(f["kind"], f["message"])


def _role(subject: Op | Network) -> Role:
    return "network" if isinstance(subject, Network) else "op"


def _failed(job: Mapping[str, Any], failure: Failure, run: str, uid: str) -> Visit:
    import time

    now = time.time()
    return Visit(
        job["subject"], job["role"], uid, now, now, np.empty(0, np.int64), run=run, slot=job["slot"], failure=failure
    )


def _never(job: Mapping[str, Any], a: Artefact, run: str) -> Visit:
    """The Visit of a subject that has no artefact."""
    from dataclasses import replace

    failure = a.failure or Failure("ModelError", "no artefact")
    visit = _failed(job, failure, run, f"{run}-{job['slot']}")
    return replace(visit, failure=None, unsupported=failure) if a.unsupported else visit


def _with(visit: Visit, a: Artefact) -> Visit:
    from dataclasses import replace

    return replace(visit, boundary=a.boundary, environment={**visit.environment, **a.note})


@contextmanager
def quiet_host(cores: Sequence[int]) -> Iterator[None]:
    """Move every thread of this process off the measured cores, where there are others, and back afterwards."""
    if not cores or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before: dict[int, set[int]] = {}
    for task in map(int, os.listdir("/proc/self/task")):
        try:
            mask = os.sched_getaffinity(task)
            if rest := mask - set(cores):
                os.sched_setaffinity(task, rest)
                before[task] = mask
        except OSError:
            continue  # a thread that has just ended
    try:
        yield
    finally:
        for task, mask in before.items():
            try:
                os.sched_setaffinity(task, mask)
            except OSError:
                continue
