"""A predictor for a device within minutes: measure, fit, see what is estimated wrongly, measure that, and so on.

:func:`learn` runs one campaign whose plan grows. Each round fits ``kernels`` to all that the store holds of the
Setting, judges it on Ops and networks that are held out, keeps whichever round's is best, and chooses the next Ops by
:mod:`latbench.adaptive_choice`. Every Visit is committed as it arrives, so that it can be stopped at any moment, and
goes on where it stopped. Time counts per campaign, also over several runs (:mod:`latbench.adaptive_clock`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from math import nan
from pathlib import Path
from typing import Any

import numpy as np

from latbench.adaptive_choice import KindState, choose
from latbench.adaptive_clock import TimedLedger, used_s
from latbench.adaptive_source import Source
from latbench.campaign import begun, opened_device, opened_store, told_how_it_ends
from latbench.device import Device
from latbench.errors import NotEnoughDataError, UnknownOpError, UnsupportedOpError
from latbench.gathering import Gathered, profile_name
from latbench.host_lock import HostLock
from latbench.ledger import Ledger
from latbench.network import Network
from latbench.op import Op
from latbench.plan import PlanItem
from latbench.predictors.features import kernel_kind
from latbench.predictors.kernels import Kernels
from latbench.protocol import Protocol, Statistic
from latbench.rounds import OnProgress, Progress, Run
from latbench.space import SearchSpace
from latbench.store import Slot, Store
from latbench.validation import Validation

#: What the profile's protocol is changed to: thousands of Ops within minutes, each measured briefly, say more than a
#: few hundred that are known to a per mille.
BRIEF = {
    "warmup_runs": 2, "warmup_max_ms": 60.0, "min_runs": 6, "max_runs": 100, "min_ms": 12.0, "max_ms": 1000.0,
    "min_visits": 2, "max_visits": 3, "target_ci": 0.03, "max_requeues": 1,
}  # fmt: skip
#: Ops of the first round, and by how much each round adds to what was measured.
FIRST_OPS, GROWTH = 64, 0.4
#: Ops for one network that is measured too, and candidates for one that is chosen.
OPS_PER_NETWORK, CANDIDATES = 16, 2
#: Seconds that an Op takes before it is known.
_OP_S = 0.3
#: Fewest held-out networks that say whether an earlier round's predictor is better than the newest.
FEWEST_JUDGES = 5

OnRound = Callable[["Round"], None]


@dataclass(frozen=True)
class Round:
    """One point of the learning curve. ``ops`` and ``networks`` count what the fit learnt from.

    ``op_rmspe`` is the error on the ``held_out_ops`` Ops that no fit has seen, each counted by the share of a network's
    time that it makes up; ``rmspe`` that on networks, with the share within ±10 % and how many intervals hold; NaN
    where there are none yet. ``kinds`` maps the kinds that contribute most to the error to theirs.
    """

    number: int
    minutes: float
    ops: int
    networks: int
    held_out_ops: int
    op_rmspe: float
    held_out_networks: int
    rmspe: float
    within_10: float
    coverage: float
    kinds: dict[str, float] = field(default_factory=dict)
    failed: str = ""


@dataclass(frozen=True)
class Learnt:
    """The best round's predictor, None where too little was measured for one; the learning curve, the minutes used in
    all, and the number of the round that the predictor is of."""

    predictor: Kernels | None
    rounds: tuple[Round, ...]
    minutes: float
    campaign: str
    notes: tuple[str, ...] = ()
    kept: int = 0
    #: The networks that it is for, with what was measured of them as wholes and what the predictor says; milliseconds,
    #: NaN where one is not measured (yet) or cannot be predicted.
    own: tuple[tuple[str, float, float], ...] = ()


def learn(
    device: Device,
    networks: Sequence[Network] = (),
    *,
    minutes: float = 30.0,
    space: SearchSpace | None = None,
    store: Store | str | Path = "latbench.db",
    out: Callable[[Kernels], object] | None = None,
    protocol: Protocol | None = None,
    statistic: Statistic | None = None,
    seed: int = 0,
    on_round: OnRound | None = None,
    on_progress: OnProgress | None = None,
) -> Learnt:
    """Build ``kernels`` for a device within ``minutes`` of measuring; run again, it goes on with what it has.

    ``networks`` and ``space`` say what it is for, if that is known: their units come first and count more. ``out`` is
    called after every round with the best predictor so far: the newest, unless an earlier one of this run knows all
    networks that are held out by now, too, and has the lower RMSPE on them (where there are :data:`FEWEST_JUDGES`).
    ``protocol`` defaults to that of the profile in its :data:`BRIEF` form, ``statistic`` to the protocol's. Raises what
    campaigns raise (:class:`latbench.campaign.Campaign`).
    """
    with ExitStack() as stack:
        opened = stack.enter_context(opened_store(store))
        stack.enter_context(opened_device(device))
        how = protocol or device.profile.protocol.model_copy(update=BRIEF)
        title = f"learning {device.profile.name}"
        stack.enter_context(HostLock(device.setting.device, title))
        lease = stack.enter_context(opened.lease(device.setting.device, title))
        source = Source(device, networks, space, seed)
        name = source.name(how)
        began = time.monotonic()
        record, _ = begun(
            opened, device, opened.campaigns(plan=name), plan=name, name=title, protocol=how,
            space=None if space is None else space.spec, seed=seed, subjects=[], slots=[],
        )  # fmt: skip
        slots = opened.slots(record.id)
        while len(source.items) <= max((s.item for s in slots), default=0):
            if not source.more():
                break
        ledger = TimedLedger(opened, record.id, source.plan, how, device.setting)
        used = used_s(ledger)
        learning = Learning(opened, device, source, ledger, statistic or how.statistic, seed)
        ledger.began = learning.began = began - used
        learning.until = learning.began + 60.0 * minutes
        learning.on_round, learning.out = on_round, out
        run = Run(device, how, ledger, lease, None, feed=learning)

        def progress(p: Progress) -> None:
            if time.monotonic() > learning.until:
                raise _TimeUp
            if on_progress is not None:
                on_progress(p)

        run.progress = progress
        with told_how_it_ends(opened, record.id):
            try:
                run.measure()
            except _TimeUp:
                learning.assess()
        return Learnt(
            learning.best, tuple(learning.rounds), learning.minutes, record.id, tuple(dict.fromkeys(source.notes)),
            learning.kept, learning.own(networks),
        )  # fmt: skip


class _TimeUp(Exception):  # noqa: N818 - it is no error
    """The time is over."""


class Learning:
    """Feeds a campaign with what it should measure next (:class:`latbench.rounds.Feed`)."""

    on_round: OnRound | None = None
    out: Callable[[Kernels], object] | None = None

    def __init__(
        self, store: Store, device: Device, source: Source, ledger: Ledger, statistic: Statistic, seed: int
    ) -> None:
        self.store, self.device, self.source, self.ledger = store, device, source, ledger
        self.statistic, self.seed = statistic, seed
        self.began = self.until = time.monotonic()
        #: The newest, by which the next Ops are chosen; the one that was the best, and its round.
        self.model: Kernels | None = None
        self.best: Kernels | None = None
        self.kept = 0
        self.rounds: list[Round] = []
        self._kinds: dict[str, KindState] = {}
        done = sum(isinstance(ledger.plan.items[s.item].subject, Op) and s.visit == 0 for s in ledger.slots.values())
        self._op_s, self._fit_s, self._asked = used_s(ledger) / done if done else _OP_S, 1.0, (0.0, 0)
        #: Ops that are measured, by this campaign or another.
        self._known: set[str] = set()

    @property
    def minutes(self) -> float:
        """Minutes used, over all runs."""
        return (time.monotonic() - self.began) / 60.0

    # -- the feed -----------------------------------------------------------------------------------------------

    def refill(self) -> list[Op | Network]:
        """See :class:`latbench.rounds.Feed`."""
        return []

    def look(self) -> None:
        """See :class:`latbench.rounds.Feed`."""

    def wait(self) -> list[Op | Network]:
        """All that was chosen is measured: fit, and choose again while there is time."""
        now = time.monotonic()
        at, ops = self._asked
        if ops:
            self._op_s = max((now - at) / ops, 1e-6)
        self.assess()
        left = self.until - time.monotonic() - 2.0 * self._fit_s
        # At most half of what is left: what is not measured when the time is up was prepared for nothing.
        number = min(max(FIRST_OPS, int(GROWTH * len(self._known))), int(left / self._op_s / 2))
        if number < FIRST_OPS / 8:
            return []
        began = time.monotonic()
        items = self._next(number)
        slots = [
            Slot(f"{i}.{v}", i, x.subject.key, x.purpose, x.replica, v, metric=x.metric)
            for i in items
            for x in [self.source.items[i]]
            for v in range(self.ledger.protocol.min_visits)
        ]
        self.ledger.grow(self.source.plan)
        self.store.add_slots(self.ledger.campaign, slots)
        taken = set(items)
        self.ledger.extend(s for s in self.store.slots(self.ledger.campaign) if s.item in taken)
        subjects = {s.subject: self.ledger.subject(s) for s in slots}
        self._asked = began, sum(isinstance(x, Op) for x in subjects.values())
        return list(subjects.values())

    # -- what is next -------------------------------------------------------------------------------------------

    def _next(self, number: int) -> list[int]:
        """Numbers of plan items: Ops that are worth it, as many held-out ones as their share, and some networks."""
        taken = {s.item for s in self.ledger.slots.values()}
        networks = max(4, number // OPS_PER_NETWORK)
        while True:
            fresh = [(i, x) for i, x in enumerate(self.source.items) if i not in taken]
            ops = {p: [(i, x) for i, x in fresh if self._is_new(x, p)] for p in ("op", "validation")}
            nets = [i for i, x in fresh if isinstance(x.subject, Network)]
            enough = len(ops["op"]) >= CANDIDATES * number and len(nets) >= networks
            if enough or not self.source.more():
                break
        rng = np.random.default_rng([self.seed, len(taken)])
        held = [i for i, _ in ops["validation"]]
        share = len(held) / max(len(held) + len(ops["op"]), 1)
        chosen = [held[j] for j in rng.permutation(len(held))[: max(4, round(number * share))]]
        weights = self._weights()
        candidates = {x.subject.key: i for i, x in ops["op"]}
        picked = choose(
            [x.subject for _, x in ops["op"] if isinstance(x.subject, Op)],
            [weights.get(k, 0.0) for k in candidates], self._kinds, number,
        )  # fmt: skip
        return [*nets[:networks], *chosen, *(candidates[op.key] for op in picked)]

    def _is_new(self, item: PlanItem, purpose: str) -> bool:
        return isinstance(item.subject, Op) and item.purpose == purpose and item.subject.key not in self._known

    def _weights(self) -> dict[str, float]:
        """Key of an Op → the largest share that it has of a planned network's latency, as far as it can be told."""
        out: dict[str, float] = {}
        for p in self.source.planned:
            ops = [u.op for u in p.units]
            ms = np.ones(len(ops)) if self.model is None else self.model.alone_ms(ops)
            total = float(ms.sum())
            own: dict[str, float] = {}
            for op, one in zip(ops, ms.tolist(), strict=True):
                own[op.key] = own.get(op.key, 0.0) + p.weight * one / total
            for key, share in own.items():
                out[key] = max(out.get(key, 0.0), share)
        return out

    # -- how good it is -----------------------------------------------------------------------------------------

    def assess(self) -> None:
        """Fit to all that was measured, judge by what is held out, tell, keep the best."""
        began = time.monotonic()
        profile = profile_name(self.store, self.device)
        gathered = Gathered(self.store, self.device.setting, profile, None, None)
        data = gathered.data(Kernels.name, self.statistic)
        held_out = gathered.held_out_ops(self.statistic)
        self._known = {*data.ops, *held_out, *data.unsupported}
        why = ""
        try:
            model: Kernels | None = Kernels.fit(data, seed=self.seed)
        except NotEnoughDataError as e:
            model, why = None, str(e).splitlines()[0]
        if not data.ops:
            return
        found, errors, off = None, dict[str, list[float]](), dict[str, float]()
        if model is not None:
            self.model = model
            ops = [Op.parse(k) for k in held_out]
            value = np.array([m.latency_ms for m in held_out.values()])
            for op, log in zip(ops, np.log(model.alone_ms(ops) / value).tolist(), strict=True):
                errors.setdefault(kernel_kind(op), []).append(log)
                off[op.key] = float(np.expm1(log))
            found, notes = gathered.validate(model, self.statistic, 0.9)
            model = model.with_card(
                model.card.replace(validation=found.to_json() if found else None, notes=(*model.card.notes, *notes))
            )
        self._learn_kinds(data.ops, model, errors)
        self._tell(found, len(data.ops), len(data.calibration), off, why)
        if model is not None:
            self._keep(model, found, gathered)
        self._fit_s = time.monotonic() - began

    def own(self, networks: Sequence[Network]) -> tuple[tuple[str, float, float], ...]:
        """Name, measured and predicted milliseconds of the users' networks; see :class:`Learnt`."""
        if self.best is None or not networks:
            return ()
        gathered = Gathered(self.store, self.device.setting, profile_name(self.store, self.device), None, None)
        measured = {p: gathered.networks(p, self.statistic) for p in ("validation", "calibration")}
        told = []
        for net in networks:
            seen = next((m[net.key].value for m in measured.values() if net.key in m), nan)
            try:
                predicted = self.best.predict(net).value
            except (UnknownOpError, UnsupportedOpError):
                predicted = nan
            told.append((net.name, seen, predicted))
        return tuple(told)

    def _keep(self, newest: Kernels, found: Validation | None, gathered: Gathered) -> None:
        """Keep whichever predicts the held-out networks better: the newest, or the best before it, both of today."""
        best, number = newest, self.rounds[-1].number
        if self.best is not None and found is not None and found.score.n >= FEWEST_JUDGES:
            earlier, _ = gathered.validate(self.best, self.statistic, found.level)
            # One that does not know all of these networks is not better, however right it is about the others.
            if earlier is not None and earlier.score.n == found.score.n and earlier.score.rmspe < found.score.rmspe:
                card = self.best.card.replace(validation=earlier.to_json())
                best, number = self.best.with_card(card), self.kept
        curve = [{k: None if v != v else v for k, v in asdict(r).items()} for r in self.rounds]  # NaN
        self.kept = number
        data = {**best.card.data, "learning": curve, "learning_round": number}
        self.best = best.with_card(best.card.replace(data=data))
        if self.out is not None:
            self.out(self.best)

    def _learn_kinds(self, ops: Any, model: Kernels | None, held_out: dict[str, list[float]]) -> None:
        kinds: dict[str, KindState] = {}
        for key in ops:
            op = Op.parse(key)
            kinds.setdefault(kernel_kind(op), KindState()).measured.append(op)
        for kind, state in kinds.items():
            state.cross_validated = None if model is None else model.errors.get(kind)
            state.held_out = held_out.get(kind, [])
        self._kinds = kinds

    def _tell(self, found: Validation | None, ops: int, networks: int, off: dict[str, float], why: str) -> None:
        """One more point of the learning curve; ``off`` are the held-out Ops' relative errors by key."""
        weights = self._weights()
        shares = {k: weights.get(k, 0.0) for k in off}
        squares: dict[str, tuple[float, float]] = {}
        for key, e in off.items():
            kind = kernel_kind(Op.parse(key))
            total, weight = squares.get(kind, (0.0, 0.0))
            squares[kind] = total + shares[key] * e**2, weight + shares[key]
        everything = sum(w for _, w in squares.values())
        error = float(np.sqrt(sum(t for t, _ in squares.values()) / everything)) if everything else nan
        worst = sorted((k for k, (_, w) in squares.items() if w), key=lambda k: -squares[k][0])[:4]
        score = None if found is None else found.score
        row = Round(
            len(self.rounds) + 1, self.minutes, ops, networks, len(off), error, score.n if score else 0,
            score.rmspe if score else nan, score.within_10 if score else nan, found.coverage if found else nan,
            {k: float(np.sqrt(squares[k][0] / squares[k][1])) for k in worst}, why,
        )  # fmt: skip
        self.rounds.append(row)
        if self.on_round is not None:
            self.on_round(row)
