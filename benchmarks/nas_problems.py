"""NAS-Bench-201 by its tables: problems, their true fronts, and pymoo's NSGA-II, for the benchmarks of searchers."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from benchmarks.common import data_file
from benchmarks.nas_tables import DEGENERATE_MS
from latbench import pareto
from latbench.evaluators import TabularEvaluator
from latbench.problem import Objective, Problem
from latbench.search_driver import Driver
from latbench.searching import make_searcher
from latbench.space import Arch
from latbench.spaces.nasbench201 import NasBench201

Floats: TypeAlias = npt.NDArray[np.float64]
SPACE = NasBench201()
ALL = np.stack(np.unravel_index(np.arange(SPACE.size), SPACE.num_choices), axis=1)


def column(file: str, name: str) -> Floats:
    """A column of one of the tables, in the order of :data:`ALL`."""
    import pyarrow.parquet as pq

    table = pq.read_table(data_file(file), columns=["arch_str", name])
    archs = np.asarray([SPACE.from_string(s) for s in table["arch_str"].to_pylist()])
    out = np.empty(SPACE.size)
    out[index(archs)] = table[name].to_numpy()
    return out


def index(archs: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Row numbers of architectures in :data:`ALL`."""
    return np.asarray(np.ravel_multi_index(np.asarray(archs).T, SPACE.num_choices), np.int64)


@dataclass(frozen=True)
class TabularLatency:
    """Exact latency, as :class:`latbench.problem.CheapValues`; NaN where a network is not to be used."""

    latency_ms: Floats
    names: tuple[str, ...] = ("latency_ms",)

    def __call__(self, archs: npt.NDArray[np.int64]) -> dict[str, Floats]:
        """See :class:`latbench.problem.CheapValues`."""
        return {"latency_ms": self.latency_ms[index(archs)]}


class Tabular:
    """Error on a data set against latency on a device; hypervolume of both min-max normalised, reference (1, 1)."""

    def __init__(self, dataset: str, device: str) -> None:
        self.error = 1 - column("nasbench201_accuracy.parquet", f"{dataset}_test_acc") / 100
        self.latency = column("nasbench201_latency_ms.parquet", device)
        self.latency[self.latency < DEGENERATE_MS] = np.nan
        ok = np.isfinite(self.latency)
        points = np.stack([self.error, self.latency], axis=1)
        self.points = (points - points[ok].min(axis=0)) / np.ptp(points[ok], axis=0)
        self.usable = ok
        self.truth = pareto.hypervolume(self.points[ok], (1, 1))

    @property
    def problem(self) -> Problem:
        """The problem as searchers see it."""
        return Problem(SPACE, (Objective("error"), Objective("latency_ms")), cheap_values=TabularLatency(self.latency))

    @cached_property
    def evaluator(self) -> TabularEvaluator:
        """Errors by architecture."""
        archs = map(tuple, ALL.tolist())
        return TabularEvaluator({a: {"error": float(e)} for a, e in zip(archs, self.error, strict=True)})

    def share(self, archs: list[Arch]) -> float:
        """Share of the true hypervolume."""
        return pareto.hypervolume(self.points[index(archs)], (1, 1)) / self.truth

    def search(self, searcher: str, seed: int, budget: int, **options: Any) -> list[Arch]:
        """What a searcher of latbench evaluates, in order."""
        problem = self.problem
        driver = Driver(problem, make_searcher(searcher, problem, seed, options), self.evaluator, budget=budget)
        driver.run()
        return [c.arch for c in driver.candidates if c.evaluated]

    def pymoo(self, seed: int, budget: int, population: int = 20) -> list[Arch]:
        """What pymoo's NSGA-II evaluates: integers, its default operators, rounded. Repeats and what is not usable
        cost nothing, as in the searches of latbench."""
        seen: dict[Arch, None] = {}
        for rows in self._pymoo(seed, population):
            seen.update((tuple(ALL[i].tolist()), None) for i in rows if self.usable[i])
            if len(seen) >= budget:
                break
        return list(seen)[:budget]

    def pymoo_generations(
        self, seed: int, population: int, generations: int, points: Floats | None = None
    ) -> list[npt.NDArray[np.int64]]:
        """The rows of :data:`ALL` that pymoo's NSGA-II evaluates in each of so many generations.

        ``points`` are other objectives, all to minimise: (architectures, objectives).
        """
        return list(islice(self._pymoo(seed, population, points), generations))

    def _pymoo(self, seed: int, population: int, points: Floats | None = None) -> Iterator[npt.NDArray[np.int64]]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from pymoo.algorithms.moo.nsga2 import NSGA2
            from pymoo.core.problem import Problem as PymooProblem
            from pymoo.operators.crossover.sbx import SBX
            from pymoo.operators.mutation.pm import PM
            from pymoo.operators.repair.rounding import RoundingRepair
            from pymoo.operators.sampling.rnd import IntegerRandomSampling

        algorithm = NSGA2(
            pop_size=population, sampling=IntegerRandomSampling(), eliminate_duplicates=True,
            crossover=SBX(prob=0.9, eta=3.0, vtype=float, repair=RoundingRepair()),
            mutation=PM(prob=1.0, eta=3.0, vtype=float, repair=RoundingRepair()),
        )  # fmt: skip
        points = self.points if points is None else points
        bounds = PymooProblem(n_var=SPACE.positions, n_obj=points.shape[1], xl=0, xu=4, vtype=int)
        algorithm.setup(bounds, termination=("n_gen", 10**6), seed=seed, verbose=False)
        while True:
            asked = algorithm.ask()
            rows = index(np.asarray(asked.get("X")).astype(int))
            asked.set("F", np.where(self.usable[rows, None], points[rows], 9.0))
            algorithm.tell(infills=asked)
            yield rows
