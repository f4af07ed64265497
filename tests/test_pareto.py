"""Pareto utilities: ranks, hypervolume, crowding distance, and choices along a front."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from latbench import pareto

few = st.integers(0, 5).map(float)
matrices = st.tuples(st.integers(1, 25), st.integers(1, 4)).flatmap(lambda s: arrays(float, s, elements=few))


def dominates(a: np.ndarray, b: np.ndarray) -> bool:
    return bool((a <= b).all() and (a < b).any())


@given(matrices)
def test_ranks_are_those_of_peeling_off_one_front_after_another(points: np.ndarray) -> None:
    expected = np.full(len(points), -1)
    left = set(range(len(points)))
    rank = 0
    while left:
        front = {i for i in left if not any(dominates(points[j], points[i]) for j in left)}
        expected[list(front)] = rank
        left -= front
        rank += 1
    assert pareto.ranks(points).tolist() == expected.tolist()
    assert [f.tolist() for f in pareto.fronts(points)] == [np.flatnonzero(expected == k).tolist() for k in range(rank)]


@given(matrices)
def test_nondominated_points_are_those_that_none_dominates(points: np.ndarray) -> None:
    expected = [not any(dominates(q, p) for q in points) for p in points]
    assert pareto.nondominated(points).tolist() == expected
    single = pareto.nondominated(points, keep_duplicates=False)
    assert len(np.unique(points[expected], axis=0)) == single.sum()


@given(arrays(float, st.tuples(st.integers(0, 12), st.just(2)), elements=few))
def test_hypervolume_is_the_area_of_the_cells_that_are_dominated(points: np.ndarray) -> None:
    cells = [(x, y) for x in range(4) for y in range(4)]
    area = sum(any(p[0] <= x and p[1] <= y for p in points) for x, y in cells)
    assert pareto.hypervolume(points, [4, 4]) == pytest.approx(area)


def test_nothing_is_a_front_too() -> None:
    none = np.empty((0, 2))
    assert pareto.ranks(none).size == pareto.nondominated(none).size == pareto.spread(none, 3).size == 0
    assert pareto.fronts(none) == []
    assert pareto.hypervolume(none, [1, 1]) == 0


def test_crowding_distance_weighs_objectives_as_equation_5_does() -> None:
    points = np.array([[0.0, 8.0], [1.0, 4.0], [3.0, 2.0], [4.0, 0.0]])
    inner = [0.4 / 0.6 * 3 / 4 + 0.2 / 0.6 * 6 / 8, 0.4 / 0.6 * 3 / 4 + 0.2 / 0.6 * 4 / 8]
    assert pareto.crowding_distance(points, [0.4, 0.2]) == pytest.approx([np.inf, *inner, np.inf])
    # A weight of zero takes an objective out of it, ends included.
    assert pareto.crowding_distance(points[:, ::-1], [0, 1]) == pytest.approx([np.inf, 0.75, 0.75, np.inf])


def test_an_objective_in_which_all_agree_adds_no_distance() -> None:
    points = np.array([[0.0, 1.0], [1.0, 1.0], [4.0, 1.0]])
    assert pareto.crowding_distance(points) == pytest.approx([np.inf, 0.5, np.inf])


def test_two_points_are_both_at_an_end() -> None:
    assert np.isinf(pareto.crowding_distance([[1.0, 2.0], [2.0, 1.0]])).all()


@pytest.mark.parametrize("weights", [[1.0], [0.0, 0.0], [-1.0, 2.0]])
def test_unusable_weights_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weights"):
        pareto.crowding_distance(np.zeros((4, 2)), weights)


def test_a_choice_along_a_line_is_at_equal_distances() -> None:
    x = np.linspace(0, 1, 101)
    points = np.c_[x, 1 - x] * [1, 1000]
    assert pareto.spread(points, 5).tolist() == [0, 25, 50, 75, 100]


def test_a_choice_along_a_front_leaves_dominated_points_out() -> None:
    points = np.array([[0, 3], [1, 1], [3, 0], [2, 2], [0, 3]], float)
    assert pareto.spread(points, 10).tolist() == [0, 1, 2]
    assert pareto.spread(points, 2).tolist() == [0, 2]
    assert pareto.spread(points, 0).tolist() == []


@given(arrays(float, st.tuples(st.integers(1, 20), st.integers(2, 3)), elements=few), st.integers(1, 6))
def test_a_choice_has_k_different_nondominated_points(points: np.ndarray, k: int) -> None:
    chosen = pareto.spread(points, k)
    front = np.unique(points[pareto.nondominated(points)], axis=0)
    assert len({tuple(p) for p in points[chosen].tolist()}) == len(chosen) == min(k, len(front))
    assert pareto.nondominated(points)[chosen].all()


def test_points_that_hold_nan_are_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        pareto.ranks([[1.0, np.nan]])
