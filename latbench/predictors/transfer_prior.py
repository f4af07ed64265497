"""What other devices teach of a new one, before it has measured anything: a Gaussian prior over its latencies.

Every source is first made a smooth function of the architecture: additive in milliseconds over choices, as made and as
a compiler leaves them, Ops and paths, fitted to relative errors. The prior's mean is the mean of those functions, each
brought to mean 1. What a new device may do otherwise is a Gaussian process on the logarithm of its latency over that
mean: a level, a stretch of the mean, the directions in which the sources differ from their mean, costs of choices and
Ops of its own, something smooth, and noise. How much of each there is, is learnt from the sources themselves: each in
turn is taken for a new device that the others must explain, by marginal likelihood (empirical Bayes: Rasmussen and
Williams 2006, "Gaussian Processes for Machine Learning", section 5.4.1), so that it is known before the new device has
its first measurement. The answers are kept apart, one a source: which of them the new device is like, its measurements
say (:mod:`latbench.predictors.transfer_posterior`).
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from latbench.arch_times import ArchTimes
from latbench.errors import ConfigError, NotEnoughDataError
from latbench.predictors.encodings import KINDS, encoder
from latbench.space import SearchSpace

Floats = npt.NDArray[np.float64]

#: Fewest architectures that make a source.
MIN_SOURCE = 10
#: Architectures of a source that tell how it differs from the others, and those that say what is usual in a space.
LEARN_ROWS, REFERENCE = 200, 1000
#: A source's values below this share of its median tell of something else than computing: they weigh as if at it.
LEAST = 0.05
#: The parts of the kernel: variances of a level, a stretch of the mean, the sources' directions, own costs, a smooth
#: rest, and of the noise. Centre of their prior as logarithms; its deviation is :data:`_SPREAD`, the level's is fixed.
PARTS = ("level", "stretch", "sources", "costs", "smooth", "noise")
CENTRE = np.log([4.0, 0.1, 1.0, 0.01, 0.003, 0.0004])
_SPREAD = 3.0
_BOUNDS = (-14.0, 4.0)
#: Variances for a device that no other one tells of: idealised devices or costs of its own, quiet or not.
ALONE = np.log(
    [[4.0, 0.1, 0.3, costs, 0.003, noise] for costs in (0.3, 3.0) for noise in (0.00003, 0.0003, 0.003, 0.03)]
)
#: How much more noise variance than a source a new device may have: its measurements may be short, or its load high.
NOISIER = (1.0, 10.0)
#: Deviations, as costs, of how often a kind of choice was made, and of paths, counts of Ops and totals, where a choice
#: at one place is one or zero: what is chosen costs the same wherever it stands, as far as nothing else is known.
KIND_WEIGHT, WEIGHT = 10.0, 1.0
#: Priors that are kept, so that choosing and fitting learn once.
_KEPT = 8


def columns(space: SearchSpace, archs: npt.ArrayLike) -> tuple[Floats, Floats, Floats]:
    """Of both encodings: (n, c) ones and zeros of choices, (n, l) how often each kind of choice was made, wherever, and
    (n, d) other columns."""
    both = [(encoder(space, kind).onehot, encoder(space, kind)(archs)) for kind in KINDS]
    choices = [x[:, :k] for k, x in both]
    labels = [space.choice_label(i, c) for i, n in enumerate(space.num_choices) for c in range(n)]
    same = np.array([[float(a == b) for b in dict.fromkeys(labels)] for a in labels])
    return (
        np.concatenate(choices, axis=1),
        np.concatenate([x @ same for x in choices], axis=1),
        np.concatenate([x[:, k:] for k, x in both], axis=1),
    )


@dataclass(frozen=True)
class Parts:
    """What kernels are made of, a row an architecture: the prior's mean ``base`` (n,), its stretch (n,), the sources'
    directions (n, k), costs (n, c) over the mean, and the columns of the smooth part (n, d)."""

    base: Floats
    stretch: Floats
    sources: Floats
    costs: Floats
    smooth: Floats

    def __len__(self) -> int:
        return len(self.base)

    def take(self, rows: npt.ArrayLike) -> Parts:
        """Some rows."""
        i = np.asarray(rows)
        return Parts(self.base[i], self.stretch[i], self.sources[i], self.costs[i], self.smooth[i])

    def kernels(self, other: Parts) -> Floats:
        """(5, n, m): the kernel of each of :data:`PARTS` but the noise, at variance 1."""
        distance = (
            (self.smooth**2).sum(1)[:, None] + (other.smooth**2).sum(1)[None]
        ) - 2 * self.smooth @ other.smooth.T
        return np.stack([
            np.ones((len(self), len(other))),
            np.outer(self.stretch, other.stretch),
            self.sources @ other.sources.T,
            self.costs @ other.costs.T,
            np.exp(-np.maximum(distance, 0) / 2),
        ])  # fmt: skip

    def variances(self) -> Floats:
        """(5, n): the diagonals of :meth:`kernels` with itself."""
        one = np.ones(len(self))
        return np.stack([one, self.stretch**2, (self.sources**2).sum(1), (self.costs**2).sum(1), one])


class Prior:
    """A prior over the latencies of one space. ``weights`` (sources, columns + 1) are the sources' functions in their
    own unit over ``unit`` (columns,), ``floors`` (sources,) the least that they give, ``thetas`` (t, 6) the logarithms
    of the variances of :data:`PARTS` that were learnt, one row a source."""

    def __init__(self, space: SearchSpace, weights: Floats, floors: Floats, thetas: Floats) -> None:
        self.space, self.weights, self.floors, self.thetas = space, weights, floors, thetas
        reference = space.sample_archs(REFERENCE, 0)
        choices, kinds, other = columns(space, reference)
        self._scale = np.concatenate([
            np.ones(choices.shape[1]),
            np.maximum(kinds.std(axis=0), 1e-9) / KIND_WEIGHT,
            np.maximum(other.std(axis=0), 1e-9) / WEIGHT,
        ])  # fmt: skip
        self._smooth = other.mean(0), np.maximum(other.std(axis=0), 1e-9) * np.sqrt(other.shape[1])
        raw = self._unscaled(choices, kinds, other)
        self._levels = raw[0].mean(0)
        base, _, costs = self._shape(*raw)
        self._mean_base, self._mean_costs = base.mean(), costs.mean(0)
        self._size = np.sqrt(((costs - self._mean_costs) ** 2).sum(1).mean())

    @property
    def sources(self) -> int:
        """How many sources it rests on."""
        return len(self.weights)

    def parts(self, archs: npt.ArrayLike) -> Parts:
        """What kernels are made of at (n, positions) architectures."""
        choices, kinds, other = columns(self.space, archs)
        base, directions, costs = self._shape(*self._unscaled(choices, kinds, other))
        return Parts(
            base,
            base - self._mean_base,
            directions,
            (costs - self._mean_costs) / self._size,
            (other - self._smooth[0]) / self._smooth[1],
        )

    def without(self, source: int) -> Prior:
        """The prior of the other sources, with the same variances but its own."""
        kept = np.arange(self.sources) != source
        thetas = self.thetas[kept] if len(self.thetas) == self.sources else self.thetas
        return Prior(self.space, self.weights[kept], self.floors[kept], thetas)

    def noisier(self) -> Prior:
        """The same with every row of variances once for each of :data:`NOISIER`."""
        more = copy(self)
        more.thetas = np.concatenate([self.thetas + np.log(k) * (np.array(PARTS) == "noise") for k in NOISIER])
        return more

    def _unscaled(self, *groups: Floats) -> tuple[Floats, Floats]:
        """(n, sources) the sources' values, and the scaled columns."""
        x = np.concatenate(groups, axis=1) / self._scale
        values = np.maximum(x @ self.weights[:, 1:].T + self.weights[:, 0], self.floors)
        return values, x

    def _shape(self, values: Floats, x: Floats) -> tuple[Floats, Floats, Floats]:
        """Mean as a logarithm, what each source is off it, and costs over it."""
        if not self.sources:
            return np.zeros(len(x)), np.zeros((len(x), 0)), x
        h = values / self._levels
        mean = h.mean(1)
        directions = (h / mean[:, None] - 1) / np.sqrt(self.sources)
        return np.log(mean), directions, x / mean[:, None]

    def to_arrays(self) -> dict[str, Floats]:
        """Arrays for an npz file."""
        return {"weights": self.weights, "floors": self.floors, "thetas": self.thetas}

    @classmethod
    def from_arrays(cls, space: SearchSpace, arrays: Mapping[str, npt.NDArray[Any]]) -> Prior:
        """The inverse of :meth:`to_arrays`. Raises :class:`KeyError`, :class:`ValueError`."""
        w, f, t = (np.asarray(arrays[k], np.float64) for k in ("weights", "floors", "thetas"))
        if w.shape != (len(f), _width(space)) or t.ndim != 2 or t.shape[1] != len(PARTS) or not len(t):
            raise ValueError(f"sources {w.shape}, floors {f.shape}, variances {t.shape} do not fit the space")
        return cls(space, w, f, t)


def learn(space: SearchSpace, sources: Mapping[str, ArchTimes], seed: int = 0) -> Prior:
    """The prior that sources give; without any, one that knows nothing but the space. Kept for the next call.

    Raises :class:`ConfigError` for a source of another space, :class:`NotEnoughDataError` for one with fewer than
    :data:`MIN_SOURCE` architectures.
    """
    for name, times in sources.items():
        if times.space != space:
            raise ConfigError(f"sources[{name!r}]: architectures of {times.space}, not of {space}")
        if len(times) < MIN_SOURCE:
            raise NotEnoughDataError(
                f"sources[{name!r}]: {len(times)} measured architectures; at least {MIN_SOURCE} make a source"
            )
    key = _digest(space, sources, seed)
    if key in _PRIORS:
        _PRIORS.move_to_end(key)
        return _PRIORS[key]
    prior = _learn(space, list(sources.values()), seed)
    _PRIORS[key] = prior
    while len(_PRIORS) > _KEPT:
        _PRIORS.popitem(last=False)
    return prior


_PRIORS: OrderedDict[str, Prior] = OrderedDict()


def _digest(space: SearchSpace, sources: Mapping[str, ArchTimes], seed: int) -> str:
    h = hashlib.sha256(repr((space.spec, seed)).encode())
    for name, times in sources.items():
        h.update(name.encode())
        h.update(np.ascontiguousarray(times.archs).tobytes())
        h.update(np.ascontiguousarray(times.values).tobytes())
        # Errors of a source in the part of a new device are kept with the prior, and are those of sessions.
        h.update(b"" if times.order is None else b"order" + np.ascontiguousarray(times.order).tobytes())
    return h.hexdigest()


def _width(space: SearchSpace) -> int:
    """A constant and all columns."""
    return 1 + sum(int(x.shape[1]) for x in columns(space, np.array(space.covering_archs()[:1])))


def _learn(space: SearchSpace, sources: list[ArchTimes], seed: int) -> Prior:
    scale = Prior(space, np.zeros((0, _width(space))), np.zeros(0), ALONE)._scale
    alone = not sources
    sources = sources or _ideal(space)
    fits = [_source(np.concatenate(columns(space, t.archs), axis=1) / scale, t.values) for t in sources]
    weights, floors = np.stack([w for w, _ in fits]), np.array([f for _, f in fits])
    if alone:
        return Prior(space, weights, floors, ALONE)
    if len(sources) == 1:
        # One source has no other that could explain it: it is believed as far as it usually is.
        return Prior(space, weights, floors, np.concatenate([CENTRE[None], CENTRE[None] + [[0, 0, 0, 3, 0, 0]]]))
    everything = Prior(space, weights, floors, CENTRE[None])
    thetas = [_variances(everything.without(s), t, seed + s) for s, t in enumerate(sources)]
    return Prior(space, weights, floors, np.stack(thetas))


def _ideal(space: SearchSpace) -> list[ArchTimes]:
    """Devices that spend their time on starting Ops, on arithmetic, or on moving data, eager ones and compilers': what
    is believed of a device before anything was measured."""
    archs = space.sample_archs(REFERENCE, 1)
    found = []
    for kind in KINDS:
        e = encoder(space, kind)
        rows = dict(zip(e.names, e(archs).T, strict=True))
        found += [np.exp(rows[c]) for c in ("log_macs", "log_activation_bytes") if c in rows]
        found += [1 + rows["blocks"]] if "blocks" in rows else []
    return [ArchTimes(space, archs, v / v.mean() + 0.05) for v in found]


def _source(x: Floats, values: Floats) -> tuple[Floats, float]:
    """(1 + columns,) weights of a ridge regression on relative errors, and the least value that it gives."""
    typical = float(np.median(values))
    centre, spread = x.mean(0), np.maximum(x.std(axis=0), 1e-9)
    z = np.concatenate([np.ones((len(x), 1)), np.where(x.std(axis=0) > 1e-9, (x - centre) / spread, 0.0)], axis=1)
    now = np.full(len(values), typical)
    for _ in range(6):
        scale = 1 / np.maximum(now, LEAST * typical)
        # Huber's weights on the relative error: one bad measurement must not move a source.
        off = (values - now) * scale
        width = 1.345 * max(1.4826 * float(np.median(np.abs(off))), 1e-4)
        w = scale * np.sqrt(np.minimum(1, width / np.maximum(np.abs(off), 1e-12)))
        ridge = np.full(z.shape[1], float((w**2).mean()))
        ridge[0] = 0.0
        a = z * w[:, None]
        beta = np.linalg.solve(a.T @ a + np.diag(ridge) + 1e-9 * np.eye(z.shape[1]), a.T @ (values * w))
        now = np.maximum(z @ beta, 0.4 * LEAST * typical)
    slopes = np.where(x.std(axis=0) > 1e-9, beta[1:] / spread, 0.0)
    return np.concatenate([[beta[0] - slopes @ centre], slopes]), 0.4 * LEAST * typical


def _variances(prior: Prior, times: ArchTimes, seed: int) -> Floats:
    """(6,): the logarithms of the variances by which the prior explains a device best."""
    from scipy.optimize import minimize

    usable = np.flatnonzero(times.values >= LEAST * np.median(times.values))
    rows = np.random.default_rng(seed).permutation(usable)[:LEARN_ROWS]
    parts = prior.parts(times.archs[rows])
    kernels = parts.kernels(parts)
    r = np.log(times.values[rows]) - parts.base
    r = r - r.mean()

    def objective(q: Floats) -> tuple[float, Floats]:
        value, slope = negative_evidence(np.concatenate([CENTRE[:1], q]), kernels, r)
        return value + float((((q - CENTRE[1:]) / _SPREAD) ** 2).sum() / 2), slope[1:] + (q - CENTRE[1:]) / _SPREAD**2

    found = minimize(
        objective,
        CENTRE[1:],
        jac=True,
        method="L-BFGS-B",
        bounds=[_BOUNDS] * (len(CENTRE) - 1),
        options={"maxiter": 60},
    )
    return np.concatenate([CENTRE[:1], found.x])


def negative_evidence(theta: Floats, kernels: Floats, r: Floats) -> tuple[float, Floats]:
    """Minus the log marginal likelihood of residuals (n,), and its slope (6,): equation 5.9 there."""
    from scipy.linalg import cho_solve

    v = np.exp(theta)
    k = np.tensordot(v[:-1], kernels, 1) + (v[-1] + 1e-10) * np.eye(len(r))
    c = np.linalg.cholesky(k)
    alpha = cho_solve((c, True), r)
    m = cho_solve((c, True), np.eye(len(r))) - np.outer(alpha, alpha)
    value = r @ alpha / 2 + np.log(np.diagonal(c)).sum() + len(r) / 2 * np.log(2 * np.pi)
    slopes = [*(v[:-1] * np.tensordot(kernels, m, ((1, 2), (0, 1))) / 2), v[-1] * np.trace(m) / 2]
    return float(value), np.array(slopes)
