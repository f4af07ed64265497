"""From a sum over Ops to the latency of a network: overhead and scale, calibrated on a few measured networks.

The plain model is ``latency = overhead + scale × Σ Op latencies``. Richer forms are tried: a factor per group of Ops,
shrunk towards 1; a price per byte of weights, because an Op measured in a loop finds its weights in the caches, while
in a network all the others have passed through them since; a price per byte of what Ops read and write, which others
have driven out of the nearest caches; and a price per Op, because one that is measured alone pays for a start of the
runtime that a network pays once (then it is negative), or hides a gap that a network shows.
A price of bytes below 0 makes no sense and is taken as 0. The overhead may be negative (what networks save over Ops
measured alone), but holds near the calibration networks only: :meth:`Calibration.warnings` tells when a sum is far from
theirs. All are fitted to relative errors, so that RMSPE is what they minimise, by iteratively re-weighted least squares
with Huber's weights (one bad network must not move them), and compared by leave-one-out cross-validation; a richer form
replaces the plain one only where it is clearly better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from math import isfinite
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from latbench.conformal import Conformal
from latbench.errors import NotEnoughDataError, PredictorError
from latbench.op import Op
from latbench.predictors.features import kernel_kind

Floats = npt.NDArray[np.float64]

#: Fewest calibration networks that a fit accepts.
MIN_NETWORKS = 5
#: The form of a sum that is taken as it is, and what is said of it where measured networks were too few for another.
PLAIN_SUM = "plain sum"
FEW = f"the plain sum over Ops, with a wide interval: fewer than {MIN_NETWORKS} networks calibrate it"
#: A richer form must lower the leave-one-out RMSPE by this share to be chosen; by less where more than so many networks
#: tell, as a parameter that means nothing lowers it by its share of their number at most.
MIN_GAIN, MANY = 0.1, 20
#: A network whose sum over Ops is this many times below or above those of the calibration networks is extrapolated.
FAR = 2.0
#: Strengths of shrinkage that are tried, as prior standard deviations of a group's factor around 1.
GROUP_SPREADS = (0.02, 0.05, 0.1)
#: First guess of the model's relative error, and prior standard deviations of scale (around the median ratio), and of
#: overhead, and the prices of all weights, all Ops and all tensors (in units of the median latency, around 0): weak,
#: they decide where networks are so alike that data cannot.
_NOISE, _SCALE_SPREAD, _OVERHEAD_SPREAD = 0.01, 0.5, 0.5
_PRICE_SPREADS = np.array([0.5, 1.0, 0.5])
_MEGABYTE = 1e6
#: No Op is taken to add less to a network than this share of its scaled latency.
_LEAST_SHARE = 0.02


def number(value: Any, name: str) -> float:
    """A finite number of a saved model. Raises :class:`ValueError` naming the key."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not isfinite(value):
        raise ValueError(f"{name} is a number, not {value!r}")
    return float(value)


@dataclass(frozen=True)
class Calibration:
    """``latency_ms = overhead_ms + Σ (scale × group factor × Op latency + ms_per_megabyte × Op weights + ms_per_op +
    ms_per_tensor_megabyte × Op inputs and outputs)``.

    ``factors`` are empty and all prices 0 in the plain form; a megabyte is 10⁶ bytes. ``sums_ms`` holds
    the smallest and largest sum over Ops, calibrated, of the networks that it was fitted to. Of another metric than
    latency all of this is in that one's ``unit``.
    """

    overhead_ms: float = 0.0
    scale: float = 1.0
    factors: Mapping[str, float] = field(default_factory=dict)
    form: str = "affine"
    ms_per_megabyte: float = 0.0
    sums_ms: tuple[float, float] | None = None
    ms_per_op: float = 0.0
    unit: str = "ms"
    ms_per_tensor_megabyte: float = 0.0

    def __post_init__(self) -> None:
        """Plain JSON becomes what is declared. Raises :class:`TypeError` and :class:`ValueError` for other things."""
        for name in ("overhead_ms", "scale", "ms_per_megabyte", "ms_per_op", "ms_per_tensor_megabyte"):
            object.__setattr__(self, name, number(getattr(self, name), name))
        object.__setattr__(self, "factors", {k: number(v, f"factor {k}") for k, v in dict(self.factors).items()})
        if not isinstance(self.form, str) or not isinstance(self.unit, str):
            raise TypeError(f"form and unit are texts, not {self.form!r} and {self.unit!r}")
        if self.sums_ms is not None:  # JSON has lists only
            low, high = self.sums_ms
            object.__setattr__(self, "sums_ms", (number(low, "sums_ms"), number(high, "sums_ms")))

    def op_ms(self, op: Op, latency_ms: float) -> float:
        """What an Op of this latency adds to a network, in milliseconds."""
        factor = self._factor(op) if self.factors else 1.0
        price = self.ms_per_megabyte * megabytes(op) if self.ms_per_megabyte else 0.0
        if self.ms_per_tensor_megabyte:
            price += self.ms_per_tensor_megabyte * tensor_megabytes(op)
        scaled = self.scale * factor * latency_ms
        return max(scaled + price + self.ms_per_op, _LEAST_SHARE * scaled)

    def _factor(self, op: Op) -> float:
        # Calibrations that were saved before units went by their kernels' kind have them by what is fused in.
        found = self.factors.get(group(op))
        return self.factors.get(_as_written(op), 1.0) if found is None else found

    def warnings(self, sum_ms: float) -> tuple[str, ...]:
        """What to say of a network whose calibrated Ops add up to ``sum_ms``: far from the calibration networks or not.

        Raises :class:`PredictorError` where the overhead leaves no time at all.
        """
        near = ""
        if self.sums_ms is not None:
            low, high = self.sums_ms
            near = f"calibrated on networks whose Ops add up to {low:.4g} to {high:.4g} {self.unit}"
        if sum_ms + self.overhead_ms <= 0:
            raise PredictorError(
                f"the network's Ops add up to {sum_ms:.4g} {self.unit}, and an overhead of {self.overhead_ms:.4g} "
                f"{self.unit} leaves "
                f"nothing of them; {near or 'the calibration does not fit it'}: fit to networks like this one"
            )
        few = (FEW,) if self.form == PLAIN_SUM and self.sums_ms is not None else ()
        if self.sums_ms is None or low / FAR <= sum_ms <= high * FAR:
            return few
        return (*few, f"extrapolated: the network's Ops add up to {sum_ms:.4g} {self.unit}, {near}")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; ``Calibration(**d)`` reads them back."""
        d = asdict(self)
        return {**d, "sums_ms": list(self.sums_ms) if self.sums_ms else None}


@dataclass(frozen=True)
class CalibrationFit:
    """A calibration, its intervals, and the leave-one-out RMSPE of every form that was tried.

    ``estimated`` are the intervals for other sums over the same networks, None where none were given. ``off`` (n,) are
    the chosen form's leave-one-out errors, predicted / measured − 1.
    """

    calibration: Calibration
    conformal: Conformal
    rmspe: float
    tried: Mapping[str, float]
    networks: int
    estimated: Conformal | None = None
    off: Floats = field(default_factory=lambda: np.zeros(0))


def group(op: Op) -> str:
    """The group whose factor an Op shares: of a unit its kernel's kind, else kind, kernel size and
    squeeze-and-excitation."""
    return kernel_kind(op) if op.level == "unit" else _as_written(op)


def _as_written(op: Op) -> str:
    a = op.attributes
    kernel = a.get("kernel", "")
    kernel = kernel[0] if isinstance(kernel, tuple) and kernel else kernel
    return f"{op.kind}{f' k{kernel}' if kernel else ''}{' se' if a.get('se') else ''}"


def megabytes(op: Op) -> float:
    """Weights of an Op in 10⁶ bytes."""
    return op.weight_bytes / _MEGABYTE


def tensor_megabytes(op: Op) -> float:
    """What an Op reads and writes besides its weights in 10⁶ bytes."""
    return op.activation_bytes / _MEGABYTE


def calibrate(
    parts: npt.ArrayLike,
    measured_ms: npt.ArrayLike,
    groups: Sequence[str] = (),
    work: npt.ArrayLike | None = None,
    *,
    least_ms: float = 0.0,
    forms: str = "auto",
    estimated: npt.ArrayLike | None = None,
) -> CalibrationFit:
    """Fit to n networks.

    ``parts`` are sums of Op latencies by group (n, G), ``measured_ms`` is (n,), ``work`` megabytes of weights and
    number of Ops (n, 2), with megabytes of their inputs and outputs (n, 3), ``least_ms`` the smallest latency of an Op:
    a price per Op never eats it up. ``forms`` is "auto", "affine", "groups", "weights" or "ops". ``estimated`` (n, G)
    are the same sums of estimated Op latencies: the fits that left a network out are asked for it with them too, so
    that intervals for estimated Ops are jackknife+ like the others. Raises :class:`NotEnoughDataError` for fewer than
    :data:`MIN_NETWORKS` networks.
    """
    x, y = np.asarray(parts, np.float64), np.asarray(measured_ms, np.float64)
    w = np.zeros((len(y), 0)) if work is None else np.asarray(work, np.float64)
    w = np.pad(w, ((0, 0), (0, 3 - w.shape[1])))
    if len(y) < MIN_NETWORKS:
        raise NotEnoughDataError(f"{len(y)} measured calibration networks; at least {MIN_NETWORKS} are needed")
    betas = {f: _leave_one_out(x, w, y, f, least_ms) for f in _candidates(x, w, y, forms)}
    tried = {f: _predict_each(b, x, w) for f, b in betas.items()}
    scores = {f: float(np.sqrt(np.mean((np.diagonal(p) / y - 1) ** 2))) for f, p in tried.items()}
    off = {f: np.diagonal(p) / y - 1 for f, p in tried.items()}
    merits = {f: clipped_rms(o, off.get(_AFFINE, o)) for f, o in off.items()}
    best = min(merits, key=merits.__getitem__)
    if _AFFINE in merits and not clearly_better(off[best], off[_AFFINE], MIN_GAIN):
        best = _AFFINE
    beta = fit_linear(x, w, y, best, least_ms)
    scales = beta[1:-3]
    # The scale is that of the whole: the mean factor is 1 over the calibration networks.
    scale = float(x.sum(0) @ scales / x.sum()) if best.spread else float(scales[0])
    factors = {g: float(f / scale) for g, f in zip(groups, scales, strict=True)} if best.spread else {}
    sums = _predict(beta, x, w) - beta[0]
    fitted = Calibration(
        float(beta[0]), scale, factors, str(best), float(beta[-3]), (float(sums.min()), float(sums.max())),
        float(beta[-2]), ms_per_tensor_megabyte=float(beta[-1]),
    )  # fmt: skip
    conformal = Conformal.from_fits(y, tried[best], _predict(beta, x, w))
    other = None
    if estimated is not None:
        z = np.asarray(estimated, np.float64)
        other = Conformal.from_fits(y, _predict_each(betas[best], z, w), _predict(beta, z, w))
    names = {str(f): v for f, v in scores.items()}
    return CalibrationFit(fitted, conformal, scores[best], names, len(y), other, off[best])


def clipped_rms(off: Floats, plain: Floats) -> float:
    """Root mean square of relative errors (n,), none counted as more than four of the ``plain`` form's deviations
    (1.4826 × their median): a network that was disturbed while it was measured must not choose the form."""
    limit = 4 * 1.4826 * float(np.median(np.abs(plain)))
    return float(np.sqrt(np.mean(np.minimum(np.abs(off), limit) ** 2)))


def clearly_better(off: Floats, plain: Floats, gain: float) -> bool:
    """Whether relative errors (n,) are so much smaller than the ``plain`` form's, both clipped as in
    :func:`clipped_rms`, that a richer form is worth it: by the share ``gain``, or, of more than :data:`MANY` networks,
    by a share that falls with their number as the error of what they tell."""
    needed = gain * min(1.0, MANY / len(off))
    return clipped_rms(off, plain) < (1 - needed) * clipped_rms(plain, plain)


def plain_sum(
    parts: npt.ArrayLike, measured_ms: npt.ArrayLike, op_error: float, estimated: npt.ArrayLike, estimated_error: float
) -> CalibrationFit:
    """For fewer networks than a calibration needs: their Ops' sum as it is, scale 1 and overhead 0.

    ``parts`` and ``estimated`` (n, G) are as in :func:`calibrate`. The intervals take how far the sums were off the n
    measured networks as normal with mean 0 and a deviation known from n values only, so that they follow Student's t
    with n degrees of freedom (95 % quantile, hence 90 % both ways); relative ``op_error`` and ``estimated_error`` of
    the Ops come on top, as if all were off in the same direction. Raises :class:`NotEnoughDataError` without networks.
    """
    from scipy.stats import t

    y = np.asarray(measured_ms, np.float64)
    if not len(y):
        raise NotEnoughDataError("no measured calibration networks; at least 1 is needed")
    sums = np.asarray(parts, np.float64).sum(1)

    def intervals(by: Floats, error: float) -> Conformal:
        spread = float(np.sqrt(np.mean((y / by - 1) ** 2)) * t.ppf(0.95, len(y)))
        return Conformal(np.full(len(y), np.hypot(spread, error)), np.ones((len(y), len(y))))

    rmspe = float(np.sqrt(np.mean((sums / y - 1) ** 2)))
    fitted = Calibration(form=PLAIN_SUM, sums_ms=(float(sums.min()), float(sums.max())))
    other = intervals(np.asarray(estimated, np.float64).sum(1), estimated_error)
    return CalibrationFit(fitted, intervals(sums, op_error), rmspe, {PLAIN_SUM: rmspe}, len(y), other)


class Form(NamedTuple):
    """Prior standard deviation of group factors (0: none), and whether weights, Ops and tensors have a price."""

    spread: float = 0.0
    weights: bool = False
    ops: bool = False
    tensors: bool = False

    @property
    def priced(self) -> npt.NDArray[np.bool_]:
        """(3,) in the order of the work's columns."""
        return np.array([self.weights, self.ops, self.tensors])

    def __str__(self) -> str:
        prices = " and ".join(["of weights"] * self.weights + ["of tensors"] * self.tensors + ["of Ops"] * self.ops)
        if prices:
            return f"affine with a price {prices}"
        return f"affine with group factors within {self.spread:g}" if self.spread else "affine"


_AFFINE = Form()


def _candidates(x: Floats, w: Floats, y: Floats, forms: str) -> list[Form]:
    """The forms to try: a lone group is the scale itself, work that never varies is the overhead."""
    enough = len(y) >= 2 * MIN_NETWORKS
    varies = enough & (np.ptp(w, axis=0) > 0)
    found = [_AFFINE] if forms in ("auto", "affine") else []
    if forms in ("auto", "groups") and x.shape[1] > 1 and enough:
        found += [Form(s) for s in GROUP_SPREADS]
    if forms in ("auto", "weights") and varies[0]:
        found.append(Form(weights=True))
    if forms in ("auto", "ops") and varies[1]:
        found.append(Form(ops=True))
    if forms == "auto":
        both = product((False, True), repeat=3)
        more = [Form(0.0, *prices) for prices in both if sum(prices) > 1 or prices == (False, False, True)]
        found += [f for f in more if varies[f.priced].all()]
    return found or [_AFFINE]


def _leave_one_out(x: Floats, w: Floats, y: Floats, form: Form, least_ms: float) -> Floats:
    """(n, G + 4): the fit without network i."""
    without = ((np.delete(x, i, 0), np.delete(w, i, 0), np.delete(y, i)) for i in range(len(y)))
    return np.stack([fit_linear(*rest, form, least_ms) for rest in without])


def _predict_each(betas: Floats, x: Floats, w: Floats) -> Floats:
    """(n, n): predictions of all networks by each fit."""
    return np.stack([_predict(beta, x, w) for beta in betas])


def _predict(beta: Floats, x: Floats, w: Floats) -> Floats:
    return np.asarray(beta[0] + x @ beta[1:-3] + w @ beta[-3:], np.float64)


def fit_linear(x: Floats, w: Floats, y: Floats, form: Form, least_ms: float, ms_per_op: float = 0.0) -> Floats:
    """(G + 4,): overhead, each group's scale > 0, the price ≥ 0 of a megabyte of weights, the price of an Op, the price
    ≥ 0 of a megabyte of tensors. Without a spread all groups have one scale. ``ms_per_op`` is an Op's price where the
    form leaves it out."""
    n, g = x.shape
    total = x.sum(1)
    grouped = bool(form.spread)
    priced = form.priced
    # Unknowns: overhead in units of the median latency, common scale, each group's deviation from it, and the price of
    # a typical network's weights and of its Ops in units of the median latency.
    unit = float(np.median(y))
    typical = np.where(np.median(w, axis=0) > 0, np.median(w, axis=0), 1.0)
    columns = [np.full(n, unit), total, *(x.T if grouped else ()), *(w / typical * unit).T[priced]]
    design = np.stack(columns, axis=1) / y[:, None]
    spreads = np.concatenate(
        [
            [_OVERHEAD_SPREAD, _SCALE_SPREAD],
            [form.spread] * (g * grouped),
            _PRICE_SPREADS[priced],
        ]
    )
    # The prior of the scale is centred on what the data say on the whole, so that it is not pulled to 1 blindly.
    centre = np.zeros(len(spreads))
    centre[1] = float(np.median(y / total))
    noise: float = _NOISE
    robust: Floats = np.ones(n)
    beta: Floats = centre
    target = 1 - ms_per_op * w[:, 1] / y
    for _ in range(20):
        prior = np.diag((noise / spreads) ** 2)
        a = design.T @ (robust[:, None] * design) + prior
        b = design.T @ (robust * target) + prior @ centre
        new: Floats = np.asarray(np.linalg.solve(a, b), np.float64)
        residual = np.abs(design @ new - target)
        # 1.4826 × median is the deviation of normal errors; Huber's 1.345 gives 95 % efficiency on them.
        noise = max(1.4826 * float(np.median(residual)), 1e-4)
        robust = np.minimum(1.0, 1.345 * noise / np.maximum(residual, 1e-12))
        moved = float(np.abs(design @ (new - beta)).max())
        beta = new
        # A millionth of the latency is far below what can be measured.
        if moved < 1e-6:
            break
    scales = beta[1] + beta[2 : 2 + g] if grouped else np.full(g, beta[1])
    prices = np.array([0.0, ms_per_op, 0.0])
    prices[priced] = beta[len(beta) - priced.sum() :] * unit / typical[priced]
    if prices[0] < 0 or prices[2] < 0:
        kept = form._replace(weights=form.weights and prices[0] >= 0, tensors=form.tensors and prices[2] >= 0)
        return fit_linear(x, w, y, kept, least_ms, ms_per_op)
    least = (_LEAST_SHARE - 1) * max(float(scales.min()), 0.0) * least_ms
    if prices[1] < 1.01 * least:
        return fit_linear(x, w, y, form._replace(ops=False), least_ms, least)
    if (scales <= 0).any():
        # An overhead that explains everything: an Op still takes time, so only the common ratio is believed.
        return np.concatenate([[0.0], np.full(g, centre[1]), np.zeros(3)])
    return np.concatenate([[beta[0] * unit], scales, prices])
