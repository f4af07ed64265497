"""Expected latency: exact where costs add up, unbiased where they are sampled, differentiable in both."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from latbench import expected as module
from latbench import load_space
from latbench.errors import ConfigError, UnsupportedOpError
from latbench.network import NetworkBuilder
from latbench.predictors.table import Table
from latbench.space import Arch, SearchSpace
from latbench.testing.predictors import AdditiveWorld
from latbench.testing.spaces import HashedCosts

torch = pytest.importorskip("torch")
expected_latency = module.expected_latency


class Layers(SearchSpace):
    """Three layers of different channels, so small that it can be enumerated; two, three and two choices."""

    name = "layers"

    def __init__(self, *, chained: bool = False) -> None:
        self.params = {"chained": chained}
        self.additive = not chained

    @property
    def num_choices(self) -> tuple[int, ...]:
        return (2, 3, 2)

    def choice_label(self, position: int, choice: int) -> str:
        return f"k{2 * choice + 1}"

    def build(self, b: NetworkBuilder, arch: Arch) -> str:
        x = b.input((1, 8, 8, 8))
        for i, c in enumerate(arch):
            # Chained: a layer's width depends on its choice, so the next layer's Op depends on it too.
            out = 8 + 8 * c if self.params["chained"] else 8 * (i + 1)
            x = b.block("conv", x, scope=f"positions.{i}", choice=c, out=out, kernel=2 * c + 1)
        return b.block("global_avg_pool", x, scope="pool")

    def covering_archs(self) -> list[Arch]:
        return list(product(*(range(n) for n in self.num_choices)))


class WithHoles(HashedCosts):
    """Some Ops are unsupported."""

    def __init__(self, *holes: str) -> None:
        self.holes = holes

    def op_cost(self, key: str) -> float:
        return float("nan") if any(h in key for h in self.holes) else super().op_cost(key)


def _logits(space: SearchSpace, seed: int = 0) -> list[Any]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, generator=generator, dtype=torch.float64, requires_grad=True) for n in space.num_choices]


def _softmax(logits: list[Any]) -> list[Any]:
    return [torch.softmax(z, 0) for z in logits]


def _by_enumeration(model: HashedCosts, space: SearchSpace, probs: list[Any]) -> Any:
    total = torch.zeros((), dtype=torch.float64)
    for arch in product(*(range(n) for n in space.num_choices)):
        net = space.network(arch)
        latency = sum(model.op_cost(b.op.key) for b in net.blocks) + model.overhead_ms
        weight = torch.ones((), dtype=torch.float64)
        for q, c in zip(probs, arch, strict=True):
            weight = weight * q[c]
        total = total + weight * latency
    return total


def _gradients(value: Any, logits: list[Any]) -> npt.NDArray[np.float64]:
    return np.concatenate([g.numpy() for g in torch.autograd.grad(value, logits)])


# -- exact ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chained", [False, True])
def test_value_and_gradient_are_those_of_enumeration(chained: bool) -> None:
    space, model = Layers(chained=chained), HashedCosts()
    logits = _logits(space)
    truth = _by_enumeration(model, space, _softmax(logits))
    value = expected_latency(model, space, _softmax(logits))
    assert value.item() == pytest.approx(truth.item())
    np.testing.assert_allclose(_gradients(value, logits), _gradients(truth, logits), rtol=1e-9)


def test_certain_choices_cost_what_their_architecture_costs() -> None:
    space = load_space("proxyless", resolution=32, width_mult=0.25)
    arch = space.sample(3)
    one_hot = np.zeros((21, 7))
    one_hot[np.arange(21), arch] = 1
    expected = HashedCosts().predict_archs(space, [arch]).value[0]
    assert expected_latency(HashedCosts(), space, torch.tensor(one_hot)).item() == pytest.approx(expected)
    assert expected_latency(HashedCosts(), space, one_hot.astype(int)).item() == pytest.approx(expected, rel=1e-5)


def test_the_gradient_of_an_additive_space_is_its_cost_matrix() -> None:
    space = load_space("mobilenetv3", resolution=32, width_mult=0.25)
    probs = torch.full((14, 12), 1 / 12, dtype=torch.float64, requires_grad=True)
    expected_latency(HashedCosts(), space, probs).backward()
    np.testing.assert_allclose(probs.grad.numpy(), space.cost_matrix(HashedCosts())[0])


# -- sampled --------------------------------------------------------------------------------------------------------


@pytest.fixture
def _no_enumeration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ENUMERATED", 0)


@pytest.mark.usefixtures("_no_enumeration")
def test_sampled_value_and_gradient_are_unbiased_over_seeds() -> None:
    space, model = Layers(chained=True), HashedCosts()
    logits = _logits(space)
    truth = _by_enumeration(model, space, _softmax(logits))
    rows = []
    for seed in range(300):
        value = expected_latency(model, space, _softmax(logits), samples=2, seed=seed)
        rows.append([value.item(), *_gradients(value, logits)])
    found, exact = np.array(rows), np.array([truth.item(), *_gradients(truth, logits)])
    standard_error = found.std(axis=0, ddof=1) / np.sqrt(len(rows))
    assert (standard_error > 0).all()
    # Eight numbers: five standard errors never happen by chance.
    assert (np.abs(found.mean(axis=0) - exact) < 5 * standard_error).all()


@pytest.mark.usefixtures("_no_enumeration")
def test_sampling_follows_its_seed() -> None:
    space, probs = Layers(chained=True), _softmax(_logits(Layers()))
    a, b, c = (expected_latency(HashedCosts(), space, probs, samples=3, seed=s).item() for s in (1, 1, 2))
    assert a == b != c


@pytest.mark.usefixtures("_no_enumeration")
def test_a_certain_architecture_is_sampled_exactly() -> None:
    space = load_space("nasbench201", num_cells=1, channels=8, resolution=16)
    arch = (3, 0, 2, 1, 4, 3)
    value = expected_latency(HashedCosts(), space, torch.nn.functional.one_hot(torch.tensor(arch), 5), samples=1)
    assert value.item() == pytest.approx(HashedCosts().predict_archs(space, [arch]).value[0], rel=1e-6)


def test_conditional_means_are_less_noisy_than_the_score_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ENUMERATED", 0)
    space, model, n = load_space("nasbench201", num_cells=1, channels=8, resolution=16), HashedCosts(), 40
    probs = [torch.full((5,), 0.2, dtype=torch.float64, requires_grad=True) for _ in range(6)]
    ours, score = [], []
    for seed in range(n):
        ours.append(_gradients(expected_latency(model, space, probs, samples=8, seed=seed), probs))
        archs = space.sample_archs(8, seed=seed)
        onehot = space.encode(archs) / 0.2
        score.append((onehot * model.predict_archs(space, archs).value[:, None]).mean(axis=0))
    assert np.mean(np.var(ours, axis=0)) < 0.2 * np.mean(np.var(score, axis=0))


# -- choices that the device does not run ---------------------------------------------------------------------------


@pytest.mark.parametrize("chained", [False, True])
@pytest.mark.parametrize("enumerated", [20_000, 0])
def test_an_unsupported_choice_may_only_have_probability_zero(
    monkeypatch: pytest.MonkeyPatch, chained: bool, enumerated: int
) -> None:
    monkeypatch.setattr(module, "ENUMERATED", enumerated)
    space, model = Layers(chained=chained), WithHoles('"kernel":5')
    half = torch.tensor([0.5, 0.5], dtype=torch.float64, requires_grad=True)
    without = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64, requires_grad=True)
    value = expected_latency(model, space, [half, without, half])
    value.backward()
    assert np.isfinite(value.item())
    assert torch.isfinite(without.grad).all()
    assert torch.isfinite(half.grad).all()
    with pytest.raises(UnsupportedOpError, match="does not support"):
        expected_latency(model, space, [half, torch.tensor([0.4, 0.5, 0.1], dtype=torch.float64), half])


def test_an_unsupported_fixed_block_is_an_error() -> None:
    space = Layers()
    with pytest.raises(UnsupportedOpError, match="all of layers"):
        expected_latency(WithHoles("global_avg_pool"), space, _softmax(_logits(space)))


# -- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("probs", "said"),
    [
        ([[0.5, 0.5]], "has 3 positions; got probabilities for 1"),
        ([[0.5, 0.5], [1.0, 0.0], [0.5, 0.5]], "position 1 has 3 choices"),
        ([[0.5, 0.5, 0.1], [1.0, 0.0, 0.0], [0.5, 0.5, 0.0]], "position 0 has 2 choices"),
        ([[0.5, 0.6], [1.0, 0.0, 0.0], [0.5, 0.5]], "position 0 must be ≥ 0 and sum to 1"),
        ([[0.5, 0.5], [2.0, -1.0, 0.0], [0.5, 0.5]], "position 1 must be ≥ 0 and sum to 1"),
        ([[0.5, float("nan")], [1.0, 0.0, 0.0], [0.5, 0.5]], "position 0 must be ≥ 0"),
    ],
)
def test_what_is_no_distribution_is_refused(probs: list[list[float]], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        expected_latency(HashedCosts(), Layers(), probs)


@pytest.mark.usefixtures("_no_enumeration")
def test_no_samples_are_refused() -> None:
    with pytest.raises(ConfigError, match="samples must be at least 1, got 0"):
        expected_latency(HashedCosts(), Layers(chained=True), _softmax(_logits(Layers())), samples=0)


def test_a_choice_of_probability_zero_is_never_drawn() -> None:
    uniform = np.array([0.0, 0.5, np.nextafter(1.0, 0.0)])
    assert module._draw(np.array([0.0, 0.3, 0.7, 0.0]), uniform).tolist() == [1, 2, 2]


# -- a real table ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dead_edges", [False, True])
def test_a_fitted_table_expects_what_it_predicts_on_average(dead_edges: bool) -> None:
    space = load_space("nasbench201", num_cells=1, channels=8, resolution=16, dead_edges=dead_edges)
    table = Table.fit(AdditiveWorld(space).data(12))
    archs = np.array(list(product(range(5), repeat=6)))
    weights = np.array([0.1, 0.2, 0.3, 0.25, 0.15])
    truth = float(weights[archs].prod(axis=1) @ table.predict_archs(space, archs).value)
    value = table.expected_latency(space, torch.tensor(weights).repeat(6, 1))
    assert value.item() == pytest.approx(truth)
