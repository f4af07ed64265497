"""Pareto fronts: ranks, hypervolume, crowding distance, and a spread-out choice along a front.

A typed layer over moocore. All objectives are minimised; ``points`` is an (n, objectives) array. Only the weighted
crowding distance and the selection along the front are computed here, because moocore has neither.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def ranks(points: npt.ArrayLike) -> Ints:
    """Rank of each point by non-dominated sorting (Deb et al. 2002), 0 the best: (n,). Equal points share a rank."""
    p = _points(points)
    if len(p) == 0:
        return np.empty(0, np.int64)
    import moocore

    return np.asarray(moocore.pareto_rank(p), np.int64)


def fronts(points: npt.ArrayLike) -> list[Ints]:
    """Row numbers of each rank's points, best rank first, ascending within a rank."""
    r = ranks(points)
    return [np.flatnonzero(r == k) for k in range(int(r.max(initial=-1)) + 1)]


def nondominated(points: npt.ArrayLike, *, keep_duplicates: bool = True) -> npt.NDArray[np.bool_]:
    """Mask of the points that no other point dominates: (n,). Of equal points only the first stays, unless
    ``keep_duplicates``."""
    p = _points(points)
    if len(p) == 0:
        return np.empty(0, np.bool_)
    import moocore

    return np.asarray(moocore.is_nondominated(p, keep_weakly=keep_duplicates), np.bool_)


def hypervolume(points: npt.ArrayLike, reference: npt.ArrayLike) -> float:
    """Volume between the points and a ``reference`` point (objectives,); points beyond it add nothing."""
    p, ref = _points(points), np.asarray(reference, float)
    inside = p[(p < ref).all(axis=1)]
    if len(inside) == 0:
        return 0.0
    import moocore

    return float(moocore.hypervolume(inside, ref=ref))


def crowding_distance(points: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> Floats:
    """Distance of each point of one front to its neighbours: (n,), infinite at the ends of every objective that counts.

    ``Σ_j w_j · (f_j(next) − f_j(previous)) / (max f_j − min f_j)`` with weights that sum to one (Chu et al. 2019,
    MoGA, eq. 5); without ``weights`` the mean over objectives, which is the crowding distance of NSGA-II. An objective
    in which all points agree adds nothing. Up to two points are all at an end.
    """
    f = _points(points)
    n, m = f.shape
    w = np.full(m, 1.0) if weights is None else np.asarray(weights, float)
    if w.shape != (m,) or (w < 0).any() or not w.sum() > 0:
        raise ValueError(f"{m} objectives need {m} weights that are not negative and not all zero, not {weights!r}")
    if n <= 2:
        return np.full(n, np.inf)
    total = np.zeros(n)
    for j in np.flatnonzero(w):
        order = np.argsort(f[:, j], kind="stable")
        column = f[order, j]
        span = column[-1] - column[0]
        if span == 0:
            continue
        gap = np.full(n, np.inf)
        gap[1:-1] = (column[2:] - column[:-2]) / span
        total[order] += w[j] / w.sum() * gap
    return total


def spread(points: npt.ArrayLike, k: int) -> Ints:
    """Row numbers of ``k`` non-dominated points at equal distance along the front, first objective ascending.

    Each objective is scaled to its range on the front. With two objectives "along" is the length of the line through
    the front's points, from end to end; with more, points are added one by one, each the farthest from those already
    taken, starting at the smallest first objective. Fewer than ``k`` come back where the front has fewer distinct
    points.
    """
    p = _points(points)
    front = np.flatnonzero(nondominated(p, keep_duplicates=False))
    front = front[np.lexsort(p[front].T[::-1])]
    if k <= 0 or len(front) <= k:
        return front[: max(k, 0)]
    f = p[front]
    span = f.max(axis=0) - f.min(axis=0)
    f = (f - f.min(axis=0)) / np.where(span > 0, span, 1.0)
    chosen = _along_line(f, k) if p.shape[1] == 2 else _farthest_first(f, k)
    return front[np.sort(chosen)]


def _along_line(f: Floats, k: int) -> Ints:
    length = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(f, axis=0), axis=1))])
    free = np.ones(len(f), bool)
    # A target nearest to an already taken point takes the next nearest, so that k different points come back.
    for target in np.linspace(0.0, length[-1], k) if k > 1 else [length[-1] / 2]:
        free[np.argmin(np.where(free, np.abs(length - target), np.inf))] = False
    return np.flatnonzero(~free)


def _farthest_first(f: Floats, k: int) -> Ints:
    chosen = [0]
    nearest = np.linalg.norm(f - f[0], axis=1)
    while len(chosen) < k:
        chosen.append(int(np.argmax(nearest)))
        nearest = np.minimum(nearest, np.linalg.norm(f - f[chosen[-1]], axis=1))
    return np.asarray(chosen, np.int64)


def _points(points: npt.ArrayLike) -> Floats:
    p = np.asarray(points, float)
    if p.size == 0:
        return p.reshape(0, p.shape[1] if p.ndim == 2 else 1)
    if p.ndim != 2:
        raise ValueError(f"expected an (n, objectives) array, got shape {p.shape}")
    if np.isnan(p).any():
        raise ValueError("points hold NaN")
    return p
