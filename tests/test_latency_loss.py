"""Losses that weigh cross entropy against expected latency, and expectations of a problem's values."""

from __future__ import annotations

from itertools import product
from math import log
from typing import Any

import numpy as np
import pytest
from search_support import table

from latbench import expected as module
from latbench import load_space
from latbench.cheap import SpaceValues
from latbench.errors import ConfigError
from latbench.problem import Objective, Problem

torch = pytest.importorskip("torch")
from latbench.latency_loss import LOSSES, LatencyLoss, expectation  # noqa: E402


def _at(kind: Any, ce: float, ms: float, **options: Any) -> tuple[float, float, float]:
    """Value and both derivatives of a loss."""
    loss = LatencyLoss(kind, **options)
    a, b = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (ce, ms))
    value = loss(a, b)
    value.backward()
    return value.item(), a.grad.item(), b.grad.item()


def test_each_loss_is_its_formula() -> None:
    assert _at("additive", 2.0, 90.0, target=80.0, weight=0.4)[0] == pytest.approx(2 + 0.4 / 80 * 90)
    assert _at("add-linear", 2.0, 90.0, target=80.0)[0] == pytest.approx(2 + 0.1 * (90 - 80) / 80)
    assert _at("mul-log", 2.0, 90.0, target=80.0)[0] == pytest.approx(0.2 * 2 * (log(90) / log(80)) ** 0.3)
    assert _at("mul-log", 2.0, 90.0, target=80.0, weight=1.0, exponent=0.6)[0] == pytest.approx(
        2 * (log(90) / log(80)) ** 0.6
    )


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("target", [80.0, 0.3])
def test_gradients_are_those_of_finite_differences(kind: Any, target: float) -> None:
    ce, ms, step = 1.7, 1.3 * target, 1e-6
    _, by_ce, by_ms = _at(kind, ce, ms, target=target)
    for found, d_ce, d_ms in ((by_ce, step, 0.0), (by_ms, 0.0, step * target)):
        up, down = (_at(kind, ce + s * d_ce, ms + s * d_ms, target=target)[0] for s in (1, -1))
        assert found == pytest.approx((up - down) / (2 * (d_ce + d_ms)), rel=1e-5)
    assert by_ms > 0


def test_a_product_of_logarithms_is_the_same_for_a_network_a_thousand_times_as_fast() -> None:
    slow, fast = (_at("mul-log", 2.0, 1.1 * t, target=t) for t in (8.0, 0.008))
    assert slow[0] == pytest.approx(fast[0])
    value, _, slope = _at("mul-log", 2.0, 1e-9, target=0.3)
    assert 0 < value < 0.4
    assert slope == 0


@pytest.mark.parametrize("target", [10.0, 12.0, 20.0, 80.0, 300.0])
def test_from_ten_milliseconds_on_the_product_is_the_published_formula(target: float) -> None:
    for ms in (0.6 * target, target, 1.7 * target):
        want = 0.2 * 2 * (log(ms) / log(target)) ** 0.3
        assert _at("mul-log", 2.0, ms, target=target)[0] == pytest.approx(want)


@pytest.mark.parametrize("off", [0.5, 0.9, 1.3, 3.0])
def test_the_product_does_not_jump_from_one_target_to_the_next(off: float) -> None:
    # Per step of one per cent in the target, all other things equal: at 1 ms and at 10 ms too.
    targets = [0.5 * 1.01**i for i in range(600)]
    assert targets[0] < 1 < 10 < 80 < targets[-1]
    found = np.array([_at("mul-log", 2.0, off * t, target=t) for t in targets])
    assert (found[:, 0] > 0).all()
    assert (found[:, 2] > 0).all()
    assert np.abs(np.diff(np.log(found[:, 0]))).max() < 0.005


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("multiplied", {"target": 1.0}, "expected one of additive, add-linear, mul-log"),
        ("additive", {"target": 0.0}, "target must be a positive number, got 0.0"),
        ("additive", {"target": float("nan")}, "target must be a positive number"),
        ("mul-log", {"target": 1.0, "weight": -1}, "weight must be a positive number, got -1"),
        ("mul-log", {"target": 1.0, "exponent": True}, "exponent must be a positive number, got True"),
    ],
)
def test_unusable_losses_are_refused(kind: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        LatencyLoss(kind, **options)


# -- expectations of a problem's values -----------------------------------------------------------------------------


def _problem(**changes: Any) -> Problem:
    # Dead edges are dropped: what an edge costs depends on the other five.
    space = load_space("nasbench201", resolution=8, channels=4, num_cells=1, num_classes=10)
    return Problem(space, (Objective("latency_ms"),), cheap_values=SpaceValues(space, {"": table(space)}, **changes))


def _probabilities(seed: int = 0) -> Any:
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return logits.softmax(1).requires_grad_()


def _enumerated(problem: Problem, probs: Any) -> tuple[float, Any]:
    archs = np.array(list(product(range(5), repeat=6)))
    values = problem.cheap(archs)["latency_ms"]
    p = probs.detach().numpy()
    chances = p[np.arange(6), archs]
    gradient = np.zeros((6, 5))
    for i in range(6):
        others = np.delete(chances, i, axis=1).prod(axis=1) * values
        gradient[i] = np.bincount(archs[:, i], others, 5)
    return float(chances.prod(axis=1) @ values), gradient


def test_a_small_space_is_enumerated() -> None:
    problem, probs = _problem(), _probabilities()
    of = expectation(problem, "latency_ms")
    value, gradient = _enumerated(problem, probs)
    found = of(probs)
    found.backward()
    assert of.exact
    assert found.item() == pytest.approx(value)
    np.testing.assert_allclose(probs.grad.numpy(), gradient, rtol=1e-9)


def test_a_sampled_gradient_is_unbiased(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ENUMERATED", 0)
    problem, probs = _problem(), _probabilities()
    of = expectation(problem, "latency_ms")
    assert not of.exact
    value, gradient = _enumerated(problem, probs)
    rows = []
    for seed in range(200):
        found = of(probs, samples=4, seed=seed)
        (g,) = torch.autograd.grad(found, probs)
        rows.append([found.item(), *g.numpy().ravel()])
    mean, error = np.mean(rows, axis=0), np.std(rows, axis=0, ddof=1) / np.sqrt(len(rows))
    off = np.abs(mean - [value, *gradient.ravel()])
    # Thirty-one numbers: not one is five standard errors off by chance.
    assert (off <= 5 * error + 1e-12).all()
    # The estimate is close already: forty different choices see the same architectures.
    assert error[0] < 0.02 * value


def test_counts_have_expectations_too() -> None:
    problem = _problem(counts=True)
    probs = torch.full((6, 5), 0.2, dtype=torch.float64)
    archs = np.array(list(product(range(5), repeat=6)))
    assert expectation(problem, "params")(probs).item() == pytest.approx(problem.cheap(archs)["params"].mean())


def test_a_value_that_training_gives_has_no_expectation() -> None:
    with pytest.raises(ConfigError, match="'error' without training; known: latency_ms, latency_low_ms"):
        expectation(_problem(), "error")
