"""Smoothing of values that come in time order: robust to outliers, and sharp where the level jumps.

:func:`smooth` draws the slow part out of a noisy series, :func:`choose_span` finds by cross-validation how slow it is.
Drift correction uses them on control Visits; :class:`TimeModel` uses them where there are no control Visits at all and
each subject was measured once, as in published tables whose rows come in the order of measurement.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = "npt.NDArray[np.float64]"
Regressor: TypeAlias = "Callable[[Floats, Floats], Callable[[Floats], Floats]]"

#: Spans that cross-validation tries, in observations; infinite means a constant.
SPANS: tuple[float, ...] = (2, 4, 16, 64, float("inf"))
_KNOTS = 20_000
_HUBER = 1.345


def smooth(time: Floats, value: Floats, at: Floats, span: float, weight: Floats | None = None) -> Floats:
    """The slow part of ``value``, shape (n,), at the times ``at``.

    A random walk seen through noise: penalised least squares on the increments, with Huber's loss on the residuals
    (an outlier counts like a small deviation) and on the increments (a jump costs its height, not its square, so it
    stays a jump). ``span`` is the number of neighbouring observations over which it averages, for evenly spaced ones;
    a gap in time loosens the tie across it in proportion. Infinite span gives a robust mean.
    """
    from scipy.linalg import solveh_banded

    w = np.ones(len(value)) if weight is None else weight
    order = np.argsort(time, kind="stable")
    t, z, w = time[order], value[order], w[order]
    # Neighbours share a knot where there are more observations than the answer could resolve.
    knot = np.arange(len(t)) * min(_KNOTS, len(t)) // len(t)
    knots = int(knot[-1]) + 1
    where = np.bincount(knot, t) / np.bincount(knot)
    level = float(np.median(z))
    x = np.full(knots, level)
    if not np.isfinite(span) or knots == 1:
        for _ in range(8):
            h = w * huber_weights(z - level)
            level = float(np.average(z, weights=h)) if h.sum() > 0 else level
        return np.full(len(at), level)
    gap = np.diff(where)
    usual = float(np.median(gap[gap > 0])) if (gap > 0).any() else 1.0
    # m² = (noise variance) / (variance of an increment between neighbouring observations).
    stiff = (span**2 / (len(t) / knots)) / np.maximum(gap / usual, 1e-3)
    ease = np.ones(len(gap))
    residual = z - np.interp(t, where, _local_medians(z, knot, knots, span))
    for _ in range(10):
        h = w * huber_weights(residual)
        tie = stiff * ease
        bands = np.zeros((2, knots))
        bands[0, 1:] = -tie
        bands[1] = np.bincount(knot, h, knots) + 1e-12
        bands[1, :-1] += tie
        bands[1, 1:] += tie
        before, x = x, solveh_banded(bands, np.bincount(knot, h * (z - level), knots)) + level
        residual = z - np.interp(t, where, x)
        if np.abs(x - before).max() < 1e-3 * np.abs(residual).mean():
            break
        ease = huber_weights(np.diff(x) * np.sqrt(stiff), 3.0)
    return np.asarray(np.interp(at, where, x))


def choose_span(
    time: Floats, value: Floats, spans: Sequence[float] = SPANS, seed: int = 0, folds: int = 5
) -> tuple[float, dict[float, float]]:
    """The span that predicts held-out observations best, and the mean absolute error of each span tried."""
    n = len(value)
    if n < 2 * folds:
        return float("inf"), {}
    fold = np.random.default_rng(seed).permutation(n) % folds
    errors: dict[float, float] = {}
    for span in spans:
        if np.isfinite(span) and span > n:
            continue
        miss = np.empty(n)
        for k in range(folds):
            out = fold == k
            miss[out] = value[out] - smooth(time[~out], value[~out], time[out], span)
        errors[span] = float(np.abs(miss).mean())
    return min(errors, key=lambda s: (errors[s], -s)), errors


def huber_weights(residual: Floats, k: float = _HUBER) -> Floats:
    """Huber's weights: 1 within k robust standard deviations, k/|u| beyond."""
    scale = 1.4826 * float(np.median(np.abs(residual)))
    size = np.abs(residual) / max(scale, 1e-12)
    return np.asarray(np.minimum(1.0, k / np.maximum(size, 1e-12)))


def _local_medians(z: Floats, knot: npt.NDArray[np.intp], knots: int, span: float) -> Floats:
    """A start that no outlier has touched: running medians over about one span, one per knot."""
    half = int(np.clip(span, 2, max(2, len(z) // 4)))
    padded = np.pad(z, half, mode="reflect") if len(z) > half else np.pad(z, half, mode="edge")
    medians = np.median(np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1), axis=1)
    return np.asarray(np.bincount(knot, medians, knots) / np.bincount(knot, minlength=knots))


@dataclass(frozen=True)
class TimeModel:
    """log value = f(features) + g(time): a regression times a smooth function of time.

    Made by :meth:`fit`. Its numbers at times between the fitted ones are *time-interpolated*: they lean on neighbours
    in time as well as on features, and say nothing of how well features alone predict.
    """

    regress: Callable[[Floats], Floats]
    time: Floats
    rest: Floats
    span: float

    @classmethod
    def fit(
        cls, features: Floats, value: Floats, time: Floats, regressor: Regressor, span: float, rounds: int = 4
    ) -> TimeModel:
        """Fit by turns: the regression to what time leaves, the smooth function to what the regression leaves.

        ``features`` has shape (n, d), ``value`` (n,) positive, ``time`` (n,). ``regressor(X, y)`` gives a function
        of X.
        """
        y = np.log(value)
        drift = np.zeros(len(y))
        regress = regressor(features, y)
        for _ in range(rounds):
            rest = y - regress(features)
            drift = smooth(time, rest, time, span)
            regress = regressor(features, y - drift)
        return cls(regress, time, y - regress(features), span)

    def predict(self, features: Floats, time: Floats | None = None) -> Floats:
        """Values, shape (n,); without ``time`` at the average over time."""
        y = self.regress(features)
        if time is None:
            return np.asarray(np.exp(y + np.median(self.rest)))
        return np.asarray(np.exp(y + smooth(self.time, self.rest, time, self.span)))
