"""Drift correction: what the machine did meanwhile, taken off every Visit.

A machine slows down and recovers while it is measured: heat, clocks, neighbours. Control Ops, measured throughout, and
Ops that are visited again show it. The model of the value y of one Visit of Op o at time t is

    log y = mu[o] + (1 + b[o]) · (sum_c w[kind(o), c] · d_c(t) + v[kind(o)] · g(t)) + noise

d_0 is the slowdown that all control Ops agree on (the least of their smoothed log-slowdowns), the other d_c what a
single control Op shows beyond that; w says how much an Op of this kind feels of it (contention slows memory-bound Ops
more), shrunk towards one weight for all kinds, and those towards 1 for d_0 and 0 for the others; b[o] is a single Op's
own sensitivity, shrunk towards its kind's; g is what Ops share and no control shows. Every part has to earn its place:
it is used only if it predicts held-out Visits better, and nothing is corrected unless correction beats leaving the
values alone by more than one standard error. Everything is fitted with Huber's loss.

**Reference state**: the quietest tenth of the measured time, by the mean of the control Ops' smoothed slowdowns, and
all that was within 0.5 % of it; a corrected number is what the Visit would have given then.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from latbench.timeline import Floats, choose_span, huber_weights, smooth

#: One line for people, wherever a corrected number is shown.
REFERENCE_STATE = "the quietest tenth of the measured time, and all that was within 0.5 % of it"
#: Spans of the shared rest g(t) that are tried, in Visits.
_REST_SPANS = (8.0, 32.0, 128.0)
_PRIOR_COMMON, _PRIOR_KIND, _PRIOR_OP = 0.5, 0.3, 0.3
_FOLDS = 5
#: How many Visits' worth the noise of all Ops weighs against an Op's own.
_PRIOR_VISITS = 4.0
_MIN_VISITS = 20
#: States this close (log) are one.
_SAME = 0.005
Ints = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Drift:
    """What drift did and what was taken off.

    ``log_slowdown`` has one element per Visit given: its value divided by exp of it is the value at the reference
    state. ``span_percent`` is how much slower the average Op ran in the worst state than in the best;
    ``residual_percent`` the robust standard deviation over repeated Visits that is left, per kind of Op (before
    correction: ``spread_percent``). ``weights`` maps kind of Op → control Op → weight.
    """

    log_slowdown: Floats = field(repr=False)
    model: str
    span_percent: float
    residual_percent: Mapping[str, float]
    spread_percent: Mapping[str, float]
    weights: Mapping[str, Mapping[str, float]]
    #: Mean absolute held-out error of log values, by candidate.
    validation: Mapping[str, float]
    controls: int
    reference: str = REFERENCE_STATE
    warnings: tuple[str, ...] = ()

    def report(self) -> dict[str, Any]:
        """Everything but the corrections themselves, as plain JSON values."""
        return {
            "model": self.model,
            "reference": self.reference,
            "span_percent": round(self.span_percent, 3),
            "residual_percent": {k: round(v, 3) for k, v in self.residual_percent.items()},
            "spread_percent": {k: round(v, 3) for k, v in self.spread_percent.items()},
            "weights": {k: {c: round(v, 3) for c, v in w.items()} for k, w in self.weights.items()},
            "validation": {k: round(v, 6) for k, v in self.validation.items()},
            "controls": self.controls,
            "warnings": list(self.warnings),
        }


class _Data(NamedTuple):
    time: Floats
    y: Floats  # log values of Ops and networks, not of controls
    subject: Ints
    kind: Ints  # per Visit
    slow: Floats  # (visits, controls + 1): d_c at each Visit, relative to the reference state; none without controls
    prior: Floats  # (controls + 1): what weights are drawn towards
    noise: Floats  # standard deviation of each Visit's log value


class _Form(NamedTuple):
    """What a candidate model may use."""

    weights: str  # "none", "agreed", "pooled", "kind", "op"
    span: float | None  # of the shared rest g

    def __str__(self) -> str:
        names = {
            "none": "no controls",
            "agreed": "what all controls agree on",
            "pooled": "controls, one weight each",
            "kind": "weights per kind of Op",
            "op": "weights per kind of Op and per Op",
        }
        rest = "" if self.span is None else f", shared rest over {self.span:g} Visits"
        return "nothing" if self == _NOTHING else names[self.weights] + rest


class _Fit(NamedTuple):
    total: Floats  # log-slowdown of every Visit
    weights: Floats  # (kinds, columns + 1): those of d_c, and last the gain on the shared rest
    rest: Floats  # g at every Visit
    own: Floats  # (subjects,): b


_NOTHING = _Form("none", None)


def fit_drift(
    time_s: npt.ArrayLike,
    values: npt.ArrayLike,
    subjects: npt.ArrayLike,
    kinds: npt.ArrayLike,
    is_control: npt.ArrayLike,
    seed: int = 0,
) -> Drift:
    """Fit and apply the model of this module. All arguments have one element per Visit, in any order.

    ``time_s`` is the middle of the Visit, ``values`` its statistic (positive, any unit), ``subjects`` and ``kinds``
    label the Op and its kind, ``is_control`` is true for control Visits, whose subjects are the control Ops. Several
    campaigns may be given together: their distance in time keeps them apart, their control Ops tie them together.
    """
    time, value = np.asarray(time_s, np.float64), np.asarray(values, np.float64)
    control = np.asarray(is_control, bool)
    names, code = np.unique(np.asarray(subjects, dtype=str), return_inverse=True)
    kind_names, kind_code = np.unique(np.asarray(kinds, dtype=str), return_inverse=True)
    logs = np.log(value)
    ops = ~control
    warnings: list[str] = []

    slow_all, labels = _control_slowdowns(time, logs, code, names, control, seed)
    reference = _quietest(slow_all.mean(axis=1)) if labels else np.ones(len(time), bool)
    slow_all = slow_all - slow_all[reference].mean(axis=0) if len(time) else slow_all
    agreed = np.maximum(slow_all.min(axis=1), 0.0)[:, None] if labels else slow_all
    columns = ["all controls", *labels] if labels else []
    slow, prior = np.hstack([agreed, slow_all - agreed]), np.eye(1, len(columns))[0]
    subject, kind = _dense(code[ops]), _dense(kind_code[ops])
    data = _Data(time[ops], logs[ops], subject, kind, slow[ops], prior, np.ones(ops.sum()))
    data = data._replace(noise=_noise(data))
    kinds_here = kind_names[np.unique(kind_code[ops])].tolist()

    chosen, validation = _select(data, seed)
    fit = _fit(data, np.ones(len(data.y), bool), chosen)
    total = fit.total
    if chosen != _NOTHING:
        # The model has no level of its own: for every Op it is zero in the reference state.
        course = np.column_stack([data.slow, fit.rest])
        quiet = reference[ops] if labels else _quietest(fit.rest)
        total = total - (fit.weights[data.kind] @ course[quiet].mean(axis=0)) * (1.0 + fit.own[data.subject])
    if not labels:
        tail = "corrected from repeated Visits alone" if chosen.span is not None else "uncorrected"
        warnings.append(f"no control Visits: {tail}")

    out = np.zeros(len(time))
    out[ops] = total
    if chosen.weights != "none":
        for j, label in enumerate(labels):
            own = control & (names[code] == label)
            out[own] = slow_all[own, j]
    common = total if len(total) else np.zeros(1)
    low, high = np.percentile(common, [1.0, 99.0])
    span = 100.0 * float(np.expm1(high - low))
    if span > 10.0:
        warnings.append(f"drift span {span:.0f} %: corrected numbers lean on the drift model")
    spread, left = _spread(data, data.y, kinds_here), _spread(data, data.y - total, kinds_here)
    columns = [*columns, "shared rest"]
    table = {
        k: dict(zip(columns, map(float, fit.weights[i]), strict=True))
        for i, k in enumerate(kinds_here)
        if chosen != _NOTHING
    }
    return Drift(out, str(chosen), span, left, spread, table, validation,
                 int(control.sum()), warnings=tuple(warnings))  # fmt: skip


def _control_slowdowns(
    time: Floats, logs: Floats, code: Ints, names: npt.NDArray[np.str_], control: npt.NDArray[np.bool_], seed: int
) -> tuple[Floats, list[str]]:
    """Smoothed log-slowdown of each control Op at every Visit, shape (visits, controls), and the controls' labels."""
    columns, labels = [], []
    for c in np.unique(code[control]):
        own = control & (code == c)
        if own.sum() < 3:
            continue
        span, _ = choose_span(time[own], logs[own], seed=seed)
        columns.append(smooth(time[own], logs[own], time, span))
        labels.append(str(names[c]))
    return (np.stack(columns, axis=1) if columns else np.zeros((len(time), 0))), labels


def _quietest(slowdown: Floats) -> npt.NDArray[np.bool_]:
    """True for the tenth of the Visits with the least slowdown, and those that noise alone keeps out of it."""
    if not len(slowdown):
        return np.zeros(0, bool)
    return np.asarray(slowdown <= np.quantile(slowdown, 0.1) + _SAME)


def _dense(code: Ints) -> Ints:
    return np.asarray(np.unique(code, return_inverse=True)[1], np.intp)


def _noise(data: _Data) -> Floats:
    """Standard deviation of each Visit's log value: its Op's own, drawn towards that of all Ops."""
    if not len(data.y):
        return np.ones(0)
    first = _fit(data, np.ones(len(data.y), bool), _Form("agreed", _REST_SPANS[1]))
    z = data.y - first.total
    residual = z - _levels(z, data, np.ones(len(z)))[data.subject]
    count = np.bincount(data.subject)
    many = count[data.subject] > 1
    if not many.any():
        return np.ones(len(z))
    usual = max(1.4826 * float(np.median(np.abs(residual[many]))), 1e-6)
    # Winsorised, so that one disturbed Visit does not make an Op look noisy.
    square = np.bincount(data.subject, np.minimum(np.abs(residual), 3 * usual) ** 2)
    own = np.sqrt((_PRIOR_VISITS * usual**2 + square) / (_PRIOR_VISITS + np.maximum(count - 1, 0)))
    return np.asarray(own[data.subject])


def _select(data: _Data, seed: int) -> tuple[_Form, dict[str, float]]:
    """The form that predicts held-out Visits best; nothing at all unless it wins by more than a standard error."""
    controls = bool(data.slow.any())
    count = np.bincount(data.subject)
    repeated = count[data.subject] > 1
    if repeated.sum() < _MIN_VISITS:
        # Too few repeated Visits to learn from: what all controls agree on is taken at its word.
        return (_Form("agreed", None) if controls else _NOTHING), {}
    fold = _folds(data.subject, seed)
    losses: dict[_Form, Floats] = {}

    def loss(form: _Form) -> float:
        if form not in losses:
            losses[form] = _held_out(data, fold, form)[repeated]
        return float(losses[form].mean())

    forms = [_NOTHING]
    if controls:
        forms += [_Form(w, None) for w in ("agreed", "pooled", "kind", "op")]
    best = min(forms, key=loss)
    spans = [x for x in _REST_SPANS if x < len(data.y)]
    forms += [_Form(w, x) for w in {best.weights: 0, "none": 0} for x in spans]
    best = min(forms, key=loss)
    if best.span is not None:
        forms += [_Form(w, best.span) for w in ("kind", "op")]
        best = min(forms, key=loss)
    if best != _NOTHING:
        gain = losses[_NOTHING] - losses[best]
        if gain.mean() < gain.std() / np.sqrt(len(gain)):
            best = _NOTHING
    return best, {str(f): float(v.mean()) for f, v in losses.items()}


def _folds(subject: Ints, seed: int) -> Ints:
    """Folds spread evenly over the Visits of each subject, so that none loses them all."""
    rng = np.random.default_rng(seed)
    order = np.lexsort((rng.random(len(subject)), subject))
    start = np.concatenate([[0], np.cumsum(np.bincount(subject))])[:-1]
    fold = np.empty(len(subject), np.intp)
    rank = np.arange(len(subject)) - start[subject[order]]
    fold[order] = (rank + rng.integers(0, _FOLDS, len(start))[subject[order]]) % _FOLDS
    return fold


def _held_out(data: _Data, fold: Ints, form: _Form) -> Floats:
    """Absolute error of each Visit's log value, predicted from the Visits of other folds, in units of its noise."""
    miss = np.zeros(len(data.y))
    for k in range(_FOLDS):
        out = fold == k
        z = data.y - _fit(data, ~out, form).total
        level = _levels(z, data, (~out).astype(float))
        miss[out] = (np.abs(z - level[data.subject]) / data.noise)[out]
    return np.where(np.isfinite(miss), miss, 0.0)


def _levels(z: Floats, data: _Data, weight: Floats) -> Floats:
    """Robust level of each subject, shape (subjects,); NaN where it has no weight."""
    subject, subjects = data.subject, _count(data.subject)
    w, level = weight, np.zeros(subjects)
    for _ in range(4):
        mass = np.bincount(subject, w, subjects)
        with np.errstate(invalid="ignore", divide="ignore"):
            level = np.bincount(subject, w * z, subjects) / mass
        residual = (z - level[subject]) / data.noise
        use = (weight > 0) & np.isfinite(residual)
        if not use.any():
            break
        h = np.ones(len(z))
        h[use] = huber_weights(residual[use])
        w = weight * h
    return level


def _count(code: Ints) -> int:
    return int(code.max()) + 1 if len(code) else 0


def _fit(data: _Data, train: npt.NDArray[np.bool_], form: _Form) -> _Fit:
    """Fit one form to the Visits of ``train``, by turns: weights, then the shared rest of what they leave."""
    n, controls, kinds = len(data.y), data.slow.shape[1], _count(data.kind)
    weights = np.zeros((kinds, controls + 1))
    if form.weights != "none":
        weights[:, :controls] = data.prior
    weights[:, -1] = 1.0
    own = np.zeros(_count(data.subject))
    rest = np.zeros(n)
    weight = train / data.noise**2

    def felt(columns: Floats, part: slice) -> Floats:
        w = weights[data.kind]
        return np.asarray((columns[:, part] * w[:, part]).sum(axis=1) * (1.0 + own[data.subject]))

    for turn in range(1 if form.span is None else 2):
        columns = np.column_stack([data.slow, rest])
        if form.weights in ("pooled", "kind", "op") and (controls or turn):
            weights, own = _fit_weights(data, weight, columns, form.weights)
        if form.span is not None:
            left = data.y - felt(columns, slice(0, controls))
            centred = (
                left - _levels(left - felt(columns, slice(controls, None)), data, train.astype(float))[data.subject]
            )
            gain = weights[data.kind, -1] * (1.0 + own[data.subject])
            use = train & np.isfinite(centred) & (gain > 0.1)
            if use.any():
                share = gain[use] ** 2 * weight[use]
                rest = smooth(data.time[use], centred[use] / gain[use], data.time, form.span, share / share.mean())
    return _Fit(felt(np.column_stack([data.slow, rest]), slice(0, None)), weights, rest, own)


def _fit_weights(data: _Data, base: Floats, columns: Floats, form: str) -> tuple[Floats, Floats]:
    """Weights (kinds, columns) and sensitivities (subjects,) by ridge regression with Huber's loss.

    ``columns`` are d_c and the shared rest. The weights that all kinds share are drawn towards 1 for what all controls
    agree on and 0 for single controls; each kind's deviation and each Op's sensitivity towards zero.
    """
    width, kinds, subjects = columns.shape[1], _count(data.kind), _count(data.subject)
    prior, tightness = np.append(data.prior, 1.0), np.full(width, _PRIOR_COMMON**-2)
    tightness[-1] = 1e6  # the size of the shared rest is in the rest itself
    weights = np.tile(prior, (kinds, 1))
    use, w = base > 0, base
    order = np.argsort(data.kind, kind="stable")
    starts = np.searchsorted(data.kind[order], np.arange(kinds))

    def centred(v: Floats) -> Floats:
        mass = np.maximum(np.bincount(data.subject, w, subjects), 1e-9)
        return np.asarray(v - (np.bincount(data.subject, w * v, subjects) / mass)[data.subject])

    for _ in range(4):
        x = np.column_stack([centred(c) for c in columns.T])
        z = centred(data.y)
        residual = (z - (x * weights[data.kind]).sum(axis=1)) / data.noise
        excess = max(1.4826 * float(np.median(np.abs(residual[use]))), 1e-3)
        w = base.copy()
        w[use] = base[use] * huber_weights(residual[use])
        # Normal equations by kind, without a product of large matrices, which would start threads on a machine that
        # may be measuring.
        xw = (x * w[:, None])[order]
        gram = np.add.reduceat(xw[:, :, None] * x[order][:, None, :], starts)
        right = np.add.reduceat(xw * z[order][:, None], starts)
        weights = _ridge(gram, right, prior, excess**2 * tightness, excess**2 * _PRIOR_KIND**-2, form != "pooled")
    own = np.zeros(subjects)
    if form == "op":
        felt = centred((columns * weights[data.kind]).sum(axis=1))
        own = np.bincount(data.subject, w * felt * (z - felt), subjects) / (
            np.bincount(data.subject, w * felt**2, subjects) + (excess / _PRIOR_OP) ** 2
        )
    return weights, own


def _ridge(gram: Floats, right: Floats, prior: Floats, tight: Floats, tight_kind: float, per_kind: bool) -> Floats:
    """Weights (kinds, columns) from normal equations (kinds, columns, columns) and (kinds, columns).

    With ``per_kind`` each kind has its own weights around shared ones; these are found first, the kinds' own deviations
    eliminated from the equations.
    """
    kinds, width = right.shape
    if not per_kind:
        shared = np.linalg.solve(gram.sum(axis=0) + np.diag(tight), right.sum(axis=0) + tight * prior)
        return np.tile(shared, (kinds, 1))
    # The deviation of a kind given the shared weights m is (G + t I)⁻¹ (r − G m); put into the equations of m, that
    # leaves t (G + t I)⁻¹ G of each G.
    keep = tight_kind * np.linalg.inv(gram + tight_kind * np.eye(width))
    shared = np.linalg.solve(
        np.einsum("kij,kjl->il", keep, gram) + np.diag(tight), np.einsum("kij,kj->i", keep, right) + tight * prior
    )
    left = right - np.einsum("kij,j->ki", gram, shared)
    return np.asarray(shared + np.einsum("kij,kj->ki", keep / tight_kind, left))


def _spread(data: _Data, z: Floats, kinds: list[str]) -> dict[str, float]:
    """Robust standard deviation over repeated Visits, percent, per kind of Op."""
    if not len(z):
        return {}
    count = np.bincount(data.subject)
    rest = z - _levels(z, data, np.ones(len(z)))[data.subject]
    out = {}
    for i, kind in enumerate(kinds):
        use = (data.kind == i) & (count[data.subject] > 1)
        if use.any():
            n = count[data.subject[use]]
            out[kind] = 100 * 1.4826 * float(np.median(np.abs(rest[use]) * np.sqrt(n / (n - 1))))
    return out
