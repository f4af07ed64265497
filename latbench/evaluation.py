"""Predictors compared on the same networks: the same splits, one table of scores.

:func:`evaluate` takes ``n`` networks of a device's column of :class:`~latbench.times_file.Times` from a pool of rows,
lets predictors learn from them, and asks all for the rows outside the pool; regression on MACs and the sum over choices
are always among them. :func:`held_out_runs` scores predictors that were fitted to a store on the networks it holds out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from latbench.arch_times import ArchTimes
from latbench.errors import ConfigError, NotEnoughDataError, UnknownOpError, UnsupportedOpError
from latbench.space import SearchSpace
from latbench.times_file import Times
from latbench.validation import Score

if TYPE_CHECKING:
    from latbench.predictor import Predictor
    from latbench.store import Store

Floats = npt.NDArray[np.float64]

#: Names of the baselines.
MACS, ADDITIVE = "baseline: MACs", "baseline: additive"
BASELINES = (MACS, ADDITIVE)
#: A measured value below this share of its column's median is suspicious: networks that computed nothing, say. A share,
#: since no time is short on every device. Its edge need not lie in a gap: NAS-Bench-201's pixel3 has 202 networks below
#: 0.1 ms, then 0.105, 0.112 and 0.114 ms, and a median of 10.68 ms: 203 are suspicious.
SUSPICIOUS = 0.01
#: Where a predictor is asked at each row's place in the order.
IN_ORDER = " (in order)"


@dataclass(frozen=True)
class Answers:
    """What a predictor said of the asked networks beside what was measured; (m,) milliseconds each, ``low`` and
    ``high`` empty where it gives no intervals."""

    measured: Floats
    value: Floats
    low: Floats = field(default_factory=lambda: np.empty(0))
    high: Floats = field(default_factory=lambda: np.empty(0))

    @property
    def coverage(self) -> float:
        """Share of networks inside their interval; NaN without intervals."""
        inside = (self.low <= self.measured) & (self.measured <= self.high) if len(self.low) else np.empty(0)
        return float(np.mean(inside)) if len(inside) else float("nan")

    @property
    def width(self) -> float:
        """Mean relative width of the intervals; NaN without intervals."""
        return float(np.mean((self.high - self.low) / self.value)) if len(self.low) else float("nan")


@dataclass(frozen=True)
class Run:
    """One predictor on one split: its score, the share of intervals that hold and their mean relative width (NaN for
    baselines), seconds to fit and to predict, how its ``n`` networks were picked, and the answers themselves."""

    name: str
    seed: int
    score: Score
    coverage: float
    width: float
    fit_s: float
    predict_s: float
    picked: str
    n: int
    answers: Answers = field(repr=False, compare=False)

    @classmethod
    def of(
        cls, name: str, seed: int, n: int, answers: Answers, fit_s: float, predict_s: float, picked: str = "random"
    ) -> Run:
        """With the answers scored."""
        score = Score.of(answers.value, answers.measured)
        return cls(name, seed, score, answers.coverage, answers.width, fit_s, predict_s, picked, n, answers)

    def without(self, below_ms: float) -> Run:
        """The same answers scored without the networks that measured less. Raises :class:`NotEnoughDataError` where
        none is left."""
        a = self.answers
        kept = a.measured >= below_ms
        left = Answers(*(x[kept] if len(x) else x for x in (a.measured, a.value, a.low, a.high)))
        return Run.of(self.name, self.seed, self.n, left, self.fit_s, self.predict_s, self.picked)

    def to_json(self) -> dict[str, Any]:
        """Plain values, the answers left out."""
        return {**{k: v for k, v in vars(self).items() if k != "answers"}, "score": asdict(self.score)}


def evaluate(
    times: Times,
    target: str,
    sources: Sequence[str],
    predictors: Sequence[str],
    *,
    n: int,
    seeds: int = 10,
    pool: tuple[int, int] | None = None,
    level: float = 0.9,
    seed: int = 0,
    skip: Callable[[str, Exception], None] | None = None,
    on_run: Callable[[Run], None] | None = None,
) -> list[Run]:
    """Runs of every predictor and baseline on ``seeds`` splits.

    ``n`` networks are taken from the rows ``pool`` (first, last + 1; all rows if None), at random; a predictor that
    learns from other devices, and is given some, measures the networks that it chose. All other rows outside the pool
    (outside the ``n`` where all rows are the pool) are asked. With an order, predictors that know one are asked both
    with and without each row's place. ``skip`` is told of predictors that cannot learn from arrays, else they raise;
    ``on_run`` of each run as it ends.
    Raises :class:`ConfigError` for rows that are not there, and a target among its sources.
    """
    import latbench as lb
    from latbench import plugins

    if target in sources:
        raise ConfigError(f"--sources: {target!r} is the target; a new device does not learn from its own column")
    y = times.values[target]
    usable = ~np.isnan(y)
    first, last = pool if pool is not None else (0, len(y))
    if not 0 <= first < last <= len(y):
        raise ConfigError(f"pool: rows {first}:{last} of a file with {len(y)} rows")
    inside = np.flatnonzero(usable & (np.arange(len(y)) >= first) & (np.arange(len(y)) < last))
    outside = np.flatnonzero(usable & ~np.isin(np.arange(len(y)), np.arange(first, last)))
    if not 1 <= n < usable.sum() or n > len(inside):
        raise ConfigError(f"n: {n} networks of {len(inside)} measured ones in rows {first}:{last}")
    others = {s: _times_of(times, s) for s in sources}
    given = {s: (t.archs, t.values) for s, t in others.items()}
    runs: list[Run] = []
    left_out: set[str] = set()

    def ended(one: Run) -> None:
        runs.append(one)
        if on_run is not None:
            on_run(one)

    for number in range(seed, seed + seeds):
        rng = np.random.default_rng(number)
        drawn = np.sort(rng.choice(inside, n, replace=False))
        chosen = drawn
        if given and any(plugins.load("predictors", p).uses_sources for p in predictors):
            chosen = inside[lb.choose_networks(times.space, times.archs[inside], others, n, number)]
        for name in predictors:
            if name in left_out:
                continue
            uses = plugins.load("predictors", name).uses_sources and bool(given)
            rows = chosen if uses else drawn
            asked = outside if len(outside) else np.setdiff1d(inside, rows)
            in_order = plugins.load("predictors", name).uses_order
            order = times.order[rows] if times.order is not None and in_order else None
            begun = time.perf_counter()
            try:
                model = lb.fit(
                    name, space=times.space, archs=times.archs[rows], latency_ms=y[rows], order=order,
                    sources=given if uses else None, level=level, seed=number, device=target,
                )  # fmt: skip
                fit_s = time.perf_counter() - begun
                ways: dict[str, dict[str, Any]] = {"": {}}
                drift = model.card.model.get("drift")
                if order is not None and times.order is not None and isinstance(drift, Mapping):
                    ways[IN_ORDER] = {"order": times.order[asked]}
                for way, more in ways.items():
                    begun = time.perf_counter()
                    e = model.predict_archs(times.space, times.archs[asked], level=level, **more)
                    took = time.perf_counter() - begun
                    answers = Answers(y[asked], e.value, e.low, e.high)
                    ended(Run.of(name + way, number, n, answers, fit_s, took, "chosen" if uses else "random"))
            except (NotEnoughDataError, ConfigError) as e:
                if skip is None:
                    raise
                skip(name, e)
                left_out.add(name)
        asked = outside if len(outside) else np.setdiff1d(inside, drawn)
        for name, baseline in ((ADDITIVE, additive_baseline), (MACS, macs_baseline)):
            begun = time.perf_counter()
            value = baseline(times.space, times.archs[drawn], y[drawn], times.archs[asked])
            took = time.perf_counter() - begun
            ended(Run.of(name, number, n, Answers(y[asked], value), took, 0.0))
    return runs


def suspicious(values: npt.ArrayLike) -> tuple[float, npt.NDArray[np.int64]]:
    """Milliseconds of which less is suspicious in a column (n,) of measured values, :data:`SUSPICIOUS` of its median,
    and the rows that are. One such row can be all of an RMSPE: what is predicted is thousands of times as much."""
    v = np.asarray(values, np.float64)
    below = SUSPICIOUS * float(np.nanmedian(v))
    return below, np.flatnonzero(v < below)


@dataclass(frozen=True)
class Fitted:
    """A predictor that was fitted to a store, under the name that it was asked for by, and the seconds that took."""

    name: str
    model: Predictor
    fit_s: float


def held_out_runs(
    store: Store,
    fitted: Sequence[Fitted],
    profile: str,
    space: SearchSpace | str | None = None,
    campaigns: Sequence[str] | None = None,
    level: float = 0.9,
) -> list[Run]:
    """One run of each predictor, and of the regression on MACs, on the networks that the store holds out.

    A predictor is asked for those that it knows all Ops of, and left out where there are none. All were fitted to the
    same Setting; ``space`` and ``campaigns`` are those of the fits.
    """
    from latbench.gathering import Gathered, macs_regression

    runs: list[Run] = []
    baseline: list[Run] = []
    for f in fitted:
        statistic: Any = f.model.card.statistic
        gathered = Gathered(store, f.model.setting, profile, space, campaigns)
        learnt = list(gathered.networks("calibration", statistic).values())
        asked = list(gathered.networks("validation", statistic).values())
        said, begun = [], time.perf_counter()
        for n in asked:
            try:
                said.append((n.value, f.model.predict(n.net, level=level).interval))
            except (UnknownOpError, UnsupportedOpError):
                continue
        took = time.perf_counter() - begun
        if said:
            y = np.array([v for v, _ in said])
            value, low, high = np.array([(i.value, i.low, i.high) for _, i in said]).T
            runs.append(Run.of(f.name, 0, len(learnt), Answers(y, value, low, high), f.fit_s, took))
        if not baseline and len(learnt) >= 3 and asked:
            begun = time.perf_counter()
            answers = Answers(np.array([n.value for n in asked]), macs_regression(learnt, [n.net for n in asked]))
            baseline = [Run.of(MACS, 0, len(learnt), answers, time.perf_counter() - begun, 0.0)]
    return [*runs, *baseline]


def _times_of(times: Times, column: str) -> ArchTimes:
    v = times.values[column]
    has = ~np.isnan(v)
    return ArchTimes.of(times.space, times.archs[has], v[has], what=f"column {column!r}")


def means(runs: Iterable[Run]) -> dict[str, dict[str, float]]:
    """Predictor → means over its runs, in the order in which they first occur; ``…_spread``: standard deviations."""
    by_name: dict[str, list[Run]] = {}
    for r in runs:
        by_name.setdefault(r.name, []).append(r)
    keys = ("rmspe", "mape", "within_1", "within_5", "within_10", "spearman", "kendall", "worst")
    return {
        name: {
            **{k: float(np.mean([getattr(r.score, k) for r in rs])) for k in keys},
            **{k: float(np.mean([getattr(r, k) for r in rs])) for k in ("coverage", "width", "fit_s", "predict_s")},
            **{f"{k}_spread": float(np.std([getattr(r.score, k) for r in rs])) for k in keys[:-1]},
            **{f"{k}_spread": float(np.std([getattr(r, k) for r in rs])) for k in ("coverage", "width")},
        }
        for name, rs in by_name.items()
    }


def macs_baseline(space: SearchSpace, archs: npt.NDArray[np.int64], ms: Floats, asked: npt.NDArray[np.int64]) -> Floats:
    """(m,) milliseconds as an affine function of MACs alone, fitted to relative errors."""
    from latbench.predictors.encodings import encoder

    macs, at = (encoder(space, "live").macs(a) for a in (archs, asked))
    scale = float(np.median(macs)) or 1.0
    x = np.stack([np.ones(len(macs)), macs / scale], axis=1)
    beta = np.linalg.lstsq(x / ms[:, None], np.ones(len(ms)), rcond=None)[0]
    return np.asarray(np.maximum(beta[0] + beta[1] * at / scale, 1e-3 * ms.min()))


def additive_baseline(
    space: SearchSpace, archs: npt.NDArray[np.int64], ms: Floats, asked: npt.NDArray[np.int64]
) -> Floats:
    """(m,) milliseconds as the sum of what each choice costs, and a constant: ridge regression on relative errors."""
    unit = float(np.median(ms))
    x, at = (np.concatenate([np.ones((len(a), 1)), space.encode(a)], axis=1) for a in (archs, asked))
    relative = x * (unit / ms)[:, None]
    penalty = np.diag([1e-6, *np.full(x.shape[1] - 1, 0.1)])
    beta = np.linalg.solve(relative.T @ relative + penalty, relative.sum(axis=0))
    return np.asarray(np.maximum(at @ beta * unit, 1e-3 * ms.min()))
