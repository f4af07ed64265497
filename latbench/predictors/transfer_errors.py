"""How wrong a transfer usually is, and how sure it was: every source once in the part of the new device.

For a source in that part, a few of its architectures from one stretch of its rows (a session: rows are mostly in the
order in which they were measured, and devices drift) are all that a fit may see; its errors are taken at others of all
its rows. They give the intervals of a real new device their shape (:class:`latbench.conformal.Normalised`).
"""

from __future__ import annotations

from collections.abc import Mapping
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from latbench.arch_times import ArchTimes
from latbench.predictors.transfer_posterior import LeftOut, Posterior
from latbench.predictors.transfer_prior import LEAST, Prior

Floats = npt.NDArray[np.float64]

#: How often each source plays the part, at how many architectures its errors are taken, and its shortest session.
REPEATS, ASKED, SESSION = 3, 200, 300
#: A deviation counts up to so many times the median one of the measured networks, left out in turn.
LIMIT = 3.0

_KNOWN: WeakKeyDictionary[Prior, dict[tuple[int, int], tuple[Floats, Floats]]] = WeakKeyDictionary()


def episodes(
    prior: Prior, alone: Prior, sources: Mapping[str, ArchTimes], n: int, seed: int = 0
) -> tuple[Floats, Floats]:
    """Scores of sources in the part of a new device with ``n`` measurements: left out (e, n), and elsewhere (e, m).

    A source with fewer than twice as many architectures plays no part; with one source nobody does. Both are kept for
    the next call with the same prior.
    """
    known = _KNOWN.setdefault(prior, {})
    if (n, seed) not in known:
        rows = [
            _episode(prior.without(s), alone, times, n, np.random.default_rng([seed, s, repeat]))
            for s, times in enumerate(sources.values())
            if prior.sources > 1 and len(times) >= 2 * n
            for repeat in range(REPEATS)
        ]
        left = np.stack([a for a, _ in rows]) if rows else np.zeros((0, n))
        known[n, seed] = left, np.stack([b for _, b in rows]) if rows else np.zeros((0, ASKED))
    return known[n, seed]


def widest(left_out: LeftOut) -> float:
    """The largest deviation that intervals follow. It tells which networks are harder; a network so far from all that
    were measured that the deviation is a multiple of those that were ever checked, it cannot tell by how much."""
    return LIMIT * float(np.median(left_out.sd))


def _episode(prior: Prior, alone: Prior, times: ArchTimes, n: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    order = np.arange(len(times)) if times.order is None else np.argsort(times.order, kind="stable")
    usable = order[times.values[order] >= LEAST * np.median(times.values)]
    length = min(max(SESSION, len(usable) // 16), len(usable) // 2 + n // 2)
    start = int(rng.integers(0, len(usable) - length + 1))
    seen = rng.choice(usable[start : start + length], min(n, length), replace=False)
    others = np.setdiff1d(usable, seen)
    asked = rng.choice(others, ASKED, replace=len(others) < ASKED)
    fitted = Posterior([prior.noisier(), alone], times.archs[seen], np.log(times.values[seen]))
    limit = widest(fitted.left_out)
    own = (fitted.y - fitted.left_out.mean) / np.minimum(fitted.left_out.sd, limit)
    mean, sd = fitted(times.archs[asked])
    # A source with too few for n measurements repeats some of its scores.
    return np.abs(np.resize(own, n)), np.abs(np.log(times.values[asked]) - mean) / np.minimum(sd, limit)
