"""DPP-Net's search: it grows cells, learns their accuracy, keeps the best by Pareto rank, and picks three."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from search_support import table

import latbench as lb
from latbench.errors import ConfigError, FileFormatError
from latbench.evaluators import FunctionEvaluator
from latbench.problem import Candidate, Objective, Problem
from latbench.result import SearchResult
from latbench.searcher import Searcher
from latbench.space import Arch, SearchSpace
from latbench.spaces import densecell as dense
from latbench.testing.searchers import SearcherConformance, ToyOptionalProblem, ToyOptionalSpace

torch = pytest.importorskip("torch")
from latbench.searchers.dppnet import DppNet  # noqa: E402
from latbench.searchers.dppnet_surrogate import AccuracyModel  # noqa: E402


class GrowingSpace(ToyOptionalSpace):
    """A chain that may end before any position."""

    def absent(self, position: int) -> int:
        return 0


class GrowingProblem(ToyOptionalProblem):
    space = GrowingSpace


class TestDppNet(SearcherConformance):
    toy = GrowingProblem
    ends = True

    @pytest.fixture
    def make(self) -> Any:
        return lambda problem, seed: DppNet(problem, seed=seed, cells=16, steps=2)


def cells_space(**more: Any) -> SearchSpace:
    return lb.load_space("densecell", shortest=2, cells=[1, 1], growth=[4, 8], resolution=8, **more)


def error_of(space: SearchSpace, arch: Arch) -> float:
    """Better with batch norm, ReLU and 3×3 convolutions, and with length."""
    gains = {"bn-relu": 0.1, "bn": 0.05, "3x3": 0.3, "3x3 depthwise": 0.22, "3x3 group": 0.2, "1x1": 0.1, "end": -0.05}
    return float(0.9 * np.exp(-sum(gains.get(space.choice_label(i, c), 0.02) for i, c in enumerate(arch))))


def search(budget: int = 60, **changes: Any) -> SearchResult:
    evaluator = FunctionEvaluator(error_of, recipe="labels")
    options = {"objectives": ["error", "macs", "params"], "cells": 18, "steps": 60, **changes}
    return lb.search("dppnet", space=cells_space(), accuracy=evaluator, budget=budget, **options)


def length(arch: Arch) -> int:
    return 4 - sum(c == end for c, end in zip(arch, (3, 6, 3, 6), strict=True))


# -- growing --------------------------------------------------------------------------------------------------------


def test_all_short_cells_come_first_and_then_as_many_longer_ones_as_are_kept() -> None:
    r = search(54)
    assert [length(c.arch) for c in r.candidates] == [2] * 18 + [3] * 18 + [4] * 18
    assert [row["length"] for row in r.course] == [2, 3, 4]
    assert [row["extensions"] for row in r.course[:2]] == [18, 54]
    # All that the eighteen extend to, and what cells extend to that need no training.
    assert 108 <= r.course[2]["extensions"] <= 108 + 18 * 6
    assert len({c.arch for c in r.candidates}) == 54


def test_cells_that_are_the_same_network_are_trained_once_and_grown_from_all_the_same() -> None:
    space = cells_space()
    archs = [c.arch for c in search(1000, cells=400, steps=1).candidates]
    keys = [space.network(a).key for a in archs]
    assert len(set(keys)) == len(keys) == 378
    every = {space.network(a).key for a in np.ndindex(3, 6, 4, 7) if a[2] < 3 or a[3] == 6}
    assert set(keys) == every
    # A third layer that does nothing: not trained itself, its extensions are.
    assert not any(a[2] == 2 and a[3] == 6 for a in archs)
    assert sum(a[2] == 2 for a in archs) == 108


def test_every_longer_cell_extends_one_that_was_kept() -> None:
    archs = [c.arch for c in search(54).candidates]
    for arch in archs[18:]:
        shorter = list(arch)
        shorter[length(arch) - 1] = (3, 6, 3, 6)[length(arch) - 1]
        # Where its third layer does nothing, the cell of two layers is what was trained.
        assert tuple(shorter) in archs or (shorter[2] == 2 and (*shorter[:2], 3, 6) in archs)


def test_left_over_budget_goes_to_the_other_extensions_until_there_are_none() -> None:
    r = search(1000, cells=128, steps=1)
    assert Counter(length(c.arch) for c in r.candidates) == {2: 18, 3: 36, 4: 324}
    assert [row["length"] for row in r.course] == [2, 3, 4, 4, 4]


def test_the_surrogate_finds_better_cells_than_a_draw_among_the_same() -> None:
    r = search(108, objectives=["error"], cells=54, steps=100)
    pool = [error_of(cells_space(), a) for a in np.ndindex(3, 6, 3, 6)]
    chosen = [c.values["error"] for c in r.candidates[54:108]]
    assert np.mean(chosen) < np.quantile(pool, 0.3)
    assert [("regression_error" in row, "training_error" in row) for row in r.course[:3]] == [
        (False, False), (False, True), (True, True)
    ]  # fmt: skip
    believed_off, spread = (
        r.course[2]["regression_error"],
        np.std([1 - v for v in pool]) / np.mean([1 - v for v in pool]),
    )
    assert 0 < believed_off < 2 * spread


def test_cells_that_break_a_hard_limit_are_dropped_and_never_paid_for() -> None:
    limit = float(np.median([c.values["macs"] for c in search(1000, cells=400, steps=1).candidates]))
    r = search(1000, limits={"macs": limit}, cells=400, steps=1)
    assert 0 < len(r.candidates) < 396
    assert all(c.values["macs"] <= limit for c in r.candidates)


class Known:
    """Values that need no evaluation: ``latency_ms`` falls with length or is the same for all, ``macs`` rises."""

    names = ("latency_ms", "macs", "params", "latency_ms@a", "latency_ms@b")

    def __init__(self, fall: float) -> None:
        self.fall = fall

    def __call__(self, archs: np.ndarray) -> dict[str, np.ndarray]:
        return {"latency_ms": 10 - self.fall * (archs > 0).sum(axis=1), "macs": 1.0 + archs.sum(axis=1)}


def test_where_no_short_cell_keeps_a_limit_longer_ones_are_looked_at() -> None:
    problem = Problem(GrowingSpace(6, 3), (Objective("latency_ms"),), {"latency_ms": 6.0}, cheap_values=Known(1.0))
    searcher = DppNet(problem, cells=8)
    archs = searcher.ask(8)
    assert len(archs) == 8
    assert all(a[:4] and all(a[:4]) and a[4:] == (0, 0) for a in archs)


def test_among_equals_the_soft_limit_decides() -> None:
    objectives = (Objective("latency_ms"),)
    problem = Problem(GrowingSpace(3, 9), objectives, soft_limits={"macs": 3.0}, cheap_values=Known(0.0))
    assert sorted(DppNet(problem, cells=2).ask(2)) == [(1, 0, 0), (2, 0, 0)]

    class Falling(Known):
        def __call__(self, archs: np.ndarray) -> dict[str, np.ndarray]:
            return {**super().__call__(archs), "macs": 10.0 - archs.sum(axis=1)}

    problem = replace(problem, cheap_values=Falling(0.0))
    assert sorted(DppNet(problem, cells=2).ask(2)) == [(7, 0, 0), (8, 0, 0)]


def test_a_space_whose_networks_have_one_length_is_refused_by_what_would_do() -> None:
    with pytest.raises(ConfigError, match=r"densecell with shortest=2 \(--set shortest=2\)"):
        lb.search("dppnet", space=lb.load_space("densecell"), objectives=["macs"], budget=3)
    with pytest.raises(ConfigError, match="all of this mobilenetv3 have the same 14 positions"):
        lb.search("dppnet", space=lb.load_space("mobilenetv3"), objectives=["macs"], budget=3)
    with pytest.raises(ConfigError, match="cells must be a whole number of at least 1, got 0"):
        search(cells=0)


# -- what is learnt -------------------------------------------------------------------------------------------------


def test_the_surrogate_starts_where_the_paper_says() -> None:
    model = AccuracyModel(9, seed=0)
    embedding = model.embedding.detach()
    assert embedding.shape == (9, 128)
    assert 0 <= float(embedding.min()) < 0.05 < 0.95 < float(embedding.max()) <= 1
    assert float(model.out.bias.detach()) == 2.0
    told = model.tell(np.array([[0, 3, -1, -1], [0, 3, 1, 2]]))
    np.testing.assert_allclose(told, 1 / (1 + np.exp(-2)), atol=0.15)


def test_what_stands_behind_the_end_of_a_cell_does_not_count() -> None:
    model = AccuracyModel(9, seed=0)
    short, padded = model.tell(np.array([[0, 3]])), model.tell(np.array([[0, 3, -1, -1]]))
    assert short[0] == pytest.approx(padded[0], abs=1e-7)
    assert model.tell(np.array([[0, 3, 0, 3]]))[0] != padded[0]


def test_training_neither_uses_nor_changes_the_global_random_state() -> None:
    weights = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.random.get_rng_state()
        model = AccuracyModel(9, seed=0)
        model.learn(np.array([[0, 3], [1, 4]]), [0.5, 0.9], steps=3)
        assert torch.equal(before, torch.random.get_rng_state())
        weights.append(model.as_text())
    assert weights[0] == weights[1]


def test_weights_come_back_from_text_bit_for_bit() -> None:
    one, other = AccuracyModel(5, seed=0), AccuracyModel(5, seed=1)
    other.from_text(one.as_text())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    with pytest.raises(ValueError, match="weights, not"):
        AccuracyModel(6, seed=0).from_text(one.as_text())


def test_a_value_that_is_no_fraction_is_learnt_too() -> None:
    def loss(space: SearchSpace, arch: Arch) -> dict[str, float]:
        return {"error": error_of(space, arch), "loss": 40 * error_of(space, arch) - 7}

    evaluator = FunctionEvaluator(loss, recipe="loss", values=("error", "loss"))
    r = lb.search(
        "dppnet", space=cells_space(), accuracy=evaluator, objectives=["loss"], budget=108, cells=54, steps=150
    )  # fmt: skip
    first, last = ([c.values["loss"] for c in r.candidates[a:b]] for a, b in ((18, 54), (54, 108)))
    assert np.mean(last) < np.mean(first)


# -- picks ----------------------------------------------------------------------------------------------------------


def told(searcher: Searcher, rows: list[tuple[float, float, float]]) -> list[Candidate]:
    names = [o.name for o in searcher.problem.objectives]
    archs = [tuple(int(c) for c in a) for a in np.ndindex(3, 6, 3, 6)]
    return [Candidate(archs[i], dict(zip(names, row, strict=True)), number=i) for i, row in enumerate(rows)]


def test_three_networks_are_picked_by_the_papers_names() -> None:
    problem = Problem(cells_space(), tuple(map(Objective, ("error", "latency_ms", "params"))))
    searcher = DppNet(replace(problem, cheap_values=Known(0.0)))
    rows = [(0.05, 9.0, 1000.0), (0.10, 2.0, 900.0), (0.12, 4.0, 300.0), (0.30, 1.0, 950.0), (0.4, 8.0, 100.0)]
    picks = searcher.picks(told(searcher, rows))
    # The last objective is what tells the panacea from the network for the device.
    assert {name: c.number for name, c in picks.items()} == {"device": 1, "panacea": 2, "pnas": 0}
    assert searcher.picks([]) == {}


def test_each_device_has_its_own_pick() -> None:
    problem = Problem(cells_space(), tuple(map(Objective, ("error", "latency_ms@a", "latency_ms@b"))))
    searcher = DppNet(replace(problem, cheap_values=Known(0.0)))
    picks = searcher.picks(
        told(searcher, [(0.06, 1.0, 9.0), (0.06, 9.0, 1.0), (0.07, 5.0, 5.0), (0.05, 20.0, 20.0), (0.2, 0.1, 0.1)])
    )
    assert {name: c.number for name, c in picks.items()} == {"device@a": 0, "device@b": 1, "panacea": 2, "pnas": 3}


def test_two_devices_are_searched_side_by_side_beside_counts() -> None:
    space = cells_space()
    refused = {op.key for op in space.ops() if op.kind == "condense_index"}
    models = {"slow": table(space, slow=3.0), "picky": table(space, unsupported=refused)}
    r = search(54, objectives=["error", "params", "macs", "latency_ms"], latency=models)
    assert [o.name for o in r.problem.objectives] == ["error", "params", "macs", "latency_ms@slow", "latency_ms@picky"]
    assert set(r.picks) == {"device@slow", "device@picky", "panacea", "pnas"}
    # What one device does not take is never trained.
    assert not [c for c in r.candidates if dense.LEARNED in (c.arch[1], c.arch[3])]
    assert all({"latency_ms@slow", "latency_ms@picky"} <= set(c.values) for c in r.candidates)


def test_picks_are_in_the_result_and_in_its_file(tmp_path: Path) -> None:
    r = search(54, run=tmp_path / "r")
    assert set(r.picks) == {"panacea", "pnas"}
    assert r.picks["pnas"].values["error"] == min(c.values["error"] for c in r.candidates)
    assert SearchResult.load(tmp_path / "r").picks == r.picks
    # They are among those that are measured, retrained and exported in the end.
    assert all(c in r.pick(3) for c in r.picks.values())
    assert r.pick(3)[0] is r.front[0]
    assert len(r.pick(5)) == 5


# -- resuming -------------------------------------------------------------------------------------------------------


class Interrupted(FunctionEvaluator):
    def __init__(self, after: int) -> None:
        super().__init__(error_of, recipe="labels")
        self.left = after

    def evaluate(self, space: SearchSpace, archs: Any) -> Any:
        self.left -= len(archs)
        if self.left < 0:
            raise KeyboardInterrupt
        return super().evaluate(space, archs)


@pytest.mark.parametrize("after", [7, 18, 30, 40])
def test_an_interrupted_search_ends_as_if_it_had_not_been(tmp_path: Path, after: int) -> None:
    whole = search(54, run=tmp_path / "whole")
    arguments = {
        "objectives": ["error", "macs", "params"],
        "cells": 18,
        "steps": 60,
        "budget": 54,
        "run": tmp_path / "r",
    }
    with pytest.raises(KeyboardInterrupt):
        lb.search("dppnet", space=cells_space(), accuracy=Interrupted(after), **arguments)
    r = search(54, run=tmp_path / "r")
    assert (r.candidates, r.course, r.picks) == (whole.candidates, whole.course, whole.picks)
    (here,), (there,) = ((tmp_path / f / "searcher").iterdir() for f in ("r", "whole"))
    assert {f.name for f in here.iterdir()} == {f.name for f in there.iterdir()} == {"surrogate-1.pt", "surrogate-2.pt"}


def test_lost_weights_are_named(tmp_path: Path) -> None:
    search(40, run=tmp_path / "r")
    for file in (tmp_path / "r" / "searcher").glob("*/surrogate-*.pt"):
        file.write_bytes(b"damaged")
    with pytest.raises(FileFormatError, match=r"surrogate-2\.pt: damaged"):
        search(54, run=tmp_path / "r")


def test_the_surrogate_learns_at_the_papers_rate() -> None:
    model = AccuracyModel(5, seed=0)
    before = model.out.bias.detach().clone()
    model.learn(np.array([[0, 3], [1, 4]]), [0.1, 0.2], steps=1)
    # Adam's first step is its rate, whatever the gradient: here towards less than what the bias of 2 says.
    assert (before - model.out.bias).item() == pytest.approx(0.008, rel=1e-3)
