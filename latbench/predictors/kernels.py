"""Latency of networks never seen, from regressors per kernel kind: units (or blocks) of known kind and any shape.

A network is split into the units of its Setting. A unit that was measured costs what was measured; another one is
estimated from its shape by the regressor of its kind (:mod:`latbench.predictors.regressors`). Overhead and scale come
from measured networks as in the table. A unit of a kind that was never measured is an error that names it, or, where
the caller asks, an estimate from its work alone with a wider interval. Units outside the shapes that were measured are
flagged, and widen the interval by their distance (:mod:`latbench.predictors.extrapolation`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from latbench.card import Card
from latbench.conformal import Conformal
from latbench.errors import ConfigError, NotAdditiveError, NotEnoughDataError, UnknownOpError, UnsupportedOpError
from latbench.metric import LATENCY, METRICS
from latbench.network import Network
from latbench.op import Op
from latbench.predictor import FitData, Predictor
from latbench.predictors import plans
from latbench.predictors.additive import (
    FEW,
    MIN_NETWORKS,
    Calibration,
    group,
    megabytes,
    plain_sum,
    tensor_megabytes,
)
from latbench.predictors.entries import Entry
from latbench.predictors.extrapolation import Ranges, growths
from latbench.predictors.features import features, kernel_kind
from latbench.predictors.gather import Costs, estimate_archs, sum_archs
from latbench.predictors.kernel_costs import Cost, Origin, Shares, warnings_of
from latbench.predictors.kernel_files import Saved
from latbench.predictors.kernel_fits import (
    ANY,
    FEW_OPS,
    MIN_OPS,
    describe,
    fit_kinds,
    hardware,
    smoothed,
    unknown_spread,
)
from latbench.predictors.nearest import how_to_measure
from latbench.predictors.nearest import unknown as unknown_op
from latbench.predictors.regressors import KindModel
from latbench.predictors.whole_network import WHOLE, Effects, calibrate_whole
from latbench.space import SearchSpace
from latbench.statistics import widened_factors
from latbench.uncertainty import require
from latbench.visit import ArchEstimates, Estimate, Interval, Part

Floats = npt.NDArray[np.float64]

#: Fewest measured units to build on units rather than on blocks.
MIN_UNITS = 12
#: No Op is estimated to take less than this share of what the fastest hundredth of the measured ones take.
_LEAST_SHARE = 0.5
#: Widened intervals are computed at multiples of this relative error and interpolated: each takes a sort.
_STEP = 1 / 128
#: Architectures whose interval factors are computed at once.
_CHUNK = 65_536


class Kernels(Predictor):
    """Regressors per kernel kind, calibrated on measured networks.

    ``op_level`` is "unit", or "block" where only blocks were measured; ``entries`` are the measured Ops, ``models``
    maps kinds to regressors, ``errors`` kinds to their cross-validated RMS log error, ``growth`` kinds to the log error
    per log unit of distance outside the measured shapes, ``smooth`` Op keys to their values with noise taken off.
    """

    name = "kernels"
    metrics = (LATENCY, "sum")

    def __init__(
        self,
        card: Card,
        op_level: str,
        entries: Mapping[str, Entry],
        models: Mapping[str, KindModel],
        errors: Mapping[str, float],
        calibration: Calibration,
        conformals: Mapping[str, Conformal],
        unknown_spread: float,
        growth: Mapping[str, float],
        effects: Effects | None = None,
        smooth: Mapping[str, float] | None = None,
    ) -> None:
        self.card = card
        self.op_level, self.entries, self.models = op_level, dict(entries), dict(models)
        self.errors, self.calibration, self.effects = dict(errors), calibration, effects or Effects()
        self._conformals, self._unknown_spread = dict(conformals), unknown_spread
        self._growth, self._ranges = dict(growth), Ranges(self.entries.values())
        self._smooth = dict(smooth or {})
        measured_ms = [e.value for e in self.entries.values() if e.supported]
        #: No estimate is below this: starting a kernel takes time, however little it does.
        self._least_ms = _LEAST_SHARE * float(np.quantile(measured_ms, 0.01)) if measured_ms else 0.0
        self._known: dict[str, Cost] = {
            k: Cost(self._smooth.get(k, e.value), "measured") for k, e in self.entries.items() if e.supported
        }
        self._blocks: dict[str, list[tuple[Op, int]]] = {}
        self._cache: dict[str, Any] = {}
        self._load_caches: list[dict[str, Any]] = [{}, {}, {}]
        self._share_caches: list[dict[str, Any]] = [{} for _ in Shares.COLUMNS]
        self._ends: dict[tuple[str, float, int], tuple[float, float]] = {}

    # -- making one ---------------------------------------------------------------------------------------------

    @classmethod
    def fit(cls, data: FitData, *, level: float = 0.9, seed: int = 0, **options: Any) -> Self:
        """Fit to Measurements of units, or of blocks where there are fewer than :data:`MIN_UNITS` units and every
        network is made of blocks.

        Raises :class:`NotEnoughDataError`.
        """
        if options:
            raise ConfigError(f"kernels has no option {', '.join(options)}")
        entries = {k: Entry.of(k, m) for k, m in data.ops.items()}
        units = {k: e for k, e in entries.items() if e.op.level != "block"}
        # Of networks that are not made of blocks only the units say anything, however few they are.
        files = data.card.space is None and any(not n.net.blocks for n in data.calibration)
        op_level = "unit" if len(units) >= MIN_UNITS or len(units) == len(entries) or (units and files) else "block"
        entries = units if op_level == "unit" else {k: e for k, e in entries.items() if e.op.level == "block"}
        by_space = " --level unit" if op_level == "unit" and data.card.space else ""
        need = f"measure them: {data.card.profile_command}{by_space}"
        if len(entries) < MIN_OPS:
            raise NotEnoughDataError(f"{len(entries)} measured Ops; at least {MIN_OPS} of a kind are needed; {need}")
        fits, held_out = fit_kinds(list(entries.values()), data.card.device, seed)
        spread = unknown_spread(list(entries.values()), data.card.device, fits, seed)
        growth = growths(list(entries.values()), data.card.device, fits, seed)
        measured = list(entries.values())
        lacking = {k: rule for k, rule in data.unsupported.items() if k not in data.ops}
        entries |= {k: Entry(Op.parse(k), {}, 0, rule or "unsupported", data.metric) for k, rule in lacking.items()}
        made = cls(
            data.card, op_level, entries, {k: f.model for k, f in fits.items()},
            {k: f.error for k, f in fits.items() if f.tried and len(f.out_of_fold) >= FEW_OPS},
            Calibration(), {}, spread, growth, None, smoothed(measured, fits, held_out),
        )  # fmt: skip
        y, sums, estimated, groups, work, ops, notes = made._sums(data, held_out)
        # A space gives as many networks as are asked for; of files there may be no more.
        least = MIN_NETWORKS if data.card.space else 1
        if len(y) < least:
            raise NotEnoughDataError(
                f"{len(y)} usable calibration networks of {len(data.calibration)}; at least {least} "
                f"{'are' if least > 1 else 'is'} needed; " + need + "".join(f"\n  {n}" for n in notes[:3])
            )
        if len(y) < MIN_NETWORKS:
            of_ops = [(i.high - i.low) / 2 / i.value for i in (e.interval for e in measured)]
            out_of_fold = [held_out[e.op.key] / e.value - 1 for e in measured if e.op.key in held_out]
            worst = float(np.sqrt(np.mean(np.square(out_of_fold)))) if out_of_fold else spread
            fitted = plain_sum(sums, y, float(np.mean(of_ops)), estimated, worst)
            notes = [f"{FEW} ({len(y)} did); measure more: {data.card.profile_command}", *notes]
        else:
            # A few that hardly do anything must not forbid a price of Ops: none is taken to cost less than nothing.
            fastest = float(np.quantile([e.value for e in measured], 0.01))
            whole = calibrate_whole(sums, y, groups, work, ops, least_ms=fastest, estimated=estimated)
            fitted, made.effects = whole.fit, whole.effects
        made.calibration = replace(fitted.calibration, unit=METRICS[data.metric].unit)
        made._conformals = {"measured": fitted.conformal, "estimated": fitted.estimated or fitted.conformal}
        off = made._conformals["estimated"].residuals
        model = {
            "op_level": op_level, "unknown_spread": spread,
            op_level: {
                **made.calibration.to_json(), **made.effects.to_json(), "networks": fitted.networks,
                "cv_rmspe": fitted.rmspe,
                "tried": dict(fitted.tried), "estimated_rmspe": float(np.sqrt(np.mean(off**2))),
            },
            "kinds": {k: {**describe(k, f, entries), "error_per_log_distance": growth[k]} for k, f in fits.items()},
        }  # fmt: skip
        intervals = {
            **fitted.conformal.describe(level),
            "estimated": made._conformals["estimated"].describe(level),
        }
        return made.with_card(
            data.card.replace(predictor=cls.name, model=model, intervals=intervals, notes=(*data.card.notes, *notes))
        )

    def _sums(
        self, data: FitData, held_out: Mapping[str, float]
    ) -> tuple[Floats, Floats, Floats, list[str], Floats, list[Counter[Op]], list[str]]:
        """Measured latencies (n,), sums of Op latencies by group (n, G), the same sums of out-of-fold predictions, the
        groups, megabytes of weights, numbers of Ops and megabytes of tensors (n, 3), their Ops, and why networks were
        left out."""
        rows, y, work, ops, notes = [], [], [], [], []
        for n in data.calibration:
            try:
                uses = self._uses(n.net)
                rows.append([(group(op), self._cost(op).ms, held_out.get(op.key)) for op, _, _ in uses])
            except (UnknownOpError, UnsupportedOpError) as e:
                notes.append(f"{n.net.name}: {str(e).splitlines()[0]}")
                continue
            y.append(n.value)
            ops.append(Counter(op for op, _, _ in uses))
            read, moved = (sum(f(op) for op, _, _ in uses) for f in (megabytes, tensor_megabytes))
            work.append([read, len(uses), moved])
        groups = sorted({g for row in rows for g, _, _ in row})
        sums, estimated = np.zeros((2, len(rows), max(len(groups), 1)))
        for i, row in enumerate(rows):
            for g, ms, out in row:
                sums[i, groups.index(g)] += ms
                estimated[i, groups.index(g)] += ms if out is None else out
        return np.array(y), sums, estimated, groups, np.array(work, float).reshape(-1, 3), ops, notes

    # -- asking it ----------------------------------------------------------------------------------------------

    def predict(
        self,
        net: Network,
        *,
        level: float = 0.9,
        max_uncertainty: float | None = None,
        unknown: Literal["error", "estimate"] = "error",
    ) -> Estimate:
        """Latency of a network as the sum over its units (over its blocks where only blocks were measured).

        ``unknown="estimate"`` estimates units of unknown kind from their work, with a wider interval and a warning. So
        get units outside the shapes that were measured, and networks far from the calibration ones a warning. Raises
        :class:`UnknownOpError`, :class:`UnsupportedOpError`, and :class:`PredictorError` where the overhead would leave
        no time at all.
        """
        if unknown not in ("error", "estimate"):
            raise ConfigError(f"unknown: 'error' or 'estimate', not {unknown!r}")
        merged: dict[str, tuple[Op, Cost, list[tuple[str, ...]]]] = {}
        uses = self._uses(net)
        self._estimate_all([op for op, _, _ in uses])
        for op, layer, nodes in uses:
            if op.key not in merged:
                merged[op.key] = (op, self._cost(op, layer, unknown, net), [])
            merged[op.key][2].append(nodes)
        parts, shares = [], Shares()
        for key, (op, cost, nodes_of) in merged.items():
            ms = self.calibration.op_ms(op, cost.ms) * len(nodes_of)
            shares.add(cost, ms)
            origin = "measured" if cost.origin == "measured" else "estimated"
            parts.append(Part(key, op.label, len(nodes_of), ms, origin, sum(nodes_of, ()), self.metric))
        work = sum(p.value for p in parts)
        far = self.calibration.warnings(work)
        if self.effects:
            loads = self.effects.loads([op for op, _, _ in uses]).sum(axis=0)
            for name, (ms,) in zip(WHOLE, self.effects.extra_ms([work], loads[None]), strict=True):
                if ms > 0:
                    parts.append(Part(name, name, 1, float(ms), "overhead", (), self.metric))
        parts.append(Part("overhead", "overhead", 1, self.overhead_ms, "overhead", (), self.metric))
        value = float(sum(p.value for p in parts))
        low, high = self._factors(level, shares)
        strange = [op.label for op, cost, _ in merged.values() if cost.origin == "unknown"]
        warnings = (
            *(f"unknown kind, estimated from its work alone: {k}" for k in dict.fromkeys(strange)),
            *warnings_of((cost.beyond, len(nodes_of)) for _, cost, nodes_of in merged.values()),
            *far,
            *self._conformals["measured"].warnings(level),
        )
        estimate = Estimate(
            self.setting, {self.metric: Interval(value, value * low, value * high)}, tuple(parts), level, warnings,
            self.card.statistic, self.metric, self._conformals["measured"].attainable,
        )  # fmt: skip
        return require(estimate, max_uncertainty, self.card)

    def predict_archs(self, space: SearchSpace, archs: npt.ArrayLike, *, level: float = 0.9) -> ArchEstimates:
        """Latencies of an (n, positions) integer array, from the costs of the space's blocks (see :meth:`op_costs`)."""
        return estimate_archs(
            self, space, archs, self._arch_factors(space, archs, level), self._cache,
            costs=Costs(self._work_costs, self.overhead_ms),
            extra=(lambda sums: self._extra(space, archs, sums - self.overhead_ms)) if self.effects else None,
        )  # fmt: skip

    def op_costs(self, keys: list[str]) -> Floats:
        """Calibrated latency of each Op key in milliseconds, NaN where it is unsupported.

        A block costs the sum of the units that its Setting's runtime makes of it between convolutions, as in a network.
        Raises :class:`NotAdditiveError` where whole networks are no sums.
        """
        if self.effects:
            raise NotAdditiveError(
                f"kernels: here a network takes {self.calibration.form}, which is no sum over Ops; use predict_archs"
            )
        return self._work_costs(keys)

    def _work_costs(self, keys: list[str]) -> Floats:
        out = np.zeros(len(keys))
        for i, key in enumerate(keys):
            for op, count in self._parts(Op.parse(key)):
                if op.key in self.entries and not self.entries[op.key].supported:
                    out[i] = np.nan
                else:
                    out[i] += count * self.calibration.op_ms(op, self._cost(op).ms)
        return out

    def _extra(self, space: SearchSpace, archs: npt.ArrayLike, work_ms: Floats) -> Floats:
        """(n,) milliseconds that architectures take beyond the sums over their units."""

        def column(i: int) -> Callable[[list[str]], Floats]:
            def costs(keys: list[str]) -> Floats:
                units = [self._parts(Op.parse(k)) for k in keys]
                return np.array([self.effects.loads(op for op, _ in u)[:, i] @ [n for _, n in u] for u in units])

            return costs

        loads = [sum_archs(Costs(column(i)), space, archs, self._load_caches[i])[0] for i in range(3)]
        waiting, cold = self.effects.extra_ms(work_ms, np.stack(loads, axis=1))
        return waiting + cold

    def alone_ms(self, ops: Sequence[Op]) -> Floats:
        """(n,) milliseconds of Ops measured alone, before calibration: as measured, as its kind's regressor estimates,
        or from its work alone where nothing else is known."""
        self._estimate_all(op for op in ops if op.key not in self.entries)
        supported = (op if op.key in self._known or op.key not in self.entries else None for op in ops)
        return np.array([np.nan if op is None else self._cost(op, unknown="estimate").ms for op in supported])

    @property
    def overhead_ms(self) -> float:
        """Constant per network in milliseconds."""
        return self.calibration.overhead_ms

    # -- files --------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Write card, measured Ops, regressors (npz and UBJ) and calibration into a folder."""
        return Saved(
            self.op_level, self.entries, self.models, self.errors, self.calibration, self._conformals,
            self._unknown_spread, self._growth, self.effects, self._smooth,
        ).write(path, self.card)  # fmt: skip

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what :meth:`save` wrote. Raises :class:`FileFormatError`."""
        card, saved = Saved.read(path, cls.name)
        return cls(card, *saved)

    # -- parts --------------------------------------------------------------------------------------------------

    def _uses(self, net: Network) -> list[tuple[Op, str, tuple[str, ...]]]:
        """Op, layer and nodes of each unit (or block)."""
        if self.op_level == "unit":
            return [(u.op, u.name, u.nodes) for u in plans.units(self.setting, net)]
        if sum(len(b.nodes) for b in net.blocks) == len(net.nodes):
            return [(b.op, b.name, b.nodes) for b in net.blocks]
        why = "only blocks were measured, and the network is not made of blocks; its units have to be measured"
        raise unknown_op(net.nodes[0].op, (), f"{why}\n  {how_to_measure(self.card, net)}")

    def _parts(self, op: Op) -> list[tuple[Op, int]]:
        """The Ops of its own level that an Op is made of, with their counts."""
        if self.op_level == "block" or op.level == "unit" or op.key in self.entries:
            return [(op, 1)]
        if op.key not in self._blocks:
            found = plans.units_in_context(self.setting, op)
            distinct = {u.op.key: u.op for u in found}
            counts = Counter(u.op.key for u in found)
            self._blocks[op.key] = [(distinct[k], n) for k, n in counts.items()]
        return self._blocks[op.key]

    def _estimate_all(self, ops: Iterable[Op]) -> None:
        """Estimate all unseen Ops of known kinds at once: one call a regressor."""
        todo: dict[str, dict[str, Op]] = {}
        for op in ops:
            if op.key not in self._known and op.key not in self.entries and (kind := kernel_kind(op)) in self.models:
                todo.setdefault(kind, {})[op.key] = op
        for kind, new in todo.items():
            x = features(list(new.values()), hardware(self.card.device))
            origin: Origin = "estimated" if kind in self.errors else "weak"
            for k, v, beyond in zip(new, self.models[kind].predict(x), self._ranges.beyond(kind, x), strict=True):
                ms = max(float(np.exp(v)), self._least_ms)
                self._known[k] = Cost(ms, origin, float(beyond), self._growth[kind] * float(beyond))

    def _cost(self, op: Op, layer: str = "", unknown: str = "error", net: Network | None = None) -> Cost:
        if op.key not in self._known:
            self._estimate_all([op])
        if (cost := self._known.get(op.key)) is not None:
            return cost
        if (entry := self.entries.get(op.key)) is not None:
            raise UnsupportedOpError(layer or op.label, entry.reason)
        if unknown == "estimate" and ANY in self.models:
            x = features([op], hardware(self.card.device))
            log, beyond = self.models[ANY].predict(x), float(self._ranges.beyond(ANY, x)[0])
            # Conservative: the upper end of how far Ops of a kind left out were off.
            ms = float(np.exp(log[0])) * (1 + self._unknown_spread / 2)
            return Cost(ms, "unknown", beyond, self._growth[ANY] * beyond)
        remedy = (
            f"no Op of kind {kernel_kind(op)!r} was measured\n  {how_to_measure(self.card, net)}"
            "\n  or estimate it from its work alone: --unknown estimate (unknown='estimate' in Python)"
        )
        raise unknown_op(op, (e.op for e in self.entries.values()), remedy)

    def _op_shares(self, ops: Iterable[Op]) -> Floats:
        """(n, 6) shares of Ops (:attr:`Shares.COLUMNS`), calibrated as in a network; unsupported ones have none."""
        parts = [self._parts(op) for op in ops]
        self._estimate_all(op for row in parts for op, _ in row)
        rows = np.zeros((len(parts), len(Shares.COLUMNS)))
        for i, row in enumerate(parts):
            shares = Shares()
            for op, count in row:
                if op.key in self._known or op.key not in self.entries:
                    cost = self._cost(op)
                    shares.add(cost, self.calibration.op_ms(op, cost.ms) * count)
            rows[i] = shares.row()
        return rows

    def _arch_factors(self, space: SearchSpace, archs: npt.ArrayLike, level: float) -> tuple[Floats, Floats]:
        """Interval factors of architectures, (n,) each, by the shares of each; (1,) where all Ops were measured."""
        ops = list(space.ops())
        table = self._op_shares(ops)
        used = np.flatnonzero(table.any(axis=0)).tolist()
        if used in ([], [0]):
            return self._row_factors(level, np.eye(1, len(Shares.COLUMNS)))
        a = space.validate_archs(archs)
        low, high = np.empty((2, len(a)))
        for start in range(0, max(len(a), 1), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            low[chunk], high[chunk] = self._row_factors(level, self._arch_shares(space, a[chunk], ops, table, used))
        return low, high

    def _arch_shares(
        self, space: SearchSpace, archs: npt.NDArray[np.integer], ops: Sequence[Op], table: Floats, used: Sequence[int]
    ) -> Floats:
        """(n, 6) shares of architectures, from those of the space's Ops; only columns ``used`` are not 0."""
        if not space.additive:
            return np.asarray(space.usage(archs)[1] @ table, np.float64)
        row = {op.key: shares for op, shares in zip(ops, table, strict=True)}

        def column(i: int) -> Costs:
            return Costs(lambda keys: np.array([row[k][i] for k in keys]))

        sums = np.zeros((len(archs), len(Shares.COLUMNS)))
        for i in used:
            sums[:, i] = sum_archs(column(i), space, archs, self._share_caches[i])[0]
        return sums

    def _factors(self, level: float, shares: Shares) -> tuple[float, float]:
        low, high = self._row_factors(level, shares.row()[None])
        return float(low[0]), float(high[0])

    def _row_factors(self, level: float, rows: Floats) -> tuple[Floats, Floats]:
        """Interval factors (n,) between those of measured and of estimated Ops, by their shares (n, 6) of the latency.

        Extrapolated Ops widen them as if all were off in the same direction.
        """
        measured_ms, estimated_ms, weak_ms, unknown_ms, less_ms, more_ms = rows.T
        total = measured_ms + estimated_ms + weak_ms + unknown_ms
        total = np.where(total == 0, 1.0, total)
        extra = self._unknown_spread * (unknown_ms + weak_ms / 2) / total
        measured, estimated = (self._conformal_factors(k, level, extra) for k in ("measured", "estimated"))
        q = 1 - measured_ms / total
        # Estimated Ops never make it more certain.
        low = measured[0] + q * np.minimum(estimated[0] - measured[0], 0.0)
        high = measured[1] + q * np.maximum(estimated[1] - measured[1], 0.0)
        low, high = low * (1 - less_ms / total), high * (1 + more_ms / total)
        return widened_factors(low, high, self.setting.model_error, level)

    def _conformal_factors(self, which: str, level: float, extra: Floats) -> tuple[Floats, Floats]:
        """Factors (n,) at a level, widened by relative errors ``extra`` (n,)."""
        steps = np.unique(np.concatenate([[0.0], np.floor(extra / _STEP), np.ceil(extra / _STEP)])).astype(int).tolist()
        for k in steps:
            if (which, level, k) not in self._ends:
                self._ends[which, level, k] = self._conformals[which].factors(level, extra=k * _STEP)
        at = np.array(steps) * _STEP
        low, high = np.array([self._ends[which, level, k] for k in steps]).T
        return np.interp(extra, at, low), np.interp(extra, at, high)
