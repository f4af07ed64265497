"""Fitting from a store: which Setting, which statistic, what is held out, and what is said when data are missing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy_device import NumpyDevice

import latbench as lb
from latbench.device import Description
from latbench.errors import ConfigError, NotEnoughDataError
from latbench.fitting import fit, validation_of
from latbench.gathering import Gathered, macs_regression
from latbench.predictor import MeasuredNetwork
from latbench.protocol import Protocol
from latbench.store import Store
from latbench.testing.predictors import AdditiveWorld
from latbench.validation import Score, Validation, rmspe, spearman
from latbench.visit import Failure, Interval, Measurement, Visit

SPACE = {"resolution": 32, "width_mult": 0.35, "num_classes": 10}


class Lab:
    """A store filled with Visits of a world where latencies add up."""

    def __init__(self, path, *, spread=0.0, validation_factor=1.0, replica_factor=1.0):
        self.world = AdditiveWorld(lb.load_space("mobilenetv3", **SPACE), noise=0.0)
        self.store = Store.open(path)
        self.clock, self.number = 1.7e9, 0
        self.rng = np.random.default_rng(0)
        #: Relative spread of the runs above their minimum, drawn anew for each Visit: the median is off by it.
        self.spread = spread
        space, setting = self.world.space, self.world.setting
        self.store.add_setting(setting, profile="lab", description=Description(setting.device, {"cores": 2}))
        nets = [space.network(a) for a in space.sample_archs(20, seed=5).tolist()]
        visits, subjects = [], [*space.ops(), *nets]
        for visit in range(2):
            visits += [self.visit(op.key, "op", self.world.op_ms(op), "op") for op in space.ops()]
            visits += [self.visit(n.key, "network", self.world.network_ms(n), "calibration") for n in nets[:12]]
            for n in nets[12:]:
                ms = self.world.network_ms(n) * validation_factor * (replica_factor if visit else 1.0)
                visits.append(self.visit(n.key, "network", ms, "validation", replica=visit))
        self.nets, self.subjects = nets, subjects
        self.store.add_visits(setting, visits, subjects=subjects, profile="lab")

    def visit(self, subject, role, ms, purpose, replica=0):
        self.number += 1
        self.clock += 0.05
        above = 1 + self.spread * self.rng.random() * np.array([0.0, *([1.0] * 9)])
        ns = np.round(ms * 1e6 * above).astype(np.int64)
        uid = f"u{self.number}"
        return Visit(
            subject, role, uid, self.clock, self.clock + 0.04, ns, purpose=purpose, replica=replica, run="r"
        )  # fmt: skip


@pytest.fixture
def lab(tmp_path):
    made = Lab(tmp_path / "s.db")
    yield made
    made.store.close()


def test_a_fit_finds_the_law_and_stores_its_validation(lab):
    model = fit("table", store=lab.store, device="lab", space=lab.world.space)
    assert model.calibration("block").scale == pytest.approx(lab.world.scale, rel=0.02)
    v = validation_of(model)
    assert v is not None
    assert v.score.n == 8
    assert v.score.rmspe < 1e-3
    assert v.score.spearman == pytest.approx(1.0)
    assert v.noise_floor == pytest.approx(0.0, abs=1e-5)
    assert "MACs" in v.baselines
    card = model.card
    assert card.statistic == "p50"
    assert card.space == lab.world.space.spec
    assert card.device["profile"] == "lab"
    assert card.data["visits_by_purpose"] == {"op": 2 * len(lab.world.space.ops()), "calibration": 24, "validation": 16}
    assert card.data["first"] < card.data["last"]


def test_a_fit_survives_its_file_with_its_validation(lab, tmp_path):
    model = fit("table", store=lab.store, device="lab", statistic="p50")
    loaded = lb.load_predictor(model.save(tmp_path / "m"))
    assert validation_of(loaded) == validation_of(model)
    assert str(validation_of(loaded)) == str(validation_of(model))


def test_held_out_networks_are_never_used(tmp_path):
    honest = fit("table", store=Lab(tmp_path / "a.db").store, device="lab", statistic="p50")
    # Only the held-out networks are slower: a fit that looked at them would differ.
    poisoned = fit("table", store=Lab(tmp_path / "b.db", validation_factor=1.5).store, device="lab", statistic="p50")
    assert poisoned.calibration("block") == honest.calibration("block")
    assert validation_of(poisoned).score.rmspe == pytest.approx(1 - 1 / 1.5, rel=0.01)


def test_networks_that_a_search_found_are_neither_learnt_from_nor_judged_by(lab):
    honest = fit("table", store=lab.store, device="lab")
    found = [lab.world.space.network(a) for a in lab.world.space.sample_archs(5, seed=77).tolist()]
    slow = [lab.visit(n.key, "network", 3 * lab.world.network_ms(n), "found") for n in found for _ in range(2)]
    lab.store.add_visits(lab.world.setting, slow, subjects=found, profile="lab")
    model = fit("table", store=lab.store, device="lab")
    assert model.calibration("block") == honest.calibration("block")
    assert model.card.model["block"]["networks"] == 12
    assert validation_of(model) == validation_of(honest)


def test_a_network_held_out_in_another_campaign_is_kept_out_of_the_fit(lab):
    again = [
        lab.visit(n.key, "network", lab.world.network_ms(n), "validation", r) for n in lab.nets[:3] for r in (0, 1)
    ]
    lab.store.add_visits(lab.world.setting, again, subjects=lab.subjects, profile="lab")
    for name in ("table", "kernels"):
        model = fit(name, store=lab.store, device="lab")
        assert model.card.model["block"]["networks"] == 9
        assert validation_of(model).score.n == 11
        assert any(n.startswith("3 networks measured for calibration and for validation") for n in model.card.notes)


def test_networks_that_a_search_found_neither_calibrate_nor_validate(lab):
    before = fit("table", store=lab.store, device="lab")
    new = lab.world.space.network(lab.world.space.sample(seed=99))
    found = [lab.visit(new.key, "network", 3 * lab.world.network_ms(new), "found") for _ in range(2)]
    lab.store.add_visits(lab.world.setting, found, subjects=[new], profile="lab")
    after = fit("table", store=lab.store, device="lab")
    assert after.card.model["block"]["networks"] == before.card.model["block"]["networks"] == 12
    assert validation_of(after).score.n == 8


def test_the_noise_floor_is_the_rmspe_between_the_replicas(tmp_path):
    store = Lab(tmp_path / "s.db", replica_factor=1.02).store
    model = fit("table", store=store, device="lab", statistic="p50")
    v = validation_of(model)
    gathered = Gathered(store, model.setting, "lab", None, None)
    one, two = (gathered.networks("validation", "p50", r) for r in (0, 1))
    assert v.noise_floor == rmspe([one[k].latency_ms for k in one], [two[k].latency_ms for k in one])
    pool = gathered.networks("validation", "p50")
    assert v.noise_floor > 1.5 * rmspe([one[k].latency_ms for k in one], [pool[k].latency_ms for k in one])
    # Two Visits of one subject also show up as drift: what is left lies between 0 and what was put in.
    assert 0.005 < v.noise_floor < 0.0205


def test_cross_validation_chooses_the_statistic_on_request_only(tmp_path):
    lab = Lab(tmp_path / "s.db", spread=0.2)
    model = fit("table", store=lab.store, device="lab", statistic="auto")
    tried = model.card.model["statistics_tried"]
    assert model.card.statistic == "min" == min(tried, key=tried.get)
    plain = fit("table", store=lab.store, device="lab")
    assert plain.card.statistic == "p50"
    assert "statistics_tried" not in plain.card.model


@pytest.mark.parametrize("name", ["table", "kernels"])
def test_an_estimate_names_its_statistic(lab, name):
    model = fit(name, store=lab.store, device="lab", statistic="p25")
    assert model.predict(lab.nets[0]).statistic == "p25"


def test_a_validation_checks_the_intervals_of_the_level_asked_for(tmp_path):
    lab = Lab(tmp_path / "s.db", spread=0.2)
    found = {v: validation_of(fit("table", store=lab.store, device="lab", level=v)) for v in (0.5, 0.9)}
    model = fit("table", store=lab.store, device="lab")
    for level, v in found.items():
        got = [model.predict(n, level=level) for n in lab.nets[12:]]
        assert v.level == level
        assert v.width == pytest.approx(np.mean([(e.high_ms - e.low_ms) / e.latency_ms for e in got]))
    assert found[0.5].width < found[0.9].width


def test_the_newest_setting_of_the_device_is_taken(lab):
    newer = replace(lab.world.setting, threads=2)
    lab.store.add_setting(newer, profile="lab")
    visits = [lab.visit(op.key, "op", 2 * lab.world.op_ms(op), "op") for op in lab.world.space.ops()]
    visits += [lab.visit(n.key, "network", 2 * lab.world.network_ms(n), "calibration") for n in lab.nets[:12]]
    lab.store.add_visits(newer, visits, subjects=lab.subjects, profile="lab")
    model = fit("table", store=lab.store, device="lab", statistic="p50")
    assert model.setting == newer
    key = lab.world.space.ops()[0].key
    assert model.entries[key].latency_ms == pytest.approx(2 * lab.world.op_ms(lab.world.space.ops()[0]), rel=1e-3)
    assert any("not validated" in n for n in model.card.notes)
    assert "latbench profile --device …/lab.toml --space mobilenetv3 --set" in next(
        n for n in model.card.notes if "not validated" in n
    )


def test_an_unsupported_op_is_an_entry_that_says_why(lab):
    key = lab.world.space.ops()[3].key
    setting = replace(lab.world.setting, threads=4)
    visits = [lab.visit(op.key, "op", lab.world.op_ms(op), "op") for op in lab.world.space.ops() if op.key != key]
    no = Failure("UnsupportedOpError", "kernel size above 5")
    visits.append(replace(lab.visit(key, "op", 1.0, "op"), samples_ns=np.empty(0, np.int64), unsupported=no))
    nets = [n for n in lab.nets if key not in n.ops()]
    assert len(nets) >= 5
    visits += [lab.visit(n.key, "network", lab.world.network_ms(n), "calibration") for n in nets]
    lab.store.add_visits(setting, visits, subjects=lab.subjects, profile="lab")
    entry = fit("table", store=lab.store, device="lab", statistic="p50").entries[key]
    assert not entry.supported
    assert entry.reason == "kernel size above 5"


def test_networks_of_another_space_are_left_out(lab):
    other = lb.load_space("mobilenetv3", **{**SPACE, "num_classes": 20})
    with pytest.raises(NotEnoughDataError, match="num_classes=20"):
        fit("table", store=lab.store, device="lab", space=other, statistic="p50")


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"device": "phone"}, NotEnoughDataError, "latbench profile --device phone"),
        ({"statistic": "p42"}, ConfigError, "p42"),
        ({"campaigns": ["nowhere"]}, ConfigError, "nowhere"),
        ({"store": None}, ConfigError, "store"),
        ({"colour": "blue"}, ConfigError, "colour"),
    ],
)
def test_what_cannot_be_fitted_is_an_error_that_says_why(lab, options, error, says):
    with pytest.raises(error, match=says):
        fit("table", **{"store": lab.store, "device": "lab", **options})


def test_an_unknown_predictor_is_an_error_that_lists_the_known_ones(lab):
    with pytest.raises(ConfigError, match=r"known: .*kernels.*roofline.*table"):
        fit("crystal-ball", store=lab.store, device="lab")


# -- validation -------------------------------------------------------------------------------------------------------


def test_scores_are_those_of_their_definitions():
    s = Score.of([1.1, 2.0, 2.94, 4.8], [1.0, 2.0, 3.0, 4.0])
    assert s.rmspe == pytest.approx(((0.1**2 + 0.02**2 + 0.2**2) / 4) ** 0.5)
    assert s.mape == pytest.approx(0.32 / 4)
    assert (s.within_5, s.worst, s.spearman) == (0.5, pytest.approx(0.2), pytest.approx(1.0))


def test_rank_correlation_knows_ties_and_constants():
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    # Closed form of Pearson's correlation of the average ranks (1.5, 1.5, 3) and (1, 2, 3).
    assert spearman([1, 1, 2], [1, 2, 3]) == pytest.approx(0.8660254)
    assert np.isnan(spearman([1, 1, 1], [1, 2, 3]))


def test_coverage_and_width_are_those_of_the_intervals():
    v = Validation.of([1.0, 2.0, 4.0], [0.9, 1.9, 3.8], [1.1, 2.1, 4.2], [1.05, 2.3, 4.5])
    assert v.coverage == pytest.approx(1 / 3)
    assert v.width == pytest.approx((0.2 + 0.1 + 0.1) / 3)
    assert Validation.from_json(v.to_json()).score == v.score


def test_no_held_out_networks_are_no_validation():
    with pytest.raises(NotEnoughDataError):
        Validation.of([], [], [], [])


def test_the_macs_baseline_is_exact_where_latency_is_affine_in_macs():
    space = lb.load_space("mobilenetv3", **SPACE)
    world = AdditiveWorld(space)
    nets = [space.network(a) for a in space.sample_archs(8, 0).tolist()]

    def measured(net):
        ms = 0.3 + net.macs / 1e6
        return MeasuredNetwork(net, Measurement(net.key, world.setting, {"latency_ms": Interval(ms, ms, ms)}, {}, 1))

    guess = macs_regression([measured(n) for n in nets[:5]], nets[5:])
    assert rmspe(guess, [measured(n).latency_ms for n in nets[5:]]) < 1e-9


# -- end to end on this machine ---------------------------------------------------------------------------------------


def test_a_tiny_campaign_on_this_machine_becomes_a_table_that_validates(tmp_path, monkeypatch):
    # It only looks like a measurement: numbers may be as noisy as they like, and other campaigns need not wait for it.
    monkeypatch.setenv("LATBENCH_LOCK_FOLDER", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    from latbench.plan import Plan

    space = lb.load_space("nasbench201", resolution=16, channels=8, num_cells=1)
    protocol = Protocol(
        warmup_runs=1, warmup_max_ms=1, min_runs=3, max_runs=10, min_ms=0.2, max_ms=5, min_visits=2, max_visits=2,
        contention_ratio=1e6,
    )  # fmt: skip
    with lb.load_device("local-cpu") as device:
        plan = Plan.for_space(space, calibration=6, validation=3, seed=1)
        lb.Campaign(device, plan, store=tmp_path / "s.db", protocol=protocol, space=space).run()
        setting = device.setting
    model = lb.fit("table", store=tmp_path / "s.db", device="local-cpu", space=space)
    assert model.setting == setting
    assert model.coverage(space).complete
    assert validation_of(model).score.n == 3
    archs = space.sample_archs(50, seed=2)
    values = model.predict_archs(space, archs).value
    assert (values > 0).all()
    one = model.predict(space.network(archs[0].tolist())).latency_ms
    assert one == pytest.approx(values[0])


def test_the_file_of_a_profile_finds_what_was_measured_under_its_name(lab, tmp_path):
    file = tmp_path / "my-lab.toml"
    file.write_text('name = "lab"\n[transport]\nkind = "local"\n[runtime]\nkind = "onnxruntime"\n')
    assert fit("table", store=lab.store, device=str(file)).card.device["profile"] == "lab"


def test_an_open_device_is_fitted_in_the_setting_that_it_has(lab):
    class Board(NumpyDevice):
        @property
        def setting(self):
            return replace(lab.world.setting, threads=self.threads)

    lab.store.add_setting(replace(lab.world.setting, cores="little"), profile="lab")
    board = Board()
    board.threads = lab.world.setting.threads
    assert fit("table", store=lab.store, device=board).card.setting == lab.world.setting
    board.threads = 64
    with pytest.raises(
        NotEnoughDataError, match=r"in its present Setting.*threads: \d+ ≠ 64.*`latbench profile --device "
    ):
        fit("table", store=lab.store, device=board)


def test_sources_are_the_other_settings_of_the_store_and_never_ones_own(lab):
    setting = lab.world.setting
    elsewhere = replace(setting, device="elsewhere")
    lab.store.add_setting(elsewhere, profile="elsewhere", description=Description("elsewhere", {"cores": 4}))
    visits = [lab.visit(n.key, "network", 2 * lab.world.network_ms(n), "calibration") for n in lab.nets[:11]]
    lab.store.add_visits(elsewhere, visits, subjects=lab.nets[:11], profile="elsewhere")
    for own, other, count in ((setting, elsewhere, 11), (elsewhere, setting, 20)):
        sources, notes = Gathered(lab.store, own, own.device, lab.world.space, None).sources("p50")
        assert list(sources) == [f"{other.device} {other.hash[:6]}"]
        assert [len(times) for times in sources.values()] == [count]
        assert notes == []
