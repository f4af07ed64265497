"""The loop of a search: ask, evaluate, tell, keep.

:class:`Driver` runs one worker in this process, or many evaluations at once on a ``concurrent.futures`` executor. It
checks what searchers propose and what evaluators answer, and turns failures into candidates.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import islice, takewhile
from typing import TYPE_CHECKING, Any

from latbench import telling
from latbench.answers import Answer, evaluate, why_failed
from latbench.cheap import SpaceValues
from latbench.errors import ArchitectureError, SearchError
from latbench.interruptions import Interruptions
from latbench.problem import AccuracyEvaluator, Candidate, Problem
from latbench.searcher import Searcher
from latbench.space import Arch
from latbench.telling import silent

if TYPE_CHECKING:
    from latbench.store import Store

#: Asking this often without a single architecture that can be evaluated ends a search.
MAX_IDLE = 200
#: Share of the time that saving the state may take, where answers are so cheap that they can be had again.
_SAVE_SHARE = 0.05


@dataclass(frozen=True)
class Progress:
    """How far a search is: architectures evaluated, the budget, and the last candidate."""

    done: int
    budget: int
    candidate: Candidate


class Driver:
    """One search; see :func:`latbench.search` for the arguments. Call :meth:`run` once."""

    def __init__(
        self,
        problem: Problem,
        searcher: Searcher,
        accuracy: AccuracyEvaluator | None,
        *,
        budget: int,
        store: Store | None = None,
        identity: str = "",
        plan: Mapping[str, Any] | None = None,
        resume: bool = True,
        executor: Executor | None = None,
        workers: int = 1,
        progress: Callable[[Progress], None] | None = None,
        report: Callable[[str], None] | None = None,
        max_failures: int = 20,
    ) -> None:
        self.problem, self.searcher, self.accuracy, self.budget = problem, searcher, accuracy, budget
        self.store, self.identity, self.plan, self.resume = store, identity, dict(plan or {}), resume
        self.executor, self.workers = executor, workers
        self.progress, self.report, self.max_failures = progress, report or silent, max_failures
        searcher.report = self.report
        self.candidates: list[Candidate] = []
        self.warnings: list[str] = []
        #: Evaluations that the evaluator was asked for, those found in the store, and candidates that were resumed.
        self.paid = self.reused = self.resumed = 0
        self._by_arch: dict[Arch, Candidate] = {}
        self._done = 0
        self._pending: list[Arch] = []
        self._idle = 0
        self._failures = 0
        self._known: dict[Arch, dict[str, float]] = {}
        self._saved_at, self._save_cost = 0.0, 0.0
        #: What the searcher was asked and told, in order; see :func:`replay`.
        self._trace: list[list[Any]] = []
        self._saved = 0
        #: Seconds of the sittings before this one, of a search that goes on.
        self.spent_s = 0.0
        self._began = time.time()

    def run(self) -> None:
        """Search until the budget is spent or the searcher has nothing left to propose.

        The searcher is asked for whole batches and told whole batches, in the order of asking, however many workers
        evaluate them: which candidates there are does not depend on who is fast. Only an asynchronous searcher with
        several workers is told each answer when it comes, and asked for another architecture in its place.
        """
        if self.store is not None:
            self._restore(self.store)
        judge = self.accuracy.recipe if self.accuracy is not None else "what the models say"
        self.report(f"{self.searcher.name}: up to {self.budget} architectures, judged by {judge}")
        if self.accuracy is not None and self._done < self.budget:
            self.accuracy.prepare(self.problem.space, self.report)
        with ExitStack() as stack:
            pool = self.executor
            if pool is None and self.workers > 1:
                pool = ThreadPoolExecutor(self.workers)
                # Not waited for: after a failure or Ctrl-C nobody wants the trainings that are still running.
                stack.callback(pool.shutdown, wait=False, cancel_futures=True)
            if pool is not None and self.workers > 1 and self.searcher.asynchronous:
                self._as_they_come(pool)
            while self._done < self.budget:
                archs = self._pending or self._ask(min(max(self.searcher.batch, 1), self.budget - self._done))
                if not archs:
                    if self._idle < MAX_IDLE:
                        rest = f"{self._done} of {self.budget} evaluations"
                        self.report(f"{self.searcher.name}: nothing is left to propose after {rest}")
                    break
                rows = self._cheap(archs)
                self._tell(self._here(archs, rows) if pool is None else self._on(pool, archs, rows))
        self._save(force=True)
        self.warnings += self.searcher.doubts()

    @property
    def wall_s(self) -> float:
        """Seconds that the search has run, in all its sittings."""
        return self.spent_s + time.time() - self._began

    # -- evaluating a batch -------------------------------------------------------------------------------------

    def _here(self, archs: Sequence[Arch], rows: Mapping[Arch, dict[str, float]]) -> list[Candidate]:
        size = max(self.accuracy.batch, 1) if self.accuracy else self.searcher.batch
        told: list[Candidate] = []
        for i in range(0, len(archs), size):
            part = archs[i : i + size]
            todo = [a for a in part if self._must_evaluate(a, rows[a])]
            answers = self._keep(todo, evaluate(self.accuracy, self.problem.space, todo)) if self.accuracy else {}
            told += self._record(part, rows, answers)
        return told

    def _on(self, pool: Executor, archs: Sequence[Arch], rows: Mapping[Arch, dict[str, float]]) -> list[Candidate]:
        """At most ``workers`` at once; an answer is stored when it comes, and recorded after all those before it."""
        todo = [a for a in archs if self._must_evaluate(a, rows[a])]
        missing, queue = set(todo), iter(todo)
        flying: dict[Future[list[Answer]], Arch] = {}
        answers: dict[Arch, Answer] = {}
        told: list[Candidate] = []
        try:
            while len(told) < len(archs):
                for arch in islice(queue, self.workers - len(flying)):
                    flying[pool.submit(evaluate, self.accuracy, self.problem.space, [arch])] = arch
                ready = list(takewhile(lambda a: a not in missing, archs[len(told) :]))
                told += self._record(ready, rows, answers)
                if flying:
                    done, _ = wait(flying, return_when=FIRST_COMPLETED)
                    for f in [f for f in flying if f in done]:
                        arch = flying.pop(f)
                        answers |= self._keep([arch], f.result())
                        missing.discard(arch)
        finally:
            for f in flying:
                f.cancel()
        return told

    def _as_they_come(self, pool: Executor) -> None:
        """Keep all workers busy: no answer waits for another."""
        flying: dict[Future[list[Answer]], Arch] = {}
        try:
            while self._done < self.budget:
                out = set(flying.values())
                free = min(self.workers, self.budget - self._done) - len(flying)
                waiting = [a for a in self._pending if a not in out]
                if free > 0 and (archs := (waiting or self._ask(free))[:free]):
                    rows = self._cheap(archs)
                    todo = [a for a in archs if self._must_evaluate(a, rows[a])]
                    for arch in todo:
                        flying[pool.submit(evaluate, self.accuracy, self.problem.space, [arch])] = arch
                    self._tell(self._record([a for a in archs if a not in todo], rows, {}))
                    continue
                if not flying:
                    return
                done, _ = wait(flying, return_when=FIRST_COMPLETED)
                for f in [f for f in flying if f in done]:
                    arch = flying.pop(f)
                    self._tell(self._record([arch], self._cheap([arch]), self._keep([arch], f.result())))
        finally:
            for f in flying:
                f.cancel()

    # -- parts --------------------------------------------------------------------------------------------------

    def _ask(self, n: int) -> list[Arch]:
        """Up to ``n`` new architectures, checked; those that are known already are told again at once."""
        name = self.searcher.name
        while self._idle < MAX_IDLE:
            self._advance()
            with self._telling_what_is_looked_at():
                proposed = self.searcher.ask(n)
            self._trace.append(["ask", n])
            if not proposed:
                return []
            if len(proposed) > n:
                raise SearchError(f"searcher {name!r} was asked for {n} architectures and proposed {len(proposed)}")
            try:
                archs = list(dict.fromkeys(self.problem.space.validate(a) for a in proposed))
            except ArchitectureError as e:
                raise SearchError(f"searcher {name!r} proposed an architecture that does not exist: {e}") from e
            if known := [self._by_arch[a] for a in archs if a in self._by_arch]:
                self._trace.append(["tell", [c.number for c in known]])
                self.searcher.tell(known)
            if new := [a for a in archs if a not in self._by_arch and a not in self._pending]:
                self._pending += new
                return new
            self._idle += 1
        said = (
            f"searcher {name!r} proposed nothing that could be evaluated {MAX_IDLE} times in a row; stopped after "
            f"{self._done} of {self.budget} evaluations"
        )
        # With several workers it is asked again when each of the last answers comes.
        if said not in self.warnings:
            self.warnings.append(said)
        return []

    @contextmanager
    def _telling_what_is_looked_at(self) -> Iterator[None]:
        """Where an answer takes the searcher long, a line now and then: how many architectures it asked the models for.

        Under a limit that hardly any keeps, or none, these are all that there are.
        """
        values, size = self.problem.cheap_values, self.problem.space.size
        if not isinstance(values, SpaceValues):
            yield
            return
        seen, last = 0, time.monotonic()

        def looked_at(n: int) -> None:
            nonlocal seen, last
            seen, now = seen + n, time.monotonic()
            if now - last >= telling.EVERY_S:
                last = now
                self.report(
                    f"{self.searcher.name}: looked at {seen} architectures for what to evaluate next (there are "
                    f"{size if size < 1e9 else f'{size:.1e}'})"
                )

        values.on_asked = looked_at
        try:
            yield
        finally:
            values.on_asked = None

    def _advance(self) -> None:
        """Let the searcher do its own work, and keep the state after each piece of it."""
        worked = False
        with Interruptions(self.report if self.store is not None else None) as asked:
            while self.searcher.advance():
                worked = True
                self._trace.append(["advance", 1])
                self._save(force=True)
                if row := self.searcher.course[-1:]:
                    self.report(self.searcher.line(row[0]))
                asked.stop()
        for doubt in self.searcher.doubts() if worked else ():
            self.report(doubt)

    def _cheap(self, archs: Sequence[Arch]) -> dict[Arch, dict[str, float]]:
        columns = {n: c.tolist() for n, c in self.problem.cheap(archs).items()}
        return {a: {n: c[i] for n, c in columns.items()} for i, a in enumerate(archs)}

    def _must_evaluate(self, arch: Arch, row: Mapping[str, float]) -> bool:
        return self.accuracy is not None and row["violation"] == 0 and arch not in self._known

    def _keep(self, archs: Sequence[Arch], answers: Sequence[Answer]) -> dict[Arch, Answer]:
        """Store what was paid for, a training that diverged too: it would diverge again."""
        accuracy = self.accuracy
        self.paid += len(archs)
        for arch, (values, _) in zip(archs, answers, strict=True):
            if self.store is not None and accuracy is not None and accuracy.cache and values:
                self.store.add_evaluation(accuracy.recipe, self.problem.space, arch, values)
        return dict(zip(archs, answers, strict=True))

    def _record(
        self, archs: Sequence[Arch], rows: Mapping[Arch, dict[str, float]], answers: Mapping[Arch, Answer]
    ) -> list[Candidate]:
        """Make candidates of answers, of what the store knew, and of what breaks a limit without evaluation."""
        out = []
        for arch in archs:
            values: Mapping[str, float] | None = {}
            failed = ""
            if arch in answers:
                values, failed = answers[arch]
                self._failures = self._failures + 1 if failed else 0
                if self._failures >= self.max_failures:
                    raise SearchError(f"{self._failures} evaluations failed in a row, the last one: {failed}")
            elif self.accuracy is not None and rows[arch]["violation"] > 0:
                values = None
            elif self.accuracy is not None:
                values, self.reused = self._known[arch], self.reused + 1
                failed = why_failed(values)
            c = replace(self.problem.candidate(arch, rows[arch], values, failed), number=len(self.candidates))
            self.candidates.append(c)
            self._by_arch[arch] = c
            self._done += c.evaluated
            out.append(c)
            if self.progress:
                self.progress(Progress(self._done, self.budget, c))
        return out

    def _tell(self, told: Sequence[Candidate]) -> None:
        if not told:
            return
        answered = {c.arch for c in told}
        self._pending = [a for a in self._pending if a not in answered]
        self._idle = 0 if any(c.evaluated for c in told) else self._idle + 1
        self._trace.append(["tell", [c.number for c in told]])
        self.searcher.tell(told)
        self._save(force=self.workers > 1 and self.searcher.asynchronous)

    # -- the store ----------------------------------------------------------------------------------------------

    def _restore(self, store: Store) -> None:
        if self.accuracy is not None and self.accuracy.cache:
            self._known = store.evaluations(self.accuracy.recipe, self.problem.space)
        if not self.resume or self.identity not in store.searches():
            return
        record = store.load_search(self.identity)
        for c in record.candidates:
            if self._done >= self.budget:
                break
            self.candidates.append(c)
            self._done += c.evaluated
        self._by_arch = {c.arch: c for c in self.candidates}
        self.resumed = len(self.candidates)
        self.searcher.course = [dict(row) for row in record.state.get("course", [])]
        self.searcher.restore(record.state["searcher"])
        self._pending = [tuple(a) for a in record.state["pending"]]
        self._trace = record.state.get("trace", [])
        self._saved = len(self._trace)
        self.spent_s = float(record.state.get("wall_s", 0.0))
        epochs = sum("epoch" in row for row in self.searcher.course)
        trained = f"{epochs} epoch{'s' * (epochs != 1)} of {self.searcher.name}'s own training and " if epochs else ""
        self.report(f"going on: {trained}{self._done} evaluations are kept")

    def _save(self, force: bool = False) -> None:
        """Save the state; every time, unless candidates come so fast that it would take more than a small share."""
        now = time.monotonic()
        if self.store is None or len(self._trace) == self._saved:
            return
        if not force and now - self._saved_at < self._save_cost / _SAVE_SHARE:
            return
        state = {
            "searcher": self.searcher.state(),
            "pending": [list(a) for a in self._pending],
            "trace": self._trace,
            "course": self.searcher.course,
            "wall_s": self.wall_s,
        }
        self.store.save_search(self.identity, problem=self.plan, state=state, candidates=self.candidates)
        self._saved = len(self._trace)
        self._saved_at = time.monotonic()
        self._save_cost = self._saved_at - now


def replay(searcher: Searcher, trace: Sequence[Sequence[Any]], candidates: Sequence[Candidate]) -> None:
    """Ask and tell a new ``searcher`` what a search was asked and told, so that it ends in the same state.

    ``trace`` is that of the search's saved state, ``candidates`` are its candidates. With several workers the order of
    answers is a matter of who was fast: this is how such a search is repeated.
    """
    by_number = {c.number: c for c in candidates}
    for what, how in trace:
        if what == "advance":
            searcher.advance()
        elif what == "ask":
            searcher.ask(how)
        else:
            searcher.tell([by_number[n] for n in how])
