"""What a search by gradients weighs against accuracy: expectations of values that need no training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from latbench.errors import ConfigError
from latbench.problem import Problem
from latbench.space import Arch

if TYPE_CHECKING:
    import torch

    from latbench.expected import Expectation

Floats = npt.NDArray[np.float64]
#: Architectures whose cost tells what a target on a value means where the limit is on its upper end.
_SAMPLE = 256


class Costs:
    """What a search weighs against accuracy: expected values that need no training, as one ratio to their targets.

    ``names`` are by default the objectives that a model predicts, without any those that are counted (``macs``,
    ``params``), without any what is limited. A target is what was given, else the limit on the value, else what an
    architecture of equal chances costs. Raises :class:`ConfigError` for a name that is not known without training.
    """

    def __init__(
        self, searcher: str, problem: Problem, names: str | Sequence[str] | None, target: float | None
    ) -> None:
        self.problem = problem
        known = list(problem.cheap_values.names) if problem.cheap_values is not None else []
        if names is None:
            wanted = [o.name for o in problem.objectives if o.name in known and not o.maximise]
            predicted = [n for n in wanted if n not in ("params", "macs")]
            self.names = predicted or wanted or [n for n in problem.limits if n in known]
        else:
            self.names = [names] if isinstance(names, str) else list(names)
            if wrong := [n for n in self.names if n not in known]:
                raise ConfigError(f"{searcher}: cost {wrong[0]!r} is not known without training; known: {known}")
        if target is not None and (isinstance(target, bool) or not isinstance(target, int | float) or not target > 0):
            raise ConfigError(f"{searcher}: target must be a positive number, got {target!r}")
        if target is not None and len(self.names) > 1:
            both = ", ".join(self.names)
            raise ConfigError(f"{searcher}: target is one number, of several costs ({both}): name one with cost=")
        self._given = target
        self._limited = [n for n in problem.limits if n in known]
        self._expectations: dict[str, Expectation] = {}
        self._targets: dict[str, float] = {}

    def __bool__(self) -> bool:
        return bool(self.names)

    @property
    def target(self) -> float:
        """The target of the first name, in its unit; 1 without any."""
        return self.target_of(self.names[0]) if self.names else 1.0

    def target_of(self, name: str) -> float:
        """The target of a value, in its unit."""
        if name not in self._targets:
            self._targets[name] = self._find_target(name)
        return self._targets[name]

    def expected_ratio(self, probs: Sequence[torch.Tensor], seed: int, samples: int = 16) -> torch.Tensor:
        """Mean over the names of expectation / target, a scalar with gradients to ``probs``."""
        parts = [self._expectation(n)(probs, samples=samples, seed=seed) / self.target_of(n) for n in self.names]
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total / len(parts)

    def ratios(self, archs: Sequence[Arch]) -> Floats:
        """Mean over the names of value / target, for each architecture."""
        values = self.problem.cheap(list(archs))
        return np.asarray(np.mean([values[n] / self.target_of(n) for n in self.names], axis=0))

    def expected(self, probs: Sequence[Floats], seed: int) -> dict[str, float]:
        """Name → expectation, in the value's own unit."""
        tensors = _tensors(probs)
        return {n: float(self._expectation(n)(tensors, seed=seed)) for n in self.names}

    def of_limits(self, probs: Sequence[Floats]) -> list[Floats]:
        """For each position what each choice adds to the limited values, as shares of their limits."""
        out = [np.zeros(len(q)) for q in probs]
        for name in self._limited:
            tensors = [t.requires_grad_() for t in _tensors(probs)]
            self._expectation(name)(tensors, seed=0).backward()
            for total, t in zip(out, tensors, strict=True):
                total += t.grad.numpy() / self.problem.limits[name]
        return out

    def _expectation(self, name: str) -> Expectation:
        if name not in self._expectations:
            from latbench.latency_loss import expectation

            self._expectations[name] = expectation(self.problem, name)
        return self._expectations[name]

    def _find_target(self, name: str) -> float:
        limit = self.problem.limits.get(name)
        if self._given is not None:
            return float(self._given)
        values = self.problem.cheap(self.problem.space.sample_archs(_SAMPLE, seed=0))
        if limit is None:
            return float(np.nanmean(values[name]))
        # The limit is on the upper end of the interval, the target on the value.
        checked = values[self.problem.limited(name, values)]
        return float(limit * np.nanmedian(values[name] / checked))


def _tensors(probs: Sequence[Floats]) -> list[torch.Tensor]:
    import torch

    return [torch.from_numpy(np.array(q)) for q in probs]
