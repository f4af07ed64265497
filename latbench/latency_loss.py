"""Losses that weigh a network's error against what it is expected to cost, for searchers and for your own training.

::

    cost = expectation(problem, "latency_ms")        # or Expectation.of_model(model, space)
    weigh = LatencyLoss("add-linear", target=8.0)
    probs = [alpha.softmax(0) for alpha in alphas]   # one tensor per position
    weigh(cross_entropy, cost(probs, seed=step)).backward()

The three losses are those of Cai, Zhu and Han, "ProxylessNAS", ICLR 2019: eq. 7 of the paper, and the two of the
released code; the authors found the plain sum of eq. 7 slightly worse than REINFORCE.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, log
from typing import Literal, TypeAlias, get_args

from latbench.errors import ConfigError
from latbench.expected import Expectation
from latbench.problem import Problem
from latbench.with_torch import Tensor

LossName: TypeAlias = Literal["additive", "add-linear", "mul-log"]
LOSSES: tuple[LossName, ...] = get_args(LossName)

#: Logarithms are taken of targets of at least this many milliseconds, or of whatever the unit is.
_LEAST = 10.0
_WEIGHTS = {"additive": 0.1, "add-linear": 0.1, "mul-log": 0.2}


@dataclass(frozen=True)
class LatencyLoss:
    """``loss(cross_entropy, expected)``, where ``expected`` is in the unit of ``target``.

    * ``additive``: CE + weight / target · E (eq. 7 with λ₂ = weight / target, so that ``weight`` has no unit);
    * ``add-linear``: CE + weight · (E − T) / T, the same gradient, zero at the target;
    * ``mul-log``: weight · CE · (ln E / ln T)^exponent.

    ``weight`` is by default that of the released code: 0.1 for sums, 0.2 for the product (its α); ``exponent`` is its
    β, 0.3. Unlike the sums, the product depends on the unit: near the target a percent of E counts exponent / ln T
    percent of the loss, so that what is right for the code's 80 ms is little for a million MACs, without bound for
    T = 1 and the wrong way below, where ln T is negative. So a target below 10 counts as 10, and E in proportion; from
    10 on the formula is the code's, and there is no jump between. E below e of those units counts as e.
    Raises :class:`~latbench.errors.ConfigError` for an unknown ``kind`` or a number out of range.
    """

    kind: LossName
    target: float
    weight: float | None = None
    exponent: float = 0.3

    def __post_init__(self) -> None:
        if self.kind not in LOSSES:
            raise ConfigError(f"latency loss {self.kind!r}: expected one of {', '.join(LOSSES)}")
        numbers = {"target": self.target, "weight": 1.0 if self.weight is None else self.weight}
        for what, x in {**numbers, "exponent": self.exponent}.items():
            least = 0.0 if what == "weight" else 1e-300
            if isinstance(x, bool) or not isinstance(x, int | float) or not least <= x < inf:
                raise ConfigError(f"latency loss {self.kind}: {what} must be a positive number, got {x!r}")

    def __call__(self, cross_entropy: Tensor, expected: Tensor) -> Tensor:
        """The loss, a scalar with gradients to both."""
        weight = _WEIGHTS[self.kind] if self.weight is None else self.weight
        if self.kind == "additive":
            return cross_entropy + weight * expected / self.target
        if self.kind == "add-linear":
            return cross_entropy + weight * (expected - self.target) / self.target
        scale = max(1.0, _LEAST / self.target)
        ratio = (expected * scale).log() / log(self.target * scale)
        # Below e of those units a network is so fast that the factor is as small as it may become.
        return weight * cross_entropy * ratio.clamp_min(1 / log(self.target * scale)) ** self.exponent


def expectation(problem: Problem, name: str) -> Expectation:
    """The expectation of one of a problem's values that need no training: ``latency_ms``, ``energy_mj@tx1``, ``macs``.

    Exact where the value is a sum over positions and in spaces small enough to be enumerated, else estimated without
    bias from samples; see :class:`latbench.expected.Expectation`. Raises :class:`ConfigError` for a value that is not
    known without training, naming those that are.
    """
    known = problem.cheap_values.names if problem.cheap_values is not None else ()
    if name not in known:
        raise ConfigError(f"nothing gives the value {name!r} without training; known: {', '.join(known) or 'none'}")
    return Expectation(problem.space, lambda archs: problem.cheap(archs)[name], problem.cost_matrix(name))
