"""From probabilities to architectures."""

from __future__ import annotations

from itertools import islice, pairwise, product

import numpy as np
import pytest

from latbench import plugins
from latbench.errors import InfeasibleError
from latbench.testing.searchers import ToyProblem

plugins.load("searchers", "random")
from latbench.searchers.deriving import _priced, best_first, derive, usable_choices  # noqa: E402


@pytest.mark.parametrize("shape", [(3, 1, 4, 2), (2,), (1, 1), (5, 5, 5)])
def test_best_first_gives_every_architecture_once_by_falling_score(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(len(shape))
    scores = [rng.normal(size=n) for n in shape]
    found = list(best_first(scores))
    assert sorted(found) == list(product(*map(range, shape)))
    totals = [sum(s[c] for s, c in zip(scores, a, strict=True)) for a in found]
    assert all(x >= y - 1e-12 for x, y in pairwise(totals))


def test_equal_scores_and_forbidden_choices_are_no_trouble() -> None:
    scores = [np.array([0.0, -np.inf, 0.0]), np.zeros(2)]
    assert sorted(best_first(scores)) == [(0, 0), (0, 1), (2, 0), (2, 1)]
    assert list(best_first([np.full(2, -np.inf), np.zeros(2)])) == []


def test_a_long_network_gives_its_first_architectures_at_once() -> None:
    scores = list(np.random.default_rng(0).normal(size=(648, 7)))
    first = list(islice(best_first(scores), 300))
    assert len(set(first)) == 300
    assert first[0] == tuple(int(s.argmax()) for s in scores)


def test_the_most_probable_that_keep_the_limits_are_derived() -> None:
    free = ToyProblem(4, 3)
    scores = list(np.random.default_rng(2).normal(size=(4, 3)))
    archs = list(best_first(scores))
    latency = dict(zip(archs, free.problem.cheap(archs)["latency_ms"].tolist(), strict=True))
    # The first one keeps it.
    toy = ToyProblem(4, 3, limit=latency[archs[0]] + 1e-9)
    keep = [a for a in archs if latency[a] <= latency[archs[0]] + 1e-9]
    assert derive(toy.problem, scores, list(free.costs), 5, set()) == keep[:5]
    assert derive(toy.problem, scores, list(free.costs), 2, set(keep[:2])) == keep[2:4]


def test_where_the_most_probable_is_too_slow_costs_decide_as_much_as_they_must() -> None:
    free = ToyProblem(8, 4)
    scores = list(np.cumsum(np.random.default_rng(3).uniform(0.1, 1, (8, 4)), axis=1))
    least = float(free.costs.min(axis=1).sum())
    toy = ToyProblem(8, 4, limit=1.3 * least)
    found = derive(toy.problem, scores, list(free.costs), 10, set())
    assert len(found) == 10
    cheap = toy.problem.cheap(found)
    assert (cheap["violation"] == 0).all()
    # Better than the cheapest, and not far below the limit.
    total = [sum(s[c] for s, c in zip(scores, a, strict=True)) for a in (found[0], free.costs.argmin(axis=1))]
    assert total[0] > total[1]
    assert cheap["latency_ms"][0] > 1.1 * least


def test_choices_that_no_device_supports_are_not_usable() -> None:
    usable = usable_choices(ToyProblem(unsupported=True).problem)
    assert usable[0].tolist() == [True, True, True, False]
    assert all(row.all() for row in usable[1:])
    with pytest.raises(InfeasibleError, match="supports no choice at position 0"):
        usable_choices(ToyProblem(3, 1, unsupported=True).problem)


def test_costs_are_priced_no_higher_than_the_limit_needs() -> None:
    free, rng = ToyProblem(8, 4), np.random.default_rng(5)
    scores = list(rng.normal(size=(8, 4)))
    costs = list(free.costs)
    limit = float(np.quantile(free.problem.cheap(free.problem.space.sample_archs(500, 0))["latency_ms"], 0.1))
    problem = ToyProblem(8, 4, limit=limit).problem

    def best(price: float) -> tuple[int, ...]:
        return tuple(int(np.argmax(s - price * c)) for s, c in zip(scores, costs, strict=True))

    def keeps(price: float) -> bool:
        return bool(problem.cheap([best(price)])["violation"][0] == 0)

    # Dearer is never slower, so that the least price is where the first of a fine grid keeps the limit.
    prices = np.linspace(0, 20, 4001)
    first = next(p for p in prices if keeps(p))
    assert first > 0
    low, least = first - prices[1], first
    for _ in range(40):
        middle = (low + least) / 2
        low, least = (low, middle) if keeps(middle) else (middle, least)
    order = _priced(problem, scores, costs)
    price = (scores[0] - order[0])[1:] / costs[0][1:]
    assert np.ptp(price) < 1e-9
    assert price[0] == pytest.approx(least, rel=1e-4)
    assert next(best_first(order)) == best(least)
    # Nothing is priced where the likeliest keeps the limit, nor where no price helps.
    assert _priced(ToyProblem(8, 4, limit=100.0).problem, scores, costs) is scores
    assert _priced(problem, scores, [-c for c in costs]) is scores
