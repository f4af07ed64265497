"""The model behind drift correction: its forms, how one is fitted, and how the best is chosen.

:mod:`latbench.drift` says what the model is and what it is for. Here a *form* is one choice of its parts, and a fit one
form fitted to some of the Visits, so that the others can judge it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from latbench.timeline import Floats, huber_weights, smooth

Ints = npt.NDArray[np.intp]

#: Spans of the shared rest g(t) that are tried, in Visits.
_REST_SPANS = (8.0, 32.0, 128.0)
#: Standard deviations of the priors: of weights that all kinds share, of a kind's deviation, of an Op's sensitivity.
_PRIOR_COMMON, _PRIOR_KIND, _PRIOR_OP = 0.5, 0.3, 0.3
_FOLDS = 5
#: How many Visits' worth the noise of all Ops weighs against an Op's own.
_PRIOR_VISITS = 4.0
#: Repeated Visits below which nothing is learnt.
_MIN_VISITS = 20


class Data(NamedTuple):
    """What a form is fitted to: arrays with one element per Visit of an Op or network."""

    time: Floats
    y: Floats  # log values of Ops and networks, not of controls
    subject: Ints
    kind: Ints  # per Visit
    slow: Floats  # (visits, controls + 1): d_c at each Visit, relative to the reference state; none without controls
    prior: Floats  # (controls + 1): what weights are drawn towards
    noise: Floats  # standard deviation of each Visit's log value


class Form(NamedTuple):
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
        return "none" if self == NOTHING else names[self.weights] + rest


class Fit(NamedTuple):
    """What fitting a form gives."""

    total: Floats  # log-slowdown of every Visit
    weights: Floats  # (kinds, columns + 1): those of d_c, and last the gain on the shared rest
    rest: Floats  # g at every Visit
    own: Floats  # (subjects,): b


NOTHING = Form("none", None)


def noise_of(data: Data) -> Floats:
    """Standard deviation of each Visit's log value: its Op's own, drawn towards that of all Ops."""
    if not len(data.y):
        return np.ones(0)
    first = fit_form(data, np.ones(len(data.y), bool), Form("agreed", _REST_SPANS[1]))
    z = data.y - first.total
    residual = z - levels(z, data, np.ones(len(z)))[data.subject]
    count = np.bincount(data.subject)
    many = count[data.subject] > 1
    if not many.any():
        return np.ones(len(z))
    usual = max(1.4826 * float(np.median(np.abs(residual[many]))), 1e-6)
    # Winsorised, so that one disturbed Visit does not make an Op look noisy.
    square = np.bincount(data.subject, np.minimum(np.abs(residual), 3 * usual) ** 2)
    own = np.sqrt((_PRIOR_VISITS * usual**2 + square) / (_PRIOR_VISITS + np.maximum(count - 1, 0)))
    return np.asarray(own[data.subject])


def select(data: Data, seed: int) -> tuple[Form, dict[str, float]]:
    """The form that predicts held-out Visits best; nothing at all unless it wins by more than two standard errors."""
    controls = bool(data.slow.any())
    count = np.bincount(data.subject)
    repeated = count[data.subject] > 1
    if repeated.sum() < _MIN_VISITS:
        # Too few repeated Visits to learn from: what all controls agree on is taken at its word.
        return (Form("agreed", None) if controls else NOTHING), {}
    fold = _folds(data.subject, seed)
    losses: dict[Form, Floats] = {}

    def loss(form: Form) -> float:
        if form not in losses:
            losses[form] = _held_out(data, fold, form)[repeated]
        return float(losses[form].mean())

    forms = [NOTHING]
    if controls:
        forms += [Form(w, None) for w in ("agreed", "pooled", "kind", "op")]
    best = min(forms, key=loss)
    spans = [x for x in _REST_SPANS if x < len(data.y)]
    forms += [Form(w, x) for w in {best.weights: 0, "none": 0} for x in spans]
    best = min(forms, key=loss)
    if best.span is not None:
        forms += [Form(w, best.span) for w in ("kind", "op")]
        best = min(forms, key=loss)
    if best != NOTHING:
        gain = losses[NOTHING] - losses[best]
        # Two standard errors, for Visits close in time share their luck.
        if gain.mean() < 2.0 * gain.std() / np.sqrt(len(gain)):
            best = NOTHING
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


def _held_out(data: Data, fold: Ints, form: Form) -> Floats:
    """Absolute error of each Visit's log value, predicted from the Visits of other folds, in units of its noise."""
    miss = np.zeros(len(data.y))
    for k in range(_FOLDS):
        out = fold == k
        z = data.y - fit_form(data, ~out, form).total
        level = levels(z, data, (~out).astype(float))
        miss[out] = (np.abs(z - level[data.subject]) / data.noise)[out]
    return np.where(np.isfinite(miss), miss, 0.0)


def levels(z: Floats, data: Data, weight: Floats) -> Floats:
    """Robust level of each subject, shape (subjects,); NaN where it has no weight."""
    subject, subjects = data.subject, count_of(data.subject)
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


def count_of(code: Ints) -> int:
    """How many subjects or kinds a code numbers."""
    return int(code.max()) + 1 if len(code) else 0


def fit_form(data: Data, train: npt.NDArray[np.bool_], form: Form) -> Fit:
    """Fit one form to the Visits of ``train``, by turns: weights, then the shared rest of what they leave."""
    n, controls, kinds = len(data.y), data.slow.shape[1], count_of(data.kind)
    weights = np.zeros((kinds, controls + 1))
    if form.weights != "none":
        weights[:, :controls] = data.prior
    weights[:, -1] = 1.0
    own = np.zeros(count_of(data.subject))
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
                left - levels(left - felt(columns, slice(controls, None)), data, train.astype(float))[data.subject]
            )
            gain = weights[data.kind, -1] * (1.0 + own[data.subject])
            use = train & np.isfinite(centred) & (gain > 0.1)
            if use.any():
                share = gain[use] ** 2 * weight[use]
                rest = smooth(data.time[use], centred[use] / gain[use], data.time, form.span, share / share.mean())
    return Fit(felt(np.column_stack([data.slow, rest]), slice(0, None)), weights, rest, own)


def _fit_weights(data: Data, base: Floats, columns: Floats, form: str) -> tuple[Floats, Floats]:
    """Weights (kinds, columns) and sensitivities (subjects,) by ridge regression with Huber's loss.

    ``columns`` are d_c and the shared rest. The weights that all kinds share are drawn towards 1 for what all controls
    agree on and 0 for single controls; each kind's deviation and each Op's sensitivity towards zero.
    """
    width, kinds, subjects = columns.shape[1], count_of(data.kind), count_of(data.subject)
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
