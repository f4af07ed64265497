"""The latency table: Op key → metrics within one Setting, and the sum of them as the latency of a network.

A network made of known blocks costs ``overhead + scale × Σ block latencies``; one without blocks is split into the
units of its Setting and summed over those, where the table holds units. Overhead and scale are calibrated per level on
measured networks (:mod:`latbench.predictors.additive`). An Op that the table does not hold is an error that names it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from latbench.card import Card
from latbench.conformal import Conformal
from latbench.errors import ConfigError, FileFormatError, NotEnoughDataError, NotInstalledError, UnsupportedOpError
from latbench.metric import LATENCY, METRICS
from latbench.network import Network
from latbench.op import Level, Op
from latbench.predictor import FitData, MeasuredNetwork, Predictor
from latbench.predictors import files, plans
from latbench.predictors.additive import (
    FEW,
    MIN_NETWORKS,
    PLAIN_SUM,
    Calibration,
    calibrate,
    group,
    megabytes,
    plain_sum,
)
from latbench.predictors.entries import Entry, from_arrays, to_arrays, write_entries
from latbench.predictors.gather import estimate_archs
from latbench.predictors.hygiene import check
from latbench.predictors.nearest import how_to_measure, unknown
from latbench.predictors.table_diff import diff
from latbench.space import SearchSpace
from latbench.statistics import widened
from latbench.uncertainty import require
from latbench.visit import ArchEstimates, Estimate, Interval, Part

#: What the card keeps of the drift that was taken off.
_DRIFT = ("model", "span_percent", "warnings")

__all__ = ["Coverage", "Table", "Use", "check", "diff"]


@dataclass(frozen=True)
class Use:
    """One occurrence of an Op in a network: its layer and the nodes that it covers."""

    op: Op
    layer: str
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Coverage:
    """Which Ops of a space or network a table holds; ``unsupported`` maps keys to the rule that the device has."""

    level: Level
    known: int
    missing: tuple[Op, ...] = ()
    unsupported: Mapping[str, str] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """True if nothing is missing (an unsupported Op is known)."""
        return not self.missing

    def __str__(self) -> str:
        total = self.known + len(self.missing)
        text = f"{self.known} of {total} Ops of level {self.level} known, {len(self.unsupported)} of them unsupported"
        return "\n".join([text, *(f"  missing: {op.label}  {op.key}" for op in self.missing)])


class Table(Predictor):
    """A latency table within one Setting; ``entries`` maps Op keys to :class:`Entry`."""

    name = "table"
    metrics = (LATENCY, "sum")

    def __init__(
        self,
        card: Card,
        entries: Mapping[str, Entry],
        calibrations: Mapping[str, Calibration] | None = None,
        conformals: Mapping[str, Conformal] | None = None,
    ) -> None:
        self.card = card
        self.entries = dict(entries)
        self.calibrations = dict(calibrations or {})
        self._conformals = dict(conformals or {})
        self._cache: dict[str, Any] = {}

    # -- making one ---------------------------------------------------------------------------------------------

    @classmethod
    def fit(cls, data: FitData, *, level: float = 0.9, seed: int = 0, form: str = "auto", **options: Any) -> Self:
        """Entries from Op Measurements, calibrated on measured networks.

        ``form`` is "auto" (cross-validation on the calibration networks decides), "affine", "groups", "weights" or
        "ops"; see :mod:`latbench.predictors.additive`. Nothing in it is random: ``seed`` changes nothing. Raises
        :class:`NotEnoughDataError`.
        """
        if options or form not in ("auto", "affine", "groups", "weights", "ops"):
            wrong = ", ".join(options) or f"form={form!r}"
            raise ConfigError(f"table has no option {wrong}; its option: form (auto, affine, groups, weights or ops)")
        entries = {k: Entry.of(k, m) for k, m in data.ops.items()}
        lacking = {k: rule for k, rule in data.unsupported.items() if k not in data.ops}
        entries |= {k: Entry(Op.parse(k), {}, 0, rule or "unsupported", data.metric) for k, rule in lacking.items()}
        if not data.ops:
            raise NotEnoughDataError(f"no measured Ops; measure them: {data.card.profile_command}")
        bare = cls(data.card, entries)
        calibrations, conformals, model = {}, {}, {}
        notes = list(data.card.notes)
        for lv in ("block", "unit"):
            if not bare.holds(lv):
                continue
            try:
                covered, parts, groups, work = bare.sums(data.calibration, lv)
            except NotInstalledError as e:
                notes.append(f"no calibration of units: {e}")
                continue
            # A space gives as many networks as are asked for; of files there may be no more.
            few = len(covered) < MIN_NETWORKS
            if few and (data.card.space or not covered):
                notes.append(f"level {lv} is not calibrated: the table covers {len(covered)} calibration networks")
                continue
            y = [n.value for n in covered]
            if few:
                low, high = bare.factors(level, lv)
                # A simulator's own error, all that its entries have, comes on top of every interval in the end.
                error = 0.0 if data.setting.model_error else (high - low) / 2
                fitted = plain_sum(parts, y, error, parts, error)
                notes.append(f"{FEW} ({len(covered)} did); measure more: {data.card.profile_command}")
            else:
                least = min(e.value for e in entries.values() if e.op.level == lv and e.supported)
                fitted = calibrate(parts, y, groups, work, least_ms=least, forms=form)
            calibrations[lv] = replace(fitted.calibration, unit=METRICS[data.metric].unit)
            conformals[lv] = fitted.conformal
            model[lv] = {
                **calibrations[lv].to_json(), "networks": fitted.networks, "cv_rmspe": fitted.rmspe,
                "tried": dict(fitted.tried),
            }  # fmt: skip
        if not calibrations:
            raise NotEnoughDataError(
                f"{len(data.calibration)} measured calibration networks, at least "
                f"{MIN_NETWORKS if data.card.space else 1} that the table covers needed; "
                f"measure them: {data.card.profile_command}" + "".join(f"\n  {n}" for n in notes[:3])
            )
        first = conformals[next(iter(conformals))]
        drift = next((m.drift for m in data.ops.values() if m.drift), {})
        seen = {**data.card.data, **({"drift": {k: drift[k] for k in _DRIFT if k in drift}} if drift else {})}
        card = data.card.replace(
            predictor=cls.name, model=model, intervals=first.describe(level), notes=tuple(notes), data=seen
        )
        return cls(card, entries, calibrations, conformals)

    def holds(self, level: str) -> bool:
        """True if it has entries of an Op level."""
        return any(e.op.level == level for e in self.entries.values())

    def sums(
        self, networks: Iterable[MeasuredNetwork], level: str
    ) -> tuple[list[MeasuredNetwork], npt.NDArray[np.float64], list[str], npt.NDArray[np.float64]]:
        """Of the networks that the table covers: themselves, their sums of Op latencies by group (n, G), the groups,
        and their megabytes of weights and numbers of Ops (n, 2)."""
        covered, rows = [], []
        for n in networks:
            uses = self._uses(n.net, level)
            if uses and all(u.op.key in self.entries and self.entries[u.op.key].supported for u in uses):
                covered.append(n)
                rows.append(uses)
        groups = sorted({group(u.op) for uses in rows for u in uses})
        parts = np.zeros((len(rows), max(len(groups), 1)))
        for i, uses in enumerate(rows):
            for u in uses:
                parts[i, groups.index(group(u.op))] += self.entries[u.op.key].value
        work = np.array([[sum(megabytes(u.op) for u in uses), len(uses)] for uses in rows]).reshape(-1, 2)
        return covered, parts, groups, work

    # -- asking it ----------------------------------------------------------------------------------------------

    def predict(self, net: Network, *, level: float = 0.9, max_uncertainty: float | None = None) -> Estimate:
        """Latency of a network as the sum of its blocks, or of its units where it has no blocks.

        The breakdown has one part a distinct Op and one for the overhead; its latencies add up to the estimate. A
        network far smaller or larger than those of the calibration gets a warning. Raises :class:`UnknownOpError`,
        :class:`UnsupportedOpError`, and :class:`PredictorError` where the overhead would leave no time at all.
        """
        op_level, uses = self._choose(net)
        calibration = self.calibration(op_level)
        merged: dict[str, list[Use]] = {}
        for u in uses:
            merged.setdefault(u.op.key, []).append(u)
        parts = []
        for key, same in merged.items():
            entry = self._entry(same[0].op, same[0].layer, net)
            cost = calibration.op_ms(entry.op, entry.value) * len(same)
            nodes = sum((u.nodes for u in same), ())
            parts.append(Part(key, entry.op.label, len(same), cost, "measured", nodes, self.metric))
        warnings = (*self._warnings(op_level), *calibration.warnings(sum(p.value for p in parts)))
        parts.append(Part("overhead", "overhead", 1, calibration.overhead_ms, "overhead", (), self.metric))
        value = float(sum(p.value for p in parts))
        low, high = self.factors(level, op_level)
        attainable = 1.0
        if op_level in self._conformals:
            conformal = self._conformals[op_level]
            warnings, attainable = (*warnings, *conformal.warnings(level)), conformal.attainable
        metrics = {self.metric: Interval(value, value * low, value * high), **self._other_metrics(uses)}
        estimate = Estimate(
            self.setting, metrics, tuple(parts), level, warnings, self.card.statistic, self.metric, attainable
        )
        return require(estimate, max_uncertainty, self.card)

    def predict_archs(self, space: SearchSpace, archs: npt.ArrayLike, *, level: float = 0.9) -> ArchEstimates:
        """Latencies of an (n, positions) integer array of architectures: a gather where the space is additive.

        Raises :class:`UnknownOpError` for a space whose blocks it does not hold, :class:`ArchitectureError`.
        """
        return estimate_archs(self, space, archs, self.factors(level, "block"), self._cache)

    def op_costs(self, keys: list[str]) -> npt.NDArray[np.float64]:
        """Calibrated latency of each Op key in milliseconds, NaN where it is unsupported."""
        out = np.empty(len(keys))
        for i, key in enumerate(keys):
            entry = self.entries.get(key) or self._entry(Op.parse(key), "")
            out[i] = self.calibration(entry.op.level).op_ms(entry.op, entry.value)
        return out

    @property
    def overhead_ms(self) -> float:
        """Constant per network in milliseconds, for sums over blocks (over units where it holds no blocks)."""
        return self.calibration("block" if self.holds("block") else "unit").overhead_ms

    def calibration(self, level: str) -> Calibration:
        """Overhead and scale for sums over an Op level; the plain sum where it was not calibrated."""
        return self.calibrations.get(level, Calibration(form=PLAIN_SUM))

    def factors(self, level: float = 0.9, op_level: str = "block") -> tuple[float, float]:
        """What multiplies an estimate to give the ends of its interval.

        Without calibration networks they come from the intervals of the entries, all off in the same direction.
        """
        if op_level in self._conformals:
            low, high = self._conformals[op_level].factors(level)
            x = widened(Interval(1.0, low, high), self.setting.model_error, level)
            return x.low, x.high
        i = [e.interval for e in self.entries.values() if e.supported]
        total = sum(x.value for x in i) or 1.0
        return min(sum(x.low for x in i) / total, 1.0), max(sum(x.high for x in i) / total, 1.0)

    def coverage(self, subject: Network | SearchSpace) -> Coverage:
        """Which Ops of a space, or of a network, it holds, misses, and knows to be unsupported."""
        if isinstance(subject, SearchSpace):
            level: Level = "block"
            ops = subject.ops()
        else:
            level = "block" if subject.blocks and self.holds("block") else "unit"
            ops = [u.op for u in self._uses(subject, level)]
        distinct = {op.key: op for op in ops}
        missing = tuple(op for k, op in distinct.items() if k not in self.entries)
        rules = {k: self.entries[k].reason for k in distinct if k in self.entries and self.entries[k].reason}
        return Coverage(level, len(distinct) - len(missing), missing, rules)

    # -- files --------------------------------------------------------------------------------------------------

    def rows(self) -> list[dict[str, Any]]:
        """One dictionary an entry, in the order in which they were measured: for tables that people read."""
        return [e.row() for e in self.entries.values()]

    def export(self, path: str | Path) -> Path:
        """Write the entries as CSV, JSON or Parquet; :func:`latbench.predictors.entries.read_entries` reads them."""
        return write_entries(self.entries.values(), path)

    def save(self, path: str | Path) -> Path:
        """Write ``card.json``, ``entries.json``, ``entries.npz`` and ``calibration.json`` into a folder."""
        arrays, names = to_arrays(self.entries.values())
        for lv, c in self._conformals.items():
            arrays |= c.to_arrays(f"{lv}_conformal")
        calibration = {lv: c.to_json() for lv, c in self.calibrations.items()}
        content = {"entries.json": files.as_json(names), "entries.npz": files.npz(**arrays)}
        content["calibration.json"] = files.as_json(calibration)
        folder, _ = files.write_folder(path, self.card, content)
        return folder

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what :meth:`save` wrote. Raises :class:`FileFormatError`."""
        folder = files.read_folder(path, cls.name)
        arrays = folder.arrays("entries.npz")
        entries = from_arrays(arrays, folder.json("entries.json"), str(folder.path), folder.card.metric)
        try:
            calibrations = {lv: Calibration(**c) for lv, c in folder.json("calibration.json").items()}
            conformals = {
                lv: Conformal.from_arrays(arrays, f"{lv}_conformal")
                for lv in calibrations
                if f"{lv}_conformal_residuals" in arrays
            }
        except (KeyError, TypeError, AttributeError, ValueError) as e:
            raise FileFormatError(f"{folder.path}: not the calibration of a table: {e!r}") from e
        return cls(folder.card, entries, calibrations, conformals)

    # -- parts --------------------------------------------------------------------------------------------------

    @cached_property
    def _ops(self) -> list[Op]:
        return [e.op for e in self.entries.values()]

    def _entry(self, op: Op, layer: str, net: Network | None = None) -> Entry:
        entry = self.entries.get(op.key)
        if entry is None:
            raise unknown(op, self._ops, how_to_measure(self.card, net, "kernels" if op.level == "unit" else "table"))
        if not entry.supported and layer:
            raise UnsupportedOpError(layer, entry.reason)
        return entry

    def _uses(self, net: Network, level: str) -> list[Use]:
        if level == "unit":
            return [Use(u.op, u.name, u.nodes) for u in plans.units(self.setting, net)]
        covered = sum(len(b.nodes) for b in net.blocks)
        return [Use(b.op, b.name, b.nodes) for b in net.blocks] if covered == len(net.nodes) else []

    def _choose(self, net: Network) -> tuple[str, Sequence[Use]]:
        """The level to sum over: blocks if all are known, else units if the table holds them."""
        blocks = self._uses(net, "block") if self.holds("block") else []
        if blocks and all(u.op.key in self.entries for u in blocks):
            return "block", blocks
        if self.holds("unit"):
            units = self._uses(net, "unit")
            if not blocks or all(u.op.key in self.entries for u in units):
                return "unit", units
        if blocks:
            return "block", blocks
        what = next((n.op for n in net.nodes), None)
        if what is None:
            raise ConfigError(f"{net.name}: a network without nodes has no latency")
        why = "this table holds blocks only, and the network is not made of blocks; its units have to be measured"
        raise unknown(what, self._ops, f"{why}\n  {how_to_measure(self.card, net)}")

    def _other_metrics(self, uses: Sequence[Use]) -> dict[str, Interval]:
        """Metrics that add up over Ops and that every Op of the network has."""
        out = {}
        for name, metric in METRICS.items():
            found = [self.entries[u.op.key].metrics.get(name) for u in uses]
            if metric.composition == "sum" and name != self.metric and found and None not in found:
                i = [f for f in found if f is not None]
                out[name] = Interval(sum(x.value for x in i), sum(x.low for x in i), sum(x.high for x in i))
        return out

    def _warnings(self, op_level: str) -> tuple[str, ...]:
        if op_level in self.calibrations:
            return ()
        return (f"no measured networks calibrate sums over {op_level}s: this is the plain sum",)
