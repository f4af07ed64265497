"""What a distribution over pairs of meta-kernels costs: exactly as deployed, and as the paper counts it.

López et al. 2020 (eq. 11–13) add ``Σᵢ pᵢ LAT(opᵢ)`` over kernel sizes. But what is deployed is one merged kernel a
layer, of the larger of two sizes: a 3×3 beside a 7×7 costs a 7×7, so that a layer costs ``Σ_{a,b} p₁(a) p₂(b)
LAT(max(a, b))``, which the paper's sum never exceeds where larger kernels cost more. So a search thinks of what it
deploys in sizes, one a layer: :class:`Sizes` is that space, :func:`by_size` the problem in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from latbench.errors import ConfigError
from latbench.network import NetworkBuilder
from latbench.problem import CheapValues, Problem
from latbench.space import Arch, SearchSpace
from latbench.spaces.metakernel import KERNELS, MetaKernel
from latbench.with_torch import Tensor, torch

from .costs import Costs

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
#: Random networks that show whether a value adds up over layers, and how far off the sum may be.
_PROBES, _OFF = 64, 1e-6


class Sizes(SearchSpace):
    """The networks of a ``metakernel`` space by the size of each layer's merged kernel: one position a layer."""

    name = "metakernel-sizes"
    additive = False

    def __init__(self, pairs: MetaKernel) -> None:
        self.pairs, self.params = pairs, pairs.params

    @property
    def num_choices(self) -> tuple[int, ...]:
        """Three for each layer."""
        return (len(KERNELS),) * (self.pairs.positions // 2)

    def choice_label(self, position: int, choice: int) -> str:
        """E.g. ``5×5``."""
        return self.pairs.choice_label(2 * position, choice)

    def build(self, b: NetworkBuilder, arch: Arch) -> str:
        """That of two meta-kernels of the same size."""
        return self.pairs.build(b, tuple(np.repeat(arch, 2).tolist()))


class SizeValues:
    """The cheap values of a problem by sizes, each distinct network asked for once."""

    def __init__(self, values: CheapValues, layers: int) -> None:
        self._values, self._layers = values, layers
        self._known: dict[bytes, dict[str, float]] = {}
        self.cost_matrix = cache(self._cost_matrix)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the values."""
        return self._values.names

    @property
    def predicted(self) -> Mapping[str, Any]:
        """Models of the values."""
        found: Mapping[str, Any] = getattr(self._values, "predicted", {})
        return found

    def __call__(self, archs: Ints) -> dict[str, Floats]:
        """``archs`` is (n, layers) sizes; see :class:`latbench.problem.CheapValues`."""
        keys = [row.tobytes() for row in archs]
        new = {k: row for k, row in zip(keys, archs, strict=True) if k not in self._known}
        if new:
            found = self._values(np.repeat(np.stack(list(new.values())), 2, axis=1))
            columns = {n: column.tolist() for n, column in found.items()}
            for i, k in enumerate(new):
                self._known[k] = {n: column[i] for n, column in columns.items()}
        return {n: np.array([self._known[k][n] for k in keys], float) for n in self.names}

    def _cost_matrix(self, name: str) -> tuple[Floats, float] | None:
        """``(matrix, constant)`` where the value adds up over layers, to rounding, as far as random networks show."""
        matrix, constant = self.table(name)
        probes = np.random.default_rng(0).integers(0, len(KERNELS), (_PROBES, self._layers))
        values = self(probes)[name]
        summed = constant + matrix[np.arange(self._layers), probes].sum(axis=1)
        either = np.isnan(values) | np.isnan(summed)
        same = np.isnan(values) == np.isnan(summed)
        fits = either | (np.abs(summed - values) <= _OFF * np.abs(values))
        return (matrix, constant) if bool((same & fits).all()) and np.isfinite(constant) else None

    def table(self, name: str) -> tuple[Floats, float]:
        """``(matrix, constant)``: a network of 3×3 kernels, or of the smallest that is supported, and what each layer
        adds to it at each size: (layers, sizes), NaN for unsupported ones. The look-up table of eq. 13."""
        n = len(KERNELS)
        constants = self(np.repeat(np.arange(n)[:, None], self._layers, axis=1))[name]
        base = int(np.flatnonzero(np.isfinite(constants))[0]) if np.isfinite(constants).any() else 0
        archs = np.full((self._layers, n, self._layers), base)
        for i in range(self._layers):
            archs[i, :, i] = np.arange(n)
        values = self(archs.reshape(-1, self._layers))[name].reshape(self._layers, n)
        return values - constants[base], float(constants[base])


class PairValues:
    """The same values by pairs, for the searched space itself: those of sizes."""

    def __init__(self, sizes: SizeValues) -> None:
        self._sizes, self.predicted = sizes, sizes.predicted

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the values."""
        return self._sizes.names

    def __call__(self, archs: Ints) -> dict[str, Floats]:
        """``archs`` is (n, positions); see :class:`latbench.problem.CheapValues`."""
        return self._sizes(np.ascontiguousarray(archs.reshape(len(archs), -1, 2).max(axis=2)))


def by_size(problem: Problem, space: MetaKernel) -> tuple[Problem, Problem]:
    """``(pairs, sizes)``: the problem with its values remembered by size, and the same in :class:`Sizes`."""
    if problem.cheap_values is None:
        return problem, replace(problem, space=Sizes(space))
    values = SizeValues(problem.cheap_values, space.positions // 2)
    return replace(problem, cheap_values=PairValues(values)), replace(problem, space=Sizes(space), cheap_values=values)


def sizes(arch: Arch) -> Arch:
    """The size of each layer's merged kernel."""
    return tuple(max(arch[i : i + 2]) for i in range(0, len(arch), 2))


def of_larger(probs: Tensor) -> Tensor:
    """Distribution of the larger of two sizes: (positions, sizes) → (layers, sizes), with gradients."""
    # P(larger ≤ s) is the product of both distributions' sums up to s; rounding may leave a difference below zero.
    below = probs.cumsum(1)
    below = below[0::2] * below[1::2]
    larger: Tensor = (below - torch.nn.functional.pad(below[:, :-1], (1, 0))).clamp_min(0)
    return larger


class PairCosts(Costs):
    """A search's costs, of which ``counted`` says what is weighed: ``merged`` networks, or the paper's ``sum``.

    ``sizes`` is the problem by size.
    """

    def __init__(
        self, searcher: str, sizes: Problem, names: str | Sequence[str] | None, target: float | None, counted: str
    ) -> None:
        super().__init__(searcher, sizes, names, target)
        self._counted = counted
        self._tables: dict[str, tuple[Tensor, float]] = {}

    def ratio(self, probs: Tensor, seed: int) -> Tensor:
        """Mean over the costs of what is weighed / target; a scalar with gradients to ``probs`` (positions, sizes)."""
        if self._counted == "merged":
            return self.expected_ratio(list(of_larger(probs)), seed)
        parts = [self.summed(n, probs) / (len(self.names) * self.target_of(n)) for n in self.names]
        return torch.stack(parts).sum()

    def summed(self, name: str, probs: Tensor) -> Tensor:
        """``Σ_layers Σᵢ pᵢ LAT(opᵢ)`` of eq. 11–13, p the mean of a layer's two distributions."""
        if name not in self._tables:
            values = self.problem.cheap_values
            if not isinstance(values, SizeValues):
                raise ConfigError(f"{name} is not known without training")
            matrix, constant = values.table(name)
            self._tables[name] = torch.from_numpy(np.nan_to_num(matrix)), constant
        matrix, constant = self._tables[name]
        return constant + ((probs[0::2] + probs[1::2]) / 2 * matrix).sum()

    def expected(self, probs: Sequence[Floats], seed: int) -> dict[str, float]:
        """Of ``probs``, one distribution per position: what is expected of merged networks under a cost's own name,
        e.g. ``latency_ms``, and by the paper's sum under ``latency_sum_ms``."""
        p = torch.from_numpy(np.stack(list(probs)))
        out = super().expected(list(of_larger(p).numpy()), seed)
        for name in self.names:
            head, _, unit = name.partition("_")
            out["_".join(filter(None, (head, "sum", unit)))] = float(self.summed(name, p))
        return out
