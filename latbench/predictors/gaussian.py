"""A Gaussian process on what a simple form leaves, with a length scale a feature: which features matter is learnt.

Matérn 5/2 covariance. Length scales, variance and noise maximise the marginal likelihood under weak log-normal priors
(Rasmussen and Williams 2006, equations 5.8 and 5.9), on a random part of the Ops where these are many; the prior of a
length scale says that a feature matters little. Ops that are off by more than the noise allows are weighed down, as a
Visit that something disturbed would be.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

#: Ops that the hyper-parameters are fitted to at most, and steps of the optimiser.
_MOST, _STEPS = 400, 30
#: Rows that the process itself stands on at most: its cost grows with their cube.
MOST_ROWS = 1000
#: Centre and deviation of the priors' logarithms: length scales in standard deviations of their feature, noise as the
#: deviation of logarithms of latencies.
_LENGTH, _LENGTH_SPREAD, _NOISE, _NOISE_SPREAD = 4.0, 1.0, 0.03, 0.75
#: Residuals of more than so many deviations count less.
_HUBER = 2.0


@dataclass(frozen=True)
class Hyper:
    """Length scales (d,), and the variances of the process and of the noise."""

    lengths: Floats
    variance: float
    noise: float


def covariance(a: Floats, b: Floats, lengths: Floats) -> Floats:
    """Matérn 5/2 with unit variance between rows (n, d), or stacks of them, and (m, d)."""
    d = _distance(a / lengths, b / lengths)
    return np.asarray((1 + d + d**2 / 3) * np.exp(-d))


def _distance(a: Floats, b: Floats) -> Floats:
    d2 = (a**2).sum(-1)[..., None] + (b**2).sum(1) - 2 * a @ b.T
    return np.asarray(np.sqrt(5 * np.maximum(d2, 0.0) + 1e-12))


def fit_hyper(z: Floats, rest: Floats, own: Floats, seed: int = 0) -> Hyper:
    """Hyper-parameters for n standardised rows (n, d) and what is left over of them (n,); ``own`` (n,) are the
    variances of each row's own noise, beside that of all."""
    from scipy.optimize import minimize

    d = z.shape[1]
    part = np.random.default_rng(seed).permutation(len(rest))[:_MOST]
    spread = max(float(rest.var()), 1e-5)
    start = np.concatenate([np.full(d, np.log(_LENGTH)), [np.log(spread), 2 * np.log(_NOISE)]])
    bounds = [(-1.0, 5.0)] * d + [(-12.0, 4.0), (-11.0, 0.0)]
    found = minimize(
        _negative_evidence, start, args=(z[part], rest[part], own[part]), jac=True, method="L-BFGS-B", bounds=bounds,
        options={"maxiter": _STEPS},
    ).x  # fmt: skip
    return Hyper(np.exp(found[:d]), float(np.exp(found[d])), float(np.exp(found[d + 1])))


def _negative_evidence(theta: Floats, z: Floats, rest: Floats, own: Floats) -> tuple[float, Floats]:
    """Minus the log posterior of log hyper-parameters (d + 2,), and its gradient."""
    d = z.shape[1]
    scaled = z / np.exp(theta[:d])
    variance, noise = np.exp(theta[d]), np.exp(theta[d + 1])
    distance = _distance(scaled, scaled)
    decay = np.exp(-distance)
    k = variance * (1 + distance + distance**2 / 3) * decay
    inverse = np.linalg.inv(k + np.diag(noise + own))
    alpha = inverse @ rest
    _, log_det = np.linalg.slogdet(inverse)
    value = 0.5 * float(rest @ alpha) - 0.5 * float(log_det)
    slope = 0.5 * (inverse - np.outer(alpha, alpha))
    along = slope * (variance * 5 / 3 * (1 + distance) * decay)
    gradient = np.empty(d + 2)
    gradient[:d] = 2 * (along.sum(1) @ scaled**2 - np.einsum("ij,ij->j", scaled, along @ scaled))
    gradient[d] = (slope * k).sum()
    gradient[d + 1] = noise * np.trace(slope)
    for at, centre, width in (
        (slice(d), np.log(_LENGTH), _LENGTH_SPREAD),
        (d + 1, 2 * np.log(_NOISE), 2 * _NOISE_SPREAD),
    ):
        off = (theta[at] - centre) / width
        value += 0.5 * float(np.sum(off**2))
        gradient[at] += off / width
    return value, gradient


def means(a: Floats, b: Floats, lengths: Floats, alpha: Floats) -> Floats:
    """(n,) means of the process at rows (n, d): ``covariance(a, b, lengths) @ alpha`` row by row, so that each is the
    same to the last bit whatever the others are."""
    # A stack of products of one row each.
    return np.asarray((covariance(np.ascontiguousarray(a)[:, None, :], b, lengths) @ alpha)[:, 0])


def weights(z: Floats, rest: Floats, own: Floats, h: Hyper) -> Floats:
    """(n,) coefficients of the covariances with n rows: ``covariance(new, z) @ weights`` is the process's mean. ``own``
    as in :func:`fit_hyper`; see :func:`means`."""
    k = h.variance * covariance(z, z, h.lengths)
    trust = np.ones(len(rest))
    for _ in range(3):
        alpha = np.linalg.solve(k + np.diag(h.noise / trust + own), rest)
        off = np.abs(rest - k @ alpha) / np.sqrt(1 + own / h.noise)
        limit = _HUBER * max(1.4826 * float(np.median(off)), 1e-4)
        trust = np.minimum(1.0, limit / np.maximum(off, 1e-12))
    return np.asarray(h.variance * alpha)
