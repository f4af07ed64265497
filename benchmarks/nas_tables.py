"""What the benchmarks on published NAS-Bench-201 latencies share: the tables, families, scores and baselines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

import latbench as lb
from benchmarks.common import data_file
from latbench.arch_times import ArchTimes
from latbench.space import SearchSpace

Floats = npt.NDArray[np.float64]

#: GPUs that were measured at several batch sizes are one family each, and so are the three Xeons.
GPUS = ("1080ti", "2080ti", "titan_rtx", "titanx", "titanxp")
XEONS = ("gold_6240", "silver_4114", "silver_4210r")
#: pixel3 holds networks below this many milliseconds whose output does not depend on their input.
DEGENERATE_MS = 0.1


@dataclass(frozen=True)
class Table:
    """``archs`` (n, 6) in the order in which they were measured, and each device's milliseconds (n,) by name."""

    space: SearchSpace
    archs: npt.NDArray[np.int64]
    ms: Mapping[str, Floats]

    @property
    def order(self) -> Floats:
        """(n,) when each was measured, as a running number."""
        return np.arange(float(len(self.archs)))

    def usable(self, name: str) -> npt.NDArray[np.bool_]:
        """(n,) false where a device's value is no latency of a network that computes."""
        return np.asarray(self.ms[name] >= DEGENERATE_MS)

    def sources(self, target: str) -> dict[str, ArchTimes]:
        """All devices of other families than the target's, whole."""
        return {n: self.times(n) for n in self.ms if family(n) != family(target)}

    def times(self, name: str, rows: npt.ArrayLike | None = None) -> ArchTimes:
        """Some rows of a device, all if none are named."""
        all_of_it = ArchTimes(self.space, self.archs, self.ms[name])
        return all_of_it if rows is None else all_of_it.take(rows)


@cache
def nasbench201() -> Table:
    """The 15,625 architectures on 21 settings. Ends the program where the file is absent."""
    import pyarrow.parquet as pq

    space: Any = lb.load_space("nasbench201")
    t = pq.read_table(data_file("nasbench201_latency_ms.parquet"))
    archs = np.array([space.from_string(s) for s in t["arch_str"].to_pylist()], np.int64)
    names = [c for c in t.column_names if c not in ("arch_idx", "arch_str")]
    return Table(space, archs, {n: t[n].to_numpy().astype(np.float64) for n in names})


def phones() -> dict[str, Table]:
    """Two phones' processors by name, about 2,000 architectures each. Ends the program where the file is absent."""
    import pyarrow.parquet as pq

    space: Any = lb.load_space("nasbench201")
    t = pq.read_table(data_file("nasbench201_phones_latency_ms.parquet"))
    device = np.array(t["device"].to_pylist())
    archs = np.array([space.from_string(s) for s in t["arch_str"].to_pylist()], np.int64)
    ms = t["latency_ms"].to_numpy().astype(np.float64)
    return {str(d): Table(space, archs[device == d], {str(d): ms[device == d]}) for d in np.unique(device)}


def family(name: str) -> str:
    """What is left out with a target."""
    if name in XEONS:
        return "xeon"
    stem = name.rpartition("_")[0]
    return stem if stem in GPUS else name


def spearman(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Rank correlation."""
    from scipy.stats import spearmanr

    return float(spearmanr(a, b).statistic)


def scores(predicted: Floats, measured: Floats) -> tuple[float, float]:
    """Spearman's correlation, and the share within ± 10 %."""
    return spearman(predicted, measured), float((np.abs(predicted / measured - 1) <= 0.1).mean())


def trees(space: SearchSpace, archs: npt.NDArray[np.int64], seed: int) -> tuple[Any, Floats]:
    """A gradient-boosted regression and its columns: the two encodings."""
    from xgboost import XGBRegressor

    from latbench.predictors.encodings import encode

    x = np.concatenate([encode(space, archs, "raw"), encode(space, archs, "live")], axis=1)
    return XGBRegressor(
        n_estimators=250, max_depth=5, learning_rate=0.08, min_child_weight=10, subsample=0.7, colsample_bytree=0.5,
        n_jobs=1, tree_method="hist", random_state=seed,
    ), x  # fmt: skip


@cache
def _source_outputs(name: str) -> Floats:
    """(15,625,) logarithms that ridge regression on both encodings says of a setting's architectures."""
    from sklearn.linear_model import Ridge

    from latbench.predictors.encodings import encode

    data = nasbench201()
    x = np.concatenate([encode(data.space, data.archs, kind) for kind in ("raw", "live")], axis=1)
    z = (x - x.mean(0)) / np.maximum(x.std(axis=0), 1e-9)
    y = np.log(data.ms[name])
    return np.asarray(Ridge(10.0).fit(z, y).predict(z), np.float64)


def quick(data: Table, target: str, rows: npt.NDArray[np.int64], query: npt.NDArray[np.int64], seed: int) -> Floats:
    """The quick baseline: a Gaussian process on the logarithms of source models' outputs and on cell features."""
    outputs = np.stack([_source_outputs(name) for name in data.sources(target)], axis=1)
    x = np.concatenate([(outputs - outputs.mean(0)) / outputs.std(axis=0), _cell_features(data)], axis=1)
    return np.exp(_process(x[rows], np.log(data.ms[target][rows]), x[query], seed))


def _cell_features(data: Table) -> Floats:
    """(n, 10) how often each operation occurs, on all edges and on live ones, scaled."""
    space: Any = data.space
    both = (data.archs, np.where(space.live_edges(data.archs), data.archs, 0))
    counts = np.stack([(x == c).sum(axis=1) for x in both for c in range(5)], axis=1).astype(np.float64)
    return np.asarray((counts - counts.mean(0)) / counts.std(axis=0), np.float64)


def _process(x: Floats, y: Floats, asked: Floats, seed: int) -> Floats:
    """What a Gaussian process with a smooth and a linear part, fitted to ``y`` at ``x``, says of ``asked``."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, DotProduct, WhiteKernel

    kernel = ConstantKernel(1) * RBF(5, (1, 100)) + ConstantKernel(0.1) * DotProduct(1) + WhiteKernel(0.01, (1e-5, 1.0))
    gp = GaussianProcessRegressor(kernel, normalize_y=True, n_restarts_optimizer=1, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        gp.fit(x, y)
    return np.asarray(gp.predict(asked), np.float64)


def trees_and_ridge(
    x: Floats, y: Floats, asked: Floats, seed: int, order: tuple[Floats, Floats] | None = None
) -> Floats:
    """The mean of extra trees and ridge regression on logarithms ``y`` (n,) at ``x`` (n, d), at rows ``asked`` (m, d).

    With ``order``, the running numbers of both, out-of-fold residuals are smoothed over it and added: the mean of
    the 15 nearest rows, weighed by a triangle.
    """
    from sklearn.ensemble import ExtraTreesRegressor
    from sklearn.linear_model import Ridge

    def fitted(rows: Any, at: Floats) -> Floats:
        mean, scale = x[rows].mean(0), np.maximum(x[rows].std(axis=0), 1e-9)
        forest = ExtraTreesRegressor(100, min_samples_leaf=2, random_state=seed, n_jobs=1).fit(x[rows], y[rows])
        ridge = Ridge(1.0).fit((x[rows] - mean) / scale, y[rows])
        return np.asarray((forest.predict(at) + ridge.predict((at - mean) / scale)) / 2, np.float64)

    out = fitted(np.arange(len(y)), asked)
    if order is None:
        return out
    fold = np.random.default_rng(seed).permutation(len(y)) % 5
    left = np.empty(len(y))
    for k in range(5):
        left[fold == k] = y[fold == k] - fitted(np.flatnonzero(fold != k), x[fold == k])
    apart = np.abs(order[1][:, None] - order[0])
    near = np.argpartition(apart, 15, axis=1)[:, :15]
    away = np.take_along_axis(apart, near, axis=1)
    weights = 1 - away / (away.max(axis=1, keepdims=True) + 1)
    return np.asarray(out + (weights * left[near]).sum(axis=1) / weights.sum(axis=1))


def alone(data: Table, target: str, rows: npt.NDArray[np.int64], query: npt.NDArray[np.int64], seed: int) -> Floats:
    """A Gaussian process on how often each operation occurs, on all edges and on live ones, in milliseconds: the best
    fit to a target's own networks alone among those that were tried (also: in logarithms, ridge, paths and MACs)."""
    z, y = _cell_features(data), data.ms[target]
    return np.asarray(np.maximum(_process(z[rows], y[rows], z[query], seed), 0.05 * y[rows].min()), np.float64)
