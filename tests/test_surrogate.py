"""The parts of the model-based searcher: beliefs, expected improvement, features; and that it beats the others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from latbench.searchers import surrogate
from latbench.searchers.gaussian import GaussianProcess, Scale
from latbench.searchers.improvement import Beliefs, expected
from latbench.searchers.surrogate import Surrogate, _Choice, pressed

from latbench import pareto, plugins
from latbench.load import load_space
from latbench.problem import Candidate, Objective, Problem
from latbench.testing.searchers import ToyProblem, ToySpace

RNG = np.random.default_rng


def monte_carlo(front: np.ndarray, mean: np.ndarray, sd: np.ndarray, n: int = 4000) -> float:
    rng, base = RNG(0), pareto.hypervolume(front, np.ones(front.shape[1]))
    draws = mean + sd * rng.normal(size=(n, len(mean)))
    return float(np.mean([pareto.hypervolume(np.vstack([front, d]), np.ones(len(d))) for d in draws]) - base)


@pytest.mark.parametrize("known", [1, 2])
def test_expected_improvement_is_the_average_over_draws(known: int) -> None:
    rng = RNG(known)
    front = rng.random((6, 1 + known))
    mean = rng.random((5, 1 + known)) * 0.8
    sd = np.zeros_like(mean)
    sd[:, 0] = 0.15
    gain = expected(front, Beliefs(mean, sd))
    drawn = [monte_carlo(front, m, s) for m, s in zip(mean, sd, strict=True)]
    assert gain == pytest.approx(drawn, abs=0.004 if known == 1 else 0.012)
    assert max(drawn) > 0.02


def test_two_believed_objectives_and_one_alone_are_averaged_too() -> None:
    front = np.array([[0.2, 0.7], [0.5, 0.4]])
    mean, sd = np.array([[0.3, 0.3], [0.6, 0.9]]), np.full((2, 2), 0.1)
    drawn = [monte_carlo(front, m, s) for m, s in zip(mean, sd, strict=True)]
    assert expected(front, Beliefs(mean, sd)) == pytest.approx(drawn, abs=0.008)
    one = front[:, :1], mean[:, :1], sd[:, :1]
    drawn = [monte_carlo(one[0], m, s) for m, s in zip(one[1], one[2], strict=True)]
    assert expected(one[0], Beliefs(one[1], one[2])) == pytest.approx(drawn, abs=0.003)


class Guessed:
    """Latency that is the sum of the choices and one, predicted to within a third at 90 %."""

    names = ("latency_ms", "latency_low_ms", "latency_high_ms")

    def __call__(self, archs: np.ndarray) -> dict[str, np.ndarray]:
        value = archs.sum(axis=1) + 1.0
        return dict(zip(self.names, (value, value / 1.33, value * 1.33), strict=True))


def test_where_a_limit_may_be_kept_what_keeps_it_more_likely_is_asked_for_first() -> None:
    space = ToySpace(5, 4)
    problems = [Problem(space, (Objective("error"),), {"latency_ms": 8.0}, cheap_values=Guessed(), limit_on="low",
                        level=level) for level in (0.9, 0.0001)]  # fmt: skip

    def proposed(problem: Problem) -> float:
        searcher = Surrogate(problem, seed=0, initial=8)
        asked = searcher.ask(8)
        # The more work the better: without the limit the largest would win.
        searcher.tell([problem.candidate(a, {n: float(v[0]) for n, v in problem.cheap([a]).items()},
                                         {"error": 1 - sum(a) / 20}) for a in asked])  # fmt: skip
        return float(np.mean([sum(a) + 1 for a in searcher.ask(4)]))

    # With the same ends and no level at all each of them would keep the limit about as likely as not.
    sure, unsure = map(proposed, problems)
    assert sure < 9 < unsure


def test_what_hardly_keeps_its_limit_does_not_stop_the_search_for_better_that_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problem = Problem(ToySpace(5, 4), (Objective("error"),), {"latency_ms": 8.0}, cheap_values=Guessed(),
                      limit_on="low")  # fmt: skip
    searcher = Surrogate(problem, initial=12)
    likely, doubtful = (Candidate((i,) * 5, {"latency_ms": v, "latency_high_ms": v * 1.33, "error": e})
                        for i, v, e in ((0, 7.9, 0.2), (1, 8.1, 0.1)))  # fmt: skip
    assert searcher._known.front([likely, doubtful]) == [likely]
    # Work makes it better, up to what keeps the limit and beyond it.
    asked = searcher.ask(12)
    searcher.tell([problem.candidate(a, {n: float(v[0]) for n, v in problem.cheap([a]).items()},
                                     {"error": 1 - sum(a) / 20}) for a in asked])  # fmt: skip
    told = list(searcher._told.values())
    best, unlikely = (min((c for c in told if (c.values["latency_ms"] <= 8) == kept), key=lambda c: c.values["error"])
                      for kept in (True, False))  # fmt: skip
    assert unlikely.values["error"] < best.values["error"]
    bends = list[float]()
    monkeypatch.setattr(surrogate, "pressed", lambda y, bend: bends.append(bend) or pressed(y, bend))
    learnt = searcher._learn()
    assert bends == [best.values["error"]]
    # What is believed of a batch's first is on that front only where it is likely to keep the limit, too.
    pool = searcher._known.whole
    assert pool is not None
    for keeps in (True, False):
        choice = _Choice(searcher._known, learnt, told, pool, [])
        rows = np.flatnonzero((pool.values["latency_ms"] <= 8) == keeps)
        choice.keep(rows[-1:])
        before = len(choice._front)
        # Over the range of what was told, the unlikely one's being the least.
        assert choice._front[0, 0] * choice._unit[0] == pytest.approx(best.values["error"] - unlikely.values["error"])
        choice.best()
        assert len(choice._front) == before + keeps


def test_chances_of_keeping_a_limit_stay_with_their_architectures_where_fewer_are_left() -> None:
    problem = Problem(ToySpace(5, 4), (Objective("error"),), {"latency_ms": 8.0}, cheap_values=Guessed(),
                      limit_on="low")  # fmt: skip
    searcher = Surrogate(problem, initial=12)
    searcher.tell([problem.candidate(a, {n: float(v[0]) for n, v in problem.cheap([a]).items()},
                                     {"error": 1 - sum(a) / 20}) for a in searcher.ask(12)])  # fmt: skip
    pool = searcher._known.whole
    assert pool is not None
    choice = _Choice(searcher._known, searcher._learn(), list(searcher._told.values()), pool, searcher.ask(2))
    before, rows = choice.gain(), np.arange(len(pool.archs))[::-7]
    choice.keep(rows)
    np.testing.assert_allclose(choice.gain(), before[rows])
    assert before.max() > 2 * before[before > 0].min()


def test_the_gradient_of_the_likelihood_is_its_derivative() -> None:
    from latbench.searchers.gaussian import _loss

    rng = RNG(0)
    x = [rng.normal(size=(12, 3)), rng.normal(size=(12, 2))]
    d = np.stack([((g[:, None] - g) ** 2).sum(axis=2) for g in x])
    z, theta = rng.normal(size=12), np.array([-1.0, 0.3, -2.0])
    _, gradient = _loss(theta, d, z)
    for i, step in enumerate(np.eye(3) * 1e-5):
        numeric = (_loss(theta + step, d, z)[0] - _loss(theta - step, d, z)[0]) / 2e-5
        assert gradient[i] == pytest.approx(numeric, rel=1e-4)


def test_beliefs_are_calibrated_on_what_was_not_seen() -> None:
    inside = []
    for seed in range(8):
        rng = RNG(seed)
        x = rng.normal(size=(90, 4))
        y = np.sin(x[:, 0]) + 0.5 * x[:, 1] + 0.1 * rng.normal(size=90)
        group = Scale(x)(x)
        gp = GaussianProcess(1)
        gp.fit([group[:40]], y[:40])
        belief = gp.predict([group[40:]])
        inside.append(np.abs(belief.mean - y[40:]) < 1.645 * belief.sd_measured)
        assert np.corrcoef(belief.mean, y[40:])[0, 1] > 0.7
    assert 0.8 < np.mean(inside) < 0.98


def test_what_is_believed_known_shrinks_the_doubt_as_an_observation_would() -> None:
    rng = RNG(0)
    x = rng.normal(size=(20, 2))
    gp = GaussianProcess(1, [0.0, -4.0])
    gp.fit([x[:10]], rng.normal(size=10), learn=False)
    belief = gp.predict([x[10:]])
    seen = gp.predict([x[10:]])
    belief.believe(3)
    assert belief.sd[3] < 0.7 * seen.sd[3]
    assert (belief.sd <= seen.sd + 1e-6).all()
    assert belief.mean.tolist() == seen.mean.tolist()
    more = GaussianProcess(1, [0.0, -4.0])
    more.fit([np.vstack([x[:10], x[13:14]])], rng.normal(size=11), learn=False)
    # But for the scale of the answers, which differ, the doubt is the same everywhere.
    ratio = more.predict([x[10:]]).sd / belief.sd
    assert ratio == pytest.approx(np.full(10, ratio[0]), rel=1e-3)


def test_features_of_architectures_that_compute_the_same_agree_on_paths() -> None:
    space = load_space("nasbench201")
    # A convolution behind a skip, and a skip behind the convolution.
    one, other = (0, 1, 0, 0, 0, 3), (0, 3, 0, 0, 0, 1)
    where, paths = space.features([one, other])
    assert paths[0].tolist() == paths[1].tolist()
    assert where[0].tolist() != where[1].tolist()
    # What hangs on nothing is not there.
    assert space.features([(3, 0, 0, 1, 0, 0)])[0].tolist() == space.features([(0, 0, 0, 1, 0, 0)])[0].tolist()


def test_features_tell_properties_apart_and_count_them() -> None:
    space = load_space("proxyless")
    each, often = space.features([(0,) * space.positions])
    assert each.sum() == 2 * space.positions
    assert sorted(often[0][often[0] > 0].tolist())[-1] <= space.positions


def test_the_surrogate_beats_the_other_searchers_on_few_evaluations() -> None:
    toy = ToyProblem(6, 4)
    volumes = {
        name: np.mean([toy.volume(toy.run(plugins.load("searchers", name)(toy.problem, seed=s), 50)) for s in range(3)])
        for name in ("random", "evolution", "local", "moga", "surrogate")
    }
    assert max(volumes, key=volumes.__getitem__) == "surrogate"


def test_a_limit_that_only_evaluation_tells_is_learnt_too() -> None:
    best: dict[str, list[float]] = {"random": [], "surrogate": []}
    for name, found in best.items():
        for seed in range(3):
            toy = ToyProblem(6, 4)
            toy.problem = replace(toy.problem, objectives=(Objective("latency_ms"),), limits={"error": 0.2})
            done = toy.run(plugins.load("searchers", name)(toy.problem, seed=seed), 40)
            found.append(min(c.values["latency_ms"] for c in done if c.feasible))
    assert max(best["surrogate"]) < min(best["random"])


def test_what_is_worse_than_the_front_is_pressed_together_in_order_and_the_rest_stays() -> None:
    y = np.asarray([0.1, 0.2, 0.3, 0.4, 0.99, 0.98])
    out = pressed(y, 0.3)
    np.testing.assert_array_equal(out[:3], y[:3])
    assert (np.argsort(out) == np.argsort(y)).all()
    # Slope one at the bend, and much less far out.
    assert pressed(np.asarray([0.1, 0.2, 0.3, 0.3 + 1e-6]), 0.3)[-1] - 0.3 == pytest.approx(1e-6, rel=1e-3)
    assert out[4] - out[3] < 0.5 * (y[4] - y[3])
    np.testing.assert_array_equal(pressed(np.ones(3), 1.0), np.ones(3))


def test_a_network_that_learns_nothing_does_not_make_up_the_scale_of_what_is_believed() -> None:
    """One objective; a network in four is at 90 % error, the others within 3 % of each other."""
    space = ToySpace(5, 4)
    problem = Problem(space, (Objective("error"),))
    searcher = Surrogate(problem, seed=1)
    archs = [tuple(a) for a in space.sample_archs(40, seed=0).tolist()]
    errors = [0.9 if a[0] == 0 else 0.1 + 0.001 * sum((c - 2) ** 2 for c in a) for a in archs]
    searcher.tell([Candidate(a, {"error": e}, number=i) for i, (a, e) in enumerate(zip(archs, errors, strict=True))])
    belief = searcher._learn()["error"].predict(searcher._known.features(np.asarray(archs, np.int64)))
    good = np.asarray(errors) < 0.5
    assert belief.mean[good].max() < 0.15
    assert belief.mean[~good].min() > belief.mean[good].max()
    assert belief.mean[~good].max() < 0.4


def test_the_first_architectures_are_one_of_each_part_of_the_range_of_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    toy = ToyProblem(6, 4)
    searcher = Surrogate(toy.problem, seed=1, initial=6)
    draw, drawn = searcher._unseen.draw, list[list[tuple[int, ...]]]()
    monkeypatch.setattr(searcher._unseen, "draw", lambda n, seen: drawn.append(draw(n, seen)) or drawn[-1])
    first = searcher.ask(6)
    (all_of_them,) = drawn
    assert len(all_of_them) == 8 * 6
    latency = {a: float(toy.problem.cheap([a])["latency_ms"][0]) for a in all_of_them}
    place = {a: i for i, a in enumerate(sorted(all_of_them, key=latency.__getitem__))}
    assert sorted(place[a] // 8 for a in first) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("seed", range(3))
def test_answers_that_are_out_count_as_believed_when_it_is_asked_for_more(seed: int) -> None:
    toy = ToyProblem(5, 3)

    def started() -> Surrogate:
        searcher = Surrogate(toy.problem, seed=seed, initial=8)
        searcher.tell(toy.answer(searcher.ask(8)))
        return searcher

    together, apart = started(), started()
    batch = together.ask(4)
    assert [a for _ in range(4) for a in apart.ask(1)] == batch
    assert len(set(batch)) == 4


def test_what_was_chosen_promises_next_to_nothing_any_more_and_its_like_less(monkeypatch: pytest.MonkeyPatch) -> None:
    toy = ToyProblem(5, 3)
    searcher = Surrogate(toy.problem, seed=0, initial=8)
    searcher.tell(toy.answer(searcher.ask(8)))
    best, shares = _Choice.best, list[tuple[float, bool]]()

    def watched(choice: _Choice) -> tuple[int, ...]:
        before = choice.gain()
        arch = best(choice)
        after = choice.gain()
        chosen = [tuple(a) for a in choice._archs.tolist()].index(arch)
        shares.append((float(after[chosen] / before[chosen]), bool((after <= before + 1e-9).all())))
        return arch

    monkeypatch.setattr(_Choice, "best", watched)
    searcher.ask(3)
    assert len(shares) == 3
    assert max(share for share, _ in shares) < 0.1
    assert all(falls for _, falls in shares)
