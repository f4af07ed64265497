"""What people see: the console, tables, numbers in words, and the progress bar.

The bar is drawn when a Visit ends and at no other time: a thread that redraws would run beside the measurement.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from math import inf, isfinite
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress

#: Columns where output goes to a file or a pipe and nobody said how wide it is.
PIPE_WIDTH = 160
#: Characters of one line of an error text.
LONGEST_LINE = 400
#: Seconds after which a line of progress comes where it is longer to the next fifth of the way.
LINE_EVERY_S = 30.0


@cache
def console(stderr: bool = False) -> Console:
    """The console of standard output, or of standard error."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else PIPE_WIDTH
    return Console(stderr=stderr, width=width, highlight=False, soft_wrap=False)


def say(text: str = "", style: str = "") -> None:
    """Print text as it is; brackets in it are no markup."""
    console().print(text, style=style or None, markup=False, soft_wrap=True)


def note(text: str) -> None:
    """Print something that is not the answer, on standard error."""
    console(stderr=True).print(text, style="dim", markup=False, soft_wrap=True)


def warn(text: str) -> None:
    """Print a warning on standard error."""
    console(stderr=True).print(f"warning: {text}", style="yellow", markup=False, soft_wrap=True)


def print_error(text: str) -> None:
    """Print ``error: …`` on standard error; the keys of fused Ops are cut to a readable length."""
    text = "\n".join(line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]} …" for line in text.splitlines())
    console(stderr=True).print(f"error: {text}", style="red", markup=False, soft_wrap=True)


def table(
    columns: Sequence[str], rows: Iterable[Sequence[Any]], *, title: str = "", numbers: Sequence[str] = ()
) -> None:
    """Print a table; columns named in ``numbers`` are aligned to the right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    t = Table(title=title or None, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False)
    for c in columns:
        t.add_column(c, justify="right" if c in numbers else "left", overflow="fold", no_wrap=c in numbers)
    for row in rows:
        t.add_row(*(v if isinstance(v, Text) else Text(str(v)) for v in row))
    console().print(t)


def ms(value: float) -> str:
    """Milliseconds with four significant digits, e.g. ``3.142``, ``0.01234``; ``–`` where there is no number."""
    if not isfinite(value):
        return "–"
    if value >= 1000:
        return f"{value:.0f}"
    return f"{value:#.4g}"


def span(low: float, high: float) -> str:
    """An interval in milliseconds."""
    return f"{ms(low)} – {ms(high)}" if isfinite(high) else "unknown"


def quantity(value: float, metric: str) -> str:
    """A value of a metric with its unit, e.g. ``13.42 MiB`` or ``8.31 mJ``; ``–`` where there is no number."""
    from latbench.metric import METRICS

    if not isfinite(value):
        return "–"
    unit = METRICS[metric].unit
    if unit == "B":
        return f"{value / 1048576:.2f} MiB"
    return f"{ms(value)} {unit}"


def print_json(value: Any) -> None:
    """Print JSON as every reader takes it: numbers that are not finite are null, other objects text."""
    print(json.dumps(_plain(value), indent=2, default=str, allow_nan=False))


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value


def percent(share: float, digits: int = 1) -> str:
    """A fraction as a percentage; ``–`` where there is no number."""
    return f"{share:.{digits}%}" if isfinite(share) else "–"


def count(n: float) -> str:
    """A large number for people: ``304.0 M``."""
    for size, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if n >= size:
            return f"{n / size:.1f} {name}"
    return f"{n:g}"


def duration(seconds: float) -> str:
    """``42 s``, ``3 min 20 s`` or ``2 h 05 min``."""
    s = max(0, round(seconds))
    if s < 60:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60} min {s % 60:02d} s"
    return f"{s // 3600} h {s % 3600 // 60:02d} min"


class Bar:
    """A progress bar that is drawn only when :meth:`update` is called."""

    def __init__(self, progress: Progress, title: str, lines: bool) -> None:
        self._progress, self._title, self._told, self._lines = progress, title, 0, lines
        self._first = self._total = 0.0
        self._last = time.monotonic()
        self._task = progress.add_task(title, total=None, left="")

    def update(self, done: float, total: float, *, left_s: float | None = None, title: str | None = None) -> None:
        """Show ``done`` of ``total``, and the time left where it is known. A total that grows says by how much; a
        smaller one is that of further work."""
        if total < self._total:
            self._told, self._first = 0, total
        self._first = self._first or total
        added = f"+{total - self._first:g} added" if total > self._first else ""
        left = "" if left_s is None or not 0.5 <= left_s < inf else f"{duration(left_s)} left"
        left = ", ".join(filter(None, (added, left)))
        if self._progress.disable:
            self._tell(done, total, left)
            self._total = total
            return
        self._total = total
        self._progress.update(self._task, completed=done, total=total, left=left, description=title)
        self._progress.refresh()

    def _tell(self, done: float, total: float, left: str) -> None:
        """Where there is no terminal: one line every fifth of the way, and after each half minute."""
        fifth, now = int(5 * done / total) if total else 0, time.monotonic()
        if total > self._total:
            # What was all of it is not any more: the last line must not be the one that said so.
            self._told = min(self._told, fifth)
        if self._lines and done and (fifth > self._told or now - self._last >= LINE_EVERY_S):
            self._told, self._last = fifth, now
            note(f"{self._title}: {done:g} of {total:g}{', ' if left else ''}{left}")


@contextmanager
def bar(title: str, *, lines: bool = True) -> Iterator[Bar]:
    """A progress bar on standard error; a line now and then (``lines``) where that is no terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns: list[Any] = [
        TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    ]  # fmt: skip
    err = console(stderr=True)
    with Progress(*columns, console=err, auto_refresh=False, disable=not err.is_terminal, transient=True) as p:
        yield Bar(p, title, lines)


def print_renderable(thing: RenderableType) -> None:
    """Print anything that rich can draw."""
    console().print(thing)
