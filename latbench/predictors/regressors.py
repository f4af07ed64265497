"""Regressors of one kernel kind: features of an Op → the logarithm of its latency.

Measured Ops of one kind are few, often a few dozen, so simple models come first: a sum of non-negative costs per MAC
and per byte, and a log-linear model (ridge). On these stands, where cross-validation asks for it,
a Gaussian process (:mod:`latbench.predictors.gaussian`) or gradient-boosted trees on what one of them leaves.
:func:`fit_kind` chooses by the mean error of k-fold cross-validation and returns out-of-fold predictions with the
model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from latbench.errors import FileFormatError
from latbench.predictors import gaussian
from latbench.predictors.features import NAMES

Floats = npt.NDArray[np.float64]

FOLDS = 5
#: The residual model with a length scale a feature.
GP = "gp ard"
#: A more complex model must lower the cross-validated error by this share, and by this much.
MIN_GAIN, MIN_DROP = 0.03, 0.002
#: Fewest Ops for a residual model, and for trees.
MIN_RESIDUAL, MIN_TREES = 8, 24
#: Relative error that Ops have anyway: what is known better than that does not count more.
USUAL_ERROR = 0.05
_COSTS = ("log_macs", "log_weight_bytes", "log_input_bytes", "log_output_bytes")


@dataclass(frozen=True)
class KindModel:
    """A fitted regressor. ``base`` is "costs" or "log-linear", ``residual`` "", "gp ard" or "xgb"; in files of earlier
    versions also "gp" (one length scale) or "xgb monotone".

    ``arrays`` and ``booster`` (an XGBoost model in UBJ form) hold all that was fitted. Raises
    :class:`FileFormatError` if ``booster`` is none.
    """

    base: str
    residual: str
    arrays: Mapping[str, Floats]
    booster: bytes = b""
    _trees: Any = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.residual.startswith("xgb"):
            object.__setattr__(self, "_trees", _load_trees(self.booster))

    @property
    def form(self) -> str:
        """Its name for people."""
        return f"{self.base} + {self.residual}" if self.residual else self.base

    def predict(self, x: Floats) -> Floats:
        """(n,) logarithms of milliseconds for features (n, len(NAMES)); one fitted to fewer columns reads the first.

        What is said of an Op does not depend on which others are asked for with it, to the last bit: a matrix product
        would sum up in another order for another number of rows.
        """
        a = self.arrays
        x = x[:, : len(a["mean"])]
        y = _costs_log(x, a["costs"]) if self.base == "costs" else _ridge_predict(x, a)
        if self.residual == GP:
            z = _scaled(x, a)[:, a["gp_columns"].astype(int)]
            return np.asarray(y + gaussian.means(z, a["gp_x"], a["gp_lengths"], a["gp_alpha"]))
        if self.residual == "gp":
            length = float(a["gp_length"])
            rows = (_kernel(row[None], a["gp_x"], length) @ a["gp_alpha"] for row in _scaled(x, a))
            return np.asarray(y + np.array([v for (v,) in rows]))
        if self.residual:
            trees = self._trees.inplace_predict(x, validate_features=False)
            return np.asarray(trees if self.residual == "xgb monotone" else y + trees, np.float64)
        return y


@dataclass(frozen=True)
class KindFit:
    """A model, its out-of-fold predictions (n,) in log milliseconds, and the cross-validated RMS log error by form.

    ``usual_error`` is the deviation of the model's out-of-fold log errors, whatever a few Ops were disturbed by; 0 for
    a model that was not cross-validated.
    """

    model: KindModel
    out_of_fold: Floats
    tried: Mapping[str, float]
    usual_error: float = 0.0

    @property
    def error(self) -> float:
        """RMS log error of the chosen form: about its relative error."""
        return self.tried[self.model.form]


def fit_kind(x: Floats, ms: Floats, seed: int = 0, *, errors: Floats | None = None, simple: bool = False) -> KindFit:
    """Choose and fit a regressor for n Ops of one kind: features (n, len(NAMES)), latencies (n,) in milliseconds.

    ``errors`` (n,) are relative standard errors of the latencies: what is known less well counts less, in fits and in
    errors. ``simple`` allows costs per MAC and byte only, the form that extrapolates.
    """
    y = np.log(ms)
    n = len(y)
    own = np.zeros(n) if errors is None else np.square(errors)
    trust = _trust(own)
    fold = np.random.default_rng(seed).permutation(n) % min(FOLDS, max(n, 1))
    tried: dict[str, float] = {}
    held: dict[str, Floats] = {}
    hypers: dict[str, gaussian.Hyper | None] = {}

    def score(base: str, residual: str) -> float:
        name = f"{base} + {residual}" if residual else base
        out = np.empty(n)
        # The few numbers that say which features matter are those of all Ops; all else is fitted without the fold.
        hyper = _hyper(x, y, own, base, seed) if residual == GP else None
        for k in range(fold.max() + 1):
            test = fold == k
            model = _fit(x[~test], y[~test], own[~test], base, residual, seed, hyper) if test.sum() < n else None
            out[test] = model.predict(x[test]) if model else y.mean()
        held[name], hypers[name] = out, hyper
        tried[name] = float(np.sqrt(np.average((out - y) ** 2, weights=trust)))
        # A few Ops that something disturbed while they were measured must not choose.
        return float(np.average(np.abs(out - y), weights=trust))

    bases = ("costs",) if simple else ("costs", "log-linear")
    simplest = {b: score(b, "") for b in bases}
    base = min(bases, key=simplest.__getitem__)
    best, chosen = simplest[base], (base, "")
    candidates = [(b, GP) for b in bases] * (n >= MIN_RESIDUAL) + [(base, "xgb")] * (n >= MIN_TREES)
    # What is left over of a simple form that is as good as the measurements is noise.
    for candidate in candidates if not simple and best > MIN_DROP else []:
        error = score(*candidate)
        if error < min((1 - MIN_GAIN) * best, best - MIN_DROP):
            best, chosen = error, candidate
    name = " + ".join(filter(None, chosen))
    usual = 1.4826 * float(np.median(np.abs(held[name] - y)))
    return KindFit(_fit(x, y, own, *chosen, seed, hypers[name]), held[name], tried, usual)


def refit(model: KindModel, x: Floats, ms: Floats, seed: int = 0) -> KindModel:
    """A model of the same form, fitted to other Ops."""
    hyper = None
    if model.residual == GP:
        a = model.arrays
        lengths = np.full(x.shape[1], np.inf)
        lengths[a["gp_columns"].astype(int)] = a["gp_lengths"]
        hyper = gaussian.Hyper(lengths, float(a["gp_variance"]), float(a["gp_noise"]))
    return _fit(x, np.log(ms), np.zeros(len(ms)), model.base, model.residual, seed, hyper)


def _trust(own: Floats) -> Floats:
    """(n,) weights in squares of errors, mean 1, of Ops with these variances of their own."""
    trust = 1 / (USUAL_ERROR**2 + own)
    return np.asarray(trust / trust.mean())


def _base(x: Floats, y: Floats, trust: Floats, base: str) -> tuple[dict[str, Floats], Floats]:
    """A simple form's arrays, and what it leaves (n,)."""
    if base == "costs":
        arrays = {"costs": _fit_costs(x, y, trust), **_scaling(x)}
        return arrays, y - _costs_log(x, arrays["costs"])
    arrays = _fit_ridge(x, y, trust)
    return arrays, y - _ridge_predict(x, arrays)


def _hyper(x: Floats, y: Floats, own: Floats, base: str, seed: int) -> gaussian.Hyper:
    """Hyper-parameters of a Gaussian process on what a simple form leaves; infinite lengths for what never varies."""
    arrays, rest = _base(x, y, _trust(own), base)
    varies = np.isfinite(arrays["spread"])
    found = gaussian.fit_hyper(_scaled(x, arrays)[:, varies], rest, own, seed)
    lengths = np.full(x.shape[1], np.inf)
    lengths[varies] = found.lengths
    return gaussian.Hyper(lengths, found.variance, found.noise)


def _fit(
    x: Floats, y: Floats, own: Floats, base: str, residual: str, seed: int, hyper: gaussian.Hyper | None = None
) -> KindModel:
    """``own`` (n,) are variances of the logarithms ``y``."""
    arrays, rest = _base(x, y, _trust(own), base)
    if residual == GP:
        hyper = hyper or _hyper(x, y, own, base, seed)
        columns = np.flatnonzero(np.isfinite(hyper.lengths) & np.isfinite(arrays["spread"]))
        known = gaussian.Hyper(hyper.lengths[columns], hyper.variance, hyper.noise)
        part = np.random.default_rng(seed).permutation(len(x))[: gaussian.MOST_ROWS]
        z, rest = _scaled(x, arrays)[part][:, columns], rest[part]
        arrays |= {
            "gp_columns": columns.astype(np.float64), "gp_x": z, "gp_lengths": known.lengths,
            "gp_alpha": gaussian.weights(z, rest, own[part], known), "gp_variance": np.array(hyper.variance),
            "gp_noise": np.array(hyper.noise),
        }  # fmt: skip
    booster = _fit_trees(x, rest, _trust(own), seed) if residual == "xgb" else b""
    return KindModel(base, residual, arrays, booster)


def _dots(x: Floats, weights: Floats) -> Floats:
    """``x @ weights``, each row summed up by itself."""
    return np.asarray((np.ascontiguousarray(x) * weights).sum(axis=1))


# -- a constant and non-negative costs per MAC and byte --------------------------------------------------------------


def _cost_columns(x: Floats) -> Floats:
    amounts = np.exp(x[:, [NAMES.index(c) for c in _COSTS]])
    # log 1 stands for nothing at all.
    return np.concatenate([np.ones((len(x), 1)), np.where(amounts > 1, amounts, 0.0)], axis=1)


def _fit_costs(x: Floats, y: Floats, trust: Floats) -> Floats:
    from scipy.optimize import nnls

    root = np.sqrt(trust)
    design = _cost_columns(x) * (root / np.exp(y))[:, None]
    scale = np.maximum(design.max(axis=0), 1e-300)
    return np.asarray(nnls(design / scale, root)[0] / scale)


def _costs_log(x: Floats, costs: Floats) -> Floats:
    return np.log(np.maximum(_dots(_cost_columns(x), costs), 1e-9))


# -- log-linear -----------------------------------------------------------------------------------------------------


def _scaling(x: Floats) -> dict[str, Floats]:
    spread = x.std(axis=0)
    return {"mean": x.mean(axis=0), "spread": np.where(spread > 1e-9, spread, np.inf)}


def _scaled(x: Floats, a: Mapping[str, Floats]) -> Floats:
    # Features that never varied have infinite spread and drop out.
    return np.asarray((x - a["mean"]) / a["spread"])


def _fit_ridge(x: Floats, y: Floats, trust: Floats) -> dict[str, Floats]:
    """Ridge on standardised features; the penalty is the one of least closed-form leave-one-out error."""
    a, root = _scaling(x), np.sqrt(trust)
    share = trust / trust.sum()
    a["mean"], centre = share @ x, float(share @ y)
    z, y = root[:, None] * _scaled(x, a), root * (y - centre)
    u, s, vt = np.linalg.svd(z, full_matrices=False)
    best: tuple[float, Floats] = (np.inf, np.zeros(z.shape[1]))
    for penalty in np.geomspace(1e-4, 1e2, 13) * max(len(y), 1):
        shrink = s**2 / (s**2 + penalty)
        hat = (u**2) @ shrink + share
        rest = (y - u @ (shrink * (u.T @ y))) / np.maximum(1 - hat, 1e-6)
        error = float(np.mean(rest**2))
        if error < best[0]:
            best = error, vt.T @ (s / (s**2 + penalty) * (u.T @ y))
    return {**a, "coefficients": best[1], "intercept": np.array(centre)}


def _ridge_predict(x: Floats, a: Mapping[str, Floats]) -> Floats:
    return np.asarray(_dots(_scaled(x, a), a["coefficients"]) + a["intercept"])


# -- Gaussian process with one length scale, of files of earlier versions ---------------------------------------------


def _kernel(a: Floats, b: Floats, length: float) -> Floats:
    """Matérn 3/2 with unit variance."""
    d2 = (a**2).sum(-1)[..., None] + (b**2).sum(1) - 2 * a @ b.T
    d = np.sqrt(np.maximum(d2, 0.0)) * (np.sqrt(3) / length)
    return np.asarray((1 + d) * np.exp(-d))


# -- trees ----------------------------------------------------------------------------------------------------------


def _fit_trees(x: Floats, y: Floats, trust: Floats, seed: int) -> bytes:
    import xgboost

    params: dict[str, Any] = {
        "max_depth": 4, "eta": 0.1, "subsample": 0.8, "colsample_bytree": 0.8, "min_child_weight": 2, "lambda": 1.0,
        "nthread": 1, "seed": seed, "verbosity": 0, "base_score": float(y.mean()),
    }  # fmt: skip
    booster = xgboost.train(params, xgboost.DMatrix(x, y, weight=trust, nthread=1), num_boost_round=120)
    return bytes(booster.save_raw("ubj"))


def _load_trees(data: bytes) -> Any:
    import xgboost

    if not data:  # xgboost would end the process
        raise FileFormatError("not an XGBoost model in UBJ form: it is empty")
    booster = xgboost.Booster({"nthread": 1})
    try:
        booster.load_model(bytearray(data))
    except xgboost.core.XGBoostError as e:
        raise FileFormatError(f"not an XGBoost model in UBJ form: {str(e).splitlines()[0]}") from e
    return booster
