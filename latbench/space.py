"""The contract of search spaces: positions × choices, and the network of each architecture.

A space says how an architecture becomes blocks (:meth:`SearchSpace.build`); the base class makes everything else of it:
networks, the list of distinct Ops, cost matrices, sampling, mutation, encodings.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from math import prod
from operator import index
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from latbench.errors import ArchitectureError, ConfigError, ModelError, NotAdditiveError
from latbench.network import Network, NetworkBuilder
from latbench.op import Op

if TYPE_CHECKING:
    import torch

    from latbench.device import Unit
    from latbench.supernet import Supernet
    from latbench.visit import ArchEstimates

Arch = tuple[int, ...]


class SumModel(Protocol):
    """What a sum over Ops asks of a latency model."""

    @property
    def overhead_ms(self) -> float:
        """Constant per network, milliseconds."""
        ...

    def op_costs(self, keys: list[str]) -> npt.NDArray[np.float64]:
        """Milliseconds of each Op key, NaN where unsupported."""
        ...


class CostModel(SumModel, Protocol):
    """What a space asks of a latency model: a part of :class:`~latbench.predictor.Predictor`."""

    def predict_archs(self, space: SearchSpace, archs: npt.ArrayLike) -> ArchEstimates:
        """Milliseconds of (n, positions) architectures."""
        ...


class SearchSpace(ABC):
    """Positions × choices. An architecture is a tuple of choice indices, one a position.

    Subclasses set ``name`` and ``params`` (every argument that made the space, so that ``load_space(name, **params)``
    gives an equal one) and implement :attr:`num_choices`, :meth:`choice_label` and :meth:`build`.
    """

    name: str
    params: dict[str, Any]
    #: True where the block at a position depends on that position's choice alone and every network holds the same
    #: fixed blocks, so that costs add up over positions.
    additive: bool = True

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.spec == self.spec

    def __hash__(self) -> int:
        return hash((type(self), json.dumps(self.spec, sort_keys=True)))

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{k}={v!r}' for k, v in self.params.items())})"

    # -- what a space must say ----------------------------------------------------------------------------------

    @property
    @abstractmethod
    def num_choices(self) -> tuple[int, ...]:
        """Number of choices at each position."""

    @abstractmethod
    def choice_label(self, position: int, choice: int) -> str:
        """A short name for people, e.g. ``k5 e6 se``."""

    @abstractmethod
    def build(self, b: NetworkBuilder, arch: Arch) -> str:
        """Add the blocks of an architecture to a builder; gives the output tensor.

        The block of position ``i`` is added under scope ``positions.i`` with ``choice=arch[i]`` (a position that
        becomes several blocks uses ``positions.i.<name>``); fixed blocks under other scopes. All nodes are in blocks.
        """

    def gives_zeros(self, position: int, choice: int) -> bool:
        """For choices that become no block: True if they give zeros, False if they hand their input on."""
        return False

    def absent(self, position: int) -> int | None:
        """The choice that leaves out a position and all behind it, where a network may have grown no further; None
        where every network has the position. Searchers that grow networks position by position use it."""
        return None

    def eager(self) -> SearchSpace:
        """The form of this space whose networks an eager framework runs, with what a compiler would drop; else itself.

        Positions and choices are the same.
        """
        return self

    def live_archs(self, archs: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """(n, positions) architectures with each choice that the output does not depend on as the choice that it
        amounts to. Architectures that then are equal are the same network to a compiler."""
        return self.validate_archs(archs)

    def structure(self, archs: npt.ArrayLike) -> tuple[list[str], npt.NDArray[np.float64]]:
        """``(names, values)``, values (n, names): how an architecture's choices are arranged, in numbers that counts of
        Ops do not tell, e.g. the longest path through a cell. A chain of blocks has none."""
        return [], np.zeros((len(self.validate_archs(archs)), 0))

    def factors(self, position: int) -> tuple[int, ...]:
        """How many values each property has that the choices of a position combine, the last fastest.

        E.g. (3, 2, 2) for kernel × expand × se. Choices beyond their product (``zero``) combine nothing. Searchers use
        it to change one property at a time; here all choices are values of one property.
        """
        return (self.num_choices[position],)

    # -- what follows -------------------------------------------------------------------------------------------

    @property
    def spec(self) -> dict[str, Any]:
        """``{"name": …, **params}``: plain JSON values that make the space again."""
        return {"name": self.name, **self.params}

    @property
    def positions(self) -> int:
        """Number of positions."""
        return len(self.num_choices)

    @property
    def size(self) -> int:
        """Number of architectures, exact."""
        return prod(self.num_choices)

    def validate(self, arch: Iterable[int]) -> Arch:
        """The architecture as a tuple of ints. Raises :class:`ArchitectureError` naming position and choices."""
        try:
            out = tuple(index(c) for c in arch)
        except (TypeError, ValueError) as e:
            raise ArchitectureError(f"{self.name}: an architecture is a sequence of integers, not {arch!r}") from e
        if len(out) != self.positions:
            raise ArchitectureError(f"{self.name} has {self.positions} positions; got {len(out)} choices")
        for i, (c, n) in enumerate(zip(out, self.num_choices, strict=True)):
            if not 0 <= c < n:
                raise ArchitectureError(f"{self.name}: position {i} has choices 0–{n - 1}; got {c}")
        return out

    def validate_archs(self, archs: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """An (n, positions) integer array, checked. Raises :class:`ArchitectureError` naming the first bad row."""
        a = np.asarray(archs)
        if a.ndim != 2 or a.shape[1] != self.positions or not np.issubdtype(a.dtype, np.integer):
            raise ArchitectureError(
                f"{self.name}: expected an (n, {self.positions}) array of integers, got {a.dtype} {a.shape}"
            )
        bad = ((a < 0) | (a >= np.asarray(self.num_choices))).any(axis=1)
        if bad.any():
            row = int(np.argmax(bad))
            try:
                self.validate(a[row].tolist())
            except ArchitectureError as e:
                raise ArchitectureError(f"row {row}: {e}") from None
        return a.astype(np.int64, copy=False)

    def network(self, arch: Iterable[int]) -> Network:
        """The network of an architecture."""
        a = self.validate(arch)
        b = NetworkBuilder(f"{self.name}-{'-'.join(map(str, a))}", self.params.get("dtype", "f32"))
        out = self.build(b, a)
        return b.build(out, origin={"space": self.spec, "arch": list(a)})

    def sample(self, seed: int | np.random.Generator | None = None) -> Arch:
        """One architecture, uniformly."""
        rng = np.random.default_rng(seed)
        return tuple(int(c) for c in rng.integers(0, self.num_choices))

    def sample_archs(self, n: int, seed: int | np.random.Generator | None = None) -> npt.NDArray[np.int64]:
        """``n`` architectures, uniformly and independently: (n, positions)."""
        return np.random.default_rng(seed).integers(0, self.num_choices, (n, self.positions))

    def mutate(self, arch: Iterable[int], seed: int | np.random.Generator | None = None, positions: int = 1) -> Arch:
        """A copy in which ``positions`` random positions (those with more than one choice) have another choice."""
        rng, a = np.random.default_rng(seed), list(self.validate(arch))
        free = [i for i, n in enumerate(self.num_choices) if n > 1]
        for i in rng.choice(free, min(positions, len(free)), replace=False):
            a[i] = int((a[i] + rng.integers(1, self.num_choices[i])) % self.num_choices[i])
        return tuple(a)

    def crossover(self, a: Iterable[int], b: Iterable[int], seed: int | np.random.Generator | None = None) -> Arch:
        """Single-point crossover: the first choices of ``a``, then those of ``b``, at least one of each."""
        x, y = self.validate(a), self.validate(b)
        cut = int(np.random.default_rng(seed).integers(1, max(2, self.positions)))
        return x[:cut] + y[cut:]

    def encode(self, archs: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """One-hot encoding: (n, sum of num_choices)."""
        a = self.validate_archs(np.atleast_2d(np.asarray(archs)))
        offsets = np.concatenate([[0], np.cumsum(self.num_choices)[:-1]])
        out = np.zeros((len(a), sum(self.num_choices)), np.float32)
        np.put_along_axis(out, a + offsets, 1.0, axis=1)
        return out

    def features(self, archs: npt.ArrayLike) -> list[npt.NDArray[np.float32]]:
        """What makes networks of the space alike, for a learner: groups of numbers, (n, d) each.

        Here: which value each property has (:meth:`factors`; a choice beyond them is one of its own) at each position,
        and how often each has it over all positions. Spaces where several architectures become one network override it.
        """
        a = self.validate_archs(np.atleast_2d(np.asarray(archs)))
        each: list[npt.NDArray[np.float32]] = []
        often: dict[tuple[Any, ...], npt.NDArray[np.float32]] = {}
        for i, n in enumerate(self.num_choices):
            shape = self.factors(i)
            combined = int(np.prod(shape))
            digits = [*np.unravel_index(np.minimum(a[:, i], combined - 1), shape), np.maximum(a[:, i] - combined, -1)]
            for which, (digit, k) in enumerate(zip(digits, (*shape, n - combined), strict=True)):
                there = a[:, i] < combined if which < len(shape) else True
                one_hot = ((digit[:, None] == np.arange(k)) & np.reshape(there, (-1, 1))).astype(np.float32)
                each.append(one_hot)
                key = (n, shape, which)
                often[key] = often[key] + one_hot if key in often else one_hot
        return [np.hstack(each), np.hstack(list(often.values()))]

    def decode(self, encoding: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """The inverse of :meth:`encode` (the largest entry of each position): (n, positions)."""
        e = np.atleast_2d(np.asarray(encoding))
        if e.shape[1] != sum(self.num_choices):
            raise ArchitectureError(f"{self.name}: an encoding has {sum(self.num_choices)} columns, got {e.shape[1]}")
        parts = np.split(e, np.cumsum(self.num_choices)[:-1], axis=1)
        return np.stack([p.argmax(axis=1) for p in parts], axis=1)

    # -- Ops and costs ------------------------------------------------------------------------------------------

    def covering_archs(self) -> list[Arch]:
        """Architectures in whose networks every choice of every position and every distinct Op of the space occurs.

        Here: choice ``c`` everywhere it exists, else the last. Spaces where a block depends on several positions
        override it.
        """
        return [tuple(min(c, n - 1) for n in self.num_choices) for c in range(max(self.num_choices))]

    @cached_property
    def _block_ops(self) -> list[Op]:
        seen: dict[str, Op] = {}
        for arch in self.covering_archs():
            for block in self.network(arch).blocks:
                seen.setdefault(block.op.key, block.op)
        return list(seen.values())

    def ops(
        self, level: Literal["block", "unit"] = "block", units: Callable[[Network], Sequence[Unit]] | None = None
    ) -> list[Op]:
        """Every distinct Op of the space once, in a stable order.

        Units depend on the runtime: level "unit" needs ``units``, e.g. an open device's ``device.units``.
        """
        if level == "block":
            return list(self._block_ops)
        if units is None:
            raise ConfigError("units depend on the runtime: pass units=device.units (of an open device)")
        seen: dict[str, Op] = {}
        for arch in self.covering_archs():
            for unit in units(self.network(arch)):
                seen.setdefault(unit.op.key, unit.op)
        return list(seen.values())

    @cached_property
    def op_table(self) -> tuple[list[str], list[list[list[int]]], list[int]]:
        """For additive spaces: ``(keys, positions, fixed)``.

        ``positions[i][c]`` lists the indices into ``keys`` of the blocks that choice ``c`` of position ``i`` becomes,
        ``fixed`` those of the blocks that every network has. Raises :class:`NotAdditiveError`, and
        :class:`ModelError` for a choice that :meth:`covering_archs` leaves out.
        """
        if not self.additive:
            raise NotAdditiveError(
                f"{self.name}: what a position costs depends on the other positions; use predict_archs instead"
            )
        column: dict[str, int] = {}
        table: list[list[list[int]]] = [[[] for _ in range(n)] for n in self.num_choices]
        fixed: list[int] = []
        seen: set[tuple[int, int]] = set()
        for arch in self.covering_archs():
            new = set(enumerate(arch)) - seen
            for block in self.network(arch).blocks:
                k = column.setdefault(block.op.key, len(column))
                if block.name.startswith("positions."):
                    i = int(block.name.split(".")[1])
                    if (i, arch[i]) in new:
                        table[i][arch[i]].append(k)
                elif not seen:
                    fixed.append(k)
            seen |= new
        for i, n in enumerate(self.num_choices):
            if unseen := [c for c in range(n) if (i, c) not in seen]:
                raise ModelError(
                    f"{self.name}: covering_archs() holds no architecture with choice {unseen[0]} at position {i}, so "
                    "that its blocks are not known; every choice of every position must occur"
                )
        return list(column), table, fixed

    def cost_matrix(self, model: SumModel) -> tuple[npt.NDArray[np.float64], float]:
        """``(matrix, constant)`` in milliseconds; NaN where a choice is unsupported or does not exist.

        ``matrix`` has shape (positions, most choices); an architecture costs the sum of its entries plus the constant.
        Raises :class:`NotAdditiveError`.
        """
        keys, table, fixed = self.op_table
        costs = model.op_costs(keys)
        matrix = np.full((self.positions, max(self.num_choices)), np.nan)
        for i, choices in enumerate(table):
            for c, ops in enumerate(choices):
                matrix[i, c] = costs[ops].sum()
        return matrix, float(costs[fixed].sum() + model.overhead_ms)

    def usage(self, archs: npt.ArrayLike) -> tuple[list[str], npt.NDArray[np.int64]]:
        """``(keys, counts)``: the keys of :meth:`ops`, and how often each occurs in each architecture's network.

        ``archs`` is an (n, positions) integer array, ``counts`` (n, keys); ``counts @ costs`` predicts all of them.
        Additive spaces gather from :attr:`op_table`; others build the network of each distinct architecture once.
        """
        a = self.validate_archs(archs)
        keys = [op.key for op in self.ops()]
        if self.additive:
            counts = np.zeros((len(a), len(keys)), np.int64)
            table_keys, table, fixed = self.op_table
            column = {k: j for j, k in enumerate(keys)}
            place = [column[k] for k in table_keys]
            for j in fixed:
                counts[:, place[j]] += 1
            for i, choices in enumerate(table):
                rows = np.zeros((len(choices), len(keys)), np.int64)
                for c, used in enumerate(choices):
                    np.add.at(rows[c], [place[j] for j in used], 1)
                counts += rows[a[:, i]]
            return keys, counts
        distinct, where = np.unique(a, axis=0, return_inverse=True)
        built = [self._usage_row(tuple(arch.tolist()), keys) for arch in distinct]
        return keys, np.array(built, np.int64).reshape(-1, len(keys))[where.reshape(-1)]

    def _usage_row(self, arch: Arch, keys: list[str]) -> npt.NDArray[np.int64]:
        row = self._usage_rows.get(arch)
        if row is None:
            ops = self.network(arch).ops()
            if unlisted := set(ops) - set(keys):
                raise ModelError(f"{self.name}: covering_archs() does not reach the Op {min(unlisted)} of {arch}")
            row = self._usage_rows[arch] = np.array([ops[k] for k in keys], np.int64)
        return row

    @cached_property
    def _usage_rows(self) -> dict[Arch, npt.NDArray[np.int64]]:
        return {}

    def trainable(self, arch: Iterable[int], *, seed: int = 0) -> torch.nn.Module:
        """The network of an architecture as it is trained from scratch, a module in training mode.

        Here ``network(arch).to_torch()``. Spaces whose networks change while they are trained give a module that has
        ``set_progress(fraction)``, to be called before every batch and with 1 at the end, ``penalty()``, to be added to
        the loss, and ``condensed()``, the trained :class:`Network`.
        """
        return self.network(arch).to_torch(seed=seed).train()

    def supernet(self, *, seed: int = 0) -> Supernet:
        """All choices of all positions as one torch module that runs any architecture.

        Its modules are those of ``space.network(arch).to_torch()``: with weights copied by name, outputs are equal.
        """
        from latbench.supernet import Supernet

        return Supernet(self, seed=seed)


def arch_name(arch: Sequence[int]) -> str:
    """An architecture as one word, as ``latbench predict SPACE:…`` takes it."""
    return "-".join(map(str, arch))


def file_stem(arch: Arch) -> str:
    """The name of an architecture's files: :func:`arch_name`, a hash where that is too long."""
    name = arch_name(arch)
    return name if len(name) <= 100 else hashlib.sha256(name.encode()).hexdigest()[:32]
