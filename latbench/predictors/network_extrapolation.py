"""How far an architecture lies outside the measured networks, and how much wider ``network``'s intervals are there.

Leave-one-out errors say how right a regression is among networks like the measured ones, and nothing of a choice that
none of them made, or of twice their work. So what is new about a network is counted: choices that no measured network
made at that position, choices of a kind that none made anywhere, and the distance of its totals beyond the measured
range. How wrong estimates get with each is taken from the measured networks themselves: all that made a choice (or a
kind of choice, or the larger half by a total) are left out together, and estimated from the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import exp
from typing import Any

import numpy as np
import numpy.typing as npt

from latbench.predictors.encodings import TOTALS, encoder
from latbench.predictors.extrapolation import LEAST_GROWTH, MARGIN
from latbench.predictors.network_inputs import View
from latbench.predictors.network_models import Rows
from latbench.predictors.processes import Process, left_out_together
from latbench.space import SearchSpace

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

#: Rows on which it is learnt how wrong such estimates are; fewest rows that must be left, and fewest errors that tell.
LEARNT, LEAST_LEFT, LEAST_ERRORS = 400, 5, 5
#: The quantile of errors that counts, as for Ops (:func:`latbench.predictors.extrapolation.growths`).
_QUANTILE = 0.9
_NAMED = 3


def kinds_of_choices(space: SearchSpace | None, views: Sequence[View]) -> list[npt.NDArray[np.int64]]:
    """(choices,) for each view: a number for what is chosen, the same at all positions; empty without a space."""
    out = []
    for v in views:
        labels = [n.partition("=")[2] for n in encoder(space, v.kind).names[: v.choices]] if space is not None else []
        out.append(np.unique(labels, return_inverse=True)[1].astype(np.int64))
    return out


@dataclass(frozen=True)
class Extent:
    """What measured networks held in one view: ``seen`` (choices,), ``known`` (choices,) where the kind of choice was
    seen at some position, and the range ``low`` to ``high`` of the logarithms of amounts."""

    seen: Bools
    known: Bools
    low: Floats
    high: Floats

    @classmethod
    def of(cls, x: Floats, kinds: npt.NDArray[np.int64]) -> Extent:
        """Of rows ``x`` (n, d) and the ``kinds`` of its choices."""
        seen = np.asarray(x[:, : len(kinds)].any(axis=0))
        amounts = _amounts(x, len(kinds))
        return cls(seen, np.isin(kinds, kinds[seen]), amounts.min(axis=0), amounts.max(axis=0))

    def new(self, x: Floats) -> Floats:
        """(n, 3) of rows (n, d): choices that are unseen at their position though known elsewhere, choices of unknown
        kinds, and log units by which amounts lie outside the range."""
        made = x[:, : len(self.seen)] > 0
        amounts = _amounts(x, len(self.seen))
        excess = np.maximum(self.low - amounts, amounts - self.high).max(axis=1, initial=0.0)
        return np.stack([
            (made & ~self.seen & self.known).sum(axis=1),
            (made & ~self.known).sum(axis=1),
            np.where(excess > np.log(MARGIN), excess, 0.0),
        ], axis=1)  # fmt: skip


@dataclass(frozen=True)
class Growth:
    """How much wider an interval is, as a share of its usual width: for each ``unseen`` choice (they add up as
    independent errors do), each choice of an ``unknown`` kind, and each log unit ``beyond`` the measured range, or
    ``beyond_of_unknown`` with choices of unknown kinds, whose work may take time in proportion."""

    unseen: float
    unknown: float
    beyond: float
    beyond_of_unknown: float

    def widths(self, new: Floats) -> Floats:
        """(n,) what multiplies the width of intervals, from (n, 3) of :meth:`Extent.new`; 1 where nothing is new."""
        unseen, unknown, beyond = new.T
        far = beyond * np.where(unknown > 0, self.beyond_of_unknown, self.beyond)
        return np.asarray(np.sqrt(1 + unseen * self.unseen**2 + (unknown * self.unknown) ** 2 + far**2))


@dataclass(frozen=True)
class Extrapolation:
    """The extents of a fit's views, one each, and the growth of its intervals outside."""

    extents: tuple[Extent, ...]
    growth: Growth

    def new(self, x: Sequence[Floats]) -> Floats:
        """(n, 3) as :meth:`Extent.new`, from rows (n, d) of each view: the most that any of them shows."""
        return np.asarray(np.max([e.new(own) for e, own in zip(self.extents, x, strict=True)], axis=0))

    def describe(self, views: Sequence[View], space: SearchSpace | None) -> dict[str, Any]:
        """What the card says: growth, and what no measured network held."""
        lacking: dict[str, None] = {}
        for v, e in zip(views, self.extents, strict=True):
            if space is not None:
                names = encoder(space, v.kind).names
                lacking |= {names[i]: None for i in np.flatnonzero(~e.seen)}
        return {"width_per": asdict(self.growth), "unseen_choices": list(lacking)}

    def notes(self, views: Sequence[View], space: SearchSpace | None) -> tuple[str, ...]:
        """What the card notes where choices were measured in no network."""
        lacking = self.describe(views, space)["unseen_choices"]
        if not lacking:
            return ()
        named = ", ".join(lacking[:_NAMED]) + (", …" if len(lacking) > _NAMED else "")
        return (
            f"no measured network made {len(lacking)} of the choices ({named}): estimates with them are extrapolated",
        )

    # -- files --------------------------------------------------------------------------------------------------

    def to_files(self) -> tuple[dict[str, float], dict[str, npt.NDArray[Any]]]:
        """JSON values and arrays."""
        arrays: dict[str, npt.NDArray[Any]] = {}
        for i, e in enumerate(self.extents):
            arrays |= {f"extent{i}_{name}": np.asarray(a, np.float64) for name, a in vars(e).items()}
        return asdict(self.growth), arrays

    @classmethod
    def from_files(cls, d: Mapping[str, float], arrays: Mapping[str, npt.NDArray[Any]], views: int) -> Extrapolation:
        """The inverse of :meth:`to_files`. Raises :class:`KeyError`, :class:`TypeError`."""
        extents = tuple(
            Extent(
                arrays[f"extent{i}_seen"] > 0, arrays[f"extent{i}_known"] > 0,
                arrays[f"extent{i}_low"], arrays[f"extent{i}_high"],
            )
            for i in range(views)
        )  # fmt: skip
        return cls(extents, Growth(**d))


def learn(rows: Rows, process: Process, space: SearchSpace | None, seed: int) -> tuple[Extrapolation, Floats]:
    """The extrapolation of measured networks, by the ``process`` that was fitted to them, and (n,) how much wider the
    intervals are at each of them if the others alone had been measured."""
    kinds = kinds_of_choices(space, rows.views)
    x = rows.by_view()
    n = len(rows.y)
    some = np.sort(np.random.default_rng(seed).permutation(n)[:LEARNT])
    own = [v[some] for v in x]
    groups = list(_groups(own, kinds))
    inputs = {name: a[some] for name, a in rows.inputs.items()}
    noise = rows.known_noise[some]
    usual, errors = left_out_together(
        process, inputs, rows.y[some], process.weights[some], noise, [g for _, g in groups]
    )
    least = least_error(usual, process, noise)
    found: dict[str, list[Floats]] = {"unseen": [], "unknown": [], "beyond": []}
    for (why, group), e in zip(groups, errors, strict=True):
        new = np.max([Extent.of(v[~group], k).new(v[group]) for v, k in zip(own, kinds, strict=True)], axis=0)
        off, (unseen, unknown, beyond) = np.abs(e) / least, new.T
        if why == "unseen":
            told = (unseen > 0) & (unknown == 0) & (beyond == 0)
            # Squares add up: what each of k new choices adds to the usual error.
            found[why].append((off[told] ** 2 - 1) / unseen[told])
        else:
            amount = unknown if why == "unknown" else beyond
            found[why].append(off[amount > 0] / amount[amount > 0])
    rates = {why: np.concatenate([np.zeros(0), *parts]) for why, parts in found.items()}
    rate = {w: float(np.quantile(r, _QUANTILE)) if len(r) >= LEAST_ERRORS else None for w, r in rates.items()}
    # A kind of choice that nobody measured may make at least as much of a difference as there is between the measured
    # networks, however alike the measured kinds are; a single choice where nothing tells, too.
    spread = float(np.std(rows.y)) / least
    unseen = spread if rate["unseen"] is None else float(np.sqrt(max(rate["unseen"], 0.0)))
    in_proportion = 1.0 / least
    beyond = max(in_proportion if rate["beyond"] is None else rate["beyond"], LEAST_GROWTH * in_proportion)
    growth = Growth(unseen, max(rate["unknown"] or 0.0, unseen, spread), beyond, max(beyond, in_proportion))
    extents = tuple(Extent.of(v, k) for v, k in zip(x, kinds, strict=True))
    alone = np.max([_without_each(v, k) for v, k in zip(x, kinds, strict=True)], axis=0)
    return Extrapolation(extents, growth), growth.widths(alone)


def least_error(errors: Floats, process: Process, known_noise: Floats) -> float:
    """The usual error of left-out logarithms, no less than the deviation of their noise: errors (n,) that are smaller
    than that, as where a coarse clock shows the same number for all, are so by chance."""
    noise = float(np.exp(process.parameters[-1]) + np.median(known_noise))
    return max(float(np.quantile(np.abs(errors), _QUANTILE)), float(np.sqrt(noise)))


def warnings_of(
    new: Floats, views: Sequence[View], by: str = "the interval is widened by what such estimates were off"
) -> tuple[str, ...]:
    """What an estimate must say of a network, from its row (3,) of :meth:`Extrapolation.new`, and of its interval."""
    if not new.any():
        return ()
    unseen, unknown, beyond = new
    said = []
    if unseen:
        said.append(f"{unseen:.0f} of its choices were made at their position by no measured network")
    if unknown:
        said.append(f"{unknown:.0f} of its choices are of a kind that no measured network has anywhere")
    if beyond:
        what = f"its totals ({', '.join(TOTALS)})" if any(v.choices for v in views) else "its nodes or totals"
        said.append(f"{what} lie outside the measured range by a factor of up to {exp(beyond):.3g}")
    return (f"extrapolated: {'; '.join(said)}; {by}",)


def _amounts(x: Floats, choices: int) -> Floats:
    # Of a space the totals, which are logarithms; networks of no space have nothing but logarithms.
    return x[:, -len(TOTALS) :] if choices else x


def _groups(x: Sequence[Floats], kinds: Sequence[npt.NDArray[np.int64]]) -> Iterator[tuple[str, Bools]]:
    """Rows (n,) that are left out together, and what is new about them then; enough rows are left."""
    for own, kind in zip(x, kinds, strict=True):
        made = own[:, : len(kind)] > 0
        groups: list[tuple[str, Bools]] = [("unseen", made[:, j]) for j in range(len(kind))]
        groups += [("unknown", np.asarray(made[:, kind == k].any(axis=1))) for k in np.unique(kind)]
        groups += [("beyond", a > np.median(a)) for a in _amounts(own, len(kind)).T]
        yield from ((why, g) for why, g in groups if g.any() and (~g).sum() >= LEAST_LEFT)


def _without_each(x: Floats, kinds: npt.NDArray[np.int64]) -> Floats:
    """(n, 3) of :meth:`Extent.new` for each row (n, d), of the extent of the others."""
    made = x[:, : len(kinds)] > 0
    of_kind = np.stack([made[:, kinds == k].any(axis=1) for k in np.unique(kinds)], axis=1) if len(kinds) else made
    alone = made & (made.sum(axis=0) == 1)
    lonely = (of_kind & (of_kind.sum(axis=0) == 1))[:, kinds] if len(kinds) else made
    amounts = _amounts(x, len(kinds))
    ends = np.sort(amounts, axis=0)
    low = np.where(amounts == ends[0], ends[1], ends[0])
    high = np.where(amounts == ends[-1], ends[-2], ends[-1])
    excess = np.maximum(low - amounts, amounts - high).max(axis=1, initial=0.0)
    return np.stack([
        (alone & ~lonely).sum(axis=1), (made & lonely).sum(axis=1), np.where(excess > np.log(MARGIN), excess, 0.0)
    ], axis=1)  # fmt: skip
