"""RCAS grows networks greedily: lazily as eagerly the same, within its limits, with an account of what it saved."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from search_support import table

import latbench as lb
from latbench import plugins
from latbench.cheap import SpaceValues
from latbench.errors import ConfigError, InfeasibleError, SearchError
from latbench.evaluators import FunctionEvaluator
from latbench.problem import Candidate, Objective, Problem
from latbench.space import Arch, SearchSpace
from latbench.testing.searchers import Make, SearcherConformance, ToyOptionalProblem, ToyOptionalSpace, ToySpace

Rcas: Any = plugins.load("searchers", "rcas")
SPACE = lb.load_space("rcas", base="cifar", resolution=8, width_mult=0.25, num_classes=10)
START = SPACE.from_types([5 if i in (0, 6, 12, 24) else 0 for i in range(36)])


class TestRcasConforms(SearcherConformance):
    toy = ToyOptionalProblem
    ends = True

    @pytest.fixture
    def make(self) -> Make:
        return lambda problem, seed: Rcas(problem, seed=seed)


class TestEagerRcasConforms(SearcherConformance):
    toy = ToyOptionalProblem
    ends = True

    @pytest.fixture
    def make(self) -> Make:
        return lambda problem, seed: Rcas(problem, seed=seed, lazy=False)


class Coverage:
    """A weighted cover: each block covers some points, the error is the weight of what is left. Submodular."""

    def __init__(self, space: SearchSpace, seed: int, points: int = 60) -> None:
        rng = np.random.default_rng(seed)
        # Such that sums are exact: a rounding error would break a tie.
        self.weights = rng.integers(1, 1024, points)
        self.covers = rng.random((space.positions, max(space.num_choices), points)) < 0.12
        self.nothing = [n - 1 if n == 7 else None for n in space.num_choices]
        if isinstance(space, ToyOptionalSpace):
            self.nothing = [0] * space.positions

    def error(self, arch: Arch) -> float:
        held = [self.covers[i, c] for i, c in enumerate(arch) if c != self.nothing[i]]
        left = ~np.any(held, axis=0) if held else np.ones(len(self.weights), bool)
        return float(self.weights[left].sum() / 2**16)

    def evaluator(self) -> FunctionEvaluator:
        return FunctionEvaluator(lambda space, arch: self.error(arch))


def run(space: SearchSpace, f: FunctionEvaluator, budget: int = 5000, **options: Any) -> Any:
    given = {"objectives": ["error", "params"], **options}
    return lb.search("rcas", space=space, accuracy=f, budget=budget, **given)


def picks(course: Sequence[Mapping[str, float]], rule: int = 0) -> list[tuple[int, int]]:
    return [(int(r["position"]), int(r["choice"])) for r in course if r["rule"] == rule]


@pytest.mark.parametrize("gain", ["uniform", "params", "macs", "latency_ms"])
@pytest.mark.parametrize("seed", [0, 1])
def test_lazy_and_eager_greedy_take_the_same_blocks_of_a_submodular_objective(gain: str, seed: int) -> None:
    f = Coverage(SPACE, seed).evaluator()
    setup = {"latency": table(SPACE), "limits": {"params": 120_000}, "gains": [gain], "seed": seed}
    lazy, eager = run(SPACE, f, **setup), run(SPACE, f, lazy=False, **setup)
    assert len(picks(lazy.course)) > 4
    assert picks(lazy.course) == picks(eager.course)
    last, yardstick = lazy.course[-1], eager.course[-1]
    # What laziness claims to have saved is what eager greedy really spends more.
    assert last["eager_evaluations"] == yardstick["evaluations"] == len(eager.candidates)
    assert last["evaluations"] == len(lazy.candidates)
    assert last["saved"] == len(eager.candidates) - len(lazy.candidates) > 0.4 * len(eager.candidates)


def test_greedy_takes_what_an_independent_greedy_takes() -> None:
    space = ToyOptionalSpace(5, 3)
    cover = Coverage(space, 3, points=25)
    result = run(space, cover.evaluator(), limits={"params": 600}, gains=["params"], objectives=["error", "macs"])
    arch, expected = (0,) * 5, []
    while True:
        best, found = -1.0, None
        for i in range(5):
            for c in (1, 2):
                bigger = (*arch[:i], c, *arch[i + 1 :])
                cost = space.network(bigger).params - space.network(arch).params
                if arch[i] == 0 and space.network(bigger).params <= 600:
                    gain = (cover.error(arch) - cover.error(bigger)) / cost
                    if gain > best:
                        best, found = gain, (i, c)
        if found is None:
            break
        arch = (*arch[: found[0]], found[1], *arch[found[0] + 1 :])
        expected.append(found)
    assert picks(result.course) == expected
    assert 1 < len(expected) < 5


def test_the_better_of_two_rules_is_found_where_each_alone_is_bad() -> None:
    # One block gains most and fills the limit alone, or cheap ones together gain more.
    space = ToyOptionalSpace(4, 3)
    least = space.network((0,) * 4).params
    limit = least + (space.network((2, 0, 0, 0)).params - least)
    for worth, winner in ((0.4, "params"), (0.7, "uniform")):
        f = FunctionEvaluator(lambda _, a, w=worth: 1 - max(w * (2 in a), 0.3 * min(a.count(1), 2)))
        ends = {}
        for gain in ("uniform", "params"):
            alone = run(space, f, limits={"params": limit}, gains=[gain])
            ends[gain] = f.function(space, _grown((0,) * 4, picks(alone.course)))
        assert min(ends, key=lambda g: float(ends[g])) == winner
        assert ends["uniform"] != ends["params"]
        both = run(space, f, limits={"params": limit}, gains=["uniform", "params"])
        assert both.front[0].values["error"] == ends[winner]


def _grown(start: Arch, taken: list[tuple[int, int]]) -> Arch:
    arch = list(start)
    for i, c in taken:
        arch[i] = c
    return tuple(arch)


def test_each_rule_divides_by_the_cost_of_the_whole_network() -> None:
    f = Coverage(SPACE, 5).evaluator()
    model = table(SPACE)
    result = run(SPACE, f, latency=model, limits={"macs": 2e6}, objectives=["error", "latency_ms"])
    assert sorted({r["rule"] for r in result.course}) == [0, 1, 2, 3]
    for rule, value in enumerate((None, "params", "macs", "latency_ms")):
        arch = list(START)
        for r in (r for r in result.course if r["rule"] == rule):
            before = tuple(arch)
            arch[int(r["position"])] = int(r["choice"])
            if value in ("params", "macs"):
                nets = [SPACE.network(a) for a in (before, arch)]
                assert r["cost"] == getattr(nets[1], value) - getattr(nets[0], value)
            elif value:
                ms = [model.predict(SPACE.network(a)).latency_ms for a in (before, arch)]
                assert r["cost"] == pytest.approx(ms[1] - ms[0])
            else:
                assert r["cost"] == 1


@pytest.mark.parametrize(
    ("name", "limit"), [("params", 90_000), ("macs", 5e5), ("latency_ms", 0.5), ("peak_memory_bytes@x", 48_000)]
)
def test_no_network_breaks_a_limit_and_in_the_end_no_block_fits(name: str, limit: float) -> None:
    f = Coverage(SPACE, 2).evaluator()

    class Values(SpaceValues):
        """With a memory that grows with the widest block."""

        names = (*SpaceValues(SPACE, {"": table(SPACE)}, counts=True).names, "peak_memory_bytes@x")

        def __call__(self, archs: Any) -> Any:
            out = super().__call__(archs)
            return {**out, "peak_memory_bytes@x": 20_000 + 40 * np.sqrt(out["macs"])}

    problem = Problem(
        SPACE, (Objective("error"),), {name: limit}, cheap_values=Values(SPACE, {"": table(SPACE)}, counts=True)
    )
    searcher = Rcas(problem, gains=["uniform", "params"])
    done: list[Candidate] = []
    while archs := searcher.ask(searcher.batch):
        rows = problem.cheap(archs)
        told = [problem.candidate(a, {n: c[i] for n, c in rows.items()}, {"error": f.function(SPACE, a)})
                for i, a in enumerate(archs)]  # fmt: skip
        searcher.tell(told)
        done += told
    assert all(c.feasible for c in done)
    for rule in (0, 1):
        arch = _grown(START, picks(searcher.course, rule))
        free = [i for i, n in enumerate(SPACE.num_choices) if n == 7 and arch[i] == 6]
        more = [(*arch[:i], c, *arch[i + 1 :]) for i in free for c in range(6)]
        assert 4 < 32 - len(free) < 32
        assert (problem.cheap(more)["violation"] > 0).all()


def test_a_block_that_does_not_fit_is_taken_when_it_fits_later() -> None:
    # The block at position 1 is dear until position 0 is taken: a neighbour makes its input narrow.
    class Shrinking:
        names = ("macs_like",)

        def __call__(self, archs: Any) -> Any:
            a = np.asarray(archs)
            dear = np.where(a[:, 0] > 0, 1.0, 9.0)
            return {"macs_like": 1.0 + (a[:, 0] > 0) + dear * (a[:, 1] > 0)}

    space = ToyOptionalSpace(2, 2)
    problem = Problem(space, (Objective("error"),), {"macs_like": 4.0}, cheap_values=Shrinking())
    searcher = Rcas(problem, gains=["uniform"])
    seen = []
    while archs := searcher.ask(9):
        seen += archs
        searcher.tell([Candidate(a, {"error": 1 - 0.3 * a[0] - 0.5 * a[1]}) for a in archs])
    assert seen[-1] == (1, 1)
    assert (0, 1) not in seen


def test_the_search_starts_from_type_5_where_a_position_cannot_stay_empty() -> None:
    result = run(SPACE, Coverage(SPACE, 0).evaluator(), budget=194, gains=["uniform"])
    first = {c.arch for c in result.candidates[:193]}
    assert START in first
    # The start with each of six types at each of the 32 positions that are empty.
    assert len(first) == 193
    assert all(sum(a != b for a, b in zip(arch, START, strict=True)) <= 1 for arch in first)


def test_the_start_shrinks_where_it_would_break_a_limit_and_says_what_is_smallest() -> None:
    least = (0, *[6] * 5, 0, *[6] * 5, 0, *[6] * 11, 0, *[6] * 11)
    smallest = min(SPACE.network((a, *least[1:6], b, *least[7:12], c, *least[13:24], d, *least[25:])).params
                   for a, b, c, d in {(0,) * 4, (1,) * 4, (0, 1, 1, 1)})  # fmt: skip
    assert smallest < SPACE.network(START).params
    result = run(SPACE, Coverage(SPACE, 0).evaluator(), budget=3, limits={"params": smallest}, gains=["uniform"])
    assert result.candidates[0].values["params"] <= smallest
    with pytest.raises(
        InfeasibleError, match=r"params ≤ 10: the cheapest found is \[.*the search can start from|start"
    ):
        run(SPACE, Coverage(SPACE, 0).evaluator(), budget=3, limits={"params": 10})


def test_a_start_of_ones_own_is_built_upon() -> None:
    mine = SPACE.from_types([1, 2, 0, 0, 0, 0] + [1, 0, 0, 0, 0, 0] * 5)
    result = run(SPACE, Coverage(SPACE, 0).evaluator(), budget=400, start=list(mine), gains=["uniform"])
    assert all(all(m == 6 or m == c for m, c in zip(mine, x.arch, strict=True)) for x in result.candidates)


def test_spaces_without_empty_positions_are_refused_by_name() -> None:
    for space in (ToySpace(), lb.load_space("mobilenetv3", resolution=32)):
        with pytest.raises(ConfigError, match=rf"{space.name} has none.*rcas, proxyless or nasbench201"):
            Rcas(Problem(space, (Objective("error"),)))


@pytest.mark.parametrize("space", ["proxyless", "nasbench201"])
def test_other_spaces_with_empty_positions_are_searched_too(space: str) -> None:
    s = lb.load_space(space, resolution=32, **({"channels": 4, "num_cells": 1} if space == "nasbench201" else {}))
    f = FunctionEvaluator(lambda s, arch: 1 / (2 + sum((c * 7 + i) % 5 for i, c in enumerate(arch))))
    result = run(s, f, budget=200, gains=["uniform", "macs"])
    assert result.course
    assert len(result.front) > 1
    if space == "nasbench201":
        assert (1,) * 6 in {c.arch for c in result.candidates}


@pytest.mark.parametrize(
    ("option", "value", "right"),
    [
        ("gains", [], "a list of different rules among uniform, params, macs, latency_ms"),
        ("gains", "params", "a list of different rules"),
        ("gains", ["params", "params"], "a list of different rules"),
        ("gains", ["energy"], "a list of different rules"),
        ("lazy", 1, "true or false"),
    ],
)
def test_unusable_options_are_refused(option: str, value: object, right: str) -> None:
    with pytest.raises(ConfigError, match=f"^rcas: {option} must be {right}"):
        Rcas(ToyOptionalProblem().problem, **{option: value})


def test_a_start_that_fails_ends_the_search_with_its_reason() -> None:
    with pytest.raises(SearchError, match=r"rcas: the network that it starts from, .* failed: .*NaN|nan|finite"):
        run(SPACE, FunctionEvaluator(lambda s, a: float("nan")), budget=400, max_failures=1000)


def test_blocks_whose_training_diverges_are_not_taken() -> None:
    space = ToyOptionalSpace(4, 3)
    f = FunctionEvaluator(lambda s, a: float("nan") if a[2] else 1 / (1 + sum(a)))
    result = run(space, f, gains=["uniform"], max_failures=100)
    assert {i for i, _ in picks(result.course)} == {0, 1, 3}


def test_a_search_that_was_stopped_anywhere_goes_on_to_the_same_end(tmp_path: Path) -> None:
    f = Coverage(SPACE, 4)
    setup: dict[str, Any] = {"limits": {"params": 60_000}, "objectives": ["error", "params"]}
    whole = lb.search("rcas", space=SPACE, accuracy=f.evaluator(), budget=900, **setup)
    assert len(whole.candidates) < 900
    parts = [100, 200, 230, len(whole.candidates) - 1, 900]
    for budget in parts:
        result = lb.search("rcas", space=SPACE, accuracy=FunctionEvaluator(lambda s, a: f.error(a), recipe="cover"),
                           budget=budget, run=tmp_path / "r", **setup)  # fmt: skip
    assert [c.arch for c in result.candidates] == [c.arch for c in whole.candidates]
    assert result.course == whole.course


def test_workers_change_nothing() -> None:
    f = Coverage(SPACE, 4).evaluator()
    one, four = (run(SPACE, f, limits={"params": 50_000}, workers=w) for w in (1, 4))
    assert one.candidates == four.candidates
    assert one.course == four.course


def test_the_state_is_plain_json_of_modest_size() -> None:
    toy = ToyOptionalProblem()
    searcher = Rcas(toy.problem)
    toy.run(searcher, 200)
    assert len(json.dumps(searcher.state(), allow_nan=False)) < 40_000


def test_coverage_is_submodular_as_the_tests_assume() -> None:
    space = ToyOptionalSpace(4, 2)
    f = Coverage(space, 0, points=12)
    for small, large in combinations([(0, 0, 0, 0), (1, 0, 0, 0), (1, 1, 0, 0)], 2):
        gains = [f.error(a) - f.error((*a[:3], 1)) for a in (small, large)]
        assert gains[0] >= gains[1] - 1e-12


def test_of_blocks_that_all_lose_something_the_cheapest_goes_first() -> None:
    space = ToyOptionalSpace(3, 4)
    worse = FunctionEvaluator(lambda _, arch: 0.1 + 0.01 * sum(c > 0 for c in arch))
    r = run(space, worse, gains=["params"])
    assert [row["choice"] for row in r.course] == [1, 1, 1], "the smallest kernel, at each position"
    # A smaller loss goes before a larger one of the same cost, and any gain before both.
    errors = {0: 0.0, 1: -0.02, 2: 0.01, 3: 0.03}
    single = ToyOptionalSpace(4, 2)
    r = run(
        single, FunctionEvaluator(lambda _, a: 0.5 + sum(errors[i] for i, c in enumerate(a) if c)), gains=["params"]
    )
    assert [row["position"] for row in r.course] == [1, 0, 2, 3]
