"""Expected latency of a distribution over architectures, differentiable in its probabilities.

With independent choice probabilities p the expectation is E(p) = Σ_a Π_i p_i(a_i) · latency(a); for additive spaces
that is Cai et al. 2019, eq. 5 and 6. It is exact where costs add up over positions, and where the space is small enough
to enumerate; else it is sampled, by conditional means: ∂E/∂p_i(c) = E[latency(a) | a_i = c].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from latbench.errors import ConfigError, NotAdditiveError, UnsupportedOpError
from latbench.with_torch import torch

if TYPE_CHECKING:
    from latbench.space import CostModel, SearchSpace

Floats = npt.NDArray[np.float64]
#: Up to this many architectures are enumerated rather than sampled.
ENUMERATED = 20_000


def expected_latency(
    model: CostModel, space: SearchSpace, probs: Any, *, samples: int = 64, seed: int = 0
) -> torch.Tensor:
    """Expected latency in milliseconds, a scalar tensor with gradients to ``probs``.

    ``probs`` is a (positions, choices) tensor, zero where a position has fewer choices, or one tensor of probabilities
    per position. Where nothing is exact, ``samples`` architectures are drawn from ``seed``; value and gradient are then
    unbiased over seeds, so a training loop passes its step number. Sampling evaluates every choice of every position
    in each drawn architecture (common random numbers), which is what keeps the gradient's noise low.

    A choice that the device does not support may only have probability 0: raises :class:`UnsupportedOpError` naming
    position and choice otherwise, and :class:`ConfigError` for probabilities of a wrong shape or sum.
    """
    p = _per_position(space, probs)
    try:
        matrix, constant = space.cost_matrix(model)
    except NotAdditiveError:
        return _enumerated(model, space, p) if space.size <= ENUMERATED else _sampled(model, space, p, samples, seed)
    if np.isnan(constant):
        raise UnsupportedOpError("fixed blocks", f"the device does not support a block that all of {space.name} has")
    total = torch.as_tensor(constant, dtype=p[0].dtype, device=p[0].device)
    for i, q in enumerate(p):
        total = total + (q * _costs(space, i, matrix[i, : len(q)], q)).sum()
    return total


def _per_position(space: SearchSpace, probs: Any) -> list[torch.Tensor]:
    """The probabilities of each position's own choices, checked."""
    rows = list(probs)
    if len(rows) != space.positions:
        raise ConfigError(f"{space.name} has {space.positions} positions; got probabilities for {len(rows)}")
    out = []
    for i, (row, n) in enumerate(zip(rows, space.num_choices, strict=True)):
        q = torch.as_tensor(row)
        q = q if q.is_floating_point() else q.to(torch.get_default_dtype())
        if q.dim() != 1 or len(q) < n or bool((q[n:] != 0).any()):
            raise ConfigError(f"{space.name}: position {i} has {n} choices; got probabilities {q.tolist()}")
        values = q.detach()
        # The tolerance admits float16 sums and refuses logits.
        if not bool((values >= 0).all()) or abs(float(values.double().sum()) - 1) > 1e-2:
            raise ConfigError(f"{space.name}: probabilities of position {i} must be ≥ 0 and sum to 1, got {q.tolist()}")
        out.append(q[:n])
    return out


def _costs(space: SearchSpace, i: int, costs: Floats, q: torch.Tensor) -> torch.Tensor:
    """A position's costs as a tensor; an unsupported choice of probability 0 costs nothing and pulls nowhere."""
    missing = np.isnan(costs)
    for c in np.flatnonzero(missing & (q.detach().cpu().numpy() > 0)):
        label = space.choice_label(i, int(c))
        raise UnsupportedOpError(f"positions.{i}", f"the device does not support choice {c} ({label}); give it 0")
    return torch.as_tensor(np.where(missing, 0.0, costs), dtype=q.dtype, device=q.device)


def _enumerated(model: CostModel, space: SearchSpace, p: Sequence[torch.Tensor]) -> torch.Tensor:
    """Σ_a Π_i p_i(a_i) · latency(a), exactly."""
    archs = np.stack(np.meshgrid(*(np.arange(n) for n in space.num_choices), indexing="ij"), -1)
    latency = model.predict_archs(space, archs.reshape(-1, space.positions)).value
    _refuse_unsupported(space, archs.reshape(-1, space.positions), latency, p)
    total = torch.as_tensor(np.nan_to_num(latency), dtype=p[0].dtype, device=p[0].device).reshape(space.num_choices)
    for q in reversed(p):
        total = total @ q
    return total


def _sampled(model: CostModel, space: SearchSpace, p: Sequence[torch.Tensor], samples: int, seed: int) -> torch.Tensor:
    if samples < 1:
        raise ConfigError(f"samples must be at least 1, got {samples}")
    values = [q.detach().double().cpu().numpy() for q in p]
    uniform = np.random.default_rng(seed).random((samples, space.positions))
    drawn = np.stack([_draw(v, uniform[:, i]) for i, v in enumerate(values)], axis=1)
    # Every choice of every position in every drawn architecture, the other positions as drawn.
    owner = [(i, c) for i, n in enumerate(space.num_choices) for c in range(n)]
    archs = np.repeat(drawn[None], len(owner), axis=0)
    for row, (i, c) in enumerate(owner):
        archs[row, :, i] = c
    distinct, where = np.unique(archs.reshape(-1, space.positions), axis=0, return_inverse=True)
    latency = model.predict_archs(space, distinct).value
    _refuse_unsupported(space, distinct, latency, p)
    means = np.nan_to_num(latency[where.reshape(len(owner), samples)].mean(axis=1))
    per_position = np.split(means, np.cumsum(space.num_choices)[:-1])
    # Each position's conditional means give an unbiased value; their average has less noise than any of them.
    value = float(np.mean([v / v.sum() @ m for v, m in zip(values, per_position, strict=True)]))
    total = torch.as_tensor(value, dtype=p[0].dtype, device=p[0].device)
    for q, m in zip(p, per_position, strict=True):
        total = total + ((q - q.detach()) * torch.as_tensor(m, dtype=q.dtype, device=q.device)).sum()
    return total


def _draw(probs: Floats, uniform: Floats) -> npt.NDArray[np.int64]:
    """Choices by inverse distribution; never one of probability 0."""
    cumulative = np.cumsum(probs)
    last = int(np.flatnonzero(probs)[-1])
    return np.minimum(np.searchsorted(cumulative / cumulative[-1], uniform, side="right"), last)


def _refuse_unsupported(
    space: SearchSpace, archs: npt.NDArray[np.int64], latency: Floats, p: Sequence[torch.Tensor]
) -> None:
    """Raise where an architecture of positive probability has no latency."""
    possible = np.ones(len(archs), bool)
    for i, q in enumerate(p):
        possible &= q.detach().cpu().numpy()[archs[:, i]] > 0
    bad = np.flatnonzero(possible & np.isnan(latency))
    if len(bad):
        raise UnsupportedOpError(
            f"{space.name} {tuple(archs[bad[0]].tolist())}", "the device does not support it, yet it has a probability"
        )
