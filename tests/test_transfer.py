"""Transfer: a new device from a few measured networks and what other devices measured."""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

import latbench as lb
from latbench.arch_times import ArchTimes, arch_times
from latbench.errors import (
    ArchitectureError,
    ConfigError,
    FileFormatError,
    NotEnoughDataError,
    PredictorError,
    UnknownOpError,
    UnsupportedOpError,
)
from latbench.predictors import transfer_errors, transfer_prior
from latbench.predictors.transfer import Transfer, rounding
from latbench.predictors.transfer_choice import choose_networks, greedy
from latbench.predictors.transfer_errors import LIMIT
from latbench.predictors.transfer_posterior import LeftOut, Posterior
from latbench.predictors.transfer_prior import CENTRE, PARTS, Prior, _source, _variances, learn, negative_evidence
from latbench.testing.predictors import PredictorConformance, _small_world

SPACE = lb.load_space("nasbench201")
ARCHS = SPACE.sample_archs(400, seed=1)
QUERY = SPACE.sample_archs(200, seed=2)


def device(archs, costs, overhead, seed=0, noise=0.01):
    """Milliseconds of a made-up device: an overhead and a cost of each choice, the same on all edges."""
    ms = overhead + np.asarray(costs)[np.asarray(archs)].sum(axis=1)
    return ms * np.exp(np.random.default_rng(seed).normal(0, noise, len(ms)))


#: Costs of none, skip, 1×1, 3×3 and pooling, and overhead: three like each other, and one more.
DEVICES = {
    "a": ([0.1, 0.2, 1.0, 3.0, 0.8], 2.0),
    "b": ([0.1, 0.2, 1.5, 4.0, 2.0], 3.0),
    "c": ([0.3, 0.3, 0.9, 1.5, 0.7], 4.0),
    "d": ([0.0, 0.1, 2.0, 9.0, 1.0], 1.0),
}
NEW = ([0.15, 0.2, 1.3, 3.3, 1.5], 2.5)
SOURCES = {k: (ARCHS, device(ARCHS, *v, seed=i)) for i, (k, v) in enumerate(DEVICES.items())}


def fitted(n=12, sources=SOURCES, of=NEW, **options):
    """A fit to the first n architectures."""
    return lb.fit(
        "transfer", space=SPACE, archs=ARCHS[:n], latency_ms=device(ARCHS[:n], *of, seed=9), sources=sources,
        device="new", **options,
    )  # fmt: skip


def within(model, of=NEW, share=0.1):
    return float((np.abs(model.predict_archs(SPACE, QUERY).value / device(QUERY, *of, noise=0) - 1) <= share).mean())


@pytest.fixture(scope="module")
def model():
    return fitted()


# -- how right it is --------------------------------------------------------------------------------------------


class TestTransferConformance(PredictorConformance):
    @pytest.fixture
    def cls(self):
        return Transfer

    def test_no_ops_are_an_error_that_names_the_command(self, cls, data, world, archs):
        """It learns from networks alone: here no Ops are no loss."""
        model = cls.fit(replace(data, ops={}))
        np.testing.assert_array_equal(
            model.predict_archs(world.space, archs).value, cls.fit(data).predict_archs(world.space, archs).value
        )

    def test_ops_that_do_not_run_are_saved(self, cls, data, world, tmp_path):
        keys, table, _ = world.space.op_table
        lacking = keys[table[2][5][0]]
        runs = tuple(n for n in data.calibration if lacking not in n.net.ops())
        model = cls.fit(replace(data, calibration=runs, unsupported={lacking: "no such kernel"}))
        arch = [0] * world.space.positions
        arch[2] = 5
        with pytest.raises(UnsupportedOpError, match="no such kernel"):
            lb.load_predictor(model.save(tmp_path / "m")).predict(world.space.network(arch))


@cache
def with_sources():
    """The suite's networks, and three faster and slower devices."""
    data = _small_world()[1]
    space = arch_times(data).space
    archs = space.sample_archs(60, seed=3)
    macs = np.array([space.network(a).macs for a in archs.tolist()], float)
    others = {str(k): ArchTimes.of(space, archs, 0.2 * k + k * macs / 5e6) for k in (1, 2, 4)}
    return replace(data, sources=others)


class TestTransferWithSourcesConformance(TestTransferConformance):
    @pytest.fixture
    def data(self):
        return with_sources()


def test_twelve_networks_and_four_sources_make_a_predictor(model):
    assert within(model, share=0.05) > 0.95
    assert model.source_share > 0.9


def test_sources_make_it_better_than_the_target_alone(model):
    assert within(model, share=0.03) > within(fitted(sources=None), share=0.03) + 0.1


def test_sources_that_tell_nothing_do_no_harm():
    rng = np.random.default_rng(0)
    noise = {k: (ARCHS, np.exp(rng.normal(1, 0.5, len(ARCHS)))) for k in "abc"}
    alone, misled = fitted(30, None), fitted(30, noise)
    assert misled.source_share < 0.5
    assert within(misled) >= within(alone) - 0.02


def test_one_wild_measurement_among_fifteen_does_not_bend_the_rest():
    y = device(ARCHS[:15], *NEW, seed=9)
    y[4] *= 3
    bent = lb.fit("transfer", space=SPACE, archs=ARCHS[:15], latency_ms=y, sources=SOURCES)
    assert within(bent) > 0.95


def test_a_single_source_is_enough():
    assert within(fitted(sources={"a": SOURCES["a"]})) > 0.9


def test_whole_milliseconds_count_as_rounded():
    whole = ArchTimes.of(SPACE, ARCHS[:2], [3.0, 10.0])
    assert rounding(whole) == pytest.approx([1 / 12 / 9, 1 / 12 / 100])
    assert not rounding(ArchTimes.of(SPACE, ARCHS[:2], [3.0, 10.5])).any()


# -- intervals --------------------------------------------------------------------------------------------------


def test_intervals_hold_the_estimate_and_grow_with_the_level(model):
    narrow, wide = (model.predict_archs(SPACE, QUERY, level=v) for v in (0.5, 0.9))
    assert (wide.low < narrow.low).all()
    assert (narrow.low < narrow.value).all()
    assert (narrow.value < narrow.high).all()
    assert (narrow.high < wide.high).all()


def test_intervals_hold_about_as_many_as_their_level_says(model):
    e, y = model.predict_archs(SPACE, QUERY), device(QUERY, *NEW, seed=5)
    assert 0.75 <= ((y >= e.low) & (y <= e.high)).mean() <= 1.0


@pytest.mark.parametrize("noise", [0.05, 0.1])
def test_intervals_hold_on_a_device_that_is_far_noisier_than_its_sources(noise):
    held = []
    for seed in range(6):
        archs, asked = SPACE.sample_archs(20, 100 + seed), SPACE.sample_archs(300, 500 + seed)
        ms = device(archs, *NEW, seed=seed, noise=noise)
        e = lb.fit("transfer", space=SPACE, archs=archs, latency_ms=ms, sources=SOURCES).predict_archs(SPACE, asked)
        y = device(asked, *NEW, seed=1000 + seed, noise=noise)
        held.append(((y >= e.low) & (y <= e.high)).mean())
    # By the sources' errors alone: 0.73 and 0.75.
    assert np.mean(held) > 0.82


def test_an_interval_is_wider_where_the_architecture_is_unlike_all_that_were_measured():
    plain = ARCHS[(ARCHS != 3).all(axis=1)][:12]
    model = lb.fit("transfer", space=SPACE, archs=plain, latency_ms=device(plain, *NEW), sources=SOURCES)
    known = model.predict_archs(SPACE, plain)
    new = model.predict_archs(SPACE, np.full((1, 6), 3))
    assert np.log(new.high / new.low)[0] > 1.2 * np.median(np.log(known.high / known.low))


def test_an_interval_does_not_follow_a_deviation_far_beyond_those_that_were_checked_among_known_choices():
    """In logarithms: a deviation of 3 would be an interval from 1 % to the hundredfold."""
    archs = np.array(
        [[0, 0, 0, 0, 0, 1], [0, 1, 0, 0, 0, 1], [1, 0, 0, 0, 1, 0], [1, 1, 0, 0, 1, 1], [0, 0, 1, 1, 0, 1]]
    )
    model = lb.fit("transfer", space=SPACE, archs=archs, latency_ms=device(archs, *NEW, seed=9))
    usual = np.median(model.left_out.sd)
    assert model._posterior(QUERY)[1].max() > LIMIT * usual
    known = np.array([[0, 0, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1]])
    e = model.predict_archs(SPACE, known)
    within_range = ~e.extrapolated
    half = np.log(e.high / e.value)[within_range]
    assert within_range.any()
    assert half.max() <= model._intervals.factor(0.9) * LIMIT * usual * (1 + 1e-9)
    factor, sd = model._intervals.factor(0.9), LIMIT * usual * np.array([0.5, 1.0, 10.0])
    capped = model._outside.halves(np.zeros((3, 3)), sd, model._limit, factor, 0.9)
    assert capped == pytest.approx(factor * LIMIT * usual * np.array([0.5, 1.0, 1.0]))
    far = model.predict_archs(SPACE, np.full((1, 6), 3))
    assert far.extrapolated.all()
    assert np.log(far.high / far.value)[0] > 5 * half.max()


def without_convolutions(sources, of=NEW, n=12):
    """A fit to networks without any 3×3 convolution, and 100 that have two or more."""
    plain, full = ARCHS[(ARCHS != 3).all(axis=1)][:n], QUERY[(QUERY == 3).sum(axis=1) >= 2]
    return lb.fit("transfer", space=SPACE, archs=plain, latency_ms=device(plain, *of, seed=9), sources=sources), full


@pytest.mark.parametrize("sources", [None, {k: SOURCES[k] for k in "abc"}])
def test_choices_that_no_measured_network_has_are_flagged_and_warned_of_and_their_intervals_hold(sources):
    strange = ([0.1, 0.2, 1.0, 6.0, 0.8], 2.0)  # 3×3 convolutions dearer by half or more than on sources like it
    model, full = without_convolutions(sources, strange)
    e, y = model.predict_archs(SPACE, full), device(full, *strange, noise=0)
    assert e.extrapolated.all()
    assert ((e.low <= y) & (y <= e.high)).mean() > 0.8
    # As wide as among the measured ones they hold few.
    model_of_old = Transfer(model.card, model._posterior, model._intervals, model._limit, {})
    old = model_of_old.predict_archs(SPACE, full)
    assert ((old.low <= y) & (y <= old.high)).mean() < 0.5
    one = model.predict(SPACE.network(full[0].tolist()))
    assert "of a kind that no measured network" in one.warnings[0]
    assert (one.low_ms, one.high_ms) == pytest.approx((e.low[0], e.high[0]))
    assert any("nor_conv_3x3" in note for note in model.card.notes)
    assert model.card.model["extrapolation"]["unknown_choices"] == ["nor_conv_3x3"]


def test_sources_that_measured_a_choice_and_agree_with_the_device_leave_its_interval_narrower_than_none():
    halves = []
    for sources in (SOURCES, None):
        model, full = without_convolutions(sources)
        e = model.predict_archs(SPACE, full)
        halves.append(np.median(np.log(e.high / e.value)))
    assert halves[0] < 0.7 * halves[1]


def test_among_networks_like_the_measured_ones_nothing_is_flagged_or_widened(model):
    known = ARCHS[:12]
    e = model.predict_archs(SPACE, known)
    _, sd = model._posterior(known)
    assert not e.extrapolated.any()
    half = model._intervals.factor(0.9) * np.minimum(sd, model._limit)
    np.testing.assert_allclose(np.log(e.high / e.value), half, rtol=1e-9)


def test_how_far_intervals_widen_is_saved_and_files_without_it_load_as_they_were(tmp_path):
    model, full = without_convolutions(None)
    loaded = lb.load_predictor(model.save(tmp_path / "m"))
    a, b = (m.predict_archs(SPACE, full) for m in (model, loaded))
    np.testing.assert_array_equal(a.high, b.high)
    np.testing.assert_array_equal(a.extrapolated, b.extrapolated)
    old = Transfer(model.card, model._posterior, model._intervals, model._limit, {})
    again = lb.load_predictor(old.save(tmp_path / "old")).predict_archs(SPACE, full)
    np.testing.assert_array_equal(again.high, old.predict_archs(SPACE, full).high)
    assert (again.high < a.high).all()


def test_a_level_outside_0_to_1_is_refused(model):
    with pytest.raises(ConfigError, match="level"):
        model.predict_archs(SPACE, QUERY, level=90)


# -- answers ----------------------------------------------------------------------------------------------------


def test_networks_and_architectures_get_the_same_answer(model):
    many = model.predict_archs(SPACE, QUERY[:3])
    for i, arch in enumerate(QUERY[:3].tolist()):
        e = model.predict(SPACE.network(arch))
        assert (e.latency_ms, e.low_ms, e.high_ms) == pytest.approx((many.value[i], many.low[i], many.high[i]))
        assert sum(p.latency_ms for p in e.breakdown) == pytest.approx(e.latency_ms)


def test_no_architectures_get_no_answers(model):
    assert model.predict_archs(SPACE, np.empty((0, 6), np.int64)).value.shape == (0,)


def test_a_network_of_another_space_is_an_error_that_names_an_op(model):
    with pytest.raises(UnknownOpError, match="knows networks of nasbench201"):
        model.predict(lb.load_space("mobilenetv3", resolution=32).network([0] * 14))


def test_architectures_of_another_space_are_refused(model):
    with pytest.raises(PredictorError, match="batch=4"):
        model.predict_archs(lb.load_space("nasbench201", batch=4), QUERY)


def test_a_network_that_is_too_uncertain_is_refused(model):
    with pytest.raises(PredictorError, match="±"):
        model.predict(SPACE.network(QUERY[0].tolist()), max_uncertainty=1e-4)


def test_the_card_says_what_it_rests_on(model):
    assert model.card.model["networks"] == 12
    assert model.card.model["sources"] == dict.fromkeys("abcd", 400)
    assert model.card.intervals["method"].startswith("shape of other devices")
    assert any("alone" in n for n in fitted(sources=None).card.notes)


# -- what it refuses --------------------------------------------------------------------------------------------


def test_too_few_networks_are_an_error_that_says_how_many_are_needed_and_where_they_come_from():
    with pytest.raises(NotEnoughDataError, match=r"4 measured networks.*at least 5.*latbench profile.*more archs and"):
        fitted(4)


def test_a_source_with_too_few_architectures_is_named():
    with pytest.raises(NotEnoughDataError, match=r"'a'.*: 9 measured"):
        fitted(sources={"a": (ARCHS[:9], device(ARCHS[:9], *DEVICES["a"]))})


def test_a_source_of_another_space_is_named():
    other = lb.load_space("nasbench201", batch=4)
    with pytest.raises(ConfigError, match="'a'"):
        learn(SPACE, {"a": ArchTimes.of(other, ARCHS, SOURCES["a"][1])})


def test_an_option_that_it_does_not_have_is_refused():
    with pytest.raises(ConfigError, match="colour"):
        fitted(colour="blue")


# -- files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sources", [SOURCES, None])
def test_what_was_saved_is_loaded_exactly(tmp_path, sources):
    model = fitted(sources=sources)
    loaded = lb.load_predictor(model.save(tmp_path / "m"))
    assert type(loaded) is Transfer
    for a, b in zip(
        *((e.value, e.low, e.high) for e in (m.predict_archs(SPACE, QUERY) for m in (model, loaded))), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    assert loaded.card.model == model.card.model
    again = loaded.save(tmp_path / "again")
    assert again.joinpath("card.json").read_bytes() == (tmp_path / "m" / "card.json").read_bytes()


def test_truncated_and_tampered_files_are_refused(model, tmp_path):
    folder = model.save(tmp_path / "m")
    for file in sorted(folder.iterdir()):
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(FileFormatError, match="truncated"):
            lb.load_predictor(folder)
        file.write_bytes(whole)
    card = json.loads((folder / "card.json").read_text())
    card["model"]["networks"] = 99
    (folder / "card.json").write_text(json.dumps(card))
    with pytest.raises(FileFormatError, match="tampered"):
        lb.load_predictor(folder)


def test_a_card_of_another_space_than_the_arrays_is_refused(model, tmp_path):
    folder = replace_space(model).save(tmp_path / "m")
    with pytest.raises(FileFormatError, match="not a transfer"):
        lb.load_predictor(folder)


def replace_space(model):
    """The same arrays under the card of another space."""
    return model.with_card(replace(model.card, space=lb.load_space("mobilenetv3", resolution=32).spec))


# -- choosing ---------------------------------------------------------------------------------------------------


def test_chosen_networks_are_rows_of_the_candidates_without_repeats_and_the_same_for_the_same_seed():
    rows = choose_networks(SPACE, ARCHS, SOURCES, 10, seed=3)
    assert len(set(rows.tolist())) == 10
    assert ((rows >= 0) & (rows < len(ARCHS))).all()
    np.testing.assert_array_equal(rows, lb.choose_networks(SPACE, ARCHS, SOURCES, 10, seed=3))


def test_more_chosen_networks_begin_with_the_same_ones():
    np.testing.assert_array_equal(
        choose_networks(SPACE, ARCHS, SOURCES, 12)[:6], choose_networks(SPACE, ARCHS, SOURCES, 6)
    )


@pytest.mark.parametrize("sources", [SOURCES, None])
def test_chosen_networks_leave_less_unknown_than_random_ones(sources):
    times = {k: ArchTimes.of(SPACE, *v) for k, v in (sources or {}).items()}
    prior = learn(SPACE, times)

    def left(rows):
        y = np.log(device(ARCHS[rows], *NEW, noise=0))
        return float((Posterior([prior], ARCHS[rows], y)(QUERY)[1] ** 2).mean())

    drawn = [left(np.random.default_rng(s).choice(len(ARCHS), 8, replace=False)) for s in range(8)]
    assert left(choose_networks(SPACE, ARCHS, sources, 8)) < np.median(drawn)


def test_fewer_candidates_than_asked_for_are_refused():
    with pytest.raises(ConfigError, match="5 candidates"):
        choose_networks(SPACE, ARCHS[:5], SOURCES, 6)
    with pytest.raises(ArchitectureError):
        choose_networks(SPACE, ARCHS[:5, :3], SOURCES, 3)


# -- its parts --------------------------------------------------------------------------------------------------


def test_a_source_is_smoothed_to_its_own_costs():
    x = SPACE.encode(ARCHS).astype(float)
    weights, floor = _source(x, device(ARCHS, *DEVICES["b"], seed=1, noise=0.05))
    smooth = x @ weights[1:] + weights[0]
    assert np.abs(smooth / device(ARCHS, *DEVICES["b"], noise=0) - 1).max() < 0.05
    assert 0 < floor < smooth.min()


def test_the_slope_of_the_evidence_is_its_derivative():
    prior = learn(SPACE, {k: ArchTimes.of(SPACE, *v) for k, v in SOURCES.items()})
    parts = prior.parts(ARCHS[:15])
    kernels, r = parts.kernels(parts), np.random.default_rng(0).normal(0, 0.1, 15)
    _, slope = negative_evidence(CENTRE, kernels, r)
    for i in range(len(PARTS)):
        step = np.zeros(len(PARTS))
        step[i] = 1e-5
        numeric = (
            negative_evidence(CENTRE + step, kernels, r)[0] - negative_evidence(CENTRE - step, kernels, r)[0]
        ) / 2e-5
        assert slope[i] == pytest.approx(numeric, rel=1e-4, abs=1e-6)


def test_variances_are_the_diagonal_of_the_kernels():
    parts = learn(SPACE, {k: ArchTimes.of(SPACE, *v) for k, v in SOURCES.items()}).parts(ARCHS[:5])
    np.testing.assert_allclose(np.diagonal(parts.kernels(parts), axis1=1, axis2=2), parts.variances(), atol=1e-9)


def test_left_out_means_are_those_of_a_fit_without_the_measurement():
    prior = learn(SPACE, {})
    one = Prior(SPACE, prior.weights, prior.floors, prior.thetas[:1])
    y = np.log(device(ARCHS[:8], *NEW, noise=0))
    # Calm data: no measurement is taken for wild, so that the noise is the same in both fits.
    whole = Posterior([one], ARCHS[:8], y)
    rest = Posterior([one], ARCHS[1:8], y[1:])
    shift = np.median(y) - np.median(y[1:])
    assert whole.left_out.mean[0] == pytest.approx(rest(ARCHS[:1])[0][0], abs=0.02 + abs(shift))


def test_a_source_in_the_part_of_the_new_device_is_not_in_its_own_prior(monkeypatch):
    times = {k: ArchTimes.of(SPACE, *v) for k, v in SOURCES.items()}
    prior, priors = learn(SPACE, times), []

    def noted(given, *rest):
        priors.append(given[0].weights)
        return Posterior(given, *rest)

    monkeypatch.setattr(transfer_errors, "Posterior", noted)
    transfer_errors.episodes(prior, learn(SPACE, {}), times, 7, seed=1)
    assert len(priors) == len(SOURCES) * transfer_errors.REPEATS
    for i, weights in enumerate(priors):
        own = prior.weights[i // transfer_errors.REPEATS]
        assert len(weights) == len(SOURCES) - 1
        assert not (weights == own).all(axis=1).any()


def test_a_source_that_is_noisier_or_less_like_the_others_is_given_more_noise_and_more_costs_of_its_own():
    prior = learn(SPACE, {k: ArchTimes.of(SPACE, *SOURCES[k]) for k in "abc"})
    noise, costs = PARTS.index("noise"), PARTS.index("costs")
    quiet, loud = (
        _variances(prior, ArchTimes.of(SPACE, ARCHS, device(ARCHS, *NEW, seed=3, noise=x)), 0) for x in (0.01, 0.1)
    )
    # What a device adds as noise is found again: 1 % and 10 %.
    assert np.exp(quiet[noise] / 2) == pytest.approx(0.01, rel=0.3)
    assert np.exp(loud[noise] / 2) == pytest.approx(0.1, rel=0.2)
    by_place = NEW[1] + (np.arange(6) * np.array(NEW[0])[ARCHS]).sum(axis=1)
    strange = _variances(prior, ArchTimes.of(SPACE, ARCHS, by_place), 0)
    assert strange[costs] > quiet[costs] + 1


def test_rounding_counts_by_its_variance_in_logarithms():
    times = ArchTimes.of(SPACE, ARCHS[:3], [1.0, 2.0, 10.0])
    # A uniform error of width 1 over the value.
    np.testing.assert_allclose(rounding(times), np.array([1, 1 / 4, 1 / 100]) / 12)
    assert not rounding(ArchTimes.of(SPACE, ARCHS[:3], [1.0, 2.5, 10.0])).any()


def test_the_deviation_that_intervals_follow_is_three_times_the_median_left_out():
    left = LeftOut(np.zeros(5), np.array([0.01, 0.02, 0.03, 0.5, 9.0]))
    assert transfer_errors.widest(left) == pytest.approx(0.09)


@pytest.mark.parametrize("sources", [SOURCES, None])
def test_each_chosen_network_leaves_the_least_variance_of_all_that_could_be_added(sources):
    prior = learn(SPACE, {k: ArchTimes.of(SPACE, *v) for k, v in (sources or {}).items()})
    candidates, reference = prior.parts(ARCHS[:25]), prior.parts(QUERY[:40])
    v = np.exp(np.median(prior.thetas, axis=0))

    def left(rows):
        some = candidates.take(rows)
        k = np.tensordot(v[:-1], some.kernels(some), 1) + v[-1] * np.eye(len(rows))
        to = np.tensordot(v[:-1], reference.kernels(some), 1)
        return float((v[:-1] @ reference.variances() - np.einsum("ij,ji->i", to, np.linalg.solve(k, to.T))).mean())

    chosen = greedy(prior, candidates, reference, 5).tolist()
    for i in range(5):
        best = min(left([*chosen[:i], j]) for j in range(25) if j not in chosen[:i])
        assert left(chosen[: i + 1]) == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("seed", [0, 3])
def test_choosing_and_fitting_learn_once(seed, monkeypatch):
    learnt, by = [], transfer_prior._learn
    monkeypatch.setattr(transfer_prior, "_PRIORS", OrderedDict())
    monkeypatch.setattr(transfer_prior, "_learn", lambda *a: learnt.append(len(a[1])) or by(*a))
    sources = {k: (ARCHS[:30], SOURCES[k][1][:30]) for k in "ab"}
    rows = choose_networks(SPACE, ARCHS, sources, 6, seed=seed)
    ms = device(ARCHS[rows], *NEW)
    lb.fit("transfer", space=SPACE, archs=ARCHS[rows], latency_ms=ms, sources=sources, seed=seed)
    assert sorted(learnt) == [0, 2]


def test_another_order_of_a_source_is_learnt_anew():
    times = {k: ArchTimes.of(SPACE, *v) for k, v in SOURCES.items()}
    turned = {**times, "a": replace(times["a"], order=np.arange(400.0)[::-1].copy())}
    assert learn(SPACE, times) is not learn(SPACE, turned)
    assert learn(SPACE, turned) is learn(SPACE, dict(turned))


def test_what_was_learnt_is_kept_for_the_next_call():
    times = {k: ArchTimes.of(SPACE, *v) for k, v in SOURCES.items()}
    assert learn(SPACE, times) is learn(SPACE, dict(times))
    times["a"] = ArchTimes.of(SPACE, ARCHS, SOURCES["a"][1] * 1.01)
    assert learn(SPACE, times) is not learn(SPACE, {k: ArchTimes.of(SPACE, *v) for k, v in SOURCES.items()})


def test_a_new_device_may_be_as_noisy_as_a_source_or_have_ten_times_its_variance():
    prior = learn(SPACE, {})
    noise = PARTS.index("noise")
    more = np.exp(prior.noisier().thetas).reshape(2, *prior.thetas.shape) / np.exp(prior.thetas)
    np.testing.assert_allclose(more[..., noise], [np.ones(len(prior.thetas)), np.full(len(prior.thetas), 10.0)])
    np.testing.assert_allclose(np.delete(more, noise, axis=2), 1.0)


def test_each_prior_has_the_same_say_however_many_rows_of_variances_it_has():
    prior = learn(SPACE, {})
    one, many = (Prior(SPACE, prior.weights, prior.floors, np.repeat(prior.thetas[:1], n, 0)) for n in (1, 7))
    y = np.log(device(ARCHS[:8], *NEW))
    assert Posterior([many, one], ARCHS[:8], y).shares == pytest.approx([0.5, 0.5])


def test_rounding_is_given_to_the_posterior():
    ms = np.round(device(ARCHS[:12], *NEW))
    model = lb.fit("transfer", space=SPACE, archs=ARCHS[:12], latency_ms=ms)
    np.testing.assert_allclose(model._posterior.extra, 1 / 12 / ms**2)


def test_a_source_in_the_part_of_the_new_device_is_measured_in_one_session(monkeypatch):
    archs = SPACE.sample_archs(1200, 4)
    times = {k: ArchTimes.of(SPACE, archs, device(archs, *DEVICES[k])) for k in "abc"}
    order = np.random.default_rng(0).permutation(1200).astype(float)
    times = {k: replace(t, order=order) for k, t in times.items()}
    spans = []

    def noted(given, rows, y):
        nearest = np.abs(np.log(times["a"].values)[:, None] - y).argmin(axis=0)
        spans.append(order[nearest])
        return Posterior(given, rows, y)

    prior, alone = learn(SPACE, times), learn(SPACE, {})
    monkeypatch.setattr(transfer_errors, "Posterior", noted)
    transfer_errors._episode(prior.without(0), alone, times["a"], 20, np.random.default_rng(1))
    assert len(spans[0]) == 20
    assert np.ptp(spans[0]) < transfer_errors.SESSION
