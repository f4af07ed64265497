"""The search problem: a space, objectives, limits, and the candidates that answer it."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from latbench import pareto
from latbench.errors import ConfigError, InfeasibleError
from latbench.metric import METRICS, ends
from latbench.space import Arch, SearchSpace

if TYPE_CHECKING:
    from latbench.image_data import ImageData
    from latbench.predictor import Predictor

Floats: TypeAlias = npt.NDArray[np.float64]
LimitOn: TypeAlias = Literal["high", "value", "low"]


@dataclass(frozen=True)
class Objective:
    """Something to minimise, or with ``maximise`` to maximise: a name among a candidate's values.

    Written ``"error"``, ``"latency_ms"``, ``"-params"`` (a leading minus maximises) or, with several devices,
    ``"latency_ms@pixel1"``. ``weight`` is for searchers that weigh objectives.
    """

    name: str
    maximise: bool = False
    weight: float = 1.0

    @classmethod
    def parse(cls, text: str | Objective) -> Objective:
        """Read ``"error"`` or ``"-params"``. Raises :class:`ConfigError` for anything else."""
        if isinstance(text, Objective):
            return text
        m = re.fullmatch(r"(-?)(\w+(?:@\S+)?)", text)
        if m is None:
            raise ConfigError(f'objective {text!r}: expected a name, e.g. "error", "latency_ms@pixel1", "-params"')
        return cls(m[2], m[1] == "-")

    def __str__(self) -> str:
        return f"{'-' if self.maximise else ''}{self.name}"


@dataclass(frozen=True)
class Candidate:
    """An architecture with its values (natural units: error 0–1, latency_ms, params, macs, …).

    ``violation`` is 0 where all hard limits are kept, else the sum of relative excesses; infinite where a device does
    not support the architecture and where its evaluation failed (``info["failed"]`` says why, and the values that it
    lacks count as infinite). ``soft_violation`` is the same for soft limits. ``number`` is the order of evaluation.
    """

    arch: Arch
    values: Mapping[str, float]
    violation: float = 0.0
    number: int = -1
    info: Mapping[str, Any] = field(default_factory=dict)
    soft_violation: float = 0.0

    @property
    def feasible(self) -> bool:
        """True if all hard limits are kept."""
        return self.violation == 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; an infinite violation is null. :meth:`from_json` reads them back, bit for bit."""
        d: dict[str, Any] = {
            "arch": list(self.arch),
            "values": dict(self.values),
            "violation": _null(self.violation),
            "soft_violation": _null(self.soft_violation),
            "number": self.number,
        }
        return {**d, "info": dict(self.info)} if self.info else d

    @classmethod
    def from_json(cls, d: Mapping[str, Any]) -> Candidate:
        """The inverse of :meth:`to_json`. Raises KeyError, TypeError or ValueError for anything else."""
        broken = {n: inf if d[n] is None else float(d[n]) for n in ("violation", "soft_violation")}
        arch = tuple(int(c) for c in d["arch"])
        values = {str(n): float(v) for n, v in d["values"].items()}
        return cls(arch, values, number=int(d["number"]), info=dict(d.get("info", {})), **broken)

    @property
    def evaluated(self) -> bool:
        """False if it broke a hard limit on a value known without evaluation, so that it was not evaluated."""
        return bool(self.info.get("evaluated", True))


def _null(x: float) -> float | None:
    return x if isfinite(x) else None


class AccuracyEvaluator(ABC):
    """Gives the error of architectures.

    ``recipe`` names everything that the answers depend on, the seed too: answers are stored by architecture × recipe
    and never asked for twice (``cache=False``: answers are free, so nothing is stored). ``values`` are the names that
    every answer holds. ``batch`` is how many architectures one call may be given: 1 where an answer takes long, so that
    each is stored as soon as it is there.
    """

    recipe: str
    values: tuple[str, ...] = ("error",)
    batch: int = 1
    cache: bool = True
    #: False where ``recipe`` does not name all that the answers depend on: a search then starts anew each time.
    resumes: bool = True

    #: A folder for what this ``recipe`` needs between runs (weights of a supernet), which need not exist yet, or None.
    #: A search sets it before :meth:`prepare`; those that share a store, a space and a recipe share it, whatever their
    #: devices.
    folder: Path | None = None

    @property
    def images(self) -> ImageData | None:
        """The labelled images that answers are of, and that searchers take which train by themselves; else None."""
        return None

    @property
    def origin(self) -> Mapping[str, Any]:
        """What the answers came from beside the recipe, for a result's provenance: e.g. which weights, when trained."""
        return {}

    def check(self, space: SearchSpace) -> None:
        """Raise :class:`~latbench.errors.ConfigError` if networks of this space cannot be evaluated."""
        return

    def prepare(self, space: SearchSpace, report: Callable[[str], None]) -> None:
        """Do, once before the first evaluation, what all of them need; ``report`` is told how far it is.

        It keeps what it has done in :attr:`folder`, so that after a crash it goes on, and another search has it.
        """
        return

    @abstractmethod
    def evaluate(self, space: SearchSpace, archs: Sequence[Arch]) -> Sequence[Mapping[str, float]]:
        """For each architecture its values, ``error`` (a fraction, 0–1) among them.

        NaN says that the evaluation failed (a training that diverged); so does a
        :class:`~latbench.errors.ModelError`, for all of ``archs``. Any other exception ends the search.
        """

    def test(self, space: SearchSpace, archs: Sequence[Arch]) -> Sequence[Mapping[str, float]] | None:
        """As :meth:`evaluate`, on data that no search has seen; None where there are none.

        The best of many by :meth:`evaluate` is best by luck, too, so that its error there is too low: final reports
        give this one.
        """
        return None


class CheapValues(Protocol):
    """Values that need no training, for many architectures at once."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the values."""
        ...

    def __call__(self, archs: npt.NDArray[np.int64]) -> Mapping[str, Floats]:
        """``archs`` is (n, positions); name → (n,) array, NaN where a device does not support the architecture."""
        ...


@dataclass(frozen=True)
class Problem:
    """What a searcher is asked: minimise ``objectives`` over ``space`` within hard ``limits``.

    ``limits`` maps a value's name to its largest allowed value. ``soft_limits`` likewise, but breaking one only counts
    against a candidate among equals. A limit on what a model predicts is checked against the upper end of its interval
    (``latency_high_ms`` for ``latency_ms``), with ``limit_on="value"`` against the value itself, with
    ``limit_on="low"`` against the lower end: then whatever may keep it is worth an evaluation, and a measurement has to
    decide. ``level`` is that of the intervals.
    """

    space: SearchSpace
    objectives: tuple[Objective, ...]
    limits: Mapping[str, float] = field(default_factory=dict)
    soft_limits: Mapping[str, float] = field(default_factory=dict)
    cheap_values: CheapValues | None = None
    limit_on: LimitOn = "high"
    level: float = 0.9

    def cheap(self, archs: npt.ArrayLike) -> dict[str, Floats]:
        """Everything that needs no training, for an (n, positions) array: name → (n,) array.

        Among the names are ``violation`` and ``soft_violation`` as far as these values tell. Searchers may call it as
        often as they like; only full evaluations count against the budget. Raises :class:`ArchitectureError`.
        """
        a = self.space.validate_archs(np.asarray(archs).reshape(-1, self.space.positions))
        values = dict(self.cheap_values(a)) if self.cheap_values is not None else {}
        hard = self._excess(self.limits, values, len(a))
        # A device that does not support the architecture breaks every limit, asked for or not.
        for name, column in values.items():
            if name.partition("@")[0] in METRICS:
                hard = np.where(np.isnan(column), inf, hard)
        return {**values, "violation": hard, "soft_violation": self._excess(self.soft_limits, values, len(a))}

    def candidate(
        self, arch: Arch, cheap: Mapping[str, float], evaluated: Mapping[str, float] | None, failed: str = ""
    ) -> Candidate:
        """An answer made of cheap values and those of the evaluator (None: not evaluated), or of why that failed."""
        values = {n: float(v) for n, v in {**cheap, **(evaluated or {})}.items() if isfinite(v)}
        unsupported = failed or not isfinite(cheap.get("violation", 0.0))
        for n in ("violation", "soft_violation"):
            values.pop(n, None)
        columns = {n: np.asarray([v]) for n, v in values.items()}
        hard, soft = (float(self._excess(limits, columns, 1)[0]) for limits in (self.limits, self.soft_limits))
        info = {"failed": failed} if failed else {} if evaluated is not None else {"evaluated": False}
        return Candidate(arch, values, inf if unsupported else hard, info=info, soft_violation=soft)

    def limited(self, name: str, known: Mapping[str, Any] | Sequence[str]) -> str:
        """The value that a limit on ``name`` is checked against."""
        low, high = ends(name)
        end = {"high": high, "value": name, "low": low}[self.limit_on]
        return end if end in known else name

    def chance(self, values: Mapping[str, Floats]) -> Floats | float:
        """The probability that networks keep their limits on what is predicted, from cheap values: (n,), or 1 without
        such limits.

        The error of a prediction is taken for log-normal, as wide as the upper end of its interval says.
        """
        from scipy.special import ndtr

        z, out = NormalDist().inv_cdf((1 + self.level) / 2), np.ones(())
        for name, limit in self.limits.items():
            if (high := values.get(ends(name)[1])) is not None:
                value = np.asarray(values[name])
                sd = np.log(np.maximum(high / value, 1)) / z
                out = out * ndtr(np.log(limit / value) / np.maximum(sd, 1e-9))
        return out

    @property
    def models(self) -> Mapping[str, Predictor]:
        """Name of each predicted value (``latency_ms``, ``energy_mj@tx1``) → its model; empty where none was given."""
        found: Mapping[str, Predictor] = getattr(self.cheap_values, "predicted", {})
        return found

    def cost_matrix(self, name: str) -> tuple[Floats, float] | None:
        """``(matrix, constant)`` of a cheap value that is a sum over positions, as :meth:`SearchSpace.cost_matrix` has
        it (predicted values, ``params``, ``macs``); None where it is no such sum."""
        of: Any = getattr(self.cheap_values, "cost_matrix", None)
        found: tuple[Floats, float] | None = of(name) if of is not None else None
        return found

    def matrix(self, candidates: Sequence[Candidate]) -> Floats:
        """Objective values to minimise: (n, objectives); infinite where a candidate lacks a value."""
        rows = [[-c.values.get(o.name, -inf) if o.maximise else c.values.get(o.name, inf) for o in self.objectives]
                for c in candidates]  # fmt: skip
        return np.asarray(rows, float).reshape(len(candidates), len(self.objectives))

    def front(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """The Pareto set: candidates that keep all limits and that none of these dominates, in order of evaluation."""
        f = self.matrix(candidates)
        feasible = [i for i, c in enumerate(candidates) if c.feasible and np.isfinite(f[i]).all()]
        best = pareto.nondominated(f[feasible])
        return [candidates[i] for i, keep in zip(feasible, best, strict=True) if keep]

    def infeasible(self, tried: str, arch: Arch | None, reason: str = "") -> InfeasibleError:
        """The error that says that nothing keeps the limits, naming the cheapest architecture and its values."""
        if arch is not None and (refusal := self._refusal(arch)):
            text = f"no architecture of {self.space.name} was found that the device takes ({tried})"
            return InfeasibleError(f"{text}; e.g. {list(arch)}: {refusal}" + (f"; {reason}" if reason else ""))
        text = f"no architecture of {self.space.name} keeps the limits ({tried})"
        if arch is not None:
            values = self.cheap([arch])
            for name, limit in self.limits.items():
                key = self.limited(name, values)
                if key in values:
                    text += (
                        f"; {name} ≤ {limit:g}: the cheapest found is {list(arch)} with {key} = {values[key][0]:.6g}"
                    )
        return InfeasibleError(text + (f"; {reason}" if reason else ""))

    def _refusal(self, arch: Arch) -> str:
        """Why a device does not support an architecture; "" where all do."""
        for name, column in self.cheap([arch]).items():
            if name.partition("@")[0] in METRICS and np.isnan(column[0]):
                why = getattr(self.cheap_values, "refusal", None)
                said: str = why(arch, name) if why is not None else ""
                return said or f"it has no {name}"
        return ""

    def _excess(self, limits: Mapping[str, float], values: Mapping[str, Floats], n: int) -> Floats:
        total = np.zeros(n)
        for name, limit in limits.items():
            key = self.limited(name, values)
            if key in values:
                v = values[key]
                total += np.where(np.isnan(v), inf, np.maximum(v / limit - 1, 0))
        return total
