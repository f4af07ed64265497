"""Campaigns: a plan measured on one device, round by round, until its numbers are good enough.

Each round takes the subjects in a new order, in a fresh measuring process. A campaign can be stopped at any moment, in
any way, and goes on where it stopped: what was committed stays, a Visit in flight is repeated.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

from latbench.device import Device, Job
from latbench.errors import ConfigError, DeviceBusyError, DeviceError, StoreError, TransportError
from latbench.host_lock import HostLock
from latbench.ledger import Ledger, first_slots
from latbench.network import Network
from latbench.op import Op
from latbench.plan import Plan, PlanItem
from latbench.protocol import Protocol
from latbench.setting import Setting
from latbench.space import SearchSpace
from latbench.store import CampaignRecord, Lease, Slot, Store
from latbench.visit import Failure, Visit

#: Losses of the device without a single Visit in between after which a campaign stops.
MAX_LOSSES = 5


@dataclass(frozen=True)
class Progress:
    """How far a campaign is. Slots are counted; ``total`` grows when rounds are added.

    ``device_s`` is what this run spent on the device (load, warm-up, timed runs, control ops), ``wall_s`` all of its
    time. ``eta_s`` is for the slots planned so far, None before the first Visit. ``subject`` is measured next.
    """

    campaign: str
    stage: Literal["prepare", "measure", "done"]
    round: int
    done: int
    total: int
    subject: str
    device_s: float
    wall_s: float
    eta_s: float | None


@dataclass(frozen=True)
class CampaignResult:
    """What a campaign did. ``slots`` counts its slots by state over all its runs; the other figures are of this run.

    ``wide`` are labels of subjects whose interval is still wider than the target, ``failed`` and ``unsupported`` map
    labels to the reason.
    """

    id: str
    name: str
    plan: str
    setting: Setting
    slots: Mapping[str, int]
    visits: int
    rounds: int
    device_s: float
    wall_s: float
    resumed: bool
    wide: tuple[str, ...] = ()
    failed: Mapping[str, Failure] = field(default_factory=dict)
    unsupported: Mapping[str, Failure] = field(default_factory=dict)


OnProgress: TypeAlias = Callable[[Progress], None]


class Campaign:
    """A plan on a device, measured into a store.

    ``subjects`` are Ops and Networks, or a :class:`Plan`. Running it resumes the newest unfinished campaign with the
    same plan (device, Setting, subjects, protocol, seed) if there is one, unless ``new`` asks for further evidence in
    a campaign of its own. ``protocol`` defaults to that of the device's profile. ``space`` says which search space it
    is for, where the plan does not know. The device may be open already; else it is opened and closed again.

    One campaign measures one device. A fleet is one Campaign per device, each in a thread or process of its own, on
    one store; a device that another one measures is refused (:class:`DeviceBusyError`).
    """

    def __init__(
        self,
        device: Device,
        subjects: Iterable[Op | Network] | Plan,
        *,
        store: Store | str | Path = "latbench.db",
        protocol: Protocol | None = None,
        seed: int = 0,
        name: str | None = None,
        space: SearchSpace | Mapping[str, Any] | None = None,
        new: bool = False,
    ) -> None:
        self.device = device
        self.plan = subjects if isinstance(subjects, Plan) else Plan.of(subjects, seed=seed)
        self.protocol = protocol or device.profile.protocol
        self.name, self.new = name, new
        self.space = space.spec if isinstance(space, SearchSpace) else space or self.plan.space
        self._store = store

    @classmethod
    def resume(cls, device: Device, *, store: Store | str | Path = "latbench.db", campaign: str | None = None) -> Self:
        """The newest unfinished campaign of an open device (or the one with this id), as the store knows it.

        Weights and files of Networks are not in the store: such Networks are measured with generated weights. Raises
        :class:`ConfigError` if there is none.
        """
        with _opened_store(store) as s:
            found = [
                r for r in s.campaigns(setting=device.setting) if r.state != "finished" and campaign in (None, r.id)
            ]
            if not found:
                what = f"campaign {campaign!r}" if campaign else "campaign"
                raise ConfigError(f"{s.address}: no unfinished {what} of device {device.setting.device} in its Setting")
            record = found[0]
            slots = {x.item: x for x in s.slots(record.id)}
            subjects = s.subjects({x.subject for x in slots.values()})
        items = (PlanItem(subjects[x.subject], x.purpose, x.replica) for _, x in sorted(slots.items()))
        plan = Plan(tuple(items), record.seed, record.space)
        return cls(device, plan, store=store, protocol=record.protocol, name=record.name)

    def run(self, progress: OnProgress | None = None) -> CampaignResult:
        """Measure until every slot is settled and every interval is narrow enough or at its most Visits.

        ``progress`` is called between Visits only. Raises :class:`DeviceBusyError` if the device is being measured,
        :class:`DeviceError` when the device is lost for good; what was measured until then stays, and running again
        goes on from there.
        """
        with ExitStack() as stack:
            store = stack.enter_context(_opened_store(self._store))
            device = stack.enter_context(_opened_device(self.device))
            setting = device.setting
            label = self.name or f"of {device.profile.name}"
            stack.enter_context(HostLock(setting.device, label))
            lease = stack.enter_context(store.lease(setting.device, label))
            record, resumed = self._record(store, setting)
            ledger = Ledger(store, record.id, self.plan, self.protocol, setting)
            run = _Run(device, self.protocol, ledger, lease, progress)
            try:
                run.measure()
            except BaseException:
                # Whatever stopped it is what the caller must see, even if the store cannot be told.
                with suppress(StoreError):
                    store.set_campaign_state(record.id, "interrupted")
                raise
            store.set_campaign_state(record.id, "finished")
            return self._result(store, record, ledger, run, setting, resumed)

    def _record(self, store: Store, setting: Setting) -> tuple[CampaignRecord, bool]:
        """The campaign to go on with, or a new one; and whether it is resumed."""
        plan = self.plan.hash(setting, self.protocol)
        unfinished = [r for r in store.campaigns(plan=plan) if r.state != "finished"]
        if unfinished and not self.new:
            store.set_campaign_state(unfinished[0].id, "running")
            store.add_setting(setting, profile=self.device.profile.name)
            return unfinished[0], True
        made = store.create_campaign(
            plan=plan, name=self.name or "", description=self.device.describe(), setting=setting,
            profile=self.device.profile.name, protocol=self.protocol, space=self.space, seed=self.plan.seed,
            subjects=self.plan.subjects, slots=first_slots(self.plan, self.protocol),
        )  # fmt: skip
        return next(r for r in store.campaigns(plan=plan) if r.id == made), False

    def _result(
        self, store: Store, record: CampaignRecord, ledger: Ledger, run: _Run, setting: Setting, resumed: bool
    ) -> CampaignResult:
        labels = [_label(i.subject) for i in self.plan.items]
        bad = [v for v in store.visits(setting, campaign=record.id, failed=True) if v.role != "control"]
        names = {i.subject.key: _label(i.subject) for i in self.plan.items}
        return CampaignResult(
            record.id, record.name, record.plan, setting, ledger.counts(), run.visits, run.rounds, run.device_s,
            run.wall_s, resumed, tuple(dict.fromkeys(labels[i] for i in ledger.wide())),
            {names[v.subject]: v.failure for v in bad if v.failure},
            {names[v.subject]: v.unsupported for v in bad if v.unsupported},
        )  # fmt: skip


class _Run:
    """One run of a campaign: streams rounds from the device into the ledger, and survives losing the device."""

    def __init__(
        self, device: Device, protocol: Protocol, ledger: Ledger, lease: Lease, progress: OnProgress | None
    ) -> None:
        self.device, self.protocol, self.ledger, self.lease, self.progress = device, protocol, ledger, lease, progress
        self.visits, self.rounds, self.device_s = 0, 0, 0.0
        self._began, self._losses = time.monotonic(), 0
        self._measuring, self._settled = self._began, 0
        self._identity, self._process_name = device.setting.device, ""

    @property
    def wall_s(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._began

    def measure(self) -> None:
        """All rounds, the planned ones and those that are added."""
        subjects = self.ledger.open_subjects
        if subjects:
            self._tell("prepare", "")
            self.device.prepare(subjects)
        self._measuring = time.monotonic()
        while True:
            number, slots = self.ledger.next_round()
            if not slots:
                self._tell("done", "")
                return
            self.rounds += 1
            for part in self.ledger.plan.runs(slots, number):
                self._process({s.name: s for s in part})

    def _process(self, todo: dict[str, Slot]) -> None:
        """Measure slots, in one fresh process while the device lives, else in several."""
        while todo := {n: s for n, s in todo.items() if self.ledger.slots[n].state == "planned"}:
            jobs = [Job(n, self.ledger.subject(s)) for n, s in todo.items()]
            before = self.device_s
            try:
                self._tell("measure", _label(jobs[0].subject))
                # Closing the stream ends the measuring process, whatever happens here.
                with closing(_closable(self.device.visits(jobs, self.protocol))) as stream:
                    for visit in stream:
                        self._take(visit, todo)
                self.device_s = before + self._spent_s(self.device_s - before)
                if todo:
                    raise DeviceError(f"the device ended its stream with {len(todo)} of {len(jobs)} jobs unanswered")
            except DeviceBusyError:
                raise
            except DeviceError as e:
                self._recover(e)
                culprit = next(iter(todo.values()), None)
                if culprit is not None:
                    del todo[culprit.name]
                    self.ledger.lost(culprit, e)

    def _take(self, visit: Visit, todo: dict[str, Slot]) -> None:
        self.lease.check()
        left = self.ledger.open
        self.ledger.accept(visit)
        self._settled += left - self.ledger.open
        self._losses = 0
        self.visits += 1
        self._process_name = visit.run
        self.device_s += _device_s(visit)
        todo.pop(visit.slot, None)
        upcoming = next(iter(todo.values()), None)
        self._tell("measure", _label(self.ledger.subject(upcoming)) if upcoming else "")

    def _spent_s(self, visits_s: float) -> float:
        """Device time of the stream that has just ended: as the device booked it, else what its Visits say."""
        last: Mapping[str, Any] = getattr(self.device, "last_run", {})
        spent = last.get("spent_ns")
        if not self._process_name or last.get("run") != self._process_name or not isinstance(spent, dict):
            return visits_s
        booked = [ns for purpose, ns in spent.items() if purpose != "acknowledge" and isinstance(ns, int)]
        return sum(booked) * 1e-9

    def _recover(self, error: DeviceError) -> None:
        """Make sure that the device is still there, so that the job in flight is to blame; else raise."""
        self._losses += 1
        if self._losses >= MAX_LOSSES:
            often = f"the device was lost {self._losses} times without a Visit in between; what was measured is kept"
            raise type(error)(f"{error}\n{often}") from error
        if isinstance(error, TransportError):
            self.device.close()
            self.device.open()
        now = self.device.describe().identity
        if now != self._identity:
            raise TransportError(f"device {self._identity} was lost, and now {now} answers in its place") from error

    def _tell(self, stage: Literal["prepare", "measure", "done"], subject: str) -> None:
        if self.progress is None:
            return
        left, total = self.ledger.open, len(self.ledger.slots)
        now, campaign = time.monotonic(), self.ledger.campaign
        per_slot = (now - self._measuring) / self._settled if self._settled else None
        self.progress(
            Progress(
                campaign, stage, self.rounds, total - left, total, subject, self.device_s, now - self._began,
                None if per_slot is None else per_slot * left,
            )
        )  # fmt: skip


def _device_s(v: Visit) -> float:
    """Seconds that a Visit cost on the device. Loading and the first run of it precede ``started``."""
    first = int(v.warmup_ns[0]) if v.warmup_ns.size else 0
    before = 0 if v.role == "control" else v.load_ns + first
    return before * 1e-9 + (v.ended - v.started)


def _label(subject: Op | Network) -> str:
    return subject.name if isinstance(subject, Network) else subject.label


def _closable(stream: Iterator[Visit]) -> Any:
    """The iterator itself where it can be closed, as generators can."""
    return stream if hasattr(stream, "close") else (v for v in stream)


@contextmanager
def _opened_store(store: Store | str | Path) -> Iterator[Store]:
    if isinstance(store, Store):
        yield store
    else:
        with Store.open(store) as opened:
            yield opened


@contextmanager
def _opened_device(device: Device) -> Iterator[Device]:
    try:
        _ = device.setting
    except DeviceError:
        with device:
            yield device
    else:
        yield device
