"""Telling how far long work is: a line now and then, with the time that is left.

What trains for minutes before there is anything to show (a supernet, a searcher's own epochs) goes through its batches
by :func:`told`. Who listens is the caller's matter: ``report`` of :func:`latbench.search` is the terminal's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

#: Seconds between two lines: work that is over sooner tells nothing.
EVERY_S = 10.0


def silent(_: str) -> None:
    """Tell nobody."""


class Pace:
    """How long the rest will take, by how fast it went since the first time that it was asked."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._first: tuple[float, float] | None = None

    def left_s(self, done: float, total: float) -> float | None:
        """Seconds until ``total``, with ``done`` of it now; None as long as there is nothing to go by."""
        now = self._clock()
        if self._first is None:
            self._first = now, done
        began, before = self._first
        return (now - began) / (done - before) * (total - done) if done > before else None


def told(
    items: Iterable[T],
    what: str,
    report: Callable[[str], None],
    *,
    total: int,
    further: int = 0,
    unit: str = "step",
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[T]:
    """The ``items`` of a piece of work, of which there are ``total``; ``report`` is told how far it is.

    A line is ``{what}, {unit} 40 of 200, about 3 min left`` and comes :data:`EVERY_S` seconds after the one before, or
    after the start. ``further`` items of later pieces (epochs to come) count in the time that is left.
    """
    began = last = clock()
    for done, item in enumerate(items, 1):
        yield item
        now = clock()
        if now - last >= EVERY_S and done < total:
            last = now
            left = (now - began) / done * (total - done + further)
            report(f"{what}, {unit} {done} of {total}, {about(left)}")


def about(seconds: float) -> str:
    """``about 3 min left``."""
    return f"about {_minutes(seconds)} left"


def _minutes(seconds: float) -> str:
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    hours, minutes = divmod(max(1, round(seconds / 60)), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"
