"""DPP-Net's search: cells grow layer by layer, a surrogate tells their accuracy, Pareto selection keeps the best.

Dong, Cheng, Juan, Wei, Sun, "DPP-Net: Device-aware Progressive Search for Pareto-optimal Neural Architectures", ECCV
2018, section 3.3, after Liu et al., "Progressive Neural Architecture Search", ECCV 2018. Cells of ℓ layers are trained
(K = 128 of them), the surrogate learns their accuracy, each is mutated into all cells of ℓ + 1 layers, those that break
a hard constraint are dropped, and of the others the K best by Pareto rank over all objectives are trained next, until
cells have their full length. What a device gives (latency, memory, energy) and counts are not learnt but taken from the
problem, of as many devices as it has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from latbench.errors import ConfigError
from latbench.metric import LATENCY
from latbench.problem import Candidate, Problem
from latbench.searcher import Searcher, numbers, whole_option
from latbench.space import Arch, SearchSpace

from .dppnet_beliefs import Beliefs
from .sampling import Unseen, as_archs, check_state


class DppNet(Searcher):
    """Progressive search with a recurrent surrogate.

    ``cells`` is the paper's K: as many of each length are trained, or all there are; cells that are the same network
    are trained once. Where budget is left at the full
    length, rounds of as many follow among the extensions that were not trained, with a surrogate that has learnt from
    those before. ``steps`` is how long the surrogate is trained at each length, ``max_tries`` bounds the search for a
    network within the limits where growing found none.

    The space must say where its networks may end (:meth:`~latbench.space.SearchSpace.absent`): ``densecell`` with
    ``shortest``. Raises :class:`~latbench.errors.ConfigError` for others.
    """

    name = "dppnet"
    pick_words: ClassVar = {
        "pnas": "the least error, whatever it costs",
        "device": "the best compromise between error and the device's latency",
        "panacea": "the network whose worst objective is the least bad",
    }

    def __init__(
        self, problem: Problem, *, seed: int = 0, cells: int = 128, steps: int = 200, max_tries: int = 20_000
    ) -> None:
        super().__init__(problem, seed=seed)
        self.cells = self.batch = whole_option(self.name, "cells", cells, 1)
        self.steps = whole_option(self.name, "steps", steps, 1)
        self.max_tries = whole_option(self.name, "max_tries", max_tries, 1)
        self._shortest = _shortest(problem.space)
        self._rng = np.random.default_rng(seed)
        self._told: dict[Arch, Candidate] = {}
        self._asked: list[Arch] = []
        self._queue: list[Arch] = []
        #: Layers of the cells that are trained now (0: none yet), those cells, and those that they were grown from.
        self.length = 0
        self._level: list[Arch] = []
        self._parents: list[Arch] = []
        self._networks: dict[Arch, str] = {}
        self._beliefs = Beliefs(problem, seed, self.steps)

    # -- the contract -------------------------------------------------------------------------------------------

    def advance(self) -> bool:
        """Once all cells of a length are told: train the surrogate, and choose among their extensions."""
        return not self._queue and not self._asked and self._grow()

    def line(self, row: Mapping[str, float]) -> str:
        """``dppnet: 3 of 4 layers, extensions 90, …``."""
        rest = numbers({name: value for name, value in row.items() if name != "length"})
        return f"{self.name}: {row['length']:.0f} of {self.problem.space.positions} layers, {rest}"

    def ask(self, n: int) -> list[Arch]:
        """Up to ``n`` of the cells chosen for the present length, the most preferred first.

        Asked for more while answers are out, it grows those cells too.
        """
        self._queue = [a for a in self._queue if a not in self._told]
        if not self._queue and not self._grow() and not (self._asked or any(c.feasible for c in self._told.values())):
            # Nothing that grew keeps the limits: something else in the space may, or the error says what is nearest.
            tried = {*self._told, *self._asked}
            self._queue = Unseen(self.problem, self.seed, self.max_tries).draw(1, tried)
        out, self._queue = self._queue[:n], self._queue[n:]
        self._asked += out
        return out

    def tell(self, candidates: Sequence[Candidate]) -> None:
        """Remember the answers; the surrogate learns from them when all cells of a length are told."""
        for c in candidates:
            if c.arch in self._asked:
                self._asked.remove(c.arch)
            self._told.setdefault(c.arch, c)

    def state(self) -> dict[str, Any]:
        """Plain JSON values; the surrogate's weights are in a file where there is a folder."""
        return {
            "searcher": self.name,
            "rng": self._rng.bit_generator.state,
            "told": [c.to_json() for c in self._told.values()],
            "asked": [list(a) for a in self._asked],
            "queue": [list(a) for a in self._queue],
            "length": self.length,
            "level": [list(a) for a in self._level],
            "parents": [list(a) for a in self._parents],
            "beliefs": self._beliefs.state(self.folder),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state`. Raises :class:`~latbench.errors.FileFormatError` for lost weights."""
        check_state(self.name, state)
        self._rng.bit_generator.state = state["rng"]
        self._told = {c.arch: c for c in map(Candidate.from_json, state["told"])}
        self._asked, self._queue = as_archs(state["asked"]), as_archs(state["queue"])
        self._level, self._parents = as_archs(state["level"]), as_archs(state["parents"])
        self.length = int(state["length"])
        self._beliefs.restore(state["beliefs"], self.folder)

    def picks(self, candidates: Sequence[Candidate]) -> dict[str, Candidate]:
        """The paper's final choices from the Pareto set: ``device``, ``panacea``, ``pnas``.

        ``pnas`` has the least error, whatever it costs. ``device`` (``device@NAME`` for each of several) is as good as
        can be in error and in latency on the device, ``panacea`` in all objectives: the objective in which it does
        worst, by the front's range, is the least bad. The paper says "small error and shortest running time" and
        "relatively well on every objective", and gives no rule.
        """
        front = self.problem.front(candidates)
        if not front:
            return {}
        f = self.problem.matrix(front)
        span = np.ptp(f, axis=0)
        scaled = (f - f.min(axis=0)) / np.where(span > 0, span, 1.0)
        names = [o.name for o in self.problem.objectives]

        def best(columns: Sequence[int]) -> Candidate:
            part = scaled[:, columns]
            return front[min(range(len(front)), key=lambda i: (part[i].max(), part[i].sum(), front[i].number))]

        learnt = [j for j, name in enumerate(names) if name in self._beliefs.names]
        out = {}
        for j, name in enumerate(names):
            metric, at, device = name.partition("@")
            if metric == LATENCY:
                out[f"device{at}{device}"] = best([*learnt, j])
        return {**out, "panacea": best(range(len(names))), **({"pnas": best(learnt[:1])} if learnt else {})}

    # -- growing ------------------------------------------------------------------------------------------------

    def _grow(self) -> bool:
        """Fill the queue with the cells to train next, longer ones as long as there are any; false at the end."""
        errors = self._beliefs.learn(list(self._told.values()), self.folder)
        last = self.problem.space.positions
        while True:
            longer = self.length < last
            if longer:
                # Cells whose answers are out have not failed yet.
                alive = [a for a in self._level if a not in self._told or self._told[a].feasible]
                self._parents = alive or self._level
                self.length = self.length + 1 if self.length else max(self._shortest, 1)
            cells = self._extensions()
            taken = {*self._told, *self._asked}
            new = [a for a in cells if a not in taken]
            violation = self.problem.cheap(new)["violation"].tolist() if new else []
            kept = [a for a, v in zip(new, violation, strict=True) if v == 0]
            self._queue, trained = self._best(kept)
            self._level = [*self._queue, *trained, *(a for a in cells if a in taken)]
            if self._queue:
                found = {"extensions": len(cells), "within_limits": len(kept), "trained_next": len(self._queue)}
                self.course.append({"length": self.length, **found, **errors})
                return True
            if self.length == last:
                return False
            if not self._level:
                # All break a limit; what grows out of the nearest ones need not.
                self._level = [new[i] for i in np.argsort(violation, kind="stable")[: self.cells]]

    def _extensions(self) -> list[Arch]:
        """All cells of the present length that the parents extend to; the first ones are all that there are."""
        space = self.problem.space
        root = tuple(space.absent(i) or 0 for i in range(space.positions))
        cells = self._parents or [root]
        for i in [self.length - 1] if self._parents else range(self.length):
            cells = list(dict.fromkeys((*a[:i], c, *a[i + 1 :]) for a in cells for c in self._choices(i)))
            if not self._parents and len(cells) > _MANY:
                cells = [cells[j] for j in self._rng.permutation(len(cells))[:_MANY]]
        return cells

    def _choices(self, position: int) -> list[int]:
        absent = self.problem.space.absent(position)
        return [c for c in range(self.problem.space.num_choices[position]) if c != absent]

    def _best(self, cells: list[Arch]) -> tuple[list[Arch], list[Arch]]:
        """The K best by Pareto rank, then soft limits, then room along the front; without a surrogate K at random.

        Beside them those that are as good and need no training, since their networks are those of cells that were: a
        third layer that does nothing makes a cell of three layers the same network as one of two.
        """
        order = self._beliefs.order(cells)
        known = {self._network(a) for a in (*self._told, *self._asked)}
        chosen, trained = list[Arch](), list[Arch]()
        for i in self._rng.permutation(len(cells)) if order is None else order:
            if len(chosen) == self.cells:
                break
            network = self._network(cells[i])
            (trained if network in known else chosen).append(cells[i])
            known.add(network)
        self._beliefs.remember(chosen)
        return chosen, trained

    def _network(self, arch: Arch) -> str:
        """What tells networks apart that compute different things."""
        if arch not in self._networks:
            self._networks[arch] = self.problem.space.network(arch).key
        return self._networks[arch]


#: So many first cells at most are looked at, drawn at random where there are more.
_MANY = 4096


def _shortest(space: SearchSpace) -> int:
    """Positions that every network of the space has. Raises :class:`ConfigError` where no network is shorter."""
    optional = [space.absent(i) is not None for i in range(space.positions)]
    shortest = max((i + 1 for i, may_end in enumerate(optional) if not may_end), default=0)
    if shortest == space.positions:
        raise ConfigError(
            f"dppnet grows networks layer by layer, and all of this {space.name} have the same {space.positions} "
            "positions; take a space of networks of several lengths: densecell with shortest=2 (--set shortest=2), or "
            "one of your own whose absent() says where a network may end"
        )
    return shortest
