"""What a runner says, checked: lines become events, events become Visits, and anything else a typed error.

The events are described in ``devices/runners/onnxruntime_runner.py``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from latbench.errors import DeviceDiedError, DeviceTimeoutError, ProtocolError, TransportError
from latbench.transport import Stream
from latbench.visit import Failure, Visit

SCHEMA = 1


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
