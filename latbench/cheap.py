"""Values of architectures that need no training: latency on every device, parameters, multiply-accumulates.

:class:`SpaceValues` answers for thousands of architectures at once, and :func:`check_feasible` proves, where a space is
additive, that limits can be kept at all before anything is paid for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from math import inf, isfinite
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from latbench.errors import ConfigError, NotAdditiveError, UnknownOpError, UnsupportedOpError
from latbench.metric import LATENCY, ends
from latbench.op import Op
from latbench.problem import Floats, Problem
from latbench.space import Arch, SearchSpace

if TYPE_CHECKING:
    from latbench.predictor import Predictor

COUNTS = ("params", "macs")


def latency_models(latency: Predictor | Mapping[str, Predictor] | None) -> dict[str, Predictor]:
    """Suffix of the value's name → model: ``""`` for one model, ``"@device"`` for several by name.

    Raises :class:`ConfigError` for an empty mapping, and for a model of another metric.
    """
    if latency is None:
        return {}
    if isinstance(latency, Mapping):
        if not latency:
            raise ConfigError("latency: an empty mapping; give a model, or device names with models")
        found = {f"@{device}": model for device, model in latency.items()}
    else:
        found = {"": latency}
    for suffix, model in found.items():
        if model.metric != LATENCY:
            raise ConfigError(
                f"latency{suffix}: this {model.name} is of {model.metric}; give it as models={{{model.metric!r}: …}}"
            )
    return found


def further_models(models: Mapping[str, Predictor] | None) -> dict[str, Predictor]:
    """Models by the name of the value that they give: a metric, or ``metric@device``.

    Raises :class:`ConfigError` where the name is not that of a metric that the model knows, or is latency's.
    """
    for name, model in (models or {}).items():
        metric = name.partition("@")[0]
        if metric == LATENCY:
            raise ConfigError(f"models: {name}: a model of latency is given as latency=")
        if metric not in model.known_metrics:
            raise ConfigError(f"models: {name}: this {model.name} is of {', '.join(model.known_metrics)}")
    return dict(models or {})


class SpaceValues:
    """``latency_ms``, ``latency_low_ms``, ``latency_high_ms`` (each ``@device`` where there are several), params, macs.

    ``further`` maps names of other predicted values to their models, e.g. ``peak_memory_bytes``, whose ends are
    ``peak_memory_low_bytes`` and ``peak_memory_high_bytes``. ``counts`` asks for params and macs in spaces that are not
    additive too, where networks may have to be built for it. Intervals are at ``level``. This is the
    :class:`latbench.problem.CheapValues` of :func:`latbench.search`.
    """

    def __init__(
        self,
        space: SearchSpace,
        models: Mapping[str, Predictor],
        *,
        counts: bool = False,
        level: float = 0.9,
        further: Mapping[str, Predictor] | None = None,
    ) -> None:
        self.space, self.models, self.level = space, dict(models), level
        #: Name of each predicted value → its model.
        self.predicted = {f"{LATENCY}{s}": m for s, m in models.items()} | dict(further or {})
        self.counts = counts or space.additive
        #: Is told how many architectures were asked for, at every call; a search sets it while it waits for a searcher.
        self.on_asked: Callable[[int], None] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the values."""
        return tuple(n for name in self.predicted for n in (name, *ends(name))) + (COUNTS if self.counts else ())

    def __call__(self, archs: npt.NDArray[np.int64]) -> dict[str, Floats]:
        """``archs`` is (n, positions); name → (n,) array, predicted values NaN where unsupported.

        Raises what the models raise: :class:`UnknownOpError`, :class:`SettingMismatchError`.
        """
        out: dict[str, Floats] = {}
        for name, model in self.predicted.items():
            e = model.archs_metric(name.partition("@")[0], self.space, archs, level=self.level)
            for n, column in zip((name, *ends(name)), (e.value, e.low, e.high), strict=True):
                out[n] = np.where(e.supported, column, np.nan)
        if self.on_asked is not None:
            self.on_asked(len(archs))
        if not self.counts:
            return out
        if self.space.additive:
            positions = np.arange(self.space.positions)
            for name, (matrix, constant) in self._matrices.items():
                out[name] = matrix[positions, archs].sum(axis=1) + constant
        else:
            _, used = self.space.usage(archs)
            for name, each in self._per_op.items():
                out[name] = used @ each
        return out

    def refusal(self, arch: Arch, name: str) -> str:
        """Why the value ``name`` of an architecture is NaN, in the model's words; "" where it does not say."""
        try:
            self.predicted[name].predict(self.space.network(arch))
        except (UnsupportedOpError, UnknownOpError) as e:
            return str(e)
        return ""

    def cost_matrix(self, name: str) -> tuple[Floats, float] | None:
        """``(matrix, constant)`` of an additive value, as :meth:`SearchSpace.cost_matrix` has it; None for others."""
        if not self.space.additive:
            return None
        if name in self._matrices and self.counts:
            return self._matrices[name]
        model = self.predicted.get(name)
        try:
            # A model's Op costs are those of the metric that it is of.
            of_it = model is not None and model.metric == name.partition("@")[0]
            return self.space.cost_matrix(model) if model is not None and of_it else None
        except NotAdditiveError:
            return None

    @cached_property
    def _per_op(self) -> dict[str, Floats]:
        ops = self.space.ops()
        return {n: np.asarray([getattr(op, n) for op in ops], float) for n in COUNTS}

    @cached_property
    def _matrices(self) -> dict[str, tuple[Floats, float]]:
        keys, table, fixed = self.space.op_table
        ops = [Op.parse(k) for k in keys]
        out = {}
        for name in COUNTS:
            each = np.asarray([getattr(op, name) for op in ops], float)
            matrix = np.full((self.space.positions, max(self.space.num_choices)), np.nan)
            for i, choices in enumerate(table):
                matrix[i, : len(choices)] = [each[used].sum() for used in choices]
            out[name] = (matrix, float(each[fixed].sum()))
        return out


def check_feasible(problem: Problem) -> None:
    """Prove that each hard limit can be kept, where the space is additive in what it limits.

    Raises :class:`InfeasibleError` that names the cheapest architecture and its value, also where a device supports no
    choice at some position. Limits on values that are not additive, or that only evaluation gives, prove nothing; nor
    do several limits that can each be kept but not together.
    """
    values = problem.cheap_values
    if not isinstance(values, SpaceValues):
        return
    for name in dict.fromkeys((*problem.limits, *values.predicted)):
        costs = values.cost_matrix(name)
        if costs is None:
            continue
        matrix, _ = costs
        if (hopeless := np.flatnonzero(np.isnan(matrix).all(axis=1))).size:
            raise problem.infeasible(f"{name}: the device supports no choice at position {hopeless[0]}", None)
        cheapest: Arch = tuple(int(c) for c in np.nanargmin(matrix, axis=1))
        if name in problem.limits and _beyond(problem, name, cheapest):
            raise problem.infeasible("proved: the space is additive, so its cheapest architecture is known", cheapest)


def _beyond(problem: Problem, name: str, cheapest: Arch) -> bool:
    """Whether the cheapest architecture breaks the limit, and with it every other."""
    limit = problem.limits[name]
    v = problem.cheap([cheapest])
    key = problem.limited(name, v)
    if not v[key][0] > limit:
        return False
    if key == name or (problem.limit_on == "high" and v[name][0] > limit):
        return True
    # An end of an interval need not be least where the value is. Where the two differ by the same factor or the same
    # sum everywhere, it is.
    sample = problem.cheap(problem.space.sample_archs(256, seed=0))
    end, value = (np.append(sample[n], v[n]) for n in (key, name))
    known = np.isfinite(end) & np.isfinite(value)
    return bool(min(_spread((end / value)[known]), _spread((end - value)[known])) < 1e-9)


def _spread(x: Floats) -> float:
    return float(np.ptp(x) / max(abs(float(x.mean())), 1e-12)) if len(x) and isfinite(float(x.mean())) else inf
