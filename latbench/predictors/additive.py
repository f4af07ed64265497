"""From a sum over Ops to the latency of a network: overhead and scale, calibrated on a few measured networks.

The model is ``latency = overhead + scale × Σ Op latencies``, optionally with a factor per group of Ops that is shrunk
towards 1. It is fitted to relative errors, so that RMSPE is what it minimises, by iteratively re-weighted least squares
with Huber's weights (one bad network must not move it). Forms are compared by leave-one-out cross-validation;
a form with group factors replaces the plain one only where it is clearly better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from latbench.conformal import Conformal
from latbench.errors import NotEnoughDataError
from latbench.op import Op

Floats = npt.NDArray[np.float64]

#: Fewest calibration networks that a fit accepts.
MIN_NETWORKS = 5
#: A form with group factors must lower the leave-one-out RMSPE by this share to be chosen.
MIN_GAIN = 0.1
#: Strengths of shrinkage that are tried, as prior standard deviations of a group's factor around 1.
GROUP_SPREADS = (0.02, 0.05, 0.1)
#: First guess of the model's relative error, and prior standard deviations of scale (around the median ratio) and
#: overhead (in units of the median latency, around 0): weak, they decide where networks are so alike that data cannot.
_NOISE, _SCALE_SPREAD, _OVERHEAD_SPREAD = 0.01, 0.5, 0.5


@dataclass(frozen=True)
class Calibration:
    """``latency_ms = overhead_ms + scale × Σ group factor × Op latency``; ``factors`` are empty in the plain form."""

    overhead_ms: float = 0.0
    scale: float = 1.0
    factors: Mapping[str, float] = field(default_factory=dict)
    form: str = "affine"

    def op_scale(self, op: Op) -> float:
        """What multiplies the latency of an Op."""
        return self.scale * (self.factors.get(group(op), 1.0) if self.factors else 1.0)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; ``Calibration(**d)`` reads them back."""
        return {
            "overhead_ms": self.overhead_ms, "scale": self.scale, "factors": dict(self.factors), "form": self.form,
        }  # fmt: skip


@dataclass(frozen=True)
class CalibrationFit:
    """A calibration, its intervals, and the leave-one-out RMSPE of every form that was tried."""

    calibration: Calibration
    conformal: Conformal
    rmspe: float
    tried: Mapping[str, float]
    networks: int


def group(op: Op) -> str:
    """The group whose factor an Op shares: its kind, kernel size and squeeze-and-excitation."""
    a = op.attributes
    kernel = a.get("kernel", "")
    kernel = kernel[0] if isinstance(kernel, tuple) and kernel else kernel
    return f"{op.kind}{f' k{kernel}' if kernel else ''}{' se' if a.get('se') else ''}"


def calibrate(
    parts: npt.ArrayLike, measured_ms: npt.ArrayLike, groups: Sequence[str] = (), *, forms: str = "auto"
) -> CalibrationFit:
    """Fit to n networks: ``parts`` (n, G) sums of Op latencies by group, ``measured_ms`` (n,).

    ``forms`` is "auto", "affine" or "groups". Raises :class:`NotEnoughDataError` for fewer than
    :data:`MIN_NETWORKS` networks.
    """
    x, y = np.asarray(parts, np.float64), np.asarray(measured_ms, np.float64)
    if len(y) < MIN_NETWORKS:
        raise NotEnoughDataError(f"{len(y)} measured calibration networks; at least {MIN_NETWORKS} are needed")
    spreads: list[float] = [0.0] if forms != "groups" else []
    # A group that never varies, or a lone one, is the scale itself.
    if forms != "affine" and x.shape[1] > 1 and len(y) >= 2 * MIN_NETWORKS:
        spreads += GROUP_SPREADS
    spreads = spreads or [0.0]
    without = [(np.delete(x, i, 0), np.delete(y, i)) for i in range(len(y))]
    loo = {s: np.stack([_predict(_fit(xi, yi, s), x) for xi, yi in without]) for s in spreads}
    scores = {s: float(np.sqrt(np.mean((np.diagonal(p) / y - 1) ** 2))) for s, p in loo.items()}
    best = min(spreads, key=lambda s: scores[s])
    if 0.0 in scores and scores[best] > (1 - MIN_GAIN) * scores[0.0]:
        best = 0.0
    beta = _fit(x, y, best)
    # The scale is that of the whole: the mean factor is 1 over the calibration networks.
    scale = float(x.sum(0) @ beta[1:] / x.sum()) if best else float(beta[1])
    factors = {g: float(f / scale) for g, f in zip(groups, beta[1:], strict=True)} if best else {}
    form = f"affine with group factors within {best:g}" if best else "affine"
    fitted = Calibration(float(beta[0]), scale, factors, form)
    conformal = Conformal.from_fits(y, loo[best], _predict(beta, x))
    tried = {("affine" if not s else f"groups {s:g}"): v for s, v in scores.items()}
    return CalibrationFit(fitted, conformal, scores[best], tried, len(y))


def _predict(beta: Floats, x: Floats) -> Floats:
    return np.asarray(beta[0] + x @ beta[1:], np.float64)


def _fit(x: Floats, y: Floats, spread: float) -> Floats:
    """(1 + G,): overhead and each group's scale. ``spread`` 0 gives all groups one scale."""
    n, g = x.shape
    total = x.sum(1)
    # Unknowns: overhead in units of the median latency, common scale, each group's deviation from it.
    unit = float(np.median(y))
    columns = [np.full(n, unit), total, *(x.T if spread else ())]
    design = np.stack(columns, axis=1) / y[:, None]
    spreads = np.array([_OVERHEAD_SPREAD, _SCALE_SPREAD, *([spread] * g if spread else ())])
    # The prior of the scale is centred on what the data say on the whole, so that it is not pulled to 1 blindly.
    centre = np.array([0.0, float(np.median(y / total)), *([0.0] * g if spread else ())])
    noise = _NOISE
    weights = np.ones(n)
    beta = centre
    for _ in range(20):
        prior = np.diag((noise / spreads) ** 2)
        a = design.T @ (weights[:, None] * design) + prior
        b = design.T @ weights + prior @ centre
        new = np.linalg.solve(a, b)
        residual = np.abs(design @ new - 1)
        # 1.4826 × median is the deviation of normal errors; Huber's 1.345 gives 95 % efficiency on them.
        noise = max(1.4826 * float(np.median(residual)), 1e-4)
        weights = np.minimum(1.0, 1.345 * noise / np.maximum(residual, 1e-12))
        moved = float(np.abs(design @ (new - beta)).max())
        beta = new
        # A millionth of the latency is far below what can be measured.
        if moved < 1e-6:
            break
    scales = beta[1] + beta[2:] if spread else np.full(g, beta[1])
    return np.concatenate([[beta[0] * unit], scales])
