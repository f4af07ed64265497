"""Model families for whole networks, and the choice among them by cross-validation on the measured networks alone.

Targets are logarithms, so that errors are relative. Encodings are compared on Gaussian processes of some rows, with and
without drift; the chosen process is fitted to all rows and tells the drift from the rest. Ridge regression, extra trees
and boosted trees are fitted to what it leaves when the drift is taken off. The smallest mean absolute out-of-fold error
wins among the families and their means with the process; a tie goes to the process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import log
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from latbench.predictors import processes
from latbench.predictors.network_inputs import View, inputs_of
from latbench.predictors.order_drift import cycle_term, drift_terms
from latbench.predictors.processes import ORDER, Inputs, Process, Term
from latbench.predictors.trees import BoostedTrees, ExtraTrees

Floats = npt.NDArray[np.float64]
Member: TypeAlias = Process | ExtraTrees | BoostedTrees

#: Rows on which encodings are compared, and iterations of that search.
COMPARED, SEARCH = 300, 15
#: A family, or a mean with it, must lower the out-of-fold error of the process by this share.
MIN_GAIN = 0.01
#: Drift, and a cycle in it, must lower the leave-one-out error by this share.
MIN_DRIFT, MIN_CYCLE = 0.005, 0.002
#: Fewest rows for trees.
MIN_TREES = 40
FOLDS = 5
#: Up to so many rows a process is fitted anew for each of so many folds, not only left-out row by row.
REFITTED, REFITS = 150, 10
#: Below so many rows intervals rest on folds that no choice has seen; folds inside such a fold.
NESTED, INNER = MIN_TREES, 5
#: Mean of process and family, by name.
FAMILIES = ("process", "ridge", "extra-trees", "boosted-trees")


@dataclass(frozen=True)
class Rows:
    """Measured networks: ``views`` of them with their rows (n, d), and logarithms ``y`` (n,) of what was measured.

    ``known_noise`` (n,) is the variance of ``y`` that rounding makes, ``positions`` that of the space, 0 without one.
    """

    views: tuple[View, ...]
    inputs: Inputs
    plain: Floats
    y: Floats
    known_noise: Floats
    positions: int

    @classmethod
    def of(
        cls, views: tuple[View, ...], x: Sequence[Floats], y: Floats, known_noise: Floats, positions: int,
        order: Floats | None = None,
    ) -> Rows:  # fmt: skip
        """Of the rows ``x`` of each view."""
        return cls(views, inputs_of(views, x, positions, order), np.concatenate(x, axis=1), y, known_noise, positions)

    def by_view(self) -> list[Floats]:
        """The rows (n, d) of each view."""
        return np.split(self.plain, np.cumsum([len(v.mean) for v in self.views])[:-1], axis=1)

    def fold(self, seen: npt.NDArray[np.bool_], y: Floats) -> tuple[Rows, Rows]:
        """The rows that are ``seen`` (n,), scaled by themselves, and the others scaled by those; ``y`` (n,) for ours,
        without an order."""
        x = self.by_view()
        views = tuple(View.of(v.kind, v.choices, own[seen]) for v, own in zip(self.views, x, strict=True))
        first, second = (
            Rows.of(views, [own[m] for own in x], y[m], self.known_noise[m], self.positions) for m in (seen, ~seen)
        )
        return first, second


@dataclass(frozen=True)
class Chosen:
    """The fitted ``members`` with their shares, the process that knows the drift, and its mean ``level`` on the rows.

    ``left_out`` (n,) are out-of-fold predictions at the reference level, ``left_out_in_order`` (n,) with drift;
    ``tried`` maps what was compared to mean absolute out-of-fold errors.
    """

    process: Process
    members: Mapping[str, Member]
    level: float
    left_out: Floats
    left_out_in_order: Floats
    tried: Mapping[str, float] = field(default_factory=dict)


def arch_terms(views: Sequence[View]) -> tuple[Term, ...]:
    """Covariance of architectures: linear in everything, more so in the totals, and smooth in each view."""
    names = [n for v in views for n in v.names()]
    totals = tuple(f"{v.kind} totals" for v in views)
    smooth = [
        Term("smooth", tuple(v.names()), (log(0.02), *(log(0.7) if "choices" in n else 0.0 for n in v.names())))
        for v in views
    ]
    return (Term("linear", tuple(names), (log(0.05),)), Term("linear", totals, (log(0.3),)), *smooth)


def choose_views(candidates: Sequence[Rows], order: Floats | None, seed: int) -> tuple[int, bool, dict[str, float]]:
    """Which of the candidates (the same networks in other encodings) and whether drift helps; errors by name."""
    n = len(candidates[0].y)
    at = None if order is None else order[:, None]
    taken = processes.some_rows(n, COMPARED, at, np.random.default_rng(seed))
    drift = drift_terms(order) if order is not None else ()
    tried: dict[str, float] = {}

    def error(rows: Rows, terms: tuple[Term, ...]) -> float:
        inputs = {k: x[taken] for k, x in rows.inputs.items()}
        done = processes.fit(
            terms, inputs, rows.y[taken], known_noise=rows.known_noise[taken], seed=seed, steps=(SEARCH,)
        )
        return float(np.mean(np.abs(done.left_out - rows.y[taken])))

    best = 0
    if len(candidates) > 1:
        errors = [error(rows, (*arch_terms(rows.views), *drift)) for rows in candidates]
        tried |= {"encoding " + "+".join(v.kind for v in r.views): e for r, e in zip(candidates, errors, strict=True)}
        best = int(np.argmin(errors))
    if not drift:
        return best, False, tried
    rows = candidates[best]
    tried["with drift"], tried["without drift"] = (error(rows, (*arch_terms(rows.views), *d)) for d in (drift, ()))
    return best, tried["with drift"] < (1 - MIN_DRIFT) * tried["without drift"], tried


def fit_process(rows: Rows, order: Floats | None, seed: int) -> tuple[Process, dict[str, float]]:
    """The process of all rows; with an order, drift and perhaps a cycle. Leave-one-out errors by name."""
    terms = arch_terms(rows.views)
    if order is None:
        return processes.fit(terms, rows.inputs, rows.y, known_noise=rows.known_noise, seed=seed), {}
    terms = (*terms, *drift_terms(order))
    tried: dict[str, float] = {}
    best: Process | None = None

    def attempt(name: str, terms: tuple[Term, ...], gain: float, **how: Any) -> None:
        """Keep the fit if it lowers the error by the share ``gain``."""
        nonlocal best
        made = processes.fit(terms, rows.inputs, rows.y, known_noise=rows.known_noise, seed=seed, **how)
        tried[name] = float(np.mean(np.abs(made.left_out - rows.y)))
        if best is None or tried[name] < (1 - gain) * float(np.mean(np.abs(best.left_out - rows.y))):
            best = made

    # A short slow spell is drift or a handful of outliers: the likelihood has an optimum for each.
    attempt("outliers gently", terms, 0.0, gentle=True)
    attempt("outliers firmly", terms, 0.0)
    assert best is not None
    cycle = cycle_term(order, rows.y - best.mean - best.part(rows.inputs, in_time=False))
    if cycle is not None:
        attempt(f"cycle of {cycle.period:.4g}", (*terms, cycle), MIN_CYCLE, steps=(10, 6), start=best)
    return best, tried


def refitted(terms: tuple[Term, ...], rows: Rows, inputs: Inputs, steady: Floats, folds: int, seed: int) -> Floats:
    """(n,) out-of-fold predictions whose hyperparameters have not seen the fold either: of few rows these know much."""
    n = len(steady)
    fold = np.random.default_rng(seed).permutation(n) % min(n, folds)
    out = np.empty(n)
    for k in range(fold.max() + 1):
        a, b = fold != k, fold == k
        seen, held = ({name: x[m] for name, x in inputs.items()} for m in (a, b))
        # The second round knows the outliers that the first one found.
        p = processes.fit(terms, seen, steady[a], known_noise=rows.known_noise[a], seed=seed, steps=(SEARCH, SEARCH))
        out[b] = p.mean + p.part(held, in_time=False)
    return out


def fit_best(
    candidates: Sequence[Rows], order: Floats | None, families: Sequence[str], seed: int
) -> tuple[Rows, bool, Chosen]:
    """The best of the candidates (the same networks in other encodings), whether drift helped, and what was fitted."""
    index, drifts, tried = choose_views(candidates, order, seed)
    rows = candidates[index]
    chosen = fit_families(rows, order if drifts else None, families, seed)
    chosen = replace(chosen, tried={**tried, **chosen.tried})
    if len(rows.y) < NESTED:
        drift = chosen.left_out_in_order - chosen.left_out
        honest = nested(candidates, rows.y - drift, families, seed)
        chosen = replace(chosen, left_out=honest, left_out_in_order=honest + drift)
    return rows, drifts, chosen


def nested(candidates: Sequence[Rows], steady: Floats, families: Sequence[str], seed: int) -> Floats:
    """(n,) out-of-fold predictions of the whole procedure: encodings and families are chosen anew without the fold.

    The error by which the best of several was chosen is too small by as much as the choice gained (Varma and Simon
    2006, "Bias in error estimation when using cross-validation for model selection"): with ten rows that is much.
    """
    n = len(steady)
    fold = np.random.default_rng(seed).permutation(n) % min(n, REFITS)
    out = np.empty(n)
    for k in range(fold.max() + 1):
        pairs = [c.fold(fold != k, steady) for c in candidates]
        index, _, _ = choose_views([seen for seen, _ in pairs], None, seed)
        seen, held = pairs[index]
        members = fit_families(seen, None, families, seed, INNER).members.values()
        out[fold == k] = np.mean(
            [
                m.mean + m.part(held.inputs, in_time=False) if isinstance(m, Process) else m.predict(held.plain)
                for m in members
            ],
            axis=0,
        )
    return out


def fit_families(rows: Rows, order: Floats | None, families: Sequence[str], seed: int, folds: int = REFITS) -> Chosen:
    """Process, drift and the best family or mean of families; see :class:`Chosen`. ``folds`` are those of few rows."""
    process, tried = fit_process(rows, order, seed)
    # Of the fits without each row: the drift of the fit with it has swallowed part of the row's own noise.
    drift = process.time_left_out if order is not None else np.zeros(len(rows.y))
    level = float(process.part(rows.inputs, in_time=True).mean()) if order is not None else 0.0
    steady = rows.y - drift + level
    of_rows = {k: v for k, v in rows.inputs.items() if k != ORDER}
    out = {"process": process.left_out - drift + level}
    few = len(steady) <= REFITTED
    if few:
        still = tuple(t for t in process.terms if not t.in_time)
        out["process"] = refitted(still, rows, of_rows, steady, folds, seed)
    makers: dict[str, Callable[[Floats, Floats, Floats], ExtraTrees | BoostedTrees]] = {
        "extra-trees": lambda x, y, w: ExtraTrees.fit(x, y, w, seed),
        "boosted-trees": lambda x, y, w: BoostedTrees.fit(x, y, w, seed),
    }
    members: dict[str, Member] = {"process": process}
    if "ridge" in families:
        linear = tuple(t for t in arch_terms(rows.views) if t.kind == "linear")
        ridge = processes.fit(linear, of_rows, steady, known_noise=rows.known_noise, seed=seed, steps=(SEARCH,))
        members["ridge"] = ridge
        # As the process's: a left-out error of hyperparameters that saw the row would win too often.
        out["ridge"] = refitted(linear, rows, of_rows, steady, folds, seed) if few else ridge.left_out
    n = len(steady)
    fold = np.random.default_rng(seed).permutation(n) % FOLDS
    for name, make in makers.items():
        if name not in families or n < MIN_TREES:
            continue
        out[name] = np.empty(n)
        for k in range(FOLDS):
            a, b = fold != k, fold == k
            out[name][b] = make(rows.plain[a], steady[a], process.weights[a]).predict(rows.plain[b])
    trees = [name for name in makers if name in out]
    groups: list[tuple[str, ...]] = [(name,) for name in out]
    groups += [("process", name) for name in trees]
    groups += [("process", *trees)] * (len(trees) > 1)
    errors = {g: float(np.mean(np.abs(np.mean([out[m] for m in g], axis=0) - steady))) for g in groups}
    best: tuple[str, ...] = ("process",)
    for group, e in errors.items():
        if e < min(errors[best], (1 - MIN_GAIN) * errors["process",]):
            best = group
    for name in best:
        if name in makers:
            members[name] = makers[name](rows.plain, steady, process.weights)
    left_out = np.mean([out[m] for m in best], axis=0)
    own = left_out - level + drift
    return Chosen(
        process,
        {name: members[name] for name in best},
        level,
        left_out,
        own,
        {**tried, **{" + ".join(g): e for g, e in errors.items()}},
    )
