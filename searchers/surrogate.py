"""A model-based searcher: learns what evaluation gives, takes latency and counts as they are known, and asks for what
is expected to enlarge the front most.

What only an evaluation tells (the error) is believed by a Gaussian process over the space's features; what the problem
gives for nothing (latency from a predictor, parameters, MACs) is used exactly. Each proposal has the largest expected
hypervolume improvement among architectures that keep the limits; those of one batch take the ones before them for
known at their expected values (kriging believer: Ginsbourger, Le Riche and Carraro 2010), and so do those whose answers
are still out. Limits on values that only an evaluation gives count with the probability that they are kept, and so do
those on predicted values where the problem's ``limit_on`` is ``"low"`` (Gardner et al. 2014, eq. 3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from latbench.problem import Candidate, Problem
from latbench.searcher import Searcher, whole_option
from latbench.space import Arch

from .gaussian import Floats, GaussianProcess, Scale
from .improvement import Beliefs, expected
from .sampling import Unseen, as_archs, check_state

Ints = npt.NDArray[np.int64]

#: Spaces up to this size are looked through as a whole; of larger ones, samples and what is near the front.
_WHOLE = 1 << 14
_SAMPLE, _RANDOM, _NEAR, _REFINEMENTS, _TOP = 2048, 1024, 1024, 2, 24
#: Of a pool this many, the most promising, are looked at again for each proposal of a batch.
_SHORTLIST = 400
#: Hyperparameters are learnt anew when there is this much more to learn from than the last time.
_LEARN_AGAIN = 1.2
#: Chance of keeping its limits from which a network is one that others must be better than.
_LIKELY = 0.5


class Surrogate(Searcher):
    """Gaussian processes and expected hypervolume improvement.

    ``initial`` architectures are random ones, spread over the first objective that is known beforehand; then ``batch``
    at a time are proposed. ``max_tries`` bounds the draws of one ``ask`` where limits are tight; see
    :class:`~.sampling.Unseen`.
    """

    name = "surrogate"
    asynchronous = True

    def __init__(
        self, problem: Problem, *, seed: int = 0, initial: int = 10, batch: int = 5, max_tries: int = 20_000
    ) -> None:
        super().__init__(problem, seed=seed)
        self.initial = whole_option(self.name, "initial", initial, 2)
        self.batch = whole_option(self.name, "batch", batch, 1)
        self._rng = np.random.default_rng(seed)
        self._unseen = Unseen(problem, seed, whole_option(self.name, "max_tries", max_tries, 1))
        self._told: dict[Arch, Candidate] = {}
        self._asked: list[Arch] = []
        self._theta: dict[str, list[float]] = {}
        self._learnt_from = 0
        self._setup: _Known | None = None

    # -- the contract -------------------------------------------------------------------------------------------

    def ask(self, n: int) -> list[Arch]:
        """Up to ``n`` architectures that are expected to enlarge the front most, the most promising first."""
        out: list[Arch] = []
        if (start := min(n, self.initial - len(self._told) - len(self._asked))) > 0:
            out = self._spread_out(start)
        known = [c for c in self._told.values() if c.evaluated and c.feasible]
        if len(out) < n and len(known) > 1:
            out += self._most_promising(n - len(out), out)
        self._unseen.fill(out, n, {*self._told, *self._asked}, feasible=bool(known))
        self._asked += out
        return out

    def tell(self, candidates: Sequence[Candidate]) -> None:
        """Remember the answers; the next ``ask`` learns from them."""
        for c in candidates:
            if c.arch in self._asked:
                self._asked.remove(c.arch)
            self._told.setdefault(c.arch, c)

    def state(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "searcher": self.name,
            "rng": self._rng.bit_generator.state,
            "unseen": self._unseen.state(),
            "told": [c.to_json() for c in self._told.values()],
            "asked": [list(a) for a in self._asked],
            "theta": self._theta,
            "learnt_from": self._learnt_from,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state`."""
        check_state(self.name, state)
        self._rng.bit_generator.state = state["rng"]
        self._unseen.restore(state["unseen"])
        self._told = {c.arch: c for c in map(Candidate.from_json, state["told"])}
        self._asked = as_archs(state["asked"])
        self._theta = {name: [float(x) for x in theta] for name, theta in state["theta"].items()}
        self._learnt_from = int(state["learnt_from"])

    # -- proposals ----------------------------------------------------------------------------------------------

    @property
    def _known(self) -> _Known:
        if self._setup is None:
            self._setup = _Known(self.problem, self.seed)
        return self._setup

    def _spread_out(self, n: int) -> list[Arch]:
        """Random ones, one of each of ``n`` equal parts of eight times as many by the known objective."""
        drawn = self._unseen.draw(8 * n, {*self._told, *self._asked})
        axis = self._known.axis
        if axis is None or len(drawn) <= n:
            return drawn[:n]
        order = np.argsort(self.problem.cheap(drawn)[axis], kind="stable")
        return [drawn[int(self._rng.choice(part))] for part in np.array_split(order, n)]

    def _most_promising(self, n: int, also: Sequence[Arch]) -> list[Arch]:
        waiting = [*self._asked, *also]
        learnt = self._learn()
        taken = {*self._told, *waiting}
        if self._known.whole is not None:
            rows = [i for i, a in enumerate(self._known.archs) if a not in taken]
            pool = self._known.whole.take(np.asarray(rows, np.int64))
        else:
            front = np.asarray([c.arch for c in self.problem.front(list(self._told.values()))], np.int64)
            random = self.problem.space.sample_archs(_RANDOM, self._rng)
            pool = self._fresh([random, self._mutants(front, _NEAR)] if len(front) else [random], taken)
        for step in range(_REFINEMENTS + 1):
            if not len(pool.archs):
                return []
            choice = _Choice(self._known, learnt, list(self._told.values()), pool, waiting)
            # What is believed of a batch's first makes the others promise less, never more.
            order = np.argsort(-choice.gain(), kind="stable")
            if self._known.whole is not None or step == _REFINEMENTS:
                break
            pool = self._fresh([pool.archs, self._mutants(pool.archs[order[:_TOP]], _NEAR)], taken)
        choice.keep(order[: _SHORTLIST + n])
        return [choice.best() for _ in range(min(n, len(pool.archs)))]

    def _learn(self) -> dict[str, GaussianProcess]:
        """A Gaussian process for each value that only an evaluation gives."""
        told = [c for c in self._told.values() if c.evaluated]
        again = len(told) >= _LEARN_AGAIN * self._learnt_from
        x = self._known.features(np.asarray([c.arch for c in told], np.int64))
        front = self._known.front(told)
        out = {}
        for name in self._known.learnt:
            sign = -1.0 if name in self._known.maximised else 1.0
            given = np.asarray([sign * c.values.get(name, np.nan) for c in told])
            # What failed is taken for as bad as the worst, so that the search leaves its surroundings.
            y = np.where(np.isnan(given), np.nanmax(given, initial=-np.inf), given)
            if name not in self._known.limited and front:
                y = pressed(y, max(sign * c.values[name] for c in front))
            gp = GaussianProcess(len(x), self._theta.get(name))
            gp.fit(x, sign * y, learn=again)
            self._theta[name], out[name] = gp.theta.tolist(), gp
        if again:
            self._learnt_from = len(told)
        return out

    def _fresh(self, archs: Sequence[Ints], taken: set[Arch]) -> _Points:
        """Those of the architectures that keep the limits and that are not taken."""
        rows = np.unique(np.concatenate(archs), axis=0)
        rows = rows[[tuple(a) not in taken for a in rows.tolist()]]
        points = self._known.points(rows)
        return points.take(np.flatnonzero(points.values["violation"] == 0))

    def _mutants(self, parents: Ints, n: int) -> Ints:
        """``n`` children: some crossed with another parent, all with another choice at one to three positions."""
        rng, choices = self._rng, np.asarray(self.problem.space.num_choices)
        child, other = (parents[rng.integers(0, len(parents), n)] for _ in range(2))
        crossed = (rng.random(n) < 0.3)[:, None] & (rng.random(child.shape) < 0.5)
        changed = rng.random(child.shape) < rng.integers(1, 4, n)[:, None] / len(choices)
        changed[np.arange(n), rng.integers(0, len(choices), n)] = True
        return np.where(changed, rng.integers(0, choices, child.shape), np.where(crossed, other, child))


@dataclass(frozen=True)
class _Points:
    """Architectures (m, positions), their features by group, and what is known of them without evaluation."""

    archs: Ints
    x: list[Floats]
    values: dict[str, Floats]

    def take(self, rows: Ints) -> _Points:
        return _Points(self.archs[rows], [g[rows] for g in self.x], {n: v[rows] for n, v in self.values.items()})


class _Known:
    """What a problem gives before anything is evaluated; ``whole``, where the space is small enough, is all of it."""

    def __init__(self, problem: Problem, seed: int) -> None:
        self.problem, space = problem, problem.space
        small = space.size <= _WHOLE
        archs = (
            np.stack(np.unravel_index(np.arange(space.size), space.num_choices), axis=1)
            if small else space.sample_archs(_SAMPLE, np.random.default_rng([seed, 0xB0C5]))
        )  # fmt: skip
        self._scales = [(i, s) for i, s in enumerate(map(Scale, space.features(archs))) if s.useful]
        sample = self.points(archs)
        sample = sample.take(np.flatnonzero(sample.values["violation"] == 0))
        self.whole = sample if small else None
        self.archs: list[Arch] = [tuple(a) for a in sample.archs.tolist()] if small else []
        names = [o.name for o in problem.objectives]
        self.maximised = {o.name for o in problem.objectives if o.maximise}
        #: Values that only an evaluation gives and that a limit is set on, with the limit.
        self.limited = {n: v for n, v in problem.limits.items() if n not in sample.values}
        self.learnt = list(dict.fromkeys([n for n in names if n not in sample.values] + list(self.limited)))
        #: A known objective that the first architectures are spread over.
        self.axis = next((n for n in names if n in sample.values), None)
        self.sample = sample

    def features(self, archs: Ints) -> list[Floats]:
        """Scaled features of (m, positions) architectures, by group."""
        groups = self.problem.space.features(archs)
        return [scale(groups[i]) for i, scale in self._scales]

    def chance(self, values: Mapping[str, Floats]) -> Floats | float:
        """How likely limits on what is predicted are kept, where those are searched that only may keep them."""
        return self.problem.chance(values) if self.problem.limit_on == "low" else 1.0

    def front(self, told: Sequence[Candidate]) -> list[Candidate]:
        """What others must be better than: the best of those that keep their limits more likely than not."""
        return self.problem.front(
            [c for c in told if self.chance({n: np.asarray(v) for n, v in c.values.items()}) >= _LIKELY]
        )

    def points(self, archs: Ints) -> _Points:
        """Architectures with their features and known values."""
        return _Points(archs, self.features(archs), self.problem.cheap(archs))


class _Choice:
    """Which points of a pool promise most, one after the other."""

    def __init__(
        self, known: _Known, learnt: dict[str, GaussianProcess], told: Sequence[Candidate], pool: _Points,
        waiting: Sequence[Arch],
    ) -> None:  # fmt: skip
        self._archs = pool.archs
        # The last rows are those whose answers are out: no candidates, but believed in.
        out = np.asarray(waiting, np.int64).reshape(-1, pool.archs.shape[1])
        points = known.points(out)
        self._n = len(pool.archs)
        x = [np.concatenate([a, b]) for a, b in zip(pool.x, points.x, strict=True)]
        self._beliefs = {name: gp.predict(x) for name, gp in learnt.items()}
        self._limits = known.limited
        # Believed objectives first: see improvement.expected.
        self._objectives = sorted(known.problem.objectives, key=lambda o: o.name not in learnt)
        problem = replace(known.problem, objectives=tuple(self._objectives))
        front = problem.matrix(known.front(told))
        values = {n: np.concatenate([pool.values[n], points.values[n]]) for n in pool.values}
        mean = np.stack([
            (-1 if o.maximise else 1) * (self._beliefs[o.name].mean if o.name in learnt else values[o.name])
            for o in self._objectives
        ], axis=1)  # fmt: skip
        low, high = self._box(problem, known, told)
        self._unit = high - low
        self._chance = np.broadcast_to(known.chance(values), len(mean))
        self._mean, self._front = (mean - low) / self._unit, (front - low) / self._unit
        for i in range(self._n, len(mean)):
            self._believe(i)

    def keep(self, rows: Ints) -> None:
        """Only these points are left to choose from."""
        self._archs, self._mean, self._n = self._archs[rows], self._mean[rows], len(rows)
        self._chance = self._chance[rows]
        self._beliefs = {name: b.take(rows) for name, b in self._beliefs.items()}
        self._free = np.ones(self._n, bool)

    def _box(self, problem: Problem, known: _Known, told: Sequence[Candidate]) -> tuple[Floats, Floats]:
        """The least and the largest value of each objective, among what is known and what was told."""
        f = problem.matrix([c for c in told if c.feasible])
        f = f[np.isfinite(f).all(axis=1)]
        low, high = f.min(axis=0), f.max(axis=0)
        for j, o in enumerate(problem.objectives):
            if (column := known.sample.values.get(o.name)) is not None and len(column):
                column = -column if o.maximise else column
                low[j], high[j] = min(low[j], column.min()), max(high[j], column.max())
        return low, np.where(high > low, high, low + 1.0)

    def gain(self) -> Floats:
        """Expected hypervolume improvement of each point of the pool, times the chance that it keeps its limits."""
        from scipy.special import ndtr

        sd = np.zeros((self._n, len(self._objectives)))
        for j, o in enumerate(self._objectives):
            if o.name in self._beliefs:
                sd[:, j] = self._beliefs[o.name].sd[: self._n] / self._unit[j]
        out = expected(self._front, Beliefs(self._mean[: self._n], sd))
        out *= self._chance[: self._n]
        for name, limit in self._limits.items():
            b = self._beliefs[name]
            out *= ndtr((limit - b.mean[: self._n]) / np.maximum(b.sd[: self._n], 1e-12))
        return out

    def best(self) -> Arch:
        """The most promising one that is left; from now on it counts as known."""
        i = int(np.argmax(np.where(self._free, self.gain(), -1.0)))
        self._free[i] = False
        self._believe(i)
        arch: Arch = tuple(self._archs[i].tolist())
        return arch

    def _believe(self, i: int) -> None:
        if self._chance[i] >= _LIKELY:
            self._front = np.vstack([self._front, self._mean[i]])
        for belief in self._beliefs.values():
            belief.believe(i)


def pressed(y: Floats, bend: float) -> Floats:
    """Values (n,) to minimise, those beyond ``bend`` pressed together: ``bend + s log(1 + (y − bend) / s)``.

    ``s`` is the distance of their median from their least. With the worst of the front as ``bend`` no improvement
    depends on how much worse others are, but a few networks that learn nothing would make up most of the variance and
    leave little of it to tell the good ones apart.
    """
    s = float(np.median(y) - y.min())
    beyond = np.maximum(y - bend, 0.0)
    return y if s <= 0 else np.asarray(np.minimum(y, bend) + s * np.log1p(beyond / s))
