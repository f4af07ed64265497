"""MoGA's search: NSGA-II whose crowding distance weighs the objectives.

Chu, Zhang, Xu, "MoGA: Searching Beyond MobileNetV3", ICASSP 2020: −accuracy, latency and −parameters with weights 0.4,
0.4, 0.2 in the crowding distance (eq. 5), population 70, 120 generations, binary tournaments, single-point crossover,
hierarchical mutation. With equal weights this is NSGA-II (Deb et al. 2002), limits by constraint domination.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any

import numpy as np
import numpy.typing as npt

from latbench.errors import ConfigError
from latbench.problem import Candidate, Problem
from latbench.searcher import Searcher, share_option, whole_option
from latbench.space import Arch

from .sampling import Unseen, as_archs, check_state, unseen_children
from .selection import rank_and_crowding, survivors
from .variation import Mutation, Variation

Ints = npt.NDArray[np.int64]

#: Weights of eq. 5, by objective.
PAPER_WEIGHTS = {"error": 0.4, "latency_ms": 0.4, "-params": 0.2}


class Moga(Searcher):
    """Weighted NSGA-II.

    ``population`` parents have as many children each generation (70 in the paper, for 8,400 evaluations; ten learn
    faster from a few hundred). ``weights`` are those of the objectives in the crowding distance, one each: by default
    the objectives' own, and where these are error, latency_ms and -params without weights of their own, the paper's
    0.4, 0.4, 0.2.
    With probability ``crossover`` a child has two parents, with ``mutation_rate`` it is mutated (always, if it would be
    a copy otherwise). ``mutation="hierarchical"`` picks a layer first, then one property of its choice (kernel,
    expansion, …); ``"uniform"`` picks a layer and any other choice. Children that break a hard limit on a value known
    without evaluation are replaced, within a bounded number of tries.
    """

    name = "moga"

    def __init__(
        self,
        problem: Problem,
        *,
        seed: int = 0,
        population: int = 10,
        weights: Sequence[float] | None = None,
        crossover: float = 0.9,
        mutation_rate: float = 0.8,
        mutation: Mutation = "hierarchical",
        max_tries: int = 20_000,
    ) -> None:
        super().__init__(problem, seed=seed)
        self.weights = _default_weights(problem) if weights is None else _checked_weights(problem, weights)
        self.population = whole_option(self.name, "population", population, 4)
        if mutation not in ("hierarchical", "uniform"):
            raise ConfigError(f"moga: mutation is 'hierarchical' or 'uniform', not {mutation!r}")
        self._variation = Variation(problem.space, mutation)
        self.crossover = share_option(self.name, "crossover", crossover)
        self.mutation_rate = share_option(self.name, "mutation_rate", mutation_rate)
        self.batch = self.population
        self._rng = np.random.default_rng(seed)
        self._unseen = Unseen(problem, seed, whole_option(self.name, "max_tries", max_tries, 1))
        self._parents: list[Candidate] = []
        self._children: list[Candidate] = []
        self._told: set[Arch] = set()
        self._asked: set[Arch] = set()
        self.generation = 0

    # -- the contract -------------------------------------------------------------------------------------------

    def ask(self, n: int) -> list[Arch]:
        """Up to ``n`` children of the present parents, random ones before there are any; none that was seen.

        No call gives more than the present generation lacks, so that a budget that ends within a generation and is
        raised later goes on with that generation.
        """
        n = min(n, self.population - (len(self._children) + len(self._asked)) % self.population)
        out = self._breed(n) if self._parents else []
        self._unseen.fill(out, n, self._told | self._asked, feasible=any(c.feasible for c in self._parents))
        self._asked.update(out)
        return out

    def tell(self, candidates: Sequence[Candidate]) -> None:
        """Collect children; a full generation of them competes with its parents for survival."""
        for c in candidates:
            self._asked.discard(c.arch)
            if c.arch in self._told:
                continue
            self._told.add(c.arch)
            self._children.append(c)
            if len(self._children) >= self.population:
                pool = self._parents + self._children
                keep = survivors(
                    self.problem.matrix(pool), [c.violation for c in pool], self.population, self.weights,
                    [c.soft_violation for c in pool],
                )  # fmt: skip
                self._parents, self._children = [pool[i] for i in keep], []
                self.generation += 1

    def state(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "searcher": self.name,
            "rng": self._rng.bit_generator.state,
            "unseen": self._unseen.state(),
            "parents": [c.to_json() for c in self._parents],
            "children": [c.to_json() for c in self._children],
            "told": [list(a) for a in sorted(self._told)],
            "asked": [list(a) for a in sorted(self._asked)],
            "generation": self.generation,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state`."""
        check_state(self.name, state)
        self._rng.bit_generator.state = state["rng"]
        self._unseen.restore(state["unseen"])
        self._parents = [Candidate.from_json(c) for c in state["parents"]]
        self._children = [Candidate.from_json(c) for c in state["children"]]
        self._told, self._asked = set(as_archs(state["told"])), set(as_archs(state["asked"]))
        self.generation = int(state["generation"])

    # -- variation ----------------------------------------------------------------------------------------------

    def _breed(self, n: int) -> list[Arch]:
        """Up to ``n`` new children that keep the limits; fewer, or none, after a bounded number of tries."""
        rank, crowding = rank_and_crowding(
            self.problem.matrix(self._parents), [c.violation for c in self._parents], self.weights
        )
        soft = np.asarray([c.soft_violation for c in self._parents])
        # Position in the order of preference: the tournament's winner is the smaller.
        merit = np.empty(len(rank), np.int64)
        merit[np.lexsort((-crowding, soft, rank))] = np.arange(len(rank))
        archs = np.asarray([c.arch for c in self._parents], np.int64)
        return unseen_children(self.problem, lambda k: self._children_of(archs, merit, k), n, self._told | self._asked)

    def _children_of(self, parents: Ints, merit: Ints, n: int) -> list[Arch]:
        """``n`` children of the winners of binary tournaments."""
        rng = self._rng
        contestants = rng.integers(0, len(merit), (n, 2, 2))
        winners = np.take_along_axis(contestants, merit[contestants].argmin(axis=2)[..., None], axis=2)[..., 0]
        first, second = parents[winners[:, 0]], parents[winners[:, 1]]
        crossed = rng.random(n) < self.crossover
        child = np.where(crossed[:, None], self._variation.cross(first, second, rng), first)
        copies = np.asarray([tuple(a) in self._told for a in child.tolist()], bool)
        mutated = (rng.random(n) < self.mutation_rate) | copies
        child[mutated] = self._variation.mutate(child[mutated], rng)
        return [tuple(a) for a in child.tolist()]


def _default_weights(problem: Problem) -> list[float]:
    own = [o.weight for o in problem.objectives]
    if set(own) == {1.0} and {str(o) for o in problem.objectives} == set(PAPER_WEIGHTS):
        return [PAPER_WEIGHTS[str(o)] for o in problem.objectives]
    return own


def _checked_weights(problem: Problem, weights: Any) -> list[float]:
    names = ", ".join(map(str, problem.objectives))
    given = list(weights) if isinstance(weights, Sequence) and not isinstance(weights, str) else []
    numbers = all(isinstance(w, int | float) and not isinstance(w, bool) and 0 <= w < inf for w in given)
    if not numbers or len(given) != len(problem.objectives) or not sum(given) > 0:
        raise ConfigError(
            f"moga: weights must be a list of {len(problem.objectives)} numbers, one each for {names}, none negative, "
            f"not all zero, got {weights!r}"
        )
    return given
