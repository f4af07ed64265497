"""Whole-network effects: learnt where they are there, and left alone where they are not."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from latbench.errors import NotAdditiveError
from latbench.load import load_space
from latbench.op import Op, TensorSpec
from latbench.predictors.additive import calibrate
from latbench.predictors.kernels import Kernels
from latbench.predictors.whole_network import WHOLE, Effects, calibrate_whole, cold_megabytes
from latbench.space import SearchSpace
from latbench.testing.predictors import AdditiveWorld


def linear(n: int, rows: int = 1) -> Op:
    return Op.make("linear", [TensorSpec((rows, n))], out_features=n, bias=False)


def networks(rng: np.random.Generator, n: int) -> list[Counter[Op]]:
    """Networks of 5 to 60 layers, each of one of five widths."""
    widths = (64, 128, 256, 512, 1024)
    found = []
    for _ in range(n):
        at = int(rng.integers(0, 5))
        count = int(np.exp(rng.uniform(np.log(5), np.log(60))))
        found.append(Counter(linear(widths[max(0, at - int(rng.integers(0, 2)))]) for _ in range(count)))
    return found


def alone_ms(op: Op) -> float:
    return 0.002 + op.macs / 10e6


def measured(nets: list[Counter[Op]], truth: Effects, rng: np.random.Generator, noise: float = 0.01) -> np.ndarray:
    work = np.array([sum(n * alone_ms(op) for op, n in net.items()) for net in nets])
    loads = np.stack([truth.loads(net.elements()).sum(axis=0) for net in nets])
    return (0.05 + work + sum(truth.extra_ms(work, loads))) * np.exp(noise * rng.standard_normal(len(nets)))


def fit(nets: list[Counter[Op]], y: np.ndarray):
    sums = np.array([[sum(n * alone_ms(op) for op, n in net.items())] for net in nets])
    work = np.array([[sum(op.weight_bytes * n for op, n in net.items()) / 1e6, net.total()] for net in nets])
    return calibrate_whole(sums, y, ["linear"], work, nets, least_ms=0.002, estimated=sums)


def predicted(found, nets: list[Counter[Op]]) -> np.ndarray:
    c = found.fit.calibration
    work = np.array([sum(n * c.op_ms(op, alone_ms(op)) for op, n in net.items()) for net in nets])
    loads = np.stack([found.effects.loads(net.elements()).sum(axis=0) for net in nets])
    return c.overhead_ms + work + sum(found.effects.extra_ms(work, loads))


@pytest.mark.parametrize("seed", range(3))
def test_networks_that_wait_for_launches_are_told_from_those_that_compute(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = Effects(launch_ms=0.012)
    nets, others = networks(rng, 30), networks(rng, 60)
    found = fit(nets, measured(nets, truth, rng))
    assert found.effects.launch_ms == pytest.approx(0.012, rel=0.1)
    assert found.fit.rmspe < 0.5 * min(e for form, e in found.fit.tried.items() if form.startswith("affine"))
    off = predicted(found, others) / measured(others, truth, rng, 0.0) - 1
    assert np.sqrt(np.mean(off**2)) < 0.03


def test_weights_that_a_network_drives_out_of_a_cache_have_a_price_beyond_its_size_alone() -> None:
    rng = np.random.default_rng(5)
    truth = Effects(cold_ms_per_megabyte=0.05, cache_megabytes=8.0)
    nets, others = networks(rng, 40), networks(rng, 60)
    found = fit(nets, measured(nets, truth, rng))
    assert found.effects.cold_ms_per_megabyte == pytest.approx(0.05, rel=0.3)
    assert not found.effects.launch_ms
    off = predicted(found, others) / measured(others, truth, rng, 0.0) - 1
    assert np.sqrt(np.mean(off**2)) < 0.03


@pytest.mark.parametrize("seed", range(4))
def test_sums_that_hold_stay_sums(seed: int) -> None:
    rng = np.random.default_rng(seed)
    nets = networks(rng, 30)
    found = fit(nets, measured(nets, Effects(), rng, 0.02))
    assert not found.effects
    assert found.fit.calibration.scale == pytest.approx(1.0, abs=0.05)


def test_few_networks_are_no_evidence_for_effects() -> None:
    rng = np.random.default_rng(0)
    nets = networks(rng, 9)
    assert not fit(nets, measured(nets, Effects(launch_ms=0.05), rng)).effects


def test_only_ops_that_fit_into_a_cache_can_lose_it() -> None:
    assert cold_megabytes(linear(256), 1.0) == pytest.approx(256 * 256 * 4 / 1e6)
    assert cold_megabytes(linear(1024), 1.0) == 0.0


def test_a_network_that_fits_into_the_cache_keeps_its_weights() -> None:
    effects = Effects(cold_ms_per_megabyte=1.0, cache_megabytes=8.0)
    small, large = (effects.loads([linear(512)] * n).sum(axis=0) for n in (2, 40))
    _, cold = effects.extra_ms([1.0, 1.0], np.stack([small, large]))
    assert cold[0] == 0.0
    assert cold[1] == pytest.approx(40 * 512 * 512 * 4 / 1e6)


@pytest.fixture
def model() -> tuple[Kernels, SearchSpace]:
    """Kernels of blocks, told that launches and cold weights matter."""
    world = AdditiveWorld(load_space("mobilenetv3", resolution=32, width_mult=0.35, num_classes=10))
    fitted = Kernels.fit(world.data())
    sums = [fitted.predict(n.net).latency_ms - fitted.overhead_ms for n in world.networks(20, 3)]
    blocks = len(world.space.network(world.space.sample(seed=0)).blocks)
    fitted.effects = Effects(float(np.median(sums)) / blocks, 0.3, 0.1)
    return fitted, world.space


def test_networks_and_architectures_get_the_same_estimates_with_effects(
    model: tuple[Kernels, SearchSpace], tmp_path: Path
) -> None:
    kernels, space = model
    archs = space.sample_archs(30, 4)
    estimates = [kernels.predict(space.network(tuple(a))) for a in archs.tolist()]
    many = kernels.predict_archs(space, archs)
    assert many.value == pytest.approx([e.latency_ms for e in estimates], rel=1e-9)
    waits = [sum(p.latency_ms for p in e.breakdown if p.label == WHOLE[0]) for e in estimates]
    assert min(waits) == 0 < max(waits)
    assert all(any(p.label == WHOLE[1] for p in e.breakdown) for e in estimates)
    assert [sum(p.latency_ms for p in e.breakdown) for e in estimates] == pytest.approx(many.value)
    again = Kernels.load(kernels.save(tmp_path / "model"))
    assert again.predict_archs(space, archs).value == pytest.approx(many.value, rel=1e-12)


def test_what_is_no_sum_has_no_costs_of_ops(model: tuple[Kernels, SearchSpace]) -> None:
    kernels, space = model
    with pytest.raises(NotAdditiveError, match="predict_archs"):
        kernels.op_costs([op.key for op in space.ops()][:2])


def test_a_sum_stays_plain_where_a_richer_form_is_hardly_better() -> None:
    """Of many forms one is the best by chance; one that is clearly better by chance is rare."""
    forms, best = [], []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        parts, work = rng.uniform(0.5, 3.0, (20, 3)), rng.uniform(1.0, 9.0, (20, 3))
        ms = (0.2 + 1.1 * parts.sum(1)) * np.exp(rng.normal(0, 0.03, 20))
        found = calibrate(parts, ms, ("a", "b", "c"), work)
        forms.append(found.calibration.form)
        best.append(min(found.tried.items(), key=lambda tried: tried[1])[0])
    assert forms.count("affine") >= 8 > best.count("affine")


def test_effects_that_are_no_numbers_are_refused():
    for wrong in ({"launch_ms": "soon"}, {"cold_ms_per_megabyte": None}, {"cache_megabytes": float("nan")}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} is a number, not"):
            Effects(**wrong)
