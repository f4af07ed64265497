"""Kernels: regressors per kind find the law behind the times, and say when they do not know."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from math import prod
from types import SimpleNamespace

import numpy as np
import pytest

from latbench.device import Unit
from latbench.errors import ConfigError, FileFormatError, NotEnoughDataError, UnknownOpError
from latbench.load import load_predictor, load_space
from latbench.network import NetworkBuilder
from latbench.op import Op, Step, TensorSpec
from latbench.predictors import gaussian, plans, regressors
from latbench.predictors import kernels as kernels_module
from latbench.predictors.entries import Entry
from latbench.predictors.extrapolation import LEAST_GROWTH, Ranges, growths
from latbench.predictors.features import NAMES, features, kernel_kind, roofline_ms
from latbench.predictors.kernel_costs import Cost, Shares
from latbench.predictors.kernel_fits import fit_kinds, unknown_spread
from latbench.predictors.kernels import Kernels
from latbench.predictors.regressors import GP, MIN_DROP, MIN_GAIN, KindModel, fit_kind, refit
from latbench.predictors.table import Table
from latbench.recalibration import Recalibrated
from latbench.statistics import widened
from latbench.testing.predictors import AdditiveWorld, PredictorConformance
from latbench.visit import Interval


class TestKernelsConforms(PredictorConformance):
    @pytest.fixture
    def cls(self):
        return Kernels


def conv(channels, out, size, kernel=1, groups=1, stride=1):
    return Op.make(
        "conv", [TensorSpec((1, channels, size, size))], out_channels=out, kernel=(kernel, kernel),
        stride=(stride, stride), pads=(kernel // 2,) * 4, groups=groups,
    )  # fmt: skip


def random_convs(n, seed, kernel=1):
    rng = np.random.default_rng(seed)
    sizes = [(int(c), int(o), int(s)) for c, o, s in rng.integers((8, 8, 4), (256, 256, 57), (n, 3))]
    return [conv(c, o, s, kernel) for c, o, s in sizes]


# -- features ---------------------------------------------------------------------------------------------------------


def test_kinds_follow_what_kernels_do():
    assert kernel_kind(conv(32, 32, 8, 3, groups=32)) == "conv depthwise"
    assert kernel_kind(conv(32, 64, 8)) == "conv pointwise"
    assert kernel_kind(conv(32, 64, 8, 3)) == "conv dense"
    assert kernel_kind(conv(32, 64, 8, 3, groups=4)) == "conv grouped"
    assert kernel_kind(conv(32, 64, 1)) == "conv vector"
    assert kernel_kind(Op.make("global_avg_pool", [TensorSpec((1, 8, 4, 4))])) == "global_avg_pool"


def test_features_are_those_of_the_shape():
    x = dict(zip(NAMES, features([conv(16, 32, 10, 3, stride=2)])[0], strict=True))
    assert np.exp(x["log_macs"]) == pytest.approx(5 * 5 * 32 * 16 * 9)
    assert np.exp(x["log_in_channels"]) == pytest.approx(16)
    assert np.exp(x["log_output_bytes"]) == pytest.approx(32 * 25 * 4)
    assert x["stride"] == 2


def test_the_roofline_is_the_slower_of_compute_and_memory():
    op = conv(64, 64, 10)
    compute, memory = 2 * op.macs / 1e9, (op.activation_bytes + op.weight_bytes) / 1e7
    assert roofline_ms(op, 1.0, None) == pytest.approx(compute * 1e3)
    assert roofline_ms(op, 1.0, 0.01) == pytest.approx(max(compute, memory) * 1e3)
    assert roofline_ms(op, None, None) == 0


def test_a_block_is_split_into_the_units_that_it_has_inside_a_network(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    from latbench.load import load_device

    space = load_space("mobilenetv3", resolution=32, width_mult=0.35, num_classes=10)
    with load_device("local-cpu") as device:
        setting = device.setting
    net = space.network([1, 6] * 7)
    whole = Counter(u.op.key for u in plans.units(setting, net) if u.nodes)
    parts = Counter(u.op.key for b in net.blocks for u in plans.units_in_context(setting, b.op) if u.nodes)
    assert whole == parts


def test_a_plan_is_read_from_disk_for_a_network_of_other_names(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    from latbench.load import load_device

    def net(name):
        b = NetworkBuilder(name)
        return b.build(b.conv(b.input((1, 16, 8, 8), f"{name}_in"), 16, 3, bn=True, act="relu", name=name))

    with load_device("local-cpu") as device:
        setting = device.setting
    first = plans.units(setting, net("a"))
    plans._MEMORY.clear()
    monkeypatch.setattr(plans.plugins, "load", None)
    again = plans.units(setting, net("b"))
    assert [u.op for u in again] == [u.op for u in first]
    assert [n for u in again for n in u.nodes] == [n.name for n in net("b").nodes]
    assert {t for u in again for t in u.outputs} <= {*net("b").tensors}


# -- regressors -------------------------------------------------------------------------------------------------------


def test_costs_per_mac_and_byte_are_found_and_extrapolate():
    ops = random_convs(30, 0)
    ms = np.array([0.02 + op.macs / 4e6 + op.weight_bytes / 1e7 for op in ops])
    fit = fit_kind(features(ops), ms)
    assert fit.model.form == "costs"
    big = conv(512, 512, 112)
    truth = 0.02 + big.macs / 4e6 + big.weight_bytes / 1e7
    assert np.exp(fit.model.predict(features([big]))[0]) == pytest.approx(truth, rel=0.01)


def test_a_power_law_is_found():
    ops = random_convs(30, 1)
    ms = np.array([1e-6 * op.macs**0.7 * op.inputs[0].shape[1] ** 0.2 for op in ops])
    fit = fit_kind(features(ops), ms)
    assert fit.model.base == "log-linear"
    assert fit.error < 0.01


def test_a_smooth_bend_that_simple_forms_miss_is_learnt_by_a_residual_model():
    ops = random_convs(120, 2)
    ms = np.array([op.macs / 4e6 * (1 + 0.5 * np.sin(1.5 * np.log(op.inputs[0].shape[1]))) for op in ops])
    fit = fit_kind(features(ops), ms)
    assert fit.model.residual
    assert fit.error < 0.6 * min(fit.tried["costs"], fit.tried["log-linear"])


def test_steps_are_learnt_by_trees():
    ops = random_convs(150, 3)
    ms = np.array([0.1 * 2.0 ** (prod(op.outputs[0].shape) > 60_000) * 1.5 ** (op["out_channels"] > 100) for op in ops])
    fit = fit_kind(features(ops), ms)
    assert fit.model.residual.startswith("xgb")


def test_the_process_learns_which_features_matter():
    from latbench.predictors import gaussian

    rng = np.random.default_rng(4)
    z = rng.normal(size=(80, 6))
    rest = np.sin(2 * z[:, 2]) + 0.01 * rng.normal(size=80)
    found = gaussian.fit_hyper(z, rest, np.zeros(80))
    assert found.lengths.argmin() == 2
    assert found.lengths[2] < 0.3 * np.delete(found.lengths, 2).min()


def test_an_op_that_was_disturbed_does_not_pull_its_neighbours_along():
    from latbench.predictors import gaussian

    z = np.linspace(-2, 2, 60)[:, None]
    rest = np.sin(z[:, 0])
    rest[30] += 1.0
    hyper = gaussian.Hyper(np.array([1.0]), 1.0, 0.01)
    near = gaussian.covariance(z[29:32:2], z, hyper.lengths) @ gaussian.weights(z, rest, np.zeros(60), hyper)
    assert near == pytest.approx(np.sin(z[29:32:2, 0]), abs=0.05)


@pytest.mark.parametrize("residual", [False, True])
def test_what_is_known_badly_counts_little(residual: bool) -> None:
    ops = random_convs(60, 6)
    true = np.array([op.macs / 4e6 for op in ops])
    if residual:
        true *= 1 + 0.5 * np.sin(np.log([op.macs for op in ops]))
    measured, errors = true.copy(), np.full(60, 0.005)
    measured[::3] *= 1.6
    errors[::3] = 0.5
    blind = fit_kind(features(ops), measured).model.predict(features(ops))
    aware = fit_kind(features(ops), measured, errors=errors).model.predict(features(ops))
    off = [float(np.median(np.abs(y[1::3] - np.log(true[1::3])))) for y in (blind, aware)]
    assert off[1] < 0.5 * off[0]


def test_features_tell_what_blocked_layouts_fill_and_which_activations_are_bounded():
    def seen(channels: int, act: str = "relu", layout: str = "nchw16c") -> dict[str, float]:
        inner = conv(channels, 40, 14)
        after = Op.make(act, inner.outputs)
        unit = Op.unit(f"conv+{act}", inner.inputs, [Step(inner, (-1,)), Step(after, (0,))], layout=layout)
        return dict(zip(NAMES, features([unit])[0].tolist(), strict=True))

    x = seen(24)
    assert np.exp([x["log_in_fill"], x["log_out_fill"]]) == pytest.approx([32 / 24, 48 / 40])
    assert (x["narrow"], x["relu"], x["relu6"]) == (0, 1, 0)
    assert (seen(12)["narrow"], seen(12)["log_in_fill"]) == (1, 0)
    assert seen(12, layout="nchw")["narrow"] == 0
    assert (seen(24, "relu6")["relu"], seen(24, "relu6")["relu6"]) == (1, 1)
    resized = [Op.make("resize", [TensorSpec((1, 8, 4, 4))], size=(8, 8), mode=m) for m in ("nearest", "linear")]
    assert features(resized)[:, NAMES.index("interpolated")].tolist() == [0, 1]


def test_trees_that_are_empty_are_refused_before_xgboost_ends_the_process():
    with pytest.raises(FileFormatError, match="empty"):
        KindModel("costs", "xgb", {}, b"")


@pytest.mark.parametrize(
    ("simple", "richer", "chosen"),
    [
        (0.3, 0.3 * (1 - 0.5 * MIN_GAIN), "costs"),  # better by too small a share
        (0.3, 0.3 * (1 - 1.5 * MIN_GAIN), "costs + gaussian"),
        (2 * MIN_DROP, 1.5 * MIN_DROP, "costs"),  # by a quarter, but of an error that is noise
        (3 * MIN_DROP, 1.5 * MIN_DROP, "costs + gaussian"),
    ],
)
def test_a_richer_form_is_chosen_where_it_is_clearly_better_and_not_for_any_gain(monkeypatch, simple, richer, chosen):
    class Form:
        """Knows the answer, and is off by as much as its form is said to be."""

        def __init__(self, base, residual):
            self.form = f"{base} + {residual}" if residual else base
            self.off = {"costs": simple, f"costs + {GP}": richer}.get(self.form, 2 * simple)

        def predict(self, x):
            return x[:, 0] + self.off

    monkeypatch.setattr(regressors, "_fit", lambda x, y, own, base, residual, *_: Form(base, residual))
    monkeypatch.setattr(regressors, "_hyper", lambda *_: None)
    log_ms = np.linspace(-2, 2, 40)
    found = fit_kind(log_ms[:, None], np.exp(log_ms))
    assert found.model.form == chosen.replace("gaussian", GP)
    assert found.error == pytest.approx(richer if "+" in chosen else simple)


def test_out_of_fold_predictions_come_from_fits_that_did_not_see_them():
    ops = random_convs(20, 5)
    ms = np.array([op.macs / 4e6 for op in ops])
    ms[3] *= 5
    held_out = np.exp(fit_kind(features(ops), ms).out_of_fold[3])
    assert held_out == pytest.approx(ms[3] / 5, rel=0.5)


# -- networks split into units ----------------------------------------------------------------------------------------


@pytest.fixture
def unit_world(monkeypatch):
    """A runtime without fusion: every primitive is a unit, and its time is a law of its work."""

    def one_each(setting, net):
        return [Unit(Op.unit(n.op.kind, n.op.inputs, _alone(n.op)), (n.name,), n.outputs, n.name) for n in net.nodes]

    monkeypatch.setattr(plans, "units", one_each)
    monkeypatch.setattr(kernels_module.plans, "units", one_each)
    world = AdditiveWorld(load_space("mobilenetv3", resolution=32, width_mult=0.35, num_classes=10))
    world.network_ms = lambda net: (
        world.overhead_ms + world.scale * sum(world.op_ms(u.op) for u in one_each(world.setting, net))
    )
    data = world.data()
    units = {u.op.key: u.op for a in world.space.covering_archs() for u in one_each(None, world.space.network(a))}
    return world, replace(data, ops={k: world.measure(k, world.op_ms(op)) for k, op in units.items()})


@pytest.mark.parametrize("cls", [Kernels, Table])
def test_of_networks_from_files_two_are_enough_for_a_plain_sum_with_a_wide_interval(unit_world, cls, tmp_path):
    world, data = unit_world
    files = replace(data, card=data.card.replace(space=None), calibration=data.calibration[:2])
    model = cls.load(cls.fit(files).save(tmp_path / "saved"))
    assert any("fewer than 5 networks" in n and "latbench profile" in n for n in model.card.notes)
    net = data.calibration[2].net
    e = model.predict(net)
    assert e.latency_ms == pytest.approx(sum(world.op_ms(u.op) for u in plans.units(None, net)), rel=1e-4)
    assert e.breakdown[-1].latency_ms == 0
    assert e.low_ms < world.network_ms(net) < e.high_ms
    assert "plain sum" in e.warnings[0]
    full = cls.fit(data).predict(net)
    assert (e.high_ms - e.low_ms) / e.latency_ms > (full.high_ms - full.low_ms) / full.latency_ms
    with pytest.raises(NotEnoughDataError, match=r"latbench profile --device local-cpu MODEL\.onnx"):
        cls.fit(replace(files, calibration=()))


def test_networks_from_files_are_explained_by_their_few_units_also_beside_the_blocks_of_a_space(unit_world):
    world, data = unit_world
    blocks = {op.key: world.measure(op.key, world.op_ms(op)) for op in world.space.ops()}
    b = NetworkBuilder("file")
    x = b.input((1, 3, 32, 32))
    for channels in (8, 16, 24, 32, 40, 48, 56):
        x = b.conv(x, channels, 3)
    net = b.build(x)
    units = [u.op for u in plans.units(None, net)]
    assert len(units) < kernels_module.MIN_UNITS
    few = {op.key: world.measure(op.key, world.op_ms(op)) for op in units}
    measured = replace(data.calibration[0], net=net)
    mixed = replace(
        data, card=data.card.replace(space=None), ops=blocks | few, calibration=(measured, *data.calibration[:2])
    )
    model = Kernels.fit(mixed)
    assert model.op_level == "unit"
    assert {p.origin for p in model.predict(net).breakdown} == {"measured", "overhead"}
    assert Kernels.fit(replace(mixed, calibration=data.calibration)).op_level == "block"


def _alone(op):
    from latbench.op import Step

    return [Step(op, tuple(-i for i in range(1, len(op.inputs) + 1)))]


def test_measured_units_are_used_and_unseen_shapes_are_estimated(unit_world):
    world, data = unit_world
    model = Kernels.fit(data)
    assert model.op_level == "unit"
    net = world.space.network(world.space.sample(seed=3))
    known = model.predict(net)
    assert {p.origin for p in known.breakdown} == {"measured", "overhead"}
    assert known.latency_ms == pytest.approx(world.network_ms(net), rel=0.02)
    other = load_space("mobilenetv3", resolution=48, width_mult=0.35, num_classes=10)
    new = other.network(other.sample(seed=3))
    estimate = model.predict(new)
    assert "estimated" in {p.origin for p in estimate.breakdown}
    assert estimate.latency_ms == pytest.approx(world.network_ms(new), rel=0.1)


def test_no_estimate_is_far_below_the_fastest_op_that_was_measured(unit_world):
    _, data = unit_world
    model = Kernels.fit(data)
    fastest = min(m.latency_ms for m in data.ops.values())
    new = conv(24, 40, 13)
    assert new.key not in data.ops
    kind = kernel_kind(new)
    model.models[kind] = SimpleNamespace(predict=lambda x: np.full(len(x), -50.0))
    (ms,) = model.alone_ms([new])
    assert 0.4 * fastest < ms < fastest


def test_a_simulators_own_error_widens_what_kernels_predict(unit_world):
    world, data = unit_world
    uncertain = replace(data.card.setting, clock="simulated", model_error=0.3)
    plain, wide = Kernels.fit(data), Kernels.fit(replace(data, card=data.card.replace(setting=uncertain)))
    net = world.space.network(world.space.sample(seed=3))
    a, b = plain.predict(net, level=0.9), wide.predict(net, level=0.9)
    assert b.latency_ms == pytest.approx(a.latency_ms)
    expected = widened(Interval(1.0, a.low_ms / a.latency_ms, a.high_ms / a.latency_ms), 0.3, 0.9)
    assert (b.low_ms / b.latency_ms, b.high_ms / b.latency_ms) == pytest.approx((expected.low, expected.high))
    assert b.high_ms > 1.6 * b.latency_ms


@pytest.mark.parametrize("form", [("costs", ""), ("log-linear", ""), ("log-linear", GP), ("costs", "xgb")])
def test_what_is_said_of_an_op_does_not_depend_on_what_else_is_asked_for_to_the_last_bit(form):
    rng = np.random.default_rng(0)
    x = features(random_convs(60, seed=1))
    ms = np.exp(x[:, 0] / 2 - 6) * (1 + 0.3 * np.sin(x[:, 4])) * np.exp(0.05 * rng.standard_normal(60))
    hyper = gaussian.Hyper(np.full(x.shape[1], 3.0), 0.05, 0.01) if form[1] == GP else None
    model = regressors._fit(x, np.log(ms), np.zeros(60), *form, 0, hyper)
    asked = features(random_convs(41, seed=2))
    whole, alone = model.predict(asked), [model.predict(asked[i : i + 1])[0] for i in range(41)]
    assert whole.tolist() == alone
    assert whole[3:10].tolist() == model.predict(asked[3:10]).tolist()


def test_a_unit_of_unknown_kind_is_an_error_or_a_flagged_estimate_with_a_wider_interval(unit_world):
    model = Kernels.fit(unit_world[1])

    def net(extra):
        b = NetworkBuilder("odd")
        x = b.conv(b.input((1, 3, 32, 32)), 16, 3, 2)
        return b.build(b.op("conv_transpose", x, out_channels=8, kernel=(2, 2), stride=(2, 2)) if extra else x)

    with pytest.raises(UnknownOpError, match="conv_transpose"):
        model.predict(net(True))
    flagged, plain = model.predict(net(True), unknown="estimate"), model.predict(net(False))
    assert "conv_transpose" in flagged.warnings[0]
    assert flagged.latency_ms > plain.latency_ms > 0
    widths = [(e.high_ms - e.low_ms) / e.latency_ms for e in (flagged, plain)]
    assert widths[0] > widths[1]
    with pytest.raises(ConfigError, match="unknown"):
        model.predict(net(True), unknown="zero")
    again = Recalibrated(model.card, model, 1.5, 1.0)
    assert again.predict(net(True), unknown="estimate").latency_ms == pytest.approx(1.5 * flagged.latency_ms)
    with pytest.raises(UnknownOpError):
        again.predict(net(True))


def test_intervals_of_estimated_units_are_those_of_out_of_fold_estimates(unit_world):
    world, data = unit_world
    # Times that no feature explains: measured units add up, estimated ones are off by what the fit could not see.
    rng = np.random.default_rng(0)
    odd = {k: float(np.exp(rng.normal(0, 0.3))) for k in data.ops}
    ops = {k: world.measure(k, world.op_ms(Op.parse(k)) * f) for k, f in odd.items()}

    def ms(net):
        return sum(world.op_ms(u.op) * odd[u.op.key] for u in plans.units(None, net))

    calibration = tuple(replace(n, measurement=world.measure(n.net.key, ms(n.net))) for n in data.calibration)
    model = Kernels.fit(replace(data, ops=ops, calibration=calibration))
    assert max(model.card.model["unit"]["cv_rmspe"], 0.02) < model.card.model["unit"]["estimated_rmspe"]
    width = {}
    for origin in ("measured", "estimated", "weak", "unknown"):
        shares = Shares()
        shares.add(Cost(1.0, origin), 1.0)
        low, high = model._factors(0.9, shares)
        width[origin] = high - low
    assert width["measured"] < 0.5 * width["estimated"]
    assert width["estimated"] < width["weak"] < width["unknown"]
    # The units left out are estimated: the interval holds the truth for as many networks as it says.
    convs = [k for k in ops if kernel_kind(Op.parse(k)) in ("conv pointwise", "conv depthwise")]
    part = {k: m for k, m in ops.items() if k not in convs[::2]}
    blind = Kernels.fit(replace(data, ops=part, calibration=calibration))
    nets = [world.space.network(a) for a in world.space.sample_archs(40, seed=21).tolist()]
    got = [blind.predict(n) for n in nets]
    assert np.mean([e.low_ms <= ms(n) <= e.high_ms for e, n in zip(got, nets, strict=True)]) >= 0.8


def test_an_op_of_a_kind_with_few_measurements_is_a_weak_estimate(unit_world):
    _, data = unit_world
    ops = dict(data.ops)
    dense = [k for k in ops if kernel_kind(Op.parse(k)) == "conv vector"]
    for k in dense[3:]:
        del ops[k]
    model = Kernels.fit(replace(data, ops=ops))
    assert model._cost(Op.parse(dense[3])).origin == "weak"
    assert model._cost(Op.parse(dense[0])).origin == "measured"


def test_the_spread_of_unknown_kinds_is_what_left_out_kinds_show(unit_world):
    world, _ = unit_world
    convs = random_convs(20, 6)
    pools = [Op.make("global_avg_pool", [TensorSpec((1, c, 16, 16))]) for c in range(8, 168, 8)]

    def spread(factor):
        laws = [*((op, 1.0) for op in convs), *((op, factor) for op in pools)]
        entries = [Entry.of(op.key, world.measure(op.key, ms)) for op, ms in laws]
        return unknown_spread(entries, {}, fit_kinds(entries, {}, 0)[0], 0)

    assert spread(1.0) < 0.1
    assert spread(10.0) > 0.8


def test_a_network_beyond_the_measured_shapes_is_flagged_and_its_interval_wide(unit_world):
    world, data = unit_world
    limit = max(Op.parse(k).activation_bytes for k in data.ops)
    inside = world.space.network(world.space.sample(seed=3))
    model = Kernels.fit(data)
    assert model.predict(inside).warnings == ()
    near = model.predict(inside)

    def cached_ms(net):
        # Memory costs more from where the cache is too small: no measured unit shows it.
        return world.overhead_ms + world.scale * sum(
            world.op_ms(u.op) * (1.5 if u.op.activation_bytes > limit else 1.0) for u in plans.units(None, net)
        )

    for resolution in (128, 224):
        space = load_space("mobilenetv3", resolution=resolution, width_mult=0.35, num_classes=10)
        net = space.network(space.sample(seed=3))
        e = model.predict(net)
        units = next(w for w in e.warnings if "units lie outside the shapes" in w)
        assert f"of {len(plans.units(None, net))} units" in units
        assert any("add up to" in w for w in e.warnings)
        assert e.low_ms <= cached_ms(net) <= e.high_ms
        assert (e.high_ms - e.low_ms) / e.latency_ms > 5 * (near.high_ms - near.low_ms) / near.latency_ms
        many = model.predict_archs(space, [net.origin["arch"]])
        assert many.low[0] < cached_ms(net) < many.high[0]


def test_distance_counts_from_the_measured_range_in_log_units():
    ranges = Ranges([Entry(conv(c, 64, 16), {"latency_ms": Interval(1, 1, 1)}, 1) for c in (16, 64)])
    x = features([conv(32, 64, 16), conv(70, 64, 16), conv(64, 64, 64), conv(4, 64, 16)])
    far = ranges.beyond("conv pointwise", x)
    assert far[:2].tolist() == [0, 0]  # within, and within the margin
    assert far[2:] == pytest.approx([np.log(16), np.log(4)])


def test_a_regressor_that_flattens_out_has_an_error_that_grows_with_distance(unit_world):
    world, _ = unit_world
    ops = random_convs(40, 8)
    rate = {}
    for name, law in (("costs", lambda op: op.macs), ("bend", lambda op: op.macs**1.3 / 300)):
        entries = [Entry.of(op.key, world.measure(op.key, law(op) / 4e6)) for op in ops]
        fits, _ = fit_kinds(entries, {}, 0)
        forced = {k: replace(f, model=refit(KindModel("costs", "", {}), features(ops), np.array(
            [e.latency_ms for e in entries]))) for k, f in fits.items()}  # fmt: skip
        rate[name] = growths(entries, {}, forced, 0)["conv pointwise"]
    assert rate["costs"] == LEAST_GROWTH
    assert rate["bend"] > 1.5 * LEAST_GROWTH


def test_a_space_is_answered_from_the_units_of_its_blocks(unit_world):
    world, data = unit_world
    model = Kernels.fit(data)
    archs = world.space.sample_archs(5, seed=7)
    many = model.predict_archs(world.space, archs)
    one = [model.predict(world.space.network(a)).latency_ms for a in archs.tolist()]
    np.testing.assert_allclose(many.value, one, rtol=1e-9)


@pytest.mark.parametrize("model_error", [0.0, 0.3])
def test_each_architecture_of_a_space_has_the_interval_of_its_own_units(unit_world, model_error, monkeypatch):
    world, data = unit_world
    monkeypatch.setattr(kernels_module, "_CHUNK", 7)  # a few chunks, the last one shorter
    archs = world.space.sample_archs(20, seed=7)
    of_kind = {
        kind: [k for k in data.ops if kernel_kind(Op.parse(k)) == kind] for kind in ("conv pointwise", "conv depthwise")
    }
    gone = {*of_kind["conv pointwise"][::2], *of_kind["conv depthwise"][3:]}
    setting = replace(data.card.setting, clock="simulated", model_error=model_error) if model_error else None
    card = data.card.replace(setting=setting) if setting else data.card
    model = Kernels.fit(replace(data, card=card, ops={k: m for k, m in data.ops.items() if k not in gone}))
    assert {model._cost(Op.parse(k)).origin for k in gone} == {"estimated", "weak"}
    for level in (0.9, 0.5):
        many = model.predict_archs(world.space, archs, level=level)
        one = [model.predict(world.space.network(a), level=level) for a in archs.tolist()]
        np.testing.assert_allclose(many.value, [e.latency_ms for e in one], rtol=1e-6)
        np.testing.assert_allclose(many.low, [e.low_ms for e in one], rtol=1e-6)
        np.testing.assert_allclose(many.high, [e.high_ms for e in one], rtol=1e-6)
    assert len(set(np.round(many.high / many.value, 9))) > 10
    assert model.predict_archs(world.space, archs[:0]).low.shape == (0,)


def test_intervals_of_a_space_that_is_not_additive_are_those_of_its_networks():
    world = AdditiveWorld(load_space("nasbench201", num_cells=1))
    data = world.data()
    archs = world.space.sample_archs(12, seed=1)
    gone = next(op.key for op in world.space.ops() if op.label.startswith("relu_conv_bn k3 32→32"))
    model = Kernels.fit(replace(data, ops={k: m for k, m in data.ops.items() if k != gone}))
    many = model.predict_archs(world.space, archs)
    one = [model.predict(world.space.network(a)) for a in archs.tolist()]
    np.testing.assert_allclose(many.value, [e.latency_ms for e in one], rtol=1e-6)
    np.testing.assert_allclose(many.low, [e.low_ms for e in one], rtol=1e-6)
    np.testing.assert_allclose(many.high, [e.high_ms for e in one], rtol=1e-6)
    assert len(set(np.round(many.high / many.value, 9))) > 1


def test_the_card_tells_what_was_tried_for_each_kind(unit_world, tmp_path):
    model = Kernels.fit(unit_world[1])
    card = json.loads((model.save(tmp_path / "m") / "card.json").read_text())
    depthwise = card["model"]["kinds"]["conv depthwise"]
    assert depthwise["form"] in depthwise["tried"]
    assert depthwise["cv_error"] == min(depthwise["tried"].values()) or "xgb" not in depthwise["form"]


def test_an_xgboost_file_that_is_none_is_refused(unit_world, tmp_path):
    import hashlib

    model = Kernels.fit(unit_world[1])
    kind = next(iter(model.models))
    from latbench.predictors.regressors import _fit

    ops = random_convs(40, 0)
    trees = _fit(features(ops), np.log([op.macs / 1e6 for op in ops]), np.zeros(40), "costs", "xgb", 0)
    model.models[kind] = trees
    folder = model.save(tmp_path / "m")
    file = next(folder.glob("*.ubj"))
    file.write_bytes(b"{L\x00\x00")
    from latbench.card import Card

    card = Card.loads((folder / "card.json").read_text())
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    (folder / "card.json").write_text(card.replace(files={**card.files, file.name: digest}).dumps())
    with pytest.raises(FileFormatError, match="UBJ"):
        load_predictor(folder)
