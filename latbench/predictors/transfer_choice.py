"""Which networks to measure on a new device: those that leave least unknown of all others.

Under the prior that other devices give (:mod:`latbench.predictors.transfer_prior`) the variance that measurements leave
is known before they are taken: it depends on which architectures are measured, not on what comes out. Candidates are
taken one by one, each the one that lowers the mean variance over the space most (greedy A-optimal design in the space
of functions, "ALC" of Cohn 1996, "Neural network exploration using optimal experiment design").
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from latbench.arch_times import ArchTimes
from latbench.errors import ConfigError
from latbench.predictors.transfer_prior import REFERENCE, Parts, Prior, learn
from latbench.space import SearchSpace

Floats = npt.NDArray[np.float64]

#: Candidates that are looked at: more are drawn from at random.
MOST_CANDIDATES = 2000


def choose_networks(
    space: SearchSpace,
    candidates: npt.ArrayLike,
    sources: Mapping[str, ArchTimes | tuple[npt.ArrayLike, npt.ArrayLike]] | None = None,
    n: int = 20,
    seed: int = 0,
) -> npt.NDArray[np.int64]:
    """(n,) row numbers of ``candidates`` (m, positions) that are worth measuring, the most telling first.

    ``sources`` maps names of other devices to their ``(archs, latency_ms)`` in the space, as in :func:`latbench.fit`;
    without any it spreads them over what the space knows of its architectures. ``seed`` draws the rows of the sources
    that are learnt from, as in a fit, the architectures that stand for the space, and the candidates where they are
    more than :data:`MOST_CANDIDATES`. Raises :class:`ArchitectureError`, and :class:`ConfigError` where there are fewer
    than ``n`` candidates.
    """
    pool = space.validate_archs(candidates)
    if not 1 <= n <= len(pool):
        raise ConfigError(f"choose_networks: n is a number from 1 to the {len(pool)} candidates, not {n}")
    given = {
        name: x if isinstance(x, ArchTimes) else ArchTimes.of(space, *x, what=f"sources[{name!r}]")
        for name, x in (sources or {}).items()
    }
    prior = learn(space, given, seed)
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.permutation(len(pool))[: max(MOST_CANDIDATES, n)])
    reference = prior.parts(space.sample_archs(REFERENCE, rng))
    chosen = greedy(prior, prior.parts(pool[rows]), reference, n)
    return np.asarray(rows[chosen], np.int64)


def greedy(prior: Prior, candidates: Parts, reference: Parts, n: int) -> npt.NDArray[np.int64]:
    """(n,) places among the candidates, by the medians of the variances that the prior knows."""
    theta = np.median(prior.thetas, axis=0)
    v = np.exp(theta)
    own = np.tensordot(v[:-1], candidates.kernels(candidates), 1)
    to = np.tensordot(v[:-1], reference.kernels(candidates), 1)
    variance = np.diagonal(own).copy()
    chosen: list[int] = []
    # Columns of what the chosen ones explain, so that each step costs one product.
    explained = np.zeros((0, len(candidates)))
    for _ in range(n):
        gain = (to**2).mean(axis=0) / (variance + v[-1])
        gain[chosen] = -1.0
        j = int(np.argmax(gain))
        chosen.append(j)
        left = own[:, j] - explained.T @ explained[:, j]
        scaled = left / np.sqrt(variance[j] + v[-1])
        to = to - np.outer(to[:, j] / np.sqrt(variance[j] + v[-1]), scaled)
        variance = np.maximum(variance - scaled**2, 0)
        explained = np.concatenate([explained, scaled[None]])
    return np.array(chosen, np.int64)
