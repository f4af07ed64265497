"""The search problem: objectives, limits, candidates, and values that need no training."""

from __future__ import annotations

import json
from math import inf, nan

import numpy as np
import numpy.typing as npt
import pytest
from search_support import SETTING, table, toy_evaluator

from latbench.cheap import SpaceValues, check_feasible, latency_models
from latbench.errors import ArchitectureError, ConfigError, InfeasibleError, NotAdditiveError, UnknownOpError
from latbench.load import load_space
from latbench.network import Network
from latbench.predictor import Predictor
from latbench.predictors.table import Table
from latbench.problem import Candidate, Objective, Problem
from latbench.searching import pose
from latbench.space import SearchSpace
from latbench.testing.searchers import ToySpace
from latbench.visit import ArchEstimates, Estimate


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    return load_space("mobilenetv3", resolution=32, width_mult=0.25, num_classes=10)


@pytest.fixture(scope="module")
def cells() -> SearchSpace:
    return load_space("nasbench201", num_cells=1)


def test_an_objective_is_written_with_a_minus_where_more_is_better() -> None:
    assert Objective.parse("-params") == Objective("params", maximise=True)
    assert Objective.parse("latency_ms@pixel-1.b") == Objective("latency_ms@pixel-1.b")
    assert str(Objective.parse("-params")) == "-params"


@pytest.mark.parametrize("text", ["", "-", "--params", "latency ms", "latency_ms@"])
def test_an_objective_that_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="objective"):
        Objective.parse(text)


def test_a_candidate_survives_json_bit_for_bit() -> None:
    c = Candidate((1, 2), {"error": 0.1 + 0.2, "latency_ms": 1 / 3}, inf, 7, {"failed": "error is nan"}, 0.25)
    assert Candidate.from_json(json.loads(json.dumps(c.to_json(), allow_nan=False))) == c


@pytest.mark.parametrize("name", ["space", "cells"])
def test_parameters_and_macs_are_those_of_the_networks(name: str, request: pytest.FixtureRequest) -> None:
    s: SearchSpace = request.getfixturevalue(name)
    archs = s.sample_archs(5, seed=0)
    values = SpaceValues(s, {}, counts=True)(archs)
    nets = [s.network(a) for a in archs.tolist()]
    assert values["params"].tolist() == [n.params for n in nets]
    assert values["macs"].tolist() == [n.macs for n in nets]


def test_parameters_of_a_space_that_is_not_additive_are_counted_only_when_asked_for(cells: SearchSpace) -> None:
    assert SpaceValues(cells, {}).names == ()
    assert pose(cells, {}, toy_evaluator(), ["error", "-params"], {}, {}).cheap_values.names == ("params", "macs")


def test_latencies_and_intervals_are_those_of_the_model(space: SearchSpace) -> None:
    model = table(space, wide=0.2)
    archs = space.sample_archs(4, seed=1)
    values = SpaceValues(space, {"": model})(archs)
    for i, a in enumerate(archs.tolist()):
        e = model.predict(space.network(a))
        found = [values[n][i] for n in ("latency_ms", "latency_low_ms", "latency_high_ms")]
        assert found == pytest.approx([e.latency_ms, e.low_ms, e.high_ms])


def test_several_devices_give_one_value_each_and_plain_names_stand_for_all(space: SearchSpace) -> None:
    models = latency_models({"a": table(space), "b": table(space, slow=2)})
    problem = pose(space, models, toy_evaluator(), ["error", "latency_ms"], {"latency_ms": 5, "latency_ms@b": 4}, {})
    assert [str(o) for o in problem.objectives] == ["error", "latency_ms@a", "latency_ms@b"]
    assert problem.limits == {"latency_ms@a": 5, "latency_ms@b": 4}
    v = problem.cheap(space.sample_archs(3, 0))
    assert v["latency_ms@b"] == pytest.approx(2 * v["latency_ms@a"])


def test_a_limit_is_checked_against_the_upper_end_of_the_interval(space: SearchSpace) -> None:
    models = {"": table(space, wide=0.1)}
    arch = space.sample(0)
    value = float(SpaceValues(space, models)(np.array([arch]))["latency_ms"][0])
    limit = {"latency_ms": value * 1.05}
    by_high = pose(space, models, toy_evaluator(), ["error"], limit, {})
    by_value = pose(space, models, toy_evaluator(), ["error"], limit, {}, limit_on="value")
    assert by_high.cheap([arch])["violation"][0] == pytest.approx(1.1 / 1.05 - 1)
    assert by_value.cheap([arch])["violation"][0] == 0
    tight = {"latency_ms": value * 0.95}
    by_low = pose(space, models, toy_evaluator(), ["error"], tight, {}, limit_on="low")
    assert by_low.cheap([arch])["violation"][0] == 0
    by_value = pose(space, models, toy_evaluator(), ["error"], tight, {}, limit_on="value")
    assert by_value.cheap([arch])["violation"][0] > 0


def test_the_chance_that_a_limit_is_kept_is_that_of_the_predicted_interval() -> None:
    values = {"latency_ms": np.full(3, 10.0), "latency_high_ms": np.array([12.0, 12.0, 10.0])}

    def chance(limit: float, level: float) -> list[float]:
        problem = Problem(ToySpace(2, 2), (Objective("error"),), {"latency_ms": limit}, level=level)
        return np.asarray(problem.chance(values)).tolist()

    assert chance(12.0, 0.9) == pytest.approx([0.95, 0.95, 1.0])
    assert chance(12.0, 0.5) == pytest.approx([0.75, 0.75, 1.0])
    assert chance(10.0, 0.9)[0] == pytest.approx(0.5)
    assert Problem(ToySpace(2, 2), (Objective("error"),), {"macs": 3}).chance(values) == 1
    both = {**values, "latency_ms@b": np.full(3, 10.0), "latency_high_ms@b": np.full(3, 12.0)}
    limits = {"latency_ms": 12.0, "latency_ms@b": 10.0}
    assert Problem(ToySpace(2, 2), (Objective("error"),), limits).chance(both) == pytest.approx([0.475, 0.475, 0.5])


def test_soft_limits_leave_a_candidate_feasible(space: SearchSpace) -> None:
    problem = pose(space, {}, toy_evaluator(), ["error"], {}, {"macs": 1000})
    v = problem.cheap([space.sample(0)])
    assert v["violation"][0] == 0
    assert v["soft_violation"][0] > 1


def test_what_a_device_does_not_support_breaks_the_limits_infinitely(space: SearchSpace) -> None:
    arch = space.sample(3)
    block = next(b for b in space.network(arch).blocks if b.choice >= 0)
    problem = pose(space, {"": table(space, unsupported=[block.op.key])}, None, ["latency_ms"], {}, {})
    v = problem.cheap([arch])
    assert np.isnan(v["latency_ms"][0])
    assert v["violation"][0] == inf
    c = problem.candidate(arch, {n: float(x[0]) for n, x in v.items()}, {})
    assert not c.feasible
    assert "latency_ms" not in c.values
    assert problem.matrix([c]).tolist() == [[inf]]


def test_a_failed_evaluation_is_infeasible_and_not_on_the_front() -> None:
    problem = Problem(ToySpace(2, 2), (Objective("error"),))
    bad = problem.candidate((0, 0), {}, {"error": nan, "val_loss": 3.0}, "error is nan")
    good = problem.candidate((1, 1), {}, {"error": 0.5})
    assert bad.violation == inf
    assert dict(bad.values) == {"val_loss": 3.0}
    assert problem.front([bad, good]) == [good]


def test_limits_on_what_only_evaluation_gives_are_judged_afterwards() -> None:
    problem = Problem(ToySpace(2, 2), (Objective("error"),), {"error": 0.2})
    assert problem.cheap([(0, 0)])["violation"][0] == 0
    assert problem.candidate((0, 0), {}, {"error": 0.3}).violation == pytest.approx(0.5)


def test_maximised_objectives_are_negated() -> None:
    problem = Problem(ToySpace(2, 2), (Objective("error"), Objective("params", maximise=True)))
    cs = [Candidate((0, 0), {"error": 0.1, "params": 5.0}), Candidate((1, 1), {"error": 0.1, "params": 9.0})]
    assert problem.matrix(cs).tolist() == [[0.1, -5.0], [0.1, -9.0]]
    assert problem.front(cs) == [cs[1]]


def test_architectures_outside_the_space_are_refused() -> None:
    with pytest.raises(ArchitectureError):
        Problem(ToySpace(2, 2), (Objective("error"),)).cheap([(0, 5)])


@pytest.mark.parametrize(
    ("objectives", "limits", "says"),
    [
        (["error", "watts"], {}, "nothing gives the value 'watts'; known: params, macs, error"),
        (["error", "latency_ms"], {}, r"latency= in Python"),
        (["error"], {"energy_mj": 3.0}, "energy_mj"),
        (["error"], {"params": -1}, "limits.params: expected a positive number, got -1"),
        (["error"], {"params": True}, "limits.params"),
        (["error"], {"params": nan}, "limits.params"),
        ([], {}, "objectives must be a list"),
        ("error", {}, "objectives must be a list"),
        (["error", "-error"], {}, "given twice"),
    ],
)
def test_a_wrong_objective_or_limit_is_named(objectives: list[str], limits: dict[str, float], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        pose(ToySpace(2, 2), {}, toy_evaluator(), objectives, limits, {})


def test_error_without_an_evaluator_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--accuracy \(accuracy="):
        pose(ToySpace(2, 2), {}, None, ["error"], {}, {})


# -- infeasible limits ------------------------------------------------------------------------------------------------


def cheapest(space: SearchSpace, model: object) -> tuple[int, ...]:
    matrix, _ = space.cost_matrix(model)  # type: ignore[arg-type]
    return tuple(int(c) for c in np.nanargmin(matrix, axis=1))


def test_infeasible_limits_are_proved_and_the_cheapest_architecture_is_named(space: SearchSpace) -> None:
    model = table(space, wide=0.1)
    arch = cheapest(space, model)
    value = model.predict(space.network(arch)).latency_ms
    problem = pose(space, {"": model}, toy_evaluator(), ["error"], {"latency_ms": 0.9 * value}, {})
    with pytest.raises(InfeasibleError, match="proved") as e:
        check_feasible(problem)
    assert str(list(arch)) in str(e.value)
    assert f"{1.1 * value:.6g}" in str(e.value)


def test_a_limit_between_the_value_and_its_upper_end_is_infeasible_for_the_upper_end_only(space: SearchSpace) -> None:
    model = table(space, wide=0.1)
    value = model.predict(space.network(cheapest(space, model))).latency_ms
    limits = {"latency_ms": 1.05 * value}
    check_feasible(pose(space, {"": model}, toy_evaluator(), ["error"], limits, {}, limit_on="value"))
    with pytest.raises(InfeasibleError):
        check_feasible(pose(space, {"": model}, toy_evaluator(), ["error"], limits, {}))


def test_a_limit_between_the_lower_end_and_the_value_may_be_kept(space: SearchSpace) -> None:
    model = table(space, wide=0.1)
    value = model.predict(space.network(cheapest(space, model))).latency_ms
    for share in (0.95, 0.91):
        check_feasible(
            pose(space, {"": model}, toy_evaluator(), ["error"], {"latency_ms": share * value}, {}, limit_on="low")
        )
    with pytest.raises(InfeasibleError, match="proved"):
        check_feasible(
            pose(space, {"": model}, toy_evaluator(), ["error"], {"latency_ms": 0.89 * value}, {}, limit_on="low")
        )


@pytest.mark.parametrize("name", ["params", "macs"])
def test_infeasible_limits_on_counts_are_proved(space: SearchSpace, name: str) -> None:
    least = getattr(space.network((0,) * 14), name)
    check_feasible(pose(space, {}, toy_evaluator(), ["error"], {name: least}, {}))
    with pytest.raises(InfeasibleError, match=f"{name} ≤ {least - 1}"):
        check_feasible(pose(space, {}, toy_evaluator(), ["error"], {name: least - 1}, {}))


def test_a_device_that_supports_no_choice_at_a_position_is_infeasible(space: SearchSpace) -> None:
    ops = {space.network((c,) * 14).blocks[5].op.key for c in range(12)}
    assert space.network((0,) * 14).blocks[5].name == "positions.3"
    problem = pose(space, {"": table(space, unsupported=ops)}, None, ["latency_ms"], {}, {})
    with pytest.raises(InfeasibleError, match="no choice at position 3"):
        check_feasible(problem)


def test_a_table_of_another_space_is_refused_before_anything_is_paid_for(space: SearchSpace) -> None:
    from latbench import search

    calls: list[object] = []
    evaluator = toy_evaluator()
    evaluator.function = lambda s, a: calls.append(a) or 0.5
    with pytest.raises(UnknownOpError):
        search("random", space=ToySpace(3, 3), latency=table(space), accuracy=evaluator, budget=3)
    assert not calls
    assert table(space).setting == SETTING


def test_a_model_that_is_no_sum_over_ops_serves_a_search_and_proves_nothing(space: SearchSpace) -> None:
    class Whole(Predictor):
        """Answers for whole networks, as a regression on encodings does."""

        name = "whole"
        card, fit, load, save = table(space).card, Table.fit, Table.load, Table.save

        def predict(self, net: Network, *, level: float = 0.9, max_uncertainty: float | None = None) -> Estimate:
            return table(space).predict(net, level=level)

        def predict_archs(self, space: SearchSpace, archs: npt.ArrayLike, *, level: float = 0.9) -> ArchEstimates:
            return table(space).predict_archs(space, archs, level=level)

    problem = pose(space, {"": Whole()}, toy_evaluator(), ["error"], {"latency_ms": 1e-9}, {})
    check_feasible(problem)
    assert problem.cheap([(0,) * 14])["latency_ms"][0] > 0
    with pytest.raises(NotAdditiveError, match="no sums over Ops"):
        space.cost_matrix(Whole())
