"""ProxylessNAS: gradients of binarised paths, what a step changes, and the search as a whole."""

from __future__ import annotations

import gc
import itertools
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from search_support import table, toy_evaluator

import latbench as lb
from benchmarks import supernet_memory
from latbench import load_space, plugins
from latbench.cheap import SpaceValues
from latbench.errors import ConfigError, FileFormatError, SearchError
from latbench.image_data import Digits
from latbench.problem import Objective, Problem
from latbench.result import SearchResult
from latbench.space import SearchSpace
from latbench.testing.searchers import Make, SearcherConformance, ToySpace

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")
Proxyless = plugins.load("searchers", "proxyless")
from latbench.searchers import binary_paths as paths  # noqa: E402
from latbench.searchers import proxyless  # noqa: E402

SMALL: dict[str, dict[str, Any]] = {
    "mobilenetv3": {"resolution": 16, "width_mult": 0.1, "num_classes": 10, "se": False},
    "proxyless": {"resolution": 16, "width_mult": 0.1, "num_classes": 10},
    "nasbench201": {"resolution": 8, "channels": 4, "num_cells": 1, "num_classes": 10},
    "proxyless-cifar": {"resolution": 8, "blocks": 1, "width": 16, "num_classes": 10},
}
#: Seconds, not minutes: an epoch has two weight steps and one α step.
QUICK = {"warmup": 1, "epochs": 2, "batch_size": 250}
TOY = ToySpace(4, 3)


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def small(name: str) -> SearchSpace:
    return load_space(name, **SMALL[name])


def posed(space: SearchSpace, objective: str = "latency_ms", **limits: float) -> Problem:
    values = SpaceValues(space, {"": table(space)})
    return Problem(space, (Objective("error"), Objective(objective)), limits, cheap_values=values)


def searched(problem: Problem, **options: Any) -> Any:
    s = Proxyless(problem, **{**QUICK, **options})
    while s.advance():
        pass
    return s


def batch(space: SearchSpace, n: int = 4) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(0)
    size = space.params.get("resolution", 8)
    x = torch.randn(n, 3, size, size, generator=generator, dtype=torch.float64)
    return x, torch.arange(n) % 10


def equal_chances(space: SearchSpace) -> list[Any]:
    return [np.full(n, 1 / n) for n in space.num_choices]


# -- gradients of gates ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(SMALL))
def test_recomputed_gradients_of_gates_are_those_of_keeping_all_paths(name: str) -> None:
    space = small(name)
    supernet, (x, y) = space.supernet(seed=1).double(), batch(space)
    # The last choice is zero in the ImageNet space, the second a skip connection on the benchmark's edges.
    last = [n - 1 for n in space.num_choices]
    for active in ([c if i % 3 else last[i] for i, c in enumerate(space.sample(3))], [1] * space.positions):
        candidates = [range(n) for n in space.num_choices]
        gates = paths.Gates(tuple(active), candidates, space.num_choices)
        every = paths.AllPaths(tuple(active), candidates, space.num_choices)
        with paths.only_architecture(supernet):
            out = supernet(x, active, mix=gates.mixers())
            torch.nn.functional.cross_entropy(out, y).backward()
            kept = supernet(x, active, mix=every.mixers())
            torch.nn.functional.cross_entropy(kept, y).backward()
        torch.testing.assert_close(out, kept)
        for found, gate in zip(gates.gradients, every.gates, strict=True):
            np.testing.assert_allclose(found, gate.grad.numpy(), rtol=1e-4, atol=1e-7)


def test_gradients_of_gates_are_those_of_finite_differences() -> None:
    space = small("nasbench201")
    supernet, (x, y) = space.supernet(seed=2).double(), batch(space)
    active, candidates = (3, 1, 4, 2, 0, 3), [range(5)] * 6
    gates = paths.Gates(active, candidates, space.num_choices)

    def loss_at(i: int, k: int, step: float) -> float:
        every = paths.AllPaths(active, candidates, space.num_choices)
        for j, g in enumerate(every.gates):
            every.gates[j] = g.detach().double()
        every.gates[i][k] += step
        with torch.no_grad():
            return float(torch.nn.functional.cross_entropy(supernet(x, active, mix=every.mixers()), y))

    with paths.only_architecture(supernet):
        torch.nn.functional.cross_entropy(supernet(x, active, mix=gates.mixers()), y).backward()
        for i, k in itertools.product((0, 2, 4, 5), range(5)):
            slope = (loss_at(i, k, 1e-5) - loss_at(i, k, -1e-5)) / 2e-5
            assert gates.gradients[i][k] == pytest.approx(slope, rel=1e-4, abs=1e-7)


def test_eq_4_is_the_gradient_through_softmax() -> None:
    alpha = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    gate = np.random.default_rng(0).normal(size=6)
    (alpha.softmax(0) @ torch.from_numpy(gate)).backward()
    found = paths.alpha_gradient(alpha.softmax(0).detach().numpy(), gate)
    np.testing.assert_allclose(found, alpha.grad.numpy())
    # What all choices have in common, a shortcut, changes nothing.
    np.testing.assert_allclose(paths.alpha_gradient(alpha.softmax(0).detach().numpy(), gate + 7), found)


@pytest.mark.parametrize("loss", ["additive", "add-linear", "mul-log"])
def test_the_gradient_of_a_step_is_that_of_the_whole_loss(loss: Any) -> None:
    space = small("proxyless")
    s = Proxyless(posed(space), seed=1, loss=loss, loss_weight=2.0)
    s._ready()
    s.supernet.double()
    x, y = batch(space)
    active = tuple(n - 1 if n == 7 else 2 for n in space.num_choices)
    with paths.only_architecture(s.supernet):
        found = s._gradients(x, y, s.probabilities(), active, 0)
        every = paths.AllPaths(active, [range(n) for n in space.num_choices], space.num_choices)
        probs = [torch.from_numpy(a).requires_grad_() for a in s.alpha]
        leaves = [p.softmax(0) for p in probs]
        cross_entropy = torch.nn.functional.cross_entropy(s.supernet(x, active, mix=every.mixers()), y)
        expected = s.costs.expected_ratio(leaves, 0) * s.costs.target
        s.loss(cross_entropy, expected).backward()
    for i, (mine, gate, p) in enumerate(zip(found, every.gates, probs, strict=True)):
        chances = leaves[i].detach().numpy()
        np.testing.assert_allclose(
            mine, paths.alpha_gradient(chances, gate.grad.numpy()) + p.grad.numpy(), rtol=1e-4, atol=1e-8
        )
    # Zero is open at most edges: they learn all the same, from latency too.
    assert all(np.abs(g).max() > 1e-6 for g in found)


def test_reinforce_is_the_gradient_of_the_expected_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    space = ToySpace(2, 3)
    s = Proxyless(posed(space), seed=0, mode="reinforce", reward_exponent=0.5)
    s._ready()
    x, y = batch(space, 40)
    x = x.float()
    s.alpha[0][:], s.alpha[1][:] = [0.4, -0.2, 0.1], [0.0, 0.5, -0.5]
    p = s.probabilities()
    archs = list(itertools.product(range(3), repeat=2))
    with paths.only_architecture(s.supernet), torch.no_grad():
        right = [float((s.supernet(x, a).argmax(1) == y).double().mean()) for a in archs]
    rewards = np.array(right) * s.costs.ratios(archs) ** -0.5
    assert np.ptp(rewards) > 0.02
    exact = [np.zeros(3), np.zeros(3)]
    for a, r in zip(archs, rewards, strict=True):
        for i in range(2):
            exact[i] -= p[0][a[0]] * p[1][a[1]] * r * (np.eye(3)[a[i]] - p[i])
    known = dict(zip(archs, rewards, strict=True))
    monkeypatch.setattr(s, "_rewards", lambda x, y, archs: np.array([known[a] for a in archs]))
    rng, found = np.random.default_rng(0), []
    for _ in range(4000):
        s._baseline = 0.3
        found.append(np.concatenate(s._reinforce(x, y, p, [paths.sample_path(p, rng) for _ in range(10)])))
    error = np.std(found, axis=0) / np.sqrt(len(found))
    # The step's own mean is in its baseline, so that a tenth of 0.99 of the gradient is lost.
    assert (np.abs(np.mean(found, axis=0) - (1 - 0.099) * np.concatenate(exact)) < 5 * error).all()


def test_the_baseline_of_reinforce_moves_to_the_mean_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    s = Proxyless(posed(TOY), mode="reinforce")
    s._ready()
    x, y = batch(TOY)
    for rewards, baseline in (([0.2, 0.4], 0.3), ([0.5, 0.7], 0.3 + 0.99 * 0.3)):
        monkeypatch.setattr(s, "_rewards", lambda *_, r=rewards: np.array(r))
        gradients = s._reinforce(x, y, s.probabilities(), [(0, 0, 0, 0), (1, 1, 1, 1)])
        assert s._baseline == pytest.approx(baseline)
    # The better half is pulled up, the other one down.
    assert all(g[1] < 0 < g[0] for g in gradients)


# -- what a step changes --------------------------------------------------------------------------------------------


def test_a_two_path_step_leaves_the_other_choices_probabilities_alone() -> None:
    s = searched(posed(small("proxyless")), mode="two-path", epochs=1, alpha_lr=0.3)
    x, y = batch(small("proxyless"))
    before = s.probabilities()
    s._alpha_step(x.float(), y, np.random.default_rng(5), 0)
    changed = [np.flatnonzero(np.abs(p - q) > 1e-12) for p, q in zip(before, s.probabilities(), strict=True)]
    assert {len(c) for c in changed} == {2}
    for p, q, pair in zip(before, s.probabilities(), changed, strict=True):
        assert p[pair].sum() == pytest.approx(q[pair].sum(), rel=1e-12)


def _of_pairs(s: Any, pairs: Sequence[Sequence[int]]) -> list[Any]:
    """∂/∂α of what is expected of the networks of these pairs, by enumeration."""
    alpha = [torch.tensor(a, requires_grad=True) for a in s.alpha]
    chances = [a[list(p)].softmax(0) for a, p in zip(alpha, pairs, strict=True)]
    total = torch.zeros((), dtype=torch.float64)
    for which in itertools.product((0, 1), repeat=len(pairs)):
        arch = tuple(p[k] for p, k in zip(pairs, which, strict=True))
        value = float(s.problem.cheap([arch])["latency_ms"][0])
        total = total + value * torch.stack([c[k] for c, k in zip(chances, which, strict=True)]).prod()
    return [g.numpy() for g in torch.autograd.grad(total, alpha)]


def test_the_latency_of_a_two_path_step_is_that_of_the_networks_of_the_pairs() -> None:
    s, still = (
        Proxyless(posed(TOY), seed=1, mode="two-path", loss="additive", loss_weight=w, target=1.0) for w in (2.0, 0.0)
    )
    x, y = batch(TOY)
    for searcher in (s, still):
        searcher._ready()
        searcher.supernet.double()
        searcher.alpha = [np.array([0.3, -1.2, 0.9]) * (i + 1) for i in range(4)]
    pairs = [(0, 2), (1, 0), (2, 1), (0, 1)]
    probs = [proxyless._among(p, pair) for p, pair in zip(s.probabilities(), pairs, strict=True)]
    active = tuple(p[0] for p in pairs)
    with paths.only_architecture(s.supernet), paths.only_architecture(still.supernet):
        both = [t._gradients(x, y, probs, active, 0) for t in (s, still)]
    for with_cost, without, want in zip(*both, _of_pairs(s, pairs), strict=True):
        np.testing.assert_allclose(with_cost - without, 2.0 * want, atol=1e-12)


@pytest.mark.parametrize("alpha", [[0.0, 0.0, 0.0], [0.5, -0.3, 0.1], [5.0, 0.0, -2.0], [0.2, -0.4, -np.inf]])
def test_averaged_over_pairs_each_counts_as_documented_and_never_against_its_sign(alpha: list[float]) -> None:
    cost = np.array([1.0, 4.0, 2.5])
    p = np.exp(alpha) / np.exp(alpha).sum()
    rng, found, drawn = np.random.default_rng(0), np.zeros(3), 20_000
    for _ in range(drawn):
        found += paths.alpha_gradient(proxyless._among(p, paths.sample_pair(p, rng)), cost)
    want, exact = np.zeros(3), np.zeros(3)
    for i, j in itertools.permutations(np.flatnonzero(p), 2):
        # Without replacement: i first, or j first.
        often = p[i] * p[j] / (1 - p[i]) + p[j] * p[i] / (1 - p[j])
        in_eq_6 = p[i] * p[j] * (cost[i] - cost[j])
        exact[i] += in_eq_6
        want[i] += often / (p[i] + p[j]) ** 2 * in_eq_6
    np.testing.assert_allclose(exact, paths.alpha_gradient(p, cost), atol=1e-15)
    np.testing.assert_allclose(found / drawn, want, atol=0.015)
    if np.count_nonzero(p) == 2:
        np.testing.assert_allclose(want, exact)


def test_weights_learn_from_one_half_and_architectures_from_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    s = Proxyless(posed(TOY), warmup=0, epochs=1, batch_size=50)
    s._ready()
    seen: dict[str, set[bytes]] = {"_weight_step": set(), "_alpha_step": set()}
    for name in seen:
        real = getattr(s, name)

        def spy(x: Any, *args: Any, real: Any = real, name: str = name) -> Any:
            seen[name] |= {image.numpy().tobytes() for image in x}
            return real(x, *args)

        monkeypatch.setattr(s, name, spy)
    assert s.advance()
    halves = {
        part: {i.numpy().tobytes() for i in s._halves.take(part, slice(None), s.shape)[0]}
        for part in ("weights", "architecture")
    }
    assert not halves["weights"] & halves["architecture"]
    assert seen["_weight_step"] == halves["weights"]
    # Two steps of fifty.
    assert len(seen["_alpha_step"]) == 100
    assert seen["_alpha_step"] <= halves["architecture"]


def test_weights_learn_at_their_rates_down_a_cosine_in_either_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    s = Proxyless(posed(TOY), warmup=2, epochs=2, batch_size=250, warmup_lr=0.08, lr=0.03)
    rates: list[float] = []
    real = s._weight_step

    def spy(*args: Any) -> float:
        loss: float = real(*args)
        rates.append(s._sgd.param_groups[0]["lr"])
        return loss

    monkeypatch.setattr(s, "_weight_step", spy)
    while s.advance():
        pass
    falls = [(1 + np.cos(np.pi * part)) / 2 for part in (0, 0.25, 0.5, 0.75)]
    assert rates == pytest.approx([*(0.08 * f for f in falls), *(0.03 * f for f in falls)])
    defaults = Proxyless(posed(TOY))
    assert (defaults.warmup_lr, defaults.lr) == (0.05, 0.025)


@pytest.mark.parametrize(
    ("data", "mode", "rate"),
    [("digits", "recompute", 6e-2), ("digits", "reinforce", 0.1), ("cifar10", "two-path", 6e-3),
     ("cifar10", "reinforce", 1e-2), ("images", "recompute", 1e-3), ("images", "reinforce", 1e-3)],
)  # fmt: skip
def test_alpha_moves_by_the_papers_rate_for_the_data(data: str, mode: Any, rate: float) -> None:
    images = Digits()
    images.name = f"{data} split_seed=0"
    assert Proxyless(posed(TOY), data=images, mode=mode).alpha_lr == rate
    s = Proxyless(posed(TOY), mode="recompute", warmup=0, alpha_lr=rate)
    s._ready()
    before = [a.copy() for a in s.alpha]
    x, y = batch(TOY, 40)
    s._alpha_step(x.float(), y, np.random.default_rng(0), 0)
    # Adam's first step is its rate, whatever the gradient.
    for a, b in zip(s.alpha, before, strict=True):
        np.testing.assert_allclose(np.abs(a - b), rate, rtol=1e-3)


def test_an_architecture_step_changes_no_weight_and_no_statistic() -> None:
    for mode in ("recompute", "two-path", "reinforce"):
        s = searched(posed(small("nasbench201")), mode=mode, epochs=1)
        before = {n: t.clone() for n, t in s.supernet.state_dict().items() if "num_batches" not in n}
        alpha = [a.copy() for a in s.alpha]
        x, y = batch(small("nasbench201"), 40)
        s._alpha_step(x.float(), y, np.random.default_rng(0), 0)
        assert all(torch.equal(t, s.supernet.state_dict()[n]) for n, t in before.items())
        assert any((a != b).any() for a, b in zip(alpha, s.alpha, strict=True))
        assert all(p.requires_grad for p in s.supernet.parameters())


def test_a_weight_step_trains_one_path_and_no_architecture_parameter() -> None:
    s = Proxyless(posed(TOY), **QUICK)
    s._ready()
    alpha = [a.copy() for a in s.alpha]
    before = {n: p.detach().clone() for n, p in s.supernet.named_parameters()}
    x, y = batch(TOY)
    s._weight_step(x.float(), y, np.random.default_rng(0), 0.0)
    changed = {n for n, p in s.supernet.named_parameters() if not torch.equal(p, before[n])}
    touched = {tuple(n.split(".")[1:4:2]) for n in changed if n.startswith("positions.")}
    assert len(touched) == TOY.positions == len({i for i, _ in touched})
    assert all((a == b).all() for a, b in zip(alpha, s.alpha, strict=True))


def test_sampled_pairs_are_two_choices_that_may_be_taken() -> None:
    rng = np.random.default_rng(0)
    p = np.array([0.5, 0.0, 0.3, 0.2])
    pairs = [paths.sample_pair(p, rng) for _ in range(200)]
    assert {frozenset(x) for x in pairs} == {frozenset(x) for x in ((0, 2), (0, 3), (2, 3))}
    assert paths.sample_pair(np.array([0.0, 1.0]), rng) == [1]


# -- memory ---------------------------------------------------------------------------------------------------------


def _kept_bytes(step: Any) -> int:
    """Bytes of all tensors that autograd keeps for the backward pass, each storage once."""
    kept: dict[int, int] = {}

    def pack(t: Any) -> Any:
        if not isinstance(t, torch.nn.Parameter):
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = step()
    total = sum(kept.values())
    loss.backward()
    gc.collect()
    return total


def test_an_architecture_step_keeps_no_more_than_the_largest_path() -> None:
    space = load_space("proxyless", resolution=32, width_mult=0.25, num_classes=10)
    supernet, (x, y) = space.supernet().train(), batch(space, 4)
    x = x.float()
    largest = (5,) * 21

    def loss(out: Any) -> Any:
        return torch.nn.functional.cross_entropy(out, y)

    alone = _kept_bytes(lambda: loss(supernet(x, largest)))
    candidates = [range(n) for n in space.num_choices]
    every = paths.AllPaths(largest, candidates, space.num_choices)
    all_at_once = _kept_bytes(lambda: loss(supernet(x, largest, mix=every.mixers())))
    with paths.only_architecture(supernet):
        ways: dict[str, Sequence[Any]] = {"recompute": candidates, "two-path": [(5, 0)] * 21}
        for pairs in ways.values():
            gates = paths.Gates(largest, pairs, space.num_choices)
            kept = _kept_bytes(lambda g=gates: loss(supernet(x, largest, mix=g.mixers())))
            assert kept <= 1.2 * alone
    assert all_at_once > 3 * alone


def test_the_benchmark_of_memory_counts_what_the_allocator_gave_out() -> None:
    args = Namespace(batch=8, resolution=32, width_mult=0.25, classes=10, threads=1)
    found = {
        way: supernet_memory.measure(way, args) for way in ("largest path", "recompute", "reinforce", "all at once")
    }
    largest = found["largest path"]["activations"]
    assert found["recompute"]["activations"] <= 1.2 * largest
    assert found["reinforce"]["activations"] < 0.5 * largest
    assert found["recompute"]["gradients"] == 0 < found["largest path"]["gradients"]


# -- the search -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["recompute", "two-path", "reinforce"])
def test_where_latency_weighs_most_the_fastest_network_is_derived(mode: str) -> None:
    problem = posed(TOY)
    heavy = {"reward_exponent": 5.0} if mode == "reinforce" else {"loss": "additive", "loss_weight": 500.0}
    s = searched(problem, mode=mode, epochs=6, batch_size=100, alpha_every=1, alpha_lr=0.2, paths=12, **heavy)
    matrix, _ = problem.cost_matrix("latency_ms") or (None, None)
    assert s.ask(1) == [tuple(matrix.argmin(axis=1))]
    rows = s.course
    assert [r["epoch"] for r in rows] == list(range(1, 8))
    assert set(rows[-1]) == {"epoch", "loss", "accuracy", "entropy", "latency_ms"}
    assert rows[-1]["entropy"] < 0.5 * rows[0]["entropy"]
    assert rows[-1]["latency_ms"] < rows[0]["latency_ms"]


def test_alpha_is_frozen_during_warm_up() -> None:
    s = Proxyless(posed(TOY), warmup=2, epochs=1, batch_size=250)
    alpha = [a.copy() for a in s.alpha]
    s.advance(), s.advance()
    assert all((a == b).all() for a, b in zip(alpha, s.alpha, strict=True))
    s.advance()
    assert all((a != b).any() for a, b in zip(alpha, s.alpha, strict=True))
    assert not s.advance()


def test_without_a_latency_model_accuracy_alone_decides() -> None:
    s = searched(Problem(TOY, (Objective("error"),)))
    assert not s.costs
    assert set(s.course[-1]) == {"epoch", "loss", "accuracy", "entropy"}
    assert len(s.ask(3)) == 3


def test_weights_learn_and_the_accuracy_of_the_derived_network_with_them() -> None:
    s = searched(posed(small("nasbench201")), warmup=6, epochs=2, batch_size=20)
    assert s.course[-1]["loss"] < 0.9 * s.course[0]["loss"]
    # Ten classes.
    assert s.course[-1]["accuracy"] > 0.2


def test_zero_makes_a_network_shorter() -> None:
    space = small("proxyless")
    s = searched(posed(space), epochs=4, loss="additive", loss_weight=500.0, alpha_lr=3.0)
    (arch,) = s.ask(1)
    assert sum(a == 6 for a in arch) == sum(n == 7 for n in space.num_choices)
    blocks = [b for b in space.network(arch).blocks if b.name.startswith("positions.")]
    assert len(blocks) == 21 - sum(a == 6 for a in arch)


def test_derived_networks_keep_the_limits_and_aim_at_them() -> None:
    free = posed(TOY)
    limit = float(np.quantile(free.cheap(TOY.sample_archs(200, 0))["latency_high_ms"], 0.2))
    problem = posed(TOY, latency_ms=limit)
    s = searched(problem)
    found = problem.cheap(s.ask(8))
    assert (found["latency_high_ms"] <= limit).all()
    # The limit is on the upper end, ten per cent above the value.
    assert s.costs.target == pytest.approx(limit / 1.1, rel=1e-3)
    assert searched(problem, target=0.5, epochs=0).costs.target == 0.5


def test_choices_that_the_device_lacks_are_never_run_nor_derived() -> None:
    missing = next(op.key for op in TOY.ops() if op.kind == "conv" and '"kernel":5' in op.key)
    values = SpaceValues(TOY, {"": table(TOY, unsupported=[missing])})
    problem = Problem(TOY, (Objective("error"), Objective("latency_ms")), cheap_values=values)
    s = searched(problem, mode="recompute")
    at = [i for i, row in enumerate(s.usable) if not row[2]]
    assert at
    assert all(s.probabilities()[i][2] == 0 for i in at)
    assert all(a[i] != 2 for a in s.ask(10) for i in at)


def test_several_devices_are_weighed_together() -> None:
    values = SpaceValues(TOY, {"@a": table(TOY), "@b": table(TOY, slow=3)})
    problem = Problem(TOY, tuple(map(Objective, ("error", "latency_ms@a", "latency_ms@b"))), cheap_values=values)
    s = searched(problem)
    assert s.course[-1]["latency_ms@b"] == pytest.approx(3 * s.course[-1]["latency_ms@a"])
    # Against its own target each is the same.
    archs = [TOY.sample(i) for i in range(4)]
    alone = searched(posed(TOY), epochs=0).costs.ratios(archs)
    np.testing.assert_allclose(s.costs.ratios(archs), alone)


class TestConformance(SearcherConformance):
    budget = 60

    @pytest.fixture
    def make(self) -> Make:
        return lambda problem, seed: searched(problem, seed=seed, epochs=1)


# -- stopping and going on ------------------------------------------------------------------------------------------


def _search(**changes: Any) -> SearchResult:
    options: dict[str, Any] = {
        "space": TOY, "latency": table(TOY), "accuracy": toy_evaluator("toy"), "budget": 4, "seed": 1, **QUICK,
    }  # fmt: skip
    return lb.search("proxyless", **{**options, **changes})


@pytest.mark.parametrize("mode", ["recompute", "two-path", "reinforce"])
def test_a_search_that_was_stopped_ends_bit_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    alone = _search(run=tmp_path / "alone", mode=mode, epochs=4)
    real, left = Proxyless.train_epoch, [3]

    def dies(self: Any, *args: Any) -> Any:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return real(self, *args)

    monkeypatch.setattr(Proxyless, "train_epoch", dies)
    with pytest.raises(KeyboardInterrupt):
        _search(run=tmp_path / "r", mode=mode, epochs=4)
    assert list((tmp_path / "r").rglob("epoch-3.pt"))
    monkeypatch.setattr(Proxyless, "train_epoch", real)
    again = _search(run=tmp_path / "r", mode=mode, epochs=4)
    assert again.course == alone.course
    assert again.candidates == alone.candidates
    assert again.provenance["picks"] == alone.provenance["picks"] == {"derived": 0}
    # What a finished training left is no longer needed.
    assert len(list((tmp_path / "r").rglob("*.pt"))) <= 1


def test_a_state_goes_on_without_a_folder_too() -> None:
    one, other = Proxyless(posed(TOY), **QUICK), Proxyless(posed(TOY), **QUICK)
    one.advance()
    other.restore(one.state())
    for s in (one, other):
        while s.advance():
            pass
    assert [a.tolist() for a in one.alpha] == [a.tolist() for a in other.alpha]
    assert one.ask(5) == other.ask(5)


def test_damaged_weights_are_an_error_that_names_the_file(tmp_path: Path) -> None:
    s = Proxyless(posed(TOY), **QUICK)
    s.folder = tmp_path
    s.advance()
    state = s.state()
    file = tmp_path / state["weights"]
    file.write_bytes(file.read_bytes()[:1000])
    other = Proxyless(posed(TOY), **QUICK)
    other.folder = tmp_path
    with pytest.raises(FileFormatError, match=r"epoch-1\.pt"):
        other.restore(state)


# -- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "why"),
    [
        ("densecell", {"resolution": 8, "cells": [2, 1], "growth": [4, 8]}, "wired differently"),
        ("rcas", {"base": "cifar", "resolution": 16, "width_mult": 0.1}, "shape"),
        ("metakernel", {"resolution": 16, "width_mult": 0.1, "layers": 2}, "has no block of its own"),
    ],
)
def test_spaces_whose_choices_do_not_mix_are_refused(name: str, options: dict[str, Any], why: str) -> None:
    space = load_space(name, num_classes=10, **options)
    with pytest.raises(ConfigError, match=f"^proxyless: {name} cannot be searched by mixing choices: .*{why}"):
        Proxyless(Problem(space, (Objective("error"),)))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mode": "darts"}, "mode is one of recompute, two-path, reinforce, not 'darts'"),
        ({"loss": "sum"}, "expected one of additive, add-linear, mul-log"),
        ({"epochs": -1}, "epochs must be a whole number of at least 0"),
        ({"warmup": 1.5}, "warmup must be a whole number"),
        ({"alpha_every": 0}, "alpha_every must be a whole number of at least 1"),
        ({"lr": 0}, "lr must be a positive number, got 0"),
        ({"alpha_lr": "fast"}, "alpha_lr must be a positive number, got 'fast'"),
        ({"target": -1}, "target must be a positive number, got -1"),
        ({"target": 0.03, "cost": ["latency_ms", "macs"]}, r"several costs \(latency_ms, macs\): name one with cost="),
        ({"cost": "error"}, "cost 'error' is not known without training"),
        ({"data": "mnist"}, "mnist"),
        ({"train_on": "tpu"}, "train_on"),
    ],
)
def test_unusable_options_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Proxyless(posed(TOY), **options).advance()


def test_a_network_for_other_classes_is_refused() -> None:
    space = load_space("nasbench201", resolution=8, channels=4, num_cells=1, num_classes=7)
    with pytest.raises(ConfigError, match="use num_classes=10"):
        Proxyless(posed(space))


def test_a_loss_that_is_no_number_ends_the_search() -> None:
    with pytest.raises(SearchError, match=r"in epoch 1 the loss is nan.*; try a lower learning rate"):
        searched(posed(small("nasbench201")), warmup_lr=1e30)


@pytest.mark.parametrize("mode", ["recompute", "two-path", "reinforce"])
def test_a_loss_that_is_no_number_while_architectures_are_learnt_ends_the_search_too(mode: str) -> None:
    with pytest.raises(SearchError, match=r"in epoch 1 the (loss is|gradients of α are) .*lower learning rate"):
        searched(posed(small("nasbench201")), mode=mode, warmup=0, lr=1e30)
