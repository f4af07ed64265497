"""Peak memory of networks: weights, the largest set of tensors that are in use at once, and what the runtime adds.

A peak is no sum over Ops. What runs decides when a tensor comes and goes, so the activations are walked in the order of
the network's nodes (:mod:`latbench.liveness`). The order and the fusions of the Setting's own schedule were tried in
its place: on 48 measured networks of NAS-Bench-201, where alone they differ, errors were larger in three forms of four
and 4.9 % instead of 5.1 % in the last, for a plan of each network (some 0.1 s). Weights are held all the time; a
runtime's arena rounds up, packs weights anew and keeps something for every node. ``peak = overhead + a × weights + b ×
activations + c × nodes + d × dense weights``, none of them below 0, is calibrated on measured networks by relative
least squares with weak priors (a and b near 1, the others near 0). Leave-one-out cross-validation chooses how many of
these are told apart; the intervals are jackknife+.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from latbench.card import Card
from latbench.conformal import Conformal
from latbench.errors import ConfigError, FileFormatError, NotEnoughDataError, UnsupportedOpError
from latbench.liveness import block_peak, peak
from latbench.network import Network
from latbench.op import Op
from latbench.predictor import FitData, Predictor
from latbench.predictors import files
from latbench.predictors.additive import FAR, MIN_GAIN, MIN_NETWORKS
from latbench.predictors.features import kernel_kind
from latbench.space import SearchSpace
from latbench.uncertainty import require
from latbench.visit import ArchEstimates, Estimate, Interval, Part

Floats = npt.NDArray[np.float64]

METRIC = "peak_memory_bytes"
#: What a network is described by, beside the constant. Dense weights are those of convolutions over all channels that
#: are larger than 1 × 1: runtimes keep more of them, in the form that their kernels read.
AMOUNTS = ("weights", "activations", "nodes", "dense_weights")
#: Forms, the plainest first: each row of a matrix adds up the amounts that share one coefficient.
FORMS: dict[str, tuple[tuple[int, ...], ...]] = {
    "weights and activations together": ((0, 1),),
    "weights and activations": ((0,), (1,)),
    "weights, activations and nodes": ((0,), (1,), (2,)),
    "weights, activations, nodes and dense weights": ((0,), (1,), (2,), (3,)),
}
#: Relative error that the priors are weighed against, and their deviations: of a coefficient of bytes around 1, of the
#: overhead and of all nodes together around 0 in units of the median peak.
_NOISE, _BYTES_SPREAD, _OVERHEAD_SPREAD = 0.02, 1.0, 1.0
#: Architectures whose networks are built, to see that the chain of blocks tells the same.
_PROBES = 8
#: Tensors at the peak that the breakdown names.
_NAMED = 8


class Memory(Predictor):
    """``coefficients`` (5,): overhead in bytes, and bytes a byte of weights, a byte of activations, a node, and once
    more a byte of dense weights."""

    name = "memory"
    metrics = (METRIC,)

    def __init__(
        self, card: Card, coefficients: npt.ArrayLike, conformal: Conformal, ranges: npt.ArrayLike,
        unsupported: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.card = card
        self.coefficients = np.asarray(coefficients, np.float64)
        self._conformal = conformal
        #: Smallest and largest amounts of the calibration networks (2, 4).
        self._ranges = np.asarray(ranges, np.float64)
        self.unsupported = dict(unsupported or {})
        self._cache: dict[str, Any] = {}

    @classmethod
    def fit(cls, data: FitData, *, level: float = 0.9, seed: int = 0, **options: Any) -> Self:
        """Calibrate on measured networks; nothing in it is random, and Ops are not asked for.

        Raises :class:`NotEnoughDataError` for fewer than :data:`~latbench.predictors.additive.MIN_NETWORKS` networks.
        """
        if options:
            raise ConfigError(f"memory has no option {', '.join(options)}")
        card = data.card.replace(metric=METRIC, predictor=cls.name)
        n = len(data.calibration)
        if n < MIN_NETWORKS:
            raise NotEnoughDataError(
                f"{n} networks whose {METRIC} was measured for calibration; at least {MIN_NETWORKS} are needed; "
                f"measure them: {card.profile_command}"
            )
        x = np.array([amounts(m.net) for m in data.calibration])
        y = np.array([m.measurement.metrics[METRIC].value for m in data.calibration])
        tried, left_out = {}, {}
        for form in FORMS:
            fits = [_fit(np.delete(x, i, 0), np.delete(y, i), form) for i in range(n)]
            left_out[form] = np.stack([_peaks(f, x) for f in fits])
            tried[form] = float(np.sqrt(np.mean((np.diagonal(left_out[form]) / y - 1) ** 2)))
        best = next(iter(FORMS))
        for form, rmspe in tried.items():
            if rmspe < (1 - MIN_GAIN) * tried[best]:
                best = form
        coefficients = _fit(x, y, best)
        conformal = Conformal.from_fits(y, left_out[best], _peaks(coefficients, x))
        model = {
            "form": best, "networks": n, "cv_rmspe": tried[best], "tried": tried,
            "overhead_bytes": float(coefficients[0]),
            **{f"bytes_per_{a}": float(c) for a, c in zip(_SINGULAR, coefficients[1:], strict=True)},
        }  # fmt: skip
        card = card.replace(model={METRIC: model}, intervals=conformal.describe(level))
        ranges = np.stack([x.min(0), x.max(0)])
        return cls(card, coefficients, conformal, ranges, dict(data.unsupported))

    # -- asking it ----------------------------------------------------------------------------------------------

    def predict(self, net: Network, *, level: float = 0.9, max_uncertainty: float | None = None) -> Estimate:
        """Peak memory of a network above the runtime's own; the breakdown is what is held at the peak.

        Raises :class:`UnsupportedOpError`, :class:`ConfigError` for a network without nodes, :class:`UncertainError`.
        """
        low, high = self._conformal.factors(level)
        if not net.nodes:
            raise ConfigError(f"{net.name}: a network without nodes holds nothing")
        for op, name in [*((b.op, b.name) for b in net.blocks), *((n.op, n.name) for n in net.nodes)]:
            if op.key in self.unsupported:
                raise UnsupportedOpError(name, self.unsupported[op.key])
        x, at = amounts(net), peak(net)
        overhead, of_weights, of_tensors, of_nodes, of_dense = self.coefficients.tolist()
        weights = of_weights * x[0] + of_dense * x[3]
        parts = [Part("weights", "weights", len(net.nodes), weights, "weights", (), METRIC)]
        for name, nbytes in at.tensors[:_NAMED]:
            label = f"{name}, in use while {at.node} runs"
            parts.append(Part(name, label, 1, of_tensors * nbytes, "tensor", (), METRIC))
        if rest := at.tensors[_NAMED:]:
            size = of_tensors * sum(nbytes for _, nbytes in rest)
            parts.append(Part("tensors", "further tensors", len(rest), size, "tensor", (), METRIC))
        nodes = tuple(n.name for n in net.nodes)
        held = overhead + of_nodes * x[2]
        parts.append(Part("overhead", "the runtime's own for this network", 1, held, "overhead", nodes, METRIC))
        value = float(sum(p.value for p in parts))
        metrics = {METRIC: Interval(value, value * low, value * high)}
        warnings = (*self._warnings(x), *self._conformal.warnings(level))
        estimate = Estimate(
            self.setting, metrics, tuple(parts), level, warnings, "", METRIC, self._conformal.attainable
        )
        return require(estimate, max_uncertainty, self.card)

    def predict_archs(self, space: SearchSpace, archs: npt.ArrayLike, *, level: float = 0.9) -> ArchEstimates:
        """Bytes of an (n, positions) integer array of architectures.

        Where blocks follow one another in a chain, all are looked up; else each network is built once (some
        milliseconds) and kept. Raises :class:`ArchitectureError`.
        """
        low, high = self._conformal.factors(level)
        a = space.validate_archs(archs)
        value = _peaks(self.coefficients, self._amounts(space, a)) if len(a) else np.empty(0)
        refused = self._refused(space, a)
        value = np.where(refused, np.nan, value)
        return ArchEstimates(value, value * low, value * high, ~refused, METRIC)

    def _refused(self, space: SearchSpace, archs: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        if not self.unsupported or not len(archs):
            return np.zeros(len(archs), bool)
        keys, counts = space.usage(archs)
        return np.asarray(counts @ np.array([k in self.unsupported for k in keys], float) > 0)

    def _amounts(self, space: SearchSpace, archs: npt.NDArray[np.int64]) -> Floats:
        """(n, 4): :data:`AMOUNTS` of architectures."""
        spec = json.dumps(space.spec, sort_keys=True, default=str)
        if spec not in self._cache:
            self._cache[spec] = _chain(space) or {}
        known = self._cache[spec]
        if isinstance(known, _Chain):
            return known(archs)
        rows = []
        for arch in map(tuple, archs.tolist()):
            if arch not in known:
                known[arch] = amounts(space.network(arch))
            rows.append(known[arch])
        return np.array(rows).reshape(-1, len(AMOUNTS))

    def _warnings(self, x: Sequence[float]) -> tuple[str, ...]:
        low, high = self._ranges
        return tuple(
            f"extrapolated: the network's {name} are {v:.4g}{_UNITS[i]}, calibrated on {low[i]:.4g} to {high[i]:.4g}"
            for i, (name, v) in enumerate(zip(AMOUNTS, x, strict=True))
            if self.coefficients[i + 1] > 0 and not low[i] / FAR <= v <= high[i] * FAR
        )

    # -- files --------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Write ``card.json``, ``memory.json`` and ``memory.npz`` into a folder."""
        arrays = {"coefficients": self.coefficients, "ranges": self._ranges, **self._conformal.to_arrays()}
        content = {"memory.npz": files.npz(**arrays), "memory.json": files.as_json({"unsupported": self.unsupported})}
        folder, _ = files.write_folder(path, self.card, content)
        return folder

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what :meth:`save` wrote. Raises :class:`FileFormatError`."""
        folder = files.read_folder(path, cls.name)
        arrays, d = folder.arrays("memory.npz"), folder.json("memory.json")
        try:
            c, ranges = arrays["coefficients"], arrays["ranges"]
            if c.shape != (1 + len(AMOUNTS),) or ranges.shape != (2, len(AMOUNTS)):
                raise ValueError(f"shapes {c.shape} and {ranges.shape}")
            if not (np.isfinite(c).all() and (c >= 0).all() and np.isfinite(ranges).all()):
                raise ValueError("coefficients and ranges are numbers, and no coefficient is below 0")
            return cls(folder.card, c, Conformal.from_arrays(arrays), ranges, dict(d["unsupported"]))
        except (KeyError, TypeError, ValueError) as e:
            raise FileFormatError(f"{folder.path}: not a memory predictor: {e!r}") from e


_UNITS = (" B", " B", "", " B")
_SINGULAR = ("byte_of_weights", "byte_of_activations", "node", "byte_of_dense_weights")


def amounts(net: Network) -> tuple[float, float, float, float]:
    """:data:`AMOUNTS` of a network: bytes of weights, largest bytes of tensors in use at once, nodes, bytes of dense
    weights."""
    weights, nodes, dense = np.sum([_held(op) for op in net.primitives], axis=0).tolist() if net.nodes else (0, 0, 0)
    return float(weights), float(peak(net).bytes), float(nodes), float(dense)


def _held(op: Op) -> tuple[int, int, int]:
    """Bytes of weights, nodes, and bytes of dense weights of an Op."""
    dense = sum(p.weight_bytes for p in op.primitives if kernel_kind(p) == "conv dense")
    return op.weight_bytes, len(op.primitives), dense


class _Chain:
    """Amounts of the architectures of a space whose blocks follow one another: sums, and the largest of the peaks."""

    def __init__(self, space: SearchSpace) -> None:
        keys, table, fixed = space.op_table
        ops = [Op.parse(k) for k in keys]
        each = np.array([(*_held(op), block_peak(op)) for op in ops], float)
        shape = (space.positions, max(space.num_choices))
        self._sums = np.zeros((*shape, 3))
        self._peaks = np.zeros(shape)
        for i, choices in enumerate(table):
            for c, used in enumerate(choices):
                self._sums[i, c] = each[used][:, :3].sum(axis=0)
                self._peaks[i, c] = each[used][:, 3].max(initial=0.0)
        self._fixed = each[fixed][:, :3].sum(axis=0)
        self._fixed_peak = float(each[fixed][:, 3].max(initial=0.0))

    def __call__(self, archs: npt.NDArray[np.int64]) -> Floats:
        at = np.arange(archs.shape[1])
        sums = self._sums[at, archs].sum(axis=1) + self._fixed
        peaks = np.maximum(self._peaks[at, archs].max(axis=1), self._fixed_peak)
        return np.stack([sums[:, 0], peaks, sums[:, 1], sums[:, 2]], axis=1)


def _chain(space: SearchSpace) -> _Chain | None:
    """The space as a chain of blocks; None where networks that are built whole say something else."""
    if not space.additive:
        return None
    chain, probes = _Chain(space), space.sample_archs(_PROBES, seed=0)
    whole = np.array([amounts(space.network(tuple(a))) for a in probes.tolist()])
    return chain if np.allclose(chain(probes), whole, rtol=1e-9) else None


def _peaks(coefficients: Floats, x: Floats) -> Floats:
    return np.asarray(coefficients[0] + x @ coefficients[1:], np.float64)


def _fit(x: Floats, y: Floats, form: str) -> Floats:
    """(5,) coefficients ≥ 0 from amounts (n, 4) and peaks (n,)."""
    from scipy.optimize import nnls

    groups = FORMS[form]
    unit = float(np.median(y))
    columns = [np.full(len(y), unit), *(x[:, list(g)].sum(axis=1) for g in groups)]
    design = np.stack(columns, axis=1) / y[:, None]
    # The prior's rows: overhead, nodes and what dense weights cost beyond others around 0, bytes around 1.
    is_nodes = np.array([False, *(g == (2,) for g in groups)])
    scale = np.ones(len(columns))
    if is_nodes.any():
        scale[is_nodes] = unit / max(float(np.median(x[:, 2])), 1.0)
        design[:, is_nodes] *= scale[is_nodes]
    spread = np.where(np.arange(len(columns)) == 0, _OVERHEAD_SPREAD, _BYTES_SPREAD)
    centre = np.array([0.0, *(0.0 if g in ((2,), (3,)) else 1.0 for g in groups)])
    prior = _NOISE / spread
    a = np.vstack([design, np.diag(prior)])
    beta, _ = nnls(a, np.concatenate([np.ones(len(y)), prior * centre]))
    beta = beta * scale
    out = np.zeros(1 + len(AMOUNTS))
    out[0] = beta[0] * unit
    for g, value in zip(groups, beta[1:], strict=True):
        out[[1 + i for i in g]] = value
    return out
