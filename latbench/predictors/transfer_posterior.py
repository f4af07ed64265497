"""A new device after its few measurements: the posterior of the priors that other devices gave.

Each row of variances that was learnt from a source (:mod:`latbench.predictors.transfer_prior`), and each of those that
believe no source at all, is a Gaussian process. They are fitted to the same measurements and mixed by how well each
predicts a measurement from the others (leave-one-out predictive density: Rasmussen and Williams 2006, equation 5.10),
so that a device that is like no source ends where a fit to its own measurements would. Sources and own costs add in
milliseconds and noise multiplies: the logarithm is linearised about the posterior, again and again (Gauss-Newton's
method; Rasmussen and Williams, section 3.4, for the idea), so that a device may be as far off the mean of others as a
launch-bound one is off one that computes. Noise is Student's t with
:data:`NU` degrees of freedom, by reweighting: one bad measurement among ten must not bend the rest.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from latbench.predictors.transfer_prior import Parts, Prior

Floats = npt.NDArray[np.float64]

#: Degrees of freedom of the noise, and how often its weights are found anew.
NU, _ITERATIONS = 4.0, 5
#: Parts that multiply, and parts that add to the mean in milliseconds: the log of 1 + u, u being what they add as a
#: share of it; no less than this share of the mean is left.
REST, ADDED, _LEAST_SHARE = [0, 1, 4], [2, 3], 0.1
#: Members of the mixture with less weight than this are left out.
_LEAST = 1e-3


@dataclass(frozen=True)
class _Member:
    """One Gaussian process with its measurements: what multiplies kernels with them, and what its noise is."""

    variances: Floats
    alpha: Floats
    inverse: Floats
    slope: Floats
    noise: float
    weight: float = 1.0


@dataclass(frozen=True)
class LeftOut:
    """What the others say of each of n measurements: logarithms predicted (n,), and deviations (n,)."""

    mean: Floats
    sd: Floats


class Posterior:
    """Fitted to the logarithms ``y`` (n,) of measured values of ``archs`` (n, positions).

    ``priors`` are one or two: what sources teach, and what is believed without them. ``extra`` (n,) is variance of
    single measurements that is known, e.g. from rounding.
    """

    def __init__(self, priors: list[Prior], archs: npt.NDArray[np.int64], y: Floats, extra: Floats | None = None):
        self.priors, self.archs, self.y = priors, archs, y
        self.extra = np.zeros(len(y)) if extra is None else extra
        self._at = [p.parts(archs) for p in priors]
        self._centre = [float(np.median(y - a.base)) for a in self._at]
        scored = [
            (g, *_fit(theta, a.kernels(a), y - a.base - c, self.extra))
            for g, (p, a, c) in enumerate(zip(priors, self._at, self._centre, strict=True))
            for theta in p.thetas
        ]
        # Each group has the same say before the measurements, however many rows of variances it has.
        score = np.array([s - np.log(len(priors[g].thetas)) for g, _, s, _, _ in scored])
        weight = np.exp(score - score.max())
        weight /= weight.sum()
        weight[weight < _LEAST] = 0
        weight /= weight.sum()
        self._members: list[list[_Member]] = [[] for _ in priors]
        mean, square = np.zeros(len(y)), np.zeros(len(y))
        for w, (g, member, _, loo, loo_sd) in zip(weight, scored, strict=True):
            if w:
                self._members[g].append(replace(member, weight=float(w)))
                at = y - loo
                mean += w * at
                square += w * (loo_sd**2 + at**2)
        self.left_out = LeftOut(mean, np.sqrt(np.maximum(square - mean**2, 1e-12)))

    @property
    def shares(self) -> list[float]:
        """How much each of ``priors`` has to say, adding up to 1."""
        return [sum(m.weight for m in members) for members in self._members]

    @property
    def unexplained(self) -> list[Floats]:
        """(n,) each: how far the measured logarithms are off the mean of each of ``priors``, but for the level."""
        pairs = zip(self._at, self._centre, strict=True)
        return [np.asarray(self.y - a.base - centre) for a, centre in pairs]

    @property
    def noise(self) -> float:
        """The deviation of a measurement's logarithm that is not explained."""
        return float(np.sqrt(sum(m.weight * m.noise for members in self._members for m in members)))

    def __call__(self, archs: npt.ArrayLike, chunk: int = 4096) -> tuple[Floats, Floats]:
        """Logarithms (n,) of the values of architectures, and the deviations (n,) of new measurements from them."""
        a = self.priors[0].space.validate_archs(archs)
        if not len(a):
            return np.zeros(0), np.zeros(0)
        both = [self._some(a[i : i + chunk]) for i in range(0, len(a), chunk)]
        return np.concatenate([m for m, _ in both]), np.concatenate([s for _, s in both])

    def _some(self, archs: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
        mean, square = np.zeros(len(archs)), np.zeros(len(archs))
        for p, at, centre, members in zip(self.priors, self._at, self._centre, self._members, strict=True):
            if not members:
                continue
            parts: Parts = p.parts(archs)
            kernels, own = parts.kernels(at), parts.variances()
            for m in members:
                v = m.variances[:, None, None] * kernels
                added = v[ADDED].sum(0) * m.slope
                share = np.maximum(added @ m.alpha, _LEAST_SHARE - 1)
                slope = 1 / (1 + share)
                k = v[REST].sum(0) + slope[:, None] * added
                value = parts.base + centre + v[REST].sum(0) @ m.alpha + np.log1p(share)
                prior = m.variances[REST] @ own[REST] + slope**2 * (m.variances[ADDED] @ own[ADDED])
                left = np.maximum(prior - np.einsum("ij,ij->i", k @ m.inverse, k), 0)
                mean += m.weight * value
                square += m.weight * (left + m.noise + value**2)
        return mean, np.sqrt(np.maximum(square - mean**2, 1e-12))


def _fit(theta: Floats, kernels: Floats, r: Floats, extra: Floats) -> tuple[_Member, float, Floats, Floats]:
    """The process of one row of variances, its score, and leave-one-out errors and deviations (n,)."""
    v = np.exp(theta)
    k = v[:-1, None, None] * kernels
    rest, added = k[REST].sum(0), k[ADDED].sum(0)
    own = v[-1] + extra
    weight, share = np.ones(len(r)), np.zeros(len(r))
    for i in range(_ITERATIONS + 1):
        # log(1 + u) about the present u: its slope scales the kernel, what is left of it moves the residual.
        slope = 1 / (1 + share)
        at = r - np.log1p(share) + slope * share
        inverse = np.linalg.inv(rest + slope[:, None] * added * slope + np.diag(own / weight + 1e-10))
        alpha = inverse @ at
        precision = np.diagonal(inverse)
        loo = alpha / precision
        sd = np.sqrt(np.maximum(1 / precision - own / weight, 0) + own)
        if i < _ITERATIONS:
            weight = np.minimum(1.0, (NU + 1) / (NU + (loo / sd) ** 2))
            share = np.maximum(added @ (slope * alpha), _LEAST_SHARE - 1)
    score = float((-np.log(sd) - (NU + 1) / 2 * np.log1p((loo / sd) ** 2 / NU)).sum())
    return _Member(v[:-1], alpha, inverse, slope, float(v[-1])), score, loo, sd
