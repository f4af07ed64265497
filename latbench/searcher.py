"""The contract of searchers: ask, tell, and a state that can be written down."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from latbench.errors import ConfigError
from latbench.problem import Candidate, Problem
from latbench.space import Arch
from latbench.telling import silent


class Searcher(ABC):
    """Proposes architectures for a Problem and learns from the answers.

    State trace: ``ask`` does not change what is learnt, only ``tell`` does; both may advance the random generator. The
    answers of one ``ask`` may come back in several ``tell`` calls, in any order, mixed with architectures that were
    never asked for (known results) and with some told before. With the same seed and the same sequence of calls a
    searcher proposes the same. ``state`` after any call, given to :meth:`restore` of a searcher made with the same
    arguments, continues exactly.

    A candidate may come back that was not evaluated (``info["evaluated"]`` is false): it breaks a hard limit on a value
    that is known without evaluation, and costs no budget. :meth:`Problem.cheap` tells beforehand.

    A searcher with more to keep than fits JSON writes files into :attr:`folder`, and ``state`` names them relative to
    it, since the folder may have moved when they are read again. A file that a ``state`` names stays as it is until
    the next ``state`` after it: a search may go on from the one before. Without a folder it keeps them elsewhere.
    """

    name: str
    #: A folder of this search alone, for what is too large for ``state`` (weights of a supernet), or None. A search
    #: sets it before the first ``ask`` or ``restore``; it exists then.
    folder: Path | None = None
    #: How many architectures the method likes to be asked for at a time: as many can be evaluated at once. A search
    #: tells all of them, in the order of asking, before it asks again.
    batch: int = 1
    #: True if it gains from being told each answer at once, while others are out. A search with several workers then
    #: does so: what it proposes next depends on which answer came first.
    asynchronous: bool = False
    #: What each network of :meth:`picks` is, in words: its name (what comes before an ``@``) → a sentence's part.
    pick_words: ClassVar[Mapping[str, str]] = {}

    def __init__(self, problem: Problem, *, seed: int = 0, **options: Any) -> None:
        self.problem, self.seed, self.options = problem, seed, options
        #: What there is to tell of the searcher's own work, a row a piece: names → numbers, e.g. ``epoch``,
        #: ``entropy``, ``latency_ms``. The searcher appends; a search keeps it and puts it into its result.
        self.course: list[dict[str, float]] = []
        #: Is told in a line what the searcher is at, where a piece of its own work takes long: see
        #: :func:`latbench.telling.told`. A search sets it.
        self.report: Callable[[str], None] = silent

    def advance(self) -> bool:
        """Do one piece of the work that the method does without being told anything; true if it did one.

        A search calls it before each ``ask`` until it is false, and saves the state after each piece: a piece is what a
        crash may cost, a minute rather than an hour. Methods that train weights and architecture parameters themselves
        (ProxylessNAS, E-DNAS) train an epoch here, and propose what they derived from them when they are asked.
        """
        return False

    @abstractmethod
    def ask(self, n: int) -> list[Arch]:
        """Up to ``n`` different architectures to evaluate next; empty when there is nothing left to propose.

        Raises :class:`~latbench.errors.InfeasibleError` when nothing that keeps the limits can be found.
        """

    @abstractmethod
    def tell(self, candidates: Sequence[Candidate]) -> None:
        """Learn from evaluated candidates."""

    def line(self, row: Mapping[str, float]) -> str:
        """How a search reports a row of the course."""
        return f"{self.name}: {numbers(row)}"

    def doubts(self) -> list[str]:
        """Why what the searcher's own work led to may be worth little, in sentences; here nothing.

        A search reports them when that work is done, and its result warns of them.
        """
        return []

    def picks(self, candidates: Sequence[Candidate]) -> dict[str, Candidate]:
        """The networks of a search that the method singles out in the end, by the name that it has for each; here none.

        ``candidates`` are all of the search; a result keeps what comes back beside its front.
        """
        return {}

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Everything that :meth:`restore` needs, as plain JSON values."""

    @abstractmethod
    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a :meth:`state`. Raises :class:`~latbench.errors.SearchError` for one of another searcher."""


def numbers(row: Mapping[str, float]) -> str:
    """``loss 2.1, accuracy 0.35``."""
    return ", ".join(f"{name} {value:.4g}" for name, value in row.items())


def whole_option(searcher: str, option: str, value: Any, least: int) -> int:
    """The value of an option, an int of at least ``least``. Raises :class:`ConfigError` naming searcher and option."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{searcher}: {option} must be a whole number of at least {least}, got {value!r}")
    return value


def share_option(searcher: str, option: str, value: Any) -> float:
    """The value of an option, a probability. Raises :class:`ConfigError` naming searcher and option."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ConfigError(f"{searcher}: {option} must be a probability, a number from 0 to 1, got {value!r}")
    return float(value)


def reject_options(name: str, options: dict[str, Any], known: Sequence[str]) -> None:
    """Raise :class:`ConfigError` for options that a searcher does not have, naming those it has."""
    if options:
        raise ConfigError(
            f"searcher {name!r} has no option {', '.join(sorted(options))}; it has: {', '.join(known) or 'none'}"
        )
