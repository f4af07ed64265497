"""Limits that are kept on the device, not only by prediction.

A search picks the networks that its latency model is most optimistic about (the winner's curse), so that more of its
winners break a limit than the level of the intervals says. Here winners are measured, one that breaks its limit is
replaced by the next on the front, and the upper end of the interval is recalibrated from these measurements: split
conformal prediction (Vovk, Gammerman and Shafer 2005; Lei et al. 2018, section 2.2) on the ratios of measured to
predicted latency of networks chosen as winners are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, inf, isfinite, log
from statistics import NormalDist

from latbench.errors import ConfigError
from latbench.problem import Candidate, Problem
from latbench.space import Arch


@dataclass(frozen=True)
class Winner:
    """A winner that was measured: predicted, the upper end that it was chosen by, and measured, in milliseconds."""

    candidate: Candidate
    predicted_ms: float
    high_ms: float
    measured_ms: float
    #: Whether it was chosen for its upper end, and not on trial for a better winner.
    chosen: bool = True


@dataclass(frozen=True)
class Kept:
    """The winner of one limit.

    ``tried`` are all winners that were measured for this limit, in order; the last one is ``winner`` where it keeps the
    limit. ``winner`` is None where the measurements that were allowed did not suffice.
    """

    limit_ms: float
    winner: Candidate | None
    tried: tuple[Winner, ...]

    @property
    def broke_first(self) -> bool:
        """Whether the search's own winner broke the limit."""
        return bool(self.tried) and self.tried[0].measured_ms > self.limit_ms

    @property
    def extra(self) -> int:
        """Measurements beyond the first."""
        return max(len(self.tried) - 1, 0)


class WinnersFactor:
    """How far beyond their prediction winners come out: a factor on the predicted latency at a level.

    Before anything is measured the factor is one. With n winners measured it is the ⌈level (n + 1)⌉-th smallest of
    their ratios of measured to upper end, their largest where n is too small for the level, and never below one: what
    the model's own interval promises is not narrowed.
    """

    def __init__(self, level: float = 0.9) -> None:
        if not 0 < level < 1:
            raise ConfigError(f"level: an interval's level is between 0 and 1, not {level}")
        self.level, self._ratios = level, list[float]()

    def learn(self, winner: Winner) -> None:
        """Take a measured winner into account. Raises :class:`ConfigError` for latencies that are not positive."""
        ratio = winner.measured_ms / winner.high_ms if winner.high_ms > 0 else float("nan")
        if not (isfinite(ratio) and ratio > 0):
            raise ConfigError(
                f"a winner's latencies must be positive, got {winner.measured_ms} and {winner.high_ms} ms"
            )
        self._ratios.append(ratio)

    @property
    def factor(self) -> float:
        """What multiplies the upper end of an interval."""
        n = len(self._ratios)
        rank = min(ceil(self.level * (n + 1) - 1e-9), n)
        return max(sorted(self._ratios)[rank - 1], 1.0) if n else 1.0


def keep_limit(
    problem: Problem,
    candidates: Sequence[Candidate],
    limit_ms: float,
    measure: Callable[[Candidate], float],
    *,
    name: str = "latency_ms",
    extra: int = 3,
    factor: WinnersFactor | None = None,
    known: Mapping[Arch, float] | None = None,
) -> Kept:
    """The best candidate by the first other objective whose *measured* latency keeps ``limit_ms``.

    Candidates whose recalibrated upper end keeps the limit are tried from the best on: each is given to ``measure``,
    which tells milliseconds, and teaches ``factor``; at most ``extra`` measurements are made after the first. What is
    left of them when a winner keeps the limit goes to better candidates that may keep it too, though their upper end
    does not (there are such where the search's limits were set with ``limit_on="value"`` or ``"low"``). Give the same
    ``factor`` to several calls on one device, so that each profits from the measurements of those before.

    Candidates are those of a search (``result.candidates``), with the latency value ``name``. ``known`` are
    milliseconds of those that were picked and measured before: they teach ``factor`` first, the best of them that keeps
    the limit is the first winner, and at most ``extra`` measurements are made in all. A latency that is no positive
    number, of a network that did not run, counts as beyond the limit. Raises :class:`ConfigError`.
    """
    if not limit_ms > 0 or extra < 0:
        raise ConfigError(f"a limit is positive and extra measurements are not negative, got {limit_ms!r}, {extra!r}")
    goals = [o for o in problem.objectives if o.name != name]
    if not goals:
        raise ConfigError(f"nothing but {name} is an objective: there is no best network within a limit on it")
    learnt = factor or WinnersFactor(problem.level)
    high = name.replace("latency_ms", "latency_high_ms", 1)
    sign = -1 if goals[0].maximise else 1
    left = [c for c in candidates if c.feasible and name in c.values and goals[0].name in c.values]
    left.sort(key=lambda c: (sign * c.values[goals[0].name], c.values[name]))
    tried: list[Winner] = []
    winner: Candidate | None = None

    def goal(c: Candidate) -> float:
        return sign * c.values[goals[0].name]

    def take(c: Candidate, measured: float, *, teach: bool) -> None:
        nonlocal winner
        ran = isfinite(measured) and measured > 0
        w = Winner(c, c.values[name], c.values.get(high, c.values[name]), measured if ran else inf, winner is None)
        if ran and teach:
            learnt.learn(w)
        if winner is None or goal(c) < goal(winner):
            tried.append(w)
            winner = c if w.measured_ms <= limit_ms else winner

    before = [c for c in left if known and c.arch in known]
    for c in before:
        left.remove(c)
        take(c, float(known[c.arch]) if known else inf, teach=True)
    for _ in range(extra if before else 1 + extra):
        best = _next(left, winner, limit_ms, learnt, goal, name, high)
        if best is None:
            break
        left.remove(best)
        take(best, float(measure(best)), teach=winner is None)
    return Kept(limit_ms, winner, tuple(tried))


def _next(
    left: Sequence[Candidate],
    winner: Candidate | None,
    limit_ms: float,
    learnt: WinnersFactor,
    goal: Callable[[Candidate], float],
    name: str,
    high: str,
) -> Candidate | None:
    """The best whose upper end keeps the limit, if it is better than the winner; else what promises most to be so.

    That is by its gain times the chance that it keeps the limit, the error of the prediction taken for log-normal.
    """
    ends = [(c.values[name], c.values.get(high, c.values[name])) for c in left]
    safe = next((c for c, (_, end) in zip(left, ends, strict=True) if end * learnt.factor <= limit_ms), None)
    if winner is not None and safe is not None and goal(safe) < goal(winner):
        return safe
    if winner is None:
        # Where none is left the most cautious one is tried, as long as measurements are.
        return safe or min(left, key=lambda c: c.values.get(high, c.values[name]), default=None)
    z = NormalDist().inv_cdf((1 + learnt.level) / 2)
    promise = [
        (goal(winner) - goal(c)) * NormalDist().cdf(log(limit_ms / value) / max(log(max(end / value, 1)) / z, 1e-9))
        for c, (value, end) in zip(left, ends, strict=True)
    ]
    best = max(range(len(left)), key=promise.__getitem__, default=None)
    return left[best] if best is not None and promise[best] > 0 else None
