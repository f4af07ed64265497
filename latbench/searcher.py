"""The contract of searchers: ask, tell, and a state that can be written down."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from latbench.problem import Candidate, Problem
from latbench.space import Arch


class Searcher(ABC):
    """Proposes architectures for a Problem and learns from the answers.

    State trace: ``ask`` does not change what is learnt, only ``tell`` does; both may advance the random generator. The
    answers of one ``ask`` may come back in several ``tell`` calls, in any order, mixed with architectures that were
    never asked for (known results). With the same seed and the same sequence of calls a searcher proposes the same.
    ``state`` after any call, given to :meth:`restore` of a searcher made with the same arguments, continues exactly.
    """

    name: str

    def __init__(self, problem: Problem, *, seed: int = 0, **options: Any) -> None:
        self.problem, self.seed, self.options = problem, seed, options

    @abstractmethod
    def ask(self, n: int) -> list[Arch]:
        """Up to ``n`` architectures to evaluate next; empty when there is nothing left to propose."""

    @abstractmethod
    def tell(self, candidates: Sequence[Candidate]) -> None:
        """Learn from evaluated candidates."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Everything that :meth:`restore` needs, as plain JSON values."""

    @abstractmethod
    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a :meth:`state`. Raises :class:`~latbench.errors.SearchError` for one of another searcher."""
