"""Whole networks, end to end: a regression on what a network is, learnt from measured networks and nothing else.

No Op is measured alone, so what a sum over Ops misses (launches, caches, fusion, parallel branches) is learnt with the
rest. Encodings and model families are chosen by cross-validation (:mod:`latbench.predictors.network_models`).

Data that come with the order they were measured in are fitted together with the device's drift. An estimate then
refers to the *reference*: the mean level of the drift over the measured networks. ``predict_archs(…, order=…)`` asks
for given places in the order instead: between measured ones it interpolates the drift, which helps to judge a fit on
data that drifted, and says nothing about a measurement of tomorrow.

Architectures with choices that no measured network made, or with totals outside the measured range, get wider intervals
and a warning (:mod:`latbench.predictors.network_extrapolation`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from latbench.arch_times import ArchTimes, arch_times
from latbench.card import Card
from latbench.conformal import Normalised
from latbench.errors import ConfigError, FileFormatError, NotEnoughDataError, UnsupportedOpError
from latbench.metric import LATENCY
from latbench.network import Network
from latbench.op import Op
from latbench.predictor import FitData, Predictor
from latbench.predictors import files
from latbench.predictors.nearest import how_to_measure, unknown
from latbench.predictors.network_extrapolation import Extrapolation, learn, least_error, warnings_of
from latbench.predictors.network_inputs import (
    WHOLE,
    View,
    distinct_kinds,
    node_kinds,
    space_rows,
    space_views,
    whole_rows,
)
from latbench.predictors.network_models import FAMILIES, Chosen, Member, Rows, fit_best
from latbench.predictors.process_rows import RowProcess
from latbench.predictors.processes import ORDER, Process
from latbench.predictors.trees import BoostedTrees, ExtraTrees
from latbench.space import SearchSpace
from latbench.statistics import widened_factors
from latbench.uncertainty import require
from latbench.visit import ArchEstimates, Estimate, Interval, Part

Floats = npt.NDArray[np.float64]

#: Fewest measured networks.
MIN_NETWORKS = 5
#: Spaces up to this size keep an answer for each architecture.
MAX_KEPT = 2**17
#: The largest logarithm by which an interval reaches up or down.
_WIDEST = 20.0
#: Architectures at a time of a larger space.
_CHUNK = 2048


class NetworkRegression(Predictor):
    """The ``network`` predictor: of a space's architectures, or of any networks like those it was fitted to.

    ``space`` is None for networks of no space; ``kinds`` are then the kinds of nodes that it knows.
    """

    name = "network"
    metrics = (LATENCY, "sum", "peak", "none")
    takes_archs: ClassVar[bool] = True
    uses_order: ClassVar[bool] = True

    def __init__(
        self,
        card: Card,
        space: SearchSpace | None,
        kinds: Sequence[str],
        views: Sequence[View],
        process: Process,
        members: Mapping[str, Member],
        level: float,
        conformals: Mapping[str, Normalised],
        unsupported: Mapping[str, str],
        extrapolation: Extrapolation | None = None,
    ) -> None:
        # Files of earlier versions know no ``extrapolation``: their intervals are as wide everywhere.
        self.card, self.space, self.kinds = card, space, tuple(kinds)
        self.views, self.process, self.members, self.level = tuple(views), process, dict(members), level
        self.unsupported, self._conformals = dict(unsupported), dict(conformals)
        self._extrapolation = extrapolation
        positions = space.positions if space is not None else 0
        self._quick = {
            k: RowProcess(m, self.views, positions) if isinstance(m, Process) else m.predict for k, m in members.items()
        }
        self._kept: Floats | None = None
        if space is not None and space.size <= MAX_KEPT:
            self._kept, self._kept_new = np.full(space.size, np.nan), np.zeros((space.size, 3))
            self._place = np.cumprod([1, *space.num_choices[:0:-1]])[::-1]

    # -- making one ---------------------------------------------------------------------------------------------

    @classmethod
    def fit(cls, data: FitData, *, level: float = 0.9, seed: int = 0, **options: Any) -> Self:
        """Fit to measured architectures of one space, or to measured networks of none.

        ``families`` (a list, or names with commas between) limits the model families to some of
        :data:`latbench.predictors.network_models.FAMILIES`; the process is always among them. Raises
        :class:`NotEnoughDataError` below :data:`MIN_NETWORKS` networks, :class:`ConfigError`.
        """
        families = _families(options.pop("families", FAMILIES))
        if options:
            raise ConfigError(f"network has no option {', '.join(options)}; it has families")
        times = arch_times(data)
        n = len(times) if times is not None else len(data.calibration)
        if n < MIN_NETWORKS:
            raise NotEnoughDataError(
                f"{n} measured networks; at least {MIN_NETWORKS} are needed; measure more: {data.card.profile_command}"
            )
        kinds: list[str] = []
        if times is not None:
            candidates = [
                _rows(space_views(times.space, times.archs, k), times, seed) for k in distinct_kinds(times.space)
            ]
            order = times.order
        else:
            nets = [m.net for m in data.calibration]
            kinds, order = node_kinds(nets), None
            x = whole_rows(nets, kinds)
            view = View.of(WHOLE, 0, x)
            y, noise = _logs(np.array([m.value for m in data.calibration]))
            candidates = [Rows.of((view,), (x,), y, noise, 0)]
        rows, drifts, chosen = fit_best(candidates, order, families, seed)
        space = times.space if times is not None else None
        extrapolation, wider = learn(rows, chosen.process, space, seed)
        conformals = {
            name: _intervals(rows.y - left_out, wider, chosen.process, rows.known_noise)
            for name, left_out in (("reference", chosen.left_out), ("in order", chosen.left_out_in_order))
        }
        off = np.exp(chosen.left_out - rows.y) - 1
        model = {
            "networks": n,
            "encodings": [v.kind for v in rows.views],
            "families": list(chosen.members),
            "cv_rmspe": float(np.sqrt(np.mean(off**2))),
            "mean_absolute_log_error": dict(chosen.tried),
            "drift": _describe_drift(chosen, order if drifts else None),
            "rounded": bool(rows.known_noise.any()),
            "extrapolation": extrapolation.describe(rows.views, space),
        }
        card = data.card.replace(
            predictor=cls.name, model=model, intervals=conformals["reference"].describe(level),
            space=space.spec if space is not None else None,
            notes=(*data.card.notes, *extrapolation.notes(rows.views, space)),
        )  # fmt: skip
        return cls(
            card, space, kinds, rows.views, chosen.process, chosen.members, chosen.level, conformals, data.unsupported,
            extrapolation,
        )  # fmt: skip

    # -- asking it ----------------------------------------------------------------------------------------------

    def predict(
        self, net: Network, *, level: float = 0.9, max_uncertainty: float | None = None, order: float | None = None
    ) -> Estimate:
        """Of a network of the space that it was fitted to, or of a network of no space, whose kinds of nodes it knows.

        ``order`` as in :meth:`predict_archs`. Raises :class:`UnknownOpError`, :class:`UnsupportedOpError`,
        :class:`UncertainError`.
        """
        conformal = self._conformals["in order" if order is not None else "reference"]
        conformal.factor(level)
        for name, op in [*((b.name, b.op) for b in net.blocks), *((n.name, n.op) for n in net.nodes)]:
            if op.key in self.unsupported:
                raise UnsupportedOpError(name, self.unsupported[op.key])
        at = None if order is None else np.array([order], np.float64)
        logs, new = self._logs_of(net)
        value = float(np.exp(logs + self._drift(at))[0])
        low, high = (float(f[0]) for f in self._factors(level, order is not None, new))
        parts = (
            Part("network", "the whole network", 1, value, "estimated", tuple(n.name for n in net.nodes), self.metric),
        )
        metrics = {self.metric: Interval(value, value * low, value * high)}
        warnings = (*warnings_of(new[0], self.views), *conformal.warnings(level))
        estimate = Estimate(
            self.setting, metrics, parts, level, warnings, self.card.statistic, self.metric, conformal.attainable
        )
        return require(estimate, max_uncertainty, self.card)

    def predict_archs(
        self, space: SearchSpace, archs: npt.ArrayLike, *, level: float = 0.9, order: npt.ArrayLike | None = None
    ) -> ArchEstimates:
        """Of an (n, positions) integer array; at the reference, or at places ``order`` (n,) in the order of the data.

        Raises :class:`ArchitectureError`, :class:`ConfigError` for another space, or where the fit knows no order.
        """
        if self.space is None or space.spec != self.space.spec:
            own = "networks of no space" if self.space is None else f"{self.space!r}"
            raise ConfigError(f"this network predictor was fitted to {own}, not to {space!r}")
        a = space.validate_archs(archs)
        at = None if order is None else self._order(order, len(a))
        logs, new = self._logs_of_archs(a)
        value = np.exp(logs + self._drift(at))
        low, high = self._factors(level, order is not None, new)
        supported = np.ones(len(a), bool)
        if self.unsupported and len(a):
            keys, counts = space.usage(a)
            supported = counts @ np.array([k in self.unsupported for k in keys], np.float64) == 0
            value[~supported] = np.nan
        return ArchEstimates(value, value * low, value * high, supported, self.metric, np.asarray(new.any(axis=1)))

    # -- files --------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Write card, views, process and members (npz, JSON, UBJ) into a folder."""
        described, arrays = self.process.to_files("process")
        content: dict[str, bytes] = {}
        members: dict[str, Any] = {}
        for i, (name, m) in enumerate(self.members.items()):
            members[name] = None
            if m is self.process:
                continue
            if isinstance(m, Process):
                members[name], own = m.to_files(f"member{i}")
                arrays |= own
            else:
                own, more = m.to_files(f"member{i}")
                arrays |= own
                content |= more
        for i, v in enumerate(self.views):
            arrays |= {f"view{i}_mean": v.mean, f"view{i}_scale": v.scale}
        for name, c in self._conformals.items():
            arrays |= c.to_arrays(name)
        growth = None
        if self._extrapolation is not None:
            growth, extents = self._extrapolation.to_files()
            arrays |= extents
        fitted = {
            "space": self.space.spec if self.space is not None else None,
            "kinds": list(self.kinds),
            "views": [{"kind": v.kind, "choices": v.choices} for v in self.views],
            "process": described,
            # JSON objects are saved sorted; the order of members is that of their files.
            "members": [[name, d] for name, d in members.items()],
            "level": self.level,
            "conformals": sorted(self._conformals),
            "unsupported": self.unsupported,
            "extrapolation": growth,
        }
        content |= {"network.json": files.as_json(fitted), "network.npz": files.npz(**arrays)}
        folder, _ = files.write_folder(path, self.card, content)
        return folder

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what :meth:`save` wrote. Raises :class:`FileFormatError`."""
        from latbench.load import load_space

        folder = files.read_folder(path, cls.name)
        arrays, d = folder.arrays("network.npz"), folder.json("network.json")
        try:
            spec = d["space"]
            space = None if spec is None else load_space(spec["name"], **{k: v for k, v in spec.items() if k != "name"})
            views = [
                View(v["kind"], int(v["choices"]), arrays[f"view{i}_mean"], arrays[f"view{i}_scale"])
                for i, v in enumerate(d["views"])
            ]
            process = Process.from_files(d["process"], arrays, "process")
            members: dict[str, Member] = {}
            for i, (name, described) in enumerate(d["members"]):
                if described is not None:
                    members[name] = Process.from_files(described, arrays, f"member{i}")
                elif name == "process":
                    members[name] = process
                elif name == "extra-trees":
                    members[name] = ExtraTrees.from_files(arrays, f"member{i}")
                else:
                    members[name] = BoostedTrees(folder.bytes(f"member{i}.ubj"))
            conformals = {n: Normalised.from_arrays(arrays, n) for n in d["conformals"]}
            growth = d.get("extrapolation")
            extrapolation = None if growth is None else Extrapolation.from_files(growth, arrays, len(views))
            return cls(
                folder.card, space, d["kinds"], views, process, members, float(d["level"]),
                {k: conformals[k] for k in ("reference", "in order")}, dict(d["unsupported"]),
                extrapolation,
            )  # fmt: skip
        except (KeyError, TypeError, AttributeError, ValueError, IndexError, ConfigError) as e:
            raise FileFormatError(f"{folder.path}: not a network predictor: {e!r}") from e

    # -- parts --------------------------------------------------------------------------------------------------

    def _logs_of(self, net: Network) -> tuple[Floats, Floats]:
        """(1,) the logarithm of a network's value at the reference, and (1, 3) what is new about it."""
        if self.space is None:
            rows = [whole_rows([net], self.kinds)]
            return self._members_logs(rows), self._new(rows)
        if net.origin.get("space") != self.space.spec:
            ops = [b.op for b in net.blocks] or [n.op for n in net.nodes]
            known = {op.key for op in self.space.ops()}
            strange: Op = next((op for op in ops if op.key not in known), ops[0])
            raise unknown(
                strange, self.space.ops(), f"{net.name} is no network of {self.space!r}, which the fit was made for\n  "
                f"{how_to_measure(self.card, net, self.name)}",
            )  # fmt: skip
        return self._logs_of_archs(self.space.validate_archs([net.origin["arch"]]))

    def _logs_of_archs(self, a: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
        """(n,) logarithms at the reference and (n, 3) what is new; those of a small space are kept."""
        space = self.space
        assert space is not None
        if self._kept is None:
            parts = [space_rows(space, a[i : i + _CHUNK], self.views) for i in range(0, len(a), _CHUNK)]
            logs = np.concatenate([np.empty(0), *(self._members_logs(rows) for rows in parts)])
            return logs, np.concatenate([np.empty((0, 3)), *(self._new(rows) for rows in parts)])
        i = a @ self._place
        missing = np.unique(i[np.isnan(self._kept[i])])
        if len(missing):
            rows = space_rows(space, missing[:, None] // self._place % np.array(space.num_choices), self.views)
            self._kept[missing], self._kept_new[missing] = self._members_logs(rows), self._new(rows)
        return np.asarray(self._kept[i]), np.asarray(self._kept_new[i])

    def _new(self, rows: list[Floats]) -> Floats:
        """(n, 3) what is new about rows of every view: see :meth:`Extrapolation.new`."""
        return np.zeros((len(rows[0]), 3)) if self._extrapolation is None else self._extrapolation.new(rows)

    def _members_logs(self, rows: list[Floats]) -> Floats:
        """(n,) the mean of the members at the reference, for rows of every view."""
        plain = rows[0] if len(rows) == 1 else np.concatenate(rows, axis=1)
        out = np.zeros(len(plain))
        for name, quick in self._quick.items():
            out += quick(plain) + (self.level if self.members[name] is self.process else 0.0)
        return out / len(self.members)

    def _order(self, order: npt.ArrayLike, n: int) -> Floats:
        at = np.asarray(order, np.float64)
        if at.shape != (n,) or not np.isfinite(at).all():
            raise ConfigError(f"order: {n} finite numbers, one an architecture; got shape {at.shape}")
        return at

    def _drift(self, at: Floats | None) -> Floats | float:
        """What drift adds to the reference at places in the order."""
        if at is None or ORDER not in self.process.inputs:
            return 0.0
        return self.process.part({ORDER: at[:, None]}, in_time=True) - self.level

    def _factors(self, level: float, in_order: bool, new: Floats) -> tuple[Floats, Floats]:
        """(n,) each: what multiplies estimates to give the ends of their intervals, by what is ``new`` (n, 3)."""
        half = self._conformals["in order" if in_order else "reference"].factor(level) * np.ones(len(new))
        if self._extrapolation is not None:
            half = np.minimum(half * self._extrapolation.growth.widths(new), _WIDEST)
        return widened_factors(np.exp(-half), np.exp(half), self.setting.model_error, level)


def _families(given: Any) -> tuple[str, ...]:
    names = tuple(given.split(",")) if isinstance(given, str) else tuple(given)
    if wrong := [n for n in names if n not in FAMILIES]:
        raise ConfigError(f"families: no model family {wrong[0]!r}; known: {', '.join(FAMILIES)}")
    return names


def _rows(views: tuple[View, ...], times: ArchTimes, seed: int) -> Rows:
    y, noise = _logs(times.values)
    x = space_rows(times.space, times.archs, views)
    return Rows.of(views, x, y, noise, times.space.positions, times.order)


def _logs(values: Floats) -> tuple[Floats, Floats]:
    """Logarithms, and the variance that rounding gave them: whole numbers, such as milliseconds from a coarse clock."""
    rounded = len(values) >= MIN_NETWORKS and bool((values == np.round(values)).all())
    return np.log(values), np.where(rounded, 1 / 12 / values**2, 0.0)


def _intervals(errors: Floats, wider: Floats, process: Process, known_noise: Floats) -> Normalised:
    """Of left-out logarithms' errors (n,), where intervals were ``wider`` (n,). Nine tenths of them within the noise's
    deviation are so by chance: then none counts for less than that."""
    least = least_error(errors, process, known_noise)
    chance = np.quantile(np.abs(errors), 0.9) < least
    return Normalised.from_left_out(np.maximum(np.abs(errors), least if chance else 0.0) / wider)


def _describe_drift(chosen: Chosen, order: Floats | None) -> dict[str, Any]:
    """What the card says of it: the range of the drift over the measured networks, relative to the reference."""
    if order is None:
        return {"fitted": False}
    drift = chosen.process.part({ORDER: order[:, None]}, in_time=True) - chosen.level
    cycles = [t.period for t in chosen.process.terms if t.kind == "cycle"]
    low, high = np.exp(np.quantile(drift, (0.05, 0.95))) - 1
    return {"fitted": True, "low": float(low), "high": float(high), "cycles": cycles}
