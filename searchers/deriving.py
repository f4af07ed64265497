"""From what was learnt of each position to architectures: the most probable ones that keep the limits.

Exactly those where the most probable of all keeps the limits. Else a price on what is limited (a Lagrange multiplier)
decides where they are looked for, which may miss a likelier one: a heuristic, and the published methods have none.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence, Set
from itertools import islice
from math import inf

import numpy as np
import numpy.typing as npt

from latbench.problem import Problem
from latbench.space import Arch

Floats = npt.NDArray[np.float64]
#: Architectures that are looked at in search of those that keep the limits.
_LOOKED_AT = 2048
_CHUNK = 256
#: Weights of the costs against log-probabilities that are tried where the most probable breaks a limit.
_PRICES = [1e-3 * 2.0**k for k in range(24)]
_SAMPLE = 2048


def best_first(scores: Sequence[Floats]) -> Iterator[Arch]:
    """All architectures by falling sum of their choices' scores; a choice of score −∞ is never taken."""
    order = [np.argsort(-s, kind="stable")[: int(np.isfinite(s).sum())] for s in scores]
    ranked = [s[o] for s, o in zip(scores, order, strict=True)]
    if not all(len(r) for r in ranked):
        return
    # Positions by what their second choice costs: a successor changes the last changed one or the one after it, so
    # that each architecture is reached once, from a better one (Lawler's scheme for sums).
    free = [i for i, r in enumerate(ranked) if len(r) > 1]
    free.sort(key=lambda i: ranked[i][0] - ranked[i][1])
    drop = [ranked[i][0] - ranked[i] for i in free]

    def arch(ranks: tuple[tuple[int, int], ...]) -> Arch:
        chosen = [int(o[0]) for o in order]
        for j, r in ranks:
            chosen[free[j]] = int(order[free[j]][r])
        return tuple(chosen)

    yield arch(())
    if not free:
        return
    # (loss against the best, a tie-breaker, ((position, rank), …) with ranks above 0, positions rising)
    heap: list[tuple[float, int, tuple[tuple[int, int], ...]]] = [(float(drop[0][1]), 0, ((0, 1),))]
    made = 1
    while heap:
        loss, _, ranks = heapq.heappop(heap)
        yield arch(ranks)
        *head, (j, r) = ranks
        following = []
        if r + 1 < len(drop[j]):
            following.append((loss - drop[j][r] + drop[j][r + 1], (*head, (j, r + 1))))
        if j + 1 < len(drop):
            following.append((loss + drop[j + 1][1], (*ranks, (j + 1, 1))))
            if r == 1:
                following.append((loss - drop[j][1] + drop[j + 1][1], (*head, (j + 1, 1))))
        for value, successor in following:
            heapq.heappush(heap, (float(value), made, successor))
            made += 1


def derive(problem: Problem, scores: Sequence[Floats], costs: Sequence[Floats], n: int, seen: Set[Arch]) -> list[Arch]:
    """Up to ``n`` architectures that nobody has ``seen`` and that keep the limits, by falling sum of ``scores``.

    ``scores`` are log-probabilities per position. Where the best of all keeps the limits, they are the best that do.
    Where it breaks one, they are the first that do in the order of scores less price · ``costs`` (per position, what
    each choice adds to what is limited, in any unit), at the least price at which the first in it keeps all limits;
    among others there may be better ones. Fewer come back where few of some thousand keep the limits.
    """
    order = _priced(problem, scores, costs)
    every = best_first(order)
    kept: list[Arch] = []
    for _ in range(_LOOKED_AT // _CHUNK):
        chunk = list(islice((a for a in every if a not in seen), _CHUNK))
        if not chunk:
            break
        kept += [a for a, v in zip(chunk, _violations(problem, chunk), strict=True) if v == 0]
        if len(kept) >= n:
            break
    if order is not scores:
        kept.sort(key=lambda a: -sum(float(s[c]) for s, c in zip(scores, a, strict=True)))
    return kept[:n]


def _priced(problem: Problem, scores: Sequence[Floats], costs: Sequence[Floats]) -> Sequence[Floats]:
    """The scores less costs at the least price at which the best keeps all limits; the scores where none is found."""

    def at(price: float) -> list[Floats]:
        return [s - price * c for s, c in zip(scores, costs, strict=True)]

    def keeps(s: Sequence[Floats]) -> bool:
        return _violations(problem, [next(best_first(s))])[0] == 0

    if not problem.limits or keeps(scores):
        return scores
    low = 0.0
    for high in _PRICES:
        if keeps(at(high)):
            for _ in range(20):
                middle = (low + high) / 2
                low, high = (low, middle) if keeps(at(middle)) else (middle, high)
            return at(high)
        low = high
    return scores


def usable_choices(problem: Problem) -> list[npt.NDArray[np.bool_]]:
    """Which choices of each position every device supports, whatever the others are among those left.

    Exact where the values are sums over positions, and in spaces of up to two thousand architectures; else from that
    many random ones. Raises :class:`InfeasibleError` where a position has no such choice.
    """
    space = problem.space
    allowed = [np.ones(n, bool) for n in space.num_choices]
    for name in problem.models:
        if (sums := problem.cost_matrix(name)) is not None:
            for i, row in enumerate(allowed):
                row &= ~np.isnan(sums[0][i, : len(row)])
    _some_left(problem, allowed)
    rng = np.random.default_rng(0)
    while True:
        archs = _among(allowed, rng)
        refused = ~np.isfinite(problem.cheap(archs)["violation"])
        if not refused.any():
            return allowed
        # The choice that is refused most often goes, until none is refused.
        rates = [
            (float(refused[archs[:, i] == c].mean()), i, int(c))
            for i, row in enumerate(allowed)
            for c in np.flatnonzero(row)
            if (archs[:, i] == c).any() and row.sum() > 1
        ]
        if not rates:
            _some_left(problem, [row & False for row in allowed])
        _, i, c = max(rates)
        allowed[i][c] = False


def _among(allowed: Sequence[npt.NDArray[np.bool_]], rng: np.random.Generator) -> npt.NDArray[np.int64]:
    choices = [np.flatnonzero(row) for row in allowed]
    if np.prod([float(len(c)) for c in choices]) <= _SAMPLE:
        return np.stack(np.meshgrid(*choices, indexing="ij"), -1).reshape(-1, len(choices))
    return np.stack([rng.choice(c, _SAMPLE) for c in choices], axis=1)


def _some_left(problem: Problem, allowed: Sequence[npt.NDArray[np.bool_]]) -> None:
    for i, row in enumerate(allowed):
        if not row.any():
            raise problem.infeasible(f"the device supports no choice at position {i}", None)


def _violations(problem: Problem, archs: Sequence[Arch]) -> list[float]:
    return [v if np.isfinite(v) else inf for v in problem.cheap(list(archs))["violation"].tolist()]
