"""Statistical tests on the entries of tables, made for the few Visits that each rests on.

An entry's 95 % interval is its centre ± Student's t · standard error at Visits − 1 degrees of freedom
(:func:`latbench.statistics.visit_intervals`), so that the standard error comes back from it. Two entries are compared
by Welch's t on the logarithm (Welch 1947; Satterthwaite's degrees of freedom), families of comparisons by Holm's
step-down correction (Holm 1979, Scandinavian Journal of Statistics 6). An entry of one Visit tells nothing of its
error: what it is compared with has no p-value (NaN) and is no part of a family.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import hypot, inf, isfinite, log, nan

import numpy as np
import numpy.typing as npt

from latbench.op import Op
from latbench.predictors.entries import Entry
from latbench.predictors.features import kernel_kind
from latbench.work import weights_read, work

#: Significance of every family of tests.
ALPHA = 0.05
#: A larger Op that takes less time by this share or more is worth a look, if it is more than noise.
BREAK = 0.05


@dataclass(frozen=True)
class Spread:
    """Standard error of an entry's logarithm, and the degrees of freedom that it is known with."""

    error: float
    freedom: float


def spread(entry: Entry, *, exact: bool = False) -> Spread | None:
    """How far an entry can be trusted; None where one Visit, or none, was all there is.

    ``exact``: a simulator's number, which has no noise.
    """
    from scipy.special import stdtrit

    i = entry.interval
    if exact:
        return Spread(0.0, inf)
    if entry.visits < 2 or not isfinite(i.high) or not i.value > 0:
        return None
    # The lower end may have been cut at 0; the upper one never is.
    half = (i.high - i.value) / i.value
    return Spread(half / float(stdtrit(entry.visits - 1, 0.975)), entry.visits - 1)


def welch(a: Entry, b: Entry, *, exact: bool = False, one_sided: bool = False) -> float:
    """The p-value of two entries having the same value; one-sided: of ``b`` not being smaller. NaN: cannot be told."""
    from scipy.special import stdtr

    x, y = spread(a, exact=exact), spread(b, exact=exact)
    if x is None or y is None or not (a.value > 0 and b.value > 0):
        return nan
    change = log(a.value / b.value)
    error = hypot(x.error, y.error)
    if error == 0:
        return 0.0 if (change > 0 if one_sided else change != 0) else 1.0
    parts = ((s.error**4 / s.freedom) for s in (x, y))
    freedom = error**4 / total if (total := sum(parts)) > 0 else inf
    t = change / error
    # stdtr is the distribution function of Student's t; at many degrees of freedom it is the normal one.
    freedom = min(freedom, 1e9)
    return float(stdtr(freedom, -t)) if one_sided else float(2 * stdtr(freedom, -abs(t)))


def holm(p: Sequence[float]) -> list[float]:
    """p-values corrected for their number; NaN stays and does not count."""
    given = np.asarray(p, np.float64)
    known = np.flatnonzero(~np.isnan(given))
    out = np.full(len(given), np.nan)
    order = known[np.argsort(given[known], kind="stable")]
    scaled = given[order] * (len(order) - np.arange(len(order)))
    out[order] = np.minimum(np.maximum.accumulate(scaled), 1.0) if len(order) else scaled
    return [float(x) for x in out]


# -- monotonicity ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Break:
    """A ``larger`` Op that takes less time than a ``smaller`` one: ``ratio`` of theirs below 1, Holm's p-value."""

    smaller: Entry
    larger: Entry
    ratio: float
    p_value: float


def monotonicity(entries: Sequence[Entry], *, exact: bool = False) -> tuple[list[Break], int]:
    """``(breaks, pairs compared)``: significant at :data:`ALPHA` in the family of pairs, and at least :data:`BREAK`.

    Two Ops are compared where they are made of the same primitives, every primitive of the one does at least as much
    work on at least as many bytes as its counterpart, and no third Op lies between them. Entries that cannot be tested
    (a single Visit) are left out first, so that they do not stand between two that can.
    """
    groups: dict[tuple[object, ...], list[Entry]] = {}
    for e in entries:
        if e.supported and e.value > 0 and spread(e, exact=exact) is not None:
            groups.setdefault(_composition(e.op), []).append(e)
    pairs: list[tuple[Entry, Entry]] = []
    for group in groups.values():
        amounts = np.array([_amounts(e.op) for e in group])
        pairs += [(group[i], group[j]) for i, j in np.argwhere(_covers(amounts)).tolist()]
    p = [welch(a, b, exact=exact, one_sided=True) for a, b in pairs]
    found = [
        Break(a, b, b.value / a.value, q)
        for (a, b), q in zip(pairs, holm(p), strict=True)
        if q < ALPHA and b.value < (1 - BREAK) * a.value
    ]
    return sorted(found, key=lambda x: x.ratio), len(pairs)


def _composition(op: Op) -> tuple[object, ...]:
    """What two Ops must have in common to be compared."""
    steps = tuple((kernel_kind(p), p.kind, *(t.dtype for t in p.inputs)) for p in op.primitives)
    return (op.level, op.quant, op.density, op.attributes.get("layout"), steps)


def _amounts(op: Op) -> list[float]:
    return [
        x
        for p in op.primitives
        for x in (work(p), weights_read(p), sum(t.nbytes for t in p.inputs), sum(t.nbytes for t in p.outputs))
    ]


def _covers(amounts: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """(n, n): row i is smaller than row j in every amount (equal in some, but not all), with nothing between them."""
    n = len(amounts)
    least = np.ones((n, n), bool)
    for column in amounts.T:
        least &= column[:, None] <= column[None, :]
    below = least & ~least.T
    between = below.astype(np.float32) @ below.astype(np.float32) > 0
    return np.asarray(below & ~between)


# -- additivity -----------------------------------------------------------------------------------------------------


def excess_error(rmspe: float, floor: float, networks: int) -> tuple[float, float]:
    """``(p-value, excess)`` of a table's error on held-out networks over the noise of measuring them.

    ``floor`` is the RMSPE between two measurements of the same networks, so that its square estimates twice one
    measurement's variance; the table was held against the mean of the two, whose variance is half of one's. Under
    "sums are exact" the ratio of ``rmspe²`` and ``floor² / 4`` follows Fisher's F with (networks, networks) degrees of
    freedom. ``excess`` is the relative error that noise does not explain.
    """
    from scipy.special import fdtrc

    noise = floor / 2
    if noise <= 0:
        return (0.0 if rmspe > 0 else 1.0), rmspe
    p = float(fdtrc(networks, networks, (rmspe / noise) ** 2))
    return p, max(rmspe**2 - noise**2, 0.0) ** 0.5
