"""Gaussian processes whose covariance is a sum of terms: of an architecture, and of when it was measured.

A sum of terms is a sum of functions, so that one fit tells the architecture's part from the drift of the device, and
either can be asked alone. Hyperparameters are those of largest marginal likelihood (Rasmussen and Williams 2006,
"Gaussian Processes for Machine Learning", equations 5.8 and 5.9), found on some of the rows and then on more. Outliers
lose weight: every row's noise is scaled as a Student-t of four degrees of freedom asks, from its leave-one-out error
(their section 5.4.2). Up to :data:`EXACT` rows are fitted exactly; more are projected onto that many of them (their
section 8.3.4).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from latbench.errors import FileFormatError

Floats = npt.NDArray[np.float64]
#: Named inputs of n rows: matrices (n, d), and ``order`` as (n, 1).
Inputs: TypeAlias = Mapping[str, Floats]

#: Most rows of an exact fit, and the rows that larger ones are projected onto.
EXACT = 1500
#: Rows that hyperparameters are sought on, one round after the other.
ROUNDS = (300, 400, 900)
#: Runs of neighbours in the order that these are made of.
RUNS = 4
#: Degrees of freedom of the Student-t that rows are weighted by.
FREEDOM = 4.0
#: How often weights are found anew after each round.
REWEIGHTED = 3
_JITTER = 1e-8
#: Median of a squared standard normal variable.
_MEDIAN = 0.455
#: Pull of the logarithms of hyperparameters towards where the search starts, and how far they may go.
_PULL, _FAR = 0.05, 7.0
#: Covariances at a time: what a core's cache holds.
_AT_A_TIME = 2**16


@dataclass(frozen=True)
class Term:
    """One summand of a covariance. ``of`` names its inputs; ``start`` holds the logarithms of its hyperparameters.

    ``linear``: variance. ``smooth`` (squared exponential): variance, then a length for each input. ``rough``
    (exponential of the distance): variance and length. ``cycle`` (rough within a ``period``, and slowly changing):
    variance, length as a share of the period, and how long a cycle stays alike.
    """

    kind: Literal["linear", "smooth", "rough", "cycle"]
    of: tuple[str, ...]
    start: tuple[float, ...]
    period: float = 0.0

    @property
    def in_time(self) -> bool:
        """True if it is a function of when something was measured."""
        return self.of == (ORDER,)

    def distances(self, a: Inputs, b: Inputs) -> tuple[Floats, ...]:
        """What its covariance is made of, (n, m) each, whatever the hyperparameters."""
        if self.kind == "linear":
            return (sum_of(a[name] @ b[name].T for name in self.of),)
        if self.kind == "smooth":
            return tuple(_squares(a[name], b[name]) for name in self.of)
        apart = np.abs(a[self.of[0]] - b[self.of[0]].T)
        return (apart,) if self.kind == "rough" else (np.abs(np.sin(np.pi / self.period * apart)), apart)

    def covariance(self, p: Floats, d: Sequence[Floats]) -> Floats:
        """(n, m) from distances, for logarithms ``p`` of the hyperparameters."""
        return self.with_slopes(p, d)[0]

    def with_slopes(self, p: Floats, d: Sequence[Floats]) -> tuple[Floats, list[Floats]]:
        """The covariance and its derivative by each of ``p``."""
        if self.kind == "linear":
            k = np.exp(p[0]) * d[0]
            return k, [k]
        power = 2.0 if self.kind == "smooth" else 1.0
        parts = [x * (np.exp(-power * q) / power) for x, q in zip(d, p[1:], strict=True)]
        k = np.exp(p[0] - sum_of(parts))
        return k, [k, *(k * (power * x) for x in parts)]


#: The name of the input that says when a row was measured.
ORDER = "order"


@dataclass(frozen=True)
class Process:
    """A fitted process: ``mean`` + covariances with ``inputs`` (m rows) times ``alpha`` (m,).

    ``parameters`` are the logarithms of all terms' hyperparameters and of the noise variance. ``left_out`` (n,) are the
    predictions of each row by the fit without it, ``time_left_out`` (n,) the part of the terms of time in them (of the
    fit with the row where that is projected), ``weights`` (n,) what outliers kept; none of these is saved. ``evidence``
    is the log marginal likelihood on the rows that the search ended with.
    """

    terms: tuple[Term, ...]
    parameters: Floats
    mean: float
    inputs: Inputs
    alpha: Floats
    evidence: float = 0.0
    left_out: Floats = field(default_factory=lambda: np.empty(0), repr=False)
    time_left_out: Floats = field(default_factory=lambda: np.empty(0), repr=False)
    weights: Floats = field(default_factory=lambda: np.empty(0), repr=False)

    def part(self, inputs: Inputs, *, in_time: bool) -> Floats:
        """(n,) what the terms of time, or all others, add; without ``mean``."""
        rows = next(iter(inputs.values()))
        out = np.zeros(len(rows))
        step = max(_AT_A_TIME // max(len(self.alpha), 1), 16)
        for start in range(0, len(rows), step):
            chunk = {k: v[start : start + step] for k, v in inputs.items()}
            for term, p in self.split():
                if term.in_time == in_time:
                    k = term.covariance(p, term.distances(chunk, self.inputs))
                    out[start : start + step] += k @ self.alpha
        return out

    def split(self) -> list[tuple[Term, Floats]]:
        """Every term with its own ``parameters``."""
        return _split(self.terms, self.parameters)

    # -- files --------------------------------------------------------------------------------------------------

    def to_files(self, prefix: str) -> tuple[dict[str, Any], dict[str, Floats]]:
        """JSON values and arrays, whose names begin with ``prefix``."""
        terms = [{"kind": t.kind, "of": list(t.of), "start": list(t.start), "period": t.period} for t in self.terms]
        used = sorted({name for t in self.terms for name in t.of})
        arrays = {f"{prefix}_in{i}": self.inputs[name] for i, name in enumerate(used)}
        arrays |= {f"{prefix}_parameters": self.parameters, f"{prefix}_alpha": self.alpha}
        return {"terms": terms, "inputs": used, "mean": self.mean, "evidence": self.evidence}, arrays

    @classmethod
    def from_files(cls, d: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]], prefix: str) -> Process:
        """The inverse of :meth:`to_files`. Raises :class:`KeyError`, :class:`TypeError`, :class:`FileFormatError`."""
        terms = tuple(Term(t["kind"], tuple(t["of"]), tuple(t["start"]), t["period"]) for t in d["terms"])
        inputs = {name: np.asarray(arrays[f"{prefix}_in{i}"], np.float64) for i, name in enumerate(d["inputs"])}
        alpha, parameters = arrays[f"{prefix}_alpha"], arrays[f"{prefix}_parameters"]
        size = sum(len(t.start) for t in terms) + 1
        if parameters.shape != (size,) or any(len(x) != len(alpha) for x in inputs.values()):
            raise FileFormatError(f"a process of {size} parameters and {len(alpha)} rows does not fit its arrays")
        return cls(terms, parameters, float(d["mean"]), inputs, alpha, float(d["evidence"]))


def fit(
    terms: Sequence[Term],
    inputs: Inputs,
    y: Floats,
    *,
    noise: float = 4e-4,
    known_noise: Floats | None = None,
    seed: int = 0,
    steps: Sequence[int] = (30, 15, 6),
    start: Process | None = None,
    gentle: bool = False,
) -> Process:
    """Fit to targets ``y`` (n,). ``noise`` is the variance that the search starts at, ``known_noise`` (n,) what every
    row has on top, e.g. from rounding; ``steps`` are the iterations of each round of the search, the last of
    :data:`ROUNDS`; ``start`` is a process whose hyperparameters its first terms share. ``gentle`` measures an outlier
    by the noise that was given to it, not by that of other rows: what is far off in a stretch may be drift yet."""
    y = np.asarray(y, np.float64)
    n = len(y)
    centre = np.array([*(s for t in terms for s in t.start), np.log(noise)])
    p, weights = centre.copy(), np.ones(n)
    if start is not None:
        shared = len(start.parameters) - 1
        p[:shared], p[-1] = start.parameters[:shared], start.parameters[-1]
        weights = start.weights
    rng = np.random.default_rng(seed)
    extra = np.zeros(n) if known_noise is None else known_noise
    evidence = 0.0
    for most, iterations in zip(ROUNDS[-len(steps) :], steps, strict=True):
        rows = some_rows(n, most, inputs.get(ORDER), rng)
        taken = {k: v[rows] for k, v in inputs.items()}
        p, evidence = _search(terms, taken, y[rows], weights[rows], extra[rows], p, centre, iterations)
        solver = (_Exact if n <= EXACT else _Projected)(terms, p, inputs, rng)
        for _ in range(REWEIGHTED):
            own = np.exp(p[-1]) / weights
            left_out, variance = solver.left_out(y, own + extra + _JITTER)
            usual_variance = variance if gentle else variance - own + np.exp(p[-1])
            off = (y - left_out) ** 2 / np.maximum(usual_variance, _JITTER)
            # Outliers widen the noise that was found so far, and would then not stand out: the median does not mind.
            usual = 1.0 if gentle else min(float(np.median(off)) / _MEDIAN, 1.0)
            weights = (FREEDOM + 1) / (FREEDOM + off / max(usual, 1e-6))
    return replace(solver.solve(y, np.exp(p[-1]) / weights + extra + _JITTER), evidence=evidence, weights=weights)


def left_out_together(
    process: Process,
    inputs: Inputs,
    y: Floats,
    weights: Floats,
    known_noise: Floats,
    groups: Sequence[npt.NDArray[np.bool_]],
) -> tuple[Floats, list[Floats]]:
    """Errors of targets ``y`` (n,) by fits to others of these rows, with the hyperparameters of ``process``: (n,) each
    row left out, and for each of ``groups`` (n,) those of its rows, left out together (block leave-one-out: solution
    over the block of the inverse). ``weights`` and ``known_noise`` (n,) are as in :func:`fit`."""
    noise = np.exp(process.parameters[-1]) / weights + known_noise + _JITTER
    k = _covariance(process.terms, process.parameters, inputs, inputs) + np.diag(noise)
    inverse = np.linalg.inv(k)
    alpha = inverse @ (y - process.mean)
    return alpha / np.diag(inverse), [np.linalg.solve(inverse[np.ix_(g, g)], alpha[g]) for g in groups]


def some_rows(n: int, most: int, order: Floats | None, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Numbers of at most ``most`` of n rows, sorted. Where there is an order (n, 1), a few runs of neighbours in it:
    rows far apart say nothing of fast drift, and a single run nothing of slow drift."""
    if n <= most:
        return np.arange(n)
    if order is None:
        return np.sort(rng.permutation(n)[:most])
    stretches = np.array_split(np.argsort(order[:, 0], kind="stable"), RUNS)
    starts = [int(rng.integers(0, len(s) - most // RUNS + 1)) for s in stretches]
    return np.sort(np.concatenate([s[a : a + most // RUNS] for s, a in zip(stretches, starts, strict=True)]))


def _search(
    terms: Sequence[Term],
    inputs: Inputs,
    y: Floats,
    weights: Floats,
    extra: Floats,
    p: Floats,
    centre: Floats,
    iterations: int,
) -> tuple[Floats, float]:
    """Hyperparameters of largest marginal likelihood, from ``p`` on, and its logarithm."""
    from scipy.linalg import cho_solve, lapack
    from scipy.optimize import minimize

    n = len(y)
    # Matrices are symmetric: half of each is kept, as a vector, with the diagonal's weight halved.
    low = np.tril_indices(n)
    flat, diagonal = low[0] + n * low[1], low[0] == low[1]
    share = np.where(diagonal, 0.5, 1.0)
    of_terms = [[d[low] for d in t.distances(inputs, inputs)] for t in terms]
    centred = y - np.median(y)

    def loss(p: Floats) -> tuple[float, Floats]:
        packed, slopes = np.zeros(len(flat)), []
        for (term, own), d in zip(_split(terms, p), of_terms, strict=True):
            k, s = term.with_slopes(own, d)
            packed += k
            slopes += s
        own_noise = np.exp(p[-1]) / weights
        packed[diagonal] += own_noise + extra + _JITTER
        whole = np.zeros(n * n)
        whole[flat] = packed
        factor, failed = lapack.dpotrf(whole.reshape(n, n, order="F"), lower=1)
        if failed:
            return 1e12, np.zeros(len(p))
        alpha = cho_solve((factor, True), centred)
        value = 0.5 * centred @ alpha + np.log(np.diag(factor)).sum() + 0.5 * n * np.log(2 * np.pi)
        inverse, _ = lapack.dpotri(factor, lower=1)
        m = (inverse.ravel(order="F")[flat] - alpha[low[0]] * alpha[low[1]]) * share
        slope = np.array([*(m @ s for s in slopes), m[diagonal] @ own_noise])
        pull = p - centre
        return float(value + 0.5 * _PULL * pull @ pull), slope + _PULL * pull

    bounds = [(c - _FAR, c + _FAR) for c in centre]
    found = minimize(loss, p, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": iterations, "ftol": 1e-6})
    return np.asarray(found.x), -float(found.fun)


class _Exact:
    """Answers of given hyperparameters, for one noise after the other."""

    def __init__(self, terms: Sequence[Term], p: Floats, inputs: Inputs, rng: np.random.Generator) -> None:
        self._terms, self._p, self._inputs = tuple(terms), p, inputs
        self._k = _covariance(terms, p, inputs, inputs)

    def left_out(self, y: Floats, noise: Floats) -> tuple[Floats, Floats]:
        """(n,) predictions of each row by the fit without it, and their variances with the row's noise."""
        alpha, inverse = self._inverse(y - np.median(y), noise)
        precision = np.diag(inverse)
        return y - alpha / precision, 1 / precision

    def solve(self, y: Floats, noise: Floats) -> Process:
        """The process of rows ``y`` (n,) with variances ``noise`` (n,)."""
        mean = float(np.median(y))
        alpha, inverse = self._inverse(y - mean, noise)
        precision, of_time = np.diag(inverse).copy(), np.zeros(len(y))
        for term, own in _split(self._terms, self._p):
            if term.in_time:
                k = term.covariance(own, term.distances(self._inputs, self._inputs))
                both = k * inverse
                through = both.sum(axis=1) + both.sum(axis=0) - np.diag(both)
                of_time += k @ alpha - through * alpha / precision
        return Process(self._terms, self._p, mean, self._inputs, alpha, 0.0, y - alpha / precision, of_time)

    def _inverse(self, centred: Floats, noise: Floats) -> tuple[Floats, Floats]:
        """(n,) solution and the lower half of the inverse (n, n)."""
        from scipy.linalg import cho_solve, lapack

        k = self._k.copy(order="F")
        k[np.diag_indices(len(k))] += noise
        factor, _ = lapack.dpotrf(k, lower=1, overwrite_a=1)
        alpha = np.asarray(cho_solve((factor, True), centred))
        return alpha, np.tril(lapack.dpotri(factor, lower=1, overwrite_c=1)[0])


class _Projected:
    """The same for many rows, projected onto :data:`EXACT` of them."""

    def __init__(self, terms: Sequence[Term], p: Floats, inputs: Inputs, rng: np.random.Generator) -> None:
        from scipy.linalg import lapack, solve_triangular

        n = len(next(iter(inputs.values())))
        rows = np.sort(rng.choice(n, EXACT, replace=False))
        self._terms, self._p, self._inputs = tuple(terms), p, inputs
        self._kept = {name: x[rows] for name, x in inputs.items()}
        k = _covariance(terms, p, self._kept, self._kept)
        k[np.diag_indices(EXACT)] += 1e-6 * np.mean(np.diag(k))
        self._root, _ = lapack.dpotrf(np.asfortranarray(k), lower=1)
        self._phi = solve_triangular(self._root, _covariance(terms, p, self._kept, inputs), lower=True)  # (m, n)

    def left_out(self, y: Floats, noise: Floats) -> tuple[Floats, Floats]:
        """As :meth:`_Exact.left_out`."""
        from scipy.linalg import solve_triangular

        beta, factor = self._beta(y - np.median(y), noise)
        leverage = np.square(solve_triangular(factor, self._phi, lower=True)).sum(axis=0) / noise
        free = np.maximum(1 - leverage, 1e-3)
        return y - (y - np.median(y) - self._phi.T @ beta) / free, noise / free

    def solve(self, y: Floats, noise: Floats) -> Process:
        """As :meth:`_Exact.solve`; what is left out of the terms of time is nothing: one row of many."""
        from scipy.linalg import solve_triangular

        mean = float(np.median(y))
        beta, _ = self._beta(y - mean, noise)
        alpha = solve_triangular(self._root, beta, lower=True, trans="T")
        made = Process(self._terms, self._p, mean, self._kept, alpha, 0.0, self.left_out(y, noise)[0])
        return replace(made, time_left_out=made.part(self._inputs, in_time=True))

    def _beta(self, centred: Floats, noise: Floats) -> tuple[Floats, Floats]:
        from scipy.linalg import cho_solve, lapack

        inner = (self._phi / noise) @ self._phi.T
        inner[np.diag_indices(EXACT)] += 1.0
        factor, _ = lapack.dpotrf(np.asfortranarray(inner), lower=1)
        return np.asarray(cho_solve((factor, True), self._phi @ (centred / noise))), factor


def _covariance(terms: Sequence[Term], p: Floats, a: Inputs, b: Inputs) -> Floats:
    return sum_of(t.covariance(own, t.distances(a, b)) for t, own in _split(terms, p))


def _split(terms: Sequence[Term], p: Floats) -> list[tuple[Term, Floats]]:
    ends = np.cumsum([len(t.start) for t in terms])
    return [(t, p[end - len(t.start) : end]) for t, end in zip(terms, ends, strict=True)]


def _squares(a: Floats, b: Floats) -> Floats:
    apart = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1)[None] - 2 * (a @ b.T)
    return np.asarray(np.maximum(apart, 0.0))


def sum_of(arrays: Any) -> Floats:
    """The sum of one or more arrays of one shape."""
    total: Any = 0.0
    for x in arrays:
        total = total + x
    return np.asarray(total, np.float64)
