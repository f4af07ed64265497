"""Random search: architectures drawn uniformly and without replacement from those that keep the limits.

The baseline that every other searcher has to beat.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from latbench.problem import Candidate, Problem
from latbench.searcher import Searcher, whole_option
from latbench.space import Arch

from .sampling import Unseen, as_archs, check_state


class RandomSearch(Searcher):
    """Uniform sampling without replacement.

    ``max_tries`` bounds the draws of one ``ask`` where limits are tight; see :class:`~.sampling.Unseen`.
    """

    name = "random"
    batch = 32

    def __init__(self, problem: Problem, *, seed: int = 0, max_tries: int = 20_000) -> None:
        super().__init__(problem, seed=seed, max_tries=max_tries)
        self._unseen = Unseen(problem, seed, whole_option(self.name, "max_tries", max_tries, 1))
        self._seen: set[Arch] = set()

    def ask(self, n: int) -> list[Arch]:
        """Up to ``n`` architectures that were neither asked nor told before."""
        out = self._unseen.draw(n, self._seen)
        self._seen.update(out)
        return out

    def tell(self, candidates: Sequence[Candidate]) -> None:
        """Remember them, so that they are not proposed."""
        self._seen.update(c.arch for c in candidates)

    def state(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"searcher": self.name, "unseen": self._unseen.state(), "seen": [list(a) for a in sorted(self._seen)]}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state`."""
        check_state(self.name, state)
        self._unseen.restore(state["unseen"])
        self._seen = set(as_archs(state["seen"]))
