"""Whole networks as rows of numbers: families, drift, intervals, files."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

import latbench as lb
from latbench.card import Card
from latbench.errors import ConfigError, FileFormatError, NotEnoughDataError, UnknownOpError
from latbench.predictor import FitData, MeasuredNetwork
from latbench.predictors import network_extrapolation, processes
from latbench.predictors.encodings import encode
from latbench.predictors.network import NetworkRegression, _intervals
from latbench.predictors.network_extrapolation import Extent, _without_each, kinds_of_choices
from latbench.predictors.network_inputs import inputs_of, space_rows, space_views
from latbench.predictors.network_models import arch_terms
from latbench.predictors.order_drift import cycle_term
from latbench.predictors.process_rows import RowProcess
from latbench.predictors.processes import Process
from latbench.predictors.trees import ExtraTrees
from latbench.testing.predictors import AdditiveWorld, PredictorConformance
from latbench.validation import within

CELLS = lb.load_space("nasbench201")


class TestNetworkConformance(PredictorConformance):
    @pytest.fixture
    def cls(self):
        return NetworkRegression

    def test_no_ops_are_an_error_that_names_the_command(self, cls, data, world, archs):
        """It learns from networks alone: here no Ops are no loss."""
        model = cls.fit(replace(data, ops={}))
        np.testing.assert_array_equal(
            model.predict_archs(world.space, archs).value, cls.fit(data).predict_archs(world.space, archs).value
        )


def eager_ms(archs):
    """A device that runs every edge: launches, and work that half hides behind another branch."""
    cost = np.array([0.05, 0.02, 0.5, 1.0, 0.3])[archs]
    return 3.0 + cost.sum(axis=1) + np.maximum(cost[:, 3], cost[:, 4] + cost[:, 0])


def compiled_ms(archs):
    return eager_ms(CELLS.live_archs(archs))


def fitted(ms, n=150, seed=0, **more):
    archs = CELLS.sample_archs(n, seed)
    return lb.fit("network", space=CELLS, archs=archs, latency_ms=ms(archs), **more)


@pytest.mark.parametrize(("ms", "encoding"), [(eager_ms, "raw"), (compiled_ms, "live")])
def test_the_encoding_that_the_device_obeys_is_found(ms, encoding):
    model = fitted(ms)
    assert encoding in model.card.model["encodings"]
    tried = model.card.model["mean_absolute_log_error"]
    other = "live" if encoding == "raw" else "raw"
    assert tried[f"encoding {encoding}"] < tried[f"encoding {other}"]
    archs = CELLS.sample_archs(500, 99)
    assert within(model.predict_archs(CELLS, archs).value, ms(archs), 0.05) > 0.9


def test_drift_is_told_from_the_architectures_and_the_reference_is_its_mean():
    rng = np.random.default_rng(1)
    archs, order = CELLS.sample_archs(400, 1), rng.permutation(4000)[:400].astype(float)
    drift = 0.15 * np.sin(order / 4000 * 9) + 0.1 * (order > 2500)
    ms = eager_ms(archs) * np.exp(drift + rng.normal(0, 0.005, 400))
    model = lb.fit("network", space=CELLS, archs=archs, latency_ms=ms, order=order, families="process")
    asked, at = CELLS.sample_archs(500, 2), rng.uniform(0, 4000, 500)
    true = eager_ms(asked)
    drifted = true * np.exp(0.15 * np.sin(at / 4000 * 9) + 0.1 * (at > 2500))
    assert within(model.predict_archs(CELLS, asked, order=at).value, drifted, 0.05) > 0.95
    level = model.predict_archs(CELLS, asked).value / true
    assert np.median(level) == pytest.approx(np.exp(drift.mean()), rel=0.02)
    assert np.std(np.log(level)) < 0.02
    assert model.card.model["drift"]["fitted"]
    blind = lb.fit("network", space=CELLS, archs=archs, latency_ms=ms, families="process")
    assert blind.card.model["cv_rmspe"] > 3 * np.std(np.log(level))


def test_intervals_at_places_in_the_order_are_narrower_than_those_at_the_reference_where_drift_cannot_be_foretold():
    rng = np.random.default_rng(1)
    archs, order = CELLS.sample_archs(200, 1), np.arange(200.0)
    drift = np.cumsum(rng.normal(0, 0.03, 200))
    ms = eager_ms(archs) * np.exp(drift + rng.normal(0, 0.003, 200))
    model = lb.fit("network", space=CELLS, archs=archs, latency_ms=ms, order=order, families="process")
    assert model.card.model["drift"]["fitted"]
    at, still = model.predict_archs(CELLS, archs, order=order), model.predict_archs(CELLS, archs)
    want = [model._conformals[k].factor(0.9) for k in ("in order", "reference")]
    assert [half(e).min() for e in (at, still)] == pytest.approx(want)
    assert want[0] < 0.5 * want[1]


def test_an_order_that_says_nothing_is_left_out():
    archs = CELLS.sample_archs(120, 1)
    ms = eager_ms(archs) * np.exp(np.random.default_rng(0).normal(0, 0.03, 120))
    model = lb.fit("network", space=CELLS, archs=archs, latency_ms=ms, order=np.arange(120), families="process")
    assert model.card.model["drift"] == {"fitted": False}
    np.testing.assert_array_equal(
        model.predict_archs(CELLS, archs, order=np.arange(120)).value, model.predict_archs(CELLS, archs).value
    )


def test_a_cycle_is_found_where_there_is_one_and_not_in_noise():
    rng = np.random.default_rng(3)
    order = np.sort(rng.choice(6000, 400, replace=False)).astype(float)
    noise = rng.normal(0, 0.02, 400)
    saw = 0.08 * ((order % 120) / 120 - 0.5)
    assert cycle_term(order, noise + saw).period == pytest.approx(120, rel=0.02)
    assert cycle_term(order, noise) is None


def test_a_few_wild_measurements_do_not_pull_the_rest():
    archs = CELLS.sample_archs(150, 4)
    ms = eager_ms(archs) * np.exp(np.random.default_rng(0).normal(0, 0.01, 150))
    ms[::15] *= 3
    model = lb.fit("network", space=CELLS, archs=archs, latency_ms=ms, families="process")
    asked = CELLS.sample_archs(300, 5)
    # Were they believed, 61 %.
    assert within(model.predict_archs(CELLS, asked).value, eager_ms(asked), 0.05) > 0.8


def test_whole_milliseconds_are_noticed():
    assert fitted(lambda a: np.round(eager_ms(a) * 3), families="process").card.model["rounded"]
    assert not fitted(eager_ms, families="process").card.model["rounded"]


@pytest.mark.parametrize("families", ["ridge", "extra-trees", "boosted-trees", "process,ridge,extra-trees"])
def test_every_family_is_saved_and_loaded_exactly(families, tmp_path):
    rng = np.random.default_rng(0)
    archs = CELLS.sample_archs(120, 1)
    # Steps that no smooth function follows.
    ms = 2 + (archs[:, 0] == 3) * (archs[:, 3] > 2) * 1.0 + (archs[:, 5] == 2) * 2 + rng.normal(0, 0.01, 120)
    model = lb.fit("network", space=CELLS, archs=archs, latency_ms=ms, families=families, order=np.arange(120.0))
    loaded = lb.load_predictor(model.save(tmp_path / "m"))
    asked = CELLS.sample_archs(50, 2)
    for order in (None, np.linspace(0, 119, 50)):
        a, b = (m.predict_archs(CELLS, asked, order=order) for m in (model, loaded))
        for part in ("value", "low", "high"):
            np.testing.assert_array_equal(getattr(a, part), getattr(b, part))


def test_trees_are_chosen_where_they_are_better_and_survive_saving(tmp_path):
    rng = np.random.default_rng(0)
    archs = CELLS.sample_archs(400, 1)

    def steps(a):
        return 1.0 + 3.0 * ((a[:, 0] > 2) & (a[:, 3] > 2)) + 5.0 * ((a[:, 5] == 2) & (a[:, 1] == 2))

    model = lb.fit("network", space=CELLS, archs=archs, latency_ms=steps(archs) * np.exp(rng.normal(0, 0.01, 400)))
    assert set(model.card.model["families"]) & {"extra-trees", "boosted-trees"}
    asked = CELLS.sample_archs(300, 2)
    assert within(model.predict_archs(CELLS, asked).value, steps(asked), 0.1) > 0.8
    loaded = lb.load_predictor(model.save(tmp_path / "m"))
    np.testing.assert_array_equal(loaded.predict_archs(CELLS, asked).value, model.predict_archs(CELLS, asked).value)


def test_ninety_percent_intervals_hold_about_nine_tenths():
    held = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        archs = CELLS.sample_archs(60, seed)
        ms = eager_ms(archs) * np.exp(rng.normal(0, 0.05, 60))
        model = lb.fit("network", space=CELLS, archs=archs, latency_ms=ms, families="process")
        asked = CELLS.sample_archs(500, 50 + seed)
        measured = eager_ms(asked) * np.exp(rng.normal(0, 0.05, 500))
        e = model.predict_archs(CELLS, asked)
        held.append(np.mean((e.low <= measured) & (measured <= e.high)))
    assert 0.83 < np.mean(held) < 0.97


def test_ten_networks_are_enough_for_intervals_that_hold_although_encodings_and_families_were_chosen_on_them():
    held = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        archs = CELLS.sample_archs(10, seed)
        model = lb.fit(
            "network", space=CELLS, archs=archs, latency_ms=eager_ms(archs) * np.exp(rng.normal(0, 0.05, 10))
        )
        asked = CELLS.sample_archs(500, 50 + seed)
        measured = eager_ms(asked) * np.exp(rng.normal(0, 0.05, 500))
        e = model.predict_archs(CELLS, asked)
        held.append(np.mean((e.low <= measured) & (measured <= e.high)))
    # By the errors that the choice was made on: 0.8.
    assert 0.86 < np.mean(held) < 0.98


def test_networks_of_no_space_are_predicted_from_what_they_are_made_of():
    world = AdditiveWorld(CELLS)
    spaces = [lb.load_space(name, resolution=r, width_mult=w)
              for name in ("mobilenetv3", "proxyless") for r in (64, 96, 128) for w in (0.5, 1.0)]  # fmt: skip
    nets = [s.network(s.sample(i)).replace(origin={}) for i, s in enumerate(spaces)]
    measured = tuple(MeasuredNetwork(n, world.measure(n.key, world.network_ms(n))) for n in nets)
    card = Card("", world.setting, device={"profile": "local-cpu"}, created="2026-01-01T00:00:00+00:00")
    model = NetworkRegression.fit(FitData(card, {}, measured[:-1]))
    assert model.space is None
    assert model.predict(nets[-1]).latency_ms == pytest.approx(measured[-1].latency_ms, rel=0.4)
    with pytest.raises(UnknownOpError, match="avg_pool"):
        model.predict(CELLS.network([4] * 6).replace(origin={}))
    with pytest.raises(ConfigError, match="no space"):
        model.predict_archs(CELLS, [[0] * 6])


def test_another_space_is_refused_and_so_are_wrong_options_and_orders():
    model = fitted(eager_ms, 30, families="process")
    with pytest.raises(ConfigError, match="was fitted to nasbench201"):
        model.predict_archs(lb.load_space("nasbench201", num_cells=1), [[0] * 6])
    with pytest.raises(ConfigError, match="order: 2 finite numbers"):
        model.predict_archs(CELLS, [[0] * 6] * 2, order=[1.0])
    with pytest.raises(ConfigError, match="no model family 'tree'"):
        fitted(eager_ms, 30, families="tree")
    with pytest.raises(NotEnoughDataError, match="3 measured networks; at least 5"):
        fitted(eager_ms, 3)


def test_a_file_whose_arrays_do_not_fit_is_refused(tmp_path):
    from latbench.predictors import files

    model = fitted(eager_ms, 30, families="process")
    folder = model.save(tmp_path / "m")
    d = json.loads((folder / "network.json").read_bytes())
    d["process"]["terms"].pop()
    content = {"network.json": files.as_json(d), "network.npz": (folder / "network.npz").read_bytes()}
    files.write_folder(folder, model.card, content)
    with pytest.raises(FileFormatError):
        lb.load_predictor(folder)


def by_the_terms(model, archs):
    """Logarithms as the covariances are written down, term by term and input by input."""
    rows = space_rows(model.space, archs, model.views)
    inputs = inputs_of(model.views, rows, model.space.positions)
    out = [
        m.mean + m.part(inputs, in_time=False) + (model.level if m is model.process else 0)
        if isinstance(m, Process)
        else m.predict(np.concatenate(rows, axis=1))
        for m in model.members.values()
    ]
    return np.mean(out, axis=0)


@pytest.mark.parametrize("families", ["process", "ridge"])
@pytest.mark.parametrize("space", [CELLS, lb.load_space("mobilenetv3", resolution=64)])
def test_the_quick_way_to_many_answers_gives_what_the_terms_say(space, families):
    archs, rng = space.sample_archs(120, 1), np.random.default_rng(0)
    counts = encode(space, archs, "raw")[:, -1] + encode(space, archs, "live")[:, -2]
    ms = counts * np.exp(rng.normal(0, 0.02, 120))
    model = lb.fit("network", space=space, archs=archs, latency_ms=ms, families=families, order=np.arange(120.0))
    asked = np.concatenate([space.sample_archs(3000, 2), archs])
    got = np.log(model.predict_archs(space, asked).value)
    np.testing.assert_allclose(got, by_the_terms(model, asked), rtol=1e-9, atol=1e-9)


def test_the_quick_way_takes_both_encodings_at_once():
    archs = CELLS.sample_archs(80, 1)
    views = space_views(CELLS, archs, ("raw", "live"))
    rows = space_rows(CELLS, archs, views)
    y = np.log(eager_ms(archs) + compiled_ms(archs))
    process = processes.fit(arch_terms(views), inputs_of(views, rows, CELLS.positions), y, steps=(5,))
    asked = space_rows(CELLS, CELLS.sample_archs(500, 2), views)
    want = process.mean + process.part(inputs_of(views, asked, CELLS.positions), in_time=False)
    got = RowProcess(process, views, CELLS.positions)(np.concatenate(asked, axis=1))
    np.testing.assert_allclose(got, want, rtol=1e-9)


def test_a_forest_answers_with_the_mean_of_the_leaves_that_a_row_falls_into():
    rng = np.random.default_rng(0)
    x, asked = rng.integers(0, 4, (60, 5)) * 1.0, rng.integers(0, 4, (40, 5)) * 1.0
    forest = ExtraTrees.fit(x, x[:, 0] * x[:, 1] + x[:, 2], np.ones(60), 0)

    def leaf(row, at):
        while forest.feature[at] >= 0:
            at = (forest.left if row[forest.feature[at]] <= forest.threshold[at] else forest.right)[at]
        return forest.value[at]

    want = [np.mean([leaf(row, root) for root in forest.roots]) for row in asked]
    np.testing.assert_allclose(forest.predict(asked), want, rtol=1e-12)
    assert forest.predict(asked[:0]).shape == (0,)


def test_small_spaces_keep_their_answers_and_large_ones_give_the_same_ones_each_time():
    model = fitted(eager_ms, 40, families="process")
    archs = CELLS.sample_archs(200, 7)
    first, kept = model.predict_archs(CELLS, archs).value, model.predict_archs(CELLS, archs[::-1]).value
    np.testing.assert_array_equal(first, kept[::-1])


# -- architectures unlike the measured ones -------------------------------------------------------------------------


def unlike(seen, asked, ms=eager_ms, n=60, seed=0):
    """A fit to architectures of which ``seen`` holds, and 200 of which ``asked`` does."""
    rng, archs = np.random.default_rng(seed), CELLS.sample_archs(4000, seed)
    few, new = archs[seen(archs)][:n], archs[asked(archs)][:200]
    noisy = ms(few) * np.exp(rng.normal(0, 0.01, len(few)))
    return lb.fit("network", space=CELLS, archs=few, latency_ms=noisy, families="process"), few, new


def half(e):
    return np.log(e.high / e.value)


def held(e, ms):
    return np.mean((e.low <= ms) & (ms <= e.high))


NOVELTIES = {
    "a choice at a position": (lambda a: a[:, 5] != 3, lambda a: a[:, 5] == 3, "1 of its choices"),
    "a kind of choice": (lambda a: (a != 4).all(axis=1), lambda a: (a == 4).any(axis=1), "of a kind that no"),
    "work": (lambda a: (a == 3).sum(axis=1) <= 1, lambda a: (a == 3).sum(axis=1) >= 4, "by a factor of up to"),
}


@pytest.mark.parametrize("what", NOVELTIES)
def test_what_no_measured_network_had_is_warned_of_and_has_a_wider_interval_that_holds(what):
    seen, asked, said = NOVELTIES[what]
    model, known, new = unlike(seen, asked)
    usual, far = model.predict_archs(CELLS, known), model.predict_archs(CELLS, new)
    assert far.extrapolated.all()
    assert not usual.extrapolated.any()
    assert half(far).min() > half(usual).max() > half(usual).min() * (1 - 1e-12)
    assert held(far, eager_ms(new)) > 0.8
    e = model.predict(CELLS.network(new[0].tolist()))
    assert e.warnings[0].startswith("extrapolated: ")
    assert said in e.warnings[0]
    assert (e.low_ms, e.high_ms) == pytest.approx((far.low[0], far.high[0]))
    assert not model.predict(CELLS.network(known[0].tolist())).warnings


def test_the_card_names_the_choices_that_no_measured_network_made():
    model, _, _ = unlike(*NOVELTIES["a choice at a position"][:2])
    assert "5=nor_conv_3x3" in model.card.model["extrapolation"]["unseen_choices"]
    assert any("5=nor_conv_3x3" in note and "extrapolated" in note for note in model.card.notes)
    assert not any("extrapolated" in note for note in fitted(eager_ms, 60, families="process").card.notes)


def test_how_far_intervals_widen_is_saved(tmp_path):
    model, _, new = unlike(*NOVELTIES["a kind of choice"][:2])
    a, b = (m.predict_archs(CELLS, new) for m in (model, lb.load_predictor(model.save(tmp_path / "m"))))
    np.testing.assert_array_equal(a.high, b.high)
    np.testing.assert_array_equal(a.extrapolated, b.extrapolated)


def test_networks_of_no_space_with_more_of_something_than_any_measured_one_are_extrapolated():
    world = AdditiveWorld(CELLS)
    space = lb.load_space("mobilenetv3", resolution=64, width_mult=0.5)
    nets = [space.network(a).replace(origin={}) for a in space.sample_archs(12, 0).tolist()]
    measured = tuple(MeasuredNetwork(n, world.measure(n.key, world.network_ms(n))) for n in nets)
    card = Card("", world.setting, device={"profile": "local-cpu"}, created="2026-01-01T00:00:00+00:00")
    model = NetworkRegression.fit(FitData(card, {}, measured))
    large = lb.load_space("mobilenetv3", resolution=256, width_mult=0.5)
    e, usual = model.predict(large.network([0] * 14).replace(origin={})), model.predict(nets[0])
    assert "outside the measured range" in e.warnings[0]
    assert e.high_ms / e.latency_ms > 1.2 * usual.high_ms / usual.latency_ms


def test_rows_left_out_together_are_estimated_as_by_a_fit_without_them():
    archs = CELLS.sample_archs(40, 1)
    views = space_views(CELLS, archs, ("raw",))
    inputs = inputs_of(views, space_rows(CELLS, archs, views), CELLS.positions)
    y = np.log(eager_ms(archs))
    process = processes.fit(arch_terms(views), inputs, y, steps=(5,))
    group = archs[:, 0] == 3
    alone, (together,) = processes.left_out_together(process, inputs, y, process.weights, np.zeros(40), [group])
    np.testing.assert_allclose(alone, y - process.left_out, atol=1e-6)

    def covariance(a, b):
        return sum(t.covariance(p, t.distances(a, b)) for t, p in process.split())

    seen, held_out = ({k: x[m] for k, x in inputs.items()} for m in (~group, group))
    noise = np.diag(np.exp(process.parameters[-1]) / process.weights[~group] + 1e-8)
    weights = np.linalg.solve(covariance(seen, seen) + noise, y[~group] - process.mean)
    want = y[group] - process.mean - covariance(held_out, seen) @ weights
    np.testing.assert_allclose(together, want, atol=1e-6)


def test_what_is_new_about_a_row_is_told_by_the_others():
    archs = CELLS.sample_archs(9, 4)
    views = space_views(CELLS, archs, ("raw",))
    (x,), (kinds,) = space_rows(CELLS, archs, views), kinds_of_choices(CELLS, views)
    want = [Extent.of(np.delete(x, i, 0), kinds).new(x[i : i + 1])[0] for i in range(9)]
    assert np.any(want)
    np.testing.assert_allclose(_without_each(x, kinds), want)


@pytest.mark.parametrize("ms", [3.0, 3.01])
def test_networks_that_all_measured_alike_get_intervals_of_the_noise_and_not_of_nothing_or_of_everything(ms):
    model = lb.fit("network", space=CELLS, archs=CELLS.sample_archs(8, 0), latency_ms=np.full(8, ms))
    e = model.predict_archs(CELLS, CELLS.sample_archs(300, 5))
    # Whole milliseconds may be off by the deviation of a uniform error of width 1.
    assert half(e).min() > (1 / 12**0.5 / 3 if ms == 3.0 else 1e-4) * 0.5
    assert half(e).max() < np.log(2)


def test_growth_at_new_positions_adds_up_as_independent_errors(monkeypatch):
    """Rows with k new choices are off by sqrt(1 + k g²) usual errors: g is found again, whatever k is."""
    archs = CELLS.sample_archs(60, 3)
    views = space_views(CELLS, archs, ("raw",))
    rows = space_rows(CELLS, archs, views)
    data = network_extrapolation.Rows.of(views, rows, np.zeros(60), np.zeros(60), CELLS.positions)
    kinds, g = kinds_of_choices(CELLS, views), 2.0

    def off(process, inputs, y, weights, noise, groups):
        x = data.by_view()[0]
        new = [Extent.of(x[~m], kinds[0]).new(x[m])[:, 0] for m in groups]
        return np.full(60, 0.5), [0.5 * np.sqrt(1 + k * g**2) for k in new]

    monkeypatch.setattr(network_extrapolation, "left_out_together", off)
    process = Process((), np.array([-20.0]), 0.0, {}, np.zeros(0), weights=np.ones(60))
    found, _ = network_extrapolation.learn(data, process, CELLS, 0)
    assert found.growth.unseen == pytest.approx(g)


def test_work_beyond_the_range_that_may_be_an_unknown_choices_own_counts_in_proportion(monkeypatch):
    archs = CELLS.sample_archs(60, 3)
    views = space_views(CELLS, archs, ("raw",))
    rows = space_rows(CELLS, archs, views)
    data = network_extrapolation.Rows.of(views, rows, np.zeros(60), np.zeros(60), CELLS.positions)
    # Nothing that was left out is off at all: a usual error is 0.5.
    exact = lambda *a: (np.full(60, 0.5), [np.zeros(m.sum()) for m in a[-1]])  # noqa: E731
    monkeypatch.setattr(network_extrapolation, "left_out_together", exact)
    process = Process((), np.array([-20.0]), 0.0, {}, np.zeros(0), weights=np.ones(60))
    growth = network_extrapolation.learn(data, process, CELLS, 0)[0].growth
    assert (growth.beyond, growth.beyond_of_unknown) == pytest.approx((0.2 / 0.5, 1 / 0.5))


def test_left_out_errors_count_by_how_much_wider_intervals_are_there():
    process = Process((), np.array([-20.0]), 0.0, {}, np.zeros(0))
    errors, wider = np.linspace(0.1, 1, 19), np.full(19, 4.0)
    assert _intervals(errors, wider, process, np.zeros(19)).factor(0.9) == pytest.approx(np.sort(errors)[17] / 4)
