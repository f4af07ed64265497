"""What whole networks do that no sum over their Ops tells, learnt from a few measured networks.

Two effects, each with parameters that a sum cannot have:

- **Launches.** A device that computes apart from its host is handed one kernel after the other. Small kernels end
  before the host has launched the next one: then a network takes as long as its launches, however little it computes.
  ``latency = overhead + max(launch_ms × units, Σ unit latencies)``: a maximum, not a sum.
- **Caches.** A unit that is measured again and again finds its weights in a cache of its size. In a network whose
  weights together do not fit there, the others have driven them out: each megabyte of them is read anew. Units that are
  too large for the cache pay for it alone, too, and networks that fit into it never do.

Both are fitted with the linear form of :mod:`latbench.predictors.additive` inside (robust, to relative errors), for a
grid of turning points and of cache sizes, and compared by leave-one-out cross-validation, in which the point is chosen
anew each time. One replaces the linear form only where it is clearly better.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from latbench.conformal import Conformal
from latbench.op import Op
from latbench.predictors import additive
from latbench.predictors.additive import (
    MIN_NETWORKS,
    Calibration,
    CalibrationFit,
    calibrate,
    clearly_better,
    megabytes,
    tensor_megabytes,
)

Floats = npt.NDArray[np.float64]

#: Cache sizes that are tried, in 10⁶ bytes: from a core's second level to a server's last.
CACHES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
#: What an estimate's breakdown calls them.
WHOLE = ("waiting for launches", "weights read anew")
#: Turning points between launches and work that are tried: so many over the networks' range of work per unit, then as
#: many around the best one.
_TURNS = 9
#: Effects must lower the leave-one-out RMSPE by this share, where no more networks tell: they have more ways to fit by
#: chance than a linear form.
_MIN_GAIN = 0.2


@dataclass(frozen=True)
class Effects:
    """Effects of whole networks in milliseconds (or the metric's unit); all 0 where the linear form does.

    ``launch_ms`` is what the host takes for each unit; ``cold_ms_per_megabyte`` the price of weights that would stay in
    a cache of ``cache_megabytes`` if their unit ran alone.
    """

    launch_ms: float = 0.0
    cold_ms_per_megabyte: float = 0.0
    cache_megabytes: float = 0.0

    def __post_init__(self) -> None:
        """Raises :class:`ValueError` for what is no number, as a saved model may hold."""
        for name in ("launch_ms", "cold_ms_per_megabyte", "cache_megabytes"):
            object.__setattr__(self, name, additive.number(getattr(self, name), name))

    def __bool__(self) -> bool:
        return bool(self.launch_ms or self.cold_ms_per_megabyte)

    def loads(self, ops: Iterable[Op]) -> Floats:
        """(n, 3): launches, megabytes of weights that a cache would hold, and all megabytes of weights of each Op."""
        rows = [(1.0, cold_megabytes(op, self.cache_megabytes), megabytes(op)) for op in ops]
        return np.array(rows, np.float64).reshape(-1, 3)

    def extra_ms(self, work_ms: npt.ArrayLike, loads: npt.ArrayLike) -> tuple[Floats, Floats]:
        """``(waiting, cold)``, (n,) each: what networks take beyond their Ops' ``work_ms`` (n,) with ``loads`` (n, 3):
        waiting for launches, and reading weights anew."""
        work, load = np.asarray(work_ms, np.float64), np.asarray(loads, np.float64)
        waiting = np.maximum(self.launch_ms * load[:, 0] - work, 0.0) if self.launch_ms else np.zeros(len(work))
        driven_out = load[:, 2] > self.cache_megabytes
        return waiting, self.cold_ms_per_megabyte * np.where(driven_out, load[:, 1], 0.0)

    def to_json(self) -> dict[str, float]:
        """Plain JSON values; ``Effects(**d)`` reads them back."""
        return asdict(self)


def cold_megabytes(op: Op, cache: float) -> float:
    """Weights of an Op in 10⁶ bytes if the whole Op fits into a cache of that many, else 0."""
    fits = megabytes(op) + tensor_megabytes(op) <= cache
    return megabytes(op) if fits else 0.0


@dataclass(frozen=True)
class WholeFit:
    """A linear calibration, the effects beside it, and intervals and errors of the two together."""

    fit: CalibrationFit
    effects: Effects


def calibrate_whole(
    parts: npt.ArrayLike,
    measured_ms: npt.ArrayLike,
    groups: Sequence[str],
    work: npt.ArrayLike,
    ops: Sequence[Mapping[Op, int]],
    *,
    least_ms: float = 0.0,
    estimated: npt.ArrayLike | None = None,
) -> WholeFit:
    """:func:`latbench.predictors.additive.calibrate`, and on top the effects of whole networks.

    ``ops`` has the Ops of each of the n networks with their counts; the others are as there.
    """
    x, y, w = (np.asarray(a, np.float64) for a in (parts, measured_ms, work))
    w = np.pad(w, ((0, 0), (0, 3 - w.shape[1])))
    linear = calibrate(x, y, groups, w, least_ms=least_ms, estimated=estimated)
    if len(y) < 2 * MIN_NETWORKS:
        return WholeFit(linear, Effects())
    cold = np.array([[_cold(net, c) for c in CACHES] for net in ops])
    data = _Data(x.sum(1), y, w, cold, least_ms)
    tried = {form: _leave_one_out(data, form) for form in _forms(data)}
    off = {f: np.array([m.predict(data)[i] for i, m in enumerate(fits)]) / y - 1 for f, fits in tried.items()}
    merits = {f: additive.clipped_rms(o, linear.off) for f, o in off.items()}
    best = min(merits, key=merits.__getitem__, default=None)
    names = {**linear.tried, **{str(f): _rms(o) for f, o in off.items()}}
    if best is None or not clearly_better(off[best], linear.off, _MIN_GAIN):
        return WholeFit(replace(linear, tried=names), Effects())
    full = _fit(data, best)
    fits = tried[best]

    def intervals(sums: Floats) -> Conformal:
        others = replace(data, sums=sums)
        return Conformal.from_fits(y, np.stack([m.predict(others) for m in fits]), full.predict(others))

    other = None if estimated is None else intervals(np.asarray(estimated, np.float64).sum(1))
    scale, price = float(full.beta[1]), float(full.beta[3])
    moved = float(full.beta[4])
    sums = scale * data.sums + price * w[:, 1] + moved * w[:, 2]
    calibration = Calibration(
        float(full.beta[0]), scale, {}, str(best), 0.0, (float(sums.min()), float(sums.max())), price,
        ms_per_tensor_megabyte=moved,
    )  # fmt: skip
    effects = Effects(
        max(scale * full.at + price, 0.0) if best.launches else 0.0,
        0.0 if best.launches else float(full.beta[2]),
        0.0 if best.launches else CACHES[int(full.at)],
    )
    found = CalibrationFit(calibration, intervals(data.sums), _rms(off[best]), names, len(y), other, off[best])
    return WholeFit(found, effects)


def _cold(net: Mapping[Op, int], cache: float) -> float:
    if sum(megabytes(op) * n for op, n in net.items()) <= cache:
        return 0.0
    return sum(cold_megabytes(op, cache) * n for op, n in net.items())


class _Form(NamedTuple):
    """Whether launches bound a network, or else weights are read anew; and whether Ops and tensors have a price."""

    launches: bool
    ops: bool
    tensors: bool = False

    def __str__(self) -> str:
        said = "the larger of launches and work" if self.launches else "work and weights that caches lose"
        prices = " and ".join(["of tensors"] * self.tensors + ["of Ops"] * self.ops)
        return f"{said} and a price {prices}" if prices else said


@dataclass(frozen=True)
class _Data:
    """n networks: sums over Ops, latencies, megabytes of weights, numbers of Ops and megabytes of tensors (n, 3), cold
    megabytes (n, caches)."""

    sums: Floats
    y: Floats
    work: Floats
    cold: Floats
    least_ms: float

    def without(self, i: int) -> _Data:
        sums, y, work, cold = (np.delete(a, i, 0) for a in (self.sums, self.y, self.work, self.cold))
        return _Data(sums, y, work, cold, self.least_ms)


@dataclass(frozen=True)
class _Model:
    """Overhead, scale, prices of a cold megabyte, of an Op and of a megabyte of tensors (5,). ``at`` is the work per
    unit below which launches bound, or the number of the cache."""

    form: _Form
    at: float
    beta: Floats

    def predict(self, d: _Data) -> Floats:
        x, w = _columns(d, self.form, self.at)
        return np.asarray(self.beta[0] + x[:, 0] * self.beta[1] + w @ self.beta[2:], np.float64)


def _columns(d: _Data, form: _Form, at: float) -> tuple[Floats, Floats]:
    count = d.work[:, 1]
    x = np.maximum(at * count, d.sums) if form.launches else d.sums
    cold = np.zeros(len(x)) if form.launches else d.cold[:, int(at)]
    return x[:, None], np.stack([cold, count, d.work[:, 2] * form.tensors], axis=1)


def _forms(d: _Data) -> list[_Form]:
    """The forms that the networks can tell from the linear one."""
    ops = [False, True] if np.ptp(d.work[:, 1]) > 0 else [False]
    kinds = [True] * bool(np.ptp(d.sums / d.work[:, 1]) > 0) + [False] * bool(_caches(d))
    tensors = [False, True] if np.ptp(d.work[:, 2]) > 0 else [False]
    # Where launches bound, nothing is said of the work's caches.
    return [_Form(launches, o, t) for launches in kinds for o in ops for t in tensors if not (launches and t)]


def _caches(d: _Data) -> list[float]:
    return [float(c) for c in range(len(CACHES)) if np.ptp(d.cold[:, c]) > 0]


def _fit(d: _Data, form: _Form) -> _Model:
    if not form.launches:
        return min((_fit_at(d, form, at) for at in _caches(d) or [0.0]), key=lambda f: f[0])[1]
    per_unit = d.sums / d.work[:, 1]
    low, high = float(per_unit.min()), float(per_unit.max())
    for _ in range(2):
        turns = np.geomspace(low, high, _TURNS)
        fits = [_fit_at(d, form, float(t)) for t in turns]
        best = min(range(_TURNS), key=lambda i: fits[i][0])
        low, high = float(turns[max(best - 1, 0)]), float(turns[min(best + 1, _TURNS - 1)])
    return fits[best][1]


def _fit_at(d: _Data, form: _Form, at: float) -> tuple[float, _Model]:
    """Mean relative error, which one bad network does not rule, and the model with this turning point or cache."""
    x, w = _columns(d, form, at)
    linear = additive.Form(weights=not form.launches, ops=form.ops, tensors=form.tensors)
    model = _Model(form, at, additive.fit_linear(x, w, d.y, linear, d.least_ms))
    return float(np.mean(np.abs(model.predict(d) / d.y - 1))), model


def _leave_one_out(d: _Data, form: _Form) -> list[_Model]:
    return [_fit(d.without(i), form) for i in range(len(d.y))]


def _rms(off: Floats) -> float:
    return float(np.sqrt(np.mean(off**2)))
