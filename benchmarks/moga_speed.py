"""How long MoGA's own search takes: 120 generations of 70, latency and accuracy from tables, on one core.

Error, latency and parameters (many) on NAS-Bench-201 (ImageNet16-120, gold_6240), the paper's weights; beside it
pymoo's NSGA-II with the same three objectives, population, generations and tables; it knows no weights. Target: at most
3 s of one core's time.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from benchmarks.common import finish, parser, table, verdict
from benchmarks.nas_problems import ALL, SPACE, Floats, Tabular, index
from latbench.problem import Objective, Problem
from latbench.search_driver import Driver
from latbench.searching import make_searcher

POPULATION, GENERATIONS, TARGET_S = 70, 120, 3.0


@dataclass(frozen=True)
class LatencyAndParams:
    """Values from tables, as :class:`latbench.problem.CheapValues`."""

    latency_ms: Floats
    params: Floats
    names: tuple[str, ...] = ("latency_ms", "params")

    def __call__(self, archs: npt.NDArray[np.int64]) -> dict[str, Floats]:
        """See :class:`latbench.problem.CheapValues`."""
        rows = index(archs)
        return {"latency_ms": self.latency_ms[rows], "params": self.params[rows]}


def points(tabular: Tabular, params: Floats) -> Floats:
    """The three objectives of all architectures, to minimise, each over its range: (architectures, 3).

    What is not usable counts for no range; pymoo takes it for worse than all others.
    """
    out = np.stack([tabular.error, tabular.latency, -params], axis=1)
    low, high = out[tabular.usable].min(axis=0), out[tabular.usable].max(axis=0)
    return np.asarray((out - low) / (high - low))


def main() -> int:
    """Run both, print; 1 where the target is missed."""
    args = parser(__doc__).parse_args()
    tabular = Tabular("imagenet16_120", "gold_6240")
    ops = SPACE.ops()
    params = SPACE.usage(ALL)[1] @ np.asarray([op.params for op in ops], float)
    objectives = tuple(Objective.parse(o) for o in ("error", "latency_ms", "-params"))
    problem = Problem(SPACE, objectives, cheap_values=LatencyAndParams(tabular.latency, params))
    evaluator, budget = tabular.evaluator, POPULATION * GENERATIONS
    started = time.process_time()
    searcher = make_searcher("moga", problem, args.seed, {"population": POPULATION})
    driver = Driver(problem, searcher, evaluator, budget=budget)
    driver.run()
    ours = time.process_time() - started
    started = time.process_time()
    generations = tabular.pymoo_generations(args.seed, POPULATION, GENERATIONS, points(tabular, params))
    theirs = time.process_time() - started
    evaluations = sum(map(len, generations))
    table(
        f"{GENERATIONS} generations × {POPULATION}",
        ("", "CPU s", "evaluations", "target"),
        [
            ("moga", f"{ours:.2f}", len(driver.candidates), f"≤ {TARGET_S:g} s: {verdict(ours <= TARGET_S)}"),
            ("NSGA-II (pymoo)", f"{theirs:.2f}", evaluations, ""),
        ],
    )
    figures = {
        "moga_s": ours, "pymoo_s": theirs, "evaluations": len(driver.candidates), "pymoo_evaluations": evaluations,
        "met": ours <= TARGET_S,
    }  # fmt: skip
    finish(args, "moga_speed", figures)
    return 0 if figures["met"] else 1


if __name__ == "__main__":
    sys.exit(main())
