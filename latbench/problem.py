"""The search problem: a space, objectives, limits, and the candidates that answer it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from latbench.space import Arch, SearchSpace


@dataclass(frozen=True)
class Objective:
    """Something to minimise, or with ``maximise`` to maximise: a name among a candidate's values.

    Written ``"error"``, ``"latency_ms"``, ``"-params"`` (a leading minus maximises) or, with several devices,
    ``"latency_ms@pixel1"``.
    """

    name: str
    maximise: bool = False
    weight: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Objective:
        """Read ``"error"`` or ``"-params"``."""
        return cls(text.lstrip("-"), text.startswith("-"))


@dataclass(frozen=True)
class Candidate:
    """An architecture with its values (natural units: error 0–1, latency_ms, params, macs, …).

    ``violation`` is 0 where all limits are kept, else the sum of relative excesses; infinite where a device does not
    support the architecture. ``number`` is the order of evaluation.
    """

    arch: Arch
    values: Mapping[str, float]
    violation: float = 0.0
    number: int = -1
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def feasible(self) -> bool:
        """True if all limits are kept."""
        return self.violation == 0.0


class AccuracyEvaluator(Protocol):
    """Gives the error of architectures. ``recipe`` names everything that its answers depend on: answers are cached by
    architecture × recipe."""

    recipe: str

    def evaluate(self, space: SearchSpace, archs: Sequence[Arch]) -> Sequence[Mapping[str, float]]:
        """For each architecture its values, ``error`` (a fraction, 0–1) among them."""
        ...


@dataclass(frozen=True)
class Problem:
    """What a searcher is asked: minimise ``objectives`` over ``space`` within hard ``limits``.

    ``limits`` maps a value's name to its largest allowed value; ``soft_limits`` likewise, but breaking one only counts
    against a candidate among equals. ``cheap`` evaluates everything that needs no training (latency, params, macs, …)
    for an (n, positions) array at once: name → (n,) array, with ``violation`` among them. Searchers may call it as often
    as they like; only full evaluations count against the budget.
    """

    space: SearchSpace
    objectives: tuple[Objective, ...]
    limits: Mapping[str, float] = field(default_factory=dict)
    soft_limits: Mapping[str, float] = field(default_factory=dict)
    cheap: Any = None

    def matrix(self, candidates: Sequence[Candidate]) -> npt.NDArray[np.float64]:
        """Objective values to minimise: (n, objectives)."""
        sign = [-1.0 if o.maximise else 1.0 for o in self.objectives]
        rows = [[s * c.values[o.name] for s, o in zip(sign, self.objectives, strict=True)] for c in candidates]
        return np.asarray(rows, float).reshape(len(candidates), len(self.objectives))
